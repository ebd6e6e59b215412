//! Runs attempts, each from its claim to its ending, on threads of their own.
//!
//! | what the kind said | with no stop | cancelled | to be paused | past its deadline | shutdown, queue lost |
//! | --- | --- | --- | --- | --- | --- |
//! | `Ok` | succeeded | succeeded | succeeded | succeeded | succeeded |
//! | `Retry` | retried, or failed after the last attempt | cancelled | paused | failed, `timeout` | handed back |
//! | a panic | as `Retry` | cancelled | as `Retry`, paused in between | failed, `timeout` | handed back |
//! | `Fail` | failed | cancelled | failed | failed, `timeout` | handed back |
//! | `Cancelled` | failed, `cancelled_by_work` | cancelled | paused | failed, `timeout` | handed back |
//! | `Snooze`, `Unavailable` | scheduled, uncharged | cancelled | paused | failed, `timeout` | handed back |
//!
//! What may have committed a transaction is settled first (`worker/settle.rs`): then it has succeeded, whatever came
//! after, or the table above goes for it. A kind that may not be repeated isn't handed back once it has begun, unless it says that nothing took effect. After
//! a panic or a lost connection it ends as failed, `outcome_unknown`, whatever was asked of it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::queue::lifecycle::cancel::{self, Asked};
use crate::queue::lifecycle::checkpoint::{self, Outcome};
use crate::queue::lifecycle::claim::ClaimedJob;
use crate::queue::lifecycle::end::Interruption;
use crate::queue::lifecycle::end::{Ending, Finished, FinishedResult};
use crate::queue::lifecycle::interruptions::{interrupted, outcome_unknown};
use crate::queue::model::{JobState, JobStatistics};
use crate::queue::record::history::{self, Run};
use crate::queue::record::progress;
use crate::queue::{ErrorCode, JobError, Lease, RawJson, RetryPolicy};
use crate::work::context::{CommitState, Effects, LeftBehind};
use crate::work::{QUERY_CANCELED, StopReason, WorkContext, WorkError};
use crate::worker::Shared;
use crate::worker::ended::Ended;
use crate::worker::explain::{TIMER_SLACK, explain};
use crate::worker::running::Attempt;
use crate::worker::settle::{Obstacle, Settled, settle_attempt};

/// What takes less isn't remembered.
const REMEMBERED_FROM: Duration = Duration::from_secs(1);

/// When work is tried again whose target can't be reached.
const UNAVAILABLE: RetryPolicy = RetryPolicy { base: Duration::from_secs(2), cap: Duration::from_secs(60) };

/// When work is tried again that a standby stopped: what its primary cleaned up comes in bursts, and a standby that lags
/// stops whatever it meets until it has caught up.
const RECOVERY_CONFLICT: RetryPolicy = RetryPolicy { base: Duration::from_secs(30), cap: Duration::from_secs(600) };

/// How much work yields to what answers requests, where both want the processor: a fifth of its share.
#[cfg(target_os = "linux")]
const NICE: i32 = 7;
/// The lowest priority that there is.
#[cfg(target_os = "linux")]
const LEAST_NICE: i32 = 19;

static NUMBER: AtomicUsize = AtomicUsize::new(0);

/// Starts as many threads as the configuration says.
pub(super) fn start(shared: &Arc<Shared>) -> std::io::Result<()> {
    (0..shared.config.threads).try_for_each(|_| add_thread(shared))
}

/// Starts one more thread. It isn't joined: one that is stuck in its work must not hold the process up.
pub(super) fn add_thread(shared: &Arc<Shared>) -> std::io::Result<()> {
    let shared = Arc::clone(shared);
    let name = format!("slowlane-work-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let work = move || {
        yield_to_requests();
        serve(&shared);
    };
    std::thread::Builder::new().name(name).spawn(work).map(drop)
}

/// Eight jobs that end in the same moment would otherwise keep a request waiting until all of them are through. On Linux
/// alone a thread has a priority of its own; the process's is that of its first thread.
fn yield_to_requests() {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{getpid, getpriority_process, setpriority_process};
        let lowered = getpriority_process(Some(getpid()))
            .and_then(|nice| setpriority_process(None, nice.saturating_add(NICE).min(LEAST_NICE)));
        if let Err(error) = lowered {
            log::debug!("a thread that runs jobs keeps the priority of the others: {error}");
        }
    }
}

