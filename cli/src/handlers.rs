//! Commands that run side by side, until one of them ends or the user has had enough.

mod lines;

use std::ffi::OsString;
use std::future::pending;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use kvpn_proto::Failure;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::child::{exit_code, not_run};
use crate::ended::Ended;
use crate::interrupts::Interrupts;
use lines::Printer;

/// How long commands may take to end once they were told to.
const GRACE: Duration = Duration::from_secs(10);

/// More signals than are waiting for a task at any time.
const SIGNALS: usize = 16;

/// A command that is run beside others.
pub(crate) struct Handler {
    /// What its lines begin with.
    pub(crate) name: String,
    pub(crate) program: OsString,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) directory: PathBuf,
    /// Besides those of this process.
    pub(crate) variables: Vec<(OsString, OsString)>,
}

impl Handler {
    /// Starts it, away from the terminal: it gets signals from this process alone, and with
    /// it all that it has started.
    fn spawn(self, printer: &mut Printer) -> Result<Child, Failure> {
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            .current_dir(&self.directory)
            .envs(self.variables)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| not_run(&self.program, &error))?;
        printer.follow(&self.name, &mut child);
        Ok(child)
    }
}

/// Runs commands until the first one ends, `over` does, or a signal comes, which is passed on;
/// then has all of them end. Gives the exit code of the first one that has ended.
pub(crate) async fn run(
    handlers: Vec<Handler>,
    interrupts: &mut Interrupts,
    over: impl Future<Output = ()>,
) -> Result<u8, Ended> {
    if let Some(signal) = interrupts.take().await {
        return Err(Ended::Interrupted(signal));
    }
    run_until(handlers, async || interrupts.next().await, over).await
}

/// The same with signals from anywhere.
async fn run_until(
    handlers: Vec<Handler>,
    mut next_signal: impl AsyncFnMut() -> Signal,
    over: impl Future<Output = ()>,
) -> Result<u8, Ended> {
    let widest = handlers.iter().map(|it| it.name.chars().count()).max();
    let mut printer = Printer::start(widest.unwrap_or_default());
    let (signal_tx, _) = broadcast::channel(SIGNALS);
    let mut running = JoinSet::new();
    let mut failure = None;
    for handler in handlers {
        match handler.spawn(&mut printer) {
            Ok(child) => drop(running.spawn(wait(child, signal_tx.subscribe()))),
            Err(failed) => {
                failure = Some(failed);
                break;
            }
        }
    }
    // Nobody need be there to hear it.
    let send = |signal| drop(signal_tx.send(signal));
    // Until when they may end by themselves, and whether they were told to.
    let mut deadline = None;
    let mut is_told = false;
    let mut end = |deadline: &mut Option<Instant>| {
        if is_told {
            return false;
        }
        is_told = true;
        *deadline = Some(Instant::now() + GRACE);
        send(Signal::SIGTERM);
        true
    };
    if failure.is_some() {
        end(&mut deadline);
    }
    let mut first = None;
    let mut over = Box::pin(over);
    let mut is_over = false;
    loop {
        tokio::select! {
            ended = running.join_next() => match ended {
                Some(ended) => {
                    first = first.or(Some(ended.map_err(Failure::internal)?));
                    end(&mut deadline);
                }
                None => break,
            },
            signal = next_signal() => {
                deadline = deadline.or(Some(Instant::now() + GRACE));
                send(signal);
            }
            () = &mut over, if !is_over => {
                is_over = true;
                end(&mut deadline);
            }
            // Who does not end by the user's signal may by the usual one.
            () = until(deadline) => if !end(&mut deadline) {
                send(Signal::SIGKILL);
                deadline = Some(Instant::now() + GRACE);
            },
        }
    }
    printer.finish().await;
    match (failure, first) {
        (Some(failure), _) => Err(failure.into()),
        (None, Some(code)) => Ok(code?),
        (None, None) => Ok(0),
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

/// Waits until a command has ended, and passes signals on to it meanwhile. What it has started
/// and left is told to end, too.
async fn wait(mut child: Child, mut signals: broadcast::Receiver<Signal>) -> Result<u8, Failure> {
    let group = child.id().and_then(|pid| i32::try_from(pid).ok());
    let send = |signal| {
        if let Some(group) = group {
            // Those that have ended need none.
            let _ = killpg(Pid::from_raw(group), signal);
        }
    };
    loop {
        tokio::select! {
            status = child.wait() => {
                // Numbers are given out in turn, so that this one is not another's so soon.
                send(Signal::SIGTERM);
                return Ok(exit_code(status.map_err(Failure::internal)?));
            }
            Ok(signal) = signals.recv() => send(signal),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handler(script: &str) -> Handler {
        Handler {
            name: "web".into(),
            program: "sh".into(),
            arguments: vec!["-c".into(), script.into()],
            directory: "/".into(),
            variables: Vec::new(),
        }
    }

    /// Without signals: those that other tests raise come to the whole process.
    async fn run_all(handlers: Vec<Handler>) -> Result<u8, Ended> {
        run_until(handlers, async || pending().await, pending()).await
    }

    #[tokio::test]
    async fn first_that_ends_ends_the_others() {
        let code = run_all(vec![handler("exit 7"), handler("sleep 60 & wait")]).await;
        assert_eq!(code.unwrap(), 7);
    }

    #[tokio::test]
    async fn one_that_cannot_be_run_ends_those_that_are() {
        let missing = Handler {
            program: "no-such-program".into(),
            ..handler("")
        };
        let ended = run_all(vec![handler("sleep 60"), missing]).await;
        let Err(Ended::Failed(failure)) = ended else {
            panic!("{ended:?}");
        };
        assert!(failure.message.contains("no-such-program"), "{failure}");
    }

    #[tokio::test]
    async fn what_one_has_started_and_left_ends_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let script = format!(
            "cd {}; (trap 'touch ended; exit' TERM; touch ready; while :; do sleep 0.02; done) &
             while [ ! -e ready ]; do sleep 0.02; done",
            directory.path().display()
        );
        assert_eq!(run_all(vec![handler(&script)]).await.unwrap(), 0);
        assert!(directory.path().join("ended").exists());
    }

    #[tokio::test]
    async fn they_end_when_it_is_over() {
        let handlers = vec![handler("sleep 60")];
        let run = run_until(handlers, async || pending().await, async {});
        assert_eq!(run.await.unwrap(), 143);
    }

    #[tokio::test]
    async fn signals_are_passed_on() {
        let directory = tempfile::tempdir().unwrap();
        let ready = directory.path().join("ready");
        let script = format!(
            "trap 'exit 9' USR1; touch {}; while :; do sleep 0.02; done",
            ready.display()
        );
        let mut is_sent = false;
        let next_signal = async || {
            while is_sent || !ready.exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            is_sent = true;
            Signal::SIGUSR1
        };
        let run = run_until(vec![handler(&script)], next_signal, pending());
        assert_eq!(run.await.unwrap(), 9);
    }
}
