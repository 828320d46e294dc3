//! The server that figures are measured against.

use anyhow::Result;

use super::layout::Layout;
use super::{node, sample};
use crate::bench::ports::{FILES, NAME, NAMESPACE};

/// Deploys it anew when its image has changed, and waits until it is ready.
pub(crate) fn deploy(layout: &Layout, changed: bool) -> Result<()> {
    sample::apply(layout, "bench/server.yaml")?;
    let workload = format!("deployment/{NAME}");
    if changed {
        node::kubectl(layout, "admin")
            .args(["-n", NAMESPACE, "rollout", "restart", &workload])
            .ok()?;
    }
    sample::rollout(layout, NAMESPACE, &workload)
}

/// Deploys a new pod with files, and waits until it is ready.
pub(crate) fn deploy_files(layout: &Layout) -> Result<()> {
    sample::apply(layout, "bench/files.yaml")?;
    let workload = format!("deployment/{FILES}");
    node::kubectl(layout, "admin")
        .args(["-n", NAMESPACE, "rollout", "restart", &workload])
        .ok()?;
    sample::rollout(layout, NAMESPACE, &workload)
}

/// Removes all with their namespace.
pub(crate) fn remove(layout: &Layout) -> Result<()> {
    node::kubectl(layout, "admin")
        .args(["delete", "namespace", NAMESPACE, "--ignore-not-found"])
        .ok()
        .map(drop)
}
