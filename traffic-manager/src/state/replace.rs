//! What keeps a container from being stopped without its pod being restarted.

use std::collections::BTreeSet;

use kvpn_proto::crd::OnFailure;
use kvpn_proto::flow::Protocol;

use super::PodView;
use super::engagements::EngagementView;

/// Why a pod's container cannot be replaced, for people.
pub(super) fn obstacle(view: &EngagementView, pod: &PodView) -> Option<String> {
    let spec = &view.spec;
    let name = &pod.key.name;
    if spec.http.is_some() {
        return Some("a replace takes all requests, and has no filter".to_owned());
    }
    if spec.on_failure == Some(OnFailure::Unavailable) {
        return Some("a replaced app goes on when its laptop is gone, and answers".to_owned());
    }
    let Some(container) = &spec.container else {
        return Some("a replace names the container to stop, and this one does not".to_owned());
    };
    if pod.shares_processes {
        return Some(format!(
            "pod {name} shares one process namespace among its containers, so that none of \
             them can be stopped alone"
        ));
    }
    let Some(probes) = pod.probes.get(container) else {
        return Some(format!("pod {name} has no container {container}"));
    };
    if probes.others {
        return Some(format!(
            "the kubelet probes container {container} by a command or gRPC, TLS or under \
             another name, and would restart it while it is stopped"
        ));
    }
    let engaged = spec.ports.iter();
    let engaged = engaged.filter(|port| port.protocol == Protocol::Tcp);
    let engaged: BTreeSet<u16> = engaged.map(|port| port.container_port).collect();
    probes.ports.difference(&engaged).next().map(|port| {
        format!(
            "the kubelet probes port {port} of container {container}, and would restart it \
             while it is stopped; engage that port too, such as with --port {port}:{port}"
        )
    })
}

#[cfg(test)]
mod tests {
    use kvpn_proto::crd::Verb;

    use super::super::pods::Probes;
    use super::*;
    use crate::state::testing::{engagement, pod};

    fn obstacle_of(change: impl FnOnce(&mut EngagementView, &mut PodView)) -> Option<String> {
        let mut view = engagement("web", "alice", 8080, 0);
        view.spec.verb = Verb::Replace;
        view.spec.container = Some("web".into());
        let mut pod = pod("shop", "web-1", "10.1.0.7");
        let probes = Probes {
            ports: BTreeSet::from([8080]),
            ..Probes::default()
        };
        pod.probes.insert("web".into(), probes);
        change(&mut view, &mut pod);
        obstacle(&view, &pod)
    }

    #[test]
    fn container_whose_probes_are_of_engaged_ports_can_be_replaced() {
        assert_eq!(obstacle_of(|_, _| {}), None);
    }

    #[test]
    fn what_would_have_the_kubelet_restart_it_or_stop_others_is_told() {
        let told = |change: fn(&mut EngagementView, &mut PodView)| obstacle_of(change).unwrap();
        let probed = told(|_, pod| {
            pod.probes.get_mut("web").unwrap().ports.insert(9000);
        });
        assert!(probed.contains("--port 9000:9000"), "{probed}");
        let command = told(|_, pod| pod.probes.get_mut("web").unwrap().others = true);
        assert!(command.contains("by a command or gRPC"), "{command}");
        assert!(told(|_, pod| pod.shares_processes = true).contains("process namespace"));
        assert!(told(|_, pod| pod.probes.clear()).contains("no container web"));
        assert!(told(|view, _| view.spec.container = None).contains("names the container"));
        let closed = told(|view, _| view.spec.on_failure = Some(OnFailure::Unavailable));
        assert!(closed.contains("goes on when its laptop is gone"));
    }
}
