//! The session's side of a lease.

use std::io;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kvpn_files::device::id_at;
use kvpn_proto::v1::lease_reply::Reply;
use kvpn_proto::v1::lease_request::Request;
use kvpn_proto::v1::{self, Descriptor, Resolver};
use kvpn_proto::{Failure, Reason};
use tokio::net::UnixStream;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::network::Network;
use super::wire::Connection;

/// How long the root daemon may take for an answer.
const DEADLINE: Duration = if cfg!(test) {
    Duration::from_millis(300)
} else {
    Duration::from_secs(10)
};

/// A lease that is held. Dropping it gives everything back.
pub(crate) struct Lease {
    connection: Connection,
    /// How many requests have no answer yet.
    unanswered: usize,
}

/// What a lease gives.
pub(crate) struct Granted {
    pub(crate) device: String,
    /// Bytes.
    pub(crate) mtu: u16,
    /// Addresses of the host on the device.
    pub(crate) addresses: Vec<IpAddr>,
    /// The file that names the host's own name servers.
    pub(crate) upstreams: PathBuf,
    /// What on the host was told of the session's name server.
    pub(crate) resolver: Resolver,
    /// Carries IP packets, each behind a `virtio_net_hdr` of ten octets;
    /// non-blocking.
    pub(crate) tun: OwnedFd,
    /// Bound to port 53 of `addresses`; non-blocking.
    pub(crate) dns_udp: Vec<UdpSocket>,
    /// Listening on port 53 of `addresses`; non-blocking.
    pub(crate) dns_tcp: Vec<TcpListener>,
}

impl Lease {
    /// Asks the root daemon for a lease, for the connection of this name.
    pub(crate) async fn acquire(
        socket: &Path,
        name: &str,
        network: &Network,
        description: &str,
    ) -> Result<(Self, Granted), Failure> {
        let mut lease = Self::connect(socket).await?;
        let request = Request::Acquire(v1::Acquire {
            network: Some(network.into()),
            description: description.into(),
            name: name.into(),
        });
        let (reply, descriptors) = lease.call(request).await?;
        match reply {
            Reply::Granted(granted) => {
                Ok((lease, take_granted(granted, descriptors).map_err(broken)?))
            }
            Reply::NetworkSet(_)
            | Reply::Described(_)
            | Reply::MountOpened(_)
            | Reply::MountAttached(_)
            | Reply::MountClosed(_)
            | Reply::Refused(_) => Err(another_question()),
        }
    }

    async fn connect(socket: &Path) -> Result<Self, Failure> {
        match timeout(DEADLINE, UnixStream::connect(socket)).await {
            Ok(Ok(stream)) => Ok(Self {
                connection: Connection::new(stream),
                unanswered: 0,
            }),
            Ok(Err(error)) => Err(not_running(socket, &error)),
            Err(_) => Err(not_running(socket, &io::ErrorKind::TimedOut.into())),
        }
    }

    /// Replaces the subnets and the domains; after a failure other than `TimedOut` the
    /// subnets are as they were. The search domains stay as they were granted.
    pub(crate) async fn set_network(&mut self, network: &Network) -> Result<(), Failure> {
        let request = Request::SetNetwork(v1::SetNetwork {
            network: Some(network.into()),
        });
        match self.call(request).await?.0 {
            Reply::NetworkSet(_) => Ok(()),
            Reply::Granted(_)
            | Reply::Described(_)
            | Reply::MountOpened(_)
            | Reply::MountAttached(_)
            | Reply::MountClosed(_)
            | Reply::Refused(_) => Err(another_question()),
        }
    }

    /// Makes a file system that is for this user alone, and is asked through the
    /// descriptor; it is seen once it is attached, and gone with the lease.
    pub(crate) async fn open_mount(&mut self, read_only: bool) -> Result<(u64, OwnedFd), Failure> {
        let request = Request::OpenMount(v1::OpenMount { read_only });
        let (reply, descriptors) = self.call(request).await?;
        let Reply::MountOpened(opened) = reply else {
            return Err(another_question());
        };
        let device = descriptors.into_iter().next();
        Ok((opened.id, device.ok_or_else(|| broken("no /dev/fuse"))?))
    }

