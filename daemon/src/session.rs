//! The session: the user's process that joins the host to a cluster.

mod api;
pub(crate) mod args;
mod check;
mod cluster;
pub(crate) mod cluster_info;
mod connect;
mod diagnose;
mod directory;
pub(crate) mod engagements;
mod events;
mod explain;
mod flows;
mod follow;
pub(crate) mod host_plan;
mod identity;
mod judge;
mod kubeconfig;
pub(crate) mod manager;
mod protected;
mod proxy;
mod requests;
mod run;
mod socket;
pub(crate) mod subnet_rules;
mod transport;
pub(crate) mod vnat;
mod workloads;

pub(crate) use check::check;
pub(crate) use run::run;
