use std::sync::Mutex;

use futures::FutureExt;
use kvpn_proto::filter::Head;
use tokio::io::AsyncReadExt;
use tokio::task::JoinHandle;

use super::*;
use crate::http::end::Pipe;
use crate::http::serve_whole;
use crate::http::tap::Tap;

const ROOM: usize = 1 << 20;

/// How long a connection may take to come.
const SOON: Duration = Duration::from_secs(5);

/// Servers that hand over their other ends. Requests with a user go to that holder, and
/// copies of those with a copy to that one.
#[derive(Default)]
struct Fake {
    connected: Mutex<Vec<(Server, Pipe)>>,
    /// Who gets what is no HTTP, if not the app.
    other: Option<Server>,
}

impl Servers for std::sync::Arc<Fake> {
    fn choose(&self, head: &impl Head) -> Server {
        head.field("x-user")
            .map_or(Server::App, |user| Server::Holder(user.into_owned()))
    }

    fn other(&self) -> Server {
        self.other.clone().unwrap_or(Server::App)
    }

    fn note(&self, _: &Server, _: &impl Head) -> Entry {
        Entry::untold()
    }

    fn note_other(&self, _: &Server) -> Entry {
        Entry::untold()
    }

    fn fails_closed(&self, server: &Server) -> bool {
        *server == holder("closed")
    }

    async fn connect(&self, server: &Server) -> io::Result<End> {
        if [holder("gone"), holder("closed")].contains(server) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (ours, theirs) = Pipe::new(ROOM);
        let connected = (server.clone(), theirs);
        self.connected.lock().unwrap().push(connected);
        Ok(End::new(ours))
    }

    fn copied(&self, head: &impl Head) -> Vec<String> {
        let copy = head.field("x-copy").map(|id| id.into_owned());
        copy.into_iter().collect()
    }

    fn other_copied(&self) -> Vec<String> {
        vec!["all".into()]
    }

    fn tap(&self, claim_id: &str, is_answered: bool) -> Option<Tap> {
        let (fake, server) = (std::sync::Arc::clone(self), holder(claim_id));
        let connecting = async move {
            let end = fake.connect(&server).await?;
            Ok((end, std::future::pending().boxed()))
        };
        let (tap, carrying) = Tap::new(connecting, is_answered);
        tokio::spawn(carrying);
        Some(tap)
    }
}

impl Fake {
    /// The other end of the connection to a server that was opened last.
    fn connection_of(&self, wanted: &Server) -> Option<Pipe> {
        let mut connected = self.connected.lock().unwrap();
        let index = connected.iter().rposition(|(it, _)| it == wanted)?;
        Some(connected.swap_remove(index).1)
    }
}

struct Case {
    client: Pipe,
    fake: std::sync::Arc<Fake>,
    serving: JoinHandle<Result<(), Broken>>,
}

impl Case {
    fn new() -> Self {
        let (client, ours) = Pipe::new(ROOM);
        let fake = std::sync::Arc::new(Fake::default());
        let servers = std::sync::Arc::clone(&fake);
        let serving = tokio::spawn(async move { serve(End::new(ours), &servers).await });
        Self {
            client,
            fake,
            serving,
        }
    }

    async fn send(&mut self, bytes: &str) {
        self.client.write_all(bytes.as_bytes()).await.unwrap();
    }

    async fn expect(&mut self, bytes: &str) {
        expect(&mut self.client, bytes).await;
    }

    /// The other end of the connection to a server that was opened last.
    async fn server(&self, wanted: Server) -> Pipe {
        let start = Instant::now();
        loop {
            if let Some(end) = self.fake.connection_of(&wanted) {
                return end;
            }
            assert!(start.elapsed() < SOON, "{wanted:?}");
            tokio::task::yield_now().await;
        }
    }
}

async fn expect(end: &mut Pipe, bytes: &str) {
    let mut read = vec![0; bytes.len()];
    end.read_exact(&mut read).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&read), bytes);
}

async fn reply(end: &mut Pipe, bytes: &str) {
    end.write_all(bytes.as_bytes()).await.unwrap();
}

/// It ends there, in order.
async fn expect_end(end: &mut Pipe, bytes: &str) {
    let mut read = String::new();
    end.read_to_string(&mut read).await.unwrap();
    assert_eq!(read, bytes);
}

/// Ends its part of a connection in order.
async fn close(mut end: Pipe) {
    end.shutdown().await.unwrap();
}

