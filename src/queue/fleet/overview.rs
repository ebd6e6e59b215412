//! What an operator looks at: who serves, what waits where, and what nobody serves.
//!
//! What counts jobs reads every unfinished one: for a look every second, not for each request.

use chrono::{DateTime, Utc};
use diesel::connection::SimpleConnection;
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Integer, Json, SmallInt, Text, Timestamptz};
use serde::Serialize;
use uuid::Uuid;

use crate::db::DbError;
use crate::queue::fleet::queues::{self, QueueRow};
use crate::queue::fleet::workers::{BEAT_EVERY, DEAD_AFTER, TargetHealth};
use crate::queue::model::{JobState, RawJson};

/// How a process does, by its beats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerState {
    /// It beats.
    Alive,
    /// It missed two beats or more.
    Late,
    /// It has lost its leases.
    Dead,
}

/// A process that runs jobs.
#[derive(Clone, Debug)]
pub struct Worker {
    /// Fresh for each start of a process.
    pub id: Uuid,
    /// Its machine.
    pub hostname: String,
    /// Its number there.
    pub pid: i32,
    /// The version of slowlane.
    pub version: String,
    /// Threads that run jobs.
    pub threads: i32,
    /// Kinds that it knows.
    pub kinds: Vec<String>,
    /// Queues that it serves.
    pub queues: Vec<String>,
    /// Targets that it has.
    pub targets: Vec<TargetHealth>,
    /// When it started.
    pub started_at: DateTime<Utc>,
    /// Its last beat.
    pub beat_at: DateTime<Utc>,
    /// How it does.
    pub state: WorkerState,
    /// Jobs that it runs.
    pub running: i64,
}

impl Worker {
    /// It may claim jobs of this queue, kind and target.
    pub fn serves(&self, queue: &str, kind: &str, target: &str) -> bool {
        self.state != WorkerState::Dead
            && self.queues.iter().any(|known| known == queue)
            && self.kinds.iter().any(|known| known == kind)
            && self.targets.iter().any(|known| known.name == target)
    }
}

/// Unfinished jobs that have this in common.
#[derive(Clone, Debug)]
pub struct Group {
    /// The queue.
    pub queue: String,
    /// The target.
    pub target: String,
    /// The kind.
    pub kind: String,
    /// Where they are in their lives.
    pub state: JobState,
    /// 0 to 9.
    pub priority: i16,
    /// How many.
    pub count: i64,
    /// The `run_at` of the oldest.
    pub oldest: DateTime<Utc>,
}

/// Everything at one moment.
#[derive(Clone, Debug)]
pub struct Overview {
    /// The database's clock.
    pub at: DateTime<Utc>,
    /// Processes that run jobs, the youngest last.
    pub workers: Vec<Worker>,
    /// Unfinished jobs.
    pub jobs: Vec<Group>,
    /// What was said of queues.
    pub queues: Vec<QueueRow>,
}

impl Overview {
    /// Somebody who is alive may claim jobs of this group.
    pub fn is_served(&self, group: &Group) -> bool {
        self.workers.iter().any(|worker| worker.serves(&group.queue, &group.kind, &group.target))
    }
}

#[derive(QueryableByName)]
struct WorkerRow {
    #[diesel(sql_type = diesel::sql_types::Uuid)]
    id: Uuid,
    #[diesel(sql_type = Text)]
    hostname: String,
    #[diesel(sql_type = Integer)]
    pid: i32,
    #[diesel(sql_type = Text)]
    version: String,
    #[diesel(sql_type = Integer)]
    threads: i32,
    #[diesel(sql_type = Array<Text>)]
    kinds: Vec<String>,
    #[diesel(sql_type = Array<Text>)]
    queues: Vec<String>,
    #[diesel(sql_type = Json)]
    targets: RawJson,
    #[diesel(sql_type = Timestamptz)]
    started_at: DateTime<Utc>,
    #[diesel(sql_type = Timestamptz)]
    beat_at: DateTime<Utc>,
    #[diesel(sql_type = BigInt)]
    running: i64,
}

