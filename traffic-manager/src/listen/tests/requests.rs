//! What becomes of requests, from an agent to a session.

use kvpn_proto::v1::{ClaimCounts, Decision, EarlierDecisions, RequestCounts, Taker};

use super::*;

fn decision(number: u64, port: u32) -> Decision {
    Decision {
        number,
        container_port: port,
        taken_by: Taker::App.into(),
        ..Decision::default()
    }
}

#[tokio::test]
async fn what_an_agent_tells_reaches_the_session_of_the_engagement_once() {
    let lab = Lab::start().await;
    let mut client = lab.session().await;
    lab.authenticate(&mut client, "u-alice-1").await.unwrap();
    let dials = client.watch_dials(v1::WatchDialsRequest {}).await.unwrap();
    let _dials = dials.into_inner();
    let view = engagement("web-a", "alice", 8080, 0);
    lab.hub
        .handle(Event::Engagements(Change::Applied(view.clone())));
    lab.hub.handle(Event::WorkloadResolved {
        engagement: Key::new("shop", "web-a"),
        uid: "uid-web-a".into(),
        resolution: selector("app", "web"),
    });

    let (mut agent, _) = lab.agent().await;
    let (reports, stream) = mpsc::channel(4);
    let early = agent.report_requests(futures::stream::empty()).await;
    let code = early.unwrap_err().code();
    assert_eq!(
        code,
        tonic::Code::FailedPrecondition,
        "it watches no claims"
    );
    let (events, watching) = mpsc::channel(4);
    events.send(hello(CONTAINER)).await.unwrap();
    let claims = agent.watch_claims(ReceiverStream::new(watching)).await;
    let mut claims = claims.unwrap().into_inner();
    let set = timeout(LIMIT, claims.message()).await.unwrap().unwrap();
    let claim_id = set.unwrap().claims[0].id.clone();
    let told = agent.report_requests(ReceiverStream::new(stream)).await;
    let mut told = told.unwrap().into_inner();
    let mut readers = async || {
        let told = timeout(LIMIT, told.message()).await.unwrap().unwrap();
        told.unwrap().readers
    };
    assert_eq!(readers().await, []);

    let request = |name: &str| v1::WatchRequestsRequest {
        namespace: "shop".into(),
        name: name.into(),
        earlier_only: false,
    };
    assert!(client.watch_requests(request("other")).await.is_err());
    let log = client.watch_requests(request("web-a")).await.unwrap();
    let mut log = log.into_inner();
    let read = readers().await;
    assert_eq!(read[0].engagement_uid, "uid-web-a");

    let counts = |id: &str, matched| ClaimCounts {
        claim_id: id.into(),
        counts: Some(RequestCounts {
            matched,
            ..RequestCounts::default()
        }),
    };
    let earlier = EarlierDecisions {
        reader: read[0].id,
        // The second is of a port that is none of the engagement's.
        decisions: vec![decision(1, 8080), decision(2, 9090)],
    };
    let report = v1::ReportRequestsRequest {
        counts: vec![counts(&claim_id, 5), counts("uid-web-a/9090/tcp", 7)],
        decisions: vec![decision(3, 8080)],
        decisions_left_out: 0,
        earlier: vec![earlier.clone()],
        counted_since: 1,
    };
    reports.send(report).await.unwrap();
    let again = v1::ReportRequestsRequest {
        earlier: vec![earlier],
        decisions: vec![decision(3, 8080), decision(4, 8080)],
        decisions_left_out: 2,
        // The agent was started again meanwhile.
        counts: vec![counts(&claim_id, 3)],
        counted_since: 2,
    };
    reports.send(again).await.unwrap();
    reports
        .send(v1::ReportRequestsRequest {
            decisions: vec![decision(7, 8080)],
            ..v1::ReportRequestsRequest::default()
        })
        .await
        .unwrap();
    let mut numbers = Vec::new();
    while numbers.last() != Some(&(7, 2)) {
        let line = timeout(LIMIT, log.message()).await.unwrap().unwrap();
        let line = line.unwrap();
        numbers.push((line.decision.unwrap().number, line.left_out));
    }
    assert_eq!(numbers, [(1, 0), (3, 0), (4, 0), (7, 2)]);
    let counted = client.count_requests(v1::CountRequestsRequest {}).await;
    let counted = counted.unwrap().into_inner().engagements;
    assert_eq!(counted[0].counts.unwrap().matched, 5 + 3);

    lab.hub.handle(Event::Engagements(Change::Deleted(view)));
    let over = timeout(LIMIT, log.message()).await.unwrap().unwrap_err();
    assert!(over.message().contains("has ended"), "{over}");
    assert_eq!(readers().await, []);
}

#[tokio::test]
async fn end_of_a_log_and_its_reader_who_asks_are_told_who_deleted_the_engagement() {
    let lab = Lab::start().await;
    let mut client = lab.session().await;
    lab.authenticate(&mut client, "u-alice-1").await.unwrap();
    let [view, other] = ["web-a", "web-b"].map(|name| engagement(name, "alice", 8080, 0));
    lab.hub
        .handle(Event::Engagements(Change::Applied(view.clone())));
    let request = v1::WatchRequestsRequest {
        namespace: "shop".into(),
        name: "web-a".into(),
        earlier_only: false,
    };
    let log = client.watch_requests(request).await.unwrap();
    let mut log = log.into_inner();
    lab.hub.note_deletion(deletion("uid-web-a"));
    lab.hub.note_deletion(Deletion {
        owner: "carol".into(),
        ..deletion("uid-web-b")
    });
    lab.hub.handle(Event::Engagements(Change::Deleted(view)));
    let over = timeout(LIMIT, log.message()).await.unwrap().unwrap_err();
    let words = "engagement shop/web-a was deleted by bob";
    assert_eq!(Failure::from(over).message, words);

    let mut tell = async |uid: String| {
        let told = client.tell_deletion(v1::TellDeletionRequest { uid }).await;
        told.unwrap().into_inner().user
    };
    assert_eq!(tell("uid-web-a".into()).await, "bob");
    assert_eq!(tell(other.uid).await, "", "it is not alice's");
}

#[tokio::test]
async fn session_gives_a_certificate_for_its_own_engagement_once_that_is_known() {
    let lab = Lab::start().await;
    let mut client = lab.session().await;
    let made = rcgen::generate_simple_self_signed(["shop".to_owned()]).unwrap();
    let (certificates, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let given = |uid: &str| v1::GiveTlsIdentityRequest {
        uid: uid.into(),
        identity: Some(v1::TlsIdentity {
            certificates: certificates.clone().into(),
            key: key.clone().into(),
        }),
    };
    let early = client.give_tls_identity(given("uid-web-a")).await;
    assert_eq!(early.unwrap_err().code(), tonic::Code::Unauthenticated);
    let mut client = lab.session().await;
    lab.authenticate(&mut client, "u-alice-1").await.unwrap();
    let mut give = async |uid: &str| {
        let known = client.give_tls_identity(given(uid)).await;
        known.unwrap().into_inner().known
    };
    assert!(!give("uid-web-a").await);
    for (name, user) in [("web-a", "alice"), ("web-b", "bob")] {
        let view = engagement(name, user, 8080, 0);
        lab.hub.handle(Event::Engagements(Change::Applied(view)));
    }
    assert!(give("uid-web-a").await);
    assert!(!give("uid-web-b").await, "it is bob's");

    let mut useless = given("uid-web-a");
    useless.identity = Some(v1::TlsIdentity::default());
    let refused = client.give_tls_identity(useless).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
}
