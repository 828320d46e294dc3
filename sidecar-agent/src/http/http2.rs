//! HTTP/2 without TLS, begun with prior knowledge (RFC 9113 section 3.3), as gRPC does.
//! Each stream goes to whom it is for, in a connection of HTTP/2 to each server.

mod stream;
mod ways;

use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use h2::server;
use tokio::time::timeout;

use super::joined::Joined;
use super::{Broken, End, Servers};
use ways::Ways;

/// What a client begins with (RFC 9113 section 3.4).
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How much of a stream and of a connection may be on its way, in bytes.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// How much frames of data that wait may take besides, in bytes of those that each is
/// shorter than 256: a quarter of the window when they have four each.
const FRAME_BUDGET: usize = 64 << 20;

/// How much of a stream waits to be sent, in bytes.
const SEND_BUFFER: usize = 256 << 10;

/// How many streams a client may have at a time.
const MAX_STREAMS: u32 = 1_000;

/// How many streams a server takes before it has said how many (RFC 9113 section 6.5.2
/// recommends no fewer).
const FIRST_STREAMS: usize = 100;

/// How many streams that were reset are remembered for the frames that still come.
const MAX_RESETS: usize = MAX_STREAMS as usize;

/// The longest head, in bytes.
const LONGEST_HEAD: u32 = 64 << 10;

/// How long the connections to servers may take to end in order.
const END_DEADLINE: Duration = Duration::from_secs(5);

/// How a frame of settings on stream 0 begins, but for its length (RFC 9113 sections 4.1
/// and 6.5).
const SETTINGS: [Option<u8>; 9] = {
    let zero = Some(0);
    [zero, None, None, Some(4), zero, zero, zero, zero, zero]
};

/// Whether it begins as a server of HTTP/2 does (RFC 9113 section 3.4), as far as it goes.
pub(super) fn is_greeting(said: &[u8]) -> bool {
    let mut begun = said.iter().zip(SETTINGS);
    begun.all(|(byte, wanted)| wanted.is_none_or(|wanted| wanted == *byte))
}

/// Serves a client that has sent the preface until its connection ends. `app` is a
/// connection that nothing was said on.
///
/// # Errors
/// What did not end in order; the client's connection should be aborted.
pub(super) async fn serve(
    client: End,
    app: Option<End>,
    servers: &impl Servers,
) -> Result<(), Broken> {
    let mut connection = server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .data_frame_budget(FRAME_BUDGET)
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(LONGEST_HEAD)
        .max_concurrent_reset_streams(MAX_RESETS)
        .handshake(Joined::new(client))
        .await?;
    let ways = Ways::new(servers, app);
    let mut streams = FuturesUnordered::new();
    let served = loop {
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => streams.push(stream::pass(request, respond, &ways)),
                // Clients may just leave when nothing is awaited.
                Some(Err(error)) if error.is_io() && streams.is_empty() => break Ok(()),
                Some(Err(error)) => break Err(error.into()),
                None => break Ok(()),
            },
            Some(()) = streams.next() => {}
            // The client would find another one.
            () = ways.app_ended() => connection.graceful_shutdown(),
        }
    };
    // Those that go on have lost their client.
    drop(streams);
    let _ = timeout(END_DEADLINE, ways.close()).await;
    served
}

#[cfg(test)]
mod tests;