    /// Shows a file system in place of a directory of the user's.
    pub(crate) async fn attach_mount(&mut self, id: u64, path: &Path) -> Result<(), Failure> {
        let refused = |error: io::Error| {
            Failure::new(
                Reason::Usage,
                format!("{} cannot be mounted at: {error}", path.display()),
                "choose an empty directory of yours",
            )
        };
        let (at, before) = place(path).await.map_err(refused)?;
        let request = Request::AttachMount(v1::AttachMount {
            id,
            path: at.as_os_str().as_bytes().to_vec().into(),
        });
        match self.call(request).await?.0 {
            Reply::MountAttached(_) => match place(&at).await.map_err(refused)?.1 == before {
                true => Err(Failure::new(
                    Reason::HostRefused,
                    "kvpnd has mounts of its own, which this session does not see",
                    "start kvpnd where sessions run, without PrivateMounts or the like",
                )),
                false => Ok(()),
            },
            Reply::Granted(_)
            | Reply::NetworkSet(_)
            | Reply::Described(_)
            | Reply::MountOpened(_)
            | Reply::MountClosed(_)
            | Reply::Refused(_) => Err(another_question()),
        }
    }

    /// Ends a file system.
    pub(crate) async fn close_mount(&mut self, id: u64) -> Result<(), Failure> {
        let request = Request::CloseMount(v1::CloseMount { id });
        match self.call(request).await?.0 {
            Reply::MountClosed(_) => Ok(()),
            Reply::Granted(_)
            | Reply::NetworkSet(_)
            | Reply::Described(_)
            | Reply::MountOpened(_)
            | Reply::MountAttached(_)
            | Reply::Refused(_) => Err(another_question()),
        }
    }

    /// Resolves when the root daemon is gone, and the lease with it.
    pub(crate) async fn closed(&mut self) {
        while let Ok(Some(_)) = self.connection.receive::<v1::LeaseReply>().await {
            self.unanswered = self.unanswered.saturating_sub(1);
        }
    }

    /// Gives everything back, and waits until the root daemon has undone it.
    pub(crate) async fn release(mut self) {
        if let Err(error) = self.connection.finish() {
            tracing::debug!(%error, "The root daemon is gone already");
        }
        if timeout(DEADLINE, self.closed()).await.is_err() {
            tracing::warn!("The root daemon has not undone its changes in time");
        }
    }

    async fn call(&mut self, request: Request) -> Result<(Reply, Vec<OwnedFd>), Failure> {
        let request = v1::LeaseRequest {
            request: Some(request),
        };
        let exchange = async {
            self.connection.send(&request, &[]).await?;
            self.unanswered += 1;
            loop {
                let reply = self.connection.receive::<v1::LeaseReply>().await?;
                self.unanswered -= 1;
                // It may have been late with those before.
                if self.unanswered == 0 || reply.is_none() {
                    return Ok::<_, io::Error>(reply);
                }
            }
        };
        let (reply, descriptors) = timeout(DEADLINE, exchange)
            .await
            .map_err(|_| {
                Failure::new(
                    Reason::TimedOut,
                    "the root daemon does not answer",
                    "look at the log of kvpnd, or start it again",
                )
            })?
            .map_err(broken)?
            .ok_or_else(|| broken("the connection was closed"))?;
        match reply.reply {
            Some(Reply::Refused(refused)) => Err(Failure::new(
                refused.reason.parse().unwrap_or(Reason::HostRefused),
                refused.message,
                refused.next_step,
            )),
            Some(reply) => Ok((reply, descriptors)),
            None => Err(broken("an answer that this version does not know")),
        }
    }
}

/// The directory without symbolic links, and the kernel's number of the mount that it is in.
/// It may be in a file system that this process answers for, in the thread that asks here.
async fn place(path: &Path) -> io::Result<(PathBuf, u64)> {
    let path = path.to_owned();
    let found = spawn_blocking(move || {
        let at = path.canonicalize()?;
        id_at(&at).map(|id| (at, id))
    });
    found.await.map_err(io::Error::other).flatten()
}

/// Asks the root daemon what it is and who holds a lease.
pub(crate) async fn describe(socket: &Path) -> Result<v1::Described, Failure> {
    let mut lease = Lease::connect(socket).await?;
    match lease.call(Request::Describe(v1::Describe {})).await?.0 {
        Reply::Described(described) => Ok(described),
        Reply::Granted(_)
        | Reply::NetworkSet(_)
        | Reply::MountOpened(_)
        | Reply::MountAttached(_)
        | Reply::MountClosed(_)
        | Reply::Refused(_) => Err(another_question()),
    }
}

