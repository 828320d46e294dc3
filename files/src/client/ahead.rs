//! Looking ahead: who reads the files of a directory one after the other is given
//! those that come next before they are asked for, many by one request.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Instant;

use bytes::Bytes;
use kvpn_proto::v1::FileEntry;
use tokio::sync::watch;

use super::content::is_fresh;

/// How many directories are looked ahead in.
const MAX_DIRECTORIES: usize = 8;

/// The most names of a directory that are kept.
const MAX_NAMES: usize = 100_000;

/// How many files in a row begin it.
const STREAK: u32 = 3;

/// How far from each other in the directory's order two files in a row may be: some are
/// left out, and several threads do not keep the order.
const APART: usize = 16;

/// How many files are asked for by one request, and are ahead of the reader, at most.
const BATCH: usize = 256;
const MIN_BATCH: usize = 8;
const MAX_AHEAD: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Ahead {
    runs: HashMap<u64, Run>,
    recent: VecDeque<u64>,
}

/// A directory whose names are known.
#[derive(Debug)]
struct Run {
    names: Vec<Bytes>,
    places: HashMap<Bytes, usize>,
    last: Option<usize>,
    streak: u32,
    /// Whether they are read, and not just looked at.
    is_read: bool,
    /// The first that was not asked for.
    planned: usize,
    slots: BTreeMap<usize, Slot>,
    /// How many there were.
    batches: u64,
    /// How many files one of them is about at most.
    batch: usize,
}

#[derive(Debug)]
enum Slot {
    /// Asked for.
    Coming {
        batch: u64,
        comes: watch::Receiver<()>,
    },
    Here(Seen),
}

/// What a server has said of a file.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) entry: FileEntry,
    /// When it was asked.
    pub(super) at: Instant,
    pub(super) epoch: u64,
}

/// What is known of a file ahead of time.
#[derive(Debug)]
pub(super) enum Known {
    Nothing,
    /// It is once the sender is gone.
    Soon(watch::Receiver<()>),
    Entry(Seen),
}

/// Files to ask for.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) directory: u64,
    number: u64,
    pub(super) first: usize,
    pub(super) names: Vec<Bytes>,
    pub(super) with_content: bool,
    /// Dropped once they are here, or will not be.
    _coming: watch::Sender<()>,
}

impl Ahead {
    /// Takes the names of regular files, in the order in which they were listed.
    pub(super) fn listed(&mut self, directory: u64, names: Vec<Bytes>) {
        self.forget(directory);
        if names.len() > MAX_NAMES || names.len() < STREAK as usize {
            return;
        }
        if self.recent.len() >= MAX_DIRECTORIES
            && let Some(oldest) = self.recent.pop_front()
        {
            self.runs.remove(&oldest);
        }
        let places = names.iter().cloned().zip(0..).collect();
        self.recent.push_back(directory);
        let run = Run {
            names,
            places,
            last: None,
            streak: 0,
            is_read: false,
            planned: 0,
            slots: BTreeMap::new(),
            batches: 0,
            batch: BATCH,
        };
        self.runs.insert(directory, run);
    }

    /// Tells what is known of a file that is wanted, and what is to be asked for now.
    pub(super) fn want(
        &mut self,
        directory: u64,
        name: &Bytes,
        is_read: bool,
    ) -> (Known, Vec<Batch>) {
        let Some(run) = self.runs.get_mut(&directory) else {
            return (Known::Nothing, Vec::new());
        };
        let Some(&place) = run.places.get(name) else {
            return (Known::Nothing, Vec::new());
        };
        run.advance(place, is_read);
        let known = run.known(place, is_read);
        (known, run.plan(directory, place))
    }

