//! The agent's ephemeral container.

mod reader;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use k8s_openapi::api::core::v1::{
    Capabilities, EphemeralContainer, Pod, SeccompProfile, SecurityContext, VolumeMount,
};
use kvpn_proto::names::{AGENT_TOKEN_AUDIENCE, MANAGER_AGENT_PORT};
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Value, json};

pub(crate) use reader::security as reader_security;

/// Letters and digits that make no words, as Kubernetes uses them in names.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// Where a sidecar finds the token of its pod, and how long one is good, in seconds; the
/// kubelet makes another one before.
const TOKEN_VOLUME: &str = "kvpn-agent-token";
const TOKEN_DIR: &str = "/run/kvpn";
const TOKEN: &str = "token";
const TOKEN_SECONDS: u32 = 3_600;

/// What a sidecar asks for and may use, so that its pod stays of the class it is of
/// (<https://kubernetes.io/docs/concepts/workloads/pods/pod-qos/>).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Allowance {
    /// Some container of the pod has no limits.
    Open,
    /// All have limits, as a quota of the namespace may ask for.
    Limited,
    /// All have limits that they ask for from the start.
    Guaranteed,
}

impl Allowance {
    /// In cores and bytes.
    fn resources(self) -> Value {
        let requests = json!({"cpu": "10m", "memory": "16Mi"});
        match self {
            Self::Open => json!({"requests": requests}),
            Self::Limited => {
                json!({"requests": requests, "limits": {"cpu": "1", "memory": "256Mi"}})
            }
            Self::Guaranteed => {
                let both = json!({"cpu": "250m", "memory": "128Mi"});
                json!({"requests": both, "limits": both})
            }
        }
    }
}

/// The addresses of the traffic manager's Service; its pod's where there is
/// none.
#[derive(Clone, Debug)]
pub(crate) struct ManagerAddresses(pub(crate) Vec<IpAddr>);

impl ManagerAddresses {
    /// The one to call from a pod: of the pod's family, if there is one.
    fn for_pod(&self, pod: Option<IpAddr>) -> Option<IpAddr> {
        let same_family = pod.and_then(|pod| {
            self.0
                .iter()
                .find(|address| address.is_ipv4() == pod.is_ipv4())
        });
        same_family.or(self.0.first()).copied()
    }
}

/// What all agents have in common.
#[derive(Clone, Debug)]
pub(crate) struct AgentTemplate {
    pub(crate) image: String,
    pub(crate) pull_policy: String,
    /// The certificate authority, DER in base64.
    pub(crate) authority: String,
    pub(crate) manager: ManagerAddresses,
    /// How long an agent without claims stays.
    pub(crate) linger: Duration,
}

impl AgentTemplate {
    /// The agent's container for a pod with that first address.
    fn container(&self, name: &str, pod: Option<IpAddr>) -> EphemeralContainer {
        let manager = self.manager.for_pod(pod);
        let manager = manager.map(|ip| SocketAddr::new(ip, MANAGER_AGENT_PORT).to_string());
        let linger = format!("{}s", self.linger.as_secs());
        let args = [
            "--manager",
            &manager.unwrap_or_default(),
            "--ca",
            &self.authority,
            "--container",
            name,
            "--linger",
            &linger,
        ];
        EphemeralContainer {
            name: name.to_owned(),
            image: Some(self.image.clone()),
            image_pull_policy: Some(self.pull_policy.clone()),
            args: Some(args.map(str::to_owned).into()),
            security_context: Some(security_context("NET_ADMIN")),
            termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
            ..EphemeralContainer::default()
        }
    }

    /// The container that stops the processes of another one. It sees these alone.
    fn holder(&self, name: &str, target: &str) -> EphemeralContainer {
        let linger = format!("{}s", self.linger.as_secs());
        let args = ["hold", "--container", target, "--linger", &linger];
        EphemeralContainer {
            args: Some(args.map(str::to_owned).into()),
            target_container_name: Some(target.to_owned()),
            security_context: Some(security_context("SYS_PTRACE")),
            ..self.container(name, None)
        }
    }

