//! The files that are measured, which a container has.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{CONNECTED, Rig};
use crate::Cmd;
use crate::bench::interrupt;
use crate::bench::ports::{FILES, NAMESPACE};
use crate::progress::step;

/// How long a gibibyte may take.
const DEADLINE: Duration = Duration::from_secs(180);

/// Files that are mounted on the laptop that connects, until this is dropped.
pub(in crate::bench) struct Mount<'a> {
    rig: &'a Rig,
    path: String,
}

impl Mount<'_> {
    pub(in crate::bench) fn path(&self) -> &str {
        &self.path
    }

    /// A shell script that runs there.
    pub(in crate::bench) fn script(&self, script: &str) -> String {
        format!("set -eo pipefail; cd '{}'; {script}", self.path)
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.rig.kvpn(CONNECTED, &["leave", "--all"]) {
            step(format_args!("Cannot leave: {error:#}"));
        }
    }
}

impl Rig {
    /// Deploys the container, without files yet.
    pub(in crate::bench) fn add_files(&mut self) -> Result<()> {
        self.lab.deploy_files()
    }

    /// Runs a program in the container.
    pub(in crate::bench) fn in_files(&self, command: &[&str]) -> Result<()> {
        let workload = format!("deployment/{FILES}");
        let exec = ["-n", NAMESPACE, "exec", &workload, "--"];
        finish(self.lab.kubectl(exec).args(command)).map(drop)
    }

    /// Mounts its files where they may be changed.
    pub(in crate::bench) fn mount_files(&self) -> Result<Mount<'_>> {
        let user = self.lab.laptop(CONNECTED)?.user();
        let intercept = ["kvpn", "intercept", FILES, "-n", NAMESPACE];
        // Nobody connects to it.
        let rest = ["--port", "8080:9", "--mount=true", "-o", "json"];
        let engaged = user.run(intercept.iter().chain(&rest))?.success()?;
        let engaged: serde_json::Value = engaged.json()?;
        let path = engaged["mountedAt"].as_str().context("no mount")?;
        Ok(Mount {
            rig: self,
            path: path.to_owned(),
        })
    }

    /// Runs a shell script as the laptop's user.
    pub(in crate::bench) fn inside(&self, script: &str) -> Result<()> {
        let user = self.lab.laptop(CONNECTED)?.user();
        finish(user.cmd(["bash", "-c", script])).map(drop)
    }

    /// Copies from the container with `kubectl cp`.
    pub(in crate::bench) fn copy_files(&self, path: &str, to: &Path) -> Result<()> {
        let get = ["-n", NAMESPACE, "get", "pods", "-l", "app=files"];
        let get = self.lab.kubectl(get).args(["-o", "name"]).ok()?;
        let pod = get.trim().trim_start_matches("pod/");
        let copy = ["-n", NAMESPACE, "cp", &format!("{pod}:{path}")];
        finish(self.lab.kubectl(copy).arg(to)).map(drop)
    }
}

fn finish(command: Cmd) -> Result<String> {
    interrupt::check()?;
    let output = command.deadline(DEADLINE).run()?.success();
    interrupt::check()?;
    Ok(output?.stdout)
}
