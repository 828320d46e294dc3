//! Puts the parts together and runs them until a signal comes.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::Service;
use kube::{Api, Client, Resource};
use kvpn_proto::{names, version};
use kvpn_tunnel::dns::{Forwarder, ResolvConf, parse_resolv_conf};
use kvpn_tunnel::turns::EVENT_INTERVAL;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::api::{AgentApi, SessionApi, Tokens};
use crate::cluster::{Cluster, Names, cluster_domain};
use crate::config::Config;
use crate::controller::{AgentTemplate, Executor, ManagerAddresses, Watches, spawn_watches};
use crate::dial::Dialer;
use crate::hub::Hub;
use crate::listen::{bind, serve_agents, serve_sessions};
use crate::metrics::{Access, Endpoint, FlowStats};
use crate::state::{Key, Settings, World};
use crate::tls::Authority;
use crate::webhook::{Configuration, Webhook};

/// How long connections may take to end after a signal.
const DRAIN: Duration = Duration::from_secs(1);

/// How long the API server may take for one request.
const REQUEST: Duration = Duration::from_secs(10);

const RESOLV_CONF: &str = "/etc/resolv.conf";
const DNS_PORT: u16 = 53;

/// Runs the traffic manager until SIGTERM or SIGINT.
pub(crate) fn run(config: Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .event_interval(EVENT_INTERVAL)
        .enable_all()
        .build()
        .context("start the runtime")?;
    let served = runtime.block_on(serve(config));
    // Flows that are under way must not hold the process up.
    runtime.shutdown_background();
    served
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let signalled = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    tokio::pin!(signalled);
    let shutdown = CancellationToken::new();
    let running = start(config, shutdown.clone());
    tokio::pin!(running);
    tokio::select! {
        ended = &mut running => return ended,
        () = &mut signalled => info!("ending"),
    }
    shutdown.cancel();
    match timeout(DRAIN, running).await {
        Ok(ended) => ended,
        // Tunnels do not end by themselves; the kernel closes them.
        Err(_) => Ok(()),
    }
}

