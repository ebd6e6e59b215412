//! The attempts that this process runs at the moment. Whoever takes one out says how it ended; nobody else does.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::queue::Lease;
use crate::queue::lifecycle::claim::ClaimedJob;
use crate::queue::model::JobProgress;
use crate::queue::record::log::LogLine;
use crate::work::{JobControl, Resolution, Said, StopReason};

/// One running attempt.
#[derive(Clone)]
pub struct Attempt {
    /// What was claimed.
    pub job: Arc<ClaimedJob>,
    /// What it runs.
    pub resolution: Resolution,
    /// How it is stopped.
    pub control: Arc<JobControl>,
    /// What it says of itself.
    pub said: Arc<Said>,
}

/// A job and a lease: after a process was declared dead, it may run a job again while an old attempt still unwinds.
type Key = (Uuid, i64);

fn key(lease: &Lease) -> Key {
    (lease.job_id, lease.number)
}

/// See the module.
#[derive(Default)]
pub struct Running {
    inner: Mutex<Inner>,
    /// An attempt began, or is to stop: the watch looks again.
    changed: Condvar,
    /// An attempt ended, or its end was written.
    ended: Condvar,
}

#[derive(Default)]
struct Inner {
    attempts: HashMap<Key, Attempt>,
    /// Attempts that are over, and whose end isn't written yet.
    ending: HashSet<Key>,
    /// Attempts that began, and whose end could not be written.
    unwritten: HashSet<Key>,
    /// Grows with every attempt that begins or is to stop, so that one between a look and a wait is not missed.
    changes: u64,
}

impl Running {
    /// Attempts begin.
    pub fn enter(&self, attempts: &[Attempt]) {
        let mut inner = self.lock();
        inner.attempts.extend(attempts.iter().map(|attempt| (key(&attempt.job.lease), attempt.clone())));
        self.has_changed(inner);
    }

    /// Takes an attempt out, to write its end. `None` when somebody else did.
    pub fn leave(&self, lease: &Lease) -> Option<Attempt> {
        let mut inner = self.lock();
        let attempt = inner.attempts.remove(&key(lease))?;
        inner.ending.insert(key(lease));
        if inner.attempts.is_empty() {
            self.ended.notify_all();
        }
        Some(attempt)
    }

    /// The ends of attempts are written, or never will be.
    pub fn ended<'l>(&self, leases: impl IntoIterator<Item = &'l Lease>) {
        let mut inner = self.lock();
        for lease in leases {
            inner.ending.remove(&key(lease));
        }
        drop(inner);
        self.ended.notify_all();
    }

    /// The end of an attempt could not be written: its row will be found without an owner who works on it.
    pub fn unwritten(&self, lease: &Lease) {
        self.lock().unwritten.insert(key(lease));
    }

    /// The attempt began here, and its end could not be written. Forgets it.
    pub fn take_unwritten(&self, lease: &Lease) -> bool {
        self.lock().unwritten.remove(&key(lease))
    }

    /// This process runs the attempt, or is about to write its end.
    pub fn knows(&self, lease: &Lease) -> bool {
        let inner = self.lock();
        inner.attempts.contains_key(&key(lease)) || inner.ending.contains(&key(lease))
    }

    /// Asks for the end of what runs of this job here.
    pub fn stop(&self, job_id: Uuid, reason: StopReason) {
        let inner = self.lock();
        let mut changed = false;
        for attempt in inner.attempts.values().filter(|attempt| attempt.job.lease.job_id == job_id) {
            changed |= attempt.control.stop(reason);
        }
        if changed {
            self.has_changed(inner);
        }
    }

    /// Asks for the end of every attempt. `true` when there was one that hadn't been asked before.
    pub fn stop_all(&self, reason: StopReason) -> bool {
        self.stop_those(reason, |_| true)
    }

    /// Asks for the end of the attempts of some kinds. `true` when there was one that hadn't been asked before.
    pub fn stop_those(&self, reason: StopReason, of_kind: impl Fn(&str) -> bool) -> bool {
        let inner = self.lock();
        let mut changed = false;
        for attempt in inner.attempts.values().filter(|attempt| of_kind(&attempt.job.spec.kind)) {
            changed |= attempt.control.stop(reason);
        }
        self.has_changed(inner);
        changed
    }

    /// Every attempt, and the number of changes up to now.
    pub fn all(&self) -> (Vec<Attempt>, u64) {
        let inner = self.lock();
        (inner.attempts.values().cloned().collect(), inner.changes)
    }

    /// How many run.
    pub fn len(&self) -> usize {
        self.lock().attempts.len()
    }

    /// None runs.
    pub fn is_empty(&self) -> bool {
        self.lock().attempts.is_empty()
    }

    /// The jobs of the attempts.
    pub fn job_ids(&self) -> Vec<Uuid> {
        self.lock().attempts.keys().map(|(id, _)| *id).collect()
    }

    /// How far attempts are of which something was learned since the last call.
    pub fn take_progress(&self) -> Vec<(Lease, JobProgress)> {
        self.lock()
            .attempts
            .values()
            .filter_map(|attempt| {
                let progress = attempt.said.progress().take_untold()?;
                Some((attempt.job.lease, progress))
            })
            .collect()
    }

    /// Lines of the log that aren't known to be stored, with whom to tell when they are.
    pub fn unstored_lines(&self) -> Vec<(Attempt, Vec<LogLine>)> {
        let inner = self.lock();
        let lines = inner.attempts.values().map(|attempt| (attempt.clone(), attempt.said.log().unstored()));
        lines.filter(|(_, lines)| !lines.is_empty()).collect()
    }

    /// Waits until there are more changes than `seen`, or until `until` has come.
    pub fn wait_for_change(&self, seen: u64, until: Instant) {
        let patience = until.saturating_duration_since(Instant::now());
        let waited = self.changed.wait_timeout_while(self.lock(), patience, |inner| inner.changes == seen);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits until none runs, for at most `patience`. `true` when none does.
    pub fn wait_until_empty(&self, patience: Duration) -> bool {
        self.wait_until(patience, |inner| inner.attempts.is_empty())
    }

    /// Waits until at most `most` ends are still to be written, for at most `patience`. `true` when that is so.
    pub fn wait_until_written(&self, most: usize, patience: Duration) -> bool {
        self.wait_until(patience, |inner| inner.ending.len() <= most)
    }

    fn wait_until(&self, patience: Duration, done: impl Fn(&Inner) -> bool) -> bool {
        let (inner, _) = self
            .ended
            .wait_timeout_while(self.lock(), patience, |inner| !done(inner))
            .unwrap_or_else(PoisonError::into_inner);
        done(&inner)
    }

    fn has_changed(&self, mut inner: MutexGuard<'_, Inner>) {
        inner.changes += 1;
        drop(inner);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
