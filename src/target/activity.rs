//! What a target's server says of sessions while they work: what they wait for, who blocks them, how far a command is,
//! and what they have written to temporary files.
//!
//! One statement for all sessions, on a connection of its own: the one from which sessions are cancelled stays free. Knows no
//! job. A role without special rights sees all of this of its own sessions, but for temporary files (`pg_monitor`).

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Integer, Nullable, Text, Timestamptz};
use serde::{Deserialize, Serialize};

use crate::db::DbError;
use crate::db::pool::{ANSWER_SLACK, Manager};
use crate::db::reach::Source;
use crate::target::backend::TargetBackend;

/// The name of the connection that looks.
pub const NAME: &str = "slowlane sampler";
/// The longest look, in milliseconds.
const TIMEOUT_MS: u64 = 2_000;
/// Blockers that are named.
const MAX_BLOCKERS: i64 = 20;

/// A session that another one waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocker {
    /// Its server process; 0 for a prepared transaction.
    pub pid: i32,
    /// Its name; `None` where there is none, or no such session any more.
    pub application_name: Option<String>,
}

/// One session at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Activity {
    /// The session.
    pub backend: TargetBackend,
    /// What it waits for, as `Lock:relation`; `None` when it works.
    pub wait_event: Option<String>,
    /// Whom it waits for.
    pub blocked_by: Vec<Blocker>,
    /// Bytes in its temporary files; `None` when this role may not see them.
    pub temp_bytes: Option<i64>,
    /// How far its command is, where the server knows it.
    pub command: Option<CommandProgress>,
}

/// How far a command is: a row of one of the views `pg_stat_progress_…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandProgress {
    /// The server's name of what it is doing, and what it does it to.
    pub phase: String,
    /// How much of this phase is done, where it is counted.
    pub done: Option<i64>,
    /// How much there is in this phase, where that is known.
    pub total: Option<i64>,
    /// What is counted.
    pub unit: &'static str,
}

/// Looks at sessions of one target.
pub struct Observer {
    manager: Manager,
    connection: Option<Connected>,
}

struct Connected {
    connection: PgConnection,
    sees_temporary_files: bool,
}

#[derive(QueryableByName)]
struct Sees {
    #[diesel(sql_type = Bool)]
    temporary_files: bool,
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Integer)]
    pid: i32,
    #[diesel(sql_type = Timestamptz)]
    backend_start: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Text>)]
    wait_event: Option<String>,
    /// A list of [`Blocker`]s, as JSON.
    #[diesel(sql_type = Nullable<Text>)]
    blocked_by: Option<String>,
    #[diesel(sql_type = Nullable<BigInt>)]
    temp_bytes: Option<i64>,
    #[diesel(sql_type = Nullable<Text>)]
    phase: Option<String>,
    #[diesel(sql_type = Nullable<BigInt>)]
    done: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    total: Option<i64>,
    #[diesel(sql_type = Nullable<Text>)]
    unit: Option<String>,
}

impl Observer {
    pub(super) fn new(source: &Source) -> Observer {
        let source = source.clone().with("application_name", NAME);
        let setup = format!(
            "SET ROLE NONE; SET statement_timeout = {TIMEOUT_MS}; SET TimeZone = 'UTC'; SET default_transaction_read_only = on;
             SET jit = off; SET search_path = pg_catalog, pg_temp"
        );
        let answer = Duration::from_millis(TIMEOUT_MS).saturating_add(ANSWER_SLACK);
        Observer { manager: Manager::work(source, &setup).answering_within(answer), connection: None }
    }

    /// How these sessions are at the moment. One that has ended, or that works for somebody else by now, is left out.
    ///
    /// # Errors
    /// When the target can't be asked. The next call connects anew.
    pub fn observe(&mut self, backends: &[TargetBackend]) -> Result<Vec<Activity>, DbError> {
        let mut connected = match self.connection.take() {
            Some(connected) => connected,
            None => self.connect()?,
        };
        let activities = look(&mut connected, backends)?;
        self.connection = Some(connected);
        Ok(activities)
    }

    /// Closes the connection until it is needed again.
    pub fn rest(&mut self) {
        self.connection = None;
    }

