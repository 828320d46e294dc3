//! What a client gets that keeps to no rule. These tests need root.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use kvpn_proto::v1::file_name::Name;
use kvpn_proto::v1::files_answer::Result as Answer;
use kvpn_proto::v1::{
    FileCreate, FileLink, FileList, FileMakeNode, FileName, FileOpen, FilePeek, FileRead,
    FileReadLink, FileRemove, FileRename, FileSetAttributes, FileSetXattr, FileStat,
};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
use tempfile::TempDir;

use super::*;

const OUTSIDE: &str = "nobody may see this";

/// A directory that is served, beside a file that is not.
fn served() -> (TempDir, Files) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("secret"), OUTSIDE).unwrap();
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("dir/sub")).unwrap();
    fs::write(root.join("dir/file"), "inside").unwrap();
    let exports = Exports::whole(&root, false).unwrap();
    (dir, Files::new(Arc::new(exports)))
}

fn open(path: impl AsRef<[u8]>) -> Op {
    Op::Open(FileOpen {
        path: Bytes::copy_from_slice(path.as_ref()),
        read: true,
        max_content: 4096,
        ..FileOpen::default()
    })
}

fn content(files: &Files, path: impl AsRef<[u8]>) -> Result<Bytes, Errno> {
    match files.perform(open(path))? {
        Some(Answer::Opened(opened)) => {
            files.release(opened.handle);
            Ok(opened.content.unwrap())
        }
        answer => panic!("{answer:?}"),
    }
}

fn stat(path: &'static str) -> Op {
    let name = Some(Name::Path(path.into()));
    let file = Some(FileName { name });
    Op::Stat(FileStat { file })
}

/// Everything that changes something at a path.
fn changes(path: &'static str) -> Vec<Op> {
    let path: Bytes = path.into();
    let other: Bytes = [&path[..], b"/new"].concat().into();
    let at = || {
        Some(FileName {
            name: Some(Name::Path(path.clone())),
        })
    };
    let opening = FileOpen {
        path: path.clone(),
        ..FileOpen::default()
    };
    vec![
        Op::Open(FileOpen {
            write: true,
            ..opening.clone()
        }),
        Op::Open(FileOpen {
            truncate: true,
            ..opening.clone()
        }),
        Op::Open(FileOpen {
            create: Some(FileCreate::default()),
            ..opening
        }),
        Op::MakeNode(FileMakeNode {
            path: other.clone(),
            mode: 0o040_755,
            target: Bytes::new(),
        }),
        Op::Remove(FileRemove {
            path: path.clone(),
            directory: false,
        }),
        Op::Rename(FileRename {
            from: path.clone(),
            to: other.clone(),
            flags: 0,
        }),
        Op::Link(FileLink {
            from: path.clone(),
            to: other,
        }),
        Op::SetAttributes(FileSetAttributes {
            file: at(),
            mode: Some(0),
            ..Default::default()
        }),
        Op::SetXattr(FileSetXattr {
            path: path.clone(),
            name: "user.a".into(),
            ..Default::default()
        }),
    ]
}

#[test]
fn paths_that_lead_up_or_from_elsewhere_are_refused() {
    let (_dir, files) = served();
    assert_eq!(content(&files, "dir/file").unwrap(), "inside");
    for path in [
        "..",
        "../secret",
        "dir/../../secret",
        "/etc/passwd",
        "dir//file",
        "dir/",
        ".",
    ] {
        assert_eq!(content(&files, path).unwrap_err(), Errno::INVAL, "{path}");
        for op in changes(path) {
            assert!(files.perform(op.clone()).is_err(), "{op:?}");
        }
    }
    assert_eq!(content(&files, "a\0b").unwrap_err(), Errno::INVAL);
    let peek = Op::Peek(FilePeek {
        path: "dir".into(),
        names: vec!["..".into(), "../../secret".into(), "file".into(), "".into()],
        max_content: 4096,
    });
    let Some(Answer::Listing(listing)) = files.perform(peek).unwrap() else {
        panic!("no listing");
    };
    let contents: Vec<_> = listing
        .entries
        .iter()
        .map(|entry| entry.content.clone())
        .collect();
    assert_eq!(contents, [None, None, Some("inside".into()), None]);
    assert!(listing.entries[0].attributes.is_none() && listing.entries[1].attributes.is_none());
}

