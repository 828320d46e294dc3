//! Holders call, are told what to do, and fail.

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;

const SOON: Duration = Duration::from_secs(10);

/// A holder's end of its connection.
struct Theirs {
    told: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    served: JoinHandle<anyhow::Result<()>>,
}

impl Theirs {
    /// Calls for container `app`. Who runs this is root.
    async fn call(holds: &Holds) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (reader, mut writer) = theirs.into_split();
        writer.write_all(b"app\n").await.unwrap();
        Self {
            told: BufReader::new(reader),
            writer,
            served: tokio::spawn(Arc::clone(&holds.shared).serve(ours)),
        }
    }

    async fn is_told(&mut self, word: &str) {
        assert_eq!(self.next().await, word);
    }

    async fn next(&mut self) -> String {
        let mut line = String::new();
        let read = timeout(SOON, self.told.read_line(&mut line)).await;
        read.unwrap().unwrap();
        line.trim_end().to_owned()
    }

    async fn answers(&mut self, line: &str) {
        let line = format!("{line}\n");
        self.writer.write_all(line.as_bytes()).await.unwrap();
    }

    /// Hangs up.
    async fn ends(self) -> String {
        drop(self.writer);
        drop(self.told);
        self.served.await.unwrap().unwrap_err().to_string()
    }
}

fn wanting(containers: &[&str]) -> Holds {
    let holds = Holds::default();
    holds.want(containers.iter().map(|it| (*it).to_owned()).collect());
    holds
}

async fn until(holds: &Holds, standing: Option<Standing>) {
    let mut standings = holds.shared.standings.subscribe();
    let is_so = |standings: &Standings| standings.get("app") == standing.as_ref();
    standings.wait_for(is_so).await.unwrap();
}

fn failed(why: &str) -> Option<Standing> {
    Some(Standing::Failed(why.to_owned()))
}

#[test]
fn containers_that_are_not_stopped_are_told_with_the_reason() {
    let holds = wanting(&["app", "worker"]);
    let not_stopped = |expected: &[(&str, &str)]| {
        let told = holds.not_stopped();
        let told: Vec<(&str, &str)> = told.iter().map(|(it, why)| (&**it, &**why)).collect();
        assert_eq!(told, expected);
    };
    not_stopped(&[("app", ""), ("worker", "")]);
    holds
        .shared
        .note("app", Some(Standing::Stopping(String::new())));
    assert!(holds.is_stopped("app"), "it may not answer any more");
    not_stopped(&[("app", ""), ("worker", "")]);
    holds
        .shared
        .note("app", Some(Standing::Stopping("no".into())));
    not_stopped(&[("app", "no"), ("worker", "")]);
    holds.shared.note("app", Some(Standing::Stopped));
    holds.shared.note("worker", failed("no"));
    not_stopped(&[("worker", "no")]);
    assert!(holds.is_stopped("app") && !holds.is_stopped("worker"));
    holds.shared.note("app", None);
    not_stopped(&[("app", ""), ("worker", "no")]);
    assert!(!holds.is_stopped("app"));
    holds.want(BTreeSet::new());
    not_stopped(&[]);
}

#[tokio::test]
async fn holder_is_told_what_is_wanted_and_its_end_is_noticed() {
    let holds = wanting(&["app"]);
    let mut holder = Theirs::call(&holds).await;
    holder.is_told(HOLD).await;
    assert!(holds.is_stopped("app"));
    holder.answers("done").await;
    until(&holds, Some(Standing::Stopped)).await;
    holds.want(BTreeSet::new());
    holder.is_told(RELEASE).await;
    holder.answers("done").await;
    until(&holds, None).await;
    holds.want(BTreeSet::from(["app".to_owned()]));
    holder.is_told(HOLD).await;
    holder.answers("done").await;
    until(&holds, Some(Standing::Stopped)).await;
    assert_eq!(holder.ends().await, "it has hung up");
    until(&holds, None).await;
}

#[test]
fn container_that_cannot_be_stopped_is_left_in_peace_for_longer_and_longer() {
    let mut tries = Tries::default();
    let mut now = Instant::now();
    assert!(tries.is_due(now));
    for seconds in [5, 10, 20, 40, 60, 60] {
        tries.fail("no".into(), now);
        now += Duration::from_secs(seconds);
        assert!(!tries.is_due(now - Duration::from_secs(1)));
        assert!(tries.is_due(now));
    }
}

