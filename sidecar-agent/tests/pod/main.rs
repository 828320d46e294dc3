//! The agent as a process in a pod's network namespace, with a traffic manager
//! and clients on the other end of the pod's cable. Needs root, iproute2,
//! util-linux and nftables.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod datagrams;
mod manager;
mod network;
mod pod;
mod reader;

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::net::UnixStream,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use kvpn_proto::v1::{
    self,
    watch_claims_request::{Applied, Event, NotStopped},
};
use nix::sys::signal::Signal;

use crate::{
    manager::{Holder, Identity, Manager},
    network::{Network, PEER_V4, PEER_V6, POD_V4, POD_V6, Side, addresses},
    pod::{
        Agent, App, Holding, ask, ask_from, connect, eventually, exchange, first_line,
        talk_for_a_while,
    },
};

const WEB: u16 = 8080;
const ADMIN: u16 = 8081;
const PROBE: &[u8] =
    b"GET /healthz HTTP/1.1\r\nHost: x\r\nUser-Agent: kube-probe/1.34\r\nAccept: */*\r\n\r\n";

struct Pod {
    network: Network,
    identity: Identity,
    manager: Manager,
    agent: Agent,
    web: App,
    _admin: App,
}

impl Pod {
    /// With an app on two ports and an agent that has said hello.
    fn start() -> Self {
        Self::start_with("10m")
    }

    fn start_with(linger: &str) -> Self {
        let network = Network::new();
        let identity = Identity::new();
        let web = App::start(&network, WEB);
        let admin = App::start(&network, ADMIN);
        let manager = Manager::start(&network, &identity);
        let agent = Agent::start(&network, &identity, linger);
        let Event::Hello(hello) = manager.next_event() else {
            panic!("no hello");
        };
        assert_eq!(hello.container, "kvpn-agent-test1");
        Self {
            network,
            identity,
            manager,
            agent,
            web,
            _admin: admin,
        }
    }

    fn claim(&self, generation: u64, claims: Vec<v1::Claim>) {
        let event = self.manager.claim(generation, claims);
        assert_eq!(event, applied(generation, &[]));
    }

    fn ask(&self, address: SocketAddr) -> String {
        ask(&self.network, address).unwrap()
    }

    fn has_table(&self) -> bool {
        !self.network.nft("list tables").is_empty()
    }

    fn redirects(&self) -> bool {
        self.network.nft("list ruleset").contains("redirect")
    }
}

/// The claims of a generation are in force; these containers are not stopped, and why.
fn applied(generation: u64, not_stopped: &[(&str, &str)]) -> Event {
    let not_stopped = not_stopped.iter().map(|(container, detail)| NotStopped {
        container: (*container).into(),
        detail: (*detail).into(),
    });
    Event::Applied(Applied {
        generation,
        not_stopped: not_stopped.collect(),
        without_tls: Vec::new(),
    })
}

fn claim(id: &str, port: u16) -> v1::Claim {
    v1::Claim {
        id: id.into(),
        container_port: port.into(),
        protocol: v1::Protocol::Tcp.into(),
        http_probed: false,
        ..v1::Claim::default()
    }
}

#[test]
fn claimed_connections_go_to_the_laptop_in_both_families() {
    let pod = Pod::start();
    let [v4, v6] = addresses(WEB);
    assert_eq!(pod.ask(v4), "app");
    assert!(!pod.has_table());

    pod.claim(1, vec![claim("c1", WEB)]);
    assert_eq!(pod.ask(v4), format!("laptop c1 {PEER_V4}"));
    assert_eq!(pod.ask(v6), format!("laptop c1 {PEER_V6}"));
    for address in addresses(ADMIN) {
        assert_eq!(pod.ask(address), "app");
    }

    pod.claim(2, vec![]);
    assert!(!pod.redirects());
    for address in addresses(WEB) {
        assert_eq!(pod.ask(address), "app");
    }
}