fn serve(shared: &Arc<Shared>) {
    let _presence = Presence(shared);
    while let Some(attempt) = shared.slots.next() {
        if !run(shared, &attempt) {
            // The watchdog gave this thread up and started another in its place.
            return;
        }
    }
}

/// Notices the death of a thread, however it comes.
struct Presence<'s>(&'s Arc<Shared>);

impl Drop for Presence<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            log::error!("a thread that runs jobs died, and is replaced");
            self.0.config.metrics.thread_replaced();
            if let Err(error) = add_thread(self.0) {
                log::error!("the thread could not be replaced: {error}");
            }
        }
    }
}

/// Runs one attempt. `false` when the attempt was taken from this thread meanwhile.
fn run(shared: &Arc<Shared>, attempt: &Attempt) -> bool {
    let job = &attempt.job;
    log::debug!(
        job = job.lease.job_id.to_string(), kind = job.spec.kind.as_str(), lease = job.lease.number;
        "an attempt begins"
    );
    let ending = match settled_before(shared, attempt) {
        Some(ending) => {
            attempt.control.end();
            ending
        }
        None => {
            let mut performed = perform(shared, attempt);
            explain(attempt, &mut performed.outcome);
            attempt.control.end();
            end_lost_session(shared, attempt, &performed.outcome);
            settled(shared, attempt, performed)
        }
    };
    match shared.running.leave(&job.lease) {
        Some(_) => {
            say(shared, attempt, ending);
            true
        }
        None => false,
    }
}

/// Hands an ending to the completer.
pub(super) fn say(shared: &Shared, attempt: &Attempt, ending: Ending) {
    let job = &attempt.job;
    let ending = match ending {
        Ending::Finished(finished) => {
            let progress = attempt.said.progress().for_history(finished.state == JobState::Succeeded);
            Ending::from(Finished { progress, ..*finished })
        }
        Ending::Pause => {
            keep_progress(shared, attempt);
            Ending::Pause
        }
        ending => ending,
    };
    let log = attempt.said.log().take_rest();
    let run = worth_remembering(attempt, &ending);
    let ended = Ended {
        lease: job.lease,
        kind: job.spec.kind.clone(),
        target: job.spec.target.clone(),
        attempt: job.attempt,
        took: attempt.said.progress().age(),
        ending,
        log,
        run,
    };
    if shared.endings.send(ended).is_err() {
        log::error!(job = job.lease.job_id.to_string(); "the thread that writes ends is gone; the job will be put back");
        shared.running.unwritten(&job.lease);
        shared.running.ended([&job.lease]);
    }
}

/// A paused job goes on showing how far it was, for as long as it is paused: the last of it may not have been stored yet.
fn keep_progress(shared: &Shared, attempt: &Attempt) {
    let Some(last) = attempt.said.progress().now() else { return };
    let last = [(attempt.job.lease, last)];
    let kept = shared.config.control.get().and_then(|mut connection| progress::write(&mut connection, &last));
    if let Err(error) = kept {
        log::info!(job = attempt.job.lease.job_id.to_string(); "how far a paused job was could not be stored: {error}");
    }
}

/// What the same work may be expected to take the next time. What takes no time needs no expectation, and what an earlier
/// attempt had begun says nothing.
fn worth_remembering(attempt: &Attempt, ending: &Ending) -> Option<Run> {
    let job = &attempt.job;
    let age = attempt.said.progress().age();
    let succeeded = matches!(ending, Ending::Finished(finished) if finished.state == JobState::Succeeded);
    (succeeded && age >= REMEMBERED_FROM && job.lease.number == 1).then(|| Run {
        fingerprint: history::fingerprint(&job.spec.kind, &job.spec.target, &job.spec.args),
        kind: job.spec.kind.clone(),
        target: job.spec.target.clone(),
        duration_ms: milliseconds(age),
    })
}

