//! Every kind of workload, and every way to come by a port: engaged, left, and as
//! before.

mod objects;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvpn_proto::Reason;
use kvpn_tests::{Lab, Output, WHO, wait_for};
use serde_json::Value;

use self::objects::{Namespace, kubectl};
use crate::errors::assert_fails;
use crate::support::{Answer, Developer, SHOP};

const NAMESPACE: &str = "kinds";

/// The only port that the pods listen on.
const PORT: u16 = 8080;

const DEADLINE: Duration = Duration::from_secs(60);

/// Something to engage. Its pod has its name for a label, and calls itself by it.
struct Case {
    target: &'static str,
    port: &'static str,
    /// Where it is reached; `POD` stands for the pod's address.
    urls: &'static [&'static str],
    /// Whether anybody reaches the app itself.
    is_reached: bool,
}

impl Case {
    const fn new(target: &'static str, port: &'static str, urls: &'static [&'static str]) -> Self {
        Self {
            target,
            port,
            urls,
            is_reached: true,
        }
    }

    fn name(&self) -> &str {
        self.target
            .split_once('/')
            .map_or(self.target, |(_, name)| name)
    }
}

static CASES: [Case; 11] = [
    // By number, from the Service and to the pod.
    Case::new("deploy/numeric", "8080:80", &["http://numeric.kinds/"]),
    // Headless.
    Case::new(
        "sts/ordered",
        "8080:http",
        &[
            "http://ordered.kinds:8080/",
            "http://ordered-0.ordered.kinds:8080/",
        ],
    ),
    // Without a Service, by the container's name for the port.
    Case::new("ds/every", "8080:web", &["http://POD:8080/"]),
    // Without a Service, by a number that nobody declares.
    Case::new("rs/set", "8080:8080", &["http://POD:8080/"]),
    // A port that only the Service knows.
    Case::new("pod/lonely", "8080", &["http://lonely.kinds/"]),
    // Two ports of the Service lead to one of the pod.
    Case::new(
        "job/batch",
        "8080:other",
        &["http://batch.kinds/", "http://batch.kinds:81/"],
    ),
    // From the Service by the container's name for the port.
    Case::new("rollout/canary", "8080", &["http://canary.kinds/"]),
    // A Rollout that has its template from an idle Deployment of the same name, and a
    // Service that selects one version.
    Case::new("stable", "8080", &["http://stable.kinds/"]),
    // TCP and UDP on one number.
    Case::new("deploy/both", "8080:53", &["http://both.kinds:53/"]),
    Case::new("deploy/pod-ip", "8080", &["http://POD:8080/"]),
    Case {
        is_reached: false,
        ..Case::new("deploy/local", "8080", &["http://POD:8080/"])
    },
];

/// What `kvpn list` shows of all this.
const LISTED: [&str; 13] = [
    "Job/batch 1/1 [\"batch\"]",
    "Deployment/both 1/1 [\"both\"]",
    "Rollout/canary 1/1 [\"canary\"]",
    "DaemonSet/every 1/1 []",
    "Deployment/host 1/1 []",
    "Deployment/local 1/1 []",
    "Pod/lonely 1/1 [\"lonely\"]",
    "Deployment/numeric 1/1 [\"numeric\"]",
    "StatefulSet/ordered 1/1 [\"ordered\"]",
    "Deployment/pod-ip 1/1 []",
    "ReplicaSet/set 1/1 []",
    "Deployment/stable 0/0 []",
    "Rollout/stable 1/1 [\"stable\"]",
];

#[test]
fn every_kind_is_engaged_and_left_and_as_before() -> Result<()> {
    let developer = Developer::at(1)?;
    let lab = &developer.lab;
    let _namespace = Namespace::create(lab)?;
    developer.kvpn(["connect", "-n", NAMESPACE])?.success()?;
    let _handler = developer.handler(PORT)?;
    wait_for("all is listed as it is", DEADLINE, || {
        let listed = listed(&developer)?;
        ensure!(listed == LISTED, "{listed:#?}");
        Ok(Some(()))
    })?;
    let before = pods(lab)?;
    wait_for("the apps answer", DEADLINE, || {
        answered(lab, &before, |case| case.is_reached.then(|| case.name())).map(Some)
    })?;

    for output in at_once(|case| developer.kvpn(["intercept", case.target, "--port", case.port]))? {
        output.success()?;
    }
    answered(lab, &before, |_| Some("laptop"))?;
    // Datagrams to the same number are none of the laptop's.
    assert_eq!(who_by_datagram(&developer, "both.kinds", 53)?, "both");

    for output in at_once(|case| developer.kvpn(["leave", case.target]))? {
        output.success()?;
    }
    // An agent may accept for a moment what the app then refuses.
    wait_for("all is as before", Duration::from_secs(5), || {
        answered(lab, &before, |case| case.is_reached.then(|| case.name())).map(Some)
    })?;
    assert_eq!(pods(lab)?, before);

    // Of the other protocol of the number, by its name and by what it is.
    for port in ["8080:udp", "8080:53/udp"] {
        let datagrams = ["intercept", "deploy/both", "--port", port];
        developer.kvpn(datagrams)?.success()?;
        assert_eq!(who_by_datagram(&developer, "both.kinds", 53)?, "laptop");
        developer.kvpn(["leave", "deploy/both"])?.success()?;
        assert_eq!(who_by_datagram(&developer, "both.kinds", 53)?, "both");
    }
    let refused = developer.kvpn(["intercept", "deploy/host", "--port", "8080"])?;
    assert_fails(&refused, Reason::NotSupported, &["its node's network"])?;
    let refused = developer.kvpn(["intercept", "cronjob/batch", "--port", "8080"])?;
    assert_fails(&refused, Reason::Usage, &["job/NAME"])?;

    // The agent, which is still in the pod, does not keep a Job from being done.
    // The answer may be cut off.
    drop(ask_for_end(lab, "http://batch.kinds/end"));
    wait_for("the Job is complete", Duration::from_secs(20), || {
        let succeeded = ["get", "job", "batch", "-o=jsonpath={.status.succeeded}"];
        Ok((kubectl(lab, &succeeded)? == "1").then_some(()))
    })?;
    let over = developer.kvpn(["intercept", "job/batch", "--port", "8080"])?;
    assert_fails(&over, Reason::NoRunningPod, &["Job/batch", "over"])?;
    assert_eq!(kubectl(lab, &["get", "engagements", "-o", "name"])?, "");
    Ok(())
}

