//! Finds and reads the kubeconfig as kubectl does: `--kubeconfig`, the list in
//! `$KUBECONFIG`, `~/.kube/config`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use kube::Config;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kvpn_proto::{Failure, Reason};

use super::args::SessionArgs;
use super::proxy::Proxy;

/// The cluster that the user chose.
pub(crate) struct Target {
    pub(crate) config: Config,
    pub(crate) proxy: Option<Proxy>,
    pub(crate) context: String,
    pub(crate) namespace: String,
}

/// Reads the kubeconfig and picks context and namespace.
pub(crate) async fn load(args: &SessionArgs) -> Result<Target, Failure> {
    let paths = candidates(
        args.kubeconfig.as_deref(),
        std::env::var_os("KUBECONFIG"),
        std::env::home_dir(),
    );
    let kubeconfig = read(&paths, args.kubeconfig.is_some())?;
    let (context, namespace) = choose(
        &kubeconfig,
        args.context.as_deref(),
        args.namespace.as_deref(),
    )?;
    let own_proxy = proxy_url(&kubeconfig, &context).map(str::to_owned);
    let options = KubeConfigOptions {
        context: Some(context.clone()),
        ..KubeConfigOptions::default()
    };
    let config = Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .map_err(|error| unusable(&context, &error))?;
    let proxy = Proxy::find(own_proxy.as_deref(), &config.cluster_url, |name| {
        std::env::var(name).ok()
    })?;
    Ok(Target {
        config,
        proxy,
        context,
        namespace,
    })
}

fn unusable(context: &str, error: &KubeconfigError) -> Failure {
    let next_step = if let KubeconfigError::ParseNoProxy(_) = error {
        "correct NO_PROXY: addresses, subnets and host names with a single comma between two"
    } else {
        "see what `kubectl config view` says of that context and correct the kubeconfig"
    };
    Failure::new(
        Reason::NoKubeconfig,
        format!(
            "context {context} of the kubeconfig cannot be used: {}",
            first_line(error)
        ),
        next_step,
    )
}

/// The `proxy-url` of a context's cluster.
fn proxy_url<'a>(kubeconfig: &'a Kubeconfig, context: &str) -> Option<&'a str> {
    let contexts = kubeconfig.contexts.iter();
    let context = contexts
        .filter(|named| named.name == context)
        .find_map(|named| named.context.as_ref())?;
    let mut clusters = kubeconfig.clusters.iter();
    let cluster = clusters.find(|named| named.name == context.cluster)?;
    cluster.cluster.as_ref()?.proxy_url.as_deref()
}

/// The files to read, in the order of precedence.
fn candidates(
    flag: Option<&Path>,
    variable: Option<OsString>,
    home: Option<PathBuf>,
) -> Vec<PathBuf> {
    if let Some(path) = flag {
        return vec![path.to_owned()];
    }
    let listed: Vec<PathBuf> = variable
        .iter()
        .flat_map(std::env::split_paths)
        .filter(|path| !path.as_os_str().is_empty())
        .collect();
    if listed.is_empty() {
        home.map(|home| home.join(".kube/config"))
            .into_iter()
            .collect()
    } else {
        listed
    }
}

/// Reads and merges the files; those that do not exist are passed over, unless
/// none is left or the user named the file.
fn read(paths: &[PathBuf], named: bool) -> Result<Kubeconfig, Failure> {
    let mut merged: Option<Kubeconfig> = None;
    for path in paths.iter().filter(|path| named || path.exists()) {
        let mut next = Kubeconfig::read_from(path).map_err(|error| {
            Failure::new(
                Reason::NoKubeconfig,
                format!(
                    "cannot use the kubeconfig {}: {}",
                    path.display(),
                    first_line(&error)
                ),
                "correct that file, or name another with --kubeconfig",
            )
        })?;
        // An empty one must not hide that of a later file.
        next.current_context = next.current_context.filter(|name| !name.is_empty());
        merged = Some(match merged {
            None => next,
            Some(before) => before.merge(next).map_err(|error| {
                Failure::new(
                    Reason::NoKubeconfig,
                    format!("cannot merge the kubeconfig {}: {error}", path.display()),
                    "name a single file with --kubeconfig",
                )
            })?,
        });
    }
    merged.ok_or_else(|| no_kubeconfig(paths))
}

fn no_kubeconfig(paths: &[PathBuf]) -> Failure {
    let tried: Vec<String> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    let message = if tried.is_empty() {
        "no kubeconfig: neither KUBECONFIG nor HOME is set".to_owned()
    } else {
        format!("no kubeconfig: tried {}", tried.join(", "))
    };
    Failure::new(
        Reason::NoKubeconfig,
        message,
        "name a file with --kubeconfig or in KUBECONFIG",
    )
}

/// Picks the names of the context and the namespace.
fn choose(
    kubeconfig: &Kubeconfig,
    context: Option<&str>,
    namespace: Option<&str>,
) -> Result<(String, String), Failure> {
    let Some(wanted) = context
        .or(kubeconfig.current_context.as_deref())
        .filter(|name| !name.is_empty())
    else {
        return Err(Failure::new(
            Reason::UnknownContext,
            format!(
                "the kubeconfig has no current context; {}",
                contexts(kubeconfig)
            ),
            "choose one with --context",
        ));
    };
    let Some(found) = kubeconfig
        .contexts
        .iter()
        .find(|named| named.name == wanted)
    else {
        return Err(Failure::new(
            Reason::UnknownContext,
            format!(
                "the kubeconfig has no context {wanted}; {}",
                contexts(kubeconfig)
            ),
            "choose one with --context",
        ));
    };
    let own = found
        .context
        .as_ref()
        .and_then(|context| context.namespace.as_deref());
    let namespace = [namespace, own]
        .into_iter()
        .flatten()
        .find(|name| !name.is_empty())
        .unwrap_or("default");
    Ok((wanted.to_owned(), namespace.to_owned()))
}

