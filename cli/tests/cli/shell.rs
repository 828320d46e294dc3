//! `kvpn shell` at a terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Stdio;

use nix::pty::openpty;
use tokio::process::Child;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::fake_session::FakeSession;
use crate::kvpn::{DEADLINE, User};

/// A script that runs at a terminal of its own, and what the terminal shows.
struct Terminal {
    script: Child,
    keyboard: File,
    screen: mpsc::UnboundedReceiver<Vec<u8>>,
    shown: String,
}

impl Terminal {
    fn start(user: &User, script: &str) -> Self {
        let pty = openpty(None, None).unwrap();
        let (terminal, master) = (File::from(pty.slave), File::from(pty.master));
        let end = || Stdio::from(terminal.try_clone().unwrap());
        let mut command = user.command_of(Path::new("/usr/bin/setsid"));
        let script = command
            .args(["--ctty", "sh", "-c", script])
            .env("KVPN", env!("CARGO_BIN_EXE_kvpn"))
            .env("SHELL", "/bin/bash")
            .env("PS1", PROMPT)
            .env("TERM", "dumb")
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap();
        let keyboard = master.try_clone().unwrap();
        let (screen_tx, screen) = mpsc::unbounded_channel();
        // A runtime would wait for a read that never ends.
        std::thread::spawn(move || read(master, &screen_tx));
        Self {
            script,
            keyboard,
            screen,
            shown: String::new(),
        }
    }

    fn types(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until it shows something, after what was waited for before.
    async fn shows(&mut self, what: &str) {
        while !self.shown.contains(what) {
            let more = timeout(DEADLINE, self.screen.recv()).await;
            let more = more.ok().flatten();
            let more = more.unwrap_or_else(|| panic!("no {what:?} in {:?}", self.shown));
            self.shown += &String::from_utf8_lossy(&more);
        }
        let at = self.shown.find(what).unwrap() + what.len();
        self.shown = self.shown.split_off(at);
    }

    async fn ends(mut self) -> Option<i32> {
        let ended = timeout(DEADLINE, self.script.wait()).await;
        ended.expect("it does not end").unwrap().code()
    }
}

fn read(mut master: File, screen_tx: &mpsc::UnboundedSender<Vec<u8>>) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = master.read(&mut buffer) {
        if screen_tx.send(buffer[..length].to_vec()).is_err() {
            return;
        }
    }
}

const PROMPT: &str = "next> ";

/// Who has started kvpn reads from the terminal afterwards.
const SCRIPT: &str = r#""$KVPN" shell web -- --norc --noprofile --noediting
    echo "ended=$?"; read line; echo "read=$line"; exit 5"#;

#[tokio::test]
async fn ctrl_c_interrupts_only_what_runs_in_the_shell() {
    let user = User::new();
    let session = FakeSession::start(&user);
    let mut terminal = Terminal::start(&user, SCRIPT);
    terminal.types("echo \"$KVPN_WORKLOAD $KVPN_NAMESPACE $KVPN_CONTAINER-$GREETING\"\n");
    terminal.shows("deploy/web shop app-it's").await;
    terminal.types("sh -c 'echo runs-$((2+3)); exec sleep 60'\n");
    terminal.shows("runs-5").await;
    terminal.types("\x03");
    terminal.shows("^C").await;
    terminal.types("echo code-$?\n");
    terminal.shows("code-130").await;
    // At the prompt. What is typed just then the shell may throw away.
    terminal.shows(PROMPT).await;
    terminal.types("\x03");
    terminal.shows("^C").await;
    terminal.types("\n");
    terminal.shows(PROMPT).await;
    // Stopped, and gone on with.
    terminal.types("sh -c 'echo runs-$((3+3)); read line; echo got-$line'\n");
    terminal.shows("runs-6").await;
    terminal.types("\x1a");
    terminal.shows("Stopped").await;
    terminal.types("fg\nword\n");
    terminal.shows("got-word").await;
    assert_eq!(session.calls(), ["ingest web", "environment shop web-x"]);

    terminal.types("exit 7\n");
    terminal.shows("ended=7").await;
    terminal.types("hello\n");
    terminal.shows("read=hello").await;
    assert_eq!(terminal.ends().await, Some(5));
    assert_eq!(session.calls().last().unwrap(), "leave shop web-x false");
}

#[tokio::test]
async fn terminal_is_taken_back_from_a_shell_that_was_killed() {
    let user = User::new();
    let _session = FakeSession::start(&user);
    let mut terminal = Terminal::start(&user, SCRIPT);
    terminal.types("echo ready-$((1+1))\n");
    terminal.shows("ready-2").await;
    terminal.types("stty -echo; kill -9 $$\n");
    terminal.shows("ended=137").await;
    terminal.types("hello\n");
    // As it is typed, and as it is read.
    terminal.shows("hello").await;
    terminal.shows("read=hello").await;
    assert_eq!(terminal.ends().await, Some(5));
}

#[tokio::test]
async fn arguments_are_the_shells_and_its_exit_code_is_returned() {
    let user = User::new();
    let session = FakeSession::start(&user);
    let mut command = user.command("shell web --env-exclude LINES -- -c");
    command.arg("echo \"$GREETING$LINES\"; exit 7");
    let finished = crate::kvpn::finish(command.spawn().unwrap()).await;
    assert_eq!(finished.code, 7, "{finished:?}");
    assert_eq!(finished.stdout, "it's\n");
    assert_eq!(session.calls().last().unwrap(), "leave shop web-x false");
}
