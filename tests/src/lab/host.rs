//! What the machine must have: root, and a few programs from Debian.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::Cmd;
use crate::progress::{long, step};

/// A file that shows that a package is there, and the package's name.
const NEEDED: &[(&str, &str)] = &[
    ("/usr/bin/containerd", "containerd"),
    ("/usr/sbin/runc", "runc"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("/usr/sbin/iptables-nft", "iptables"),
    ("/usr/sbin/nft", "nftables"),
    ("/usr/sbin/conntrack", "conntrack"),
    ("/usr/sbin/ipset", "ipset"),
    ("/usr/bin/ip", "iproute2"),
    ("/usr/bin/ping", "iputils-ping"),
    ("/usr/sbin/sysctl", "procps"),
    ("/usr/bin/buildah", "buildah"),
    ("/usr/bin/curl", "curl"),
    ("/usr/bin/dig", "bind9-dnsutils"),
    ("/usr/bin/nc.openbsd", "netcat-openbsd"),
    ("/usr/bin/psql", "postgresql-client"),
    ("/usr/bin/redis-cli", "redis-tools"),
    ("/usr/bin/mariadb", "mariadb-client-core"),
    ("/usr/bin/nghttp", "nghttp2-client"),
    ("/usr/sbin/nghttpd", "nghttp2-server"),
    (
        "/usr/lib/python3/dist-packages/grpc/__init__.py",
        "python3-grpcio",
    ),
    (
        "/usr/lib/python3/dist-packages/h2/__init__.py",
        "python3-h2",
    ),
    (
        "/usr/lib/python3/dist-packages/websockets/__init__.py",
        "python3-websockets",
    ),
    ("/usr/bin/wrk", "wrk"),
    ("/usr/bin/ab", "apache2-utils"),
    ("/usr/bin/tinyproxy", "tinyproxy-bin"),
    ("/usr/bin/microsocks", "microsocks"),
    ("/usr/bin/gcc", "gcc"),
    ("/usr/bin/musl-gcc", "musl-tools"),
    ("/usr/include/stdio.h", "libc6-dev"),
];

/// Fails unless this process may make namespaces and run containers.
pub(crate) fn require_root() -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    bail!(
        "the lab needs root, for network namespaces and containers; \
         run it as root, for example with sudo -E env PATH=\"$PATH\" cargo xtask …"
    )
}

/// Installs the Debian packages that the lab and the tests need and that are
/// missing.
pub fn install_packages() -> Result<()> {
    let missing = NEEDED
        .iter()
        .filter(|(file, _)| !found(file))
        .map(|(_, package)| *package);
    let missing: Vec<&str> = missing.collect();
    if missing.is_empty() {
        return Ok(());
    }
    step(format_args!(
        "Installing Debian packages: {}",
        missing.join(" ")
    ));
    let apt = |args: &[&str]| {
        let command = Cmd::new("apt-get")
            .args(args)
            .env("DEBIAN_FRONTEND", "noninteractive");
        command.deadline(Duration::from_secs(600)).ok()
    };
    long("apt-get", || {
        apt(&["update", "-q"])?;
        apt(&[
            &["install", "-q", "-y", "--no-install-recommends"][..],
            &missing,
        ]
        .concat())
    })
    .with_context(|| format!("install the Debian packages {}", missing.join(" ")))?;
    Ok(())
}

/// Loads what kernels with modules do not load by themselves: overlays, and
/// packet filters for what crosses a bridge.
pub(crate) fn load_modules() {
    // A kernel that has them built in, or lacks modprobe, is as good.
    drop(
        Cmd::new("modprobe")
            .args(["-a", "overlay", "br_netfilter"])
            .run(),
    );
}

fn found(file: &str) -> bool {
    // Programs may be in either of the two, depending on the release.
    let twin = if file.contains("/sbin/") {
        file.replace("/sbin/", "/bin/")
    } else {
        file.replace("/bin/", "/sbin/")
    };
    Path::new(file).exists() || Path::new(&twin).exists()
}
