//! The container of a workload's pods that is replaced or read, or whose ports are meant.

use k8s_openapi::api::core::v1::{Container, ContainerPort};
use kvpn_proto::crd::WorkloadRef;
use kvpn_proto::flow::Carried;
use kvpn_proto::names::AGENT_CONTAINER_PREFIX;
use kvpn_proto::{Failure, Reason};

use super::{Inventory, ResolvedPort, Workload, is_running, no_running_pod};

/// Annotation of a pod with the container that is meant where none is named, as for kubectl
/// (<https://kubernetes.io/docs/reference/labels-annotations-taints/#kubectl-kubernetes-io-default-container>).
const DEFAULT: &str = "kubectl.kubernetes.io/default-container";

/// The container of that name, or without a name the one that has the ports; without ports
/// the one that the pod says.
pub(crate) fn container(
    inventory: &Inventory,
    workload: &WorkloadRef,
    ports: &[ResolvedPort],
    wanted: &str,
) -> Result<String, Failure> {
    let mut pods = inventory.pods_of(workload);
    let pod = pods.find(|pod| is_running(pod));
    let spec = pod
        .and_then(|pod| pod.spec.as_ref())
        .ok_or_else(|| no_running_pod(&inventory.namespace, workload))?;
    let all = spec.containers.as_slice();
    let usage = |message: String| choose(message, all.iter().map(|it| it.name.as_str()));
    if !wanted.is_empty() {
        let is_there = all.iter().any(|it| it.name == wanted);
        return is_there
            .then(|| wanted.to_owned())
            .ok_or_else(|| usage(format!("{workload} has no container {wanted}")));
    }
    let with_ports: Vec<&Container> = all.iter().filter(|it| declares(it, ports)).collect();
    let annotations = pod.and_then(|pod| pod.metadata.annotations.as_ref());
    let default = annotations.and_then(|annotations| annotations.get(DEFAULT));
    let default = default.filter(|name| ports.is_empty() && all.iter().any(|it| it.name == **name));
    if let Some(default) = default {
        return Ok(default.clone());
    }
    match (with_ports.as_slice(), all) {
        ([only], _) => Ok(only.name.clone()),
        ([], [only]) => Ok(only.name.clone()),
        _ => Err(usage(format!(
            "which container of {workload} is meant is not clear"
        ))),
    }
}

impl Workload {
    /// The same with the ports of one container, and without those of the others.
    pub(crate) fn in_container(&self, name: &str) -> Result<Self, Failure> {
        let mut narrowed = self.clone();
        // An agent that the pod was born with is none of the app's containers.
        narrowed
            .containers
            .retain(|it| !it.name.starts_with(AGENT_CONTAINER_PREFIX));
        let names: Vec<String> = narrowed
            .containers
            .iter()
            .map(|it| it.name.clone())
            .collect();
        narrowed.containers.retain(|it| it.name == name);
        if narrowed.containers.is_empty() {
            let message = format!("{} has no container {name}", self.reference);
            return Err(choose(message, names.iter().map(String::as_str)));
        }
        let own: Vec<_> = narrowed.ports().map(number_and_protocol).collect();
        let others = self.ports().map(number_and_protocol);
        narrowed.hidden_ports = others.filter(|port| !own.contains(port)).collect();
        Ok(narrowed)
    }

    /// Whether a port is that of a container which is not meant.
    pub(super) fn hides(&self, number: u16, protocol: &str) -> bool {
        let mut hidden = self.hidden_ports.iter();
        hidden.any(|it| it.0 == i32::from(number) && it.1 == protocol)
    }
}

fn number_and_protocol(port: &ContainerPort) -> (i32, String) {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    (port.container_port, protocol.to_owned())
}

fn choose<'a>(message: String, names: impl Iterator<Item = &'a str>) -> Failure {
    let names: Vec<&str> = names.collect();
    let next_step = format!("name one with --container: {}", names.join(", "));
    Failure::new(Reason::Usage, message, next_step)
}

fn declares(container: &Container, ports: &[ResolvedPort]) -> bool {
    let mut declared = container.ports.iter().flatten();
    declared.any(|declared| {
        let mut ports = ports.iter();
        let (number, protocol) = number_and_protocol(declared);
        ports.any(|port| {
            i32::from(port.container_port) == number
                && Carried::from(port.protocol).as_str() == protocol
        })
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use kvpn_proto::crd::WorkloadKind;
    use kvpn_proto::flow::Protocol;

    use super::*;

    fn replaced(containers: &str, wanted: &str) -> Result<String, String> {
        let port = ResolvedPort {
            local: "127.0.0.1:8080".parse().unwrap(),
            container_port: 8080,
            protocol: Protocol::Tcp,
            service: None,
            spoken: None,
        };
        meant(containers, &[port], wanted)
    }

    /// Of a pod whose default container is `web`.
    fn meant(containers: &str, ports: &[ResolvedPort], wanted: &str) -> Result<String, String> {
        let pod: Pod = serde_yaml::from_str(&format!(
            "{{metadata: {{name: web, annotations: {{{DEFAULT}: web}}}},
               spec: {{containers: {containers}}}, status: {{phase: Running}}}}"
        ))
        .unwrap();
        let inventory = Inventory {
            namespace: "shop".into(),
            pods: vec![pod],
            ..Inventory::default()
        };
        let workload = WorkloadRef {
            kind: WorkloadKind::Pod,
            name: "web".into(),
        };
        container(&inventory, &workload, ports, wanted).map_err(|failure| failure.next_step)
    }

    #[test]
    fn container_with_the_port_is_replaced_or_the_only_one() {
        let two = "[{name: proxy}, {name: web, ports: [{containerPort: 8080}]}]";
        assert_eq!(replaced(two, ""), Ok("web".into()));
        let by_protocol = "[{name: dns, ports: [{containerPort: 8080, protocol: UDP}]}, \
                           {name: web, ports: [{containerPort: 8080}]}]";
        assert_eq!(replaced(by_protocol, ""), Ok("web".into()));
        assert_eq!(replaced(two, "proxy"), Ok("proxy".into()));
        assert_eq!(replaced("[{name: web}]", ""), Ok("web".into()));
    }

    #[test]
    fn pod_says_which_container_is_meant_where_no_port_does() {
        let several = "[{name: proxy}, {name: web}]";
        assert_eq!(meant(several, &[], ""), Ok("web".into()));
        assert_eq!(meant(several, &[], "proxy"), Ok("proxy".into()));
        assert_eq!(meant("[{name: proxy}]", &[], ""), Ok("proxy".into()));
        assert!(meant("[{name: a}, {name: b}]", &[], "").is_err());
    }

    #[test]
    fn doubt_is_told_with_the_names() {
        for (containers, wanted) in [("[{name: a}, {name: b}]", ""), ("[{name: a}]", "c")] {
            let error = replaced(containers, wanted).unwrap_err();
            assert!(error.contains("--container: a"), "{error}");
        }
    }
}
