//! The chart's life on a real cluster: upgrade, another version, uninstall,
//! install.

use std::time::Duration;

use anyhow::{Result, ensure};
use kvpn_proto::Reason;
use kvpn_tests::{Lab, wait_for};

use crate::support::{Developer, SHOP, get_from_pod};

#[test]
fn chart_is_upgraded_uninstalled_and_installed_again() -> Result<()> {
    let developer = Developer::at(1)?;
    let reinstall = Reinstall;
    lifecycle(&developer)?;
    drop(reinstall);
    developer.connect()?;
    assert_eq!(developer.get(["http://web.shop/"])?.service, "web");
    Ok(())
}

/// Installs the chart as the lab does, when dropped, so that the next test finds
/// it whatever happened to this one.
struct Reinstall;

impl Drop for Reinstall {
    fn drop(&mut self) {
        let installed = Lab::attach().and_then(|mut lab| lab.install_kvpn());
        installed.expect("install the chart again");
    }
}

fn lifecycle(developer: &Developer) -> Result<()> {
    let lab = &developer.lab;
    // A chart of another version, with the same images.
    let chart = tempfile::tempdir()?;
    let copy = chart.path().join("kvpn");
    let source = lab.layout().chart();
    kvpn_tests::Cmd::new("cp")
        .arg("-r")
        .arg(source)
        .arg(&copy)
        .ok()?;
    let metadata = std::fs::read_to_string(copy.join("Chart.yaml"))?;
    let other = metadata.replace("appVersion: 0.1.0", "appVersion: 9.9.9");
    ensure!(other != metadata, "no appVersion 0.1.0 in {metadata}");
    std::fs::write(copy.join("Chart.yaml"), other)?;
    let upgrade = [
        "upgrade",
        "kvpn",
        "-n",
        "kvpn",
        "--reuse-values",
        "--wait",
        "--timeout=60s",
    ];
    lab.helm(upgrade)
        .arg(&copy)
        .deadline(Duration::from_secs(90))
        .ok()?;
    let output = developer.kvpn(["connect"])?;
    assert_eq!(
        output.code(),
        i32::from(Reason::VersionMismatch.exit_code()),
        "{}",
        output.stderr
    );
    ensure!(output.stderr.contains("9.9.9"), "{}", output.stderr);

    lab.helm(["uninstall", "kvpn", "-n", "kvpn", "--wait", "--timeout=60s"])
        .deadline(Duration::from_secs(90))
        .ok()?;
    let output = developer.kvpn(["connect"])?;
    assert_eq!(
        output.code(),
        i32::from(Reason::ChartNotInstalled.exit_code()),
        "{}",
        output.stderr
    );
    ensure!(output.stderr.contains("helm"), "{}", output.stderr);
    nothing_is_left(lab)
}

/// Of the chart, in the whole cluster, once its pods have ended.
fn nothing_is_left(lab: &Lab) -> Result<()> {
    for kinds in [
        "customresourcedefinitions,clusterroles,clusterrolebindings",
        "validatingadmissionpolicies,validatingadmissionpolicybindings",
        "all,serviceaccounts,roles,rolebindings,secrets,configmaps",
    ] {
        let label = "app.kubernetes.io/instance=kvpn";
        wait_for(
            "nothing is left of the chart",
            Duration::from_secs(30),
            || {
                let left = lab
                    .kubectl(["get", kinds, "-A", "-l", label, "-o", "name"])
                    .ok()?;
                ensure!(left.is_empty(), "{left}");
                Ok(Some(()))
            },
        )?;
    }
    let secret = "secret/traffic-manager-tls";
    lab.kubectl([
        "-n",
        "kvpn",
        "wait",
        "--for=delete",
        secret,
        "--timeout=30s",
    ])
    .ok()?;
    Ok(())
}