#[test]
fn symbolic_links_are_shown_and_never_followed() {
    let (dir, files) = served();
    let root = dir.path().join("root");
    symlink("../secret", root.join("up")).unwrap();
    symlink(dir.path().join("secret"), root.join("absolute")).unwrap();
    symlink("..", root.join("parent")).unwrap();
    symlink("/proc/self/root", root.join("magic")).unwrap();
    for path in ["up", "absolute", "parent/secret", "magic/etc/passwd"] {
        assert_eq!(content(&files, path).unwrap_err(), Errno::LOOP, "{path}");
    }
    for path in ["parent/secret", "magic/tmp/x"] {
        for op in changes(path) {
            assert_eq!(
                files.perform(op.clone()).unwrap_err(),
                Errno::LOOP,
                "{op:?}"
            );
        }
    }
    let Some(Answer::Data(target)) = files
        .perform(Op::ReadLink(FileReadLink { path: "up".into() }))
        .unwrap()
    else {
        panic!("no target");
    };
    assert_eq!(target, "../secret");
    // What is done to a link is done to the link.
    let file = Some(FileName {
        name: Some(Name::Path("up".into())),
    });
    let owner = FileSetAttributes {
        file,
        uid: Some(7),
        ..Default::default()
    };
    files.perform(Op::SetAttributes(owner)).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_eq!(fs::metadata(dir.path().join("secret")).unwrap().uid(), 0);
    assert_eq!(fs::symlink_metadata(root.join("up")).unwrap().uid(), 7);
}

#[test]
fn magic_links_of_proc_lead_nowhere() {
    let exports = Exports::whole(Path::new("/proc"), true).unwrap();
    let files = Files::new(Arc::new(exports));
    let pid = std::process::id();
    for path in [
        format!("{pid}/root/etc/passwd"),
        format!("{pid}/cwd/Cargo.toml"),
    ] {
        assert_eq!(content(&files, &path).unwrap_err(), Errno::LOOP, "{path}");
    }
}

#[test]
fn directory_that_becomes_a_link_meanwhile_leads_nowhere_else() {
    let (dir, files) = served();
    let root = dir.path().join("root");
    fs::create_dir(dir.path().join("out")).unwrap();
    fs::write(dir.path().join("out/file"), OUTSIDE).unwrap();
    symlink("../out", root.join("link")).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let (a, b) = (root.join("dir"), root.join("link"));
                renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).unwrap();
            }
        });
        let mut seen = 0;
        for _ in 0..20_000 {
            match content(&files, "dir/file") {
                Ok(found) => {
                    assert_eq!(found, "inside");
                    seen += 1;
                }
                Err(errno) => assert_eq!(errno, Errno::LOOP),
            }
        }
        done.store(true, Ordering::Relaxed);
        assert!(seen > 0, "the directory was never one");
    });
}