fn not_running(socket: &Path, error: &io::Error) -> Failure {
    let socket = socket.display();
    if error.kind() == io::ErrorKind::PermissionDenied {
        Failure::new(
            Reason::DaemonNotRunning,
            format!("the root daemon's socket {socket} may not be opened by this user"),
            "start kvpnd as root with its own settings, which leave the socket open to every user",
        )
    } else {
        Failure::new(
            Reason::DaemonNotRunning,
            format!("the root daemon does not answer at {socket}: {error}"),
            "start it with `sudo kvpnd`",
        )
    }
}

fn another_question() -> Failure {
    broken("an answer to another question")
}

fn broken(what: impl std::fmt::Display) -> Failure {
    Failure::new(
        Reason::HostRefused,
        format!("the root daemon's answer cannot be used: {what}"),
        "make sure that kvpn and kvpnd are of the same version, then start kvpnd again",
    )
}

/// Joins a `Granted` with the descriptors that came with it.
fn take_granted(granted: v1::Granted, descriptors: Vec<OwnedFd>) -> Result<Granted, String> {
    let kinds: Vec<Descriptor> = granted.descriptors().collect();
    if kinds.len() != descriptors.len() {
        return Err(format!(
            "{} descriptors of {} arrived",
            descriptors.len(),
            kinds.len()
        ));
    }
    let mut tun = None;
    let mut dns_udp = Vec::new();
    let mut dns_tcp = Vec::new();
    for (kind, descriptor) in kinds.into_iter().zip(descriptors) {
        match kind {
            Descriptor::Tun => tun = Some(descriptor),
            Descriptor::DnsUdp => dns_udp.push(descriptor.into()),
            Descriptor::DnsTcp => dns_tcp.push(descriptor.into()),
            Descriptor::Unspecified => return Err("a descriptor of an unknown kind".into()),
        }
    }
    Ok(Granted {
        resolver: granted.resolver(),
        addresses: addresses(&granted.addresses)?,
        upstreams: granted.upstreams.into(),
        mtu: u16::try_from(granted.mtu).map_err(|error| error.to_string())?,
        device: granted.device,
        tun: tun.ok_or("no TUN device")?,
        dns_udp,
        dns_tcp,
    })
}

