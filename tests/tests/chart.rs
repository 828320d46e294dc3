//! The chart: lints, and what it renders for several values.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use kvpn_tests::Cmd;
use kvpn_tests::lab::components::Component;
use kvpn_tests::lab::layout::Layout;
use serde_json::Value;

static LAYOUT: LazyLock<Layout> = LazyLock::new(|| {
    let layout = Layout::new();
    Component::Helm.build(&layout).unwrap();
    layout
});

fn helm(args: &[&str], values: &Path) -> Cmd {
    let helm = Cmd::new(LAYOUT.tool("helm")).args(args).arg(LAYOUT.chart());
    // helm reads its user's settings; there are none.
    let home = LAYOUT.cache().join("helm");
    let homes = ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"];
    let helm = homes.iter().fold(helm, |helm, name| helm.env(name, &home));
    helm.arg("--values").arg(values)
}

fn values() -> Vec<PathBuf> {
    let directory = LAYOUT.tests().join("charts/values");
    let mut files: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

#[test]
fn chart_passes_helms_lint() {
    for file in values() {
        helm(&["lint", "--strict", "--quiet"], &file).ok().unwrap();
    }
}

#[test]
fn chart_renders_as_reviewed() {
    for file in values() {
        let rendered = helm(
            &[
                "template",
                "kvpn",
                "--namespace",
                "kvpn",
                "--kube-version",
                "1.34.0",
            ],
            &file,
        )
        .ok()
        .unwrap();
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        let crds = rendered
            .matches("\nkind: CustomResourceDefinition\n")
            .count();
        assert_eq!(crds, if name == "crds-off" { 0 } else { 2 }, "{name}");
        // The CRDs have a check of their own, against the Rust types.
        let documents = rendered.split("---\n");
        let others = documents.filter(|text| !text.contains("kind: CustomResourceDefinition"));
        let text = others.collect::<Vec<_>>().join("---\n");
        insta::with_settings!({snapshot_path => "../charts/snapshots", prepend_module_to_snapshot => false}, {
            insta::assert_snapshot!(name, text);
        });
    }
}

#[test]
fn chart_refuses_values_that_it_does_not_know() {
    let file = LAYOUT.cache().join("unknown-values.yaml");
    for (values, wrong) in [
        ("imgae: {tag: x}", "imgae"),
        ("engagements: {policy: {forbidden: []}}", "forbidden"),
        (
            "engagements: {policy: {forbiddenVerbs: [intercept]}}",
            "forbiddenVerbs",
        ),
        (
            "engagements: {policy: {requireFilter: 'true'}}",
            "requireFilter",
        ),
        // These end up in expressions of CEL.
        (
            r#"engagements: {policy: {forbiddenNamespaces: ['a"]) || !(""']}}"#,
            "forbiddenNamespaces",
        ),
    ] {
        std::fs::write(&file, values).unwrap();
        let output = helm(&["lint"], &file).run().unwrap();
        assert!(!output.status.success(), "{values}");
        assert!(output.stdout.contains(wrong), "{}", output.stdout);
    }
}

#[test]
fn values_can_forbid_the_verbs_that_there_are() {
    let schema = std::fs::read_to_string(LAYOUT.chart().join("values.schema.json")).unwrap();
    let schema: Value = serde_json::from_str(&schema).unwrap();
    let [_, engagements] = kvpn_proto::crd::definitions();
    let engagements = serde_json::to_value(engagements).unwrap();
    let forbidden = "/properties/engagements/properties/policy/properties/forbiddenVerbs";
    let verb = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/verb";
    let verbs = engagements.pointer(&format!("{verb}/enum"));
    assert_eq!(
        schema.pointer(&format!("{forbidden}/items/enum")),
        Some(verbs.unwrap())
    );
}
