//! The module that names of the cluster are told by, under its own path.

#[path = "../../../daemon/src/session/cluster_info.rs"]
pub(crate) mod cluster_info;
