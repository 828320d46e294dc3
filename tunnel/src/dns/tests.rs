use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::time::Instant;

use super::{ForwardError, Forwarder};

/// A question for the A record of `example.`, with an EDNS-less header.
fn query(id: u16) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend_from_slice(&[0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0]);
    message.extend_from_slice(b"\x07example\x00\x00\x01\x00\x01");
    message
}

/// An answer without records, told from others by its `marker`.
fn answer(query: &[u8], flags: u8, rcode: u8, marker: u8) -> Vec<u8> {
    let mut message = query.to_vec();
    message[2] |= 0x80 | flags;
    message[3] = 0x80 | rcode;
    message.push(marker);
    message
}

const TRUNCATED: u8 = 0x02;

/// A name server whose every answer over UDP is what `respond` makes of the
/// query.
async fn udp_server(
    respond: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static,
) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut buffer = [0; 1_024];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            for message in respond(&buffer[..length]) {
                socket.send_to(&message, from).await.unwrap();
            }
        }
    });
    (address, task)
}

#[tokio::test]
async fn answer_over_udp_is_passed_on_as_it_is() {
    let (server, _task) = udp_server(|query| vec![answer(query, 0, 0, 1)]).await;
    let forwarder = Forwarder::new(vec![server]);
    let got = forwarder.forward(&query(0x1234)).await.unwrap();
    assert_eq!(got, answer(&query(0x1234), 0, 0, 1));
}

#[tokio::test]
async fn datagrams_that_are_no_answer_are_passed_over() {
    let (server, _task) = udp_server(|asked| {
        let mut other_question = asked.to_vec();
        other_question[13] = b'x';
        vec![
            asked.to_vec(),
            answer(&query(0x9999), 0, 0, 1),
            answer(&other_question, 0, 0, 2),
            b"short".to_vec(),
            answer(asked, 0, 0, 3),
        ]
    })
    .await;
    let got = Forwarder::new(vec![server])
        .forward(&query(7))
        .await
        .unwrap();
    assert_eq!(got, answer(&query(7), 0, 0, 3));
}

#[tokio::test]
async fn truncated_answer_is_asked_again_over_tcp() {
    // A port that is free for UDP and TCP alike.
    let (listener, socket) = loop {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        if let Ok(socket) = UdpSocket::bind(listener.local_addr().unwrap()).await {
            break (listener, socket);
        }
    };
    let server = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 1_024];
        let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
        let truncated = answer(&buffer[..length], TRUNCATED, 0, 1);
        socket.send_to(&truncated, from).await.unwrap();

        let (mut stream, _) = listener.accept().await.unwrap();
        let length = stream.read_u16().await.unwrap();
        let mut asked = vec![0; length.into()];
        stream.read_exact(&mut asked).await.unwrap();
        let mut whole = answer(&asked, 0, 0, 2);
        whole.resize(40_000, 3);
        stream.write_u16(40_000).await.unwrap();
        stream.write_all(&whole).await.unwrap();
    });

    let got = Forwarder::new(vec![server])
        .forward(&query(7))
        .await
        .unwrap();
    assert_eq!(got.len(), 40_000);
    assert_eq!(got[..2], [0, 7]);
    assert_eq!(got[2] & TRUNCATED, 0);
}

#[tokio::test]
async fn dead_first_server_costs_time_once() {
    // Bound, but nobody reads.
    let dead = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (alive, _task) = udp_server(|query| vec![answer(query, 0, 0, 1)]).await;
    let forwarder = Forwarder::new(vec![dead.local_addr().unwrap(), alive]);

    forwarder.forward(&query(1)).await.unwrap();
    let start = Instant::now();
    forwarder.forward(&query(2)).await.unwrap();
    assert!(start.elapsed() < Duration::from_millis(1_000));
}

#[tokio::test]
async fn server_that_is_not_there_is_passed_over_at_once() {
    let gone = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = gone.local_addr().unwrap();
    drop(gone);
    let (alive, _task) = udp_server(|query| vec![answer(query, 0, 0, 1)]).await;
    let start = Instant::now();
    let forwarder = Forwarder::new(vec![address, alive]);
    forwarder.forward(&query(1)).await.unwrap();
    assert!(start.elapsed() < Duration::from_millis(1_000));
}

#[tokio::test]
async fn failing_server_is_passed_over_but_its_answer_kept() {
    let (failing, _task) = udp_server(|query| vec![answer(query, 0, 2, 1)]).await;
    let (alive, _other) = udp_server(|query| vec![answer(query, 0, 3, 2)]).await;
    let got = Forwarder::new(vec![failing, alive])
        .forward(&query(1))
        .await;
    assert_eq!(got.unwrap(), answer(&query(1), 0, 3, 2), "NXDOMAIN counts");

    let got = Forwarder::new(vec![failing]).forward(&query(1)).await;
    assert_eq!(got.unwrap(), answer(&query(1), 0, 2, 1));
}

#[tokio::test]
async fn silence_ends_at_the_deadline() {
    let dead = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let servers = vec![dead.local_addr().unwrap(); 3];
    let (attempt, deadline) = (Duration::from_millis(100), Duration::from_millis(250));
    let forwarder = Forwarder::with_limits(servers, attempt, deadline);
    let start = Instant::now();
    let error = forwarder.forward(&query(1)).await.unwrap_err();
    assert!(matches!(error, ForwardError::TimedOut), "{error}");
    assert!(start.elapsed() >= deadline);
}

#[tokio::test]
async fn what_is_no_query_is_refused() {
    let forwarder = Forwarder::new(vec!["127.0.0.1:53".parse().unwrap()]);
    let mut no_end = query(1);
    no_end.truncate(16);
    let mut update = query(1);
    update[2] |= 5 << 3;
    let answered = answer(&query(1), 0, 0, 1);
    for message in [&b""[..], b"short", &answered, &no_end, &update] {
        let error = forwarder.forward(message).await.unwrap_err();
        assert!(matches!(error, ForwardError::NotAQuery), "{error}");
    }
    let error = Forwarder::new(Vec::new()).forward(&query(1)).await;
    assert!(matches!(error, Err(ForwardError::NoServers)));
}
