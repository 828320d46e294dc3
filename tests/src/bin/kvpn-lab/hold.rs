//! Makes the namespaces and files of a node or laptop, and keeps them.

use std::convert::Infallible;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kvpn_tests::lab::layout::{Layout, Profile};
use kvpn_tests::lab::{laptop, net, wire};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{sethostname, setsid};

use crate::enter::{enter_network, join_cgroup};

/// The node: where containers and their mounts live, and die with it.
pub(crate) fn node() -> Result<Infallible> {
    let hidden = begin(net::NODE, "node1")?;
    for (path, mode) in [("/run", 0o755), ("/var/lib", 0o755), ("/var/log", 0o755)] {
        hidden.mask(path, mode)?;
    }
    // Containers must see what the kubelet mounts later.
    let nothing = None::<&str>;
    mount(
        nothing,
        "/",
        nothing,
        MsFlags::MS_REC | MsFlags::MS_SHARED,
        nothing,
    )
    .context("share mounts with containers")?;
    hold()
}

/// A laptop: its own /etc, /run, /tmp and homes.
pub(crate) fn laptop(number: u8) -> Result<Infallible> {
    let layout = Layout::new();
    let hidden = begin(&net::laptop(number), &format!("laptop{number}"))?;
    for (path, mode) in [
        ("/run", 0o755),
        ("/tmp", 0o1777),
        ("/home", 0o755),
        ("/root", 0o755),
    ] {
        hidden.mask(path, mode)?;
    }
    bind(&layout.binaries(), Path::new(laptop::BINARIES))?;
    let release = Layout::new().with_profile(Profile::Release).binaries();
    // Cargo may not have built there yet.
    fs::create_dir_all(&release)?;
    bind(&release, Path::new(laptop::RELEASE_BINARIES))?;
    bind(&layout.tools(), Path::new(laptop::TOOLS))?;
    bind(
        &laptop::home_on_host(&layout, number),
        &laptop::home(number),
    )?;
    let runtime = laptop::runtime_dir(number);
    fs::create_dir_all(&runtime)?;
    fs::set_permissions(&runtime, fs::Permissions::from_mode(0o700))?;
    let id = Some(laptop::user_id(number));
    chown(&runtime, id, id)?;
    etc(number)?;
    // The interfaces in /sys are those of the namespace that mounts it.
    let nothing = None::<&str>;
    mount(
        Some("sysfs"),
        "/sys",
        Some("sysfs"),
        MsFlags::empty(),
        nothing,
    )
    .context("mount /sys")?;
    hold()
}

/// Overlays /etc, so that its files are plain ones that can be renamed over.
fn etc(number: u8) -> Result<()> {
    let (upper, work) = ("/run/lab/etc/upper", "/run/lab/etc/work");
    fs::create_dir_all(upper)?;
    fs::create_dir_all(work)?;
    let options = format!("lowerdir=/etc,upperdir={upper},workdir={work}");
    mount(
        Some("overlay"),
        "/etc",
        Some("overlay"),
        MsFlags::empty(),
        Some(options.as_str()),
    )
    .context("overlay /etc")?;

    let mut users = String::from("root:x:0:0:root:/root:/bin/bash\n");
    let mut groups = String::from("root:x:0:\n");
    let mut members = Vec::new();
    for other in laptop::numbers() {
        let (name, id) = (laptop::user_name(other), laptop::user_id(other));
        let home = laptop::home(other);
        users += &format!(
            "{name}:x:{id}:{id}:Developer {other}:{}:/bin/bash\n",
            home.display()
        );
        groups += &format!("{name}:x:{id}:\n");
        members.push(name);
    }
    for (name, id) in laptop::SYSTEM_USERS {
        users += &format!("{name}:x:{id}:{id}::/nonexistent:/usr/sbin/nologin\n");
        groups += &format!("{name}:x:{id}:\n");
    }
    let (group, id) = laptop::GROUP;
    groups += &format!("{group}:x:{id}:{}\n", members.join(","));
    let resolv_conf = format!(
        "# The office's name server.\nnameserver {}\nsearch {}\n",
        net::gateway_v4(number),
        wire::OFFICE_DOMAIN
    );
    let hosts = format!("127.0.0.1 localhost\n::1 localhost\n127.0.1.1 laptop{number}\n");
    for (name, content) in [
        ("passwd", users),
        ("group", groups),
        ("resolv.conf", resolv_conf),
        ("hosts", hosts),
        ("hostname", format!("laptop{number}\n")),
        (
            "nsswitch.conf",
            "passwd: files\ngroup: files\nhosts: files dns\n".to_owned(),
        ),
    ] {
        let path = Path::new("/etc").join(name);
        // It may be a link to a file that other programs own.
        if path.symlink_metadata().is_ok() {
            fs::remove_file(&path)?;
        }
        fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// The repository, which must stay visible when a directory above is masked.
struct Hidden {
    kept: Vec<(PathBuf, File)>,
}

/// Enters new namespaces that see nothing of later mounts of the host.
fn begin(network: &str, hostname: &str) -> Result<Hidden> {
    join_cgroup()?;
    setsid().context("leave the session")?;
    enter_network(network)?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS).context("make namespaces")?;
    let nothing = None::<&str>;
    mount(
        nothing,
        "/",
        nothing,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        nothing,
    )
    .context("leave the host's mounts")?;
    sethostname(hostname).context("set the host name")?;
    let layout = Layout::new();
    let mut kept = Vec::new();
    for path in [layout.repository().to_owned(), layout.lab()] {
        let file = fs::OpenOptions::new()
            .read(true)
            .custom_flags(nix::fcntl::OFlag::O_DIRECTORY.bits())
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        kept.push((path, file));
    }
    Ok(Hidden { kept })
}

impl Hidden {
    /// Puts an empty directory in the place of one of the host's.
    fn mask(&self, path: &str, mode: u32) -> Result<()> {
        let options = format!("mode={mode:o}");
        mount(
            Some("lab"),
            path,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .with_context(|| format!("mask {path}"))?;
        for (kept, file) in &self.kept {
            if kept.starts_with(path) && !kept.exists() {
                bind(&by_descriptor(file), kept)?;
            }
        }
        Ok(())
    }
}

fn bind(source: &Path, target: &Path) -> Result<()> {
    fs::create_dir_all(target).with_context(|| format!("create {}", target.display()))?;
    let nothing = None::<&str>;
    mount(
        Some(source),
        target,
        nothing,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        nothing,
    )
    .with_context(|| format!("bind {} to {}", source.display(), target.display()))
}

fn by_descriptor(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// Says so and stays, until a signal ends it.
fn hold() -> Result<Infallible> {
    writeln!(std::io::stdout(), "ready").context("say ready")?;
    loop {
        std::thread::park();
    }
}
