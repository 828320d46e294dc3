//! What `kvpn` does with the environment of a container.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;
use tokio::time::timeout;

use crate::fake_session::FakeSession;
use crate::kvpn::{DEADLINE, Finished, User, finish, send, wait_for};

const ASKED: [&str; 2] = ["intercept web 127.0.0.1:8080 ", "environment shop web-x"];
const LEFT: &str = "leave shop web-x false";

/// Runs `kvpn intercept web` with a shell script as the command.
async fn run_script(user: &User, script: &str) -> Finished {
    let mut command = user.command("intercept web --port 8080 -- sh -c");
    finish(command.arg(script).spawn().unwrap()).await
}

/// Starts the same, with what env(1) makes of signals, and of no terminal.
fn start_script(user: &User, signals: &str, script: &str) -> Child {
    let mut command = user.command_of(Path::new("/usr/bin/env"));
    command.args([signals, env!("CARGO_BIN_EXE_kvpn")]);
    command.args([
        "intercept",
        "web",
        "--port",
        "8080",
        "--",
        "sh",
        "-c",
        script,
    ]);
    command.process_group(0).spawn().unwrap()
}

fn mode(file: &Path) -> u32 {
    std::fs::metadata(file).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn environment_is_written_for_its_owner_alone() {
    let user = User::new();
    let session = FakeSession::start(&user);
    let (file, json_file) = (user.path("web.env"), user.path("web.json"));
    let (name, json_name) = (file.display(), json_file.display());
    let line = format!("intercept web --port 8080 --env-file {name} --env-json {json_name}");
    let finished = user.run(&line).await;
    assert_eq!(finished.code, 0, "{finished:?}");
    assert!(finished.stdout.starts_with("Intercepting Deployment/web"));
    let text = std::fs::read_to_string(&file).unwrap();
    assert_eq!(text, "GREETING=it's\nRAW=\u{fffd}\n");
    let variables = std::fs::read_to_string(&json_file).unwrap();
    let variables: serde_json::Value = serde_json::from_str(&variables).unwrap();
    let expected = json!({"GREETING": "it's", "LINES": "a\nb", "RAW": "\u{fffd}"});
    assert_eq!(variables, expected);
    assert_eq!([mode(&file), mode(&json_file)], [0o600; 2]);
    for told in ["LINES is left out", "RAW is no UTF-8"] {
        assert!(finished.stderr.contains(told), "{}", finished.stderr);
    }
    assert_eq!(session.calls(), ASKED, "it stays engaged");
}

#[tokio::test]
async fn engagement_whose_environment_cannot_be_written_is_left() {
    let user = User::new();
    let session = FakeSession::start(&user);
    let line = "intercept web --port 8080 --env-file /nonexistent/web.env";
    let finished = user.run(line).await;
    assert_eq!(finished.code, 2, "{finished:?}");
    assert!(
        finished
            .stderr
            .contains("/nonexistent/web.env cannot be written")
    );
    assert_eq!(session.calls(), [ASKED[0], ASKED[1], LEFT]);
}

#[tokio::test]
async fn what_is_no_regular_file_is_refused_before_anything_is_engaged() {
    let user = User::new();
    let session = FakeSession::start(&user);
    let finished = user
        .run("intercept web --port 8080 --env-file /dev/null")
        .await;
    assert_eq!(finished.code, 2, "{finished:?}");
    assert!(finished.stderr.contains("it is no regular file"));
    assert_eq!(session.calls(), Vec::<String>::new());
}

#[tokio::test]
async fn command_has_the_environment_and_its_end_is_the_engagements() {
    let user = User::new();
    let session = FakeSession::start(&user);
    let script = r#"printf '%s|%s|%s' "$GREETING" "$LINES" "$HOME"; exit 7"#;
    let finished = run_script(&user, script).await;
    assert_eq!(finished.code, 7, "{finished:?}");
    let home = user.path("");
    let home = home.to_str().unwrap().trim_end_matches('/');
    assert_eq!(finished.stdout, format!("it's|a\nb|{home}"));
    assert!(finished.stderr.contains("Intercepting Deployment/web"));
    assert_eq!(session.calls(), [ASKED[0], ASKED[1], LEFT]);

    let missing = user
        .run("intercept web --port 8080 -- no-such-program")
        .await;
    assert_eq!(missing.code, 2, "{missing:?}");
    assert_eq!(session.calls().last().unwrap(), LEFT);
}

#[tokio::test]
async fn command_that_quits_the_session_has_its_exit_code_returned() {
    let user = User::new();
    let session = FakeSession::start(&user);
    let script = format!("'{}' quit && exit 7", env!("CARGO_BIN_EXE_kvpn"));
    let finished = run_script(&user, &script).await;
    assert_eq!(finished.code, 7, "{finished:?}");
    assert!(!finished.stderr.contains("error"), "{}", finished.stderr);
    assert_eq!(session.calls(), [ASKED[0], ASKED[1], "quit", LEFT]);
}

#[tokio::test]
async fn signals_are_passed_to_the_command() {
    for (signal, name) in [
        (Signal::SIGINT, "INT"),
        (Signal::SIGTERM, "TERM"),
        (Signal::SIGHUP, "HUP"),
    ] {
        let user = User::new();
        let session = FakeSession::start(&user);
        let ready = user.path("ready");
        let script = format!(
            "trap 'exit 9' {name}; touch {}; while :; do sleep 0.02; done",
            ready.display()
        );
        // Whatever these tests were started without.
        let kvpn = start_script(&user, "--default-signal", &script);
        wait_for(&ready).await;
        send(&kvpn, signal);
        assert_eq!(finish(kvpn).await.code, 9, "{name}");
        assert_eq!(session.calls().last().unwrap(), LEFT);
    }
}

#[tokio::test]
async fn signal_that_kvpn_was_started_without_does_nothing() {
    let user = User::new();
    let session = FakeSession::start(&user);
    let [ready, go_on] = ["ready", "go-on"].map(|name| user.path(name));
    let script = format!(
        "touch {}; while [ ! -e {} ]; do sleep 0.02; done; exit 7",
        ready.display(),
        go_on.display()
    );
    let kvpn = start_script(&user, "--ignore-signal=HUP", &script);
    wait_for(&ready).await;
    send(&kvpn, Signal::SIGHUP);
    std::fs::write(&go_on, "").unwrap();
    assert_eq!(finish(kvpn).await.code, 7);
    assert_eq!(session.calls().last().unwrap(), LEFT);
}

#[tokio::test]
async fn engagement_of_a_command_ends_with_the_call_even_when_kvpn_is_killed() {
    let user = User::new();
    let session = FakeSession::start(&user);
    let ready = user.path("ready");
    let name = ready.display();
    // Ends with the user's directory.
    let script = format!("touch {name}; while [ -e {name} ]; do sleep 0.02; done");
    let mut command = user.command("intercept web --port 8080 -- sh -c");
    let mut kvpn = command.arg(script).spawn().unwrap();
    wait_for(&ready).await;
    assert!(!user.path("hung-up").exists(), "it hangs up at once");
    send(&kvpn, Signal::SIGKILL);
    wait_for(&user.path("hung-up")).await;
    kvpn.wait().await.unwrap();
    assert_eq!(session.calls(), ASKED, "nobody was there to leave it");
}

#[tokio::test]
async fn who_ends_the_engagement_is_told_while_the_command_runs() {
    let user = User::new();
    let _session = FakeSession::start(&user);
    let go_on = user.path("go-on");
    let name = go_on.display();
    let script = format!("while [ ! -e {name} ]; do sleep 0.02; done; exit 7");
    let mut command = user.command("intercept revoked --port 8080 -- sh -c");
    let mut kvpn = command.arg(script).spawn().unwrap();
    let stderr = BufReader::new(kvpn.stderr.take().unwrap());
    let told = timeout(DEADLINE, async {
        let mut lines = stderr.lines();
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains("was deleted by bob") {
                return true;
            }
        }
        false
    });
    let told = told.await;
    std::fs::write(&go_on, "").unwrap();
    assert_eq!(told, Ok(true));
    assert_eq!(finish(kvpn).await.code, 7);
}

#[tokio::test]
async fn environment_is_printed_and_left() {
    let user = User::new();
    let session = FakeSession::start(&user);
    let finished = user.run("env web --env-exclude R*").await;
    assert_eq!(finished.code, 0, "{finished:?}");
    let expected = "export GREETING='it'\\''s'\nexport LINES='a\nb'\n";
    assert_eq!(finished.stdout, expected);
    assert_eq!(session.calls(), ["ingest web", ASKED[1], LEFT]);
    let json = user.run("env web -o json").await;
    let variables: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(variables["LINES"], "a\nb");
}

#[tokio::test]
async fn ingest_stays_until_it_is_left() {
    let user = User::new();
    let session = FakeSession::start(&user);
    let finished = user.run("ingest web").await;
    assert_eq!(finished.code, 0, "{finished:?}");
    assert_eq!(session.calls(), ["ingest web"]);
}
