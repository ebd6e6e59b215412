//! Ending attempts: jobs finish, wait for a retry, or are handed back, many by one statement, each under its lease.
//!
//! A row whose lease has moved on is not touched; its attempt then has no say. Nor is one of which a transaction on its
//! target is in doubt, unless the end says what became of that. Leaving `jobs`, entering
//! `finished_jobs` and the result's manifest are one statement: there is no moment at which half of it can be seen. The
//! attempt that ended its job is told by the record of the job.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Json, Nullable, Text};
use serde::Serialize;
use uuid::Uuid;

use crate::db::{DbError, prepared};
use crate::queue::lifecycle::checkpoint::{self, COUNTED_ANEW};
use crate::queue::lifecycle::end::Interruption;
use crate::queue::lifecycle::end::{Became, Ending, Finished, FinishedResult, Held};
use crate::queue::lifecycle::interruptions::{self, InARow};
use crate::queue::model::{JobError, JobState, Lease, RawJson, carried, sql_list};
use crate::queue::record::log::{self, LogLine};
use crate::queue::record::partitions;

#[derive(QueryableByName)]
struct Touched {
    #[diesel(sql_type = diesel::sql_types::Uuid)]
    id: Uuid,
}

/// Writes the ends of attempts. Says which of them still held their lease: the others changed nothing.
///
/// # Errors
/// When the database fails. Nothing is written then.
pub fn end(connection: &mut PgConnection, endings: &[(Lease, Ending)]) -> Result<Held, DbError> {
    end_with_log(connection, endings, &[])
}

/// As [`end`], with what the attempts said last. When all are over and none says anything more, one statement is all it
/// takes: no round trip goes to a transaction around it.
///
/// # Errors
/// As [`end`].
pub fn end_with_log(
    connection: &mut PgConnection,
    endings: &[(Lease, Ending)],
    lines: &[(Lease, Vec<LogLine>)],
) -> Result<Held, DbError> {
    let finished = finished(endings);
    if finished.len() == endings.len() && lines.is_empty() {
        let ids = finished.iter().map(|(lease, _)| lease.job_id);
        let work = |connection: &mut PgConnection| finish(connection, &finished, Owners::Living);
        return partitions::with_days_of(connection, ids, work).map(as_said);
    }
    in_a_transaction(connection, endings, |connection| {
        let living = living(connection, endings)?;
        let of_the_living: Vec<(Lease, Ending)> =
            endings.iter().filter(|(lease, _)| living.contains(&lease.worker_id)).cloned().collect();
        let held = write(connection, &of_the_living)?;
        let of_the_held: Vec<(Lease, Vec<LogLine>)> =
            lines.iter().filter(|(lease, _)| held.contains_key(&lease.job_id)).cloned().collect();
        log::write_last(connection, of_the_held)?;
        Ok(held)
    })
}

/// As [`end`], by whoever buried the owners.
///
/// # Errors
/// As [`end`].
pub fn end_for_the_dead(connection: &mut PgConnection, endings: &[(Lease, Ending)]) -> Result<Held, DbError> {
    in_a_transaction(connection, endings, |connection| write(connection, endings))
}

/// A job may have waited past the days of history that are kept ready.
fn in_a_transaction<T>(
    connection: &mut PgConnection,
    endings: &[(Lease, Ending)],
    work: impl Fn(&mut PgConnection) -> Result<T, DbError>,
) -> Result<T, DbError> {
    let ids = endings.iter().map(|(lease, _)| lease.job_id);
    partitions::with_days_of(connection, ids, |connection| connection.transaction(&work))
}

/// The owners that are on the sql_list, kept there until the transaction ends: a process that was declared dead ends
/// nothing, and none is declared dead in between.
fn living(connection: &mut PgConnection, endings: &[(Lease, Ending)]) -> Result<HashSet<Uuid>, DbError> {
    use crate::db::schema::workers::dsl;
    let owners: HashSet<Uuid> = endings.iter().map(|(lease, _)| lease.worker_id).collect();
    let found: Vec<Uuid> =
        dsl::workers.filter(dsl::id.eq_any(owners)).order(dsl::id).select(dsl::id).for_key_share().load(connection)?;
    Ok(found.into_iter().collect())
}

