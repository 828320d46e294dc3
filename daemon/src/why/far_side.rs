//! Whether the far side accepts.

use std::io::{Error, ErrorKind};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use kvpn_proto::story::{Place, Step};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long it may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// Connects by TCP, and hangs up.
pub(super) async fn knock(address: IpAddr, port: u16) -> Step {
    let start = Instant::now();
    let connected = timeout(DEADLINE, TcpStream::connect((address, port))).await;
    match connected {
        Ok(Ok(_)) => Step::on(
            Place::FarSide,
            format!(
                "{address} accepts connections to port {port}, after {:.1} ms.",
                start.elapsed().as_secs_f64() * 1_000.0
            ),
        ),
        Ok(Err(error)) => Step::stop(Place::FarSide, refusal(address, port, &error)),
        Err(_) => Step::stop(
            Place::FarSide,
            format!(
                "{address} does not answer on port {port} within {} s: a firewall or \
                 NetworkPolicy may drop packets, or nothing has that address.",
                DEADLINE.as_secs()
            ),
        ),
    }
}

fn refusal(address: IpAddr, port: u16, error: &Error) -> String {
    let kind = error.kind();
    if kind == ErrorKind::ConnectionRefused {
        format!("{address} refuses connections to port {port}: nothing listens there.")
    } else if kind == ErrorKind::HostUnreachable {
        format!("{address} cannot be reached: nothing has that address, or a firewall says so.")
    } else if kind == ErrorKind::NetworkUnreachable {
        format!("There is no way to {address} from there.")
    } else {
        format!("A connection to port {port} of {address} fails: {error}.")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn port_that_listens_accepts_and_another_refuses() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let address = "127.0.0.1".parse().unwrap();
        let step = knock(address, port).await;
        assert!(step.ok && step.text.contains("accepts"), "{step:?}");
        drop(listener);
        let step = knock(address, port).await;
        assert!(!step.ok && step.text.contains("refuses"), "{step:?}");
    }
}
