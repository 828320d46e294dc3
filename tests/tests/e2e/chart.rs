//! The chart's life on a real cluster: upgrade, another version, uninstall,
//! install.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use kvpn_proto::Reason;
use kvpn_tests::{Lab, wait_for};

use crate::errors::assert_fails;
use crate::support::{Developer, SHOP};

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
    assert_fails(&output, Reason::VersionMismatch, &["9.9.9"])?;

    lab.helm(["uninstall", "kvpn", "-n", "kvpn", "--wait", "--timeout=60s"])
        .deadline(Duration::from_secs(90))
        .ok()?;
    let output = developer.kvpn(["connect"])?;
    assert_fails(&output, Reason::ChartNotInstalled, &["helm"])?;
    nothing_is_left(lab)
}

/// Of the chart, in the whole cluster, once its pods have ended.
fn nothing_is_left(lab: &Lab) -> Result<()> {
    for kinds in [
        "customresourcedefinitions,clusterroles,clusterrolebindings",
        "validatingadmissionpolicies,validatingadmissionpolicybindings,\
         mutatingwebhookconfigurations",
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
        let (resource, subresource) = what.split_once('/').unwrap_or((what, ""));
        let question = ["auth", "can-i", verb, resource, "-n", namespace];
        let question = question.into_iter().chain(["--subresource", subresource]);
        let output = lab.kubectl_as("alice", question).run()?;
        match output.stdout.trim() {
            "yes" => Ok(true),
            "no" => Ok(false),
            _ => bail!("{output:?}"),
        }
    };
    for (verb, what, namespace) in [
        ("create", "sessions.kvpn.dev", "kvpn"),
        ("create", "engagements.kvpn.dev", "shop"),
        ("list", "deployments.apps", "shop"),
        ("list", "jobs.batch", "shop"),
        ("create", "pods/portforward", "kvpn"),
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
        ("create", "jobs.batch", "shop"),
        ("create", "pods/exec", "shop"),
        ("create", "pods/portforward", "shop"),
        ("patch", "pods/ephemeralcontainers", "shop"),
        ("update", "engagements.kvpn.dev/status", "shop"),
        ("revoke", "sessions.kvpn.dev", "kvpn"),
        ("create", "engagements.kvpn.dev", "kube-system"),
        // The grant is for one name, and this asks for any.
        ("get", "services/proxy", "kvpn"),
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
fn nobody_engages_in_anothers_name() -> Result<()> {
    let lab = Lab::attach()?;
    let engagement = "
apiVersion: kvpn.dev/v1alpha1
kind: Engagement
metadata: {generateName: forged-, namespace: shop}
spec:
  user: bob
  session: bob-1
  verb: Intercept
  workload: {kind: Deployment, name: web}
  ports: [{containerPort: 8080, protocol: TCP, local: '127.0.0.1:8080'}]
";
    let create = ["create", "-f", "-"];
    let forged = lab.kubectl_as("alice", create).stdin(engagement).run()?;
    ensure!(!forged.status.success(), "alice engages as bob");
    ensure!(forged.stderr.contains("spec.user"), "{}", forged.stderr);

    let ingest = engagement.replace("bob", "alice");
    let ingest = ingest.replace("Intercept", "Ingest");
    let ingest = lab.kubectl_as("alice", create).stdin(ingest).run()?;
    ensure!(!ingest.status.success(), "an ingest takes traffic");
    ensure!(
        ingest.stderr.contains("takes no ports"),
        "{}",
        ingest.stderr
    );
    Ok(())
}

#[test]
fn stranger_gets_no_handshake_at_the_agents_port() -> Result<()> {
    let lab = Lab::attach()?;
    // The name resolves and the pod is there.
    let url = "https://traffic-manager.kvpn/healthz";
    // The cluster's DNS may remember for a while that there was no such name.
    let greeting = wait_for("the manager answers", Duration::from_secs(15), || {
        let curl = ["curl", "-sSk", "-m", "5", url];
        let output = lab.pod_exec(SHOP, "deploy/client", curl)?.success()?;
        Ok(Some(output.stdout))
    })?;
    assert_eq!(greeting.trim(), "ok");
    let agents = "https://traffic-manager.kvpn:8444/";
    let curl = ["curl", "-sSk", "-m", "5", agents];
    let output = lab.pod_exec(SHOP, "deploy/client", curl)?;
    // Connected, and hung up on: neither a missing name nor a closed port.
    assert_eq!(output.code(), 35, "{}", output.stderr);
    Ok(())
}
