//! Operations of POSIX and Linux, and what comes of each, as text.

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{
    FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, lchown, symlink,
};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::{
    Access, AtFlags, CWD, FallocateFlags, FileType, Mode, RenameFlags, Timespec, Timestamps,
    XattrFlags, access, fallocate, getxattr, lgetxattr, listxattr, mknodat, removexattr,
    renameat_with, setxattr, statvfs, utimensat,
};

pub(crate) struct Table {
    dir: PathBuf,
    is_owner: bool,
    lines: Vec<String>,
}

/// Does all of them in a directory that is empty. Where the files belong to another user
/// for this kernel, as a pod's do on a laptop, `is_owner` leaves out what the kernel forbids
/// to others before it asks the file system.
pub(crate) fn run_all(dir: &Path, is_owner: bool) -> Vec<String> {
    let mut table = Table {
        dir: dir.into(),
        is_owner,
        lines: Vec::new(),
    };
    table.files();
    table.directories();
    table.links();
    table.renames();
    table.attributes();
    table.contents();
    table.mapped();
    table.xattrs();
    table.special();
    table.lines
}

impl Table {
    fn at(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn note<T: Debug, E: Into<io::Error>>(&mut self, what: &str, result: Result<T, E>) {
        let result = result.map_err(Into::into);
        let text = match result {
            Ok(value) => format!("{value:?}"),
            Err(error) => match error.raw_os_error() {
                Some(_) => error.to_string(),
                None => format!("{error:?}"),
            },
        };
        self.lines.push(format!("{what}: {text}"));
    }

    /// What lstat(2) tells that is the same in two places.
    fn look(&mut self, name: &str) {
        let found = fs::symlink_metadata(self.at(name)).map(|m| {
            let links = if m.is_dir() { 0 } else { m.nlink() };
            let size = if m.is_dir() { 0 } else { m.size() };
            (format!("{:o}", m.mode()), links, m.uid(), m.gid(), size)
        });
        self.note(&format!("look {name}"), found);
    }

    fn list(&mut self, name: &str) {
        let names = fs::read_dir(self.at(name)).map(|entries| {
            let mut names: Vec<_> = entries
                .map(|entry| {
                    let entry = entry.unwrap();
                    (entry.file_name(), entry.file_type().unwrap().is_dir())
                })
                .collect();
            names.sort();
            names
        });
        self.note(&format!("list {name}"), names);
    }

    fn files(&mut self) {
        self.note("open missing", File::open(self.at("missing")).map(drop));
        self.note("create", File::create_new(self.at("a")).map(drop));
        self.note("create again", File::create_new(self.at("a")).map(drop));
        self.look("a");
        self.note("write", fs::write(self.at("a"), "hello"));
        self.look("a");
        self.note("read", fs::read_to_string(self.at("a")));
        self.note("truncate by open", File::create(self.at("a")).map(drop));
        self.look("a");
        let mode = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o640)
            .open(self.at("m"));
        self.note("create with mode", mode.map(drop));
        self.look("m");
        self.note("below a file", File::open(self.at("a/b")).map(drop));
        self.note(
            "create below a file",
            File::create(self.at("a/b")).map(drop),
        );
        self.note(
            "create below missing",
            File::create(self.at("x/b")).map(drop),
        );
        self.note(
            "long name",
            File::create(self.at(&"n".repeat(256))).map(drop),
        );
        self.note(
            "longest name",
            File::create(self.at(&"n".repeat(255))).map(drop),
        );
        self.note("odd name", fs::write(self.at("a b\n\\ü"), "odd"));
        self.note("odd name read", fs::read_to_string(self.at("a b\n\\ü")));
        self.note("unlink", fs::remove_file(self.at("m")));
        self.note("unlink again", fs::remove_file(self.at("m")));
        self.note("unlink odd", fs::remove_file(self.at("a b\n\\ü")));
        self.note("read only", File::open(self.at("a")).unwrap().write(b"x"));
        let mut write_only = OpenOptions::new().write(true).open(self.at("a")).unwrap();
        self.note("write only", write_only.read(&mut [0; 4]));
    }