    /// The container that reads what another one of the pod has. It sees the processes of
    /// that alone, and may do what that may.
    fn reader(
        &self,
        name: &str,
        target: &str,
        pod: &Pod,
        security: SecurityContext,
    ) -> EphemeralContainer {
        let ip = pod
            .status
            .as_ref()
            .and_then(|status| status.pod_ip.as_ref());
        let agent = self.container(name, ip.and_then(|ip| ip.parse().ok()));
        let args = agent.args.into_iter().flatten().chain(volumes(target, pod));
        EphemeralContainer {
            args: Some(std::iter::once("read".to_owned()).chain(args).collect()),
            target_container_name: Some(target.to_owned()),
            security_context: Some(security),
            ..agent
        }
    }

    /// The same as a sidecar of a pod that is not created yet
    /// (<https://kubernetes.io/docs/concepts/workloads/pods/sidecar-containers/>). The app
    /// starts once the agent has its claims in force, or has tried for long enough.
    pub(crate) fn sidecar(&self, name: &str, allowance: Allowance) -> Value {
        let EphemeralContainer {
            image,
            image_pull_policy,
            args,
            security_context,
            termination_message_policy,
            ..
        } = self.container(name, None);
        let mut args = args.unwrap_or_default();
        args.extend(["--token-file".to_owned(), format!("{TOKEN_DIR}/{TOKEN}")]);
        json!({
            "name": name,
            "image": image,
            "imagePullPolicy": image_pull_policy,
            "args": args,
            "restartPolicy": "Always",
            "lifecycle": {"postStart": {"exec": {"command": ["/sidecar-agent", "await-settled"]}}},
            "resources": allowance.resources(),
            "securityContext": security_context,
            "terminationMessagePolicy": termination_message_policy,
            "volumeMounts": [{"name": TOKEN_VOLUME, "mountPath": TOKEN_DIR, "readOnly": true}],
        })
    }

    /// The volume that such a sidecar has its token from.
    pub(crate) fn token_volume() -> Value {
        let token = json!({
            "serviceAccountToken": {
                "audience": AGENT_TOKEN_AUDIENCE,
                "expirationSeconds": TOKEN_SECONDS,
                "path": TOKEN,
            }
        });
        // Readable by root, which the agent is, whatever group the pod's volumes are of.
        json!({"name": TOKEN_VOLUME, "projected": {"defaultMode": 0o400, "sources": [token]}})
    }

    /// The strategic merge patch that adds the agent to a pod, and to no other
    /// pod of the same name.
    pub(crate) fn patch(&self, name: &str, pod_uid: &str, pod: Option<IpAddr>) -> Value {
        json!({
            "metadata": { "uid": pod_uid },
            "spec": { "ephemeralContainers": [self.container(name, pod)] },
        })
    }

    /// The same for a container that stops another one.
    pub(crate) fn holder_patch(&self, name: &str, pod_uid: &str, target: &str) -> Value {
        json!({
            "metadata": { "uid": pod_uid },
            "spec": { "ephemeralContainers": [self.holder(name, target)] },
        })
    }

    /// The same for a container that reads another one, and runs as [`reader_security`] says.
    pub(crate) fn reader_patch(
        &self,
        name: &str,
        pod_uid: &str,
        target: &str,
        pod: &Pod,
        security: SecurityContext,
    ) -> Value {
        json!({
            "metadata": { "uid": pod_uid },
            "spec": { "ephemeralContainers": [self.reader(name, target, pod, security)] },
        })
    }
}

/// Where a container has volumes mounted, as a reader is told
/// (<https://kubernetes.io/docs/concepts/storage/volumes/>).
fn volumes(target: &str, pod: &Pod) -> Vec<String> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let own = containers.filter(|container| container.name == target);
    let mounts = own.flat_map(|container| container.volume_mounts.iter().flatten());
    let volume = |mount: &VolumeMount| {
        let suffix = match mount.read_only {
            Some(true) => ":ro",
            Some(false) | None => "",
        };
        format!("--volume={}{suffix}", mount.mount_path)
    };
    mounts.map(volume).collect()
}

/// Root without any capability but one.
fn security_context(capability: &str) -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities {
            add: Some(vec![capability.to_owned()]),
            drop: Some(vec!["ALL".to_owned()]),
        }),
        privileged: Some(false),
        read_only_root_filesystem: Some(true),
        run_as_user: Some(0),
        run_as_non_root: Some(false),
        seccomp_profile: Some(SeccompProfile {
            type_: "RuntimeDefault".to_owned(),
            localhost_profile: None,
        }),
        ..SecurityContext::default()
    }
}

