//! Watches of the API server.

mod follow;

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::join_all;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt};
use kvpn_proto::crd::{Engagement, Session};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;

use crate::cluster::{Cluster, Fact, FactChange, Names, Source};
use crate::hub::Hub;
use crate::state::{Change, Event, Key, PodView};
use follow::{follow, follow_as, is_readable};

/// Labels of EndpointSlices: whose they are, and that it is a headless Service
/// (<https://kubernetes.io/docs/reference/labels-annotations-taints/>).
const SERVICE_LABEL: &str = "kubernetes.io/service-name";
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// What is watched, and who hears of it.
#[derive(Clone)]
pub(crate) struct Watches {
    pub(crate) client: Client,
    /// The traffic manager's namespace.
    pub(crate) namespace: String,
    /// The namespaces that are managed; all when empty.
    pub(crate) managed: Vec<String>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) names: Arc<Names>,
}

/// Starts all watches; they run as long as the process, but for those that it
/// can do without.
pub(crate) fn spawn_watches(watches: &Watches) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let scopes: Vec<Option<String>> = if watches.managed.is_empty() {
        vec![None]
    } else {
        watches.managed.iter().cloned().map(Some).collect()
    };
    // Sessions, and engagements and pods of each scope.
    let unlisted = Arc::new(AtomicUsize::new(1 + 2 * scopes.len()));
    let listed = |watches: &Watches| {
        let (hub, unlisted) = (Arc::clone(&watches.hub), Arc::clone(&unlisted));
        move || {
            if unlisted.fetch_sub(1, Ordering::Relaxed) == 1 {
                hub.handle(Event::Synced);
            }
        }
    };
    watches.spawn_sessions(&mut tasks, listed(watches));
    for scope in &scopes {
        watches.spawn_engagements(&mut tasks, scope.clone(), listed(watches));
        watches.spawn_pods(&mut tasks, scope.clone(), listed(watches));
        watches.spawn_names(&mut tasks, scope);
    }
    watches.spawn_nodes(&mut tasks);
    watches.spawn_namespaces(&mut tasks);
    tasks.spawn(watches.clone().watch_service_subnets(scopes));
    tasks
}

impl Watches {
    fn spawn_sessions(&self, tasks: &mut JoinSet<()>, listed: impl FnMut() + Send + 'static) {
        let scope = Some(self.namespace.clone());
        let hub = Arc::clone(&self.hub);
        let emit = move |change: Change<Session>| {
            hub.handle(Event::Sessions(change.map(|session| (&session).into())));
        };
        tasks.spawn(follow(self.api(&scope), scope, emit, listed));
    }

    fn spawn_engagements(
        &self,
        tasks: &mut JoinSet<()>,
        scope: Option<String>,
        listed: impl FnMut() + Send + 'static,
    ) {
        let hub = Arc::clone(&self.hub);
        let emit = move |change: Change<Engagement>| {
            hub.handle(Event::Engagements(
                change.map(|engagement| (&engagement).into()),
            ));
        };
        tasks.spawn(follow(self.api(&scope), scope, emit, listed));
    }

    fn spawn_pods(
        &self,
        tasks: &mut JoinSet<()>,
        scope: Option<String>,
        listed: impl FnMut() + Send + 'static,
    ) {
        let (hub, cluster) = (Arc::clone(&self.hub), Arc::clone(&self.cluster));
        let emit = move |change: Change<Pod>| {
            let change = change.map(|pod| PodView::from(&pod));
            let ips = change.clone().map(|pod| Fact {
                value: pod.own_ips().to_vec(),
                key: pod.key,
                uid: pod.uid,
            });
            cluster.handle(FactChange::PodIps(ips));
            hub.handle(Event::Pods(change));
        };
        tasks.spawn(follow(self.api(&scope), scope, emit, listed));
    }

    fn spawn_nodes(&self, tasks: &mut JoinSet<()>) {
        let subnets = |node: Node| {
            let spec = node.spec.clone().unwrap_or_default();
            let cidrs = spec.pod_cidrs.or(spec.pod_cidr.map(|cidr| vec![cidr]));
            fact(&node, parse_all(cidrs.as_deref()))
        };
        let emit = move |cluster: &Cluster, change: Change<Node>| {
            cluster.handle(FactChange::NodeSubnets(change.map(subnets)));
        };
        let api = Api::all(self.client.clone());
        tasks.spawn(self.clone().follow_optional(Source::Nodes, api, emit));
    }

    fn spawn_namespaces(&self, tasks: &mut JoinSet<()>) {
        let emit = |cluster: &Cluster, change: Change<Namespace>| {
            let change = change.map(|namespace| fact(&namespace, ()));
            cluster.handle(FactChange::Namespaces(change));
        };
        let api = Api::all(self.client.clone());
        tasks.spawn(self.clone().follow_optional(Source::Namespaces, api, emit));
    }

