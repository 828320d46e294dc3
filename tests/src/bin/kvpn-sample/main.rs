//! The sample application: an HTTP server that says who it is and what it was
//! asked, and one line about each request on stdout. Datagrams to the same port
//! come back as they are, but for one that asks who is there.

use std::convert::Infallible;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use hyper_util::rt::TokioIo;
use kvpn_tests::WHO;
use kvpn_tests::dual_stack::{bind, bind_at, listen, listen_at};
use tokio::net::UdpSocket;
use tokio::signal::unix::{SignalKind, signal};

mod answer;
mod manners;
mod pattern;
mod quic;

/// A small service, to try kvpn with
#[derive(Clone, Debug, Parser)]
struct Options {
    /// Port to listen on
    #[arg(long, env = "PORT", default_value_t = 8080)]
    port: u16,
    /// Address to listen on; `::` for every one of both families
    #[arg(long, env = "ADDRESS", default_value = "::")]
    address: IpAddr,
    /// Name to answer with
    #[arg(long, env = "SERVICE", default_value = "sample")]
    service: String,
    /// Name of the pod to answer with
    #[arg(long, env = "POD", default_value = "")]
    pod: String,
    /// Port of a TCP server with odd manners and, over UDP, of a QUIC server
    #[arg(long, env = "MANNERS_PORT")]
    manners_port: Option<u16>,
    /// HOST:PORT of the service that /chain calls
    #[arg(long, env = "UPSTREAM")]
    upstream: Option<String>,
    /// Milliseconds between jobs, which are nothing but waking up
    #[arg(long, env = "JOBS_MS")]
    jobs_ms: Option<u64>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    match runtime
        .context("start")
        .and_then(|runtime| runtime.block_on(serve(options)))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kvpn-sample: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Serves until SIGTERM.
async fn serve(options: Options) -> Result<()> {
    let listener = listen_at(options.address, options.port)?;
    let socket = bind_at(options.address, options.port)?;
    tokio::spawn(echo(socket, options.service.clone()));
    if let Some(port) = options.manners_port {
        let quic = quic::Server::new(bind(port)?)?;
        tokio::spawn(manners::serve(listen(port)?, quic.certificate()));
        tokio::spawn(quic.serve());
    }
    if let Some(pause) = options.jobs_ms.map(Duration::from_millis) {
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(pause);
            }
        });
    }
    say(&format!(
        "{} listens on port {}",
        options.service, options.port
    ));
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    loop {
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => accepted.context("accept")?,
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        };
        // As people expect to see it, not as IPv6.
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let options = options.clone();
        tokio::spawn(async move {
            let service = hyper::service::service_fn(|request| {
                let options = options.clone();
                async move { Ok::<_, Infallible>(answer::answer(&options, peer, request).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service);
            // A client that goes away is not this server's trouble.
            drop(connection.await);
        });
    }
}

/// Sends every datagram back to where it came from, or says who it is.
async fn echo(socket: UdpSocket, service: String) {
    let mut datagram = vec![0; usize::from(u16::MAX)];
    loop {
        // An error is about an earlier datagram, whose sender is gone.
        if let Ok((size, peer)) = socket.recv_from(&mut datagram).await {
            let answer = match &datagram[..size] {
                asked if asked == WHO.as_bytes() => {
                    say("A datagram asks who is there");
                    service.as_bytes()
                }
                other => other,
            };
            drop(socket.send_to(answer, peer).await);
        }
    }
}

/// Prints a line at once, also into a pipe.
fn say(line: &str) {
    let mut stdout = std::io::stdout().lock();
    // Nobody may be listening.
    drop(writeln!(stdout, "{line}").and_then(|()| stdout.flush()));
}
