//! What users name, and what is meant.

use super::*;
use crate::session::workloads::fixture::shop;

fn reference(target: &str) -> String {
    find(&shop(), target)
        .unwrap()
        .workload
        .reference
        .to_string()
}

#[test]
fn a_bare_name_means_the_workload_before_the_service() {
    assert_eq!(reference("web"), "Deployment/web");
    assert!(find(&shop(), "web").unwrap().service.is_none());
}

#[test]
fn a_bare_name_falls_back_to_the_service() {
    let inventory = shop();
    let found = find(&inventory, "storefront").unwrap();
    assert_eq!(found.workload.reference.to_string(), "Deployment/web");
    assert_eq!(
        found
            .service
            .and_then(|service| service.metadata.name.as_deref()),
        Some("storefront")
    );
}

#[test]
fn kinds_are_read_as_kubectl_reads_them() {
    assert_eq!(reference("deploy/web"), "Deployment/web");
    assert_eq!(reference("svc/storefront"), "Deployment/web");
    assert_eq!(reference("sts/db"), "StatefulSet/db");
    assert_eq!(reference("pod/lonely"), "Pod/lonely");
    assert_eq!(reference("rs/web-5d"), "ReplicaSet/web-5d");
    assert_eq!(reference("job/import"), "Job/import");
    assert_eq!(reference("ro/blue"), "Rollout/blue");
}

#[test]
fn an_unknown_kind_names_the_kinds_there_are() {
    let failure = find(&shop(), "secret/web").unwrap_err();
    assert_eq!(failure.reason, Reason::Usage);
    assert!(failure.next_step.contains("StatefulSet"));
}

#[test]
fn a_cron_job_is_engaged_by_its_jobs() {
    let failure = find(&shop(), "cronjob/import").unwrap_err();
    assert_eq!(failure.reason, Reason::Usage);
    assert_eq!(
        failure.next_step,
        "name one of its Jobs, such as job/NAME; see them with `kvpn list -n shop`"
    );
}

#[test]
fn a_bare_name_means_the_workload_that_has_pods() {
    assert_eq!(reference("blue"), "Rollout/blue");
    assert_eq!(reference("blue-active"), "Rollout/blue");
    let failure = find(&shop(), "deploy/blue").unwrap_err();
    assert_eq!(failure.reason, Reason::NoRunningPod);
}

#[test]
fn a_job_that_is_over_has_no_running_pod() {
    let mut inventory = shop();
    for pod in &mut inventory.pods {
        pod.status.as_mut().unwrap().phase = Some("Succeeded".into());
    }
    let failure = find(&inventory, "job/import").unwrap_err();
    assert_eq!(failure.reason, Reason::NoRunningPod);
    assert!(
        failure.next_step.contains("suspended or over"),
        "{}",
        failure.next_step
    );
}

#[test]
fn rollouts_that_may_not_be_read_keep_nobody_from_the_rest() {
    let mut inventory = shop();
    inventory
        .workloads
        .retain(|workload| workload.reference.kind != WorkloadKind::Rollout);
    let forbidden = "alice may not \"list\" rollouts.argoproj.io in namespace shop";
    let hidden = Failure::new(Reason::Forbidden, forbidden, "ask");
    inventory.rollouts_hidden = Some(hidden.clone());
    assert!(find(&inventory, "web").is_ok());
    assert_eq!(find(&inventory, "rollout/blue").unwrap_err(), hidden);
    let unknown = find(&inventory, "green").unwrap_err();
    assert_eq!(unknown.reason, Reason::NoSuchWorkload);
    assert!(
        unknown.next_step.ends_with(forbidden),
        "{}",
        unknown.next_step
    );
    // Its ReplicaSets have nobody in charge then.
    let found = find(&inventory, "blue-active").unwrap();
    assert_eq!(found.workload.reference.to_string(), "ReplicaSet/blue-7f");
}

#[test]
fn an_unknown_name_suggests_near_ones() {
    let failure = find(&shop(), "wbe").unwrap_err();
    assert_eq!(failure.reason, Reason::NoSuchWorkload);
    assert_eq!(
        failure.message,
        "there is no wbe in namespace shop; did you mean web?"
    );
    assert!(failure.next_step.contains("kvpn list"));
}

#[test]
fn part_of_a_name_suggests_the_whole() {
    let failure = find(&shop(), "store").unwrap_err();
    assert!(
        failure.message.ends_with("did you mean storefront?"),
        "{}",
        failure.message
    );
}

#[test]
fn a_name_like_nothing_suggests_nothing() {
    let failure = find(&shop(), "zzzzzz").unwrap_err();
    assert_eq!(failure.message, "there is no zzzzzz in namespace shop");
}

#[test]
fn a_workload_without_pods_has_no_running_pod() {
    let failure = find(&shop(), "idle").unwrap_err();
    assert_eq!(failure.reason, Reason::NoRunningPod);
    assert!(failure.message.contains("Deployment/idle"));
}

#[test]
fn a_service_without_selector_is_not_supported() {
    let failure = find(&shop(), "svc/external").unwrap_err();
    assert_eq!(failure.reason, Reason::NotSupported);
}

#[test]
fn a_service_with_two_workloads_asks_for_one() {
    let mut inventory = shop();
    for workload in &mut inventory.workloads {
        if workload.reference.name == "db" {
            workload.labels.insert("app".into(), "web".into());
        }
    }
    let failure = find(&inventory, "storefront").unwrap_err();
    assert_eq!(failure.reason, Reason::Usage);
    assert!(
        failure.message.contains("Deployment/web, StatefulSet/db"),
        "{}",
        failure.message
    );
}
