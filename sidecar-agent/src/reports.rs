//! What becomes of requests: counted by claim, and told to who reads their log.

mod send;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use kvpn_proto::v1::{
    ClaimCounts, Decision, EarlierDecisions, LogReader, ReportRequestsRequest, RequestCounts,
};
use tokio::sync::Notify;

use crate::claims::Claims;

pub(crate) use send::send;

/// How many decisions are remembered for who reads the log later.
const REMEMBERED: usize = 100;

/// How many decisions may wait to be told.
const MAX_WAITING: usize = 1_000;

/// How much of a path is told, in bytes.
const LONGEST_PATH: usize = 1 << 10;

/// What became of requests since the agent has started.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    claims: HashMap<String, Counted>,
    /// How many requests there were, by port.
    totals: HashMap<u16, u64>,
    earlier: VecDeque<Decision>,
    /// UIDs of the engagements whose logs are read, by readers.
    readers: BTreeMap<u64, String>,
    /// Those of them that have not been told what they have missed.
    new_readers: BTreeSet<u64>,
    waiting: Vec<Decision>,
    left_out: u64,
}

/// What is known of a claim.
#[derive(Debug)]
struct Counted {
    port: u16,
    /// The requests of the port before it.
    before: u64,
    matched: u64,
    failed: u64,
    reported: RequestCounts,
}

impl Counted {
    fn counts(&self, total: u64) -> RequestCounts {
        RequestCounts {
            matched: self.matched,
            passed: (total - self.before).saturating_sub(self.matched),
            failed: self.failed,
        }
    }
}

impl State {
    fn total(&self, port: u16) -> u64 {
        self.totals.get(&port).copied().unwrap_or_default()
    }

    /// The ports at which an engagement has claims.
    fn ports<'a>(&'a self, uid: &'a str) -> impl Iterator<Item = u16> + 'a {
        let claims = self.claims.iter();
        let its = claims.filter(move |(id, _)| {
            let rest = id.strip_prefix(uid);
            rest.is_some_and(|rest| rest.starts_with('/'))
        });
        its.map(|(_, claim)| claim.port)
    }

    fn is_logged(&self, port: u32) -> bool {
        let mut uids = self.readers.values();
        uids.any(|uid| self.ports(uid).any(|it| u32::from(it) == port))
    }

    fn remember(&mut self, decision: Decision) {
        if self.is_logged(decision.container_port) {
            if self.waiting.len() < MAX_WAITING {
                self.waiting.push(decision.clone());
            } else {
                self.left_out += 1;
            }
        }
        if self.earlier.len() == REMEMBERED {
            self.earlier.pop_front();
        }
        self.earlier.push_back(decision);
    }

    /// What has not been told yet; nothing if that is nothing.
    fn report(&mut self) -> Option<ReportRequestsRequest> {
        let totals = &self.totals;
        let changed = |(id, claim): (&String, &mut Counted)| {
            let total = totals.get(&claim.port).copied().unwrap_or_default();
            let counts = claim.counts(total);
            (counts != claim.reported).then(|| {
                claim.reported = counts;
                ClaimCounts {
                    claim_id: id.clone(),
                    counts: Some(counts),
                }
            })
        };
        let counts = self.claims.iter_mut().filter_map(changed).collect();
        let earlier = std::mem::take(&mut self.new_readers).into_iter();
        let earlier = earlier.map(|reader| self.missed(reader)).collect();
        let report = ReportRequestsRequest {
            counts,
            decisions: std::mem::take(&mut self.waiting),
            decisions_left_out: std::mem::take(&mut self.left_out),
            earlier,
        };
        (report != ReportRequestsRequest::default()).then_some(report)
    }

    fn missed(&self, reader: u64) -> EarlierDecisions {
        let uid = self.readers.get(&reader).map(String::as_str);
        let ports: BTreeSet<u32> = uid
            .into_iter()
            .flat_map(|uid| self.ports(uid).map(u32::from))
            .collect();
        let is_read = |decision: &&Decision| ports.contains(&decision.container_port);
        let mut decisions: Vec<_> = self.earlier.iter().filter(is_read).cloned().collect();
        // The last of them wait, and are told to all readers.
        let waiting = self.waiting.iter().filter(is_read).count();
        decisions.truncate(decisions.len().saturating_sub(waiting));
        EarlierDecisions { reader, decisions }
    }
}

impl Reports {
    /// Counts for these claims from now on; what was counted for those that were there
    /// already goes on.
    pub(crate) fn keep(&self, claims: &Claims) {
        let mut state = self.lock();
        let ids: HashMap<&str, u16> = claims.ids().collect();
        state.claims.retain(|id, _| ids.contains_key(id.as_str()));
        for (id, port) in ids {
            if !state.claims.contains_key(id) {
                let claim = Counted {
                    port,
                    before: state.total(port),
                    matched: 0,
                    failed: 0,
                    reported: RequestCounts::default(),
                };
                state.claims.insert(id.to_owned(), claim);
            }
        }
    }

