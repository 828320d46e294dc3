//! Where a file is, for the kernel and for people.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvpn_proto::{Failure, Reason};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use super::Named;

/// A container whose file system is mounted here.
#[derive(Debug)]
pub(crate) struct Container {
    root: File,
    /// How people call it.
    name: String,
}

/// A file, or where one may be.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(super) path: PathBuf,
    /// As people have it.
    pub(super) shown: String,
    /// It was named by the user. All else is what it was seen to be: a symbolic link of the
    /// container's is not to lead to the laptop's files.
    follows: bool,
    /// What the path begins with.
    _keep: Option<Arc<OwnedFd>>,
}

impl Container {
    pub(crate) fn open(at: &Path, name: &str) -> Result<Self, Failure> {
        let name = name.to_owned();
        match File::open(at) {
            Ok(root) => Ok(Self { root, name }),
            Err(error) => Err(failed(&name, &error)),
        }
    }

    /// Finds a file; symbolic links lead where they do in the container.
    pub(crate) fn find(&self, path: &str) -> Result<Place, Failure> {
        self.look_up(path)
            .map_err(|error| failed(&self.shown(path), &error))
    }

    fn look_up(&self, path: &str) -> io::Result<Place> {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let file = openat2(&self.root, path, how)?;
        Ok(Place {
            path: format!("/proc/self/fd/{}", file.as_raw_fd()).into(),
            shown: self.shown(path),
            follows: true,
            _keep: Some(Arc::new(file)),
        })
    }

    fn shown(&self, path: &str) -> String {
        format!("{}:{path}", self.name)
    }

    /// What is to be copied, and its own name.
    pub(crate) fn source(&self, named: &Named) -> Result<(Place, OsString), Failure> {
        let (place, name) = match named {
            Named::Pod(pod) => (self.find(&pod.path)?, Path::new(&pod.path).file_name()),
            Named::Laptop(path) => (Place::laptop(path)?, None),
        };
        let name = name.or_else(|| place.own_name()).map(OsStr::to_owned);
        let name = name.ok_or_else(|| unnamed(&place.shown))?;
        Ok((place, name))
    }

    /// Where something of that name is to be: in what is a directory, else in its place.
    pub(crate) fn destination(&self, named: &Named, name: &OsStr) -> Result<Place, Failure> {
        let (found, path) = match named {
            Named::Pod(pod) => (self.look_up(&pod.path), Path::new(&pod.path)),
            Named::Laptop(path) => (Ok(Place::at(path)), path.as_path()),
        };
        if let Ok(place) = &found
            && fs::metadata(&place.path).is_ok_and(|found| found.is_dir())
        {
            return Ok(place.join(name));
        }
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        let (parent, shown) = match named {
            Named::Pod(pod) => (self.find(&parent.to_string_lossy())?, self.shown(&pod.path)),
            Named::Laptop(path) => (Place::at(parent), path.display().to_string()),
        };
        parent.look()?;
        let last = path.file_name().filter(|_| !is_directory(path));
        let last = last.ok_or_else(|| failed(&shown, &io::ErrorKind::NotADirectory.into()))?;
        Ok(Place {
            shown,
            ..parent.join(last)
        })
    }
}

impl Place {
    /// A file of this laptop, whose name is known.
    pub(crate) fn laptop(path: &Path) -> Result<Self, Failure> {
        let shown = path.display().to_string();
        let whole = fs::canonicalize(path).map_err(|error| failed(&shown, &error))?;
        // A link keeps its own name.
        let path = match path.file_name() {
            Some(_) => path.to_owned(),
            None => whole,
        };
        Ok(Self {
            path,
            shown,
            follows: true,
            _keep: None,
        })
    }

