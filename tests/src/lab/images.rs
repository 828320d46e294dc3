//! Images, built from Containerfiles with buildah and kept as archives.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::layout::Layout;
use super::state::State;
use super::{node, services, toolbox};
use crate::Cmd;
use crate::progress::step;

/// Files, and their names in a build context.
pub(crate) type Files = Vec<(PathBuf, String)>;

/// An image that the lab builds.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    name: &'static str,
    /// Where the Containerfile is, in the repository.
    directory: &'static str,
    repository: &'static str,
    /// Empty: made of the content, so that a change rolls pods out.
    tag: &'static str,
    /// What the build context holds.
    context: fn(&Layout) -> Result<Files>,
}

pub const PAUSE: Image = Image {
    name: "pause",
    directory: "tests/images/pause",
    repository: "docker.io/library/pause",
    tag: "lab",
    context: pause,
};

pub const COREDNS: Image = Image {
    name: "coredns",
    directory: "tests/images/coredns",
    repository: "docker.io/library/coredns",
    tag: "lab",
    context: |layout| Ok(vec![(layout.tool("coredns"), "coredns".into())]),
};

pub const SAMPLE: Image = Image {
    name: "sample",
    directory: "tests/images/sample",
    repository: "localhost/kvpn-sample",
    tag: "lab",
    context: |layout| Ok(vec![(layout.binary("kvpn-sample"), "kvpn-sample".into())]),
};

pub const BENCH: Image = Image {
    name: "bench",
    directory: "tests/images/bench",
    repository: "localhost/kvpn-bench",
    tag: "lab",
    context: |layout| Ok(vec![(layout.binary("kvpn-bench"), "kvpn-bench".into())]),
};

pub const TOOLBOX: Image = Image {
    name: "toolbox",
    directory: "tests/images/toolbox",
    repository: "localhost/kvpn-toolbox",
    tag: "lab",
    context: toolbox::files,
};

pub const SERVICES: Image = Image {
    name: "services",
    directory: "tests/images/services",
    repository: "localhost/kvpn-services",
    tag: "lab",
    context: |layout| {
        Ok(vec![
            (services::ROOTFS.archive(layout)?, "rootfs.tar".into()),
            (services::grpc_echo(layout), "grpc-echo".into()),
            (services::websocket_echo(layout), "websocket-echo".into()),
            (services::http_echo(layout), "http-echo".into()),
        ])
    },
};

pub const TRAFFIC_MANAGER: Image = Image {
    name: "traffic-manager",
    directory: "traffic-manager",
    repository: "localhost/kvpn/traffic-manager",
    tag: "",
    context: |layout| {
        Ok(vec![(
            layout.binary("traffic-manager"),
            "traffic-manager".into(),
        )])
    },
};

pub const SIDECAR_AGENT: Image = Image {
    name: "sidecar-agent",
    directory: "sidecar-agent",
    repository: "localhost/kvpn/sidecar-agent",
    tag: "",
    context: |layout| {
        Ok(vec![(
            layout.binary("sidecar-agent"),
            "sidecar-agent".into(),
        )])
    },
};

/// An image that has been built.
#[derive(Clone, Debug)]
pub struct Built {
    pub repository: &'static str,
    pub tag: String,
    pub archive: PathBuf,
    fingerprint: String,
}

impl Image {
    /// The reference of an image with a fixed tag.
    pub(crate) fn reference(&self) -> String {
        format!("{}:{}", self.repository, self.tag)
    }

    /// Builds it unless it was built from these very files.
    pub fn build(&self, layout: &Layout) -> Result<Built> {
        let containerfile = layout
            .repository()
            .join(self.directory)
            .join("Containerfile");
        let files = (self.context)(layout)?;
        let fingerprint = fingerprint(&containerfile, &files)
            .with_context(|| format!("read what image {} is made of", self.name))?;
        let tag = match self.tag {
            "" => format!("lab-{fingerprint}"),
            fixed => fixed.to_owned(),
        };
        let archive = layout.cache().join(format!("images/{}.tar", self.name));
        let stamp = archive.with_extension("stamp");
        let built = Built {
            repository: self.repository,
            tag,
            archive,
            fingerprint,
        };
        let is_built = fs::read_to_string(&stamp).is_ok_and(|stamp| stamp == built.fingerprint);
        if !is_built || !built.archive.exists() {
            let reference = format!("{}:{}", built.repository, built.tag);
            buildah(layout, &containerfile, &files, &reference, &built.archive)
                .with_context(|| format!("build image {}", self.name))?;
            fs::write(&stamp, &built.fingerprint)?;
            step(format_args!("Built image {reference}"));
        }
        Ok(built)
    }
}

