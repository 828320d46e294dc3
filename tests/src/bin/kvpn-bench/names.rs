//! How long a name takes.

use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};
use kvpn_tests::dual_stack::any_of;
use serde_json::Value;

use crate::Time;
use crate::pingpong::summary;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The longest answer without EDNS (RFC 1035), in bytes.
const MAX_ANSWER: usize = 512;

/// Asks the host's name server again and again, one question at a time: for the name, or
/// for `distinct` names below it of which none was asked for before.
pub(crate) fn run(name: &str, distinct: bool, time: Time) -> Result<Value> {
    let server = configured()?;
    let below = Name::from_ascii(name).context("a name")?;
    let run = std::process::id();
    let mut asked = 0_u64;
    let mut next = || {
        asked += 1;
        match distinct {
            true => below.prepend_label(format!("{run}-{asked}")),
            false => Ok(below.clone()),
        }
    };
    let socket = UdpSocket::bind((any_of(server), 0)).context("bind")?;
    socket.connect((server, 53)).context("connect")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let warm = Instant::now() + time.warm;
    while Instant::now() < warm {
        ask(&socket, next()?)?;
    }
    let start = Instant::now();
    let mut took = Vec::new();
    while start.elapsed() < time.seconds {
        let name = next()?;
        let sent = Instant::now();
        ask(&socket, name)?;
        took.push(sent.elapsed().as_secs_f64() * 1e6);
    }
    summary(&took)
}

/// The first name server of resolv.conf(5).
fn configured() -> Result<IpAddr> {
    let text = std::fs::read_to_string("/etc/resolv.conf").context("read resolv.conf")?;
    let server = text
        .lines()
        .find_map(|line| line.strip_prefix("nameserver "))
        .context("resolv.conf names no server")?;
    server.trim().parse().context("a name server's address")
}

fn ask(socket: &UdpSocket, name: Name) -> Result<()> {
    let mut question = Message::query();
    question.add_query(Query::query(name, RecordType::A));
    question.metadata.recursion_desired = true;
    socket.send(&question.to_vec()?).context("ask")?;
    let mut answer = [0; MAX_ANSWER];
    let length = socket.recv(&mut answer).context("no answer")?;
    let answer = Message::from_vec(&answer[..length]).context("read the answer")?;
    ensure!(
        answer.metadata.id == question.metadata.id,
        "the answer is to another question"
    );
    ensure!(
        !answer.answers.is_empty(),
        "the name was not found: {}",
        answer.metadata.response_code
    );
    Ok(())
}
