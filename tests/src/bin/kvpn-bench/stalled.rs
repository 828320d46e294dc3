//! Connections that nobody reads from, in both directions.

use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kvpn_tests::bench::ports::Service;
use socket2::SockRef;

use crate::target::{Target, connect};

/// A connection that has taken nothing for so long is stuck.
const STUCK: Duration = Duration::from_millis(500);

/// How long all of them may take to get stuck.
const DEADLINE: Duration = Duration::from_secs(20);

/// Connections that are stuck; reset on drop.
pub(crate) struct Stalled {
    streams: Vec<TcpStream>,
}

impl Stalled {
    /// Opens so many that the server does not read from, and as many that the
    /// client does not; waits until nothing moves on the former.
    pub(crate) fn open(target: &Target, count: usize) -> Result<Self> {
        let mut streams = Vec::new();
        if count == 0 {
            return Ok(Self { streams });
        }
        let Target::Pod(address) = target else {
            bail!("only connections to the pod can be stalled");
        };
        for _ in 0..count {
            streams.push(connect(Service::Source.at(*address))?);
        }
        let unread: Vec<TcpStream> = (0..count)
            .map(|_| connect(Service::Stall.at(*address)))
            .collect::<Result<_>>()?;
        fill(&unread)?;
        streams.extend(unread);
        Ok(Self { streams })
    }
}

impl Drop for Stalled {
    fn drop(&mut self) {
        for stream in &self.streams {
            // Otherwise the kernel would go on trying to deliver.
            drop(SockRef::from(stream).set_linger(Some(Duration::ZERO)));
        }
    }
}

/// Writes into all until they take no more.
fn fill(streams: &[TcpStream]) -> Result<()> {
    let piece = vec![0x6b; 64 << 10];
    for stream in streams {
        stream.set_nonblocking(true)?;
    }
    let start = Instant::now();
    let mut last = start;
    while last.elapsed() < STUCK {
        for mut stream in streams {
            match stream.write(&piece) {
                Ok(_) => last = Instant::now(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => (),
                Err(error) => return Err(error).context("fill a connection"),
            }
        }
        if start.elapsed() > DEADLINE {
            bail!("connections that nobody reads from take bytes without end");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
