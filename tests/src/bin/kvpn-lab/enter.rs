//! Becomes a program inside the lab.

use std::convert::Infallible;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid, setsid};

use crate::Enter;

/// Enters what the arguments say and becomes the program.
pub(crate) fn run(args: Enter) -> Result<Infallible> {
    join_cgroup()?;
    if args.detach {
        setsid().context("leave the session")?;
    }
    if let Some(name) = &args.netns {
        enter_network(name)?;
    }
    if let Some(pid) = args.like {
        enter_like(pid)?;
    }
    if let Some(uid) = args.uid {
        let groups: Vec<Gid> = args
            .group
            .into_iter()
            .chain([uid])
            .map(Gid::from_raw)
            .collect();
        let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
        setgroups(&groups).context("set the groups")?;
        setresgid(group, group, group).context("set the group")?;
        setresuid(user, user, user).context("set the user")?;
    }
    if let Some(dir) = &args.dir {
        std::env::set_current_dir(dir).with_context(|| format!("enter {}", dir.display()))?;
    }
    let (program, rest) = args.command.split_first().context("no program")?;
    let error = Command::new(program).args(rest).exec();
    Err(error).with_context(|| format!("run {}", program.display()))
}

/// Makes this process, and all that it starts, part of the lab.
pub(crate) fn join_cgroup() -> Result<()> {
    let group = kvpn_tests::lab::cgroup::membership()?;
    let procs = group.join("cgroup.procs");
    fs::write(&procs, "0").with_context(|| format!("join {}; is the lab up?", group.display()))
}

/// Enters a named network namespace.
pub(crate) fn enter_network(name: &str) -> Result<()> {
    let path = kvpn_tests::lab::net::file(name);
    let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
    setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {name}"))
}

fn enter_like(pid: i32) -> Result<()> {
    let open = |kind: &str| {
        let path = Path::new("/proc")
            .join(pid.to_string())
            .join("ns")
            .join(kind);
        File::open(&path).with_context(|| format!("open {}", path.display()))
    };
    // All are opened first: behind the mount namespace /proc may be another.
    let [net, uts, mnt] = [open("net")?, open("uts")?, open("mnt")?];
    setns(net, CloneFlags::CLONE_NEWNET).context("enter the network namespace")?;
    setns(uts, CloneFlags::CLONE_NEWUTS).context("enter the host name namespace")?;
    setns(mnt, CloneFlags::CLONE_NEWNS).context("enter the mount namespace")
}
