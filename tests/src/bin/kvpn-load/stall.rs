//! Connections whose server never reads, and how quickly others open beside them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::http;
use crate::target::{Target, connect};

/// A connection is full when nothing more is taken for that long.
const FULL: Duration = Duration::from_millis(500);

/// More than all buffers on the way hold.
const ENOUGH: usize = 1 << 30;

pub(crate) async fn run(target: &Target, flows: usize, probes: usize) -> Result<Value> {
    let before = first_bytes(target, probes).await?;
    let mut full = Vec::new();
    for number in 0..flows {
        let stream = connect(target.address(number as u64).await?).await?;
        full.push(tokio::spawn(fill(stream)));
    }
    let (mut taken, mut held) = (0, Vec::new());
    for stream in full {
        let (stream, size) = stream.await.context("fill a connection")??;
        taken += size;
        held.push(stream);
    }
    let beside = first_bytes(target, probes).await?;
    Ok(json!({
        "flows": held.len(),
        "taken_bytes": taken,
        "before": before.describe(),
        "beside": beside.describe(),
    }))
}

/// Sends until nothing more is taken.
async fn fill(mut stream: TcpStream) -> Result<(TcpStream, usize)> {
    let head = format!("POST /unread HTTP/1.1\r\nHost: load\r\nContent-Length: {ENOUGH}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.context("send")?;
    let piece = vec![0; 64 * 1024];
    let mut taken = 0;
    while taken < ENOUGH - piece.len() {
        match timeout(FULL, stream.write(&piece)).await {
            Ok(size) => taken += size.context("send")?,
            Err(_) => return Ok((stream, taken)),
        }
    }
    bail!("the server reads");
}

/// Times to the first byte of a new connection's answer, in order.
struct Times(Vec<Duration>);

impl Times {
    fn describe(&self) -> Value {
        let at = |share: usize| {
            let index = (self.0.len() * share / 100).min(self.0.len().saturating_sub(1));
            self.0.get(index).map(|time| time.as_micros() as u64)
        };
        json!({"p50_us": at(50), "p95_us": at(95), "max_us": at(100)})
    }
}

async fn first_bytes(target: &Target, probes: usize) -> Result<Times> {
    let addresses = target.addresses().await?;
    let mut times = Vec::new();
    for probe in 0..probes {
        let start = Instant::now();
        let mut stream = connect(addresses[probe % addresses.len()]).await?;
        http::get(&mut stream, "/load", false).await?;
        timeout(http::SILENCE, stream.readable())
            .await
            .context("no first byte")??;
        times.push(start.elapsed());
    }
    times.sort();
    Ok(Times(times))
}
