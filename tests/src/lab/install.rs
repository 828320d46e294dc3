//! kvpn itself on the lab: the chart in the cluster, daemons on the laptops.

use std::time::Duration;

use anyhow::{Context, Result};

use super::images::{Built, SIDECAR_AGENT, TRAFFIC_MANAGER};
use super::layout::Layout;
use super::state::State;
use super::{laptop, net, sample};
use crate::Cmd;
use crate::progress::step;

const RELEASE: &str = "kvpn";
const NAMESPACE: &str = kvpn_proto::names::MANAGER_NAMESPACE;

/// helm as the cluster's administrator, on the node's network.
pub(crate) fn helm(layout: &Layout) -> Cmd {
    let home = layout.run().join("helm");
    net::inside(net::NODE, layout.tool("helm"))
        .env("KUBECONFIG", layout.kubeconfig("admin"))
        .env("HELM_CACHE_HOME", home.join("cache"))
        .env("HELM_CONFIG_HOME", home.join("config"))
        .env("HELM_DATA_HOME", home.join("data"))
}

/// Values that make the chart use these images.
pub(crate) fn image_values(manager: &Built, agent: &Built) -> Vec<String> {
    let values = |prefix: &str, image: &Built| {
        let (registry, repository) = image.repository.split_once('/').unwrap_or_default();
        [
            format!("{prefix}.registry={registry}"),
            format!("{prefix}.repository={repository}"),
            format!("{prefix}.tag={}", image.tag),
        ]
    };
    values("image", manager)
        .into_iter()
        .chain(values("agent.image", agent))
        .collect()
}

/// Installs or upgrades the chart, and waits until the traffic manager runs.
pub(crate) fn chart(layout: &Layout, state: &mut State) -> Result<()> {
    let (manager, agent) = (TRAFFIC_MANAGER.build(layout)?, SIDECAR_AGENT.build(layout)?);
    manager.import(layout, state)?;
    agent.import(layout, state)?;
    sample::apply(layout, "manifests/users.yaml")?;
    let values = image_values(&manager, &agent);
    helm(layout)
        .args(["upgrade", "--install", RELEASE])
        .arg(layout.chart())
        .args(["--namespace", NAMESPACE, "--create-namespace"])
        .args(values.iter().flat_map(|value| ["--set-string", value]))
        .args([
            "--set-string",
            "logLevel=info\\,kvpn=debug\\,traffic_manager=debug",
        ])
        .deadline(Duration::from_secs(120))
        .ok()
        .context("install the chart")?;
    sample::rollout(layout, NAMESPACE, "deployment/traffic-manager")?;
    step("The traffic manager runs in namespace kvpn");
    Ok(())
}

/// Stops the laptops' root daemons, and uninstalls the chart.
pub(crate) fn remove(layout: &Layout, state: &mut State) -> Result<()> {
    for number in net::LAPTOPS {
        laptop::Laptop::find(layout, state, number)?.stop_daemon(state)?;
    }
    helm(layout)
        .args(["uninstall", RELEASE, "--namespace", NAMESPACE])
        .args(["--ignore-not-found", "--wait"])
        .deadline(Duration::from_secs(60))
        .ok()
        .context("uninstall the chart")
        .map(drop)
}

/// Starts the root daemon of every laptop, anew.
pub(crate) fn daemons(layout: &Layout, state: &mut State) -> Result<()> {
    for number in net::LAPTOPS {
        let laptop = laptop::Laptop::find(layout, state, number)?;
        laptop.stop_daemon(state)?;
        laptop.start_daemon(state, None)?;
    }
    step("The root daemons of the laptops listen");
    Ok(())
}
