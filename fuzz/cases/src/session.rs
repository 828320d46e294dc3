//! Modules that read what the traffic manager tells of the cluster, under their own
//! paths.

#[path = "../../../daemon/src/session/cluster_info.rs"]
pub(crate) mod cluster_info;
#[path = "../../../daemon/src/session/host_plan.rs"]
pub(crate) mod host_plan;
