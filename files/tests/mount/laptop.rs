//! A laptop on which a directory is mounted as if it were a pod's.

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::BackgroundSession;
use kvpn_files::client::{self, Link};
use kvpn_files::device::{Mount, open_directory};
use kvpn_files::server::{Exports, serve};
use rustix::process::getuid;
use rustix::thread::{Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, split};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

/// How much a stream holds, in bytes.
const STREAM: usize = 1 << 20;

pub(crate) struct Laptop {
    dir: TempDir,
    mount: Mount,
    link: Link,
    runtime: Runtime,
    /// Of the pod.
    agent: Runtime,
    stream: Vec<JoinHandle<()>>,
    _session: BackgroundSession,
}

impl Laptop {
    /// Mounts what is served from there.
    pub(crate) fn new(served: &Path) -> Self {
        let mut laptop = Self::unconnected(Duration::from_secs(10));
        laptop.connect(served);
        laptop
    }

    /// The same, served by this user, and mounted for that.
    pub(crate) fn of_users(served: &Path, app: u32, developer: u32) -> Self {
        let mut laptop = Self::unconnected_of(Duration::from_secs(10), app, developer);
        laptop.connect(served);
        laptop
    }

    /// Mounts what nobody serves yet.
    pub(crate) fn unconnected(deadline: Duration) -> Self {
        Self::unconnected_of(deadline, 0, 0)
    }

    fn unconnected_of(deadline: Duration, app: u32, developer: u32) -> Self {
        // A session has one thread, too.
        let runtime = runtime(0);
        let dir = tempfile::tempdir().unwrap();
        chown(dir.path(), Some(developer), Some(developer)).unwrap();
        let link = Link::new(deadline);
        let (mount, device) =
            Mount::open(developer, developer, false).expect("these tests need root and /dev/fuse");
        let session = client::mount(device, link.clone(), runtime.handle().clone()).unwrap();
        let at = dir.path().canonicalize().unwrap();
        mount
            .attach(std::os::fd::AsFd::as_fd(&open_directory(&at).unwrap()))
            .unwrap();
        Self {
            agent: self::runtime(app),
            dir,
            mount,
            link,
            runtime,
            stream: Vec::new(),
            _session: session,
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().into()
    }

    pub(crate) fn connect(&mut self, served: &Path) {
        self.connect_by(served, Duration::ZERO);
    }

    /// Connects by a stream whose bytes take some time, each way.
    pub(crate) fn connect_by(&mut self, served: &Path, delay: Duration) {
        self.cut();
        let exports = Arc::new(Exports::whole(served, false).unwrap());
        let (laptop, agent) = tokio::io::duplex(STREAM);
        let link = self.link.clone();
        let agent = match delay.is_zero() {
            true => agent,
            false => {
                let (near, far) = tokio::io::duplex(STREAM);
                let (near_in, near_out) = split(near);
                let (agent_in, agent_out) = split(agent);
                for (from, to) in [(agent_in, near_out), (near_in, agent_out)] {
                    self.stream
                        .push(self.runtime.spawn(carry_late(from, to, delay)));
                }
                far
            }
        };
        self.stream.push(self.agent.spawn(async move {
            let _ = serve(agent, exports).await;
        }));
        self.stream.push(self.runtime.spawn(async move {
            let _ = link.carry(laptop).await;
        }));
    }

    /// Cuts the stream.
    pub(crate) fn cut(&mut self) {
        for task in self.stream.drain(..) {
            task.abort();
            let _ = self.runtime.block_on(task);
        }
    }
}

/// Threads of a user's.
fn runtime(user: u32) -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .on_thread_start(move || become_user(user))
        .enable_all()
        .build()
        .unwrap()
}

/// Makes this thread a user's, for good. Those that it starts are, too.
pub(crate) fn become_user(user: u32) {
    if getuid().as_raw() != user {
        let (user, group) = (Uid::from_raw(user), Gid::from_raw(user));
        set_thread_groups(&[]).unwrap();
        set_thread_res_gid(group, group, group).unwrap();
        set_thread_res_uid(user, user, user).unwrap();
    }
}

async fn carry_late(
    mut from: ReadHalf<DuplexStream>,
    mut to: WriteHalf<DuplexStream>,
    delay: Duration,
) {
    let (queue_tx, mut queue_rx) = tokio::sync::mpsc::unbounded_channel();
    let writing = async {
        while let Some((due, bytes)) = queue_rx.recv().await {
            tokio::time::sleep_until(due).await;
            let bytes: Vec<u8> = bytes;
            if to.write_all(&bytes).await.is_err() {
                break;
            }
        }
    };
    let reading = async {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            let due = tokio::time::Instant::now() + delay;
            let _ = queue_tx.send((due, buffer[..read].to_vec()));
        }
    };
    tokio::join!(reading, writing);
}

impl Drop for Laptop {
    fn drop(&mut self) {
        self.mount.detach().unwrap();
    }
}

/// Waits until something holds.
pub(crate) fn eventually(within: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + within;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
