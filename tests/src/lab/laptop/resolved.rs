//! systemd-resolved on a laptop, as on most distributions: Debian's, with a
//! system bus of its own. Without polkit; root may configure links without it.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::Laptop;
use crate::lab::debian::Rootfs;
use crate::lab::process::Process;
use crate::lab::{net, start, wire};
use crate::progress::step;
use crate::{Cmd, wait_for};

/// What systemd-resolved and the bus are made of. The C library is the
/// machine's, which every program has loaded.
const PACKAGES: Rootfs = Rootfs {
    name: "resolved",
    packages: &["dbus-daemon", "dbus-system-bus-common", "systemd-resolved"],
    without: &[
        "adduser",
        "debconf",
        "dmsetup",
        "gcc-12-base",
        "init-system-helpers",
        "libc6",
        "libcryptsetup12",
        "libfdisk1",
        "libgcc-s1",
        "mount",
        "passwd",
        "perl",
        "perl-base",
        "tar",
        "usrmerge",
    ],
};

/// The two daemons.
const BUS: &str = "dbus";
const NAME_SERVER: &str = "resolved";

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where the laptop's own file waits meanwhile.
const RESOLV_CONF_BEFORE: &str = "/etc/resolv.conf.before-resolved";
/// What distributions make of it; relative, as theirs is.
const STUB_RESOLV_CONF: &str = "../run/systemd/resolve/stub-resolv.conf";

const BUS_SOCKET: &str = "/run/dbus/system_bus_socket";
const BUS_CONFIG: &str = "/run/dbus/system.conf";

/// Directories that a system with systemd has.
const DIRECTORIES: [&str; 2] = ["/run/dbus", "/run/systemd"];

/// Source of the mount that shows the packages' files.
const MOUNT: &str = "kvpn-resolved";

const UPLINK: &str = "eth0";

/// systemd-resolved on a laptop, until dropped.
#[derive(Debug)]
pub struct Resolved {
    laptop: Laptop,
}

impl Resolved {
    /// Restarts it, as an upgrade of its package does. It remembers what each
    /// link was given.
    pub fn restart(&self) -> Result<()> {
        let mut record = Record::load(&self.laptop)?.context("systemd-resolved does not run")?;
        let name = process(&self.laptop, NAME_SERVER);
        for process in record.processes.extract_if(.., |other| other.name == name) {
            process.stop(Duration::from_secs(5))?;
        }
        self.laptop.start_name_server(&mut record)?;
        self.laptop.wait_for_office()
    }

    /// Kills it, and starts another.
    pub fn crash(&self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.restart()
    }

    /// Has it do nothing more until `go_on`.
    pub fn hang(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    pub fn go_on(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let record = Record::load(&self.laptop)?.context("systemd-resolved does not run")?;
        let name = process(&self.laptop, NAME_SERVER);
        let mut processes = record.processes.iter();
        let server = processes.find(|other| other.name == name && other.is_alive());
        server.context("systemd-resolved has ended")?.signal(signal);
        Ok(())
    }

    /// Stops it, and gives the laptop its own resolv.conf back.
    pub fn stop(self) -> Result<()> {
        self.laptop.stop_resolved()
    }
}

impl Drop for Resolved {
    fn drop(&mut self) {
        // The next test run puts right what this leaves.
        if let Err(error) = self.laptop.stop_resolved() {
            step(format_args!("Cannot stop systemd-resolved: {error:#}"));
        }
    }
}

impl Laptop {
    /// Starts systemd-resolved; it stops when the returned value is dropped.
    pub fn with_resolved(&self) -> Result<Resolved> {
        self.start_resolved()?;
        Ok(Resolved {
            laptop: self.clone(),
        })
    }

    /// Starts systemd-resolved, unless it runs, and waits until it answers.
    /// The laptop must not be connected.
    pub fn start_resolved(&self) -> Result<()> {
        if self.has_resolved() {
            return Ok(());
        }
        let usr = PACKAGES.usr(&self.layout)?;
        let started = self.try_start_resolved(&usr);
        if started.is_err() {
            // The first error tells more.
            drop(self.stop_resolved());
        }
        started.with_context(|| format!("start systemd-resolved on laptop {}", self.number))
    }

    /// Stops systemd-resolved, if it runs, and puts everything back.
    pub fn stop_resolved(&self) -> Result<()> {
        let Some(record) = Record::load(self)? else {
            return Ok(());
        };
        for process in record.processes.iter().rev() {
            process.stop(Duration::from_secs(5))?;
        }
        let before = self.path(RESOLV_CONF_BEFORE);
        if before.symlink_metadata().is_ok() {
            fs::rename(before, self.path(RESOLV_CONF)).context("put resolv.conf back")?;
        }
        if self.shows_packages()? {
            // Other programs may run from there.
            let unmount = ["umount", "--no-mtab", "--lazy", "/usr"];
            self.root().run(unmount)?.success()?;
        }
        for directory in DIRECTORIES.map(|directory| self.path(directory)) {
            if directory.exists() {
                fs::remove_dir_all(&directory)
                    .with_context(|| format!("remove {}", directory.display()))?;
            }
        }
        Record::remove(self)
    }

    /// Whether systemd-resolved was started here.
    pub fn has_resolved(&self) -> bool {
        Record::path(self).exists()
    }

