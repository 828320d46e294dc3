//! The agent's dealings with the traffic manager: puts the claims in force that
//! it is told, and none while it is told nothing.

pub(crate) mod connect;

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use kvpn_proto::{
    flow::Protocol,
    v1::{
        WatchClaimsRequest, WatchClaimsResponse,
        agent_hub_client::AgentHubClient,
        watch_claims_request::{Applied, ApplyFailed, Event, Hello, NotStopped},
    },
    version::VERSION,
};
use kvpn_tunnel::grpc::TunnelClient;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::Code;
use tonic::transport::Channel;
use tracing::{debug, error, info, warn};

use crate::{
    claims::Claims,
    config::Config,
    forward::{Forwarder, Route},
    holds::Holds,
    keys::Keys,
    listening, pod_dials,
    redirect::Redirect,
    reports,
    settled::Settled,
};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How long until the next call of an agent that the traffic manager does not know, and
/// after how many it is taken for one that will not be known.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);
const PATIENCE: u32 = 20;

/// How long the traffic manager may take to take the call, or a report.
const CALL_DEADLINE: Duration = Duration::from_secs(10);

/// How often it is looked whether the app still listens.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How long open connections may go on once the agent stops.
const DRAIN_DEADLINE: Duration = Duration::from_secs(8);

/// The whole agent.
pub(crate) struct Agent {
    config: Config,
    redirect: Redirect,
    forwarder: Forwarder,
    holds: Holds,
    keys: Keys,
    /// When to leave; `None` while there are claims.
    leave_at: Option<Instant>,
    /// Tells that the first claims are in force.
    settled: Settled,
    /// How often in turn the traffic manager did not know this agent.
    refusals: u32,
}

impl Agent {
    pub(crate) fn new(
        config: Config,
        redirect: Redirect,
        forwarder: Forwarder,
        settled: Settled,
    ) -> Self {
        let leave_at = config.linger.map(|linger| Instant::now() + linger);
        Self {
            config,
            redirect,
            forwarder,
            holds: Holds::default(),
            keys: Keys::default(),
            leave_at,
            settled,
            refusals: 0,
        }
    }