    /// Watches what Services' names depend on: the Services, and which pods are
    /// behind those that have no address of their own.
    fn spawn_names(&self, tasks: &mut JoinSet<()>, scope: &Option<String>) {
        let (cluster, names) = (Arc::clone(&self.cluster), Arc::clone(&self.names));
        let emit = move |change: Change<Service>| {
            tell(&names, &change, |service| Some(service.name_any()));
            let headless = change.map(|service| fact(&service, is_headless(&service)));
            cluster.handle(FactChange::Headless(headless));
        };
        tasks.spawn(follow(self.api(scope), scope.clone(), emit, || {}));

        let names = Arc::clone(&self.names);
        let emit = move |change: Change<EndpointSlice>| {
            tell(&names, &change, |slice| {
                slice.labels().get(SERVICE_LABEL).cloned()
            });
        };
        let slices = self.api::<EndpointSlice>(scope);
        let headless = watcher::Config::default().labels(HEADLESS_LABEL);
        tasks.spawn(async move {
            if is_readable(&slices).await {
                follow_as(slices, headless, None, emit, || {}).await;
            }
        });
    }

    /// Watches what the cluster says of its service subnets; where it says
    /// nothing, the addresses of the Services.
    async fn watch_service_subnets(self, scopes: Vec<Option<String>>) {
        let api: Api<ServiceCIDR> = Api::all(self.client.clone());
        if is_readable(&api).await {
            let emit = |cluster: &Cluster, change: Change<ServiceCIDR>| {
                let change = change.map(|cidr| {
                    let cidrs = cidr.spec.as_ref().and_then(|spec| spec.cidrs.as_deref());
                    fact(&cidr, parse_all(cidrs))
                });
                cluster.handle(FactChange::ServiceSubnets(change));
            };
            return self.follow_optional(Source::Services, api, emit).await;
        }
        let follows = scopes.into_iter().map(|scope| {
            let cluster = Arc::clone(&self.cluster);
            let emit = move |change: Change<Service>| {
                let change = change.map(|service| {
                    let ips = service
                        .spec
                        .as_ref()
                        .and_then(|spec| spec.cluster_ips.as_deref());
                    fact(&service, parse_all(ips))
                });
                cluster.handle(FactChange::ServiceIps(change));
            };
            follow(self.api(&scope), scope, emit, || {})
        });
        join_all(follows).await;
    }

    /// Watches a kind that the traffic manager can do without.
    async fn follow_optional<K>(
        self,
        source: Source,
        api: Api<K>,
        emit: impl Fn(&Cluster, Change<K>) + Send + 'static,
    ) where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
        K::DynamicType: Default,
    {
        let cluster = self.cluster;
        if !is_readable(&api).await {
            cluster.give_up(source);
            return;
        }
        follow(api, None, move |change| emit(&cluster, change), || {}).await;
    }

    fn api<K>(&self, scope: &Option<String>) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        match scope {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        }
    }
}

/// Tells which Service's names a change concerns.
fn tell<K: Resource>(names: &Names, change: &Change<K>, service: impl Fn(&K) -> Option<String>) {
    match change {
        // What has changed before a list is not in it.
        Change::Listed { .. } => names.change_all(),
        Change::Applied(object) | Change::Deleted(object) => {
            if let Some(service) = service(object) {
                names.change(Key::new(object.namespace().unwrap_or_default(), service));
            }
        }
    }
}

fn is_headless(service: &Service) -> bool {
    let address = service
        .spec
        .as_ref()
        .and_then(|it| it.cluster_ip.as_deref());
    address == Some("None")
}

fn fact<V>(object: &impl ResourceExt, value: V) -> Fact<V> {
    Fact {
        key: Key::new(object.namespace().unwrap_or_default(), object.name_any()),
        uid: object.uid().unwrap_or_default(),
        value,
    }
}

/// Reads what can be read; `None` among a Service's addresses for example
/// cannot.
fn parse_all<T: std::str::FromStr>(texts: Option<&[String]>) -> Vec<T> {
    texts
        .into_iter()
        .flatten()
        .filter_map(|text| text.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use ipnet::IpNet;

    use super::*;

    #[test]
    fn headless_services_and_malformed_subnets_are_passed_over() {
        let texts = ["None".to_owned(), "10.96.0.1".to_owned()];
        let ips: Vec<IpAddr> = parse_all(Some(&texts));
        assert_eq!(ips, ["10.96.0.1".parse::<IpAddr>().unwrap()]);
        let nets: Vec<IpNet> = parse_all(Some(&["10.96.0.0/99".to_owned()]));
        assert!(nets.is_empty());
        assert!(parse_all::<IpAddr>(None).is_empty());
    }
}
