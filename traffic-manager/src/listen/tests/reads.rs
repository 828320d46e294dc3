//! What a laptop reads of a container, by a reader in its pod.

use kvpn_proto::v1::watch_reads_request::answer::Outcome;
use kvpn_proto::v1::watch_reads_request::{Answer, Event as Said, Hello};
use kvpn_proto::v1::watch_reads_response::What;

use super::*;
use crate::state::testing::companion;
use kvpn_proto::crd::{EngagementSpec, FileAccess, Verb};

const READER: &str = "kvpn-reader-bcdfg";

/// How soon nobody is served files any more whose engagement is over.
const SOON: Duration = Duration::from_secs(3);

fn said(event: Said) -> v1::WatchReadsRequest {
    v1::WatchReadsRequest { event: Some(event) }
}

fn hello(container: &str) -> v1::WatchReadsRequest {
    said(Said::Hello(Hello {
        version: "1".into(),
        container: container.into(),
        ..Hello::default()
    }))
}

/// The engaged pod, with a reader.
fn read_pod() -> Event {
    let mut web = pod("shop", "web-1", "127.0.0.1");
    web.probes.insert("web".into(), Default::default());
    web.readers.push(companion(READER, "web", IMAGE));
    Event::Pods(Change::Applied(web))
}

/// An ingest of a user's, whose UID is its name with `uid-` before.
fn ingest(lab: &Lab, name: &str, user: &str, wants: impl Fn(&mut EngagementSpec)) {
    let mut view = engagement(name, user, 8080, 0);
    view.spec.verb = Verb::Ingest;
    view.spec.ports.clear();
    view.spec.container = Some("web".into());
    wants(&mut view.spec);
    lab.hub.handle(Event::Engagements(Change::Applied(view)));
    lab.hub.handle(Event::WorkloadResolved {
        engagement: Key::new("shop", name),
        uid: format!("uid-{name}"),
        resolution: selector("app", "web"),
    });
}

#[tokio::test]
async fn environment_comes_from_the_reader_of_the_engaged_pod() {
    let mut lab = Lab::start().await;
    lab.hub.handle(read_pod());
    let mut client = lab.session().await;
    lab.authenticate(&mut client, "u-alice-1").await.unwrap();
    let dials = client.watch_dials(v1::WatchDialsRequest {}).await.unwrap();
    let _dials = dials.into_inner();
    ingest(&lab, "web-a", "alice", |spec| spec.environment = true);
    let request = |uid: &str| v1::ReadEnvironmentRequest { uid: uid.into() };
    let early = client.read_environment(request("uid-web-a")).await;
    let early = Failure::from(early.unwrap_err());
    assert_eq!(early.reason, Reason::AgentNotReady);

    let (mut agent, _) = lab.agent().await;
    let (events, stream) = mpsc::channel(4);
    events.send(hello("kvpn-reader-other")).await.unwrap();
    let stranger = agent.watch_reads(ReceiverStream::new(stream)).await;
    let code = stranger.unwrap_err().code();
    assert_eq!(code, tonic::Code::PermissionDenied);
    let (events, stream) = mpsc::channel(4);
    events.send(hello(READER)).await.unwrap();
    let told = agent.watch_reads(ReceiverStream::new(stream)).await;
    let mut told = told.unwrap().into_inner();
    lab.wait_active("True").await;

    let answering = async {
        for outcome in [
            Outcome::Environment(v1::Environment {
                block: Bytes::from_static(b"A=1\0"),
            }),
            Outcome::Failed("it may not".into()),
        ] {
            let asked = timeout(LIMIT, told.message()).await.unwrap().unwrap();
            let Some(What::Environment(read_id)) = asked.unwrap().what else {
                panic!("nothing is asked");
            };
            let outcome = Some(outcome);
            let answer = Said::Answer(Answer { read_id, outcome });
            events.send(said(answer)).await.unwrap();
        }
    };
    let reading = async {
        let mut client = client.clone();
        let read = client.read_environment(request("uid-web-a")).await.unwrap();
        let read = read.into_inner();
        assert_eq!(read.environment.unwrap().block, &b"A=1\0"[..]);
        assert_eq!(read.pod, "web-1");
        let failed = client.read_environment(request("uid-web-a")).await;
        Failure::from(failed.unwrap_err())
    };
    let ((), failed) = tokio::join!(answering, reading);
    assert_eq!(failed.reason, Reason::AgentNotReady);
    assert!(failed.message.contains("it may not"), "{failed}");
    let unknown = client.read_environment(request("uid-web-b")).await;
    let unknown = Failure::from(unknown.unwrap_err());
    assert_eq!(unknown.reason, Reason::NoSuchEngagement);
}

