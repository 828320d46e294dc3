//! Messages of HTTP/1.1 that do not come in one piece: bodies in chunks, with trailers, large,
//! or kept until the server wants them; requests that do not wait for answers; streams of
//! events. The server is of Python's library on both sides, and tells the hash of what it
//! got; the clients are curl and Python.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvpn_tests::lab::services::{NAMESPACE, http_echo};
use kvpn_tests::{Background, Output, soak, wait_for};
use serde_json::{Value, json};

use super::Shop;
use crate::support::{agent_processes, pods_in};

/// Port on the laptop.
const ECHO: u16 = 8084;

const SERVER: &str = "http.services:80";

const DEADLINE: Duration = Duration::from_secs(10);

/// Lengths of bodies, in bytes.
const SMALL: u64 = 1 << 20;
const LARGE: u64 = 64 << 20;

/// How much more memory than before a large body an agent may take for it, in bytes.
const GROWTH: u64 = LARGE / 4;

/// A header, and who answers requests with it.
const ANSWERERS: [(&str, &str); 2] = [("x-user: alice", "laptop"), ("x-user: bob", "app")];

/// A client at the laptop, where one of the servers is; the other one is the app.
struct Client<'a> {
    shop: &'a Shop,
    _handler: Background,
}

#[test]
fn filters_decide_messages_that_come_in_parts() -> Result<()> {
    let shop = Shop::open()?;
    let client = Client::open(&shop)?;
    let small = Random::make(&shop, "/tmp/small-body", SMALL)?;
    let large = Random::make(&shop, "/tmp/large-body", LARGE)?;
    let header = ["--http-header", "x-user=alice"];
    shop.with_filter("http", &format!("{ECHO}:http"), &header, || {
        let wanted = [["laptop"; 3], ["app"; 3], ["app"; 3], ["laptop"; 3]];
        assert_eq!(client.ask_at_once("alice,,bob,alice")?, wanted);
        for (header, who) in ANSWERERS {
            let asked = client.ask_in_parts([&small, &large], header, who);
            asked.context(header)?;
        }
        Ok(())
    })?;
    assert_eq!(client.ask_at_once("alice")?, [["app"; 3]]);
    Ok(())
}

impl<'a> Client<'a> {
    fn open(shop: &'a Shop) -> Result<Self> {
        let port = ECHO.to_string();
        let serve = python(shop, &["serve", "laptop", &port])?;
        let mut handler = shop.developer.laptop.user().spawn(serve)?;
        handler.wait_for_line("listens", DEADLINE)?;
        Ok(Self {
            shop,
            _handler: handler,
        })
    }

    /// Who answers each user's three requests, of which all are sent on one connection before
    /// an answer is read. It fails when one does not arrive byte for byte, its chunks and
    /// trailers too, or answers are not in order.
    fn ask_at_once(&self, users: &str) -> Result<Vec<[String; 3]>> {
        let ask = python(self.shop, &["ask", SERVER, users])?;
        let asked = self.shop.developer.laptop.user().run(ask)?;
        asked.success()?.json()
    }

    /// A request of each kind; fails unless that server answers all of them.
    fn ask_in_parts(&self, bodies: [&Random; 2], header: &str, who: &str) -> Result<()> {
        let [small, large] = bodies;
        self.upload_in_chunks(small, header, who)?;
        self.upload_once_it_is_wanted(small, header, who)?;
        self.take_events(header, who)?;
        self.upload_slowly(large, header, who)
    }

    fn upload_in_chunks(&self, body: &Random, header: &str, who: &str) -> Result<()> {
        let chunked = ["-H", "Transfer-Encoding: chunked"];
        self.upload(body, header, who, "/chunked", &chunked)
            .map(drop)
    }

    /// curl sends nothing of the body before the server has said that it may: it would wait
    /// for longer than the whole may take.
    fn upload_once_it_is_wanted(&self, body: &Random, header: &str, who: &str) -> Result<()> {
        let expect = [
            "-H",
            "Expect: 100-continue",
            "--expect100-timeout",
            "60",
            "-v",
        ];
        let output = self.upload(body, header, who, "/wanted", &expect)?;
        let count = |line: &str| output.stderr.matches(line).count();
        let counts = [
            "> Expect: 100-continue",
            "< HTTP/1.1 100 ",
            "< HTTP/1.1 200 ",
        ]
        .map(count);
        ensure!(counts == [1; 3], "{}", output.stderr);
        Ok(())
    }

