//! Who gets the datagrams of one client: whoever holds the claim, or the app while the
//! holder does not take them.
//!
//! Datagrams are held for a while, and go to the app when it turns out that they were not
//! taken. An answer shows that they were.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// How many datagrams are held, how many bytes when there is more than one, and for how
/// long.
const MAX_HELD: usize = 16;
const MAX_HELD_BYTES: usize = 32 << 10;
const HELD_FOR: Duration = Duration::from_secs(3);

/// How long the holder may take to answer the question whether it takes them.
const ANSWER_DEADLINE: Duration = Duration::from_secs(3);

/// How soon a holder is tried again that does not take them, or that has not answered,
/// for which datagrams have to wait.
const RETRY: Duration = Duration::from_secs(2);
const RETRY_SILENT: Duration = Duration::from_secs(30);

/// Something to hold.
pub(super) trait Size {
    /// In bytes.
    fn size(&self) -> usize;
}

/// What becomes of the datagrams of one client.
#[derive(Debug)]
pub(super) struct Course<D> {
    state: State,
    /// Nobody gets what the holder does not take.
    fails_closed: bool,
    held: VecDeque<(Instant, D)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nobody holds a claim.
    Unclaimed,
    /// There is no stream to the holder, and is none until then.
    Away {
        until: Instant,
    },
    /// A stream is being opened.
    Asked {
        until: Instant,
    },
    Open,
    /// The stream is open, and what has been sent was refused.
    Refused {
        until: Instant,
    },
}

/// Where a datagram goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step<D> {
    /// A stream to the holder has to be opened, and the datagram waits for it.
    Ask,
    /// It waits.
    Wait,
    /// Into the stream.
    ToHolder,
    ToApp(D),
    Lost,
}

impl<D: Size> Course<D> {
    pub(super) fn new(is_claimed: bool, fails_closed: bool, now: Instant) -> Self {
        Self {
            state: match is_claimed {
                true => State::Away { until: now },
                false => State::Unclaimed,
            },
            fails_closed,
            held: VecDeque::new(),
        }
    }

    pub(super) fn handle_datagram(&mut self, datagram: D, now: Instant) -> Step<D> {
        match self.state {
            State::Unclaimed => Step::ToApp(datagram),
            State::Away { until } | State::Refused { until } if now < until => {
                match self.fails_closed {
                    true => Step::Lost,
                    false => Step::ToApp(datagram),
                }
            }
            State::Away { .. } => {
                let until = now + ANSWER_DEADLINE;
                self.state = State::Asked { until };
                self.hold(datagram, now);
                Step::Ask
            }
            State::Asked { .. } => {
                self.hold(datagram, now);
                Step::Wait
            }
            State::Open | State::Refused { .. } => {
                self.state = State::Open;
                self.hold(datagram, now);
                Step::ToHolder
            }
        }
    }

    /// The stream to the holder is open; gives what has waited for it.
    pub(super) fn handle_opened(&mut self) -> impl Iterator<Item = &D> {
        self.state = State::Open;
        self.held.iter().map(|(_, datagram)| datagram)
    }

    /// The claim is gone, and the holder has what it has got.
    pub(super) fn handle_left(&mut self) {
        self.held.clear();
    }

    /// The holder has sent something.
    pub(super) fn handle_answer(&mut self) {
        self.held.clear();
    }

    /// Something that was sent has been refused; gives what goes to the app.
    pub(super) fn handle_refused(&mut self, now: Instant) -> VecDeque<D> {
        let until = now + RETRY;
        self.state = State::Refused { until };
        self.give_up(now)
    }

    /// There is no stream, or none any more; gives what goes to the app.
    pub(super) fn handle_lost(&mut self, now: Instant) -> VecDeque<D> {
        let until = now + RETRY;
        self.state = State::Away { until };
        self.give_up(now)
    }