    fn directories(&mut self) {
        self.note("mkdir", fs::create_dir(self.at("d")));
        self.note("mkdir again", fs::create_dir(self.at("d")));
        self.note("mkdir over a file", fs::create_dir(self.at("a")));
        self.note("mkdir deep", fs::create_dir_all(self.at("d/e/f/g")));
        self.look("d");
        self.note(
            "open for writing",
            OpenOptions::new().write(true).open(self.at("d")).map(drop),
        );
        self.note("read a directory", fs::read(self.at("d")));
        self.note("unlink a directory", fs::remove_file(self.at("d")));
        self.note("rmdir a file", fs::remove_dir(self.at("a")));
        self.note("rmdir full", fs::remove_dir(self.at("d")));
        self.note("list", fs::write(self.at("d/file"), "x"));
        self.list("d");
        self.list("d/e");
        self.list("d/e/f/g");
        self.list("missing");
        self.list("a");
        self.note("rmdir", fs::remove_dir(self.at("d/e/f/g")));
        self.note("rmdir missing", fs::remove_dir(self.at("d/e/f/g")));
        self.note("remove all", fs::remove_dir_all(self.at("d/e")));
        self.list("d");
        self.note(
            "sync a directory",
            File::open(self.at("d")).unwrap().sync_all(),
        );
    }

    fn links(&mut self) {
        fs::write(self.at("target"), "content").unwrap();
        self.note("symlink", symlink("target", self.at("s")));
        self.note("symlink again", symlink("target", self.at("s")));
        self.look("s");
        self.note("readlink", fs::read_link(self.at("s")));
        self.note("read by symlink", fs::read_to_string(self.at("s")));
        self.note("write by symlink", fs::write(self.at("s"), "by link"));
        self.note("readlink of a file", fs::read_link(self.at("target")));
        self.note("dangling", symlink("nowhere/at/all", self.at("dangling")));
        self.note("read dangling", fs::read(self.at("dangling")));
        self.note("loop", symlink("loop", self.at("loop")));
        self.note("read loop", fs::read(self.at("loop")));
        let nofollow = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(nofollow)
            .open(self.at("s"));
        self.note("open no follow", opened.map(drop));
        self.note("owner of a link", lchown(self.at("s"), Some(5), Some(6)));
        self.look("s");
        self.look("target");
        self.note("link", fs::hard_link(self.at("target"), self.at("second")));
        self.note(
            "link again",
            fs::hard_link(self.at("target"), self.at("second")),
        );
        self.note(
            "link a directory",
            fs::hard_link(self.at("d"), self.at("d2")),
        );
        self.note(
            "link missing",
            fs::hard_link(self.at("missing"), self.at("l")),
        );
        // fs.protected_hardlinks: others link regular files only.
        if self.is_owner {
            self.note(
                "link a link",
                fs::hard_link(self.at("dangling"), self.at("dangling2")),
            );
            self.look("dangling2");
        }
        self.look("target");
        let inode = |path| fs::metadata(path).map(|found| found.ino());
        let is_one = inode(self.at("target")).unwrap() == inode(self.at("second")).unwrap();
        self.note("one inode", io::Result::Ok(is_one));
        self.note("write by one", fs::write(self.at("second"), "both"));
        self.note("read by the other", fs::read_to_string(self.at("target")));
        self.note("unlink one", fs::remove_file(self.at("target")));
        self.look("second");
        self.note("read what is left", fs::read_to_string(self.at("second")));
    }

