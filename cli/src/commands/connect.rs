//! `kvpn connect`: brings the laptop into the cluster.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use kvpn_proto::names::check_connection;
use kvpn_proto::v1::{StatusResponse, Transport};
use kvpn_proto::{Failure, Reason};

use crate::args::Flags;
use crate::child;
use crate::ended::Ended;
use crate::interrupts::Interrupts;
use crate::output::{self, Connection, Format, Output};
use crate::progress::Progress;
use crate::report;
use crate::session::{self, Place, Session};
use crate::session_process::{self, Connected};

mod network;

pub(crate) use network::NetworkFlags;

/// Connect this laptop to a cluster
///
/// Services and pods of the cluster are then reachable by name and address.
/// The connection stays until `kvpn quit`. With a command after `--`, it stays
/// only as long as the command runs, and the command's exit code is returned.
#[derive(Args, Debug)]
pub(crate) struct ConnectArgs {
    #[command(flatten)]
    pub(crate) session: SessionFlags,
    /// Command to run while connected
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

/// What only a session that starts can be told.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct SessionFlags {
    #[command(flatten)]
    pub(crate) tunnel: TunnelFlags,
    #[command(flatten)]
    pub(crate) network: NetworkFlags,
}

/// How the session reaches the traffic manager.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct TunnelFlags {
    /// Way to the traffic manager [default: auto]
    #[arg(long, value_enum, value_name = "WAY")]
    pub(crate) transport: Option<TransportChoice>,
    /// Connections to the traffic manager, over which flows spread
    #[arg(long, value_name = "COUNT", hide = true)]
    pub(crate) connections: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TransportChoice {
    /// proxy, or port-forward where that is refused or leads nowhere
    Auto,
    /// The API server's services/proxy
    Proxy,
    /// A port-forward to the traffic manager's pod; slower
    PortForward,
}

pub(crate) async fn run(flags: &Flags, args: &ConnectArgs) -> Result<ExitCode, Ended> {
    // Before anything is started, so that nothing started is left behind.
    let mut interrupts = Interrupts::listen()?;
    let connection = connect(flags, &args.session, &mut interrupts).await?;
    let Some((program, arguments)) = args.command.split_first() else {
        output::print(&connection, flags.output)?;
        return Ok(ExitCode::SUCCESS);
    };
    // Standard output is the command's alone.
    if flags.output == Format::Text {
        report::note(connection.text().trim_end());
    }
    let outcome = child::run(program, arguments, std::iter::empty(), &mut interrupts).await;
    if !connection.already_connected
        && let Err(failure) = disconnect(flags).await
    {
        // What the command says of itself comes first.
        match outcome {
            Ok(0) => return Err(failure.into()),
            Ok(_) | Err(_) => report::failure(&failure, flags.output),
        }
    }
    Ok(ExitCode::from(outcome?))
}

/// Connects, unless the connection is there as it is wanted.
pub(crate) async fn connect(
    flags: &Flags,
    wanted: &SessionFlags,
    interrupts: &mut Interrupts,
) -> Result<Connection, Ended> {
    let progress = Progress::start("connecting");
    let running = tokio::select! {
        running = running(flags, wanted) => running?,
        signal = interrupts.next() => return Err(Ended::Interrupted(signal)),
    };
    if let Some(connection) = running {
        return Ok(connection);
    }
    let Connected {
        context,
        namespace,
        server,
    } = {
        let place = Place::of(flags.connection());
        session_process::start(flags, wanted, &place, interrupts, &progress).await?
    };
    Ok(Connection {
        connected: true,
        already_connected: false,
        name: flags.connection().to_owned(),
        context,
        namespace,
        server,
    })
}

