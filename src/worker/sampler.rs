//! Looks at the sessions of running attempts on their target, and says what the server knows of them.
//!
//! One thread for each target, whatever runs there. An attempt is looked at from its second second on, every second at
//! first and more rarely as it grows older: the longer something takes, the less a second tells. But a wait for a lock
//! that may end is looked at out of turn (`kinds/context/waits.rs`): afterwards nobody knows who was in the way. What is
//! seen is stored with the attempt's own reports, by the heartbeat. Nothing depends on it: where a server can't be asked,
//! the work goes on and shows less.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::db::DbError;
use crate::queue::record::history::{self, Fingerprint};
use crate::target::activity::{Activity, Observer};
use crate::target::{Target, TargetBackend};
use crate::worker::Shared;
use crate::worker::running::Attempt;
use crate::worker::threads::Threads;

/// Between two rounds.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Attempts that are younger aren't looked at: most have ended by then.
const FROM_AGE: Duration = Duration::from_secs(1);
/// Two looks that are due within so short a time are one.
const AT_ONCE: Duration = Duration::from_millis(5);
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
    /// The attempts that were looked at, by job and lease.
    looked: HashMap<(Uuid, i64), Looked>,
    last_work: Instant,
    failing: bool,
}

/// What is known of an attempt that was looked at.
struct Looked {
    last: Instant,
    /// It was told what to expect.
    told: bool,
}

fn key(attempt: &Attempt) -> (Uuid, i64) {
    (attempt.job.lease.job_id, attempt.job.lease.number)
}

impl<'s> Sampler<'s> {
    fn new(shared: &'s Shared, target: &'s Target) -> Sampler<'s> {
        let (looked, last_work) = (HashMap::new(), Instant::now());
        Sampler { shared, target, observer: target.observer(), looked, last_work, failing: false }
    }

    fn serve(&mut self) {
        while self.wait() {
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

    /// Waits until a look is due. `false` when the threads are to end.
    fn wait(&self) -> bool {
        let regular = Instant::now() + LOOK_EVERY;
        loop {
            let asked = self.shared.services.looks.asked();
            if self.shared.stop.is_set() {
                return false;
            }
            let waiting = self.own().into_iter().filter_map(|attempt| self.due_for_waits(&attempt));
            let next = waiting.min().map_or(regular, |due| due.min(regular));
            if next <= Instant::now() + AT_ONCE {
                return true;
            }
            self.shared.services.looks.wait(asked, next);
        }
    }

    /// When an attempt has to be looked at because a wait for a lock may end.
    fn due_for_waits(&self, attempt: &Attempt) -> Option<Instant> {
        // A target that can't be asked isn't asked more often for that.
        if self.failing {
            return None;
        }
        let last = self.looked.get(&key(attempt)).map(|looked| looked.last);
        attempt.said.waits().next_look(last)
    }

    /// The attempts on this target.
    fn own(&self) -> Vec<Attempt> {
        let (mut attempts, _) = self.shared.running.all();
        attempts.retain(|attempt| attempt.job.spec.target == self.target.name());
        attempts
    }

    fn round(&mut self) -> Result<(), DbError> {
        // A target that is away is found again also when no job asks for it.
        if self.target.trouble().is_some() {
            self.target.try_again();
        }
        let attempts = self.due();
        let sessions: Vec<(Attempt, Vec<TargetBackend>)> = attempts
            .into_iter()
            .map(|attempt| (attempt.control.sessions(), attempt))
            .filter(|(sessions, attempt)| {
                if sessions.is_empty() {
                    attempt.said.progress().unseen();
                    attempt.said.waits().seen(false, &[]);
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
            let its: Vec<&Activity> =
                activities.iter().filter(|activity| backends.contains(&activity.backend)).collect();
            let waiting = its.iter().find(|activity| waits_for_lock(activity));
            attempt.said.waits().seen(waiting.is_some(), waiting.map_or(&[], |activity| &activity.blocked_by));
            match its.into_iter().max_by_key(|activity| tells(activity)) {
                Some(activity) => attempt.said.progress().seen(activity.clone()),
                None => attempt.said.progress().unseen(),
            }
        }
        Ok(())
    }

    /// The attempts on this target whose turn it is. One that is old enough is told what to expect.
    fn due(&mut self) -> Vec<Attempt> {
        let mut attempts = self.own();
        self.looked.retain(|known, _| attempts.iter().any(|attempt| key(attempt) == *known));
        let is_old = |attempt: &Attempt| attempt.said.progress().age() >= FROM_AGE;
        let is_told = |attempt: &Attempt| self.looked.get(&key(attempt)).is_some_and(|looked| looked.told);
        let new: Vec<&Attempt> = attempts.iter().filter(|attempt| is_old(attempt) && !is_told(attempt)).collect();
        if let Err(error) = self.tell_what_to_expect(&new) {
            log::debug!("what jobs took before can't be read: {error}");
        }
        let now = Instant::now();
        attempts.retain(|attempt| {
            let pause = look_every(attempt.said.progress().age());
            let last = self.looked.get(&key(attempt)).map(|looked| looked.last);
            let by_age = is_old(attempt) && last.is_none_or(|at| now.duration_since(at) >= pause);
            by_age || self.due_for_waits(attempt).is_some_and(|due| due <= now + AT_ONCE)
        });
        for attempt in &attempts {
            let told = is_old(attempt);
            self.looked.insert(key(attempt), Looked { last: now, told });
        }
        attempts
    }

    fn tell_what_to_expect(&self, attempts: &[&Attempt]) -> Result<(), DbError> {
        if attempts.is_empty() {
            return Ok(());
        }
        let fingerprint = |attempt: &&Attempt| {
            let job = &attempt.job;
            history::fingerprint(&job.spec.kind, &job.spec.target, &job.spec.args)
        };
        let fingerprints: Vec<Fingerprint> = attempts.iter().map(fingerprint).collect();
        let known = history::durations(&mut *self.shared.config.control.get()?, &fingerprints)?;
        for (attempt, fingerprint) in attempts.iter().zip(&fingerprints) {
            attempt.said.progress().took_before(known.get(fingerprint).cloned().unwrap_or_default());
        }
        Ok(())
    }
}

fn waits_for_lock(activity: &Activity) -> bool {
    activity.wait_event.as_deref().is_some_and(|event| event.starts_with("Lock:"))
}

/// Of several sessions of one attempt: the one that waits for somebody tells most, then one whose command is counted, then
/// one that does anything but wait for us.
fn tells(activity: &Activity) -> u8 {
    match (&activity.command, activity.wait_event.as_deref()) {
        _ if waits_for_lock(activity) => 3,
        (Some(_), _) => 2,
        (None, Some("Client:ClientRead")) => 0,
        _ => 1,
    }
}
