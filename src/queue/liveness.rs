//! Who is alive, by their beats, and what the dead left behind.
//!
//! One beat per process, and each changes the number in its row. A process whose number was the same for
//! [`DEAD_AFTER`] is dead: it may still be running, but it has lost its leases. How long that is says the clock that the
//! looker's machine counts by and nobody sets ([`Sightings`](crate::queue::sightings::Sightings)); the time of a beat is
//! for people. Ending its sessions on a target is not done here; the janitor does it before it calls [`rescue`].

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Integer, Json, Nullable, Text, Timestamptz};
use tokio::sync::watch;
use uuid::Uuid;

use crate::db::{DbError, prepared};
use crate::queue::finish::{self, Became, Ending, Finished};
use crate::queue::interruptions::{Interruption, interrupted};
use crate::queue::model::{JobState, Lease, RawJson};
use crate::queue::overview::TargetHealth;
use crate::queue::sightings::Sighted;

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
            dsl::targets.eq(RawJson::column(&identity.targets)?),
            dsl::started_at.eq(diesel::dsl::now),
            dsl::beat_at.eq(diesel::dsl::now),
        ))
        .on_conflict(dsl::id)
        .do_update()
        .set((dsl::beat_at.eq(diesel::dsl::now), dsl::beat.eq(dsl::beat + 1)))
        .execute(connection)?;
    Ok(())
}

/// Beats, and says how the process' targets are where there is anything new, and that it shuts down where it does.
/// `false` when the process was declared dead meanwhile: its leases are gone, and it goes on under a new id.
///
/// # Errors
/// When the database fails.
pub fn beat(
    connection: &mut PgConnection,
    id: Uuid,
    targets: Option<&[TargetHealth]>,
    stopping: bool,
) -> Result<bool, DbError> {
    let statement = prepared(
        "UPDATE workers SET beat = beat + 1, beat_at = clock_timestamp(), targets = coalesce($2, targets),
                stopping_at = CASE WHEN $3 THEN coalesce(stopping_at, clock_timestamp()) END
          WHERE id = $1",
    );
    let changed = statement
        .bind::<diesel::sql_types::Uuid, _>(id)
        .bind::<Nullable<Json>, _>(targets.map(RawJson::column).transpose()?)
        .bind::<Bool, _>(stopping)
        .execute(connection)?;
    Ok(changed == 1)
}

/// Takes a process off the list, at its own end. What it still holds was left in order, and stays known as such.
///
/// # Errors
/// When the database fails.
pub fn unregister(connection: &mut PgConnection, id: Uuid) -> Result<(), DbError> {
    // In a statement of its own it could be there without the other.
    prepared(
        "WITH w AS (DELETE FROM workers WHERE id = $1 RETURNING id)
         INSERT INTO stopped_workers (id, stopped_at) SELECT w.id, clock_timestamp() FROM w ON CONFLICT (id) DO NOTHING",
    )
    .bind::<diesel::sql_types::Uuid, _>(id)
    .execute(connection)?;
    Ok(())
}

/// How often each process on the list has beaten.
///
/// # Errors
/// When the database fails.
pub fn beats(connection: &mut PgConnection) -> Result<Vec<Sighted>, DbError> {
    use crate::db::schema::workers::dsl;
    let rows: Vec<(Uuid, i64)> = dsl::workers.select((dsl::id, dsl::beat)).load(connection)?;
    Ok(rows.into_iter().map(|(id, beat)| Sighted { id, beat }).collect())
}

/// Takes those of the dead off the list that have been so for an hour, by the clock, and hold nothing any more; and forgets
/// those that had stopped before.
///
/// # Errors
/// When the database fails.
pub fn forget_the_dead(connection: &mut PgConnection, dead: &[Sighted]) -> Result<usize, DbError> {
    let (ids, beats) = columns(dead);
    diesel::sql_query(
        "DELETE FROM stopped_workers s
          WHERE s.stopped_at < clock_timestamp() - interval '1 hour'
            AND NOT EXISTS (SELECT FROM jobs j WHERE j.worker_id = s.id AND j.state = 'running')",
    )
    .execute(connection)?;
    Ok(diesel::sql_query(
        "DELETE FROM workers w USING unnest($1, $2) AS d(id, beat)
          WHERE w.id = d.id AND w.beat = d.beat AND w.beat_at < clock_timestamp() - interval '1 hour'
            AND NOT EXISTS (SELECT FROM jobs j WHERE j.worker_id = w.id AND j.state = 'running')",
    )
    .bind::<Array<diesel::sql_types::Uuid>, _>(ids)
    .bind::<Array<BigInt>, _>(beats)
    .execute(connection)?)
}

fn columns(sighted: &[Sighted]) -> (Vec<Uuid>, Vec<i64>) {
    sighted.iter().map(|worker| (worker.id, worker.beat)).unzip()
}

/// A running attempt as its row says.
#[derive(Clone, Debug)]
pub struct Held {
    /// The lease.
    pub lease: Lease,
    /// The kind of work.
    pub kind: String,
    /// The database that it was to run on.
    pub target: String,
    /// Attempts charged, this one included.
    pub attempt: i32,
}

