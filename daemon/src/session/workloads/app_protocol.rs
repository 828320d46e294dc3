//! What a port speaks, as its Service or its name says.

use kvpn_proto::crd::{AppProtocol, WorkloadRef};
use kvpn_proto::{Failure, Reason};

use super::ResolvedPort;
use super::ports::Candidate;

/// What is known of a port before anybody has said a word there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spoken {
    pub(crate) protocol: AppProtocol,
    /// A Service's `appProtocol` says so, and not a name alone.
    pub(crate) is_declared: bool,
    /// Who says so, such as `appProtocol grpc of Service/web`.
    pub(crate) by: String,
}

impl Spoken {
    /// What the port that was chosen says of itself, by its Service's `appProtocol`, else by
    /// its name; else what the other names of the same port of the pods say, unless they
    /// contradict each other
    /// (<https://kubernetes.io/docs/concepts/services-networking/service/#application-protocol>).
    pub(super) fn of<'a>(
        chosen: &'a Candidate,
        others: impl Iterator<Item = &'a Candidate> + Clone,
    ) -> Option<Self> {
        let named = Self::named(chosen);
        let is_telling = |it: &Self| it.told().is_some();
        let own = Self::declared(chosen).or_else(|| named.clone().filter(is_telling));
        if own.is_some() {
            return own;
        }
        let declared: Vec<_> = others.clone().filter_map(Self::declared).collect();
        match declared.is_empty() {
            false => agreed(declared),
            true => named.or_else(|| agreed(others.filter_map(Self::named).collect())),
        }
    }

    fn declared(port: &Candidate) -> Option<Self> {
        let text = port.app_protocol.as_deref()?;
        Some(Self {
            protocol: read(text)?,
            is_declared: true,
            by: format!("appProtocol {text} of {}", port.place()),
        })
    }

    fn named(port: &Candidate) -> Option<Self> {
        let name = port.name.as_deref()?;
        Some(Self {
            protocol: of_name(name)?,
            is_declared: false,
            by: format!("the name {name} of the port of {}", port.place()),
        })
    }

    /// What agents are told. That there are no requests is not believed of a name: a port that
    /// is called `tcp` may be one of HTTP.
    pub(crate) fn told(&self) -> Option<AppProtocol> {
        match self.protocol {
            AppProtocol::Opaque if !self.is_declared => None,
            AppProtocol::Http | AppProtocol::Tls | AppProtocol::Opaque => Some(self.protocol),
        }
    }
}

/// What all of them say.
fn agreed(all: Vec<Spoken>) -> Option<Spoken> {
    let mut all = all.into_iter();
    let first = all.next()?;
    all.all(|it| it.protocol == first.protocol).then_some(first)
}

/// Refuses a filter where it is declared that no request can be read. Tells what the user
/// should know where one may not match.
pub(crate) fn check_filters(
    workload: &WorkloadRef,
    ports: &[ResolvedPort],
    ends_tls: bool,
) -> Result<Vec<String>, Failure> {
    let mut warnings = Vec::new();
    for port in ports {
        let Some(Spoken {
            protocol,
            is_declared,
            by,
        }) = &port.spoken
        else {
            continue;
        };
        let number = port.container_port;
        match protocol {
            AppProtocol::Http => {}
            AppProtocol::Tls if ends_tls => {}
            AppProtocol::Tls => warnings.push(format!(
                "by {by}, container port {number} carries TLS, within which no filter matches \
                 without --tls-cert or --tls-secret"
            )),
            AppProtocol::Opaque if !is_declared => warnings.push(format!(
                "by {by}, container port {number} may carry no HTTP, and then no filter matches"
            )),
            AppProtocol::Opaque => {
                let message = format!(
                    "no filter can match on container port {number} of {workload}: by {by} it \
                     carries no HTTP"
                );
                let next_step =
                    "leave the filter out; if it is HTTP, have the Service say `appProtocol: http`";
                return Err(Failure::new(Reason::NotSupported, message, next_step));
            }
        }
    }
    Ok(warnings)
}

/// Reads names of IANA's and of Kubernetes; others say nothing.
fn read(text: &str) -> Option<AppProtocol> {
    let text = text.to_ascii_lowercase();
    match text.strip_prefix("kubernetes.io/").unwrap_or(&text) {
        "http" | "http2" | "h2c" | "grpc" | "grpc-web" | "ws" => Some(AppProtocol::Http),
        "https" | "tls" | "wss" => Some(AppProtocol::Tls),
        "tcp" | "amqp" | "ftp" | "imap" | "kafka" | "ldap" | "mariadb" | "memcached" | "mongo"
        | "mongodb" | "mqtt" | "mysql" | "nats" | "pop3" | "postgres" | "postgresql" | "redis"
        | "smtp" | "ssh" => Some(AppProtocol::Opaque),
        _ => None,
    }
}

