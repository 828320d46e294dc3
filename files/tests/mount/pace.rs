//! How fast it is, which is told and only roughly tested.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::laptop::Laptop;

#[test]
fn many_small_files_are_not_bound_by_round_trips() {
    // One answer holds all that are asked for of the former, and half of the latter.
    for size in [1024, 4000] {
        let served = tempfile::tempdir_in("/dev/shm").unwrap();
        for n in 0..2000 {
            fs::write(served.path().join(format!("file-{n}")), vec![b'x'; size]).unwrap();
        }
        let mut laptop = Laptop::unconnected(Duration::from_secs(10));
        let way = Duration::from_millis(10);
        laptop.connect_by(served.path(), way);
        let began = Instant::now();
        let bytes = tar(&laptop.path());
        let took = began.elapsed();
        assert!(bytes > 2000 * size, "{bytes} bytes");
        // One by one they would take a round trip each.
        let one_by_one = 2 * way * 2000;
        eprintln!("2,000 files of {size} bytes over 20 ms: {took:?}");
        assert!(took < one_by_one / 5, "{took:?}");
    }
}

/// Figures: `cargo test -p kvpn-files --test mount figures -- --ignored --nocapture`.
#[test]
#[ignore = "tells figures, and is slow"]
fn figures() {
    let served = tempfile::tempdir_in("/dev/shm").unwrap();
    for size in [1024, 4000] {
        for n in 0..10_000 {
            fs::write(served.path().join(format!("file-{n}")), vec![b'x'; size]).unwrap();
        }
        for (what, way) in [("at once", 0), ("over 20 ms", 10)] {
            let mut laptop = Laptop::unconnected(Duration::from_secs(10));
            laptop.connect_by(served.path(), Duration::from_millis(way));
            let began = Instant::now();
            tar(&laptop.path());
            let took = began.elapsed();
            eprintln!("tar of 10,000 files of {size} bytes {what}: {took:?}");
        }
        let began = Instant::now();
        tar(served.path());
        eprintln!("(bare: {:?})", began.elapsed());
    }

    fs::remove_dir_all(served.path()).unwrap();
    fs::create_dir(served.path()).unwrap();
    let mut large = File::create(served.path().join("large")).unwrap();
    for _ in 0..1024 {
        large.write_all(&vec![b'x'; 1 << 20]).unwrap();
    }
    for (what, way) in [("at once", 0), ("over 20 ms", 10)] {
        let mut laptop = Laptop::unconnected(Duration::from_secs(10));
        laptop.connect_by(served.path(), Duration::from_millis(way));
        let began = Instant::now();
        let mut file = File::open(laptop.path().join("large")).unwrap();
        let mut buffer = vec![0; 1 << 20];
        let mut bytes = 0;
        while let Ok(read @ 1..) = file.read(&mut buffer) {
            bytes += read;
        }
        let took = began.elapsed();
        let rate = bytes as f64 / took.as_secs_f64() / f64::from(1 << 20);
        eprintln!("sequential read of {bytes} bytes {what}: {took:?}, {rate:.0} MiB/s");
        if way == 0 {
            let began = Instant::now();
            let mut file = File::create(laptop.path().join("written")).unwrap();
            for _ in 0..256 {
                file.write_all(&buffer).unwrap();
            }
            let rate = 256.0 / began.elapsed().as_secs_f64();
            eprintln!("sequential write of 256 MiB {what}: {rate:.0} MiB/s");
            fs::remove_file(laptop.path().join("written")).unwrap();
        }
    }
}

/// How many bytes tar makes of a directory. It must not write to /dev/null, for
/// which it would read nothing.
fn tar(dir: &Path) -> usize {
    let mut tar = Command::new("tar")
        .arg("-cC")
        .arg(dir)
        .arg(".")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut bytes = 0;
    let mut buffer = vec![0; 1 << 20];
    let mut output = tar.stdout.take().unwrap();
    while let Ok(read @ 1..) = output.read(&mut buffer) {
        bytes += read;
    }
    assert!(tar.wait().unwrap().success());
    bytes
}
