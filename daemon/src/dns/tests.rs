//! The name server on loopback, before an upstream that a test plays.

use std::net::SocketAddr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::session::cluster_info::ClusterInfo;

const ANSWERS: u8 = 60;

/// Answers every question with so many addresses that they do not fit 512
/// octets.
async fn upstream() -> SocketAddr {
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
            let query = Message::from_vec(&buffer[..length]).unwrap();
            let mut answer = Message::response(query.metadata.id, OpCode::Query);
            answer.metadata.recursion_desired = true;
            answer.metadata.recursion_available = true;
            answer.metadata.authentic_data = true;
            let name = query.queries[0].name().clone();
            answer.add_queries(query.queries);
            for last in 1..=ANSWERS {
                let address = RData::A(A::new(192, 0, 2, last));
                answer.add_answer(Record::from_rdata(name.clone(), 30, address));
            }
            socket
                .send_to(&answer.to_vec().unwrap(), client)
                .await
                .unwrap();
        }
    });
    address
}

struct Served {
    udp: SocketAddr,
    tcp: SocketAddr,
    server: NameServer,
}

async fn served() -> Served {
    served_before(upstream().await)
}

fn served_before(upstream: SocketAddr) -> Served {
    served_with(upstream, Vnat::default())
}

fn served_with(upstream: SocketAddr, vnat: Vnat) -> Served {
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let (udp_address, tcp_address) = (udp.local_addr().unwrap(), tcp.local_addr().unwrap());
    let cluster = ClusterInfo {
        domain: "cluster.local".into(),
        namespaces: ["shop".to_owned()].into(),
        ..ClusterInfo::default()
    };
    let sources = Sources {
        manager: Manager::down(cluster),
        rules: NameRules::default(),
        vnat,
        names: AskedNames::default(),
        resolver: Resolver::ResolvConf,
    };
    let upstream = Upstream::new(Servers::fixed(vec![upstream]));
    let server = start(vec![udp], vec![tcp], upstream, sources).unwrap();
    Served {
        udp: udp_address,
        tcp: tcp_address,
        server,
    }
}

fn question(name: &str, payload: Option<u16>) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message
}

async fn ask_udp(server: SocketAddr, question: &Message) -> Message {
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket
        .send_to(&question.to_vec().unwrap(), server)
        .await
        .unwrap();
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).await.unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

#[tokio::test]
async fn other_names_are_answered_by_the_hosts_servers() {
    let served = served().await;
    let answer = ask_udp(served.udp, &question("Example.com.", Some(4096))).await;
    assert_eq!(answer.metadata.id, 4711);
    assert_eq!(answer.metadata.message_type, MessageType::Response);
    assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
    assert!(answer.metadata.authentic_data);
    assert!(!answer.metadata.truncation);
    assert_eq!(answer.answers.len(), usize::from(ANSWERS));
    assert!(
        answer.queries[0]
            .name()
            .eq_case(&Name::from_ascii("Example.com.").unwrap())
    );
    assert!(answer.edns.is_some());
}

#[tokio::test]
async fn answers_are_cut_to_what_the_client_takes_and_whole_over_tcp() {
    let served = served().await;
    let question = question("example.com.", None);
    let cut = ask_udp(served.udp, &question).await;
    assert!(cut.metadata.truncation);
    assert!(cut.edns.is_none());

    let mut stream = tokio::net::TcpStream::connect(served.tcp).await.unwrap();
    let wire = question.to_vec().unwrap();
    stream
        .write_u16(wire.len().try_into().unwrap())
        .await
        .unwrap();
    stream.write_all(&wire).await.unwrap();
    let length = stream.read_u16().await.unwrap();
    let mut whole = vec![0; length.into()];
    stream.read_exact(&mut whole).await.unwrap();
    let whole = Message::from_vec(&whole).unwrap();
    assert!(!whole.metadata.truncation);
    assert_eq!(whole.answers.len(), usize::from(ANSWERS));
}

#[tokio::test]
async fn names_of_the_cluster_fail_while_the_tunnel_is_down() {
    let served = served().await;
    for name in ["web.shop.svc.cluster.local.", "web.shop."] {
        let answer = ask_udp(served.udp, &question(name, None)).await;
        assert_eq!(answer.metadata.id, 4711);
        assert_eq!(
            answer.metadata.response_code,
            ResponseCode::ServFail,
            "{name}"
        );
        assert!(answer.answers.is_empty());
    }
}

#[tokio::test]
async fn address_that_is_shown_elsewhere_has_a_name_in_the_cluster_or_none() {
    let upstream = upstream().await;
    // A subnet of `--also-proxy`, of which the cluster's name servers know nothing.
    let served = served_with(upstream, Vnat::showing(&["172.30.0.0/16"]));
    let code_of = async |name: &str| {
        let answer = ask_udp(served.udp, &question(name, None)).await;
        answer.metadata.response_code
    };
    let (shown, hosts) = ("7.0.0.246.in-addr.arpa.", "7.0.30.172.in-addr.arpa.");
    assert_eq!(code_of(shown).await, ResponseCode::NXDomain);
    // The host may have another of that address.
    assert_eq!(code_of(hosts).await, ResponseCode::NoError);
}

#[tokio::test]
async fn question_that_comes_back_from_upstream_is_not_sent_again() {
    let resolver = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let served = served_before(resolver.local_addr().unwrap());
    let client = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let asked = question("loop.example.", None).to_vec().unwrap();
    client.send_to(&asked, served.udp).await.unwrap();

    // The resolver asks us in its turn, with an id and a spelling of its own.
    let mut buffer = [0; 4096];
    let (length, forwarder) = resolver.recv_from(&mut buffer).await.unwrap();
    let query = Message::from_vec(&buffer[..length]).unwrap();
    let mut again = question("LOOP.example.", None);
    again.metadata.id = 4712;
    let again = again.to_vec().unwrap();
    resolver.send_to(&again, served.udp).await.unwrap();
    // Answered after the question that came back, so that is waiting by now.
    let other = question("web.shop.svc.cluster.local.", None);
    ask_udp(served.udp, &other).await;

    let mut answer = Message::error_msg(query.metadata.id, OpCode::Query, ResponseCode::NXDomain);
    answer.add_queries(query.queries);
    let answer = answer.to_vec().unwrap();
    resolver.send_to(&answer, forwarder).await.unwrap();

    // The next that the resolver gets is that answer, not its own question.
    let length = resolver.recv(&mut buffer).await.unwrap();
    let back = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!(back.metadata.message_type, MessageType::Response);
    assert_eq!(back.metadata.id, 4712);
    let length = client.recv(&mut buffer).await.unwrap();
    let answer = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!(answer.metadata.id, 4711);
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
}

#[tokio::test]
async fn a_server_that_was_stopped_has_let_go_of_its_sockets() {
    let served = served().await;
    served.server.stop().await;
    UdpSocket::bind(served.udp).unwrap();
    TcpListener::bind(served.tcp).unwrap();
}
