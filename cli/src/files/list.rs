//! What `kvpn ls` tells of files.

use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

use super::Stop;
use super::place::Place;
use crate::output::{Output, printable};

/// What a directory has, or a file by itself.
#[derive(Debug, Serialize)]
pub(crate) struct Listed {
    entries: Vec<Entry>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    name: String,
    /// `file`, `directory`, `symbolicLink`, `pipe`, `socket` or `device`.
    kind: &'static str,
    /// As chmod(1) has it.
    mode: String,
    uid: u32,
    gid: u32,
    size: u64,
    modified_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
}

/// Lists a directory, or tells of a file.
pub(crate) fn list(place: &Place, stop: &AtomicBool) -> Result<Listed, Stop> {
    let found = place.look()?;
    if !found.is_dir() {
        let name = place.shown.rsplit('/').next().unwrap_or_default();
        let entries = vec![Entry::new(name.to_owned(), &found, None)];
        return Ok(Listed { entries });
    }
    let mut entries = Vec::new();
    for entry in fs::read_dir(&place.path).map_err(|error| place.failed(&error))? {
        if stop.load(Ordering::Relaxed) {
            return Err(Stop::Told);
        }
        let name = entry.map_err(|error| place.failed(&error))?.file_name();
        let place = place.join(&name);
        let found = match fs::symlink_metadata(&place.path) {
            Ok(found) => found,
            // Removed meanwhile.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(place.failed(&error).into()),
        };
        let target = match found.is_symlink() {
            true => fs::read_link(&place.path).ok(),
            false => None,
        };
        let target = target.map(|target| target.to_string_lossy().into_owned());
        let name = name.to_string_lossy().into_owned();
        entries.push(Entry::new(name, &found, target));
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Listed { entries })
}

impl Entry {
    fn new(name: String, found: &Metadata, target: Option<String>) -> Self {
        let kind = found.file_type();
        let kind = match () {
            () if kind.is_dir() => "directory",
            () if kind.is_symlink() => "symbolicLink",
            () if kind.is_fifo() => "pipe",
            () if kind.is_socket() => "socket",
            () if kind.is_file() => "file",
            () => "device",
        };
        Self {
            name,
            kind,
            mode: format!("{:04o}", found.mode() & 0o7777),
            uid: found.uid(),
            gid: found.gid(),
            size: found.size(),
            modified_at: Timestamp::from_second(found.mtime()).ok(),
            target,
        }
    }

    /// As ls(1) begins a line.
    fn kind(&self) -> char {
        match self.kind {
            "directory" => 'd',
            "symbolicLink" => 'l',
            "pipe" => 'p',
            "socket" => 's',
            "device" => 'c',
            _ => '-',
        }
    }
}

impl Output for Listed {
    fn text(&self) -> String {
        let mut text = String::new();
        let width = |of: fn(&Entry) -> usize| self.entries.iter().map(of).max().unwrap_or(0);
        let sizes = width(|entry| entry.size.to_string().len());
        let owners = width(|entry| format!("{}:{}", entry.uid, entry.gid).len());
        for entry in &self.entries {
            let at = entry.modified_at.map(|at| {
                let at = at.to_zoned(TimeZone::system());
                at.strftime("%Y-%m-%d %H:%M").to_string()
            });
            let owner = format!("{}:{}", entry.uid, entry.gid);
            text += &format!(
                "{}{}  {owner:<owners$}  {:>sizes$}  {}  {}",
                entry.kind(),
                entry.mode,
                entry.size,
                at.unwrap_or_else(|| "-".to_owned()),
                printable(&entry.name),
            );
            if let Some(target) = &entry.target {
                text += &format!(" -> {}", printable(target));
            }
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn directory_is_listed_by_name_with_links_as_such() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "four").unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        symlink("file", dir.path().join("link")).unwrap();
        let stop = AtomicBool::new(false);
        let listed = list(&Place::at(dir.path()), &stop).unwrap();
        let seen: Vec<_> = listed
            .entries
            .iter()
            .map(|it| (&*it.name, it.kind))
            .collect();
        let expected = [
            ("a", "directory"),
            ("file", "file"),
            ("link", "symbolicLink"),
        ];
        assert_eq!(seen, expected);
        let text = listed.text();
        assert!(text.ends_with("link -> file\n"), "{text}");
        let alone = list(&Place::at(&dir.path().join("link")), &stop).unwrap();
        assert_eq!((alone.entries[0].kind, alone.entries[0].size), ("file", 4));
    }
}
