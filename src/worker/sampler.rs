//! Looks at the sessions of running attempts on their target, and says what the server knows of them.
//!
//! One thread for each target, whatever runs there. An attempt is looked at from its second second on, every second at
//! first and more rarely as it grows older: the longer something takes, the less a second tells. What is seen is stored with the attempt's
//! own reports, by the heartbeat. Nothing depends on it: where a server can't be asked, the work goes on and shows less.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::db::DbError;
use crate::db::activity::{Activity, Observer};
use crate::db::targets::{Target, TargetBackend};
use crate::queue::history::{self, Fingerprint};
use crate::worker::Shared;
use crate::worker::running::Attempt;
use crate::worker::threads::Threads;

/// Between two rounds.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Attempts that are younger aren't looked at: most have ended by then.
const FROM_AGE: Duration = Duration::from_secs(1);
/// How long a connection is kept with nothing to look at.
const REST_AFTER: Duration = Duration::from_secs(60);

/// How often an attempt of this age is looked at. A little less than full seconds, because rounds aren't exact.
fn look_every(age: Duration) -> Duration {
    let seconds = match age.as_secs() {
        ..60 => 1,
        60..600 => 2,
        600..3600 => 5,
        _ => 10,
    };
    Duration::from_secs(seconds).saturating_sub(Duration::from_millis(100))
}

pub(super) fn start(shared: &Arc<Shared>, threads: &mut Threads) -> std::io::Result<()> {
    for target in shared.config.targets.values() {
        let (shared, target) = (Arc::clone(shared), Arc::clone(target));
        threads.spawn("slowlane-sample", move || Sampler::new(&shared, &target).serve())?;
    }
    Ok(())
}

struct Sampler<'s> {
    shared: &'s Shared,
    target: &'s Target,
    observer: Observer,
    /// When each attempt was looked at last, by job and lease.
    looked: HashMap<(Uuid, i64), Instant>,
    last_work: Instant,
    failing: bool,
}

impl<'s> Sampler<'s> {
    fn new(shared: &'s Shared, target: &'s Target) -> Sampler<'s> {
        let (looked, last_work) = (HashMap::new(), Instant::now());
        Sampler { shared, target, observer: target.observer(), looked, last_work, failing: false }
    }

    fn serve(&mut self) {
        while !self.shared.stop.wait(LOOK_EVERY) {
            match self.round() {
                Ok(()) if std::mem::take(&mut self.failing) => {
                    log::info!(target = self.target.name(); "how jobs are doing can be seen again");
                }
                Ok(()) => {}
                Err(error) => {
                    if !std::mem::replace(&mut self.failing, true) {
                        log::warn!(target = self.target.name(); "how jobs are doing can't be seen, and is looked at again: {error}");
                    }
                }
            }
        }
    }

    fn round(&mut self) -> Result<(), DbError> {
        let attempts = self.due();
        let sessions: Vec<(Attempt, Vec<TargetBackend>)> = attempts
            .into_iter()
            .map(|attempt| (attempt.control.sessions(), attempt))
            .filter(|(sessions, attempt)| {
                if sessions.is_empty() {
                    attempt.said.progress().unseen();
                }
                !sessions.is_empty()
            })
            .map(|(sessions, attempt)| (attempt, sessions))
            .collect();
        if sessions.is_empty() {
            if self.last_work.elapsed() >= REST_AFTER {
                self.observer.rest();
            }
            return Ok(());
        }
        self.last_work = Instant::now();
        let backends: Vec<TargetBackend> = sessions.iter().flat_map(|(_, backends)| backends.iter().cloned()).collect();
        let activities = self.observer.observe(&backends).inspect_err(|_| {
            sessions.iter().for_each(|(attempt, _)| attempt.said.progress().unseen());
        })?;
        for (attempt, backends) in &sessions {
            let its = activities.iter().filter(|activity| backends.contains(&activity.backend));
            match its.max_by_key(|activity| tells(activity)) {
                Some(activity) => attempt.said.progress().seen(activity.clone()),
                None => attempt.said.progress().unseen(),
            }
        }
        Ok(())
    }

    /// The attempts on this target whose turn it is. One that is seen for the first time is told what to expect.
    fn due(&mut self) -> Vec<Attempt> {
        let (mut attempts, _) = self.shared.running.all();
        attempts
            .retain(|attempt| attempt.job.target == self.target.name() && attempt.said.progress().age() >= FROM_AGE);
        let key = |attempt: &Attempt| (attempt.job.lease.job_id, attempt.job.lease.number);
        self.looked.retain(|known, _| attempts.iter().any(|attempt| key(attempt) == *known));
        let new: Vec<&Attempt> = attempts.iter().filter(|attempt| !self.looked.contains_key(&key(attempt))).collect();
        if let Err(error) = self.tell_what_to_expect(&new) {
            log::debug!("what jobs took before can't be read: {error}");
        }
        let now = Instant::now();
        attempts.retain(|attempt| {
            let pause = look_every(attempt.said.progress().age());
            self.looked.get(&key(attempt)).is_none_or(|at| now.duration_since(*at) >= pause)
        });
        self.looked.extend(attempts.iter().map(|attempt| (key(attempt), now)));
        attempts
    }

    fn tell_what_to_expect(&self, attempts: &[&Attempt]) -> Result<(), DbError> {
        if attempts.is_empty() {
            return Ok(());
        }
        let fingerprint = |attempt: &&Attempt| {
            let job = &attempt.job;
            history::fingerprint(&job.kind, &job.target, &job.args)
        };
        let fingerprints: Vec<Fingerprint> = attempts.iter().map(fingerprint).collect();
        let known = history::durations(&mut *self.shared.config.control.get()?, &fingerprints)?;
        for (attempt, fingerprint) in attempts.iter().zip(&fingerprints) {
            attempt.said.progress().took_before(known.get(fingerprint).cloned().unwrap_or_default());
        }
        Ok(())
    }
}

/// Of several sessions of one attempt: the one that waits for somebody tells most, then one whose command is counted, then
/// one that does anything but wait for us.
fn tells(activity: &Activity) -> u8 {
    match (&activity.command, activity.wait_event.as_deref()) {
        (_, Some(event)) if event.starts_with("Lock:") => 3,
        (Some(_), _) => 2,
        (None, Some("Client:ClientRead")) => 0,
        _ => 1,
    }
}
