//! HTTP/1. The bytes of requests and responses pass as they are; only their heads are
//! read (RFC 9112).

mod body;
mod exchange;
mod head;
mod kept;

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncWriteExt, copy, sink};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;

use super::http2::{self, PREFACE};
use super::{Broken, Connection, End, Server, Servers, taps_of_all};
use crate::reports::Entry;
use crate::tls;
use exchange::{Next, exchange};
pub(super) use head::NotHttp;
use head::RequestHead;
use kept::{Kept, Said};

/// How long a client may be silent at first, before the server is asked whether it
/// begins, unless the client is known to be the first.
const SILENCE: Duration = Duration::from_millis(30);

/// How long a client may keep silent that is known to be the first to speak, before a server
/// is asked all the same; and one that nobody can greet, before it is cut off. Some connect
/// before they have anything to ask.
const WORD_DEADLINE: Duration = if cfg!(test) {
    Duration::from_millis(100)
} else {
    Duration::from_secs(10)
};

/// How long a client may take over a head that it has begun, before the server is
/// left to judge it.
const HEAD_DEADLINE: Duration = if cfg!(test) {
    Duration::from_millis(100)
} else {
    Duration::from_secs(60)
};

/// How long a server may take over what nobody asked for.
const UNASKED_DEADLINE: Duration = Duration::from_secs(5);

/// How long what a client still sends is read: closing at once would take back the
/// answer that it has not read yet.
const LINGER: Duration = Duration::from_secs(5);

/// What a client is answered when nobody may answer for the holder of a claim.
const UNAVAILABLE: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\n\
    content-length: 0\r\n\r\n";

/// What has come of a client's connection.
pub(crate) enum Served {
    Ended,
    /// It begins with TLS that is to be ended, and nothing of it has been passed on.
    Tls(End),
}

/// Serves a client until its connection ends, or begins with TLS.
///
/// # Errors
/// What did not end in order; the client's connection should be aborted.
pub(crate) async fn serve(client: End, servers: &impl Servers) -> Result<Served, Broken> {
    let mut kept = Kept::default();
    let served = serve_requests(client, servers, &mut kept).await;
    kept.close().await;
    served
}

async fn serve_requests(
    mut client: End,
    servers: &impl Servers,
    kept: &mut Kept,
) -> Result<Served, Broken> {
    let (patience, left) = match servers.is_clients_word() {
        true => (WORD_DEADLINE, Duration::ZERO),
        false => (SILENCE, WORD_DEADLINE),
    };
    if client.buffer.is_empty() {
        match timeout(patience, client.fill()).await {
            Ok(read) => drop(read?),
            // A server may be the first to speak. If it cannot be had, a request may still
            // be for somebody who can.
            Err(_) => greet(&mut client, servers, kept, left).await?,
        }
    }
    let mut is_first = true;
    loop {
        match next(&mut client, kept).await? {
            Came::Request(head) => {
                is_first = false;
                let server = servers.choose(&head);
                let passed = pass_request(&mut client, kept, servers, server, &head).await?;
                let Passed::On(next, (server, end)) = passed else {
                    client.writer.write_all(UNAVAILABLE).await?;
                    return finish(client, kept).await;
                };
                match next {
                    Next::Request => kept.put((server, end)),
                    Next::End => {
                        kept.put((server, end));
                        return finish(client, kept).await;
                    }
                    Next::Other => return splice(client, end, kept).await,
                    // The client may know better where its answer ends.
                    Next::Unknown if server == Server::App || server == servers.other() => {
                        return splice(client, end, kept).await;
                    }
                    Next::Unknown => return Err(Broken::Answer(NotHttp)),
                }
            }
            Came::Http2 if is_first => {
                let app = kept.of(&Server::App);
                std::mem::take(kept).close().await;
                http2::serve(client, app, servers).await?;
                return Ok(Served::Ended);
            }
            Came::Unasked(server, mut end) if is_first => {
                let mut entry = servers.note_other(&servers.other());
                if server == Server::App {
                    entry.has_failed();
                }
                entry.taken_by(&server);
                entry.tell();
                end.writer.taps = taps_of_all(servers);
                return splice(client, end, kept).await;
            }
            // Such as that it has waited for too long.
            Came::Unasked(_, mut end) => {
                client.writer.write_all(&end.buffer).await?;
                let rest = copy(&mut end.reader, &mut client.writer);
                if let Ok(passed) = timeout(UNASKED_DEADLINE, rest).await {
                    passed?;
                }
                let _ = end.writer.shutdown().await;
                return finish(client, kept).await;
            }
            Came::NotHttp | Came::Http2 => {
                let is_tls = is_first && tls::is_hello(&client.buffer);
                if is_tls && servers.ends_tls() && !kept.has_spoken() {
                    return Ok(Served::Tls(client));
                }
                let server = servers.other();
                let mut entry = servers.note_other(&server);
                if is_tls {
                    entry.is_tls();
                }
                let (_, mut end) = kept.take(servers, server, &mut entry).await?;
                entry.tell();
                end.writer.taps = taps_of_all(servers);
                return splice(client, end, kept).await;
            }
            Came::End => return finish(client, kept).await,
        }
    }
}

