//! Copies of what is served.

use tokio::io::AsyncReadExt;

use super::*;
use crate::http::serve_whole;

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
            serving: tokio::spawn(async { Ok(Served::Ended) }),
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