impl Built {
    /// Brings it into the node's containerd unless it is there. Says whether it
    /// was not.
    pub(crate) fn import(&self, layout: &Layout, state: &mut State) -> Result<bool> {
        if state.images.get(self.repository) == Some(&self.fingerprint) {
            return Ok(false);
        }
        node::import_image(layout, state, &self.archive)?;
        state
            .images
            .insert(self.repository.to_owned(), self.fingerprint.clone());
        state.save(layout)?;
        Ok(true)
    }
}

fn buildah(
    layout: &Layout,
    containerfile: &Path,
    files: &[(PathBuf, String)],
    reference: &str,
    archive: &Path,
) -> Result<()> {
    let work = layout.cache().join("buildah");
    let context = work.join("context");
    clear(&work)?;
    for (source, name) in files {
        let copy = context.join(name);
        fs::create_dir_all(copy.parent().unwrap_or(&context))?;
        fs::copy(source, &copy).with_context(|| format!("copy {}", source.display()))?;
    }
    // A storage of its own keeps the user's images out of it.
    let buildah = |args: &[&str]| {
        Cmd::new("buildah")
            .arg("--root")
            .arg(work.join("root"))
            .arg("--runroot")
            .arg(work.join("runroot"))
            .args(["--storage-driver", "vfs"])
            .args(args)
            .deadline(Duration::from_secs(300))
    };
    buildah(&[
        "build",
        "--isolation",
        "chroot",
        "--format",
        "oci",
        "-t",
        reference,
        "-f",
    ])
    .args([containerfile, &context])
    .ok()?;
    fs::create_dir_all(archive.parent().unwrap_or(&work))?;
    // buildah refuses to add to an archive.
    if archive.exists() {
        fs::remove_file(archive)?;
    }
    let destination = format!("oci-archive:{}:{reference}", archive.display());
    buildah(&["push", "--quiet", reference, &destination]).ok()?;
    clear(&work)
}

fn clear(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| format!("clear {}", directory.display()))?;
    }
    Ok(())
}

/// Tells files apart by size and time of change, as make does: reading 100 MB
/// each time would be slow.
fn fingerprint(containerfile: &Path, files: &[(PathBuf, String)]) -> Result<String> {
    let mut hasher = DefaultHasher::new();
    fs::read(containerfile)
        .with_context(|| format!("read {}", containerfile.display()))?
        .hash(&mut hasher);
    for (source, name) in files {
        let metadata =
            fs::metadata(source).with_context(|| format!("look at {}", source.display()))?;
        (
            name,
            metadata.size(),
            metadata.mtime(),
            metadata.mtime_nsec(),
        )
            .hash(&mut hasher);
    }
    Ok(format!("{:016x}", hasher.finish()))
}

/// Compiles the program of the pause image.
fn pause(layout: &Layout) -> Result<Files> {
    let source = layout.tests().join("images/pause/pause.c");
    let output = layout.cache().join("pause");
    compile("gcc", &source, &output)?;
    Ok(vec![(output, "pause".to_owned())])
}

/// Compiles a C program unless it is newer than its source.
pub(crate) fn compile(compiler: &str, source: &Path, output: &Path) -> Result<()> {
    let modified = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified());
    if output.exists() && modified(output)? >= modified(source)? {
        return Ok(());
    }
    if let Some(directory) = output.parent() {
        fs::create_dir_all(directory)?;
    }
    let compile = Cmd::new(compiler).args(["-Os", "-static", "-s", "-o"]);
    compile.args([output, source]).ok().map(drop)
}