/// Gives a server the word, as the client is silent. When it does not come, and nobody may
/// speak for it, the client has so long left.
async fn greet(
    client: &mut End,
    servers: &impl Servers,
    kept: &mut Kept,
    left: Duration,
) -> Result<(), Broken> {
    let other = servers.other();
    let is_closed = servers.fails_closed(&other);
    let mut entry = Entry::untold();
    let taken = kept.take(servers, other.clone(), &mut entry).await;
    let error = match taken {
        Ok(connection) => {
            kept.put(connection);
            return Ok(());
        }
        Err(error) => error,
    };
    debug!(%error, "Nobody there to speak first");
    // It may also have spoken while the server was asked; even without time left that is read.
    if is_closed && timeout(left, client.fill()).await.is_err() {
        servers.note_other(&other).has_failed();
        return Err(error.into());
    }
    Ok(())
}

/// What comes next on a client's connection.
enum Came {
    Request(RequestHead),
    Http2,
    NotHttp,
    /// What a server says in its turn.
    Unasked(Server, End),
    End,
}

/// Waits for what comes next. When the connection to the app that is kept ends
/// meanwhile, so does the client's, unless it has begun a request.
async fn next(client: &mut End, kept: &mut Kept) -> io::Result<Came> {
    let mut deadline = None;
    loop {
        if client.buffer.starts_with(PREFACE) {
            return Ok(Came::Http2);
        }
        match RequestHead::read(&client.buffer) {
            // What a server said before it was not asked for.
            Ok(Some(head)) if !kept.has_spoken() => return Ok(Came::Request(head)),
            Ok(Some(_)) => {}
            Ok(None) if client.buffer.len() < head::LONGEST => {}
            Ok(None) | Err(NotHttp) if PREFACE.starts_with(&client.buffer) => {}
            Ok(None) | Err(NotHttp) => return Ok(Came::NotHttp),
        }
        let is_idle = client.buffer.is_empty();
        if !is_idle {
            deadline.get_or_insert_with(|| Instant::now() + HEAD_DEADLINE);
        }
        let too_late = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // A server that has ended is not to be asked.
            biased;
            said = kept.unasked() => match said {
                Said::Words(server, end) => return Ok(Came::Unasked(server, end)),
                Said::End(Server::App) if is_idle => return Ok(Came::End),
                Said::End(_) => {}
            },
            read = client.fill() => match read? {
                0 if is_idle => return Ok(Came::End),
                0 => return Ok(Came::NotHttp),
                _ => {}
            },
            () = too_late => return Ok(Came::NotHttp),
        }
    }
}

/// Where a request went.
enum Passed {
    On(Next, Connection),
    /// Nobody may answer for the holder of its claim, who cannot be had.
    Nowhere,
}

/// Passes a request to who was chosen, or to the app for a holder who cannot be had,
/// and the response back.
async fn pass_request(
    client: &mut End,
    kept: &mut Kept,
    servers: &impl Servers,
    server: Server,
    head: &RequestHead,
) -> Result<Passed, Broken> {
    let is_closed = servers.fails_closed(&server);
    let mut entry = servers.note(&server, head);
    // A holder may have ended a connection that it was not asked on for long, and the
    // news be still on its way. The app's is the client's own.
    let is_repeatable = server != Server::App && kept.has(&server) && head.is_safe();
    let request = is_repeatable.then(|| BytesMut::from(&client.buffer[..head.length]));
    let mut connection = match kept.take(servers, server, &mut entry).await {
        Err(_) if is_closed => {
            entry.answered(503);
            return Ok(Passed::Nowhere);
        }
        taken => taken?,
    };
    connection.1.writer.taps = kept.taps(servers, servers.copied(head));
    let exchanged = exchange(client, &mut connection.1, head, &mut entry).await;
    match (exchanged, request) {
        (Err(Broken::NoAnswer), Some(mut request)) => {
            request.unsplit(std::mem::take(&mut client.buffer));
            client.buffer = request;
            let (server, end) = connection;
            let mut connection = match kept.take(servers, server, &mut entry).await {
                Err(_) if is_closed => {
                    entry.answered(503);
                    return Ok(Passed::Nowhere);
                }
                taken => taken?,
            };
            // They have the request already.
            drop(end);
            let next = exchange(client, &mut connection.1, head, &mut entry).await;
            Ok(Passed::On(answered(next, &mut entry)?, connection))
        }
        (next, _) => Ok(Passed::On(answered(next, &mut entry)?, connection)),
    }
}

/// Notes that a server has ended without an answer, if so.
fn answered(next: Result<Next, Broken>, entry: &mut Entry) -> Result<Next, Broken> {
    if matches!(next, Err(Broken::NoAnswer)) {
        entry.has_failed();
    }
    next
}

/// Ends a client's connection, after everything was said.
async fn finish(mut client: End, kept: &mut Kept) -> Result<Served, Broken> {
    kept.finish_taps();
    std::mem::take(kept).close().await;
    client.writer.shutdown().await?;
    let mut nowhere = sink();
    let rest = copy(&mut client.reader, &mut nowhere);
    let _ = timeout(LINGER, rest).await;
    Ok(Served::Ended)
}

/// Passes everything in both directions, with one server from now on.
async fn splice(client: End, server: End, kept: &mut Kept) -> Result<Served, Broken> {
    kept.keep_taps(&server.writer.taps);
    kept.finish_taps();
    std::mem::take(kept).close().await;
    super::splice(client, server).await?;
    Ok(Served::Ended)
}

#[cfg(test)]
mod tests;
