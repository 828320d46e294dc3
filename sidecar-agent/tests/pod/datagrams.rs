//! Datagrams to a claimed port. An app takes connections at the same one.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    thread,
    time::Duration,
};

use kvpn_proto::v1::{self, watch_claims_request::Event};
use nix::sys::signal::Signal;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    Pod, WEB,
    manager::Holder,
    network::{Network, PEER_V4, PEER_V6, Side, addresses},
    pod::eventually,
};

const DEADLINE: Duration = Duration::from_secs(10);

/// How long nothing is taken for no answer.
const SILENCE: Duration = Duration::from_millis(500);

impl Pod {
    /// With an app that takes datagrams as well.
    fn with_datagrams() -> Self {
        let pod = Self::start();
        start_app(&pod.network, WEB);
        pod
    }

    fn client(&self, address: SocketAddr) -> Client {
        Client::new(&self.network, Side::Peer, address)
    }
}

/// An app that says `app` and what it got.
fn start_app(network: &Network, port: u16) {
    let bind = move || UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap();
    let socket = network.within(Side::Pod, bind);
    thread::spawn(move || {
        let mut datagram = vec![0; 70_000];
        while let Ok((length, client)) = socket.recv_from(&mut datagram) {
            let answer = [b"app ", &datagram[..length]].concat();
            let _ = socket.send_to(&answer, client);
        }
    });
}

/// A socket that hears of one address only.
struct Client(UdpSocket);

impl Client {
    fn new(network: &Network, side: Side, address: SocketAddr) -> Self {
        Self(network.within(side, move || {
            let any: IpAddr = match address {
                SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let socket = UdpSocket::bind((any, 0)).unwrap();
            socket.connect(address).unwrap();
            socket
        }))
    }

    fn send(&self, text: &str) {
        self.0.send(text.as_bytes()).unwrap();
    }

    /// Sends from the same port as ever, by way of a raw socket.
    fn send_without_checksum(&self, network: &Network, text: &str) {
        let (from, to) = (self.0.local_addr().unwrap(), self.0.peer_addr().unwrap());
        let length = u16::try_from(8 + text.len()).unwrap();
        let header = [from.port(), to.port(), length, 0].map(u16::to_be_bytes);
        let datagram = [header.as_flattened(), text.as_bytes()].concat();
        network.within(Side::Peer, move || {
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP)).unwrap();
            socket.send_to(&datagram, &to.into()).unwrap();
        });
    }

    fn recv(&self, deadline: Duration) -> io::Result<String> {
        self.0.set_read_timeout(Some(deadline)).unwrap();
        let mut answer = vec![0; 70_000];
        let length = self.0.recv(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
    }

    /// What comes back first; a holder greets a flow that is new to it.
    fn ask(&self, text: &str) -> String {
        self.send(text);
        self.recv(DEADLINE).unwrap()
    }

    fn hears_nothing(&self) {
        let error = self.recv(SILENCE).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    }
}

fn claim(id: &str) -> v1::Claim {
    v1::Claim {
        protocol: v1::Protocol::Udp.into(),
        ..crate::claim(id, WEB)
    }
}

#[test]
fn claimed_datagrams_go_to_the_laptop_and_connections_to_the_app() {
    let pod = Pod::with_datagrams();
    let clients = addresses(WEB).map(|address| pod.client(address));
    for client in &clients {
        assert_eq!(client.ask("one"), "app one");
    }
    pod.claim(1, vec![claim("c1")]);
    // Each datagram goes as the claims are, also of a client that was there before.
    for (client, ip) in clients.iter().zip([PEER_V4, PEER_V6]) {
        assert_eq!(client.ask("two"), format!("laptop c1 {ip}\n"));
        assert_eq!(client.recv(DEADLINE).unwrap(), "two");
        assert_eq!(client.ask("three"), "three");
    }
    for address in addresses(WEB) {
        assert_eq!(pod.ask(address), "app");
        let within = Client::new(&pod.network, Side::Pod, address);
        assert_eq!(within.ask("inside"), "app inside");
    }
    pod.claim(2, vec![]);
    for client in &clients {
        assert_eq!(client.ask("four"), "app four");
    }
    eventually("the table is removed", || !pod.has_table());
}

#[test]
fn one_number_is_claimed_for_datagrams_and_connections() {
    let pod = Pod::with_datagrams();
    let [v4, _] = addresses(WEB);
    pod.claim(1, vec![crate::claim("tcp", WEB), claim("udp")]);
    assert_eq!(pod.ask(v4), format!("laptop tcp {PEER_V4}"));
    let client = pod.client(v4);
    assert_eq!(client.ask("one"), format!("laptop udp {PEER_V4}\n"));
    pod.claim(2, vec![crate::claim("tcp", WEB)]);
    assert_eq!(client.recv(DEADLINE).unwrap(), "one");
    assert_eq!(client.ask("two"), "app two");
    assert_eq!(pod.ask(v4), format!("laptop tcp {PEER_V4}"));
}

#[test]
fn datagrams_of_every_size_arrive_whole() {
    let pod = Pod::with_datagrams();
    pod.claim(1, vec![claim("c1")]);
    for address in addresses(WEB) {
        let client = pod.client(address);
        client.ask("first");
        assert_eq!(client.recv(DEADLINE).unwrap(), "first");
        for size in [0, 1, 1_400, 1_500, 9_000, 65_507] {
            let sent = "x".repeat(size);
            assert!(client.ask(&sent) == sent, "{size} to {address}");
        }
    }
}

