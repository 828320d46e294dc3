//! A TCP server with odd manners, to see whether they reach its client. The
//! first byte says which:
//!
//! - `e`: says nothing until the client is done, then all it got.
//! - `l`: the same, and is late to read.
//! - `h`: says `bye`, is done, and goes on listening to the client.
//! - `r`: says `bye`, and resets the connection once the client speaks again.
//! - `?`: tells how the client of the last `h` ended.
//! - `c`: tells the certificate of the QUIC server at the same port.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// How the client of the last half-closed connection ended.
type Ended = Arc<Mutex<String>>;

/// For how long a late reader does not read.
const LATE: Duration = Duration::from_secs(3);

/// Serves for ever.
pub(crate) async fn serve(listener: TcpListener, certificate: Vec<u8>) {
    let ended = Ended::default();
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            let (ended, certificate) = (ended.clone(), certificate.clone());
            tokio::spawn(async move {
                // A client that goes away is not this server's trouble.
                drop(behave(stream, ended, &certificate).await);
            });
        }
    }
}

async fn behave(mut stream: TcpStream, ended: Ended, certificate: &[u8]) -> io::Result<()> {
    match stream.read_u8().await? {
        manner @ (b'e' | b'l') => {
            if manner == b'l' {
                tokio::time::sleep(LATE).await;
            }
            let mut got = Vec::new();
            stream.read_to_end(&mut got).await?;
            stream.write_all(&got).await
        }
        b'h' => {
            note(&ended, "not yet");
            stream.write_all(b"bye").await?;
            stream.shutdown().await?;
            let mut got = Vec::new();
            match stream.read_to_end(&mut got).await {
                Ok(length) => note(&ended, &format!("end of file after {length} bytes")),
                Err(error) => note(&ended, &error.kind().to_string()),
            }
            Ok(())
        }
        b'r' => {
            stream.write_all(b"bye").await?;
            stream.read_u8().await?;
            SockRef::from(&stream).set_linger(Some(Duration::ZERO))
        }
        b'?' => {
            let text = ended.lock().unwrap_or_else(PoisonError::into_inner).clone();
            stream.write_all(text.as_bytes()).await
        }
        b'c' => stream.write_all(certificate).await,
        _ => Ok(()),
    }
}

fn note(ended: &Ended, how: &str) {
    how.clone_into(&mut ended.lock().unwrap_or_else(PoisonError::into_inner));
}
