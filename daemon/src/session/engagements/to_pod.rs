//! Ports of this laptop that lead to the localhost of an engaged pod.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use kvpn_proto::flow::{Carried, OpenTarget, Protocol, port};
use kvpn_proto::{Failure, Reason, v1};
use kvpn_tunnel::relay;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::{debug, warn};

use super::table::Key;
use crate::datapath::dial;
use crate::datapath::registry::{Engaged, FlowAbout, FlowRegistry};
use crate::session::manager::Manager;

/// How long until it is tried to accept again, after that has failed.
const AGAIN: Duration = Duration::from_millis(50);

/// How many an engagement may have, as the custom resource has it.
const MOST: usize = 64;

/// One `--to-pod`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ToPod {
    pub(crate) local: u16,
    /// TCP, in the pod.
    pub(crate) port: u16,
}

impl ToPod {
    /// Reads all that the user wrote; each local port leads to one port.
    pub(crate) fn read_all(all: &[v1::ToPod]) -> Result<Vec<Self>, Failure> {
        if all.len() > MOST {
            return Err(Failure::new(
                Reason::Usage,
                format!("--to-pod is given {} times", all.len()),
                format!("give it at most {MOST} times"),
            ));
        }
        let mut read: Vec<Self> = Vec::new();
        for to_pod in all {
            let next = Self::try_from(to_pod)?;
            if read.iter().any(|before| before.local == next.local) {
                return Err(Failure::new(
                    Reason::Usage,
                    format!("--to-pod names the local port {} twice", next.local),
                    format!(
                        "name each once, and another for another port, such as --to-pod 15000:{}",
                        next.port
                    ),
                ));
            }
            read.push(next);
        }
        Ok(read)
    }

    pub(super) fn local(self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.local).into()
    }

    /// Whether connections that are to be handled at that address would come into the pod.
    fn is_at(self, handler: SocketAddr) -> bool {
        let ip = handler.ip().to_canonical();
        // Who connects to no address in particular connects to localhost.
        handler.port() == self.local && (ip == Ipv4Addr::LOCALHOST || ip.is_unspecified())
    }

    pub(super) fn refused(self, why: &str) -> Failure {
        Failure::new(
            Reason::Usage,
            format!("--to-pod cannot listen at {}: {why}", self.local()),
            format!(
                "choose another local port, such as --to-pod 15000:{}",
                self.port
            ),
        )
    }
}

/// The one that is where the cluster's connections are to be handled. Whoever may connect to
/// the engaged port would reach the pod's localhost by it.
pub(super) fn in_the_way(
    all: &[ToPod],
    handlers: impl IntoIterator<Item = (SocketAddr, Protocol)>,
) -> Option<ToPod> {
    let mut handlers = handlers.into_iter();
    handlers.find_map(|(handler, protocol)| {
        let mut all = all.iter().filter(|_| protocol == Protocol::Tcp);
        all.find(|it| it.is_at(handler)).copied()
    })
}

impl TryFrom<&v1::ToPod> for ToPod {
    type Error = Failure;

    fn try_from(to_pod: &v1::ToPod) -> Result<Self, Failure> {
        let read = |number| {
            port(number).map_err(|error| {
                let next_step = "write ports such as --to-pod 9901 or --to-pod 15000:9901";
                Failure::new(Reason::Usage, error.to_string(), next_step)
            })
        };
        Ok(Self {
            local: read(to_pod.local)?,
            port: read(to_pod.port)?,
        })
    }
}

impl From<ToPod> for v1::ToPod {
    fn from(to_pod: ToPod) -> Self {
        Self {
            local: to_pod.local.into(),
            port: to_pod.port.into(),
        }
    }
}

/// Sockets that listen already; nobody is let in yet.
pub(super) struct Doors(Vec<(TcpListener, u16)>);

/// Where the doors lead.
pub(super) struct Way {
    pub(super) manager: Manager,
    pub(super) registry: FlowRegistry,
    pub(super) engagement: Key,
    pub(super) engagement_uid: String,
}

impl Doors {
    /// `handlers` are where local processes are to listen.
    pub(super) async fn bind(
        ports: &[ToPod],
        handlers: &[(SocketAddr, Protocol)],
    ) -> Result<Self, Failure> {
        if let Some(to_pod) = in_the_way(ports, handlers.iter().copied()) {
            return Err(to_pod.refused("--port has it for what answers there"));
        }
        let mut listeners = Vec::new();
        for to_pod in ports {
            let bound = TcpListener::bind(to_pod.local()).await;
            let listener = bound.map_err(|error| match error.kind() == ErrorKind::AddrInUse {
                true => to_pod.refused("the address is in use"),
                false => to_pod.refused(&error.to_string()),
            })?;
            listeners.push((listener, to_pod.port));
        }
        Ok(Self(listeners))
    }

    /// Lets connections in, until what is returned is dropped; that resets them.
    pub(super) fn open(self, way: Way) -> JoinSet<()> {
        let way = Arc::new(way);
        let mut open = JoinSet::new();
        for (listener, port) in self.0 {
            open.spawn(accept(listener, port, Arc::clone(&way)));
        }
        open
    }
}

async fn accept(listener: TcpListener, port: u16, way: Arc<Way>) {
    let mut flows = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, host)) => {
                    flows.spawn(carry(socket, host, port, Arc::clone(&way)));
                }
                Err(error) => {
                    warn!(%error, "A connection to a pod cannot be accepted");
                    sleep(AGAIN).await;
                }
            },
            // Forgets those that have ended.
            Some(_) = flows.join_next() => {}
        }
    }
}

