//! Pods that are born while their workload is engaged: they have the agent from their
//! first moment on and until their last, so that they never answer a request of the
//! laptop's.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvpn_tests::{Lab, wait_for};
use serde_json::{Value, json};

use crate::support::{Developer, SHOP, pods};

const SOON: Duration = Duration::from_secs(30);

/// Puts the number of replicas back, when dropped.
struct Replicas<'a> {
    lab: &'a Lab,
    app: &'static str,
    number: usize,
}

impl Replicas<'_> {
    fn scale(&self, number: usize) -> Result<()> {
        let target = format!("deployment/{}", self.app);
        let replicas = format!("--replicas={number}");
        self.lab
            .kubectl(["-n", SHOP, "scale", &target, &replicas])
            .ok()?;
        wait_for(&format!("{number} pods"), SOON, || {
            let ready = "jsonpath={.status.readyReplicas}";
            let get = ["-n", SHOP, "get", &target, "-o", ready];
            let ready = self.lab.kubectl(get).ok()?;
            let is_done = ready.parse().unwrap_or(0) == number;
            Ok((is_done && pods(self.lab, self.app)?.len() == number).then_some(()))
        })
    }
}

impl Drop for Replicas<'_> {
    fn drop(&mut self) {
        // The test has its result.
        drop(self.scale(self.number));
    }
}

/// The agents that a pod was born with, and those that were added to it.
fn agents(pod: &Value) -> (usize, usize) {
    let count = |kind: &str| {
        let containers = pod["spec"][kind].as_array();
        let names = containers
            .into_iter()
            .flatten()
            .filter_map(|it| it["name"].as_str());
        names.filter(|name| name.starts_with("kvpn-agent-")).count()
    };
    (count("initContainers"), count("ephemeralContainers"))
}

fn objects(lab: &Lab, app: &str) -> Result<Vec<Value>> {
    let get = [
        "-n",
        SHOP,
        "get",
        "pods",
        "-l",
        &format!("app={app}"),
        "-o",
        "json",
    ];
    let mut list: Value = lab.kubectl(get).run()?.success()?.json()?;
    serde_json::from_value(list["items"].take()).context("the pods")
}

/// Those that are of workloads.
fn webhooks(lab: &Lab) -> Result<usize> {
    let get = [
        "get",
        "mutatingwebhookconfiguration",
        "kvpn-agents",
        "-o",
        "json",
    ];
    let configuration: Value = lab.kubectl(get).run()?.success()?.json()?;
    let webhooks = configuration["webhooks"].as_array();
    let names = webhooks
        .into_iter()
        .flatten()
        .filter_map(|it| it["name"].as_str());
    Ok(names.filter(|name| name.starts_with("workload-")).count())
}

#[test]
fn no_pod_that_is_born_while_engaged_answers_for_the_laptop() -> Result<()> {
    let developer = Developer::connected(1)?;
    let lab = &developer.lab;
    let replicas = Replicas {
        lab,
        app: "api",
        number: 3,
    };
    assert_eq!(webhooks(lab)?, 0, "nobody engages anything");
    let _handler = developer.handler(8080)?;
    let header = ["--http-header", "x-user=alice"];
    developer
        .kvpn(["intercept", "api", "--port", "8080", header[0], header[1]])?
        .success()?;
    // One connection for each request, so that every pod that is Ready gets some.
    let ask = "while curl -s --max-time 5 -H 'x-user: alice' http://api.shop/; do echo; done";
    let mut asking = developer.laptop.user().spawn(["bash", "-c", ask])?;
    asking.wait_for_line("laptop", SOON)?;

    let target = "deployment/api";
    lab.kubectl(["-n", SHOP, "rollout", "restart", target])
        .ok()?;
    let status = ["-n", SHOP, "rollout", "status", target, "--timeout=60s"];
    lab.kubectl(status).ok()?;
    replicas.scale(5)?;
    for pod in objects(lab, "api")? {
        if pod["metadata"]["deletionTimestamp"].is_null() {
            assert_eq!(agents(&pod), (1, 0), "{}", pod["metadata"]["name"]);
        }
    }
    let printed = asking.printed();
    drop(asking);
    let answers: Vec<Value> = printed
        .lines()
        .filter(|line| !line.is_empty())
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    ensure!(answers.len() > 100, "{} answers", answers.len());
    let by_others = answers.iter().filter(|it| it["service"] != "laptop");
    let by_others: Vec<_> = by_others.filter_map(|it| it["pod"].as_str()).collect();
    ensure!(by_others.is_empty(), "{by_others:?} of {}", answers.len());

    let covered = developer.kvpn_json(["status"])?["engagements"][0]["podsCovered"].clone();
    assert_eq!(covered, 5);
    developer.kvpn(["leave", "api"])?.success()?;
    wait_for("the webhook is gone", SOON, || {
        Ok((webhooks(lab)? == 0).then_some(()))
    })?;
    // Who has it from birth keeps it, and answers itself.
    ensure!(!developer.get(["http://api.shop/"])?.is_from_laptop());
    Ok(())
}

