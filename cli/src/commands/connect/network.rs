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

    /// Refuses a session that runs with other names and subnets than these, if there are any.
    pub(super) fn check(&self, status: &StatusResponse) -> Result<(), Failure> {
        let (mut wanted, mut own) = (self.options(), status.options.clone());
        wanted.sort();
        own.sort();
        if wanted.is_empty() || wanted == own {
            return Ok(());
        }
        let mut differing = wanted.iter().filter(|it| !own.contains(it));
        let differing = differing
            .next()
            .or(own.iter().find(|it| !wanted.contains(it)));
        let name = differing.map_or("it", |it| it.split('=').next().unwrap_or(it));
        Err(Failure::new(
            Reason::AlreadyConnected,
            format!(
                "already connected to context {}; {name} is for a new connection",
                status.context
            ),
            "run `kvpn quit` first to connect with other names or subnets",
        ))
    }

    /// Each as on the command line.
    fn options(&self) -> Vec<String> {
        let each = |(name, values): (&str, &[String])| -> Vec<String> {
            values.iter().map(|it| format!("{name}={it}")).collect()
        };
        self.named().into_iter().flat_map(each).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_session_must_have_the_names_and_subnets_that_are_asked_for() {
        let status = StatusResponse {
            options: vec!["--vnat=all".into(), "--also-proxy=192.0.2.0/24".into()],
            ..StatusResponse::default()
        };
        let flags = |also_proxy: &[&str], vnat: &[&str]| {
            let texts = |texts: &[&str]| texts.iter().map(|it| (*it).to_owned()).collect();
            NetworkFlags {
                also_proxy: texts(also_proxy),
                vnat: texts(vnat),
                ..NetworkFlags::default()
            }
        };
        assert_eq!(flags(&[], &[]).check(&status), Ok(()));
        assert_eq!(flags(&["192.0.2.0/24"], &["all"]).check(&status), Ok(()));
        for (other, named) in [
            (flags(&["198.51.100.0/24"], &["all"]), "--also-proxy"),
            (flags(&[], &["all"]), "--also-proxy"),
            (flags(&["192.0.2.0/24"], &["10.0.0.0/8"]), "--vnat"),
        ] {
            let failure = other.check(&status).unwrap_err();
            assert!(failure.message.contains(named), "{failure}");
        }
    }
}