/// Does something for all cases at the same time.
fn at_once(work: impl Fn(&Case) -> Result<Output> + Sync) -> Result<Vec<Output>> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = CASES
            .iter()
            .map(|case| scope.spawn(move || work(case).context(case.target)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a case"))
            .collect()
    })
}

/// The rows of `kvpn list`.
fn listed(developer: &Developer) -> Result<Vec<String>> {
    let result = developer.kvpn_json(["list"])?;
    let workloads = result["workloads"].as_array().context("no workloads")?;
    Ok(workloads
        .iter()
        .map(|row| {
            let text = |field: &str| row[field].as_str().unwrap_or_default();
            let [ready, wanted, services] =
                ["podsReady", "podsWanted", "services"].map(|it| &row[it]);
            format!(
                "{}/{} {ready}/{wanted} {services}",
                text("kind"),
                text("name")
            )
        })
        .collect())
}

/// A pod, as far as it must stay as it is.
#[derive(Debug, PartialEq, Eq)]
struct Pod {
    uid: String,
    address: String,
    restarts: String,
}

/// The pods by their apps.
fn pods(lab: &Lab) -> Result<BTreeMap<String, Pod>> {
    let fields = "jsonpath={range .items[*]}{.metadata.labels.app} {.metadata.uid} {.status.podIP} \
                  {.status.containerStatuses[0].restartCount}{'\\n'}{end}";
    let text = kubectl(lab, &["get", "pods", "-o", fields])?;
    text.lines()
        .map(|line| {
            let mut words = line.split_whitespace().map(str::to_owned);
            let mut word = || words.next().with_context(|| format!("a pod: {line}"));
            let app = word()?;
            let pod = Pod {
                uid: word()?,
                address: word()?,
                restarts: word()?,
            };
            Ok((app, pod))
        })
        .collect()
}

/// Asks at all URLs of all cases, in the cluster, who is there; it must be whom each
/// case wants, or nobody.
fn answered(
    lab: &Lab,
    pods: &BTreeMap<String, Pod>,
    wanted: impl Fn(&'static Case) -> Option<&'static str>,
) -> Result<()> {
    let mut urls = Vec::new();
    for case in &CASES {
        let pod = pods.get(case.name()).context(case.target)?;
        let there = |url: &&str| (case, url.replace("POD", &pod.address));
        urls.extend(case.urls.iter().map(there));
    }
    // Each over a connection of its own; curl's 7 is a refusal.
    let script = "for url; do curl -sS --max-time 5 \"$url\" || { [ $? = 7 ] && echo null; } || \
                  exit; done";
    let command = ["bash", "-c", script, "ask"];
    let command = command
        .into_iter()
        .chain(urls.iter().map(|(_, url)| url.as_str()));
    let output = lab.pod_exec(SHOP, "deploy/client", command)?.success()?;
    let answers = output.stdout.lines().map(serde_json::from_str::<Value>);
    let answers: Vec<Value> = answers.collect::<Result<_, _>>()?;
    ensure!(answers.len() == urls.len(), "{}", output.stdout);
    for ((case, url), answer) in urls.iter().zip(&answers) {
        let service = (!answer.is_null()).then(|| Answer::parse(answer).service);
        ensure!(
            service.as_deref() == wanted(case),
            "{} at {url}: {answer}",
            case.target
        );
    }
    Ok(())
}

/// Asks a server of the sample application to end.
fn ask_for_end(lab: &Lab, url: &str) -> Result<Output> {
    lab.pod_exec(SHOP, "deploy/client", ["curl", "-sS", "-m", "5", url])
}

/// Who answers a datagram that the laptop sends.
fn who_by_datagram(developer: &Developer, host: &str, port: u16) -> Result<String> {
    let script = format!(
        "import socket
address = socket.getaddrinfo({host:?}, {port}, type=socket.SOCK_DGRAM)[0]
with socket.socket(address[0], address[1]) as udp:
    udp.settimeout(5)
    udp.sendto({WHO:?}.encode(), address[4])
    print(udp.recv(100).decode())"
    );
    let output = developer.laptop.user().run(["python3", "-c", &script])?;
    Ok(output.success()?.stdout.trim().to_owned())
}