fn as_said(jobs: HashSet<Uuid>) -> Held {
    jobs.into_iter().map(|id| (id, Became::AsSaid)).collect()
}

fn write(connection: &mut PgConnection, endings: &[(Lease, Ending)]) -> Result<Held, DbError> {
    let mut held = Held::new();
    let finished = finished(endings);
    if !finished.is_empty() {
        held.extend(as_said(finish(connection, &finished, Owners::Known)?));
    }
    let others = endings.iter().filter(|(_, ending)| !matches!(ending, Ending::Finished(_)));
    let overruled = overruled(connection, endings)?;
    let (over, others): (Vec<_>, Vec<_>) = others.partition(|(lease, _)| overruled.contains_key(&lease.job_id));
    if !over.is_empty() {
        let ends: Vec<(&Lease, &Finished)> =
            over.iter().filter_map(|(lease, _)| Some((lease, &overruled.get(&lease.job_id)?.1))).collect();
        let ended = finish(connection, &ends, Owners::Known)?;
        held.extend(ended.into_iter().filter_map(|id| Some((id, overruled.get(&id)?.0))));
    }
    if !others.is_empty() {
        held.extend(put_back(connection, &others)?);
    }
    Ok(held)
}

fn finished(endings: &[(Lease, Ending)]) -> Vec<(&Lease, &Finished)> {
    let finished = endings.iter().filter_map(|(lease, ending)| match ending {
        Ending::Finished(finished) => Some((lease, finished.as_ref())),
        _ => None,
    });
    finished.collect()
}

/// A job that would wait again: what was asked of it, and its interruptions in a row.
type Waiting = (Uuid, Option<DateTime<Utc>>, i32, i32, bool);

/// Of the jobs that would wait again, those that end instead, unless a transaction of theirs is in doubt: whether that
/// one took effect comes first. A caller was told that his job would be stopped: it has, and doesn't come back. An
/// interruption may be one too many. Locked, so that no request comes in between.
fn overruled(
    connection: &mut PgConnection,
    endings: &[(Lease, Ending)],
) -> Result<HashMap<Uuid, (Became, Finished)>, DbError> {
    use crate::db::schema::jobs::dsl;
    let waiting = endings.iter().filter(|(_, ending)| !matches!(ending, Ending::Finished(_)));
    let waiting: HashMap<Uuid, &Ending> = waiting.map(|(lease, ending)| (lease.job_id, ending)).collect();
    if waiting.is_empty() {
        return Ok(HashMap::new());
    }
    let rows: Vec<Waiting> = dsl::jobs
        .filter(dsl::id.eq_any(waiting.keys()).and(diesel::dsl::sql::<Bool>(checkpoint::NOT_IN_DOUBT)))
        .order(dsl::id)
        .select((
            dsl::id,
            dsl::cancel_requested_at,
            dsl::lost_in_a_row,
            dsl::interrupted_in_a_row,
            diesel::dsl::sql::<Bool>(&checkpoint::moved("jobs.id")),
        ))
        .for_update()
        .load(connection)?;
    let mut overruled = HashMap::new();
    for (id, cancel_requested_at, lost, interrupted, moved) in rows {
        if cancel_requested_at.is_some() {
            overruled.insert(id, (Became::Cancelled, Finished::plain(JobState::Cancelled)));
        } else if let Some(Ending::HandBack { by, error }) = waiting.get(&id)
            && let Some(error) = (InARow { lost, interrupted, moved }).poison(*by, &error.message)
        {
            overruled.insert(id, (Became::Poison, interruptions::failed(error)));
        }
    }
    Ok(overruled)
}

/// The owner of the row `j` is the one of the end `e`. Said so that no index can serve it: by the index of what a
/// worker holds, each end would look at everything that its worker runs.
const MINE: &str = "j.worker_id IS NOT DISTINCT FROM e.worker_id AND (j.state || '') = 'running'";

