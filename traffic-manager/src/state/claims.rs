//! Claims: which ports of a pod go to a laptop.

use kvpn_proto::crd::AppProtocol;
use kvpn_proto::filter::HttpFilter;
use kvpn_proto::flow::Protocol;
use kvpn_proto::tls::TlsIdentity;
use kvpn_proto::v1;

use super::Key;

/// A port of a pod whose connections, or some of whose requests, go to a laptop.
/// Those with a filter come first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Claim {
    pub(crate) container_port: u16,
    pub(crate) protocol: Protocol,
    pub(crate) reach: Reach,
    /// Copies go to the laptop, and somebody else answers.
    pub(crate) copy: bool,
    pub(crate) id: String,
    pub(crate) http_probed: bool,
    /// When the laptop does not answer, nobody does.
    pub(crate) fails_closed: bool,
    /// The container that is stopped meanwhile.
    pub(crate) stops: Option<String>,
    /// Its agent answers the port's probes for the container that is stopped.
    pub(crate) answers_probes: bool,
    /// What the agent ends clients' TLS with.
    pub(crate) tls: Option<TlsIdentity>,
    /// It is to do so with what it had before this process was started.
    pub(crate) keeps_tls: bool,
    /// Ports of the pod's localhost that its holder may have dialled.
    pub(crate) pod_ports: Vec<u16>,
    /// What is spoken on the port, if that is known.
    pub(crate) app_protocol: Option<AppProtocol>,
}

/// What of a port's traffic a claim is on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reach {
    Requests(HttpFilter),
    /// Whatever no filter takes.
    Rest,
}

impl From<Option<HttpFilter>> for Reach {
    fn from(filter: Option<HttpFilter>) -> Self {
        filter.map_or(Self::Rest, Self::Requests)
    }
}

impl Claim {
    /// The id of an engagement's claim on a port. It holds the engagement's
    /// UID, so that a namesake's claim is another one.
    pub(crate) fn id_of(engagement_uid: &str, container_port: u16, protocol: Protocol) -> String {
        let protocol = match protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        format!("{engagement_uid}/{container_port}/{protocol}")
    }

    /// Whether it is one of an engagement's.
    pub(crate) fn is_of(&self, engagement_uid: &str) -> bool {
        let uid = self.id.split_once('/').map(|(uid, _)| uid);
        uid == Some(engagement_uid)
    }
}

impl From<Claim> for v1::Claim {
    fn from(claim: Claim) -> Self {
        Self {
            id: claim.id,
            container_port: claim.container_port.into(),
            protocol: v1::Protocol::from(claim.protocol).into(),
            http_probed: claim.http_probed,
            fails_closed: claim.fails_closed,
            stopped_container: claim.stops.unwrap_or_default(),
            answers_probes: claim.answers_probes,
            tls: claim.tls.map(Into::into),
            keeps_tls: claim.keeps_tls,
            pod_ports: claim.pod_ports.into_iter().map(Into::into).collect(),
            app_protocol: claim
                .app_protocol
                .map_or(v1::AppProtocol::Unspecified, Into::into)
                .into(),
            http: match claim.reach {
                Reach::Requests(filter) => Some(filter.into()),
                Reach::Rest => None,
            },
        }
    }
}

/// All claims on a pod, as its agent gets them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClaimSet {
    pub(crate) generation: u64,
    pub(crate) claims: Vec<Claim>,
}

impl From<ClaimSet> for v1::WatchClaimsResponse {
    fn from(set: ClaimSet) -> Self {
        let (copies, claims): (Vec<_>, Vec<_>) = set.claims.into_iter().partition(|it| it.copy);
        let told = |claims: Vec<Claim>| claims.into_iter().map(Into::into).collect();
        Self {
            generation: set.generation,
            claims: told(claims),
            copies: told(copies),
        }
    }
}

/// Where a claimed connection goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClaimRoute {
    pub(crate) session_uid: String,
    pub(crate) engagement: Key,
    pub(crate) container_port: u16,
    pub(crate) protocol: Protocol,
    pub(crate) pod: Key,
}