    fn connect(&self) -> Result<Connected, DbError> {
        let mut connection = self.manager.open()?;
        let sees = diesel::sql_query(
            "SELECT has_function_privilege(oid, 'EXECUTE') AS temporary_files FROM pg_proc
              WHERE pronamespace = 'pg_catalog'::regnamespace AND proname = 'pg_ls_tmpdir' AND pronargs = 0",
        )
        .get_result::<Sees>(&mut connection)?;
        Ok(Connected { connection, sees_temporary_files: sees.temporary_files })
    }
}

fn look(connected: &mut Connected, backends: &[TargetBackend]) -> Result<Vec<Activity>, DbError> {
    let temporary_files = match connected.sees_temporary_files {
        true => {
            "SELECT substring(name FROM '^pgsql_tmp([0-9]+)')::int AS pid, sum(size)::bigint AS bytes FROM pg_ls_tmpdir() GROUP BY 1"
        }
        false => "SELECT NULL::int AS pid, NULL::bigint AS bytes WHERE false",
    };
    let sql = format!(
        "WITH active AS MATERIALIZED (
             SELECT a.pid, a.backend_start, a.wait_event_type, a.wait_event
               FROM unnest($1, $2) AS w(pid, backend_start) JOIN pg_stat_activity a USING (pid, backend_start)
              WHERE a.datname = current_database()),
         files AS MATERIALIZED ({temporary_files}),
         commands AS MATERIALIZED ({COMMANDS_SQL})
         SELECT a.pid, a.backend_start, a.wait_event_type || ':' || a.wait_event AS wait_event,
                CASE WHEN a.wait_event_type = 'Lock' THEN (
                    SELECT json_agg(json_build_object('pid', b.pid, 'application_name', nullif(s.application_name, '')))::text
                      FROM (SELECT DISTINCT unnest(pg_blocking_pids(a.pid)) AS pid ORDER BY 1 LIMIT {MAX_BLOCKERS}) b
                      LEFT JOIN pg_stat_activity s ON s.pid = b.pid) END AS blocked_by,
                CASE WHEN $3 AND NOT EXISTS (SELECT FROM pg_stat_activity p WHERE p.leader_pid = a.pid AND p.pid <> a.pid) THEN coalesce((SELECT f.bytes FROM files f WHERE f.pid = a.pid), 0) END AS temp_bytes,
                c.phase, c.done, c.total, c.unit
           FROM active a LEFT JOIN commands c ON c.pid = a.pid"
    );
    let rows = diesel::sql_query(sql)
        .bind::<Array<Integer>, _>(backends.iter().map(|backend| backend.pid).collect::<Vec<_>>())
        .bind::<Array<Timestamptz>, _>(backends.iter().map(|backend| backend.backend_start).collect::<Vec<_>>())
        .bind::<Bool, _>(connected.sees_temporary_files)
        .load::<Row>(&mut connected.connection)?;
    Ok(rows.into_iter().map(Activity::from).collect())
}

impl From<Row> for Activity {
    fn from(row: Row) -> Activity {
        let unit = row.unit.as_deref().and_then(|unit| UNITS.into_iter().find(|known| *known == unit));
        let command = row.phase.map(|phase| CommandProgress {
            phase,
            done: row.done.filter(|_| unit.is_some()),
            total: row.total.filter(|total| *total > 0),
            unit: unit.unwrap_or_default(),
        });
        Activity {
            backend: TargetBackend { pid: row.pid, backend_start: row.backend_start },
            wait_event: row.wait_event,
            blocked_by: row.blocked_by.and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default(),
            temp_bytes: row.temp_bytes,
            command,
        }
    }
}

const UNITS: [&str; 7] = ["blocks", "rows", "indexes", "transactions", "statistics", "bytes", "tables"];