    /// Takes what was asked for, which may lack the last of them.
    pub(super) fn arrived(&mut self, batch: &Batch, entries: Vec<Seen>) {
        let Some(run) = self.runs.get_mut(&batch.directory) else {
            return;
        };
        let got = entries.len();
        if (1..batch.names.len()).contains(&got) {
            // An answer holds no more of such files.
            run.batch = got.max(MIN_BATCH);
        }
        for (place, seen) in (batch.first..).zip(entries) {
            // Not what was forgotten meanwhile.
            if run.awaits(place, batch.number) {
                run.slots.insert(place, Slot::Here(seen));
            }
        }
        for place in batch.first + got..batch.first + batch.names.len() {
            if run.awaits(place, batch.number) {
                run.slots.remove(&place);
                run.planned = run.planned.min(place);
            }
        }
    }

    /// Forgets what is known of the files of a directory, since one of them changes.
    pub(super) fn changed(&mut self, directory: u64) {
        if let Some(run) = self.runs.get_mut(&directory) {
            run.slots.clear();
            run.streak = 0;
        }
    }

    pub(super) fn forget(&mut self, directory: u64) {
        self.runs.remove(&directory);
        self.recent.retain(|recent| *recent != directory);
    }
}

impl Run {
    fn awaits(&self, place: usize, number: u64) -> bool {
        matches!(self.slots.get(&place), Some(Slot::Coming { batch, .. }) if *batch == number)
    }

    fn advance(&mut self, place: usize, is_read: bool) {
        match self.last {
            Some(last) if last == place => self.is_read |= is_read,
            Some(last) if place > last && place - last <= APART => {
                self.streak += 1;
                self.is_read |= is_read;
                self.last = Some(place);
                // Those before may still be wanted by another thread.
                while let Some(first) = self.slots.first_entry()
                    && first.key() + APART < place
                {
                    first.remove();
                }
            }
            Some(last) if place < last && last - place <= APART => {}
            _ => {
                self.streak = 0;
                self.is_read = is_read;
                self.last = Some(place);
                self.slots.clear();
            }
        }
    }

    fn known(&mut self, place: usize, is_read: bool) -> Known {
        match self.slots.get(&place) {
            None => Known::Nothing,
            Some(Slot::Coming { comes, .. }) => match comes.has_changed() {
                Ok(_) => Known::Soon(comes.clone()),
                Err(_) => Known::Nothing,
            },
            Some(Slot::Here(seen)) if is_fresh(seen.at) => {
                let known = Known::Entry(seen.clone());
                if is_read {
                    // Nobody reads it twice.
                    self.slots.remove(&place);
                }
                known
            }
            Some(Slot::Here(_)) => {
                // Those after it are no younger.
                self.slots.retain(|_, slot| match slot {
                    Slot::Coming { .. } => true,
                    Slot::Here(seen) => is_fresh(seen.at),
                });
                Known::Nothing
            }
        }
    }

