//! Where the lab keeps things.

use std::path::{Path, PathBuf};

/// How cargo builds the binaries that the lab uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// Quick to build; what tests use.
    #[default]
    Dev,
    /// What users get; what is measured.
    Release,
}

/// The paths of the lab, all below the repository's `target/`.
#[derive(Clone, Debug)]
pub struct Layout {
    repository: PathBuf,
    target: PathBuf,
    profile: Profile,
}

impl Layout {
    /// The layout of the repository that this crate was built in.
    pub fn new() -> Self {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let repository = here.parent().unwrap_or(here).to_owned();
        let target = match std::env::var_os("CARGO_TARGET_DIR") {
            Some(dir) => repository.join(dir),
            None => repository.join("target"),
        };
        Self {
            repository,
            target,
            profile: Profile::Dev,
        }
    }

    /// The same with binaries of another profile.
    #[must_use]
    pub fn with_profile(self, profile: Profile) -> Self {
        Self { profile, ..self }
    }

    pub fn profile(&self) -> Profile {
        self.profile
    }

    pub fn repository(&self) -> &Path {
        &self.repository
    }

    /// Where cargo puts the binaries that the lab uses.
    pub fn binaries(&self) -> PathBuf {
        let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        let directory = match self.profile {
            Profile::Dev => "debug",
            Profile::Release => "release",
        };
        self.target.join(triple).join(directory)
    }

    pub fn binary(&self, name: &str) -> PathBuf {
        self.binaries().join(name)
    }

    /// The tests' manifests and image sources.
    pub fn tests(&self) -> PathBuf {
        self.repository.join("tests")
    }

    pub fn chart(&self) -> PathBuf {
        self.repository.join("charts/kvpn")
    }

    pub fn lab(&self) -> PathBuf {
        self.target.join("lab")
    }

    /// What is kept between labs: components and images.
    pub fn cache(&self) -> PathBuf {
        self.lab().join("cache")
    }

    /// The Kubernetes components, kubectl, helm and coredns by name.
    pub fn tools(&self) -> PathBuf {
        self.cache().join("bin")
    }

    pub fn tool(&self, name: &str) -> PathBuf {
        self.tools().join(name)
    }

    /// What belongs to the lab that is up, and goes with it.
    pub fn run(&self) -> PathBuf {
        self.lab().join("run")
    }

    pub fn state(&self) -> PathBuf {
        self.lab().join("state.json")
    }

    pub fn pki(&self) -> PathBuf {
        self.run().join("pki")
    }

    /// Logs outlive the lab, until the next one comes up.
    pub fn logs(&self) -> PathBuf {
        self.lab().join("log")
    }

    pub fn log(&self, name: &str) -> PathBuf {
        self.logs().join(format!("{name}.log"))
    }

    /// The kubeconfig of a user: `admin`, `alice` or `bob`.
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.run().join(format!("{user}.kubeconfig"))
    }
}

impl Default for Layout {
    fn default() -> Self {
        Self::new()
    }
}
