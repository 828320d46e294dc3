mod copies;
mod fixture;

use std::sync::atomic::Ordering;

use tokio::io::AsyncReadExt;

use super::*;
use crate::http::end::Pipe;
use crate::http::serve_whole;
use fixture::{
    Case, Fake, OK, ROOM, SOON, answered_by_a, close, expect, expect_end, get, holder, reply,
};

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
    let broken = case.serving.await.unwrap().err().unwrap();
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
    let broken = case.serving.await.unwrap().err().unwrap();
    assert!(matches!(broken, Broken::NoAnswer), "{broken}");
    case.client.read_to_end(&mut Vec::new()).await.unwrap_err();
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

#[tokio::test]
async fn server_is_given_the_word_of_a_client_only_after_a_long_silence() {
    let start = Instant::now();
    let mut case = Case::with(Fake {
        is_clients_word: true.into(),
        ..Fake::default()
    });
    let mut app = case.server(Server::App).await;
    assert!(start.elapsed() >= WORD_DEADLINE);
    reply(&mut app, "220 not HTTP\r\n").await;
    case.expect("220 not HTTP\r\n").await;
}

#[tokio::test]
async fn request_that_comes_while_who_would_greet_is_asked_is_read() {
    let mut case = Case::with(Fake {
        is_clients_word: true.into(),
        other: Some(holder("late")),
        ..Fake::default()
    });
    case.fake.asked.notified().await;
    case.send(&get("/", "a")).await;
    case.fake.refuses.notify_one();
    let mut a = case.server(holder("a")).await;
    expect(&mut a, &get("/", "a")).await;
}

#[tokio::test]
async fn client_has_the_time_that_was_left_to_it_whatever_is_learnt_meanwhile() {
    let mut case = Case::with(Fake {
        other: Some(holder("late")),
        ..Fake::default()
    });
    case.fake.asked.notified().await;
    case.fake.is_clients_word.store(true, Ordering::Relaxed);
    case.fake.refuses.notify_one();
    let is_over = timeout(WORD_DEADLINE / 4, &mut case.serving).await;
    assert!(is_over.is_err(), "it was cut off early");
    case.send(&get("/", "a")).await;
    let mut a = case.server(holder("a")).await;
    expect(&mut a, &get("/", "a")).await;
}

#[tokio::test]
async fn whole_connection_whose_holder_fails_closed_is_answered_by_nobody() {
    let (client, ours) = Pipe::new(ROOM);
    let fake = std::sync::Arc::new(Fake::default());
    let served = serve_whole(End::new(ours), holder("closed"), &fake).await;
    assert!(served.is_err());
    assert!(fake.connection_of(&Server::App).is_none());
    drop(client);
}

#[tokio::test]
async fn client_that_begins_with_tls_is_given_back_whole_however_late() {
    for is_late in [false, true] {
        let fake = Fake {
            ends_tls: true,
            ..Fake::default()
        };
        let mut case = Case::with(fake);
        let app = match is_late {
            true => Some(case.server(Server::App).await),
            false => None,
        };
        case.send("\u{16}\u{3}\u{1}").await;
        let Served::Tls(client) = case.serving.await.unwrap().unwrap() else {
            panic!("it is not given back");
        };
        assert_eq!(client.buffer[..], [22, 3, 1]);
        if let Some(mut app) = app {
            expect_end(&mut app, "").await;
        }
    }
}

#[tokio::test]
async fn tls_that_the_app_has_greeted_is_its_own() {
    let fake = Fake {
        ends_tls: true,
        ..Fake::default()
    };
    let mut case = Case::with(fake);
    let mut app = case.server(Server::App).await;
    reply(&mut app, "220 ready\r\n").await;
    case.expect("220 ready\r\n").await;
    case.send("\u{16}\u{3}\u{1}").await;
    expect(&mut app, "\u{16}\u{3}\u{1}").await;
}
