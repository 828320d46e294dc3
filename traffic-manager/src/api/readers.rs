//! The call of a reader, which tells what a container has.

use kvpn_proto::v1;
use kvpn_proto::v1::watch_reads_request::answer::Outcome;
use kvpn_proto::v1::watch_reads_request::{Event, Hello};
use tokio::time::timeout;
use tonic::{Status, Streaming};

use super::FIRST_MESSAGE;
use crate::hub::OpenReader;

/// How many bytes of a reader's words are taken.
const LONGEST: usize = 1_024;

/// The first message of a reader.
pub(super) async fn hello(events: &mut Streaming<v1::WatchReadsRequest>) -> Result<Hello, Status> {
    let first = timeout(FIRST_MESSAGE, events.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no `hello` came in time"))??;
    match first.and_then(|first| first.event) {
        Some(Event::Hello(hello)) => Ok(Hello {
            version: printable(&hello.version),
            container: printable(&hello.container),
            unreadable: printable(&hello.unreadable),
            ..hello
        }),
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
            Some(Outcome::Failed(why)) => Err(printable(&why)),
            None => Err("its reader has said nothing".to_owned()),
        };
        open.answer(&answer.read_id, outcome);
    }
    Ok(())
}

/// What a reader says to people, cut to what a log and a condition may show: others in its
/// pod can say it in its place.
fn printable(words: &str) -> String {
    let mut shown = String::new();
    for c in words.chars().filter(|c| !c.is_control()) {
        if shown.len() + c.len_utf8() > LONGEST {
            break;
        }
        shown.push(c);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_cut_and_have_no_control_characters() {
        assert_eq!(printable("not\x1b[2J \r\nours\u{9b}"), "not[2J ours");
        let long = "ä".repeat(LONGEST);
        assert_eq!(printable(&long), "ä".repeat(LONGEST / 2));
        let odd = format!("a{long}");
        assert_eq!(printable(&odd).len(), LONGEST - 1);
    }
}
