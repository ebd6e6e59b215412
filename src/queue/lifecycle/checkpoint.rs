//! What of an attempt must survive a crash: where its work goes on, and the transaction on the target that it was about
//! to commit.
//!
//! Every write is fenced by the lease. A recorded transaction comes to one of two things: the end of the job, or a
//! cursor at which its work goes on. Nobody ends, pauses or runs the job before the fate of that transaction is
//! known: not by a cancel, not by one interruption too many. The attempt that had the answer to its COMMIT knows it:
//! it makes the cursor the saved one in the same statement as it records the next transaction. Knows no target.

use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Integer, Json, Nullable, Text};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::db::fate::{ServerLife, TransactionMark};
use crate::db::{DbError, prepared};
use crate::queue::lifecycle::end::{Finished, FinishedResult};
use crate::queue::model::{JobState, JobStatistics, Lease, RawJson};

/// Rows of jobs that are over, removed by one statement.
const SWEPT: i64 = 1_000;

/// What a job comes to when its transaction has taken effect.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// What the kind returned.
    pub output: RawJson,
    /// Rows and bytes.
    pub statistics: JobStatistics,
    /// The result that becomes visible.
    pub result: Option<FinishedResult>,
}

impl Outcome {
    /// The end of the job; `settled` is the transaction that made it so. `null` is what a kind without output returns.
    pub fn finished(self, settled: Option<String>) -> Finished {
        let output = Some(self.output).filter(|output| output.text() != "null");
        let (statistics, result) = (self.statistics, self.result);
        Finished { output, statistics, result, settled, ..Finished::plain(JobState::Succeeded) }
    }
}

/// Where the work of a job goes on, and what was counted up to there.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Checkpoint {
    /// In the kind's own words.
    pub cursor: RawJson,
    /// Rows and bytes.
    pub statistics: JobStatistics,
}

/// What a transaction comes to when it has taken effect.
#[derive(Clone, Debug)]
pub enum Effect {
    /// The end of the job.
    End(Outcome),
    /// A batch is done, and the work goes on here.
    Batch(Checkpoint),
}

/// A transaction that was about to be committed.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// The lease under which it was recorded: its session carries this in its name.
    pub lease: i64,
    /// The transaction.
    pub mark: TransactionMark,
    /// What it comes to.
    pub effect: Effect,
}

/// The running job of this lease, whose owner is on the list of the living. Locked, so that nobody takes it away in
/// between.
const MINE: &str = "FROM jobs j WHERE j.id = $1 AND j.lease = $2 AND j.worker_id = $3 AND j.state = 'running'
     AND EXISTS (SELECT FROM workers w WHERE w.id = $3) FOR SHARE OF j";

/// Records a transaction before its COMMIT is sent: the `seq`-th of this attempt. `false` when the lease is lost:
/// then it must not be. A copy of an earlier one, on its way for long, changes nothing. `advanced` is the batch
/// before, where this attempt knows that it was committed: its cursor is the saved one from now on.
///
/// # Errors
/// When the database fails. Whether it was recorded isn't known then; recording it again does no harm.
pub fn record(
    connection: &mut PgConnection,
    lease: &Lease,
    seq: i32,
    mark: &TransactionMark,
    effect: &Effect,
    advanced: Option<&str>,
) -> Result<bool, DbError> {
    let (outcome, next) = match effect {
        Effect::End(outcome) => (Some(RawJson::column(outcome)?), None),
        Effect::Batch(next) => (None, Some(RawJson::column(next)?)),
    };
    let written = prepared(format!(
        "INSERT INTO job_checkpoints AS c (job_id, lease, seq, xid, system, timeline, outcome, next_cursor, updated_at)
         SELECT j.id, j.lease, $4, $5::xid8, $6, $7, $8, $9, clock_timestamp() {MINE}
         ON CONFLICT (job_id) DO UPDATE
            SET lease = excluded.lease, seq = excluded.seq, xid = excluded.xid, system = excluded.system,
                timeline = excluded.timeline, outcome = excluded.outcome, next_cursor = excluded.next_cursor,
                cursor = CASE WHEN c.xid::text = $10 THEN c.next_cursor ELSE c.cursor END,
                moved = c.moved OR coalesce(c.xid::text = $10, false),
                updated_at = excluded.updated_at
          WHERE (c.lease, c.seq) <= (excluded.lease, excluded.seq)"
    ))
    .bind::<diesel::sql_types::Uuid, _>(lease.job_id)
    .bind::<BigInt, _>(lease.number)
    .bind::<diesel::sql_types::Uuid, _>(lease.worker_id)
    .bind::<Integer, _>(seq)
    .bind::<Text, _>(&mark.xid)
    .bind::<Text, _>(&mark.server.system)
    .bind::<Text, _>(&mark.server.timeline)
    .bind::<Nullable<Json>, _>(outcome)
    .bind::<Nullable<Json>, _>(next)
    .bind::<Nullable<Text>, _>(advanced)
    .execute(connection)?;
    Ok(written == 1)
}