fn contexts(kubeconfig: &Kubeconfig) -> String {
    let names: Vec<&str> = kubeconfig
        .contexts
        .iter()
        .map(|named| named.name.as_str())
        .collect();
    if names.is_empty() {
        "there are none".to_owned()
    } else {
        format!("there are: {}", names.join(", "))
    }
}

/// The rest may quote the file, and with it its secrets.
fn first_line(error: &dyn std::error::Error) -> String {
    error
        .to_string()
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kubeconfig() -> Kubeconfig {
        Kubeconfig::from_yaml(
            "
            apiVersion: v1
            kind: Config
            current-context: dev
            contexts:
            - {name: dev, context: {cluster: c, user: u, namespace: shop}}
            - {name: bare, context: {cluster: c, user: u}}
            clusters:
            - {name: c, cluster: {server: 'https://10.0.0.1:6443', proxy-url: 'socks5://p:1'}}
            users:
            - {name: u, user: {token: t}}
            ",
        )
        .unwrap()
    }

    #[test]
    fn the_flag_outranks_the_variable_and_the_home() {
        let home = Some(PathBuf::from("/home/a"));
        let variable = Some(OsString::from("/x::/y"));
        assert_eq!(
            candidates(Some(Path::new("/f")), variable.clone(), home.clone()),
            [PathBuf::from("/f")]
        );
        assert_eq!(
            candidates(None, variable, home.clone()),
            [PathBuf::from("/x"), PathBuf::from("/y")]
        );
        assert_eq!(
            candidates(None, Some(OsString::new()), home),
            [PathBuf::from("/home/a/.kube/config")]
        );
    }

    #[test]
    fn a_missing_kubeconfig_names_the_paths_tried() {
        let failure = read(&["/nowhere/a".into(), "/nowhere/b".into()], false).unwrap_err();
        assert_eq!(failure.reason, Reason::NoKubeconfig);
        assert_eq!(
            failure.message,
            "no kubeconfig: tried /nowhere/a, /nowhere/b"
        );
    }

    #[test]
    fn a_named_kubeconfig_must_exist() {
        let failure = read(&["/nowhere/a".into()], true).unwrap_err();
        assert_eq!(failure.reason, Reason::NoKubeconfig);
        assert!(
            failure.message.contains("/nowhere/a"),
            "{}",
            failure.message
        );
    }

    #[test]
    fn broken_yaml_is_told_with_its_file_and_without_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        std::fs::write(
            &path,
            "users: [{name: u, user: {token: s3cr3t}}\ncontexts: }",
        )
        .unwrap();
        let failure = read(std::slice::from_ref(&path), false).unwrap_err();
        assert_eq!(failure.reason, Reason::NoKubeconfig);
        assert!(
            failure.message.contains(path.to_str().unwrap()),
            "{}",
            failure.message
        );
        assert!(!failure.message.contains("s3cr3t"), "{}", failure.message);
    }

    #[test]
    fn files_of_a_list_are_merged_and_the_missing_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let first = dir.path().join("first");
        let second = dir.path().join("second");
        let empty = dir.path().join("empty");
        std::fs::write(&empty, "").unwrap();
        // As `kubectl config unset current-context` leaves it.
        std::fs::write(
            &first,
            "{current-context: '', contexts: [{name: two, context: {cluster: c}}]}",
        )
        .unwrap();
        std::fs::write(&second, "current-context: two").unwrap();
        let merged = read(&[empty, first, dir.path().join("none"), second], false).unwrap();
        assert_eq!(
            choose(&merged, None, None).unwrap(),
            ("two".to_owned(), "default".to_owned())
        );
    }

    #[test]
    fn namespace_comes_from_flag_then_context_then_default() {
        let chosen = |context, namespace| choose(&kubeconfig(), context, namespace).unwrap();
        assert_eq!(chosen(None, None), ("dev".into(), "shop".into()));
        assert_eq!(chosen(None, Some("x")), ("dev".into(), "x".into()));
        assert_eq!(
            chosen(Some("bare"), None),
            ("bare".into(), "default".into())
        );
    }

    #[test]
    fn proxy_is_that_of_the_contexts_cluster() {
        assert_eq!(proxy_url(&kubeconfig(), "dev"), Some("socks5://p:1"));
        assert_eq!(proxy_url(&kubeconfig(), "prod"), None);
    }

    #[test]
    fn an_unknown_context_lists_those_there_are() {
        let failure = choose(&kubeconfig(), Some("prod"), None).unwrap_err();
        assert_eq!(failure.reason, Reason::UnknownContext);
        assert_eq!(
            failure.message,
            "the kubeconfig has no context prod; there are: dev, bare"
        );
    }

    #[test]
    fn no_current_context_is_an_unknown_context() {
        let failure = choose(&Kubeconfig::default(), None, None).unwrap_err();
        assert_eq!(failure.reason, Reason::UnknownContext);
    }
}
