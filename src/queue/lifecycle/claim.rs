//! Claiming: queued rows become running ones, each with a fresh lease, and the claim stays cheap however many dead
//! entries an old snapshot keeps alive.
//!
//! A claim starts behind the last row that this fetcher consumed in each queue and priority, so it never walks over
//! entries that it has claimed before. What appears behind that position (a late commit, a job handed back) is found
//! by a sweep over rows whose transaction the previous sweep couldn't see yet, or is named by a hint.

use std::collections::HashMap;
use std::sync::LazyLock;

use chrono::{DateTime, TimeZone, Utc};
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Integer, Nullable, SmallInt, Text, Timestamptz};
use uuid::Uuid;

use crate::db::{DbError, prepared};
use crate::queue::fleet::signals::ReadyHint;
use crate::queue::model::{JobSpec, Lease, MAX_PRIORITY, SPEC, sql_list};

/// A row's place in its queue and priority.
pub type Place = (DateTime<Utc>, Uuid);

/// A job that this process may work on until its deadline.
#[derive(Clone, Debug)]
pub struct ClaimedJob {
    /// The right to write about it.
    pub lease: Lease,
    /// What its caller asked for.
    pub spec: JobSpec,
    /// Attempts charged, this one included.
    pub attempt: i32,
    /// When it was claimed, by the database's clock.
    pub started_at: DateTime<Utc>,
    /// The version of the saved statement that an earlier attempt ran.
    pub statement_version: Option<String>,
}

/// What a fetcher serves.
#[derive(Clone, Debug)]
pub struct Scope {
    /// The process.
    pub worker_id: Uuid,
    /// Kinds that it knows: a job of another kind is left alone.
    pub kinds: Vec<String>,
    /// Targets that it can reach.
    pub targets: Vec<String>,
    /// The queues, each claimed on its own.
    pub queues: Vec<String>,
}

/// Where a fetcher is in each queue and priority, and which transactions its last sweep couldn't see.
#[derive(Debug, Default)]
pub struct Positions {
    places: HashMap<(String, i16), Place>,
    swept: Option<String>,
}

impl Positions {
    /// Forgets everything: the next claim starts at the first row. For the start and after a lost connection.
    pub fn reset(&mut self) {
        self.places.clear();
        self.swept = None;
    }

    /// Goes back to just before a row, if it has been passed.
    pub fn go_back(&mut self, hint: &ReadyHint) {
        if let Some(place) = self.places.get_mut(&(hint.queue.clone(), hint.priority))
            && *place >= (hint.run_at, hint.id)
        {
            *place = just_before(hint.run_at, hint.id);
        }
    }

    /// Behind which row the next claim starts.
    pub fn place(&self, queue: &str, priority: i16) -> Place {
        self.places.get(&(queue.to_owned(), priority)).copied().unwrap_or_else(start)
    }

    /// After a full batch there may be more between its last row and where the fetcher was before.
    fn advance(&mut self, queue: &str, priority: i16, last: Place, full: bool) {
        let place = self.places.entry((queue.to_owned(), priority)).or_insert_with(start);
        *place = if full { last } else { last.max(*place) };
    }
}

/// Before every row.
fn start() -> Place {
    (Utc.timestamp_opt(0, 0).single().unwrap_or_default(), Uuid::nil())
}

/// The place whose successor is the given row: ids are compared as numbers.
fn just_before(run_at: DateTime<Utc>, id: Uuid) -> Place {
    match id.as_u128().checked_sub(1) {
        Some(previous) => (run_at, Uuid::from_u128(previous)),
        None => (run_at - chrono::TimeDelta::microseconds(1), Uuid::max()),
    }
}

#[derive(QueryableByName)]
struct ClaimedRow {
    #[diesel(sql_type = diesel::sql_types::Uuid)]
    id: Uuid,
    #[diesel(sql_type = BigInt)]
    lease: i64,
    #[diesel(sql_type = Timestamptz)]
    run_at: DateTime<Utc>,
    #[diesel(embed)]
    spec: JobSpec,
    #[diesel(sql_type = Integer)]
    attempt: i32,
    #[diesel(sql_type = Timestamptz)]
    started_at: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Text>)]
    statement_version: Option<String>,
}