#[derive(QueryableByName)]
struct RecordedRow {
    #[diesel(sql_type = BigInt)]
    lease: i64,
    #[diesel(sql_type = Text)]
    xid: String,
    #[diesel(sql_type = Text)]
    system: String,
    #[diesel(sql_type = Text)]
    timeline: String,
    #[diesel(sql_type = Nullable<Json>)]
    outcome: Option<RawJson>,
    #[diesel(sql_type = Nullable<Json>)]
    next_cursor: Option<RawJson>,
}

/// The transaction of a job whose fate isn't known.
///
/// # Errors
/// When the database fails, or a newer version wrote what this one can't read.
pub fn recorded(connection: &mut PgConnection, job_id: Uuid) -> Result<Option<Recorded>, DbError> {
    let row = prepared(
        "SELECT lease, xid::text AS xid, system, timeline, outcome, next_cursor FROM job_checkpoints
          WHERE job_id = $1 AND xid IS NOT NULL",
    )
    .bind::<diesel::sql_types::Uuid, _>(job_id)
    .get_result::<RecordedRow>(connection)
    .optional()?;
    let Some(row) = row else { return Ok(None) };
    // The table's CHECK lets exactly one of them be there.
    let effect = match (&row.outcome, &row.next_cursor) {
        (_, Some(next)) => Effect::Batch(read(next)?),
        (Some(outcome), None) => Effect::End(read(outcome)?),
        (None, None) => return Ok(None),
    };
    let server = ServerLife { system: row.system, timeline: row.timeline };
    let mark = TransactionMark { xid: row.xid, server };
    Ok(Some(Recorded { lease: row.lease, mark, effect }))
}

fn read<T: DeserializeOwned>(json: &RawJson) -> Result<T, DbError> {
    let unreadable = |e| diesel::result::Error::DeserializationError(Box::new(e));
    Ok(serde_json::from_str(json.text()).map_err(unreadable)?)
}

/// A condition on a row of `jobs`: no transaction of it was about to be committed, or what became of it is known.
pub(super) const NOT_IN_DOUBT: &str =
    "NOT EXISTS (SELECT FROM job_checkpoints c WHERE c.job_id = jobs.id AND c.xid IS NOT NULL)";

/// What became of a job's transaction isn't known: nothing else may end the job.
///
/// # Errors
/// When the database fails.
pub fn is_in_doubt(connection: &mut PgConnection, job_id: Uuid) -> Result<bool, DbError> {
    #[derive(QueryableByName)]
    struct Found {
        #[diesel(sql_type = Bool)]
        in_doubt: bool,
    }
    let row: Found =
        prepared("SELECT EXISTS (SELECT FROM job_checkpoints WHERE job_id = $1 AND xid IS NOT NULL) AS in_doubt")
            .bind::<diesel::sql_types::Uuid, _>(job_id)
            .get_result(connection)?;
    Ok(row.in_doubt)
}

/// Forgets a transaction that never took effect. Another one that was recorded since stays.
///
/// # Errors
/// When the database fails.
pub fn forget(connection: &mut PgConnection, job_id: Uuid, recorded: &Recorded) -> Result<(), DbError> {
    prepared(
        "UPDATE job_checkpoints SET xid = NULL, system = NULL, timeline = NULL, outcome = NULL, next_cursor = NULL,
                updated_at = clock_timestamp()
          WHERE job_id = $1 AND lease = $2 AND xid = $3::xid8",
    )
    .bind::<diesel::sql_types::Uuid, _>(job_id)
    .bind::<BigInt, _>(recorded.lease)
    .bind::<Text, _>(&recorded.mark.xid)
    .execute(connection)?;
    Ok(())
}

/// The batch `xid` has taken effect: the work goes on at its cursor. Another one that was recorded since stays.
///
/// # Errors
/// When the database fails.
pub fn advance(connection: &mut PgConnection, job_id: Uuid, lease: i64, xid: &str) -> Result<(), DbError> {
    prepared(
        "UPDATE job_checkpoints SET cursor = next_cursor, next_cursor = NULL, xid = NULL, system = NULL, timeline = NULL,
                moved = true, updated_at = clock_timestamp()
          WHERE job_id = $1 AND lease = $2 AND xid = $3::xid8 AND next_cursor IS NOT NULL",
    )
    .bind::<diesel::sql_types::Uuid, _>(job_id)
    .bind::<BigInt, _>(lease)
    .bind::<Text, _>(xid)
    .execute(connection)?;
    Ok(())
}

/// SQL: the rows that the job `id` has changed by its batches; NULL for a job without any. `settled` is the transaction
/// that is known to have taken effect. Both are expressions.
pub(super) fn rows_affected(id: &str, settled: &str) -> String {
    format!(
        "(SELECT (CASE WHEN c.xid::text = {settled} THEN coalesce(c.next_cursor, c.cursor) ELSE c.cursor END
                  #>> '{{statistics,rows_affected}}')::bigint FROM job_checkpoints c WHERE c.job_id = {id})"
    )
}