    /// Works until it is told to stop or has had nothing to do for long enough.
    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        let stop = stop(self.forwarder.clone());
        tokio::select! {
            stopped = stop => stopped?,
            () = self.stay_connected() => info!("Leaving: no claim for a while"),
        }
        self.withdraw();
        // The end of this process removes the table, and with it the way of
        // what is still under way.
        if !self.forwarder.is_idle() {
            let delivered = timeout(DRAIN_DEADLINE, self.forwarder.delivered()).await;
            info!(all = delivered.is_ok(), "Let open connections end");
        }
        Ok(())
    }

    /// Returns when it is time to leave.
    async fn stay_connected(&mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let connect = connect::connect(self.config.manager, Arc::clone(&self.config.tls));
            let Some(connected) = self.attend(connect).await else {
                return;
            };
            let outcome = match connected {
                Ok(channel) => self.follow(channel, &mut pause).await,
                Err(error) => Err(error),
            };
            self.withdraw();
            match outcome {
                Ok(()) => return,
                Err(error) if pause == FIRST_PAUSE => {
                    warn!("Not connected to the traffic manager: {error:#}");
                }
                Err(error) => debug!("Not yet connected to the traffic manager: {error:#}"),
            }
            if self.attend(sleep(pause)).await.is_none() {
                return;
            }
            let longest = match self.refusals {
                0..PATIENCE => LONGEST_PAUSE,
                PATIENCE.. => REFUSED_PAUSE,
            };
            pause = longest.min(pause * 2);
        }
    }

    /// Does what the traffic manager says. An error when it stops saying;
    /// otherwise it is time to leave.
    async fn follow(&mut self, channel: Channel, pause: &mut Duration) -> anyhow::Result<()> {
        let tunnel = TunnelClient::new(channel.clone());
        let mut hub = AgentHubClient::new(channel.clone());
        let (events, outgoing) = mpsc::channel(4);
        let hello = Event::Hello(Hello {
            version: VERSION.into(),
            container: self.config.container.clone(),
            token: self.token()?,
        });
        events.send(request(hello)).await.context("say hello")?;
        let call = hub.watch_claims(ReceiverStream::new(outgoing));
        let mut responses = timeout(CALL_DEADLINE, call)
            .await
            .context("the traffic manager does not answer")?
            .inspect_err(|status| {
                let is_refused = status.code() == Code::PermissionDenied;
                self.refusals = if is_refused { self.refusals + 1 } else { 0 };
            })
            .map_err(lost)?
            .into_inner();
        self.refusals = 0;
        info!("Connected to the traffic manager");
        let reports = self.forwarder.reports();
        let reporting = tokio::spawn(reports::send(channel.clone(), reports));
        let _reporting = AbortOnDropHandle::new(reporting);
        let dialling = tokio::spawn(pod_dials::answer(channel, self.forwarder.clone()));
        let _dialling = AbortOnDropHandle::new(dialling);
        // Another agent may have lost the traffic manager for good: this one has it.
        let _listening = self.holds.listen();
        // The claims in force, with those that have nothing to end TLS with, and what has been
        // told of what is stopped last.
        let mut in_force = None;
        let mut told = None;
        let mut holds = self.holds.changes();
        loop {
            let next = async {
                tokio::select! {
                    response = responses.message() => Some(response),
                    // The sender is the agent's own.
                    _ = holds.changed() => None,
                }
            };
            let Some(next) = self.attend(next).await else {
                return Ok(());
            };
            if let Some(response) = next {
                let response = response
                    .map_err(lost)?
                    .context("the traffic manager hung up")?;
                *pause = FIRST_PAUSE;
                told = None;
                let of = response.generation;
                in_force = match self.put_in_force(response, &tunnel) {
                    Ok(without_tls) => Some((of, without_tls)),
                    Err(detail) => {
                        let generation = of;
                        let failed = ApplyFailed { generation, detail };
                        report(&events, Event::Failed(failed)).await?;
                        None
                    }
                };
            }
            let Some((generation, without_tls)) = &in_force else {
                continue;
            };
            let not_stopped = self.holds.not_stopped();
            if told.as_ref() == Some(&not_stopped) {
                continue;
            }
            let applied = applied(*generation, &not_stopped, without_tls);
            told = Some(not_stopped);
            report(&events, Event::Applied(applied)).await?;
        }
    }

    /// The token of the pod; empty where there is none.
    fn token(&self) -> anyhow::Result<String> {
        let Some(file) = &self.config.token_file else {
            return Ok(String::new());
        };
        // The kubelet puts another one there from time to time.
        std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))
    }

    /// Waits for something, and tidies up meanwhile. `None` when it is time to
    /// leave.
    async fn attend<T>(&mut self, something: impl Future<Output = T>) -> Option<T> {
        let mut something = pin!(something);
        let mut lingered = pin!(self.lingered());
        loop {
            tokio::select! {
                biased;
                output = &mut something => return Some(output),
                () = &mut lingered => return None,
                () = until(self.keys.deadline()) => self.keys.forget(Instant::now()),
                () = self.table_unused() => {
                    if let Err(error) = self.redirect.remove_table() {
                        warn!("{:#}", anyhow::Error::from(error));
                    }
                }
            }
        }
    }

    /// Gives the ids of claims that have nothing to end TLS with. Fails with the reason why
    /// there are no claims in force.
    fn put_in_force(
        &mut self,
        response: WatchClaimsResponse,
        tunnel: &TunnelClient,
    ) -> Result<Vec<String>, String> {
        let generation = response.generation;
        let applied = self.apply(response, tunnel);
        self.settled.tell();
        applied.map_err(|error| {
            error!(generation, "Claims are not in force: {error:#}");
            self.withdraw();
            format!("{error:#}")
        })
    }

    fn apply(
        &mut self,
        mut response: WatchClaimsResponse,
        tunnel: &TunnelClient,
    ) -> anyhow::Result<Vec<String>> {
        let generation = response.generation;
        self.keys.complete(&mut response, Instant::now());
        let claims = Claims::try_from(response)?;
        let without_tls: Vec<_> = claims.without_tls().map(str::to_owned).collect();
        let (ports, stopped, is_idle) = (claims.ports(), claims.stopped(), claims.is_empty());
        let bound = self.forwarder.bind(&claims);
        bound.context("open sockets for datagrams")?;
        // The route first, so that it is there for the first connection.
        let route = Route::new(claims, tunnel.clone(), self.holds.clone());
        self.forwarder.set_route(Some(route));
        let redirects = self.forwarder.redirects();
        self.redirect.apply(&redirects)?;
        self.holds.want(stopped);
        let datagrams: Vec<_> = redirects.datagrams.keys().collect();
        info!(
            generation,
            ?ports,
            ?datagrams,
            ?without_tls,
            "Claims in force"
        );
        self.note_idle(is_idle);
        Ok(without_tls)
    }

    /// Leaves all connections to the app.
    fn withdraw(&mut self) {
        self.holds.want(BTreeSet::new());
        self.keys.rest(Instant::now());
        self.forwarder.set_route(None);
        if let Err(error) = self.redirect.withdraw(self.forwarder.answers()) {
            // Connections still come, and go on to the app.
            error!("{:#}", anyhow::Error::from(error));
        }
        self.note_idle(true);
    }

    fn note_idle(&mut self, idle: bool) {
        if !idle {
            self.leave_at = None;
        } else if self.leave_at.is_none() {
            self.leave_at = self.config.linger.map(|linger| Instant::now() + linger);
        }
    }

    /// Waits until it is time to leave: nothing is claimed for long enough, and
    /// no connection from before is open.
    fn lingered(&self) -> impl Future<Output = ()> + use<> {
        let leave_at = self.leave_at;
        let forwarder = self.forwarder.clone();
        async move {
            until(leave_at).await;
            forwarder.delivered().await;
        }
    }

    /// Waits until the table is of no use even to connections from before.
    fn table_unused(&self) -> impl Future<Output = ()> + use<> {
        let empty = self.redirect.is_empty_table();
        let forwarder = self.forwarder.clone();
        async move {
            if !empty {
                pending::<()>().await;
            }
            forwarder.delivered().await;
        }
    }
}