/// Reads the name of a port: a protocol, or one of the general ones with a suffix, as Istio
/// has it. `redis-ui` is hardly Redis.
fn of_name(name: &str) -> Option<AppProtocol> {
    let (first, _) = name.split_once('-').unwrap_or((name, ""));
    let general = ["http", "http2", "h2c", "grpc", "https", "tls", "tcp"];
    read(name).or_else(|| read(first).filter(|_| general.contains(&first)))
}

#[cfg(test)]
mod tests {
    use kvpn_proto::crd::WorkloadKind;
    use kvpn_proto::flow::Protocol;

    use super::*;

    #[test]
    fn protocols_are_known_by_the_words_of_services() {
        for text in [
            "http",
            "HTTP",
            "kubernetes.io/h2c",
            "kubernetes.io/ws",
            "grpc",
        ] {
            assert_eq!(read(text), Some(AppProtocol::Http), "{text}");
        }
        for text in ["https", "kubernetes.io/wss"] {
            assert_eq!(read(text), Some(AppProtocol::Tls), "{text}");
        }
        for text in ["tcp", "mysql", "postgresql"] {
            assert_eq!(read(text), Some(AppProtocol::Opaque), "{text}");
        }
        for text in ["", "example.com/own", "web"] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn names_of_ports_may_have_a_suffix() {
        for name in ["http", "http-web", "grpc-web", "grpc-api", "h2c"] {
            assert_eq!(of_name(name), Some(AppProtocol::Http), "{name}");
        }
        assert_eq!(of_name("https-web"), Some(AppProtocol::Tls));
        assert_eq!(of_name("tcp-admin"), Some(AppProtocol::Opaque));
        assert_eq!(of_name("redis"), Some(AppProtocol::Opaque));
        for name in ["web", "redis-ui", "httpd", "metrics"] {
            assert_eq!(of_name(name), None, "{name}");
        }
    }

    #[test]
    fn names_that_speak_of_no_http_are_not_told_to_agents() {
        let told = |protocol, is_declared| {
            let by = String::new();
            let spoken = Spoken {
                protocol,
                is_declared,
                by,
            };
            spoken.told()
        };
        assert_eq!(told(AppProtocol::Opaque, false), None);
        let opaque = Some(AppProtocol::Opaque);
        assert_eq!(told(AppProtocol::Opaque, true), opaque);
        for protocol in [AppProtocol::Http, AppProtocol::Tls] {
            assert_eq!(told(protocol, false), Some(protocol));
        }
    }

    #[test]
    fn filters_are_refused_where_no_request_can_be_read() {
        let web = WorkloadRef {
            kind: WorkloadKind::Deployment,
            name: "web".into(),
        };
        let port = |protocol, by: &str| ResolvedPort {
            local: "127.0.0.1:9000".parse().unwrap(),
            container_port: 3306,
            protocol: Protocol::Tcp,
            service: None,
            spoken: Some(Spoken {
                protocol,
                is_declared: by.starts_with("appProtocol"),
                by: by.into(),
            }),
        };
        let check = |port: &ResolvedPort, ends_tls| {
            check_filters(&web, std::slice::from_ref(port), ends_tls)
        };
        let opaque = port(AppProtocol::Opaque, "appProtocol mysql of Service/db");
        let failure = check(&opaque, false).unwrap_err();
        assert_eq!(failure.reason, Reason::NotSupported);
        assert_eq!(
            failure.message,
            "no filter can match on container port 3306 of Deployment/web: by appProtocol mysql \
             of Service/db it carries no HTTP"
        );
        assert!(failure.next_step.contains("appProtocol: http"));
        let by_name = port(AppProtocol::Opaque, "its name");
        let warnings = check(&by_name, false).unwrap();
        assert!(warnings[0].contains("by its name, container port 3306 may"));
        let tls = port(AppProtocol::Tls, "its name");
        assert_eq!(check(&tls, false).unwrap().len(), 1);
        assert_eq!(check(&tls, true), Ok(vec![]));
        let http = port(AppProtocol::Http, "its name");
        assert_eq!(check(&http, false), Ok(vec![]));
        let unknown = ResolvedPort {
            spoken: None,
            ..opaque
        };
        assert_eq!(check(&unknown, false), Ok(vec![]));
    }
}
