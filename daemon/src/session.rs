//! The session: the user's process that joins the host to a cluster.

mod api;
pub(crate) mod args;
mod cluster;
pub(crate) mod cluster_info;
mod connect;
pub(crate) mod engagements;
mod events;
mod identity;
mod kubeconfig;
pub(crate) mod manager;
mod run;
mod socket;
mod upgrade;
mod workloads;

pub(crate) use run::run;
