//! A pod and a peer of it, each a network namespace, and a cable between them.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use nix::sched::{CloneFlags, setns};

pub(crate) const POD_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 2));
pub(crate) const POD_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2));
pub(crate) const PEER_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1));
pub(crate) const PEER_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1));

/// Removed when dropped.
pub(crate) struct Network {
    pod: String,
    peer: String,
}

#[derive(Clone, Copy)]
pub(crate) enum Side {
    Pod,
    /// Where the clients and the traffic manager are.
    Peer,
}

impl Network {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("kvpn-agent-test-{}-{count}", std::process::id());
        let network = Self {
            pod: format!("{name}-pod"),
            peer: format!("{name}-peer"),
        };
        let Self { pod, peer } = &network;
        ip(&format!("netns add {pod}"));
        ip(&format!("netns add {peer}"));
        ip(&format!(
            "-n {pod} link add eth0 type veth peer name eth0 netns {peer}"
        ));
        for (namespace, v4, v6) in [(pod, POD_V4, POD_V6), (peer, PEER_V4, PEER_V6)] {
            ip(&format!("-n {namespace} address add {v4}/24 dev eth0"));
            ip(&format!(
                "-n {namespace} address add {v6}/64 dev eth0 nodad"
            ));
            ip(&format!("-n {namespace} link set lo up"));
            ip(&format!("-n {namespace} link set eth0 up"));
        }
        network
    }

    pub(crate) fn path(&self, side: Side) -> PathBuf {
        let name = match side {
            Side::Pod => &self.pod,
            Side::Peer => &self.peer,
        };
        PathBuf::from("/run/netns").join(name)
    }

    /// Starts a thread inside.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        side: Side,
        body: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        let namespace = File::open(self.path(side)).expect("this test needs root");
        thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("this test needs root");
            body()
        })
    }

    /// Does something inside.
    pub(crate) fn within<T: Send + 'static>(
        &self,
        side: Side,
        body: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        self.spawn(side, body).join().unwrap()
    }

    /// Gives the pod another address.
    pub(crate) fn add_address(&self, address: IpAddr) {
        ip(&format!(
            "-n {} address add {address}/24 dev eth0",
            self.pod
        ));
    }

    /// What `nft` says of the pod.
    pub(crate) fn nft(&self, arguments: &str) -> String {
        let output = Command::new("ip")
            .args(["netns", "exec", &self.pod, "nft"])
            .args(arguments.split(' '))
            .output()
            .expect("this test needs nft");
        assert!(output.status.success(), "nft {arguments}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for namespace in [&self.pod, &self.peer] {
            // Nothing to be done about a failure.
            let _ = Command::new("ip")
                .args(["netns", "del", namespace])
                .status();
        }
    }
}

/// Both addresses of the pod.
pub(crate) fn addresses(port: u16) -> [SocketAddr; 2] {
    [(POD_V4, port).into(), (POD_V6, port).into()]
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    assert!(
        status.expect("this test needs iproute2").success(),
        "ip {arguments}: failed; this test needs root"
    );
}
