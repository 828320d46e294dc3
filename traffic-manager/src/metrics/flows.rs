//! Counts flows by protocol and by who opened them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kvpn_proto::flow::Carried;
use kvpn_tunnel::relay::{FlowMeter, FrameStream};

/// Who opened a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    /// Into the cluster.
    Laptop,
    /// A connection to a pod that an agent has intercepted.
    Pod,
}

/// The flows of one protocol and origin.
pub(super) type Kind = (Carried, Origin);

/// Counts of all flows since the start.
#[derive(Debug, Default)]
pub(crate) struct FlowStats {
    kinds: Mutex<BTreeMap<Kind, Arc<KindStats>>>,
}

/// Counts of the flows of a kind.
#[derive(Debug, Default)]
pub(super) struct KindStats {
    open: AtomicI64,
    total: AtomicU64,
    meter: Arc<FlowMeter>,
}

/// A flow that counts as open until this is dropped.
#[derive(Debug)]
pub(crate) struct OpenFlow(Arc<KindStats>);

impl FlowStats {
    /// Counts a flow, and what its frames move from now on.
    pub(crate) fn begin(
        &self,
        carried: Carried,
        origin: Origin,
        frames: FrameStream,
    ) -> (OpenFlow, FrameStream) {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let stats = Arc::clone(kinds.entry((carried, origin)).or_default());
        drop(kinds);
        stats.open.fetch_add(1, Ordering::Relaxed);
        stats.total.fetch_add(1, Ordering::Relaxed);
        let frames = frames.metered(&stats.meter);
        (OpenFlow(stats), frames)
    }

    pub(super) fn kinds(&self) -> BTreeMap<Kind, Arc<KindStats>> {
        self.kinds
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl KindStats {
    pub(super) fn open(&self) -> i64 {
        self.open.load(Ordering::Relaxed)
    }

    pub(super) fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    pub(super) fn meter(&self) -> &FlowMeter {
        &self.meter
    }
}

impl Drop for OpenFlow {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}