    fn renames(&mut self) {
        let write = |path: PathBuf| fs::write(&path, path.file_name().unwrap().as_encoded_bytes());
        for name in ["r1", "r2", "r3"] {
            write(self.at(name)).unwrap();
        }
        for name in ["rd1/x", "rd2", "rd3"] {
            fs::create_dir_all(self.at(name)).unwrap();
        }
        let go = |table: &mut Self, from: &str, to: &str| {
            let result = fs::rename(table.at(from), table.at(to));
            table.note(&format!("rename {from} {to}"), result);
        };
        go(self, "r1", "r1b");
        go(self, "r1", "r1b");
        go(self, "r1b", "r2");
        self.note("replaced", fs::read_to_string(self.at("r2")));
        go(self, "r2", "r2");
        go(self, "r2", "rd2");
        go(self, "rd2", "r2");
        go(self, "rd2", "rd1");
        go(self, "rd2", "rd3");
        go(self, "rd1", "rd1/x/y");
        go(self, "rd1", "rd4");
        go(self, "r2", "rd4/x/moved");
        self.note("moved", fs::read_to_string(self.at("rd4/x/moved")));
        self.list("rd4/x");
        let with = |table: &mut Self, from: &str, to: &str, flags| {
            let result = renameat_with(CWD, table.at(from), CWD, table.at(to), flags);
            table.note(&format!("rename {from} {to} {flags:?}"), result);
        };
        with(self, "r3", "rd4/x/moved", RenameFlags::NOREPLACE);
        with(self, "r3", "r5", RenameFlags::NOREPLACE);
        with(self, "r5", "rd4", RenameFlags::EXCHANGE);
        self.note("exchanged", fs::read_to_string(self.at("rd4")));
        self.note("exchanged", fs::read_to_string(self.at("r5/x/moved")));
        with(self, "r5", "missing", RenameFlags::EXCHANGE);
        // Who has it open goes on.
        let mut open = File::open(self.at("rd4")).unwrap();
        go(self, "rd4", "r6");
        let mut text = String::new();
        let read = open.read_to_string(&mut text).map(|_| text);
        self.note("read after rename", read);
        self.note(
            "look after rename",
            open.metadata().map(|found| found.len()),
        );
    }

    fn attributes(&mut self) {
        fs::write(self.at("at"), "attributes").unwrap();
        for mode in [0o600, 0o4755, 0o2711, 0, 0o777] {
            let set = fs::set_permissions(self.at("at"), Permissions::from_mode(mode));
            self.note(&format!("chmod {mode:o}"), set);
            self.look("at");
        }
        self.note(
            "setuid",
            fs::set_permissions(self.at("at"), Permissions::from_mode(0o6755)),
        );
        self.note("chown", chown(self.at("at"), Some(1234), Some(4321)));
        self.look("at");
        self.note("chgrp", chown(self.at("at"), None, Some(99)));
        self.look("at");
        self.note(
            "sticky",
            fs::set_permissions(self.at("d"), Permissions::from_mode(0o1777)),
        );
        self.look("d");
        self.note(
            "chmod missing",
            fs::set_permissions(self.at("no"), Permissions::from_mode(0o000)),
        );
        let second = |tv_sec| Timespec {
            tv_sec,
            tv_nsec: 123_456_789,
        };
        for at in [1_600_000_000, 1, 4_000_000_000] {
            let times = Timestamps {
                last_access: second(at + 1),
                last_modification: second(at),
            };
            let set = utimensat(CWD, self.at("at"), &times, AtFlags::empty());
            self.note("utimens", set);
            let found = fs::metadata(self.at("at"));
            let found = found.map(|m| (m.atime(), m.atime_nsec(), m.mtime(), m.mtime_nsec()));
            self.note("times", found);
        }
        let file = File::options().write(true).open(self.at("at")).unwrap();
        let past = UNIX_EPOCH + Duration::from_secs(7);
        self.note("futimens", file.set_modified(past));
        self.note("time", file.metadata().map(|found| found.mtime()));
        self.note("write", file.write_at(b"x", 0).map(drop));
        let is_new = fs::metadata(self.at("at")).map(|found| found.mtime() > 1_700_000_000);
        self.note("written changes the time", is_new);
        self.note(
            "access",
            access(self.at("at"), Access::READ_OK | Access::WRITE_OK),
        );
        self.note("access missing", access(self.at("no"), Access::EXISTS));
        self.note("access x", access(self.at("r6"), Access::EXEC_OK));
        let system = statvfs(&self.dir).map(|s| (s.f_frsize, s.f_blocks, s.f_namemax));
        self.note("statvfs", system);
    }

