//! `kvpn intercept`: hands a workload's connections to a local port.

mod port;
mod to_pod;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use kvpn_proto::crd::Verb;
use kvpn_proto::duration::parse_duration;
use kvpn_proto::filter::{Condition, HttpFilter};
use kvpn_proto::tls::TlsIdentity;
use kvpn_proto::v1::{InterceptRequest, RequestedPort};
use kvpn_proto::{Failure, Reason};

use port::PortSpec;
use to_pod::ToPodSpec;

use super::engage::{EnvironmentArgs, engage};
use crate::args::Flags;
use crate::ended::Ended;

/// Heading of the flags that choose requests.
const FILTER: &str = "Options for HTTP requests";

/// Hand a workload's connections to a local port
///
/// New connections to the workload's pods are answered by this laptop until
/// `kvpn leave`; the pods go on as they are, and answer themselves whenever
/// this laptop does not.
#[derive(Args, Debug)]
pub(crate) struct InterceptArgs {
    #[command(flatten)]
    pub(crate) engage: EngageArgs,
    /// Only requests with this header: NAME=VALUE, NAME~=PATTERN, or NAME for any
    /// value; may be given more than once
    #[arg(long, value_name = "HEADER", help_heading = FILTER)]
    pub(crate) http_header: Vec<String>,
    /// Only requests for this path: /PATH, /PATH/* for all below it, or ~=PATTERN
    #[arg(long, value_name = "PATH", help_heading = FILTER)]
    pub(crate) http_path: Vec<String>,
    /// Only requests of this method, such as POST
    #[arg(long, value_name = "METHOD", help_heading = FILTER)]
    pub(crate) http_method: Vec<String>,
    /// Only requests with this parameter in the query, written as a header is
    #[arg(long, value_name = "PARAMETER", help_heading = FILTER)]
    pub(crate) http_query: Vec<String>,
    /// Requests that fit one of these, not all of them
    #[arg(long, help_heading = FILTER)]
    pub(crate) any: bool,
    #[command(flatten)]
    pub(crate) tls: TlsArgs,
    /// Who answers when this laptop does not: the app, or nobody (status 503; what is no
    /// HTTP is reset)
    #[arg(long, value_enum, default_value_t, value_name = "WHO")]
    pub(crate) on_failure: OnFailure,
    /// Where the cluster refuses the agent to running pods, roll the workload out once, so
    /// that its pods are born with it; needs the right to patch the workload
    #[arg(long)]
    pub(crate) rollout: bool,
    /// Container whose ports are meant [default: any]
    #[arg(long, value_name = "NAME")]
    pub(crate) container: Option<String>,
}

/// How clients' TLS is ended, so that filters can look inside.
#[derive(Args, Debug)]
pub(crate) struct TlsArgs {
    /// Certificate that the workload's clients trust, with its chain, so that requests
    /// within their TLS can be chosen; PEM
    #[arg(long, value_name = "FILE", requires = "tls_key", help_heading = FILTER)]
    tls_cert: Option<PathBuf>,
    /// Key of that certificate; PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert", help_heading = FILTER)]
    tls_key: Option<PathBuf>,
    /// Secret of the workload's namespace that has both, which you may read
    #[arg(long, value_name = "NAME", conflicts_with = "tls_cert", help_heading = FILTER)]
    tls_secret: Option<String>,
}

impl TlsArgs {
    /// Adds to a request what the files say.
    fn add_to(&self, request: &mut InterceptRequest) -> Result<(), Failure> {
        request.tls_secret = self.tls_secret.clone().unwrap_or_default();
        let (Some(certificates), Some(key)) = (&self.tls_cert, &self.tls_key) else {
            return Ok(());
        };
        let identity = TlsIdentity {
            certificates: read(certificates)?.into(),
            key: read(key)?.into(),
        };
        if let Err(error) = identity.certified_key() {
            return Err(Failure::new(
                Reason::Usage,
                format!(
                    "TLS cannot be ended by {} and {}: {error}",
                    certificates.display(),
                    key.display()
                ),
                "give a certificate with its chain, and its key, both in PEM",
            ));
        }
        request.tls = Some(identity.into());
        Ok(())
    }
}

fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(file).map_err(|error| {
        Failure::new(
            Reason::Usage,
            format!("{} cannot be read: {error}", file.display()),
            "name a file that you may read",
        )
    })
}

