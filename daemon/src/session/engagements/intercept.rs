//! One `kvpn intercept`, from the request to the answer "active".

use std::net::SocketAddr;
use std::time::Duration;

use kvpn_proto::crd::{Verb, WorkloadRef};
use kvpn_proto::filter::HttpFilter;
use kvpn_proto::flow::Protocol;
use kvpn_proto::tls::TlsIdentity;
use kvpn_proto::v1::intercept_response::Event;
use kvpn_proto::{Failure, Reason, v1};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{mpsc, watch};
use tonic::Status;
use tracing::info;

use super::outcome::{Observed, Progress, absence, held_since, holder};
use super::roll_out::roll_out;
use super::table::{Entry, Key};
use super::tls::Source;
use super::{Doors, Engagements, Mount, ToPod};
use crate::session::identity::label;
use crate::session::workloads::{self, Found, RequestedPort, ResolvedPort};

/// Until when an engagement must be active, unless the user says otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a local handler may take to accept a connection before it is taken
/// for missing.
const LISTENING_DEADLINE: Duration = Duration::from_millis(300);

/// What is to be intercepted.
pub(crate) struct Intercept {
    pub(crate) verb: Verb,
    pub(crate) namespace: String,
    pub(crate) target: String,
    pub(crate) ports: Vec<RequestedPort>,
    /// Only requests that fit.
    pub(crate) http: Option<HttpFilter>,
    /// Nobody answers when the laptop does not.
    pub(crate) fails_closed: bool,
    /// The container to replace or to read, empty for the one that has the ports; or whose
    /// ports are meant, empty for all.
    pub(crate) container: String,
    /// The workload is rolled out once where only pods that are born with the agent can
    /// have it.
    pub(crate) rolls_out: bool,
    pub(crate) to_pod: Vec<ToPod>,
    /// The environment of the container is to be read.
    pub(crate) environment: bool,
    /// Its files are to be mounted.
    pub(crate) mount: Option<Mount>,
    /// It is left once the client hangs up.
    pub(crate) ends_with_call: bool,
    pub(crate) timeout: Option<Duration>,
    /// What clients' TLS is ended with.
    pub(crate) tls: Option<Source>,
    /// All of this as the client has it, for it to look at later.
    pub(crate) asked: v1::InterceptRequest,
}

impl Intercept {
    /// Whether somebody has to look into the container.
    fn reads(&self) -> bool {
        self.environment || self.mount.is_some()
    }
}

/// Where the answers go; closed when the client is gone.
pub(super) type Events = mpsc::Sender<Result<v1::InterceptResponse, Status>>;

/// What was found for a request.
struct Plan {
    workload: WorkloadRef,
    ports: Vec<ResolvedPort>,
    /// The container that is replaced or read, or whose ports are meant.
    container: Option<String>,
    tls: Option<TlsIdentity>,
}

