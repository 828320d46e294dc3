//! What the cluster's addresses belong to: pods as the traffic manager knows
//! them, Services as the cluster's DNS does. Asked only while somebody looks.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::future::join_all;
use hickory_proto::op::{Message, OpCode, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use kvpn_proto::flow;
use kvpn_proto::v1;
use tokio::time::timeout;
use tracing::debug;

use super::cluster_info::ClusterInfo;
use super::manager::{LookupError, Manager};

/// How long an answer holds; pods come and go.
const FRESH: Duration = Duration::from_secs(10);

/// For how long a Service is not asked for again of which nothing was heard.
const SILENT: Duration = Duration::from_secs(30);

/// How long a look waits for answers; what comes later is not waited for.
const DEADLINE: Duration = Duration::from_secs(2);

/// How many addresses are asked for at a look, of the traffic manager and of
/// the cluster's DNS.
const MAX_PODS: usize = 1_024;
const MAX_SERVICES: usize = 32;

/// How many answers are remembered.
const MAX_KNOWN: usize = 8_192;

/// A pod or a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Object {
    /// As kubectl has it: `pod` or `service`.
    pub(crate) kind: &'static str,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// What is known of addresses.
pub(crate) struct Directory {
    manager: Manager,
    known: Mutex<HashMap<IpAddr, Known>>,
}

struct Known {
    object: Option<Object>,
    /// When it is asked for again.
    until: Instant,
}

/// What was heard of an address.
enum Heard {
    /// What it belongs to, if anything.
    Object(Option<Object>),
    Nothing,
}

impl Directory {
    pub(crate) fn new(manager: Manager) -> Self {
        Self {
            manager,
            known: Mutex::default(),
        }
    }

    /// What these addresses belong to, as far as it can be told in a short
    /// time.
    pub(crate) async fn describe(&self, addresses: BTreeSet<IpAddr>) -> HashMap<IpAddr, Object> {
        let stale = self.stale(&addresses);
        let (services, pods): (Vec<IpAddr>, Vec<IpAddr>) = {
            let info = self.manager.cluster().borrow().clone();
            let is_service = |ip: &IpAddr| {
                info.service_subnets
                    .iter()
                    .any(|subnet| subnet.contains(ip))
            };
            stale.into_iter().partition(is_service)
        };
        let heard = tokio::join!(self.ask_pods(&pods), self.ask_services(&services));
        let now = Instant::now();
        let mut known = self.lock();
        if known.len() + addresses.len() > MAX_KNOWN {
            known.clear();
        }
        for (address, heard) in heard.0.into_iter().chain(heard.1) {
            let (object, holds) = match heard {
                Heard::Object(object) => (object, FRESH),
                // What it was before, it most likely still is.
                Heard::Nothing => (known.remove(&address).and_then(|old| old.object), SILENT),
            };
            let until = now + holds;
            known.insert(address, Known { object, until });
        }
        let object = |address| Some((address, known.get(&address)?.object.clone()?));
        addresses.into_iter().filter_map(object).collect()
    }

    fn stale(&self, addresses: &BTreeSet<IpAddr>) -> Vec<IpAddr> {
        let (known, now) = (self.lock(), Instant::now());
        let is_fresh = |ip: &IpAddr| known.get(ip).is_some_and(|known| now < known.until);
        let stale = addresses.iter().filter(|address| !is_fresh(address));
        stale.copied().collect()
    }

    /// Nothing when the traffic manager does not answer; it is asked again then.
    async fn ask_pods(&self, addresses: &[IpAddr]) -> Vec<(IpAddr, Heard)> {
        let addresses = &addresses[..addresses.len().min(MAX_PODS)];
        let Some(mut client) = self.manager.client().filter(|_| !addresses.is_empty()) else {
            return Vec::new();
        };
        let request = v1::DescribeRequest {
            addresses: addresses.iter().map(|ip| flow::octets(*ip)).collect(),
        };
        let pods = match timeout(DEADLINE, client.describe(request)).await {
            Ok(Ok(response)) => response.into_inner().pods,
            Ok(Err(status)) => {
                debug!(error = status.message(), "Addresses cannot be described");
                return Vec::new();
            }
            Err(_) => return Vec::new(),
        };
        let mut found: HashMap<IpAddr, Object> = pods
            .into_iter()
            .filter_map(|pod| {
                let object = Object {
                    kind: "pod",
                    namespace: pod.namespace,
                    name: pod.name,
                };
                Some((flow::ip(&pod.address).ok()?, object))
            })
            .collect();
        let answers = addresses.iter();
        answers
            .map(|ip| (*ip, Heard::Object(found.remove(ip))))
            .collect()
    }

    async fn ask_services(&self, addresses: &[IpAddr]) -> Vec<(IpAddr, Heard)> {
        let addresses = &addresses[..addresses.len().min(MAX_SERVICES)];
        let manager = &self.manager;
        let info = manager.cluster().borrow().clone();
        let answers = ask_names(addresses, DEADLINE, |question| manager.lookup(question)).await;
        let heard = answers.into_iter().map(|(address, answer)| {
            let heard = match answer {
                Some(answer) => Heard::Object(service(&answer, &info)),
                None => Heard::Nothing,
            };
            (address, heard)
        });
        heard.collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leaves out what every name of the cluster ends with.
pub(crate) fn short_name<'a>(name: &'a str, info: &ClusterInfo) -> &'a str {
    let suffix = format!(".svc.{}", info.domain);
    name.strip_suffix(&suffix).unwrap_or(name)
}

/// Asks for the reverse names of addresses side by side, each for so long.
/// Leaves out those that could not be asked for.
async fn ask_names<F>(
    addresses: &[IpAddr],
    deadline: Duration,
    lookup: impl Fn(Vec<u8>) -> F,
) -> Vec<(IpAddr, Option<Message>)>
where
    F: Future<Output = Result<Vec<u8>, LookupError>>,
{
    let questions = addresses.iter().filter_map(|&address| {
        let answer = lookup(reverse_question(address)?);
        Some(async move {
            match timeout(deadline, answer).await {
                Ok(Ok(answer)) => Some((address, Message::from_vec(&answer).ok())),
                Ok(Err(LookupError::Down)) => None,
                Ok(Err(LookupError::TimedOut | LookupError::Failed(_))) | Err(_) => {
                    Some((address, None))
                }
            }
        })
    });
    join_all(questions).await.into_iter().flatten().collect()
}

fn reverse_question(address: IpAddr) -> Option<Vec<u8>> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.metadata.op_code = OpCode::Query;
    message.add_query(Query::query(Name::from(address), RecordType::PTR));
    message.to_vec().ok()
}