    /// The server takes less at a time than comes. The agent keeps neither all of it, nor
    /// what the server has not taken yet.
    fn upload_slowly(&self, body: &Random, header: &str, who: &str) -> Result<()> {
        let pods = pods_in(&self.shop.developer.lab, NAMESPACE, "http")?;
        // One of an earlier engagement may be about to leave.
        let agents = wait_for("there is one agent", DEADLINE, || {
            agent_processes(&pods).map(Some)
        })?;
        let agent = agents.into_iter().next().context("an agent")?;
        let before = soak::peak(agent)?;
        self.upload(body, header, who, "/slow", &[])?;
        let after = soak::peak(agent)?;
        ensure!(
            after <= before + GROWTH,
            "the agent had {before} bytes at most, then {after}"
        );
        Ok(())
    }

    /// Sends a body with curl; fails unless that server answers, and got these bytes.
    fn upload(
        &self,
        body: &Random,
        header: &str,
        who: &str,
        path: &str,
        options: &[&str],
    ) -> Result<Output> {
        let url = format!("http://{SERVER}{path}");
        let curl = ["curl", "-sSf", "--max-time", "30", "-H", header];
        let command = [&curl[..], options, &["-T", body.path, &url]].concat();
        let output = self.shop.developer.laptop.user().run(command)?.success()?;
        let told: Value = output.json()?;
        let found = ["who", "asked", "length", "body"].map(|name| &told[name]);
        let asked = format!("PUT {path}");
        let wanted = [
            json!(who),
            json!(asked),
            json!(body.length),
            json!(body.sum),
        ];
        ensure!(found.into_iter().eq(&wanted), "{told} and not {wanted:?}");
        Ok(output)
    }

    /// Each event arrives before the next one is sent, for which somebody must ask.
    fn take_events(&self, header: &str, who: &str) -> Result<()> {
        let user = self.shop.developer.laptop.user();
        let curl = ["curl", "-sSf", "--max-time", "30", "-H", header];
        let url = |path: &str| format!("http://{SERVER}{path}");
        let mut events = user.spawn(curl.iter().chain(&["-N", &url("/events")]))?;
        for number in 1..=3 {
            events.wait_for_line(&format!("data: {number}"), DEADLINE)?;
            if number < 3 {
                let more = user.run(curl.iter().chain(&[url("/more").as_str()]))?;
                assert_eq!(more.success()?.json::<Value>()?["who"], who);
            }
        }
        let status = events.wait(DEADLINE)?;
        ensure!(status.success(), "curl: {status}: {}", events.printed());
        let event = |number| format!("event: {who}\ndata: {number}\n\n");
        let wanted: String = (1..=3).map(event).collect();
        // What prints it may have ended before all of it is read.
        wait_for("all events are there", DEADLINE, || {
            ensure!(events.printed() == wanted, "{}", events.printed());
            Ok(Some(()))
        })
    }
}

/// The program that is server and client, with these arguments.
fn python(shop: &Shop, arguments: &[&str]) -> Result<Vec<String>> {
    let program = http_echo(shop.developer.lab.layout());
    let program = program.to_str().context("a path")?;
    let command = ["/usr/bin/python3", program].into_iter();
    let command = command.chain(arguments.iter().copied());
    Ok(command.map(str::to_owned).collect())
}

/// A file of random bytes at the laptop; removed when dropped.
struct Random<'a> {
    shop: &'a Shop,
    path: &'static str,
    length: u64,
    /// As sha256sum has it.
    sum: String,
}

impl<'a> Random<'a> {
    fn make(shop: &'a Shop, path: &'static str, length: u64) -> Result<Self> {
        let script = format!("head -c {length} /dev/urandom >{path} && sha256sum <{path}");
        let made = shop.developer.laptop.user().run(["sh", "-c", &script])?;
        let sum = made.success()?.stdout;
        let sum = sum.split_whitespace().next().context("a hash")?.to_owned();
        Ok(Self {
            shop,
            path,
            length,
            sum,
        })
    }
}

impl Drop for Random<'_> {
    fn drop(&mut self) {
        // It takes room, and does no other harm.
        drop(fs::remove_file(self.shop.developer.laptop.path(self.path)));
    }
}
