//! What becomes of requests: counted by claim, and told to who reads their log.

mod send;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use kvpn_proto::v1::{
    ClaimCounts, Decision, EarlierDecisions, LogReader, ReportRequestsRequest, RequestCounts, Taker,
};
use tokio::sync::Notify;

use crate::claims::Claims;
use crate::http::Server;

pub(crate) use send::send;

/// How many decisions are remembered for who reads the log later.
const REMEMBERED: usize = 100;

/// How many decisions may wait to be told.
const MAX_WAITING: usize = 1_000;

/// How much of a method and of a path is told, in bytes.
const LONGEST_METHOD: usize = 32;
const LONGEST_PATH: usize = 1 << 10;

/// How many claims are remembered, those included that are not in force any more.
const MAX_CLAIMS: usize = 1_000;

/// What became of requests since the agent has started.
#[derive(Debug)]
pub(crate) struct Reports {
    /// When it did: Unix time in microseconds.
    since: u64,
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
    /// The number of the latest decision.
    number: u64,
}

/// What is known of a claim.
#[derive(Debug)]
struct Counted {
    /// None for datagrams: those of one client count as one request, and are in no log.
    port: Option<u16>,
    matched: u64,
    failed: u64,
    tls_passed: u64,
    tls_failed: u64,
    /// Until it was in force the last time but this one.
    passed: u64,
    /// While it is in force: the requests of the port until then, and those of it that
    /// were its own.
    since: Option<(u64, u64)>,
    /// The number of the latest decision before it.
    after: u64,
    reported: RequestCounts,
}

impl Counted {
    fn passed(&self, total: u64) -> u64 {
        let now = self.since.map_or(0, |(before, matched)| {
            let (all, own) = (total - before, self.matched - matched);
            all.saturating_sub(own)
        });
        self.passed + now
    }

    fn counts(&self, total: u64) -> RequestCounts {
        RequestCounts {
            matched: self.matched,
            passed: self.passed(total),
            failed: self.failed,
            tls_passed: self.tls_passed,
            tls_failed: self.tls_failed,
        }
    }

    fn is_of(&self, port: u32) -> bool {
        self.port.map(u32::from) == Some(port)
    }

    /// Is in force from now on, or is not.
    fn turn(&mut self, is_in_force: bool, total: u64) {
        if self.since.is_some() != is_in_force {
            self.passed = self.passed(total);
            self.since = is_in_force.then_some((total, self.matched));
        }
    }
}

/// How many requests of a port there were.
fn total(totals: &HashMap<u16, u64>, port: Option<u16>) -> u64 {
    let total = port.and_then(|port| totals.get(&port));
    total.copied().unwrap_or_default()
}

impl State {
    /// The claims of an engagement.
    fn claims_of<'a>(&'a self, uid: &'a str) -> impl Iterator<Item = &'a Counted> + 'a {
        let claims = self.claims.iter();
        let its = claims.filter(move |(id, _)| {
            let rest = id.strip_prefix(uid);
            rest.is_some_and(|rest| rest.starts_with('/'))
        });
        its.map(|(_, claim)| claim)
    }

    fn is_logged(&self, port: u32) -> bool {
        let mut uids = self.readers.values();
        uids.any(|uid| self.claims_of(uid).any(|it| it.is_of(port)))
    }

    fn remember(&mut self, mut decision: Decision) {
        self.number += 1;
        decision.number = self.number;
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
            let counts = claim.counts(total(totals, claim.port));
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
            counted_since: 0,
        };
        (report != ReportRequestsRequest::default()).then_some(report)
    }

    fn missed(&self, reader: u64) -> EarlierDecisions {
        let uid = self.readers.get(&reader).map(String::as_str);
        let is_read = |decision: &&Decision| {
            let mut claims = uid.into_iter().flat_map(|uid| self.claims_of(uid));
            claims
                .any(|claim| claim.is_of(decision.container_port) && decision.number > claim.after)
        };
        let decisions = self.earlier.iter().filter(is_read).cloned().collect();
        EarlierDecisions { reader, decisions }
    }
}

impl Reports {
    pub(crate) fn new() -> Self {
        Self::since(microseconds())
    }

    fn since(since: u64) -> Self {
        Self {
            since,
            state: Mutex::new(State {
                // After all of an agent before it in the same container.
                number: since,
                ..State::default()
            }),
            changed: Notify::new(),
        }
    }

