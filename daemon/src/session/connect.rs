//! Connecting: from a kubeconfig to a host that is in the cluster.

use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use ipnet::IpNet;
use kvpn_proto::Failure;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::api::{About, Api, QuitRequest};
use super::args::SessionArgs;
use super::cluster::Cluster;
use super::engagements::{Engagements, Handlers};
use super::events;
use super::flows::Flows;
use super::follow::Follower;
use super::host_plan::HostPlan;
use super::identity::{self, OwnSession, SessionKey};
use super::kubeconfig::{self, Target};
use super::manager::{Credentials, Extra, Greeting, Manager, Opener, supervise};
use super::protected::Protected;
use super::transport::Transports;
use super::vnat::Vnat;
use crate::datapath::registry::FlowRegistry;
use crate::datapath::{self, Datapath};
use crate::dns::explain::Explainer;
use crate::dns::{self, AskedNames, NameServer};
use crate::fault::point;
use crate::lease::client::Lease;
use crate::lease::mounter::{Call, Mounter};

/// What is there once the host is in the cluster.
pub(crate) struct Connected {
    pub(crate) api: Api,
    pub(crate) host: Host,
    pub(crate) manager: Manager,
    /// For when the user need not wait any more.
    pub(crate) extra: Extra,
    pub(crate) engagements: Engagements,
    /// Ends only when the session cannot go on, with the reason.
    pub(crate) supervisor: AbortOnDropHandle<Failure>,
    /// Has what the lease has follow the cluster.
    pub(crate) follower: Follower,
}

/// What was changed on the host.
pub(crate) struct Host {
    pub(crate) lease: Lease,
    pub(crate) datapath: Datapath,
    pub(crate) name_server: NameServer,
    /// What is to be mounted by the lease, or no more.
    pub(crate) mounts: mpsc::Receiver<Call>,
}

/// The Session resource, noted as soon as it is made, so that it can be deleted
/// whatever happens next.
pub(crate) type Registered = Arc<OnceLock<OwnSession>>;

/// Connects. What takes time runs side by side.
pub(crate) async fn connect(
    args: &SessionArgs,
    registered: &Registered,
    quit: mpsc::Sender<QuitRequest>,
) -> Result<Connected, Failure> {
    let subnets = args.subnet_rules()?;
    let vnat_rules = args.vnat_rules()?;
    let Target {
        config,
        proxy,
        context,
        namespace,
    } = kubeconfig::load(args).await?;
    let manager_namespace = &args.manager_namespace;
    let cluster = Cluster::new(config, proxy, manager_namespace).await?;
    events::progress(&format!("connecting to {}", cluster.server));
    point("kubeconfig read");

    let transports = Transports::new(cluster.clone(), manager_namespace, args.transport);

    let register = async {
        let user = identity::user_name(&cluster).await?;
        let key = SessionKey::generate()?;
        let session = OwnSession::create(&cluster, manager_namespace, &user, &key).await?;
        // Set only here.
        let _ = registered.set(session.clone());
        point("Session made");
        let credentials = Credentials {
            session,
            key,
            namespace: namespace.clone(),
        };
        Ok::<_, Failure>((user, credentials))
    };
    let greet = async {
        match Greeting::open(&transports).await {
            Ok(greeting) => Ok(greeting),
            Err(failure) => Err(cluster.blame_missing_chart(failure).await),
        }
    };
    // Both to their end: a Session that is being made must be known.
    let (registration, greeting, protected) = tokio::join!(
        register,
        greet,
        Protected::find(&cluster, &args.daemon_socket)
    );
    let (user, credentials) = registration?;
    let session = credentials.session.clone();
    let connection = greeting?.authenticate(&credentials).await?;
    point("authenticated");

    events::progress("setting up the host's network");
    let mut plan = HostPlan {
        names: args.name_rules(&namespace)?,
        namespace: namespace.clone(),
        protected,
        vnat: Vnat::new(subnets.clone()),
        subnets,
        vnat_rules,
    };
    let also = plan.subnets.also_proxy().iter().copied();
    let subnets: Vec<IpNet> = connection.cluster().subnets().chain(also).collect();
    plan.vnat_rules.check(&subnets)?;
    plan.find_places(connection.cluster()).await?;
    let network = plan.network(connection.cluster());
    let (lease, granted) =
        Lease::acquire(&args.daemon_socket, &args.name, &network, &context).await?;
    point("lease acquired");
    plan.protected.add_file(&granted.upstreams);

    let handlers = Handlers::default();
    let dialled = handlers.clone();
    let registry = FlowRegistry::default();
    let entered = registry.clone();
    let opener = Opener {
        transports,
        credentials,
    };
    let (manager, extra, supervisor) = supervise(opener, connection, move |client, dial| {
        let (handlers, registry) = (dialled.clone(), entered.clone());
        tokio::spawn(datapath::answer_dial(client, dial, handlers, registry));
    });
    let (mounter, mounts) = Mounter::new();
    let engagements = Engagements::new(
        cluster.clone(),
        manager.clone(),
        user.clone(),
        &session,
        handlers,
        registry.clone(),
        (mounter, args.socket().with_extension("files")),
    );
    let datapath = Datapath::start(
        granted.tun,
        granted.mtu,
        granted.addresses.clone(),
        datapath::Exit {
            manager: manager.clone(),
            vnat: plan.vnat.clone(),
        },
        registry.clone(),
    )
    .map_err(Failure::internal)?;
    point("data path started");
    let names = AskedNames::default();
    let sources = dns::Sources {
        manager: manager.clone(),
        rules: plan.names.clone(),
        vnat: plan.vnat.clone(),
        names: names.clone(),
        resolver: granted.resolver,
    };
    let (udp, tcp) = (granted.dns_udp, granted.dns_tcp);
    let name_server =
        dns::serve(udp, tcp, granted.upstreams, sources).map_err(Failure::internal)?;
    point("name server started");
    let rules = plan.names.clone();
    let vnat = plan.vnat.clone();
    let follower = Follower::new(plan, network);
    let api = Api {
        about: About {
            name: args.name.clone(),
            context,
            namespace,
            manager_namespace: manager_namespace.clone(),
            user,
            session: session.name,
            resolver: granted.resolver,
            device: granted.device,
            addresses: granted.addresses,
            connected_at: SystemTime::now(),
            options: args.options(),
        },
        cluster,
        manager: manager.clone(),
        engagements: engagements.clone(),
        meter: datapath.meter(),
        flows: Flows::new(registry, names, manager.clone(), vnat.clone()),
        vnat: vnat.clone(),
        explainer: Explainer {
            manager: manager.clone(),
            rules,
            vnat,
        },
        network: follower.network(),
        quit,
    };
    Ok(Connected {
        api,
        host: Host {
            lease,
            datapath,
            name_server,
            mounts,
        },
        manager,
        extra,
        engagements,
        supervisor: AbortOnDropHandle::new(tokio::spawn(supervisor)),
        follower,
    })
}
