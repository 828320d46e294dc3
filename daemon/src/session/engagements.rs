//! The engagements of this session: the table of what agents may have dialled
//! here, and the Engagement resources behind it.

mod deleted;
mod environment;
mod hold;
mod intercept;
mod mount;
mod outcome;
mod roll_out;
mod table;
mod tls;
mod to_pod;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::wait::{await_condition, conditions};
use kube::runtime::watcher::watch_object;
use kvpn_proto::crd::{EngagedPort, Engagement, EngagementSpec, OnFailure, Verb};
use kvpn_proto::flow::Protocol;
use kvpn_proto::{Failure, Reason, names, v1};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};

use deleted::Deleted;
pub(crate) use intercept::Intercept;
pub(crate) use mount::Mount;
use mount::{Mounted, Origin};
use outcome::Observed;
use table::{Entry, Key, Table};
pub(crate) use tls::Source as TlsSource;
pub(crate) use to_pod::ToPod;
use to_pod::{Doors, Way};

use super::cluster::Cluster;
use super::identity::{self, OwnSession};
use super::manager::Manager;
use super::workloads::Spoken;
use crate::datapath::registry::FlowRegistry;
use crate::lease::mounter::Mounter;

/// Label that leads from an Engagement to its Session.
const SESSION_LABEL: &str = "kvpn.dev/session";

/// How long an Engagement may take to disappear once it is deleted.
const GONE_DEADLINE: Duration = Duration::from_secs(3);

/// How long the traffic manager may take to tell who has deleted one.
const TELL_DEADLINE: Duration = Duration::from_secs(2);

/// Where connections to engaged ports are handled; clones share it.
#[derive(Clone, Default)]
pub(crate) struct Handlers(Arc<Table>);

impl Handlers {
    /// Where connections to a port of an engagement are handled. Nothing else
    /// is ever dialled for the cluster.
    pub(crate) fn local(
        &self,
        namespace: &str,
        name: &str,
        container_port: u16,
        protocol: Protocol,
    ) -> Option<SocketAddr> {
        let key = Key::new(namespace, name);
        self.0.local(&key, container_port, protocol)
    }

    /// Resolves once an engagement is over.
    pub(crate) fn over(&self, namespace: &str, name: &str) -> impl Future<Output = ()> + use<> {
        let observed = self.0.observed(&Key::new(namespace, name));
        async move {
            // The sender goes with the engagement.
            if let Some(mut observed) = observed {
                while observed.changed().await.is_ok() {}
            }
        }
    }
}

/// The engagements of this session; clones share them.
#[derive(Clone)]
pub(crate) struct Engagements {
    cluster: Cluster,
    manager: Manager,
    user: String,
    session: String,
    table: Arc<Table>,
    deleted: Arc<Deleted>,
    registry: FlowRegistry,
    mounter: Mounter,
    /// Where files are mounted that their user wants nowhere in particular.
    directory: PathBuf,
}

impl Engagements {
    /// The handlers are those of its engagements from now on.
    pub(crate) fn new(
        cluster: Cluster,
        manager: Manager,
        user: String,
        session: &OwnSession,
        handlers: Handlers,
        registry: FlowRegistry,
        (mounter, directory): (Mounter, PathBuf),
    ) -> Self {
        Self {
            cluster,
            manager,
            user,
            session: session.name.clone(),
            table: handlers.0,
            deleted: Arc::default(),
            registry,
            mounter,
            directory,
        }
    }

    /// Mounts the files of an engagement that is there.
    async fn mount(&self, key: &Key, wanted: &Mount) -> Result<(), Failure> {
        let origin = Origin {
            manager: self.manager.clone(),
            engagement: key.clone(),
            engagement_uid: self.table.uid(key).ok_or_else(|| left(key))?,
        };
        let mounter = self.mounter.clone();
        let mounted = Mounted::start(wanted, origin, mounter, &self.directory).await?;
        if let Err(mounted) = self.table.keep_mounted(key, mounted) {
            // It was left meanwhile.
            mounted.end().await;
        }
        Ok(())
    }