/// The connection that there is already, which must be the wanted one.
async fn running(flags: &Flags, wanted: &SessionFlags) -> Result<Option<Connection>, Failure> {
    check_connection(flags.connection())?;
    let Some(session) = Session::of(flags.connection()).await? else {
        return Ok(None);
    };
    let status = session.status().await?;
    session::check_selected(flags, &status)?;
    check_namespaces(flags, &status)?;
    check_transport(&wanted.tunnel, &status)?;
    wanted.network.check(&status)?;
    Ok(Some(Connection {
        connected: true,
        already_connected: true,
        name: status.name,
        context: status.context,
        namespace: status.namespace,
        server: status.server,
    }))
}

/// Refuses a session in other namespaces than the flags name.
fn check_namespaces(flags: &Flags, status: &StatusResponse) -> Result<(), Failure> {
    let differs = |flag: &Option<String>, own: &str| flag.as_ref().is_some_and(|it| it != own);
    let (what, own) = if differs(&flags.namespace, &status.namespace) {
        ("namespace", &status.namespace)
    } else if differs(&flags.manager_namespace, &status.manager_namespace) {
        ("traffic manager's namespace", &status.manager_namespace)
    } else {
        return Ok(());
    };
    Err(Failure::new(
        Reason::AlreadyConnected,
        format!(
            "already connected to context {} with {what} {own}",
            status.context
        ),
        "run `kvpn quit` to end that connection first",
    ))
}

/// Refuses a session that goes another way than the flag names.
fn check_transport(tunnel: &TunnelFlags, status: &StatusResponse) -> Result<(), Failure> {
    let (wanted, own) = match (tunnel.transport, status.transport()) {
        (Some(TransportChoice::Proxy), Transport::PortForward) => ("proxy", "port-forward"),
        (Some(TransportChoice::PortForward), Transport::Proxy) => ("port-forward", "proxy"),
        (Some(_) | None, _) => return Ok(()),
    };
    Err(Failure::new(
        Reason::AlreadyConnected,
        format!(
            "already connected to context {} by {own}, not by {wanted}",
            status.context
        ),
        "run `kvpn quit` to end that connection first",
    ))
}

/// Ends the connection, if it is still there.
pub(crate) async fn disconnect(flags: &Flags) -> Result<(), Failure> {
    let _progress = Progress::start("disconnecting");
    // The command may have run `kvpn quit` itself.
    if let Some(session) = Session::of(flags.connection()).await? {
        session.quit().await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(namespace: Option<&str>, manager_namespace: Option<&str>) -> Flags {
        Flags {
            namespace: namespace.map(str::to_owned),
            manager_namespace: manager_namespace.map(str::to_owned),
            ..Flags::default()
        }
    }

    #[test]
    fn running_session_must_be_in_the_namespaces_that_are_asked_for() {
        let status = StatusResponse {
            context: "dev".into(),
            namespace: "shop".into(),
            manager_namespace: "kvpn".into(),
            ..StatusResponse::default()
        };
        assert_eq!(check_namespaces(&flags(None, None), &status), Ok(()));
        assert_eq!(
            check_namespaces(&flags(Some("shop"), Some("kvpn")), &status),
            Ok(())
        );
        for other in [flags(Some("bank"), None), flags(None, Some("infra"))] {
            let failure = check_namespaces(&other, &status).unwrap_err();
            assert_eq!(failure.reason, Reason::AlreadyConnected);
        }
    }

    #[test]
    fn running_session_must_go_the_way_that_is_asked_for() {
        let status = StatusResponse {
            transport: Transport::PortForward.into(),
            ..StatusResponse::default()
        };
        let check = |transport| {
            let tunnel = TunnelFlags {
                transport,
                ..TunnelFlags::default()
            };
            check_transport(&tunnel, &status)
        };
        for fits in [
            None,
            Some(TransportChoice::Auto),
            Some(TransportChoice::PortForward),
        ] {
            assert_eq!(check(fits), Ok(()));
        }
        let failure = check(Some(TransportChoice::Proxy)).unwrap_err();
        assert_eq!(failure.reason, Reason::AlreadyConnected);
    }
}
