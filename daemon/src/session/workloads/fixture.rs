//! A namespace to test with.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Pod, Service};
use kvpn_proto::crd::Engagement;
use kvpn_proto::rollout::Rollout;
use serde::de::DeserializeOwned;

use super::{Inventory, Workload};

fn read<K: DeserializeOwned>(yaml: &str) -> K {
    serde_yaml::from_str(yaml).unwrap()
}

fn pod(name: &str, label: &str, owner: &str, ready: &str) -> Pod {
    read(&format!(
        "
        metadata:
          name: {name}
          labels: {{app: {label}}}
          ownerReferences: {owner}
        spec:
          containers:
          - name: app
            ports: [{{containerPort: 7000}}]
        status:
          phase: Running
          conditions: [{{type: Ready, status: '{ready}'}}]
        "
    ))
}

fn owner(kind: &str, name: &str) -> String {
    owner_of("apps/v1", kind, name)
}

fn owner_of(version: &str, kind: &str, name: &str) -> String {
    format!("[{{apiVersion: {version}, kind: {kind}, name: {name}, uid: u, controller: true}}]")
}

fn deployment(name: &str, replicas: u32, ports: &str) -> Deployment {
    read(&format!(
        "
        metadata: {{name: {name}}}
        spec:
          replicas: {replicas}
          selector: {{matchLabels: {{app: {name}}}}}
          template:
            metadata: {{labels: {{app: {name}}}}}
            spec:
              containers:
              - name: app
                ports: {ports}
        "
    ))
}

/// Namespace `shop`: Deployment web (two pods, one ready) behind the Service
/// storefront, StatefulSet db, Deployments dns and idle, a pod of its own, Job import,
/// and Rollout blue, which has the template of the idle Deployment blue.
pub(crate) fn shop() -> Inventory {
    let web = deployment(
        "web",
        2,
        "[{containerPort: 8080, name: web}, {containerPort: 9100, name: metrics}]",
    );
    let dns = deployment("dns", 1, "[{containerPort: 53, protocol: UDP}]");
    let idle = deployment("idle", 0, "[{containerPort: 80}]");
    let replica_set: ReplicaSet = read(&format!(
        "
        metadata: {{name: web-5d, ownerReferences: {}}}
        spec:
          replicas: 2
          selector: {{matchLabels: {{app: web}}}}
          template: {{metadata: {{labels: {{app: web}}}}, spec: {{containers: []}}}}
        ",
        owner("Deployment", "web")
    ));
    let db: StatefulSet = read(
        "
        metadata: {name: db}
        spec:
          replicas: 1
          selector: {matchLabels: {app: db}}
          template: {metadata: {labels: {app: db}}, spec: {containers: [{name: app}]}}
        ",
    );
    let pods = vec![
        pod("web-5d-a", "web", &owner("ReplicaSet", "web-5d"), "True"),
        pod("web-5d-b", "web", &owner("ReplicaSet", "web-5d"), "False"),
        pod("db-0", "db", &owner("StatefulSet", "db"), "True"),
        pod("dns-0", "dns", &owner("Deployment", "dns"), "True"),
        pod("lonely", "lonely", "[]", "True"),
        pod(
            "import-x",
            "import",
            &owner_of("batch/v1", "Job", "import"),
            "True",
        ),
        pod("blue-7f-a", "blue", &owner("ReplicaSet", "blue-7f"), "True"),
    ];
    let services: Vec<Service> = read(
        "
        - metadata: {name: storefront}
          spec:
            selector: {app: web}
            ports: [{port: 80, name: http, targetPort: web}]
        - metadata: {name: db}
          spec:
            selector: {app: db}
            ports: [{port: 5432, targetPort: 15432}]
        - metadata: {name: external}
          spec: {ports: [{port: 80}]}
        - metadata: {name: blue-active}
          spec:
            selector: {app: blue, rollouts-pod-template-hash: 7f}
            ports: [{port: 80, targetPort: web}]
        ",
    );
    let blue = deployment("blue", 0, "[{containerPort: 8080, name: web}]");
    let blue_set: ReplicaSet = read(&format!(
        "
        metadata: {{name: blue-7f, ownerReferences: {}}}
        spec:
          replicas: 1
          selector: {{matchLabels: {{app: blue}}}}
          template:
            metadata: {{labels: {{app: blue, rollouts-pod-template-hash: 7f}}}}
            spec: {{containers: [{{name: app, ports: [{{containerPort: 8080, name: web}}]}}]}}
        ",
        owner_of("argoproj.io/v1alpha1", "Rollout", "blue")
    ));
    let rollout: Rollout = read(
        "
        apiVersion: argoproj.io/v1alpha1
        kind: Rollout
        metadata: {name: blue}
        spec:
          replicas: 1
          workloadRef: {apiVersion: apps/v1, kind: Deployment, name: blue}
        ",
    );
    let import = job("import");
    let replica_sets = [&replica_set, &blue_set].map(Workload::from);
    let workloads = [&web, &dns, &idle, &blue]
        .into_iter()
        .map(Workload::from)
        .chain([
            Workload::from(&db),
            Workload::of_rollout(&rollout, &replica_sets),
            Workload::from(&import),
        ])
        .chain(pods.iter().map(Workload::from))
        .chain(replica_sets.clone())
        .collect();
    Inventory {
        namespace: "shop".into(),
        workloads,
        pods,
        services,
        rollouts_hidden: None,
    }
}

pub(crate) fn job(name: &str) -> Job {
    read(&format!(
        "
        metadata: {{name: {name}}}
        spec:
          template:
            metadata: {{labels: {{app: {name}}}}}
            spec: {{containers: [{{name: app, ports: [{{containerPort: 7000}}]}}]}}
        "
    ))
}

/// An engagement of Deployment `workload` in namespace `shop`.
pub(crate) fn engagement(name: &str, user: &str, workload: &str, port: u16) -> Engagement {
    read(&format!(
        "
        apiVersion: kvpn.dev/v1alpha1
        kind: Engagement
        metadata: {{name: {name}, namespace: shop, creationTimestamp: '2026-11-01T10:00:00Z'}}
        spec:
          user: {user}
          session: {user}-1
          verb: Intercept
          workload: {{kind: Deployment, name: {workload}}}
          ports: [{{containerPort: {port}, protocol: TCP, local: '127.0.0.1:1'}}]
        "
    ))
}