    fn contents(&mut self) {
        let path = self.at("c");
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .unwrap();
        self.note("write", file.write_at(b"0123456789", 0));
        self.note("overwrite", file.write_at(b"xyz", 4));
        self.note("read part", read_at(&file, 3, 5));
        self.note("read at the end", read_at(&file, 10, 5));
        self.note("read behind", read_at(&file, 100, 5));
        self.note("far write", file.write_at(b"far", 1_000_000));
        self.look("c");
        self.note("hole is zeros", read_at(&file, 500_000, 4));
        self.note("shrink", file.set_len(6));
        self.note("read shrunk", fs::read(&path));
        self.note("grow", file.set_len(20));
        self.note("read grown", fs::read(&path));
        self.note("truncate path", rustix_truncate(&path, 3));
        self.look("c");
        self.note("sync", file.sync_all());
        self.note("sync data", file.sync_data());
        let mut append = OpenOptions::new().append(true).open(&path).unwrap();
        self.note("append", append.write_all(b"A"));
        self.note("other write", file.write_at(b"BB", 4));
        self.note("append", append.write_all(b"C"));
        self.note("appended", fs::read(&path));
        let megabytes: Vec<u8> = (0..3_000_001_u32).map(|n| (n % 251) as u8).collect();
        self.note("large write", fs::write(self.at("large"), &megabytes));
        let same = fs::read(self.at("large")).map(|read| read == megabytes);
        self.note("large read", same);
        // A file that nobody can find any more.
        let mut gone = options.open(self.at("gone")).unwrap();
        self.note("unlink open", fs::remove_file(self.at("gone")));
        self.note("write to it", gone.write_all(b"still here"));
        self.note("seek", gone.seek(SeekFrom::Start(6)));
        let mut text = String::new();
        let read = gone.read_to_string(&mut text).map(|_| text);
        self.note("read it", read);
        self.note(
            "its links",
            gone.metadata().map(|found| (found.nlink(), found.len())),
        );
        self.note("truncate it", gone.set_len(2));
        self.note("its size", gone.metadata().map(|found| found.len()));
        let mode = Permissions::from_mode(0o600);
        self.note("chmod it", gone.set_permissions(mode));
        self.sparse();
    }

    fn sparse(&mut self) {
        let path = self.at("sparse");
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .unwrap();
        self.note("end", file.set_len(4 << 20));
        self.note("data", file.write_at(&[7; 4096], 1 << 20));
        let seek = |from| rustix::fs::seek(&file, from);
        use rustix::fs::SeekFrom::{Data, Hole};
        for from in [
            Data(0),
            Data(1 << 20),
            Hole(0),
            Hole(1 << 20),
            Data(2 << 20),
            Hole(5 << 20),
        ] {
            self.note(&format!("{from:?}"), seek(from));
        }
        self.note(
            "allocate",
            fallocate(&file, FallocateFlags::empty(), 0, 8192),
        );
        self.note(
            "allocate more",
            fallocate(&file, FallocateFlags::empty(), 4 << 20, 4096),
        );
        self.look("sparse");
        let keep = FallocateFlags::KEEP_SIZE;
        self.note("keep size", fallocate(&file, keep, 8 << 20, 4096));
        self.look("sparse");
        let punch = FallocateFlags::PUNCH_HOLE | keep;
        self.note("punch", fallocate(&file, punch, 1 << 20, 4096));
        self.note("punched", read_at(&file, 1 << 20, 4));
        let small = fs::metadata(&path).map(|found| found.blocks() < 1024);
        self.note("takes little", small);
    }