#[test]
fn developers_may_do_what_the_role_says_and_no_more() -> Result<()> {
    let lab = Lab::attach()?;
    let may = |verb: &str, what: &str, namespace: &str| -> Result<bool> {
        let question = ["auth", "can-i", verb, what, "-n", namespace];
        Ok(lab.kubectl_as("alice", question).run()?.status.success())
    };
    for (verb, what, namespace) in [
        ("create", "sessions.kvpn.dev", "kvpn"),
        ("create", "engagements.kvpn.dev", "shop"),
        ("list", "deployments.apps", "shop"),
    ] {
        ensure!(
            may(verb, what, namespace)?,
            "alice may not {verb} {what} in {namespace}"
        );
    }
    for (verb, what, namespace) in [
        ("get", "secrets", "kvpn"),
        ("get", "secrets", "shop"),
        ("create", "pods", "shop"),
        ("create", "pods/exec", "shop"),
        ("create", "pods/portforward", "kvpn"),
        ("patch", "pods/ephemeralcontainers", "shop"),
        ("update", "engagements.kvpn.dev/status", "shop"),
        ("revoke", "sessions.kvpn.dev", "kvpn"),
        ("create", "engagements.kvpn.dev", "kube-system"),
        ("get", "services/proxy", "shop/web"),
    ] {
        ensure!(
            !may(verb, what, namespace)?,
            "alice may {verb} {what} in {namespace}"
        );
    }
    Ok(())
}

#[test]
fn nobody_creates_a_session_in_anothers_name() -> Result<()> {
    let lab = Lab::attach()?;
    let session = |user: &str| {
        format!(
            "
apiVersion: kvpn.dev/v1alpha1
kind: Session
metadata: {{generateName: forged-, namespace: kvpn}}
spec:
  user: {user}
  publicKey: \"{}\"
  client: {{hostname: h, version: 0.1.0}}
",
            "0".repeat(64)
        )
    };
    let create = |user| {
        lab.kubectl_as("alice", ["create", "-o", "name", "-f", "-"])
            .stdin(session(user))
            .run()
    };
    let forged = create("bob")?;
    ensure!(!forged.status.success(), "alice is bob now");
    ensure!(forged.stderr.contains("bob"), "{}", forged.stderr);
    let own = create("alice")?.success()?;
    let name = own.stdout.trim().to_owned();
    let change = [
        "-n",
        "kvpn",
        "patch",
        &name,
        "--type=merge",
        "-p",
        r#"{"spec":{"user":"bob"}}"#,
    ];
    let changed = lab.kubectl(change).run()?;
    lab.kubectl_as("alice", ["-n", "kvpn", "delete", &name])
        .ok()?;
    ensure!(
        !changed.status.success(),
        "the user of a session was changed"
    );
    Ok(())
}

#[test]
fn request_from_a_pod_does_not_reach_the_managers_tunnel_without_a_key() -> Result<()> {
    let lab = Lab::attach()?;
    // The door is there, and what is behind it wants a signature.
    let url = "https://traffic-manager.kvpn/healthz";
    // The cluster's DNS may remember for a while that there was no such name.
    let greeting = wait_for("the manager answers", Duration::from_secs(15), || {
        let curl = ["curl", "-sSk", "-m", "5", url];
        let output = lab.pod_exec(SHOP, "deploy/client", curl)?.success()?;
        Ok(Some(output.stdout))
    })?;
    assert_eq!(greeting.trim(), "ok");
    let agents = "https://traffic-manager.kvpn:8444/kvpn.v1.AgentHub/WatchClaims";
    let grpc = [
        "curl",
        "-sSk",
        "-m",
        "5",
        "--http2",
        "-D-",
        "-H",
        "content-type: application/grpc",
    ];
    let post = grpc.into_iter().chain(["--data-binary", "", agents]);
    let output = lab.pod_exec(SHOP, "deploy/client", post)?;
    ensure!(
        !output.stdout.contains("grpc-status: 0"),
        "{}",
        output.stdout
    );
    // And the sample application is as it was.
    assert_eq!(
        get_from_pod(&lab, &["http://web/".to_owned()])?[0].service,
        "web"
    );
    Ok(())
}