/// What is engaged, and where it is handled.
#[derive(Args, Debug)]
pub(crate) struct EngageArgs {
    /// Workload: NAME or KIND/NAME, such as web or deploy/web
    #[arg(value_name = "NAME")]
    pub(crate) target: String,
    /// Local port, and the Service's or container's by number or name when
    /// there are several, with /udp where both TCP and UDP have it; may be given
    /// more than once
    #[arg(short, long = "port", required = true, value_name = "LOCAL[:REMOTE]")]
    pub(crate) ports: Vec<PortSpec>,
    /// Address on which the local ports listen; those of --to-pod are always 127.0.0.1's
    #[arg(long, default_value = "127.0.0.1", value_parser = address)]
    pub(crate) address: IpAddr,
    /// Port of 127.0.0.1 that meanwhile leads to a port of the localhost of one of the pods,
    /// such as a sidecar's, by TCP; may be given more than once
    #[arg(long, value_name = "LOCAL[:POD-PORT]")]
    pub(crate) to_pod: Vec<ToPodSpec>,
    /// How long to wait until it is active, such as 90s or 2m
    #[arg(long, default_value = "60s", value_parser = timeout, value_name = "DURATION")]
    pub(crate) timeout: Duration,
    #[command(flatten)]
    pub(crate) environment: EnvironmentArgs,
}

impl InterceptArgs {
    fn http(&self) -> Option<HttpFilter> {
        let read = |texts: &[String], read: fn(&str) -> Condition| -> Vec<Condition> {
            texts.iter().map(|text| read(text)).collect()
        };
        let conditions = [
            read(&self.http_header, Condition::header),
            read(&self.http_path, Condition::path),
            read(&self.http_method, Condition::method),
            read(&self.http_query, Condition::query_param),
        ]
        .concat();
        (!conditions.is_empty()).then_some(HttpFilter {
            any: self.any,
            conditions,
        })
    }

    fn request(&self, flags: &Flags, verb: Verb) -> InterceptRequest {
        InterceptRequest {
            http: self.http().map(Into::into),
            fails_closed: self.on_failure == OnFailure::Unavailable,
            roll_out: self.rollout,
            container: self.container.clone().unwrap_or_default(),
            ..self.engage.request(flags, verb)
        }
    }
}

impl EngageArgs {
    /// Without what is of one verb only.
    pub(super) fn request(&self, flags: &Flags, verb: Verb) -> InterceptRequest {
        InterceptRequest {
            namespace: flags.request_namespace(),
            target: self.target.clone(),
            ports: self
                .ports
                .iter()
                .map(|port| RequestedPort {
                    local: SocketAddr::new(self.address, port.local).to_string(),
                    remote: port.remote_with_protocol(),
                })
                .collect(),
            timeout_seconds: u32::try_from(self.timeout.as_secs()).unwrap_or(u32::MAX),
            verb: verb.as_str().to_owned(),
            to_pod: self.to_pod.iter().map(|it| (*it).into()).collect(),
            environment: self.environment.is_wanted(),
            ..InterceptRequest::default()
        }
    }
}

/// Who answers instead of a laptop that does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnFailure {
    #[default]
    App,
    #[value(name = "503")]
    Unavailable,
}

fn address(text: &str) -> Result<IpAddr, String> {
    match text {
        "localhost" => Ok(Ipv4Addr::LOCALHOST.into()),
        _ => text.parse().map_err(|_| "not an IP address".into()),
    }
}

pub(crate) fn timeout(text: &str) -> Result<Duration, String> {
    let timeout = parse_duration(text)?;
    if timeout.is_zero() || u32::try_from(timeout.as_secs()).is_err() {
        return Err("give seconds or minutes, such as 90s or 2m".into());
    }
    Ok(timeout)
}

pub(crate) async fn run(
    flags: &Flags,
    args: &InterceptArgs,
    verb: Verb,
) -> Result<ExitCode, Ended> {
    let request = request(flags, args, verb)?;
    engage(flags, &args.engage.environment, request).await
}

/// What the session is asked for.
pub(crate) fn request(
    flags: &Flags,
    args: &InterceptArgs,
    verb: Verb,
) -> Result<InterceptRequest, Failure> {
    check(args, verb)?;
    let mut request = args.request(flags, verb);
    args.tls.add_to(&mut request)?;
    Ok(request)
}

