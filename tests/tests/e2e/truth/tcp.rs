//! Ends and errors of TCP connections.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kvpn_tests::{pattern, wait_for};
use nix::libc;
use serde_json::Value;
use socket2::SockRef;

use super::{DEADLINE, MANNERS, Route, connect, in_network, web};
use crate::support::Developer;

/// For how long a late reader does not read.
const LATE: Duration = Duration::from_secs(3);

fn read_to_end(mut stream: &TcpStream) -> Result<String> {
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// How the server saw the end of the last client that it said `bye` to.
fn wait_for_end(server: SocketAddr, expected: &str) -> Result<()> {
    wait_for(&format!("{server} sees {expected}"), DEADLINE, || {
        let seen = read_to_end(&connect(server, b"?")?)?;
        ensure!(seen == "not yet" || seen == expected, "it saw {seen:?}");
        Ok((seen == expected).then_some(()))
    })
}

#[test]
fn answer_to_all_arrives_after_the_client_is_done() -> Result<()> {
    let developer = Developer::connected(1)?;
    for server in web(&developer.lab, MANNERS)? {
        in_network(&developer.laptop, || {
            let mut stream = connect(server, b"e")?;
            let sent = "question ".repeat(100_000);
            stream.write_all(sent.as_bytes())?;
            stream.shutdown(Shutdown::Write)?;
            ensure!(read_to_end(&stream)? == sent, "another answer");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn windows_that_stay_shut_for_seconds_lose_nothing() -> Result<()> {
    let developer = Developer::connected(1)?;
    for server in web(&developer.lab, MANNERS)? {
        in_network(&developer.laptop, || {
            let mut stream = connect(server, b"l")?;
            // More than all buffers on the way hold.
            let mut sent = vec![0; 48 << 20];
            pattern::fill(1, 0, &mut sent);
            let start = Instant::now();
            stream.write_all(&sent)?;
            ensure!(start.elapsed() > LATE / 2, "no window was shut");
            stream.shutdown(Shutdown::Write)?;
            // The windows of the other direction shut meanwhile.
            std::thread::sleep(LATE);
            let mut received = Vec::new();
            stream.read_to_end(&mut received)?;
            ensure!(received == sent, "{} other bytes came back", received.len());
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn client_may_go_on_when_the_server_is_done() -> Result<()> {
    let developer = Developer::connected(1)?;
    for server in web(&developer.lab, MANNERS)? {
        in_network(&developer.laptop, || {
            let mut stream = connect(server, b"h")?;
            assert_eq!(read_to_end(&stream)?, "bye");
            stream.write_all(&[0; 100_000])?;
            stream.shutdown(Shutdown::Write)?;
            wait_for_end(server, "end of file after 100000 bytes")
        })?;
    }
    Ok(())
}

#[test]
fn reset_travels_both_ways() -> Result<()> {
    let developer = Developer::connected(1)?;
    for server in web(&developer.lab, MANNERS)? {
        in_network(&developer.laptop, || {
            let mut stream = connect(server, b"r")?;
            let mut bye = [0; 3];
            stream.read_exact(&mut bye)?;
            stream.write_all(b"x")?;
            let error = stream.read(&mut bye).err().context("no error")?;
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);

            let stream = connect(server, b"h")?;
            assert_eq!(read_to_end(&stream)?, "bye");
            SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
            drop(stream);
            wait_for_end(server, "connection reset")
        })?;
    }
    Ok(())
}

/// The error number of a connection that must fail.
fn dial_error(developer: &Developer, to: SocketAddr) -> Result<Option<i32>> {
    let error = in_network(&developer.laptop, || {
        let connected = TcpStream::connect_timeout(&to, DEADLINE);
        connected.err().context("connected")
    })?;
    Ok(error.raw_os_error())
}

#[test]
fn failed_dials_are_told_with_their_kind() -> Result<()> {
    let developer = Developer::connected(1)?;
    let manager: Value = developer
        .lab
        .kubectl(["-n", "kvpn", "get", "pods", "-ojson"])
        .run()?
        .success()?
        .json()?;
    let own = |family: usize| {
        let ip = &manager["items"][0]["status"]["podIPs"][family]["ip"];
        ip.as_str().context("the manager has no address")
    };
    for (ip, expected) in [
        // Nobody's addresses, in the subnets of pods.
        ("10.244.0.250", libc::EHOSTUNREACH),
        ("fd00:244::fa", libc::EHOSTUNREACH),
        // The traffic manager dials anything but itself. For IPv4 Linux gives
        // "prohibited" the same number as "unreachable".
        (own(0)?, libc::EHOSTUNREACH),
        (own(1)?, libc::EACCES),
    ] {
        let to = SocketAddr::new(ip.parse()?, 8_443);
        assert_eq!(dial_error(&developer, to)?, Some(expected), "{to}");
    }
    Ok(())
}

#[test]
fn routes_in_the_cluster_are_told_with_their_kind() -> Result<()> {
    let developer = Developer::connected(1)?;
    for (kind, expected) in [
        // The look-up goes on elsewhere, and finds nothing.
        ("throw", libc::ENETUNREACH),
        ("unreachable", libc::EHOSTUNREACH),
    ] {
        for ip in ["10.244.0.249", "fd00:244::f9"] {
            let _route = Route::of_manager(&developer.lab, &[kind, ip])?;
            let to = SocketAddr::new(ip.parse()?, 80);
            assert_eq!(dial_error(&developer, to)?, Some(expected), "{kind} {to}");
        }
    }
    Ok(())
}