#[test]
fn workload_without_pods_is_covered_when_it_gets_some() -> Result<()> {
    let developer = Developer::connected(1)?;
    let lab = &developer.lab;
    let replicas = Replicas {
        lab,
        app: "api",
        number: 3,
    };
    let _handler = developer.handler(8080)?;
    developer.intercept("api", "8080")?;
    replicas.scale(0)?;
    let status = developer.kvpn_json(["status"])?;
    let engagement = &status["engagements"][0];
    assert_eq!(engagement["active"], false, "{engagement}");
    replicas.scale(3)?;
    wait_for("it is active again", SOON, || {
        let status = developer.kvpn_json(["status"])?;
        Ok((status["engagements"][0]["active"] == true).then_some(()))
    })?;
    for _ in 0..10 {
        ensure!(developer.get(["http://api.shop/"])?.is_from_laptop());
    }
    Ok(())
}

/// A namespace whose quota leaves no room for an agent; gone when dropped.
struct Tight<'a>(&'a Lab);

impl<'a> Tight<'a> {
    const NAME: &'static str = "tight";

    fn new(lab: &'a Lab) -> Result<Self> {
        let container = json!({
            "name": "web", "image": "localhost/kvpn-sample:lab", "imagePullPolicy": "Never",
            "env": [{"name": "SERVICE", "value": "tight"}],
            "ports": [{"containerPort": 8080}],
            "resources": {"requests": {"memory": "32Mi"}},
        });
        let labels = json!({"app": "web"});
        let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": Self::NAME}},
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
             "metadata": {"name": "kvpn-users", "namespace": Self::NAME},
             "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole",
                         "name": "kvpn-user"},
             "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User",
                           "name": "alice"}]},
            {"apiVersion": "v1", "kind": "ResourceQuota",
             "metadata": {"name": "tight", "namespace": Self::NAME},
             "spec": {"hard": {"requests.memory": "64Mi"}}},
            {"apiVersion": "apps/v1", "kind": "Deployment",
             "metadata": {"name": "web", "namespace": Self::NAME},
             "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": {
                "metadata": {"labels": labels},
                "spec": {"terminationGracePeriodSeconds": 1, "containers": [container]}}}},
        ]});
        let apply = lab.kubectl(["apply", "-f", "-"]);
        apply.stdin(objects.to_string()).ok()?;
        Ok(Self(lab))
    }

    fn is_ready(&self, number: usize) -> Result<()> {
        wait_for(&format!("{number} pods are ready"), SOON, || {
            let ready = "jsonpath={.status.readyReplicas}";
            let get = ["-n", Self::NAME, "get", "deployment/web", "-o", ready];
            Ok((self.0.kubectl(get).ok()?.parse() == Ok(number)).then_some(()))
        })
    }
}

impl Drop for Tight<'_> {
    fn drop(&mut self) {
        let delete = ["delete", "namespace", Self::NAME, "--wait=false"];
        // The test has its result.
        drop(self.0.kubectl(delete).ok());
    }
}

#[test]
fn pod_that_is_refused_for_its_agents_sake_is_born_without() -> Result<()> {
    let developer = Developer::connected(1)?;
    let tight = Tight::new(&developer.lab)?;
    tight.is_ready(1)?;
    let _handler = developer.handler(8080)?;
    let engage = ["intercept", "web", "-n", Tight::NAME, "--port", "8080"];
    developer.kvpn(engage)?.success()?;
    // With an agent the second one would need more than there is.
    let scale = ["-n", Tight::NAME, "scale", "deployment/web", "--replicas=2"];
    developer.lab.kubectl(scale).ok()?;
    tight.is_ready(2)?;
    wait_for("both are covered", SOON, || {
        let status = developer.kvpn_json(["status"])?;
        Ok((status["engagements"][0]["podsCovered"] == 2).then_some(()))
    })?;
    Ok(())
}
