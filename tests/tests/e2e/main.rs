//! End-to-end tests, on the lab's real cluster and laptops.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod arrival;
mod births;
mod chaos;
mod chart;
mod conflicts;
mod environment;
mod errors;
mod files;
mod filters;
mod handler;
mod journey;
mod kills;
mod kinds;
mod lab;
mod names;
mod namespace;
mod observe;
mod policy;
mod protocols;
mod refusals;
mod replace;
mod replicas;
mod requests;
mod resolved;
mod revocation;
mod services;
mod several;
mod soak;
mod steps;
mod support;
mod tls;
mod to_pod;
mod toggles;
mod transport;
mod truth;
mod udp;
mod up;
mod why;
mod wiretap;
