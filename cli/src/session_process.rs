//! Starts `kvpnd session` and reads what it says until it is connected.

use std::ffi::{OsStr, OsString};
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use clap::ValueEnum;
use kvpn_proto::connect::ConnectEvent;
use kvpn_proto::{Failure, Reason};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use crate::args::Flags;
use crate::commands::connect::SessionFlags;
use crate::ended::Ended;
use crate::interrupts::Interrupts;
use crate::progress::Progress;
use crate::session::Place;

/// Names another `kvpnd` than the one beside this program or on the PATH.
pub(crate) const DAEMON_VARIABLE: &str = "KVPN_DAEMON_BINARY";

const DAEMON_NAME: &str = "kvpnd";
const CONNECT_DEADLINE: Duration = Duration::from_secs(30);
/// How long a session may take to put the laptop's network back.
const END_DEADLINE: Duration = Duration::from_secs(5);

/// What a session says once it is connected.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Connected {
    pub(crate) context: String,
    pub(crate) namespace: String,
    pub(crate) server: String,
}

/// Starts a session and waits until it is connected. When that fails, takes
/// too long or is interrupted, no session is left.
pub(crate) async fn start(
    flags: &Flags,
    wanted: &SessionFlags,
    place: &Place,
    interrupts: &mut Interrupts,
    progress: &Progress,
) -> Result<Connected, Ended> {
    let mut starting = Starting::spawn(flags, wanted, place)?;
    let ended = tokio::select! {
        outcome = timeout(CONNECT_DEADLINE, starting.connected(progress)) => match outcome {
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err(failure)) => Ended::Failed(failure),
            Err(_) => Ended::Failed(starting.late()),
        },
        signal = interrupts.next() => Ended::Interrupted(signal),
    };
    progress.step("ending the session");
    starting.end().await;
    Err(ended)
}

/// A session that is not connected yet.
struct Starting {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    log: PathBuf,
    /// What it was last waiting for.
    step: Option<String>,
}

impl Starting {
    fn spawn(flags: &Flags, wanted: &SessionFlags, place: &Place) -> Result<Self, Failure> {
        let binary = find_daemon()?;
        let log = open_log(&place.log)?;
        let mut child = Command::new(&binary)
            .args(arguments("session", flags, wanted))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            // Keeps the terminal's signals away from it.
            .process_group(0)
            .spawn()
            .map_err(|error| {
                Failure::new(
                    Reason::DaemonNotRunning,
                    format!("cannot run {}: {error}", binary.display()),
                    format!("install kvpnd beside kvpn, or set {DAEMON_VARIABLE} to its path"),
                )
            })?;
        let stdout = child
            .stdout
            .take()
            .ok_or_else(|| Failure::internal("the session has no standard output"))?;
        Ok(Self {
            child,
            lines: BufReader::new(stdout).lines(),
            log: place.log.clone(),
            step: None,
        })
    }

    /// Reads events until the last one.
    async fn connected(&mut self, progress: &Progress) -> Result<Connected, Failure> {
        loop {
            let Some(line) = self.lines.next_line().await.map_err(Failure::internal)? else {
                return Err(self.died().await);
            };
            match serde_json::from_str(&line).map_err(|_| self.unintelligible(&line))? {
                ConnectEvent::Progress { message } => {
                    progress.step(message.clone());
                    self.step = Some(message);
                }
                ConnectEvent::Ready {
                    context,
                    namespace,
                    server,
                } => {
                    return Ok(Connected {
                        context,
                        namespace,
                        server,
                    });
                }
                ConnectEvent::Failed(failure) => return Err(failure),
            }
        }
    }

    /// Ends the process: kindly, then not.
    async fn end(mut self) {
        let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) else {
            return;
        };
        // It is not reaped yet, so the number is still its own; a failure means
        // that it ended by itself.
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        if timeout(END_DEADLINE, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }

    async fn died(&mut self) -> Failure {
        let how = match timeout(END_DEADLINE, self.child.wait()).await {
            Ok(Ok(status)) => format!(" ({status})"),
            Ok(Err(_)) | Err(_) => String::new(),
        };
        Failure::new(
            Reason::Internal,
            format!("the session ended before it was connected{how}"),
            format!("see {}", self.log.display()),
        )
    }

    fn late(&self) -> Failure {
        let step = match &self.step {
            Some(step) => format!(", last at: {step}"),
            None => String::new(),
        };
        Failure::new(
            Reason::TimedOut,
            format!("not connected after {} s{step}", CONNECT_DEADLINE.as_secs()),
            format!("see {}", self.log.display()),
        )
    }

    fn unintelligible(&self, line: &str) -> Failure {
        Failure::new(
            Reason::Internal,
            format!("the session said something that kvpn does not understand: {line}"),
            "use kvpn and kvpnd of the same version",
        )
    }
}

/// Arguments of a `kvpnd` that checks.
pub(crate) fn check_arguments(flags: &Flags) -> Vec<OsString> {
    arguments("check", flags, &SessionFlags::default())
}

