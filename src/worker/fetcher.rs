//! Claims as many jobs as threads are free, the moment there may be some: when the queue is reached, after a hint, when a
//! thread becomes free after a full claim, and every second anyway.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::db::DbError;
use crate::queue::fleet::signals::Message;
use crate::queue::lifecycle::claim::{self, ClaimedJob, Positions};
use crate::queue::lifecycle::end::Interruption;
use crate::queue::lifecycle::interruptions::interrupted;
use crate::work::{JobControl, Registry};
use crate::worker::completer::MAX_WAITING;
use crate::worker::running::Attempt;
use crate::worker::threads::{Threads, jittered};
use crate::worker::{Shared, executor};

/// How long the ends of jobs are waited for before it is seen whether the process is to stop.
const WRITTEN_WITHIN: Duration = Duration::from_secs(1);
/// Between two sweeps for rows behind a position.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Between two claims from the very first row. A row that was skipped because somebody else held its lock, and then
/// let it go unclaimed, is found by this.
const FULL_SWEEP_EVERY: Duration = Duration::from_secs(60);
/// The pause after a failed claim, unless the queue is reached before.
const AFTER_ERROR: Duration = Duration::from_secs(1);

pub(super) fn start(shared: &Arc<Shared>, threads: &mut Threads) -> std::io::Result<()> {
    let listener = Arc::downgrade(shared);
    shared.config.signals.on_hint(move |message| {
        if let (Message::Ready(hints), Some(shared)) = (message, listener.upgrade()) {
            shared.slots.wake(hints);
        }
    });
    // What waits already has no hint.
    shared.slots.wake(&[]);
    let shared = Arc::clone(shared);
    threads.spawn("slowlane-fetch", move || Fetcher::new(&shared).serve())
}

struct Fetcher<'s> {
    shared: &'s Shared,
    positions: Positions,
    swept: Instant,
    reset: Instant,
    failing: bool,
}

impl<'s> Fetcher<'s> {
    fn new(shared: &'s Shared) -> Fetcher<'s> {
        let now = Instant::now();
        Fetcher { shared, positions: Positions::default(), swept: now, reset: now, failing: false }
    }

    fn serve(&mut self) {
        while !self.shared.stop.is_set() {
            let (slots, health) = (&self.shared.slots, &self.shared.config.health);
            let wake = slots.wait(self.shared.config.poll.mul_f64(rand::random_range(0.8..1.2)));
            if wake.closed {
                return;
            }
            for hint in &wake.hints {
                self.positions.go_back(hint);
            }
            // A process that can't beat is about to lose its leases: it must not take new ones. Its next beat releases it.
            if !slots.may_look(|| health.workers_ready()) {
                continue;
            }
            if !self.shared.running.wait_until_written(MAX_WAITING, WRITTEN_WITHIN) {
                // A thread that is free stays free, and asks again.
                slots.wake(&[]);
                continue;
            }
            match self.fetch(wake.free) {
                Ok(()) => self.succeeded(),
                Err(error) => self.failed(&error),
            }
        }
    }

    fn fetch(&mut self, mut free: usize) -> Result<(), DbError> {
        let mut connection = self.shared.config.control.get()?;
        if self.reset.elapsed() >= FULL_SWEEP_EVERY {
            self.positions.reset();
            self.reset = Instant::now();
        }
        if self.swept.elapsed() >= SWEEP_EVERY {
            claim::sweep(&mut connection, &self.shared.config.queues, &mut self.positions)?;
            self.swept = Instant::now();
        }
        let scope = self.shared.scope();
        for queue in &scope.queues {
            if free == 0 {
                break;
            }
            let most = i64::try_from(free).unwrap_or(i64::MAX);
            let claimed = claim::claim(&mut connection, &scope, queue, &mut self.positions, most)?;
            let full = claimed.len() >= free;
            free = free.saturating_sub(claimed.len());
            self.hand_over(claimed, full);
        }
        Ok(())
    }

    fn hand_over(&self, claimed: Vec<ClaimedJob>, full: bool) {
        let attempts: Vec<Attempt> =
            claimed.into_iter().map(|job| attempt(&self.shared.config.registry, job)).collect();
        self.shared.running.enter(&attempts);
        for attempt in self.shared.slots.hand_over(attempts, full) {
            // The process is going down: nothing of it has begun.
            if self.shared.running.leave(&attempt.job.lease).is_some() {
                let ending = interrupted(Interruption::HandedBack, true, "its worker shut down");
                executor::say(self.shared, &attempt, ending);
            }
        }
    }

    fn succeeded(&mut self) {
        if std::mem::take(&mut self.failing) {
            log::info!("the queue can be reached again; claiming goes on");
        }
    }

    fn failed(&mut self, error: &DbError) {
        if !std::mem::replace(&mut self.failing, true) {
            log::warn!("claiming failed, and is tried again: {error}");
        }
        // What was claimed and never heard of is put back by the heartbeat; what became claimable is found from the start.
        self.positions.reset();
        self.shared.slots.wait_for_release(jittered(AFTER_ERROR));
    }
}

/// A job that came in by SQL may ask for more time than its work has.
fn attempt(registry: &Registry, mut job: ClaimedJob) -> Attempt {
    let resolution = registry.resolve(&job.spec.kind, &job.spec.args.0);
    if let Some(longest) = resolution.longest_ms() {
        job.spec.timeout_ms = job.spec.timeout_ms.min(longest);
    }
    let timeout = Duration::from_millis(u64::try_from(job.spec.timeout_ms).unwrap_or(0));
    let control = Arc::new(JobControl::new(Instant::now() + timeout));
    Attempt { job: Arc::new(job), resolution, control, said: Arc::default() }
}