    /// Counts for these claims from now on; what was counted for those that were there
    /// already goes on.
    pub(crate) fn keep(&self, claims: &Claims) {
        let ids: HashMap<&str, Option<u16>> = claims.ids().collect();
        let mut state = self.lock();
        let state = &mut *state;
        for (id, claim) in &mut state.claims {
            let total = total(&state.totals, claim.port);
            claim.turn(ids.contains_key(id.as_str()), total);
        }
        if state.claims.len() > MAX_CLAIMS {
            state.claims.retain(|_, claim| claim.since.is_some());
        }
        for (id, port) in ids {
            let (total, after) = (total(&state.totals, port), state.number);
            let claim = || Counted {
                port,
                matched: 0,
                failed: 0,
                tls_passed: 0,
                tls_failed: 0,
                passed: 0,
                since: Some((total, 0)),
                after,
                reported: RequestCounts::default(),
            };
            state.claims.entry(id.to_owned()).or_insert_with(claim);
        }
    }

    /// No claim is in force any more.
    pub(crate) fn rest(&self) {
        self.keep(&Claims::default());
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
        let report = self.lock().report()?;
        Some(ReportRequestsRequest {
            counted_since: self.since,
            ..report
        })
    }

    /// Counts and tells a connection whose TLS could not be ended.
    pub(crate) fn note_failed_tls(self: &Arc<Self>, source: SocketAddr, port: u16, began: Instant) {
        self.count_tls(port, |claim| claim.tls_failed += 1);
        let mut entry = Entry::uncounted(self, source, port, None);
        entry.decision.tls_failed = true;
        entry.began = began;
    }

    #[cfg(test)]
    pub(crate) fn tls_passed(&self, claim_id: &str) -> u64 {
        self.lock().claims[claim_id].tls_passed
    }

    #[cfg(test)]
    pub(crate) fn tls_failed(&self, claim_id: &str) -> u64 {
        self.lock().claims[claim_id].tls_failed
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

    /// Counts a connection of TLS for all claims on the port.
    fn count_tls(&self, port: u16, count: impl Fn(&mut Counted)) {
        let mut state = self.lock();
        let claims = state.claims.values_mut();
        for claim in claims.filter(|claim| claim.port == Some(port) && claim.since.is_some()) {
            count(claim);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Counts what is in no log, for a claim: a copy of a request, or the datagrams of a
    /// client.
    pub(crate) fn count_unlogged(&self, claim_id: &str) {
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
        Self::uncounted(reports, source, container_port, claim_id)
    }

    fn uncounted(
        reports: &Arc<Reports>,
        source: SocketAddr,
        container_port: u16,
        claim_id: Option<&str>,
    ) -> Self {
        Self {
            reports: Some(Arc::clone(reports)),
            decision: Decision {
                came_at: i64::try_from(microseconds()).unwrap_or(i64::MAX),
                container_port: container_port.into(),
                source: Some(source.into()),
                claim_id: claim_id.unwrap_or_default().to_owned(),
                taken_by: Taker::Nobody.into(),
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
        start(method, LONGEST_METHOD).clone_into(&mut self.decision.method);
        start(path, LONGEST_PATH).clone_into(&mut self.decision.path);
    }

    /// It is a connection of TLS whose requests nobody can see.
    pub(crate) fn is_tls(&self) {
        let port = u16::try_from(self.decision.container_port);
        if let (Some(reports), Ok(port)) = (&self.reports, port) {
            reports.count_tls(port, |claim| claim.tls_passed += 1);
        }
    }

    /// It has gone there.
    pub(crate) fn taken_by(&mut self, server: &Server) {
        let taker = match server {
            Server::App => Taker::App,
            Server::Holder(_) => Taker::Laptop,
        };
        self.decision.taken_by = taker.into();
    }

    /// Whether the holder of the claim has not taken it.
    pub(crate) fn is_failed(&self) -> bool {
        self.decision.failed
    }

    /// The holder of the claim has not taken it, or not answered.
    pub(crate) fn has_failed(&mut self) {
        let is_apps = self.reports.is_some() && self.decision.claim_id.is_empty();
        if is_apps || std::mem::replace(&mut self.decision.failed, true) {
            return;
        }
        if let Some(reports) = &self.reports {
            reports.count_failure(&self.decision.claim_id);
        }
    }

    /// The final answer has begun.
    pub(crate) fn answered(&mut self, status: u16) {
        self.decision.status = status.into();
        self.tell();
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

/// Since 1970.
fn microseconds() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(now.unwrap_or_default().as_micros()).unwrap_or(u64::MAX)
}

/// The start of a text, of so many bytes at most.
fn start(text: &str, length: usize) -> &str {
    let mut end = text.len().min(length);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.tell();
    }
}

#[cfg(test)]
mod tests;
