//! Real processes are stopped and go on. Who runs these must be allowed to trace.

use std::env;
use std::fs;
use std::process::{Child, Command, Stdio};

use nix::sched::{CloneFlags, clone};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::pause;

use super::*;

/// Makes this program an app to be stopped.
const AS_APP: &str = "KVPN_TEST_AS_APP";

/// What such an app is to do with a thread that does not stop.
const HANGS: &str = "hangs";

/// What it is to do with threads that do nothing, so that none takes a signal of the process
/// before its first thread does.
const RESTS: &str = "rests";

const SOON: Duration = Duration::from_secs(10);

/// Threads that wake up again and again, and others that come and go.
#[test]
fn app() {
    if env::var_os(AS_APP).is_none() {
        return;
    }
    set_pdeathsig(Signal::SIGKILL).unwrap();
    let kind = env::var(AS_APP).unwrap();
    let rests = kind == RESTS;
    for _ in 0..3 {
        thread::spawn(move || {
            loop {
                if rests {
                    thread::park();
                } else {
                    sleep(Duration::from_millis(1));
                }
            }
        });
    }
    if kind == HANGS {
        thread::spawn(hang);
    }
    if rests {
        loop {
            thread::park();
        }
    }
    loop {
        let passing = thread::spawn(|| thread::spawn(thread::yield_now));
        passing.join().unwrap().join().unwrap();
        sleep(Duration::from_micros(100));
    }
}

/// Waits, as after vfork(2), for a child that neither executes anything nor ends. Only a
/// signal that kills gets a thread out of that.
#[expect(unsafe_code, reason = "the standard library has no vfork")]
fn hang() {
    let child = || {
        let _ = set_pdeathsig(Signal::SIGKILL);
        loop {
            pause();
        }
    };
    let mut stack = vec![0; 64 << 10];
    // SAFETY: the child has a copy of the memory, and makes nothing but system calls.
    let child = unsafe {
        let signal = Some(Signal::SIGCHLD as i32);
        clone(Box::new(child), &mut stack, CloneFlags::CLONE_VFORK, signal)
    };
    child.unwrap();
}

/// A process that [`app`] is all of; gone when dropped.
struct App(Child);

impl App {
    fn start() -> Self {
        Self::start_as("1")
    }

