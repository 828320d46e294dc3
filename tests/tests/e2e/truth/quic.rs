//! QUIC, which looks after loss, order and the path's MTU by itself.

use std::io::Read;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvpn_tests::dual_stack::any_of;
use kvpn_tests::pattern;
use quinn::{ClientConfig, Connection, Endpoint};
use rustls::RootCertStore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{MANNERS, connect, in_network, web};
use crate::support::Developer;

const DEADLINE: Duration = Duration::from_secs(20);

const STREAMS: u64 = 4;
const LENGTH: usize = 2 << 20;

/// The name that the server's certificate is for.
const NAME: &str = "quic";

/// What every path carries (RFC 9000 section 14).
const SMALLEST_MTU: u16 = 1_200;

#[test]
fn quic_carries_streams_both_ways_and_finds_a_larger_mtu() -> Result<()> {
    let developer = Developer::connected(1)?;
    for server in web(&developer.lab, MANNERS)? {
        in_network(&developer.laptop, || {
            let certificate = certificate(server)?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                timeout(DEADLINE, exchange(server, certificate))
                    .await
                    .with_context(|| format!("{server} is too slow"))?
            })
        })?;
    }
    Ok(())
}

/// What the server is to be trusted by.
fn certificate(server: SocketAddr) -> Result<Vec<u8>> {
    let mut stream = connect(server, b"c")?;
    let mut certificate = Vec::new();
    stream.read_to_end(&mut certificate)?;
    Ok(certificate)
}

async fn exchange(server: SocketAddr, certificate: Vec<u8>) -> Result<()> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.into())?;
    let endpoint = Endpoint::client((any_of(server.ip()), 0).into())?;
    let config = ClientConfig::with_root_certificates(Arc::new(roots))?;
    let connection = endpoint.connect_with(config, server, NAME)?.await?;
    let mut streams = JoinSet::new();
    for seed in 0..STREAMS {
        streams.spawn(echoed(connection.clone(), seed));
    }
    while let Some(stream) = streams.join_next().await {
        stream??;
    }
    let mtu = connection.stats().path.current_mtu;
    ensure!(mtu > SMALLEST_MTU, "{server}: the MTU stays at {mtu}");
    Ok(())
}

/// Sends much on a stream of its own while it comes back.
async fn echoed(connection: Connection, seed: u64) -> Result<()> {
    let mut sent = vec![0; LENGTH];
    pattern::fill(seed, 0, &mut sent);
    let (mut send, mut receive) = connection.open_bi().await?;
    let sending = async {
        send.write_all(&sent).await?;
        anyhow::Ok(send.finish()?)
    };
    let receiving = async { anyhow::Ok(receive.read_to_end(LENGTH).await?) };
    let ((), received) = tokio::try_join!(sending, receiving)?;
    ensure!(received == sent, "other bytes came back");
    Ok(())
}
