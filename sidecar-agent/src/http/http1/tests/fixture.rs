//! A client, and servers that tests speak for.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::FutureExt;
use kvpn_proto::filter::Head;
use tokio::io::AsyncReadExt;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::*;
use crate::http::tap::Tap;

pub(super) const ROOM: usize = 1 << 20;

/// How long a connection may take to come.
pub(super) const SOON: Duration = Duration::from_secs(5);

/// Servers that hand over their other ends. Requests with a user go to that holder, and
/// copies of those with a copy to that one.
#[derive(Default)]
pub(super) struct Fake {
    pub(super) connected: Mutex<Vec<(Server, Pipe)>>,
    /// Who gets what is no HTTP, if not the app.
    pub(super) other: Option<Server>,
    /// The client is known to be the first to speak.
    pub(super) is_clients_word: AtomicBool,
    /// The TLS of clients is ended.
    pub(super) ends_tls: bool,
    /// The holder `late` was asked.
    pub(super) asked: Notify,
    /// It refuses now.
    pub(super) refuses: Notify,
}

impl Servers for std::sync::Arc<Fake> {
    fn is_clients_word(&self) -> bool {
        self.is_clients_word.load(Ordering::Relaxed)
    }

    fn ends_tls(&self) -> bool {
        self.ends_tls
    }

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
        [holder("closed"), holder("late")].contains(server)
    }

    async fn connect(&self, server: &Server) -> io::Result<End> {
        if *server == holder("late") {
            self.asked.notify_one();
            self.refuses.notified().await;
            return Err(io::ErrorKind::TimedOut.into());
        }
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
    pub(super) fn connection_of(&self, wanted: &Server) -> Option<Pipe> {
        let mut connected = self.connected.lock().unwrap();
        let index = connected.iter().rposition(|(it, _)| it == wanted)?;
        Some(connected.swap_remove(index).1)
    }
}

pub(super) struct Case {
    pub(super) client: Pipe,
    pub(super) fake: std::sync::Arc<Fake>,
    pub(super) serving: JoinHandle<Result<Served, Broken>>,
}

impl Case {
    pub(super) fn new() -> Self {
        Self::with(Fake::default())
    }

    pub(super) fn with(fake: Fake) -> Self {
        let (client, ours) = Pipe::new(ROOM);
        let fake = std::sync::Arc::new(fake);
        let servers = std::sync::Arc::clone(&fake);
        let serving = tokio::spawn(async move { serve(End::new(ours), &servers).await });
        Self {
            client,
            fake,
            serving,
        }
    }

    pub(super) async fn send(&mut self, bytes: &str) {
        self.client.write_all(bytes.as_bytes()).await.unwrap();
    }

    pub(super) async fn expect(&mut self, bytes: &str) {
        expect(&mut self.client, bytes).await;
    }

    /// The other end of the connection to a server that was opened last.
    pub(super) async fn server(&self, wanted: Server) -> Pipe {
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

pub(super) async fn expect(end: &mut Pipe, bytes: &str) {
    let mut read = vec![0; bytes.len()];
    end.read_exact(&mut read).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&read), bytes);
}

pub(super) async fn reply(end: &mut Pipe, bytes: &str) {
    end.write_all(bytes.as_bytes()).await.unwrap();
}

/// It ends there, in order.
pub(super) async fn expect_end(end: &mut Pipe, bytes: &str) {
    let mut read = String::new();
    end.read_to_string(&mut read).await.unwrap();
    assert_eq!(read, bytes);
}

/// Ends its part of a connection in order.
pub(super) async fn close(mut end: Pipe) {
    end.shutdown().await.unwrap();
}

/// A connection whose client has one with the holder `a`.
pub(super) async fn answered_by_a() -> (Case, Pipe) {
    let mut case = Case::new();
    case.send(&get("/", "a")).await;
    let mut a = case.server(holder("a")).await;
    expect(&mut a, &get("/", "a")).await;
    reply(&mut a, OK).await;
    case.expect(OK).await;
    (case, a)
}

pub(super) fn holder(name: &str) -> Server {
    Server::Holder(name.into())
}

pub(super) fn get(path: &str, user: &str) -> String {
    let user = match user {
        "" => String::new(),
        user => format!("x-User:  {user}\r\n"),
    };
    format!("GET {path} HTTP/1.1\r\nhOsT: shop\r\n{user}\r\n")
}

pub(super) const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
