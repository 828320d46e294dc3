//! The cluster's DNS and the sample application.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

use super::layout::Layout;
use super::{net, node};
use crate::progress::step;
use crate::{Cmd, wait_for};

/// Namespace of the sample application.
pub const NAMESPACE: &str = "shop";

/// Workloads of the sample application.
const WORKLOADS: [&str; 4] = [
    "deployment/web",
    "deployment/api",
    "statefulset/store",
    "deployment/client",
];

/// Its Services.
const SERVICES: [&str; 3] = ["service/web", "service/api", "service/store"];

/// Installs the cluster's DNS.
pub(crate) fn apply_dns(layout: &Layout) -> Result<()> {
    apply(layout, "manifests/coredns.yaml")
}

/// Waits until the cluster's DNS gives answers, on both families. A second or
/// two after its pod is Ready, kube-proxy has the rules too.
pub(crate) fn wait_for_dns(layout: &Layout) -> Result<()> {
    rollout(layout, "kube-system", "deployment/coredns")?;
    for server in [net::CLUSTER_DNS_V4, net::CLUSTER_DNS_V6] {
        wait_for(
            &format!("the cluster's DNS answers at {server}"),
            Duration::from_secs(30),
            || {
                let name = "kubernetes.default.svc.cluster.local";
                let dig = ["+short", "+time=1", "+tries=1", &format!("@{server}"), name];
                let answer = net::inside(net::NODE, "dig").args(dig).ok()?;
                Ok((answer.trim() == net::API_SERVICE_V4).then_some(()))
            },
        )?;
    }
    step("The cluster's DNS answers");
    Ok(())
}

/// Deploys the sample application, and waits until all of it is ready.
pub(crate) fn deploy(layout: &Layout, restart: bool) -> Result<()> {
    apply(layout, "sample/shop.yaml")?;
    if restart {
        kubectl(layout, &["-n", NAMESPACE, "rollout", "restart"])
            .args(WORKLOADS)
            .ok()?;
    }
    for workload in WORKLOADS {
        rollout(layout, NAMESPACE, workload)?;
    }
    wait_for(
        "web answers at its service",
        Duration::from_secs(30),
        || {
            let address = kubectl(layout, &["-n", NAMESPACE, "get", "service", "web"])
                .arg("-ojsonpath={.spec.clusterIP}")
                .ok()?;
            let curl = net::inside(net::NODE, "curl").args(["-sSf", "-m", "2", "-o", "/dev/null"]);
            curl.arg(format!("http://{address}/")).ok().map(Some)
        },
    )?;
    step("The sample application answers in namespace shop");
    Ok(())
}

/// Removes it, and leaves the namespace, in which users may do something also
/// without it.
pub(crate) fn remove(layout: &Layout) -> Result<()> {
    let delete = ["-n", NAMESPACE, "delete", "--ignore-not-found"];
    kubectl(layout, &delete)
        // Waits for the pods too.
        .arg("--cascade=foreground")
        .args(WORKLOADS)
        .args(SERVICES)
        .ok()
        .map(drop)
}

/// Applies a file of the tests' folder.
pub(crate) fn apply(layout: &Layout, file: &str) -> Result<()> {
    let manifest = fs::read(layout.tests().join(file)).with_context(|| format!("read {file}"))?;
    kubectl(layout, &["apply", "--server-side", "-f", "-"])
        .stdin(manifest)
        .ok()
        .map(drop)
}

/// Waits for a rollout; when it does not come, says what the pods say.
pub(crate) fn rollout(layout: &Layout, namespace: &str, workload: &str) -> Result<()> {
    let status = [
        "-n",
        namespace,
        "rollout",
        "status",
        workload,
        "--timeout=90s",
    ];
    let result = kubectl(layout, &status)
        .deadline(Duration::from_secs(100))
        .ok();
    result.map(drop).map_err(|error| {
        let say = |args: &[&str]| kubectl(layout, args).ok().unwrap_or_default();
        let pods = say(&["-n", namespace, "get", "pods", "-owide"]);
        let events = say(&["-n", namespace, "get", "events", "--sort-by=.lastTimestamp"]);
        let events: Vec<&str> = events.lines().rev().take(15).collect();
        error.context(format!(
            "{workload} is not ready\n{pods}\n{}\n",
            events.join("\n")
        ))
    })
}

fn kubectl(layout: &Layout, args: &[&str]) -> Cmd {
    node::kubectl(layout, "admin").args(args)
}