    fn plan(&mut self, directory: u64, place: usize) -> Vec<Batch> {
        if self.streak < STREAK {
            self.planned = place + 1;
            return Vec::new();
        }
        let ahead = (4_usize << self.streak.min(20)).min(MAX_AHEAD);
        let end = self.names.len().min(place + 1 + ahead);
        self.planned = self.planned.max(place + 1);
        let mut batches = Vec::new();
        // Not one by one, as the reader goes on.
        while self.planned < end
            && ((end - self.planned) * 4 >= ahead.min(BATCH * 4) || end == self.names.len())
        {
            let first = self.planned;
            // Those that did not come may be before others that are on their way.
            let free = |place: &usize| !self.slots.contains_key(place);
            let count = (first..end.min(first + self.batch))
                .take_while(free)
                .count();
            if count == 0 {
                self.planned += 1;
                continue;
            }
            let names = self.names[first..first + count].to_vec();
            self.planned += count;
            let (coming, comes) = watch::channel(());
            self.batches += 1;
            let number = self.batches;
            for taken in first..self.planned {
                let comes = comes.clone();
                let batch = number;
                self.slots.insert(taken, Slot::Coming { batch, comes });
            }
            batches.push(Batch {
                directory,
                number,
                first,
                names,
                with_content: self.is_read,
                _coming: coming,
            });
        }
        batches
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> Vec<Bytes> {
        (0..count).map(|n| n.to_string().into()).collect()
    }

    fn entries(batch: &Batch) -> Vec<Seen> {
        let seen = |name: &Bytes| Seen {
            entry: FileEntry {
                name: name.clone(),
                content: Some(name.clone()),
                ..FileEntry::default()
            },
            at: Instant::now(),
            epoch: 1,
        };
        batch.names.iter().map(seen).collect()
    }

    #[test]
    fn files_that_are_read_in_order_are_asked_for_once_and_ahead() {
        let names = names(5000);
        let mut ahead = Ahead::default();
        ahead.listed(7, names.clone());
        let (mut asked, mut requests, mut hits) = (0, 0, 0);
        for name in &names {
            let (known, batches) = ahead.want(7, name, true);
            if let Known::Entry(seen) = known {
                assert_eq!(seen.entry.content.unwrap(), name);
                hits += 1;
            }
            for batch in batches {
                assert!(batch.with_content);
                asked += batch.names.len();
                requests += 1;
                let entries = entries(&batch);
                ahead.arrived(&batch, entries);
            }
        }
        assert!(hits > 4990, "{hits} hits");
        assert!(asked <= 5000, "{asked} asked for");
        assert!(requests < 100, "{requests} requests");
    }

    #[test]
    fn files_of_which_an_answer_holds_few_are_asked_for_once_and_none_is_left_out() {
        const HELD: usize = 128;
        let names = names(5000);
        let mut ahead = Ahead::default();
        ahead.listed(7, names.clone());
        let mut under_way = VecDeque::new();
        let (mut asked, mut hits) = (0, 0);
        for name in &names {
            let (mut known, mut batches) = ahead.want(7, name, true);
            // The answers come when somebody waits for them, the oldest first.
            while let Known::Soon(comes) = &known {
                under_way.extend(batches.drain(..));
                if comes.has_changed().is_err() {
                    panic!("nobody brings {name:?}");
                }
                let batch: Batch = under_way.pop_front().unwrap();
                let held = entries(&batch).into_iter().take(HELD).collect();
                ahead.arrived(&batch, held);
                asked += batch.names.len().min(HELD);
                drop(batch);
                (known, batches) = ahead.want(7, name, true);
            }
            under_way.extend(batches);
            hits += usize::from(matches!(known, Known::Entry(_)));
        }
        assert!(hits > 4950, "{hits} hits");
        assert!(asked <= 5000, "{asked} asked for");
    }

    #[test]
    fn files_that_are_read_at_random_are_not_asked_for_ahead() {
        let names = names(1000);
        let mut ahead = Ahead::default();
        ahead.listed(7, names.clone());
        for step in 0..1000 {
            let (_, batches) = ahead.want(7, &names[step * 37 % 1000], true);
            assert!(batches.is_empty());
        }
    }

    #[test]
    fn what_does_not_come_is_asked_for_again_and_what_changes_is_forgotten() {
        let names = names(100);
        let mut ahead = Ahead::default();
        ahead.listed(7, names.clone());
        let mut batches = Vec::new();
        let mut place = 0;
        while batches.is_empty() {
            batches = ahead.want(7, &names[place], true).1;
            place += 1;
        }
        let batch = batches.remove(0);
        assert!(matches!(
            ahead.want(7, &batch.names[0], true).0,
            Known::Soon(_)
        ));
        ahead.arrived(&batch, entries(&batch)[..2].to_vec());
        assert!(matches!(
            ahead.want(7, &batch.names[0], true).0,
            Known::Entry(..)
        ));
        ahead.changed(7);
        assert!(matches!(
            ahead.want(7, &batch.names[1], true).0,
            Known::Nothing
        ));
    }
}
