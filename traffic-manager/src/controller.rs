//! Watches the API server, and does there what the state says.

mod agent_container;
mod complaint;
mod execute;
mod selectors;
mod watch;
mod writer;

pub(crate) use agent_container::{AgentTemplate, Allowance, ManagerAddresses, random_name};
pub(crate) use execute::Executor;
pub(crate) use watch::{Watches, spawn_watches};