impl Engagements {
    /// Runs an intercept until it is active, fails, or the client is gone. In
    /// the last two cases nothing is left in the cluster. One that ends with its call goes on
    /// until the client is gone or it is over.
    pub(crate) async fn intercept(&self, request: Intercept, events: Events) {
        let outcome = tokio::select! {
            planned = self.plan(&request, &events) => planned,
            () = events.closed() => return,
        };
        let plan = match outcome {
            Ok(plan) => plan,
            Err(failure) => return fail(&events, failure).await,
        };
        let locals = plan.ports.iter().map(|port| (port.local, port.protocol));
        let locals: Vec<_> = locals.collect();
        let doors = match Doors::bind(&request.to_pod, &locals).await {
            Ok(doors) => doors,
            Err(failure) => return fail(&events, failure).await,
        };
        let workload = plan.workload.clone();
        let key = match new_key(&request.namespace, &plan.workload, &self.user) {
            Ok(key) => key,
            Err(failure) => return fail(&events, failure).await,
        };
        let mut entry = Entry::new(
            request.verb,
            plan.workload,
            plan.ports,
            request.http.clone(),
            request.fails_closed,
        );
        entry.container = plan.container;
        entry.rolls_out = request.rolls_out;
        entry.tls = plan.tls;
        entry.to_pod.clone_from(&request.to_pod);
        entry.environment = request.environment;
        entry.files = request.mount.as_ref().map(Mount::access);
        entry.asked.clone_from(&request.asked);
        // Not given up halfway: whether the resource exists must be known.
        let (created, ()) = tokio::join!(
            self.create(&key, entry, doors),
            warn_of_silence(request.verb, &locals, &events)
        );
        let mut observed = match created {
            Ok(observed) => observed,
            Err(failure) => return fail(&events, failure).await,
        };
        let timeout = request.timeout.unwrap_or(DEFAULT_TIMEOUT);
        let outcome = tokio::select! {
            outcome = tokio::time::timeout(timeout, async {
                self.arrive(&request, &workload, &mut observed, &events).await?;
                match request.reads() {
                    true => readable(&mut observed, &events).await,
                    false => Ok(()),
                }
            }) => {
                outcome.unwrap_or_else(|_| Err(late(&workload, timeout, &observed.borrow())))
            }
            () = events.closed() => Err(cancelled()),
        };
        let outcome = match outcome {
            Ok(()) => tokio::select! {
                mounted = self.mount_for(&request, &key, &events) => mounted,
                () = events.closed() => Err(cancelled()),
            },
            Err(failure) => Err(failure),
        };
        match outcome {
            Ok(()) => {
                info!(engagement = %key, %workload, "Intercept active");
                let status = self.table.status(&key).unwrap_or_default();
                if send(&events, Event::Active(status)).await.is_err() {
                    self.give_up(&key).await;
                } else if request.ends_with_call {
                    self.hold(&key, &mut observed, &events).await;
                }
            }
            Err(failure) => {
                let failure = self.name_holder(&key, failure).await;
                self.give_up(&key).await;
                fail(&events, failure).await;
            }
        }
    }

    /// Mounts the files if they are wanted.
    async fn mount_for(
        &self,
        request: &Intercept,
        key: &Key,
        events: &Events,
    ) -> Result<(), Failure> {
        let Some(wanted) = &request.mount else {
            return Ok(());
        };
        progress(events, "mounting the container's files".to_owned()).await;
        let (this, key, mount) = (self.clone(), key.clone(), wanted.clone());
        // To its end, so that it is undone if the client is gone.
        let mounted = tokio::spawn(async move { this.mount(&key, &mount).await }).await;
        match mounted.map_err(Failure::internal).flatten() {
            Err(failure) if wanted.is_optional => {
                let warning = format!("{}; going on without its files", failure.message);
                // The client being gone shows in `Events::closed`.
                let _ = send(events, Event::Warning(warning)).await;
                Ok(())
            }
            mounted => mounted,
        }
    }

    /// Waits until an engagement is active. Has its workload rolled out if only that helps
    /// and the user wants it so.
    async fn arrive(
        &self,
        request: &Intercept,
        workload: &WorkloadRef,
        observed: &mut watch::Receiver<Observed>,
        events: &Events,
    ) -> Result<(), Failure> {
        let refusal = match activation(observed, events, false).await {
            Ok(Reached::Active) => return Ok(()),
            Ok(Reached::Refusal(failure)) if request.rolls_out => failure,
            Ok(Reached::Refusal(failure)) => return Err(failure),
            Err(failure) if request.rolls_out => return Err(in_vain(failure, workload)),
            Err(failure) => return Err(failure),
        };
        let warning = format!(
            "{}; rolling {workload} out once, so that its pods are born with the agent",
            refusal.message
        );
        let announce = async {
            // Nothing is rolled out for a client that is gone.
            let told = send(events, Event::Warning(warning)).await;
            told.map_err(|()| cancelled())
        };
        roll_out(&self.cluster, &request.namespace, workload, announce).await?;
        info!(%workload, "Workload rolled out");
        match activation(observed, events, true).await? {
            Reached::Active => Ok(()),
            Reached::Refusal(failure) => Err(failure),
        }
    }

