//! A command that `kvpn` runs anew whenever something changes.

use std::path::Path;

use nix::sys::signal::Signal;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdout};
use tokio::time::timeout;

use crate::fake_session::FakeSession;
use crate::kvpn::{DEADLINE, User, finish, send};

const CALLS: [&str; 3] = [
    "intercept web 127.0.0.1:8080 ",
    "environment shop web-x",
    "leave shop web-x false",
];

/// `kvpn intercept web --watch src -- sh -c SCRIPT`, in the user's directory.
struct Watched {
    kvpn: Child,
    stdout: Lines<BufReader<ChildStdout>>,
    stderr: Lines<BufReader<ChildStderr>>,
}

impl Watched {
    fn start(user: &User, script: &str) -> Self {
        std::fs::create_dir(user.path("src")).unwrap();
        std::fs::write(user.path("src/name"), "one\n").unwrap();
        // Whatever these tests were started without.
        let mut command = user.command_of(Path::new("/usr/bin/env"));
        command.args(["--default-signal", env!("CARGO_BIN_EXE_kvpn")]);
        command.args("intercept web --port 8080 --watch src -- sh -c".split(' '));
        command.arg(script).current_dir(user.path(""));
        let mut kvpn = command.process_group(0).spawn().unwrap();
        let stdout = BufReader::new(kvpn.stdout.take().unwrap()).lines();
        let stderr = BufReader::new(kvpn.stderr.take().unwrap()).lines();
        Self {
            kvpn,
            stdout,
            stderr,
        }
    }

    /// The next line that the command has printed.
    async fn prints(&mut self) -> String {
        let line = timeout(DEADLINE, self.stdout.next_line()).await;
        line.expect("nothing is printed").unwrap().unwrap()
    }

    /// Waits until kvpn tells something.
    async fn tells(&mut self, what: &str) {
        let told = timeout(DEADLINE, async {
            while let Some(line) = self.stderr.next_line().await.unwrap() {
                if line.contains(what) {
                    return;
                }
            }
            panic!("{what} is not told");
        });
        told.await.expect(what);
    }

    async fn ends(self) -> i32 {
        finish(self.kvpn).await.code
    }
}

#[tokio::test]
async fn change_restarts_the_command_with_the_same_environment() {
    let user = User::new();
    let session = FakeSession::start(&user);
    let script = r#"trap 'echo ended; exit 0' TERM
        read line; echo "$(cat src/name) $GREETING $KVPN_WORKLOAD$line"
        while :; do sleep 0.02; done"#;
    let mut it = Watched::start(&user, script);
    assert_eq!(it.prints().await, "one it's deploy/web");
    std::fs::write(user.path("src/.hidden"), "").unwrap();
    // As editors do.
    std::fs::write(user.path("name"), "two\n").unwrap();
    std::fs::rename(user.path("name"), user.path("src/name")).unwrap();
    assert_eq!(it.prints().await, "ended");
    assert_eq!(it.prints().await, "two it's deploy/web");
    it.tells("src/name changed: restarted").await;
    send(&it.kvpn, Signal::SIGTERM);
    assert_eq!(it.prints().await, "ended");
    assert_eq!(it.ends().await, 0);
    assert_eq!(session.calls(), CALLS);
}

#[tokio::test]
async fn command_that_has_ended_is_run_again_after_the_next_change() {
    let user = User::new();
    let session = FakeSession::start(&user);
    let mut it = Watched::start(&user, "cat src/name; exit 3");
    for name in ["one", "two"] {
        assert_eq!(it.prints().await, name);
        it.tells("sh ended with exit code 3; waiting for a change")
            .await;
        std::fs::write(user.path("src/name"), "two\n").unwrap();
    }
    assert_eq!(it.prints().await, "two");
    it.tells("waiting for a change").await;
    assert_eq!(session.calls(), CALLS[..2], "it stays engaged");
    send(&it.kvpn, Signal::SIGINT);
    assert_eq!(it.ends().await, 130);
    assert_eq!(session.calls(), CALLS);
}

#[tokio::test]
async fn change_during_a_restart_is_not_lost_and_all_of_the_old_command_has_ended() {
    let user = User::new();
    let _session = FakeSession::start(&user);
    // The shell ends at once, and what it has started writes once more what it reads.
    let script = r#"cat src/name
        (trap 'echo two > src/name; echo last' TERM; echo; until [ -e go-on ]; do sleep 0.02; done
         rm go-on; echo "and gone") &
        wait"#;
    let mut it = Watched::start(&user, script);
    let lines = [it.prints().await, it.prints().await];
    assert_eq!(lines, ["one", ""]);
    std::fs::write(user.path("src/name"), "half\n").unwrap();
    assert_eq!(it.prints().await, "last");
    std::fs::write(user.path("go-on"), "").unwrap();
    assert_eq!(it.prints().await, "and gone");
    let lines = [it.prints().await, it.prints().await];
    assert_eq!(lines, ["two", ""]);
    send(&it.kvpn, Signal::SIGTERM);
    assert_eq!(it.prints().await, "last");
    std::fs::write(user.path("go-on"), "").unwrap();
    assert_eq!(it.ends().await, 143);
}

#[tokio::test]
async fn what_is_not_there_and_what_has_no_command_is_refused() {
    let user = User::new();
    let session = FakeSession::start(&user);
    let line = "intercept web --port 8080 --watch nothing";
    let finished = user.run(&format!("{line} -- true")).await;
    assert_eq!(finished.code, 2, "{finished:?}");
    assert!(finished.stderr.contains("nothing cannot be watched"));
    let finished = user.run(line).await;
    assert_eq!(finished.code, 2, "{finished:?}");
    assert!(finished.stderr.contains("COMMAND"), "{}", finished.stderr);
    assert_eq!(session.calls(), Vec::<String>::new());
}