    pub(crate) fn statuses(&self) -> Vec<v1::EngagementStatus> {
        self.table.statuses()
    }

    /// Those that were deleted from the cluster's side of late.
    pub(crate) fn deleted(&self) -> Vec<v1::DeletedEngagement> {
        self.deleted.of_late(Instant::now())
    }

    /// The Engagements of everyone in a namespace.
    pub(crate) async fn of_everyone(&self, namespace: &str) -> Result<Vec<Engagement>, Failure> {
        let api = self.api(namespace);
        Ok(self
            .cluster
            .call(api.list(&ListParams::default()))
            .await?
            .items)
    }

    /// The name of the one engagement that `target` means.
    pub(crate) fn only(&self, namespace: &str, target: &str) -> Result<String, Failure> {
        let mut meant = self.table.meant(namespace, target)?;
        meant.sort();
        match meant.as_slice() {
            [only] => Ok(only.name.clone()),
            several => {
                let names: Vec<&str> = several.iter().map(|key| key.name.as_str()).collect();
                Err(Failure::new(
                    Reason::Usage,
                    format!("{target} is engaged several times: {}", names.join(", ")),
                    "name one of these instead",
                ))
            }
        }
    }

    /// Ends the engagements that `target` means, or all of them.
    pub(crate) async fn leave(
        &self,
        namespace: &str,
        target: Option<&str>,
    ) -> Result<Vec<v1::EngagementStatus>, Failure> {
        let keys = match target {
            Some(target) => self.table.meant(namespace, target)?,
            None => self.table.keys(),
        };
        let mut ended = Vec::new();
        for outcome in futures::future::join_all(keys.iter().map(|key| self.end(key))).await {
            ended.extend(outcome?);
        }
        Ok(ended)
    }

    /// Takes an engagement out of the table, so that nothing is dialled for it
    /// any more, and deletes its resource.
    async fn end(&self, key: &Key) -> Result<Option<v1::EngagementStatus>, Failure> {
        let Some(mut entry) = self.table.remove(key) else {
            return Ok(None);
        };
        entry.stop_watching();
        if let Err(failure) = self.delete(key).await {
            warn!(engagement = %key, error = %failure, "Engagement could not be deleted");
            // So that it can be left once the API server answers.
            self.table.insert(key.clone(), entry);
            self.watch(key);
            return Err(failure);
        }
        entry.shut_doors().await;
        info!(engagement = %key, workload = %entry.workload, "Engagement ended");
        Ok(Some(entry.status(key)))
    }

    /// Deletes the resource, if there is one, and waits until it is gone.
    async fn delete(&self, key: &Key) -> Result<(), Failure> {
        let api = self.api(&key.namespace);
        let params = DeleteParams::default();
        let left = self
            .cluster
            .call(identity::deleted(&api, &key.name, &params))
            .await?;
        if let Some(uid) = left.and_then(|object| object.metadata.uid) {
            let gone = await_condition(api, &key.name, conditions::is_deleted(&uid));
            if tokio::time::timeout(GONE_DEADLINE, gone).await.is_err() {
                debug!(engagement = %key, "Engagement is still being deleted");
            }
        }
        Ok(())
    }

