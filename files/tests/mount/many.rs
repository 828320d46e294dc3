//! Large directories, and what changes in the pod meanwhile.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use crate::laptop::{Laptop, eventually};

#[test]
fn directory_of_100_000_entries_is_listed_whole_and_each_once() {
    let served = tempfile::tempdir_in("/dev/shm").unwrap();
    let names: BTreeSet<String> = (0..100_000).map(|n| format!("entry-{n}")).collect();
    for name in &names {
        File::create(served.path().join(name)).unwrap();
    }
    let laptop = Laptop::new(served.path());
    for _ in 0..2 {
        let found: Vec<String> = fs::read_dir(laptop.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(found.len(), names.len());
        assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), names);
    }
    // Removed while they are listed.
    for entry in fs::read_dir(laptop.path()).unwrap().take(5000) {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    assert_eq!(fs::read_dir(laptop.path()).unwrap().count(), 95_000);
}

/// Writes a volume as the kubelet does: names are links by way of `..data`.
fn project(volume: &Path, version: &str) {
    let dir = volume.join(format!("..{version}"));
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("key"), version).unwrap();
    symlink(format!("..{version}"), volume.join("..data_tmp")).unwrap();
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
}

#[test]
fn update_of_a_config_map_is_seen_within_two_seconds() {
    let served = tempfile::tempdir().unwrap();
    project(served.path(), "one");
    symlink("..data/key", served.path().join("key")).unwrap();
    let laptop = Laptop::new(served.path());
    let key = laptop.path().join("key");
    assert_eq!(fs::read_to_string(&key).unwrap(), "one");
    for version in ["two", "three"] {
        project(served.path(), version);
        eventually(Duration::from_secs(2), version, || {
            fs::read_to_string(&key).unwrap() == version
        });
    }
    fs::remove_dir_all(served.path().join("..two")).unwrap();
    assert_eq!(fs::read_to_string(&key).unwrap(), "three");
}

#[test]
fn file_that_grows_in_the_pod_is_seen_to_grow_by_who_has_it_open() {
    let served = tempfile::tempdir().unwrap();
    let log = served.path().join("log");
    fs::write(&log, "one\n").unwrap();
    let laptop = Laptop::new(served.path());
    let mut open = File::open(laptop.path().join("log")).unwrap();
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    let mut file = File::options().append(true).open(&log).unwrap();
    std::io::Write::write_all(&mut file, b"two\n").unwrap();
    eventually(Duration::from_secs(2), "the second line", || {
        open.read_to_string(&mut text).unwrap();
        text == "one\ntwo\n"
    });
    // The same size, but other contents.
    fs::write(served.path().join("same"), "aaaa").unwrap();
    let same = laptop.path().join("same");
    assert_eq!(fs::read_to_string(&same).unwrap(), "aaaa");
    fs::write(served.path().join("same"), "bbbb").unwrap();
    eventually(Duration::from_secs(2), "other contents", || {
        fs::read_to_string(&same).unwrap() == "bbbb"
    });
}

#[test]
fn what_this_laptop_writes_it_reads_at_once_though_files_are_read_ahead() {
    let served = tempfile::tempdir().unwrap();
    let name = |n| format!("file-{n:04}");
    for n in 0..500 {
        fs::write(served.path().join(name(n)), "old").unwrap();
    }
    let laptop = Laptop::new(served.path());
    let listed = fs::read_dir(laptop.path()).unwrap();
    let paths: Vec<_> = listed.map(|entry| entry.unwrap().path()).collect();
    for (n, path) in paths.iter().enumerate() {
        assert_eq!(fs::read_to_string(path).unwrap(), "old");
        // The ones that were asked for ahead.
        if let Some(later) = paths.get(n + 3).filter(|_| n % 7 == 0) {
            fs::write(later, "new").unwrap();
            assert_eq!(fs::read_to_string(later).unwrap(), "new");
            fs::write(later, "old").unwrap();
        }
    }
    // By what is open already, too.
    let open = File::open(&paths[0]).unwrap();
    fs::write(&paths[0], "longer than it was").unwrap();
    let mut text = String::new();
    (&open).read_to_string(&mut text).unwrap();
    assert_eq!(text, "longer than it was");
}