/// A name with that start that no other container has. Fails when the system has no
/// randomness.
pub(crate) fn random_name(start: &str) -> Result<String, ring::error::Unspecified> {
    let mut random = [0; 5];
    SystemRandom::new().fill(&mut random)?;
    let letter = |octet: u8| char::from(ALPHABET[usize::from(octet) % ALPHABET.len()]);
    let suffix: String = random.into_iter().map(letter).collect();
    Ok(format!("{start}{suffix}"))
}

#[cfg(test)]
mod tests {
    use kvpn_proto::names::AGENT_CONTAINER_PREFIX;

    use super::*;

    fn template(manager: &[&str]) -> AgentTemplate {
        AgentTemplate {
            image: "registry.example/sidecar-agent:1".into(),
            pull_policy: "IfNotPresent".into(),
            authority: "QUJD".into(),
            manager: ManagerAddresses(manager.iter().map(|ip| ip.parse().unwrap()).collect()),
            linger: Duration::from_secs(600),
        }
    }

    #[test]
    fn the_patch_adds_an_agent_that_may_change_its_network_and_nothing_else() {
        let template = template(&["10.96.0.9", "fd00:96::9"]);
        let pod = "10.1.0.7".parse().ok();
        insta::assert_json_snapshot!(template.patch("kvpn-agent-bcdfg", "u-1", pod));
    }

    #[test]
    fn sidecar_has_a_token() {
        let template = template(&["10.96.0.9"]);
        insta::assert_json_snapshot!(template.sidecar("kvpn-agent-bcdfg", Allowance::Open));
        insta::assert_json_snapshot!(AgentTemplate::token_volume());
    }

    #[test]
    fn sidecar_may_use_what_leaves_its_pod_in_its_class() {
        let limited = Allowance::Limited.resources();
        assert_ne!(limited["limits"], limited["requests"]);
        let guaranteed = Allowance::Guaranteed.resources();
        assert_eq!(guaranteed["limits"], guaranteed["requests"]);
    }

    #[test]
    fn holder_sees_the_processes_of_one_container_and_may_trace_them() {
        let template = template(&["10.96.0.9"]);
        insta::assert_json_snapshot!(template.holder_patch("kvpn-holder-bcdfg", "u-1", "web"));
    }

    #[test]
    fn reader_runs_as_what_it_reads_and_calls_the_manager() {
        let template = template(&["10.96.0.9"]);
        let pod = reader::pod(
            "{securityContext: {runAsUser: 7, fsGroup: 9}, containers: [{name: beside}, {name: web,
              securityContext: {runAsUser: 1000, runAsGroup: 1001, runAsNonRoot: true,
                allowPrivilegeEscalation: false, capabilities: {drop: [ALL], add: [CHOWN]},
                seccompProfile: {type: Localhost, localhostProfile: mine.json}},
              volumeMounts: [{name: data, mountPath: /data},
                {name: config, mountPath: /etc/web, readOnly: true}]}]}",
        );
        let security = reader_security("web", &pod, None).unwrap();
        let patch = template.reader_patch("kvpn-reader-bcdfg", "u-1", "web", &pod, security);
        insta::assert_json_snapshot!(patch);
    }

    #[test]
    fn an_agent_calls_over_the_family_of_its_pod() {
        let manager = |addresses: &[&str], pod: &str| {
            let patch = template(addresses).patch("n", "u", pod.parse().ok());
            let argument = &patch["spec"]["ephemeralContainers"][0]["args"][1];
            argument.as_str().unwrap().to_owned()
        };
        let both = ["10.96.0.9", "fd00:96::9"];
        assert_eq!(manager(&both, "10.1.0.7"), "10.96.0.9:8444");
        assert_eq!(manager(&both, "fd00::7"), "[fd00:96::9]:8444");
        assert_eq!(manager(&both[..1], "fd00::7"), "10.96.0.9:8444");
        assert_eq!(manager(&both, "none"), "10.96.0.9:8444");
    }

    #[test]
    fn names_are_of_the_agreed_form() {
        let name = random_name(AGENT_CONTAINER_PREFIX).unwrap();
        let suffix = name.strip_prefix(AGENT_CONTAINER_PREFIX).unwrap();
        assert_eq!(suffix.len(), 5);
        assert!(
            suffix.bytes().all(|letter| ALPHABET.contains(&letter)),
            "{name}"
        );
    }
}
