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
    attempts: Mutex<HashMap<Uuid, Attempt>>,
    changed: Condvar,
}

impl Running {
    /// An attempt begins.
    pub fn enter(&self, attempt: Attempt) {
        self.lock().insert(attempt.job.lease.job_id, attempt);
        self.changed.notify_all();
    }

    /// Takes an attempt out. `None` when somebody else did.
    pub fn leave(&self, lease: &Lease) -> Option<Attempt> {
        let mut attempts = self.lock();
        if attempts.get(&lease.job_id).is_none_or(|attempt| attempt.job.lease != *lease) {
            return None;
        }
        let attempt = attempts.remove(&lease.job_id);
        drop(attempts);
        self.changed.notify_all();
        attempt
    }

    /// Asks for the end of an attempt of this job, if there is one here.
    pub fn stop(&self, job_id: Uuid, reason: StopReason) {
        let stopped = self.lock().get(&job_id).is_some_and(|attempt| attempt.control.stop(reason));
        if stopped {
            self.changed.notify_all();
        }
    }

    /// Asks for the end of every attempt.
    pub fn stop_all(&self, reason: StopReason) {
        for attempt in self.lock().values() {
            attempt.control.stop(reason);
        }
        self.changed.notify_all();
    }

    /// Every attempt.
    pub fn all(&self) -> Vec<Attempt> {
        self.lock().values().cloned().collect()
    }

    /// How many run.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// None runs.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// What attempts said of themselves since the last call.
    pub fn take_reports(&self) -> Vec<(Lease, Report)> {
        self.lock()
            .values()
            .filter_map(|attempt| {
                let report = attempt.progress.lock().unwrap_or_else(PoisonError::into_inner).take()?;
                Some((attempt.job.lease, report))
            })
            .collect()
    }

    /// Waits until something enters, leaves or is to stop, or until `until` has come.
    pub fn wait_for_change(&self, until: Instant) {
        let patience = until.saturating_duration_since(Instant::now());
        drop(self.changed.wait_timeout(self.lock(), patience).unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits until none runs, for at most `patience`. `true` when none does.
    pub fn wait_until_empty(&self, patience: Duration) -> bool {
        let (attempts, _) = self
            .changed
            .wait_timeout_while(self.lock(), patience, |attempts| !attempts.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        attempts.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Attempt>> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
