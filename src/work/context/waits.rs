//! How long an attempt waits for locks, and who was seen to hold them: so that its error can still name them when the
//! wait is over.
//!
//! A server says of a lock that wasn't to be had in time neither which one it was nor who has it. So whoever looks at
//! sessions looks several times within each wait that may end so, and is woken for a short one.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::target::OwnLimits;
use crate::target::activity::Blocker;

/// Looks within one wait, so that one comes late or fails and another one tells.
const LOOKS_IN_A_WAIT: u32 = 3;
/// Looks aren't closer together: of a wait of less than a tenth of a second nobody may be seen.
const LEAST_PAUSE: Duration = Duration::from_millis(40);
/// A look is by this much older than the wait that it was made in: the answer was under way, and the error too.
const SLACK: Duration = Duration::from_secs(1);

/// The waits of one attempt.
#[derive(Debug, Default)]
pub struct Waits {
    /// What the target's login is limited to.
    own: OwnLimits,
    /// How long a statement waits, and since when that is so. `None` waits without end.
    limit: Option<(Duration, Instant)>,
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

    /// The longest pause between two looks that sees each wait which may end, and from when on it counts.
    pub fn look_every(&self) -> Option<(Duration, Instant)> {
        self.limit.map(|(limit, since)| ((limit / LOOKS_IN_A_WAIT).max(LEAST_PAUSE), since))
    }

    /// These were in the way just now.
    pub fn blocked_by(&mut self, blockers: &[Blocker]) {
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
        assert_eq!(waits.look_every(), None);
        let blocker = Blocker { pid: 7, application_name: None };
        waits.blocked_by(std::slice::from_ref(&blocker));
        assert_eq!(waits.blockers(), None, "nothing that it waits for can end so");
        assert!(waits.limit(Some(Duration::from_millis(300))) && !waits.limit(Some(Duration::from_millis(300))));
        assert_eq!(waits.look_every().unwrap().0, Duration::from_millis(100));
        waits.blocked_by(&[]);
        assert_eq!(waits.blockers(), Some(vec![blocker]), "that nobody is in the way by now doesn't undo it");
        waits.blocked.as_mut().unwrap().1 = Instant::now().checked_sub(Duration::from_secs(2)).unwrap();
        assert_eq!(waits.blockers(), None);
        waits.limit(Some(Duration::from_millis(1)));
        assert_eq!(waits.look_every().unwrap().0, LEAST_PAUSE);
    }
}