/// Refuses flags that make no sense together.
fn check(args: &InterceptArgs, verb: Verb) -> Result<(), Failure> {
    if verb == Verb::Wiretap && args.on_failure == OnFailure::Unavailable {
        return Err(Failure::new(
            Reason::Usage,
            "a wiretap takes no requests, so none of them can fail",
            "leave --on-failure out, or use `kvpn intercept`",
        ));
    }
    if args.any && args.http().is_none() {
        return Err(Failure::new(
            Reason::Usage,
            "--any chooses among conditions, and there is none",
            "give some, such as `--http-header x-user=alice`",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use kvpn_proto::v1::ToPod;

    use super::*;
    use crate::args::{Cli, Command};

    fn parse(line: &str) -> Result<(Flags, InterceptArgs), String> {
        let cli = Cli::try_parse_from(line.split(' ')).map_err(|error| error.to_string())?;
        let Command::Intercept(args) = cli.command else {
            panic!("{:?}", cli.command);
        };
        Ok((cli.flags, args))
    }

    #[test]
    fn malformed_port_is_a_readable_usage_error() {
        let error = parse("kvpn intercept web --port http").unwrap_err();
        insta::assert_snapshot!("malformed_port", error);
    }

    #[test]
    fn request_has_what_the_user_gave() {
        let (flags, args) = parse(
            "kvpn intercept deploy/web -p 8080:http -p 9090 --address ::1 --timeout 2m -n shop \
             --to-pod 15000:9901 --container web",
        )
        .unwrap();
        let port = |local: &str, remote: &str| RequestedPort {
            local: local.into(),
            remote: remote.into(),
        };
        assert_eq!(
            args.request(&flags, Verb::Wiretap),
            InterceptRequest {
                namespace: "shop".into(),
                target: "deploy/web".into(),
                ports: vec![port("[::1]:8080", "http"), port("[::1]:9090", "")],
                timeout_seconds: 120,
                http: None,
                verb: "wiretap".into(),
                fails_closed: false,
                roll_out: false,
                container: "web".into(),
                to_pod: vec![ToPod {
                    local: 15000,
                    port: 9901,
                }],
                tls: None,
                tls_secret: String::new(),
                environment: false,
                mount: None,
                ends_with_call: false,
            }
        );
    }

    #[test]
    fn environment_is_asked_for_only_where_it_is_used() {
        let line = |flags: &str| parse(&format!("kvpn intercept web -p 8080 {flags}"));
        for (flags, is_wanted) in [
            ("--env-file web.env", true),
            ("--env-json web.json", true),
            ("-- ./server --port 8080", true),
            ("--env-exclude A_*", false),
        ] {
            let (global, args) = line(flags).unwrap();
            let request = args.request(&global, Verb::Intercept);
            assert_eq!(request.environment, is_wanted, "{flags}");
            assert_eq!(
                args.engage.environment.check().is_ok(),
                is_wanted,
                "{flags}"
            );
        }
        let (_, args) = line("-- ./server -o json").unwrap();
        assert_eq!(args.engage.environment.command, ["./server", "-o", "json"]);
        assert!(line("--env-syntax sh").is_err(), "of no file");
        assert!(line("--env-file web.env --env-syntax bash").is_err());
    }

    #[test]
    fn tls_is_ended_by_two_files_or_by_a_secret() {
        let line = |flags: &str| parse(&format!("kvpn intercept web -p 8080 {flags}"));
        for wrong in [
            "--tls-cert a.pem",
            "--tls-key a.pem",
            "--tls-cert a.pem --tls-key b.pem --tls-secret web",
        ] {
            assert!(line(wrong).is_err(), "{wrong}");
        }
        let (flags, args) = line("--tls-secret web").unwrap();
        let mut request = args.request(&flags, Verb::Intercept);
        args.tls.add_to(&mut request).unwrap();
        assert_eq!(request.tls_secret, "web");
    }

    #[test]
    fn files_that_cannot_be_used_are_told_before_anything_is_asked() {
        let failure = |certificates: &str, key: &str| {
            let (flags, args) = parse(&format!(
                "kvpn intercept web -p 8080 --tls-cert {certificates} --tls-key {key}"
            ))
            .unwrap();
            let mut request = args.request(&flags, Verb::Intercept);
            args.tls.add_to(&mut request).unwrap_err()
        };
        let missing = failure("/nonexistent/a.pem", "/nonexistent/b.pem");
        assert_eq!(missing.reason, Reason::Usage);
        assert!(
            missing
                .message
                .starts_with("/nonexistent/a.pem cannot be read")
        );
        let nothing = failure("/dev/null", "/dev/null");
        assert!(nothing.message.contains("no certificate"), "{nothing}");
    }

    #[test]
    fn timeout_is_neither_zero_nor_endless() {
        assert_eq!(timeout("2m"), Ok(Duration::from_secs(120)));
        for text in ["0s", "4294967296", "soon"] {
            assert!(timeout(text).is_err(), "{text}");
        }
    }
}
