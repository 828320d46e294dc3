//! The lab, a throwaway Kubernetes with two laptops in network namespaces, and
//! what tests need to use it.

pub mod bench;
pub mod cargo;
pub mod cmd;
pub mod dual_stack;
pub mod lab;
pub mod pattern;
pub mod progress;
pub mod soak;
pub mod wait;

pub use cmd::{Background, Cmd, Output};
pub use lab::Lab;
pub use wait::wait_for;

/// What a datagram asks the sample application, to be told who is there.
pub const WHO: &str = "who is there?";
