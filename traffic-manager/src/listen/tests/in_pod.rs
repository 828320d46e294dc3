//! Connections from a laptop to a port of a pod's localhost.

use kvpn_proto::flow::DialFailure;

use super::*;

const PORT: u16 = 9901;

fn in_pod(port: u16) -> OpenTarget {
    OpenTarget::InPod {
        engagement_uid: "uid-web-a".into(),
        port,
    }
}

#[tokio::test]
async fn connection_to_a_listed_port_is_dialled_by_the_pods_agent() {
    let mut lab = Lab::start().await;
    let mut client = lab.session().await;
    lab.authenticate(&mut client, "u-alice-1").await.unwrap();
    let dials = client.watch_dials(v1::WatchDialsRequest {}).await.unwrap();
    let _dials = dials.into_inner();
    let mut view = engagement("web-a", "alice", 8080, 0);
    view.spec.to_pod = vec![PORT];
    lab.hub.handle(Event::Engagements(Change::Applied(view)));
    lab.hub.handle(Event::WorkloadResolved {
        engagement: Key::new("shop", "web-a"),
        uid: "uid-web-a".into(),
        resolution: selector("app", "web"),
    });
    let failure = async |target: OpenTarget| {
        let mut frames = client.tunnel.carry(Frame::Open(target));
        let Frame::Failed(failure) = next_frame(&mut frames).await else {
            panic!("the dial was not refused");
        };
        failure
    };
    assert_eq!(failure(in_pod(PORT)).await.error, DialError::TunnelLost);

    let (mut agent, agent_tunnel) = lab.agent().await;
    let early = agent.watch_pod_dials(v1::WatchPodDialsRequest {}).await;
    let code = early.unwrap_err().code();
    assert_eq!(code, tonic::Code::FailedPrecondition);
    let (events, stream) = mpsc::channel(4);
    events.send(hello(CONTAINER)).await.unwrap();
    let claims = agent.watch_claims(ReceiverStream::new(stream)).await;
    let mut claims = claims.unwrap().into_inner();
    let set = timeout(LIMIT, claims.message()).await.unwrap().unwrap();
    let set = set.unwrap();
    assert_eq!(set.claims[0].pod_ports, [u32::from(PORT)]);
    let generation = set.generation;
    let applied = v1::watch_claims_request::Applied {
        generation,
        not_stopped: Vec::new(),
        without_tls: Vec::new(),
    };
    let applied = v1::watch_claims_request::Event::Applied(applied);
    events.send(claims_request(applied)).await.unwrap();
    lab.wait_active("True").await;
    let deaf = failure(in_pod(PORT)).await;
    assert!(deaf.detail.contains("an agent that dials"), "{deaf}");

    let asked = agent.watch_pod_dials(v1::WatchPodDialsRequest {}).await;
    let mut asked = asked.unwrap().into_inner();
    // Whoever else calls from the pod's address.
    let second = agent.watch_pod_dials(v1::WatchPodDialsRequest {}).await;
    let code = second.unwrap_err().code();
    assert_eq!(code, tonic::Code::FailedPrecondition);
    let unlisted = failure(in_pod(8080)).await;
    assert_eq!(unlisted.error, DialError::Prohibited);

    let (to_agent, mut from_agent) = begin(&client.tunnel, in_pod(PORT));
    let dial = timeout(LIMIT, asked.message()).await.unwrap().unwrap();
    let dial = dial.unwrap();
    assert_eq!(dial.port, u32::from(PORT));
    assert_eq!(dial.claim_id, "uid-web-a/8080/tcp");
    // It is the agent's to answer, not a session's.
    let stolen = failure(OpenTarget::Dial(dial.dial_id.clone())).await;
    assert_eq!(stolen.error, DialError::TunnelLost);
    let (to_laptop, mut from_laptop) = begin(&agent_tunnel, OpenTarget::Dial(dial.dial_id));
    to_laptop.send(Frame::Opened).await.unwrap();
    assert_eq!(from_agent.recv().await, Some(Frame::Opened));
    let ping = Frame::Data(Bytes::from_static(b"ping"));
    to_agent.send(ping.clone()).await.unwrap();
    assert_eq!(from_laptop.recv().await, Some(ping));
    to_laptop.send(Frame::Fin).await.unwrap();
    assert_eq!(from_agent.recv().await, Some(Frame::Fin));

    // A port that nobody listens on.
    let (_to_agent, mut from_agent) = begin(&client.tunnel, in_pod(PORT));
    let dial = timeout(LIMIT, asked.message()).await.unwrap().unwrap();
    let answer = OpenTarget::Dial(dial.unwrap().dial_id);
    let (to_laptop, _from_laptop) = begin(&agent_tunnel, answer);
    let refused = Frame::Failed(DialFailure::new(DialError::Refused, "nobody listens"));
    to_laptop.send(refused.clone()).await.unwrap();
    assert_eq!(from_agent.recv().await, Some(refused));
}
