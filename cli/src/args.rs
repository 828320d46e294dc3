//! What the command line accepts.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use kvpn_proto::{Reason, names, version};

use crate::commands::{
    connect, cp, down, env, flows, ingest, init, intercept, leave, log, ls, quit, replace, shell,
    up, why,
};
use crate::output::Format;

/// Puts this laptop into a Kubernetes cluster
///
/// `kvpn connect` makes the cluster's services and pods reachable by name and
/// address; `kvpn intercept` hands a workload's connections to a local port.
#[derive(Debug, Parser)]
#[command(
    name = "kvpn",
    version = version::VERSION,
    after_long_help = exit_codes(),
    propagate_version = false
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) flags: Flags,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of every command, as kubectl has them.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Flags {
    /// Path of the kubeconfig [default: as kubectl: $KUBECONFIG, else ~/.kube/config]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig [default: its current one]
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// Namespace to work in [default: the context's, or the connection's]
    #[arg(short, long, global = true, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
    /// Namespace of the traffic manager [default: kvpn]
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) manager_namespace: Option<String>,
    /// Name of the connection [default: `default` to connect, else the only one]
    ///
    /// A laptop may have several connections at once, each under a name of its own.
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// How to print the result
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "FORMAT"
    )]
    pub(crate) output: Format,
}

impl Flags {
    /// The traffic manager's namespace to connect to.
    pub(crate) fn manager_namespace(&self) -> &str {
        self.manager_namespace
            .as_deref()
            .unwrap_or(names::MANAGER_NAMESPACE)
    }

    /// Whether a cluster is named, and not just the one of the connection that is there.
    pub(crate) fn names_a_cluster(&self) -> bool {
        self.context.is_some() || self.kubeconfig.is_some()
    }

    /// Whether they say more than how to print.
    pub(crate) fn say_which(&self) -> bool {
        let names = [
            &self.context,
            &self.namespace,
            &self.manager_namespace,
            &self.name,
        ];
        self.kubeconfig.is_some() || names.into_iter().any(Option::is_some)
    }

    /// The connection to make.
    pub(crate) fn connection(&self) -> &str {
        self.name.as_deref().unwrap_or(names::DEFAULT_CONNECTION)
    }

    /// The namespace as requests have it: empty for the session's own.
    pub(crate) fn request_namespace(&self) -> String {
        self.namespace.clone().unwrap_or_default()
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Connect(connect::ConnectArgs),
    Quit(quit::QuitArgs),
    /// Show the connection and its intercepts
    ///
    /// Exits with 13 when there is no connection.
    Status,
    /// List the workloads that can be intercepted
    List,
    Intercept(intercept::InterceptArgs),
    /// Copy what a workload's port is sent to a local port
    ///
    /// New connections to the workload's pods, or requests that fit, are copied to this
    /// laptop until `kvpn leave`. Whoever answers them does so as before, and as fast;
    /// what this laptop answers is thrown away.
    Wiretap(intercept::InterceptArgs),
    Replace(replace::ReplaceArgs),
    Ingest(ingest::IngestArgs),
    Env(env::EnvArgs),
    Shell(shell::ShellArgs),
    Ls(ls::LsArgs),
    Cp(cp::CpArgs),
    Leave(leave::LeaveArgs),
    Up(up::UpArgs),
    Down(down::DownArgs),
    Init(init::InitArgs),
    Log(log::LogArgs),
    Flows(flows::FlowsArgs),
    /// Find out what keeps kvpn from working, and what to do
    ///
    /// Checks the root daemon, the kubeconfig, the API server, permissions, the
    /// traffic manager and the laptop's routes; when connected, also names and
    /// the tunnel. Exits with 0 unless something fails.
    Doctor,
    Why(why::WhyArgs),
    /// Show the versions of kvpn's parts, as far as they run
    Version,
}

fn exit_codes() -> String {
    let mut text = String::from("Exit codes:\n   0  Success");
    for reason in Reason::ALL {
        text += &format!("\n  {:>2}  {reason}", reason.exit_code());
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_is_as_documented() {
        let mut cli = Cli::command().term_width(100);
        cli.build();
        insta::assert_snapshot!("help", cli.render_long_help());
        for command in cli.get_subcommands_mut() {
            let name = format!("help_{}", command.get_name());
            if name != "help_help" {
                insta::assert_snapshot!(name, command.render_long_help());
            }
        }
    }

    #[test]
    fn global_flags_stand_before_or_after_the_command() {
        for line in [
            "kvpn -n shop --context dev -o json status",
            "kvpn status -n shop --context dev -o json",
        ] {
            let flags = parse(line).unwrap().flags;
            assert_eq!(flags.namespace.as_deref(), Some("shop"));
            assert_eq!(flags.context.as_deref(), Some("dev"));
            assert_eq!(flags.output, Format::Json);
        }
    }

    #[test]
    fn manager_namespace_is_kvpn_unless_given() {
        let manager_namespace = |line| parse(line).unwrap().flags.manager_namespace().to_owned();
        assert_eq!(manager_namespace("kvpn status"), "kvpn");
        assert_eq!(
            manager_namespace("kvpn status --manager-namespace infra"),
            "infra"
        );
    }

    #[test]
    fn flags_after_two_dashes_belong_to_the_command_that_is_run() {
        let cli = parse("kvpn connect -n shop -- curl -o json web").unwrap();
        assert_eq!(cli.flags.output, Format::Text);
        let Command::Connect(args) = cli.command else {
            panic!("{:?}", cli.command);
        };
        assert_eq!(args.command, ["curl", "-o", "json", "web"]);
    }

    #[test]
    fn a_command_to_run_needs_two_dashes() {
        assert!(parse("kvpn connect curl web").is_err());
    }

    #[test]
    fn intercept_needs_a_port() {
        assert!(parse("kvpn intercept web").is_err());
        assert!(parse("kvpn intercept web --port 8080:http --port 9090").is_ok());
    }

    #[test]
    fn leaving_all_excludes_a_name() {
        assert!(parse("kvpn leave web --all").is_err());
        assert!(parse("kvpn leave").is_ok());
    }

    #[test]
    fn usage_errors_have_the_exit_code_of_their_reason() {
        let code = parse("kvpn status --nonsense").unwrap_err().exit_code();
        assert_eq!(code, i32::from(Reason::Usage.exit_code()));
    }
}
