//! `kvpn shell`: a shell with the environment and the files of a workload's container.

use std::env;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use kvpn_proto::{Failure, Reason};

use super::engage::{EnvironmentArgs, ExcludeArgs, MountArgs, engage};
use super::ingest::ReadArgs;
use crate::args::Flags;
use crate::ended::Ended;

/// Where the user has none.
const SHELL: &str = "/bin/sh";

/// Start a shell on this laptop with the environment and the files of a workload's container
///
/// It is $SHELL, else /bin/sh, and an ingest for as long as it runs; its exit code is
/// returned. KVPN_WORKLOAD, KVPN_NAMESPACE and KVPN_CONTAINER say in it whose environment it
/// has, and KVPN_ROOT where the files are.
#[derive(Args, Debug)]
pub(crate) struct ShellArgs {
    #[command(flatten)]
    read: ReadArgs,
    #[command(flatten)]
    exclude: ExcludeArgs,
    #[command(flatten)]
    mount: MountArgs,
    /// Arguments of the shell, such as `-c COMMAND`
    #[arg(last = true, value_name = "ARGS")]
    arguments: Vec<OsString>,
}

pub(crate) async fn run(flags: &Flags, args: &ShellArgs) -> Result<ExitCode, Ended> {
    let command = command(env::var_os("SHELL"), &args.arguments)?;
    let environment =
        EnvironmentArgs::of_command(args.exclude.clone(), args.mount.clone(), command);
    engage(flags, &environment, args.read.request(flags)).await
}

fn command(shell: Option<OsString>, arguments: &[OsString]) -> Result<Vec<OsString>, Failure> {
    let shell = shell.filter(|it| !it.is_empty());
    let shell = shell.unwrap_or_else(|| SHELL.into());
    // Before anything is engaged.
    if shell.to_string_lossy().contains('/') && !Path::new(&shell).is_file() {
        return Err(Failure::new(
            Reason::Usage,
            format!("there is no shell {}", shell.display()),
            "set SHELL to one that is there",
        ));
    }
    Ok([&[shell], arguments].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shell_is_the_users_and_must_be_there() {
        let command = |shell: Option<&str>| command(shell.map(OsString::from), &["-l".into()]);
        assert_eq!(command(None).unwrap(), ["/bin/sh", "-l"]);
        assert_eq!(command(Some("")).unwrap(), ["/bin/sh", "-l"]);
        assert_eq!(command(Some("zsh")).unwrap(), ["zsh", "-l"]);
        let failure = command(Some("/nonexistent/zsh")).unwrap_err();
        assert_eq!(failure.reason, Reason::Usage);
        assert!(failure.next_step.contains("SHELL"));
    }
}
