//! The lab made ready for measuring, and afterwards as it was.

mod files;
mod intercept;

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::figures::Way;
use super::interrupt;
use super::ports::{NAME, NAMESPACE};
use crate::lab::laptop::{self, Login};
use crate::lab::layout::Profile;
use crate::lab::{Lab, Options, services};
use crate::progress::step;
use crate::{Background, Cmd};

/// The laptop that connects, whose user may also use the pipe.
pub(super) const CONNECTED: u8 = 1;

/// The laptop that may reach pods directly.
const EXEMPT: u8 = 2;

/// How much longer than it measures a client may take.
const GRACE: Duration = Duration::from_secs(60);

/// How long a figure is measured, and how often.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    pub rounds: usize,
    pub seconds: f64,
    pub warm: f64,
}

impl Pace {
    /// As results are published.
    pub const FULL: Self = Self {
        rounds: 5,
        seconds: 3.0,
        warm: 0.5,
    };
    /// To see a tendency.
    pub const QUICK: Self = Self {
        rounds: 3,
        seconds: 1.5,
        warm: 0.3,
    };
}

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

/// What the lab was like.
#[derive(Clone, Copy, Debug)]
struct Found {
    up: bool,
    kvpn: bool,
    sample: bool,
    delay: Duration,
    /// In percent.
    loss: f64,
}

/// The lab, ready for measuring.
pub(super) struct Rig {
    lab: Lab,
    found: Found,
    pub(super) pace: Pace,
    /// The server's pod: IPv4, then IPv6.
    addresses: [IpAddr; 2],
}

impl Rig {
    /// Brings up what is missing, all of it as users get it, and connects.
    pub(super) fn build(pace: Pace, keep: bool) -> Result<Self> {
        interrupt::defer()?;
        Lab::reserve()?;
        let current = Lab::current().ok();
        let state = current.as_ref().map(Lab::state);
        let found = Found {
            up: state.is_some(),
            kvpn: state.is_some_and(|state| state.kvpn),
            sample: state.is_some_and(|state| state.sample),
            delay: Duration::from_millis(state.map_or(0, |state| state.delay_ms)),
            loss: state.map_or(0.0, |state| state.loss_percent),
        };
        let options = Options {
            kvpn: true,
            images: true,
            ..Options::default()
        };
        let lab = Lab::up_built(Profile::Release, options)?;
        let mut rig = Self {
            lab,
            found,
            pace,
            addresses: [IpAddr::from([0, 0, 0, 0]); 2],
        };
        if let Err(error) = rig.prepare() {
            let ended = rig.end(keep);
            return Err(match ended {
                Ok(()) => error,
                Err(other) => error.context(format!("afterwards: {other:#}")),
            });
        }
        Ok(rig)
    }

    fn prepare(&mut self) -> Result<()> {
        self.wire(Duration::ZERO, 0.0)?;
        self.lab.deploy_bench()?;
        self.addresses = pod_addresses(&self.lab, NAMESPACE, &format!("app={NAME}"))?;
        self.lab.isolate()?;
        self.lab.exempt(EXEMPT)?;
        self.kvpn(EXEMPT, &["quit"])?;
        self.reconnect()
    }

    /// Undoes everything, also what has only half been done.
    pub(super) fn end(mut self, keep: bool) -> Result<()> {
        let isolated = self.lab.isolate();
        let mended = self.wire(self.found.delay, self.found.loss);
        let left = self.kvpn(CONNECTED, &["quit"]);
        let restored = match keep {
            true => Ok(()),
            false => self.restore(),
        };
        isolated?;
        mended?;
        left?;
        restored
    }

    fn restore(self) -> Result<()> {
        if !self.found.up {
            return Lab::down();
        }
        self.lab.remove_bench()?;
        let mut lab = self.lab.with_profile(Profile::Dev);
        if !self.found.sample {
            lab.remove_sample()?;
        }
        if !self.found.kvpn {
            return lab.remove_kvpn();
        }
        if !lab.layout().binary("traffic-manager").exists() {
            step("What was measured stays installed, as nothing else is built");
            return Ok(());
        }
        lab.install_kvpn()
    }

    pub(super) fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Makes the wire worse or good: delay each way, and percent of packets lost.
    pub(super) fn wire(&mut self, delay: Duration, loss: f64) -> Result<()> {
        self.lab.lose_packets(loss)?;
        self.lab.delay_packets(delay)
    }

    /// Ends the connection and its session, and makes new ones.
    pub(super) fn reconnect(&self) -> Result<()> {
        self.kvpn(CONNECTED, &["quit"])?;
        self.kvpn(CONNECTED, &["connect"]).context("connect")
    }

