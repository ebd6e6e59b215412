//! The demo's data through slowlane's own uploads and import jobs: what `slowlane dev` starts with, and what
//! `slowlane demo load` does for any database.
//!
//! The tables are filled in a schema of their own and moved when all are full, so that there is all of it or nothing.

use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Text};
use serde_json::json;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::app::process;
use crate::cli::Failure;
use crate::db::pool::{Manager, Purpose};
use crate::db::roles::DEMO_LOAD_LOCK;
use crate::dsn::Dsn;
use crate::kinds::import;
use crate::queue::fleet::signals::{ReadyHint, Signals};
use crate::queue::intake::insert::{self, Inserted};
use crate::queue::intake::request::{Principal, Submission};
use crate::queue::record::read;
use crate::queue::{Job, JobSpec, JobState, RawJson};
use crate::target::{TargetSettings, TargetSpec};
use crate::uploads::{ContentEncoding, ContentType, NewUpload, PART_BYTES, store};
use crate::work::Registry;

const SCHEMA: &str = include_str!("../../../demo/schema.sql");
/// Each table's file: those that others refer to first.
const FILES: [(&str, &[u8]); 5] =
    [("airlines", AIRLINES), ("airports", AIRPORTS), ("planes", PLANES), ("weather", WEATHER), ("flights", FLIGHTS)];
const AIRLINES: &[u8] = include_bytes!("../../../demo/airlines.csv.zst");
const AIRPORTS: &[u8] = include_bytes!("../../../demo/airports.csv.zst");
const PLANES: &[u8] = include_bytes!("../../../demo/planes.csv.zst");
const WEATHER: &[u8] = include_bytes!("../../../demo/weather.csv.zst");
const FLIGHTS: &[u8] = include_bytes!("../../../demo/flights.csv.zst");
/// How many tables the demo has.
const TABLES: i64 = 5;
/// How long loading may take.
const TIMEOUT: Duration = Duration::from_secs(300);
/// Between two looks whether a job has ended.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long a part of a file may take to be stored.
const PART_PATIENCE: Duration = Duration::from_secs(30);
/// What schemas begin with in which tables are filled, and the comment by which they are known.
const FILLING: &str = "slowlane_demo_";
const MARK: &str = "slowlane demo load fills tables here";

/// Whose jobs load the data.
pub struct Queue<'q> {
    /// Where it is.
    pub dsn: &'q Dsn,
    /// What the jobs name as their queue and as their target: no other process may serve both but for the same
    /// database.
    pub name: &'q str,
}

/// Loads the data into the target by jobs of this queue, unless it is there. Says how many rows were loaded; `None`
/// when there was nothing to do.
///
/// # Errors
/// When a database fails, a job does, or the target has some of the tables only: they are somebody else's then.
pub fn load_by_jobs(queue: &Queue<'_>, target: &Dsn) -> Result<Option<u64>, Failure> {
    let setup = format!("SET statement_timeout = {}; SET search_path = public", TIMEOUT.as_millis());
    let mut connection = Manager::work(target, &setup).open()?;
    // Two that load at once take turns; the lock goes with the connection.
    connection.batch_execute(&format!("SELECT pg_advisory_lock({DEMO_LOAD_LOCK})"))?;
    if is_there(&mut connection)? {
        return Ok(None);
    }
    drop_unfinished(&mut connection)?;
    let schema = format!("{FILLING}{}", Uuid::now_v7().simple());
    connection.batch_execute(&format!(
        "BEGIN; CREATE SCHEMA {schema}; COMMENT ON SCHEMA {schema} IS '{MARK}'; COMMIT;
         SET search_path = {schema}; {SCHEMA}"
    ))?;
    let loaded = run_jobs(queue, target, &schema).and_then(|rows| {
        let tables = FILES.map(|(table, _)| table);
        let moves = tables.map(|table| format!("ALTER TABLE {schema}.{table} SET SCHEMA public;")).join(" ");
        connection.batch_execute(&format!("BEGIN; {moves} DROP SCHEMA {schema}; COMMIT; SET search_path = public"))?;
        connection.batch_execute(&format!("ANALYZE {}", tables.join(", ")))?;
        Ok(rows)
    });
    if loaded.is_err() {
        // What is left then goes with the next try.
        let _ = connection.batch_execute(&format!("ROLLBACK; DROP SCHEMA IF EXISTS {schema} CASCADE"));
    }
    let rows = loaded?;
    log::info!(rows = rows; "loaded the demo's data");
    Ok(Some(rows))
}

/// Drops what tries left that were broken off: schemas of such a name, with our comment, that belong to this role.
fn drop_unfinished(connection: &mut PgConnection) -> Result<(), Failure> {
    connection.batch_execute(&format!(
        "DO $$ DECLARE s text; BEGIN
             FOR s IN SELECT nspname FROM pg_namespace WHERE nspname ~ '^{FILLING}[0-9a-f]{{32}}$'
                     AND nspowner = current_user::regrole AND obj_description(oid, 'pg_namespace') = '{MARK}' LOOP
                 EXECUTE format('DROP SCHEMA %I CASCADE', s);
             END LOOP;
         END $$"
    ))?;
    Ok(())
}