    pub(super) fn at(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            shown: path.display().to_string(),
            follows: true,
            _keep: None,
        }
    }

    fn own_name(&self) -> Option<&OsStr> {
        match self._keep {
            Some(_) => None,
            None => self.path.file_name(),
        }
    }

    pub(super) fn join(&self, name: &OsStr) -> Self {
        Self {
            path: self.path.join(name),
            shown: format!(
                "{}/{}",
                self.shown.trim_end_matches('/'),
                name.to_string_lossy()
            ),
            follows: false,
            _keep: self._keep.clone(),
        }
    }

    pub(super) fn open(&self) -> io::Result<File> {
        self.open_as(OFlag::empty())
    }

    /// Opens a directory; what is in it is the same whatever its name leads to meanwhile.
    pub(super) fn enter(&self) -> io::Result<(File, Self)> {
        let opened = self.open_as(OFlag::O_DIRECTORY)?;
        let file = OwnedFd::from(opened.try_clone()?);
        let inside = Self {
            path: format!("/proc/self/fd/{}", file.as_raw_fd()).into(),
            shown: self.shown.clone(),
            follows: true,
            _keep: Some(Arc::new(file)),
        };
        Ok((opened, inside))
    }

    fn open_as(&self, flags: OFlag) -> io::Result<File> {
        // Nobody is to wait for the other end of a pipe.
        let flags = flags | OFlag::O_NONBLOCK;
        let flags = match self.follows {
            true => flags,
            false => flags | OFlag::O_NOFOLLOW,
        };
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(flags.bits());
        options.open(&self.path)
    }

    /// Another name in the same directory.
    pub(super) fn beside(&self, name: &str) -> Self {
        Self {
            path: self.path.with_file_name(name),
            ..self.clone()
        }
    }

    /// What it is, or what it leads to.
    pub(crate) fn look(&self) -> Result<Metadata, Failure> {
        fs::metadata(&self.path).map_err(|error| self.failed(&error))
    }

    pub(super) fn failed(&self, error: &io::Error) -> Failure {
        failed(&self.shown, error)
    }
}

fn is_directory(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(b"/")
}

fn failed(shown: &str, error: &io::Error) -> Failure {
    Failure::new(
        Reason::Usage,
        format!("{shown}: {error}"),
        "see the path, and who may do what there",
    )
}

fn unnamed(shown: &str) -> Failure {
    Failure::new(
        Reason::Usage,
        format!("{shown} has no name of its own to be copied under"),
        "name a file or a directory below it",
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn pod(path: &str) -> Named {
        format!("web:{path}").parse().unwrap()
    }

    #[test]
    fn links_lead_where_they_do_in_the_container() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("run/app")).unwrap();
        fs::create_dir(root.path().join("var")).unwrap();
        symlink("/run", root.path().join("var/run")).unwrap();
        symlink("../../../etc", root.path().join("out")).unwrap();
        let container = Container::open(root.path(), "web").unwrap();
        let found = container.find("/var/run/app").unwrap();
        let expected = fs::canonicalize(root.path().join("run/app")).unwrap();
        assert_eq!(fs::canonicalize(&found.path).unwrap(), expected);
        let outside = container.find("/out/passwd").unwrap_err();
        assert!(
            outside.message.starts_with("web:/out/passwd: "),
            "{outside}"
        );
    }

    #[test]
    fn destination_is_a_directory_or_a_new_name() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("data")).unwrap();
        let container = Container::open(root.path(), "web").unwrap();
        let shown = |named: Named| {
            let place = container.destination(&named, OsStr::new("file"));
            place.map(|place| place.shown)
        };
        assert_eq!(shown(pod("/data")).unwrap(), "web:/data/file");
        assert_eq!(shown(pod("/data/new")).unwrap(), "web:/data/new");
        assert_eq!(shown(pod("/")).unwrap(), "web:/file");
        assert!(shown(pod("/data/new/")).is_err());
        assert!(shown(pod("/missing/new")).is_err());
        let here = Named::Laptop(root.path().join("new"));
        assert!(shown(here).unwrap().ends_with("/new"));
        assert_eq!(shown(Named::Laptop("new".into())).unwrap(), "new");
        let root = container.source(&pod("/")).unwrap_err();
        assert!(root.message.contains("no name of its own"), "{root}");
    }
}
