//! Intercepts under load: that begin and end again and again, and that last.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvpn_tests::lab::services::NAMESPACE;

use crate::support::{Developer, pods_in};

/// How often an intercept begins and ends.
const TOGGLES: usize = 100;

/// The laptop that reaches pods without kvpn.
const OUTSIDE: u8 = 2;

/// Asks nginx from outside for a second, over 16 connections; gives how many requests
/// were answered. All must be. Connections that were there before an intercept are none of
/// its, so they are to be short.
fn load(outside: &Developer, protocol: &str, url: &str) -> Result<u64> {
    let command = [
        "h2load",
        protocol,
        "-c16",
        "-m1",
        "-D1",
        "-H",
        "x-user: alice",
        url,
    ];
    let h2load = outside.laptop.user().cmd(command);
    let output = h2load.deadline(Duration::from_secs(30)).run()?.success()?;
    // Such as: requests: 9 total, 9 started, 9 done, 9 succeeded, 0 failed, 0 errored, 0 timeout
    let counts = |key: &str| -> Result<Vec<u64>> {
        let mut lines = output.stdout.lines();
        let line = lines.find_map(|line| line.strip_prefix(key));
        let words = line.context("counts")?.split_whitespace();
        Ok(words.filter_map(|word| word.parse().ok()).collect())
    };
    let requests = counts("requests:")?;
    ensure!(requests.len() == 7, "{}", output.stdout);
    ensure!(requests[4..] == [0, 0, 0], "{}", output.stdout);
    let codes = output
        .stdout
        .lines()
        .find(|line| line.starts_with("status codes:"));
    let codes = codes.context("status codes")?;
    ensure!(codes.ends_with("0 3xx, 0 4xx, 0 5xx"), "{codes}");
    Ok(requests[3])
}

#[test]
fn a_hundred_intercepts_under_load_fail_no_request() -> Result<()> {
    let outside = Developer::at(OUTSIDE)?;
    let mut developer = Developer::at(1)?;
    developer.lab.deploy_services()?;
    developer.connect()?;
    let handler = developer.handler(8080)?;
    let address = nginx(&developer)?;
    developer.lab.exempt(OUTSIDE)?;
    let has_ended = AtomicBool::new(false);
    let url = format!("http://{address}:8080/who/a");
    let toggled = thread::scope(|scope| {
        let loading = scope.spawn(|| {
            let mut answered = 0;
            while !has_ended.load(Ordering::Relaxed) {
                answered += load(&outside, "--h1", &url)?;
            }
            anyhow::Ok(answered)
        });
        let toggled = toggle(&developer);
        has_ended.store(true, Ordering::Relaxed);
        let answered = loading.join().expect("load");
        toggled.and(answered)
    });
    developer.lab.isolate()?;
    let answered = toggled?;
    ensure!(answered > 10_000, "only {answered} requests");
    let by_laptop = handler.printed().matches("GET /who/a").count();
    ensure!(by_laptop > 0, "none was the laptop's");
    Ok(())
}

/// The IPv4 address of nginx's pod.
fn nginx(developer: &Developer) -> Result<String> {
    let pods = pods_in(&developer.lab, NAMESPACE, "nginx")?;
    let pod = pods.into_iter().next().context("a pod")?;
    pod.addresses.into_iter().next().context("an address")
}

fn toggle(developer: &Developer) -> Result<()> {
    for _ in 0..TOGGLES {
        developer
            .kvpn([
                "intercept",
                "nginx",
                "-n",
                NAMESPACE,
                "--port",
                "8080:http",
                "--http-header",
                "x-user",
            ])?
            .success()?;
        developer
            .kvpn(["leave", "nginx", "-n", NAMESPACE])?
            .success()?;
    }
    Ok(())
}

#[test]
fn ten_thousand_connections_to_the_laptop_fail_no_request() -> Result<()> {
    const CONNECTIONS: usize = 10_000;
    let outside = Developer::at(OUTSIDE)?;
    let mut developer = Developer::at(1)?;
    developer.lab.deploy_services()?;
    developer.connect()?;
    let _handler = developer.handler(8080)?;
    // Which nginx does not have.
    let url = format!("http://{}:8080/bytes/100", nginx(&developer)?);
    let intercept = ["intercept", "nginx", "-n", NAMESPACE, "--port", "8080:http"];
    developer.kvpn(intercept)?.success()?;
    developer.lab.exempt(OUTSIDE)?;
    let count = CONNECTIONS.to_string();
    let ab = ["ab", "-q", "-c16", "-n", &count, &url];
    let ab = outside.laptop.user().cmd(ab);
    let output = ab.deadline(Duration::from_secs(120)).run();
    developer.lab.isolate()?;
    let output = output?.success()?.stdout;
    let value = |key: &str| {
        let mut lines = output.lines();
        lines.find_map(|line| line.strip_prefix(key)).map(str::trim)
    };
    assert_eq!(
        value("Complete requests:"),
        Some(count.as_str()),
        "{output}"
    );
    assert_eq!(value("Failed requests:"), Some("0"), "{output}");
    ensure!(!output.contains("Non-2xx"), "{output}");
    Ok(())
}
