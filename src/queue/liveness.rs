//! Who is alive, by the database's clock, and what the dead left behind.
//!
//! One beat per process. A process that hasn't beaten for [`DEAD_AFTER`] is dead: it may still be running, but it
//! has lost its leases. Ending its sessions on a target is not done here; the janitor does it before it calls
//! [`rescue`].

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Double, Integer, Json, Nullable, Text, Timestamptz};
use serde::Serialize;
use tokio::sync::watch;
use uuid::Uuid;

use crate::db::{DbError, prepared};
use crate::queue::codes::ErrorCode;
use crate::queue::finish::{self, Ending, Finished};
use crate::queue::job::{JobError, JobState, Lease, MAX_INTERRUPTIONS, RawJson};
use crate::queue::overview::TargetHealth;

/// Between two beats of a process.
pub const BEAT_EVERY: Duration = Duration::from_secs(2);
/// A process that hasn't beaten for this long has lost its leases.
pub const DEAD_AFTER: Duration = Duration::from_secs(15);
/// A process that couldn't beat for this long stops work that nothing else fences.
pub const STOP_WORK_AFTER: Duration = Duration::from_secs(10);

/// A process, as it introduces itself.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// Fresh for each start of a process, and after each death.
    pub id: Uuid,
    /// The machine's name.
    pub hostname: String,
    /// Threads that run jobs.
    pub threads: i32,
    /// Kinds that it knows.
    pub kinds: Vec<String>,
    /// Queues that it serves.
    pub queues: Vec<String>,
    /// Its targets, and how they are.
    pub targets: Vec<TargetHealth>,
}

/// Enters a process among the living.
///
/// # Errors
/// When the database fails.
pub fn register(connection: &mut PgConnection, identity: &Identity) -> Result<(), DbError> {
    use crate::db::schema::workers::dsl;
    diesel::insert_into(dsl::workers)
        .values((
            dsl::id.eq(identity.id),
            dsl::hostname.eq(&identity.hostname),
            dsl::pid.eq(i32::try_from(std::process::id()).unwrap_or(i32::MAX)),
            dsl::version.eq(env!("CARGO_PKG_VERSION")),
            dsl::threads.eq(identity.threads),
            dsl::kinds.eq(&identity.kinds),
            dsl::queues.eq(&identity.queues),
            dsl::targets.eq(json(&identity.targets)?),
            dsl::started_at.eq(diesel::dsl::now),
            dsl::beat_at.eq(diesel::dsl::now),
        ))
        .on_conflict(dsl::id)
        .do_update()
        .set(dsl::beat_at.eq(diesel::dsl::now))
        .execute(connection)?;
    Ok(())
}

/// Beats, and says how the process' targets are where there is anything new. `false` when the process was declared dead
/// meanwhile: its leases are gone, and it goes on under a new id.
///
/// # Errors
/// When the database fails.
pub fn beat(connection: &mut PgConnection, id: Uuid, targets: Option<&[TargetHealth]>) -> Result<bool, DbError> {
    let changed =
        prepared("UPDATE workers SET beat_at = clock_timestamp(), targets = coalesce($2, targets) WHERE id = $1")
            .bind::<diesel::sql_types::Uuid, _>(id)
            .bind::<Nullable<Json>, _>(targets.map(json).transpose()?)
            .execute(connection)?;
    Ok(changed == 1)
}

/// Takes a process off the list, at its own end.
///
/// # Errors
/// When the database fails.
pub fn unregister(connection: &mut PgConnection, id: Uuid) -> Result<(), DbError> {
    use crate::db::schema::workers::dsl;
    diesel::delete(dsl::workers.find(id)).execute(connection)?;
    Ok(())
}

/// Takes processes off the list that have been dead for an hour and hold nothing any more.
///
/// # Errors
/// When the database fails.
pub fn forget_the_dead(connection: &mut PgConnection) -> Result<usize, DbError> {
    Ok(diesel::sql_query(
        "DELETE FROM workers w WHERE w.beat_at < clock_timestamp() - interval '1 hour'
            AND NOT EXISTS (SELECT FROM jobs j WHERE j.worker_id = w.id AND j.state = 'running')",
    )
    .execute(connection)?)
}

