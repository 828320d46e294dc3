//! An Engagement or a Session that is about to be deleted.

use kube::core::DynamicObject;
use kube::core::admission::AdmissionRequest;

use crate::state::Deletion;

/// Who deletes what of whose; nothing where the API server does not say.
pub(super) fn deletion(question: &AdmissionRequest<DynamicObject>) -> Option<Deletion> {
    let object = question.old_object.as_ref()?;
    Some(Deletion {
        uid: object.metadata.uid.clone()?,
        owner: object.data["spec"]["user"].as_str()?.to_owned(),
        by: question.user_info.username.clone()?,
        is_trial: question.dry_run,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// As the API server asks it.
    fn question(old_object: &Value) -> AdmissionRequest<DynamicObject> {
        serde_json::from_value(json!({
            "uid": "0c9a8d74",
            "kind": {"group": "kvpn.dev", "version": "v1alpha1", "kind": "Engagement"},
            "resource": {"group": "kvpn.dev", "version": "v1alpha1", "resource": "engagements"},
            "name": "web-alice-k2x9p",
            "namespace": "shop",
            "operation": "DELETE",
            "userInfo": {"username": "bob@example.com", "groups": ["system:authenticated"]},
            "object": null,
            "oldObject": old_object,
            "dryRun": true,
            "options": {"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1"},
        }))
        .unwrap()
    }

    #[test]
    fn deletion_is_of_the_object_that_there_was() {
        let question = question(&json!({
            "apiVersion": "kvpn.dev/v1alpha1",
            "kind": "Engagement",
            "metadata": {"name": "web-alice-k2x9p", "namespace": "shop", "uid": "7f3d"},
            "spec": {"user": "alice", "session": "alice-1", "verb": "Intercept"},
        }));
        let expected = Deletion {
            uid: "7f3d".into(),
            owner: "alice".into(),
            by: "bob@example.com".into(),
            is_trial: true,
        };
        assert_eq!(deletion(&question), Some(expected));
    }

    #[test]
    fn question_without_an_object_tells_nothing() {
        assert_eq!(deletion(&question(&Value::Null)), None);
    }
}
