//! What the chart's values forbid: the API server refuses it to everyone, and kvpn
//! says why.

use std::time::Duration;

use anyhow::{Result, ensure};
use kvpn_proto::Reason;
use kvpn_tests::{Lab, wait_for};
use serde_json::{Value, json};

use crate::errors::assert_fails;
use crate::support::{Developer, upgrade_chart};

/// A namespace in which RBAC lets alice engage a workload: kvpn's own.
const FORBIDDEN: &str = "kvpn";

/// What the values forbid; nothing, as the lab has it, when dropped.
struct Policy<'a>(&'a Lab);

impl<'a> Policy<'a> {
    fn put(lab: &'a Lab, values: &Value) -> Result<Self> {
        let policy = Self(lab);
        policy.upgrade(values)?;
        policy.wait_until(false)?;
        Ok(policy)
    }

    fn upgrade(&self, values: &Value) -> Result<()> {
        let values = format!("engagements.policy={values}");
        upgrade_chart(self.0, ["--set-json", &values])
    }

    /// Waits until the API server admits what the values may forbid, or does not;
    /// it may take a moment to use another policy.
    fn wait_until(&self, admitted: bool) -> Result<()> {
        let engagement = format!(
            "
apiVersion: kvpn.dev/v1alpha1
kind: Engagement
metadata: {{name: never-made, namespace: {FORBIDDEN}}}
spec:
  user: alice
  session: alice-1
  verb: Intercept
  workload: {{kind: Deployment, name: traffic-manager}}
  ports: [{{containerPort: 8443, protocol: TCP, local: '127.0.0.1:8080'}}]
"
        );
        let create = ["create", "--dry-run=server", "-f", "-"];
        wait_for("the policy is used", Duration::from_secs(20), || {
            let kubectl = self.0.kubectl_as("alice", create).stdin(&*engagement);
            let output = kubectl.run()?;
            let denied = output.stderr.contains("'kvpn-engagements'");
            ensure!(output.status.success() || denied, "{}", output.stderr);
            Ok((output.status.success() == admitted).then_some(()))
        })
    }
}

impl Drop for Policy<'_> {
    fn drop(&mut self) {
        let nothing =
            json!({"forbiddenVerbs": [], "requireFilter": false, "forbiddenNamespaces": []});
        // Whether it is so shows in what the test does next; else it has its result.
        drop(self.upgrade(&nothing).and_then(|()| self.wait_until(true)));
    }
}

#[test]
fn what_the_values_forbid_is_refused_and_nothing_else() -> Result<()> {
    let developer = Developer::connected(1)?;
    let policy = Policy::put(
        &developer.lab,
        &json!({
            "forbiddenVerbs": ["Wiretap"],
            "requireFilter": true,
            "forbiddenNamespaces": [FORBIDDEN],
        }),
    )?;

    let everything = developer.kvpn(["intercept", "web", "--port", "8080"])?;
    let words = [
        "error: intercepts without a filter are forbidden in this cluster\n",
        "hint: give one, such as --http-header x-user=alice\n",
    ];
    assert_fails(&everything, Reason::Forbidden, &words)?;
    let [flag, header] = ["--http-header", "x-user=alice"];
    let replace = developer.kvpn(["replace", "web", "--port", "8080"])?;
    let words = [
        "error: replaces, which take all requests, are forbidden in this cluster\n",
        "hint: intercept with a filter, such as --http-header x-user=alice\n",
    ];
    assert_fails(&replace, Reason::Forbidden, &words)?;
    let verb = developer.kvpn(["wiretap", "web", "--port", "8080", flag, header])?;
    let words = [
        "error: wiretaps are forbidden in this cluster\n",
        "take Wiretap out of engagements.policy.forbiddenVerbs",
    ];
    assert_fails(&verb, Reason::Forbidden, &words)?;
    let [name, port] = ["traffic-manager", "8080:https"];
    let namespace = [
        "intercept",
        name,
        "--port",
        port,
        "-n",
        FORBIDDEN,
        flag,
        header,
    ];
    let words = [
        "error: engagements in namespace kvpn are forbidden\n",
        "engagements.policy.forbiddenNamespaces",
    ];
    assert_fails(&developer.kvpn(namespace)?, Reason::Forbidden, &words)?;
    let list = ["get", "engagements", "-A", "-o", "name"];
    assert_eq!(developer.lab.kubectl(list).ok()?, "");
    ensure!(developer.kvpn_json(["status"])?["engagements"] == json!([]));

    let _handler = developer.handler(8080)?;
    developer
        .kvpn(["intercept", "web", "--port", "8080", flag, header])?
        .success()?;
    let answer = developer.get(["-H", "x-user: alice", "http://web/"])?;
    ensure!(answer.is_from_laptop(), "{answer:?}");
    developer.kvpn(["leave", "web"])?.success()?;

    drop(policy);
    developer.intercept("web", "8080")?;
    Ok(())
}
