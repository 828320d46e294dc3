//! What a laptop reads of a container, by a reader in its pod.

use kvpn_proto::v1::watch_reads_request::answer::Outcome;
use kvpn_proto::v1::watch_reads_request::{Answer, Event as Said, Hello};
use kvpn_proto::v1::watch_reads_response::What;

use super::*;
use crate::state::testing::companion;
use kvpn_proto::crd::Verb;

const READER: &str = "kvpn-reader-bcdfg";

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

#[tokio::test]
async fn environment_comes_from_the_reader_of_the_engaged_pod() {
    let mut lab = Lab::start().await;
    let mut web = pod("shop", "web-1", "127.0.0.1");
    web.probes.insert("web".into(), Default::default());
    web.readers.push(companion(READER, "web", IMAGE));
    lab.hub.handle(Event::Pods(Change::Applied(web)));
    let mut client = lab.session().await;
    lab.authenticate(&mut client, "u-alice-1").await.unwrap();
    let dials = client.watch_dials(v1::WatchDialsRequest {}).await.unwrap();
    let _dials = dials.into_inner();
    let mut view = engagement("web-a", "alice", 8080, 0);
    view.spec.verb = Verb::Ingest;
    view.spec.ports.clear();
    view.spec.container = Some("web".into());
    view.spec.environment = true;
    lab.hub.handle(Event::Engagements(Change::Applied(view)));
    lab.hub.handle(Event::WorkloadResolved {
        engagement: Key::new("shop", "web-a"),
        uid: "uid-web-a".into(),
        resolution: selector("app", "web"),
    });
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