#[test]
fn connections_are_counted_and_told_to_who_reads_the_log() {
    let pod = Pod::start();
    let [v4, _] = addresses(WEB);
    pod.claim(1, vec![claim("uid/80/tcp", WEB)]);
    pod.ask(v4);
    pod.manager.set_holder(Holder::Refuse);
    assert_eq!(pod.ask(v4), "app");
    let counts = v1::RequestCounts {
        matched: 2,
        passed: 0,
        failed: 1,
        tls_passed: 0,
        tls_failed: 0,
    };
    let is_counted = |report: &v1::ReportRequestsRequest| {
        let mut counted = report.counts.iter();
        counted.any(|it| it.claim_id == "uid/80/tcp" && it.counts == Some(counts))
    };
    pod.manager.report_with(is_counted);

    // Who comes late is told of those before.
    pod.manager.read(&[(1, "uid"), (2, "other")]);
    let report = pod.manager.report_with(|report| !report.earlier.is_empty());
    let failed = |decisions: &[v1::Decision]| {
        let failed = decisions.iter().map(|it| it.failed);
        failed.collect::<Vec<_>>()
    };
    let earlier = report.earlier.iter();
    let earlier = earlier.map(|it| (it.reader, failed(&it.decisions)));
    assert_eq!(
        earlier.collect::<Vec<_>>(),
        [(1, vec![false, true]), (2, vec![])]
    );
    pod.manager.set_holder(Holder::Serve);
    pod.ask(v4);
    let report = pod
        .manager
        .report_with(|report| !report.decisions.is_empty());
    assert_eq!(failed(&report.decisions), [false]);
    assert!(report.earlier.is_empty());
    assert_eq!(report.decisions[0].container_port, u32::from(WEB));
}

#[test]
fn claim_that_fails_closed_leaves_nothing_to_the_app() {
    let pod = Pod::start();
    let [v4, _] = addresses(WEB);
    let closed = v1::Claim {
        fails_closed: true,
        ..claim("c1", WEB)
    };
    pod.claim(1, vec![closed]);
    assert_eq!(pod.ask(v4), format!("laptop c1 {PEER_V4}"));
    pod.manager.set_holder(Holder::Refuse);
    let client = connect(&pod.network, Side::Peer, v4).unwrap();
    let error = exchange(client, b"no HTTP\n").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let counts = v1::RequestCounts {
        matched: 2,
        passed: 0,
        failed: 1,
        tls_passed: 0,
        tls_failed: 0,
    };
    pod.manager.report_with(|report| {
        let mut counted = report.counts.iter();
        counted.any(|it| it.counts == Some(counts))
    });
}

#[test]
fn connections_within_the_pod_stay_with_the_app() {
    let pod = Pod::start();
    pod.claim(1, vec![claim("c1", WEB)]);
    for ip in [
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
        POD_V4,
        POD_V6,
    ] {
        let answer = ask_from(&pod.network, Side::Pod, (ip, WEB).into());
        assert_eq!(answer.unwrap(), "app", "{ip}");
    }
}

#[test]
fn open_connections_outlive_the_claim_and_its_end() {
    let pod = Pod::start();
    let [v4, _] = addresses(WEB);
    let with_app = connect(&pod.network, Side::Peer, v4).unwrap();
    assert_eq!(first_line(&with_app).unwrap(), "app");
    pod.claim(1, vec![claim("c1", WEB)]);
    let with_laptop = connect(&pod.network, Side::Peer, v4).unwrap();
    assert_eq!(
        first_line(&with_laptop).unwrap(),
        format!("laptop c1 {PEER_V4}")
    );
    pod.claim(2, vec![]);
    talk_for_a_while(&with_laptop);
    assert_eq!(exchange(with_app, b"still here").unwrap(), b"still here");
    assert_eq!(exchange(with_laptop, b"here too").unwrap(), b"here too");
    eventually("the table is removed", || !pod.has_table());
}

#[test]
fn claims_are_replaced_without_a_gap() {
    let pod = Pod::start();
    let [v4, _] = addresses(WEB);
    pod.claim(1, vec![claim("c1", WEB)]);
    let stop = AtomicBool::new(false);
    let network = &pod.network;
    thread::scope(|scope| {
        let asker = scope.spawn(|| {
            let mut answers = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                answers.push(ask(network, v4).unwrap());
            }
            answers
        });
        for generation in 2..60 {
            let mut claims = vec![claim(&format!("c{generation}"), WEB)];
            if generation % 2 == 0 {
                claims.push(claim("other", ADMIN));
            }
            pod.claim(generation, claims);
        }
        stop.store(true, Ordering::Relaxed);
        let answers = asker.join().unwrap();
        assert!(answers.len() > 10, "{}", answers.len());
        for answer in answers {
            assert!(answer.starts_with("laptop c"), "{answer}");
        }
    });
}

