//! Starting the lab's daemons: in their namespaces, in the lab's control group,
//! with a log, and on record.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::layout::Layout;
use super::process::Process;
use super::state::State;
use crate::{Cmd, wait_for};

/// Starts a daemon in a network namespace, with the host's files.
pub(crate) fn in_network(
    layout: &Layout,
    state: &mut State,
    name: &str,
    namespace: &str,
    command: &Cmd,
) -> Result<()> {
    let enter = Cmd::new(layout.binary("kvpn-lab")).args(["enter", "--netns", namespace]);
    entering(layout, state, name, enter, command)
}

/// Starts a daemon in all namespaces of another process of the lab.
pub(crate) fn beside(
    layout: &Layout,
    state: &mut State,
    name: &str,
    holder: &str,
    command: &Cmd,
) -> Result<()> {
    let holder = state
        .process(holder)
        .with_context(|| format!("{holder} does not run"))?;
    let enter = Cmd::new(layout.binary("kvpn-lab")).args(["enter", "--like"]);
    let enter = enter.arg(holder.pid.to_string());
    entering(layout, state, name, enter, command)
}

/// Starts the process that holds a node's or laptop's namespaces.
pub(crate) fn holder(layout: &Layout, state: &mut State, name: &str, args: &[&str]) -> Result<()> {
    let hold = Cmd::new(layout.binary("kvpn-lab")).arg("hold").args(args);
    let process = observe(layout, name, hold.daemon(&layout.log(name))?)?;
    record(layout, state, process)?;
    wait_for_log(layout, state, name, "ready", Duration::from_secs(10))
}

/// Waits until the log of a daemon has a text; fails at once when it ends.
pub(crate) fn wait_for_log(
    layout: &Layout,
    state: &State,
    name: &str,
    text: &str,
    deadline: Duration,
) -> Result<()> {
    let log = layout.log(name);
    wait_for(&format!("{name} logs {text:?}"), deadline, || {
        let found = fs::read_to_string(&log)?.contains(text);
        Ok((found || state.process(name).is_none()).then_some(found))
    })
    .and_then(|found| if found { Ok(()) } else { bail!("it has ended") })
    .map_err(|error| with_log(layout, name, error))
}

/// Adds the end of a daemon's log to an error.
pub(crate) fn with_log(layout: &Layout, name: &str, error: anyhow::Error) -> anyhow::Error {
    let path = layout.log(name);
    let log = fs::read_to_string(&path).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    let tail = lines[lines.len().saturating_sub(20)..].join("\n");
    error.context(format!(
        "{name} is not well; the end of {}:\n{tail}\n",
        path.display()
    ))
}

/// Starts a daemon by a command that enters where it belongs.
pub(crate) fn entering(
    layout: &Layout,
    state: &mut State,
    name: &str,
    enter: Cmd,
    command: &Cmd,
) -> Result<()> {
    let process = detached(layout, name, enter, command)?;
    record(layout, state, process)
}

/// The same without putting it on record.
pub(crate) fn detached(layout: &Layout, name: &str, enter: Cmd, command: &Cmd) -> Result<Process> {
    let enter = enter.arg("--detach").arg("--").command_of(command);
    observe(layout, name, enter.daemon(&layout.log(name))?)
}

fn observe(layout: &Layout, name: &str, pid: u32) -> Result<Process> {
    Process::observe(name, pid).map_err(|error| with_log(layout, name, error))
}

fn record(layout: &Layout, state: &mut State, process: Process) -> Result<()> {
    state.processes.retain(|other| other.name != process.name);
    state.processes.push(process);
    state.save(layout)
}
