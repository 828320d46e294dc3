//! What the sample application answers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use nix::sys::signal::{Signal, raise};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::pattern::Pattern;
use crate::{Options, say};

/// How long a body stays unread.
const UNREAD: Duration = Duration::from_secs(60);

/// What is sent back.
pub(crate) type Body = BoxBody<Bytes, hyper::Error>;

/// `/healthz`: ok. `/end`: this server ends. `PUT`: the body again, as it comes.
/// `POST`: the body again, once it is whole; never read for a minute at `/unread`.
/// `/bytes/N`: a pattern of that size. `/chain`: what the upstream service says, in
/// what this one says. All else: who this is and what was asked.
pub(crate) async fn answer(
    options: &Options,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Response<Body> {
    let path = request.uri().path().to_owned();
    if path == "/healthz" {
        return text("ok\n".into());
    }
    say(&format!(
        "{} {} from {peer}",
        request.method(),
        request.uri()
    ));
    if path == "/end" {
        return match raise(Signal::SIGTERM) {
            Ok(()) => text("ends\n".into()),
            Err(error) => failure(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        };
    }
    if request.method() == Method::PUT {
        return Response::new(request.into_body().boxed());
    }
    if request.method() == Method::POST && path == "/unread" {
        tokio::time::sleep(UNREAD).await;
        return failure(StatusCode::REQUEST_TIMEOUT, "not read");
    }
    if request.method() == Method::POST {
        return match request.into_body().collect().await {
            Ok(body) => text(body.to_bytes()),
            Err(error) => failure(StatusCode::BAD_REQUEST, &error.to_string()),
        };
    }
    if let Some(size) = path.strip_prefix("/bytes/") {
        return match size.parse() {
            Ok(size) => Response::new(Pattern::new(size).boxed()),
            Err(error) => failure(StatusCode::BAD_REQUEST, &format!("{size}: {error}")),
        };
    }
    let mut answer = describe(options, peer, &request);
    if let (true, Some(upstream)) = (path == "/chain", &options.upstream) {
        match tokio::time::timeout(Duration::from_secs(5), call(upstream)).await {
            Ok(Ok(value)) => answer["upstream"] = value,
            Ok(Err(error)) => return failure(StatusCode::BAD_GATEWAY, &format!("{error:#}")),
            Err(_) => return failure(StatusCode::GATEWAY_TIMEOUT, "the upstream is silent"),
        }
    }
    let mut response = text(format!("{answer}\n").into());
    response.headers_mut().insert(
        CONTENT_TYPE,
        hyper::header::HeaderValue::from_static("application/json"),
    );
    response
}

fn describe(options: &Options, peer: SocketAddr, request: &Request<Incoming>) -> Value {
    let headers: BTreeMap<_, _> = request
        .headers()
        .iter()
        .map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes())))
        .collect();
    json!({
        "service": options.service,
        "pod": options.pod,
        "method": request.method().as_str(),
        "path": request.uri().path(),
        "query": request.uri().query(),
        "peer": peer.to_string(),
        "headers": headers,
    })
}

/// Asks a service's `/chain`, and reads its JSON.
async fn call(upstream: &str) -> Result<Value> {
    let stream = TcpStream::connect(upstream)
        .await
        .with_context(|| format!("reach {upstream}"))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get("/chain")
        .header(HOST, upstream)
        .body(Full::<Bytes>::default())?;
    let body = sender
        .send_request(request)
        .await?
        .into_body()
        .collect()
        .await?;
    serde_json::from_slice(&body.to_bytes()).with_context(|| format!("read what {upstream} says"))
}

fn text(body: Bytes) -> Response<Body> {
    let body = Full::new(body).map_err(|never| match never {});
    Response::new(body.boxed())
}

fn failure(status: StatusCode, message: &str) -> Response<Body> {
    let mut response = text(format!("{message}\n").into());
    *response.status_mut() = status;
    response
}
