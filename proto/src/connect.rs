//! What `kvpnd session` prints while it connects, one JSON object a line; the
//! command line reads it and shows it.

use serde::{Deserialize, Serialize};

use crate::Failure;

/// One line of a starting session's standard output. The last one is `Ready`
/// or `Failed`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "camelCase")]
pub enum ConnectEvent {
    /// What is being waited for, for a person.
    Progress {
        message: String,
    },
    /// The laptop is in the cluster; the session serves its socket.
    Ready {
        context: String,
        namespace: String,
        server: String,
    },
    Failed(Failure),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Reason;

    #[test]
    fn events_survive_their_json() {
        let events = [
            ConnectEvent::Progress {
                message: "opening the tunnel".into(),
            },
            ConnectEvent::Ready {
                context: "c".into(),
                namespace: "n".into(),
                server: "https://s".into(),
            },
            ConnectEvent::Failed(Failure::new(Reason::Forbidden, "no", "ask")),
        ];
        for event in events {
            let line = serde_json::to_string(&event).unwrap();
            assert_eq!(serde_json::from_str::<ConnectEvent>(&line).unwrap(), event);
        }
    }
}
