//! As many datagrams as go out, and how many of them arrive.

use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kvpn_tests::bench::ports::{COUNT, UDP};
use kvpn_tests::dual_stack::any_of;
use serde_json::{Value, json};

use crate::Time;

/// How long an answer may take, and how often the question is sent.
const ANSWER: Duration = Duration::from_millis(500);
const QUESTIONS: usize = 20;

/// Sends for a while, and asks the server what came.
pub(crate) fn run(address: IpAddr, size: usize, time: Time) -> Result<Value> {
    let socket = UdpSocket::bind((any_of(address), 0)).context("bind")?;
    socket.connect((address, UDP)).context("connect")?;
    socket.set_read_timeout(Some(ANSWER))?;
    let datagram = vec![0x6b; size];
    // The first one opens the flow.
    send(&socket, &datagram, time.warm);
    let before = settled(&socket)?;
    let start = Instant::now();
    let (sent, refused) = send(&socket, &datagram, time.seconds);
    let seconds = start.elapsed().as_secs_f64();
    let received = settled(&socket)? - before;
    Ok(json!({
        "sent": sent,
        "not_sent": refused,
        "received": received,
        "per_second": received as f64 / seconds,
        "sent_per_second": sent as f64 / seconds,
        "lost_percent": 100.0 * (1.0 - received as f64 / sent.max(1) as f64),
    }))
}

/// Sends for so long; gives how many went out, and how many did not.
fn send(socket: &UdpSocket, datagram: &[u8], time: Duration) -> (u64, u64) {
    let start = Instant::now();
    let (mut sent, mut refused) = (0, 0);
    while start.elapsed() < time {
        match socket.send(datagram) {
            Ok(_) => sent += 1,
            // The device's queue is full.
            Err(_) => refused += 1,
        }
    }
    (sent, refused)
}

/// The count once nothing is on its way any more.
fn settled(socket: &UdpSocket) -> Result<u64> {
    let mut last = count(socket)?;
    loop {
        std::thread::sleep(Duration::from_millis(50));
        let now = count(socket)?;
        if now == last {
            return Ok(now);
        }
        last = now;
    }
}

/// Asks how many datagrams have come.
fn count(socket: &UdpSocket) -> Result<u64> {
    let mut answer = [0; 8];
    for _ in 0..QUESTIONS {
        // Lost questions are asked again, and so are those that cannot be sent.
        drop(socket.send(COUNT));
        if let Ok(8) = socket.recv(&mut answer) {
            return Ok(u64::from_be_bytes(answer));
        }
    }
    bail!("the server does not say how many datagrams came")
}