#[test]
fn killed_agent_leaves_the_port_to_the_app() {
    let mut pod = Pod::start();
    pod.claim(1, vec![claim("c1", WEB)]);
    assert!(pod.has_table());
    pod.agent.signal(Signal::SIGKILL);
    pod.agent.wait();
    for address in addresses(WEB) {
        assert_eq!(pod.ask(address), "app");
    }
    assert!(!pod.has_table());
}

#[test]
fn stopped_agent_goes_on_until_the_app_takes_no_connections() {
    let mut pod = Pod::start();
    let [v4, _] = addresses(WEB);
    pod.claim(1, vec![claim("c1", WEB)]);
    pod.agent.signal(Signal::SIGTERM);
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(500) {
        assert_eq!(pod.ask(v4), format!("laptop c1 {PEER_V4}"));
    }
    pod.web.stop_listening();
    assert!(pod.agent.wait().success());
    assert!(!pod.has_table());
    let error = ask(&pod.network, v4).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn stopped_agent_without_a_manager_stays_as_long() {
    let mut pod = Pod::start();
    let [v4, _] = addresses(WEB);
    pod.claim(1, vec![claim("c1", WEB)]);
    drop(pod.manager);
    let network = &pod.network;
    eventually("the redirect is removed", || {
        !network.nft("list ruleset").contains("redirect")
    });
    pod.agent.signal(Signal::SIGTERM);
    pod.manager = Manager::start(&pod.network, &pod.identity);
    pod.claim(1, vec![claim("c2", WEB)]);
    assert_eq!(pod.ask(v4), format!("laptop c2 {PEER_V4}"));
    pod.web.stop_listening();
    assert!(pod.agent.wait().success());
}

#[test]
fn stopped_agent_lets_open_connections_end() {
    let mut pod = Pod::start();
    pod.claim(1, vec![claim("c1", WEB)]);
    let client = connect(&pod.network, Side::Peer, addresses(WEB)[0]).unwrap();
    first_line(&client).unwrap();
    pod.web.stop_listening();
    pod.agent.signal(Signal::SIGTERM);
    eventually("the redirect is removed", || !pod.redirects());
    talk_for_a_while(&client);
    assert_eq!(exchange(client, b"last words").unwrap(), b"last words");
    assert!(pod.agent.wait().success());
}

#[test]
fn agent_without_claims_leaves_after_its_time() {
    let mut pod = Pod::start_with("1s");
    pod.claim(1, vec![claim("c1", WEB)]);
    pod.claim(2, vec![]);
    assert!(pod.agent.wait().success());
}

#[test]
fn lost_manager_leaves_the_port_to_the_app_until_it_is_back() {
    let mut pod = Pod::start();
    let [v4, _] = addresses(WEB);
    pod.claim(1, vec![claim("c1", WEB)]);
    assert_eq!(pod.ask(v4), format!("laptop c1 {PEER_V4}"));

    drop(pod.manager);
    let network = &pod.network;
    assert_eq!(ask(network, v4).unwrap(), "app");
    eventually("the redirect is removed", || {
        !network.nft("list ruleset").contains("redirect")
    });
    assert_eq!(ask(network, v4).unwrap(), "app");

    pod.manager = Manager::start(&pod.network, &pod.identity);
    pod.claim(1, vec![claim("c2", WEB)]);
    assert_eq!(pod.ask(v4), format!("laptop c2 {PEER_V4}"));
}

#[test]
fn app_answers_when_the_holder_does_not() {
    let pod = Pod::start();
    pod.claim(1, vec![claim("c1", WEB)]);
    for holder in [Holder::Refuse, Holder::Silent] {
        pod.manager.set_holder(holder);
        for address in addresses(WEB) {
            let client = connect(&pod.network, Side::Peer, address).unwrap();
            let answer = exchange(client, b"said at once").unwrap();
            assert_eq!(answer, b"app\nsaid at once", "{holder:?} {address}");
        }
    }
}

#[test]
fn closed_port_of_the_app_resets() {
    let pod = Pod::start();
    pod.claim(1, vec![claim("c1", 9999)]);
    pod.manager.set_holder(Holder::Refuse);
    let error = ask(&pod.network, (POD_V4, 9999).into()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn half_closed_connections_deliver_everything() {
    let pod = Pod::start();
    pod.claim(1, vec![claim("c1", WEB)]);
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    for holder in [Holder::Serve, Holder::Refuse] {
        pod.manager.set_holder(holder);
        for address in addresses(WEB) {
            let client = connect(&pod.network, Side::Peer, address).unwrap();
            let answer = exchange(client, &bytes).unwrap();
            let greeting = answer.iter().position(|byte| *byte == b'\n').unwrap();
            assert!(answer[greeting + 1..] == bytes, "{holder:?} {address}");
        }
    }
}

#[test]
fn reset_of_the_laptop_reaches_the_client() {
    let pod = Pod::start();
    pod.claim(1, vec![claim("c1", WEB)]);
    pod.manager.set_holder(Holder::Reset);
    let mut client = connect(&pod.network, Side::Peer, addresses(WEB)[0]).unwrap();
    first_line(&client).unwrap();
    client.write_all(b"x").unwrap();
    let error = client.read(&mut [0; 16]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn connection_to_the_agents_own_port_is_reset() {
    let pod = Pod::start();
    pod.claim(1, vec![claim("c1", WEB)]);
    let rules = pod.network.nft("list ruleset");
    let (_, rest) = rules.split_once("redirect to :").unwrap();
    let listener: u16 = rest.split_whitespace().next().unwrap().parse().unwrap();
    for address in addresses(listener) {
        let error = ask(&pod.network, address).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{address}");
    }
}

#[test]
fn probes_of_the_kubelet_reach_the_app() {
    let pod = Pod::start();
    let mut probed = claim("c1", WEB);
    probed.http_probed = true;
    pod.claim(1, vec![probed]);
    for address in addresses(WEB) {
        let client = |bytes: &[u8]| {
            let mut client = connect(&pod.network, Side::Peer, address).unwrap();
            client.write_all(bytes).unwrap();
            first_line(&client).unwrap()
        };
        assert_eq!(client(PROBE), "app");
        assert!(client(b"GET / HTTP/1.1\r\nUser-Agent: curl\r\n\r\n").starts_with("laptop"));
        assert!(client(b"GET / HT").starts_with("laptop"));
        assert!(client(b"").starts_with("laptop"));
    }
}

#[test]
fn probes_are_answered_for_a_container_that_is_stopped_while_the_agent_has_its_manager() {
    let pod = Pod::start();
    let replace = v1::Claim {
        http_probed: true,
        stopped_container: "app".into(),
        answers_probes: true,
        ..claim("c1", WEB)
    };
    let event = pod.manager.claim(1, vec![replace, claim("c2", ADMIN)]);
    assert_eq!(event, applied(1, &[("app", "")]));
    let probe = |pause: Duration| {
        let mut client = connect(&pod.network, Side::Peer, addresses(WEB)[0]).unwrap();
        thread::sleep(pause);
        client.write_all(PROBE).unwrap();
        first_line(&client).unwrap()
    };
    let at_once = Duration::ZERO;
    assert_eq!(probe(at_once), "app");
    assert!(pod.ask(addresses(ADMIN)[0]).starts_with("laptop c2"));

    let holder = Holding::call(&pod.network, "app");
    assert_eq!(holder.told().unwrap(), "hold");
    assert_eq!(probe(at_once), "HTTP/1.1 200 OK");
    holder.answer("done");
    assert_eq!(pod.manager.next_event(), applied(1, &[]));
    assert_eq!(probe(Duration::from_millis(200)), "HTTP/1.1 200 OK");
    drop(holder);
    assert_eq!(pod.manager.next_event(), applied(1, &[("app", "")]));
    assert_eq!(probe(at_once), "app");

    let holder = Holding::call(&pod.network, "app");
    assert_eq!(holder.told().unwrap(), "hold");
    holder.answer("it may not");
    assert_eq!(
        pod.manager.next_event(),
        applied(1, &[("app", "it may not")])
    );
    assert_eq!(probe(at_once), "app");
    let Pod {
        manager,
        network,
        agent: _agent,
        ..
    } = pod;
    drop(manager);
    assert_eq!(holder.told(), None, "it is let go");
    let address = Holding::address();
    let refused = network.within(Side::Pod, move || UnixStream::connect_addr(&address));
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn claims_that_cannot_be_served_leave_the_ports_to_the_app() {
    let pod = Pod::start();
    pod.claim(1, vec![claim("c1", WEB)]);
    let mut unknown = claim("c2", 53);
    unknown.protocol = v1::Protocol::Unspecified.into();
    let Event::Failed(failed) = pod.manager.claim(2, vec![claim("c1", WEB), unknown]) else {
        panic!("a claim of an unknown protocol was applied");
    };
    assert_eq!(failed.generation, 2);
    assert!(failed.detail.contains("protocol"), "{}", failed.detail);
    assert_eq!(pod.ask(addresses(WEB)[0]), "app");
    assert!(!pod.redirects());
}

#[test]
fn second_agent_in_a_pod_says_that_there_is_a_first() {
    let mut pod = Pod::start();
    pod.claim(1, vec![claim("c1", WEB)]);
    // Another traffic manager would have to listen elsewhere; the same one
    // tells both agents the same.
    let _second = Agent::start(&pod.network, &pod.identity, "10m");
    let failed = loop {
        match pod.manager.next_event() {
            Event::Failed(failed) => break failed,
            Event::Hello(_) | Event::Applied(_) => {}
        }
    };
    assert!(failed.detail.contains("another agent"), "{}", failed.detail);
    assert_eq!(pod.ask(addresses(WEB)[0]), format!("laptop c1 {PEER_V4}"));

    pod.agent.signal(Signal::SIGKILL);
    pod.agent.wait();
    pod.claim(2, vec![claim("c2", WEB)]);
    assert_eq!(pod.ask(addresses(WEB)[0]), format!("laptop c2 {PEER_V4}"));
}

#[test]
fn listed_ports_of_localhost_are_dialled_and_no_others() {
    let pod = Pod::start();
    let [v4, v6] = [
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    ];
    let _sidecars = [(v4, 9901_u16), (v6, 9902)].map(|it| App::start_at(&pod.network, it.into()));
    let listing = |id: &str, port: u16, pod_ports: &[u32]| v1::Claim {
        pod_ports: pod_ports.to_vec(),
        ..claim(id, port)
    };
    let other = || listing("c2", ADMIN, &[9901]);
    let dial = |id: &str, port| pod.manager.dial_in_pod(id, port);
    pod.claim(1, vec![listing("c1", WEB, &[9901, 9902, 9903]), other()]);
    assert_eq!(dial("c1", 9901), "app\n");
    assert_eq!(dial("c1", 9902), "app\n");
    assert_eq!(dial("c1", 9903), "Refused");
    // The manager is not believed, nor what another claim lists.
    assert_eq!(dial("c1", ADMIN), "Prohibited");
    assert_eq!(dial("c2", 9902), "Prohibited");
    // Nobody else gets to the localhost by this.
    let outside = ask(&pod.network, (POD_V4, 9901).into()).unwrap_err();
    assert_eq!(outside.kind(), ErrorKind::ConnectionRefused);

    // Although the other claim goes on to list one of its ports.
    pod.claim(2, vec![claim("c1", WEB), other()]);
    for _ in 0..2 {
        assert_eq!(pod.manager.next_said_in_pod(), "cut off");
    }
    assert_eq!(dial("c1", 9901), "Prohibited");
    assert_eq!(dial("c2", 9901), "app\n");
}

#[test]
fn agent_does_not_talk_to_an_impostor() {
    let network = Network::new();
    let impostor = Manager::start(&network, &Identity::new());
    let _agent = Agent::start(&network, &Identity::new(), "10m");
    impostor.next_refusal();
}