/// A running attempt as its row says.
#[derive(Clone, Debug)]
pub struct Held {
    /// The lease.
    pub lease: Lease,
    /// The kind of work.
    pub kind: String,
    /// Interruptions so far.
    pub interruptions: i32,
}

/// What this process holds by the rows, claimed at least 10 s ago: to be compared with what it really runs.
///
/// # Errors
/// When the database fails.
pub fn held(connection: &mut PgConnection, worker_id: Uuid) -> Result<Vec<Held>, DbError> {
    use crate::db::schema::jobs::dsl;
    let rows: Vec<(Uuid, i64, String, i32)> = dsl::jobs
        .filter(dsl::worker_id.eq(worker_id).and(dsl::state.eq(JobState::Running.as_str())))
        .filter(
            dsl::started_at.lt(diesel::dsl::sql::<Nullable<Timestamptz>>("clock_timestamp() - interval '10 seconds'")),
        )
        .select((dsl::id, dsl::lease, dsl::kind, dsl::interruptions))
        .load(connection)?;
    let held = |(job_id, number, kind, interruptions)| Held {
        lease: Lease { job_id, number, worker_id },
        kind,
        interruptions,
    };
    Ok(rows.into_iter().map(held).collect())
}

/// An attempt whose owner is dead.
#[derive(Clone, Debug)]
pub struct Orphan {
    /// The dead owner's lease.
    pub lease: Lease,
    /// The kind of work.
    pub kind: String,
    /// The database that it ran on.
    pub target: String,
    /// Its session there, if it got as far as noting one.
    pub backend_pid: Option<i32>,
    /// When that session began.
    pub backend_start: Option<DateTime<Utc>>,
    /// Its cancellation was asked for.
    pub cancel_requested: bool,
    /// Interruptions before this one.
    pub interruptions: i32,
}

#[derive(QueryableByName)]
struct OrphanRow {
    #[diesel(sql_type = diesel::sql_types::Uuid)]
    id: Uuid,
    #[diesel(sql_type = BigInt)]
    lease: i64,
    #[diesel(sql_type = diesel::sql_types::Uuid)]
    worker_id: Uuid,
    #[diesel(sql_type = Text)]
    kind: String,
    #[diesel(sql_type = Text)]
    target: String,
    #[diesel(sql_type = Nullable<Integer>)]
    backend_pid: Option<i32>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    backend_start: Option<DateTime<Utc>>,
    #[diesel(sql_type = Bool)]
    cancel_requested: bool,
    #[diesel(sql_type = Integer)]
    interruptions: i32,
}

/// At most `most` running jobs of these kinds and targets whose owner is dead or not on the list. None within
/// [`DEAD_AFTER`] of the server's start: everybody was silent then.
///
/// # Errors
/// When the database fails.
pub fn orphans(
    connection: &mut PgConnection,
    kinds: &[String],
    targets: &[String],
    most: i64,
) -> Result<Vec<Orphan>, DbError> {
    let rows = diesel::sql_query(
        "SELECT j.id, j.lease, j.worker_id, j.kind, j.target, j.backend_pid, j.backend_start,
                j.cancel_requested_at IS NOT NULL AS cancel_requested, j.interruptions
           FROM jobs j LEFT JOIN workers w ON w.id = j.worker_id
          WHERE j.state = 'running' AND j.kind = ANY($1) AND j.target = ANY($2)
            AND (w.id IS NULL OR w.beat_at < clock_timestamp() - $3 * interval '1 second')
            AND pg_postmaster_start_time() < clock_timestamp() - $3 * interval '1 second'
          ORDER BY j.id LIMIT $4",
    )
    .bind::<Array<Text>, _>(kinds)
    .bind::<Array<Text>, _>(targets)
    .bind::<Double, _>(DEAD_AFTER.as_secs_f64())
    .bind::<BigInt, _>(most)
    .load::<OrphanRow>(connection)?;
    Ok(rows
        .into_iter()
        .map(|row| Orphan {
            lease: Lease { job_id: row.id, number: row.lease, worker_id: row.worker_id },
            kind: row.kind,
            target: row.target,
            backend_pid: row.backend_pid,
            backend_start: row.backend_start,
            cancel_requested: row.cancel_requested,
            interruptions: row.interruptions,
        })
        .collect())
}