/// The Service that a reverse name is of, such as `web.shop.svc.cluster.local`.
fn service(answer: &Message, info: &ClusterInfo) -> Option<Object> {
    answer.answers.iter().find_map(|record| {
        let RData::PTR(target) = &record.data else {
            return None;
        };
        let name = target.0.to_lowercase().to_ascii();
        let name = name.trim_end_matches('.');
        let (service, namespace) = short_name(name, info).split_once('.')?;
        (!namespace.contains('.')).then(|| Object {
            kind: "service",
            namespace: namespace.to_owned(),
            name: service.to_owned(),
        })
    })
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::Record;
    use hickory_proto::rr::rdata::PTR;

    use super::*;

    fn info() -> ClusterInfo {
        ClusterInfo {
            domain: "cluster.local".into(),
            ..ClusterInfo::default()
        }
    }

    fn answer(name: &str) -> Message {
        let mut message = Message::response(1, OpCode::Query);
        let data = RData::PTR(PTR(Name::from_ascii(name).unwrap()));
        message.add_answer(Record::from_rdata(Name::root(), 5, data));
        message
    }

    #[test]
    fn reverse_name_of_a_service_is_taken_apart() {
        let object = service(&answer("web.shop.svc.cluster.local."), &info()).unwrap();
        assert_eq!(
            (object.kind, object.namespace.as_str(), object.name.as_str()),
            ("service", "shop", "web")
        );
    }

    #[test]
    fn other_reverse_names_are_no_services() {
        for name in [
            "10-244-0-7.web.shop.svc.cluster.local.",
            "printer.office.example.",
        ] {
            assert_eq!(service(&answer(name), &info()), None, "{name}");
        }
    }

    #[test]
    fn question_is_about_the_reverse_name() {
        let question = reverse_question("10.96.0.7".parse().unwrap()).unwrap();
        let message = Message::from_vec(&question).unwrap();
        let name = message.queries[0].name().to_ascii();
        assert_eq!(name, "7.0.96.10.in-addr.arpa.");
    }

    #[tokio::test]
    async fn a_name_that_is_not_told_keeps_no_other_away() {
        let addresses: [IpAddr; 2] = ["10.96.0.7", "10.96.0.8"].map(|ip| ip.parse().unwrap());
        let answers = ask_names(&addresses, Duration::from_millis(20), |question| {
            let question = Message::from_vec(&question).unwrap();
            let is_silent = question.queries[0].name().to_ascii() == "7.0.96.10.in-addr.arpa.";
            async move {
                if is_silent {
                    std::future::pending::<()>().await;
                }
                Ok(answer("web.shop.svc.cluster.local.").to_vec().unwrap())
            }
        });
        let answers = answers.await;
        assert!(matches!(answers[0], (address, None) if address == addresses[0]));
        let told = answers[1].1.as_ref().unwrap();
        assert_eq!(service(told, &info()).unwrap().name, "web");
    }

    #[tokio::test]
    async fn nothing_is_known_while_the_tunnel_is_down() {
        let directory = Directory::new(Manager::down(info()));
        let addresses = ["10.244.0.7".parse().unwrap()].into();
        assert!(directory.describe(addresses).await.is_empty());
    }
}
