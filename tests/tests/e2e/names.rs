//! Names on the laptop are those of a pod in the session's namespace, whoever asks
//! and however the laptop looks up names.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvpn_tests::lab::wire::OFFICE_PRINTER;
use kvpn_tests::{Lab, Output, wait_for};

use crate::support::{Developer, SHOP, pod};

/// Services that the sample does not have: of one family, and an alias.
const SERVICES: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: four, namespace: shop}
spec:
  ipFamilyPolicy: SingleStack
  ipFamilies: [IPv4]
  selector: {app: nobody}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: outside, namespace: shop}
spec: {type: ExternalName, externalName: kubernetes.default.svc.cluster.local}
"#;

/// Questions whose answers must be those of a pod.
const QUESTIONS: [[&str; 2]; 22] = [
    ["web", "A"],
    ["web", "AAAA"],
    ["web.shop", "A"],
    ["web.shop.svc", "AAAA"],
    ["web.shop.svc.cluster.local", "A"],
    ["WEB.shop.svc.Cluster.Local", "AAAA"],
    ["kubernetes.default", "A"],
    ["kubernetes.default.svc.cluster.local", "A"],
    // One family: the other has no data, which is not "no such name".
    ["four", "A"],
    ["four.shop.svc.cluster.local", "AAAA"],
    ["store", "A"],
    ["store.shop.svc", "AAAA"],
    ["store-0.store.shop.svc.cluster.local", "A"],
    ["store-0.store.shop", "AAAA"],
    ["store-0.store", "A"],
    ["outside.shop.svc.cluster.local", "A"],
    ["outside", "CNAME"],
    ["_http._tcp.four.shop.svc.cluster.local", "SRV"],
    ["no-such.shop.svc.cluster.local", "A"],
    ["no-such.shop.svc.cluster.local", "AAAA"],
    ["web.no-such.svc.cluster.local", "A"],
    ["wpad.shop.svc.cluster.local", "A"],
];

/// Names whose addresses every resolver must find.
const NAMES: [&str; 10] = [
    "web",
    "web.shop",
    "web.shop.svc",
    "web.shop.svc.cluster.local",
    "kubernetes.default.svc.cluster.local",
    "four",
    "store",
    "store-0.store.shop.svc.cluster.local",
    "store-0.store",
    "outside.shop.svc.cluster.local",
];

/// The Services above, until dropped.
struct Services<'a>(&'a Lab);

impl<'a> Services<'a> {
    fn create(lab: &'a Lab) -> Result<Self> {
        let services = Self(lab);
        services.apply(SERVICES)?;
        Ok(services)
    }

    fn apply(&self, manifest: &str) -> Result<()> {
        let apply = self.0.kubectl(["apply", "-f", "-"]).stdin(manifest);
        apply.run()?.success().map(drop)
    }

    fn delete(&self, name: &str) -> Result<()> {
        let delete = ["-n", SHOP, "delete", "service", "--ignore-not-found", name];
        self.0.kubectl(delete).run()?.success().map(drop)
    }
}

impl Drop for Services<'_> {
    fn drop(&mut self) {
        for name in ["four", "outside", "held"] {
            // The test has its result; another one would begin by making them.
            drop(self.delete(name));
        }
    }
}

#[test]
fn names_are_those_of_a_pod_by_resolv_conf() -> Result<()> {
    let developer = Developer::at(1)?;
    compare_names(&developer, "resolv.conf")
}

#[test]
fn names_are_those_of_a_pod_by_resolved() -> Result<()> {
    let developer = Developer::at(1)?;
    let _resolved = developer.laptop.with_resolved()?;
    let before = developer.laptop.host_state()?;
    compare_names(&developer, "systemd-resolved")?;

    // Names that are not the cluster's do not come by kvpn.
    let (printer, address) = OFFICE_PRINTER;
    let query = developer
        .laptop
        .root()
        .run(["resolvectl", "query", printer])?;
    let query = query.success()?.stdout;
    ensure!(query.contains(&format!("{address} ")), "{query}");
    ensure!(query.contains("link: eth0"), "{query}");

    developer.kvpn(["quit"])?.success()?;
    developer.is_as_before(&before)
}

fn compare_names(developer: &Developer, resolver: &str) -> Result<()> {
    let lab = &developer.lab;
    let _services = Services::create(lab)?;
    developer.connect()?;
    let status = developer.kvpn_json(["status"])?;
    assert_eq!(status["resolver"], resolver, "{status}");

    let mut questions: Vec<Vec<&str>> = QUESTIONS.iter().map(|asked| asked.to_vec()).collect();
    let addresses = pod(lab, "web")?.addresses;
    let services = crate::support::cluster_ips(lab, "web")?;
    for address in addresses.iter().chain(&services) {
        questions.push(vec!["-x", address]);
    }
    let of_pod = digs(in_pod(lab, &dig(&questions, "+notcp"))?, &questions)?;
    for transport in ["+notcp", "+tcp"] {
        let output = developer.laptop.user().run(dig(&questions, transport))?;
        let of_laptop = digs(output, &questions)?;
        for ((asked, wanted), got) in questions.iter().zip(&of_pod).zip(&of_laptop) {
            assert_eq!(got, wanted, "{asked:?} {transport}");
        }
    }

    for program in ["goresolve", "muslresolve"] {
        let command: Vec<&str> = [program].into_iter().chain(NAMES).collect();
        let wanted = resolved(in_pod(lab, &command)?)?;
        let got = resolved(developer.laptop.user().run(&command)?)?;
        assert_eq!(got, wanted, "{program}");
    }
    let wanted = resolved(in_pod(
        lab,
        &["goresolve"].into_iter().chain(NAMES).collect::<Vec<_>>(),
    )?)?;
    for (name, wanted) in NAMES.iter().zip(wanted) {
        let output = developer
            .laptop
            .user()
            .run(["getent", "ahosts", name])?
            .success()?;
        let got = output
            .stdout
            .lines()
            .filter_map(|line| line.split_whitespace().next());
        let got: BTreeSet<String> = got.map(str::to_owned).chain([(*name).to_owned()]).collect();
        assert_eq!(got, wanted, "getent {name}");
    }
    Ok(())
}

