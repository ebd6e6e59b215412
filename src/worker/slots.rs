//! The handover from the fetcher to the threads that run jobs: claimed jobs one way, free threads the other.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::queue::fleet::signals::ReadyHint;
use crate::worker::running::Attempt;

#[derive(Default)]
struct Inner {
    claimed: VecDeque<Attempt>,
    idle: usize,
    hints: Vec<ReadyHint>,
    /// Something may be claimable.
    woken: bool,
    /// The last claim was full: there is more as soon as a thread is free.
    more: bool,
    closed: bool,
    /// A thread was woken and hasn't come yet. It wakes the next one, if there is still work for it: jobs that take no
    /// time are run by the few that are awake, and don't wake all the others for nothing.
    waking: bool,
    /// The fetcher is at work: what it claims has yet to be handed over.
    fetching: bool,
    /// The fetcher may not look before the queue is reached.
    held_back: bool,
}

impl Inner {
    fn free(&self) -> usize {
        self.idle.saturating_sub(self.claimed.len())
    }
}

/// What the fetcher learns when it wakes.
#[derive(Debug, Default)]
pub struct Wake {
    /// Threads without a job.
    pub free: usize,
    /// Rows that may lie behind a position.
    pub hints: Vec<ReadyHint>,
    /// Nothing more is to be claimed.
    pub closed: bool,
}

/// See the module.
#[derive(Default)]
pub struct Slots {
    inner: Mutex<Inner>,
    for_threads: Condvar,
    for_fetcher: Condvar,
    fetcher_rests: Condvar,
}

impl Slots {
    /// A thread asks for its next job, and waits for it. `None` when there will be none.
    pub fn next(&self) -> Option<Attempt> {
        let mut inner = self.lock();
        inner.idle += 1;
        if inner.more {
            inner.woken = true;
            self.for_fetcher.notify_one();
        }
        loop {
            if let Some(attempt) = inner.claimed.pop_front() {
                inner.idle -= 1;
                self.wake_a_thread(&mut inner);
                return Some(attempt);
            }
            if inner.closed {
                inner.idle -= 1;
                return None;
            }
            inner =
                self.for_threads.wait_timeout(inner, Duration::from_secs(60)).unwrap_or_else(PoisonError::into_inner).0;
            // Even if it was another one that was woken: it is, and finds for itself whether there is work.
            inner.waking = false;
        }
    }

    fn wake_a_thread(&self, inner: &mut Inner) {
        if !inner.claimed.is_empty() && inner.idle > 0 && !inner.waking {
            inner.waking = true;
            self.for_threads.notify_one();
        }
    }

    /// The fetcher waits until a thread is free and something may be claimable, or until `patience` is over.
    pub fn wait(&self, patience: Duration) -> Wake {
        let mut inner = self.lock();
        inner.fetching = false;
        self.fetcher_rests.notify_all();
        let (mut inner, _) = self
            .for_fetcher
            .wait_timeout_while(inner, patience, |inner| !(inner.closed || inner.woken && inner.free() > 0))
            .unwrap_or_else(PoisonError::into_inner);
        inner.woken = false;
        inner.fetching = !inner.closed;
        Wake { free: inner.free(), hints: std::mem::take(&mut inner.hints), closed: inner.closed }
    }

    /// The fetcher may not look unless `ready` says so: then [`Slots::release`] wakes it, which is called after that has
    /// changed. `true` when it may.
    pub fn may_look(&self, ready: impl Fn() -> bool) -> bool {
        let mut inner = self.lock();
        // Asked under the lock: a release in between would be lost.
        inner.held_back = !ready();
        !inner.held_back
    }

    /// After a look that failed, the fetcher waits for `patience`, or until the queue is reached. It looks next.
    pub fn wait_for_release(&self, patience: Duration) {
        let mut inner = self.lock();
        inner.held_back = true;
        let (mut inner, _) = self
            .for_fetcher
            .wait_timeout_while(inner, patience, |inner| !inner.closed && inner.held_back)
            .unwrap_or_else(PoisonError::into_inner);
        inner.held_back = false;
        inner.woken = true;
    }

