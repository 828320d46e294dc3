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

/// One `--to-pod`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ToPod {
    pub(crate) local: u16,
    /// TCP, in the pod.
    pub(crate) port: u16,
}

impl ToPod {
    pub(super) fn local(self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.local).into()
    }
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
        let mut listeners = Vec::new();
        for to_pod in ports {
            let local = to_pod.local();
            let refused = |why: &str| {
                Failure::new(
                    Reason::Usage,
                    format!("--to-pod cannot listen at {local}: {why}"),
                    format!(
                        "choose another local port, such as --to-pod 15000:{}",
                        to_pod.port
                    ),
                )
            };
            if handlers.contains(&(local, Protocol::Tcp)) {
                return Err(refused("--port has it for what answers there"));
            }
            let bound = TcpListener::bind(local).await;
            let listener = bound.map_err(|error| match error.kind() == ErrorKind::AddrInUse {
                true => refused("the address is in use"),
                false => refused(&error.to_string()),
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
            warn!(%engagement, port, error = %failure, "A port of the pod cannot be had");
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
