//! The connections of a session, and which of them a new flow takes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use kvpn_proto::flow::Frame;
use kvpn_tunnel::grpc::TunnelClient;
use kvpn_tunnel::relay::FrameStream;
use tonic::transport::Channel;

use super::Client;
use super::load::{Load, Taken};

/// The connections that are up.
#[derive(Clone, Debug, Default)]
pub(super) struct Connections(Arc<Mutex<Up>>);

#[derive(Debug, Default)]
struct Up {
    next: u64,
    /// Counts the control connections that there were.
    control: u64,
    open: Vec<Open>,
}

#[derive(Debug)]
struct Open {
    id: u64,
    role: Role,
    /// The control connection when this one was opened.
    control: u64,
    channel: Channel,
    load: Arc<Load>,
}

/// What a connection is for. Both carry flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    /// One of those that are there to carry flows.
    Extra,
    /// The one over which the session and the traffic manager talk.
    Control,
}

/// A client for one flow, on the connection that has most room for it. The
/// flow counts there until this is dropped.
pub(crate) struct FlowClient {
    tunnel: TunnelClient,
    _taken: Taken,
}

/// The entry of a connection that is up; dropping it takes it out.
#[derive(Debug)]
pub(super) struct Entry {
    connections: Connections,
    id: u64,
}

impl FlowClient {
    /// Begins the flow, as [`TunnelClient::carry`] does.
    pub(crate) fn carry(&self, open: Frame) -> FrameStream {
        self.tunnel.carry(open)
    }
}

impl Connections {
    /// Offers a connection to flows for as long as the answer lives.
    pub(super) fn add(&self, role: Role, channel: Channel, load: Arc<Load>) -> Entry {
        let mut up = self.lock();
        let id = up.next;
        up.next += 1;
        if role == Role::Control {
            up.control += 1;
        }
        let control = up.control;
        up.open.push(Open {
            id,
            role,
            control,
            channel,
            load,
        });
        drop(up);
        Entry {
            connections: self.clone(),
            id,
        }
    }

    /// A place for a flow that the host opens.
    pub(super) fn take(&self, now: Instant) -> Option<FlowClient> {
        take(self.lock().open.iter(), now)
    }

    /// A place for the answer to a dial, which the traffic manager expects
    /// where it asked: an older connection may lead to one that is going.
    pub(super) fn take_for_dial(&self, now: Instant) -> Option<FlowClient> {
        let up = self.lock();
        take(
            up.open.iter().filter(|open| open.control == up.control),
            now,
        )
    }

    /// A client on any connection, the control connection first.
    pub(super) fn any(&self) -> Option<Client> {
        let up = self.lock();
        let best = up.open.iter().max_by_key(|open| open.role);
        best.map(|open| Client::new(open.channel.clone()))
    }

    fn lock(&self) -> MutexGuard<'_, Up> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.connections
            .lock()
            .open
            .retain(|open| open.id != self.id);
    }
}

/// The connection with the fewest bytes of late, then with the fewest flows:
/// what a person waits for does not queue behind a download. The control
/// connection comes last, so that it answers fast.
fn take<'a>(open: impl Iterator<Item = &'a Open>, now: Instant) -> Option<FlowClient> {
    let best = open.min_by_key(|open| (open.load.rank(now), open.role, open.id))?;
    Some(FlowClient {
        tunnel: TunnelClient::new(best.channel.clone()),
        _taken: best.load.take(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvpn_tunnel::grpc;

    /// Connections that are never spoken on, with their loads.
    struct Rig {
        connections: Connections,
        entries: Vec<Entry>,
        loads: Vec<Arc<Load>>,
        now: Instant,
    }

    impl Rig {
        fn new(roles: &[Role]) -> Self {
            let mut rig = Self {
                connections: Connections::default(),
                entries: Vec::new(),
                loads: Vec::new(),
                now: Instant::now(),
            };
            for role in roles {
                rig.add(*role);
            }
            rig
        }

        fn add(&mut self, role: Role) {
            let channel = grpc::client_endpoint("x").connect_lazy();
            let load = Arc::new(Load::new(self.now));
            self.entries
                .push(self.connections.add(role, channel, load.clone()));
            self.loads.push(load);
        }

        /// Flows on each connection.
        fn flows(&self) -> Vec<usize> {
            self.loads
                .iter()
                .map(|load| load.rank(self.now).1)
                .collect()
        }
    }

    #[tokio::test]
    async fn flows_spread_over_all_connections_and_the_control_connection_comes_last() {
        let rig = Rig::new(&[Role::Control, Role::Extra, Role::Extra]);
        let mut taken = vec![rig.connections.take(rig.now)];
        assert_eq!(rig.flows(), [0, 1, 0]);
        taken.push(rig.connections.take(rig.now));
        taken.push(rig.connections.take(rig.now));
        assert_eq!(rig.flows(), [1, 1, 1]);
        drop(taken);
        assert_eq!(rig.flows(), [0, 0, 0]);
    }

    #[tokio::test]
    async fn a_flow_avoids_the_connection_of_a_download() {
        let rig = Rig::new(&[Role::Control, Role::Extra]);
        let _download = rig.connections.take(rig.now);
        rig.loads[1].carried(64 << 20, rig.now);
        let _flows = [(); 3].map(|()| rig.connections.take(rig.now));
        assert_eq!(rig.flows(), [3, 1]);
    }

    #[tokio::test]
    async fn a_broken_connection_gets_no_more_flows() {
        let mut rig = Rig::new(&[Role::Control, Role::Extra]);
        rig.entries.remove(1);
        let _flow = rig.connections.take(rig.now);
        assert_eq!(rig.flows(), [1, 0]);
        rig.entries.clear();
        assert!(rig.connections.take(rig.now).is_none());
        assert!(rig.connections.any().is_none());
    }

    #[tokio::test]
    async fn dials_are_answered_to_the_traffic_manager_that_asked() {
        let mut rig = Rig::new(&[Role::Control, Role::Extra]);
        rig.entries.remove(0);
        rig.add(Role::Control);
        let _answer = rig.connections.take_for_dial(rig.now);
        assert_eq!(rig.flows(), [0, 0, 1]);
        let _flow = rig.connections.take(rig.now);
        assert_eq!(rig.flows(), [0, 1, 1]);
    }
}
