//! What users hear while an intercept comes about.

use super::*;
use kvpn_proto::crd::WorkloadKind;

fn web() -> WorkloadRef {
    WorkloadRef {
        kind: WorkloadKind::Deployment,
        name: "web".into(),
    }
}

fn waiting(agents_ready: bool, pods_selected: u32) -> Observed {
    Observed {
        progress: Progress::Waiting {
            message: "2 of 3 agents are up".into(),
            agents_ready,
        },
        environment: Observed::default().environment,
        pods_selected,
        pods_covered: 0,
    }
}

#[test]
fn names_tell_workload_and_user() {
    let key = new_key("shop", &web(), "oidc:Ann").unwrap();
    assert!(key.name.starts_with("web-oidc-ann-"), "{}", key.name);
    assert_ne!(new_key("shop", &web(), "oidc:Ann").unwrap(), key);
}

#[test]
fn why_nothing_is_rolled_out_is_told() {
    let refused = Failure::new(Reason::AgentRefused, "refused", "ask");
    let of = |kind| WorkloadRef { kind, ..web() };
    let told = in_vain(refused.clone(), &of(WorkloadKind::Job));
    assert_eq!(told.message, "refused; a Job is never rolled out");
    let told = in_vain(refused, &of(WorkloadKind::Deployment));
    assert!(told.message.starts_with("refused; a roll-out would not"));
    let other = Failure::new(Reason::NoRunningPod, "none", "start one");
    assert_eq!(in_vain(other.clone(), &web()), other);
}

#[test]
fn filter_on_datagrams_is_refused() {
    let port = |protocol| ResolvedPort {
        local: "127.0.0.1:5353".parse().unwrap(),
        container_port: 53,
        protocol,
        service: None,
        spoken: None,
    };
    let tcp = port(Protocol::Tcp);
    assert_eq!(refuse_datagrams(std::slice::from_ref(&tcp)), Ok(()));
    let failure = refuse_datagrams(&[tcp, port(Protocol::Udp)]).unwrap_err();
    assert_eq!(failure.reason, Reason::NotSupported);
    assert!(failure.message.contains("port 53 is UDP"), "{failure}");
}

#[test]
fn being_late_says_what_was_waited_for() {
    let timeout = Duration::from_secs(7);
    let failure = late(&web(), timeout, &waiting(false, 3));
    assert_eq!(failure.reason, Reason::AgentNotReady);
    assert_eq!(
        failure.message,
        "Deployment/web was not intercepted within 7 s; last: 2 of 3 agents are up"
    );
    assert_eq!(
        late(&web(), timeout, &waiting(true, 3)).reason,
        Reason::TimedOut
    );
    assert_eq!(
        late(&web(), timeout, &waiting(false, 0)).reason,
        Reason::TimedOut
    );
}

#[tokio::test]
async fn activation_tells_each_step_once_and_ends_when_active() {
    let (tx, mut rx) = watch::channel(waiting(false, 3));
    let (events, mut told) = mpsc::channel(8);
    let task = tokio::spawn(async move { activation(&mut rx, &events, false).await });
    let first = told.recv().await.unwrap().unwrap();
    assert_eq!(
        first.event,
        Some(Event::Progress("2 of 3 agents are up".into()))
    );
    tx.send_replace(waiting(false, 3));
    tx.send_replace(Observed {
        progress: Progress::Active,
        ..waiting(true, 3)
    });
    assert_eq!(task.await.unwrap(), Ok(Reached::Active));
    assert!(told.recv().await.is_none());
}

#[tokio::test]
async fn refusal_ends_the_waiting_until_the_workload_is_rolled_out() {
    let refusal = Failure::new(Reason::AgentRefused, "refused", "--rollout");
    let refused = Observed {
        progress: Progress::RollOutNeeded(refusal.clone()),
        ..waiting(false, 3)
    };
    let (tx, mut rx) = watch::channel(refused);
    let (events, mut told) = mpsc::channel(8);
    let reached = activation(&mut rx, &events, false).await;
    assert_eq!(reached, Ok(Reached::Refusal(refusal)));
    let task = tokio::spawn(async move { activation(&mut rx, &events, true).await });
    assert!(told.recv().await.is_some(), "it goes on");
    let without_pods = Failure::new(Reason::NoRunningPod, "no running pod", "");
    tx.send_replace(Observed {
        progress: Progress::Failed(without_pods),
        ..waiting(false, 0)
    });
    assert!(told.recv().await.is_some(), "it goes on");
    tx.send_replace(Observed {
        progress: Progress::Active,
        ..waiting(true, 3)
    });
    assert_eq!(task.await.unwrap(), Ok(Reached::Active));
}

#[tokio::test]
async fn activation_ends_with_who_deleted_the_engagement() {
    let (tx, mut rx) = watch::channel(waiting(false, 3));
    let (events, _told) = mpsc::channel(8);
    tx.send_replace(Observed::gone(Some("bob".into())));
    let failure = activation(&mut rx, &events, false).await.unwrap_err();
    assert_eq!(failure.reason, Reason::NoSuchEngagement);
    assert_eq!(
        failure.message,
        "the engagement was deleted by bob before it was active"
    );
    drop(tx);
}

#[tokio::test]
async fn a_silent_local_port_is_warned_of_and_a_listening_one_is_not() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listening = listener.local_addr().unwrap();
    let (events, mut told) = mpsc::channel(8);
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let taking = socket.local_addr().unwrap();
    let locals = [(listening, Protocol::Tcp), (taking, Protocol::Udp)];
    warn_of_silence(Verb::Intercept, &locals, &events).await;
    assert!(told.try_recv().is_err());
    drop((listener, socket));
    warn_of_silence(Verb::Intercept, &locals, &events).await;
    for silent in [listening, taking] {
        let Some(Event::Warning(text)) = told.recv().await.unwrap().unwrap().event else {
            panic!("no warning");
        };
        assert!(text.contains(&silent.to_string()));
    }
}