#[test]
fn datagrams_without_a_checksum_arrive() {
    let pod = Pod::with_datagrams();
    let [v4, _] = addresses(WEB);
    let client = pod.client(v4);
    client.send_without_checksum(&pod.network, "one");
    assert_eq!(client.recv(DEADLINE).unwrap(), "app one");
    pod.claim(1, vec![claim("c1")]);
    client.send_without_checksum(&pod.network, "two");
    let greeting = format!("laptop c1 {PEER_V4}\n");
    assert_eq!(client.recv(DEADLINE).unwrap(), greeting);
    assert_eq!(client.recv(DEADLINE).unwrap(), "two");
}

#[test]
fn answers_come_from_the_address_that_was_asked() {
    let pod = Pod::with_datagrams();
    let another = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 9));
    pod.network.add_address(another);
    pod.claim(1, vec![claim("c1")]);
    let client = pod.client((another, WEB).into());
    assert_eq!(client.ask("one"), format!("laptop c1 {PEER_V4}\n"));
}

#[test]
fn app_gets_what_the_holder_does_not_take_until_it_does() {
    let pod = Pod::with_datagrams();
    pod.claim(1, vec![claim("c1")]);
    for holder in [Holder::Silent, Holder::RefuseDatagrams, Holder::Refuse] {
        pod.manager.set_holder(holder);
        let clients = addresses(WEB).map(|address| pod.client(address));
        for client in &clients {
            client.send("one");
            client.send("two");
        }
        for client in &clients {
            for wanted in ["app one", "app two"] {
                assert_eq!(client.recv(DEADLINE).unwrap(), wanted, "{holder:?}");
            }
            assert_eq!(client.ask("three"), "app three", "{holder:?}");
        }
    }
    let client = pod.client(addresses(WEB)[0]);
    assert_eq!(client.ask("four"), "app four");
    pod.manager.set_holder(Holder::Serve);
    let greeting = format!("laptop c1 {PEER_V4}\n");
    eventually("the holder is asked again", || {
        client.ask("five") == greeting
    });
}

#[test]
fn nobody_gets_what_a_claim_that_fails_closed_does_not_take() {
    let pod = Pod::with_datagrams();
    let closed = v1::Claim {
        fails_closed: true,
        ..claim("c1")
    };
    pod.claim(1, vec![closed]);
    for holder in [Holder::Refuse, Holder::RefuseDatagrams] {
        pod.manager.set_holder(holder);
        let client = pod.client(addresses(WEB)[0]);
        client.send("one");
        client.hears_nothing();
    }
    let counts = v1::RequestCounts {
        matched: 2,
        passed: 0,
        failed: 2,
        tls_passed: 0,
        tls_failed: 0,
    };
    pod.manager.report_with(|report| {
        let mut counted = report.counts.iter();
        counted.any(|it| it.counts == Some(counts))
    });
}

#[test]
fn copies_go_to_the_laptop_and_its_answers_nowhere() {
    let pod = Pod::with_datagrams();
    let told = v1::WatchClaimsResponse {
        generation: 1,
        claims: Vec::new(),
        copies: vec![claim("copy")],
    };
    let applied = v1::watch_claims_request::Applied {
        generation: 1,
        ..v1::watch_claims_request::Applied::default()
    };
    assert_eq!(pod.manager.tell(told), Event::Applied(applied));
    for address in addresses(WEB) {
        let client = pod.client(address);
        for text in ["one", "two"] {
            assert_eq!(client.ask(text), format!("app {text}"));
            let (claim_id, copy) = pod.manager.next_received();
            assert_eq!((claim_id.as_str(), &copy[..]), ("copy", text.as_bytes()));
        }
        client.hears_nothing();
    }
}

#[test]
fn datagrams_to_the_agents_own_port_are_lost() {
    let pod = Pod::with_datagrams();
    pod.claim(1, vec![claim("c1")]);
    let rules = pod.network.nft("list ruleset");
    let (_, rest) = rules.split_once("udp dport set ").unwrap();
    let socket: u16 = rest.split_whitespace().next().unwrap().parse().unwrap();
    for address in addresses(socket) {
        let client = pod.client(address);
        client.send("one");
        client.hears_nothing();
    }
    // The socket stays when the port is claimed no more.
    pod.claim(2, vec![crate::claim("tcp", WEB)]);
    let rules = pod.network.nft("list ruleset");
    let refused = format!("udp dport {socket} drop");
    assert!(rules.contains(&refused), "{rules}");
}

#[test]
fn app_answers_at_once_when_the_agent_or_its_manager_is_gone() {
    let mut pod = Pod::with_datagrams();
    pod.claim(1, vec![claim("c1")]);
    let client = pod.client(addresses(WEB)[0]);
    assert_eq!(client.ask("one"), format!("laptop c1 {PEER_V4}\n"));
    assert_eq!(client.recv(DEADLINE).unwrap(), "one");
    drop(pod.manager);
    assert_eq!(client.ask("two"), "app two");

    pod.manager = crate::manager::Manager::start(&pod.network, &pod.identity);
    pod.claim(1, vec![claim("c2")]);
    assert_eq!(client.ask("three"), format!("laptop c2 {PEER_V4}\n"));
    assert_eq!(client.recv(DEADLINE).unwrap(), "three");
    pod.agent.signal(Signal::SIGKILL);
    pod.agent.wait();
    assert_eq!(client.ask("four"), "app four");
}
