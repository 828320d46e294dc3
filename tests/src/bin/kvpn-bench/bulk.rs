//! Flows that carry as much as they can.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kvpn_tests::bench::ports::Service;
use serde_json::{Value, json};

use crate::target::{Stream, Target};
use crate::{Direction, Time};

/// Bytes that are read or written at once.
const PIECE: usize = 256 << 10;

/// Flows that run until the process ends.
pub(crate) struct Bulk {
    bytes: Arc<AtomicU64>,
    failures: Receiver<anyhow::Error>,
}

/// Measures flows in one direction.
pub(crate) fn run(
    target: &Target,
    direction: Direction,
    flows: usize,
    time: Time,
) -> Result<Value> {
    let bulk = Bulk::start(target, direction, flows)?;
    bulk.pass(time.warm)?;
    let (before, start) = (bulk.bytes(), Instant::now());
    bulk.pass(time.seconds)?;
    let (after, seconds) = (bulk.bytes(), start.elapsed().as_secs_f64());
    Ok(json!({
        "bits_per_second": (after - before) as f64 * 8.0 / seconds,
        "seconds": seconds,
        "all_bytes": after,
    }))
}

impl Bulk {
    /// Opens the flows, each with a thread of its own.
    pub(crate) fn start(target: &Target, direction: Direction, flows: usize) -> Result<Self> {
        let (failure_tx, failures) = channel();
        let bytes = Arc::new(AtomicU64::new(0));
        let service = match direction {
            Direction::Down => Service::Source,
            Direction::Up => Service::Sink,
        };
        for _ in 0..flows {
            let stream = target.open(service)?;
            let (bytes, failure_tx) = (Arc::clone(&bytes), Sender::clone(&failure_tx));
            std::thread::spawn(move || {
                let Err(error) = carry(stream, direction, &bytes);
                // The measurement may be over.
                drop(failure_tx.send(error));
            });
        }
        Ok(Self { bytes, failures })
    }

    /// All bytes so far, of all flows.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Lets time pass; fails when a flow does.
    pub(crate) fn pass(&self, time: Duration) -> Result<()> {
        match self.failures.recv_timeout(time) {
            Ok(error) => Err(error),
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Err(RecvTimeoutError::Disconnected) => bail!("there are no flows"),
        }
    }
}

/// Carries bytes until that fails.
fn carry(
    mut stream: Box<dyn Stream>,
    direction: Direction,
    bytes: &AtomicU64,
) -> Result<std::convert::Infallible> {
    let mut buffer = vec![0x6b; PIECE];
    loop {
        let carried = match direction {
            Direction::Down => stream.read(&mut buffer),
            Direction::Up => stream.write(&buffer),
        };
        match carried {
            Ok(0) => bail!("the connection ended"),
            Ok(size) => bytes.fetch_add(size as u64, Ordering::Relaxed),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).context("carry bytes"),
        };
    }
}
