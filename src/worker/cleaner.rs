//! Sees to what ended jobs have left on their targets: an attempt that dies, is given up or is held up can't do so
//! itself.
//!
//! What that is, and what is to be done about it, is the kind's: this thread hands it the checkpoint that the job has
//! kept, and a session. A thread of its own, because a target may keep it waiting, and the janitor must not be.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::pg::PgConnection;
use uuid::Uuid;

use crate::db::DbError;
use crate::queue::fleet::clock::CautiousClock;
use crate::queue::lifecycle::leavings::{self, Left};
use crate::target::{SessionAsks, reset_session};
use crate::work::{CleanedUp, WorkError};
use crate::worker::Shared;
use crate::worker::threads::{Threads, jittered};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long one job's leavings may take at a time: what is held up is tried again later.
const PATIENCE: Duration = Duration::from_secs(5);
/// Jobs of which is remembered what was said.
const MOST_SAID: usize = 1_000;

pub(super) fn start(shared: &Arc<Shared>, threads: &mut Threads) -> std::io::Result<()> {
    let shared = Arc::clone(shared);
    threads.spawn("slowlane-clean", move || Cleaner::new(&shared).serve())
}

struct Cleaner<'s> {
    shared: &'s Shared,
    connection: Option<PgConnection>,
    clock: CautiousClock,
    said: Said,
}

/// Why what jobs have left couldn't be seen to, as it was said last: it is said again when it changes.
#[derive(Default)]
struct Said(HashMap<Uuid, String>);

impl Said {
    /// It hasn't been said of this job just before.
    fn is_new(&mut self, job_id: Uuid, why: &str) -> bool {
        // Of jobs that another process saw to, nobody hears here.
        if self.0.len() >= MOST_SAID && !self.0.contains_key(&job_id) {
            self.0.clear();
        }
        self.0.insert(job_id, why.to_owned()).is_none_or(|before| before != why)
    }

    fn forget(&mut self, job_id: Uuid) {
        self.0.remove(&job_id);
    }
}

impl<'s> Cleaner<'s> {
    fn new(shared: &'s Shared) -> Cleaner<'s> {
        Cleaner { shared, connection: None, clock: CautiousClock::default(), said: Said::default() }
    }

    fn serve(&mut self) {
        let mut failing = false;
        while !self.shared.stop.wait(jittered(LOOK_EVERY)) {
            match self.round() {
                Ok(()) => failing = false,
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        log::warn!("what ended jobs left can't be looked for, and is tried again: {error}");
                    }
                    if error.is_unavailable() {
                        self.connection = None;
                    }
                }
            }
        }
    }

    /// Looks until there is nothing to be looked at.
    fn round(&mut self) -> Result<(), DbError> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(self.shared.manager("cleaner").open()?),
        };
        let targets = self.shared.config.targets.iter().filter(|(_, target)| target.trouble().is_none());
        let targets: Vec<String> = targets.map(|(name, _)| name.clone()).collect();
        while !self.shared.stop.is_set() {
            let now = self.clock.now(connection)?;
            let Some(left) = leavings::take(connection, now, &self.shared.kinds(), &targets)? else { return Ok(()) };
            let job = left.job_id.to_string();
            match clean_up(self.shared, &left) {
                Ok(CleanedUp { all, told }) => {
                    self.said.forget(left.job_id);
                    for (level, message) in &told {
                        log::info!(job = job.as_str(), target = left.target.as_str(); "after the end of a job: {message}");
                        leavings::tell(connection, &left, *level, message)?;
                    }
                    if all {
                        leavings::done(connection, left.job_id)?;
                    }
                }
                Err(error) => {
                    let error = match error {
                        WorkError::Retry(error) | WorkError::Fail(error) | WorkError::Unavailable(error) => {
                            error.message
                        }
                        WorkError::Cancelled | WorkError::Snooze(_) => "it was put off".to_owned(),
                    };
                    if self.said.is_new(left.job_id, &error) {
                        log::warn!(
                            job = job.as_str(), target = left.target.as_str();
                            "what a job has left can't be seen to yet, and is looked at again: {error}"
                        );
                    }
                }
            }
        }
        Ok(())
    }
}

fn clean_up(shared: &Shared, left: &Left) -> Result<CleanedUp, WorkError> {
    let Some(target) = shared.config.targets.get(&left.target) else { return Ok(CleanedUp::default()) };
    let (mut loan, _) = target.session(&left.application_name(), PATIENCE, &SessionAsks::default())?;
    let until = Instant::now() + PATIENCE;
    let outcome = shared.config.registry.clean_up_after(&left.kind, &left.cursor, &mut loan.inner, until);
    reset_session(&mut loan);
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_holds_a_job_up_is_said_once_until_it_changes() {
        let mut said = Said::default();
        let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
        assert!(said.is_new(one, "locked") && said.is_new(two, "locked"));
        assert!(!said.is_new(one, "locked"));
        assert!(said.is_new(one, "denied") && !said.is_new(one, "denied"));
        said.forget(one);
        assert!(said.is_new(one, "denied") && !said.is_new(two, "locked"));
        (3..).take(MOST_SAID).for_each(|n| assert!(said.is_new(Uuid::from_u128(n), "x")));
        assert!(said.0.len() <= MOST_SAID);
    }
}
