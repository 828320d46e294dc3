//! Three replicas: every one is covered when an intercept says active, and none
//! is left behind when it ends.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kvpn_tests::{Lab, wait_for};

use crate::support::{Answer, Developer, SHOP, get_from_node, get_from_pod, pods};

const TOGGLES: usize = 100;

#[test]
fn thirty_of_thirty_requests_reach_the_laptop() -> Result<()> {
    let developer = Developer::connected(1)?;
    let _handler = developer.handler(8080)?;
    let (took, result) = developer.intercept("api", "8080")?;
    eprintln!("intercept of three replicas: {} ms", took.as_millis());
    assert_eq!(result["podsCovered"], 3, "{result}");
    let urls = vec!["http://api.shop/".to_owned(); 30];
    let from_laptop = get_from_pod(&developer.lab, &urls)?
        .iter()
        .filter(|answer| answer.is_from_laptop())
        .count();
    assert_eq!(from_laptop, 30);
    Ok(())
}

#[test]
fn every_toggle_is_in_force_on_every_replica_when_it_says_so() -> Result<()> {
    let developer = Developer::connected(1)?;
    let _handler = developer.handler(8080)?;
    let pods = pods(&developer.lab, "api")?;
    assert_eq!(pods.len(), 3);
    let urls: Vec<String> = pods.iter().flat_map(|pod| pod.urls(8080)).collect();
    // The first one brings the agents.
    let mut times = Vec::new();
    for toggle in 0..TOGGLES {
        let (took, _) = developer.intercept("api", "8080")?;
        times.push(took);
        let wanted = format!("toggle {toggle}: the laptop");
        are_answered(&developer.lab, &urls, &wanted, Answer::is_from_laptop)?;
        // An exec takes longer than the toggle.
        let is_asked_from_pod = toggle % 10 == 0;
        if is_asked_from_pod {
            let answers = get_from_pod(&developer.lab, &urls)?;
            ensure!(
                answers.iter().all(Answer::is_from_laptop),
                "toggle {toggle}: {answers:?}"
            );
        }
        developer.kvpn(["leave", "api"])?.success()?;
        let wanted = format!("toggle {toggle}: the app");
        let is_from_app = |answer: &Answer| !answer.is_from_laptop();
        are_answered(&developer.lab, &urls, &wanted, is_from_app)?;
        if is_asked_from_pod {
            let answers = get_from_pod(&developer.lab, &urls)?;
            ensure!(
                answers.iter().all(is_from_app),
                "toggle {toggle}: {answers:?}"
            );
        }
    }
    times.sort();
    eprintln!(
        "{TOGGLES} intercepts with agents present: median {} ms, longest {} ms",
        times[TOGGLES / 2].as_millis(),
        times[TOGGLES - 1].as_millis()
    );
    Ok(())
}

/// Asks each URL at once: whoever asks later does not notice a gap.
fn are_answered(
    lab: &Lab,
    urls: &[String],
    wanted: &str,
    is_wanted: impl Fn(&Answer) -> bool,
) -> Result<()> {
    for url in urls {
        let answer = get_from_node(lab, url)?;
        ensure!(
            is_wanted(&answer),
            "{wanted} has to answer {url}: {answer:?}"
        );
    }
    Ok(())
}

/// Waits until the old pods are gone and nothing about the new ones has changed
/// for a while. The kubelet looks at the containers of a pod that it has just
/// worked on only once a second, and starts nothing new in it before.
fn wait_until_at_rest(lab: &Lab) -> Result<()> {
    const REST: Duration = Duration::from_secs(3);
    let mut last = String::new();
    let mut since = Instant::now();
    wait_for("the pods are at rest", Duration::from_secs(60), || {
        let versions = "jsonpath={range .items[*]}{.metadata.resourceVersion} {end}";
        let now = lab
            .kubectl(["-n", SHOP, "get", "pods", "-o", versions])
            .ok()?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
        Ok((since.elapsed() >= REST).then_some(()))
    })?;
    assert_eq!((pods(lab, "web")?.len(), pods(lab, "api")?.len()), (1, 3));
    Ok(())
}

#[test]
fn connect_and_first_intercept_take_less_than_a_second_each() -> Result<()> {
    let developer = Developer::at(1)?;
    // New pods, so that no agent is there.
    for app in ["web", "api"] {
        let target = format!("deployment/{app}");
        developer
            .lab
            .kubectl(["-n", SHOP, "rollout", "restart", &target])
            .run()?
            .success()?;
    }
    for app in ["web", "api"] {
        let target = format!("deployment/{app}");
        let status = ["-n", SHOP, "rollout", "status", &target, "--timeout=60s"];
        developer.lab.kubectl(status).run()?.success()?;
    }
    wait_until_at_rest(&developer.lab)?;
    let _handler = developer.handler(8080)?;

    let connect = developer.connect()?;
    let (one, _) = developer.intercept("web", "8080")?;
    let (three, _) = developer.intercept("api", "8080")?;
    eprintln!("connect: {} ms", connect.as_millis());
    eprintln!("first intercept, one replica: {} ms", one.as_millis());
    eprintln!("first intercept, three replicas: {} ms", three.as_millis());
    let limit = Duration::from_secs(1);
    ensure!(connect <= limit, "connect took {} ms", connect.as_millis());
    ensure!(one <= limit, "one replica took {} ms", one.as_millis());
    ensure!(three <= limit, "three took {} ms", three.as_millis());
    Ok(())
}