/// Takes an orphan from its dead owner, to end as `ending` says. Call it only when the owner is buried, its sessions on
/// the target are gone, and no transaction of it is in doubt. `false` when it isn't buried, or somebody was faster.
///
/// # Errors
/// When the database fails.
pub fn rescue(connection: &mut PgConnection, orphan: &Orphan, ending: Ending) -> Result<bool, DbError> {
    use crate::db::schema::workers::dsl;
    let buried =
        dsl::workers.find(orphan.lease.worker_id).select(dsl::id).first::<Uuid>(connection).optional()?.is_none();
    if !buried {
        return Ok(false);
    }
    let endings = [(orphan.lease, ending)];
    Ok(!finish::end_for_the_dead(connection, &endings)?.is_empty())
}

/// Makes sure that a process is dead, and stays so: from now on it can neither claim nor begin anything, and it
/// finds its row gone at its next beat. `false` when it is alive.
///
/// # Errors
/// When the database fails.
pub fn bury(connection: &mut PgConnection, worker_id: Uuid) -> Result<bool, DbError> {
    connection.transaction(|connection| try_bury(connection, worker_id))
}

fn try_bury(connection: &mut PgConnection, worker_id: Uuid) -> Result<bool, DbError> {
    #[derive(QueryableByName)]
    struct Alive {
        #[diesel(sql_type = Bool)]
        alive: bool,
    }
    let rows = diesel::sql_query(
        "SELECT beat_at >= clock_timestamp() - $2 * interval '1 second' AS alive FROM workers WHERE id = $1 FOR UPDATE",
    )
    .bind::<diesel::sql_types::Uuid, _>(worker_id)
    .bind::<Double, _>(DEAD_AFTER.as_secs_f64())
    .load::<Alive>(connection)?;
    if rows.iter().any(|row| row.alive) {
        return Ok(false);
    }
    unregister(connection, worker_id)?;
    Ok(true)
}

/// The end of an orphan of which nothing is in doubt: handed back if its kind may run again, ended otherwise.
///
/// # Errors
/// Never in practice: the error has a JSON form.
pub fn ending_of(orphan: &Orphan, repeatable: bool) -> Result<Ending, DbError> {
    if orphan.cancel_requested && repeatable {
        return Ok(Ending::Finished(Finished { interrupted: true, ..Finished::plain(JobState::Cancelled) }));
    }
    interrupted(orphan.interruptions, repeatable, "the worker died")
}

/// The end of an attempt that was interrupted: handed back, or `poison` when it is one too many. One that may not be
/// repeated ends as `outcome_unknown`.
///
/// # Errors
/// Never in practice: the error has a JSON form.
pub fn interrupted(interruptions_before: i32, repeatable: bool, why: &str) -> Result<Ending, DbError> {
    if !repeatable {
        return failed(&outcome_unknown(why));
    }
    if interruptions_before.saturating_add(1) >= MAX_INTERRUPTIONS {
        let message = format!("interrupted {MAX_INTERRUPTIONS} times, the last time because {why}");
        let error = JobError::new(ErrorCode::Poison, message).with_hint("it may be what ends the process that runs it");
        return failed(&error);
    }
    let error = JobError::new(ErrorCode::Interrupted, why).retryable();
    Ok(Ending::HandBack { error: json(&error)? })
}

/// The error of an attempt that may have taken effect and may not be repeated.
pub fn outcome_unknown(why: &str) -> JobError {
    JobError::new(ErrorCode::OutcomeUnknown, format!("{why}, and nobody knows whether its work took effect"))
        .with_hint("look at the target before you submit it again")
}

fn failed(error: &JobError) -> Result<Ending, DbError> {
    Ok(Ending::Finished(Finished { error: Some(json(error)?), interrupted: true, ..Finished::plain(JobState::Failed) }))
}

fn json<T: Serialize + ?Sized>(value: &T) -> Result<RawJson, DbError> {
    Ok(RawJson::of(value).map_err(|e| diesel::result::Error::SerializationError(Box::new(e)))?)
}

/// Between two beats there may be so much time without a doubt: two of them missing.
const GAP_MS: u64 = 6_000;

