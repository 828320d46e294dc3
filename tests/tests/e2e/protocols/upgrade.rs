//! The wish to go on in HTTP/2, of curl and nghttp: it reaches a server where nothing is
//! filtered, and nobody where something is, as each request must be looked at. The laptop's
//! server, of Python's library for HTTP/2, grants it; the app has none to grant it with, and
//! tells whether it came.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvpn_tests::Output;
use serde_json::Value;

use super::Shop;

/// Port on the laptop.
const UPGRADE: u16 = 8085;

const SERVER: &str = include_str!("h2c-upgrade");

const URL: &str = "http://http.services";

const ALICE: &str = "x-user: alice";
const BOB: &str = "x-user: bob";

#[test]
fn wish_for_http_2_is_granted_only_where_nothing_is_filtered() -> Result<()> {
    let shop = Shop::open()?;
    let user = shop.developer.laptop.user();
    let port = UPGRADE.to_string();
    let mut server = user.spawn(["/usr/bin/python3", "-c", SERVER, &port])?;
    server.wait_for_line("listens", Duration::from_secs(10))?;
    let port = format!("{UPGRADE}:http");

    // Without an engagement the wish comes to the app.
    let [first, second] = curl(&shop, [ALICE, BOB])?;
    for asked in [first, second] {
        assert_eq!(asked.of_app()?["upgrade"], "h2c");
    }

    shop.with_filter("http", &port, &["--http-header", "x-user=alice"], || {
        let [alice, bob] = curl(&shop, [ALICE, BOB])?;
        assert_eq!(alice.answer, "laptop HTTP/1.1 /0");
        assert_eq!(bob.of_app()?["upgrade"], Value::Null);
        // Both on one connection, on which only the first of them is the laptop's.
        let versions = [&alice, &bob].map(|it| it.version.as_str());
        assert_eq!(versions, ["1.1"; 2]);
        assert_eq!([alice.connections, bob.connections], [1, 0]);
        // nghttp can do nothing with an answer in HTTP/1.1.
        for header in [ALICE, BOB] {
            let refused = nghttp(&shop, header)?;
            let told = refused.stderr.contains("HTTP Upgrade failed");
            ensure!(told, "{}{}", refused.stdout, refused.stderr);
        }
        Ok(())
    })?;

    shop.with_filter("http", &port, &[], || {
        for (number, asked) in curl(&shop, [ALICE, BOB])?.iter().enumerate() {
            assert_eq!(asked.answer, format!("laptop HTTP/2 /{number}"));
            assert_eq!(asked.version, "2");
        }
        let granted = nghttp(&shop, BOB)?.success()?.stdout;
        assert_eq!(granted, "laptop HTTP/2 /0\nlaptop HTTP/2 /1\n");
        Ok(())
    })
}

/// What curl has of a request.
struct Asked {
    answer: String,
    version: String,
    /// How many it has made for it.
    connections: u32,
}

impl Asked {
    /// What the app tells, which answers.
    fn of_app(&self) -> Result<Value> {
        let told: Value = serde_json::from_str(&self.answer).context(self.answer.clone())?;
        ensure!(told["who"] == "app", "{told}");
        Ok(told)
    }
}

/// Asks for `/0` and `/1` with a header each and the wish; on one connection, if it can.
fn curl(shop: &Shop, headers: [&str; 2]) -> Result<[Asked; 2]> {
    let [first, second] = [0, 1].map(|number| format!("{URL}/{number}"));
    let options = ["-sSf", "--max-time", "10", "--http2"];
    let told = ["-w", "%{http_version} %{num_connects}\n"];
    let mut command = vec!["curl"];
    for (header, url) in headers.into_iter().zip([&first, &second]) {
        if command.len() > 1 {
            command.push("--next");
        }
        command.extend(options.iter().chain(&told).chain(&["-H", header, url]));
    }
    let output = shop.developer.laptop.user().run(command)?.success()?;
    let lines: Vec<&str> = output.stdout.lines().collect();
    let asked = |pair: &[&str]| {
        let (version, connections) = pair[1].split_once(' ').context("two figures")?;
        Ok(Asked {
            answer: pair[0].to_owned(),
            version: version.to_owned(),
            connections: connections.parse()?,
        })
    };
    let all: Result<Vec<Asked>> = lines.chunks_exact(2).map(asked).collect();
    let all: Result<[Asked; 2], _> = all?.try_into();
    all.ok().with_context(|| output.stdout.clone())
}

/// Asks for both with one header, the first with the wish.
fn nghttp(shop: &Shop, header: &str) -> Result<Output> {
    let [first, second] = [0, 1].map(|number| format!("{URL}/{number}"));
    let command = ["nghttp", "--upgrade", "-H", header, &first, &second];
    shop.developer.laptop.user().run(command)
}