    #[expect(unsafe_code, reason = "a file is mapped only so")]
    fn mapped(&mut self) {
        let path = self.at("mapped");
        fs::write(&path, vec![b'.'; 10_000]).unwrap();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        // SAFETY: nobody else changes the file.
        let mut map = unsafe { memmap2::MmapMut::map_mut(&file).unwrap() };
        map[5000..5005].copy_from_slice(b"mmap!");
        self.note("flush a map", map.flush());
        self.note("read what was mapped", read_at(&file, 4999, 7));
        self.note("write beside a map", file.write_at(b"write", 100));
        let seen = String::from_utf8_lossy(&map[99..106]).into_owned();
        self.note("seen in the map", io::Result::Ok(seen));
        drop(map);
        drop(file);
        self.note(
            "read again",
            fs::read(&path).map(|read| read[4999..5006].to_vec()),
        );
    }

    fn xattrs(&mut self) {
        fs::write(self.at("x"), "x").unwrap();
        let path = self.at("x");
        let get = |name: &str| {
            let mut value = vec![0; 100];
            getxattr(&path, name, &mut value).map(|length| value[..length].to_vec())
        };
        let empty = XattrFlags::empty();
        self.note("getxattr none", get("user.one"));
        self.note("setxattr", setxattr(&path, "user.one", b"1", empty));
        self.note("getxattr", get("user.one"));
        self.note(
            "create",
            setxattr(&path, "user.one", b"2", XattrFlags::CREATE),
        );
        self.note(
            "replace none",
            setxattr(&path, "user.two", b"2", XattrFlags::REPLACE),
        );
        self.note(
            "replace",
            setxattr(&path, "user.one", b"3", XattrFlags::REPLACE),
        );
        self.note("getxattr", get("user.one"));
        self.note("set two", setxattr(&path, "user.two", b"", empty));
        let mut list = vec![0; 1000];
        let names = listxattr(&path, &mut list).map(|length| {
            let mut names: Vec<_> = list[..length].split(|byte| *byte == 0).collect();
            names.sort();
            names.retain(|name| name.starts_with(b"user."));
            format!("{names:?}")
        });
        self.note("listxattr", names);
        let mut small = [0; 0];
        self.note("size", getxattr(&path, "user.one", &mut small[..]));
        self.note("too small", listxattr(&path, &mut [0; 3][..]));
        self.note("removexattr", removexattr(&path, "user.one"));
        self.note("removexattr again", removexattr(&path, "user.one"));
        self.note(
            "of a link",
            lgetxattr(self.at("s"), "user.one", &mut [0; 9][..]),
        );
        self.note("bad namespace", setxattr(&path, "nobody.one", b"1", empty));
    }

    fn special(&mut self) {
        let mode = Mode::from_raw_mode(0o622);
        self.note(
            "mkfifo",
            mknodat(CWD, self.at("fifo"), FileType::Fifo, mode, 0),
        );
        self.look("fifo");
        self.note("listen", UnixListener::bind(self.at("socket")).map(drop));
        let is_socket = fs::symlink_metadata(self.at("socket"));
        self.note(
            "socket",
            is_socket.map(|found| found.file_type().is_socket()),
        );
        self.note(
            "mknod file",
            mknodat(CWD, self.at("node"), FileType::RegularFile, mode, 0),
        );
        self.look("node");
        // What cannot be told apart by a pod of its own user, this one leaves out:
        // devices, which the server makes for nobody.
        self.list("");
    }
}

fn read_at(file: &File, offset: u64, size: usize) -> io::Result<Vec<u8>> {
    let mut data = vec![0; size];
    let read = file.read_at(&mut data, offset)?;
    data.truncate(read);
    Ok(data)
}

fn rustix_truncate(path: &Path, size: u64) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.set_len(size)
}