/// A connection whose client has one with the holder `a`.
async fn answered_by_a() -> (Case, Pipe) {
    let mut case = Case::new();
    case.send(&get("/", "a")).await;
    let mut a = case.server(holder("a")).await;
    expect(&mut a, &get("/", "a")).await;
    reply(&mut a, OK).await;
    case.expect(OK).await;
    (case, a)
}

fn holder(name: &str) -> Server {
    Server::Holder(name.into())
}

fn get(path: &str, user: &str) -> String {
    let user = match user {
        "" => String::new(),
        user => format!("x-User:  {user}\r\n"),
    };
    format!("GET {path} HTTP/1.1\r\nhOsT: shop\r\n{user}\r\n")
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test]
async fn requests_of_one_connection_go_to_whom_each_is_for() {
    let mut case = Case::new();
    // All at once; the answers come in order.
    let requests = [get("/1", ""), get("/2", "a"), get("/3", ""), get("/4", "a")];
    case.send(&requests.concat()).await;
    let mut app = case.server(Server::App).await;
    expect(&mut app, &requests[0]).await;
    reply(&mut app, OK).await;
    let mut a = case.server(holder("a")).await;
    expect(&mut a, &requests[1]).await;
    reply(&mut a, OK).await;
    // On the connections that each has already.
    for (request, end) in requests[2..].iter().zip([&mut app, &mut a]) {
        expect(end, request).await;
        reply(end, OK).await;
    }
    case.expect(&OK.repeat(4)).await;
    case.client.shutdown().await.unwrap();
    case.serving.await.unwrap().unwrap();
    expect_end(&mut app, "").await;
    expect_end(&mut a, "").await;
}

#[tokio::test]
async fn bodies_pass_as_they_come() {
    let mut case = Case::new();
    let head = "POST / HTTP/1.1\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n";
    case.send(head).await;
    let mut app = case.server(Server::App).await;
    expect(&mut app, head).await;
    reply(&mut app, "HTTP/1.1 100 Continue\r\n\r\n").await;
    case.expect("HTTP/1.1 100 Continue\r\n\r\n").await;
    case.send("5;x\r\nhel").await;
    expect(&mut app, "5;x\r\nhel").await;
    let rest = "lo\r\n0\r\nX-T: 1\r\n\r\n";
    case.send(&format!("{rest}{}", get("/next", ""))).await;
    expect(&mut app, rest).await;
    // The answer is a stream of events.
    reply(
        &mut app,
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n:a\r\n",
    )
    .await;
    case.expect("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n:a\r\n")
        .await;
    reply(&mut app, "0\r\n\r\n").await;
    case.expect("0\r\n\r\n").await;
    expect(&mut app, &get("/next", "")).await;
}

#[tokio::test]
async fn connections_that_switch_are_no_http_any_more() {
    let mut case = Case::new();
    let upgrade = get("/chat", "a");
    case.send(&format!("{upgrade}\x01early")).await;
    let mut a = case.server(holder("a")).await;
    expect(&mut a, &upgrade).await;
    reply(&mut a, "HTTP/1.1 101 Switching Protocols\r\n\r\n\x02hi").await;
    case.expect("HTTP/1.1 101 Switching Protocols\r\n\r\n\x02hi")
        .await;
    expect(&mut a, "\x01early").await;
    case.send("GET / not HTTP").await;
    expect(&mut a, "GET / not HTTP").await;
    drop(a);
    drop(case.client);
}

#[tokio::test]
async fn wish_for_http_2_is_not_passed_on() {
    let mut case = Case::new();
    let wish = "GET / HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\n\
                upgrade:  h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n";
    case.send(wish).await;
    let mut app = case.server(Server::App).await;
    expect(&mut app, &wish.replace("upgrade:  h2c\r\n", "")).await;
    reply(&mut app, OK).await;
    case.expect(OK).await;
    // Others are.
    let wish = wish.replace("h2c", "websocket");
    case.send(&wish).await;
    expect(&mut app, &wish).await;
}

