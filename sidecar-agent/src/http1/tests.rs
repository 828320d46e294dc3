use std::sync::Mutex;

use kvpn_proto::filter::Head;
use tokio::io::{DuplexStream, duplex};
use tokio::task::JoinHandle;

use super::*;

const ROOM: usize = 1 << 20;

/// Servers that hand over their other ends. Requests with a user go to that holder.
#[derive(Default)]
struct Fake {
    connected: Mutex<Vec<(Server, DuplexStream)>>,
}

impl Servers for std::sync::Arc<Fake> {
    fn choose(&self, head: &RequestHead) -> Server {
        head.field("x-user")
            .map_or(Server::App, |user| Server::Holder(user.into_owned()))
    }

    fn other(&self) -> Server {
        Server::App
    }

    async fn connect(&self, server: &Server) -> io::Result<End> {
        if *server == holder("gone") {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (ours, theirs) = duplex(ROOM);
        let connected = (server.clone(), theirs);
        self.connected.lock().unwrap().push(connected);
        Ok(End::new(ours))
    }
}

struct Case {
    client: DuplexStream,
    fake: std::sync::Arc<Fake>,
    serving: JoinHandle<Result<(), Broken>>,
}

impl Case {
    fn new() -> Self {
        let (client, ours) = duplex(ROOM);
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
    async fn server(&self, wanted: Server) -> DuplexStream {
        loop {
            let last = self.fake.connected.lock().unwrap().pop();
            if let Some((server, end)) = last {
                assert_eq!(server, wanted);
                return end;
            }
            tokio::task::yield_now().await;
        }
    }
}

async fn expect(end: &mut DuplexStream, bytes: &str) {
    let mut read = vec![0; bytes.len()];
    end.read_exact(&mut read).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&read), bytes);
}

async fn reply(end: &mut DuplexStream, bytes: &str) {
    end.write_all(bytes.as_bytes()).await.unwrap();
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
    for (request, server) in requests[2..].iter().zip([Server::App, holder("a")]) {
        let mut end = case.server(server).await;
        expect(&mut end, request).await;
        reply(&mut end, OK).await;
    }
    case.expect(&OK.repeat(4)).await;
    case.client.shutdown().await.unwrap();
    case.serving.await.unwrap().unwrap();
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
async fn answer_without_an_end_ends_the_connection() {
    let mut case = Case::new();
    case.send(&get("/", "")).await;
    let mut app = case.server(Server::App).await;
    reply(&mut app, "HTTP/1.0 200 OK\r\n\r\nall there is").await;
    drop(app);
    let mut read = String::new();
    case.client.read_to_string(&mut read).await.unwrap();
    assert_eq!(read, "HTTP/1.0 200 OK\r\n\r\nall there is");
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
    let mut read = String::new();
    case.client.read_to_string(&mut read).await.unwrap();
    assert_eq!(read, answer);
    case.serving.await.unwrap().unwrap();
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
    reply(&mut app, &format!("{OK}HTTP/1.1 408 Late\r\n\r\n")).await;
    drop(app);
    let mut read = String::new();
    case.client.read_to_string(&mut read).await.unwrap();
    assert_eq!(read, format!("{OK}HTTP/1.1 408 Late\r\n\r\n"));
    drop(case.client);
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
    // The next one finds the same connection.
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
    drop(app);
    let broken = case.serving.await.unwrap().unwrap_err();
    assert!(matches!(broken, Broken::NoAnswer), "{broken}");
}
