//! A container's environment on this laptop: which variables come over, and how files
//! say them.

mod syntax;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process;

use kvpn_proto::environment::Environment;
use kvpn_proto::{Failure, Reason};

pub(crate) use syntax::{Rendered, Syntax};

/// Variables that tell of the place where a process runs, or of who runs it, and those by
/// which the pod would have programs load what lies at its own paths (ld.so(8)).
pub(crate) const NEVER: [&str; 15] = [
    "HOME",
    "PATH",
    "HOSTNAME",
    "PWD",
    "OLDPWD",
    "SHLVL",
    "TERM",
    "TMPDIR",
    "USER",
    "LOGNAME",
    "SHELL",
    "LD_AUDIT",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "_",
];

/// Who may read files with the values: their owner.
const MODE: u32 = 0o600;

/// How many names are tried for a file that is to take another one's place.
const ATTEMPTS: u32 = 100;

/// Variables and their values, which no log shows.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Variables(BTreeMap<Vec<u8>, Vec<u8>>);

impl fmt::Debug for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Variables({})", self.0.len())
    }
}

impl FromIterator<(Vec<u8>, Vec<u8>)> for Variables {
    fn from_iter<I: IntoIterator<Item = (Vec<u8>, Vec<u8>)>>(pairs: I) -> Self {
        Self(pairs.into_iter().collect())
    }
}

/// Those that come over: all but those of the place, and those that fit a pattern.
pub(crate) fn chosen(environment: Environment, excluded: &[String]) -> Variables {
    let mut variables = environment.variables;
    variables.retain(|name, _| {
        let mut patterns = NEVER.into_iter().chain(excluded.iter().map(String::as_str));
        !patterns.any(|pattern| fits(pattern.as_bytes(), name))
    });
    Variables(variables)
}

/// Whether a name fits a pattern, in which `*` is anything and `?` any octet.
fn fits(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut fitted) = (0, 0);
    // Where to go on after the last star, and how much of the name is fitted once it has
    // taken what it has.
    let mut star = None;
    while fitted < name.len() {
        match (pattern.get(at), star) {
            (Some(b'*'), _) => {
                at += 1;
                star = Some((at, fitted));
            }
            (Some(letter), _) if *letter == b'?' || *letter == name[fitted] => {
                at += 1;
                fitted += 1;
            }
            // It takes one more. Those before it have no need to.
            (Some(_) | None, Some((after, taken))) => {
                at = after;
                fitted = taken + 1;
                star = Some((after, fitted));
            }
            (Some(_) | None, None) => return false,
        }
    }
    pattern[at..].iter().all(|rest| *rest == b'*')
}

/// As a command is given them.
pub(crate) fn pairs(variables: Variables) -> impl Iterator<Item = (OsString, OsString)> {
    let pair = |(name, value)| (OsString::from_vec(name), OsString::from_vec(value));
    variables.0.into_iter().map(pair)
}

/// Refuses what is there and no regular file, such as a pipe, which might never be read.
pub(crate) fn check(file: &Path) -> Result<(), Failure> {
    let place = place(file);
    place.map(drop).map_err(|error| unwritable(file, &error))
}

/// Writes a file that others may not read: all of it, or nothing.
pub(crate) fn write(file: &Path, text: &str) -> Result<(), Failure> {
    try_write(file, text).map_err(|error| unwritable(file, &error))
}

fn unwritable(file: &Path, error: &io::Error) -> Failure {
    Failure::new(
        Reason::Usage,
        format!("{} cannot be written: {error}", file.display()),
        "name a file that you may write",
    )
}

