use kvpn_proto::v1;

use super::*;

const PORT: u16 = 8080;

/// Reports of a pod with these claims.
fn reports(claim_ids: &[&str]) -> Arc<Reports> {
    let reports = Arc::new(Reports::new());
    claim(&reports, claim_ids);
    reports
}

fn claim(reports: &Reports, claim_ids: &[&str]) {
    let copies = claim_ids.iter().map(|id| v1::Claim {
        id: (*id).to_owned(),
        container_port: PORT.into(),
        protocol: v1::Protocol::Tcp.into(),
        ..v1::Claim::default()
    });
    let claims = Claims::try_from(v1::WatchClaimsResponse {
        copies: copies.collect(),
        ..v1::WatchClaimsResponse::default()
    });
    reports.keep(&claims.unwrap());
}

fn entry(reports: &Arc<Reports>, claim_id: Option<&str>) -> Entry {
    Entry::new(reports, ([10, 0, 0, 1], 1).into(), PORT, claim_id)
}

fn counts(report: &ReportRequestsRequest, id: &str) -> Option<[u64; 3]> {
    let counted = report.counts.iter().find(|it| it.claim_id == id)?;
    let RequestCounts {
        matched,
        passed,
        failed,
        tls_passed: 0,
        tls_failed: 0,
    } = counted.counts?
    else {
        return None;
    };
    Some([matched, passed, failed])
}

fn read(reports: &Reports, readers: &[(u64, &str)]) {
    let readers = readers.iter().map(|(id, uid)| LogReader {
        id: *id,
        engagement_uid: (*uid).to_owned(),
    });
    reports.set_readers(readers.collect());
}

fn paths(decisions: &[Decision]) -> Vec<&str> {
    decisions.iter().map(|it| it.path.as_str()).collect()
}

#[test]
fn each_claim_counts_from_its_beginning_and_what_goes_elsewhere_has_passed_it() {
    let reports = reports(&["a/1"]);
    drop(entry(&reports, Some("a/1")));
    drop(entry(&reports, None));
    claim(&reports, &["a/1", "b/1"]);
    entry(&reports, Some("b/1")).has_failed();
    let report = reports.report().unwrap();
    assert_eq!(counts(&report, "a/1"), Some([1, 2, 0]));
    assert_eq!(counts(&report, "b/1"), Some([1, 0, 1]));
    assert_eq!(reports.report(), None, "nothing has changed");
    drop(entry(&reports, Some("b/1")));
    let report = reports.report().unwrap();
    assert_eq!(counts(&report, "a/1"), Some([1, 3, 0]));
    reports.forget_what_was_told();
    let report = reports.report().unwrap();
    assert_eq!(counts(&report, "b/1"), Some([2, 0, 1]));
}

#[test]
fn tls_that_nobody_could_look_into_is_counted_for_all_claims_in_force() {
    let reports = reports(&["a/1", "b/1"]);
    entry(&reports, None).is_tls();
    claim(&reports, &["b/1"]);
    entry(&reports, None).is_tls();
    assert_eq!(reports.tls_passed("a/1"), 1);
    assert_eq!(reports.tls_passed("b/1"), 2);
    let report = reports.report().unwrap();
    let told = report.counts.iter().map(|it| it.counts.unwrap().tls_passed);
    assert_eq!(told.sum::<u64>(), 3);
}

#[test]
fn tls_that_could_not_be_ended_is_counted_alone_and_told() {
    let reports = reports(&["a/1", "b/1"]);
    read(&reports, &[(1, "a")]);
    reports.note_failed_tls(([10, 0, 0, 1], 1).into(), PORT, Instant::now());
    assert_eq!(reports.tls_failed("a/1"), 1);
    let report = reports.report().unwrap();
    for counted in &report.counts {
        let wanted = RequestCounts {
            tls_failed: 1,
            ..RequestCounts::default()
        };
        assert_eq!(counted.counts, Some(wanted));
    }
    let told = &report.decisions[0];
    assert!(told.tls_failed && told.claim_id.is_empty());
    assert_eq!(told.taken_by(), Taker::Nobody);
}

