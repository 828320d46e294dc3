//! Arguments of `kvpnd session`.

use std::path::PathBuf;

use kvpn_proto::{Failure, names};
use nix::unistd::Uid;

use super::subnet_rules::SubnetRules;
use super::transport::Choice;
use super::vnat::VnatRules;
use crate::dns::rules::NameRules;

/// Connects this laptop to a cluster and stays until told to quit.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct SessionArgs {
    /// Path of the kubeconfig file to use.
    #[arg(long, value_name = "PATH")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Name of the kubeconfig context to use.
    #[arg(long, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// Namespace of this session; the context's own unless given.
    #[arg(short, long, value_name = "NAMESPACE")]
    pub(crate) namespace: Option<String>,
    /// Namespace that the traffic manager runs in.
    #[arg(long, value_name = "NAMESPACE", default_value = names::MANAGER_NAMESPACE)]
    pub(crate) manager_namespace: String,
    /// Name of the connection, of which there may be several.
    #[arg(long, value_name = "NAME", default_value = names::DEFAULT_CONNECTION)]
    pub(crate) name: String,
    /// Unix socket to serve the command line on.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Unix socket of the root daemon.
    #[arg(long, value_name = "PATH", default_value = names::DAEMON_SOCKET)]
    pub(crate) daemon_socket: PathBuf,
    /// The way to the traffic manager.
    #[arg(long, value_enum, value_name = "WAY", default_value = "auto")]
    pub(crate) transport: Choice,
    /// Suffix of names that the cluster answers for; repeatable.
    #[arg(long, value_name = "SUFFIX", value_delimiter = ',')]
    dns_include: Vec<String>,
    /// Suffix of names that the cluster does not answer for; repeatable.
    #[arg(long, value_name = "SUFFIX", value_delimiter = ',')]
    dns_exclude: Vec<String>,
    /// Name that gets the answers of another; repeatable.
    #[arg(long, value_name = "NAME=TARGET", value_delimiter = ',')]
    dns_mapping: Vec<String>,
    /// Subnet to route to the cluster besides its own; repeatable.
    #[arg(long, value_name = "SUBNET", value_delimiter = ',')]
    also_proxy: Vec<String>,
    /// Subnet to leave to the host; repeatable.
    #[arg(long, value_name = "SUBNET", value_delimiter = ',')]
    never_proxy: Vec<String>,
    /// Subnet of the cluster to show at other addresses, or `all`; repeatable.
    #[arg(long, value_name = "SUBNET", value_delimiter = ',')]
    vnat: Vec<String>,
    /// Subnet to route to the cluster although the host has a route to it;
    /// repeatable.
    #[arg(long, value_name = "SUBNET", value_delimiter = ',')]
    allow_conflicting_subnets: Vec<String>,
    /// Connections to the traffic manager, over which flows spread.
    #[arg(long, value_name = "COUNT", default_value_t = 4, hide = true)]
    pub(crate) connections: usize,
}

impl SessionArgs {
    /// What the user wants of names, in a session of this namespace.
    pub(crate) fn name_rules(&self, namespace: &str) -> Result<NameRules, Failure> {
        NameRules::new(
            &self.dns_include,
            &self.dns_exclude,
            &self.dns_mapping,
            namespace,
        )
        .map(|rules| rules.of_connection(&self.name, namespace))
    }

    /// What the user wants of subnets.
    pub(crate) fn subnet_rules(&self) -> Result<SubnetRules, Failure> {
        SubnetRules::new(
            &self.also_proxy,
            &self.never_proxy,
            &self.allow_conflicting_subnets,
        )
    }

    /// What the user wants to be shown at other addresses.
    pub(crate) fn vnat_rules(&self) -> Result<VnatRules, Failure> {
        VnatRules::new(&self.vnat)
    }

    /// What the user has said of names and subnets, as on the command line.
    pub(crate) fn options(&self) -> Vec<String> {
        let said = [
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
        ];
        let each = |(name, values): (&str, &Vec<String>)| -> Vec<String> {
            values.iter().map(|it| format!("{name}={it}")).collect()
        };
        said.into_iter().flat_map(each).collect()
    }

    /// Where the command line finds this session.
    pub(crate) fn socket(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| {
            let sessions = names::sessions_dir(Uid::current().as_raw());
            names::session_socket(&sessions, &self.name)
        })
    }
}
