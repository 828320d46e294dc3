//! What the kubelet says of a container that it cannot start. The container's status
//! says so as well, but only once the kubelet looks at the pod again, after ten seconds
//! or more (<https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/event-v1/>).

use std::time::Duration;

use k8s_openapi::api::core::v1::Event;
use kube::api::ListParams;
use kube::{Api, Client};
use tokio::time::timeout;
use tracing::debug;

use crate::state::Key;

/// How long the API server may take for one request.
const REQUEST: Duration = Duration::from_secs(5);

/// The kubelet's words on why it cannot start an ephemeral container of a pod, if it has
/// said any.
pub(super) async fn complaint(
    client: &Client,
    pod: &Key,
    pod_uid: &str,
    container: &str,
) -> Option<String> {
    let events: Api<Event> = Api::namespaced(client.clone(), &pod.namespace);
    let fields = format!("involvedObject.uid={pod_uid},type=Warning");
    let request = ListParams::default().fields(&fields);
    match timeout(REQUEST, events.list(&request)).await {
        Ok(Ok(events)) => about(&events.items, container),
        Ok(Err(error)) => {
            debug!(%pod, %error, "the pod's events cannot be read");
            None
        }
        Err(_) => {
            debug!(%pod, "the pod's events did not come in time");
            None
        }
    }
}

/// The first of the events that are about an ephemeral container: it says most.
fn about(events: &[Event], container: &str) -> Option<String> {
    let path = format!("spec.ephemeralContainers{{{container}}}");
    let mut events = events.iter();
    let first = events.find(|event| event.involved_object.field_path.as_ref() == Some(&path))?;
    first.message.clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_about_the_container_is_a_complaint_of_it() {
        let event = |path: &str, message: &str| -> Event {
            serde_yaml::from_str(&format!(
                "{{metadata: {{}}, involvedObject: {{fieldPath: '{path}'}}, message: '{message}'}}"
            ))
            .unwrap()
        };
        let events = [
            event("spec.containers{web}", "Readiness probe failed"),
            event("spec.ephemeralContainers{kvpn-agent-a}", "cannot be pulled"),
            event("spec.ephemeralContainers{kvpn-agent-a}", "Error"),
        ];
        let found = about(&events, "kvpn-agent-a");
        assert_eq!(found.as_deref(), Some("cannot be pulled"));
        assert_eq!(about(&events, "kvpn-agent-b"), None);
    }
}