async fn carry(socket: TcpStream, host: SocketAddr, port: u16, way: Arc<Way>) {
    // Whoever has connected already cannot be told of a failure in another way.
    relay::abort_on_close(&socket, true);
    if let Err(error) = socket.set_nodelay(true) {
        debug!(%error, "Cannot set TCP_NODELAY");
    }
    let engagement = &way.engagement;
    let record = way.registry.begin(FlowAbout {
        protocol: Carried::Tcp,
        host,
        // As the pod sees it.
        cluster: (Ipv4Addr::LOCALHOST, port).into(),
        engaged: Some(Engaged {
            namespace: engagement.namespace.clone(),
            engagement: engagement.name.clone(),
            pod: None,
        }),
    });
    let target = OpenTarget::InPod {
        engagement_uid: way.engagement_uid.clone(),
        port,
    };
    let (frames, _place) = match dial(&way.manager, target).await {
        Ok((frames, place)) => (record.opened(frames), place),
        Err(failure) => {
            debug!(%engagement, port, error = %failure, "A port of the pod cannot be had");
            return record.failed(failure.error);
        }
    };
    match relay::splice_tcp(socket, frames).await {
        Ok(moved) => debug!(%engagement, port, moved.sent, moved.received, "Flow ended"),
        Err(error) => debug!(%engagement, port, %error, "Flow broke"),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::session::cluster_info::ClusterInfo;

    fn way(registry: &FlowRegistry) -> Way {
        Way {
            manager: Manager::down(ClusterInfo::default()),
            registry: registry.clone(),
            engagement: Key::new("shop", "web-x"),
            engagement_uid: "uid".into(),
        }
    }

    /// A port that is free, or was a moment ago.
    async fn free() -> ToPod {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let local = listener.local_addr().unwrap().port();
        ToPod { local, port: 9901 }
    }

    #[tokio::test]
    async fn a_local_port_that_is_taken_is_told_with_a_way_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let local = listener.local_addr().unwrap().port();
        let to_pod = ToPod { local, port: 9901 };
        let failure = Doors::bind(&[to_pod], &[]).await.err().unwrap();
        assert_eq!(failure.reason, Reason::Usage);
        let message = format!("--to-pod cannot listen at 127.0.0.1:{local}: the address is in use");
        assert_eq!(failure.message, message);
        assert!(failure.next_step.contains("--to-pod 15000:9901"));
        drop(listener);
        let handlers = [(to_pod.local(), Protocol::Tcp)];
        let failure = Doors::bind(&[to_pod], &handlers).await.err().unwrap();
        assert!(failure.message.contains("--port has it"), "{failure}");
    }

    #[test]
    fn handlers_at_any_address_of_localhost_are_in_the_way() {
        let all = [9901, 15000].map(|local| ToPod { local, port: 9901 });
        let found = |handler: &str, protocol| {
            let handler = (handler.parse().unwrap(), protocol);
            in_the_way(&all, [handler]).map(|it| it.local)
        };
        for at in ["127.0.0.1", "0.0.0.0", "[::]", "[::ffff:127.0.0.1]"] {
            let handler = format!("{at}:15000");
            assert_eq!(found(&handler, Protocol::Tcp), Some(15000), "{at}");
            assert_eq!(found(&handler, Protocol::Udp), None, "{at}");
            assert_eq!(found(&format!("{at}:8080"), Protocol::Tcp), None, "{at}");
        }
        assert_eq!(found("192.0.2.1:15000", Protocol::Tcp), None);
        assert_eq!(found("[::1]:15000", Protocol::Tcp), None);
    }

    #[test]
    fn each_local_port_is_named_once_and_not_too_many_are() {
        let to_pod = |local, port| v1::ToPod { local, port };
        let read = |all: &[v1::ToPod]| ToPod::read_all(all).map_err(|failure| failure.message);
        // One port of the pod may be reached by several.
        let two = read(&[to_pod(1, 9901), to_pod(2, 9901)]).unwrap();
        assert_eq!(two.len(), 2);
        let twice = read(&[to_pod(9901, 9901), to_pod(9901, 9902)]);
        assert_eq!(
            twice,
            Err("--to-pod names the local port 9901 twice".to_owned())
        );
        let many = |number: u32| (1..=number).map(|it| to_pod(it, it)).collect::<Vec<_>>();
        assert!(read(&many(64)).is_ok());
        let too_many = Err("--to-pod is given 65 times".to_owned());
        assert_eq!(read(&many(65)), too_many);
    }

    #[tokio::test]
    async fn connection_is_reset_and_told_of_when_the_port_cannot_be_had() {
        let registry = FlowRegistry::default();
        let to_pod = free().await;
        let doors = Doors::bind(&[to_pod], &[]).await.unwrap();
        let _open = doors.open(way(&registry));
        let mut client = TcpStream::connect(to_pod.local()).await.unwrap();
        let error = client.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        let flows = registry.look(true, std::time::Instant::now());
        assert_eq!(flows[0].about.engaged.as_ref().unwrap().engagement, "web-x");
        assert_eq!(registry.totals().dials_failed, 1);
    }

    #[tokio::test]
    async fn nobody_listens_once_the_engagement_is_over() {
        let to_pod = free().await;
        let doors = Doors::bind(&[to_pod], &[]).await.unwrap();
        let mut open = doors.open(way(&FlowRegistry::default()));
        open.shutdown().await;
        let error = TcpStream::connect(to_pod.local()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
}