/// The claim. Priorities are tried in order, each by one range scan from its own position, and the scan of the next
/// one begins only when the ones before it gave too few. `ANY(ARRAY(…))` keeps the plan on the primary key: a join
/// with the locked rows can flip to a hash join over the whole table. A process that was declared dead claims nothing, and
/// nobody claims of a paused queue: both are known before the first row is looked at.
pub static CLAIM_SQL: LazyLock<String> = LazyLock::new(|| {
    format!(
        "
    UPDATE jobs SET state = 'running', lease = lease + 1, attempt = attempt + 1, version = version + 1,
           worker_id = $1, started_at = clock_timestamp(), queued_xid = NULL, backend_pid = NULL, backend_start = NULL,
           deadline_at = clock_timestamp() + timeout_ms * interval '1 millisecond'
     WHERE state = 'queued' AND EXISTS (SELECT FROM workers w WHERE w.id = $1)
       AND NOT EXISTS (SELECT FROM queues q WHERE q.name = $5 AND q.paused_at IS NOT NULL) AND id = ANY(ARRAY(
        SELECT c.id FROM unnest($2, $3, $4) AS p(priority, run_at, id), LATERAL (
            SELECT j.id FROM jobs j
             WHERE j.state = 'queued' AND j.queue = $5 AND j.priority = p.priority
               AND (j.run_at, j.id) > (p.run_at, p.id) AND j.kind = ANY($6) AND j.target = ANY($7)
             ORDER BY j.run_at, j.id LIMIT $8 FOR UPDATE SKIP LOCKED) c
         LIMIT $8))
    RETURNING id, lease, attempt, started_at, statement_version, {}",
        sql_list(SPEC.iter().copied(), "")
    )
});

/// Claims at most `most` jobs of one queue, in the order of priority, `run_at` and id.
///
/// # Errors
/// When the database fails; the positions are then as they were.
pub fn claim(
    connection: &mut PgConnection,
    scope: &Scope,
    queue: &str,
    positions: &mut Positions,
    most: i64,
) -> Result<Vec<ClaimedJob>, DbError> {
    if positions.swept.is_none() {
        // What commits from here on is found by the next sweep; what is there already, by this claim.
        sweep(connection, &scope.queues, positions)?;
    }
    let priorities: Vec<i16> = (0..=MAX_PRIORITY).collect();
    let (run_ats, ids): (Vec<_>, Vec<_>) = priorities.iter().map(|p| positions.place(queue, *p)).unzip();
    let mut rows = prepared(CLAIM_SQL.as_str())
        .bind::<diesel::sql_types::Uuid, _>(scope.worker_id)
        .bind::<Array<SmallInt>, _>(&priorities)
        .bind::<Array<Timestamptz>, _>(run_ats)
        .bind::<Array<diesel::sql_types::Uuid>, _>(ids)
        .bind::<Text, _>(queue)
        .bind::<Array<Text>, _>(&scope.kinds)
        .bind::<Array<Text>, _>(&scope.targets)
        .bind::<BigInt, _>(most)
        .load::<ClaimedRow>(connection)?;
    rows.sort_by_key(|row| (row.spec.priority, row.run_at, row.id));
    let full = i64::try_from(rows.len()).unwrap_or(i64::MAX) >= most;
    for row in &rows {
        positions.advance(queue, row.spec.priority, (row.run_at, row.id), full);
    }
    Ok(rows.into_iter().map(|row| row.claimed(scope.worker_id)).collect())
}

impl ClaimedRow {
    fn claimed(self, worker_id: Uuid) -> ClaimedJob {
        ClaimedJob {
            lease: Lease { job_id: self.id, number: self.lease, worker_id },
            spec: self.spec,
            attempt: self.attempt,
            started_at: self.started_at,
            statement_version: self.statement_version,
        }
    }
}

#[derive(QueryableByName)]
struct Snapshot {
    #[diesel(sql_type = Text)]
    snapshot: String,
}

#[derive(QueryableByName)]
struct Behind {
    #[diesel(sql_type = Text)]
    queue: String,
    #[diesel(sql_type = SmallInt)]
    priority: i16,
    #[diesel(sql_type = Timestamptz)]
    run_at: DateTime<Utc>,
    #[diesel(sql_type = diesel::sql_types::Uuid)]
    id: Uuid,
}