#[test]
fn service_that_is_made_anew_is_found_at_its_new_address_at_once() -> Result<()> {
    let developer = Developer::at(1)?;
    let lab = &developer.lab;
    let name = "four.shop.svc.cluster.local";
    let services = Services::create(lab)?;
    developer.connect()?;
    let look_up = || -> Result<String> {
        let output = developer.laptop.user().run(["dig", "+short", name, "A"])?;
        Ok(output.success()?.stdout.trim().to_owned())
    };
    for _ in 0..3 {
        let before = look_up()?;
        assert_eq!(look_up()?, before);
        // The API server may give the same address again, unless it is taken.
        let hold = SERVICES.split("---").next().context("a Service")?;
        let hold = hold.replace("name: four", "name: held");
        let hold = hold.replace("spec:", &format!("spec:\n  clusterIP: {before}"));
        services.delete("four")?;
        services.apply(&hold)?;
        services.apply(SERVICES)?;
        let after = wait_for(
            "the cluster's own name servers know",
            Duration::from_secs(10),
            || {
                let output = in_pod(lab, &["dig", "+short", name, "A"])?;
                let found = output.success()?.stdout.trim().to_owned();
                Ok(Some(found).filter(|found| !found.is_empty() && *found != before))
            },
        )?;
        assert_eq!(look_up()?, after);
        services.delete("held")?;
    }
    Ok(())
}

#[test]
fn names_follow_the_rules_that_connect_was_given() -> Result<()> {
    let developer = Developer::at(1)?;
    let (printer, address) = OFFICE_PRINTER;
    developer
        .kvpn([
            "connect",
            "-n",
            SHOP,
            "--dns-mapping",
            "shop.example.com=web,db.example.com=store.shop",
            "--dns-exclude",
            "four.shop.svc.cluster.local",
        ])?
        .success()?;
    let dig = |name: &str| -> Result<(String, BTreeSet<String>)> {
        let output =
            developer
                .laptop
                .user()
                .run(["dig", "+noall", "+comments", "+answer", name])?;
        Ok(digs(output, &[vec![name]])?.remove(0))
    };
    assert_eq!(dig("shop.example.com")?, dig("web.shop.svc.cluster.local")?);
    assert_eq!(dig("db.example.com")?, dig("store.shop.svc.cluster.local")?);
    assert_eq!(dig("four.shop.svc.cluster.local")?.0, "NXDOMAIN");
    assert_eq!(dig(printer)?.1, BTreeSet::from([address.to_owned()]));

    let refused = developer.kvpn(["connect", "--dns-include", "corp.example"])?;
    ensure!(refused.stderr.contains("kvpn quit"), "{}", refused.stderr);
    developer.kvpn(["quit"])?.success()?;
    let refused = developer.kvpn(["connect", "--dns-mapping", "nonsense"])?;
    assert_eq!(refused.code(), 2, "{}", refused.stderr);
    ensure!(refused.stderr.contains("NAME=TARGET"), "{}", refused.stderr);
    Ok(())
}

fn dig<'a>(questions: &[Vec<&'a str>], transport: &'a str) -> Vec<&'a str> {
    let flags = [
        "dig",
        "+search",
        "+noall",
        "+comments",
        "+answer",
        transport,
    ];
    flags.into_iter().chain(questions.concat()).collect()
}

/// The status and the data of each question's answer.
fn digs(output: Output, questions: &[Vec<&str>]) -> Result<Vec<(String, BTreeSet<String>)>> {
    let text = output.success()?.stdout;
    let answers: Vec<_> = text.split("->>HEADER<<-").skip(1).map(answer).collect();
    ensure!(answers.len() == questions.len(), "{text}");
    Ok(answers)
}

fn answer(text: &str) -> (String, BTreeSet<String>) {
    let status = text
        .split("status: ")
        .nth(1)
        .and_then(|it| it.split(',').next());
    let records = text.lines().skip(1).filter(|line| !line.starts_with(';'));
    let data = records.filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        Some(fields.get(4..)?.join(" "))
    });
    (status.unwrap_or_default().to_owned(), data.collect())
}

/// Of each line a name and its addresses.
fn resolved(output: Output) -> Result<Vec<BTreeSet<String>>> {
    let text = output.success()?.stdout;
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect();
    Ok(text.lines().map(words).collect())
}

/// Runs a program in the sample's client pod.
fn in_pod(lab: &Lab, command: &[&str]) -> Result<Output> {
    lab.pod_exec(SHOP, &pod(lab, "client")?.name, command)
}
