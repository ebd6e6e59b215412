//! The attempts that this process runs at the moment. Whoever takes one out says how it ended; nobody else does.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::kinds::context::ProgressCell;
use crate::kinds::{JobControl, StopReason};
use crate::queue::Lease;
use crate::queue::claim::ClaimedJob;
use crate::queue::progress::Report;

/// One running attempt.
#[derive(Clone)]
pub struct Attempt {
    /// What was claimed.
    pub job: Arc<ClaimedJob>,
    /// How it is stopped.
    pub control: Arc<JobControl>,
    /// What it last said of itself.
    pub progress: ProgressCell,
}

/// See the module.
#[derive(Default)]
pub struct Running {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Default)]
struct Inner {
    attempts: HashMap<Uuid, Attempt>,
    /// Grows with every change, so that one between a look and a wait is not missed.
    changes: u64,
}

impl Running {
    /// An attempt begins.
    pub fn enter(&self, attempt: Attempt) {
        let mut inner = self.lock();
        inner.attempts.insert(attempt.job.lease.job_id, attempt);
        self.has_changed(inner);
    }

    /// Takes an attempt out. `None` when somebody else did.
    pub fn leave(&self, lease: &Lease) -> Option<Attempt> {
        let mut inner = self.lock();
        if inner.attempts.get(&lease.job_id).is_none_or(|attempt| attempt.job.lease != *lease) {
            return None;
        }
        let attempt = inner.attempts.remove(&lease.job_id);
        self.has_changed(inner);
        attempt
    }

    /// Asks for the end of an attempt of this job, if there is one here.
    pub fn stop(&self, job_id: Uuid, reason: StopReason) {
        let inner = self.lock();
        if inner.attempts.get(&job_id).is_some_and(|attempt| attempt.control.stop(reason)) {
            self.has_changed(inner);
        }
    }

    /// Asks for the end of every attempt.
    pub fn stop_all(&self, reason: StopReason) {
        let inner = self.lock();
        for attempt in inner.attempts.values() {
            attempt.control.stop(reason);
        }
        self.has_changed(inner);
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

    /// What attempts said of themselves since the last call.
    pub fn take_reports(&self) -> Vec<(Lease, Report)> {
        self.lock()
            .attempts
            .values()
            .filter_map(|attempt| {
                let report = attempt.progress.lock().unwrap_or_else(PoisonError::into_inner).take_untold()?;
                Some((attempt.job.lease, report))
            })
            .collect()
    }

    /// Waits until there are more changes than `seen`, or until `until` has come.
    pub fn wait_for_change(&self, seen: u64, until: Instant) {
        let patience = until.saturating_duration_since(Instant::now());
        let waited = self.changed.wait_timeout_while(self.lock(), patience, |inner| inner.changes == seen);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits until none runs, for at most `patience`. `true` when none does.
    pub fn wait_until_empty(&self, patience: Duration) -> bool {
        let (inner, _) = self
            .changed
            .wait_timeout_while(self.lock(), patience, |inner| !inner.attempts.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        inner.attempts.is_empty()
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
