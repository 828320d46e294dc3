//! Short connections in a row. The server ends each first, so that its side, and
//! not the laptop's, remembers the ports, which are soon used again.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::net::TcpSocket;
use tokio::time::timeout;

use crate::http;
use crate::target::{OPEN, Target};

/// Where the ports begin; those that the kernel chooses begin later.
const FIRST_PORT: u16 = 20_000;

pub(crate) async fn run(target: &Target, count: u32, ports: u16) -> Result<Value> {
    let addresses = target.addresses().await?;
    let begin = Instant::now();
    let mut slowest = Duration::ZERO;
    for number in 0..count {
        let address = addresses[number as usize % addresses.len()];
        let port = FIRST_PORT + (number % u32::from(ports)) as u16;
        let start = Instant::now();
        once(address, port)
            .await
            .with_context(|| format!("connection {number} from port {port} to {address}"))?;
        slowest = slowest.max(start.elapsed());
    }
    let seconds = begin.elapsed().as_secs_f64();
    Ok(json!({
        "connections": count,
        "seconds": seconds,
        "per_second": f64::from(count) / seconds,
        "slowest_ms": slowest.as_secs_f64() * 1000.0,
    }))
}

async fn once(address: SocketAddr, port: u16) -> Result<()> {
    let (socket, any): (_, IpAddr) = match address {
        SocketAddr::V4(_) => (TcpSocket::new_v4()?, Ipv4Addr::UNSPECIFIED.into()),
        SocketAddr::V6(_) => (TcpSocket::new_v6()?, Ipv6Addr::UNSPECIFIED.into()),
    };
    socket.set_reuseaddr(true)?;
    socket.bind((any, port).into()).context("bind")?;
    let mut stream = timeout(OPEN, socket.connect(address))
        .await
        .context("no answer")?
        .context("connect")?;
    http::page(&mut stream).await
}
