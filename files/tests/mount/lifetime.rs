//! Streams that end, and others that come.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use crate::laptop::{Laptop, eventually};

const DEADLINE: Duration = Duration::from_secs(2);
const EIO: Option<i32> = Some(5);

#[test]
fn cut_stream_gives_an_error_within_the_deadline_and_all_is_well_with_the_next() {
    let served = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0..8_000_000_u32).map(|n| (n % 253) as u8).collect();
    fs::write(served.path().join("large"), &content).unwrap();
    fs::create_dir(served.path().join("dir")).unwrap();
    fs::write(served.path().join("dir/file"), "here").unwrap();
    let mut laptop = Laptop::unconnected(DEADLINE);
    // By a slow stream, so that it is cut within a read.
    laptop.connect_by(served.path(), Duration::from_millis(100));
    let path = laptop.path();
    let large = File::open(path.join("large")).unwrap();
    let mut first = vec![0; 100_000];
    large.read_exact_at(&mut first, 0).unwrap();
    assert_eq!(first, content[..100_000]);

    let reader = {
        let large = large.try_clone().unwrap();
        std::thread::spawn(move || {
            let began = Instant::now();
            let read = large.read_exact_at(&mut vec![0; 4_000_000], 3_000_000);
            (read, began.elapsed())
        })
    };
    std::thread::sleep(Duration::from_millis(50));
    laptop.cut();
    let (read, took) = reader.join().unwrap();
    assert_eq!(read.unwrap_err().raw_os_error(), EIO);
    assert!(took < DEADLINE + Duration::from_secs(1), "{took:?}");
    let began = Instant::now();
    let missing = fs::read_to_string(path.join("dir/other")).unwrap_err();
    assert_eq!(missing.raw_os_error(), EIO);
    assert!(began.elapsed() < DEADLINE + Duration::from_secs(1));

    laptop.connect(served.path());
    let mut all = Vec::new();
    (&large).read_to_end(&mut all).unwrap();
    assert!(all == content, "the file is not what it was");
    assert_eq!(fs::read_to_string(path.join("dir/file")).unwrap(), "here");
}

#[test]
fn request_that_waits_is_answered_by_the_stream_that_comes_in_time() {
    let served = tempfile::tempdir().unwrap();
    fs::write(served.path().join("file"), "here").unwrap();
    let mut laptop = Laptop::unconnected(Duration::from_secs(10));
    let path = laptop.path().join("file");
    let reader = std::thread::spawn(move || fs::read_to_string(path));
    std::thread::sleep(Duration::from_millis(100));
    laptop.connect(served.path());
    assert_eq!(reader.join().unwrap().unwrap(), "here");
}

#[test]
fn files_are_found_by_their_names_in_another_pod() {
    let pods = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    for (pod, text) in pods.iter().zip(["first", "second"]) {
        fs::create_dir(pod.path().join("dir")).unwrap();
        fs::write(pod.path().join("dir/file"), text).unwrap();
    }
    fs::write(pods[0].path().join("dir/only"), "in one").unwrap();
    let mut laptop = Laptop::new(pods[0].path());
    let path = laptop.path().join("dir");
    let open = File::open(path.join("file")).unwrap();
    let mut only = OpenOptions::new()
        .write(true)
        .open(path.join("only"))
        .unwrap();
    assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "first");

    laptop.connect(pods[1].path());

    eventually(Duration::from_secs(2), "the other pod's file", || {
        fs::read_to_string(path.join("file")).unwrap() == "second"
    });
    let mut text = String::new();
    (&open).read_to_string(&mut text).unwrap();
    assert_eq!(text, "second");
    assert!(
        only.write_all(b"x").is_err(),
        "written to a file that is gone"
    );
    fs::write(path.join("new"), "new").unwrap();
    assert_eq!(
        fs::read_to_string(pods[1].path().join("dir/new")).unwrap(),
        "new"
    );
}

#[test]
fn what_was_not_synced_before_the_stream_was_cut_is_not_said_to_be() {
    let served = tempfile::tempdir().unwrap();
    let mut laptop = Laptop::new(served.path());
    let mut file = File::create(laptop.path().join("file")).unwrap();
    file.write_all(b"synced").unwrap();
    file.sync_all().unwrap();
    file.write_all(b" and not").unwrap();
    laptop.connect(served.path());
    assert_eq!(file.sync_all().unwrap_err().raw_os_error(), EIO);
    // Who writes it again is told the truth.
    file.write_all(b"!").unwrap();
    file.sync_all().unwrap();
    let written = fs::read_to_string(served.path().join("file")).unwrap();
    assert_eq!(written, "synced and not!");
}