    /// Replaces the traffic manager, and connects to the new one.
    pub(super) fn renew(&self) -> Result<()> {
        self.kvpn(CONNECTED, &["quit"])?;
        let workload = format!("deployment/{}", kvpn_proto::names::MANAGER_SERVICE);
        let namespace = ["-n", kvpn_proto::names::MANAGER_NAMESPACE];
        let kubectl = |args: &[&str]| {
            let kubectl = self.lab.kubectl(namespace).args(args);
            kubectl.deadline(Duration::from_secs(120)).ok()
        };
        kubectl(&["rollout", "restart", &workload])?;
        kubectl(&["rollout", "status", &workload, "--timeout=90s"])?;
        crate::wait_for(
            "the old traffic manager ends",
            Duration::from_secs(60),
            || super::process::Role::Manager.pid(&self.lab).map(Some),
        )?;
        self.reconnect()
    }

    /// Runs a client and gives what it measured.
    pub(super) fn client(&self, way: Way, family: Family, args: &[&str]) -> Result<Value> {
        measure(self.command(way, family, args)?)
    }

    /// The same for a client that does not go to the server.
    pub(super) fn local_client(&self, way: Way, args: &[&str]) -> Result<Value> {
        measure(self.user(way)?.cmd(["kvpn-bench"]).args(args))
    }

    /// Runs a client in the server's pod, which is what a pod itself measures.
    pub(super) fn in_pod(&self, args: &[&str]) -> Result<Value> {
        let pod = format!("deployment/{NAME}");
        let exec = ["-n", NAMESPACE, "exec", &pod, "--", "/kvpn-bench"];
        measure(self.lab.kubectl(exec).args(args))
    }

    /// Deploys the sample application.
    pub(super) fn add_sample(&mut self) -> Result<()> {
        self.lab.deploy_sample()
    }

    /// Deploys the servers that people use.
    pub(super) fn add_services(&mut self) -> Result<()> {
        self.lab.deploy_services()
    }

    /// The IPv4 address of nginx's pod.
    pub(super) fn nginx(&self) -> Result<IpAddr> {
        pod_addresses(&self.lab, services::NAMESPACE, "app=nginx").map(|[v4, _]| v4)
    }

    /// Runs a program on the laptop that may reach pods directly; gives what it printed.
    pub(super) fn outside(&self, command: &[&str]) -> Result<String> {
        interrupt::check()?;
        let login = self.lab.laptop(EXEMPT)?.user();
        let output = login.cmd(command).deadline(GRACE).run()?.success();
        interrupt::check()?;
        Ok(output?.stdout)
    }

    /// Starts a client that holds what it has, until the value is dropped.
    pub(super) fn hold(&self, way: Way, family: Family, args: &[&str]) -> Result<Background> {
        self.command(way, family, args)?.spawn()
    }

    fn command(&self, way: Way, family: Family, args: &[&str]) -> Result<Cmd> {
        let [v4, v6] = self.addresses;
        let address = match family {
            Family::V4 => v4,
            Family::V6 => v6,
        };
        let command = self.user(way)?.cmd(["kvpn-bench"]).args(args);
        Ok(match way {
            Way::Kvpn | Way::Direct | Way::Copy => command.arg("--to").arg(address.to_string()),
            Way::Pipe => {
                let config = laptop::home(CONNECTED).join(".kube/config");
                command.arg("--pipe").arg(config)
            }
        })
    }

    fn user(&self, way: Way) -> Result<Login> {
        let laptop = match way {
            Way::Kvpn | Way::Pipe | Way::Copy => CONNECTED,
            Way::Direct => EXEMPT,
        };
        Ok(self.lab.laptop(laptop)?.user())
    }

    fn kvpn(&self, laptop: u8, args: &[&str]) -> Result<()> {
        let user = self.lab.laptop(laptop)?.user();
        user.run(["kvpn"].iter().chain(args))?.success().map(drop)
    }
}

fn measure(client: Cmd) -> Result<Value> {
    interrupt::check()?;
    let output = client.deadline(GRACE).run()?.success();
    interrupt::check()?;
    output?.json()
}

/// Addresses of the only pod with a label: IPv4, then IPv6.
fn pod_addresses(lab: &Lab, namespace: &str, label: &str) -> Result<[IpAddr; 2]> {
    let pods: Value = lab
        .kubectl(["-n", namespace, "get", "pods", "-l", label, "-o", "json"])
        .run()?
        .success()?
        .json()?;
    let items = pods["items"].as_array().context("no pods")?;
    let alive: Vec<&Value> = items
        .iter()
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
        .collect();
    ensure!(alive.len() == 1, "{label} has {} pods", alive.len());
    let address = |number: usize| -> Result<IpAddr> {
        let address = alive[0]["status"]["podIPs"][number]["ip"].as_str();
        address
            .context("the pod lacks an address")?
            .parse()
            .context("an address")
    };
    Ok([address(0)?, address(1)?])
}