    /// Time has passed. When the holder has not answered, gives what goes to the app.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> Option<VecDeque<D>> {
        if let State::Asked { until } = self.state
            && now >= until
        {
            let until = now + RETRY_SILENT;
            self.state = State::Away { until };
            let held = std::mem::take(&mut self.held).into_iter();
            let held = held.map(|(_, datagram)| datagram);
            return Some(held.filter(|_| !self.fails_closed).collect());
        }
        self.forget(now);
        None
    }

    /// When time alone changes something.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Asked { until } => Some(until),
            State::Unclaimed | State::Away { .. } | State::Open | State::Refused { .. } => {
                self.held.front().map(|(at, _)| *at + HELD_FOR)
            }
        }
    }

    fn hold(&mut self, datagram: D, now: Instant) {
        self.held.push_back((now, datagram));
        // The latest is held, however large: it may wait for the stream.
        while self.held.len() > 1 && self.holds_too_much() {
            self.held.pop_front();
        }
    }

    fn holds_too_much(&self) -> bool {
        let bytes: usize = self.held.iter().map(|(_, it)| it.size()).sum();
        self.held.len() > MAX_HELD || bytes > MAX_HELD_BYTES
    }

    /// What was held for so long has been taken, and only not answered.
    fn forget(&mut self, now: Instant) {
        let is_old = |(at, _): &(Instant, D)| now >= *at + HELD_FOR;
        while self.held.front().is_some_and(is_old) {
            self.held.pop_front();
        }
    }

    fn give_up(&mut self, now: Instant) -> VecDeque<D> {
        self.forget(now);
        let held = std::mem::take(&mut self.held).into_iter();
        let held = held.map(|(_, datagram)| datagram);
        held.filter(|_| !self.fails_closed).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: Duration = Duration::from_millis(100);

    impl Size for u32 {
        fn size(&self) -> usize {
            usize::try_from(*self).unwrap()
        }
    }

    fn claimed() -> (Course<u32>, Instant) {
        let now = Instant::now();
        (Course::new(true, false, now), now)
    }

    /// One whose stream is open, after one datagram.
    fn opened() -> (Course<u32>, Instant) {
        let (mut course, now) = claimed();
        assert_eq!(course.handle_datagram(1, now), Step::Ask);
        assert_eq!(course.handle_opened().collect::<Vec<_>>(), [&1]);
        (course, now)
    }

    #[test]
    fn datagrams_wait_for_the_holder_and_follow_it() {
        let (mut course, now) = claimed();
        assert_eq!(course.handle_datagram(1, now), Step::Ask);
        assert_eq!(course.handle_datagram(2, now), Step::Wait);
        assert_eq!(course.handle_opened().collect::<Vec<_>>(), [&1, &2]);
        assert_eq!(course.handle_datagram(3, now), Step::ToHolder);
    }

    #[test]
    fn app_gets_what_the_holder_does_not_take_and_what_follows_for_a_while() {
        let (mut course, now) = claimed();
        assert_eq!(course.handle_datagram(1, now), Step::Ask);
        assert_eq!(course.handle_lost(now), [1]);
        assert_eq!(course.handle_datagram(2, now + MOMENT), Step::ToApp(2));
        assert_eq!(course.handle_datagram(3, now + RETRY), Step::Ask);
    }

    #[test]
    fn holder_that_does_not_answer_is_left_alone_for_longer() {
        let (mut course, now) = claimed();
        for datagram in 0..20 {
            course.handle_datagram(datagram, now);
        }
        assert_eq!(course.deadline(), Some(now + ANSWER_DEADLINE));
        assert_eq!(course.handle_timeout(now + MOMENT), None);
        let late = now + ANSWER_DEADLINE;
        let given = course.handle_timeout(late).unwrap();
        assert_eq!(given, (4..20).collect::<Vec<_>>());
        assert_eq!(course.handle_datagram(20, late + RETRY), Step::ToApp(20));
        assert_eq!(course.handle_datagram(21, late + RETRY_SILENT), Step::Ask);
    }

    #[test]
    fn latest_datagrams_are_held_while_they_are_not_too_large() {
        let (mut course, now) = claimed();
        let (half, whole) = (16 << 10, 32 << 10);
        assert_eq!(course.handle_datagram(1, now), Step::Ask);
        for datagram in [half, half - 1] {
            assert_eq!(course.handle_datagram(datagram, now), Step::Wait);
        }
        let held = course.handle_opened().copied().collect::<Vec<_>>();
        assert_eq!(held, [1, half, half - 1]);
        assert_eq!(course.handle_datagram(half, now), Step::ToHolder);
        assert_eq!(course.handle_refused(now), [half - 1, half]);
        let again = now + RETRY;
        for datagram in [half, whole + 1] {
            assert_eq!(course.handle_datagram(datagram, again), Step::ToHolder);
        }
        assert_eq!(course.handle_refused(again), [whole + 1]);
    }

    #[test]
    fn refused_datagrams_go_to_the_app_and_the_stream_is_tried_again() {
        let (mut course, now) = opened();
        assert_eq!(course.handle_datagram(2, now), Step::ToHolder);
        assert_eq!(course.handle_refused(now + MOMENT), [1, 2]);
        assert_eq!(course.handle_datagram(3, now + MOMENT), Step::ToApp(3));
        let again = now + MOMENT + RETRY;
        assert_eq!(course.handle_datagram(4, again), Step::ToHolder);
        assert_eq!(course.handle_refused(again + MOMENT), [4]);
    }

    #[test]
    fn what_was_answered_or_is_old_does_not_go_to_the_app() {
        let (mut course, now) = opened();
        course.handle_answer();
        assert_eq!(course.deadline(), None);
        assert_eq!(course.handle_datagram(2, now), Step::ToHolder);
        assert_eq!(course.deadline(), Some(now + HELD_FOR));
        let later = now + HELD_FOR;
        assert_eq!(course.handle_datagram(3, later - MOMENT), Step::ToHolder);
        assert_eq!(course.handle_timeout(later), None);
        assert_eq!(course.handle_refused(later), [3]);
    }

    #[test]
    fn app_gets_nothing_again_that_the_holder_had_before_it_left() {
        let (mut course, now) = opened();
        course.handle_left();
        assert!(course.handle_lost(now + MOMENT).is_empty());
    }

    #[test]
    fn nobody_gets_what_a_claim_that_fails_closed_does_not_take() {
        let now = Instant::now();
        let mut course = Course::<u32>::new(true, true, now);
        assert_eq!(course.handle_datagram(1, now), Step::Ask);
        assert!(course.handle_lost(now).is_empty());
        assert_eq!(course.handle_datagram(2, now), Step::Lost);
        let again = now + RETRY;
        assert_eq!(course.handle_datagram(3, again), Step::Ask);
        let late = again + ANSWER_DEADLINE;
        assert_eq!(course.handle_timeout(late), Some(VecDeque::new()));
    }

    #[test]
    fn app_gets_what_nobody_claims() {
        let now = Instant::now();
        let mut course = Course::<u32>::new(false, false, now);
        assert_eq!(course.handle_datagram(1, now), Step::ToApp(1));
        assert_eq!(course.deadline(), None);
    }
}