fn run_jobs(queue: &Queue<'_>, target: &Dsn, schema: &str) -> Result<u64, Failure> {
    let purpose = Purpose { name: "demo", statement_timeout: PART_PATIENCE };
    let mut connection = Manager::queue(queue.dsn, &purpose).open()?;
    // The statements are the import's own, whatever the role could do beside that.
    let target =
        TargetSettings { dsn: target.clone(), spec: TargetSpec { allow_unsafe_role: true, ..TargetSpec::default() } };
    let targets = [(queue.name.to_owned(), target)].into();
    let registry = Registry::default().with::<import::Import>();
    let (workers, signals) = process::workers_before_serving(queue.dsn, queue.name, targets, registry)?;
    let mut rows = 0_u64;
    let outcome = FILES.iter().try_for_each(|(table, file)| {
        let upload = keep(&mut connection, file)?;
        let job = submit(&mut connection, &signals, queue.name, upload, &format!("{schema}.{table}"))?;
        rows = rows.saturating_add(ended(&mut connection, &job)?);
        store::delete(&mut connection, upload)?;
        Ok::<_, Failure>(())
    });
    workers.shut_down(Duration::ZERO, || false);
    outcome.map(|()| rows)
}

fn keep(connection: &mut PgConnection, file: &[u8]) -> Result<Uuid, Failure> {
    let upload = NewUpload {
        id: Uuid::now_v7(),
        content_type: ContentType::Csv,
        content_encoding: ContentEncoding::Zstd,
        patience: TIMEOUT,
    };
    let (mut bytes, mut parts) = (0_i64, 0_i32);
    for part in file.chunks(PART_BYTES) {
        bytes = bytes.saturating_add(i64::try_from(part.len())?);
        store::write_part(connection, &upload, parts, bytes, part, PART_PATIENCE)?;
        parts = parts.saturating_add(1);
    }
    let sha256: String = Sha256::digest(file).iter().map(|byte| format!("{byte:02x}")).collect();
    let ready = store::make_ready(connection, &upload, parts, bytes, &sha256, PART_PATIENCE)?;
    ready.map(|upload| upload.id).ok_or_else(|| "a file of the demo could not be stored".into())
}

fn submit(
    connection: &mut PgConnection,
    signals: &Signals,
    queue: &str,
    upload: Uuid,
    table: &str,
) -> Result<Job, Failure> {
    let args = json!({"upload": upload, "table": table, "format": "csv", "null": "NA"});
    let plain = JobSpec::new("import", RawJson::of(&args)?);
    let mut job = JobSpec { upload: Some(upload), queue: queue.to_owned(), target: queue.to_owned(), ..plain };
    job.labels.insert("demo".to_owned(), table.rsplit('.').next().unwrap_or(table).to_owned());
    let mut inserted = insert::insert(connection, &[&Submission::new(Principal::default(), job)])?;
    match inserted.pop() {
        Some(Inserted::Created(job)) => {
            let (queue, priority, run_at, id) = (job.spec.queue.clone(), job.spec.priority, job.status.run_at, job.id);
            signals.ready(vec![ReadyHint { queue, priority, run_at, id }]);
            Ok(job)
        }
        _ => Err("a job of the demo was not accepted".into()),
    }
}

/// Waits for a job; the rows that it stored.
fn ended(connection: &mut PgConnection, job: &Job) -> Result<u64, Failure> {
    let until = Instant::now() + TIMEOUT;
    loop {
        match read::job(connection, job.id)? {
            Some(job) if job.status.state == JobState::Succeeded => {
                return Ok(u64::try_from(job.outcome.statistics.rows_affected).unwrap_or(0));
            }
            Some(job) if job.status.state.is_final() => {
                let why = job.outcome.error.as_ref().map_or("it was cancelled", RawJson::text);
                return Err(format!("loading the demo's data failed: {why}").into());
            }
            _ if Instant::now() >= until => return Err("loading the demo's data takes too long".into()),
            _ => std::thread::sleep(LOOK_EVERY),
        }
    }
}

#[derive(QueryableByName)]
struct Present {
    #[diesel(sql_type = BigInt)]
    tables: i64,
    #[diesel(sql_type = Nullable<Text>)]
    names: Option<String>,
}

fn is_there(connection: &mut PgConnection) -> Result<bool, Failure> {
    let present = diesel::sql_query(
        "SELECT count(*) AS tables, string_agg(name, ', ' ORDER BY name) AS names
           FROM unnest(ARRAY['airlines', 'airports', 'planes', 'weather', 'flights']) AS name
          WHERE to_regclass('public.' || name) IS NOT NULL",
    )
    .get_result::<Present>(connection)?;
    match (present.tables, present.names) {
        (0, _) => Ok(false),
        (TABLES, _) => Ok(true),
        (_, names) => Err(format!(
            "the database has tables of the demo's names that aren't the demo's ({}): name another database",
            names.unwrap_or_default()
        )
        .into()),
    }
}
