//! Sees to what ended jobs have left on their targets: an attempt that dies, is given up or is held up can't do so
//! itself.
//!
//! What that is, and what is to be done about it, is the kind's: this thread hands it the checkpoint that the job has
//! kept, and a session. A thread of its own, because a target may keep it waiting, and the janitor must not be.

use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::pg::PgConnection;

use crate::db::DbError;
use crate::queue::lifecycle::leavings::{self, Left};
use crate::target::{SessionAsks, reset_session};
use crate::work::{CleanedUp, WorkError};

use crate::worker::Shared;
use crate::worker::threads::{Threads, jittered};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long one job's leavings may take at a time: what is held up is tried again later.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) fn start(shared: &Arc<Shared>, threads: &mut Threads) -> std::io::Result<()> {
    let shared = Arc::clone(shared);
    threads.spawn("slowlane-clean", move || Cleaner { shared: &shared, connection: None }.serve())
}

struct Cleaner<'s> {
    shared: &'s Shared,
    connection: Option<PgConnection>,
}

impl Cleaner<'_> {
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
            let Some(left) = leavings::take(connection, &self.shared.kinds(), &targets)? else { return Ok(()) };
            let job = left.job_id.to_string();
            match clean_up(self.shared, &left) {
                Ok(CleanedUp { all, told }) => {
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
                    log::warn!(job = job.as_str(), target = left.target.as_str(); "what a job has left can't be seen to yet, and is looked at again: {error}");
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