    async fn plan(&self, request: &Intercept, events: &Events) -> Result<Plan, Failure> {
        if let Some(mount) = &request.mount {
            mount.check().await?;
        }
        let namespace = &request.namespace;
        progress(
            events,
            format!("looking for {} in namespace {namespace}", request.target),
        )
        .await;
        let inventory = workloads::fetch(&self.cluster, namespace).await?;
        let found = workloads::find(&inventory, &request.target)?;
        let wanted = request.container.as_str();
        let narrowed = match request.verb {
            Verb::Intercept | Verb::Wiretap if !wanted.is_empty() => {
                Some(found.workload.in_container(wanted)?)
            }
            Verb::Intercept | Verb::Wiretap | Verb::Replace | Verb::Ingest => None,
        };
        let found = Found {
            workload: narrowed.as_ref().unwrap_or(found.workload),
            ..found
        };
        let workloads::Resolved { ports, warnings } = match request.verb {
            Verb::Intercept | Verb::Wiretap | Verb::Replace => {
                workloads::resolve_ports(&inventory, &found, &request.ports)?
            }
            Verb::Ingest => workloads::Resolved::default(),
        };
        for warning in warnings {
            // The client being gone shows in `Events::closed`.
            let _ = send(events, Event::Warning(warning)).await;
        }
        let workload = found.workload.reference.clone();
        let http = request.http.as_ref();
        if http.is_some() {
            refuse_datagrams(&ports)?;
            for warning in workloads::check_filters(&workload, &ports, request.tls.is_some())? {
                let _ = send(events, Event::Warning(warning)).await;
            }
        }
        let in_the_way = match request.verb {
            Verb::Intercept | Verb::Replace => self.table.of(namespace, &workload, &ports, http),
            Verb::Wiretap | Verb::Ingest => None,
        };
        if let Some(key) = in_the_way {
            return Err(Failure::new(
                Reason::AlreadyEngaged,
                format!(
                    "this session engages that port of {workload} already, as {}",
                    key.name
                ),
                format!("leave it first with `kvpn leave {}`", key.name),
            ));
        }
        let container = match request.verb {
            Verb::Replace | Verb::Ingest => {
                Some(workloads::container(&inventory, &workload, &ports, wanted)?)
            }
            Verb::Intercept | Verb::Wiretap if request.reads() => {
                Some(workloads::container(&inventory, &workload, &ports, wanted)?)
            }
            Verb::Intercept | Verb::Wiretap => narrowed.map(|_| wanted.to_owned()),
        };
        let tls = match &request.tls {
            Some(source) => Some(source.read(&self.cluster, namespace).await?),
            None => None,
        };
        Ok(Plan {
            workload,
            ports,
            container,
            tls,
        })
    }

    /// Says who has the port, and since when, where that is the matter.
    async fn name_holder(&self, key: &Key, failure: Failure) -> Failure {
        if failure.reason != Reason::AlreadyEngaged {
            return failure;
        }
        let Ok(everyone) = self.of_everyone(&key.namespace).await else {
            return failure;
        };
        let own = everyone
            .iter()
            .find(|one| one.metadata.name.as_ref() == Some(&key.name));
        let Some(other) = own.and_then(|own| holder(&everyone, own)) else {
            return failure;
        };
        let since = held_since(other);
        let since = since
            .map(|time| format!(" since {}", time.0))
            .unwrap_or_default();
        let ports: Vec<String> = other
            .spec
            .ports
            .iter()
            .map(|port| port.container_port.to_string())
            .collect();
        let filter = other.spec.http.as_ref();
        let filter = filter
            .map(|filter| format!(", {filter}"))
            .unwrap_or_default();
        let absence = absence(other);
        let until = match absence {
            Some(_) => "try again in a few seconds, when it is free unless they are back",
            None => "let them leave it",
        };
        let absence = absence.map(|it| format!("; {it}")).unwrap_or_default();
        Failure {
            message: format!(
                "{} engages {} (port {}{filter}){since}{absence}",
                other.spec.user,
                other.spec.workload,
                ports.join(", ")
            ),
            next_step: format!(
                "{until}, or have it deleted with `kubectl -n {} delete engagement {}`",
                key.namespace,
                other.metadata.name.as_deref().unwrap_or_default()
            ),
            ..failure
        }
    }
}

