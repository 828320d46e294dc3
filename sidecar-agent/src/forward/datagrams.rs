//! Datagrams that come to claimed UDP ports: each goes to the flow of its client.
//!
//! UDP knows no connections, so a claim is on every datagram from the moment on when it is
//! in force, and on none from when it is not.

mod copies;
mod course;
mod flow;
mod room;
mod sockets;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use kvpn_tunnel::grpc::TunnelClient;
use kvpn_tunnel::turns;
use tokio::net::UdpSocket;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

use self::course::Size;
use self::flow::Flow;
use self::room::{OVERHEAD, Place, Room};
use self::sockets::{Ends, Sockets};
use super::{Route, Shared};
use crate::claims::{Claims, DatagramClaims};

/// How many clients are served at a time, and how many of those that were silent for the
/// longest time have to go for another one.
const MAX_FLOWS: usize = 4_096;
const MADE_ROOM: usize = 256;

/// How many flows there are with those that have had to go and still bring answers, and how
/// many streams of copies.
const MAX_TASKS: usize = 2 * MAX_FLOWS;

/// How many datagrams wait for their flow.
const MAX_WAITING: usize = 64;

/// How many bytes of datagrams wait in all flows, how many for the tunnel to holders, and how
/// many copies do.
const ROOM: usize = 8 << 20;
const SENT: usize = 48 << 20;
const COPIED: usize = 16 << 20;

/// How many datagrams are taken before somebody else gets a turn.
const BATCH: usize = 32;

/// The largest payload: over IPv6 without jumbograms.
const MAX_DATAGRAM: usize = 65_527;

thread_local! {
    /// Where datagrams arrive.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A datagram that waits, and its place.
#[derive(Debug)]
struct Datagram {
    payload: Bytes,
    _place: Place,
}

impl Size for Datagram {
    fn size(&self) -> usize {
        self.payload.len()
    }
}

/// Whose datagrams make one flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    ends: Ends,
    /// The claimed port.
    port: u16,
}

/// The claims on one port, and the way to those who hold them.
struct Claimed {
    claims: DatagramClaims,
    tunnel: TunnelClient,
}

/// A flow, as the table knows it.
struct Known {
    datagrams: mpsc::Sender<Datagram>,
    /// Told from those of the same client before it.
    number: u64,
    latest: Instant,
}

/// The sockets and flows of all claimed ports.
pub(super) struct Datagrams {
    room: Arc<Room>,
    sent: Arc<Room>,
    copied: Arc<Room>,
    /// Who serves flows has one, and who carries copies one of the others: these are not to
    /// keep clients from being served.
    serving: Arc<Semaphore>,
    copying: Arc<Semaphore>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    /// Of every port that was ever claimed: one that is claimed again keeps its sockets.
    sockets: BTreeMap<u16, Sockets>,
    claimed: BTreeMap<u16, Arc<Claimed>>,
    /// The ports that were claimed when somebody said so last.
    told: BTreeSet<u16>,
    flows: HashMap<Key, Known>,
    latest: u64,
}

impl Datagrams {
    pub(super) fn new() -> Self {
        Self {
            room: Room::new(ROOM),
            sent: Room::new(SENT),
            copied: Room::new(COPIED),
            serving: Arc::new(Semaphore::new(MAX_TASKS)),
            copying: Arc::new(Semaphore::new(MAX_TASKS)),
            table: Mutex::default(),
        }
    }

    /// The ports that are claimed, each with that of its sockets.
    pub(super) fn redirected(&self) -> BTreeMap<u16, u16> {
        let table = self.lock();
        let claimed = table.claimed.keys();
        let socket = |port: &u16| Some((*port, table.sockets.get(port)?.port()));
        claimed.filter_map(socket).collect()
    }

    /// The ports that are claimed, or were when somebody said so last.
    pub(super) fn told(&self) -> BTreeSet<u16> {
        self.lock().told.clone()
    }

    /// The ports that ever were, each with that of its sockets.
    pub(super) fn answered(&self) -> BTreeMap<u16, u16> {
        let table = self.lock();
        let sockets = table.sockets.iter();
        sockets.map(|(port, it)| (*port, it.port())).collect()
    }

    /// Says who gets datagrams from now on: the holders of claims, or the app alone. Flows
    /// for which that is something else end, and begin anew.
    pub(super) fn set_route(&self, route: Option<&Route>) {
        let mut table = self.lock();
        let claims = route.into_iter().flat_map(|route| {
            let claimed = |claims: &DatagramClaims| Claimed {
                claims: claims.clone(),
                tunnel: route.tunnel.clone(),
            };
            let ports = route.claims.datagrams().iter();
            ports.map(move |(port, claims)| (*port, Arc::new(claimed(claims))))
        });
        let claimed: BTreeMap<u16, Arc<Claimed>> = claims.collect();
        let before = std::mem::replace(&mut table.claimed, claimed);
        let Table {
            claimed,
            told,
            flows,
            ..
        } = &mut *table;
        if route.is_some() {
            *told = claimed.keys().copied().collect();
        }
        let of = |port: &u16| (before.get(port), claimed.get(port));
        flows.retain(|key, _| match of(&key.port) {
            (Some(before), Some(now)) => before.claims == now.claims,
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        });
    }

