//! Flags that say which names and addresses are the cluster's. The session reads
//! their values itself.

use clap::Args;
use kvpn_proto::v1::StatusResponse;
use kvpn_proto::{Failure, Reason};

/// Which names and addresses are the cluster's.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct NetworkFlags {
    /// Have the cluster answer for names under a suffix, such as corp.example
    #[arg(long, value_name = "SUFFIX", value_delimiter = ',')]
    pub(crate) dns_include: Vec<String>,
    /// Leave names under a suffix to the laptop's own name servers; of suffixes
    /// that fit a name the longest counts
    #[arg(long, value_name = "SUFFIX", value_delimiter = ',')]
    pub(crate) dns_exclude: Vec<String>,
    /// Give a name the answers of another, such as db.example.com=postgres.shop
    #[arg(long, value_name = "NAME=TARGET", value_delimiter = ',')]
    pub(crate) dns_mapping: Vec<String>,
    /// Subnets to route to the cluster besides its own, such as 192.0.2.0/24
    ///
    /// The cluster connects to these addresses as one of its pods would. Of this
    /// flag and --never-proxy, the more specific subnet wins.
    #[arg(long, value_name = "SUBNET", value_delimiter = ',')]
    pub(crate) also_proxy: Vec<String>,
    /// Subnets never to route to the cluster, such as 10.244.7.0/24
    ///
    /// The laptop reaches these addresses as it does without a connection.
    #[arg(long, value_name = "SUBNET", value_delimiter = ',')]
    pub(crate) never_proxy: Vec<String>,
    /// Subnets to route to the cluster although the laptop has another route to
    /// them, such as 10.96.0.0/16
    ///
    /// Without this flag, a route to the cluster's addresses on the laptop, as of a
    /// VPN or of Docker, keeps it from connecting. With it, the cluster wins while
    /// connected.
    #[arg(long, value_name = "SUBNET", value_delimiter = ',')]
    pub(crate) allow_conflicting_subnets: Vec<String>,
    /// Subnets of the cluster to have at other addresses, such as 10.96.0.0/16, or
    /// `all`
    ///
    /// Names lead to the other addresses, which `kvpn status` shows. For a cluster
    /// whose addresses the laptop, a VPN or another connection uses.
    #[arg(long, value_name = "SUBNET", value_delimiter = ',')]
    pub(crate) vnat: Vec<String>,
}

impl NetworkFlags {
    /// The flags by their names.
    pub(crate) fn named(&self) -> [(&'static str, &[String]); 7] {
        [
            ("--dns-include", &self.dns_include),
            ("--dns-exclude", &self.dns_exclude),
            ("--dns-mapping", &self.dns_mapping),
            ("--also-proxy", &self.also_proxy),
            ("--never-proxy", &self.never_proxy),
            (
                "--allow-conflicting-subnets",
                &self.allow_conflicting_subnets,
            ),
            ("--vnat", &self.vnat),
        ]
    }

    /// Refuses a session that runs, which has names and subnets of its own.
    pub(super) fn check(&self, status: &StatusResponse) -> Result<(), Failure> {
        let mut named = self.named().into_iter();
        match named.find(|(_, values)| !values.is_empty()) {
            None => Ok(()),
            Some((name, _)) => Err(Failure::new(
                Reason::AlreadyConnected,
                format!(
                    "already connected to context {}; {name} is for a new connection",
                    status.context
                ),
                "run `kvpn quit` first to connect with other names or subnets",
            )),
        }
    }
}
