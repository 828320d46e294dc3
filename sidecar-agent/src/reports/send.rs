//! Tells the traffic manager.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use kvpn_proto::v1::agent_hub_client::AgentHubClient;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tracing::debug;

use super::Reports;

/// How long what happens is gathered for one report.
const GATHER: Duration = Duration::from_millis(100);

/// How long the traffic manager may take to take the call, or a report.
const DEADLINE: Duration = Duration::from_secs(10);

/// How long until a call is made again that has ended.
const AGAIN: Duration = Duration::from_secs(2);

/// Sends reports for as long as the traffic manager knows what to do with them.
pub(crate) async fn send(channel: Channel, reports: Arc<Reports>) {
    loop {
        let Err(error) = try_send(channel.clone(), &reports).await else {
            return;
        };
        debug!("Nobody is told what becomes of requests: {error:#}");
        let status = error.downcast_ref::<Status>();
        if status.is_some_and(|status| status.code() == Code::Unimplemented) {
            return;
        }
        sleep(AGAIN).await;
    }
}

async fn try_send(channel: Channel, reports: &Reports) -> anyhow::Result<()> {
    reports.forget_what_was_told();
    let (sender, outgoing) = mpsc::channel(1);
    let mut hub = AgentHubClient::new(channel);
    let call = hub.report_requests(ReceiverStream::new(outgoing));
    let mut readers = timeout(DEADLINE, call)
        .await
        .context("the traffic manager does not answer")??
        .into_inner();
    let telling = async {
        loop {
            reports.changed.notified().await;
            sleep(GATHER).await;
            if let Some(report) = reports.report() {
                timeout(DEADLINE, sender.send(report))
                    .await
                    .context("the traffic manager takes no reports")??;
            }
        }
    };
    let listening = async {
        while let Some(told) = readers.message().await? {
            reports.set_readers(told.readers);
        }
        anyhow::bail!("the traffic manager hung up")
    };
    tokio::select! {
        told = telling => told,
        heard = listening => heard,
    }
}