/// The end of a job whose transaction an earlier attempt left in doubt, if this is one.
fn settled_before(shared: &Shared, attempt: &Attempt) -> Option<Ending> {
    let job = &attempt.job;
    if job.lease.number == 1 {
        return None;
    }
    match settle_attempt(shared, &job.spec.target, &job.lease) {
        Ok(Settled::RolledBack) => known_before(shared, job, "its last transaction was rolled back"),
        Ok(Settled::Advanced) => known_before(shared, job, "it lost its connection behind a batch"),
        Ok(settled) => end_of(settled),
        Err(obstacle) => Some(waits(job, &obstacle)),
    }
}

/// What became of its last transaction is known, and that isn't its end: whether it goes on is what it would have been
/// then.
fn known_before(shared: &Shared, job: &ClaimedJob, why: &str) -> Option<Ending> {
    if !shared.config.repeatable(&job.spec.kind) {
        return Some(failed(outcome_unknown(why)));
    }
    let asked = shared.config.control.get().and_then(|mut c| cancel::requested(&mut c, &[job.lease.job_id]));
    match asked.unwrap_or_default().first() {
        Some((_, Asked::Cancel)) => return Some(Ending::from(Finished::plain(JobState::Cancelled))),
        Some((_, Asked::Pause)) => return Some(Ending::Pause),
        None => {}
    }
    // The attempt that ended in doubt was charged: this may be one more than there are.
    (job.attempt > job.spec.max_attempts).then(|| failed(JobError::new(ErrorCode::ConnectionLost, why).retryable()))
}

/// The end of an attempt: that of its transaction, should it have recorded one.
fn settled(shared: &Shared, attempt: &Attempt, mut performed: Performed) -> Ending {
    let job = &attempt.job;
    match std::mem::take(&mut performed.commit) {
        CommitState::None => ending(shared, attempt, performed),
        CommitState::Committed(xid) if performed.outcome.is_ok() => settled_by(xid, ending(shared, attempt, performed)),
        CommitState::Advanced(xid) => {
            let ending = ending(shared, attempt, performed);
            if !matches!(ending, Ending::Finished(_)) {
                advance(shared, job, &xid);
            }
            settled_by(xid, ending)
        }
        // Also when the work took no notice: what is recorded decides.
        CommitState::Committed(_) | CommitState::InDoubt(_) | CommitState::RolledBack(_) => {
            match settle_attempt(shared, &job.spec.target, &job.lease) {
                Ok(settled) => end_of(settled).unwrap_or_else(|| ending(shared, attempt, performed)),
                Err(obstacle) => in_doubt(shared, job, &obstacle),
            }
        }
    }
}

/// The end of a job says what became of its recorded transaction.
fn settled_by(xid: String, ending: Ending) -> Ending {
    match ending {
        Ending::Finished(finished) => Ending::from(Finished { settled: Some(xid), ..*finished }),
        ending => ending,
    }
}

/// Its last batch is known to be committed, and the queue is told, so that nobody has to ask the target. Where the queue
/// can't be told, the next attempt asks.
fn advance(shared: &Shared, job: &ClaimedJob, xid: &str) {
    let Lease { job_id, number, .. } = job.lease;
    let told = shared.config.control.get().and_then(|mut c| checkpoint::advance(&mut c, job_id, number, xid));
    if let Err(error) = told {
        log::info!(job = job_id.to_string(); "that the last batch is committed could not be noted, and will be asked: {error}");
    }
}

/// The end that a settled transaction makes of its job; nothing when there was none that took effect.
pub(super) fn end_of(settled: Settled) -> Option<Ending> {
    match settled {
        Settled::Nothing | Settled::RolledBack | Settled::Advanced => None,
        Settled::Committed(xid, outcome) => Some(Ending::from(outcome.finished(Some(xid)))),
        Settled::Unknown(xid, why) => Some(settled_by(xid, failed(outcome_unknown(&why)))),
    }
}

fn not_known_yet(obstacle: &Obstacle) -> JobError {
    let code = match obstacle {
        Obstacle::Target(_) | Obstacle::NoTarget(_) => ErrorCode::TargetUnavailable,
        Obstacle::Queue(_) => ErrorCode::QueueUnavailable,
    };
    let why = format!("whether its transaction took effect isn't known yet: {obstacle}");
    JobError::new(code, why).retryable()
}

