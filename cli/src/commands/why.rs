//! `kvpn why`: tells how a name or an address is reached, and where it stops.

mod request;

use std::net::{IpAddr, SocketAddr};
use std::process::{ExitCode, Stdio};
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand};
use kvpn_proto::story::Story;
use kvpn_proto::{Failure, Reason};
use tokio::process::Command;
use tokio::time::timeout;

use crate::args::Flags;
use crate::ended::Ended;
use crate::interrupts::Interrupts;
use crate::output;
use crate::progress::Progress;
use crate::session_process::find_daemon;

/// How long it may take: a name that nobody answers for, and four addresses that do
/// not answer either.
const DEADLINE: Duration = Duration::from_secs(90);

/// Tell how a name or an address is reached, and where it stops
///
/// Says who answers for the name and why, what came back, which way packets take,
/// what has the address in the cluster, and, where a port is named, whether it
/// accepts connections. Works without a connection too. Exits with 0 whatever the
/// answer is; `-o json` has it as `reached`.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct WhyArgs {
    /// Such as web, web.shop:80, 10.96.0.1, 10.96.0.1:443 or [fd00:96::1]:443
    #[arg(value_name = "NAME[:PORT]", required = true)]
    target: Option<Target>,
    #[command(subcommand)]
    about: Option<About>,
}

#[derive(Debug, Subcommand)]
enum About {
    Request(request::RequestArgs),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    /// A name or an address.
    host: String,
    port: Option<u16>,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self {
                host: address.to_string(),
                port: None,
            });
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Self::new(&address.ip().to_string(), Some(address.port()));
        }
        match text.split_once(':') {
            None => Self::new(text, None),
            Some((host, port)) => {
                let port = port.parse();
                Self::new(
                    host,
                    Some(port.map_err(|_| "a port is a number up to 65535")?),
                )
            }
        }
    }
}

impl Target {
    fn new(host: &str, port: Option<u16>) -> Result<Self, String> {
        let is_letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
        if host.trim_matches('.').is_empty() || !host.chars().all(is_letter) {
            return Err("it is neither a name nor an address".into());
        }
        if host.starts_with('-') || host.len() > 254 {
            return Err("it is not a name".into());
        }
        if port == Some(0) {
            return Err("nothing listens on port 0".into());
        }
        Ok(Self {
            host: host.into(),
            port,
        })
    }
}

pub(crate) async fn run(flags: &Flags, args: &WhyArgs) -> Result<ExitCode, Ended> {
    let target = match (&args.about, &args.target) {
        (Some(About::Request(args)), _) => return request::run(flags, args).await,
        (None, Some(target)) => target,
        (None, None) => return Err(Failure::internal("nothing was asked for").into()),
    };
    let mut interrupts = Interrupts::listen()?;
    let story = {
        let _progress = Progress::start("following the way");
        tokio::select! {
            story = find_out(target) => story?,
            signal = interrupts.next() => return Err(Ended::Interrupted(signal)),
        }
    };
    output::print(&output::Told(story), flags.output)?;
    Ok(ExitCode::SUCCESS)
}

async fn find_out(target: &Target) -> Result<Story, Failure> {
    let binary = find_daemon()?;
    let mut command = Command::new(&binary);
    command.arg("why").arg(&target.host);
    if let Some(port) = target.port {
        command.arg("--port").arg(port.to_string());
    }
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = match timeout(DEADLINE, output).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => {
            return Err(Failure::new(
                Reason::DaemonNotRunning,
                format!("cannot run {}: {error}", binary.display()),
                "install kvpnd beside kvpn",
            ));
        }
        Err(_) => {
            return Err(Failure::new(
                Reason::TimedOut,
                format!("no answer within {} s", DEADLINE.as_secs()),
                "see `kvpn doctor`",
            ));
        }
    };
    serde_json::from_slice(&output.stdout).map_err(|_| {
        Failure::new(
            Reason::VersionMismatch,
            "kvpnd cannot tell why, or says something that kvpn does not understand",
            "use kvpn and kvpnd of the same version",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_names_and_addresses_with_and_without_ports() {
        for (text, host, port) in [
            ("web", "web", None),
            ("web.shop:80", "web.shop", Some(80)),
            ("_http._tcp.web.", "_http._tcp.web.", None),
            ("10.96.0.1", "10.96.0.1", None),
            ("10.96.0.1:443", "10.96.0.1", Some(443)),
            ("fd00:96::1", "fd00:96::1", None),
            ("[fd00:96::1]:443", "fd00:96::1", Some(443)),
        ] {
            let host = host.to_owned();
            assert_eq!(text.parse(), Ok(Target { host, port }), "{text}");
        }
        for text in [
            "",
            ".",
            "web:",
            "web:0",
            "web:x",
            "web:65536",
            "a b",
            "-p",
            "a/b",
            "::x",
        ] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }
}
