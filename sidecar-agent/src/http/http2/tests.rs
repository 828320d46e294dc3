use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::client::{self, SendRequest};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response, StatusCode};
use kvpn_proto::filter::Head;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::http::end::Pipe;
use crate::http::tap::Tap;
use crate::http::{READ, Served, Server};
use crate::reports::Entry;

const ROOM: usize = 64 << 10;

/// So many small frames.
const DROPS: usize = 30_000;
const DROP: &str = "a small frame";

/// How long what must not come is waited for.
const NEVER: Duration = Duration::from_millis(200);

/// Servers that answer as the path says. Requests with a user go to that holder.
struct Fake {
    /// Who was connected to, in turn.
    connected: Mutex<Vec<Server>>,
    /// The apps' connections.
    apps: Mutex<Vec<JoinHandle<()>>>,
    /// What servers have seen.
    seen: mpsc::UnboundedSender<String>,
    /// Whether the app takes connections.
    is_down: AtomicBool,
    /// How many streams a server takes at a time.
    limit: u32,
}

impl Servers for Arc<Fake> {
    fn is_clients_word(&self) -> bool {
        false
    }

    fn ends_tls(&self) -> bool {
        false
    }

    fn choose(&self, head: &impl Head) -> Server {
        match head.field("x-user") {
            Some(user) => Server::Holder(user.into_owned()),
            None if head.field("host").as_deref() == Some("b.shop") => Server::Holder("b".into()),
            None => Server::App,
        }
    }

    fn other(&self) -> Server {
        Server::App
    }

    fn note(&self, _: &Server, _: &impl Head) -> Entry {
        Entry::untold()
    }

    fn note_other(&self, _: &Server) -> Entry {
        Entry::untold()
    }

    fn fails_closed(&self, server: &Server) -> bool {
        *server == Server::Holder("closed".into())
    }

