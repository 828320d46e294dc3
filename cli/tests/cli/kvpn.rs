//! A user who has `kvpn` and nothing else: an own home and runtime directory.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use kvpn_proto::names;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) struct User {
    dir: TempDir,
}

/// What a finished `kvpn` left.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl User {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where the user's session is looked for.
    pub(crate) fn session_socket(&self) -> PathBuf {
        self.socket_of(names::DEFAULT_CONNECTION)
    }

    /// Where the session of a connection is looked for.
    pub(crate) fn socket_of(&self, connection: &str) -> PathBuf {
        names::session_socket(&self.path("kvpn"), connection)
    }

    /// Puts a shell script in the place of `kvpnd`; it runs in the user's
    /// directory.
    pub(crate) fn install_daemon(&self, script: &str) {
        let path = self.path("kvpnd");
        let text = format!("#!/bin/sh\ncd '{}'\n{script}\n", self.dir.path().display());
        // Had this process the file open for writing, a child that another test
        // forks would too, and nobody could run it.
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(text.as_bytes()).unwrap();
        drop(writer);
        let status = std::process::Command::new("install")
            .args(["-m", "755", "/dev/stdin"])
            .arg(&path)
            .stdin(reader)
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// `kvpn` with this user's environment; arguments are parted by blanks.
    pub(crate) fn command(&self, arguments: &str) -> Command {
        let mut command = self.command_of(Path::new(env!("CARGO_BIN_EXE_kvpn")));
        command.args(arguments.split_whitespace());
        command
    }

    pub(crate) fn command_of(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.dir.path())
            .env("TZ", "UTC")
            .env("XDG_RUNTIME_DIR", self.dir.path())
            .env("KVPN_DAEMON_BINARY", self.path("kvpnd"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    pub(crate) async fn run(&self, arguments: &str) -> Finished {
        finish(self.command(arguments).spawn().unwrap()).await
    }
}

pub(crate) async fn finish(child: Child) -> Finished {
    let output = timeout(DEADLINE, child.wait_with_output())
        .await
        .expect("kvpn does not end")
        .unwrap();
    Finished {
        code: code(output.status),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn code(status: ExitStatus) -> i32 {
    status.code().expect("kvpn was killed")
}

pub(crate) fn send(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().unwrap() as i32), signal).unwrap();
}

/// Waits until a file is there.
pub(crate) async fn wait_for(file: &Path) {
    let deadline = Instant::now() + DEADLINE;
    while !file.exists() {
        assert!(Instant::now() < deadline, "no {}", file.display());
        sleep(Duration::from_millis(5)).await;
    }
}