/// An attempt that has worked, and of which isn't known whether its transaction took effect: the next one begins with
/// finding out. It is charged, or what ends its target with each COMMIT would do so for ever.
fn in_doubt(shared: &Shared, job: &ClaimedJob, obstacle: &Obstacle) -> Ending {
    Ending::Retry { delay: shared.config.retry.delay(job.attempt), error: not_known_yet(obstacle) }
}

/// An attempt that has only asked, and had no answer: again later and later.
fn waits(job: &ClaimedJob, obstacle: &Obstacle) -> Ending {
    unavailable(job, not_known_yet(obstacle))
}

fn unavailable(job: &ClaimedJob, error: JobError) -> Ending {
    // Leases count every attempt, charged or not.
    let times = i32::try_from(job.lease.number).unwrap_or(i32::MAX);
    Ending::Snooze { delay: UNAVAILABLE.delay(times), error: Some(error) }
}

/// What came of an attempt.
struct Performed {
    outcome: Result<RawJson, WorkError>,
    /// What it may have done.
    effects: Effects,
    /// How far its last transaction came.
    commit: CommitState,
    statistics: JobStatistics,
    result: Option<FinishedResult>,
    result_of_failure: Option<FinishedResult>,
}

impl Performed {
    /// Of an attempt that couldn't begin.
    fn not_begun(error: JobError) -> Performed {
        Performed {
            outcome: Err(WorkError::Fail(error)),
            effects: Effects::NotBegun,
            commit: CommitState::None,
            statistics: JobStatistics::default(),
            result: None,
            result_of_failure: None,
        }
    }
}

/// A connection that broke on our side may still be at work on the server's: nothing of this attempt is to run when
/// the next one begins, or when the job is said to have ended.
fn end_lost_session(shared: &Shared, attempt: &Attempt, outcome: &Result<RawJson, WorkError>) {
    let job = &attempt.job;
    let lost = matches!(outcome, Err(WorkError::Retry(e) | WorkError::Fail(e)) if e.code == ErrorCode::ConnectionLost);
    let Some(target) = shared.config.targets.get(&job.spec.target).filter(|_| lost) else { return };
    if let Err(error) = target.end_sessions(&job.lease.application_name(), &attempt.control.sessions()) {
        log::warn!(job = job.lease.job_id.to_string(); "whether a lost session has ended isn't known: {error}");
    }
}

fn perform(shared: &Shared, attempt: &Attempt) -> Performed {
    let job = &attempt.job;
    let Some(target) = shared.config.targets.get(&job.spec.target) else {
        let error = JobError::new(ErrorCode::UnknownTarget, format!("this process has no target {}", job.spec.target));
        return Performed::not_begun(error);
    };
    let mut context = WorkContext::new(
        job,
        Arc::clone(&attempt.control),
        Arc::clone(target),
        &shared.services,
        Arc::clone(&attempt.said),
    );
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        context.check()?;
        context.begin();
        shared.config.registry.run(&attempt.resolution, &job.spec, &mut context)
    }));
    let outcome = outcome.unwrap_or_else(|_| {
        log::error!(job = job.lease.job_id.to_string(), kind = job.spec.kind.as_str(); "an attempt panicked");
        let error =
            JobError::new(ErrorCode::Panic, "the work panicked; the log of the process that ran it has the message");
        Err(WorkError::Retry(error.retryable()))
    });
    let LeftBehind { statistics, result, result_of_failure, effects, commit, on_standby } = context.leave();
    let outcome = outcome.map_err(|error| error.with_recovery_conflict_named(on_standby));
    Performed { outcome, effects, commit, statistics, result, result_of_failure }
}

