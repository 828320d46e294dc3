//! What the container of a reader runs as.

use k8s_openapi::api::core::v1::{Pod, SeccompProfile, SecurityContext};

use crate::state::Owner;

/// A user that owns nothing.
const NOBODY: i64 = 65_534;

/// What the container of a reader runs as: the kernel lets it read the processes of another
/// one when it is of the same user and group and has the same capabilities.
///
/// # Errors
/// It would be root where the pod says that nobody is, for people. A reader says whose the
/// processes are, and others in its pod can call in its place.
pub(crate) fn security(
    target: &str,
    pod: &Pod,
    owner: Option<Owner>,
) -> Result<SecurityContext, String> {
    let spec = pod.spec.as_ref();
    let mut containers = spec.into_iter().flat_map(|spec| &spec.containers);
    let own = containers.find(|container| container.name == target);
    let own = own.and_then(|container| container.security_context.clone());
    let own = own.unwrap_or_default();
    let pods = spec.and_then(|spec| spec.security_context.as_ref());
    let told = (
        own.run_as_user.or(pods.and_then(|pods| pods.run_as_user)),
        own.run_as_group.or(pods.and_then(|pods| pods.run_as_group)),
    );
    let is_not_root = own
        .run_as_non_root
        .or(pods.and_then(|pods| pods.run_as_non_root));
    let (user, group) = match (owner, started_as(target, pod)) {
        (Some(Owner { uid, gid }), _) => (Some(uid.into()), Some(gid.into())),
        (None, Some((uid, gid))) => (Some(uid), Some(gid)),
        // Whose it is, is in its image, and the first reader finds out. The kubelet starts it
        // as nobody where it would not as root.
        (None, None) if is_not_root == Some(true) && told.0.is_none() => (Some(NOBODY), told.1),
        (None, None) => told,
    };
    if user == Some(0) && is_not_root == Some(true) {
        return Err(
            "its processes are root's, and runAsNonRoot forbids a reader as root".to_owned(),
        );
    }
    Ok(SecurityContext {
        run_as_user: user,
        run_as_group: group,
        read_only_root_filesystem: Some(true),
        // The kernel does not ask for it, and a profile of the app's may keep the reader from
        // what it needs.
        seccomp_profile: Some(SeccompProfile {
            type_: "RuntimeDefault".to_owned(),
            localhost_profile: None,
        }),
        proc_mount: None,
        ..own
    })
}

/// User and group that a container was started as, where the kubelet tells it.
fn started_as(target: &str, pod: &Pod) -> Option<(i64, i64)> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    let status = statuses.iter().find(|status| status.name == target)?;
    let user = status.user.as_ref()?.linux.as_ref()?;
    Some((user.uid, user.gid))
}

/// A running pod, for tests.
#[cfg(test)]
pub(super) fn pod(spec: &str) -> Pod {
    serde_yaml::from_str(&format!(
        "{{metadata: {{name: web-1}}, status: {{podIP: 10.1.0.7}}, spec: {spec}}}"
    ))
    .unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reader_runs_as_who_is_told_or_was_found() {
        let owner = Some(Owner { uid: 999, gid: 7 });
        let runs_as = |spec: &str, owner| {
            let security = security("web", &pod(spec), owner).unwrap();
            (security.run_as_user, security.run_as_group)
        };
        let nothing = "{containers: [{name: web}]}";
        assert_eq!(runs_as(nothing, None), (None, None));
        assert_eq!(runs_as(nothing, owner), (Some(999), Some(7)));
        let by_pod = "{containers: [{name: web}], securityContext: {runAsUser: 5, runAsGroup: 6}}";
        assert_eq!(runs_as(by_pod, None), (Some(5), Some(6)));
        assert_eq!(runs_as(by_pod, owner), (Some(999), Some(7)));
        let by_image = "{containers: [{name: web, securityContext: {runAsNonRoot: true}}]}";
        assert_eq!(runs_as(by_image, None), (Some(NOBODY), None));
    }

    #[test]
    fn reader_is_not_root_where_nobody_is_to_be() {
        let root = Some(Owner { uid: 0, gid: 0 });
        let is_root = |spec: &str| security("web", &pod(spec), root).is_ok();
        assert!(is_root("{containers: [{name: web}]}"));
        for forbidden in [
            "{containers: [{name: web, securityContext: {runAsNonRoot: true}}]}",
            "{containers: [{name: web}], securityContext: {runAsNonRoot: true}}",
        ] {
            let why = security("web", &pod(forbidden), root).unwrap_err();
            assert!(why.contains("runAsNonRoot"), "{why}");
        }
        assert!(is_root(
            "{containers: [{name: web, securityContext: {runAsNonRoot: false}}],
              securityContext: {runAsNonRoot: true}}"
        ));
        let by_image = "{containers: [{name: web, securityContext: {runAsNonRoot: true}}]}";
        let other = Some(Owner { uid: 999, gid: 0 });
        let other = security("web", &pod(by_image), other).unwrap();
        assert_eq!(other.run_as_non_root, Some(true));
    }

    #[test]
    fn reader_runs_as_who_the_kubelet_says() {
        let mut pod = pod("{containers: [{name: web}]}");
        let status = serde_json::json!({"containerStatuses": [{
            "name": "web", "image": "", "imageID": "", "ready": true, "restartCount": 0,
            "user": {"linux": {"uid": 101, "gid": 102}},
        }]});
        pod.status = Some(serde_json::from_value(status).unwrap());
        let security = security("web", &pod, None).unwrap();
        assert_eq!(
            (security.run_as_user, security.run_as_group),
            (Some(101), Some(102))
        );
    }
}