#[tokio::test]
async fn files_come_from_the_reader_to_the_session_of_their_engagement_while_it_lasts() {
    let lab = Lab::start().await;
    lab.hub.handle(read_pod());
    let mut client = lab.session().await;
    lab.authenticate(&mut client, "u-alice-1").await.unwrap();
    let access = FileAccess {
        writable: false,
        root: true,
    };
    ingest(&lab, "web-a", "alice", |spec| spec.files = Some(access));
    ingest(&lab, "web-b", "bob", |spec| spec.files = Some(access));
    ingest(&lab, "web-c", "alice", |spec| spec.environment = true);
    let files = |name: &str| OpenTarget::Files {
        engagement_uid: format!("uid-{name}"),
    };
    let refused = async |name: &str| {
        let mut frames = client.tunnel.carry(Frame::Open(files(name)));
        let Frame::Failed(failure) = next_frame(&mut frames).await else {
            panic!("the files of {name} are served");
        };
        failure.error
    };
    assert_eq!(refused("web-a").await, DialError::TunnelLost);
    let (mut agent, agent_tunnel) = lab.agent().await;
    let (events, stream) = mpsc::channel(4);
    events.send(hello(READER)).await.unwrap();
    let told = agent.watch_reads(ReceiverStream::new(stream)).await;
    let mut told = told.unwrap().into_inner();

    // Another user's, one that asked for no files, and none at all.
    for name in ["web-b", "web-c", "web-d"] {
        assert_eq!(refused(name).await, DialError::Prohibited, "{name}");
    }
    let (to_reader, mut from_reader) = begin(&client.tunnel, files("web-a"));
    let asked = timeout(LIMIT, told.message()).await.unwrap().unwrap();
    let Some(What::Files(asked)) = asked.unwrap().what else {
        panic!("no files are asked for");
    };
    assert_eq!((asked.writable, asked.root), (false, true));
    // It is the reader's to answer, not a session's.
    let stolen = OpenTarget::Dial(asked.dial_id.clone());
    let mut stolen = client.tunnel.carry(Frame::Open(stolen));
    let stolen = next_frame(&mut stolen).await;
    assert!(matches!(stolen, Frame::Failed(_)), "{stolen:?}");
    let (to_laptop, mut from_laptop) = begin(&agent_tunnel, OpenTarget::Dial(asked.dial_id));
    to_laptop.send(Frame::Opened).await.unwrap();
    assert_eq!(from_reader.recv().await, Some(Frame::Opened));
    let request = Frame::Data(Bytes::from_static(b"request"));
    to_reader.send(request.clone()).await.unwrap();
    assert_eq!(from_laptop.recv().await, Some(request));

    let view = engagement("web-a", "alice", 8080, 0);
    lab.hub.handle(Event::Engagements(Change::Deleted(view)));

    let ended = async {
        while let Some(frame) = from_reader.recv().await {
            assert!(!matches!(frame, Frame::Data(_)), "{frame:?}");
        }
        while from_laptop.recv().await.is_some() {}
    };
    timeout(SOON, ended).await.expect("files are still served");
    assert_eq!(refused("web-a").await, DialError::Prohibited);
}