/// Where a file is or will be; that to which a symbolic link leads.
fn place(file: &Path) -> io::Result<PathBuf> {
    let no_file = || io::Error::other("it is no regular file");
    // `/dev/stdout` may lead to one, in whose place another one must not come.
    if ["/dev", "/proc"].iter().any(|it| file.starts_with(it)) {
        return Err(no_file());
    }
    match fs::symlink_metadata(file) {
        Ok(_) => {
            let place = fs::canonicalize(file)?;
            match fs::metadata(&place)?.is_file() {
                true => Ok(place),
                false => Err(no_file()),
            }
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(file.to_owned()),
        Err(error) => Err(error),
    }
}

fn try_write(file: &Path, text: &str) -> io::Result<()> {
    let place = place(file)?;
    let written = replace(&place, text);
    // Some may be written but not replaced: mounted ones, and those of a folder of others.
    let stays = [ErrorKind::PermissionDenied, ErrorKind::ResourceBusy];
    if written.as_ref().is_err_and(|it| stays.contains(&it.kind())) && place.exists() {
        return write_over(&place, text);
    }
    written
}

/// Puts another file in the place of one.
fn replace(place: &Path, text: &str) -> io::Result<()> {
    let (beside, mut new) = create_beside(place)?;
    let written = new
        .write_all(text.as_bytes())
        .and_then(|()| fs::rename(&beside, place));
    if written.is_err() {
        // What went wrong before is what the user is told.
        let _ = fs::remove_file(&beside);
    }
    written
}

fn write_over(place: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(place)?;
    file.set_permissions(Permissions::from_mode(MODE))?;
    file.set_len(0)?;
    file.write_all(text.as_bytes())
}

/// Makes a file that is to take another one's place.
fn create_beside(place: &Path) -> io::Result<(PathBuf, File)> {
    let mut options = OpenOptions::new();
    let options = options.write(true).create_new(true).mode(MODE);
    let mut number = 0;
    loop {
        let beside = place.with_file_name(format!(".kvpn-{}-{number}", process::id()));
        match options.open(&beside) {
            Ok(new) => return Ok((beside, new)),
            // Of one that was killed, with the same number.
            Err(error) if error.kind() == ErrorKind::AlreadyExists && number < ATTEMPTS => {
                number += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    fn environment(names: &[&str]) -> Environment {
        let variables = names.iter().map(|name| (name.as_bytes().to_vec(), vec![]));
        Environment {
            variables: variables.collect(),
            damaged: 0,
        }
    }

    fn names(variables: &Variables) -> Vec<&str> {
        let names = variables.0.keys().map(|name| std::str::from_utf8(name));
        names.collect::<Result<_, _>>().unwrap()
    }

    #[test]
    fn what_tells_of_the_place_never_comes_over() {
        let all = environment(&[&NEVER[..], &["A", "PATHS", "HOME_DIR"]].concat());
        assert_eq!(names(&chosen(all, &[])), ["A", "HOME_DIR", "PATHS"]);
    }

    #[test]
    fn nothing_shows_a_value() {
        let variables = Variables::from_iter([(b"PASSWORD".to_vec(), b"hunter2".to_vec())]);
        let rendered = Syntax::Sh.render(&variables);
        assert!(rendered.text.contains("hunter2"));
        let shown = format!("{variables:?} {rendered:?}");
        assert!(
            !shown.contains("hunter2") && !shown.contains("104"),
            "{shown}"
        );
    }

    #[test]
    fn patterns_exclude_more() {
        let all = || environment(&["WEB_HOST", "WEB_PORT", "DB_HOST", "DB", "A1", "A22"]);
        let left = |patterns: &[&str]| {
            let patterns: Vec<String> = patterns.iter().map(|it| (*it).to_owned()).collect();
            names(&chosen(all(), &patterns)).join(" ")
        };
        assert_eq!(left(&["WEB_*"]), "A1 A22 DB DB_HOST");
        assert_eq!(left(&["*_HOST", "DB"]), "A1 A22 WEB_PORT");
        assert_eq!(left(&["A?"]), "A22 DB DB_HOST WEB_HOST WEB_PORT");
        assert_eq!(left(&["*"]), "");
        assert_eq!(left(&["web_*", ""]), "A1 A22 DB DB_HOST WEB_HOST WEB_PORT");
    }

    #[test]
    fn stars_take_as_much_as_is_needed_and_no_time() {
        for (pattern, name, is_fit) in [
            ("", "", true),
            ("*", "", true),
            ("?", "", false),
            ("**A*", "BA", true),
            ("*_HOST", "A_HOST_HOST", true),
            ("*_HOST", "A_HOST_", false),
            ("A*B?C*", "AxBBxCx", true),
            ("A*B?C", "ABC", false),
        ] {
            let fits = fits(pattern.as_bytes(), name.as_bytes());
            assert_eq!(fits, is_fit, "{pattern} {name}");
        }
        // Going back to every star would take longer than anybody lives.
        let long = "a".repeat(20_000);
        assert!(!fits(b"*a*a*a*a*a*a*a*b", long.as_bytes()));
        assert!(fits(b"*a*a*a*a*a*a*a*", long.as_bytes()));
    }

    #[test]
    fn file_is_for_its_owner_alone_and_has_nothing_of_before() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("web.env");
        for before in ["", "A=of an earlier time, and longer\n"] {
            if !before.is_empty() {
                std::fs::write(&file, before).unwrap();
                std::fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
            }
            write(&file, "A=1\n").unwrap();
            assert_eq!(std::fs::read_to_string(&file).unwrap(), "A=1\n");
            let mode = std::fs::metadata(&file).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        let left = fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(left, 1, "something is left beside it");
        let nowhere = write(Path::new("/nonexistent/web.env"), "A=1\n").unwrap_err();
        assert_eq!(nowhere.reason, Reason::Usage);
        assert!(!nowhere.message.contains("A=1"));
    }

    #[test]
    fn file_that_only_stays_where_it_is_is_written_over() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("web.env");
        fs::write(&file, "A=of an earlier time, and longer\n").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        write_over(&file, "A=1\n").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "A=1\n");
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn what_leads_to_files_of_others_is_no_file() {
        for file in ["/dev/stdout", "/proc/self/fd/1", "/dev/null"] {
            let refused = check(Path::new(file)).unwrap_err();
            assert!(refused.message.contains("no regular file"), "{file}");
        }
    }

    #[test]
    fn symbolic_link_stays_and_its_target_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let [target, link] = ["target", "link"].map(|name| directory.path().join(name));
        fs::write(&target, "A=of an earlier time\n").unwrap();
        symlink("target", &link).unwrap();
        write(&link, "A=1\n").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&target).unwrap(), "A=1\n");
    }

    #[test]
    fn what_is_no_regular_file_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let [fifo, link] = ["fifo", "link"].map(|name| directory.path().join(name));
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        symlink("fifo", &link).unwrap();
        let dangling = directory.path().join("dangling");
        symlink("nothing", &dangling).unwrap();
        for wrong in [
            &*fifo,
            &link,
            &dangling,
            directory.path(),
            Path::new("/dev/null"),
        ] {
            for failure in [check(wrong), write(wrong, "A=1\n")].map(Result::unwrap_err) {
                assert_eq!(failure.reason, Reason::Usage, "{failure}");
                assert!(failure.message.contains("cannot be written"), "{failure}");
            }
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 3);
        assert_eq!(check(&directory.path().join("new")), Ok(()));
    }
}
