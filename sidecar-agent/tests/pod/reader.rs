//! What a reader tells of a container, which here is a process namespace with one process.

use std::{
    fs,
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use kvpn_proto::v1::{
    ProcessOwner,
    watch_reads_request::{Event, Hello, answer::Outcome},
    watch_reads_response::{Leave, What},
};

use crate::{
    manager::{Identity, Manager},
    network::{Network, Side},
    pod::{DEADLINE, eventually},
};

/// Ends with all its processes when dropped.
struct Container {
    unshare: Child,
    /// Its first process.
    first: String,
}

impl Container {
    fn start(variables: &[(&str, &str)]) -> Self {
        let unshare = Command::new("unshare")
            .args(["--pid", "--mount-proc", "--kill-child", "sleep", "600"])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .envs(variables.iter().copied())
            .spawn()
            .expect("this test needs unshare");
        let mut container = Self {
            unshare,
            first: String::new(),
        };
        eventually("the container starts", || container.has_started());
        container.first = container.child();
        container
    }

    /// Until it runs its program, its process is as the one that made it.
    fn has_started(&self) -> bool {
        let comm = fs::read_to_string(format!("/proc/{}/comm", self.child()));
        comm.is_ok_and(|comm| comm == "sleep\n")
    }

    fn child(&self) -> String {
        let id = self.unshare.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
        children.unwrap_or_default().trim().to_owned()
    }

    /// A reader beside it, which runs as that user.
    fn read(&self, network: &Network, identity: &Identity, linger: &str, user: &str) -> Reader {
        let reader = Command::new("nsenter")
            .args(["--target", &self.first, "--pid", "--mount"])
            .arg(format!("--net={}", network.path(Side::Pod).display()))
            .args(["--setuid", user, "--setgid", user])
            .arg(env!("CARGO_BIN_EXE_sidecar-agent"))
            .args(["read", "--manager", &Manager::address().to_string()])
            .args(["--ca", &identity.ca])
            .args(["--container", "kvpn-reader-test1"])
            .args(["--linger", linger])
            .spawn()
            .expect("this test needs nsenter");
        Reader(reader)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // It may have ended before.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}

struct Reader(Child);

impl Reader {
    /// Waits until it has ended by itself.
    fn leaves(&mut self) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                return;
            }
            assert!(Instant::now() < deadline, "the reader does not end");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // It may have ended before.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn hello(manager: &Manager) -> Hello {
    match manager.next_read() {
        Event::Hello(hello) => hello,
        other => panic!("{other:?}"),
    }
}

#[test]
fn reader_tells_the_environment_of_the_first_process_and_leaves_when_told() {
    let network = Network::new();
    let identity = Identity::new();
    let manager = Manager::start(&network, &identity);
    let container = Container::start(&[("LINES", "a\nb=c"), ("EMPTY", "")]);
    let mut reader = container.read(&network, &identity, "10m", "0");
    let hello = hello(&manager);
    assert_eq!(hello.container, "kvpn-reader-test1");
    assert_eq!((hello.unreadable.as_str(), hello.owner), ("", None));

    manager.tell_reader(What::Environment("read-1".into()));
    let Event::Answer(answer) = manager.next_read() else {
        panic!("no answer");
    };
    assert_eq!(answer.read_id, "read-1");
    let Some(Outcome::Environment(environment)) = answer.outcome else {
        panic!("{answer:?}");
    };
    let variables = environment.block.split(|octet| *octet == 0);
    let variables: Vec<&[u8]> = variables.collect();
    assert!(variables.contains(&&b"LINES=a\nb=c"[..]));
    assert!(variables.contains(&&b"EMPTY="[..]));

    manager.tell_reader(What::Leave(Leave {}));
    reader.leaves();
}

#[test]
fn reader_of_another_users_process_says_whose_it_is() {
    let network = Network::new();
    let identity = Identity::new();
    let manager = Manager::start(&network, &identity);
    let container = Container::start(&[]);
    let _reader = container.read(&network, &identity, "10m", "1");
    let hello = hello(&manager);
    assert_eq!(hello.owner, Some(ProcessOwner { uid: 0, gid: 0 }));
    assert!(hello.unreadable.contains("is of user 0"), "{hello:?}");
}

#[test]
fn reader_leaves_when_the_manager_has_been_gone_for_long() {
    let network = Network::new();
    let identity = Identity::new();
    let manager = Manager::start(&network, &identity);
    let container = Container::start(&[]);
    let mut reader = container.read(&network, &identity, "1s", "0");
    hello(&manager);
    drop(manager);
    reader.leaves();
}