fn ending(shared: &Shared, attempt: &Attempt, performed: Performed) -> Ending {
    let (job, retry) = (&attempt.job, &shared.config.retry);
    let Performed { outcome, effects, statistics, result, result_of_failure, .. } = performed;
    let error = match outcome {
        Ok(output) => return Ending::from(Outcome { output, statistics, result }.finished(None)),
        Err(error) => error,
    };
    let unclear = |error: &JobError| error.code == ErrorCode::Panic || error.code == ErrorCode::ConnectionLost;
    let error = match error {
        WorkError::Retry(error) | WorkError::Fail(error) if effects == Effects::NotRepeatable => return failed(error),
        // A panic or a lost connection says nothing about what took effect before, whoever asked for the end.
        WorkError::Retry(error) | WorkError::Fail(error)
            if effects.are_possible() && unclear(&error) && !shared.config.repeatable(&job.spec.kind) =>
        {
            return failed(outcome_unknown(&error.message));
        }
        error => error,
    };
    match attempt.control.stop_reason() {
        // What fails for a reason of its own has failed, and isn't kept for later.
        Some(StopReason::Pause) if is_no_stop(&error) => {}
        Some(StopReason::Deadline) => return timed_out(job, was_cancelled(attempt, &error)),
        Some(reason) => return stopped(shared, job, effects, reason),
        None => {}
    }
    if attempt.control.remaining() <= TIMER_SLACK && is_cancelled_by_server(&error) {
        return timed_out(job, true);
    }
    match error {
        WorkError::Retry(error) if job.attempt < job.spec.max_attempts => {
            let policy = if error.code == ErrorCode::RecoveryConflict { &RECOVERY_CONFLICT } else { retry };
            Ending::Retry { delay: policy.delay(job.attempt), error }
        }
        WorkError::Retry(error) | WorkError::Fail(error) => {
            Ending::from(Finished { result: result_of_failure, ..Finished::failed(error) })
        }
        WorkError::Snooze(delay) => Ending::Snooze { delay, error: None },
        WorkError::Unavailable(error) => unavailable(job, error),
        WorkError::Cancelled => {
            failed(JobError::new(ErrorCode::CancelledByWork, "the work stopped without having been asked to"))
        }
    }
}

/// It didn't end because it was stopped.
fn is_no_stop(error: &WorkError) -> bool {
    matches!(error, WorkError::Fail(_)) || matches!(error, WorkError::Retry(error) if error.code == ErrorCode::Panic)
}

fn is_cancelled_by_server(error: &WorkError) -> bool {
    matches!(error, WorkError::Retry(e) | WorkError::Fail(e) if e.sqlstate.as_deref() == Some(QUERY_CANCELED))
}

/// The server has said that it cancelled the statement that the attempt's deadline met, whatever the work made of that.
fn was_cancelled(attempt: &Attempt, error: &WorkError) -> bool {
    is_cancelled_by_server(error) || attempt.control.was_cancelled_at_deadline(TIMER_SLACK)
}

/// The end of an attempt whose thread didn't come back, after its sessions were ended.
pub(super) fn given_up(shared: &Shared, job: &ClaimedJob, reason: StopReason) -> Ending {
    if shared.config.repeatable(&job.spec.kind) {
        return stopped(shared, job, Effects::Possible, reason);
    }
    failed(outcome_unknown("the thread that ran it was stuck and had to be given up"))
}

/// The end of an attempt that was stopped for `reason`.
fn stopped(shared: &Shared, job: &ClaimedJob, effects: Effects, reason: StopReason) -> Ending {
    let repeatable = !effects.are_possible() || shared.config.repeatable(&job.spec.kind);
    match reason {
        StopReason::Cancel => Ending::from(Finished::plain(JobState::Cancelled)),
        StopReason::Pause => Ending::Pause,
        StopReason::Deadline => timed_out(job, false),
        StopReason::Shutdown => interrupted(Interruption::HandedBack, repeatable, "its worker shut down"),
        StopReason::QueueLost | StopReason::LeaseLost => {
            interrupted(Interruption::HandedBack, repeatable, "its worker lost the queue")
        }
    }
}

/// The end of an attempt whose time is over. `cancelled`: the server has said that it cancelled a statement for it.
fn timed_out(job: &ClaimedJob, cancelled: bool) -> Ending {
    let message = format!("the attempt did not end within timeout_ms = {}", job.spec.timeout_ms);
    let error = JobError::new(ErrorCode::Timeout, message).with_hint("raise timeout_ms, or give the work less to do");
    failed(JobError { sqlstate: cancelled.then(|| QUERY_CANCELED.to_owned()), ..error })
}

fn failed(error: JobError) -> Ending {
    Ending::from(Finished::failed(error))
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
