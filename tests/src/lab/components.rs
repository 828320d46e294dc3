//! Kubernetes, Helm, CoreDNS and a resolver, built from Go modules and kept.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::layout::Layout;
use crate::Cmd;
use crate::progress::{long, step};

/// A Go program that the lab uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Component {
    /// etcd, the control plane, the kubelet, kube-proxy and kubectl in one.
    Kubernetes,
    Helm,
    CoreDns,
    /// Resolves names as static Go programs do.
    GoResolve,
}

const KUBERNETES_NAMES: [&str; 7] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kubectl",
];

impl Component {
    pub const ALL: [Self; 4] = [Self::Kubernetes, Self::Helm, Self::CoreDns, Self::GoResolve];

    fn name(self) -> &'static str {
        match self {
            Self::Kubernetes => "kubernetes",
            Self::Helm => "helm",
            Self::CoreDns => "coredns",
            Self::GoResolve => "goresolve",
        }
    }

    fn package(self) -> &'static str {
        match self {
            Self::Kubernetes | Self::GoResolve => ".",
            Self::Helm => "helm.sh/helm/v3/cmd/helm",
            Self::CoreDns => "github.com/coredns/coredns",
        }
    }

    /// The module whose version the program reports, and how it is told.
    fn linker_flags(self, go_mod: &str) -> Result<String> {
        let strip = "-s -w";
        match self {
            Self::Kubernetes => {
                let version = required_version(go_mod, "k8s.io/kubernetes")?;
                let mut parts = version.trim_start_matches('v').split('.');
                let (major, minor) = (parts.next().unwrap_or("1"), parts.next().unwrap_or("0"));
                let at = "-X k8s.io/component-base/version";
                Ok(format!(
                    "{strip} {at}.gitVersion={version} {at}.gitMajor={major} {at}.gitMinor={minor}"
                ))
            }
            Self::Helm => {
                let version = required_version(go_mod, "helm.sh/helm/v3")?;
                Ok(format!(
                    "{strip} -X helm.sh/helm/v3/internal/version.version={version}"
                ))
            }
            Self::CoreDns | Self::GoResolve => Ok(strip.to_owned()),
        }
    }

    /// Builds it unless its sources are those that it was last built from.
    pub fn build(self, layout: &Layout) -> Result<()> {
        let name = self.name();
        let source = layout.tests().join("components").join(name);
        let output = layout.tool(name);
        let stamp = layout.cache().join(format!("{name}.stamp"));
        let go_mod = fs::read_to_string(source.join("go.mod"))
            .with_context(|| format!("read go.mod of {name}"))?;
        let flags = self.linker_flags(&go_mod)?;
        let hash = hash(&source, &flags)?;
        if output.exists() && fs::read_to_string(&stamp).is_ok_and(|built| built == hash) {
            return Ok(());
        }
        step(format_args!(
            "Building {name} from its Go modules (minutes when cold)"
        ));
        let begin = Instant::now();
        fs::create_dir_all(layout.tools())?;
        let build = Cmd::new("go")
            .args([
                "build",
                "-trimpath",
                "-mod=readonly",
                "-ldflags",
                &flags,
                "-o",
            ])
            .arg(&output)
            .arg(self.package())
            .env("CGO_ENABLED", "0")
            .dir(&source)
            .deadline(Duration::from_secs(30 * 60));
        long(&format!("go build of {name}"), || build.ok())
            .with_context(|| format!("build {name}; it needs Go (https://go.dev/dl)"))?;
        if self == Self::Kubernetes {
            for alias in KUBERNETES_NAMES {
                let link = layout.tool(alias);
                if !link.exists() {
                    symlink(name, &link).with_context(|| format!("link {}", link.display()))?;
                }
            }
        }
        fs::write(&stamp, hash)?;
        step(format_args!(
            "Built {name} in {} s",
            begin.elapsed().as_secs()
        ));
        Ok(())
    }
}

/// The version of a module that go.mod requires.
fn required_version(go_mod: &str, module: &str) -> Result<String> {
    let words = go_mod
        .lines()
        .map(|line| line.trim().trim_start_matches("require "));
    let mut versions = words.filter_map(|line| line.strip_prefix(module)?.strip_prefix(' '));
    let version = versions.next().and_then(|rest| rest.split(' ').next());
    Ok(version
        .with_context(|| format!("go.mod does not require {module}"))?
        .to_owned())
}

fn hash(source: &Path, flags: &str) -> Result<String> {
    let mut hasher = DefaultHasher::new();
    flags.hash(&mut hasher);
    for file in ["go.mod", "go.sum", "main.go"] {
        fs::read(source.join(file))
            .unwrap_or_default()
            .hash(&mut hasher);
    }
    Ok(format!("{:016x}", hasher.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_read_from_go_mod() {
        let go_mod = "module m\n\nrequire (\n\tk8s.io/kubernetes v1.2.3 // indirect\n)\n";
        assert_eq!(
            required_version(go_mod, "k8s.io/kubernetes").unwrap(),
            "v1.2.3"
        );
        assert!(required_version(go_mod, "k8s.io/kube").is_err());
    }
}
