//! Copies of what a workload is sent, for those who look on.

use std::time::Duration;

use anyhow::{Result, ensure};
use kvpn_tests::Background;

use crate::support::{Developer, pod};

/// Waits until a handler has been asked for a path.
fn is_copied(handler: &mut Background, path: &str) -> Result<()> {
    let line = format!("GET {path} ");
    handler
        .wait_for_line(&line, Duration::from_secs(5))
        .map(drop)
}

#[test]
fn wiretap_copies_connections_and_the_app_answers() -> Result<()> {
    let developer = Developer::connected(1)?;
    let mut handler = developer.handler(8080)?;
    let web = pod(&developer.lab, "web")?.name;
    let started = developer.kvpn(["wiretap", "web", "--port", "8080"])?;
    let started = started.success()?.stdout;
    ensure!(
        started.starts_with("Wiretapping Deployment/web"),
        "{started}"
    );
    for path in ["/one", "/two"] {
        let url = format!("http://web{path}");
        assert_eq!(developer.get([url.as_str()])?.pod, web);
        is_copied(&mut handler, path)?;
    }
    // Nobody to look on, and the app answers as before.
    drop(handler);
    assert_eq!(developer.get(["http://web/three"])?.pod, web);
    let ended = developer.kvpn(["leave", "web"])?.success()?.stdout;
    assert_eq!(ended, "Stopped wiretapping Deployment/web\n");
    Ok(())
}

#[test]
fn wiretaps_are_of_the_requests_that_fit_beside_intercepts_of_others() -> Result<()> {
    let first = Developer::connected(1)?;
    let second = Developer::connected(2)?;
    let _handler = first.handler_named("alices", 8080)?;
    let mut looking_on = second.handler_named("bobs", 8080)?;
    first
        .kvpn(["intercept", "web", "--port", "8080"])?
        .success()?;
    let header = ["--http-header", "x-look=yes"];
    second
        .kvpn(["wiretap", "web", "--port", "8080", header[0], header[1]])?
        .success()?;
    for (path, look) in [("/not", "x-look: no"), ("/this", "x-look: yes")] {
        let url = format!("http://web{path}");
        let answer = second.get(["-H", look, url.as_str()])?;
        assert_eq!(answer.service, "alices");
    }
    is_copied(&mut looking_on, "/this")?;
    ensure!(!looking_on.printed().contains("/not"));
    let status = second.kvpn(["status"])?.success()?.stdout;
    ensure!(status.contains("Wiretapping Deployment/web"), "{status}");
    second.kvpn(["leave", "web"])?.success()?;
    assert_eq!(first.get(["http://web/"])?.service, "alices");
    Ok(())
}