#[test]
fn claim_that_comes_back_goes_on_and_what_passes_meanwhile_is_not_its() {
    let reports = reports(&["a/1"]);
    drop(entry(&reports, Some("a/1")));
    drop(entry(&reports, None));
    entry(&reports, Some("a/1")).has_failed();
    reports.rest();
    drop(entry(&reports, None));
    // What came last is told all the same.
    assert_eq!(counts(&reports.report().unwrap(), "a/1"), Some([2, 1, 1]));
    claim(&reports, &["a/1"]);
    drop(entry(&reports, None));
    drop(entry(&reports, Some("a/1")));
    assert_eq!(counts(&reports.report().unwrap(), "a/1"), Some([3, 2, 1]));
}

#[test]
fn reader_is_told_nothing_from_before_its_engagement() {
    let reports = reports(&["a/1"]);
    entry(&reports, None).asks("GET", "/others");
    claim(&reports, &["a/1", "b/1"]);
    entry(&reports, None).asks("GET", "/mine");
    read(&reports, &[(1, "b")]);
    let report = reports.report().unwrap();
    assert_eq!(paths(&report.earlier[0].decisions), ["/mine"]);
}

#[test]
fn request_is_told_once_with_its_first_final_answer() {
    let reports = reports(&["a/1"]);
    read(&reports, &[(1, "a")]);
    let mut entry = entry(&reports, None);
    entry.asks("GET", "/cart");
    entry.answered(200);
    entry.answered(500);
    drop(entry);
    let told = reports.report().unwrap().decisions;
    assert_eq!(told.len(), 1);
    assert_eq!((told[0].method.as_str(), told[0].status), ("GET", 200));
}

#[test]
fn reader_is_told_of_what_came_before_it() {
    let reports = reports(&["a/1"]);
    let ask = |path: &str| entry(&reports, None).asks("GET", path);
    ask("/1");
    read(&reports, &[(1, "a"), (2, "b")]);
    ask("/2");
    let report = reports.report().unwrap();
    assert_eq!(paths(&report.decisions), ["/2"]);
    let earlier = |index: usize| {
        let earlier: &EarlierDecisions = &report.earlier[index];
        (earlier.reader, paths(&earlier.decisions))
    };
    // One that reads no further is not told of the others.
    assert_eq!(earlier(0), (1, vec!["/1", "/2"]));
    assert_eq!(earlier(1), (2, vec![]), "its engagement has no claim here");
    ask("/3");
    // The first reader's is on its way.
    read(&reports, &[(1, "a"), (3, "a")]);
    let report = reports.report().unwrap();
    assert_eq!(paths(&report.decisions), ["/3"]);
    assert_eq!(paths(&report.earlier[0].decisions), ["/1", "/2", "/3"]);
}

#[test]
fn agent_that_is_started_again_numbers_on_and_says_that_it_counts_anew() {
    let latest = |since: u64| {
        let reports = &Arc::new(Reports::since(since));
        claim(reports, &["a/1"]);
        read(reports, &[(1, "a")]);
        drop(entry(reports, None));
        let report = reports.report().unwrap();
        (report.counted_since, report.decisions[0].number)
    };
    assert_eq!(latest(1_000), (1_000, 1_001));
    // So many requests a microsecond are not to be had.
    assert_eq!(latest(2_000), (2_000, 2_001));
}

#[test]
fn what_nobody_takes_in_time_is_left_out_and_counted() {
    let reports = reports(&["a/1"]);
    read(&reports, &[(1, "a")]);
    for _ in 0..MAX_WAITING + 7 {
        drop(entry(&reports, None));
    }
    let report = reports.report().unwrap();
    assert_eq!(report.decisions.len(), MAX_WAITING);
    assert_eq!(report.decisions_left_out, 7);
    assert!(reports.lock().earlier.len() <= REMEMBERED);
}

#[test]
fn long_paths_are_cut_between_characters() {
    let reports = reports(&["a/1"]);
    read(&reports, &[(1, "a")]);
    let path = format!("/{}", "\u{e4}".repeat(LONGEST_PATH));
    entry(&reports, None).asks(&"M".repeat(70_000), &path);
    let told = reports.report().unwrap().decisions;
    assert_eq!(told[0].path.len(), LONGEST_PATH - 1);
    assert_eq!(told[0].method.len(), LONGEST_METHOD);
}
