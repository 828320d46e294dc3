//! Answers, kept for their own time to live: the cluster's are dropped as soon as a
//! Service changes whose name they are about, the host's name servers' when these do.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{CNAME, PTR};
use hickory_proto::rr::{Name, RData};
use kvpn_proto::v1::ServiceName;

use super::rewrite;
use super::upstream::Question;

/// How many answers are kept.
const MAX_ANSWERS: usize = 8_192;

/// For how long after a change answers are not kept: the cluster's name servers
/// may hear of it later, and an answer from before may be on its way as long as
/// a question may take.
const UNSETTLED: Duration = Duration::from_secs(6);

/// The longest that an answer of the host's name servers is kept. Nobody tells of
/// their changes.
const MAX_FOREIGN: Duration = Duration::from_secs(60);

/// What is known of names; clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cache(Arc<Mutex<Inner>>);

/// Namespace and name of a Service.
type Service = (String, String);

#[derive(Debug, Default)]
struct Inner {
    /// Changes are heard of. While they are not, nothing is kept.
    is_live: bool,
    answers: HashMap<Question, Kept>,
    /// When Services have changed.
    changed: HashMap<Service, Instant>,
    all_changed: Option<Instant>,
}

#[derive(Debug)]
struct Kept {
    answer: Message,
    /// Whose names it is about.
    services: BTreeSet<Service>,
    since: Instant,
    until: Instant,
}

impl Cache {
    /// One that keeps what it is given, because there are no changes to hear of.
    pub(super) fn live() -> Self {
        let inner = Inner {
            is_live: true,
            ..Inner::default()
        };
        Self(Arc::new(Mutex::new(inner)))
    }

    /// From now on changes are heard of, or not any more. What was missed in
    /// between is not known, and an answer from then may be on its way.
    pub(crate) fn set_live(&self, is_live: bool, now: Instant) {
        let mut inner = self.lock();
        inner.is_live = is_live;
        inner.all_changed = Some(now);
        inner.answers.clear();
    }

    /// Drops what is known of a Service's names.
    pub(crate) fn forget(&self, service: ServiceName, now: Instant) {
        let mut inner = self.lock();
        let service = (service.namespace, service.name);
        inner
            .answers
            .retain(|_, kept| !kept.services.contains(&service));
        inner
            .changed
            .retain(|_, at| now.duration_since(*at) < UNSETTLED);
        inner.changed.insert(service, now);
    }

    /// Drops everything.
    pub(crate) fn forget_all(&self, now: Instant) {
        let mut inner = self.lock();
        inner.answers.clear();
        inner.all_changed = Some(now);
    }

    pub(super) fn get(&self, question: &Question, now: Instant) -> Option<Message> {
        let inner = self.lock();
        let kept = inner.answers.get(question)?;
        if now >= kept.until {
            return None;
        }
        let mut answer = kept.answer.clone();
        rewrite::age(&mut answer, now.duration_since(kept.since));
        Some(answer)
    }

    /// Keeps an answer for as long as it says. `domain` is the cluster's.
    pub(super) fn keep(&self, question: Question, domain: &Name, answer: &Message, now: Instant) {
        let Some(lifetime) = lifetime(answer) else {
            return;
        };
        let services = services(&question.name.clone().into(), answer, domain);
        // Of what it says that is not there nobody could tell that it has come.
        if !services.is_empty() || !answer.answers.is_empty() {
            self.put(question, answer, services, (now, lifetime));
        }
    }

    /// The same for an answer of the host's name servers. That there is no such name
    /// is not kept: it may be one of a network that is about to be joined.
    pub(super) fn keep_foreign(&self, question: Question, answer: &Message, now: Instant) {
        let is_kept = answer.metadata.response_code == ResponseCode::NoError
            && !answer.answers.is_empty()
            && !answer.metadata.truncation;
        if let Some(lifetime) = lifetime(answer).filter(|_| is_kept) {
            let lifetime = lifetime.min(MAX_FOREIGN);
            self.put(question, answer, BTreeSet::new(), (now, lifetime));
        }
    }

