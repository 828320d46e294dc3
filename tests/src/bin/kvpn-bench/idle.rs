//! Many connections that do nothing.

use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use kvpn_tests::bench::ports::Service;
use serde_json::{Value, json};

use crate::say;
use crate::target::{Target, exchange};

/// How many are opened at a time.
const AT_ONCE: usize = 16;

/// Opens them, lets each exchange a byte, says so, and holds them until a signal.
pub(crate) fn run(target: &Target, count: usize) -> Result<Value> {
    let start = Instant::now();
    let streams = Mutex::new(Vec::with_capacity(count));
    thread::scope(|scope| -> Result<()> {
        let threads: Vec<_> = (0..AT_ONCE)
            .map(|number| {
                let share = count / AT_ONCE + usize::from(number < count % AT_ONCE);
                let streams = &streams;
                scope.spawn(move || open(target, share, streams))
            })
            .collect();
        for thread in threads {
            thread.join().map_err(|_| anyhow!("a thread panicked"))??;
        }
        Ok(())
    })?;
    say(json!({"opened": count, "seconds": start.elapsed().as_secs_f64()}));
    loop {
        thread::park();
    }
}

type Streams = Mutex<Vec<Box<dyn crate::target::Stream>>>;

fn open(target: &Target, count: usize, streams: &Streams) -> Result<()> {
    for number in 0..count {
        let mut stream = target.open(Service::Echo)?;
        exchange(&mut stream).with_context(|| format!("connection {number} of a thread"))?;
        streams
            .lock()
            .map_err(|_| anyhow!("a thread panicked"))?
            .push(stream);
    }
    Ok(())
}
