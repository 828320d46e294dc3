//! Holds packets of a netfilter queue for a fixed time, in their order.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::{ErrorKind, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nfq::{Message, Queue, Verdict};

/// How many packets may be on the wire at once; more are lost, as on a real one.
const CAPACITY: u32 = 100_000;

/// How late a packet may be noticed.
const LOOK_AGAIN: Duration = Duration::from_micros(250);

/// Delays the packets of a queue until a signal ends the process.
pub(crate) fn run(number: u16, delay: Duration) -> Result<Infallible> {
    let mut queue = Queue::open().context("open netfilter queues")?;
    queue.bind(number).context("bind the queue")?;
    // The packets themselves are of no interest.
    queue
        .set_copy_range(number, 0)
        .context("leave payloads in the kernel")?;
    queue
        .set_queue_max_len(number, CAPACITY)
        .context("enlarge the queue")?;
    queue
        .set_recv_gso(number, true)
        .context("keep segments together")?;
    queue.set_nonblocking(true);
    writeln!(std::io::stdout(), "ready").context("say ready")?;

    let mut held: VecDeque<(Instant, Message)> = VecDeque::new();
    loop {
        match queue.recv() {
            Ok(message) => held.push_back((Instant::now() + delay, message)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                // The crate gives no descriptor to poll, so this looks often.
                let due = held
                    .front()
                    .map(|(due, _)| due.saturating_duration_since(Instant::now()));
                std::thread::sleep(due.map_or(LOOK_AGAIN, |due| due.min(LOOK_AGAIN)));
            }
            Err(error) => return Err(error).context("receive packets"),
        }
        let now = Instant::now();
        while held.front().is_some_and(|(due, _)| *due <= now) {
            let Some((_, mut message)) = held.pop_front() else {
                break;
            };
            message.set_verdict(Verdict::Accept);
            queue.verdict(message).context("release a packet")?;
        }
    }
}