    /// Who reads logs from now on.
    fn set_readers(&self, readers: Vec<LogReader>) {
        let mut state = self.lock();
        let before = std::mem::take(&mut state.readers);
        for LogReader { id, engagement_uid } in readers {
            if !before.contains_key(&id) {
                state.new_readers.insert(id);
            }
            state.readers.insert(id, engagement_uid);
        }
        let State {
            readers,
            new_readers,
            ..
        } = &mut *state;
        new_readers.retain(|id| readers.contains_key(id));
        drop(state);
        self.changed.notify_one();
    }

    /// Begins anew with a traffic manager that knows nothing.
    fn forget_what_was_told(&self) {
        let mut state = self.lock();
        for claim in state.claims.values_mut() {
            claim.reported = RequestCounts::default();
        }
        state.readers.clear();
        state.new_readers.clear();
        state.waiting.clear();
        state.left_out = 0;
    }

    fn report(&self) -> Option<ReportRequestsRequest> {
        self.lock().report()
    }

    fn count(&self, port: u16, claim_id: Option<&str>) {
        let mut state = self.lock();
        *state.totals.entry(port).or_default() += 1;
        if let Some(claim) = claim_id.and_then(|id| state.claims.get_mut(id)) {
            claim.matched += 1;
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Counts a copy of a request, for the claim of its holder.
    pub(crate) fn count_copy(&self, claim_id: &str) {
        if let Some(claim) = self.lock().claims.get_mut(claim_id) {
            claim.matched += 1;
        }
        self.changed.notify_one();
    }

    /// The holder of the claim has not taken something.
    pub(crate) fn count_failure(&self, claim_id: &str) {
        if let Some(claim) = self.lock().claims.get_mut(claim_id) {
            claim.failed += 1;
        }
        self.changed.notify_one();
    }

    fn remember(&self, decision: Decision) {
        self.lock().remember(decision);
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request, or a connection whose requests are not looked at. What became of it is told
/// once that is known.
#[derive(Debug)]
pub(crate) struct Entry {
    /// None once it is told, and for what is no request of a client.
    reports: Option<Arc<Reports>>,
    decision: Decision,
    began: Instant,
}

impl Entry {
    /// Counts one that came just now, and goes to the holder of a claim or to the app.
    pub(crate) fn new(
        reports: &Arc<Reports>,
        source: SocketAddr,
        container_port: u16,
        claim_id: Option<&str>,
    ) -> Self {
        reports.count(container_port, claim_id);
        let came = SystemTime::now().duration_since(UNIX_EPOCH);
        let came_at = came.unwrap_or_default().as_micros();
        Self {
            reports: Some(Arc::clone(reports)),
            decision: Decision {
                came_at: i64::try_from(came_at).unwrap_or(i64::MAX),
                container_port: container_port.into(),
                source: Some(source.into()),
                claim_id: claim_id.unwrap_or_default().to_owned(),
                ..Decision::default()
            },
            began: Instant::now(),
        }
    }

    /// One of which nothing is told.
    pub(crate) fn untold() -> Self {
        Self {
            reports: None,
            decision: Decision::default(),
            began: Instant::now(),
        }
    }

    /// What it asks for.
    pub(crate) fn asks(&mut self, method: &str, path: &str) {
        let mut end = path.len().min(LONGEST_PATH);
        while !path.is_char_boundary(end) {
            end -= 1;
        }
        method.clone_into(&mut self.decision.method);
        path[..end].clone_into(&mut self.decision.path);
    }

    /// The holder of the claim has not taken it.
    pub(crate) fn has_failed(&mut self) {
        if let Some(reports) = &self.reports
            && !self.decision.failed
            && !self.decision.claim_id.is_empty()
        {
            self.decision.failed = true;
            reports.count_failure(&self.decision.claim_id);
        }
    }

    /// The final answer has begun.
    pub(crate) fn answered(&mut self, status: u16) {
        self.decision.status = status.into();
        self.tell();
    }

    /// Nobody may answer for the holder of the claim.
    pub(crate) fn refused(&mut self) {
        self.decision.refused = true;
        self.answered(503);
    }

    /// It is as far as is looked at.
    pub(crate) fn tell(&mut self) {
        if let Some(reports) = self.reports.take() {
            let elapsed = self.began.elapsed().as_micros();
            self.decision.microseconds = u64::try_from(elapsed).unwrap_or(u64::MAX);
            reports.remember(std::mem::take(&mut self.decision));
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.tell();
    }
}

#[cfg(test)]
mod tests;
