use std::os::unix::fs::symlink;

use tempfile::TempDir;
use tokio::time::sleep;

use super::*;

const DEADLINE: Duration = Duration::from_secs(10);

/// Longer than a change may take to be told.
const NOTHING: Duration = Duration::from_millis(400);

struct Watched {
    _directory: TempDir,
    top: PathBuf,
    watch: Watch,
}

impl Watched {
    /// Watches one thing of a directory with a few files.
    fn start(path: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let top = fs::canonicalize(directory.path()).unwrap();
        fs::create_dir_all(top.join("shop/src")).unwrap();
        for file in ["shop/src/main.rs", "shop/Cargo.toml", "beside"] {
            fs::write(top.join(file), "old").unwrap();
        }
        let watch = Watch::new(&[top.join(path)]).unwrap();
        Self {
            _directory: directory,
            top,
            watch,
        }
    }

    fn write(&self, path: &str) {
        fs::write(self.top.join(path), "new").unwrap();
    }

    async fn changes(&mut self, path: &str) {
        let changed = timeout(DEADLINE, self.watch.changed()).await;
        assert_eq!(changed.unwrap().unwrap(), self.top.join(path));
    }

    async fn does_not_change(&mut self) {
        let changed = timeout(NOTHING, self.watch.changed()).await;
        assert!(changed.is_err(), "{changed:?}");
    }
}

#[tokio::test]
async fn what_is_written_below_is_told_and_what_is_ignored_is_not() {
    let mut it = Watched::start("shop");
    it.write("shop/src/main.rs");
    it.changes("shop/src/main.rs").await;
    fs::create_dir_all(it.top.join("shop/target/debug")).unwrap();
    fs::create_dir_all(it.top.join("shop/empty")).unwrap();
    for ignored in ["shop/target/debug/a", "shop/.hidden", "shop/a~", "beside"] {
        it.write(ignored);
    }
    let _ = fs::read(it.top.join("shop/src/main.rs")).unwrap();
    it.does_not_change().await;
    fs::remove_file(it.top.join("shop/Cargo.toml")).unwrap();
    it.changes("shop/Cargo.toml").await;
}

#[tokio::test]
async fn new_directories_are_watched_with_what_is_in_them() {
    let mut it = Watched::start("shop");
    fs::create_dir_all(it.top.join("shop/a/b/c")).unwrap();
    it.write("shop/a/b/c/early");
    it.changes("shop/a/b/c/early").await;
    it.write("shop/a/b/c/late");
    it.changes("shop/a/b/c/late").await;

    fs::create_dir_all(it.top.join("else/d")).unwrap();
    fs::rename(it.top.join("else"), it.top.join("shop/else")).unwrap();
    it.changes("shop/else").await;
    it.write("shop/else/d/file");
    it.changes("shop/else/d/file").await;

    // Its watches are those of what is there now.
    fs::rename(it.top.join("shop/else"), it.top.join("away")).unwrap();
    it.changes("shop/else").await;
    it.write("away/d/file");
    it.does_not_change().await;
}

#[tokio::test]
async fn file_that_is_renamed_over_is_told_again_and_again() {
    let mut it = Watched::start("shop/Cargo.toml");
    for _ in 0..2 {
        it.write("shop/new");
        it.does_not_change().await;
        let [new, file] = ["shop/new", "shop/Cargo.toml"].map(|path| it.top.join(path));
        fs::rename(new, file).unwrap();
        it.changes("shop/Cargo.toml").await;
    }
}

#[tokio::test]
async fn directory_that_is_made_anew_is_watched_again() {
    let mut it = Watched::start("shop");
    fs::remove_dir_all(it.top.join("shop")).unwrap();
    let _ = timeout(DEADLINE, it.watch.changed()).await.unwrap();
    fs::create_dir(it.top.join("shop")).unwrap();
    it.does_not_change().await;
    it.write("shop/file");
    it.changes("shop/file").await;
}

#[tokio::test]
async fn file_counts_once_its_writer_is_done_and_a_link_at_once() {
    let mut it = Watched::start("shop");
    let open = fs::File::create(it.top.join("shop/large")).unwrap();
    it.does_not_change().await;
    drop(open);
    it.changes("shop/large").await;
    symlink("large", it.top.join("shop/link")).unwrap();
    it.changes("shop/link").await;
    fs::hard_link(it.top.join("shop/large"), it.top.join("shop/hard")).unwrap();
    it.changes("shop/hard").await;
}

#[tokio::test]
async fn changes_without_a_pause_are_one_and_cancelling_loses_none() {
    let mut it = Watched::start("shop");
    for _ in 0..10 {
        it.write("shop/src/main.rs");
        it.write("shop/Cargo.toml");
        let short = timeout(QUIET / 5, it.watch.changed()).await;
        assert!(short.is_err(), "it is not quiet yet");
    }
    it.changes("shop/src/main.rs").await;
    it.does_not_change().await;
}

#[tokio::test]
async fn what_is_passed_over_is_not_told_but_its_directories_are_watched() {
    let mut it = Watched::start("shop");
    fs::create_dir(it.top.join("shop/new")).unwrap();
    it.write("shop/new/file");
    sleep(QUIET).await;
    it.watch.pass_over();
    it.does_not_change().await;
    it.write("shop/new/file");
    it.changes("shop/new/file").await;
}

#[tokio::test]
async fn limits_of_the_kernel_are_told_with_what_to_do() {
    let shop = Path::new("/home/me/shop");
    let failure = not_watched(shop, Errno::ENOSPC);
    assert!(
        failure
            .message
            .contains("fs.inotify.max_user_watches is used up")
    );
    assert!(
        failure
            .next_step
            .contains("sysctl fs.inotify.max_user_watches=")
    );
    let failure = not_watched(shop, Errno::EACCES);
    assert_eq!(
        failure.message,
        "/home/me/shop cannot be watched: Permission denied"
    );
}