static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// From 1: 0 stands for no beat.
fn ms_of(at: Instant) -> u64 {
    u64::try_from(at.saturating_duration_since(*EPOCH).as_millis()).unwrap_or(u64::MAX).saturating_add(1)
}

/// How this process does, for /readyz. Written by the worker's threads, read without any database.
#[derive(Debug, Default)]
pub struct Health {
    /// Milliseconds from [`EPOCH`] to the last beat that reached the database, and one; 0 before the first. By a clock
    /// that nobody sets: a correction of the time must not look like an outage.
    last_beat_ms: AtomicU64,
    /// The first beat of those that came without a gap, counted alike.
    steady_since_ms: AtomicU64,
    has_workers: AtomicBool,
    stopping: AtomicBool,
    /// Requests that wait for something are to be answered now.
    closing: watch::Sender<bool>,
}

impl Health {
    /// This process runs workers: it is ready only while they beat.
    pub fn expect_workers(&self) {
        self.has_workers.store(true, Ordering::Relaxed);
    }

    /// A beat reached the database that was sent at `at`. Its answer may have taken seconds, and the database counts from
    /// the beat: so does whoever has to stop before it is declared dead.
    pub fn beat(&self, at: Instant) {
        self.beat_at(ms_of(at));
    }

    /// How long beats have come without a gap, up to now. Zero when one is missing at the moment: whoever was away
    /// itself, or cut off, can't tell who else was.
    pub fn steady_for(&self) -> Duration {
        Duration::from_millis(self.steady_at(ms_of(Instant::now())))
    }

    fn beat_at(&self, now: u64) {
        let last = self.last_beat_ms.load(Ordering::Acquire);
        // Stored first: whoever sees the new beat must not take it for one of the old series.
        if last == 0 || now.saturating_sub(last) > GAP_MS {
            self.steady_since_ms.store(now, Ordering::Release);
        }
        self.last_beat_ms.store(now, Ordering::Release);
    }

    fn steady_at(&self, now: u64) -> u64 {
        let last = self.last_beat_ms.load(Ordering::Acquire);
        if last == 0 || now.saturating_sub(last) > GAP_MS {
            return 0;
        }
        now.saturating_sub(self.steady_since_ms.load(Ordering::Acquire))
    }

    /// The process is going down: nothing new is accepted or claimed.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// The process is going down.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// The process is about to close its sockets: whoever waits is answered as things are.
    pub fn close(&self) {
        self.closing.send_replace(true);
    }

    /// Waits until [`Health::close`] was called.
    pub async fn closing(&self) {
        // The sender lives as long as this does.
        let _ = self.closing.subscribe().wait_for(|closing| *closing).await;
    }

    /// The workers of this process, if it has any, reach the database.
    pub fn workers_ready(&self) -> bool {
        if !self.has_workers.load(Ordering::Relaxed) {
            return true;
        }
        let last = self.last_beat_ms.load(Ordering::Relaxed);
        let age = ms_of(Instant::now()).saturating_sub(last);
        last > 0 && u128::from(age) < STOP_WORK_AFTER.as_millis()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_between_beats_starts_the_count_anew() {
        let health = Health::default();
        assert_eq!(health.steady_at(60_000), 0, "there was no beat yet");
        for beat in [1_000, 3_000, 5_000, 11_000] {
            health.beat_at(beat);
        }
        assert_eq!(health.steady_at(12_000), 11_000);
        assert_eq!(health.steady_at(17_000), 16_000);
        // Stopped for a while: before the first beat afterwards, and after it.
        assert_eq!(health.steady_at(17_001), 0);
        health.beat_at(20_000);
        assert_eq!(health.steady_at(20_000), 0);
        health.beat_at(22_000);
        assert_eq!(health.steady_at(23_000), 3_000);
    }

    #[test]
    fn beats_of_now_are_steady() {
        let health = Health::default();
        assert_eq!(health.steady_for(), Duration::ZERO);
        health.beat(Instant::now());
        assert!(health.steady_for() < DEAD_AFTER);
    }

    #[test]
    fn a_beat_counts_from_when_it_was_sent() {
        let health = Health::default();
        let sent = Instant::now() + Duration::from_secs(3600);
        health.beat(sent);
        assert_eq!(health.last_beat_ms.load(Ordering::Relaxed), ms_of(sent));
    }
}
