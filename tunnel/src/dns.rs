//! Asking name servers, and reading who they are.

mod exchange;
mod forwarder;
mod resolv_conf;

pub use forwarder::{ForwardError, Forwarder};
pub use resolv_conf::{ResolvConf, parse_resolv_conf};

#[cfg(test)]
mod tests;
