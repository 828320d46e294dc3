//! The laptops: namespaces with files, a user and a root daemon of their own.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use super::host_state::HostState;
use super::layout::{Layout, Profile};
use super::state::State;
use super::{net, pki, start};
use crate::{Background, Cmd, Output};

mod resolved;

pub use self::resolved::Resolved;

/// Group whose members may use the root daemon.
pub const GROUP: (&str, u32) = ("kvpn", 6100);

/// Users and groups of programs, by the names that Debian gives them.
pub const SYSTEM_USERS: [(&str, u32); 2] = [("messagebus", 6101), ("systemd-resolve", 6102)];

/// Where a laptop sees cargo's binaries, and kubectl.
pub const BINARIES: &str = "/run/lab/bin";
pub const RELEASE_BINARIES: &str = "/run/lab/release";
pub const TOOLS: &str = "/run/lab/tools";

/// A laptop of the lab that is up.
#[derive(Clone, Debug)]
pub struct Laptop {
    layout: Layout,
    number: u8,
    holder: i32,
}

/// A person or root, at a laptop.
#[derive(Clone, Debug)]
pub struct Login {
    laptop: Laptop,
    user: User,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum User {
    Root,
    Developer,
}

/// Name of a laptop's user; the same number of laptop and user.
pub fn user_name(number: u8) -> String {
    format!("dev{number}")
}

/// User and group id of a laptop's user.
pub fn user_id(number: u8) -> u32 {
    6000 + u32::from(number)
}

/// The user's home directory inside the laptop.
pub fn home(number: u8) -> PathBuf {
    format!("/home/dev{number}").into()
}

/// The user's runtime directory inside the laptop.
pub fn runtime_dir(number: u8) -> PathBuf {
    format!("/run/user/{}", user_id(number)).into()
}

/// Where the home directory is on the host.
pub fn home_on_host(layout: &Layout, number: u8) -> PathBuf {
    layout.run().join(format!("laptop{number}-home"))
}

/// Name of the holder of a laptop's namespaces.
pub(crate) fn holder(number: u8) -> String {
    format!("laptop{number}")
}

/// Name of a laptop's root daemon.
pub(crate) fn daemon(number: u8) -> String {
    format!("laptop{number}-kvpnd")
}

/// Makes the laptop, with a kubeconfig in its user's home.
pub(crate) fn create(layout: &Layout, state: &mut State, number: u8) -> Result<()> {
    let home = home_on_host(layout, number);
    let kube = home.join(".kube");
    fs::create_dir_all(&kube)?;
    let config = kube.join("config");
    fs::copy(
        layout.kubeconfig(pki::USERS[usize::from(number - 1)]),
        &config,
    )
    .context("give the laptop a kubeconfig")?;
    fs::set_permissions(&config, fs::Permissions::from_mode(0o600))?;
    let id = Some(user_id(number));
    for path in [&home, &kube, &config] {
        chown(path, id, id)?;
    }
    let number_text = number.to_string();
    start::holder(layout, state, &holder(number), &["laptop", &number_text])
}

impl Laptop {
    /// The laptop of that number in the lab that is up.
    pub(crate) fn find(layout: &Layout, state: &State, number: u8) -> Result<Self> {
        let process = state.process(&holder(number));
        let process = process.with_context(|| format!("there is no laptop {number}"))?;
        Ok(Self {
            layout: layout.clone(),
            number,
            holder: process.pid,
        })
    }

    pub fn number(&self) -> u8 {
        self.number
    }

    /// Its unprivileged user, with a kubeconfig.
    pub fn user(&self) -> Login {
        Login {
            laptop: self.clone(),
            user: User::Developer,
        }
    }

    pub fn root(&self) -> Login {
        Login {
            laptop: self.clone(),
            user: User::Root,
        }
    }

    /// A file of the laptop, as a path on the host.
    pub fn path(&self, path: impl AsRef<std::path::Path>) -> PathBuf {
        let path = path.as_ref();
        let root = PathBuf::from(format!("/proc/{}/root", self.holder));
        root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Its addresses, routes, rules, packet filter and resolver settings.
    pub fn host_state(&self) -> Result<HostState> {
        HostState::capture(self)
    }

    /// Starts the root daemon, and waits until it listens.
    pub fn start_daemon(&self, state: &mut State, fault_point: Option<usize>) -> Result<()> {
        let name = daemon(self.number);
        let mut command = Cmd::new("kvpnd").env("RUST_LOG", "debug");
        if let Some(fault_point) = fault_point {
            command = command.env("KVPN_FAULT_POINT", fault_point.to_string());
        }
        start::entering(&self.layout, state, &name, self.root().enter(), &command)?;
        let socket = self.path(kvpn_proto::names::DAEMON_SOCKET);
        crate::wait_for("the root daemon listens", Duration::from_secs(10), || {
            anyhow::ensure!(state.process(&name).is_some(), "it ended");
            Ok(std::os::unix::net::UnixStream::connect(&socket)
                .is_ok()
                .then_some(()))
        })
        .map_err(|error| start::with_log(&self.layout, &name, error))
    }

    /// Stops the root daemon, gently.
    pub fn stop_daemon(&self, state: &mut State) -> Result<()> {
        let name = daemon(self.number);
        if let Some(process) = state.process(&name) {
            process.stop(Duration::from_secs(10))?;
        }
        state.processes.retain(|process| process.name != name);
        state.save(&self.layout)
    }
}

impl Login {
    /// A program to run, or refine first.
    pub fn cmd<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, command: I) -> Cmd {
        self.enter().arg("--").args(command)
    }

    /// The command that logs in, without what to run.
    fn enter(&self) -> Cmd {
        let Laptop {
            layout,
            number,
            holder,
        } = &self.laptop;
        let (name, id, home) = match self.user {
            User::Root => ("root".to_owned(), 0, PathBuf::from("/root")),
            User::Developer => (user_name(*number), user_id(*number), self::home(*number)),
        };
        let binaries = match layout.profile() {
            Profile::Dev => BINARIES,
            Profile::Release => RELEASE_BINARIES,
        };
        let path = format!(
            "{binaries}:{TOOLS}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        );
        let mut enter = Cmd::new(layout.binary("kvpn-lab"))
            .args([
                "enter",
                "--like",
                &holder.to_string(),
                "--uid",
                &id.to_string(),
            ])
            .arg("--dir")
            .arg(&home)
            .clear_env()
            .env("HOME", &home)
            .env("PATH", path)
            .env("SHELL", "/bin/bash")
            .env("USER", &name)
            .env("LOGNAME", &name);
        if self.user == User::Developer {
            enter = enter.args(["--group", &GROUP.1.to_string()]);
            enter = enter.env("XDG_RUNTIME_DIR", runtime_dir(*number));
        }
        enter
    }

    /// Runs a program to its end.
    pub fn run<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, command: I) -> Result<Output> {
        self.cmd(command).run()
    }

    /// Starts a program, killed on drop.
    pub fn spawn<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(
        &self,
        command: I,
    ) -> Result<Background> {
        self.cmd(command).spawn()
    }
}

/// Numbers of the laptops that exist.
pub fn numbers() -> [u8; 2] {
    net::LAPTOPS
}