/// The end `e` says what became of the job's recorded transaction, or there is none.
const SETTLED: &str = "NOT EXISTS (SELECT FROM job_checkpoints c
     WHERE c.job_id = e.id AND c.xid IS NOT NULL AND c.xid::text IS DISTINCT FROM e.settled)";

/// Whose ends are written.
#[derive(Clone, Copy)]
enum Owners {
    /// Those on the list of the living, as [`living`] says, but by the same statement.
    Living,
    /// Everybody's: whoever asks knows better.
    Known,
}

impl Owners {
    /// Which rows of `e` count.
    fn condition(self) -> &'static str {
        match self {
            // The rows of the living are locked before the first job is touched.
            Owners::Living => {
                "WHERE e.worker_id = ANY(ARRAY(SELECT w.id FROM workers w WHERE w.id = ANY($3) ORDER BY w.id FOR KEY SHARE))"
            }
            Owners::Known => "",
        }
    }
}

fn finish(
    connection: &mut PgConnection,
    ends: &[(&Lease, &Finished)],
    owners: Owners,
) -> Result<HashSet<Uuid>, DbError> {
    let (columns, carried) = (sql_list(carried(), ""), sql_list(carried(), "d."));
    let whose = owners.condition();
    // What didn't end well may have committed batches.
    let batches = checkpoint::rows_affected("d.id", "d.settled");
    let sql = format!(
        "WITH e AS MATERIALIZED (
            SELECT * FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
                AS e(id, lease, worker_id, state, error, output, rows_returned, rows_affected, result_bytes, progress,
                     stored_rows, stored_bytes, truncated, manifest, interrupted, settled)
             {whose}),
        d AS (
            DELETE FROM jobs j USING e
             WHERE j.id = e.id AND j.lease = e.lease AND {MINE} AND {SETTLED}
            RETURNING j.*, e.state AS end_state, e.error AS end_error, e.output, e.rows_returned, e.rows_affected,
                      e.result_bytes, e.progress, e.stored_rows, e.stored_bytes, e.truncated, e.manifest, e.interrupted,
                      e.settled),
        f AS (
            INSERT INTO finished_jobs ({columns}, state, interruptions, version, finished_at, rows_returned,
                                       rows_affected, result_bytes, progress, output, error)
            SELECT {carried}, d.end_state, d.interruptions + d.interrupted::int, d.version + 1, clock_timestamp(),
                   d.rows_returned,
                   CASE WHEN d.end_state = 'succeeded' THEN d.rows_affected ELSE greatest(d.rows_affected, {batches}) END,
                   d.result_bytes, d.progress, d.output, d.end_error
              FROM d),
        r AS (
            INSERT INTO results (job_id, lease, state, rows, bytes, truncated, expires_at, manifest)
            SELECT d.id, d.lease, 'available', d.stored_rows, d.stored_bytes, d.truncated,
                   clock_timestamp() + d.result_ttl_ms * interval '1 millisecond', d.manifest
              FROM d WHERE d.manifest IS NOT NULL),
        k AS (DELETE FROM job_checkpoints c WHERE c.job_id = ANY(ARRAY(SELECT d.id FROM d)) AND NOT c.leaves)
        SELECT id FROM d"
    );
    let errors = json_column(ends.iter().map(|(_, finished)| finished.error.as_ref()))?;
    let progress = json_column(ends.iter().map(|(_, finished)| finished.progress.as_ref()))?;
    let results: Vec<Option<&FinishedResult>> = ends.iter().map(|(_, f)| f.result.as_ref()).collect();
    let rows = prepared(sql)
        .bind::<Array<diesel::sql_types::Uuid>, _>(column(ends, |(lease, _)| lease.job_id))
        .bind::<Array<BigInt>, _>(column(ends, |(lease, _)| lease.number))
        .bind::<Array<diesel::sql_types::Uuid>, _>(column(ends, |(lease, _)| lease.worker_id))
        .bind::<Array<Text>, _>(column(ends, |(_, f)| f.state.as_str()))
        .bind::<Array<Nullable<Json>>, _>(errors)
        .bind::<Array<Nullable<Json>>, _>(column(ends, |(_, f)| f.output.as_ref()))
        .bind::<Array<BigInt>, _>(column(ends, |(_, f)| f.statistics.rows_returned))
        .bind::<Array<BigInt>, _>(column(ends, |(_, f)| f.statistics.rows_affected))
        .bind::<Array<BigInt>, _>(column(ends, |(_, f)| f.statistics.result_bytes))
        .bind::<Array<Nullable<Json>>, _>(progress)
        .bind::<Array<Nullable<BigInt>>, _>(column(&results, |r| r.map(|r| r.rows)))
        .bind::<Array<Nullable<BigInt>>, _>(column(&results, |r| r.map(|r| r.bytes)))
        .bind::<Array<Nullable<Bool>>, _>(column(&results, |r| r.map(|r| r.truncated)))
        .bind::<Array<Nullable<Json>>, _>(column(&results, |r| r.map(|r| &r.manifest)))
        .bind::<Array<Bool>, _>(column(ends, |(_, f)| f.interrupted))
        .bind::<Array<Nullable<Text>>, _>(column(ends, |(_, f)| f.settled.as_deref()))
        .load::<Touched>(connection)?;
    Ok(rows.into_iter().map(|row| row.id).collect())
}

