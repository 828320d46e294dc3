//! The call of a reader, which tells what a container has.

use kvpn_proto::v1;
use kvpn_proto::v1::watch_reads_request::answer::Outcome;
use kvpn_proto::v1::watch_reads_request::{Event, Hello};
use tokio::time::timeout;
use tonic::{Status, Streaming};

use super::FIRST_MESSAGE;
use crate::hub::OpenReader;

/// The first message of a reader.
pub(super) async fn hello(events: &mut Streaming<v1::WatchReadsRequest>) -> Result<Hello, Status> {
    let first = timeout(FIRST_MESSAGE, events.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no `hello` came in time"))??;
    match first.and_then(|first| first.event) {
        Some(Event::Hello(hello)) => Ok(hello),
        Some(Event::Answer(_)) | None => {
            Err(Status::invalid_argument("the first message is not `hello`"))
        }
    }
}

/// Takes its answers until it hangs up.
pub(super) async fn take_answers(
    events: &mut Streaming<v1::WatchReadsRequest>,
    open: &OpenReader,
) -> Result<(), Status> {
    while let Some(event) = events.message().await? {
        let Some(Event::Answer(answer)) = event.event else {
            return Err(Status::invalid_argument("an answer was expected"));
        };
        let outcome = match answer.outcome {
            Some(Outcome::Environment(environment)) => Ok(environment),
            Some(Outcome::Failed(why)) => Err(why),
            None => Err("its reader has said nothing".to_owned()),
        };
        open.answer(&answer.read_id, outcome);
    }
    Ok(())
}
