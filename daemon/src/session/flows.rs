//! The flows as the command line hears of them.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::{Instant, UNIX_EPOCH};

use kvpn_proto::v1;

use super::cluster_info::ClusterInfo;
use super::directory::{Directory, Object, short_name};
use super::manager::Manager;
use super::vnat::Vnat;
use crate::datapath::registry::{Engaged, FlowRegistry, FlowState, FlowTotals, FlowView};
use crate::dns::AskedNames;

/// The flows, and who knows the names of their ends.
pub(crate) struct Flows {
    registry: FlowRegistry,
    names: AskedNames,
    directory: Directory,
    manager: Manager,
    vnat: Vnat,
}

impl Flows {
    pub(crate) fn new(
        registry: FlowRegistry,
        names: AskedNames,
        manager: Manager,
        vnat: Vnat,
    ) -> Self {
        Self {
            vnat,
            registry,
            names,
            directory: Directory::new(manager.clone()),
            manager,
        }
    }

    pub(crate) fn totals(&self) -> FlowTotals {
        self.registry.totals()
    }

    /// What addresses of the cluster belong to.
    pub(crate) async fn describe(&self, addresses: BTreeSet<IpAddr>) -> HashMap<IpAddr, Object> {
        self.directory.describe(addresses).await
    }

    /// Looks at the flows and finds out what they go to.
    pub(crate) async fn look(&self, request: &v1::FlowsRequest) -> v1::FlowsResponse {
        let views = self.registry.look(request.ended, Instant::now());
        let addresses: BTreeSet<IpAddr> = views
            .iter()
            .filter(|view| view.about.engaged.is_none())
            .map(|view| self.vnat.real(view.about.cluster.ip()))
            .collect();
        let objects = self.describe(addresses).await;
        let info = self.manager.cluster().borrow().clone();
        let message = |view| self.message(view, &objects, &info);
        v1::FlowsResponse {
            flows: views.into_iter().map(message).collect(),
        }
    }

    fn message(
        &self,
        view: FlowView,
        objects: &HashMap<IpAddr, Object>,
        info: &ClusterInfo,
    ) -> v1::Flow {
        let about = view.about;
        let address = about.cluster.ip();
        let (state, reason) = state(view.state);
        let started_at = view.started_at.duration_since(UNIX_EPOCH);
        let mut message = v1::Flow {
            id: view.id,
            protocol: about.protocol.as_str().to_owned(),
            host: end(about.host),
            cluster: end(about.cluster),
            state: state.into(),
            reason: reason.to_owned(),
            bytes_sent: view.bytes_sent,
            bytes_received: view.bytes_received,
            rtt_microseconds: view
                .rtt
                .map_or(0, |rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
            started_at: i64::try_from(started_at.unwrap_or_default().as_millis())
                .unwrap_or(i64::MAX),
            ..v1::Flow::default()
        };
        let object = match about.engaged {
            Some(engaged) => {
                let Engaged {
                    namespace,
                    engagement,
                    pod,
                } = engaged;
                let direction = match pod {
                    Some(_) => v1::FlowDirection::ToLaptop,
                    None => v1::FlowDirection::ToCluster,
                };
                message.direction = direction.into();
                message.engagement = engagement;
                pod.map(|name| Object {
                    kind: "pod",
                    namespace,
                    name,
                })
            }
            None => {
                message.direction = v1::FlowDirection::ToCluster.into();
                let name = self.names.of(address).unwrap_or_default();
                short_name(&name, info).clone_into(&mut message.name);
                objects.get(&self.vnat.real(address)).cloned()
            }
        };
        if let Some(object) = object {
            message.kind = object.kind.to_owned();
            message.namespace = object.namespace;
            message.object = object.name;
        }
        message
    }
}

/// An end of a flow, without the port where there is none.
fn end(address: SocketAddr) -> String {
    match address.port() {
        0 => address.ip().to_string(),
        _ => address.to_string(),
    }
}

fn state(state: FlowState) -> (v1::FlowState, &'static str) {
    match state {
        FlowState::Dialling => (v1::FlowState::Dialling, ""),
        FlowState::Open => (v1::FlowState::Open, ""),
        FlowState::HalfClosed => (v1::FlowState::HalfClosed, ""),
        FlowState::Ended => (v1::FlowState::Ended, ""),
        FlowState::Failed(error) => (v1::FlowState::Failed, error.as_str()),
    }
}

#[cfg(test)]
mod tests {
    use kvpn_proto::flow::Carried;

    use super::*;
    use crate::datapath::registry::FlowAbout;

    #[tokio::test]
    async fn intercepted_connection_is_told_with_its_engagement_and_pod() {
        let registry = FlowRegistry::default();
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let about = FlowAbout {
            protocol: Carried::Tcp,
            host: address("127.0.0.1:8080"),
            cluster: address("10.244.0.9:4000"),
            engaged: Some(Engaged {
                namespace: "shop".into(),
                engagement: "web-x".into(),
                pod: Some("web-1".into()),
            }),
        };
        let _record = registry.begin(about.clone());
        let mut into_pod = about;
        into_pod.engaged.as_mut().unwrap().pod = None;
        let _into_pod = registry.begin(into_pod);
        let manager = Manager::down(ClusterInfo::default());
        let flows = Flows::new(registry, AskedNames::default(), manager, Vnat::default());
        let response = flows.look(&v1::FlowsRequest::default()).await;
        let flow = &response.flows[0];
        assert_eq!(flow.direction(), v1::FlowDirection::ToLaptop);
        assert_eq!(flow.state(), v1::FlowState::Dialling);
        assert_eq!(flow.engagement, "web-x");
        assert_eq!(
            [&flow.kind, &flow.namespace, &flow.object],
            ["pod", "shop", "web-1"]
        );
        assert_eq!(flow.cluster, "10.244.0.9:4000");
        let flow = &response.flows[1];
        assert_eq!(flow.direction(), v1::FlowDirection::ToCluster);
        assert_eq!((&*flow.engagement, &*flow.object), ("web-x", ""));
    }
}
