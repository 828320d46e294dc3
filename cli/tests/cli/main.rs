//! Runs the real binary: without a session, with programs in `kvpnd`'s place,
//! and with a session that answers from a script.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests fail them by panicking"
)]

mod connected;
mod environment;
mod fake_session;
mod files;
mod kvpn;
mod readme;
mod shell;
mod starting;
mod unconnected;
mod up;
mod watch;
