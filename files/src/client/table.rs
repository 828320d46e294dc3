//! What the kernel knows by a number.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

#[derive(Debug)]
pub(super) struct Table<T>(Mutex<Entries<T>>);

#[derive(Debug)]
struct Entries<T> {
    entries: HashMap<u64, Arc<T>>,
    last: u64,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        let entries = HashMap::new();
        Self(Mutex::new(Entries { entries, last: 0 }))
    }
}

impl<T> Table<T> {
    pub(super) fn add(&self, entry: Arc<T>) -> u64 {
        let mut table = lock(&self.0);
        table.last += 1;
        let number = table.last;
        table.entries.insert(number, entry);
        number
    }

    pub(super) fn get(&self, number: u64) -> Result<Arc<T>, Errno> {
        lock(&self.0)
            .entries
            .get(&number)
            .cloned()
            .ok_or(Errno::BADF)
    }

    pub(super) fn remove(&self, number: u64) -> Option<Arc<T>> {
        lock(&self.0).entries.remove(&number)
    }
}

/// A lock, whoever has panicked with it.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
