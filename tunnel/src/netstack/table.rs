//! Which flow a packet belongs to.

use std::collections::{HashMap, hash_map};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::tcp::Tcp;
use super::udp::Udp;
use crate::flow::FiveTuple;

#[derive(Clone)]
pub(super) enum Entry {
    Tcp(Arc<Tcp>),
    Udp(Arc<Udp>),
}

impl Entry {
    fn five_tuple(&self) -> FiveTuple {
        match self {
            Self::Tcp(tcp) => tcp.five_tuple,
            Self::Udp(udp) => udp.five_tuple,
        }
    }
}

pub(super) struct Table {
    flows: Mutex<HashMap<FiveTuple, Entry>>,
    max_flows: usize,
    seed: u64,
    seeds_given: AtomicU64,
}

impl Table {
    pub(super) fn new(max_flows: usize, seed: u64) -> Self {
        Self {
            flows: Mutex::default(),
            max_flows,
            seed,
            seeds_given: AtomicU64::new(0),
        }
    }

    pub(super) fn get(&self, five_tuple: &FiveTuple) -> Option<Entry> {
        self.lock().get(five_tuple).cloned()
    }

    /// Adds a flow; `false` when its place is taken or there are too many.
    pub(super) fn insert(&self, entry: Entry) -> bool {
        let five_tuple = entry.five_tuple();
        let mut flows = self.lock();
        if flows.len() >= self.max_flows {
            tracing::debug!(flow = %five_tuple, "too many flows");
            return false;
        }
        match flows.entry(five_tuple) {
            hash_map::Entry::Vacant(place) => {
                place.insert(entry);
                true
            }
            hash_map::Entry::Occupied(_) => false,
        }
    }

    /// Removes this very flow, not a later one of the same five-tuple.
    pub(super) fn remove_tcp(&self, tcp: &Arc<Tcp>) {
        self.remove_if(
            &tcp.five_tuple,
            |entry| matches!(entry, Entry::Tcp(other) if Arc::ptr_eq(other, tcp)),
        );
    }

    /// Removes this very flow, not a later one of the same five-tuple.
    pub(super) fn remove_udp(&self, udp: &Arc<Udp>) {
        self.remove_if(
            &udp.five_tuple,
            |entry| matches!(entry, Entry::Udp(other) if Arc::ptr_eq(other, udp)),
        );
    }

    /// The TCP flows that there are.
    pub(super) fn tcp(&self) -> Vec<Arc<Tcp>> {
        let flows = self.lock();
        let tcp = flows.values().filter_map(|entry| match entry {
            Entry::Tcp(tcp) => Some(tcp.clone()),
            Entry::Udp(_) => None,
        });
        tcp.collect()
    }

    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    /// A seed for the initial sequence number of a connection.
    pub(super) fn seed(&self, five_tuple: &FiveTuple) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.seed.hash(&mut hasher);
        five_tuple.hash(&mut hasher);
        self.seeds_given
            .fetch_add(1, Ordering::Relaxed)
            .hash(&mut hasher);
        hasher.finish()
    }

    fn remove_if(&self, five_tuple: &FiveTuple, is_it: impl FnOnce(&Entry) -> bool) {
        let mut flows = self.lock();
        let removed = match flows.get(five_tuple) {
            Some(entry) if is_it(entry) => flows.remove(five_tuple),
            Some(_) | None => None,
        };
        // The last reference frees buffers, which need not happen under the lock.
        drop(flows);
        drop(removed);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<FiveTuple, Entry>> {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
