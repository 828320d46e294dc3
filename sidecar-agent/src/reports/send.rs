//! Tells the traffic manager.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use kvpn_proto::v1::agent_hub_client::AgentHubClient;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::Reports;

/// How long what happens is gathered for one report.
const GATHER: Duration = Duration::from_millis(100);

/// How long the traffic manager may take to take the call, or a report.
const DEADLINE: Duration = Duration::from_secs(10);

/// Sends reports until the traffic manager takes no more.
///
/// # Errors
/// Why it takes no more.
pub(crate) async fn send(channel: Channel, reports: Arc<Reports>) -> anyhow::Result<()> {
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
        Ok(())
    };
    tokio::select! {
        told = telling => told,
        heard = listening => heard,
    }
}