#[derive(QueryableByName)]
struct PutBackRow {
    #[diesel(sql_type = diesel::sql_types::Uuid)]
    id: Uuid,
    #[diesel(sql_type = Bool)]
    paused: bool,
}

/// One that is to be paused is, unless a transaction of it is in doubt: the next attempt finds out, and is paused then. One
/// that paused while its caller changed his mind can be claimed at once.
fn put_back(connection: &mut PgConnection, endings: &[&(Lease, Ending)]) -> Result<Held, DbError> {
    let parts: Vec<PutBack<'_>> = endings.iter().map(|(lease, ending)| PutBack::of(lease, ending)).collect();
    let errors = json_column(parts.iter().map(|part| part.error))?;
    let moved = checkpoint::moved("j.id");
    let rows = prepared(format!(
        "WITH e AS MATERIALIZED (
            SELECT * FROM unnest($1, $2, $3, $4, $5, $6, $7, $8)
                AS e(id, lease, worker_id, outcome, delay_ms, error, lost, anew)),
        old AS (
            SELECT j.id, j.lease, j.attempt, j.worker_id, j.started_at, j.backend_pid, j.statement_version, e.outcome,
                   e.delay_ms, e.error, e.lost, e.anew,
                   {moved} AS moved,
                   CASE WHEN j.pause_requested_at IS NOT NULL AND NOT EXISTS (
                            SELECT FROM job_checkpoints c WHERE c.job_id = j.id AND c.xid IS NOT NULL) THEN 'paused'
                        WHEN e.delay_ms > 0 THEN 'scheduled' ELSE 'queued' END AS state
              FROM jobs j JOIN e ON j.id = e.id AND j.lease = e.lease AND {MINE}
             ORDER BY j.id FOR UPDATE OF j),
        u AS (
            UPDATE jobs j SET
                   state = o.state,
                   run_at = CASE o.state WHEN 'scheduled' THEN clock_timestamp() + o.delay_ms * interval '1 millisecond'
                                 ELSE j.run_at END,
                   put_off_ms = CASE o.state WHEN 'scheduled' THEN o.delay_ms END,
                   queued_xid = CASE o.state WHEN 'queued' THEN pg_current_xact_id() END,
                   pause_requested_at = CASE o.state WHEN 'paused' THEN NULL ELSE j.pause_requested_at END,
                   attempt = j.attempt - (o.outcome <> 'retried')::int,
                   interruptions = j.interruptions + (o.outcome = 'interrupted')::int,
                   lost_in_a_row = CASE WHEN o.anew OR o.moved THEN 0 ELSE j.lost_in_a_row END + o.lost::int,
                   interrupted_in_a_row = CASE WHEN o.anew OR o.moved THEN 0 ELSE j.interrupted_in_a_row END
                                          + (o.outcome = 'interrupted')::int,
                   error = o.error, version = j.version + 1, worker_id = NULL, deadline_at = NULL,
                   backend_pid = NULL, backend_start = NULL
              FROM old o WHERE j.id = o.id
            RETURNING j.id, j.state = 'paused' AS paused),
        m AS (UPDATE job_checkpoints c SET {COUNTED_ANEW} FROM old o WHERE c.job_id = o.id AND o.moved),
        a AS (
            INSERT INTO attempts (job_id, lease, attempt, worker_id, started_at, finished_at, outcome, backend_pid, error,
                                  statement_version)
            SELECT id, lease, attempt, worker_id, started_at, clock_timestamp(), outcome, backend_pid, error,
                   statement_version
              FROM old)
        SELECT id, paused FROM u",
    ))
    .bind::<Array<diesel::sql_types::Uuid>, _>(column(&parts, |p| p.lease.job_id))
    .bind::<Array<BigInt>, _>(column(&parts, |p| p.lease.number))
    .bind::<Array<diesel::sql_types::Uuid>, _>(column(&parts, |p| p.lease.worker_id))
    .bind::<Array<Text>, _>(column(&parts, |p| p.outcome))
    .bind::<Array<BigInt>, _>(column(&parts, |p| p.delay_ms))
    .bind::<Array<Nullable<Json>>, _>(errors)
    .bind::<Array<Bool>, _>(column(&parts, |p| p.lost))
    .bind::<Array<Bool>, _>(column(&parts, |p| p.anew))
    .load::<PutBackRow>(connection)?;
    let became = |paused| if paused { Became::Paused } else { Became::AsSaid };
    Ok(rows.into_iter().map(|row| (row.id, became(row.paused))).collect())
}

