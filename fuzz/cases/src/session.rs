//! The module that names of the cluster are told by, under its own path.

#[path = "../../../daemon/src/session/cluster_info.rs"]
pub(crate) mod cluster_info;
#[expect(dead_code, reason = "only what is routed is of interest")]
#[path = "../../../daemon/src/session/subnet_rules.rs"]
pub(crate) mod subnet_rules;
