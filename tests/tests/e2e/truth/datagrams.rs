//! Datagrams: of any size, refused, and too long for a path.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kvpn_tests::dual_stack::any_of;
use nix::libc;

use super::{PORT, Route, in_network, web};
use crate::support::Developer;

const DEADLINE: Duration = Duration::from_secs(5);

fn socket(to: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((any_of(to.ip()), 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(DEADLINE))?;
    Ok(socket)
}

/// Whether a datagram of that size comes back.
fn echoed(socket: &UdpSocket, size: usize) -> Result<bool> {
    let sent: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
    socket.send(&sent)?;
    let mut received = vec![0; 70_000];
    match socket.recv(&mut received) {
        Ok(length) => {
            ensure!(received[..length] == sent, "another datagram of {length}");
            Ok(true)
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[test]
fn datagrams_of_every_size_come_back() -> Result<()> {
    let developer = Developer::connected(1)?;
    for (server, largest) in web(&developer.lab, PORT)?.into_iter().zip([65_507, 65_527]) {
        in_network(&developer.laptop, || {
            let socket = socket(server)?;
            for size in [0, 1, 1_200, 1_452, 1_500, 9_000, 40_000, largest] {
                ensure!(echoed(&socket, size)?, "{size} to {server} is lost");
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn refused_datagrams_are_refused_again_and_again() -> Result<()> {
    let developer = Developer::connected(1)?;
    for server in web(&developer.lab, 9)? {
        in_network(&developer.laptop, || {
            let socket = socket(server)?;
            for _ in 0..3 {
                socket.send(b"anyone?")?;
                let error = socket.recv(&mut [0; 16]).err().context("an answer")?;
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{server}");
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn host_learns_the_mtu_of_a_path_in_the_cluster() -> Result<()> {
    let developer = Developer::connected(1)?;
    for server in web(&developer.lab, PORT)? {
        let to = server.ip().to_string();
        let narrow = [&*to, "dev", "eth0", "mtu", "1400"];
        let _narrow = Route::of_manager(&developer.lab, &narrow)?;
        in_network(&developer.laptop, || {
            // One that must learn what fits, as QUIC's.
            let prober = socket(server)?;
            forbid_fragments(&prober, server)?;
            ensure!(echoed(&prober, 1_300)?, "1300 to {server} is lost");
            let start = Instant::now();
            let refused = loop {
                match echoed(&prober, 1_450) {
                    Ok(true) => anyhow::bail!("1450 to {server} arrived"),
                    Ok(false) => {}
                    Err(error) => break error,
                }
                ensure!(start.elapsed() < DEADLINE * 3, "1450 to {server} vanish");
            };
            let refused: std::io::Error = refused.downcast()?;
            assert_eq!(refused.raw_os_error(), Some(libc::EMSGSIZE), "{refused}");
            ensure!(echoed(&prober, 1_300)?, "1300 to {server} is lost");

            // One that does not care. The host cuts what it sends now.
            let plain = socket(server)?;
            for size in [1_450, 9_000] {
                ensure!(echoed(&plain, size)?, "{size} to {server} is lost");
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[expect(unsafe_code, reason = "no crate wraps this option")]
fn forbid_fragments(socket: &UdpSocket, to: SocketAddr) -> Result<()> {
    let (level, option, value) = match to {
        SocketAddr::V4(_) => (
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            libc::IP_PMTUDISC_DO,
        ),
        SocketAddr::V6(_) => (
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_DO,
        ),
    };
    // SAFETY: the descriptor is open, and the option takes an int.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    nix::errno::Errno::result(result)?;
    Ok(())
}
