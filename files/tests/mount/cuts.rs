//! Streams that are cut while files are open, and one file under several names.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::time::{Duration, Instant};

use crate::laptop::{Laptop, eventually};

const STALE: Option<i32> = Some(116);

#[test]
fn file_is_truncated_and_not_another_one_that_is_open_when_the_stream_is_cut_meanwhile() {
    let served = tempfile::tempdir().unwrap();
    let mut laptop = Laptop::unconnected(Duration::from_secs(10));
    laptop.connect_by(served.path(), Duration::from_millis(150));
    let open = |name| {
        fs::write(served.path().join(name), "0123456789").unwrap();
        let path = laptop.path().join(name);
        OpenOptions::new().write(true).open(path).unwrap()
    };
    // Handles are numbered from 1 by each stream: `other` is the first by this one,
    // and `file` by the next.
    let other = open("other");
    let file = open("file");
    let truncating = std::thread::spawn(move || (file.set_len(4), file));
    // Within the way of the request.
    std::thread::sleep(Duration::from_millis(50));
    laptop.connect(served.path());
    let (truncated, file) = truncating.join().unwrap();
    truncated.unwrap();
    other.set_len(7).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 4);
    assert_eq!(other.metadata().unwrap().len(), 7);
    assert_eq!(fs::read(served.path().join("file")).unwrap(), b"0123");
    assert_eq!(fs::read(served.path().join("other")).unwrap(), b"0123456");
}

#[test]
fn file_that_was_read_is_not_read_on_in_another_one_of_its_name() {
    let served = tempfile::tempdir().unwrap();
    let path = served.path().join("file");
    fs::write(&path, vec![b'a'; 200_000]).unwrap();
    let mut laptop = Laptop::new(served.path());
    let mut file = File::open(laptop.path().join("file")).unwrap();
    file.read_exact(&mut [0; 100]).unwrap();
    fs::write(served.path().join("new"), vec![b'b'; 200_000]).unwrap();
    fs::rename(served.path().join("new"), &path).unwrap();
    laptop.connect(served.path());
    eventually(Duration::from_secs(3), "the kernel asks again", || {
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut text = Vec::new();
        match file.read_to_end(&mut text) {
            Err(error) => error.raw_os_error() == STALE,
            Ok(_) => {
                assert!(!text.contains(&b'b'), "another file is read");
                false
            }
        }
    });
}

#[test]
fn file_is_found_by_the_name_that_is_left_when_the_pod_removes_the_other() {
    let served = tempfile::tempdir().unwrap();
    let laptop = Laptop::new(served.path());
    fs::write(served.path().join("tmp"), "text").unwrap();
    fs::hard_link(served.path().join("tmp"), served.path().join("final")).unwrap();
    for name in ["final", "tmp"] {
        fs::metadata(laptop.path().join(name)).unwrap();
    }
    fs::remove_file(served.path().join("tmp")).unwrap();
    // At once, and when the kernel has forgotten what it was told.
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(1500) {
        let text = fs::read_to_string(laptop.path().join("final")).unwrap();
        assert_eq!(text, "text");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn entries_of_proc_are_read_though_their_size_is_0() {
    let laptop = Laptop::new(std::path::Path::new("/proc"));
    let version = fs::read_to_string(laptop.path().join("version")).unwrap();
    assert_eq!(version, fs::read_to_string("/proc/version").unwrap());
}