async fn start(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    info!(
        version = version::VERSION,
        chart_version = config.chart_version,
        namespace = config.namespace,
        agent_image = config.agent_image,
        "traffic manager starts"
    );
    // Another part of the process may have installed it; it is the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::try_default().await.context("find the API server")?;
    let service = own_service(client.clone(), &config.namespace).await?;
    let manager = addresses(service.as_ref(), &config);
    let owner = service.and_then(|service| service.owner_ref(&()));
    let authority = Authority::load_or_create(client.clone(), &config.namespace, owner).await?;
    let resolv_conf = tokio::fs::read_to_string(RESOLV_CONF)
        .await
        .with_context(|| format!("read {RESOLV_CONF}"))?;
    let resolv_conf = parse_resolv_conf(&resolv_conf);

    let world = World::new(Settings {
        grace: config.session_grace,
        idle: config.engagement_idle,
        linger: config.agent_linger,
        has_births: config.webhook,
        agent_image: config.agent_image.clone(),
        manager: Key::new(&config.namespace, &config.pod_name),
    });
    let (hub, effects) = Hub::new(world);
    let domain = cluster_domain(&resolv_conf.search, &config.namespace);
    let cluster = Arc::new(Cluster::new(domain));
    let service_names = Arc::new(Names::new());
    let template = Arc::new(AgentTemplate {
        image: config.agent_image.clone(),
        pull_policy: config.agent_image_pull_policy.clone(),
        authority: authority.certificate_base64(),
        manager,
        linger: config.agent_linger,
    });
    let questions = watch::Sender::new(None);
    let expected = questions.subscribe();
    let executor = Executor::new(
        Arc::clone(&hub),
        client.clone(),
        Arc::clone(&template),
        questions,
    );
    let mut tasks = spawn_watches(&Watches {
        client: client.clone(),
        namespace: config.namespace.clone(),
        managed: config.managed_namespaces.0.clone(),
        hub: Arc::clone(&hub),
        cluster: Arc::clone(&cluster),
        names: Arc::clone(&service_names),
    });
    tasks.spawn(executor.run(effects));
    let clock = Arc::clone(&hub);
    tasks.spawn(async move { clock.keep_time().await });

    let webhook = config
        .webhook
        .then(|| Webhook::new(Arc::clone(&hub), template))
        .transpose()
        .map_err(|_| anyhow::anyhow!("the system has no randomness for a path"))?;
    if let Some(webhook) = &webhook {
        let configuration = Configuration {
            client: client.clone(),
            namespace: config.namespace.clone(),
            authority_pem: authority.certificate_pem().to_owned(),
            secret: webhook.secret().to_owned(),
        };
        tasks.spawn(configuration.keep(expected));
    }

    let flows = Arc::new(FlowStats::default());
    let metrics = config.metrics.then(|| {
        Arc::new(Endpoint::new(
            Access::new(client.clone()),
            Arc::clone(&hub),
            Arc::clone(&flows),
            config.chart_version.clone(),
        ))
    });
    let sessions = SessionApi {
        hub: Arc::clone(&hub),
        sessions: Api::namespaced(client.clone(), &config.namespace),
        chart_version: config.chart_version.clone(),
        cluster: cluster.subscribe(),
        names: service_names,
        dns: Arc::new(Forwarder::new(name_servers(&resolv_conf))),
        dialer: Arc::new(Dialer::new(config.own_ips())),
        flows: Arc::clone(&flows),
    };
    let tokens = Arc::new(Tokens::new(client));
    let agents = AgentApi { hub, flows, tokens };
    let tls = |alpn: &[&[u8]]| authority.server_config(&config.namespace, alpn);
    let session_tls = TlsAcceptor::from(tls(&[])?);
    let agent_tls = TlsAcceptor::from(tls(&[b"h2"])?);
    let session_port = bind(names::MANAGER_SESSION_PORT).await?;
    let agent_port = bind(names::MANAGER_AGENT_PORT).await?;
    info!(
        sessions = names::MANAGER_SESSION_PORT,
        agents = names::MANAGER_AGENT_PORT,
        "traffic manager listens"
    );
    let serving = async {
        tokio::try_join!(
            serve_sessions(
                session_port,
                session_tls,
                sessions,
                metrics,
                webhook.map(Arc::new),
                shutdown.clone()
            ),
            serve_agents(agent_port, agent_tls, agents, shutdown),
        )
    };
    tokio::select! {
        served = serving => served.map(|_| ()),
        error = panicked(tasks) => Err(error),
    }
}

/// Waits until one of the tasks has panicked. Without it the others would go on
/// blindly; a new process learns everything from the API server again.
async fn panicked(mut tasks: JoinSet<()>) -> anyhow::Error {
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            return anyhow::Error::new(error).context("a part of the traffic manager has failed");
        }
    }
    std::future::pending().await
}

fn name_servers(resolv_conf: &ResolvConf) -> Vec<SocketAddr> {
    let servers = resolv_conf.name_servers.iter();
    servers.map(|ip| SocketAddr::new(*ip, DNS_PORT)).collect()
}

/// The Service before this pod. An API server that does not answer is an error,
/// since agents would have to live with a worse address for long.
async fn own_service(client: Client, namespace: &str) -> anyhow::Result<Option<Service>> {
    let name = names::MANAGER_SERVICE;
    let services: Api<Service> = Api::namespaced(client, namespace);
    timeout(REQUEST, services.get_opt(name))
        .await
        .with_context(|| format!("read Service {namespace}/{name}"))?
        .with_context(|| format!("read Service {namespace}/{name}"))
}

/// The Service's addresses, which outlive this pod; its own when there is no
/// such Service.
fn addresses(service: Option<&Service>, config: &Config) -> ManagerAddresses {
    let addresses: Vec<IpAddr> = service
        .and_then(|service| service.spec.as_ref()?.cluster_ips.as_ref())
        .into_iter()
        .flatten()
        .filter_map(|ip| ip.parse().ok())
        .collect();
    if addresses.is_empty() {
        warn!("agents get this pod's own address, and lose the traffic manager when it restarts");
        return ManagerAddresses(config.own_ips());
    }
    ManagerAddresses(addresses)
}
