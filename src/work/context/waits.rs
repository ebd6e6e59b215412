//! How long an attempt waits for locks, and who was seen to hold them: so that its error can still name them when the
//! wait is over.
//!
//! A server says of a lock that wasn't to be had in time neither which one it was nor who has it. So whoever looks at
//! sessions looks once, early, after each change of that time, is woken for a short one, and looks several times within
//! a wait that it has seen.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::target::OwnLimits;
use crate::target::activity::Blocker;

/// Looks within one wait, so that one comes late or fails and another one tells.
const LOOKS_IN_A_WAIT: u32 = 3;
/// The early look doesn't come sooner: of a wait of less than a tenth of a second nobody may be seen.
const EARLIEST: Duration = Duration::from_millis(40);
/// Looks at a wait aren't closer together: each is a statement on the target.
const LEAST_PAUSE: Duration = Duration::from_millis(250);
/// A look that came by so little too early was the early one.
const AT_ONCE: Duration = Duration::from_millis(5);
/// A look is by this much older than the wait that it was made in: the answer was under way, and the error too.
const SLACK: Duration = Duration::from_secs(1);

/// The waits of one attempt.
#[derive(Debug, Default)]
pub struct Waits {
    /// What the target's login is limited to.
    own: OwnLimits,
    /// How long a statement waits, and since when that is so. `None` waits without end.
    limit: Option<(Duration, Instant)>,
    /// The last look saw a session wait for a lock.
    waiting: bool,
    /// Who was seen last to be in the way, and when.
    blocked: Option<(Vec<Blocker>, Instant)>,
}

impl Waits {
    /// A session of the login was lent.
    pub fn begin(&mut self, own: OwnLimits) {
        self.own = own;
    }

    /// What the target's login is limited to.
    pub fn own(&self) -> OwnLimits {
        self.own
    }

    /// From now on a statement waits so long. Says whether that is another time than before.
    pub fn limit(&mut self, limit: Option<Duration>) -> bool {
        let changed = self.limit.map(|(before, _)| before) != limit;
        if changed {
            self.limit = limit.map(|limit| (limit, Instant::now()));
        }
        changed
    }

    /// What waited in vain is tried again: an early look, as after a change.
    pub fn again(&mut self) {
        self.limit = self.limit.map(|(limit, _)| (limit, Instant::now()));
    }

    /// How long a statement waits for a lock at the moment.
    pub fn limit_now(&self) -> Option<Duration> {
        self.limit.map(|(limit, _)| limit)
    }

    /// How long after a change of the limit the early look is, where there is a limit.
    pub fn early_look(&self) -> Option<Duration> {
        self.limit.map(|(limit, _)| (limit / LOOKS_IN_A_WAIT).max(EARLIEST))
    }

    /// When a look is due out of turn, after one at `last`: the early one, or one at a wait that was seen and may end.
    pub fn next_look(&self, last: Option<Instant>) -> Option<Instant> {
        let (limit, since) = self.limit?;
        let early = since.checked_add(self.early_look()?)?;
        match last {
            Some(last) if last + AT_ONCE >= early => {
                self.waiting.then(|| last + (limit / LOOKS_IN_A_WAIT).max(LEAST_PAUSE))
            }
            _ => Some(early),
        }
    }

    /// What a look has just seen: whether a session waits for a lock, and who is in its way.
    pub fn seen(&mut self, waiting: bool, blockers: &[Blocker]) {
        self.waiting = waiting;
        if !blockers.is_empty() {
            self.blocked = Some((blockers.to_vec(), Instant::now()));
        }
    }

    /// Who was in the way of the wait that has just ended, as far as somebody was seen.
    pub fn blockers(&self) -> Option<Vec<Blocker>> {
        let (limit, _) = self.limit?;
        let (blockers, at) = self.blocked.as_ref()?;
        (at.elapsed() <= limit.saturating_add(SLACK)).then(|| blockers.clone())
    }
}

/// Wakes those who look at sessions.
#[derive(Default)]
pub struct Looks {
    asked: Mutex<u64>,
    changed: Condvar,
}

impl Looks {
    /// Something has changed that may need a look before the next regular one.
    pub fn hurry(&self) {
        let mut asked = self.lock();
        *asked = asked.wrapping_add(1);
        drop(asked);
        self.changed.notify_all();
    }

    /// How often somebody has asked.
    pub fn asked(&self) -> u64 {
        *self.lock()
    }

    /// Waits until somebody has asked more often than `seen`, or `until` has come.
    pub fn wait(&self, seen: u64, until: Instant) {
        let patience = until.saturating_duration_since(Instant::now());
        drop(self.changed.wait_timeout_while(self.lock(), patience, |asked| *asked == seen));
    }

    fn lock(&self) -> MutexGuard<'_, u64> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_looked_at_several_times_and_its_blockers_are_forgotten_after_it() {
        let mut waits = Waits::default();
        assert_eq!((waits.early_look(), waits.next_look(None)), (None, None));
        let blocker = Blocker { pid: 7, application_name: None };
        waits.seen(true, std::slice::from_ref(&blocker));
        assert_eq!(waits.blockers(), None, "nothing that it waits for can end so");
        assert!(waits.limit(Some(Duration::from_millis(300))) && !waits.limit(Some(Duration::from_millis(300))));
        waits.seen(false, &[]);
        assert_eq!(waits.blockers(), Some(vec![blocker]), "that nobody is in the way by now doesn't undo it");
        waits.blocked.as_mut().unwrap().1 = Instant::now().checked_sub(Duration::from_secs(2)).unwrap();
        assert_eq!(waits.blockers(), None);
    }

    #[test]
    fn a_change_has_one_early_look_and_looks_are_fast_only_at_a_wait() {
        let mut waits = Waits::default();
        for (limit, early, pause) in [(1, 40, 250), (150, 50, 250), (300, 100, 250), (6_000, 2_000, 2_000)] {
            let (early, pause) = (Duration::from_millis(early), Duration::from_millis(pause));
            assert!(waits.limit(Some(Duration::from_millis(limit))));
            waits.seen(false, &[]);
            let since = waits.limit.unwrap().1;
            for last in [None, since.checked_sub(pause), Some(since), Some(since + early / 2)] {
                assert_eq!(waits.next_look(last), Some(since + early), "{limit} {last:?}");
            }
            let last = since + early;
            assert_eq!(
                (waits.next_look(Some(last)), waits.next_look(Some(last + pause))),
                (None, None),
                "by age alone"
            );
            waits.seen(true, &[]);
            assert_eq!(waits.next_look(Some(last)), Some(last + pause), "{limit}");
            waits.seen(false, &[]);
            assert_eq!(waits.next_look(Some(last + pause)), None);
        }
        // Another try has an early look of its own.
        let before = waits.limit.unwrap().1;
        let last = before + waits.early_look().unwrap();
        assert_eq!(waits.next_look(Some(last)), None);
        waits.limit.as_mut().unwrap().1 = before.checked_sub(Duration::from_secs(60)).unwrap();
        waits.again();
        let since = waits.limit.unwrap().1;
        assert!(since >= before && waits.next_look(Some(since)) == Some(since + Duration::from_secs(2)));
        waits.limit(None);
        waits.again();
        assert_eq!(waits.next_look(None), None);
    }
}