    /// Gives a client's datagram a place to wait, if there is one.
    fn hold(&self, client: SocketAddr, payload: Bytes) -> Option<Datagram> {
        let place = self.room.take(client.ip(), payload.len())?;
        Some(Datagram {
            payload,
            _place: place,
        })
    }

    /// Ends a flow, unless something has come for it meanwhile.
    fn end(&self, key: &Key, number: u64, is_empty: impl FnOnce() -> bool) -> bool {
        let mut table = self.lock();
        // Datagrams are given under this lock.
        if !is_empty() {
            return false;
        }
        if table.flows.get(key).is_some_and(|it| it.number == number) {
            table.flows.remove(key);
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Has sockets for the datagrams of all claimed ports.
pub(super) fn bind(shared: &Arc<Shared>, claims: &Claims) -> io::Result<()> {
    let mut table = shared.datagrams.lock();
    for port in claims.datagrams().keys() {
        if table.sockets.contains_key(port) {
            continue;
        }
        let sockets = Sockets::bind()?;
        for socket in sockets.each() {
            tokio::spawn(receive(socket, *port, Arc::clone(shared)));
        }
        table.sockets.insert(*port, sockets);
    }
    Ok(())
}

/// Takes datagrams for as long as this process lives.
async fn receive(socket: Arc<UdpSocket>, port: u16, shared: Arc<Shared>) {
    let mut control = sockets::control();
    loop {
        let mut taken = 0;
        let mut outcome = socket.readable().await;
        for _ in 0..BATCH {
            let received = outcome.and_then(|()| {
                with_scratch(|scratch| sockets::try_recv(&socket, scratch, &mut control))
            });
            outcome = match received {
                Ok(Some((ends, payload))) => {
                    taken += payload.len() + OVERHEAD;
                    give(&shared, &socket, Key { ends, port }, payload);
                    Ok(())
                }
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            if outcome.is_err() {
                break;
            }
        }
        match outcome {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                warn!(%error, port, "Cannot receive datagrams");
                sleep(Duration::from_millis(50)).await;
            }
            Ok(()) | Err(_) => turns::pay(taken).await,
        }
    }
}

/// Gives a datagram to its flow, or begins one.
fn give(shared: &Arc<Shared>, socket: &Arc<UdpSocket>, key: Key, payload: Bytes) {
    let Some(mut datagram) = shared.datagrams.hold(key.ends.client, payload) else {
        debug!(port = key.port, "A datagram is lost: too many wait");
        return;
    };
    let mut table = shared.datagrams.lock();
    if let Some(known) = table.flows.get_mut(&key) {
        known.latest = Instant::now();
        datagram = match known.datagrams.try_send(datagram) {
            Ok(()) => return,
            Err(TrySendError::Full(_)) => return debug!("A datagram is lost: its flow is slow"),
            Err(TrySendError::Closed(datagram)) => datagram,
        };
    }
    let Ok(permit) = Arc::clone(&shared.datagrams.serving).try_acquire_owned() else {
        debug!(port = key.port, "A datagram is lost: too many flows");
        return;
    };
    table.latest += 1;
    let number = table.latest;
    let claimed = table.claimed.get(&key.port).cloned();
    let (datagrams, taken) = mpsc::channel(MAX_WAITING);
    // There is room for the first.
    drop(datagrams.try_send(datagram));
    if table.flows.len() >= MAX_FLOWS {
        make_room(&mut table.flows);
    }
    let known = Known {
        datagrams,
        number,
        latest: Instant::now(),
    };
    table.flows.insert(key, known);
    drop(table);
    let flow = Flow::new(Arc::clone(shared), Arc::clone(socket), key, number, claimed);
    shared.flows.spawn(async move {
        flow.run(taken).await;
        drop(permit);
    });
}

/// Ends the flows whose clients were silent for the longest time.
fn make_room(flows: &mut HashMap<Key, Known>) {
    let mut by_age: Vec<_> = flows.iter().map(|(key, it)| (it.latest, *key)).collect();
    by_age.select_nth_unstable_by_key(MADE_ROOM - 1, |(latest, _)| *latest);
    for (_, key) in &by_age[..MADE_ROOM] {
        flows.remove(key);
    }
}

/// Lends room for the longest datagram.
fn with_scratch<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    let mut scratch = SCRATCH.take();
    scratch.resize(MAX_DATAGRAM, 0);
    let done = work(&mut scratch);
    SCRATCH.set(scratch);
    done
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn those_that_were_silent_for_the_longest_time_make_room() {
        let start = Instant::now();
        let key = |number: u16| Key {
            ends: Ends {
                client: (Ipv4Addr::LOCALHOST, number).into(),
                local: Ipv4Addr::LOCALHOST.into(),
            },
            port: 53,
        };
        let count = u16::try_from(MADE_ROOM).unwrap() + 10;
        let known = |age: u16| Known {
            datagrams: mpsc::channel(1).0,
            number: 0,
            latest: start + Duration::from_secs(age.into()),
        };
        let mut flows: HashMap<_, _> = (0..count).map(|age| (key(age), known(age))).collect();
        make_room(&mut flows);
        let mut left: Vec<u16> = flows.keys().map(|key| key.ends.client.port()).collect();
        left.sort_unstable();
        assert_eq!(left, (count - 10..count).collect::<Vec<_>>());
    }
}
