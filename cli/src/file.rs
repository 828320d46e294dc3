//! The file that `kvpn up` reads: what is to be there, and where it says so.

mod format;
mod lines;
mod plan;
mod variables;
mod words;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use kvpn_proto::{Failure, Reason};
use nix::unistd::getuid;

pub(crate) use format::schema;
pub(crate) use plan::{Plan, Step};

/// Name of the file that is looked for.
pub(crate) const FILE_NAME: &str = "kvpn.yaml";

/// A file, as it was read.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// As users are told of it.
    pub(crate) name: String,
    /// The absolute path of the directory that it is in, which its paths start from.
    pub(crate) directory: PathBuf,
    text: String,
}

impl Source {
    /// Reads the file that is named, else the nearest one in the working directory or above.
    pub(crate) fn read(named: Option<&Path>) -> Result<Self, Failure> {
        let path = match named {
            Some(path) => path.to_owned(),
            None => {
                let path = nearest(&working_directory()?).ok_or_else(none)?;
                check_owner(&path, &[0, getuid().as_raw()])?;
                path
            }
        };
        let name = path.display().to_string();
        let unreadable = |error| unreadable(&name, &error);
        let text = fs::read_to_string(&path).map_err(unreadable)?;
        let path = std::path::absolute(&path).map_err(unreadable)?;
        Ok(Self {
            name,
            directory: path.parent().unwrap_or(&path).to_owned(),
            text,
        })
    }

    /// Refuses what is at a path such as `engagements[1].ports[0]`.
    fn refuse(&self, at: &str, what: &str, next_step: impl Into<String>) -> Failure {
        let place = self.place(at);
        Failure::new(Reason::Usage, format!("{place}: {what}"), next_step)
    }

    /// A failure that comes of what is at a path.
    pub(crate) fn blame(&self, at: &str, failure: Failure) -> Failure {
        let message = format!("{}: {}", self.place(at), failure.message);
        Failure { message, ..failure }
    }

    /// Such as `kvpn.yaml:7`.
    fn place(&self, at: &str) -> String {
        match lines::line(&self.text, at) {
            Some(line) => format!("{}:{line}", self.name),
            None => self.name.clone(),
        }
    }
}

pub(crate) fn working_directory() -> Result<PathBuf, Failure> {
    std::env::current_dir().map_err(|error| {
        Failure::new(
            Reason::Usage,
            format!("the working directory cannot be told: {error}"),
            "change to a directory that is there",
        )
    })
}

/// The file of a directory, or of the nearest one above it that has one.
fn nearest(directory: &Path) -> Option<PathBuf> {
    let mut files = directory.ancestors().map(|it| it.join(FILE_NAME));
    let found = files.find(|file| file.is_file())?;
    // What is here needs no long name.
    let short = found.strip_prefix(directory).map(Path::to_owned);
    Some(short.unwrap_or(found))
}

/// Refuses the file of somebody else, who may have put it above for others to run.
fn check_owner(path: &Path, trusted: &[u32]) -> Result<(), Failure> {
    let name = path.display();
    // Of a link it matters, too, who has put it there.
    for owner in [fs::symlink_metadata(path), fs::metadata(path)] {
        let owner = owner.map_err(|error| unreadable(&name.to_string(), &error))?;
        let owner = owner.uid();
        if !trusted.contains(&owner) {
            return Err(Failure::new(
                Reason::Usage,
                format!("{name} belongs to another user (uid {owner})"),
                format!("give `-f {name}` if you trust what it runs"),
            ));
        }
    }
    Ok(())
}

fn none() -> Failure {
    Failure::new(
        Reason::Usage,
        format!("there is no {FILE_NAME}, neither here nor in a directory above"),
        "write one with `kvpn init`, or name one with -f",
    )
}

fn unreadable(name: &str, error: &std::io::Error) -> Failure {
    Failure::new(
        Reason::Usage,
        format!("{name} cannot be read: {error}"),
        "name a file that you may read",
    )
}

#[cfg(test)]
impl Source {
    pub(crate) fn of(text: &str) -> Self {
        Self {
            name: FILE_NAME.into(),
            directory: "/work/shop".into(),
            text: text.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_file_is_found_from_below() {
        let directory = tempfile::tempdir().unwrap();
        let below = directory.path().join("api/src");
        fs::create_dir_all(&below).unwrap();
        assert_eq!(nearest(&below), None);
        let file = directory.path().join(FILE_NAME);
        fs::write(&file, "").unwrap();
        assert_eq!(nearest(&below), Some(file));
        fs::write(directory.path().join("api").join(FILE_NAME), "").unwrap();
        assert_eq!(
            nearest(&directory.path().join("api")),
            Some(FILE_NAME.into())
        );
    }

    #[test]
    fn file_of_another_user_must_be_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(FILE_NAME);
        fs::write(&file, "").unwrap();
        let own = fs::metadata(&file).unwrap().uid();
        assert_eq!(check_owner(&file, &[own]), Ok(()));
        let refused = check_owner(&file, &[own + 1]).unwrap_err();
        assert_eq!(refused.reason, Reason::Usage);
    }

    #[test]
    fn failures_say_where_they_come_from() {
        let source = Source::of("connections: []\nengagements:\n  - intercept: web\n");
        let failure = Failure::new(Reason::NoSuchWorkload, "no workload web", "look");
        let blamed = source.blame("engagements[0]", failure);
        assert_eq!(blamed.reason, Reason::NoSuchWorkload);
        assert_eq!(blamed.message, "kvpn.yaml:3: no workload web");
    }
}
