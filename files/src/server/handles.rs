//! Files that a stream has opened.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

/// The most files that one stream has open.
const MAX_HANDLES: usize = 4096;

#[derive(Debug)]
pub(super) struct Handle {
    pub(super) file: OwnedFd,
    pub(super) read_only: bool,
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[derive(Debug, Default)]
pub(super) struct Handles(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    handles: HashMap<u64, Arc<Handle>>,
    last: u64,
}

impl Handles {
    pub(super) fn add(&self, handle: Handle) -> Result<u64, Errno> {
        let mut open = self.lock();
        if open.handles.len() >= MAX_HANDLES {
            return Err(Errno::NFILE);
        }
        open.last += 1;
        let number = open.last;
        open.handles.insert(number, Arc::new(handle));
        Ok(number)
    }

    pub(super) fn get(&self, number: u64) -> Result<Arc<Handle>, Errno> {
        self.lock().handles.get(&number).cloned().ok_or(Errno::BADF)
    }

    pub(super) fn remove(&self, number: u64) {
        let removed = self.lock().handles.remove(&number);
        // Closing may block: not under the lock.
        drop(removed);
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn handle() -> Handle {
        Handle {
            file: File::open("/dev/null").unwrap().into(),
            read_only: false,
        }
    }

    #[test]
    fn closed_handle_is_not_found_and_makes_room() {
        let handles = Handles::default();
        let first = handles.add(handle()).unwrap();
        handles.get(first).unwrap();
        // Not opened, since this process may have few.
        let mut open = handles.lock();
        let copy = open.handles[&first].clone();
        for number in 2..=MAX_HANDLES as u64 {
            open.handles.insert(number, copy.clone());
        }
        drop(open);
        assert_eq!(handles.add(handle()).unwrap_err(), Errno::NFILE);
        handles.remove(first);
        assert_eq!(handles.get(first).unwrap_err(), Errno::BADF);
        handles.add(handle()).unwrap();
    }
}