    async fn connect(&self, server: &Server) -> io::Result<End> {
        let name = match server {
            Server::App if self.is_down.load(Ordering::Relaxed) => {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            Server::App => "app",
            Server::Holder(name) if name == "closed" => {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            Server::Holder(name) if name == "gone" => {
                sleep(NEVER).await;
                return Err(io::ErrorKind::TimedOut.into());
            }
            Server::Holder(name) => name,
        };
        self.connected.lock().unwrap().push(server.clone());
        let (ours, theirs) = Pipe::new(ROOM);
        let serving = serve_as(name.to_owned(), theirs, self.seen.clone(), self.limit);
        let serving = tokio::spawn(serving);
        if *server == Server::App {
            self.apps.lock().unwrap().push(serving);
        }
        Ok(End::new(ours))
    }

    fn copied(&self, _: &impl Head) -> Vec<String> {
        Vec::new()
    }

    fn other_copied(&self) -> Vec<String> {
        Vec::new()
    }

    fn tap(&self, _: &str, _: bool) -> Option<Tap> {
        None
    }
}

async fn serve_as(name: String, pipe: Pipe, seen: mpsc::UnboundedSender<String>, limit: u32) {
    let connection = h2::server::Builder::new()
        .max_concurrent_streams(limit)
        .data_frame_budget(FRAME_BUDGET)
        .handshake(pipe);
    let mut connection = connection.await.unwrap();
    while let Some(Ok((request, respond))) = connection.accept().await {
        tokio::spawn(answer(name.clone(), request, respond, seen.clone()));
    }
}

async fn answer(
    name: String,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    seen: mpsc::UnboundedSender<String>,
) {
    let path = request.uri().path().to_owned();
    let mut body = request.into_body();
    let response = Response::new(());
    match path.as_str() {
        "/who" => {
            let mut send = respond.send_response(response, false).unwrap();
            send.send_data(name.into(), true).unwrap();
        }
        "/reset" => respond.send_reset(Reason::ENHANCE_YOUR_CALM),
        "/hang" => {
            let reason = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
            seen.send(reason.unwrap().to_string()).unwrap();
        }
        "/stall" => std::future::pending().await,
        "/refuse" => {
            let interim = Response::builder().status(StatusCode::EARLY_HINTS);
            respond
                .send_informational(interim.body(()).unwrap())
                .unwrap();
            let mut refusal = response;
            *refusal.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
            respond.send_response(refusal, true).unwrap();
        }
        "/keep" => {
            respond.send_response(response, true).unwrap();
            seen.send(text(body).await).unwrap();
        }
        "/drops" => {
            let mut send = respond.send_response(response, false).unwrap();
            for _ in 0..DROPS {
                send_all(&mut send, DROP.into()).await;
            }
            send.send_data(Bytes::new(), true).unwrap();
        }
        _ => {
            let mut send = respond.send_response(response, false).unwrap();
            while let Some(Ok(data)) = body.data().await {
                let length = data.len();
                send_all(&mut send, data).await;
                body.flow_control().release_capacity(length).unwrap();
            }
            let mut trailers = body.trailers().await.unwrap().unwrap_or_default();
            trailers.insert("x-who", name.parse().unwrap());
            send.send_trailers(trailers).unwrap();
        }
    }
}

async fn send_all(send: &mut SendStream<Bytes>, mut data: Bytes) {
    while !data.is_empty() {
        send.reserve_capacity(data.len());
        let room = std::future::poll_fn(|cx| send.poll_capacity(cx)).await;
        let part = data.split_to(room.unwrap().unwrap().min(data.len()));
        send.send_data(part, false).unwrap();
    }
}

struct Case {
    sender: SendRequest<Bytes>,
    /// The client's connection.
    connection: JoinHandle<Result<(), h2::Error>>,
    fake: Arc<Fake>,
    serving: JoinHandle<Result<Served, Broken>>,
    seen: mpsc::UnboundedReceiver<String>,
}

impl Case {
    async fn new() -> Self {
        Self::with(Duration::ZERO, MAX_STREAMS).await
    }

    /// A client that is silent at first, and servers that take so many streams at a time.
    async fn with(silence: Duration, limit: u32) -> Self {
        let (client, ours) = Pipe::new(ROOM);
        let (sender, seen) = mpsc::unbounded_channel();
        let fake = Arc::new(Fake {
            connected: Mutex::default(),
            apps: Mutex::default(),
            seen: sender,
            is_down: AtomicBool::new(false),
            limit,
        });
        let servers = Arc::clone(&fake);
        let serving =
            tokio::spawn(async move { crate::http::serve(End::new(ours), &servers).await });
        sleep(silence).await;
        let (sender, connection) = client::Builder::new()
            .data_frame_budget(FRAME_BUDGET)
            .handshake(client)
            .await
            .unwrap();
        Self {
            sender,
            connection: tokio::spawn(connection),
            fake,
            serving,
            seen,
        }
    }

    /// A request of a user that has been begun.
    async fn ask(
        &mut self,
        user: &str,
        path: &str,
        is_whole: bool,
    ) -> (client::ResponseFuture, SendStream<Bytes>) {
        let mut request = Request::post(format!("http://shop{path}?x=1"));
        if !user.is_empty() {
            request = request.header("x-user", user);
        }
        let mut sender = self.sender.clone().ready().await.unwrap();
        let request = request.body(()).unwrap();
        sender.send_request(request, is_whole).unwrap()
    }

    /// Who answers a request of a user.
    async fn who(&mut self, user: &str) -> String {
        let (response, _) = self.ask(user, "/who", true).await;
        text(response.await.unwrap().into_body()).await
    }
}

async fn text(mut body: RecvStream) -> String {
    let mut all = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        all.extend_from_slice(&data);
    }
    String::from_utf8(all).unwrap()
}

#[tokio::test]
async fn streams_of_one_connection_go_to_whom_each_is_for() {
    let mut case = Case::new().await;
    let users = ["", "a", "b", "gone", "a", ""];
    let mut asked = Vec::new();
    for user in users {
        asked.push(case.ask(user, "/who", true).await.0);
    }
    let mut answered = Vec::new();
    for response in asked {
        answered.push(text(response.await.unwrap().into_body()).await);
    }
    assert_eq!(answered, ["app", "a", "b", "app", "a", "app"]);
    let holder = |name: &str| Server::Holder(name.into());
    let mut connected = case.fake.connected.lock().unwrap().clone();
    connected.sort_by_key(|server| format!("{server:?}"));
    assert_eq!(connected, [Server::App, holder("a"), holder("b")]);

    drop(case.sender);
    case.connection.await.unwrap().unwrap();
    case.serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn both_ways_of_a_stream_pass_as_they_come_with_their_trailers() {
    let mut case = Case::new().await;
    for user in ["", "a"] {
        let (response, mut send) = case.ask(user, "/echo", false).await;
        send.send_data("one".into(), false).unwrap();
        let mut body = response.await.unwrap().into_body();
        assert_eq!(body.data().await.unwrap().unwrap(), "one");
        send.send_data("two".into(), false).unwrap();
        assert_eq!(body.data().await.unwrap().unwrap(), "two");
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        send.send_trailers(trailers).unwrap();
        assert!(body.data().await.is_none());
        let trailers = body.trailers().await.unwrap().unwrap();
        assert_eq!(trailers["grpc-status"], "0");
        assert_eq!(
            trailers["x-who"],
            if user.is_empty() { "app" } else { user }
        );
    }
}

#[tokio::test]
async fn large_bodies_pass_whole() {
    let mut case = Case::new().await;
    let (response, mut send) = case.ask("a", "/echo", false).await;
    let sent: Bytes = (0..3_000_000_u32)
        .map(|at| b'a' + (at % 23) as u8)
        .collect();
    let data = sent.clone();
    let sending = tokio::spawn(async move {
        send_all(&mut send, data).await;
        send.send_data(Bytes::new(), true).unwrap();
    });
    let answer = text(response.await.unwrap().into_body()).await;
    assert!(answer.as_bytes() == sent);
    sending.await.unwrap();
}

#[tokio::test]
async fn body_that_nobody_reads_is_not_read_either() {
    let mut case = Case::new().await;
    let (_response, mut send) = case.ask("", "/stall", false).await;
    let mut taken = 0;
    while timeout(NEVER, send_all(&mut send, vec![0; READ].into()))
        .await
        .is_ok()
    {
        taken += READ;
        assert!(taken < 2 << 20, "{taken}");
    }
    // The others go on.
    assert_eq!(case.who("").await, "app");
}

#[tokio::test]
async fn small_frames_may_wait_for_their_reader() {
    let mut case = Case::new().await;
    let (response, _) = case.ask("", "/drops", true).await;
    let body = response.await.unwrap().into_body();
    timeout(NEVER, &mut case.connection).await.unwrap_err();
    assert_eq!(text(body).await, DROP.repeat(DROPS));
}

#[tokio::test]
async fn resets_are_passed_on_with_their_reasons() {
    let mut case = Case::new().await;
    let (response, _) = case.ask("", "/reset", true).await;
    let error = response.await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::ENHANCE_YOUR_CALM));