struct PutBack<'e> {
    lease: &'e Lease,
    outcome: &'static str,
    delay_ms: i64,
    error: Option<&'e JobError>,
    /// Its worker died.
    lost: bool,
    /// It ended by itself: interruptions are counted anew.
    anew: bool,
}

impl<'e> PutBack<'e> {
    fn of(lease: &'e Lease, ending: &'e Ending) -> PutBack<'e> {
        let plain = PutBack { lease, outcome: "interrupted", delay_ms: 0, error: None, lost: false, anew: false };
        match ending {
            Ending::Retry { delay, error } => {
                PutBack { outcome: "retried", delay_ms: milliseconds(*delay), error: Some(error), anew: true, ..plain }
            }
            // With an error it had nothing to begin with: that says nothing of the work.
            Ending::Snooze { delay, error } => {
                let (delay_ms, error, anew) = (milliseconds(*delay), error.as_ref(), error.is_none());
                PutBack { outcome: "snoozed", delay_ms, error, anew, ..plain }
            }
            Ending::HandBack { by, error, .. } => {
                PutBack { error: Some(error), lost: *by == Interruption::WorkerLost, ..plain }
            }
            Ending::Pause => PutBack { outcome: "paused", ..plain },
            Ending::Finished(_) => plain,
        }
    }
}

/// At least 1: what is put off is scheduled, and what waits for no time is queued.
fn milliseconds(delay: Duration) -> i64 {
    i64::try_from(delay.as_millis()).unwrap_or(i64::MAX).max(1)
}

fn json_column<'v, T: Serialize + 'v>(
    values: impl Iterator<Item = Option<&'v T>>,
) -> Result<Vec<Option<RawJson>>, diesel::result::Error> {
    values.map(|value| value.map(RawJson::column).transpose()).collect()
}

fn column<'r, R, T>(rows: &'r [R], value: impl Fn(&'r R) -> T) -> Vec<T> {
    rows.iter().map(value).collect()
}
