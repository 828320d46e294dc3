//! A host of the tests' own: a network and a mount namespace with an uplink
//! that leads nowhere, and the daemon in them.

use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::client::Client;

/// The resolv.conf of a new host.
pub(crate) const RESOLV_CONF: &str =
    "nameserver 192.168.77.1\nsearch lan\noptions ndots:2\n# unended";

/// What every test may wait for.
const DEADLINE: Duration = Duration::from_secs(10);

/// Namespaces that end with this value.
pub(crate) struct Host {
    dir: TempDir,
    keeper: Child,
}

/// Everything of the host that a lease changes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    network: Vec<String>,
    resolv_conf: Option<String>,
    mode_and_owner: Option<(u32, u32, u32)>,
    link: Option<PathBuf>,
}

impl Host {
    pub(crate) fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root");
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        // `cat` ends with this process, however that ends.
        let mut keeper = Command::new("unshare")
            .args(["--net", "--mount", "--propagation", "private"])
            .args(["sh", "-c", "echo ready; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(keeper.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n");
        let host = Self { dir, keeper };
        host.sh("ip link set lo up
             ip link add up0 type veth peer name up1
             echo 1 > /proc/sys/net/ipv6/conf/up0/addr_gen_mode
             echo 1 > /proc/sys/net/ipv6/conf/up1/addr_gen_mode
             ip link set up0 up
             ip link set up1 up
             ip addr add 192.168.77.2/24 dev up0
             ip addr add fd77::2/64 dev up0 nodad
             ip route add default via 192.168.77.1
             ip route add default via fd77::1");
        // The kernel adds the route to an IPv6 address of its own later.
        wait_for("the local routes", || {
            let routes = host.sh("ip -6 route show table local");
            ["local ::1 ", "local fd77::2 "].map(|route| routes.contains(route)) == [true; 2]
        });
        fs::write(host.resolv_conf(), RESOLV_CONF).unwrap();
        host
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn resolv_conf(&self) -> PathBuf {
        self.path().join("resolv.conf")
    }

    pub(crate) fn resolv_conf_text(&self) -> String {
        fs::read_to_string(self.resolv_conf()).unwrap()
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.path().join("run")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.run_dir().join("kvpnd.sock")
    }

    /// Runs a script on the host and returns what it prints.
    pub(crate) fn sh(&self, script: &str) -> String {
        let output = self.command("sh").args(["-ec", script]).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{script}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a function in the host's network namespace.
    pub(crate) fn in_network<T: Send>(&self, function: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/proc/{}/ns/net", self.keeper.id())).unwrap();
        // The namespace is the thread's, and ends with it.
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
                function()
            });
            thread.join().unwrap()
        })
    }

    /// A command on the host; its process is the command itself.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--net", "--mount", "--target"])
            .arg(self.keeper.id().to_string())
            .args(["--", program]);
        command
    }

    /// Starts the daemon and waits until it answers.
    pub(crate) fn daemon(&self) -> Daemon {
        self.daemon_with(&[])
    }

    pub(crate) fn daemon_with(&self, arguments: &[&str]) -> Daemon {
        self.start(&mut self.daemon_command(arguments))
    }

    /// Starts it with a variable in its environment.
    pub(crate) fn daemon_at(&self, variable: &str, value: &str) -> Daemon {
        self.start(self.daemon_command(&[]).env(variable, value))
    }

    fn start(&self, command: &mut Command) -> Daemon {
        let mut daemon = Daemon(command.spawn().unwrap());
        wait_for("the daemon", || {
            let ended = daemon.0.try_wait().unwrap();
            assert_eq!(ended, None, "{}", self.log());
            UnixStream::connect(self.socket()).is_ok()
        });
        daemon
    }

    pub(crate) fn daemon_command(&self, arguments: &[&str]) -> Command {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.path().join("log"))
            .unwrap();
        let mut command = self.command(env!("CARGO_BIN_EXE_kvpnd"));
        command
            .arg("--run-dir")
            .arg(self.run_dir())
            // The machine's own is of another network.
            .env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent")
            .arg("--resolv-conf")
            .arg(self.resolv_conf())
            .args(arguments)
            .env("RUST_LOG", "debug")
            .stdin(Stdio::null())
            .stderr(log);
        command
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.socket())
    }

    /// What the daemons and guards of this host logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path().join("log")).unwrap()
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let network = [
            "addr",
            "-4 route show table all",
            "-6 route show table all",
            "rule",
            "-6 rule",
        ];
        let path = self.resolv_conf();
        let metadata = fs::metadata(&path).ok();
        Snapshot {
            network: network
                .map(|what| self.sh(&format!("ip -o -d {what}")))
                .to_vec(),
            resolv_conf: fs::read_to_string(&path).ok(),
            mode_and_owner: metadata.map(|m| (m.mode(), m.uid(), m.gid())),
            link: fs::read_link(&path).ok(),
        }
    }

    /// Waits until the host is as it was.
    #[track_caller]
    pub(crate) fn wait_until_it_is(&self, before: &Snapshot) {
        self.wait_at_most(DEADLINE, before);
    }

    /// Waits until nothing is left to be undone.
    #[track_caller]
    pub(crate) fn wait_for_end_of_journal(&self) {
        wait_for("the end of the journal", || self.journal().is_none());
    }

    /// What is left to be undone.
    pub(crate) fn journal(&self) -> Option<String> {
        fs::read_to_string(self.run_dir().join("journal.json")).ok()
    }

    #[track_caller]
    pub(crate) fn wait_at_most(&self, patience: Duration, before: &Snapshot) {
        let start = Instant::now();
        loop {
            let now = self.snapshot();
            if now == *before {
                return;
            }
            if start.elapsed() > patience {
                panic!("{now:#?} is not {before:#?}\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.keeper.kill().unwrap();
        self.keeper.wait().unwrap();
    }
}

/// A daemon that runs; told to end when dropped.
pub(crate) struct Daemon(pub(crate) Child);

impl Daemon {
    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap()
    }

    /// The guard, which the daemon started for a lease.
    pub(crate) fn guard(&self) -> i32 {
        let guards = self.guards();
        assert_eq!(guards.len(), 1, "{guards:?}");
        guards[0]
    }

    /// The guards that there are.
    pub(crate) fn guards(&self) -> Vec<i32> {
        let parent = format!("PPid:\t{}\n", self.pid());
        fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
            .filter(|pid| {
                let status = fs::read_to_string(format!("/proc/{pid}/status"));
                status.is_ok_and(|status| {
                    status.starts_with("Name:\tkvpnd-guard\n") && status.contains(&parent)
                })
            })
            .collect()
    }

    /// Kills it as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.0.try_wait().unwrap().is_some() {
            return;
        }
        kill(Pid::from_raw(self.pid()), Signal::SIGTERM).unwrap();
        let start = Instant::now();
        while self.0.try_wait().unwrap().is_none() {
            if start.elapsed() > DEADLINE {
                self.kill();
                assert!(std::thread::panicking(), "the daemon did not end");
                return;
            }
            // It may be stopped, or stop at a step on its way out.
            kill(Pid::from_raw(self.pid()), Signal::SIGCONT).unwrap();
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[track_caller]
pub(crate) fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < DEADLINE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
