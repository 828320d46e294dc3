//! A throwaway Kubernetes with two laptops, in network namespaces.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};

mod bench;
pub mod binaries;
pub mod cgroup;
pub mod components;
mod debian;
mod deploy;
mod down;
mod host;
mod host_state;
pub mod images;
mod install;
pub mod laptop;
pub mod layout;
pub mod net;
mod node;
pub mod pki;
mod process;
pub mod sample;
pub mod services;
mod start;
pub mod state;
mod status;
mod toolbox;
pub mod wire;

use self::components::Component;
use self::images::{COREDNS, Image, PAUSE, SAMPLE, SIDECAR_AGENT, TOOLBOX, TRAFFIC_MANAGER};
use self::laptop::Laptop;
use self::layout::{Layout, Profile};
use self::state::State;
use crate::progress::step;
use crate::{Cmd, Output};

pub use self::host::install_packages;
pub use self::host_state::HostState;
pub use self::process::Process;

/// What to bring up besides the cluster and the laptops.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// The sample application.
    pub sample: bool,
    /// The chart, and the laptops' root daemons.
    pub kvpn: bool,
    /// kvpn's images on the node, also without the chart.
    pub images: bool,
    /// PostgreSQL and other servers that people use.
    pub services: bool,
}

impl Options {
    /// What end-to-end tests need; those of the services bring them up.
    pub const ALL: Self = Self {
        sample: true,
        kvpn: true,
        images: true,
        services: false,
    };
}

/// A lab that is up.
#[derive(Debug)]
pub struct Lab {
    layout: Layout,
    state: State,
}

impl Lab {
    /// Brings up what is not up yet; rebuilds and replaces what has changed.
    pub fn up(options: Options) -> Result<Self> {
        binaries::build(&Layout::new())?;
        Self::up_built(Profile::Dev, options)
    }

    /// The same with the binaries of a profile as they are.
    pub fn up_built(profile: Profile, options: Options) -> Result<Self> {
        host::require_root()?;
        let layout = Layout::new().with_profile(profile);
        let _lock = lock(&layout)?;
        host::install_packages()?;
        for component in Component::ALL {
            component.build(&layout)?;
        }
        toolbox::build_musl_resolver(&layout)?;
        let mut state = match State::load(&layout)? {
            Some(state) if state.cluster && state.missing().is_empty() => state,
            Some(state) => {
                step(format_args!(
                    "A previous lab is not whole (not running: {}); taking it down",
                    state.missing().join(", ")
                ));
                down::down(&layout)?;
                State::default()
            }
            None => State::default(),
        };
        if !state.cluster {
            create(&layout, &mut state)?;
        }
        let mut lab = Self { layout, state };
        lab.add(options)?;
        Ok(lab)
    }

    /// The lab with everything that tests need; brings up what is missing.
    /// Waits for other processes that use it, as tests would disturb each other.
    pub fn attach() -> Result<Self> {
        let layout = Layout::new();
        let begins = Self::reserve()?;
        match State::load(&layout)? {
            Some(state)
                if state.cluster && state.sample && state.kvpn && state.missing().is_empty() =>
            {
                // A measurement that was killed may have left an exemption.
                wire::isolate()?;
                let lab = Self { layout, state };
                if begins {
                    // And a test, or somebody at a laptop, this.
                    for number in net::LAPTOPS {
                        lab.laptop(number)?.stop_resolved()?;
                    }
                }
                Ok(lab)
            }
            Some(_) | None => Self::up(Options::ALL),
        }
    }

    /// Waits until no other process uses the lab, and keeps it until this one
    /// ends. Says whether this process did not have it yet.
    pub fn reserve() -> Result<bool> {
        static RESERVED: Mutex<Option<Flock<File>>> = Mutex::new(None);
        let mut reserved = RESERVED.lock().unwrap_or_else(PoisonError::into_inner);
        let begins = reserved.is_none();
        if begins {
            let waiting = "Waiting for another test run";
            *reserved = Some(lock_file(&Layout::new(), "in-use.lock", waiting)?);
        }
        Ok(begins)
    }