/// What this process holds by the rows: to be compared with what it really runs. A claim whose answer is on its way is
/// among them.
///
/// # Errors
/// When the database fails.
pub fn held(connection: &mut PgConnection, worker_id: Uuid) -> Result<Vec<Held>, DbError> {
    use crate::db::schema::jobs::dsl;
    let rows: Vec<(Uuid, i64, String, String, i32)> = dsl::jobs
        .filter(dsl::worker_id.eq(worker_id).and(dsl::state.eq(JobState::Running.as_str())))
        .select((dsl::id, dsl::lease, dsl::kind, dsl::target, dsl::attempt))
        .load(connection)?;
    let held = |(job_id, number, kind, target, attempt)| Held {
        lease: Lease { job_id, number, worker_id },
        kind,
        target,
        attempt,
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
    /// Attempts charged, this one included.
    pub attempt: i32,
    /// How long ago it was claimed, by the database's clock, in milliseconds.
    pub age_ms: i64,
    /// The beat with which its owner was found dead; `None` when the owner isn't on the list any more.
    pub beat: Option<i64>,
    /// Its owner was shutting down, or had done so.
    pub stopping: bool,
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
    attempt: i32,
    #[diesel(sql_type = BigInt)]
    age_ms: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    beat: Option<i64>,
    #[diesel(sql_type = Bool)]
    stopping: bool,
}

/// At most `most` running jobs of these kinds and targets whose owner is one of `dead`, and hasn't beaten since that was
/// found, or isn't on the list.
///
/// # Errors
/// When the database fails.
pub fn orphans(
    connection: &mut PgConnection,
    kinds: &[String],
    targets: &[String],
    dead: &[Sighted],
    most: i64,
) -> Result<Vec<Orphan>, DbError> {
    let (ids, beats) = columns(dead);
    let rows = diesel::sql_query(
        "SELECT j.id, j.lease, j.worker_id, j.kind, j.target, j.backend_pid, j.backend_start, j.attempt,
                j.cancel_requested_at IS NOT NULL AS cancel_requested, w.beat,
                greatest(0, extract(epoch FROM clock_timestamp() - j.started_at) * 1000)::bigint AS age_ms,
                w.stopping_at IS NOT NULL OR s.id IS NOT NULL AS stopping
           FROM jobs j LEFT JOIN workers w ON w.id = j.worker_id LEFT JOIN stopped_workers s ON s.id = j.worker_id
          WHERE j.state = 'running' AND j.kind = ANY($1) AND j.target = ANY($2)
            AND (w.id IS NULL OR (w.id, w.beat) IN (SELECT d.id, d.beat FROM unnest($3, $4) AS d(id, beat)))
          ORDER BY j.id LIMIT $5",
    )
    .bind::<Array<Text>, _>(kinds)
    .bind::<Array<Text>, _>(targets)
    .bind::<Array<diesel::sql_types::Uuid>, _>(ids)
    .bind::<Array<BigInt>, _>(beats)
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
            attempt: row.attempt,
            age_ms: row.age_ms,
            beat: row.beat,
            stopping: row.stopping,
        })
        .collect())
}

/// Takes an orphan from its dead owner, to end as `ending` says. Call it only when the owner is buried, its sessions on
/// the target are gone, and no transaction of it is in doubt. What became of it; `None` when the owner isn't buried, or
/// somebody was faster.
///
/// # Errors
/// When the database fails.
pub fn rescue(connection: &mut PgConnection, orphan: &Orphan, ending: Ending) -> Result<Option<Became>, DbError> {
    use crate::db::schema::workers::dsl;
    let buried =
        dsl::workers.find(orphan.lease.worker_id).select(dsl::id).first::<Uuid>(connection).optional()?.is_none();
    if !buried {
        return Ok(None);
    }
    let endings = [(orphan.lease, ending)];
    Ok(finish::end_for_the_dead(connection, &endings)?.remove(&orphan.lease.job_id))
}

/// Makes sure that a process is dead, and stays so: from now on it can neither claim nor begin anything, and it
/// finds its row gone at its next beat. `beat` is the one with which it was found dead, `None` when it wasn't on the list.
/// `false` when it has beaten since: it is alive. That it was shutting down outlives its row: not all that it left is
/// taken at once.
///
/// # Errors
/// When the database fails.
pub fn bury(connection: &mut PgConnection, worker_id: Uuid, beat: Option<i64>) -> Result<bool, DbError> {
    use crate::db::schema::workers::dsl;
    // A beat at the same moment is before this, and changes the number, or after it, and finds no row.
    prepared(
        "WITH w AS (DELETE FROM workers WHERE id = $1 AND beat = $2 RETURNING id, stopping_at)
         INSERT INTO stopped_workers (id, stopped_at) SELECT w.id, clock_timestamp() FROM w WHERE w.stopping_at IS NOT NULL
         ON CONFLICT (id) DO NOTHING",
    )
    .bind::<diesel::sql_types::Uuid, _>(worker_id)
    .bind::<Nullable<BigInt>, _>(beat)
    .execute(connection)?;
    Ok(dsl::workers.find(worker_id).select(dsl::id).first::<Uuid>(connection).optional()?.is_none())
}

/// The end of an orphan of which nothing is in doubt: handed back if its kind may run again, ended otherwise. A worker that
/// shut down, or was doing so when it died, is no loss: whoever stopped it lost patience, or a row was locked.
pub fn ending_of(orphan: &Orphan, repeatable: bool) -> Ending {
    if orphan.cancel_requested && repeatable {
        return Ending::from(Finished { interrupted: true, ..Finished::plain(JobState::Cancelled) });
    }
    match orphan.stopping {
        true => interrupted(Interruption::HandedBack, repeatable, "its worker was ended while it shut down"),
        false => interrupted(Interruption::WorkerLost, repeatable, "the worker died"),
    }
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
