//! Deadlines, and the pressing of what is to stop until it has stopped.
//!
//! The deadline is owned here, outside the session that does the work: a statement that ignores its own timeout, a
//! COMMIT that hangs and a kind that forgets to look all end.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::queue::fleet::workers::STOP_WORK_AFTER;
use crate::work::{JobControl, StopReason};
use crate::worker::Shared;
use crate::worker::running::Attempt;
use crate::worker::settle::settle_attempt;
use crate::worker::threads::Threads;
use crate::worker::{LET_GO, executor};

/// Between two cancels of the same statement.
const PRESS_EVERY: Duration = Duration::from_millis(100);
/// After this long the session is ended instead.
const TERMINATE_AFTER: Duration = Duration::from_secs(5);
/// How long the watch sleeps when nothing is due.
const IDLE: Duration = Duration::from_secs(1);

pub(super) fn start(shared: &Arc<Shared>, threads: &mut Threads) -> std::io::Result<()> {
    let shared = Arc::clone(shared);
    threads.spawn("slowlane-watch", move || serve(&shared))
}

fn serve(shared: &Arc<Shared>) {
    let mut pressed: Vec<Pressed> = Vec::new();
    while !shared.stop.is_set() {
        // One whose thread died is pressed by another.
        pressed.retain(|pressed| !pressed.control.is_over() && !pressed.thread.is_finished());
        let mut next = Instant::now() + IDLE;
        stop_what_nobody_fences(shared);
        let (attempts, changes) = shared.running.all();
        for attempt in attempts.into_iter().filter(|attempt| !attempt.control.is_over()) {
            if attempt.control.remaining().is_zero() {
                attempt.control.stop(StopReason::Deadline);
            }
            if attempt.control.stop_reason().is_none() {
                next = next.min(attempt.control.deadline());
            } else if !pressed.iter().any(|known| Arc::ptr_eq(&known.control, &attempt.control)) {
                match press_on_a_thread(shared, &attempt) {
                    Ok(thread) => pressed.push(Pressed { control: attempt.control, thread }),
                    Err(error) => log::error!("a thread that stops an attempt could not be started: {error}"),
                }
            }
        }
        shared.running.wait_for_change(changes, next);
    }
}

/// An attempt that is to stop, and the thread that sees to it.
struct Pressed {
    control: Arc<JobControl>,
    thread: JoinHandle<()>,
}

/// Each attempt that is to stop has a thread of its own, so that a target which answers no more holds up nobody
/// else's cancel. It ends when the attempt has: one that ends earlier has panicked.
fn press_on_a_thread(shared: &Arc<Shared>, attempt: &Attempt) -> std::io::Result<JoinHandle<()>> {
    let (shared, attempt) = (Arc::clone(shared), attempt.clone());
    let work = move || {
        if catch_unwind(AssertUnwindSafe(|| press(&shared, &attempt))).is_err() {
            log::error!(job = attempt.job.lease.job_id.to_string(); "a thread that stops an attempt panicked, and another goes on");
        }
    };
    std::thread::Builder::new().name("slowlane-stop".to_owned()).spawn(work)
}

/// A process whose beats don't arrive is about to lose its leases. Looked at here, because the thread that beats may
/// itself be waiting for an answer that never comes. Fenced work goes on: should the queue come back with the lease in
/// place, nothing has to be run twice.
fn stop_what_nobody_fences(shared: &Shared) {
    let unfenced = |kind: &str| !shared.config.registry.fenced(kind);
    if !shared.config.health.workers_ready() && shared.running.stop_those(StopReason::QueueLost, unfenced) {
        log::warn!("no beat reached the queue for {} s: stopping work that isn't fenced", STOP_WORK_AFTER.as_secs());
    }
}

fn press(shared: &Arc<Shared>, attempt: &Attempt) {
    let since = Instant::now();
    loop {
        attempt.control.press(since.elapsed() >= TERMINATE_AFTER);
        if attempt.control.wait_for_end(Instant::now() + PRESS_EVERY) {
            return;
        }
        if since.elapsed() >= LET_GO && give_up(shared, attempt) {
            return;
        }
    }
}

/// The thread is stuck in work that doesn't look. Once nothing of it is left on the target, the job ends without it
/// and another thread takes its place. `false` when its sessions couldn't be ended yet.
fn give_up(shared: &Arc<Shared>, attempt: &Attempt) -> bool {
    let lease = attempt.job.lease;
    let Some(target) = shared.config.targets.get(&attempt.job.spec.target) else {
        return true;
    };
    if let Err(error) = target.end_sessions(&lease.application_name(), &attempt.control.sessions()) {
        log::warn!(job = lease.job_id.to_string(); "the sessions of a stuck attempt could not be ended, and are tried again: {error}");
        return false;
    }
    // Also when it was about to find out what an earlier attempt had committed.
    let ending = match attempt.said.may_have_committed() || lease.number > 1 {
        false => None,
        true => match settle_attempt(shared, &attempt.job.spec.target, &lease) {
            Ok(settled) => executor::end_of(settled),
            Err(obstacle) => {
                log::warn!(job = lease.job_id.to_string(); "whether the transaction of a stuck attempt took effect isn't known, and is asked again: {obstacle}");
                return false;
            }
        },
    };
    if shared.running.leave(&lease).is_none() {
        return true;
    }
    let reason = attempt.control.stop_reason().unwrap_or(StopReason::Deadline);
    let ending = ending.unwrap_or_else(|| executor::given_up(shared, &attempt.job, reason));
    log::error!(job = lease.job_id.to_string(), kind = attempt.job.spec.kind.as_str(); "a thread is stuck in its work, and is replaced");
    shared.config.metrics.thread_replaced();
    if let Err(error) = executor::add_thread(shared) {
        log::error!("the thread could not be replaced: {error}");
    }
    executor::say(shared, attempt, ending);
    true
}