    /// Makes the Engagement resource, after its table entry, so that a dial
    /// that comes at once finds it; then the doors are open.
    async fn create(
        &self,
        key: &Key,
        entry: Entry,
        doors: Doors,
    ) -> Result<watch::Receiver<Observed>, Failure> {
        let mut to_pod: Vec<u16> = entry.to_pod.iter().map(|it| it.port).collect();
        to_pod.sort_unstable();
        to_pod.dedup();
        let engagement = Engagement {
            metadata: ObjectMeta {
                name: Some(key.name.clone()),
                labels: Some([(SESSION_LABEL.to_owned(), self.session.clone())].into()),
                ..ObjectMeta::default()
            },
            spec: EngagementSpec {
                user: self.user.clone(),
                session: self.session.clone(),
                verb: entry.verb,
                workload: entry.workload.clone(),
                ports: entry
                    .ports
                    .iter()
                    .map(|port| EngagedPort {
                        container_port: port.container_port,
                        protocol: port.protocol,
                        local: port.local.to_string(),
                        service: port.service.clone(),
                        app_protocol: port.spoken.as_ref().and_then(Spoken::told),
                    })
                    .collect(),
                http: entry.http.clone(),
                on_failure: entry.fails_closed.then_some(OnFailure::Unavailable),
                roll_out: entry.rolls_out,
                terminates_tls: entry.tls.is_some(),
                container: entry
                    .container
                    .clone()
                    .filter(|_| entry.verb == Verb::Replace || entry.reads()),
                to_pod,
                environment: entry.environment,
                files: entry.files,
            },
            status: None,
        };
        let observed = entry.observed.subscribe();
        let tls = entry.tls.clone();
        self.table.admit(key.clone(), entry)?;
        let api = self.api(&key.namespace);
        let created = self
            .cluster
            .call(api.create(&PostParams::default(), &engagement))
            .await;
        let created = match created {
            Ok(created) => created,
            Err(failure) => {
                if failure.reason == Reason::ApiServerUnreachable {
                    // It may have been made although no answer came.
                    self.give_up(key).await;
                } else {
                    self.table.remove(key);
                }
                return Err(failure);
            }
        };
        if !is_kept(&engagement.spec, &created.spec) {
            // The API server leaves out what it does not know; without its filter, all
            // requests would go to the laptop, and with its TLS not ended, none.
            self.give_up(key).await;
            return Err(Failure::new(
                Reason::VersionMismatch,
                "the cluster's custom resource Engagement does not know all of what was asked for",
                "have an administrator run `helm upgrade` with the chart of this version",
            ));
        }
        self.table.keep_uid(key, created.metadata.uid.clone());
        let way = Way {
            manager: self.manager.clone(),
            registry: self.registry.clone(),
            engagement: key.clone(),
            engagement_uid: created.metadata.uid.clone().unwrap_or_default(),
        };
        self.table.keep_doors(key, doors.open(way));
        if !self.watch(key) {
            // It was left before it was made, so nothing was there to delete.
            self.delete(key).await?;
        }
        if let (Some(identity), Some(uid)) = (tls, created.metadata.uid) {
            let giving = tls::give(self.manager.clone(), key.clone(), uid, identity);
            let giver = AbortOnDropHandle::new(tokio::spawn(giving));
            self.table.keep_giver(key, giver);
        }
        Ok(observed)
    }

    /// Ends an engagement that did not come about.
    async fn give_up(&self, key: &Key) {
        // A failure is in the log, and the user is told another one.
        let _ = self.end(key).await;
    }

    /// Follows the resource for as long as its table entry lives. `false` when
    /// there is no entry.
    fn watch(&self, key: &Key) -> bool {
        let watcher = tokio::spawn(self.clone().observe(key.clone()));
        self.table
            .keep_watcher(key, AbortOnDropHandle::new(watcher))
    }

    /// Follows the resource until it is gone, which may be somebody else's
    /// doing.
    async fn observe(self, key: Key) {
        let stream = watch_object(self.api(&key.namespace), &key.name).default_backoff();
        let mut stream = std::pin::pin!(stream);
        let mut uid = None;
        while let Some(change) = stream.next().await {
            match change {
                Ok(Some(engagement)) => {
                    self.table.observe(&key, outcome::observe(&engagement));
                    uid = engagement.metadata.uid;
                }
                Ok(None) => return self.lose(&key, uid).await,
                Err(error) => debug!(engagement = %key, %error, "Engagement cannot be watched"),
            }
        }
    }