/// One row for each command that the server counts. A phase names what it goes through, so that each is gone through once:
/// a table's TOAST table, each index of several, each partition. What is left of an earlier phase in a counter isn't
/// shown. Columns that only newer servers have are read through JSON (17: indexes of a vacuum).
const COMMANDS_SQL: &str = "
    SELECT v.pid, v.phase || coalesce(' (' || r.relname || ')', '') AS phase,
           CASE v.phase WHEN 'scanning heap' THEN v.heap_blks_scanned WHEN 'vacuuming heap' THEN v.heap_blks_vacuumed
                WHEN 'vacuuming indexes' THEN (to_jsonb(v)->>'indexes_processed')::bigint
                WHEN 'cleaning up indexes' THEN (to_jsonb(v)->>'indexes_processed')::bigint END AS done,
           CASE WHEN v.phase IN ('scanning heap', 'vacuuming heap') THEN v.heap_blks_total
                WHEN v.phase LIKE '% indexes' THEN (to_jsonb(v)->>'indexes_total')::bigint END AS total,
           CASE WHEN v.phase LIKE '% heap' THEN 'blocks' WHEN to_jsonb(v) ? 'indexes_total' THEN 'indexes' END AS unit
      FROM pg_stat_progress_vacuum v LEFT JOIN pg_class r ON r.oid = v.relid
    UNION ALL
    SELECT a.pid, a.phase || coalesce(' (' || r.relname
               || CASE WHEN a.child_tables_total > 0 THEN format(', table %s of %s',
                       least(a.child_tables_done + 1, a.child_tables_total), a.child_tables_total) ELSE '' END || ')', ''),
           CASE a.phase WHEN 'computing extended statistics' THEN a.ext_stats_computed
                WHEN 'acquiring sample rows' THEN a.sample_blks_scanned
                WHEN 'acquiring inherited sample rows' THEN a.sample_blks_scanned END,
           CASE a.phase WHEN 'computing extended statistics' THEN a.ext_stats_total
                WHEN 'acquiring sample rows' THEN a.sample_blks_total
                WHEN 'acquiring inherited sample rows' THEN a.sample_blks_total END,
           CASE WHEN a.phase LIKE '% sample rows' THEN 'blocks'
                WHEN a.phase = 'computing extended statistics' THEN 'statistics' END
      FROM pg_stat_progress_analyze a LEFT JOIN pg_class r ON r.oid = a.relid
    UNION ALL
    SELECT i.pid, i.phase || coalesce(' (' || coalesce(x.relname, r.relname)
               || CASE WHEN i.partitions_total > 0 THEN format(', partition %s of %s',
                       least(i.partitions_done + 1, i.partitions_total), i.partitions_total) ELSE '' END || ')', ''),
           CASE WHEN i.phase LIKE 'waiting for %' THEN i.lockers_done
                WHEN i.phase = 'building index: loading tuples in tree' THEN i.tuples_done
                WHEN i.phase IN ('building index', 'building index: scanning table', 'index validation: scanning index',
                                 'index validation: scanning table') THEN i.blocks_done END,
           CASE WHEN i.phase LIKE 'waiting for %' THEN i.lockers_total
                WHEN i.phase = 'building index: loading tuples in tree' THEN i.tuples_total
                WHEN i.phase IN ('building index', 'building index: scanning table', 'index validation: scanning index',
                                 'index validation: scanning table') THEN i.blocks_total END,
           CASE WHEN i.phase LIKE 'waiting for %' THEN 'transactions'
                WHEN i.phase = 'building index: loading tuples in tree' THEN 'rows'
                WHEN i.phase IN ('building index', 'building index: scanning table', 'index validation: scanning index',
                                 'index validation: scanning table') THEN 'blocks' END
      FROM pg_stat_progress_create_index i
      LEFT JOIN pg_class r ON r.oid = i.relid LEFT JOIN pg_class x ON x.oid = i.index_relid
    UNION ALL
    SELECT c.pid, c.phase || coalesce(' (' || r.relname || ')', ''),
           CASE c.phase WHEN 'seq scanning heap' THEN c.heap_blks_scanned WHEN 'index scanning heap' THEN c.heap_tuples_scanned
                WHEN 'writing new heap' THEN c.heap_tuples_written WHEN 'rebuilding index' THEN c.index_rebuild_count END,
           CASE c.phase WHEN 'seq scanning heap' THEN c.heap_blks_total END,
           CASE c.phase WHEN 'seq scanning heap' THEN 'blocks' WHEN 'index scanning heap' THEN 'rows'
                WHEN 'writing new heap' THEN 'rows' WHEN 'rebuilding index' THEN 'indexes' END
      FROM pg_stat_progress_cluster c LEFT JOIN pg_class r ON r.oid = c.relid
    UNION ALL
    SELECT p.pid, lower(p.command) || coalesce(' (' || r.relname || ')', ''), p.bytes_processed, p.bytes_total, 'bytes'
      FROM pg_stat_progress_copy p LEFT JOIN pg_class r ON r.oid = p.relid";
