//! What kvpn tells of requests: how many went where, each as it comes, and where one would
//! go; and what becomes of those that the laptop does not take.

use std::time::Duration;

use anyhow::{Result, ensure};
use kvpn_tests::wait_for;
use serde_json::{Value, json};

use crate::support::Developer;

const SOON: Duration = Duration::from_secs(5);

const HEADER: [&str; 2] = ["--http-header", "x-user=alice"];

/// Waits until the status says so of the only engagement's requests.
fn wait_for_counts(developer: &Developer, matched: u64, passed: u64, failed: u64) -> Result<()> {
    let wanted = json!({
        "matched": matched,
        "passed": passed,
        "failed": failed,
        "tlsPassed": 0,
        "tlsFailed": 0,
    });
    let mut last = Value::Null;
    let counted = wait_for(&format!("{wanted}"), SOON, || {
        last = developer.kvpn_json(["status"])?["engagements"][0]["requests"].clone();
        Ok((last == wanted).then_some(()))
    });
    counted.map_err(|error| error.context(format!("last: {last}")))
}

/// Asks for a path, with the header or without, and says who answers: the service and the
/// status.
fn ask(developer: &Developer, header: &str, path: &str) -> Result<String> {
    let url = format!("http://web{path}");
    let asked = developer.curl(["-w", "\n%{http_code}", "-H", header, &url])?;
    let printed = asked.success()?.stdout;
    let (body, status) = printed.rsplit_once('\n').unwrap_or_default();
    let answer: Value = serde_json::from_str(body).unwrap_or_default();
    Ok(format!(
        "{} {status}",
        answer["service"].as_str().unwrap_or("nobody")
    ))
}

#[test]
fn each_request_is_counted_and_told_with_whom_it_went_to() -> Result<()> {
    let developer = Developer::connected(1)?;
    let handler = developer.handler(8080)?;
    developer
        .kvpn(["intercept", "web", "--port", "8080", HEADER[0], HEADER[1]])?
        .success()?;
    let watch = ["kvpn", "log", "web", "--watch", "-o", "json"];
    let mut log = developer.laptop.user().spawn(watch)?;
    let [alice, bob] = ["x-user: alice", "x-user: bob"];
    for (header, path, who) in [
        (alice, "/one?token=hush", "laptop 200"),
        (bob, "/two", "web 200"),
        (alice, "/three", "laptop 200"),
    ] {
        assert_eq!(ask(&developer, header, path)?, who);
    }
    wait_for_counts(&developer, 2, 1, 0)?;
    // The app answers what the laptop does not.
    drop(handler);
    assert_eq!(ask(&developer, alice, "/four")?, "web 200");
    wait_for_counts(&developer, 3, 1, 1)?;

    log.wait_for_line("/four", SOON)?;
    let told: Vec<Value> = log
        .printed()
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let told: Vec<_> = told
        .iter()
        .map(|line| {
            json!([
                line["method"],
                line["path"],
                line["status"],
                line["to"]["kind"]
            ])
        })
        .collect();
    let wanted = [
        json!(["GET", "/one", 200, "laptop"]),
        json!(["GET", "/two", 200, "app"]),
        json!(["GET", "/three", 200, "laptop"]),
        json!(["GET", "/four", 200, "app"]),
    ];
    assert_eq!(told, wanted);
    let earlier = developer.kvpn(["log", "web"])?.success()?.stdout;
    assert_eq!(earlier.lines().count(), 4, "{earlier}");
    ensure!(earlier.contains("did not take it"), "{earlier}");
    for secret in ["hush", "x-user"] {
        ensure!(!log.printed().contains(secret) && !earlier.contains(secret));
    }
    Ok(())
}

#[test]
fn why_request_says_where_one_would_go() -> Result<()> {
    let first = Developer::connected(1)?;
    let second = Developer::connected(2)?;
    let _handlers = [
        first.handler_named("alices", 8080)?,
        second.handler_named("rest", 8080)?,
    ];
    first
        .kvpn(["intercept", "web", "--port", "8080", HEADER[0], HEADER[1]])?
        .success()?;
    let why = |header: &str| {
        let told = first.kvpn_json(["why", "request", "web", "/", "--http-header", header])?;
        Ok::<_, anyhow::Error>(told["engagement"].clone())
    };
    let alices = why("X-User=alice")?;
    ensure!(alices.is_string());
    assert_eq!(why("x-user=bob")?, Value::Null);
    second
        .kvpn(["intercept", "web", "--port", "8080"])?
        .success()?;
    assert_eq!(why("x-user=alice")?, alices);
    let rest = why("x-user=bob")?;
    ensure!(rest.is_string() && rest != alices, "{rest}");
    // As it does go.
    for (header, service) in [("x-user: alice", "alices 200"), ("x-user: bob", "rest 200")] {
        assert_eq!(ask(&first, header, "/")?, service);
    }
    let text = first.kvpn(["why", "request", "svc/web", "/cart"])?;
    let text = text.success()?.stdout;
    ensure!(
        text.contains("header x-user=alice: does not hold"),
        "{text}"
    );
    Ok(())
}

#[test]
fn request_that_may_not_fall_back_to_the_app_is_refused() -> Result<()> {
    let developer = Developer::connected(1)?;
    let [alice, bob] = ["x-user: alice", "x-user: bob"];
    let engage = |verb: &str, filter: &[&str]| {
        let port = ["--port", "8080", "--on-failure", "503"];
        let command = ["kvpn", verb, "web"].into_iter().chain(port);
        let user = developer.laptop.user();
        user.run(command.chain(filter.iter().copied()))
    };
    engage("intercept", &HEADER)?.success()?;
    assert_eq!(ask(&developer, alice, "/")?, "nobody 503");
    assert_eq!(ask(&developer, bob, "/")?, "web 200");
    wait_for_counts(&developer, 1, 1, 1)?;
    let handler = developer.handler(8080)?;
    assert_eq!(ask(&developer, alice, "/")?, "laptop 200");
    drop(handler);
    developer.kvpn(["leave", "web"])?.success()?;
    assert_eq!(ask(&developer, alice, "/")?, "web 200");

    engage("intercept", &[])?.success()?;
    assert_eq!(ask(&developer, bob, "/")?, "nobody 503");
    let status = developer.kvpn_json(["status"])?;
    assert_eq!(status["engagements"][0]["onFailure"], "503");
    let tap = engage("wiretap", &[])?;
    assert_eq!(tap.code(), 2, "{}", tap.stderr);
    Ok(())
}
