//! Every failure that a user can run into says what is wrong and what to do,
//! and has its documented exit code.

use std::time::Duration;

use anyhow::{Result, ensure};
use kvpn_proto::Reason;
use kvpn_tests::{Output, wait_for};

use crate::support::{Developer, SHOP};

/// A failed command: its exit code, one sentence with these words, and one that
/// says what to do.
pub(crate) fn assert_fails(output: &Output, reason: Reason, words: &[&str]) -> Result<()> {
    let said = &output.stderr;
    assert_eq!(output.code(), i32::from(reason.exit_code()), "{said}");
    ensure!(
        said.lines().any(|line| line.starts_with("error: ")),
        "{said}"
    );
    ensure!(
        said.lines().any(|line| line.starts_with("hint: ")),
        "{said}"
    );
    for word in words {
        ensure!(said.contains(word), "{word:?} is not in: {said}");
    }
    ensure!(
        !said.contains("panicked") && !said.contains("{ "),
        "a debug dump: {said}"
    );
    Ok(())
}

#[test]
fn kubeconfig_that_is_missing_or_lacks_the_context() -> Result<()> {
    let developer = Developer::at(1)?;
    let missing = developer.kvpn(["connect", "--kubeconfig", "/nonexistent/config"])?;
    assert_fails(&missing, Reason::NoKubeconfig, &["/nonexistent/config"])?;
    let unknown = developer.kvpn(["connect", "--context", "nowhere"])?;
    assert_fails(&unknown, Reason::UnknownContext, &["nowhere"])
}

#[test]
fn api_server_that_does_not_answer() -> Result<()> {
    let developer = Developer::at(1)?;
    let script = "sed 's/:6443/:6444/' ~/.kube/config >/tmp/elsewhere && \
                  kvpn connect --kubeconfig /tmp/elsewhere";
    let output = developer.laptop.user().run(["sh", "-c", script])?;
    assert_fails(&output, Reason::ApiServerUnreachable, &[":6444"])
}

#[test]
fn api_server_behind_a_cut_wire() -> Result<()> {
    let developer = Developer::at(1)?;
    developer.lab.cut_wire(1, true)?;
    let output = developer.kvpn(["connect"]);
    developer.lab.cut_wire(1, false)?;
    assert_fails(&output?, Reason::ApiServerUnreachable, &[":6443"])
}

#[test]
fn permission_that_is_missing_is_named() -> Result<()> {
    let developer = Developer::at(2)?;
    let binding = [
        "-n",
        "kvpn",
        "get",
        "rolebinding",
        "kvpn-users",
        "-o",
        "json",
    ];
    let binding = developer.lab.kubectl(binding).ok()?;
    developer
        .lab
        .kubectl(["-n", "kvpn", "delete", "rolebinding", "kvpn-users"])
        .ok()?;
    let output = developer.kvpn(["connect"]);
    developer
        .lab
        .kubectl(["create", "-f", "-"])
        .stdin(without_identity(&binding)?)
        .ok()?;
    assert_fails(
        &output?,
        Reason::Forbidden,
        &["create", "sessions", "kvpn-user"],
    )?;

    // What is allowed again, and what never was.
    wait_for("connect is allowed again", Duration::from_secs(10), || {
        developer.connect().map(Some)
    })?;
    let output = developer.kvpn(["list", "-n", "kube-system"])?;
    assert_fails(&output, Reason::Forbidden, &["list", "kube-system"])
}

#[test]
fn root_daemon_that_does_not_run() -> Result<()> {
    let mut developer = Developer::at(2)?;
    developer.lab.stop_daemon(2)?;
    let output = developer.kvpn(["connect"]);
    developer.lab.start_daemon(2)?;
    assert_fails(&output?, Reason::DaemonNotRunning, &["kvpnd"])
}

#[test]
fn laptop_that_is_connected_already() -> Result<()> {
    let developer = Developer::connected(1)?;
    // The same again is no failure.
    developer.kvpn(["connect", "-n", SHOP])?.success()?;
    let other = developer.kvpn(["connect", "-n", "default"])?;
    assert_fails(&other, Reason::AlreadyConnected, &["kvpn quit"])?;
    // Another user of the same laptop.
    let script = "KUBECONFIG=/home/dev1/.kube/config kvpn connect";
    let root = developer.laptop.root().run(["sh", "-c", script])?;
    assert_fails(&root, Reason::AlreadyConnected, &["dev1"])
}

#[test]
fn commands_without_a_connection() -> Result<()> {
    let developer = Developer::at(1)?;
    for args in [
        ["intercept", "web", "--port=8080"],
        ["leave", "web", "-otext"],
        ["list", "-n", SHOP],
    ] {
        assert_fails(
            &developer.kvpn(args)?,
            Reason::NotConnected,
            &["kvpn connect"],
        )?;
    }
    Ok(())
}

#[test]
fn workload_or_port_that_is_not_there() -> Result<()> {
    let developer = Developer::connected(1)?;
    let output = developer.kvpn(["intercept", "wbe", "--port", "8080"])?;
    assert_fails(&output, Reason::NoSuchWorkload, &["wbe", "web"])?;
    let output = developer.kvpn(["intercept", "web", "--port", "8080:81"])?;
    assert_fails(&output, Reason::NoSuchPort, &["81", "80 (http)"])?;
    let output = developer.kvpn(["leave", "web"])?;
    assert_fails(&output, Reason::NoSuchEngagement, &["web"])
}

#[test]
fn handler_that_does_not_listen_is_a_warning_and_the_app_answers() -> Result<()> {
    let developer = Developer::connected(1)?;
    let (_, result) = developer.intercept("web", "8099")?;
    let warnings = result["warnings"].to_string();
    ensure!(warnings.contains("127.0.0.1:8099"), "{warnings}");
    let answers = crate::support::get_from_pod(&developer.lab, &["http://web/".to_owned()])?;
    assert_eq!(answers[0].service, "web");
    Ok(())
}

#[test]
fn workload_without_a_running_pod() -> Result<()> {
    let developer = Developer::connected(1)?;
    let manifest = deployment("idle", SHOP, 0);
    developer
        .lab
        .kubectl(["apply", "-f", "-"])
        .stdin(manifest)
        .ok()?;
    let output = developer.kvpn(["intercept", "idle", "--port", "8080"]);
    developer
        .lab
        .kubectl(["-n", SHOP, "delete", "deployment", "idle"])
        .ok()?;
    assert_fails(&output?, Reason::NoRunningPod, &["idle"])
}

/// A Deployment of the sample application.
fn deployment(name: &str, namespace: &str, replicas: u32) -> String {
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
        - name: {name}
          image: localhost/kvpn-sample:lab
          imagePullPolicy: Never
          ports: [{{containerPort: 8080}}]
"
    )
}

/// An object as `kubectl create` takes it.
fn without_identity(object: &str) -> Result<String> {
    let mut object: serde_json::Value = serde_json::from_str(object)?;
    for field in [
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "managedFields",
    ] {
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove(field);
        }
    }
    Ok(object.to_string())
}
