//! What errors of the API server mean to a user.

use kube::client::AuthError;
use kube::core::Status;
use kvpn_proto::{Failure, Reason};

/// Explains an error of the API server, or of the way to it.
pub(super) fn explain(error: &kube::Error, server: &str) -> Failure {
    if let kube::Error::Api(status) = error {
        return explain_status(status, server);
    }
    if let kube::Error::InferKubeconfig(error) = error {
        return Failure::new(
            Reason::NoKubeconfig,
            format!("the kubeconfig cannot be used: {error}"),
            "correct the kubeconfig, or name another with --kubeconfig",
        );
    }
    if let kube::Error::SerdeError(_) | kube::Error::BuildRequest(_) = error {
        return Failure::internal(error);
    }
    let mut deepest: &(dyn std::error::Error + 'static) = error;
    loop {
        if let Some(auth) = deepest.downcast_ref::<AuthError>() {
            return credentials(auth);
        }
        match deepest.source() {
            Some(source) => deepest = source,
            None => break,
        }
    }
    unreachable(server, &deepest.to_string())
}

/// The failure of an API server that does not answer.
pub(super) fn unreachable(server: &str, detail: &str) -> Failure {
    let next_step = if detail.contains("certificate") {
        "check the certificate authority of this cluster in the kubeconfig"
    } else {
        "check the network and the server in the kubeconfig with `kubectl cluster-info`"
    };
    Failure::new(
        Reason::ApiServerUnreachable,
        format!("the API server at {server} cannot be reached: {detail}"),
        next_step,
    )
}

/// The output of a plugin holds its token, so only what it said on standard
/// error is told.
fn credentials(error: &AuthError) -> Failure {
    let message = if let AuthError::AuthExecRun { cmd, out } = error {
        let program = cmd.split_whitespace().next().unwrap_or_default();
        let said = String::from_utf8_lossy(&out.stderr);
        let last = said
            .lines()
            .rfind(|line| !line.trim().is_empty())
            .unwrap_or_default()
            .trim();
        format!(
            "the credential plugin {} failed ({}): {last}",
            program.trim_matches('"'),
            out.status
        )
    } else {
        format!("the kubeconfig's credentials cannot be used: {error}")
    };
    Failure::new(
        Reason::Unauthenticated,
        message,
        "log in again so that `kubectl auth whoami` works, then retry",
    )
}

/// Explains a status that the API server answered.
pub(super) fn explain_status(status: &Status, server: &str) -> Failure {
    if let Some(failure) = denied(&status.message) {
        return failure;
    }
    match status.code {
        401 => Failure::new(
            Reason::Unauthenticated,
            format!("the API server at {server} does not accept the kubeconfig's credentials"),
            "log in again so that `kubectl auth whoami` works, then retry",
        ),
        403 => Failure::new(
            Reason::Forbidden,
            forbidden(&status.message),
            "ask an administrator to bind the ClusterRole kvpn-user to you",
        ),
        404 => not_found(status),
        429 | 500..=599 => Failure::new(
            Reason::ApiServerUnreachable,
            format!(
                "the API server at {server} answered {}: {}",
                status.code, status.message
            ),
            "try again; if it stays, the cluster's control plane is in trouble",
        ),
        _ => Failure::internal(format!(
            "the API server answered {}: {}",
            status.code, status.message
        )),
    }
}

fn not_found(status: &Status) -> Failure {
    let details = status.details.as_ref();
    let kind = details
        .map(|details| details.kind.as_str())
        .unwrap_or_default();
    let name = details
        .map(|details| details.name.as_str())
        .unwrap_or_default();
    if name.is_empty() {
        // The resource type itself is unknown to the API server.
        return Failure::new(
            Reason::ChartNotInstalled,
            "the cluster does not have kvpn's custom resources",
            "install the chart with `helm install kvpn charts/kvpn -n kvpn --create-namespace`",
        );
    }
    if kind == "namespaces" {
        return Failure::new(
            Reason::NoSuchWorkload,
            format!("there is no namespace {name}"),
            "choose another with -n; `kubectl get namespaces` lists them",
        );
    }
    Failure::internal(&status.message)
}

/// The failure of what a ValidatingAdmissionPolicy denies, whatever RBAC allows and
/// with whichever code, in the policy's words. Those of the chart say after a
/// semicolon what to do.
fn denied(message: &str) -> Option<Failure> {
    let policy = between(message, "ValidatingAdmissionPolicy '", "'")?;
    let (_, words) = message.split_once(" denied request: ")?;
    let halves = words.split_once("; ");
    let halves = halves.filter(|_| policy.starts_with("kvpn-"));
    let (wrong, next_step) = match halves {
        Some((wrong, next_step)) => (wrong, next_step.to_owned()),
        None => (
            words,
            format!("ask an administrator about the ValidatingAdmissionPolicy {policy}"),
        ),
    };
    Some(Failure::new(Reason::Forbidden, wrong, next_step))
}

/// Puts RBAC's refusal into few words: `alice may not "create"
/// sessions.kvpn.dev in namespace kvpn`. Refusals of another form (admission,
/// quota) stay as they are.
fn forbidden(message: &str) -> String {
    let parsed = || {
        let user = between(message, "User \"", "\"")?;
        let verb = between(message, "\" cannot ", " resource ")?;
        let resource = between(message, " resource \"", "\"")?;
        let group = between(message, " in API group \"", "\"")?;
        let object = between(message, "\"", "\" is forbidden").map(|name| format!(" {name}"));
        let place = match between(message, " in the namespace \"", "\"") {
            Some(namespace) => format!(" in namespace {namespace}"),
            None => " in the whole cluster".to_owned(),
        };
        let dot = if group.is_empty() { "" } else { "." };
        Some(format!(
            "{user} may not \"{verb}\" {resource}{dot}{group}{}{place}",
            object.unwrap_or_default()
        ))
    };
    parsed().unwrap_or_else(|| message.to_owned())
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let start = text.find(before)? + before.len();
    let rest = text.get(start..)?;
    rest.get(..rest.find(after)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::response::StatusDetails;

    fn status(code: u16, message: &str) -> Status {
        Status::failure(message, "x").with_code(code)
    }

    #[test]
    fn a_refusal_names_verb_and_resource() {
        let message = "sessions.kvpn.dev is forbidden: User \"alice\" cannot create resource \
                       \"sessions\" in API group \"kvpn.dev\" in the namespace \"kvpn\"";
        let failure = explain_status(&status(403, message), "https://s");
        assert_eq!(failure.reason, Reason::Forbidden);
        assert_eq!(
            failure.message,
            "alice may not \"create\" sessions.kvpn.dev in namespace kvpn"
        );
        assert!(failure.next_step.contains("kvpn-user"));
    }

    #[test]
    fn a_refusal_of_one_object_names_it() {
        let message = "services \"https:traffic-manager:443\" is forbidden: User \"bob\" cannot \
                       get resource \"services/proxy\" in API group \"\" in the namespace \"kvpn\"";
        assert_eq!(
            forbidden(message),
            "bob may not \"get\" services/proxy https:traffic-manager:443 in namespace kvpn"
        );
    }

    #[test]
    fn a_refusal_for_the_whole_cluster_says_so() {
        let message = "nodes is forbidden: User \"bob\" cannot list resource \"nodes\" in API \
                       group \"\" at the cluster scope";
        assert_eq!(
            forbidden(message),
            "bob may not \"list\" nodes in the whole cluster"
        );
    }

    #[test]
    fn refusals_of_admission_keep_their_words() {
        let message = "pods \"web\" is forbidden: violates PodSecurity \"restricted:latest\"";
        assert_eq!(forbidden(message), message);
    }

    #[test]
    fn policies_of_the_chart_say_what_is_wrong_and_what_to_do() {
        let message = "engagements.kvpn.dev \"web-alice-x\" is forbidden: \
                       ValidatingAdmissionPolicy 'kvpn-engagements' with binding \
                       'kvpn-engagements' denied request: intercepts without a filter are \
                       forbidden in this cluster; give one, such as --http-header x-user=alice";
        let failure = explain_status(&status(403, message), "https://s");
        assert_eq!(failure.reason, Reason::Forbidden);
        assert_eq!(
            failure.message,
            "intercepts without a filter are forbidden in this cluster"
        );
        assert_eq!(
            failure.next_step,
            "give one, such as --http-header x-user=alice"
        );
    }

    #[test]
    fn other_policies_keep_their_words_and_are_named() {
        // 422 is what a policy answers that names no reason.
        let message = "engagements.kvpn.dev \"web-alice-x\" is forbidden: \
                       ValidatingAdmissionPolicy 'freeze' with binding 'prod' denied request: \
                       no changes until Monday; see the wiki";
        let failure = explain_status(&status(422, message), "https://s");
        assert_eq!(failure.reason, Reason::Forbidden);
        assert_eq!(failure.message, "no changes until Monday; see the wiki");
        assert!(failure.next_step.contains("freeze"));
    }

    #[test]
    fn an_unknown_resource_means_that_the_chart_is_missing() {
        let failure = explain_status(&status(404, "404 page not found"), "https://s");
        assert_eq!(failure.reason, Reason::ChartNotInstalled);
    }

    #[test]
    fn a_missing_namespace_is_named() {
        let details: StatusDetails =
            serde_json::from_str(r#"{"kind": "namespaces", "name": "shop"}"#).unwrap();
        let status = status(404, "namespaces \"shop\" not found").with_details(details);
        let failure = explain_status(&status, "https://s");
        assert_eq!(failure.reason, Reason::NoSuchWorkload);
        assert_eq!(failure.message, "there is no namespace shop");
    }

    #[test]
    fn unauthenticated_is_told_with_the_server() {
        let failure = explain_status(&status(401, "Unauthorized"), "https://s:6443");
        assert_eq!(failure.reason, Reason::Unauthenticated);
        assert!(failure.message.contains("https://s:6443"));
    }

    #[test]
    fn a_failed_plugin_tells_its_last_words_but_not_its_output() {
        use std::os::unix::process::ExitStatusExt;
        let error = AuthError::AuthExecRun {
            cmd: "\"aws\" \"eks\"".into(),
            out: Box::new(std::process::Output {
                status: std::process::ExitStatus::from_raw(0x100),
                stdout: b"{\"token\": \"s3cr3t\"}".to_vec(),
                stderr: b"warning\nsession expired\n\n".to_vec(),
            }),
        };
        let failure = explain(&kube::Error::Auth(error), "https://s");
        assert_eq!(failure.reason, Reason::Unauthenticated);
        assert!(
            failure.message.ends_with("session expired"),
            "{}",
            failure.message
        );
        assert!(failure.message.contains(" aws "), "{}", failure.message);
        assert!(!failure.message.contains("s3cr3t"));
    }

    #[test]
    fn a_refused_connection_is_an_unreachable_server() {
        let error = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let failure = explain(&kube::Error::Service(error.into()), "https://s:6443");
        assert_eq!(failure.reason, Reason::ApiServerUnreachable);
        assert!(failure.message.contains("https://s:6443"));
        assert!(
            failure.message.contains("connection refused"),
            "{}",
            failure.message
        );
    }
}