fn addresses(texts: &[String]) -> Result<Vec<IpAddr>, String> {
    texts
        .iter()
        .map(|text| text.parse().map_err(|_| format!("`{text}` is no address")))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use tokio::net::UnixListener;

    use super::*;

    /// Answers the first request on a socket of its own, then hangs up.
    fn daemon(reply: Reply, descriptors: Vec<OwnedFd>) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut connection = Connection::new(stream);
            connection.receive::<v1::LeaseRequest>().await.unwrap();
            let reply = v1::LeaseReply { reply: Some(reply) };
            connection.send(&reply, &descriptors).await.unwrap();
        });
        dir
    }

    async fn acquire(dir: &tempfile::TempDir) -> Result<(Lease, Granted), Failure> {
        let network = Network {
            subnets: vec!["10.96.0.0/16".parse().unwrap()],
            ..Network::default()
        };
        Lease::acquire(&dir.path().join("socket"), "default", &network, "a test").await
    }

    fn granted(descriptors: &[Descriptor]) -> Reply {
        Reply::Granted(v1::Granted {
            device: "kvpn0".into(),
            mtu: 65535,
            addresses: vec!["198.18.0.1".into()],
            upstreams: "/run/kvpn/upstreams".into(),
            resolver: Resolver::ResolvConf.into(),
            descriptors: descriptors.iter().map(|kind| i32::from(*kind)).collect(),
        })
    }

    #[tokio::test]
    async fn nobody_at_the_socket_means_that_the_daemon_does_not_run() {
        let dir = tempfile::tempdir().unwrap();
        let failure = acquire(&dir).await.err().unwrap();
        assert_eq!(failure.reason, Reason::DaemonNotRunning);
        assert!(failure.message.contains("/socket: "), "{failure:?}");
        assert_eq!(failure.next_step, "start it with `sudo kvpnd`");
    }

    #[tokio::test]
    async fn refusal_arrives_as_it_was_sent() {
        let sent = Failure::new(Reason::AlreadyConnected, "it is", "wait");
        let dir = daemon(
            Reply::Refused(v1::LeaseRefused {
                reason: sent.reason.to_string(),
                message: sent.message.clone(),
                next_step: sent.next_step.clone(),
            }),
            Vec::new(),
        );
        assert_eq!(acquire(&dir).await.err().unwrap(), sent);
    }

    #[tokio::test]
    async fn grant_is_sorted_by_what_its_descriptors_are() {
        let tun = File::open("/dev/null").unwrap().into();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = udp.local_addr().unwrap();
        let dir = daemon(
            granted(&[Descriptor::DnsUdp, Descriptor::Tun]),
            vec![udp.into(), tun],
        );
        let (mut lease, granted) = acquire(&dir).await.unwrap();
        assert_eq!(granted.device, "kvpn0");
        assert_eq!(granted.mtu, 65535);
        assert_eq!(granted.dns_udp[0].local_addr().unwrap(), address);
        assert!(granted.dns_tcp.is_empty());
        assert_eq!(granted.upstreams, Path::new("/run/kvpn/upstreams"));
        assert_eq!(granted.resolver, Resolver::ResolvConf);
        timeout(DEADLINE, lease.closed()).await.unwrap();
    }

    #[tokio::test]
    async fn grant_without_what_it_promises_is_a_failure() {
        let dir = daemon(granted(&[Descriptor::Tun]), Vec::new());
        let failure = acquire(&dir).await.err().unwrap();
        assert_eq!(failure.reason, Reason::HostRefused);
        assert!(
            failure.message.ends_with("0 descriptors of 1 arrived"),
            "{failure:?}"
        );
    }

    #[tokio::test]
    async fn mount_comes_with_its_device_and_is_closed_by_its_number() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut lease = Lease {
            connection: Connection::new(ours),
            unanswered: 0,
        };
        let mut root = Connection::new(theirs);
        let opened = Reply::MountOpened(v1::MountOpened { id: 7 });
        let answered = async {
            root.receive::<v1::LeaseRequest>().await.unwrap();
            let reply = v1::LeaseReply {
                reply: Some(opened),
            };
            let device = File::open("/dev/null").unwrap().into();
            root.send(&reply, &[device]).await.unwrap();
        };
        let (mount, ()) = tokio::join!(lease.open_mount(true), answered);
        assert_eq!(mount.unwrap().0, 7);
        let dir = tempfile::tempdir().unwrap();
        let answered = answer(&mut root, Reply::MountAttached(v1::MountAttached {}));
        let (attached, ()) = tokio::join!(lease.attach_mount(7, dir.path()), answered);
        let unseen = attached.unwrap_err();
        assert!(unseen.message.contains("mounts of its own"), "{unseen:?}");
        let missing = lease.attach_mount(7, &dir.path().join("missing")).await;
        assert_eq!(missing.unwrap_err().reason, Reason::Usage);
        let answered = answer(&mut root, Reply::MountClosed(v1::MountClosed {}));
        let (closed, ()) = tokio::join!(lease.close_mount(7), answered);
        closed.unwrap();
    }

    #[tokio::test]
    async fn answer_that_is_late_is_not_taken_for_the_next_one() {
        for is_waited_for in [false, true] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let mut lease = Lease {
                connection: Connection::new(ours),
                unanswered: 0,
            };
            let mut root = Connection::new(theirs);
            let network = Network::default();
            let failure = lease.set_network(&network).await.unwrap_err();
            assert_eq!(failure.reason, Reason::TimedOut);

            let late = Reply::Refused(v1::LeaseRefused::default());
            answer(&mut root, late).await;
            if is_waited_for {
                // As a session does that has nothing to ask.
                let closed = timeout(DEADLINE, lease.closed());
                closed.await.unwrap_err();
            }
            let answered = async {
                answer(&mut root, Reply::NetworkSet(v1::NetworkSet::default())).await;
            };
            let (set, ()) = tokio::join!(lease.set_network(&network), answered);
            set.unwrap();
        }
    }

    async fn answer(root: &mut Connection, reply: Reply) {
        root.receive::<v1::LeaseRequest>().await.unwrap();
        let reply = v1::LeaseReply { reply: Some(reply) };
        root.send(&reply, &[]).await.unwrap();
    }
}