/// Waits until then; for ever if that is never.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

/// Waits until this process is told to stop, and the app takes no connections any more. A
/// pod that ends may be sent requests for a while, and its app may go on to answer.
async fn stop(forwarder: Forwarder) -> anyhow::Result<()> {
    told_to_stop().await?;
    loop {
        match is_app_there(&forwarder) {
            Ok(false) => return Ok(()),
            Ok(true) => sleep(LOOK_AGAIN).await,
            Err(error) => {
                debug!(%error, "Nobody knows whether the app takes connections");
                return Ok(());
            }
        }
    }
}

/// Whether somebody listens on a port that is claimed.
fn is_app_there(forwarder: &Forwarder) -> std::io::Result<bool> {
    let connections = listening::ports(Protocol::Tcp)?;
    let datagrams = listening::ports(Protocol::Udp)?;
    Ok(!connections.is_disjoint(&forwarder.ports())
        || !datagrams.is_disjoint(&forwarder.datagram_ports()))
}

/// Waits until this process is told to stop.
pub(crate) async fn told_to_stop() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => info!("Told to stop"),
        _ = interrupt.recv() => info!("Told to stop"),
    }
    Ok(())
}

fn lost(status: tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("watch claims: {}", status.message())
}

fn applied(
    generation: u64,
    not_stopped: &BTreeMap<String, String>,
    without_tls: &[String],
) -> Applied {
    let not_stopped = not_stopped.iter().map(|(container, detail)| NotStopped {
        container: container.clone(),
        detail: detail.clone(),
    });
    Applied {
        generation,
        not_stopped: not_stopped.collect(),
        without_tls: without_tls.to_vec(),
    }
}

async fn report(events: &mpsc::Sender<WatchClaimsRequest>, event: Event) -> anyhow::Result<()> {
    timeout(CALL_DEADLINE, events.send(request(event)))
        .await
        .context("the traffic manager takes no reports")?
        .context("report to the traffic manager")
}

fn request(event: Event) -> WatchClaimsRequest {
    WatchClaimsRequest { event: Some(event) }
}
