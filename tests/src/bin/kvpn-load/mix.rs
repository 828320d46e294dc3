//! The mixture: short and long flows, slow readers, aborted ones, refused ones,
//! datagrams and names, until the time is over.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kvpn_tests::pattern;
use serde_json::{Value, json};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::http::{self, Reply};
use crate::target::{Target, connect};

/// How many of each kind at once.
const WORKERS: [(Kind, u64); 8] = [
    (Kind::Short, 4),
    (Kind::Long, 2),
    (Kind::Slow, 4),
    (Kind::AbortedDownload, 2),
    (Kind::AbortedUpload, 2),
    (Kind::Refused, 1),
    (Kind::Datagrams, 2),
    (Kind::Names, 1),
];

const LONG: u64 = 8 << 20;
const SLOW: u64 = 2 << 20;
const PAUSE: Duration = Duration::from_millis(20);

/// How long a datagram may be on its way.
const DATAGRAM: Duration = Duration::from_secs(1);

/// How many failures are told.
const TOLD: usize = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Short,
    Long,
    Slow,
    AbortedDownload,
    AbortedUpload,
    Refused,
    Datagrams,
    Names,
}

/// What has happened so far.
#[derive(Debug, Default)]
struct Counts {
    done: BTreeMap<Kind, u64>,
    failures: Vec<String>,
    failed: u64,
    datagrams: u64,
    lost: u64,
}

#[derive(Clone, Debug)]
struct Mix {
    service: Target,
    pod: Target,
    end: Instant,
    counts: Arc<Mutex<Counts>>,
}

pub(crate) async fn run(service: Target, pod: Target, time: Duration) -> Result<Value> {
    let mix = Mix {
        service,
        pod,
        end: Instant::now() + time,
        counts: Arc::default(),
    };
    let mut workers = JoinSet::new();
    for (kind, number) in WORKERS {
        for worker in 0..number {
            workers.spawn(mix.clone().work(kind, worker));
        }
    }
    while let Some(worker) = workers.join_next().await {
        worker.context("work")?;
    }
    let counts = mix.counts.lock().unwrap_or_else(PoisonError::into_inner);
    let done: serde_json::Map<String, Value> = counts
        .done
        .iter()
        .map(|(kind, number)| (format!("{kind:?}").to_lowercase(), json!(number)))
        .collect();
    ensure!(
        counts.failed == 0,
        "{} failures among {done:?}:\n{}",
        counts.failed,
        counts.failures.join("\n")
    );
    Ok(json!({"done": done, "datagrams": counts.datagrams, "datagrams_lost": counts.lost}))
}

impl Mix {
    async fn work(self, kind: Kind, worker: u64) {
        // Turns count through families and seeds alike, differently each.
        let mut turn = worker;
        while Instant::now() < self.end {
            let result = self.once(kind, turn).await;
            let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
            *counts.done.entry(kind).or_default() += 1;
            if let Err(error) = result {
                counts.failed += 1;
                if counts.failures.len() < TOLD {
                    counts.failures.push(format!("{kind:?}: {error:#}"));
                }
            }
            turn += 1;
        }
    }

    async fn once(&self, kind: Kind, turn: u64) -> Result<()> {
        match kind {
            Kind::Short => {
                let mut stream = connect(self.service.address(turn).await?).await?;
                http::page(&mut stream).await
            }
            Kind::Long => http::echo(self.service.address(turn).await?, turn + 1, LONG).await,
            Kind::Slow => http::download(self.pod.address(turn).await?, SLOW, PAUSE).await,
            Kind::AbortedDownload => self.abort_download(turn).await,
            Kind::AbortedUpload => self.abort_upload(turn).await,
            Kind::Refused => self.be_refused(turn).await,
            Kind::Datagrams => self.exchange(turn).await,
            Kind::Names => self.resolve().await,
        }
    }

    /// Resets a connection in the midst of what comes.
    async fn abort_download(&self, turn: u64) -> Result<()> {
        let mut stream = connect(self.service.address(turn).await?).await?;
        http::get(&mut stream, "/bytes/50000000", false).await?;
        stream.set_zero_linger()?;
        let mut reply = Reply::new(stream);
        reply.length().await?;
        let first = reply.some(8).await?;
        ensure!(pattern::matches(0, 0, &first), "wrong first bytes");
        Ok(())
    }

    /// Resets a connection before all is sent.
    async fn abort_upload(&self, turn: u64) -> Result<()> {
        let stream = connect(self.service.address(turn).await?).await?;
        stream.set_zero_linger()?;
        // The server is told of more than it gets, and is still waiting for it.
        let sending = http::upload(stream, "POST", "/echo", 1, LONG);
        match timeout(Duration::from_millis(5 + turn % 20), sending).await {
            Ok(sent) => sent.map(drop),
            Err(_) => Ok(()),
        }
    }

    async fn be_refused(&self, turn: u64) -> Result<()> {
        let address = self.pod.at_port(1).address(turn).await?;
        match connect(address).await {
            Ok(_) => bail!("{address} looks open"),
            Err(error) => {
                let refused = error.chain().any(|cause| {
                    let cause = cause.downcast_ref::<std::io::Error>();
                    cause.is_some_and(|io| io.kind() == std::io::ErrorKind::ConnectionRefused)
                });
                ensure!(refused, "{error:#}");
                Ok(())
            }
        }
    }

    /// Sends datagrams of many sizes from one port, each after the last one's
    /// echo. One that comes back changed counts as lost.
    async fn exchange(&self, turn: u64) -> Result<()> {
        let address = self.pod.address(turn).await?;
        let any: SocketAddr = match address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any).await.context("bind")?;
        socket.connect(address).await.context("connect")?;
        for number in 0..100_u64 {
            let size = (1 + (turn * 31 + number * 97) % 1400) as usize;
            let mut sent = vec![0; size];
            pattern::fill(turn * 100 + number, 0, &mut sent);
            socket.send(&sent).await.context("send a datagram")?;
            let came = timeout(DATAGRAM, receive(&socket, &sent)).await;
            let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
            counts.datagrams += 1;
            match came {
                Ok(received) => received?,
                Err(_) => counts.lost += 1,
            }
        }
        Ok(())
    }

    async fn resolve(&self) -> Result<()> {
        for target in [&self.service, &self.pod] {
            target.addresses().await?;
        }
        let missing = Target {
            host: "no-such.shop.svc.cluster.local".to_owned(),
            port: 80,
        };
        ensure!(missing.addresses().await.is_err(), "{missing} resolves");
        Ok(())
    }
}

/// Waits for a datagram's echo; one that was late may come before it.
async fn receive(socket: &UdpSocket, expected: &[u8]) -> Result<()> {
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let size = socket.recv(&mut buffer).await.context("receive")?;
        if buffer[..size] == *expected {
            return Ok(());
        }
    }
}
