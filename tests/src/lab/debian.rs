//! Root file systems of Debian's packages, for images and laptops. Nothing of
//! them is installed on the machine.

use std::fmt::Write;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::layout::Layout;
use crate::Cmd;
use crate::progress::{long, step};

/// The user that programs run as, by number, in a system without others.
const USER: u32 = 65532;

/// What no server needs to run.
const LEFT_OUT: [&str; 5] = ["doc", "info", "lintian", "locale", "man"];

/// Directories of a root that are links into its `/usr`.
const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];

/// A root file system: packages, and what they depend on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rootfs {
    pub(crate) name: &'static str,
    pub(crate) packages: &'static [&'static str],
    /// Dependencies to do without: what only installing, or rare features, need.
    pub(crate) without: &'static [&'static str],
}

impl Rootfs {
    /// An archive of it; made when it is not there yet.
    pub(crate) fn archive(&self, layout: &Layout) -> Result<PathBuf> {
        let archive = layout.cache().join(format!("{}.tar", self.name));
        self.make(layout, &archive, |root| pack(root, &archive))?;
        Ok(archive)
    }

    /// A directory with what of it belongs below `/usr`; made when it is not
    /// there yet.
    pub(crate) fn usr(&self, layout: &Layout) -> Result<PathBuf> {
        let directory = layout.cache().join(format!("{}-usr", self.name));
        self.make(layout, &directory, |root| merge(root, &directory))?;
        Ok(directory)
    }

    /// Unpacks the packages and finishes, unless the product is there.
    fn make(
        &self,
        layout: &Layout,
        product: &Path,
        finish: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        let stamp = product.with_extension("stamp");
        let fingerprint = self.fingerprint();
        if product.exists() && fs::read_to_string(&stamp).is_ok_and(|made| made == fingerprint) {
            return Ok(());
        }
        step(format_args!(
            "Downloading Debian packages: {}",
            self.packages.join(" ")
        ));
        let begin = Instant::now();
        let work = layout.cache().join(self.name);
        clear(&work)?;
        long("the Debian packages", || {
            self.unpack(&work).and_then(|root| finish(&root))
        })
        .with_context(|| format!("make the root file system of {}", self.name))?;
        clear(&work)?;
        fs::write(&stamp, fingerprint)?;
        step(format_args!(
            "Unpacked them in {} s",
            begin.elapsed().as_secs()
        ));
        Ok(())
    }

    fn fingerprint(&self) -> String {
        let mut hasher = DefaultHasher::new();
        (self.packages, self.without, LEFT_OUT, USER).hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    }

    /// Downloads and unpacks the packages; gives the root directory.
    fn unpack(&self, work: &Path) -> Result<PathBuf> {
        let (packages, root) = (work.join("packages"), work.join("root"));
        fs::create_dir_all(packages.join("partial"))?;
        fs::create_dir_all(&root)?;
        let status = work.join("status");
        fs::write(&status, installed(self.without))?;
        if self.download(&packages, &status).is_err() {
            // The machine's lists may be missing, or older than the archive.
            Cmd::new("apt-get")
                .args(["update", "-q"])
                .deadline(Duration::from_secs(300))
                .ok()?;
            self.download(&packages, &status)?;
        }
        for entry in fs::read_dir(&packages)? {
            let package = entry?.path();
            if package.extension().is_some_and(|name| name == "deb") {
                Cmd::new("dpkg-deb")
                    .arg("--extract")
                    .args([&package, &root])
                    .ok()?;
            }
        }
        Ok(root)
    }

    /// Downloads the packages as for a machine that has next to nothing.
    fn download(&self, packages: &Path, status: &Path) -> Result<()> {
        let option = |name: &str, path: &Path| format!("-o{name}={}", path.display());
        Cmd::new("apt-get")
            .args([
                "install",
                "--download-only",
                "--no-install-recommends",
                "-qq",
                "-y",
            ])
            .arg(option("Dir::State::status", status))
            .arg(option("Dir::Cache::archives", packages))
            .arg("-oDebug::NoLocking=true")
            // Else apt gives up root, and with it the way to this directory.
            .arg("-oAPT::Sandbox::User=root")
            .args(self.packages)
            .deadline(Duration::from_secs(600))
            .ok()
            .map(drop)
    }
}

/// Makes an archive of a root directory, with a shell and a user.
fn pack(root: &Path, archive: &Path) -> Result<()> {
    symlink("bash", root.join("bin/sh")).context("link the shell")?;
    fs::write(
        root.join("etc/passwd"),
        format!("app:x:{USER}:{USER}::/data:/bin/sh\n"),
    )?;
    fs::write(root.join("etc/group"), format!("app:x:{USER}:\n"))?;
    let excluded = LEFT_OUT.map(|name| format!("--exclude=./usr/share/{name}"));
    let tar = Cmd::new("tar").args(["--create", "--file"]).arg(archive);
    tar.args(excluded)
        .arg("--directory")
        .arg(root)
        .arg(".")
        .ok()
        .map(drop)
}

/// Keeps what of a root directory belongs below `/usr`.
fn merge(root: &Path, directory: &Path) -> Result<()> {
    let usr = root.join("usr");
    for name in MERGED {
        // Packages still name these as directories of their own.
        let contents = root.join(name).join(".");
        if contents.exists() {
            let copy = Cmd::new("cp").args(["--archive", "--no-target-directory"]);
            copy.args([contents, usr.join(name)]).ok()?;
        }
    }
    for name in LEFT_OUT {
        clear(&usr.join("share").join(name))?;
    }
    clear(directory)?;
    fs::rename(&usr, directory).with_context(|| format!("move to {}", directory.display()))
}

/// A record of installed packages, as dpkg keeps it.
fn installed(packages: &[&str]) -> String {
    let mut text = String::new();
    for package in packages {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "Package: {package}\nStatus: install ok installed\nVersion: 1:999999\n\
             Architecture: {}\nMulti-Arch: foreign\nMaintainer: none\nDescription: none\n",
            architecture()
        );
    }
    text
}

/// Debian's name of this machine's architecture.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "arm64",
        _ => "amd64",
    }
}

fn clear(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| format!("clear {}", directory.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_to_do_without_look_installed() {
        let text = installed(&["perl", "ucf"]);
        let names: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("Package: "))
            .collect();
        assert_eq!(names, ["perl", "ucf"]);
        assert_eq!(text.matches("\n\n").count(), 2);
    }
}