#[tokio::test]
async fn answer_without_an_end_ends_the_connection() {
    let mut case = Case::new();
    case.send(&get("/", "")).await;
    let mut app = case.server(Server::App).await;
    reply(&mut app, "HTTP/1.0 200 OK\r\n\r\nall there is").await;
    close(app).await;
    expect_end(&mut case.client, "HTTP/1.0 200 OK\r\n\r\nall there is").await;
    close(case.client).await;
    case.serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn early_answer_ends_a_body_that_nobody_wants() {
    let mut case = Case::new();
    case.send("POST / HTTP/1.1\r\nContent-Length: 1000\r\n\r\nabc")
        .await;
    let mut app = case.server(Server::App).await;
    let answer = "HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    reply(&mut app, answer).await;
    expect_end(&mut case.client, answer).await;
    // What is on its way must not be met with a reset, which would take the answer back.
    case.send(&"d".repeat(2 * ROOM)).await;
    close(case.client).await;
    case.serving.await.unwrap().unwrap();
    expect_end(
        &mut app,
        "POST / HTTP/1.1\r\nContent-Length: 1000\r\n\r\nabc",
    )
    .await;
}

#[tokio::test]
async fn what_is_no_http_goes_to_the_app_as_it_is() {
    let mut case = Case::new();
    case.send("SSH-2.0-x\r\n").await;
    let mut app = case.server(Server::App).await;
    expect(&mut app, "SSH-2.0-x\r\n").await;
    reply(&mut app, "SSH-2.0-y\r\n").await;
    case.expect("SSH-2.0-y\r\n").await;
}

#[tokio::test]
async fn end_of_the_idle_app_is_the_clients() {
    let mut case = Case::new();
    case.send(&get("/", "")).await;
    let mut app = case.server(Server::App).await;
    reply(&mut app, &format!("{OK}HTTP/1.1 408 Late\r\n")).await;
    case.expect(&format!("{OK}HTTP/1.1 408 Late\r\n")).await;
    reply(&mut app, "Connection: close\r\n\r\n").await;
    close(app).await;
    expect_end(&mut case.client, "Connection: close\r\n\r\n").await;
    close(case.client).await;
    case.serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn app_answers_for_a_holder_that_is_gone() {
    let mut case = Case::new();
    case.send(&get("/", "gone")).await;
    let mut app = case.server(Server::App).await;
    expect(&mut app, &get("/", "gone")).await;
    reply(&mut app, OK).await;
    case.expect(OK).await;
    // The next ones find the same connection.
    case.send(&get("/again", "gone")).await;
    expect(&mut app, &get("/again", "gone")).await;
    reply(&mut app, OK).await;
    case.expect(OK).await;
    case.send(&get("/next", "")).await;
    expect(&mut app, &get("/next", "")).await;
}

#[tokio::test]
async fn server_may_be_the_first_to_speak() {
    let mut case = Case::new();
    let mut app = case.server(Server::App).await;
    reply(&mut app, "220 hello\r\n").await;
    case.expect("220 hello\r\n").await;
    case.send("EHLO x\r\n").await;
    expect(&mut app, "EHLO x\r\n").await;
    // One that does not speak first gets requests all the same.
    let mut case = Case::new();
    let mut app = case.server(Server::App).await;
    case.send(&get("/", "")).await;
    expect(&mut app, &get("/", "")).await;
    reply(&mut app, OK).await;
    case.expect(OK).await;
}

#[tokio::test]
async fn answer_that_is_cut_short_is_an_error() {
    let mut case = Case::new();
    case.send(&get("/", "")).await;
    let mut app = case.server(Server::App).await;
    reply(&mut app, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc").await;
    close(app).await;
    let broken = case.serving.await.unwrap().unwrap_err();
    assert!(matches!(broken, Broken::Cut), "{broken}");
}

#[tokio::test]
async fn body_passes_whole_though_the_client_wants_the_end() {
    let mut case = Case::new();
    let head = "POST / HTTP/1.1\r\nConnection: close\r\nContent-Length: 6\r\n\r\n";
    case.send(&format!("{head}abc")).await;
    let mut app = case.server(Server::App).await;
    expect(&mut app, &format!("{head}abc")).await;
    // It answers before it has read everything.
    reply(&mut app, OK).await;
    case.expect(OK).await;
    case.send("def").await;
    expect_end(&mut app, "def").await;
    expect_end(&mut case.client, "").await;
}

#[tokio::test]
async fn client_that_leaves_is_told_to_the_server() {
    let mut case = Case::new();
    case.send(&get("/", "")).await;
    let mut app = case.server(Server::App).await;
    expect(&mut app, &get("/", "")).await;
    // It wants no more than the answer.
    case.client.shutdown().await.unwrap();
    expect_end(&mut app, "").await;
    reply(&mut app, OK).await;
    expect_end(&mut case.client, OK).await;
    case.serving.await.unwrap().unwrap();

    let mut case = Case::new();
    case.send(&get("/", "")).await;
    let mut app = case.server(Server::App).await;
    expect(&mut app, &get("/", "")).await;
    drop(case.client);
    app.read_to_end(&mut Vec::new()).await.unwrap_err();
}

#[tokio::test]
async fn next_request_may_come_before_the_answer() {
    let mut case = Case::new();
    case.send(&get("/1", "")).await;
    let mut app = case.server(Server::App).await;
    expect(&mut app, &get("/1", "")).await;
    case.send(&get("/2", "a")).await;
    case.client.shutdown().await.unwrap();
    tokio::task::yield_now().await;
    reply(&mut app, OK).await;
    let mut a = case.server(holder("a")).await;
    expect(&mut a, &get("/2", "a")).await;
    reply(&mut a, OK).await;
    expect_end(&mut case.client, &OK.repeat(2)).await;
    expect_end(&mut app, "").await;
}

#[tokio::test]
async fn head_that_does_not_end_is_the_apps_to_judge() {
    let mut case = Case::new();
    case.send("GET / HT").await;
    let mut app = case.server(Server::App).await;
    expect(&mut app, "GET / HT").await;
    reply(&mut app, "HTTP/1.1 408 Late\r\n\r\n").await;
    close(app).await;
    expect_end(&mut case.client, "HTTP/1.1 408 Late\r\n\r\n").await;
}

#[tokio::test]
async fn holder_that_has_ended_its_connection_is_asked_on_another() {
    // It has told so.
    let (mut case, a) = answered_by_a().await;
    close(a).await;
    tokio::task::yield_now().await;
    case.send(&get("/2", "a")).await;
    let mut a = case.server(holder("a")).await;
    expect(&mut a, &get("/2", "a")).await;

    // The news comes while it is asked.
    let (mut case, mut a) = answered_by_a().await;
    case.send(&format!("{}{}", get("/2", "a"), get("/3", "a")))
        .await;
    expect(&mut a, &get("/2", "a")).await;
    drop(a);
    let mut a = case.server(holder("a")).await;
    for path in ["/2", "/3"] {
        expect(&mut a, &get(path, "a")).await;
        reply(&mut a, OK).await;
        case.expect(OK).await;
    }
}

#[tokio::test]
async fn request_that_came_before_the_end_of_its_connection_is_asked_once_more() {
    let (mut case, a) = answered_by_a().await;
    case.send(&get("/2", "")).await;
    let mut app = case.server(Server::App).await;
    expect(&mut app, &get("/2", "")).await;
    // Both before the next request is looked at.
    case.send(&get("/3", "a")).await;
    drop(a);
    tokio::task::yield_now().await;
    reply(&mut app, OK).await;
    case.expect(OK).await;
    let mut a = case.server(holder("a")).await;
    for path in ["/3", "/4"] {
        expect(&mut a, &get(path, "a")).await;
        reply(&mut a, OK).await;
        case.expect(OK).await;
        case.send(&get("/4", "a")).await;
    }
}

#[tokio::test]
async fn request_that_changes_something_is_asked_only_once() {
    let (mut case, mut a) = answered_by_a().await;
    let post = "POST / HTTP/1.1\r\nX-User: a\r\nContent-Length: 0\r\n\r\n";
    case.send(post).await;
    expect(&mut a, post).await;
    drop(a);
    let broken = case.serving.await.unwrap().unwrap_err();
    assert!(matches!(broken, Broken::NoAnswer), "{broken}");
    case.client.read_to_end(&mut Vec::new()).await.unwrap_err();
}

#[tokio::test]
async fn copies_are_of_the_requests_that_fit_and_their_answers_are_thrown_away() {
    let mut case = Case::new();
    let copied = "POST /1 HTTP/1.1\r\nX-Copy: a\r\nContent-Length: 5\r\n\r\n";
    case.send(copied).await;
    let mut app = case.server(Server::App).await;
    let mut a = case.server(holder("a")).await;
    case.send("hello").await;
    for end in [&mut app, &mut a] {
        expect(end, &format!("{copied}hello")).await;
    }
    reply(&mut a, "HTTP/1.1 500 Oops\r\n\r\n").await;
    reply(&mut app, OK).await;
    case.expect(OK).await;
    for (request, is_copied) in [(get("/2", ""), false), (copied.replace('5', "0"), true)] {
        case.send(&request).await;
        expect(&mut app, &request).await;
        if is_copied {
            expect(&mut a, &request).await;
        }
        reply(&mut app, OK).await;
        case.expect(OK).await;
    }
    // Who looks on may end a connection; the next copy has another.
    close(a).await;
    tokio::task::yield_now().await;
    case.send(copied).await;
    case.send("again").await;
    let mut a = case.server(holder("a")).await;
    for end in [&mut app, &mut a] {
        expect(end, &format!("{copied}again")).await;
    }
    reply(&mut app, OK).await;
    case.expect(OK).await;
    case.client.shutdown().await.unwrap();
    case.serving.await.unwrap().unwrap();
    expect_end(&mut a, "").await;
}

#[tokio::test]
async fn copy_of_what_is_cut_off_is_cut_off() {
    let mut case = Case::new();
    let head = "POST / HTTP/1.1\r\nX-Copy: a\r\nContent-Length: 9\r\n\r\n";
    case.send(&format!("{head}abc")).await;
    let mut app = case.server(Server::App).await;
    let mut a = case.server(holder("a")).await;
    for end in [&mut app, &mut a] {
        expect(end, &format!("{head}abc")).await;
    }
    drop(case.client);
    a.read_to_end(&mut Vec::new()).await.unwrap_err();
}

#[tokio::test]
async fn copy_that_nobody_takes_slows_nobody() {
    let mut case = Case::new();
    let length = 4 * ROOM;
    let head = format!("POST / HTTP/1.1\r\nX-Copy: a\r\nContent-Length: {length}\r\n\r\n");
    case.send(&head).await;
    let mut app = case.server(Server::App).await;
    let mut a = case.server(holder("a")).await;
    expect(&mut app, &head).await;
    for _ in 0..4 {
        let part = "b".repeat(ROOM);
        case.send(&part).await;
        expect(&mut app, &part).await;
    }
    reply(&mut app, OK).await;
    case.expect(OK).await;
    // What is left of it must not look whole.
    a.read_to_end(&mut Vec::new()).await.unwrap_err();
}

#[tokio::test]
async fn copies_of_everything_are_of_what_is_no_http_too() {
    for is_whole in [true, false] {
        let (mut client, ours) = Pipe::new(ROOM);
        let fake = std::sync::Arc::new(Fake::default());
        let servers = std::sync::Arc::clone(&fake);
        let serving = tokio::spawn(async move {
            if is_whole {
                serve_whole(End::new(ours), Server::App, &servers)
                    .await
                    .unwrap();
            } else {
                serve(End::new(ours), &servers).await.unwrap();
            }
        });
        client.write_all(b"SSH-2.0-x\r\n").await.unwrap();
        let case = Case {
            client,
            fake,
            serving: tokio::spawn(async { Ok(()) }),
        };
        let mut app = case.server(Server::App).await;
        let mut all = case.server(holder("all")).await;
        for end in [&mut app, &mut all] {
            expect(end, "SSH-2.0-x\r\n").await;
        }
        let mut client = case.client;
        client.shutdown().await.unwrap();
        for end in [&mut app, &mut all] {
            expect_end(end, "").await;
        }
        close(app).await;
        close(all).await;
        serving.await.unwrap();
    }
}

#[tokio::test]
async fn request_whose_holder_fails_closed_is_answered_by_nobody() {
    let mut case = Case::new();
    case.send("POST / HTTP/1.1\r\nx-user: closed\r\ncontent-length: 4\r\n\r\nbo")
        .await;
    case.expect("HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\n")
        .await;
    expect_end(&mut case.client, "content-length: 0\r\n\r\n").await;
    drop(case.client);
    case.serving.await.unwrap().unwrap();
    assert!(case.fake.connection_of(&Server::App).is_none());
}

#[tokio::test]
async fn silent_client_whom_nobody_may_greet_is_cut_off() {
    let (client, ours) = Pipe::new(ROOM);
    let fake = std::sync::Arc::new(Fake {
        other: Some(holder("closed")),
        ..Fake::default()
    });
    let served = timeout(SOON, serve(End::new(ours), &fake)).await;
    assert!(served.unwrap().is_err());
    drop(client);
    assert!(fake.connection_of(&Server::App).is_none());
}
