//! What is deleted from the cluster's side, and who did it: its owner is told.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvpn_proto::Reason;
use kvpn_tests::{Background, Lab, wait_for};
use serde_json::Value;

use crate::support::{Developer, SHOP};

const SOON: Duration = Duration::from_secs(5);

/// Connects, and waits until the API server tells who deletes what.
fn connected() -> Result<Developer> {
    let developer = Developer::connected(1)?;
    wait_for("deletions are asked about", SOON, || {
        Ok(is_told_of_deletions(&developer.lab)?.then_some(()))
    })?;
    Ok(developer)
}

fn is_told_of_deletions(lab: &Lab) -> Result<bool> {
    let names = "jsonpath={.webhooks[*].name}";
    let kind = "mutatingwebhookconfiguration";
    let names = lab
        .kubectl(["get", kind, "kvpn-agents", "-o", names])
        .ok()?;
    Ok(names.split(' ').any(|name| name == "deletions.kvpn.dev"))
}

/// Intercepts some requests of `web`; gives the engagement's name.
fn intercepted(developer: &Developer) -> Result<String> {
    let header = ["--http-header", "x-user=alice"];
    let intercept = ["intercept", "web", "--port", "8080", header[0], header[1]];
    let engagement = developer.kvpn_json(intercept)?;
    let name = engagement["name"].as_str().context("a name")?;
    Ok(name.to_owned())
}

/// A log of the intercept that is being followed.
fn followed_log(developer: &Developer) -> Result<Background> {
    let watch = ["kvpn", "log", "web", "--watch"];
    let mut log = developer.laptop.user().spawn(watch)?;
    wait_for("the log is followed", SOON, || {
        developer.get(["-H", "x-user: alice", "http://web/"])?;
        Ok(log.printed().contains("GET").then_some(()))
    })?;
    ensure!(!log.has_ended()?, "{}", log.printed());
    Ok(log)
}

#[test]
fn who_deletes_an_engagement_is_named_to_its_owner() -> Result<()> {
    let developer = connected()?;
    let _handler = developer.handler(8080)?;
    let name = intercepted(&developer)?;
    let mut log = followed_log(&developer)?;
    let delete = ["-n", SHOP, "delete", "engagement", &name];
    // Who may not delete it has not.
    let refused = developer.lab.kubectl_as("bob", delete).run()?;
    ensure!(!refused.status.success(), "{}", refused.stdout);

    developer.lab.kubectl(delete).ok()?;
    wait_for("the status names who did it", SOON, || {
        let status = developer.kvpn_json(["status"])?;
        Ok((status["deleted"][0]["by"] == "admin").then_some(()))
    })?;
    let status = developer.kvpn(["status"])?.success()?.stdout;
    let words = format!("{name} of Deployment/web was deleted by admin");
    ensure!(status.contains(&words), "{status}");
    log.wait_for_line(&format!("{name} was deleted by admin"), SOON)?;
    let code = log.wait(SOON)?.code();
    assert_eq!(code, Some(Reason::NoSuchEngagement.exit_code().into()));
    Ok(())
}

#[test]
fn what_a_developer_leaves_is_not_told_and_what_they_delete_is() -> Result<()> {
    let developer = connected()?;
    let _handler = developer.handler(8080)?;
    intercepted(&developer)?;
    developer.kvpn(["leave", "web"])?.success()?;
    assert_eq!(developer.kvpn_json(["status"])?["deleted"], Value::Null);

    let name = intercepted(&developer)?;
    let delete = ["-n", SHOP, "delete", "engagement", &name];
    // A trial is let through, and nothing comes of it.
    let trial = developer.lab.kubectl(delete).arg("--dry-run=server");
    trial.ok()?;
    developer.lab.kubectl_as("alice", delete).ok()?;
    wait_for("the status says so", SOON, || {
        let status = developer.kvpn(["status"])?.success()?.stdout;
        let words = format!("{name} of Deployment/web was deleted by you");
        Ok(status.contains(&words).then_some(()))
    })
}

#[test]
fn who_ends_a_session_is_named_to_its_user() -> Result<()> {
    let developer = connected()?;
    let _handler = developer.handler(8080)?;
    intercepted(&developer)?;
    let mut log = followed_log(&developer)?;
    let status = developer.kvpn_json(["status"])?;
    let session = status["session"].as_str().context("a session")?;
    developer
        .lab
        .kubectl(["-n", "kvpn", "delete", "sessions.kvpn.dev", session])
        .ok()?;
    log.wait_for_line("the session was ended by admin", SOON)?;
    let code = log.wait(SOON)?.code();
    assert_eq!(code, Some(Reason::SessionRevoked.exit_code().into()));
    wait_for("it is not connected", SOON, || {
        let code = developer.kvpn(["status"])?.code();
        Ok((code == i32::from(Reason::NotConnected.exit_code())).then_some(()))
    })
}
