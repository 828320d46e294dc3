//! Dials that have not been answered yet, and how many a session may have: each
//! keeps a socket for as long as its target is silent.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kvpn_proto::flow::{DialError, DialFailure};

/// Counts the dials of each session, by its UID.
#[derive(Debug)]
pub(super) struct UnderWay {
    most: usize,
    dials: Mutex<HashMap<String, usize>>,
}

/// The place of one dial, which others may have once this is dropped.
#[derive(Debug)]
pub(super) struct Place<'a> {
    under_way: &'a UnderWay,
    session: &'a str,
}

impl UnderWay {
    /// So many at once of each session.
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            dials: Mutex::default(),
        }
    }

    /// A place for a dial.
    ///
    /// # Errors
    /// When the session has all of its places in use.
    pub(super) fn begin<'a>(&'a self, session: &'a str) -> Result<Place<'a>, DialFailure> {
        let mut dials = self.lock();
        let count = dials.get(session).copied().unwrap_or(0);
        if count >= self.most {
            return Err(DialFailure::new(
                DialError::HostUnreachable,
                format!("{count} connections of this session wait for an answer already"),
            ));
        }
        dials.insert(session.to_owned(), count + 1);
        drop(dials);
        Ok(Place {
            under_way: self,
            session,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.dials.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut dials = self.under_way.lock();
        if let Some(count) = dials.get_mut(self.session) {
            *count -= 1;
            if *count == 0 {
                dials.remove(self.session);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_has_its_places_and_no_others() {
        let under_way = UnderWay::new(2);
        let first = under_way.begin("a").unwrap();
        let _second = under_way.begin("a").unwrap();
        let failure = under_way.begin("a").unwrap_err();
        assert_eq!(failure.error, DialError::HostUnreachable);
        assert!(failure.detail.starts_with("2 connections"), "{failure}");
        assert!(under_way.begin("b").is_ok());
        drop(first);
        assert!(under_way.begin("a").is_ok());
    }

    #[test]
    fn nothing_is_kept_of_dials_that_have_ended() {
        let under_way = UnderWay::new(2);
        let places = [(); 2].map(|()| under_way.begin("a").unwrap());
        drop(places);
        assert!(under_way.lock().is_empty());
    }
}
