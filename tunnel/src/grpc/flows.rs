//! The service `kvpn.v1.Tunnel`, on both ends of a connection: one call a flow.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures::Stream;
use futures::future::Either;
use http::header::{CONTENT_TYPE, HeaderValue, TE};
use http::{Extensions, HeaderMap, Method, Request, Response, Version};
use http_body::{Body as _, Frame as BodyFrame};
use kvpn_proto::flow::Frame;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tower_service::Service;

use super::messages::{self, Decoder};
use crate::relay::{FrameStream, Outgoing, StreamLost, incoming, outgoing};

const NAME: &str = "kvpn.v1.Tunnel";
const PATH: &str = "/kvpn.v1.Tunnel/Carry";

/// From how many bytes on a chunk of small frames is long enough: it fits one
/// TLS record with the frame that was put there last.
const BATCH: usize = 11 << 10;

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// Calls for flows over one connection.
#[derive(Clone, Debug)]
pub struct TunnelClient {
    channel: Channel,
}

impl TunnelClient {
    pub fn new(channel: Channel) -> Self {
        Self { channel }
    }

    /// A flow that begins with that frame. The call is made once a frame is
    /// asked for; what is sent meanwhile follows. One that fails ends the frames
    /// with an error.
    pub fn carry(&self, open: Frame) -> FrameStream {
        let (sender, frames) = outgoing();
        sender.begin(open);
        let receiver = incoming(call(self.channel.clone(), frames));
        FrameStream { sender, receiver }
    }
}

/// Calls once it is polled, and gives the answer's frames.
fn call(
    mut channel: Channel,
    frames: Outgoing,
) -> impl Stream<Item = Result<Frame, StreamLost>> + Send {
    let opening = async move {
        let mut request = Request::new(Body::new(Sending::new(frames, false)));
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = http::Uri::from_static(PATH);
        let headers = request.headers_mut();
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONTENT_TYPE, GRPC);
        std::future::poll_fn(|cx| channel.poll_ready(cx))
            .await
            .map_err(|error| StreamLost::new(error.to_string()))?;
        let response = channel
            .call(request)
            .await
            .map_err(|error| StreamLost::new(error.to_string()))?;
        check(response.headers())?;
        Ok(Receiving::new(response.into_body()))
    };
    futures::TryStreamExt::try_flatten(futures::stream::once(opening))
}

/// Serves the calls of a connection.
pub trait TunnelHandler: Clone + Send + Sync + 'static {
    /// Takes a flow over; its first frame is still to be received. What the
    /// connection told about itself is among the extensions.
    ///
    /// # Errors
    /// Ends the call with the status.
    fn carry(&self, extensions: &Extensions, frames: FrameStream) -> Result<(), Status>;
}

/// The service, for [`tonic::transport::server::Router::add_service`].
#[derive(Clone, Debug)]
pub struct TunnelServer<H> {
    handler: H,
}

impl<H> TunnelServer<H> {
    pub fn new(handler: H) -> Self {
        Self { handler }
    }
}

impl<H> NamedService for TunnelServer<H> {
    const NAME: &'static str = NAME;
}

impl<H: TunnelHandler> Service<Request<Body>> for TunnelServer<H> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<Ready<Result<Response<Body>, Infallible>>, Answer>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (parts, body) = request.into_parts();
        if parts.uri.path() != PATH {
            let refusal = Status::unimplemented("no such call").into_http();
            return Either::Left(ready(Ok(refusal)));
        }
        let (sender, frames) = outgoing();
        let receiver = incoming(Receiving::new(body));
        let frames_of_call = FrameStream { sender, receiver };
        match self.handler.carry(&parts.extensions, frames_of_call) {
            Ok(()) => Either::Right(Answer(Some(frames))),
            Err(status) => Either::Left(ready(Ok(status.into_http()))),
        }
    }
}

/// The response, once there is a frame for it: they travel together.
#[derive(Debug)]
pub struct Answer(Option<Outgoing>);

impl Future for Answer {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(frames) = &mut self.0 {
            std::task::ready!(frames.poll_ready(cx));
        }
        let body = self
            .0
            .take()
            .map_or_else(Body::empty, |frames| Body::new(Sending::new(frames, true)));
        let mut response = Response::new(body);
        response.headers_mut().insert(CONTENT_TYPE, GRPC);
        Poll::Ready(Ok(response))
    }
}

/// The body of a request or response that is made of frames.
struct Sending {
    frames: Outgoing,
    /// What a large frame carries, after its head has been sent.
    payload: Option<Bytes>,
    /// Whether trailers with the status are still to be sent.
    owes_status: bool,
}

impl Sending {
    fn new(frames: Outgoing, owes_status: bool) -> Self {
        Self {
            frames,
            payload: None,
            owes_status,
        }
    }

    /// What comes after the last frame.
    fn end(&mut self) -> Option<Result<BodyFrame<Bytes>, Infallible>> {
        std::mem::take(&mut self.owes_status).then(|| {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            Ok(BodyFrame::trailers(trailers))
        })
    }
}

impl http_body::Body for Sending {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<BodyFrame<Bytes>, Infallible>>> {
        if let Some(payload) = self.payload.take() {
            return Poll::Ready(Some(Ok(BodyFrame::data(payload))));
        }
        let mut chunk = BytesMut::new();
        while chunk.len() < BATCH {
            match self.frames.poll_recv(cx) {
                Poll::Ready(Some(frame)) => {
                    self.payload = messages::encode(frame, &mut chunk);
                    if self.payload.is_some() {
                        break;
                    }
                }
                Poll::Ready(None) if chunk.is_empty() => return Poll::Ready(self.end()),
                Poll::Pending if chunk.is_empty() => return Poll::Pending,
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        Poll::Ready(Some(Ok(BodyFrame::data(chunk.freeze()))))
    }
}

/// The frames of a body.
struct Receiving {
    body: Body,
    decoder: Decoder,
    has_ended: bool,
}

impl Receiving {
    fn new(body: Body) -> Self {
        Self {
            body,
            decoder: Decoder::default(),
            has_ended: false,
        }
    }

    fn end(&mut self, error: StreamLost) -> Poll<Option<Result<Frame, StreamLost>>> {
        self.has_ended = true;
        Poll::Ready(Some(Err(error)))
    }
}

impl Stream for Receiving {
    type Item = Result<Frame, StreamLost>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if self.has_ended {
                return Poll::Ready(None);
            }
            match self.decoder.next() {
                Ok(Some(frame)) => return Poll::Ready(Some(Ok(frame))),
                Ok(None) => {}
                Err(error) => return self.end(StreamLost::new(error.to_string())),
            }
            match std::task::ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(chunk) => self.decoder.push(chunk),
                    Err(other) => {
                        if let Some(trailers) = other.trailers_ref()
                            && let Err(error) = check(trailers)
                        {
                            return self.end(error);
                        }
                    }
                },
                Some(Err(status)) => return self.end(lost(&status)),
                None if self.decoder.is_empty() => self.has_ended = true,
                None => return self.end(StreamLost::new("the stream ended within a message")),
            }
        }
    }
}

/// Reads the status in headers or trailers, if there is one.
fn check(headers: &HeaderMap) -> Result<(), StreamLost> {
    match Status::from_header_map(headers) {
        Some(status) if status.code() != Code::Ok => Err(lost(&status)),
        Some(_) | None => Ok(()),
    }
}

fn lost(status: &Status) -> StreamLost {
    StreamLost::new(format!("{:?}: {}", status.code(), status.message()))
}
