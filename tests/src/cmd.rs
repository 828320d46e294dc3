//! Running programs: with a deadline, in the background, or as daemons.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait_for;

/// A program to run.
#[derive(Clone, Debug)]
pub struct Cmd {
    program: OsString,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    clear_env: bool,
    dir: Option<PathBuf>,
    stdin: Option<Vec<u8>>,
    deadline: Duration,
}

impl Cmd {
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            clear_env: false,
            dir: None,
            stdin: None,
            deadline: Duration::from_secs(60),
        }
    }

    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    #[must_use]
    pub fn args<I: IntoIterator<Item: AsRef<OsStr>>>(mut self, args: I) -> Self {
        self.args
            .extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env
            .push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Starts from an empty environment.
    #[must_use]
    pub fn clear_env(mut self) -> Self {
        self.clear_env = true;
        self
    }

    #[must_use]
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    #[must_use]
    pub fn stdin(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(input.into());
        self
    }

    /// Appends another command's program, arguments and environment, for
    /// programs that run a program.
    #[must_use]
    pub fn command_of(mut self, other: &Self) -> Self {
        self.args.push(other.program.clone());
        self.args.extend(other.args.iter().cloned());
        self.env.extend(other.env.iter().cloned());
        self
    }

    /// Sets how long the program may take; a minute unless said otherwise.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Runs to the end and gives what it printed. Errors when it cannot be
    /// started or misses its deadline, not when it fails.
    pub fn run(self) -> Result<Output> {
        let line = self.to_string();
        let mut command = self.command();
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let (mut child, deadline) = (spawn(&mut command, &line)?, self.deadline);
        feed(&mut child, self.stdin);
        let pid = child.id();
        let (done_tx, done_rx) = channel();
        std::thread::spawn(move || done_tx.send(child.wait_with_output()));
        match done_rx.recv_timeout(deadline) {
            Ok(output) => {
                let output = output.with_context(|| format!("run `{line}`"))?;
                Ok(Output {
                    line,
                    status: output.status,
                    stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
                    stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
                })
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                send(pid, Signal::SIGKILL);
                bail!("`{line}` did not end within {} s", deadline.as_secs_f64())
            }
        }
    }

    /// Runs to the end, and gives its output when it succeeded.
    pub fn ok(self) -> Result<String> {
        self.run()?.success().map(|output| output.stdout)
    }

    /// Runs with the terminal of this process, without a deadline.
    pub fn foreground(self) -> Result<ExitStatus> {
        let line = self.to_string();
        let mut child = spawn(&mut self.command(), &line)?;
        child.wait().with_context(|| format!("run `{line}`"))
    }

    /// Starts it, and kills it when the returned value is dropped.
    pub fn spawn(self) -> Result<Background> {
        let line = self.to_string();
        let mut command = self.command();
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = spawn(&mut command, &line)?;
        feed(&mut child, self.stdin);
        let printed = Arc::new(Mutex::new(String::new()));
        collect(child.stdout.take(), &printed);
        collect(child.stderr.take(), &printed);
        Ok(Background {
            line,
            child,
            printed,
        })
    }

    /// Starts it with its output in a log file, and leaves it running.
    pub fn daemon(self, log: &Path) -> Result<u32> {
        let line = self.to_string();
        let file =
            std::fs::File::create(log).with_context(|| format!("create {}", log.display()))?;
        let mut command = self.command();
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        Ok(spawn(&mut command, &line)?.id())
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        if self.clear_env {
            command.env_clear();
        }
        command
            .args(&self.args)
            .envs(self.env.iter().map(|(k, v)| (k, v)));
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        if self.stdin.is_some() {
            command.stdin(Stdio::piped());
        }
        command
    }
}

impl std::fmt::Display for Cmd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.program.to_string_lossy())?;
        self.args
            .iter()
            .try_for_each(|arg| write!(f, " {}", arg.to_string_lossy()))
    }
}

/// What a program printed, and how it ended.
#[derive(Clone, Debug)]
pub struct Output {
    line: String,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// Turns a failure of the program into an error with all that it printed.
    pub fn success(self) -> Result<Self> {
        if self.status.success() {
            return Ok(self);
        }
        bail!(
            "`{}`: {}\n{}{}",
            self.line,
            self.status,
            self.stdout,
            self.stderr
        )
    }

    /// The exit code; 128 + signal when a signal ended it, as shells have it.
    pub fn code(&self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        let signal = || self.status.signal().map(|signal| 128 + signal);
        self.status.code().or_else(signal).unwrap_or(-1)
    }

    /// Reads what it printed as JSON.
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_str(&self.stdout).with_context(|| {
            format!(
                "`{}` printed no JSON: {}{}",
                self.line, self.stdout, self.stderr
            )
        })
    }
}

/// A running program, killed on drop.
#[derive(Debug)]
pub struct Background {
    line: String,
    child: Child,
    printed: Arc<Mutex<String>>,
}

impl Background {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All that it printed so far, stdout and stderr as they came.
    pub fn printed(&self) -> String {
        self.printed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits until a line that it prints contains the text, and gives the line.
    pub fn wait_for_line(&mut self, text: &str, deadline: Duration) -> Result<String> {
        let what = format!("`{}` prints {text:?}", self.line);
        wait_for(&what, deadline, || {
            let printed = self.printed();
            let line = printed.lines().find(|line| line.contains(text));
            if line.is_none()
                && let Some(status) = self.child.try_wait()?
            {
                bail!("ended with {status}, having printed: {printed}");
            }
            Ok(line.map(str::to_owned))
        })
    }

    /// Waits for its end.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let what = format!("`{}` ends", self.line);
        wait_for(&what, deadline, || Ok(self.child.try_wait()?))
    }

    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        send(self.child.id(), signal);
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // Fails when it has ended already, which is as good.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn spawn(command: &mut Command, line: &str) -> Result<Child> {
    command.spawn().with_context(|| format!("start `{line}`"))
}

fn feed(child: &mut Child, input: Option<Vec<u8>>) {
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        // A program that does not read its input fails in its own way.
        std::thread::spawn(move || drop(stdin.write_all(&input)));
    }
}

fn collect(stream: Option<impl Read + Send + 'static>, printed: &Arc<Mutex<String>>) {
    let Some(stream) = stream else { return };
    let printed = Arc::clone(printed);
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        while reader
            .read_until(b'\n', &mut line)
            .is_ok_and(|size| size > 0)
        {
            let mut all = printed.lock().unwrap_or_else(PoisonError::into_inner);
            all.push_str(&String::from_utf8_lossy(&line));
            line.clear();
        }
    });
}

fn send(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        // It may have ended meanwhile.
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_shows_what_was_printed() {
        let error = Cmd::new("sh")
            .args(["-c", "echo out; echo err >&2; exit 3"])
            .ok()
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "`sh -c echo out; echo err >&2; exit 3`: exit status: 3\nout\nerr\n"
        );
    }

    #[test]
    fn late_program_is_killed() {
        let error = Cmd::new("sleep")
            .arg("60")
            .deadline(Duration::from_millis(50))
            .run();
        assert_eq!(
            error.unwrap_err().to_string(),
            "`sleep 60` did not end within 0.05 s"
        );
    }

    #[test]
    fn background_lines_can_be_awaited() {
        let mut echo = Cmd::new("sh")
            .args(["-c", "echo one; echo two; exec sleep 60"])
            .spawn()
            .unwrap();
        assert_eq!(
            echo.wait_for_line("tw", Duration::from_secs(10)).unwrap(),
            "two\n".trim()
        );
    }
}
