//! What kvpn's processes say to each other: gRPC messages, custom resources,
//! failures, and the names and ports that they agree on.

pub mod check;
pub mod connect;
pub mod crd;
pub mod duration;
pub mod environment;
mod failure;
pub mod filter;
pub mod flow;
pub mod identity;
pub mod names;
pub mod rollout;
pub mod story;
pub mod tls;
pub mod version;

pub use failure::{Failure, Reason};

/// Generated from `proto/kvpn/v1/*.proto`; turned into domain types here, so
/// that the other crates need it only for the calls themselves.
pub mod v1 {
    #![allow(unreachable_pub, clippy::wildcard_enum_match_arm)]
    #![allow(clippy::large_enum_variant)]
    tonic::include_proto!("kvpn.v1");
}
