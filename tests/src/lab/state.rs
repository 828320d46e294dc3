//! What the lab has started, on disk before anything relies on it.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::layout::Layout;
use super::process::Process;

/// The record of a lab that is, or was, up.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct State {
    pub processes: Vec<Process>,
    /// Images in the node's containerd, by name, with the hash of their source.
    pub images: BTreeMap<String, String>,
    /// The cluster answers.
    pub cluster: bool,
    /// The sample application is deployed.
    pub sample: bool,
    /// The servers are deployed.
    #[serde(default)]
    pub services: bool,
    /// The chart is installed and the daemons run.
    pub kvpn: bool,
    /// The delay of the wire in milliseconds, when it has one.
    #[serde(default)]
    pub delay_ms: u64,
    /// The share of packets that the wire loses, in percent.
    #[serde(default)]
    pub loss_percent: f64,
}

impl State {
    /// Reads the record, if there is one.
    pub fn load(layout: &Layout) -> Result<Option<Self>> {
        let path = layout.state();
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(
                serde_json::from_slice(&bytes)
                    .with_context(|| format!("read {}", path.display()))?,
            )),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    /// Writes the record in one step.
    pub fn save(&self, layout: &Layout) -> Result<()> {
        let path = layout.state();
        let new = path.with_extension("new");
        fs::create_dir_all(layout.lab())?;
        fs::write(&new, serde_json::to_vec_pretty(self)?)
            .and_then(|()| fs::rename(&new, &path))
            .with_context(|| format!("write {}", path.display()))
    }

    /// The running process of that name.
    pub fn process(&self, name: &str) -> Option<&Process> {
        self.processes
            .iter()
            .find(|process| process.name == name && process.is_alive())
    }

    /// Names of processes that should run and do not.
    pub fn missing(&self) -> Vec<&str> {
        let dead = self.processes.iter().filter(|process| !process.is_alive());
        dead.map(|process| process.name.as_str()).collect()
    }
}
