//! `kvpnd check`: what can be found out without a connection of this laptop.
//! Each finding is one line of JSON on standard output.

mod permissions;
mod routes;

use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Service;
use kube::{Api, ResourceExt};
use kvpn_proto::check::Check;
use kvpn_proto::{Failure, Reason, names, v1, version};
use nix::unistd::Uid;

use super::args::SessionArgs;
use super::cluster::Cluster;
use super::cluster_info::ClusterInfo;
use super::diagnose::millis;
use super::host_plan::HostPlan;
use super::identity::{self, OwnSession, SessionKey};
use super::kubeconfig::{self, Target};
use super::manager::{Credentials, Greeting};
use super::protected::Protected;
use super::transport::{Choice, Transports};
use crate::lease::client::describe;

const ROOT_DAEMON: &str = "Root daemon";
const KUBECONFIG: &str = "Kubeconfig";
const API_SERVER: &str = "API server";
const CHART: &str = "Chart";
const PROXY: &str = "Traffic manager by proxy";
const PORT_FORWARD: &str = "Traffic manager by port-forward";
const SESSION: &str = "Session";
const ROUTES: &str = "Routes";
const PING: &str = "Ping";

/// Label of the chart's objects that tells the version.
const VERSION_LABEL: &str = "app.kubernetes.io/version";

/// Checks everything and prints what it finds.
///
/// # Errors
/// When nobody listens any more.
pub(crate) async fn check(args: &SessionArgs) -> io::Result<()> {
    // Fails only when a provider is set already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (found, holder) = root_daemon(&args.daemon_socket, &args.name).await;
    print(&found)?;
    let Target {
        config,
        proxy,
        context,
        namespace,
    } = match kubeconfig::load(args).await {
        Ok(target) => target,
        Err(failure) => {
            print(&Check::failure(KUBECONFIG, failure))?;
            return print(&Check::skipped(API_SERVER, "there is no kubeconfig to use"));
        }
    };
    let message = format!("context {context}, namespace {namespace}");
    print(&Check::ok(KUBECONFIG, message))?;

    let start = Instant::now();
    let reached = async {
        let cluster = Cluster::new(config, proxy, &args.manager_namespace).await?;
        let user = identity::user_name(&cluster).await?;
        Ok((cluster, user))
    };
    let (cluster, user) = match reached.await {
        Ok(reached) => reached,
        Err(failure) => {
            print(&Check::failure(API_SERVER, failure))?;
            return print(&Check::skipped(CHART, "the API server cannot be asked"));
        }
    };
    let took = millis(start.elapsed());
    let message = format!("{} knows you as {user}, after {took}", cluster.server);
    print(&Check::ok(API_SERVER, message))?;
    in_cluster(args, &cluster, &user, &namespace, holder).await
}

/// Checks what is in the cluster, and what follows from it for this laptop.
async fn in_cluster(
    args: &SessionArgs,
    cluster: &Cluster,
    user: &str,
    namespace: &str,
    holder: Option<v1::Holder>,
) -> io::Result<()> {
    let manager_namespace = &args.manager_namespace;
    let (chart, permissions, proxy, port_forward) = tokio::join!(
        chart(cluster, manager_namespace),
        permissions::check(cluster, user, manager_namespace, namespace),
        reach(cluster, manager_namespace, Choice::Proxy),
        reach(cluster, manager_namespace, Choice::PortForward),
    );
    print(&chart)?;
    for check in permissions {
        print(&check)?;
    }
    for check in ways(proxy, port_forward) {
        print(&check)?;
    }
    match join(args, cluster, user, namespace).await {
        Ok(info) => {
            print(&Check::ok(
                SESSION,
                "the traffic manager lets a session of yours in",
            ))?;
            print(&ping(&info))?;
            let plan = HostPlan {
                namespace: namespace.to_owned(),
                protected: Protected::find(cluster, &args.daemon_socket).await,
                ..HostPlan::default()
            };
            print(&routes::check(plan.network(&info).subnets, holder).await)
        }
        Err(failure) => {
            print(&Check::failure(SESSION, failure))?;
            let unknown = "the cluster's subnets are not known";
            print(&Check::skipped(ROUTES, unknown))
        }
    }
}

/// Also tells who is connected.
async fn root_daemon(socket: &Path, name: &str) -> (Check, Option<v1::Holder>) {
    let uid = Uid::current().as_raw();
    let described = match describe(socket).await {
        Ok(described) => described,
        Err(failure) => return (Check::failure(ROOT_DAEMON, failure), None),
    };
    // The connection that is checked comes without its own routes.
    let is_checked = |holder: &v1::Holder| holder.name == name && holder.uid == uid;
    let holder = described.holders.iter().find(|it| is_checked(it)).cloned();
    if !version::compatible(version::VERSION, &described.version) {
        let failure = Failure::new(
            Reason::VersionMismatch,
            format!(
                "this is kvpn {}, but the root daemon is of version {}",
                version::VERSION,
                described.version
            ),
            "start the kvpnd that came with this kvpn",
        );
        return (Check::failure(ROOT_DAEMON, failure), holder);
    }
    let served = described.holders.iter();
    let served: String = served
        .map(|holder| format!(", and serves user {} ({})", holder.uid, holder.description))
        .collect();
    let message = format!("version {} runs{served}", described.version);
    (Check::ok(ROOT_DAEMON, message), holder)
}

