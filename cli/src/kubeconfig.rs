//! Which cluster a kubeconfig selects: just enough to tell whether a running
//! session is the one that the user asks for. The session itself reads the
//! kubeconfig properly and reports what is wrong with it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use kvpn_proto::v1::StatusResponse;
use serde::Deserialize;

use crate::args::Flags;

/// What is selected, as far as it can be told.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Selection {
    pub(crate) context: Option<String>,
    server: Option<String>,
}

impl Selection {
    /// Follows the flags, then the environment, as kubectl does.
    pub(crate) fn read(flags: &Flags) -> Self {
        let files = files(
            flags.kubeconfig.as_deref(),
            std::env::var_os("KUBECONFIG").as_deref(),
            std::env::home_dir().as_deref(),
        );
        let documents: Vec<_> = files
            .iter()
            .filter_map(|file| std::fs::read_to_string(file).ok())
            .filter_map(|text| serde_yaml::from_str(&text).ok())
            .collect();
        Self::of(&documents, flags.context.clone())
    }

    /// Earlier documents win over later ones.
    fn of(documents: &[Document], context: Option<String>) -> Self {
        let context = context.or_else(|| {
            documents
                .iter()
                .filter_map(|document| document.current_context.clone())
                .find(|name| !name.is_empty())
        });
        let server = context
            .as_deref()
            .and_then(|context| {
                documents
                    .iter()
                    .flat_map(|document| document.contexts.iter().flatten())
                    .find(|entry| entry.name == context)
            })
            .and_then(|entry| {
                documents
                    .iter()
                    .flat_map(|document| document.clusters.iter().flatten())
                    .find(|cluster| cluster.name == entry.context.cluster)
            })
            .map(|entry| entry.cluster.server.clone());
        Self { context, server }
    }

    /// Tells whether the session is in the selected cluster.
    pub(crate) fn matches(&self, status: &StatusResponse) -> bool {
        let context = self.context.as_ref().is_none_or(|it| *it == status.context);
        let server = self
            .server
            .as_ref()
            .is_none_or(|it| normal_url(it) == normal_url(&status.server));
        context && server
    }
}

/// Parsers of URLs add a slash after the host, and write it in lower case.
fn normal_url(url: &str) -> String {
    url.trim_end_matches('/').to_ascii_lowercase()
}

fn files(flag: Option<&Path>, variable: Option<&OsStr>, home: Option<&Path>) -> Vec<PathBuf> {
    match (flag, variable, home) {
        (Some(file), _, _) => vec![file.to_owned()],
        (None, Some(list), _) if !list.is_empty() => std::env::split_paths(list).collect(),
        (None, _, Some(home)) => vec![home.join(".kube/config")],
        (None, _, None) => Vec::new(),
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Document {
    current_context: Option<String>,
    contexts: Option<Vec<NamedContext>>,
    clusters: Option<Vec<NamedCluster>>,
}

#[derive(Debug, Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Debug, Deserialize)]
struct Context {
    cluster: String,
}

#[derive(Debug, Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Debug, Deserialize)]
struct Cluster {
    server: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(current: &str, server: &str) -> Document {
        let text = format!(
            "
            apiVersion: v1
            kind: Config
            current-context: {current}
            contexts:
            - name: dev
              context: {{cluster: c, user: u, namespace: shop}}
            clusters:
            - name: c
              cluster: {{server: {server}, certificate-authority-data: eA==}}
            users:
            - name: u
              user: {{token: t}}
            "
        );
        serde_yaml::from_str(&text).unwrap()
    }

    fn status(context: &str, server: &str) -> StatusResponse {
        StatusResponse {
            context: context.into(),
            server: server.into(),
            ..StatusResponse::default()
        }
    }

    #[test]
    fn current_context_is_selected_unless_another_is_given() {
        let documents = [document("dev", "https://a:6443")];
        let current = Selection::of(&documents, None);
        assert_eq!(current.context.as_deref(), Some("dev"));
        assert_eq!(current.server.as_deref(), Some("https://a:6443"));

        let given = Selection::of(&documents, Some("prod".into()));
        assert_eq!(given.context.as_deref(), Some("prod"));
        assert_eq!(given.server, None);
    }

    #[test]
    fn earlier_kubeconfigs_win() {
        let documents = [document("\"\"", "https://a"), document("dev", "https://b")];
        let selection = Selection::of(&documents, None);
        assert_eq!(selection.context.as_deref(), Some("dev"));
        assert_eq!(selection.server.as_deref(), Some("https://a"));
    }

    #[test]
    fn lists_may_be_null() {
        let document: Document = serde_yaml::from_str("contexts: null\nclusters: null\n").unwrap();
        assert_eq!(Selection::of(&[document], None), Selection::default());
    }

    #[test]
    fn session_matches_by_context_and_server() {
        let selection = Selection::of(&[document("dev", "https://A:6443")], None);
        assert!(selection.matches(&status("dev", "https://a:6443/")));
        assert!(!selection.matches(&status("prod", "https://a:6443/")));
        assert!(!selection.matches(&status("dev", "https://b:6443/")));
    }

    #[test]
    fn what_cannot_be_told_matches_anything() {
        assert!(Selection::default().matches(&status("dev", "https://a")));
    }

    #[test]
    fn flag_then_variable_then_home_name_the_files() {
        let flag = Some(Path::new("f"));
        let variable = Some(OsStr::new("a:b"));
        let home = Some(Path::new("/home/u"));
        assert_eq!(files(flag, variable, home), [PathBuf::from("f")]);
        assert_eq!(
            files(None, variable, home),
            [PathBuf::from("a"), PathBuf::from("b")]
        );
        let default = [PathBuf::from("/home/u/.kube/config")];
        assert_eq!(files(None, Some(OsStr::new("")), home), default);
        assert_eq!(files(None, None, home), default);
    }
}