/// Refuses a filter of HTTP requests where there are none.
fn refuse_datagrams(ports: &[ResolvedPort]) -> Result<(), Failure> {
    let mut ports = ports.iter();
    match ports.find(|port| port.protocol == Protocol::Udp) {
        Some(port) => Err(Failure::new(
            Reason::NotSupported,
            format!(
                "port {} is UDP, whose datagrams no filter of HTTP requests can choose among",
                port.container_port
            ),
            "engage it by itself, without a filter",
        )),
        None => Ok(()),
    }
}

/// How waiting for an engagement has ended, if it has not failed.
#[derive(Debug, PartialEq, Eq)]
enum Reached {
    Active,
    /// The agent is refused to running pods alone.
    Refusal(Failure),
}

/// Tells the client what is waited for, until the engagement is decided. While the workload
/// is being rolled out, pods may be without an agent, or there may be none.
async fn activation(
    observed: &mut watch::Receiver<Observed>,
    events: &Events,
    is_rolled_out: bool,
) -> Result<Reached, Failure> {
    let mut told = String::new();
    loop {
        let current = observed.borrow_and_update().progress.clone();
        let message = match current {
            Progress::Active => return Ok(Reached::Active),
            Progress::RollOutNeeded(_) if is_rolled_out => {
                "waiting for the roll-out: pods without the agent still run".to_owned()
            }
            Progress::RollOutNeeded(failure) => return Ok(Reached::Refusal(failure)),
            Progress::Failed(failure)
                if is_rolled_out && failure.reason == Reason::NoRunningPod =>
            {
                failure.message
            }
            Progress::Failed(failure) => return Err(failure),
            Progress::Gone { by } => return Err(deleted_meanwhile(by.as_deref())),
            Progress::Waiting { message, .. } => message,
        };
        if message != told {
            progress(events, message.clone()).await;
            told = message;
        }
        if observed.changed().await.is_err() {
            return Err(deleted_meanwhile(None));
        }
    }
}

/// Tells the client what is waited for, until the environment can be read.
async fn readable(
    observed: &mut watch::Receiver<Observed>,
    events: &Events,
) -> Result<(), Failure> {
    let mut told = String::new();
    loop {
        let current = observed.borrow_and_update().environment.clone();
        let message = match current {
            Progress::Active => return Ok(()),
            Progress::Failed(failure) | Progress::RollOutNeeded(failure) => return Err(failure),
            Progress::Gone { by } => return Err(deleted_meanwhile(by.as_deref())),
            Progress::Waiting { message, .. } => message,
        };
        if message != told {
            progress(events, message.clone()).await;
            told = message;
        }
        if observed.changed().await.is_err() {
            return Err(deleted_meanwhile(None));
        }
    }
}

fn deleted_meanwhile(by: Option<&str>) -> Failure {
    let (message, next_step) = match by {
        Some(by) => (
            format!("the engagement was deleted by {by} before it was active"),
            "try again, unless it was deleted for a reason",
        ),
        None => (
            "the engagement was deleted before it was active".to_owned(),
            "try again; if it stays, look at the traffic manager's log",
        ),
    };
    Failure::new(Reason::NoSuchEngagement, message, next_step)
}

/// Says why a workload whose pods are refused the agent is not rolled out.
fn in_vain(failure: Failure, workload: &WorkloadRef) -> Failure {
    if failure.reason != Reason::AgentRefused {
        return failure;
    }
    let why = match workload.kind.has_roll_out() {
        true => "a roll-out would not help, as new pods could not have it either".to_owned(),
        false => format!("a {} is never rolled out", workload.kind.as_str()),
    };
    Failure {
        message: format!("{}; {why}", failure.message),
        ..failure
    }
}

