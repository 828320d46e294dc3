//! The command line of `kvpnd`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use kvpn_proto::names;

use crate::session::args::SessionArgs;
use crate::why::WhyArgs;

/// The kvpn daemon: gives a session a TUN device, routes and DNS settings, and
/// takes all of it back when the session ends.
#[derive(Debug, Parser)]
#[command(name = "kvpnd", version, args_conflicts_with_subcommands = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) serve: ServeArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the root daemon (the default).
    Serve(ServeArgs),
    /// Run a session; `kvpn connect` starts it.
    #[command(hide = true)]
    Session(Box<SessionArgs>),
    /// Check what a session needs; `kvpn doctor` starts it.
    #[command(hide = true)]
    Check(Box<SessionArgs>),
    /// Find out how a name or an address is reached; `kvpn why` starts it.
    #[command(hide = true)]
    Why(WhyArgs),
    /// Wait for the daemon's end and undo what it left.
    #[command(hide = true)]
    Guard(GuardArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Unix socket to listen on [default: kvpnd.sock in the run directory]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// User, by name or number, who may use the daemon; repeatable
    #[arg(long, value_name = "USER")]
    pub(crate) allow_user: Vec<String>,
    /// Group, by name or number, whose members may use the daemon; repeatable
    /// [default: kvpn, where it exists]
    #[arg(long, value_name = "GROUP")]
    pub(crate) allow_group: Vec<String>,
    /// Directory of the daemon's own state
    #[arg(long, value_name = "DIR", default_value = names::DAEMON_RUN_DIR)]
    pub(crate) run_dir: PathBuf,
    /// File that names the host's DNS servers
    #[arg(long, value_name = "FILE", default_value = "/etc/resolv.conf")]
    pub(crate) resolv_conf: PathBuf,
}

impl ServeArgs {
    /// Where the daemon listens.
    pub(crate) fn socket(&self) -> PathBuf {
        match &self.socket {
            Some(path) => path.clone(),
            None => self.run_dir.join("kvpnd.sock"),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct GuardArgs {
    /// The run directory of the daemon that is watched
    #[arg(long, value_name = "DIR")]
    pub(crate) run_dir: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn daemon_is_served_without_a_subcommand() {
        let cli = Cli::try_parse_from(["kvpnd", "--run-dir", "/x"]).unwrap();
        assert!(cli.command.is_none());
        assert_eq!(cli.serve.socket(), PathBuf::from("/x/kvpnd.sock"));
    }

    #[test]
    fn default_socket_is_the_one_that_sessions_look_for() {
        let cli = Cli::try_parse_from(["kvpnd"]).unwrap();
        assert_eq!(cli.serve.socket(), PathBuf::from(names::DAEMON_SOCKET));
    }

    #[test]
    fn allowed_users_and_groups_repeat() {
        let cli =
            Cli::try_parse_from(["kvpnd", "serve", "--allow-user=a", "--allow-user=7"]).unwrap();
        let Some(Command::Serve(args)) = cli.command else {
            panic!("{cli:?}");
        };
        assert_eq!(args.allow_user, ["a", "7"]);
    }
}
