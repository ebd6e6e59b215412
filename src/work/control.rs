//! How a running attempt is stopped from outside: the reason, and the hand on what it is waiting for.
//!
//! Knows no clock and no thread. Whoever wants the attempt to end states a reason; a thread of the worker then
//! presses what the attempt has armed until the attempt lets go.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::target::TargetBackend;

/// How long after an attempt was asked to end it may still clean up: less than it takes the worker to give up a thread
/// that doesn't come back.
pub const CLEAN_UP_WITHIN: Duration = Duration::from_secs(8);

/// Why an attempt is to end. The first reason stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// Its caller asked for it.
    Cancel,
    /// Its caller asked that it be paused: it runs again, from its checkpoint.
    Pause,
    /// Its time is over.
    Deadline,
    /// The process is going down.
    Shutdown,
    /// The process lost the queue, and with it perhaps the lease.
    QueueLost,
    /// The lease belongs to somebody else.
    LeaseLost,
}

/// What stops the statement that an attempt is waiting for.
pub trait Interrupt: Send {
    /// Asks the server to stop the statement. Harmless when none is running; may be repeated.
    fn cancel(&mut self);
    /// Ends the session.
    fn terminate(&mut self);
}

#[derive(Default)]
struct Inner {
    reason: Option<StopReason>,
    /// When the reason was stated.
    stopping_since: Option<Instant>,
    armed: Vec<(u64, Box<dyn Interrupt>)>,
    /// The server processes of sessions that were armed and not given back whole: they may still be at work.
    sessions: Vec<(u64, TargetBackend)>,
    next_handle: u64,
    /// A cancel or more was sent while something was armed: it may still arrive.
    pressed: bool,
    /// A press is under way, outside the lock: it may wait for a network.
    pressing: bool,
    /// What was disarmed during that press.
    gone: Vec<u64>,
    ended: bool,
    /// When the server said last that it cancelled a statement.
    cancelled: Option<Instant>,
}

/// One attempt, seen from outside.
pub struct JobControl {
    inner: Mutex<Inner>,
    changed: Condvar,
    deadline: Instant,
}

impl JobControl {
    /// An attempt that may run until `deadline`.
    pub fn new(deadline: Instant) -> JobControl {
        JobControl { inner: Mutex::default(), changed: Condvar::new(), deadline }
    }