fn arguments(subcommand: &str, flags: &Flags, wanted: &SessionFlags) -> Vec<OsString> {
    let mut arguments = vec![subcommand.into()];
    let mut add = |name: &str, value: &OsStr| {
        arguments.push(name.into());
        arguments.push(value.to_owned());
    };
    if let Some(file) = &flags.kubeconfig {
        add("--kubeconfig", file.as_os_str());
    }
    if let Some(context) = &flags.context {
        add("--context", context.as_ref());
    }
    if let Some(namespace) = &flags.namespace {
        add("--namespace", namespace.as_ref());
    }
    add("--manager-namespace", flags.manager_namespace().as_ref());
    if let Some(name) = &flags.name {
        add("--name", name.as_ref());
    }
    let SessionFlags { tunnel, network } = wanted;
    if let Some(way) = tunnel.transport.and_then(|way| way.to_possible_value()) {
        add("--transport", way.get_name().as_ref());
    }
    if let Some(count) = tunnel.connections {
        add("--connections", count.to_string().as_ref());
    }
    for (name, values) in network.named() {
        if !values.is_empty() {
            add(name, values.join(",").as_ref());
        }
    }
    arguments
}

/// Finds `kvpnd`: the one that the environment names, else the one beside this
/// program, else the first on the PATH.
pub(crate) fn find_daemon() -> Result<PathBuf, Failure> {
    if let Some(path) = std::env::var_os(DAEMON_VARIABLE) {
        return Ok(path.into());
    }
    let own_dir = std::env::current_exe()
        .ok()
        .and_then(|own| own.parent().map(Path::to_owned));
    let path = std::env::var_os("PATH").unwrap_or_default();
    own_dir
        .into_iter()
        .chain(std::env::split_paths(&path))
        .map(|dir| dir.join(DAEMON_NAME))
        .find(|file| file.is_file())
        .ok_or_else(|| {
            Failure::new(
                Reason::DaemonNotRunning,
                "cannot find the program kvpnd",
                format!("install kvpnd beside kvpn, or set {DAEMON_VARIABLE} to its path"),
            )
        })
}

/// Opens the session's log, for what it may say before it opens it itself.
fn open_log(log: &Path) -> Result<File, Failure> {
    let dir = log.parent().unwrap_or(Path::new("."));
    private_dir(dir)
        .and_then(|()| {
            OpenOptions::new()
                .create(true)
                .append(true)
                .mode(0o600)
                .open(log)
        })
        .map_err(|error| {
            Failure::new(
                Reason::HostRefused,
                format!("cannot write {}: {error}", log.display()),
                "set XDG_RUNTIME_DIR to a directory of your own",
            )
        })
}

/// Makes a directory that only this user may enter. One that exists must be
/// the user's own: others may write to `/tmp`.
fn private_dir(dir: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let metadata = dir.symlink_metadata()?;
    if metadata.is_dir() && metadata.uid() == nix::unistd::getuid().as_raw() {
        return Ok(());
    }
    Err(std::io::Error::other(format!(
        "{} is not a directory of this user",
        dir.display()
    )))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::commands::connect::{NetworkFlags, TransportChoice, TunnelFlags};

    #[test]
    fn session_gets_the_flags_that_were_given() {
        let flags = Flags {
            context: Some("dev".into()),
            namespace: Some("shop".into()),
            name: Some("staging".into()),
            ..Flags::default()
        };
        let expected = [
            "session",
            "--context",
            "dev",
            "--namespace",
            "shop",
            "--manager-namespace",
            "kvpn",
            "--name",
            "staging",
            "--transport",
            "port-forward",
            "--connections",
            "2",
            "--dns-exclude",
            "a.example,b.example",
            "--dns-mapping",
            "db=postgres",
            "--also-proxy",
            "192.0.2.0/24,198.51.100.7",
            "--allow-conflicting-subnets",
            "10.96.0.0/16",
        ];
        let wanted = SessionFlags {
            tunnel: TunnelFlags {
                transport: Some(TransportChoice::PortForward),
                connections: Some(2),
            },
            network: NetworkFlags {
                dns_exclude: vec!["a.example".into(), "b.example".into()],
                dns_mapping: vec!["db=postgres".into()],
                also_proxy: vec!["192.0.2.0/24".into(), "198.51.100.7".into()],
                allow_conflicting_subnets: vec!["10.96.0.0/16".into()],
                ..NetworkFlags::default()
            },
        };
        assert_eq!(arguments("session", &flags, &wanted), expected);
    }

    #[test]
    fn log_is_private_to_the_user() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("kvpn/session.log");
        open_log(&log).unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&log), 0o600);
        assert_eq!(mode(log.parent().unwrap()), 0o700);
    }

    #[test]
    fn directory_behind_a_symlink_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("kvpn");
        symlink(dir.path(), &link).unwrap();
        let failure = open_log(&link.join("session.log")).unwrap_err();
        assert_eq!(failure.reason, Reason::HostRefused);
    }
}
