//! Whoever is killed, at whichever step of granting or undoing a lease: the host is
//! as it was. The daemon stops itself after each step in turn, by its own list of
//! them, until there is none left.

use std::fs;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host::{Daemon, Host, wait_for};

const SUBNETS: [&str; 2] = ["10.96.0.0/16", "fd00:96::/108"];

/// How many steps there are at least; without it, a daemon that never stops would
/// pass.
const STEPS: usize = 12;

const DEADLINE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Killed {
    Daemon,
    Session,
    Both,
    /// Only the next daemon is left to undo it.
    DaemonAndGuard,
}

#[test]
fn daemon_killed_at_any_step() {
    kill_at_every_step(Killed::Daemon);
}

#[test]
fn session_killed_at_any_step() {
    kill_at_every_step(Killed::Session);
}

#[test]
fn both_killed_at_any_step() {
    kill_at_every_step(Killed::Both);
}

#[test]
fn daemon_and_guard_killed_at_any_step() {
    kill_at_every_step(Killed::DaemonAndGuard);
}

#[test]
fn second_session_killed_at_any_step() {
    kill_beside_a_lease(Killed::Session);
}

#[test]
fn daemon_of_two_leases_killed_at_any_step() {
    kill_beside_a_lease(Killed::Daemon);
}

#[test]
fn daemon_of_two_leases_and_guard_killed_at_any_step() {
    kill_beside_a_lease(Killed::DaemonAndGuard);
}

/// The same at the steps of a lease beside one that is held all the time.
fn kill_beside_a_lease(killed: Killed) {
    let host = Host::new();
    let alone = host.snapshot();
    let mut stops = 0;
    for step in 1.. {
        let mut daemon = stopping_at(&host, step);
        let mut first = host.client();
        first.name = "first".into();
        let granted = thread::scope(|scope| {
            let acquiring = scope.spawn(|| first.acquire(&["10.97.0.0/16"]));
            // Its own steps are others' tests'.
            wait_for("the first lease", || {
                go_on_if_stopped(&daemon);
                acquiring.is_finished()
            });
            acquiring.join().unwrap().unwrap()
        });
        let beside = host.snapshot();
        let stopped = connect_and_quit(&host, &daemon, |session| kill_at(killed, &daemon, session));
        stops += usize::from(stopped);
        let is_gone = stopped && killed != Killed::Session;
        if is_gone && killed == Killed::DaemonAndGuard {
            daemon.kill();
            let _next = host.daemon();
            host.wait_at_most(DEADLINE, &alone);
        } else {
            // With the daemon, the lease that was held has ended, too.
            host.wait_at_most(DEADLINE, if is_gone { &alone } else { &beside });
        }
        drop((first, granted));
        if is_gone {
            // The next daemon's steps are to be its own.
            host.wait_for_end_of_journal();
            continue;
        }
        // It may stop while this one is undone.
        wait_for("the host as it was", || {
            go_on_if_stopped(&daemon);
            host.snapshot() == alone
        });
        if !stopped && step > 2 * STEPS {
            assert!(stops >= STEPS, "it stopped {stops} times");
            return;
        }
    }
}

fn kill_at_every_step(killed: Killed) {
    let host = Host::new();
    let before = host.snapshot();
    for step in 1.. {
        let mut daemon = stopping_at(&host, step);
        let stopped = connect_and_quit(&host, &daemon, |session| kill_at(killed, &daemon, session));
        if !stopped {
            assert!(step > STEPS, "there are only {} steps", step - 1);
            return;
        }
        if killed == Killed::DaemonAndGuard {
            daemon.kill();
            let _next = host.daemon();
            host.wait_at_most(DEADLINE, &before);
        } else {
            host.wait_at_most(DEADLINE, &before);
            // The next daemon's steps are to be its own.
            host.wait_for_end_of_journal();
        }
    }
}

/// Kills whom it is to hit while the daemon is stopped.
fn kill_at(killed: Killed, daemon: &Daemon, session: &UnixStream) {
    match killed {
        Killed::Daemon => signal(daemon.pid(), Signal::SIGKILL),
        Killed::Session => {
            hang_up(session);
            signal(daemon.pid(), Signal::SIGCONT);
        }
        Killed::Both => {
            hang_up(session);
            signal(daemon.pid(), Signal::SIGKILL);
        }
        Killed::DaemonAndGuard => {
            for guard in daemon.guards() {
                signal(guard, Signal::SIGKILL);
            }
            signal(daemon.pid(), Signal::SIGKILL);
        }
    }
}

fn stopping_at(host: &Host, step: usize) -> Daemon {
    host.daemon_at("KVPN_FAULT_POINT", &step.to_string())
}

/// Acquires a lease and gives it back; calls `stopped` when the daemon stops
/// meanwhile, and tells whether it did.
fn connect_and_quit(host: &Host, daemon: &Daemon, stopped: impl FnOnce(&UnixStream)) -> bool {
    let before = (host.snapshot(), host.journal());
    let mut client = host.client();
    let stream = client.stream.try_clone().unwrap();
    // Refused, or cut off, when something is killed meanwhile.
    let session = thread::spawn(move || drop(client.acquire(&SUBNETS)));
    let mut has_stopped = false;
    wait_for("a stop, or the end of the lease", || {
        has_stopped = is_stopped(daemon.pid());
        if has_stopped || !session.is_finished() {
            return has_stopped;
        }
        hang_up(&stream);
        // The host may be as it was before the daemon has made its last steps.
        (host.snapshot(), host.journal()) == before && !is_stopped(daemon.pid())
    });
    if has_stopped {
        stopped(&stream);
        // What it was answered does not matter.
        drop(session.join());
    }
    has_stopped
}

/// What the end of a session's process does.
fn hang_up(session: &UnixStream) {
    // Who has hung up already cannot do so again.
    let _ = session.shutdown(Shutdown::Both);
}

fn go_on_if_stopped(daemon: &Daemon) {
    if is_stopped(daemon.pid()) {
        signal(daemon.pid(), Signal::SIGCONT);
    }
}

fn is_stopped(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit(") ")
            .next()
            .is_some_and(|it| it.starts_with('T'))
    })
}

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}