    /// Takes an engagement out of the table that somebody else has deleted, and finds out
    /// who.
    async fn lose(&self, key: &Key, uid: Option<String>) {
        // Before all else, so that nothing is dialled for it any more.
        let Some(mut entry) = self.table.remove(key) else {
            return;
        };
        entry.shut_doors().await;
        let by = match uid {
            Some(uid) => self.deleter(uid).await,
            None => None,
        };
        match &by {
            Some(by) => warn!(engagement = %key, by, "Engagement was deleted"),
            None => warn!(engagement = %key, "Engagement was deleted from the cluster's side"),
        }
        let at = SystemTime::now().duration_since(UNIX_EPOCH);
        let message = deleted::message(key, &entry, by.as_deref(), at.unwrap_or_default());
        self.deleted.note(message, Instant::now());
        let by = by.map(|by| names::called(&by, &self.user).to_owned());
        entry.observed.send_replace(Observed::gone(by));
    }

    /// Who has deleted an Engagement, if the traffic manager has heard of it.
    async fn deleter(&self, uid: String) -> Option<String> {
        let told = async {
            let mut client = self.manager.wait_for_client().await;
            client.tell_deletion(v1::TellDeletionRequest { uid }).await
        };
        match tokio::time::timeout(TELL_DEADLINE, told).await {
            Ok(Ok(told)) => Some(told.into_inner().user).filter(|user| !user.is_empty()),
            Ok(Err(_)) | Err(_) => None,
        }
    }

    fn api(&self, namespace: &str) -> Api<Engagement> {
        Api::namespaced(self.cluster.client.clone(), namespace)
    }
}

fn left(key: &Key) -> Failure {
    Failure::new(
        Reason::NoSuchEngagement,
        format!("engagement {key} was left meanwhile"),
        "engage it again",
    )
}

/// Whether the API server has kept what was asked for. What is spoken on a port is a hint, and
/// without it the first bytes decide.
fn is_kept(asked: &EngagementSpec, kept: &EngagementSpec) -> bool {
    let mut asked = asked.clone();
    for (asked, kept) in asked.ports.iter_mut().zip(&kept.ports) {
        asked.app_protocol = kept.app_protocol;
    }
    asked == *kept
}

#[cfg(test)]
mod tests {
    use kvpn_proto::crd::{AppProtocol, WorkloadKind, WorkloadRef};

    use super::*;

    #[test]
    fn an_older_custom_resource_may_leave_out_hints_alone() {
        let asked = EngagementSpec {
            user: "alice".into(),
            session: "alice-1".into(),
            verb: Verb::Intercept,
            workload: WorkloadRef {
                kind: WorkloadKind::Deployment,
                name: "web".into(),
            },
            ports: vec![EngagedPort {
                container_port: 8080,
                protocol: Protocol::Tcp,
                local: "127.0.0.1:8080".into(),
                service: None,
                app_protocol: Some(AppProtocol::Http),
            }],
            http: None,
            on_failure: Some(OnFailure::Unavailable),
            container: None,
            roll_out: false,
            terminates_tls: false,
            to_pod: vec![9901],
            environment: false,
            files: None,
        };
        let is_kept_with = |change: fn(&mut EngagementSpec)| {
            let mut kept = asked.clone();
            change(&mut kept);
            is_kept(&asked, &kept)
        };
        assert!(is_kept_with(|_| {}));
        assert!(is_kept_with(|kept| kept.ports[0].app_protocol = None));
        assert!(!is_kept_with(|kept| kept.to_pod.clear()));
        assert!(!is_kept_with(|kept| kept.on_failure = None));
        assert!(!is_kept_with(|kept| kept.ports[0].container_port = 80));
        assert!(!is_kept_with(|kept| kept.ports.clear()));
    }
}