#[tokio::test]
async fn failure_keeps_other_holders_from_trying_at_once_until_something_else_is_wanted() {
    let holds = wanting(&["app"]);
    let mut holder = Theirs::call(&holds).await;
    holder.is_told(HOLD).await;
    let told = Instant::now();
    holder.answers("it does not answer").await;
    until(&holds, failed("it does not answer")).await;
    holder.ends().await;
    until(&holds, None).await;
    let mut holder = Theirs::call(&holds).await;
    until(&holds, failed("it does not answer")).await;
    holds.want(BTreeSet::new());
    until(&holds, None).await;
    holds.want(BTreeSet::from(["app".to_owned()]));
    holder.is_told(HOLD).await;
    assert!(told.elapsed() < FIRST_REST);
}

#[tokio::test]
async fn reason_of_the_last_failure_is_told_until_the_next_try_has_an_outcome() {
    let holds = wanting(&["app"]);
    let tries = Tries {
        failures: 1,
        last: Some(("no".into(), Instant::now())),
        ..Tries::default()
    };
    let turn = Arc::new(tokio::sync::Mutex::new(tries));
    let turns = BTreeMap::from([("app".to_owned(), turn)]);
    *holds.shared.turns.lock().unwrap() = turns;
    let mut holder = Theirs::call(&holds).await;
    holder.is_told(HOLD).await;
    until(&holds, Some(Standing::Stopping("no".into()))).await;
    holder.answers("done").await;
    until(&holds, Some(Standing::Stopped)).await;
}

#[tokio::test]
async fn holder_that_leaves_as_it_is_told_to_stop_is_forgiven_once_and_by_a_new_link() {
    let holds = wanting(&["app"]);
    for _ in 0..2 {
        let mut holder = Theirs::call(&holds).await;
        holder.is_told(HOLD).await;
        assert_eq!(holder.ends().await, "it has hung up");
    }
    let holder = Theirs::call(&holds).await;
    until(&holds, failed("its holder: it has hung up")).await;
    holder.ends().await;
    drop(holds.listen());
    Theirs::call(&holds).await.is_told(HOLD).await;
}

#[tokio::test]
async fn second_holder_of_a_container_stays_and_takes_the_place_of_the_first() {
    let holds = wanting(&["app"]);
    let mut first = Theirs::call(&holds).await;
    first.is_told(HOLD).await;
    first.answers("done").await;
    until(&holds, Some(Standing::Stopped)).await;
    let mut second = Theirs::call(&holds).await;
    for _ in 0..3 {
        second.is_told(RELEASE).await;
        second.answers("done").await;
    }
    until(&holds, Some(Standing::Stopped)).await;
    first.ends().await;
    let word = loop {
        match second.next().await {
            // It may have waited for longer than that.
            word if word == RELEASE => second.answers("done").await,
            word => break word,
        }
    };
    assert_eq!(word, HOLD);
    second.answers("done").await;
    until(&holds, Some(Standing::Stopped)).await;
    // The end of one that waits changes nothing.
    Theirs::call(&holds).await.ends().await;
    until(&holds, Some(Standing::Stopped)).await;
}

#[tokio::test]
async fn line_without_an_end_is_not_read() {
    let holds = wanting(&["app"]);
    let mut holder = Theirs::call(&holds).await;
    holder.is_told(HOLD).await;
    holder.answers(&"a".repeat(8 << 10)).await;
    let why = holder.served.await.unwrap().unwrap_err().to_string();
    assert_eq!(why, "its line has no end");
}

#[tokio::test]
async fn holders_are_let_go_when_nobody_listens_any_more() {
    let holds = wanting(&["app"]);
    let listening = holds.listen();
    let connect = || {
        let stream = std::os::unix::net::UnixStream::connect_addr(&address().unwrap()).ok()?;
        stream.set_nonblocking(true).unwrap();
        UnixStream::from_std(stream).ok()
    };
    let told = async {
        let mut holder = loop {
            match connect() {
                Some(stream) => break BufReader::new(stream),
                None => sleep(Duration::from_millis(1)).await,
            }
        };
        holder.write_all(b"app\n").await.unwrap();
        let mut line = String::new();
        holder.read_line(&mut line).await.unwrap();
        assert_eq!(line.trim_end(), HOLD);
        drop(listening);
        line.clear();
        assert_eq!(holder.read_line(&mut line).await.unwrap(), 0);
    };
    timeout(SOON, told).await.unwrap();
    until(&holds, None).await;
    assert!(connect().is_none());
}
