//! However a process ends, the host is as it was before.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host::{Host, RESOLV_CONF, wait_for};

const SUBNETS: [&str; 2] = ["10.96.0.0/16", "fd00:96::/108"];

/// How long the host may be without network after a `kill -9`.
const PATIENCE: Duration = Duration::from_secs(2);

#[track_caller]
fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

#[test]
fn killed_daemon_is_cleaned_up_after_by_its_guard() {
    let host = Host::new();
    let before = host.snapshot();
    let mut daemon = host.daemon();
    let mut client = host.client();
    // The session lives on, and keeps the device open.
    let _granted = client.acquire(&SUBNETS).unwrap();
    daemon.kill();
    host.wait_at_most(PATIENCE, &before);
    host.wait_for_end_of_journal();
}

#[test]
fn guard_ignores_what_a_terminal_or_a_service_manager_sends() {
    let host = Host::new();
    let before = host.snapshot();
    let mut daemon = host.daemon();
    let mut client = host.client();
    let _granted = client.acquire(&SUBNETS).unwrap();
    let guard = daemon.guard();
    for sent in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signal(guard, sent);
    }
    daemon.kill();
    host.wait_at_most(PATIENCE, &before);
    host.wait_for_end_of_journal();
}

#[test]
fn killed_session_loses_its_lease() {
    let host = Host::new();
    let before = host.snapshot();
    let _daemon = host.daemon();
    let mut client = host.client();
    let granted = client.acquire(&SUBNETS).unwrap();
    // Another process holds the connection and the device from here on.
    let mut session = Command::new("sleep")
        .arg("infinity")
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(client.stream)))
        .stdout(Stdio::from(granted.tun))
        .spawn()
        .unwrap();
    drop((granted.dns_udp, granted.dns_tcp));
    assert!(
        host.resolv_conf_text()
            .contains("\nnameserver 198.18.0.1\n")
    );

    session.kill().unwrap();
    session.wait().unwrap();
    host.wait_at_most(PATIENCE, &before);
}

#[test]
fn lease_ends_though_somebody_keeps_the_device_open() {
    let host = Host::new();
    let before = host.snapshot();
    let _daemon = host.daemon();
    let mut client = host.client();
    let _granted = client.acquire(&SUBNETS).unwrap();
    drop(client);
    host.wait_until_it_is(&before);
}

#[test]
fn told_to_end_the_daemon_undoes_the_lease_first() {
    for sent in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let host = Host::new();
        let before = host.snapshot();
        let mut daemon = host.daemon();
        let mut client = host.client();
        let _granted = client.acquire(&SUBNETS).unwrap();
        signal(daemon.pid(), sent);
        assert_eq!(daemon.0.wait().unwrap().code(), Some(0), "{}", host.log());
        assert_eq!(host.snapshot(), before);
        assert!(!host.socket().exists());
        assert!(!host.run_dir().join("journal.json").exists());
    }
}

#[test]
fn next_daemon_undoes_what_daemon_and_guard_left() {
    let host = Host::new();
    let before = host.snapshot();
    let mut daemon = host.daemon();
    let mut client = host.client();
    let granted = client.acquire(&SUBNETS).unwrap();
    signal(daemon.guard(), Signal::SIGKILL);
    daemon.kill();
    assert_ne!(host.snapshot(), before);
    assert!(host.run_dir().join("journal.json").exists());

    let _next = host.daemon();
    assert_eq!(host.snapshot(), before);
    assert!(!host.run_dir().join("journal.json").exists());
    drop((client, granted));
    host.client().acquire(&SUBNETS).unwrap();
}

#[test]
fn next_daemon_restores_resolv_conf_after_a_power_cut() {
    let host = Host::new();
    let mut daemon = host.daemon();
    let mut client = host.client();
    let granted = client.acquire(&SUBNETS).unwrap();
    let during = fs::read(host.resolv_conf()).unwrap();
    drop((client, granted));
    wait_for("the end of the lease", || {
        host.resolv_conf_text() == RESOLV_CONF
    });
    daemon.kill();
    // What was on disk, with /run empty.
    fs::remove_dir_all(host.run_dir()).unwrap();
    fs::write(host.resolv_conf(), during).unwrap();

    let _next = host.daemon();
    assert_eq!(host.resolv_conf_text(), RESOLV_CONF);
}

#[test]
fn second_daemon_is_refused_and_a_dead_ones_socket_is_replaced() {
    let host = Host::new();
    let mut daemon = host.daemon();
    let output = host
        .daemon_command(&[])
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(11));
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("error: another kvpnd runs at "), "{errors}");

    daemon.kill();
    assert!(host.socket().exists());
    let _next = host.daemon();
    host.client().acquire(&SUBNETS).unwrap();
}