    /// The lab as it is; an error when there is none.
    pub fn current() -> Result<Self> {
        let layout = Layout::new();
        let state = State::load(&layout)?;
        let state = state.filter(|state| state.cluster);
        let state = state.context("the lab is not up; `cargo xtask lab up` brings it up")?;
        Ok(Self { layout, state })
    }

    /// Takes the lab down, whatever state it is in, and fails when anything of
    /// it is left.
    pub fn down() -> Result<()> {
        host::require_root()?;
        let layout = Layout::new();
        let _lock = lock(&layout)?;
        down::down(&layout)?;
        step("The lab is down; nothing of it is left");
        Ok(())
    }

    /// Takes down what was brought up from this repository, if anything; a lab of
    /// another one stays.
    pub fn end() -> Result<()> {
        match State::load(&Layout::new())? {
            Some(_) => Self::down(),
            None => Ok(()),
        }
    }

    /// The same lab, to be worked on with binaries of another profile.
    #[must_use]
    pub fn with_profile(self, profile: Profile) -> Self {
        let layout = self.layout.with_profile(profile);
        Self { layout, ..self }
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    /// A laptop: 1, whose user is alice in the cluster, or 2, who is bob.
    pub fn laptop(&self, number: u8) -> Result<Laptop> {
        Laptop::find(&self.layout, &self.state, number)
    }

    /// kubectl as the cluster's administrator.
    pub fn kubectl<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, args: I) -> Cmd {
        node::kubectl(&self.layout, "admin").args(args)
    }

    /// kubectl as a user of the lab: `admin`, `alice` or `bob`.
    pub fn kubectl_as<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(
        &self,
        user: &str,
        args: I,
    ) -> Cmd {
        node::kubectl(&self.layout, user).args(args)
    }

    /// helm as the cluster's administrator.
    pub fn helm<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, args: I) -> Cmd {
        install::helm(&self.layout).args(args)
    }

    /// A program on the node's network, with the host's files.
    pub fn node<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, program: &str, args: I) -> Cmd {
        net::inside(net::NODE, program).args(args)
    }

    /// Runs a program in a pod's first container.
    pub fn pod_exec<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(
        &self,
        namespace: &str,
        pod: &str,
        command: I,
    ) -> Result<Output> {
        self.kubectl(["-n", namespace, "exec", pod, "--"])
            .args(command)
            .run()
    }

    /// Stops a laptop's root daemon, gently.
    pub fn stop_daemon(&mut self, laptop: u8) -> Result<()> {
        self.laptop(laptop)?.stop_daemon(&mut self.state)
    }

    /// Starts a laptop's root daemon, and waits until it listens.
    pub fn start_daemon(&mut self, laptop: u8) -> Result<()> {
        self.laptop(laptop)?.start_daemon(&mut self.state, None)
    }

    /// Starts one that stops itself (SIGSTOP) at a step of what it does to the host.
    pub fn start_daemon_stopping_at(&mut self, laptop: u8, step: usize) -> Result<()> {
        self.laptop(laptop)?
            .start_daemon(&mut self.state, Some(step))
    }

    /// A laptop's root daemon as it was last started.
    pub fn daemon(&self, laptop: u8) -> Option<&Process> {
        self.state.process(&laptop::daemon(laptop))
    }

    /// Any other process of the lab, such as `kube-apiserver`.
    pub fn process(&self, name: &str) -> Option<&Process> {
        self.state.process(name)
    }

    /// Cuts a laptop's wire, or mends it.
    pub fn cut_wire(&self, laptop: u8, cut: bool) -> Result<()> {
        wire::cut(laptop, cut)
    }

    /// Drops what a laptop sends to the API server, or lets it through again.
    pub fn block_api_server(&self, laptop: u8, block: bool) -> Result<()> {
        wire::block_api_server(laptop, block)
    }

    /// Loses a share of the packets on the wire, in percent.
    pub fn lose_packets(&mut self, percent: f64) -> Result<()> {
        wire::lose(percent)?;
        self.state.loss_percent = percent;
        self.state.save(&self.layout)
    }

    /// Delays every packet on the wire, each way.
    pub fn delay_packets(&mut self, delay: Duration) -> Result<()> {
        wire::delay(&self.layout, &mut self.state, delay)
    }

    /// Lets a laptop reach the cluster's networks without any VPN, until
    /// [`Self::isolate`].
    pub fn exempt(&self, laptop: u8) -> Result<()> {
        wire::exempt(laptop)
    }

    /// Keeps every laptop from the cluster's networks again.
    pub fn isolate(&self) -> Result<()> {
        wire::isolate()
    }

    /// What runs and where, for people.
    pub fn status(&self) -> String {
        status::describe(&self.layout, &self.state)
    }

    fn add(&mut self, options: Options) -> Result<()> {
        if options.sample {
            self.deploy_sample()?;
        }
        let Self { layout, state } = self;
        if options.images {
            for image in [TRAFFIC_MANAGER, SIDECAR_AGENT] {
                image.build(layout)?.import(layout, state)?;
            }
        }
        if options.services {
            self.deploy_services()?;
        }
        if options.kvpn {
            self.install_kvpn()?;
        }
        Ok(())
    }
}

