//! More connections of the same session, so that flows do not queue behind one
//! another in a single byte stream.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvpn_proto::Failure;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{debug, info};

use super::Client;
use super::connection::Greeting;
use super::connections::{Connections, Role};
use super::pipe::Pipe;
use super::supervisor::Opener;

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How long a connection lasts that was worth having.
const WORTHWHILE: Duration = Duration::from_secs(10);

/// Extra connections that are not open yet.
pub(crate) struct Extra {
    pub(super) opener: Arc<Opener>,
    pub(super) connections: Connections,
    /// The control connection's client while that is up.
    pub(super) control: watch::Receiver<Option<Client>>,
}

impl Extra {
    /// Opens so many, and opens them again when they break, until the answer
    /// is dropped.
    pub(crate) fn open(self, count: usize) -> JoinSet<()> {
        let extra = Arc::new(self);
        (0..count)
            .map(|_| {
                let extra = Arc::clone(&extra);
                async move { extra.keep().await }
            })
            .collect()
    }

    async fn keep(&self) {
        let mut control = self.control.clone();
        let mut pause = FIRST_PAUSE;
        // What is wrong with the session, the control connection finds out.
        while control.wait_for(Option::is_some).await.is_ok() {
            match self.open_one().await {
                Ok(pipe) => {
                    let opened = Instant::now();
                    let entry = self
                        .connections
                        .add(Role::Extra, pipe.channel(), pipe.load());
                    debug!("One more connection is up");
                    pipe.ended().await;
                    drop(entry);
                    info!("One of the connections for flows has ended");
                    if opened.elapsed() > WORTHWHILE {
                        pause = FIRST_PAUSE;
                    }
                }
                Err(failure) => debug!(error = %failure, "No further connection can be had"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn open_one(&self) -> Result<Pipe, Failure> {
        let Opener {
            transports,
            credentials,
        } = &*self.opener;
        Greeting::open_further(transports)
            .await?
            .join(credentials)
            .await
    }
}
