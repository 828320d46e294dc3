//! Intercepts of some requests only: each request of a connection goes to whom it is
//! for, and several people share a port.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvpn_tests::{Lab, wait_for};
use serde_json::{Deserializer, Value, json};

use crate::support::{Answer, Developer, pod};

const ALICE: &str = "x-user: alice";

/// Runs curl for several requests, and says who answered each.
fn answers<const N: usize>(developer: &Developer, args: [&str; N]) -> Result<Vec<Answer>> {
    let text = developer.curl(args)?.success()?.stdout;
    let values = Deserializer::from_str(&text).into_iter();
    values.map(|value| Ok(Answer::parse(&value?))).collect()
}

#[test]
fn requests_of_one_connection_go_to_whom_each_is_for() -> Result<()> {
    let developer = Developer::connected(1)?;
    let _handler = developer.handler(8080)?;
    let web = pod(&developer.lab, "web")?.name;
    let header = ["--http-header", "x-user=alice"];
    developer
        .kvpn(["intercept", "web", "--port", "8080", header[0], header[1]])?
        .success()?;

    let [url, other] = ["http://web/one", "http://web/two"];
    let [h, next, v] = ["-H", "--next", "-v"];
    let mixed = [h, ALICE, url, next, other, next, h, ALICE, other, next, url];
    let found = answers(&developer, mixed)?;
    let who: Vec<bool> = found.iter().map(Answer::is_from_laptop).collect();
    assert_eq!(who, [true, false, true, false]);
    ensure!(found.iter().skip(1).step_by(2).all(|it| it.pod == web));
    let paths: Vec<&str> = found.iter().map(|it| it.path.as_str()).collect();
    assert_eq!(paths, ["/one", "/two", "/two", "/one"]);

    // All on one connection.
    let output = developer
        .curl([v, h, ALICE, url, next, v, url])?
        .success()?;
    ensure!(
        output.stderr.contains("Re-using existing"),
        "{}",
        output.stderr
    );

    let status = developer.kvpn(["status"])?.success()?.stdout;
    ensure!(
        status.contains("requests with header x-user=alice"),
        "{status}"
    );
    developer.kvpn(["leave", "web"])?.success()?;
    ensure!(!developer.get([h, ALICE, url])?.is_from_laptop());
    Ok(())
}

#[test]
fn several_people_share_a_port_unless_their_filters_overlap() -> Result<()> {
    let first = Developer::connected(1)?;
    let second = Developer::connected(2)?;
    let _handlers = [
        first.handler_named("alices", 8080)?,
        second.handler_named("bobs", 8080)?,
    ];
    let intercept = |developer: &Developer, header: &str| {
        developer.kvpn([
            "intercept",
            "web",
            "--port",
            "8080",
            "--http-header",
            header,
        ])
    };
    intercept(&first, "x-user=alice")?.success()?;
    let refused = intercept(&second, "x-user~=a.*")?;
    ensure!(!refused.status.success(), "{}", refused.stdout);
    for part in ["header x-user=alice", "since", "kubectl"] {
        ensure!(refused.stderr.contains(part), "{}", refused.stderr);
    }
    intercept(&second, "x-user=bob")?.success()?;
    for (header, service) in [
        (ALICE, "alices"),
        ("x-user: bob", "bobs"),
        ("x-user: eve", "web"),
    ] {
        let answer = first.get(["-H", header, "http://web/"])?;
        assert_eq!(answer.service, service, "{header}");
    }

    let any = first.kvpn(["intercept", "web", "--port", "8080", "--any"])?;
    assert_eq!(any.code(), 2, "{}", any.stderr);
    let nonsense = intercept(&first, "x user=a")?;
    assert_eq!(nonsense.code(), 2, "{}", nonsense.stderr);
    ensure!(nonsense.stderr.contains("--help"), "{}", nonsense.stderr);
    Ok(())
}

/// The filters in the schema of the custom resource, put back when dropped.
struct Schema<'a> {
    lab: &'a Lab,
    filters: Value,
}

impl<'a> Schema<'a> {
    const CRD: [&'static str; 2] = ["crd", "engagements.kvpn.dev"];
    const FILTERS: &'static str =
        "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/http";

    fn without_filters(lab: &'a Lab) -> Result<Self> {
        let crd = lab.kubectl(["get", "-o", "json"]).args(Self::CRD).run()?;
        let crd: Value = crd.success()?.json()?;
        let filters = crd.pointer(Self::FILTERS).context("the filters")?.clone();
        let schema = Self { lab, filters };
        schema.patch(&json!([{"op": "remove", "path": Self::FILTERS}]))?;
        Ok(schema)
    }

    fn patch(&self, patch: &Value) -> Result<()> {
        let patch = patch.to_string();
        let kubectl = self.lab.kubectl(["patch", "--type=json", "-p", &patch]);
        kubectl.args(Self::CRD).ok().map(drop)
    }
}

impl Drop for Schema<'_> {
    fn drop(&mut self) {
        let add = json!([{"op": "add", "path": Self::FILTERS, "value": self.filters}]);
        // The test has its result.
        drop(self.patch(&add));
    }
}

#[test]
fn chart_that_knows_nothing_of_filters_intercepts_nothing() -> Result<()> {
    let developer = Developer::connected(1)?;
    let schema = Schema::without_filters(&developer.lab)?;
    let intercept = ["intercept", "web", "--port", "8080", "--http-path", "/mine"];
    // The API server may take a moment to use another schema.
    wait_for("it is refused", Duration::from_secs(20), || {
        let refused = developer.kvpn(intercept)?;
        if refused.status.success() {
            developer.kvpn(["leave", "web"])?.success()?;
            return Ok(None);
        }
        ensure!(
            refused.stderr.contains("helm upgrade"),
            "{}",
            refused.stderr
        );
        Ok(Some(()))
    })?;
    let left = developer
        .lab
        .kubectl(["get", "engagements", "-A", "-o", "name"]);
    assert_eq!(left.ok()?.trim(), "");
    drop(schema);
    Ok(())
}