/// A condition on a row `c` of `job_checkpoints`: the work got further since an attempt of its job ended. A committed
/// batch can't be taken back. A saved cursor can: it counts by what it is in the end, and not when the work was there
/// before.
const FURTHER: &str = "(c.moved OR c.place IS NOT NULL AND c.place <> ALL (c.counted_from))";

/// SQL: the work of the job `id`, an expression, got further since an attempt of it ended.
pub(super) fn moved(id: &str) -> String {
    format!("EXISTS (SELECT FROM job_checkpoints c WHERE c.job_id = {id} AND {FURTHER})")
}

/// SQL: what changes in the row `c` of `job_checkpoints` of a job that got further and is put back: from here on
/// interruptions are counted anew.
pub(super) const COUNTED_ANEW: &str =
    "moved = false, counted_from = CASE WHEN c.place IS NOT NULL AND c.place <> ALL (c.counted_from)
    THEN (ARRAY[c.place] || c.counted_from)[1:2] ELSE c.counted_from END";

/// What a checkpoint says that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Says {
    /// The work got further.
    Further,
    /// Where an attempt began, and what it may leave: it outlives its job, until [`leavings::done`] says that nothing is
    /// left of that.
    ///
    /// [`leavings::done`]: crate::queue::lifecycle::leavings::done
    MayLeave,
    /// Nothing is left of what the last one told: an attempt that was interrupted is as if it had not begun.
    NothingLeft,
}

/// Keeps where the work goes on. `false` when the lease is lost. `advanced` is the last batch, where this attempt
/// knows that it was committed: its cursor is of the past.
///
/// # Errors
/// When the database fails.
pub fn save(
    connection: &mut PgConnection,
    lease: &Lease,
    checkpoint: &Checkpoint,
    advanced: Option<&str>,
    says: Says,
) -> Result<bool, DbError> {
    // A column of a transaction that stays, or of one that is over.
    let kept = |column: &str| format!("{column} = CASE WHEN c.xid::text = $5 THEN NULL ELSE c.{column} END");
    let kept = ["xid", "system", "timeline", "outcome", "next_cursor"].map(kept).join(", ");
    let written = prepared(format!(
        "INSERT INTO job_checkpoints AS c (job_id, lease, cursor, updated_at, place, leaves)
         SELECT j.id, j.lease, $4, clock_timestamp(),
                CASE WHEN $7 THEN hashtextextended(($4::json->'cursor')::text, 0) END, $6 {MINE}
         ON CONFLICT (job_id) DO UPDATE
            SET lease = excluded.lease, cursor = excluded.cursor, updated_at = excluded.updated_at, leaves = excluded.leaves,
                moved = c.moved OR coalesce(c.xid::text = $5, false), place = coalesce(excluded.place, c.place),
                seq = CASE WHEN c.lease = excluded.lease THEN c.seq ELSE 0 END, {kept}
          WHERE c.lease <= excluded.lease"
    ))
    .bind::<diesel::sql_types::Uuid, _>(lease.job_id)
    .bind::<BigInt, _>(lease.number)
    .bind::<diesel::sql_types::Uuid, _>(lease.worker_id)
    .bind::<Json, _>(RawJson::column(checkpoint)?)
    .bind::<Nullable<Text>, _>(advanced)
    .bind::<Bool, _>(says == Says::MayLeave)
    .bind::<Bool, _>(says == Says::Further)
    .execute(connection)?;
    Ok(written == 1)
}

#[derive(QueryableByName)]
struct CursorRow {
    #[diesel(sql_type = Nullable<Json>)]
    cursor: Option<RawJson>,
}

/// Where the work of a job goes on, if it said so.
///
/// # Errors
/// When the database fails.
pub fn saved(connection: &mut PgConnection, job_id: Uuid) -> Result<Option<Checkpoint>, DbError> {
    let row = prepared("SELECT cursor FROM job_checkpoints WHERE job_id = $1")
        .bind::<diesel::sql_types::Uuid, _>(job_id)
        .get_result::<CursorRow>(connection)
        .optional()?;
    row.and_then(|row| row.cursor).map(|cursor| read(&cursor)).transpose()
}

/// Removes what was written for jobs that were over already, some of it: the rest goes with the job's end. What tells
/// of something that was left on a target has its own end.
///
/// # Errors
/// When the database fails.
pub fn sweep(connection: &mut PgConnection) -> Result<(), DbError> {
    let sql = "DELETE FROM job_checkpoints WHERE job_id = ANY(ARRAY(
        SELECT c.job_id FROM job_checkpoints c WHERE NOT c.leaves AND NOT EXISTS (SELECT FROM jobs j WHERE j.id = c.job_id) LIMIT $1))";
    prepared(sql).bind::<BigInt, _>(SWEPT).execute(connection)?;
    Ok(())
}