#[derive(QueryableByName)]
struct GroupRow {
    #[diesel(sql_type = Text)]
    queue: String,
    #[diesel(sql_type = Text)]
    target: String,
    #[diesel(sql_type = Text)]
    kind: String,
    #[diesel(sql_type = Text)]
    state: String,
    #[diesel(sql_type = SmallInt)]
    priority: i16,
    #[diesel(sql_type = BigInt)]
    count: i64,
    #[diesel(sql_type = Timestamptz)]
    oldest: DateTime<Utc>,
}

#[derive(QueryableByName)]
struct Clock {
    #[diesel(sql_type = Timestamptz)]
    at: DateTime<Utc>,
}

/// Looks at everything.
///
/// # Errors
/// When the database fails, or can't answer within the connection's `statement_timeout`.
pub fn look(connection: &mut PgConnection) -> Result<Overview, DbError> {
    connection.transaction(|connection| {
        // One moment for all of it; and the statements that want whole tables.
        connection.batch_execute(
            "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY; SET LOCAL enable_seqscan = on;
             SET LOCAL enable_hashjoin = on",
        )?;
        let at = diesel::sql_query("SELECT clock_timestamp() AS at").get_result::<Clock>(connection)?.at;
        let workers = workers(connection, at)?;
        let rows = diesel::sql_query(
            "SELECT queue, target, kind, state, priority, count(*) AS count, min(run_at) AS oldest
               FROM jobs GROUP BY queue, target, kind, state, priority",
        )
        .load::<GroupRow>(connection)?;
        let group = |row: GroupRow| {
            Some(Group {
                state: JobState::parse(&row.state)?,
                queue: row.queue,
                target: row.target,
                kind: row.kind,
                priority: row.priority,
                count: row.count,
                oldest: row.oldest,
            })
        };
        let jobs = rows.into_iter().filter_map(group).collect();
        Ok(Overview { at, workers, jobs, queues: queues::all(connection)? })
    })
}

/// The processes that run jobs, and the database's clock. Reads no job that doesn't run.
///
/// # Errors
/// When the database fails.
pub fn workers_now(connection: &mut PgConnection) -> Result<(DateTime<Utc>, Vec<Worker>), DbError> {
    let at = diesel::sql_query("SELECT clock_timestamp() AS at").get_result::<Clock>(connection)?.at;
    Ok((at, workers(connection, at)?))
}

fn workers(connection: &mut PgConnection, at: DateTime<Utc>) -> Result<Vec<Worker>, DbError> {
    let rows = diesel::sql_query(
        "SELECT w.id, w.hostname, w.pid, w.version, w.threads, w.kinds, w.queues, w.targets, w.started_at, w.beat_at,
                (SELECT count(*) FROM jobs j WHERE j.worker_id = w.id AND j.state = 'running') AS running
           FROM workers w ORDER BY w.started_at, w.id",
    )
    .load::<WorkerRow>(connection)?;
    let worker = |row: WorkerRow| {
        // One that beats writes the clock as it is. So one whose beat is from the future hasn't beaten since the clock was
        // set back.
        let silent = (at - row.beat_at).abs().to_std().unwrap_or_default();
        let state = match silent {
            silent if silent >= DEAD_AFTER => WorkerState::Dead,
            silent if silent >= BEAT_EVERY * 3 => WorkerState::Late,
            _ => WorkerState::Alive,
        };
        Worker {
            id: row.id,
            hostname: row.hostname,
            pid: row.pid,
            version: row.version,
            threads: row.threads,
            kinds: row.kinds,
            queues: row.queues,
            // Written by a program of ours; one of another version may say it otherwise.
            targets: serde_json::from_str(row.targets.text()).unwrap_or_default(),
            started_at: row.started_at,
            beat_at: row.beat_at,
            state,
            running: row.running,
        }
    };
    Ok(rows.into_iter().map(worker).collect())
}