async fn chart(cluster: &Cluster, namespace: &str) -> Check {
    let api: Api<Service> = Api::namespaced(cluster.client.clone(), namespace);
    let service = match cluster.call(api.get_opt(names::MANAGER_SERVICE)).await {
        Ok(Some(service)) => service,
        Ok(None) => return Check::failure(CHART, cluster.not_installed()),
        // Permissions have a check of their own.
        Err(failure) => match cluster.blame_missing_chart(failure).await {
            failure if failure.reason == Reason::Forbidden => {
                return Check::warning(CHART, failure.message, failure.next_step);
            }
            failure => return Check::failure(CHART, failure),
        },
    };
    let unknown = "unknown".to_owned();
    let installed = service.labels().get(VERSION_LABEL).unwrap_or(&unknown);
    if version::compatible(version::VERSION, installed) {
        return Check::ok(
            CHART,
            format!("version {installed} is installed in namespace {namespace}"),
        );
    }
    let failure = Failure::new(
        Reason::VersionMismatch,
        format!(
            "this is kvpn {}, but the chart is of version {installed}",
            version::VERSION
        ),
        format!("install kvpn {installed} here, or have an administrator upgrade the chart"),
    );
    Check::failure(CHART, failure)
}

/// How long a way to the traffic manager took to open.
async fn reach(cluster: &Cluster, namespace: &str, way: Choice) -> Result<Duration, Failure> {
    let start = Instant::now();
    let transports = Transports::new(cluster.clone(), namespace, way);
    Greeting::open(&transports).await?;
    Ok(start.elapsed())
}

/// One open way is enough.
fn ways(proxy: Result<Duration, Failure>, port_forward: Result<Duration, Failure>) -> [Check; 2] {
    let one_is_open = proxy.is_ok() || port_forward.is_ok();
    let check = |name: &str, way: Result<Duration, Failure>, without: &str| match way {
        Ok(took) => Check::ok(name, format!("answers after {}", millis(took))),
        Err(failure) if one_is_open => {
            let message = format!("{without}: {}", failure.message);
            Check::warning(name, message, failure.next_step)
        }
        Err(failure) => Check::failure(name, failure),
    };
    [
        check(PROXY, proxy, "kvpn has to take the slower way"),
        check(
            PORT_FORWARD,
            port_forward,
            "kvpn has no other way should the first be closed",
        ),
    ]
}

/// Joins the cluster with a session that is gone at once, and tells what the
/// traffic manager says of the cluster.
async fn join(
    args: &SessionArgs,
    cluster: &Cluster,
    user: &str,
    namespace: &str,
) -> Result<ClusterInfo, Failure> {
    let key = SessionKey::generate()?;
    let manager_namespace = &args.manager_namespace;
    let session = OwnSession::create(cluster, manager_namespace, user, &key).await?;
    let credentials = Credentials {
        session,
        key,
        namespace: namespace.to_owned(),
    };
    let joined = async {
        let transports = Transports::new(cluster.clone(), manager_namespace, Choice::Auto);
        let greeting = Greeting::open(&transports).await?;
        let connection = greeting.authenticate(&credentials).await?;
        Ok::<_, Failure>(connection.cluster().clone())
    };
    let joined = joined.await;
    // Should that fail, the traffic manager collects it.
    let deleted = credentials.session.delete().await;
    let info = joined?;
    deleted?;
    Ok(info)
}

fn ping(info: &ClusterInfo) -> Check {
    if info.ping_supported {
        return Check::ok(PING, "pods answer to it");
    }
    Check::warning(
        PING,
        "the traffic manager may not send echo requests, so a ping gets no answer; everything \
         else works",
        "have an administrator set `ping.allow=true` in the chart's values, which widens \
         net.ipv4.ping_group_range in its pod",
    )
}

fn print(check: &Check) -> io::Result<()> {
    let mut line = serde_json::to_vec(check)?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line)?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use kvpn_proto::check::Finding;

    use super::*;

    fn closed() -> Result<Duration, Failure> {
        Err(Failure::new(Reason::Forbidden, "you may not", "ask"))
    }

    #[test]
    fn one_open_way_makes_the_other_a_warning() {
        let [proxy, port_forward] = ways(closed(), Ok(Duration::from_millis(3)));
        assert!(matches!(proxy.finding, Finding::Warning { .. }));
        assert!(matches!(port_forward.finding, Finding::Ok { .. }));
    }

    #[test]
    fn two_closed_ways_are_failures() {
        for check in ways(closed(), closed()) {
            assert!(matches!(check.finding, Finding::Failure(_)));
        }
    }
}
