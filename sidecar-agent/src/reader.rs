//! Reads what another container has, for as long as the traffic manager says that somebody
//! wants it. It is a container of its own, which shares the process namespace of the one that
//! it reads, and runs as what that runs as: then the kernel lets it read, as "the same user
//! with at least the same capabilities" (`PTRACE_MODE_READ_FSCREDS`, ptrace(2)).

mod environment;
mod files;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use kvpn_files::server::Volume;
use kvpn_proto::v1::WatchReadsRequest;
use kvpn_proto::v1::agent_hub_client::AgentHubClient;
use kvpn_proto::v1::watch_reads_request::answer::Outcome;
use kvpn_proto::v1::watch_reads_request::{Answer, Event, Hello};
use kvpn_proto::v1::watch_reads_response::What;
use kvpn_proto::version::VERSION;
use kvpn_tunnel::grpc::TunnelClient;
use kvpn_tunnel::turns::EVENT_INTERVAL;
use nix::sys::stat::{Mode, umask};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tracing::{debug, info};

use crate::config::{Config, ReadArgs};
use crate::holder::processes;
use crate::session::connect::connect;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How long the traffic manager may take to take the call, or an answer.
const CALL_DEADLINE: Duration = Duration::from_secs(10);

/// Serves the traffic manager until nobody wants to read any more, or it has not been there
/// for long enough.
///
/// # Errors
/// The processes of the other container cannot be seen.
pub(crate) fn run(args: ReadArgs) -> anyhow::Result<()> {
    processes::check()?;
    let config = Config::try_from(args.args)?;
    let volumes = args.volumes.into();
    // That of whoever makes a file counts.
    umask(Mode::empty());
    info!(version = VERSION, manager = %config.manager, "Reader started");
    tokio::runtime::Builder::new_current_thread()
        .event_interval(EVENT_INTERVAL)
        .enable_all()
        .build()
        .context("start the runtime")?
        .block_on(stay_connected(&config, &volumes));
    Ok(())
}

async fn stay_connected(config: &Config, volumes: &Arc<[Volume]>) {
    let linger = config.linger.unwrap_or_default();
    let mut last = Instant::now();
    let mut pause = FIRST_PAUSE;
    while last.elapsed() < linger {
        let mut was_connected = false;
        match serve(config, volumes, &mut was_connected).await {
            Ok(()) => {
                info!("Leaving: nobody wants to read any more");
                return;
            }
            Err(error) => debug!("Not connected to the traffic manager: {error:#}"),
        }
        if was_connected {
            last = Instant::now();
            pause = FIRST_PAUSE;
        }
        sleep(pause).await;
        pause = LONGEST_PAUSE.min(pause * 2);
    }
    info!("Leaving: the traffic manager has been gone for too long");
}

/// Reads what the traffic manager asks for. An error when it is gone; otherwise nobody wants
/// to read any more.
async fn serve(
    config: &Config,
    volumes: &Arc<[Volume]>,
    was_connected: &mut bool,
) -> anyhow::Result<()> {
    let channel = connect(config.manager, Arc::clone(&config.tls)).await?;
    let tunnel = TunnelClient::new(channel.clone());
    let mut hub = AgentHubClient::new(channel);
    let (events, outgoing) = mpsc::channel(4);
    let hello = Event::Hello(hello(&config.container));
    events.send(request(hello)).await.context("say hello")?;
    let call = hub.watch_reads(ReceiverStream::new(outgoing));
    let mut responses = timeout(CALL_DEADLINE, call)
        .await
        .context("it does not answer")??
        .into_inner();
    *was_connected = true;
    info!("Connected to the traffic manager");
    while let Some(response) = responses.message().await? {
        match response.what {
            Some(What::Environment(read_id)) => {
                info!("The environment is read");
                let outcome = match environment::read() {
                    Ok(environment) => Outcome::Environment(environment),
                    Err(unreadable) => Outcome::Failed(unreadable.why),
                };
                let outcome = Some(outcome);
                let answer = request(Event::Answer(Answer { read_id, outcome }));
                timeout(CALL_DEADLINE, events.send(answer))
                    .await
                    .context("it takes no answers")??;
            }
            Some(What::Files(asked)) => {
                tokio::spawn(files::serve(tunnel.clone(), asked, Arc::clone(volumes)));
            }
            Some(What::Leave(_)) => return Ok(()),
            // A later version's.
            None => {}
        }
    }
    bail!("it hung up")
}

/// What the traffic manager is told first: who this is, and whether it can read.
fn hello(container: &str) -> Hello {
    let (unreadable, owner) = match environment::read() {
        Ok(_) => (String::new(), None),
        Err(unreadable) => (unreadable.why, unreadable.owner),
    };
    Hello {
        version: VERSION.to_owned(),
        container: container.to_owned(),
        unreadable,
        owner,
    }
}

fn request(event: Event) -> WatchReadsRequest {
    WatchReadsRequest { event: Some(event) }
}