    fn put(
        &self,
        question: Question,
        answer: &Message,
        services: BTreeSet<Service>,
        (now, lifetime): (Instant, Duration),
    ) {
        let mut inner = self.lock();
        if !inner.is_live || !inner.is_settled(&services, now) {
            return;
        }
        if inner.answers.len() >= MAX_ANSWERS {
            inner.answers.retain(|_, kept| now < kept.until);
            if inner.answers.len() >= MAX_ANSWERS {
                inner.answers.clear();
            }
        }
        let kept = Kept {
            answer: answer.clone(),
            services,
            since: now,
            until: now + lifetime,
        };
        inner.answers.insert(question, kept);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn is_settled(&self, services: &BTreeSet<Service>, now: Instant) -> bool {
        let mut changed = services.iter().filter_map(|it| self.changed.get(it));
        let is_recent = |at: &Instant| now.duration_since(*at) < UNSETTLED;
        !changed.any(is_recent) && !self.all_changed.iter().any(is_recent)
    }
}

/// For how long an answer may be kept; `None` for one that may not. Of an answer
/// without records its authority says so (RFC 2308 section 5).
fn lifetime(answer: &Message) -> Option<Duration> {
    if !matches!(
        answer.metadata.response_code,
        ResponseCode::NoError | ResponseCode::NXDomain
    ) {
        return None;
    }
    let negative = answer.authorities.iter().filter_map(|record| {
        if let RData::SOA(soa) = &record.data {
            Some(record.ttl.min(soa.minimum))
        } else {
            None
        }
    });
    let seconds = match answer.answers.iter().map(|record| record.ttl).min() {
        // A CNAME that leads to nothing has both.
        Some(shortest) => negative.chain([shortest]).min(),
        None => negative.min(),
    }?;
    (seconds > 0).then(|| Duration::from_secs(seconds.into()))
}

/// The Services that an answer is about: that of the asked name, and those that
/// aliases and reverse names lead to.
fn services(asked: &Name, answer: &Message, domain: &Name) -> BTreeSet<Service> {
    let of_records = answer.answers.iter().flat_map(|record| {
        let target = if let RData::CNAME(CNAME(target)) | RData::PTR(PTR(target)) = &record.data {
            Some(target)
        } else {
            None
        };
        [Some(&record.name), target].into_iter().flatten()
    });
    let names = std::iter::once(asked).chain(of_records);
    names.filter_map(|name| service(name, domain)).collect()
}

/// The Service that a name is about: the two labels before `svc` and the domain
/// (<https://kubernetes.io/docs/concepts/services-networking/dns-pod-service/>).
fn service(name: &Name, domain: &Name) -> Option<Service> {
    let svc = Name::from_ascii("svc").ok()?.append_domain(domain).ok()?;
    if !svc.zone_of(name) {
        return None;
    }
    let label = |label: &[u8]| String::from_utf8_lossy(label).to_ascii_lowercase();
    let before = usize::from(name.num_labels() - svc.num_labels());
    let mut labels = name.iter().take(before).map(label).rev();
    let namespace = labels.next()?;
    Some((namespace, labels.next()?))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::op::OpCode;
    use hickory_proto::rr::rdata::{A, SOA};
    use hickory_proto::rr::{DNSClass, LowerName, Record, RecordType};

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn question(text: &str) -> Question {
        Question {
            name: LowerName::new(&name(text)),
            record_type: RecordType::A,
            class: DNSClass::IN,
            dnssec_ok: false,
            checking_disabled: false,
        }
    }

    fn web() -> Question {
        question("web.shop.svc.cluster.local.")
    }

    fn answer(ttl: u32) -> Message {
        let mut message = Message::response(1, OpCode::Query);
        let data = RData::A(A(Ipv4Addr::new(10, 96, 0, 7)));
        message.add_answer(Record::from_rdata(Name::root(), ttl, data));
        message
    }

    fn absent(ttl: u32, minimum: u32) -> Message {
        let mut message = Message::error_msg(1, OpCode::Query, ResponseCode::NXDomain);
        let soa = SOA::new(name("ns."), name("admin."), 1, 2, 3, 4, minimum);
        message.add_authority(Record::from_rdata(name("x."), ttl, RData::SOA(soa)));
        message
    }

    fn changed(namespace: &str, name: &str) -> ServiceName {
        ServiceName {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    struct Fixture {
        cache: Cache,
        now: Instant,
    }

    impl Fixture {
        fn new() -> Self {
            let cache = Cache::default();
            let now = Instant::now();
            cache.set_live(true, now);
            Self {
                cache,
                now: now + UNSETTLED,
            }
        }

        fn keep(&self, question: Question, answer: &Message, after: u64) {
            let domain = name("cluster.local.");
            self.cache.keep(question, &domain, answer, self.at(after));
        }

        fn has(&self, question: &Question, after: u64) -> bool {
            self.cache.get(question, self.at(after)).is_some()
        }

        fn at(&self, seconds: u64) -> Instant {
            self.now + Duration::from_secs(seconds)
        }
    }

    #[test]
    fn answers_live_as_long_as_they_say() {
        let it = Fixture::new();
        it.keep(web(), &answer(5), 0);
        assert!(it.has(&web(), 4));
        assert!(!it.has(&web(), 5));
        it.keep(web(), &answer(0), 10);
        assert!(!it.has(&web(), 10));

        it.keep(web(), &absent(30, 7), 20);
        assert!(it.has(&web(), 26));
        assert!(!it.has(&web(), 27));
    }

    #[test]
    fn answers_of_others_grow_old_and_are_not_kept_for_long() {
        let it = Fixture::new();
        it.cache.keep_foreign(web(), &answer(3_600), it.at(0));
        let kept = it.cache.get(&web(), it.at(59)).unwrap();
        assert_eq!(kept.answers[0].ttl, 3_541);
        assert!(!it.has(&web(), 60));
        it.cache.keep_foreign(web(), &absent(30, 30), it.at(100));
        assert!(!it.has(&web(), 100));
    }

    #[test]
    fn failures_and_answers_without_a_time_are_not_kept() {
        let it = Fixture::new();
        let failed = Message::error_msg(1, OpCode::Query, ResponseCode::ServFail);
        it.keep(web(), &failed, 0);
        it.keep(web(), &Message::response(1, OpCode::Query), 0);
        assert!(!it.has(&web(), 0));
    }

    #[test]
    fn a_change_drops_the_names_of_its_service_only() {
        let it = Fixture::new();
        let pod = question("db-0.web.shop.svc.cluster.local.");
        let others = [
            question("web.bank.svc.cluster.local."),
            question("api.shop.svc.cluster.local."),
            question("web.shop.example."),
        ];
        for question in others.iter().chain([&pod, &web()]) {
            it.keep(question.clone(), &answer(30), 0);
        }
        it.cache.forget(changed("shop", "web"), it.at(1));
        assert!(!it.has(&web(), 1));
        assert!(!it.has(&pod, 1));
        for other in &others {
            assert!(it.has(other, 1), "{other:?}");
        }
    }

    #[test]
    fn a_change_drops_what_leads_to_its_service() {
        let it = Fixture::new();
        let target = name("web.shop.svc.cluster.local.");
        let reverse = question("7.0.96.10.in-addr.arpa.");
        let alias = question("shop.bank.svc.cluster.local.");
        for (question, data) in [
            (&reverse, RData::PTR(PTR(target.clone()))),
            (&alias, RData::CNAME(CNAME(target))),
        ] {
            let mut answer = Message::response(1, OpCode::Query);
            let asked = question.name.clone().into();
            answer.add_answer(Record::from_rdata(asked, 30, data));
            it.keep(question.clone(), &answer, 0);
            assert!(it.has(question, 1));
        }
        it.cache.forget(changed("shop", "web"), it.at(1));
        assert!(!it.has(&reverse, 1) && !it.has(&alias, 1));
        it.keep(reverse.clone(), &absent(30, 30), 10);
        assert!(!it.has(&reverse, 10));
    }

    #[test]
    fn nothing_is_kept_until_a_change_has_settled() {
        let it = Fixture::new();
        it.cache.forget(changed("shop", "web"), it.at(0));
        it.keep(web(), &answer(30), 5);
        assert!(!it.has(&web(), 5));
        it.keep(web(), &answer(30), 6);
        assert!(it.has(&web(), 7));

        it.cache.forget_all(it.at(8));
        assert!(!it.has(&web(), 8));
        it.keep(web(), &answer(30), 9);
        assert!(!it.has(&web(), 9));
    }

    #[test]
    fn nothing_is_kept_while_changes_are_not_heard_of() {
        let it = Fixture::new();
        it.keep(web(), &answer(30), 0);
        it.cache.set_live(false, it.at(0));
        assert!(!it.has(&web(), 0));
        it.keep(web(), &answer(30), 0);
        assert!(!it.has(&web(), 0));
    }

    #[test]
    fn many_answers_make_room_for_new_ones() {
        let it = Fixture::new();
        for index in 0..=MAX_ANSWERS {
            it.keep(question(&format!("a{index}.")), &answer(30), 0);
        }
        assert!(it.cache.lock().answers.len() <= MAX_ANSWERS);
        assert!(it.has(&question(&format!("a{MAX_ANSWERS}.")), 0));
    }
}
