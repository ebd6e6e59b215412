//! The demo's data through slowlane's own uploads and import jobs: what `slowlane dev` starts with.
//!
//! The tables are filled in a schema of their own and moved when all are full, so that there is all of it or nothing.

use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::pg::PgConnection;
use serde_json::json;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::app::process;
use crate::cli::Failure;
use crate::cli::demo::load::{FILES, LOCK_KEY, SCHEMA, TIMEOUT, is_there};
use crate::config::TargetConfig;
use crate::db::pool::{Manager, Purpose};
use crate::dsn::Dsn;
use crate::kinds::{Registry, import};
use crate::queue::accept::Accept;
use crate::queue::insert::{self, Inserted};
use crate::queue::signals::{ReadyHint, Signals};
use crate::queue::{Job, JobState, NewJob, RawJson, read};
use crate::uploads::{ContentEncoding, ContentType, NewUpload, PART_BYTES, store};

/// Between two looks whether a job has ended.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long a part of a file may take to be stored.
const PART_PATIENCE: Duration = Duration::from_secs(30);
/// What schemas begin with in which tables are filled.
const FILLING: &str = "slowlane_demo_";

/// Loads the data into the target by jobs of this queue, unless it is there. Says how many rows were loaded; `None` when
/// there was nothing to do.
///
/// # Errors
/// When a database fails, a job does, or the target has some of the tables only: they are somebody else's then.
pub fn load_by_jobs(queue: &Dsn, target: &Dsn) -> Result<Option<u64>, Failure> {
    let setup = format!("SET statement_timeout = {}; SET search_path = public", TIMEOUT.as_millis());
    let mut connection = Manager::work(target, &setup).open()?;
    // Two that load at once take turns; the lock goes with the connection.
    connection.batch_execute(&format!("SELECT pg_advisory_lock({LOCK_KEY})"))?;
    if is_there(&mut connection)? {
        return Ok(None);
    }
    drop_unfinished(&mut connection)?;
    let schema = format!("{FILLING}{}", Uuid::now_v7().simple());
    connection.batch_execute(&format!("CREATE SCHEMA {schema}; SET search_path = {schema}; {SCHEMA}"))?;
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

/// Drops what tries left that were broken off.
fn drop_unfinished(connection: &mut PgConnection) -> Result<(), Failure> {
    connection.batch_execute(&format!(
        "DO $$ DECLARE s text; BEGIN
             FOR s IN SELECT nspname FROM pg_namespace WHERE starts_with(nspname, '{FILLING}') LOOP
                 EXECUTE format('DROP SCHEMA %I CASCADE', s);
             END LOOP;
         END $$"
    ))?;
    Ok(())
}

fn run_jobs(queue: &Dsn, target: &Dsn, schema: &str) -> Result<u64, Failure> {
    let purpose = Purpose { name: "demo", statement_timeout: PART_PATIENCE };
    let mut connection = Manager::queue(queue, &purpose).open()?;
    let targets = [("default".to_owned(), TargetConfig::at(target.clone()))].into();
    let registry = Registry::default().with::<import::Import>();
    let (workers, signals) = process::workers_before_serving(queue, targets, registry)?;
    let mut rows = 0_u64;
    let outcome = FILES.iter().try_for_each(|(table, file)| {
        let upload = keep(&mut connection, file)?;
        let job = submit(&mut connection, &signals, upload, &format!("{schema}.{table}"))?;
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

fn submit(connection: &mut PgConnection, signals: &Signals, upload: Uuid, table: &str) -> Result<Job, Failure> {
    let args = json!({"upload": upload, "table": table, "format": "csv", "null": "NA"});
    let mut job = NewJob::new("import", RawJson::of(&args)?);
    job.labels.insert("demo".to_owned(), table.rsplit('.').next().unwrap_or(table).to_owned());
    let mut inserted = insert::insert(connection, &[&Accept { upload: Some(upload), ..Accept::new(job) }])?;
    match inserted.pop() {
        Some(Inserted::Created(job)) => {
            let (queue, priority, run_at, id) = (job.queue.clone(), job.priority, job.run_at, job.id);
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
            Some(job) if job.state == JobState::Succeeded => {
                return Ok(u64::try_from(job.statistics.rows_affected).unwrap_or(0));
            }
            Some(job) if job.state.is_final() => {
                let why = job.error.as_ref().map_or("it was cancelled", RawJson::text);
                return Err(format!("loading the demo's data failed: {why}").into());
            }
            _ if Instant::now() >= until => return Err("loading the demo's data takes too long".into()),
            _ => std::thread::sleep(LOOK_EVERY),
        }
    }
}
