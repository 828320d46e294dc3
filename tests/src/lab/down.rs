//! Taking the lab down, whatever state it is in, and proving that it is gone.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use super::layout::Layout;
use super::process::{self, describe};
use super::state::State;
use super::{cgroup, net};
use crate::progress::step;
use crate::wait_for;

/// Ends every process of the lab, and removes what it made.
pub(crate) fn down(layout: &Layout) -> Result<()> {
    // A record that cannot be read must not keep the rest from going.
    let state = State::load(layout).ok().flatten().unwrap_or_default();
    // In the reverse order of their start, so that few complain in their logs.
    for process in state.processes.iter().rev() {
        process.signal(Signal::SIGKILL);
    }
    let strays = || strays(layout, &state);
    process::kill_all("the lab", strays)?;
    unmount(layout)?;
    net::remove()?;
    cgroup::remove()?;
    let run = layout.run();
    if run.exists() {
        fs::remove_dir_all(&run).with_context(|| format!("remove {}", run.display()))?;
    }
    verify(layout, &state)?;
    if layout.state().exists() {
        fs::remove_file(layout.state())?;
    }
    Ok(())
}

/// Fails, naming it, when anything of the lab is left.
fn verify(layout: &Layout, state: &State) -> Result<()> {
    let mut left = Vec::new();
    let pids = strays(layout, state)?;
    if !pids.is_empty() {
        left.push(format!("processes: {}", describe(&pids)));
    }
    left.extend(
        mounts(layout)?
            .into_iter()
            .map(|path| format!("mount: {path}")),
    );
    let namespaces = net::namespaces();
    let files = namespaces
        .iter()
        .map(|name| net::file(name))
        .filter(|path| path.exists());
    left.extend(files.map(|path| format!("namespace: {}", path.display())));
    left.extend(
        cgroup::groups()?
            .iter()
            .map(|path| format!("control group: {}", path.display())),
    );
    if left.is_empty() {
        return Ok(());
    }
    bail!("the lab left behind:\n{}", left.join("\n"))
}

/// Whatever still belongs to the lab: by record, by control group, by network
/// namespace, and containers by the directory that their shims name.
fn strays(layout: &Layout, state: &State) -> Result<BTreeSet<i32>> {
    let recorded = state.processes.iter().filter(|process| process.is_alive());
    let mut pids: BTreeSet<i32> = recorded.map(|process| process.pid).collect();
    pids.extend(cgroup::members()?);
    pids.extend(process::in_network_namespaces(&net::inodes())?);
    let run = layout.run().display().to_string();
    pids.extend(process::find(|proc| {
        let line = fs::read(proc.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        let program = line.split('\0').next().unwrap_or_default();
        program.contains("containerd-shim") && line.contains(&run)
    })?);
    Ok(pids)
}

/// Mounts of the host below the lab's directory.
fn mounts(layout: &Layout) -> Result<Vec<String>> {
    let lab = format!("{}/", layout.lab().display());
    let mounts = fs::read_to_string("/proc/self/mounts").context("read the mounts")?;
    let paths = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    Ok(paths
        .filter(|path| path.starts_with(&lab))
        .map(str::to_owned)
        .collect())
}

fn unmount(layout: &Layout) -> Result<()> {
    wait_for("the lab's mounts are gone", Duration::from_secs(10), || {
        let mounts = mounts(layout)?;
        for path in mounts.iter().rev() {
            step(format_args!("Unmounting {path}"));
            nix::mount::umount2(path.as_str(), nix::mount::MntFlags::MNT_DETACH)
                .with_context(|| format!("unmount {path}"))?;
        }
        Ok(mounts.is_empty().then_some(()))
    })
}
