//! The same operations on a bare directory and through the mount.

use std::fs::create_dir;
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::thread;

use tempfile::{TempDir, tempdir};

use crate::laptop::{Laptop, become_user};
use crate::operations::run_all;

/// Whose the app is, and who sits at the laptop.
const APP: u32 = 1000;
const DEVELOPER: u32 = 6001;

#[test]
fn operations_through_the_mount_have_the_results_that_they_have_in_the_pod() {
    let bare = tempdir().unwrap();
    let served = tempdir().unwrap();
    let laptop = Laptop::new(served.path());
    let expected = run_all(bare.path(), true);
    let found = run_all(&laptop.path(), true);
    assert_same(&expected, &found);
}

#[test]
fn operations_of_another_user_have_the_results_that_they_have_for_the_app() {
    let bare = of_app();
    let served = of_app();
    let laptop = Laptop::of_users(served.path(), APP, DEVELOPER);
    let expected = run_as(APP, bare.path().join("dir"));
    let found = run_as(DEVELOPER, laptop.path().join("dir"));
    assert_same(&expected, &found);
}

/// A directory of the app's with another one.
fn of_app() -> TempDir {
    let dir = tempdir().unwrap();
    create_dir(dir.path().join("dir")).unwrap();
    for path in [dir.path(), &dir.path().join("dir")] {
        chown(path, Some(APP), Some(APP)).unwrap();
    }
    dir
}

fn run_as(user: u32, dir: PathBuf) -> Vec<String> {
    let work = move || {
        become_user(user);
        run_all(&dir, false)
    };
    thread::spawn(work).join().unwrap()
}

fn assert_same(expected: &[String], found: &[String]) {
    let mut differ = Vec::new();
    for (expected, found) in expected.iter().zip(found) {
        if expected != found {
            differ.push(format!("bare:  {expected}\nmount: {found}"));
        }
    }
    assert!(
        differ.is_empty(),
        "{} differ:\n{}",
        differ.len(),
        differ.join("\n")
    );
    assert_eq!(expected.len(), found.len());
    assert!(expected.len() > 100, "only {} operations", expected.len());
}
