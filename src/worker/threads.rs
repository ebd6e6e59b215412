//! The worker's own threads: named, told to stop by one event, restarted and reported when they die.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::db::doorway::join_within;

/// The event that ends every thread.
#[derive(Default)]
pub struct Stop {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    /// Ends every thread that waits here.
    pub fn set(&self) {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// The threads are to end.
    pub fn is_set(&self) -> bool {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for at most `patience`. `true` when the threads are to end.
    pub fn wait(&self, patience: Duration) -> bool {
        let guard = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        let (stopped, _) = self
            .changed
            .wait_timeout_while(guard, patience, |stopped| !*stopped)
            .unwrap_or_else(PoisonError::into_inner);
        *stopped
    }
}

/// The threads that serve the workers of a process.
pub struct Threads {
    stop: Arc<Stop>,
    handles: Vec<JoinHandle<()>>,
}

impl Threads {
    /// No threads yet; they will end by `stop`.
    pub fn new(stop: Arc<Stop>) -> Threads {
        Threads { stop, handles: Vec::new() }
    }

    /// Starts a thread that runs `work` until it returns. One that panics is reported and run again a second later.
    ///
    /// # Errors
    /// When the thread can't be started.
    pub fn spawn(&mut self, name: &'static str, mut work: impl FnMut() + Send + 'static) -> std::io::Result<()> {
        let stop = Arc::clone(&self.stop);
        let handle = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            while catch_unwind(AssertUnwindSafe(&mut work)).is_err() {
                log::error!(thread = name; "a thread of the worker panicked, and is started again");
                if stop.wait(Duration::from_secs(1)) {
                    return;
                }
            }
        })?;
        self.handles.push(handle);
        Ok(())
    }

    /// Ends every thread, and waits for each no longer than `patience` in all.
    pub fn stop_and_join(self, patience: Duration) {
        self.stop.set();
        join_within(patience, self.handles.into_iter());
    }
}

/// A delay between a half and one and a half of `delay`, so that processes don't act in step.
pub fn jittered(delay: Duration) -> Duration {
    delay.mul_f64(rand::random_range(0.5..1.5))
}

/// The pauses of a loop that tries for ever: each [`jittered`], and twice as long as the one before, up to a bound.
pub struct Growing {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Growing {
    /// Pauses of about `first` to about `longest`.
    pub fn new(first: Duration, longest: Duration) -> Growing {
        Growing { first, longest, next: first }
    }

    /// The next one.
    pub fn next_pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = pause.saturating_mul(2).min(self.longest);
        jittered(pause)
    }

    /// It worked: the next pause is a first one.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_thread_that_panics_is_started_again_and_ends_when_told() {
        let stop = Arc::new(Stop::default());
        let mut threads = Threads::new(Arc::clone(&stop));
        let (began, begins) = channel();
        let waits = Arc::clone(&stop);
        let mut first = true;
        let work = move || {
            began.send(std::thread::current().name().map(str::to_owned)).unwrap();
            assert!(!std::mem::replace(&mut first, false), "the first run panics");
            while !waits.wait(Duration::from_secs(60)) {}
        };
        threads.spawn("slowlane-test", work).unwrap();
        let patience = Duration::from_secs(30);
        for _ in 0..2 {
            assert_eq!(begins.recv_timeout(patience).unwrap().as_deref(), Some("slowlane-test"));
        }
        threads.stop_and_join(patience);
        assert!(begins.recv().is_err(), "it didn't end");
    }

    #[test]
    fn pauses_grow_to_a_bound_and_begin_anew() {
        let mut pauses = Growing::new(Duration::from_millis(100), Duration::from_secs(1));
        for bound in [150, 300, 600, 1_200, 1_500, 1_500] {
            let pause = pauses.next_pause();
            assert!(pause <= Duration::from_millis(bound) && pause >= Duration::from_millis(bound / 3), "{pause:?}");
        }
        pauses.reset();
        assert!(pauses.next_pause() <= Duration::from_millis(150));
    }
}
