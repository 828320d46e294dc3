//! What a session alone can check: names as the laptop's programs ask for
//! them, and the way through the tunnel.

use std::time::{Duration, Instant};

use kvpn_proto::check::Check;
use kvpn_proto::{Failure, Reason, v1};
use tokio::time::timeout;

use super::manager::{Client, Manager};

/// How long each check may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// How often the tunnel is measured; the best time counts.
const PROBES: usize = 5;

/// A round trip that is felt in every request.
const SLOW: Duration = Duration::from_millis(300);

/// Checks names and the tunnel.
pub(crate) async fn diagnose(manager: &Manager) -> Vec<Check> {
    let (names, tunnel) = tokio::join!(check_names(manager), check_tunnel(manager));
    vec![names, tunnel]
}

/// Asks for a name that every cluster has, through the laptop's own resolver.
async fn check_names(manager: &Manager) -> Check {
    const NAME: &str = "Cluster names";
    let domain = manager.cluster().borrow().domain.clone();
    if domain.is_empty() {
        return Check::warning(
            NAME,
            "the traffic manager does not know the cluster's domain",
            "look at /etc/resolv.conf in its pod",
        );
    }
    let host = format!("kubernetes.default.svc.{domain}");
    let why = match timeout(DEADLINE, tokio::net::lookup_host((host.as_str(), 443))).await {
        Ok(Ok(mut addresses)) => match addresses.next() {
            Some(address) => {
                return Check::ok(NAME, format!("{host} is {}", address.ip()));
            }
            None => "it has no address".to_owned(),
        },
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} s", DEADLINE.as_secs()),
    };
    let failure = Failure::new(
        Reason::HostRefused,
        format!("this laptop cannot resolve {host}: {why}"),
        "see whether /etc/resolv.conf still names kvpn's server, and whether the pods of the \
         cluster's DNS run: `kubectl -n kube-system get pods -l k8s-app=kube-dns`",
    );
    Check::failure(NAME, failure)
}

async fn check_tunnel(manager: &Manager) -> Check {
    const NAME: &str = "Tunnel";
    let lost = |why: &str| {
        let failure = Failure::new(
            Reason::ManagerUnreachable,
            format!("the tunnel to the traffic manager does not answer: {why}"),
            "kvpn reconnects by itself; if it does not, see the other findings",
        );
        Check::failure(NAME, failure)
    };
    let Some(client) = manager.client() else {
        return lost("it is down, and kvpn reconnects");
    };
    match timeout(DEADLINE, round_trip(client)).await {
        Ok(Ok(best)) if best < SLOW => Check::ok(NAME, format!("round trip {}", millis(best))),
        Ok(Ok(best)) => Check::warning(
            NAME,
            format!(
                "the round trip to the traffic manager takes {}",
                millis(best)
            ),
            "see whether the way to the API server is slow: `kubectl get --raw /readyz`",
        ),
        Ok(Err(status)) => lost(status.message()),
        Err(_) => lost(&format!("no answer within {} s", DEADLINE.as_secs())),
    }
}

/// The shortest of several round trips of a call that does next to nothing.
async fn round_trip(mut client: Client) -> Result<Duration, tonic::Status> {
    let mut best = Duration::MAX;
    for _ in 0..PROBES {
        let start = Instant::now();
        client.describe(v1::DescribeRequest::default()).await?;
        best = best.min(start.elapsed());
    }
    Ok(best)
}

/// A time for people, such as `1.3 ms`.
pub(super) fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1_000.0)
}
