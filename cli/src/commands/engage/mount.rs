//! `--mount` and `--root-fs`: the files of the engaged container on this laptop.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;
use kvpn_proto::v1::{EngagementStatus, Mount};
use kvpn_proto::{Failure, Reason};

/// Heading of these flags.
const FILES: &str = "Options for the container's files";

/// Where a command is told that the files are, by this name and by Telepresence's.
const ROOT: [&str; 2] = ["KVPN_ROOT", "TELEPRESENCE_ROOT"];

/// What becomes of the files of the container.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct MountArgs {
    /// Mount the container's volumes below this directory, which must be empty or not there,
    /// as they are below its own root; with :ro, they cannot be changed, nor can they by
    /// `wiretap` and `ingest`. `true` chooses a directory, as a command after `--` does where
    /// possible, which finds it in KVPN_ROOT; `false` mounts none. You must be allowed to
    /// execute commands in the pods
    #[arg(long, value_name = "PATH[:ro]", value_parser = MountSpec::read, help_heading = FILES)]
    mount: Option<MountSpec>,
    /// Mount the container's whole file system, rather than its volumes
    #[arg(long, help_heading = FILES)]
    root_fs: bool,
}

/// One `--mount`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum MountSpec {
    No,
    Somewhere { read_only: bool },
    At { path: PathBuf, read_only: bool },
}

impl MountSpec {
    fn read(text: &str) -> Result<Self, String> {
        let (place, read_only) = match text.strip_suffix(":ro") {
            Some(place) => (place, true),
            None => (text, false),
        };
        match place {
            "false" if read_only => Err("false mounts nothing, so nothing is :ro".to_owned()),
            "false" => Ok(Self::No),
            "true" => Ok(Self::Somewhere { read_only }),
            path => Ok(Self::At {
                path: path.into(),
                read_only,
            }),
        }
    }
}

impl MountArgs {
    /// What the session is asked to mount, for a command or without one.
    pub(super) fn wanted(&self, is_for_command: bool) -> Result<Option<Mount>, Failure> {
        let anywhere = Mount {
            root: self.root_fs,
            ..Mount::default()
        };
        let (path, read_only) = match &self.mount {
            Some(MountSpec::No) if self.root_fs => {
                return Err(Failure::new(
                    Reason::Usage,
                    "--root-fs says what is mounted, and --mount=false that nothing is",
                    "leave one of them out",
                ));
            }
            Some(MountSpec::No) => return Ok(None),
            Some(MountSpec::Somewhere { read_only }) => {
                let read_only = *read_only;
                return Ok(Some(Mount {
                    read_only,
                    ..anywhere
                }));
            }
            None if self.root_fs => return Ok(Some(anywhere)),
            None => {
                let is_optional = true;
                return Ok(is_for_command.then_some(Mount {
                    is_optional,
                    ..anywhere
                }));
            }
            Some(MountSpec::At { path, read_only }) => (path, *read_only),
        };
        let unusable = |why: String| {
            Failure::new(
                Reason::Usage,
                format!("files cannot be mounted at {}: {why}", path.display()),
                "name an empty directory of yours, or one that is not there",
            )
        };
        let path = std::path::absolute(path).map_err(|error| unusable(error.to_string()))?;
        let path = path.into_os_string().into_string();
        Ok(Some(Mount {
            path: path.map_err(|_| unusable("its name is not UTF-8".to_owned()))?,
            read_only,
            ..anywhere
        }))
    }
}

/// The variables that tell a command where the files are, if they are mounted.
pub(crate) fn root(status: &EngagementStatus) -> impl Iterator<Item = (OsString, OsString)> {
    let at = Some(&status.mounted_at)
        .filter(|at| !at.is_empty())
        .cloned();
    at.into_iter()
        .flat_map(|at| ROOT.map(|name| (name.into(), at.clone().into())))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        mount: MountArgs,
    }

    fn wanted(flags: &[&str], is_for_command: bool) -> Result<Option<Mount>, Failure> {
        let line = Line::parse_from(["kvpn"].iter().chain(flags));
        line.mount.wanted(is_for_command)
    }

    #[test]
    fn files_are_mounted_for_commands_and_where_they_are_wanted() {
        assert_eq!(wanted(&[], false), Ok(None));
        let by_default = wanted(&[], true).unwrap().unwrap();
        assert!(by_default.is_optional && by_default.path.is_empty());
        assert_eq!(wanted(&["--mount=false"], true), Ok(None));
        for flags in [&["--mount=true"][..], &["--root-fs"]] {
            let mount = wanted(flags, false).unwrap().unwrap();
            assert!(!mount.is_optional && mount.path.is_empty(), "{flags:?}");
            assert_eq!(mount.root, flags == ["--root-fs"]);
        }
        let read_only = wanted(&["--mount=true:ro"], false).unwrap().unwrap();
        assert!(read_only.read_only && read_only.path.is_empty());
        assert!(Line::try_parse_from(["kvpn", "--mount=false:ro"]).is_err());
        let refused = wanted(&["--mount=false", "--root-fs"], false).unwrap_err();
        assert_eq!(refused.reason, Reason::Usage);
    }

    #[test]
    fn path_becomes_absolute_and_may_be_read_only() {
        let at = wanted(&["--mount", "files:ro"], false).unwrap().unwrap();
        let expected = std::env::current_dir().unwrap().join("files");
        assert_eq!(at.path, expected.to_str().unwrap());
        assert!(at.read_only && !at.root);
        let at = wanted(&["--mount", "/srv/files"], true).unwrap().unwrap();
        assert_eq!((at.path.as_str(), at.read_only), ("/srv/files", false));
    }

    #[test]
    fn command_is_told_where_the_files_are() {
        let mut status = EngagementStatus::default();
        assert_eq!(root(&status).count(), 0);
        status.mounted_at = "/run/files".into();
        let names: Vec<_> = root(&status).map(|(name, _)| name).collect();
        assert_eq!(names, ["KVPN_ROOT", "TELEPRESENCE_ROOT"]);
    }
}
