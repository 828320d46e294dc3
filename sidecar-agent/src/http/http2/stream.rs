//! One request and its response, each a stream of frames.

use std::borrow::Cow;
use std::future::{pending, poll_fn};
use std::pin::pin;

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{Request, Response, StatusCode, Version, request};
use kvpn_proto::filter;
use tracing::debug;

use super::ways::Ways;
use crate::http::Servers;
use crate::reports::Entry;

/// Why a stream did not end in order: what the other side is told.
struct Stopped(Reason);

impl From<h2::Error> for Stopped {
    fn from(error: h2::Error) -> Self {
        Self(match error.reason() {
            // What a server has not begun with may be asked again.
            Some(_) if error.is_go_away() && error.is_remote() => Reason::REFUSED_STREAM,
            Some(reason) if error.is_reset() => reason,
            Some(_) | None => Reason::INTERNAL_ERROR,
        })
    }
}

/// Passes a request to whom it is for, and the response back.
pub(super) async fn pass(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    ways: &Ways<'_, impl Servers>,
) {
    if let Err(Stopped(reason)) = try_pass(request, &mut respond, ways).await {
        debug!(%reason, "A stream was reset");
        respond.send_reset(reason);
    }
}

async fn try_pass(
    request: Request<RecvStream>,
    respond: &mut SendResponse<Bytes>,
    ways: &Ways<'_, impl Servers>,
) -> Result<(), Stopped> {
    let (mut head, body) = request.into_parts();
    if head.uri.authority().is_none() {
        // h2 sends a request without an authority only for this version.
        head.version = Version::HTTP_11;
    }
    let server = ways.servers.choose(&Head(&head));
    let is_closed = ways.servers.fails_closed(&server);
    let mut entry = ways.servers.note(&server, &Head(&head));
    let is_whole = body.is_end_stream();
    let request = Request::from_parts(head, ());
    let sent = tokio::select! {
        sent = ways.send(&server, request, is_whole, &mut entry) => sent,
        reason = poll_fn(|cx| respond.poll_reset(cx)) => return Err(Stopped(reason?)),
    };
    let (response, send) = match sent {
        Ok(sent) => sent,
        Err(_) if is_closed && entry.is_failed() => return refuse(respond, &mut entry),
        Err(error) => {
            debug!(%error, "No server can be had");
            return Err(Stopped(Reason::REFUSED_STREAM));
        }
    };
    let mut upload = pin!(async {
        match is_whole {
            true => Ok(send),
            false => pass_body(body, send).await,
        }
    });
    let mut download = pin!(pass_response(response, respond, &mut entry));
    let mut is_answered = false;
    // In this order, as it knows why a client stops.
    let mut sent = loop {
        tokio::select! {
            biased;
            sent = &mut upload => match sent {
                Ok(send) => break Some(send),
                // It wants no more of the request, and may answer all the same.
                Err(NotPassed::Sink(_)) => break None,
                Err(NotPassed::Source(mut send, Stopped(reason))) => {
                    send.send_reset(reason);
                    return Err(Stopped(reason));
                }
            },
            answered = &mut download, if !is_answered => match answered {
                Ok(()) => is_answered = true,
                Err(Unanswered::Client(stopped) | Unanswered::Server(stopped)) => {
                    return Err(stopped);
                }
            },
        }
    };
    if is_answered {
        return Ok(());
    }
    let answered = loop {
        let reset = async {
            match &mut sent {
                Some(send) => poll_fn(|cx| send.poll_reset(cx)).await,
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            answered = &mut download => break answered,
            reason = reset => match reason {
                // What it has answered before still counts.
                Ok(Reason::NO_ERROR) | Err(_) => sent = None,
                Ok(reason) => return Err(Stopped(reason)),
            },
        }
    };
    match (answered, &mut sent) {
        (Ok(()), _) => Ok(()),
        (Err(Unanswered::Client(Stopped(reason))), Some(send)) => {
            send.send_reset(reason);
            Err(Stopped(reason))
        }
        (Err(Unanswered::Client(stopped) | Unanswered::Server(stopped)), _) => Err(stopped),
    }
}

/// Answers a request whose holder cannot be had, and for whom nobody may answer.
fn refuse(respond: &mut SendResponse<Bytes>, entry: &mut Entry) -> Result<(), Stopped> {
    let status = StatusCode::SERVICE_UNAVAILABLE;
    entry.answered(status.as_u16());
    let mut response = Response::new(());
    *response.status_mut() = status;
    respond.send_response(response, true)?;
    Ok(())
}

/// Why a response did not pass: who has stopped.
enum Unanswered {
    Client(Stopped),
    Server(Stopped),
}

async fn pass_response(
    mut response: ResponseFuture,
    respond: &mut SendResponse<Bytes>,
    entry: &mut Entry,
) -> Result<(), Unanswered> {
    let server = |error: h2::Error| Unanswered::Server(error.into());
    let client = |error: h2::Error| Unanswered::Client(error.into());
    let response = loop {
        tokio::select! {
            interim = poll_fn(|cx| response.poll_informational(cx)) => match interim {
                Some(interim) => {
                    let interim = interim.map_err(server)?;
                    respond.send_informational(interim).map_err(client)?;
                }
                None => match response.await {
                    Ok(response) => break response,
                    Err(error) => {
                        entry.has_failed();
                        return Err(server(error));
                    }
                },
            },
            reason = poll_fn(|cx| respond.poll_reset(cx)) => {
                return Err(Unanswered::Client(Stopped(reason.map_err(client)?)));
            }
        }
    };
    let (head, body) = response.into_parts();
    entry.answered(head.status.as_u16());
    let is_whole = body.is_end_stream();
    let send = respond.send_response(Response::from_parts(head, ()), is_whole);
    let send = send.map_err(client)?;
    if is_whole {
        return Ok(());
    }
    match pass_body(body, send).await {
        Ok(_) => Ok(()),
        Err(NotPassed::Sink(stopped)) => Err(Unanswered::Client(stopped)),
        Err(NotPassed::Source(_, stopped)) => Err(Unanswered::Server(stopped)),
    }
}

/// Why a body did not pass.
enum NotPassed {
    /// Whoever it is for takes no more.
    Sink(Stopped),
    /// Whoever it is from has stopped; with where it was to be told.
    Source(SendStream<Bytes>, Stopped),
}

impl NotPassed {
    fn sink(error: h2::Error) -> Self {
        Self::Sink(error.into())
    }
}

/// Passes a body as it comes, and the trailers.
async fn pass_body(
    mut from: RecvStream,
    mut to: SendStream<Bytes>,
) -> Result<SendStream<Bytes>, NotPassed> {
    loop {
        let data = tokio::select! {
            data = from.data() => data,
            reason = poll_fn(|cx| to.poll_reset(cx)) => {
                return Err(NotPassed::Sink(Stopped(reason.map_err(NotPassed::sink)?)));
            }
        };
        let data = match data {
            Some(Ok(data)) => data,
            Some(Err(error)) => return Err(NotPassed::Source(to, error.into())),
            None => break,
        };
        let length = data.len();
        let passed = pass_data(data, &mut to, || from.is_end_stream()).await;
        // It is ours alone from here on.
        let _ = from.flow_control().release_capacity(length);
        if passed? {
            return Ok(to);
        }
    }
    match from.trailers().await {
        Ok(Some(trailers)) => to.send_trailers(trailers).map_err(NotPassed::sink)?,
        Ok(None) => to.send_data(Bytes::new(), true).map_err(NotPassed::sink)?,
        Err(error) => return Err(NotPassed::Source(to, error.into())),
    }
    Ok(to)
}

/// Passes one frame's data; tells whether it ended the stream.
async fn pass_data(
    mut data: Bytes,
    to: &mut SendStream<Bytes>,
    is_end: impl Fn() -> bool,
) -> Result<bool, NotPassed> {
    while !data.is_empty() {
        to.reserve_capacity(data.len());
        let room = match poll_fn(|cx| to.poll_capacity(cx)).await {
            Some(room) => room.map_err(NotPassed::sink)?,
            None => return Err(NotPassed::Sink(Stopped(Reason::CANCEL))),
        };
        let part = data.split_to(room.min(data.len()));
        let is_last = data.is_empty() && is_end();
        to.send_data(part, is_last).map_err(NotPassed::sink)?;
        if is_last {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What a filter is held against.
struct Head<'a>(&'a request::Parts);

impl filter::Head for Head<'_> {
    fn method(&self) -> &str {
        self.0.method.as_str()
    }

    fn path(&self) -> &str {
        self.0.uri.path()
    }

    fn query(&self) -> &str {
        self.0.uri.query().unwrap_or_default()
    }

    fn field(&self, name: &str) -> Option<Cow<'_, str>> {
        if name == "host"
            && let Some(authority) = self.0.uri.authority()
        {
            // RFC 9113 section 8.3.1.
            return Some(authority.as_str().into());
        }
        let mut values = self.0.headers.get_all(name).iter();
        let first = String::from_utf8_lossy(values.next()?.as_bytes());
        // RFC 9113 section 8.2.3, RFC 9110 section 5.3.
        let between = if name == "cookie" { "; " } else { ", " };
        Some(values.fold(first, |joined, value| {
            let value = String::from_utf8_lossy(value.as_bytes());
            format!("{joined}{between}{value}").into()
        }))
    }
}
