//! WebSocket, of Python's library `websockets` on both sides: whom the request for it is
//! for has the connection from then on, and messages arrive as they were sent.

use std::time::Duration;

use anyhow::{Context, Result};
use kvpn_tests::lab::services::websocket_echo;

use super::Shop;

/// Port on the laptop.
const WEBSOCKET: u16 = 8083;

/// How long the server takes to listen.
const DEADLINE: Duration = Duration::from_secs(10);

#[test]
fn filters_decide_connections_of_websocket() -> Result<()> {
    let shop = Shop::open()?;
    let program = websocket_echo(shop.developer.lab.layout());
    let program = program.to_str().context("a path")?;
    let python = ["/usr/bin/python3", program];
    let user = shop.developer.laptop.user();
    let port = WEBSOCKET.to_string();
    let serve = ["serve", "laptop", &port];
    let mut handler = user.spawn(python.iter().chain(&serve))?;
    handler.wait_for_line("listens", DEADLINE)?;
    // Who answers each user; it fails unless all messages come back as they were.
    let ask = |path: &str, users: &str| -> Result<Vec<String>> {
        let url = format!("ws://websocket.services{path}");
        let asked = user.run(python.iter().chain(&["ask", &url, users]))?;
        asked.success()?.json()
    };
    let port = format!("{WEBSOCKET}:http");
    for replicas in [1, 3] {
        shop.scale("websocket", replicas)?;
        let header = ["--http-header", "x-user=alice"];
        shop.with_filter("websocket", &port, &header, || {
            for _ in 0..replicas {
                let who = ask("/", "alice,,bob,alice")?;
                assert_eq!(who, ["laptop", "app", "app", "laptop"]);
            }
            Ok(())
        })?;
        shop.with_filter("websocket", &port, &["--http-path", "/mine"], || {
            assert_eq!(ask("/mine", "")?, ["laptop"]);
            assert_eq!(ask("/other", "alice")?, ["app"]);
            Ok(())
        })?;
        assert_eq!(ask("/", "alice")?, ["app"]);
    }
    shop.scale("websocket", 1)
}