    /// When the attempt times out.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// What is left until the deadline; zero when it has passed.
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Why the attempt is to end, if it is.
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.lock().reason
    }

    /// Until when the attempt may clean up: as if it were asked to end now, should nobody have asked yet.
    pub fn clean_up_until(&self) -> Instant {
        self.lock().stopping_since.unwrap_or_else(Instant::now) + CLEAN_UP_WITHIN
    }

    /// Asks for the end of the attempt. `false` when it was asked for already, or is over.
    pub fn stop(&self, reason: StopReason) -> bool {
        let mut inner = self.lock();
        if inner.reason.is_some() || inner.ended {
            return false;
        }
        inner.reason = Some(reason);
        inner.stopping_since = Some(Instant::now());
        drop(inner);
        self.changed.notify_all();
        true
    }

    /// Puts a hand on a session with this server process, for as long as the returned number isn't given to
    /// [`JobControl::disarm`].
    ///
    /// # Errors
    /// The reason, when the attempt is to end already: then nothing may begin.
    pub fn arm(&self, backend: TargetBackend, interrupt: Box<dyn Interrupt>) -> Result<u64, StopReason> {
        let mut inner = self.lock();
        if let Some(reason) = inner.reason {
            return Err(reason);
        }
        let handle = inner.next_handle;
        inner.next_handle += 1;
        inner.armed.push((handle, interrupt));
        inner.sessions.push((handle, backend));
        Ok(handle)
    }

    /// The session of a disarmed hand went back to its pool, fit for others.
    pub fn given_back(&self, handle: u64) {
        self.lock().sessions.retain(|(of, _)| *of != handle);
    }

    /// The server processes of sessions that weren't given back: what may still be at work for this attempt, under
    /// whatever name.
    pub fn sessions(&self) -> Vec<TargetBackend> {
        self.lock().sessions.iter().map(|(_, backend)| backend.clone()).collect()
    }

    /// Takes the hand off, and waits for nobody: a press that is under way may take as long as a network does. `true`
    /// when the session was pressed: a cancel may still reach it, and it must be closed.
    pub fn disarm(&self, handle: u64) -> bool {
        let mut inner = self.lock();
        inner.armed.retain(|(armed, _)| *armed != handle);
        if inner.pressing {
            inner.gone.push(handle);
        }
        inner.pressed
    }

    /// The server said at this time that it cancelled a statement of the attempt.
    pub fn cancelled_by_server(&self, at: Option<Instant>) {
        let mut inner = self.lock();
        inner.cancelled = inner.cancelled.max(at);
    }

    /// The server has cancelled a statement because the attempt's time was over, or `slack` before.
    pub fn was_cancelled_at_deadline(&self, slack: Duration) -> bool {
        self.lock().cancelled.is_some_and(|at| at + slack >= self.deadline)
    }

    /// The attempt is over.
    pub fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    /// The attempt is over.
    pub fn is_over(&self) -> bool {
        self.lock().ended
    }

    /// Presses everything that is armed. `hard` ends sessions instead of cancelling statements.
    pub fn press(&self, hard: bool) {
        let mut inner = self.lock();
        if inner.armed.is_empty() || inner.pressing {
            return;
        }
        inner.pressed = true;
        inner.pressing = true;
        let mut pressed = std::mem::take(&mut inner.armed);
        drop(inner);
        for (_, interrupt) in &mut pressed {
            // A panic here must not keep others from pressing.
            let outcome =
                catch_unwind(AssertUnwindSafe(|| if hard { interrupt.terminate() } else { interrupt.cancel() }));
            if outcome.is_err() {
                log::error!("stopping a session panicked");
            }
        }
        let mut inner = self.lock();
        let gone = std::mem::take(&mut inner.gone);
        pressed.retain(|(handle, _)| !gone.contains(handle));
        inner.armed.append(&mut pressed);
        inner.pressing = false;
        drop(inner);
        self.changed.notify_all();
    }

    /// Waits for at most `pause`, no longer than the attempt may run. `false` when it is to end.
    pub fn may_wait(&self, pause: Duration) -> bool {
        let until = Instant::now().checked_add(pause).map_or(self.deadline, |until| until.min(self.deadline));
        self.wait(until, |inner| inner.ended || inner.reason.is_some());
        self.stop_reason().is_none() && !self.remaining().is_zero()
    }

    /// Waits until the attempt is over, or `until` has come. Says whether it is over.
    pub fn wait_for_end(&self, until: Instant) -> bool {
        self.wait(until, |inner| inner.ended)
    }

    fn wait(&self, until: Instant, done: impl Fn(&Inner) -> bool) -> bool {
        let patience = until.saturating_duration_since(Instant::now());
        let (inner, _) = self
            .changed
            .wait_timeout_while(self.lock(), patience, |inner| !done(inner))
            .unwrap_or_else(PoisonError::into_inner);
        inner.ended
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, Sender, channel};

    use chrono::{DateTime, Utc};

    use super::*;

    /// Says that it is pressed, and goes on when it is told to.
    struct Slow(Sender<()>, Receiver<()>);

    impl Interrupt for Slow {
        fn cancel(&mut self) {
            self.0.send(()).unwrap();
            self.1.recv().unwrap();
        }

        fn terminate(&mut self) {
            self.cancel();
        }
    }

    #[test]
    fn who_lets_go_during_a_press_does_not_wait_for_it_and_is_pressed_no_more() {
        let control = Arc::new(JobControl::new(Instant::now() + Duration::from_secs(60)));
        let (pressed, presses) = channel();
        let (go, gone) = channel();
        let backend = TargetBackend { pid: 1, backend_start: DateTime::<Utc>::UNIX_EPOCH };
        let handle = control.arm(backend.clone(), Box::new(Slow(pressed, gone))).unwrap();
        control.stop(StopReason::Cancel);
        let presser = Arc::clone(&control);
        let press = std::thread::spawn(move || presser.press(false));
        presses.recv().unwrap();
        assert!(control.disarm(handle), "a cancel may still arrive");
        go.send(()).unwrap();
        press.join().unwrap();
        control.press(true);
        assert!(presses.try_recv().is_err(), "it was pressed again");
        // It was closed, and whether the server has noticed isn't known.
        assert_eq!(control.sessions(), [backend]);
    }
}