    fn start_as(kind: &str) -> Self {
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "holder::hold::tests::app"])
            .env(AS_APP, kind)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let app = Self(child);
        app.wait_for("it has its threads", || app.threads().len() >= 5);
        app
    }

    fn pid(&self) -> i32 {
        self.0.id().try_into().unwrap()
    }

    fn threads(&self) -> Vec<i32> {
        processes::threads(self.pid()).unwrap()
    }

    fn hold(&self) -> anyhow::Result<Hold> {
        let pid = self.pid();
        Hold::new(move || processes::threads(pid), SOON)
    }

    /// What `/proc` says in a line of all threads' status.
    fn told(&self, name: &str) -> Vec<String> {
        let status = |thread: &i32| fs::read_to_string(format!("/proc/{thread}/status")).ok();
        let told = self.threads().iter().filter_map(status).collect::<Vec<_>>();
        let value = |status: &String| {
            let mut lines = status.lines();
            lines.find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()))
        };
        told.iter().filter_map(value).collect()
    }

    fn is_all(&self, state: &str) -> bool {
        self.told("State:")
            .iter()
            .all(|told| told.starts_with(state))
    }

    fn stands_still(&self) -> bool {
        self.is_all("t")
    }

    /// How often its threads have gone to sleep.
    fn work(&self) -> u64 {
        let counts = self.told("voluntary_ctxt_switches:");
        counts
            .iter()
            .map(|count| count.parse::<u64>().unwrap())
            .sum()
    }

    fn goes_on(&self) {
        self.wait_for("it goes on", || {
            !self.told("State:").iter().any(|it| it.starts_with('t'))
        });
        let before = self.work();
        self.wait_for("it works", || self.work() > before + 50);
    }

    fn wait_for(&self, what: &str, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + SOON;
        while !holds() {
            assert!(
                Instant::now() < deadline,
                "{what}: {:?}",
                self.told("State:")
            );
            sleep(LOOK_AGAIN);
        }
    }

    fn signal(&self, signal: &str) {
        let kill = format!("kill -{signal} {}", self.pid());
        let sent = Command::new("sh").args(["-c", &kill]).status().unwrap();
        assert!(sent.success());
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn app_stands_still_while_it_is_held_and_goes_on_after() {
    let app = App::start();
    let hold = app.hold().unwrap();
    assert!(hold.threads() >= 5);
    assert!(app.stands_still(), "{:?}", app.told("State:"));
    let before = app.work();
    sleep(Duration::from_millis(20));
    assert_eq!(app.work(), before);
    drop(hold);
    app.goes_on();
}

#[test]
fn threads_that_are_made_meanwhile_are_stopped_too() {
    let app = App::start();
    for _ in 0..100 {
        let hold = app.hold().unwrap();
        assert!(app.stands_still(), "{:?}", app.told("State:"));
        drop(hold);
    }
    app.goes_on();
}

#[test]
fn app_goes_on_when_its_holder_dies() {
    let app = App::start();
    let pid = app.pid();
    let holder = thread::spawn(move || {
        let mut traced = Traced::default();
        traced.stop(|| processes::threads(pid), SOON).unwrap();
        assert!(traced.0.len() >= 5);
    });
    holder.join().unwrap();
    app.goes_on();
}

#[test]
fn app_that_does_not_stop_in_time_goes_on() {
    let app = App::start_as(HANGS);
    app.wait_for("a thread hangs", || {
        app.told("State:").iter().any(|it| it.starts_with('D'))
    });
    let pid = app.pid();
    let hold = Hold::new(move || processes::threads(pid), Duration::from_millis(200));
    let why = hold.unwrap_err().to_string();
    assert!(why.starts_with("it does not answer: 1 of "), "{why}");
    app.goes_on();
}

#[test]
fn app_that_another_holds_is_held_when_that_ends() {
    let app = App::start();
    let first = app.hold().unwrap();
    let why = app.hold().unwrap_err().to_string();
    assert!(why.contains("traces it already"), "{why}");
    let ends = thread::spawn(move || {
        sleep(Duration::from_millis(20));
        drop(first);
    });
    let second = app.hold().unwrap();
    ends.join().unwrap();
    assert!(app.stands_still(), "{:?}", app.told("State:"));
    drop(second);
    app.goes_on();
}

#[test]
fn app_that_was_stopped_by_others_stays_so() {
    let app = App::start();
    app.signal("STOP");
    app.wait_for("it is stopped", || app.is_all("T"));
    let hold = app.hold().unwrap();
    assert!(app.stands_still(), "{:?}", app.told("State:"));
    drop(hold);
    app.wait_for("it is as before", || app.is_all("T"));
    app.signal("CONT");
    app.goes_on();
}

#[test]
fn signal_that_comes_first_is_not_lost() {
    // A real-time one, which ends who does not handle it.
    const SIGNAL: i32 = 40;
    let app = App::start_as(RESTS);
    let pid = app.pid();
    let (seized, is_seized) = mpsc::channel();
    let (stopped, is_stopped) = mpsc::channel::<()>();
    let holder = thread::spawn(move || {
        // The process's signals come to its first thread.
        ptrace::seize(Pid::from_raw(pid), ptrace::Options::empty()).unwrap();
        seized.send(()).unwrap();
        is_stopped.recv().unwrap();
        ptrace::interrupt(Pid::from_raw(pid)).unwrap();
        let mut traced = Traced(BTreeMap::from([(pid, false)]));
        let outcome = traced.stop(|| processes::threads(pid), SOON);
        outcome.unwrap_err().to_string()
    });
    is_seized.recv().unwrap();
    app.signal(&SIGNAL.to_string());
    app.wait_for("a thread has come to the signal", || {
        let states = app.told("State:");
        states.iter().any(|state| state.starts_with('t'))
    });
    stopped.send(()).unwrap();
    assert_eq!(holder.join().unwrap(), "the container has no process");
    assert!(!processes::is_alive(pid));
    // The thread that traces has waited for it already: it is of the parent's process.
    std::mem::forget(app);
}
