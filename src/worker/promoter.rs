//! Moves scheduled jobs to `queued` when they are due: sleeps until the next one, and looks every second anyway.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use diesel::pg::PgConnection;

use crate::db::DbError;
use crate::queue::fleet::signals::Message;
use crate::queue::lifecycle::promote::{self, StepsBack};
use crate::worker::Shared;
use crate::worker::threads::{Threads, jittered};

/// How late a job may become claimable when no hint arrives.
const POLL: Duration = Duration::from_secs(1);

/// The shortest sleep between two looks.
const PAUSE: Duration = Duration::from_millis(50);

pub(super) fn start(shared: &Arc<Shared>, threads: &mut Threads) -> std::io::Result<()> {
    let (sender, scheduled) = channel();
    let sender = Mutex::new(sender);
    shared.config.signals.on_hint(move |message| {
        if let (Message::Scheduled, Ok(sender)) = (message, sender.lock()) {
            // The promoter is gone: then so is the process.
            let _ = sender.send(());
        }
    });
    let shared = Arc::clone(shared);
    threads.spawn("slowlane-due", move || serve(&shared, &scheduled))
}

fn serve(shared: &Shared, scheduled: &Receiver<()>) {
    let mut failing = false;
    let mut steps = StepsBack::default();
    while !shared.stop.is_set() {
        let wait = match promote(shared, &mut steps) {
            Ok(wait) => {
                failing = false;
                wait.min(POLL)
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    log::warn!("scheduled jobs can't be promoted, and are tried again: {error}");
                }
                jittered(POLL)
            }
        };
        match scheduled.recv_timeout(wait) {
            Ok(()) => drop(scheduled.try_iter().count()),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => drop(shared.stop.wait(POLL)),
        }
    }
}

fn promote(shared: &Shared, steps: &mut StepsBack) -> Result<Duration, DbError> {
    let mut connection = shared.config.control.get()?;
    loop {
        let hints = promote::due(&mut connection)?;
        let full = i64::try_from(hints.len()).unwrap_or(i64::MAX) >= promote::BATCH;
        if !hints.is_empty() {
            shared.config.signals.ready(hints);
        }
        if full {
            continue;
        }
        let (next, clock) = promote::until_next(&mut connection)?;
        if steps.noticed(clock, Instant::now()) && wait_anew(&mut connection)? > 0 {
            continue;
        }
        // One that is due and locked by somebody else must not be looked at without a pause.
        return Ok(next.unwrap_or(POLL).max(PAUSE));
    }
}

fn wait_anew(connection: &mut PgConnection) -> Result<usize, DbError> {
    let jobs = promote::after_a_step_back(connection)?;
    if jobs > 0 {
        log::warn!(jobs = jobs; "the database's clock was set back: jobs that were put off wait as long as they were to, from now on");
    }
    Ok(jobs)
}
