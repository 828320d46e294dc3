//! Files on this laptop and in a container that is mounted on it.

mod copy;
mod list;
mod place;

use std::convert::Infallible;
use std::path::PathBuf;
use std::str::FromStr;

use kvpn_proto::Failure;

pub(crate) use copy::Copier;
pub(crate) use list::list;
pub(crate) use place::{Container, Place};

/// Why work with files has ended early.
#[derive(Debug)]
pub(crate) enum Stop {
    Failed(Failure),
    /// The user does not want it any more.
    Told,
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// `NAME:PATH`; without a path the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodPath {
    /// As in other commands.
    pub(crate) target: String,
    pub(crate) path: String,
}

impl FromStr for PodPath {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let (target, path) = text.split_once(':').unwrap_or((text, ""));
        // There is no directory but the root to begin in.
        let path = format!("/{}", path.trim_start_matches('/'));
        let target = target.to_owned();
        Ok(Self { target, path })
    }
}

/// What `kvpn cp` copies, or where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Named {
    Pod(PodPath),
    Laptop(PathBuf),
}

impl FromStr for Named {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let is_path = text.starts_with(['/', '.']) || !text.contains(':');
        Ok(match is_path {
            true => Self::Laptop(text.into()),
            false => Self::Pod(text.parse()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colon_tells_a_container_from_this_laptop() {
        let named = |text: &str| text.parse::<Named>().unwrap();
        let pod = |target: &str, path: &str| {
            let (target, path) = (target.to_owned(), path.to_owned());
            Named::Pod(PodPath { target, path })
        };
        assert_eq!(named("web:/etc/hosts"), pod("web", "/etc/hosts"));
        assert_eq!(named("deploy/web:data"), pod("deploy/web", "/data"));
        assert_eq!(named("web:/a:b"), pod("web", "/a:b"));
        assert_eq!(named("web:"), pod("web", "/"));
        for path in ["hosts", "/tmp/a:b", "./a:b", "../x", "."] {
            assert_eq!(named(path), Named::Laptop(path.into()));
        }
    }

    #[test]
    fn container_is_listed_from_its_root() {
        let listed = "web".parse::<PodPath>().unwrap();
        assert_eq!((listed.target.as_str(), listed.path.as_str()), ("web", "/"));
    }
}