    for is_whole in [true, false] {
        let (response, mut send) = case.ask("a", "/hang", is_whole).await;
        assert_eq!(case.who("a").await, "a");
        send.send_reset(Reason::INADEQUATE_SECURITY);
        let seen = case.seen.recv().await.unwrap();
        assert_eq!(seen, Reason::INADEQUATE_SECURITY.to_string());
        drop(response);
    }
}

#[tokio::test]
async fn server_may_answer_before_it_has_read_everything() {
    let mut case = Case::new().await;
    let (mut response, mut send) = case.ask("", "/refuse", false).await;
    let interim = std::future::poll_fn(|cx| response.poll_informational(cx)).await;
    assert_eq!(interim.unwrap().unwrap().status(), StatusCode::EARLY_HINTS);
    let answer = response.await.unwrap();
    assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let reason = std::future::poll_fn(|cx| send.poll_reset(cx)).await;
    assert_eq!(reason.unwrap(), Reason::NO_ERROR);

    // With a body, which comes whole.
    let (response, mut send) = case.ask("", "/who", false).await;
    assert_eq!(text(response.await.unwrap().into_body()).await, "app");
    let reason = std::future::poll_fn(|cx| send.poll_reset(cx)).await;
    assert_eq!(reason.unwrap(), Reason::NO_ERROR);

    // And go on reading.
    let (response, mut send) = case.ask("", "/keep", false).await;
    response.await.unwrap();
    send.send_data("one".into(), false).unwrap();
    let reset = std::future::poll_fn(|cx| send.poll_reset(cx));
    timeout(NEVER, reset).await.unwrap_err();
    send.send_data("two".into(), true).unwrap();
    assert_eq!(case.seen.recv().await.unwrap(), "onetwo");
}