/// Goes back to rows that became visible since the last sweep behind a position. The first sweep after a
/// [`Positions::reset`] only notes where it begins.
///
/// A row is new to this sweep if its transaction was not over at the last one: it had not begun (its id is at or
/// above the old snapshot's xmax), or it was in progress (its id is listed there).
///
/// # Errors
/// When the database fails; the next sweep then covers this one's span too.
pub fn sweep(connection: &mut PgConnection, queues: &[String], positions: &mut Positions) -> Result<(), DbError> {
    // Taken before the rows are read: what commits in between is seen by both sweeps, never by none.
    let now = prepared("SELECT pg_current_snapshot()::text AS snapshot").get_result::<Snapshot>(connection)?;
    let Some(previous) = positions.swept.clone() else {
        positions.swept = Some(now.snapshot);
        return Ok(());
    };
    let rows = prepared(
        "SELECT DISTINCT ON (queue, priority) queue, priority, run_at, id
           FROM (SELECT queue, priority, run_at, id FROM jobs
                  WHERE state = 'queued' AND queued_xid >= pg_snapshot_xmax($1::pg_snapshot)
                 UNION ALL
                 SELECT queue, priority, run_at, id FROM jobs
                  WHERE state = 'queued' AND queued_xid = ANY(ARRAY(SELECT pg_snapshot_xip($1::pg_snapshot)))) fresh
          WHERE queue = ANY($2) ORDER BY queue, priority, run_at, id",
    )
    .bind::<Text, _>(previous)
    .bind::<Array<Text>, _>(queues)
    .load::<Behind>(connection)?;
    for row in rows {
        positions.go_back(&ReadyHint { queue: row.queue, priority: row.priority, run_at: row.run_at, id: row.id });
    }
    positions.swept = Some(now.snapshot);
    Ok(())
}

/// Notes which version of a saved statement the attempt runs, before anything of it runs, and the time that it has at most.
/// `false` when the lease is lost.
///
/// # Errors
/// When the database fails.
pub fn note_statement(
    connection: &mut PgConnection,
    lease: &Lease,
    version: &str,
    longest_ms: i64,
) -> Result<bool, DbError> {
    let changed = prepared(
        "UPDATE jobs SET statement_version = $4, version = version + 1, timeout_ms = least(timeout_ms, $5),
                deadline_at = least(deadline_at, started_at + $5 * interval '1 millisecond')
          WHERE id = $1 AND lease = $2 AND worker_id = $3 AND state = 'running'
            AND EXISTS (SELECT FROM workers w WHERE w.id = $3)",
    )
    .bind::<diesel::sql_types::Uuid, _>(lease.job_id)
    .bind::<BigInt, _>(lease.number)
    .bind::<diesel::sql_types::Uuid, _>(lease.worker_id)
    .bind::<Text, _>(version)
    .bind::<BigInt, _>(longest_ms)
    .execute(connection)?;
    Ok(changed == 1)
}

/// What the row says when a session is noted on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noted {
    /// The lease holds: go on.
    Held,
    /// The lease holds, and the job is to be cancelled: don't begin.
    CancelRequested,
    /// The lease holds, and the job is to be paused: don't begin.
    PauseRequested,
    /// Somebody else has the job: stop.
    LeaseLost,
}

#[derive(QueryableByName)]
struct NotedRow {
    #[diesel(sql_type = Bool)]
    cancel_requested: bool,
    #[diesel(sql_type = Bool)]
    pause_requested: bool,
}

/// Notes which server process runs the attempt, before it is told to do anything, and reads the flags of cancel and
/// pause in the same statement: a request between claim and dispatch is never overlooked.
///
/// # Errors
/// When the database fails.
pub fn note_backend(
    connection: &mut PgConnection,
    lease: &Lease,
    pid: i32,
    backend_start: DateTime<Utc>,
) -> Result<Noted, DbError> {
    let row = prepared(
        "UPDATE jobs SET backend_pid = $4, backend_start = $5, version = version + 1
          WHERE id = $1 AND lease = $2 AND worker_id = $3 AND state = 'running'
            AND EXISTS (SELECT FROM workers w WHERE w.id = $3)
         RETURNING cancel_requested_at IS NOT NULL AS cancel_requested,
                   pause_requested_at IS NOT NULL AS pause_requested",
    )
    .bind::<diesel::sql_types::Uuid, _>(lease.job_id)
    .bind::<BigInt, _>(lease.number)
    .bind::<diesel::sql_types::Uuid, _>(lease.worker_id)
    .bind::<Integer, _>(pid)
    .bind::<Timestamptz, _>(backend_start)
    .get_result::<NotedRow>(connection)
    .optional()?;
    Ok(match row {
        None => Noted::LeaseLost,
        Some(row) if row.cancel_requested => Noted::CancelRequested,
        Some(row) if row.pause_requested => Noted::PauseRequested,
        Some(_) => Noted::Held,
    })
}
