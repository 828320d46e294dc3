//! One request and its response, each a stream of frames.

use std::borrow::Cow;
use std::future::poll_fn;

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{Request, Response, Version, request};
use kvpn_proto::filter;
use tracing::debug;

use super::ways::Ways;
use crate::http::Servers;

/// Why a stream did not end in order: what the other side is told.
struct Stopped(Reason);

impl From<h2::Error> for Stopped {
    fn from(error: h2::Error) -> Self {
        // What a server has not begun with may be asked again.
        let is_refused = error.is_go_away() && error.reason() == Some(Reason::NO_ERROR);
        Self(match error.reason() {
            Some(_) if is_refused => Reason::REFUSED_STREAM,
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
    let opened = tokio::select! {
        opened = ways.to(server) => opened,
        reason = poll_fn(|cx| respond.poll_reset(cx)) => return Err(Stopped(reason?)),
    };
    let (_, mut way) = opened.map_err(|error| {
        debug!(%error, "No server can be had");
        Stopped(Reason::REFUSED_STREAM)
    })?;
    let is_whole = body.is_end_stream();
    let (response, send) = way.send_request(Request::from_parts(head, ()), is_whole)?;
    let mut upload = std::pin::pin!(async {
        if is_whole {
            return Ok(send);
        }
        pass_body(body, send).await
    });
    let mut download = std::pin::pin!(pass_response(response, respond));
    let mut is_sent = false;
    loop {
        tokio::select! {
            sent = &mut upload, if !is_sent => match sent {
                Ok(_) => is_sent = true,
                // It wants no more of the request, and may answer all the same.
                Err(NotPassed::Sink) => is_sent = true,
                Err(NotPassed::Source(mut send, Stopped(reason))) => {
                    send.send_reset(reason);
                    return Err(Stopped(reason));
                }
            },
            outcome = &mut download => return outcome,
        }
    }
}

async fn pass_response(
    mut response: ResponseFuture,
    respond: &mut SendResponse<Bytes>,
) -> Result<(), Stopped> {
    let response = loop {
        tokio::select! {
            interim = poll_fn(|cx| response.poll_informational(cx)) => match interim {
                Some(interim) => respond.send_informational(interim?)?,
                None => break response.await?,
            },
            reason = poll_fn(|cx| respond.poll_reset(cx)) => return Err(Stopped(reason?)),
        }
    };
    let (head, body) = response.into_parts();
    let is_whole = body.is_end_stream();
    let send = respond.send_response(Response::from_parts(head, ()), is_whole)?;
    if is_whole {
        return Ok(());
    }
    match pass_body(body, send).await {
        Ok(_) => Ok(()),
        Err(NotPassed::Sink) => Err(Stopped(Reason::CANCEL)),
        Err(NotPassed::Source(_, stopped)) => Err(stopped),
    }
}

/// Why a body did not pass.
enum NotPassed {
    /// Whoever it is for takes no more.
    Sink,
    /// Whoever it is from has stopped; with where it was to be told.
    Source(SendStream<Bytes>, Stopped),
}

/// Passes a body as it comes, and the trailers.
async fn pass_body(
    mut from: RecvStream,
    mut to: SendStream<Bytes>,
) -> Result<SendStream<Bytes>, NotPassed> {
    let sink = |_| NotPassed::Sink;
    loop {
        let data = tokio::select! {
            data = from.data() => data,
            _ = poll_fn(|cx| to.poll_reset(cx)) => return Err(NotPassed::Sink),
        };
        let mut data = match data {
            Some(Ok(data)) => data,
            Some(Err(error)) => return Err(NotPassed::Source(to, error.into())),
            None => break,
        };
        if data.is_empty() && from.is_end_stream() {
            break;
        }
        while !data.is_empty() {
            to.reserve_capacity(data.len());
            let room = match poll_fn(|cx| to.poll_capacity(cx)).await {
                Some(Ok(room)) => room,
                Some(Err(_)) | None => return Err(NotPassed::Sink),
            };
            let part = data.split_to(room.min(data.len()));
            let length = part.len();
            let is_last = data.is_empty() && from.is_end_stream();
            to.send_data(part, is_last).map_err(sink)?;
            // It is ours alone from here on.
            let _ = from.flow_control().release_capacity(length);
            if is_last {
                return Ok(to);
            }
        }
    }
    match from.trailers().await {
        Ok(Some(trailers)) => to.send_trailers(trailers).map_err(sink)?,
        Ok(None) => to.send_data(Bytes::new(), true).map_err(sink)?,
        Err(error) => return Err(NotPassed::Source(to, error.into())),
    }
    Ok(to)
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
        Some(values.fold(first, |joined, value| {
            format!("{joined}, {}", String::from_utf8_lossy(value.as_bytes())).into()
        }))
    }
}