fn cancelled() -> Failure {
    Failure::new(
        Reason::TimedOut,
        "the client is gone",
        "run the command again",
    )
}

fn late(workload: &WorkloadRef, timeout: Duration, observed: &Observed) -> Failure {
    let (reason, waited_for) = match &observed.progress {
        Progress::Waiting {
            message,
            agents_ready: false,
        } if observed.pods_selected > 0 => (Reason::AgentNotReady, message.as_str()),
        Progress::Waiting { message, .. } => (Reason::TimedOut, message.as_str()),
        // Of pods from before the roll-out, or of those that were born without.
        Progress::RollOutNeeded(failure) => (Reason::AgentNotReady, failure.message.as_str()),
        // As of new pods that do not come up.
        Progress::Failed(failure) => (Reason::AgentNotReady, failure.message.as_str()),
        Progress::Active => match &observed.environment {
            Progress::Waiting { message, .. } => (Reason::AgentNotReady, message.as_str()),
            Progress::Active
            | Progress::Failed(_)
            | Progress::RollOutNeeded(_)
            | Progress::Gone { .. } => (Reason::TimedOut, ""),
        },
        Progress::Gone { .. } => (Reason::TimedOut, ""),
    };
    Failure::new(
        reason,
        format!(
            "{workload} was not intercepted within {} s; last: {waited_for}",
            timeout.as_secs()
        ),
        "look at the pods' events and the traffic manager's log, or allow more time with --timeout",
    )
}

/// Warns when nothing takes connections or datagrams where they are to be handled.
async fn warn_of_silence(verb: Verb, locals: &[(SocketAddr, Protocol)], events: &Events) {
    let until_then = match verb {
        Verb::Intercept => "the pods answer themselves",
        Verb::Wiretap | Verb::Ingest => "nothing is copied",
        Verb::Replace => "nobody answers",
    };
    for (local, protocol) in locals {
        let listens = match protocol {
            Protocol::Tcp => {
                let dial = TcpStream::connect(local);
                let dialled = tokio::time::timeout(LISTENING_DEADLINE, dial).await;
                matches!(dialled, Ok(Ok(_)))
            }
            // Where the address is free, nobody has it. Others cannot be asked.
            Protocol::Udp => UdpSocket::bind(local).await.is_err(),
        };
        if !listens {
            let warning = format!("nothing listens at {local} yet; until then {until_then}");
            // The client being gone shows in what follows.
            let _ = send(events, Event::Warning(warning)).await;
        }
    }
}

async fn progress(events: &Events, message: String) {
    // The client being gone shows in `Events::closed`.
    let _ = send(events, Event::Progress(message)).await;
}

pub(super) async fn fail(events: &Events, failure: Failure) {
    // A client that is gone need not be told.
    let _ = events.send(Err(failure.into())).await;
}

async fn send(events: &Events, event: Event) -> Result<(), ()> {
    let response = v1::InterceptResponse { event: Some(event) };
    events.send(Ok(response)).await.map_err(|_| ())
}

/// A name that is known before the resource is made, so that its first dial
/// finds the table entry.
fn new_key(namespace: &str, workload: &WorkloadRef, user: &str) -> Result<Key, Failure> {
    const LETTERS: &[u8; 32] = b"abcdefghijkmnopqrstuvwxyz2345678";
    let mut random = [0; 5];
    SystemRandom::new()
        .fill(&mut random)
        .map_err(|_| Failure::internal("the system has no randomness for a name"))?;
    let suffix: String = random
        .iter()
        .map(|octet| char::from(LETTERS[usize::from(octet % 32)]))
        .collect();
    let name = format!("{}-{}-{suffix}", label(&workload.name), label(user));
    Ok(Key::new(namespace, &name))
}

#[cfg(test)]
mod tests;