    /// The queue is reached. A fetcher that was held back looks at once; `back` says that it wasn't reached before, so that
    /// hints may have been missed.
    pub fn release(&self, back: bool) {
        let mut inner = self.lock();
        if inner.held_back || back {
            inner.held_back = false;
            inner.woken = true;
            drop(inner);
            self.for_fetcher.notify_one();
        }
    }

    /// The fetcher hands claimed jobs over. `full`: there may be more. Gives back what nobody will run any more.
    pub fn hand_over(&self, attempts: Vec<Attempt>, full: bool) -> Vec<Attempt> {
        let mut inner = self.lock();
        if inner.closed {
            return attempts;
        }
        inner.claimed.extend(attempts);
        inner.more = full;
        if full && inner.free() > 0 {
            inner.woken = true;
        }
        self.wake_a_thread(&mut inner);
        Vec::new()
    }

    /// After [`Slots::close`]: waits until the fetcher claims nothing any more, for at most `patience`. `true` when it
    /// doesn't.
    pub fn wait_for_fetcher(&self, patience: Duration) -> bool {
        let waited = self.fetcher_rests.wait_timeout_while(self.lock(), patience, |inner| inner.fetching);
        !waited.unwrap_or_else(PoisonError::into_inner).0.fetching
    }

    /// Something may be claimable.
    pub fn wake(&self, hints: &[ReadyHint]) {
        let mut inner = self.lock();
        inner.hints.extend_from_slice(hints);
        inner.woken = true;
        drop(inner);
        self.for_fetcher.notify_one();
    }

    /// Nothing more is to be claimed. Jobs that were handed over are still run.
    pub fn close(&self) {
        self.lock().closed = true;
        self.for_threads.notify_all();
        self.for_fetcher.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc::channel;

    use super::*;

    /// Longer than anybody here would wait for a timer.
    const FOR_EVER: Duration = Duration::from_secs(3_600);
    /// How long anything may take that a test waits for.
    const PATIENCE: Duration = Duration::from_secs(60);

    fn with_a_free_thread() -> Arc<Slots> {
        let slots = Arc::new(Slots::default());
        let free = Arc::clone(&slots);
        std::thread::spawn(move || free.next().is_none());
        while slots.lock().idle == 0 {
            std::thread::yield_now();
        }
        slots
    }

    #[test]
    fn a_look_that_was_held_back_comes_when_the_queue_is_reached() {
        let slots = with_a_free_thread();
        let reached = Arc::new(AtomicBool::new(false));
        let (said, says) = channel();
        let (fetcher, ready) = (Arc::clone(&slots), Arc::clone(&reached));
        let serving = std::thread::spawn(move || {
            while !fetcher.wait(FOR_EVER).closed {
                let looked = fetcher.may_look(|| ready.load(Ordering::SeqCst));
                said.send(looked).unwrap();
            }
        });
        slots.wake(&[]);
        assert!(!says.recv_timeout(PATIENCE).unwrap());
        reached.store(true, Ordering::SeqCst);
        slots.release(false);
        assert!(says.recv_timeout(PATIENCE).unwrap(), "held back without an end");
        // Nothing was missed: nobody is woken. After an outage somebody is.
        slots.release(false);
        assert!(!slots.lock().woken);
        slots.release(true);
        assert!(says.recv_timeout(PATIENCE).unwrap());
        slots.close();
        serving.join().unwrap();
    }

    #[test]
    fn after_a_look_that_failed_the_next_one_comes_when_the_queue_is_reached() {
        let slots = with_a_free_thread();
        let (fetcher, (said, says)) = (Arc::clone(&slots), channel());
        let waiting = std::thread::spawn(move || {
            fetcher.wait_for_release(FOR_EVER);
            said.send(fetcher.wait(FOR_EVER).free).unwrap();
        });
        while !slots.lock().held_back {
            std::thread::yield_now();
        }
        slots.release(false);
        assert_eq!(says.recv_timeout(PATIENCE).unwrap(), 1);
        waiting.join().unwrap();
        slots.close();
        slots.wait_for_release(FOR_EVER);
    }
}