/// Something mounted for the time of a test.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn new(at: &Path) -> Self {
        fs::create_dir_all(at).unwrap();
        mount("kvpn-test", at, "tmpfs", MountFlags::empty(), None).unwrap();
        Self(at.into())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn only_volumes_are_there_and_those_that_are_read_only_stay_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let _data = Mounted::new(&root.join("data"));
    let _run = Mounted::new(&root.join("run/secrets/token"));
    fs::create_dir(root.join("etc")).unwrap();
    fs::write(root.join("etc/shadow"), OUTSIDE).unwrap();
    fs::create_dir(root.join("var")).unwrap();
    symlink("/run", root.join("var/run")).unwrap();
    fs::write(root.join("data/file"), "mine").unwrap();
    symlink("../etc", root.join("data/etc")).unwrap();
    fs::write(root.join("run/secrets/token/ca"), "cert").unwrap();
    let volume = |path: &str, read_only| Volume {
        path: path.into(),
        read_only,
    };
    let volumes = [
        volume("/data", false),
        volume("/var/run/secrets/token", true),
        volume("/etc", false),
        volume("/nowhere", false),
    ];

    let (exports, refused) = Exports::volumes(root, &volumes).unwrap();

    let refused: Vec<String> = refused.iter().map(ToString::to_string).collect();
    let expected = "/etc cannot be shown: the container has nothing mounted there";
    assert_eq!(refused[0], expected);
    assert!(
        refused[1].starts_with("/nowhere cannot be shown: No such file"),
        "{refused:?}"
    );
    let files = Files::new(Arc::new(exports));
    assert_eq!(names(&files, ""), ["data", "var"]);
    assert_eq!(names(&files, "var/run"), ["secrets"]);
    assert_eq!(names(&files, "var/run/secrets/token"), ["ca"]);
    assert_eq!(content(&files, "data/file").unwrap(), "mine");
    assert_eq!(content(&files, "var/run/secrets/token/ca").unwrap(), "cert");
    assert_eq!(content(&files, "etc/shadow").unwrap_err(), Errno::NOENT);
    assert_eq!(content(&files, "data/etc/shadow").unwrap_err(), Errno::LOOP);
    assert_eq!(files.perform(stat("etc")).unwrap_err(), Errno::NOENT);
    for op in changes("var/run/secrets/token/ca") {
        assert_eq!(
            files.perform(op.clone()).unwrap_err(),
            Errno::ROFS,
            "{op:?}"
        );
    }
    for op in changes("var/run") {
        let refused = files.perform(op.clone()).unwrap_err();
        assert_eq!(refused, Errno::ROFS, "{op:?}");
    }
    let mut data = changes("data")
        .into_iter()
        .filter(|op| matches!(op, Op::Remove(_)));
    assert_eq!(
        files.perform(data.next().unwrap()).unwrap_err(),
        Errno::BUSY
    );
}

fn names(files: &Files, path: &'static str) -> Vec<String> {
    let list = Op::List(FileList {
        path: path.into(),
        from: 0,
    });
    match files.perform(list).unwrap() {
        Some(Answer::Listing(listing)) => {
            let name = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
            listing
                .entries
                .iter()
                .map(|entry| name(&entry.name))
                .collect()
        }
        answer => panic!("{answer:?}"),
    }
}

#[test]
fn volume_that_is_mounted_twice_has_other_files_in_each_place() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let data = Mounted::new(&root.join("data"));
    fs::create_dir(root.join("app")).unwrap();
    mount_bind(&data.0, root.join("app")).unwrap();
    let _app = Mounted(root.join("app"));
    fs::write(root.join("data/file"), "once").unwrap();
    fs::hard_link(root.join("data/file"), root.join("data/link")).unwrap();
    let exports = Exports::whole(root, false).unwrap();
    let files = Files::new(Arc::new(exports));
    let found = |path| match files.perform(stat(path)).unwrap() {
        Some(Answer::Attributes(found)) => (found.device, found.inode),
        answer => panic!("{answer:?}"),
    };
    assert_ne!(found("data/file"), found("app/file"));
    assert_eq!(found("data/file").1, found("app/file").1);
    assert_eq!(found("data/file"), found("data/link"));
}

#[test]
fn pipe_is_not_waited_for_and_a_handle_serves_until_it_is_closed() {
    let (_dir, files) = served();
    let pipe = FileMakeNode {
        path: "pipe".into(),
        mode: 0o010_644,
        target: Bytes::new(),
    };
    files.perform(Op::MakeNode(pipe)).unwrap();
    assert_eq!(files.perform(open("pipe")).unwrap_err(), Errno::NXIO);
    assert_eq!(files.perform(open("dir")).unwrap_err(), Errno::ISDIR);
    let Some(Answer::Opened(opened)) = files.perform(open("dir/file")).unwrap() else {
        panic!("not opened");
    };
    let handle = opened.handle;
    let read = Op::Read(FileRead {
        handle,
        offset: 2,
        size: u32::MAX,
    });
    assert_eq!(
        files.perform(read.clone()).unwrap(),
        Some(Answer::Data("side".into()))
    );
    files.release(handle);
    assert_eq!(files.perform(read).unwrap_err(), Errno::BADF);
}