#[tokio::test]
async fn server_may_greet_a_client_that_is_silent_at_first() {
    for first in ["a", ""] {
        let mut case = Case::with(NEVER, MAX_STREAMS).await;
        let wanted = if first.is_empty() { "app" } else { first };
        assert_eq!(case.who(first).await, wanted);
        assert_eq!(case.who("").await, "app");
        assert_eq!(case.who("b").await, "b");
        let connected = case.fake.connected.lock().unwrap().clone();
        let apps = connected.iter().filter(|it| **it == Server::App);
        assert_eq!(apps.count(), 1);
    }
}

#[tokio::test]
async fn app_that_waited_for_a_word_in_vain_is_connected_to_anew() {
    let mut case = Case::with(NEVER, MAX_STREAMS).await;
    assert_eq!(case.who("a").await, "a");
    let waiting = case.fake.apps.lock().unwrap().pop().unwrap();
    waiting.abort();
    assert!(waiting.await.unwrap_err().is_cancelled());
    assert_eq!(case.who("").await, "app");
}

#[tokio::test]
async fn streams_do_not_wait_in_turn_for_a_holder_who_is_gone() {
    let mut case = Case::new().await;
    let start = Instant::now();
    let mut asked = Vec::new();
    for _ in 0..20 {
        asked.push(case.ask("gone", "/who", true).await.0);
    }
    for response in asked {
        assert_eq!(text(response.await.unwrap().into_body()).await, "app");
    }
    assert!(start.elapsed() < 5 * NEVER, "{:?}", start.elapsed());
}

#[tokio::test]
async fn streams_wait_for_a_server_that_takes_one_at_a_time() {
    let mut case = Case::with(Duration::ZERO, 1).await;
    assert_eq!(case.who("").await, "app");
    let mut asked = Vec::new();
    for _ in 0..5 {
        let (response, mut send) = case.ask("", "/echo", false).await;
        send.send_data("one".into(), false).unwrap();
        asked.push((response, send));
    }
    for (response, mut send) in asked {
        send.send_data("two".into(), true).unwrap();
        let answered = async { text(response.await.unwrap().into_body()).await };
        let answered = timeout(10 * NEVER, answered).await;
        assert_eq!(answered.unwrap(), "onetwo");
    }
}

#[tokio::test]
async fn app_that_is_down_is_told_to_the_client() {
    let mut case = Case::new().await;
    case.fake.is_down.store(true, Ordering::Relaxed);
    let (response, _) = case.ask("", "/who", true).await;
    let error = response.await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::REFUSED_STREAM));
    case.connection.await.unwrap().unwrap();
    case.serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn host_stands_for_the_authority() {
    let mut case = Case::new().await;
    for (uri, host) in [("http://b.shop/who", None), ("/who", Some("b.shop"))] {
        let mut request = Request::get(uri).version(http::Version::HTTP_11);
        if let Some(host) = host {
            request = request.header("host", host);
        }
        let request = request.body(()).unwrap();
        let (response, _) = case.sender.send_request(request, true).unwrap();
        let answer = text(response.await.unwrap().into_body()).await;
        assert_eq!(answer, "b", "{uri}");
    }
}

#[tokio::test]
async fn end_of_the_apps_connection_is_told_to_the_client() {
    let mut case = Case::new().await;
    assert_eq!(case.who("a").await, "a");
    assert_eq!(case.who("").await, "app");
    case.fake.apps.lock().unwrap().pop().unwrap().abort();
    case.connection.await.unwrap().unwrap();
    case.serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn stream_whose_holder_fails_closed_is_answered_by_nobody() {
    let mut case = Case::new().await;
    let (response, mut send) = case.ask("closed", "/who", false).await;
    send.send_data("half".into(), false).unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(response.body().is_end_stream());
    // The others go on.
    let (response, _) = case.ask("", "/who", true).await;
    assert_eq!(text(response.await.unwrap().into_body()).await, "app");
}