    fn try_start_resolved(&self, usr: &Path) -> Result<()> {
        // From here on there is something to put back.
        let mut record = Record::default();
        record.save(self)?;
        let layers = format!("lowerdir={}:/usr", usr.display());
        let mount = ["mount", "--no-mtab", "-t", "overlay", "-o", &layers];
        self.root()
            .run(mount.iter().chain(&[MOUNT, "/usr"]))?
            .success()?;
        for directory in DIRECTORIES {
            fs::create_dir_all(self.path(directory))
                .with_context(|| format!("create {directory}"))?;
        }
        // Before it starts: it takes the name servers of a foreign file for its own.
        let path = self.path(RESOLV_CONF);
        fs::rename(&path, self.path(RESOLV_CONF_BEFORE)).context("move resolv.conf aside")?;
        symlink(STUB_RESOLV_CONF, path).context("link resolv.conf")?;
        self.start_bus(&mut record, usr)?;
        self.start_name_server(&mut record)?;
        // As NetworkManager does.
        let gateway = net::gateway_v4(self.number);
        for setting in [
            ["dns", UPLINK, &gateway],
            ["domain", UPLINK, wire::OFFICE_DOMAIN],
            ["default-route", UPLINK, "yes"],
        ] {
            self.root()
                .run(["resolvectl"].iter().chain(&setting))?
                .success()?;
        }
        self.wait_for_office()
    }

    fn start_bus(&self, record: &mut Record, usr: &Path) -> Result<()> {
        let config = fs::read_to_string(usr.join("share/dbus-1/system.conf"))
            .context("read the bus's configuration")?;
        fs::write(self.path(BUS_CONFIG), bus_config(&config))?;
        let config = format!("--config-file={BUS_CONFIG}");
        let bus = Cmd::new("dbus-daemon").args([&config, "--nofork", "--nopidfile", "--nosyslog"]);
        record.start(self, BUS, &bus)?;
        self.wait_for_daemon(BUS, "the system bus listens", || {
            Ok(UnixStream::connect(self.path(BUS_SOCKET)).map(drop)?)
        })
    }

    fn start_name_server(&self, record: &mut Record) -> Result<()> {
        record.start(
            self,
            NAME_SERVER,
            &Cmd::new("/usr/lib/systemd/systemd-resolved"),
        )?;
        self.wait_for_daemon(NAME_SERVER, "systemd-resolved is on the bus", || {
            self.root().run(["resolvectl", "dns"])?.success().map(drop)
        })
    }

    fn wait_for_office(&self) -> Result<()> {
        let (name, address) = wire::OFFICE_PRINTER;
        self.wait_for_daemon(NAME_SERVER, "systemd-resolved knows the office", || {
            let answer = self.root().run(["resolvectl", "query", name])?.success()?;
            ensure!(answer.stdout.contains(address), "{}", answer.stdout);
            Ok(())
        })
    }

    fn wait_for_daemon(
        &self,
        name: &str,
        what: &str,
        probe: impl Fn() -> Result<()>,
    ) -> Result<()> {
        wait_for(what, Duration::from_secs(10), || probe().map(Some))
            .map_err(|error| start::with_log(&self.layout, &process(self, name), error))
    }

    /// Whether the packages' files are to be seen, by the laptop's mounts.
    fn shows_packages(&self) -> Result<bool> {
        let path = format!("/proc/{}/mounts", self.holder);
        let mounts = fs::read_to_string(path).context("read the laptop's mounts")?;
        Ok(mounts.lines().any(|line| line.starts_with(MOUNT)))
    }
}

/// A daemon's name among the lab's processes.
fn process(laptop: &Laptop, daemon: &str) -> String {
    format!("laptop{}-{daemon}", laptop.number)
}

/// Debian's configuration of the system bus, with nothing to start services
/// with: a service that does not run is unknown, also where the machine has it.
fn bus_config(debian: &str) -> String {
    let included = "<includedir>system.d</includedir>";
    let elsewhere = "<includedir>/usr/share/dbus-1/system.d</includedir>";
    debian
        .replace("<standard_system_servicedirs/>", "")
        .replace(included, elsewhere)
}

/// What runs for a laptop's systemd-resolved, on disk while it is set up.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    processes: Vec<Process>,
}

impl Record {
    fn path(laptop: &Laptop) -> PathBuf {
        let name = format!("laptop{}-resolved.json", laptop.number);
        laptop.layout.run().join(name)
    }

    fn load(laptop: &Laptop) -> Result<Option<Self>> {
        let path = Self::path(laptop);
        if !path.exists() {
            return Ok(None);
        }
        let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let record = serde_json::from_slice(&bytes);
        record.with_context(|| format!("read {}", path.display()))
    }

    fn save(&self, laptop: &Laptop) -> Result<()> {
        let path = Self::path(laptop);
        fs::write(&path, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("write {}", path.display()))
    }

    fn remove(laptop: &Laptop) -> Result<()> {
        let path = Self::path(laptop);
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
    }

    fn start(&mut self, laptop: &Laptop, daemon: &str, command: &Cmd) -> Result<()> {
        let (name, enter) = (process(laptop, daemon), laptop.root().enter());
        let process = start::detached(&laptop.layout, &name, enter, command)?;
        self.processes.push(process);
        self.save(laptop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bus_starts_no_services_and_keeps_the_policies() {
        let debian = "<standard_system_servicedirs/>\n<includedir>system.d</includedir>\n";
        let expected = "\n<includedir>/usr/share/dbus-1/system.d</includedir>\n";
        assert_eq!(bus_config(debian), expected);
    }
}
