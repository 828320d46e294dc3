//! Where traffic goes.

use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long a connection may take to open.
pub(crate) const OPEN: Duration = Duration::from_secs(20);

/// A host, by name or address, and a port.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Target {
    /// Its addresses, as the laptop resolves them: IPv4 first.
    pub(crate) async fn addresses(&self) -> Result<Vec<SocketAddr>> {
        let host = self.host.trim_matches(['[', ']']);
        let found = tokio::net::lookup_host((host, self.port));
        let mut found: Vec<SocketAddr> = timeout(OPEN, found)
            .await
            .with_context(|| format!("resolve {self}: no answer"))?
            .with_context(|| format!("resolve {self}"))?
            .collect();
        found.sort_by_key(SocketAddr::is_ipv6);
        found.dedup();
        if found.is_empty() {
            bail!("{self} has no address");
        }
        Ok(found)
    }

    /// One of its addresses, each in its turn.
    pub(crate) async fn address(&self, turn: u64) -> Result<SocketAddr> {
        let addresses = self.addresses().await?;
        Ok(addresses[(turn % addresses.len() as u64) as usize])
    }

    /// The same host at another port.
    pub(crate) fn at_port(&self, port: u16) -> Self {
        Self {
            host: self.host.clone(),
            port,
        }
    }
}

/// Opens a connection.
pub(crate) async fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = timeout(OPEN, TcpStream::connect(address))
        .await
        .with_context(|| format!("connect to {address}: no answer"))?
        .with_context(|| format!("connect to {address}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl FromStr for Target {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (host, port) = text.rsplit_once(':').context("not HOST:PORT")?;
        Ok(Self {
            host: host.to_owned(),
            port: port.parse().context("not a port")?,
        })
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}
