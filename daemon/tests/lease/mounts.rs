//! File systems that ask the session: nobody else's directory is hidden by one, and
//! none is left that nobody answers for.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{chown, symlink};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::client::Client;
use crate::host::{Host, wait_for};

const SUBNETS: [&str; 1] = ["10.96.0.0/16"];
const USER: u32 = 6543;

impl Host {
    fn mounts(&self) -> usize {
        let mounts = self.sh("cat /proc/self/mountinfo");
        let own = self.path().canonicalize().unwrap();
        let own = format!(" {}/", own.display());
        // Others of the machine's are none of this host's.
        mounts
            .lines()
            .filter(|line| line.contains(" - fuse.kvpn kvpn ") && line.contains(&own))
            .count()
    }

    /// A directory of the user's.
    fn directory(&self, name: &str) -> PathBuf {
        let path = self.path().canonicalize().unwrap().join(name);
        fs::create_dir(&path).unwrap();
        chown(&path, Some(USER), Some(USER)).unwrap();
        path
    }
}

/// A lease with something mounted.
fn mounted(host: &Host) -> (Client, OwnedFd, PathBuf) {
    let mut client = host.client();
    client.acquire(&SUBNETS).unwrap();
    let path = host.directory("mount point");
    let (id, device) = client.open_mount().unwrap();
    assert_eq!(host.mounts(), 0);
    client.attach_mount(id, &path).unwrap();
    assert_eq!(host.mounts(), 1);
    (client, device, path)
}

#[test]
fn mount_ends_with_the_lease_or_when_it_is_closed() {
    let host = Host::new();
    let _daemon = host.daemon();
    let (mut client, device, _) = mounted(&host);
    let (second, _) = client.open_mount().unwrap();
    let at = host.directory("second");
    client.attach_mount(second, &at).unwrap();
    assert_eq!(host.mounts(), 2);
    client.close_mount(second).unwrap();
    assert_eq!(host.mounts(), 1);
    let refused = client.close_mount(second).unwrap_err();
    assert_eq!(refused.message, "there is no such mount");
    // One that was never attached ends as well.
    client.open_mount().unwrap();
    drop(client);
    wait_for("the end of the mount", || host.mounts() == 0);
    host.wait_for_end_of_journal();
    drop(device);
}

#[test]
fn killed_session_leaves_no_mount_and_nobody_who_waits() {
    let host = Host::new();
    let _daemon = host.daemon();
    let (client, device, path) = mounted(&host);
    let mut session = Command::new("sleep")
        .arg("infinity")
        .stdin(Stdio::from(OwnedFd::from(client.stream)))
        .stdout(Stdio::from(device))
        .spawn()
        .unwrap();
    let mut waits = host
        .command("ls")
        .arg(&path)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    assert!(waits.try_wait().unwrap().is_none());
    session.kill().unwrap();
    session.wait().unwrap();
    wait_for("the end of the mount", || host.mounts() == 0);
    wait_for("the end of who waits", || {
        waits.try_wait().unwrap().is_some()
    });
    assert_eq!(host.sh(&format!("ls -A '{}'", path.display())), "");
}

#[test]
fn guard_and_the_next_daemon_end_mounts_of_a_daemon_that_was_killed() {
    for is_guarded in [true, false] {
        let host = Host::new();
        let mut daemon = host.daemon();
        let (_client, _device, path) = mounted(&host);
        // What its owner renames meanwhile is found all the same.
        let renamed = path.with_file_name("renamed");
        fs::rename(&path, &renamed).unwrap();
        if !is_guarded {
            kill(Pid::from_raw(daemon.guard()), Signal::SIGKILL).unwrap();
        }
        daemon.kill();
        let _next = (!is_guarded).then(|| host.daemon());
        wait_for("the end of the mount", || host.mounts() == 0);
        host.wait_for_end_of_journal();
    }
}

#[test]
fn only_a_directory_of_the_users_own_is_mounted_at() {
    let host = Host::new();
    let _daemon = host.daemon_with(&["--allow-user", &USER.to_string()]);
    let mut client = Client::connect_as(&host.socket(), USER, &[]);
    let refused = client.open_mount().unwrap_err();
    assert_eq!(refused.message, "no lease is held on this connection");
    client.acquire(&SUBNETS).unwrap();
    let (id, _device) = client.open_mount().unwrap();
    let own = host.directory("own");
    let roots = own.with_file_name("roots");
    fs::create_dir(&roots).unwrap();
    let link = own.with_file_name("link");
    symlink(&own, &link).unwrap();
    fs::write(own.join("file"), "").unwrap();
    let missing = own.join("missing");
    for path in [
        &roots,
        &link,
        &own.join("file"),
        &missing,
        &PathBuf::from("own"),
    ] {
        let refused = client.attach_mount(id, path).unwrap_err();
        assert_eq!(refused.reason, "HostRefused", "{path:?}");
        assert!(
            refused.message.contains("cannot be mounted at: it is not"),
            "{refused:?}"
        );
    }
    assert_eq!(host.mounts(), 0);
    client.attach_mount(id, &own).unwrap();
    assert_eq!(host.mounts(), 1);
}
