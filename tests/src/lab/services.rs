//! Servers that people use, in pods: PostgreSQL, Redis, nginx, MariaDB, Knot, gRPC,
//! WebSocket and Python's HTTP.

use std::path::PathBuf;

use anyhow::Result;

use super::debian::Rootfs;
use super::layout::Layout;
use super::{node, sample};
use crate::progress::step;

/// Namespace of the servers. Each has a Service of its name.
pub const NAMESPACE: &str = "services";

/// User, password and database of those that want them.
pub const USER: &str = "shop";
pub const PASSWORD: &str = "laptop";
pub const DATABASE: &str = "shop";

const NAMES: [&str; 8] = [
    "postgres",
    "redis",
    "nginx",
    "mariadb",
    "knot",
    "grpc",
    "websocket",
    "http",
];

/// What the image holds.
pub(crate) const ROOTFS: Rootfs = Rootfs {
    name: "services",
    packages: &[
        "bash",
        "coreutils",
        "grep",
        "hostname",
        "knot",
        "mariadb-client-core",
        "mariadb-server-core",
        "nginx",
        "openssl",
        "postgresql-15",
        "python3-grpcio",
        "python3-websockets",
        "redis-server",
        "sed",
    ],
    without: &[
        "adduser",
        "debconf",
        "dpkg",
        "iproute2",
        "libllvm14",
        "locales",
        "lsb-base",
        "mariadb-common",
        "mysql-common",
        "passwd",
        "perl",
        "perl-base",
        "postgresql-client-common",
        "postgresql-common",
        "ssl-cert",
        "sysvinit-utils",
        "tar",
        "ucf",
    ],
};

/// The program that is server and client of gRPC, in Python.
pub fn grpc_echo(layout: &Layout) -> PathBuf {
    layout.tests().join("images/services/grpc-echo")
}

/// The same of WebSocket.
pub fn websocket_echo(layout: &Layout) -> PathBuf {
    layout.tests().join("images/services/websocket-echo")
}

/// The same of HTTP/1.1.
pub fn http_echo(layout: &Layout) -> PathBuf {
    layout.tests().join("images/services/http-echo")
}

/// Deploys the servers, and waits until all of them are ready.
pub(crate) fn deploy(layout: &Layout) -> Result<()> {
    let kubectl = |args: &[&str]| node::kubectl(layout, "admin").args(args);
    let was_there = kubectl(&["get", "namespace", NAMESPACE])
        .run()?
        .status
        .success();
    sample::apply(layout, "services/namespace.yaml")?;
    for name in NAMES {
        sample::apply(layout, &format!("services/{name}.yaml"))?;
    }
    // Pods do not notice another image of the same tag, nor other settings.
    if was_there {
        kubectl(&["-n", NAMESPACE, "rollout", "restart", "deployment"]).ok()?;
    }
    for name in NAMES {
        sample::rollout(layout, NAMESPACE, &format!("deployment/{name}"))?;
    }
    step(format_args!(
        "{} run in namespace {NAMESPACE}",
        NAMES.join(", ")
    ));
    Ok(())
}
