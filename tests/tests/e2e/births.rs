//! Pods that are born while their workload is engaged: they have the agent from their
//! first moment on and until their last, so that they never answer a request of the
//! laptop's.

use std::time::Duration;

use anyhow::{Result, ensure};
use kvpn_tests::{Lab, wait_for};
use serde_json::Value;

use crate::support::{Developer, SHOP, agents, live_pods, scale, webhooks};

const SOON: Duration = Duration::from_secs(30);

/// Puts the number of replicas back, when dropped.
struct Replicas<'a> {
    lab: &'a Lab,
    app: &'static str,
    number: usize,
}

impl Replicas<'_> {
    fn scale(&self, number: usize) -> Result<()> {
        scale(self.lab, SHOP, self.app, number)
    }
}

impl Drop for Replicas<'_> {
    fn drop(&mut self) {
        // The test has its result.
        drop(self.scale(self.number));
    }
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
    wait_for("nobody engages anything", SOON, || {
        Ok((webhooks(lab)? == 0).then_some(()))
    })?;
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
    for pod in live_pods(lab, SHOP, "api")? {
        assert_eq!(agents(&pod), (1, 0), "{}", pod["metadata"]["name"]);
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