/// Builds all images; brings them to the node when the lab is up.
pub fn build_images() -> Result<()> {
    let layout = Layout::new();
    let _lock = lock(&layout)?;
    host::install_packages()?;
    for component in [Component::CoreDns, Component::GoResolve] {
        component.build(&layout)?;
    }
    toolbox::build_musl_resolver(&layout)?;
    binaries::build(&layout)?;
    let images: [Image; 6] = [
        PAUSE,
        COREDNS,
        SAMPLE,
        TOOLBOX,
        TRAFFIC_MANAGER,
        SIDECAR_AGENT,
    ];
    let mut state = State::load(&layout)?.filter(|state| state.missing().is_empty());
    for image in images {
        let built = image.build(&layout)?;
        if let Some(state) = &mut state {
            built.import(&layout, state)?;
        }
        step(format_args!(
            "{}:{} is in {}",
            built.repository,
            built.tag,
            built.archive.display()
        ));
    }
    Ok(())
}

/// Creates cluster and laptops.
fn create(layout: &Layout, state: &mut State) -> Result<()> {
    let taken: Vec<String> = net::namespaces()
        .into_iter()
        .filter(|name| net::file(name).exists())
        .collect();
    if !taken.is_empty() || !cgroup::groups()?.is_empty() {
        bail!(
            "another lab is on this machine (namespaces: {}); take it down where it was brought \
             up, or here with `cargo xtask lab down`",
            taken.join(", ")
        );
    }
    for directory in [layout.logs(), layout.run()] {
        if directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        fs::create_dir_all(&directory)?;
    }
    let (pause, coredns) = (PAUSE.build(layout)?, COREDNS.build(layout)?);
    host::load_modules();
    // From here on there is something to take down.
    state.save(layout)?;
    pki::create(layout)?;
    cgroup::create()?;
    net::create()?;
    wire::create(layout, state)?;
    for number in net::LAPTOPS {
        laptop::create(layout, state, number)?;
    }
    step("Networks, wire and laptops are there; starting Kubernetes");
    node::start_first(layout, state)?;
    node::wait_for_containerd(layout, state)?;
    for image in [pause, coredns] {
        image.import(layout, state)?;
    }
    node::wait_for_api(layout)?;
    node::start_rest(layout, state)?;
    sample::apply_dns(layout)?;
    node::wait_for_node(layout)?;
    sample::wait_for_dns(layout)?;
    state.cluster = true;
    state.save(layout)
}

/// Keeps two invocations from changing the lab at once.
fn lock(layout: &Layout) -> Result<Flock<File>> {
    lock_file(
        layout,
        "lock",
        "Waiting for another command that works on the lab",
    )
}

fn lock_file(layout: &Layout, name: &str, waiting: &str) -> Result<Flock<File>> {
    fs::create_dir_all(layout.lab())?;
    let file = File::create(layout.lab().join(name)).context("create the lab's lock")?;
    let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => return Ok(lock),
        Err((file, _)) => file,
    };
    step(waiting);
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .context("lock the lab")
}
