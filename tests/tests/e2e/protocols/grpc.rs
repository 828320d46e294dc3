//! gRPC, of Google's library in Python on both sides: each call goes to whom it is for, in
//! all four shapes and as an error, and messages and trailers arrive as they were sent.

use anyhow::{Context, Result, ensure};
use kvpn_tests::lab::services::grpc_echo;
use serde_json::Value;

use super::{GRPC, Shop};

/// Who calls, one after the other on one connection; the second says no name.
const USERS: &str = "alice,,bob,eve";

/// The methods of which a user's calls are the laptop's.
type Methods = &'static [&'static str];

const NONE: Methods = &[];
const ALL: Methods = &["Unary", "Down", "Up", "Both", "Fail"];
const SOME: Methods = &["Unary", "Both", "Fail"];

/// Flags of an intercept, and which calls of each user are the laptop's.
const FILTERS: &[(&[&str], [Methods; 4])] = &[
    (&["--http-header", "x-user=alice"], [ALL, NONE, NONE, NONE]),
    (
        &["--http-header", "X-User~=a.*|b.b"],
        [ALL, NONE, ALL, NONE],
    ),
    (&["--http-path", "/kvpn.Echo/*"], [ALL; 4]),
    (
        &["--http-path", r"~=/kvpn\.Echo/(Unary|B.*|Fail)"],
        [SOME; 4],
    ),
    (&["--http-method", "POST"], [ALL; 4]),
    // Calls have no other method, and no query at all: such filters mean nothing here.
    (
        &["--any", "--http-method", "GET", "--http-query", "user"],
        [NONE; 4],
    ),
];

#[test]
fn filters_decide_calls_of_grpc() -> Result<()> {
    let shop = Shop::open()?;
    let port = format!("{GRPC}:grpc");
    for replicas in [1, 3] {
        shop.scale("grpc", replicas)?;
        for (filter, expected) in FILTERS {
            shop.with_filter("grpc", &port, filter, || {
                for _ in 0..replicas {
                    call(&shop, expected)?;
                }
                Ok(())
            })?;
        }
        call(&shop, &[NONE; 4])?;
    }
    shop.scale("grpc", 1)
}

/// Calls every method as every user; fails unless those calls are the laptop's and all
/// others the app's, and unless what comes back is what it must be.
fn call(shop: &Shop, expected: &[Methods; 4]) -> Result<()> {
    let program = grpc_echo(shop.developer.lab.layout());
    let program = program.to_str().context("a path")?;
    let command = [
        "/usr/bin/python3",
        program,
        "ask",
        "grpc.services:50051",
        USERS,
    ];
    let output = shop.developer.laptop.user().run(command)?.success()?;
    let found: Value = output.json()?;
    let found = found.as_array().context("a list")?;
    ensure!(found.len() == expected.len(), "{found:?}");
    for ((who, laptops), user) in found.iter().zip(expected).zip(USERS.split(',')) {
        let who = who.as_object().context("methods")?;
        ensure!(who.len() == ALL.len(), "{who:?}");
        for (method, who) in who {
            let wanted = match laptops.contains(&method.as_str()) {
                true => "laptop",
                false => "app",
            };
            ensure!(who == wanted, "{method} of {user:?}: {who}");
        }
    }
    Ok(())
}
