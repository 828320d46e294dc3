//! Watches of the API server.

use std::fmt::Debug;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::api::ListParams;
use kube::runtime::utils::Backoff;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use kvpn_proto::crd::{Engagement, Session};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::cluster::{Cluster, Fact, FactChange, Names, Source};
use crate::hub::Hub;
use crate::state::{Change, Event, Key, PodView};

/// The first and the longest pause after a watch has failed.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How long one watch lasts, in seconds. Not much longer than this goes unseen
/// that the way to the API server has become a dead end.
const WATCH_SECONDS: u32 = 60;

/// How long the API server may take for one request.
const REQUEST: Duration = Duration::from_secs(10);

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
        let names = Arc::clone(&self.names);
        let service = |service: &Service| Some(service.name_any());
        let services = self.api::<Service>(scope);
        let all = watcher::Config::default();
        tasks.spawn(follow_names(services, all, names, service));

        let names = Arc::clone(&self.names);
        let service = |slice: &EndpointSlice| slice.labels().get(SERVICE_LABEL).cloned();
        let slices = self.api::<EndpointSlice>(scope);
        let headless = watcher::Config::default().labels(HEADLESS_LABEL);
        tasks.spawn(async move {
            if is_readable(&slices).await {
                follow_names(slices, headless, names, service).await;
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

/// Tells of each change which Service's names it concerns, for ever.
async fn follow_names<K>(
    api: Api<K>,
    config: watcher::Config,
    names: Arc<Names>,
    service: impl Fn(&K) -> Option<String> + Send,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    K::DynamicType: Default,
{
    let emit = move |change: Change<K>| match change {
        // What has changed before a list is not in it.
        Change::Listed { .. } => names.change_all(),
        Change::Applied(object) | Change::Deleted(object) => {
            if let Some(service) = service(&object) {
                names.change(Key::new(object.namespace().unwrap_or_default(), service));
            }
        }
    };
    follow_as(api, config, None, emit, || {}).await;
}

/// Passes a watch's events on, for ever. `listed` is called after the first
/// list.
async fn follow<K>(
    api: Api<K>,
    namespace: Option<String>,
    emit: impl FnMut(Change<K>) + Send,
    listed: impl FnMut() + Send,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    K::DynamicType: Default,
{
    follow_as(api, watcher::Config::default(), namespace, emit, listed).await;
}

/// As `follow`, of the objects that `config` selects.
async fn follow_as<K>(
    api: Api<K>,
    config: watcher::Config,
    namespace: Option<String>,
    mut emit: impl FnMut(Change<K>) + Send,
    mut listed: impl FnMut() + Send,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    K::DynamicType: Default,
{
    let kind = K::kind(&K::DynamicType::default()).into_owned();
    let config = config.timeout(WATCH_SECONDS);
    let mut events = pin!(watcher(api, config).backoff(Pauses::default()));
    let mut items = Vec::new();
    let mut first = true;
    let mut last_error = String::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Init) => items.clear(),
            Ok(watcher::Event::InitApply(object)) => items.push(object),
            Ok(watcher::Event::InitDone) => {
                emit(Change::Listed {
                    namespace: namespace.clone(),
                    items: std::mem::take(&mut items),
                });
                if std::mem::take(&mut first) {
                    listed();
                }
                last_error.clear();
            }
            Ok(watcher::Event::Apply(object)) => emit(Change::Applied(object)),
            Ok(watcher::Event::Delete(object)) => emit(Change::Deleted(object)),
            Err(error) => {
                let error = error.to_string();
                if error == last_error {
                    debug!(kind, error, "watch failed again");
                } else {
                    warn!(kind, error, "watch failed");
                    last_error = error;
                }
            }
        }
    }
}

/// Whether a kind exists and may be read. Waits while that cannot be told.
async fn is_readable<K>(api: &Api<K>) -> bool
where
    K: Resource + Clone + DeserializeOwned + Debug,
    K::DynamicType: Default,
{
    let kind = K::kind(&K::DynamicType::default()).into_owned();
    let one = ListParams::default().limit(1);
    let mut pauses = Pauses::default();
    loop {
        match timeout(REQUEST, api.list(&one)).await {
            Ok(Ok(_)) => return true,
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 403 | 404) => {
                warn!(kind, message = status.message, "going on without this kind");
                return false;
            }
            Ok(Err(error)) => debug!(kind, %error, "cannot be listed yet"),
            Err(_) => debug!(kind, "the API server did not answer in time"),
        }
        tokio::time::sleep(pauses.step()).await;
    }
}

/// Pauses that double.
struct Pauses(Duration);

impl Default for Pauses {
    fn default() -> Self {
        Self(PAUSE.0)
    }
}

impl Pauses {
    fn step(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).min(PAUSE.1);
        pause
    }
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(self.step())
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        *self = Self::default();
    }
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

    #[test]
    fn pauses_double_up_to_their_limit_and_start_over() {
        let mut pauses = Pauses::default();
        let seen: Vec<u128> = (&mut pauses)
            .take(8)
            .map(|pause| pause.as_millis())
            .collect();
        assert_eq!(seen, [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000]);
        pauses.reset();
        assert_eq!(pauses.next(), Some(PAUSE.0));
    }
}
