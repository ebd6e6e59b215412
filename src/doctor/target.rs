//! A target: what its role may do for each kind of work, what bounds it, and what was left behind there.

use std::collections::BTreeSet;
use std::time::Instant;

use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text, Uuid as SqlUuid};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::db::DbError;
use crate::db::roles::DEMO_LOAD_LOCK;
use crate::doctor::connect;
use crate::doctor::look::{Look, MayGoOn};
use crate::doctor::report::{Finding, FindingCode, Report, Severity, Subject};
use crate::doctor::server::{self, Connections};
use crate::dsn::Dsn;
use crate::pq::quote::{identifier, text_array};
use crate::queue::fleet::workers::DEAD_AFTER;
use crate::target::rights::{HAS_MAINTAIN, OWNER_SQL, Owner, Theirs};
use crate::target::{self, TargetSpec};

/// How long a session may carry the name of a job that nobody runs, in seconds: ends of jobs are written later than
/// they are.
const ORPHAN_AFTER: u64 = 60;
/// Indexes, sessions and the like that are named.
const NAMED: usize = 10;
/// Jobs among which the names of indexes are looked for that they were to build.
const LATEST_JOBS: i32 = 10_000;

/// A target as the settings have it.
#[derive(Clone, Copy, Debug)]
pub struct Examined<'t> {
    /// Its name.
    pub name: &'t str,
    /// Where it is.
    pub dsn: &'t Dsn,
    /// What it is told.
    pub spec: &'t TargetSpec,
    /// Connections that one process may open.
    pub connections: Connections,
    /// The `application_name` of the session that looks.
    pub session_name: &'t str,
}

/// What only the queue knows of a target.
#[derive(Clone, Debug)]
pub struct FromQueue {
    /// Sessions of running jobs, by their names.
    running: BTreeSet<String>,
    /// Names of indexes that the latest jobs were to build.
    indexes: BTreeSet<String>,
    /// Living processes that have it.
    processes: usize,
    /// When that was.
    read_at: Instant,
}

impl FromQueue {
    /// Reads it.
    ///
    /// # Errors
    /// When the database fails.
    pub fn read(connection: &mut PgConnection, target: &str) -> Result<FromQueue, DbError> {
        #[derive(QueryableByName)]
        struct Running {
            #[diesel(sql_type = SqlUuid)]
            id: Uuid,
            #[diesel(sql_type = BigInt)]
            lease: i64,
        }
        #[derive(QueryableByName)]
        struct Name {
            #[diesel(sql_type = Text)]
            name: String,
        }
        #[derive(QueryableByName)]
        struct Count {
            #[diesel(sql_type = BigInt)]
            count: i64,
        }
        let read_at = Instant::now();
        // Of every target: two of them may be the same database.
        let running =
            diesel::sql_query("SELECT id, lease FROM jobs WHERE state = 'running'").load::<Running>(connection)?;
        // The latest of each table: history may be long, and somebody waits for the answer.
        let names = |table: &str| {
            format!(
                "SELECT args->>'name' AS name
                   FROM (SELECT kind, target, args FROM {table} ORDER BY id DESC LIMIT {LATEST_JOBS}) latest
                  WHERE kind = 'maintain' AND target = $1 AND args->>'action' = 'create_index' AND args->>'name' IS NOT NULL"
            )
        };
        let sql = format!("{} UNION {}", names("jobs"), names("finished_jobs"));
        let indexes = diesel::sql_query(sql).bind::<Text, _>(target).load::<Name>(connection)?;
        let processes = diesel::sql_query(
            "SELECT count(*) AS count FROM workers w WHERE abs(extract(epoch FROM clock_timestamp() - w.beat_at)) < $2
                AND EXISTS (SELECT FROM json_array_elements(w.targets) t WHERE t->>'name' = $1)",
        )
        .bind::<Text, _>(target)
        .bind::<BigInt, _>(i64::try_from(DEAD_AFTER.as_secs()).unwrap_or(i64::MAX))
        .get_result::<Count>(connection)?;
        Ok(FromQueue {
            running: running.into_iter().map(|row| format!("slowlane:{}:{}", row.id, row.lease)).collect(),
            indexes: indexes.into_iter().map(|row| row.name).collect(),
            processes: usize::try_from(processes.count).unwrap_or(0),
            read_at,
        })
    }
}

/// Looks at a target, for as long as `may_go_on` says yes. Without the queue's word nothing is said of what was left
/// behind by jobs, but why there is none.
pub fn examine(target: &Examined<'_>, from_queue: Result<&FromQueue, &str>, may_go_on: MayGoOn<'_>) -> Report {
    let mut report = Report::new(Subject::Target, Some(target.name));
    connect::explain(&mut report, target.dsn);
    if let Err(why) = from_queue {
        let detail = format!(
            "could not ask the queue for running jobs and processes, so sessions that nobody needs aren't told: {why}"
        );
        let fix = "see what is said of the queue, and run it again";
        report.find(Finding::new(FindingCode::NotLookedAt, Severity::Warning, detail, fix));
    }
    let from_queue = from_queue.ok();
    if let Some(mut session) = connect::connect(&mut report, target.dsn, target.session_name, may_go_on) {
        let mut look = Look::new(&mut session, &mut report, may_go_on);
        server::look(&mut look, target.connections, from_queue.map_or(1, |queue| queue.processes));
        read_only(&mut look, target);
        too_strong(&mut look, target);
        too_weak(&mut look, target);
        temporary_files(&mut look);
        activities(&mut look);
        invalid_indexes(&mut look, from_queue);
        staging(&mut look);
        if let Some(queue) = from_queue {
            orphans(&mut look, queue);
        }
    }
    report.sort();
    report
}

fn read_only(look: &mut Look<'_>, target: &Examined<'_>) {
    let sql = "SELECT pg_is_in_recovery(), (SELECT reset_val FROM pg_settings WHERE name = 'default_transaction_read_only') = 'on'";
    let Some(answer) = look.ask("whether the target can be written", sql, &[]) else { return };
    let reads = answer.is(0, 0) || answer.is(0, 1);
    look.fact("standby", answer.is(0, 0));
    if reads && !target.spec.read_only {
        let why = if answer.is(0, 0) { "it is a standby" } else { "its sessions are read-only by default" };
        let detail = format!(
            "the target only reads ({why}), and isn't declared read_only: jobs that change something fail with read_only"
        );
        let fix = format!("set read_only = true in [targets.{}], or connect to the primary", target.name);
        look.find(FindingCode::TargetReadOnly, Severity::Warning, detail, fix);
    }
}

fn too_strong(look: &mut Look<'_>, target: &Examined<'_>) {
    let Some(answer) = look.ask("the role's rights", target::ROLE_SQL, &[]) else { return };
    let role = answer.text(0, 5).to_owned();
    look.fact("role", role.clone());
    let rights = target::RoleRights {
        superuser: answer.is(0, 0),
        creates_roles: answer.is(0, 1),
        may_become_superuser: answer.is(0, 2),
        memberships: answer.text(0, 3).to_owned(),
        sees_queue: answer.is(0, 4),
        creators: answer.text(0, 6).to_owned(),
        seers: answer.text(0, 7).to_owned(),
    };
    let Some(what) = rights.excess() else { return };
    let role = identifier(&role);
    let severity = if target.spec.allow_unsafe_role { Severity::Warning } else { Severity::Error };
    let allowed =
        if target.spec.allow_unsafe_role { "allow_unsafe_role lets it" } else { "slowlane refuses it at the start" };
    let detail = format!("the work role {what}, and whoever may submit a job can do all that it may; {allowed}");
    let fix = format!(
        "name a role of its own in the connection string, and make it by what `slowlane doctor --role-sql {}` prints; or take the right away",
        target.name
    );
    let mut finding = Finding::new(FindingCode::RoleTooStrong, severity, detail, fix);
    // Whose superuser it is isn't known here: taking that right away may lock everybody out.
    if rights.superuser || rights.may_become_superuser {
        finding = finding.sql(format!("CREATE ROLE {} LOGIN", identifier(&format!("{}_work", target.name))));
    } else if rights.creates_roles {
        finding = finding.sql(format!("ALTER ROLE {role} NOCREATEROLE"));
    }
    if !rights.superuser && !rights.may_become_superuser {
        let groups = [&rights.memberships, &rights.creators, &rights.seers];
        let groups: Vec<&str> =
            groups.iter().flat_map(|names| names.split(", ")).filter(|name| !name.is_empty()).collect();
        for group in leading_to(look, &groups) {
            finding = finding.sql(format!("REVOKE {} FROM {role}", identifier(&group)));
        }
    }
    if rights.sees_queue {
        finding = finding.sql(format!("REVOKE ALL ON SCHEMA slowlane FROM {role}"));
    }
    look.report.find(finding);
}

/// The groups that the role was made a member of, and that are or lead to one of these.
fn leading_to(look: &mut Look<'_>, groups: &[&str]) -> Vec<String> {
    let sql = "SELECT DISTINCT d.rolname FROM pg_auth_members m JOIN pg_roles d ON d.oid = m.roleid
                WHERE m.member = (SELECT oid FROM pg_roles WHERE rolname = current_user)
                  AND EXISTS (SELECT FROM pg_roles g WHERE g.rolname = ANY ($1::text[]) AND pg_has_role(d.oid, g.oid, 'MEMBER'))
                ORDER BY 1";
    let answer = look.ask("the role's memberships", sql, &[Some(&text_array(groups))]);
    answer.map(|answer| (0..answer.len()).map(|row| answer.text(row, 0).to_owned()).collect()).unwrap_or_default()
}

fn too_weak(look: &mut Look<'_>, target: &Examined<'_>) {
    // From 17 on a table can be maintained by others than its owner.
    let version = look.session.server_version();
    let newer = version >= HAS_MAINTAIN;
    let owned = match newer {
        true => "(c.relkind IN ('r', 'p', 'm') AND has_table_privilege(c.oid, 'MAINTAIN'))",
        false => "pg_has_role(c.relowner, 'USAGE')",
    };
    let sql = format!("WITH t AS (
                   SELECT c.oid, c.relkind, {owned} AS owned FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relpersistence <> 't' AND n.nspname !~ '^pg_'
                      AND n.nspname NOT IN ('information_schema', 'slowlane') AND has_schema_privilege(n.oid, 'USAGE'))
               SELECT count(*) FILTER (WHERE has_table_privilege(oid, 'SELECT') OR has_any_column_privilege(oid, 'SELECT')),
                      count(*) FILTER (WHERE relkind IN ('r', 'p') AND (has_table_privilege(oid, 'UPDATE') OR has_table_privilege(oid, 'DELETE'))),
                      count(*) FILTER (WHERE relkind IN ('r', 'p') AND has_table_privilege(oid, 'INSERT')),
                      count(*) FILTER (WHERE relkind IN ('r', 'p') AND owned), count(*) FILTER (WHERE relkind = 'm' AND owned),
                      has_database_privilege(current_database(), 'TEMPORARY'), current_user, current_database(),
                      count(*) FILTER (WHERE relkind = 'm'),
                      EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                               WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relpersistence <> 't' AND n.nspname !~ '^pg_'
                                 AND n.nspname NOT IN ('information_schema', 'slowlane'))
                 FROM t");
    let Some(answer) = look.ask("what the role may do for each kind", &sql, &[]) else { return };
    let number = |column| answer.number(0, column).unwrap_or(0);
    let (reads, changes, inserts, owns, views) = (number(0), number(1), number(2), number(3), number(4));
    let temporary = answer.is(0, 5);
    let (role, database) = (identifier(answer.text(0, 6)), identifier(answer.text(0, 7)));
    let writes = !target.spec.read_only;
    // Of a database without tables nothing can be said.
    if !answer.is(0, 9) {
        look.fact("kinds", Value::Null);
        return;
    }
    look.fact(
        "kinds",
        json!({
            "query": reads > 0, "execute": writes && changes + inserts > 0, "backfill": writes && changes > 0,
            "import": writes && inserts > 0, "import_on_conflict": writes && inserts > 0 && temporary,
            "maintain": writes && owns > 0, "refresh": writes && views > 0,
        }),
    );
    let mut weak = |severity, kinds: &str, lacks: &str, sql: &[String]| {
        let detail = format!("{kinds}: the work role {lacks}");
        let finding = Finding::new(FindingCode::RoleTooWeak, severity, detail, "grant what its jobs need, and no more");
        look.report.find(sql.iter().fold(finding, |finding, sql| finding.sql(sql)));
    };
    if reads == 0 {
        let grants = [
            format!("GRANT USAGE ON SCHEMA public TO {role}"),
            format!("GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}"),
        ];
        weak(Severity::Warning, "query", "may read no table at all", &grants);
    }
    // What a role for statements may do is what the statements need.
    if !writes || target.spec.statements_only {
        return;
    }
    if changes + inserts == 0 {
        let grant = format!("GRANT INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}");
        weak(Severity::Info, "execute, backfill, import", "may change no table", &[grant]);
    } else if !temporary {
        let grant = format!("GRANT TEMPORARY ON DATABASE {database} TO {role}");
        weak(Severity::Info, "import", "may make no temporary table, which on_conflict needs", &[grant]);
    }
    if owns == 0 && newer {
        weak(Severity::Info, "maintain", "may maintain no table", &[format!("GRANT pg_maintain TO {role}")]);
    }
    not_maintained(look, version, owns == 0 && !newer, (views, number(8)));
}

/// Tables, where the role may maintain none, and materialized views that it may not refresh: with what lets it.
fn not_maintained(look: &mut Look<'_>, version: i32, tables: bool, (views, all_views): (i64, i64)) {
    let sql = format!(
        "SELECT format('%I.%I', n.nspname, c.relname), n.nspname, c.relkind, current_user, {OWNER_SQL}
           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE c.relkind IN ('r', 'p', 'm') AND c.relpersistence <> 't' AND NOT c.relispartition AND n.nspname !~ '^pg_'
            AND n.nspname NOT IN ('information_schema', 'slowlane') AND has_schema_privilege(n.oid, 'USAGE')
            AND NOT {} ORDER BY 1 LIMIT 1000",
        if version >= HAS_MAINTAIN { "has_table_privilege(c.oid, 'MAINTAIN')" } else { "pg_has_role(c.relowner, 'USAGE')" }
    );
    if !tables && views == all_views {
        return;
    }
    let Some(answer) = look.ask("who owns what the role may not maintain", &sql, &[]) else { return };
    let of_kind = |kinds: &[&str]| -> Vec<Theirs> {
        let rows = (0..answer.len()).filter(|row| kinds.contains(&answer.text(*row, 2)));
        rows.map(|row| Theirs {
            name: answer.text(row, 0).to_owned(),
            schema: answer.text(row, 1).to_owned(),
            is_view: answer.text(row, 2) == "m",
            role: answer.text(row, 3).to_owned(),
            owner: Owner::from(|column| answer.text(row, 4 + column)),
        })
        .collect()
    };
    let mut weak = |kinds: &str, lacks: &str, theirs: &[Theirs]| {
        let detail = format!("{kinds}: the work role {lacks}");
        let fix = "grant what its jobs need, and no more; as a superuser:";
        let mut finding = Finding::new(FindingCode::RoleTooWeak, Severity::Info, detail, fix);
        finding.sql = lets(theirs, version);
        look.report.find(finding);
    };
    if tables {
        let lacks = "owns no table, and before Postgres 17 only an owner may maintain one";
        weak("maintain", lacks, &of_kind(&["r", "p"]));
    }
    let refused = of_kind(&["m"]);
    let named: Vec<&str> = refused.iter().take(NAMED).map(|view| view.name.as_str()).collect();
    if views == 0 && all_views > 0 {
        let owns = if version >= HAS_MAINTAIN { "it has MAINTAIN on none" } else { "it owns none" };
        weak("refresh", &format!("may refresh no materialized view: {owns} ({})", named.join(", ")), &refused);
    } else if views < all_views {
        weak(
            "refresh",
            &format!("may not refresh {} of {all_views}: {}", all_views - views, named.join(", ")),
            &refused,
        );
    }
}

/// The statements for all of these, each once.
fn lets(theirs: &[Theirs], version: i32) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for sql in theirs.iter().take(NAMED).flat_map(|theirs| theirs.sql(version, false)) {
        if !all.contains(&sql) {
            all.push(sql);
        }
    }
    all
}

fn temporary_files(look: &mut Look<'_>) {
    let sql = "SELECT setting::bigint, current_user FROM pg_settings WHERE name = 'temp_file_limit'";
    let Some(answer) = look.ask("temp_file_limit", sql, &[]) else { return };
    let limit = answer.number(0, 0).unwrap_or(-1);
    look.fact("temp_file_limit_kb", limit);
    if limit < 0 {
        let detail = "temporary files of a job have no limit: one sort that is too large can fill the server's disk for everybody";
        let finding = Finding::new(
            FindingCode::TempFileLimit,
            Severity::Info,
            detail,
            "give the work role a limit, as a superuser",
        );
        look.report
            .find(finding.sql(format!("ALTER ROLE {} SET temp_file_limit = '20GB'", identifier(answer.text(0, 1)))));
    }
}

fn activities(look: &mut Look<'_>) {
    let Some(answer) = look.ask("track_activities", "SELECT current_setting('track_activities')", &[]) else { return };
    look.fact("track_activities", answer.text(0, 0));
    if answer.text(0, 0) == "off" {
        let detail =
            "track_activities is off: nobody can see what a job waits for, how far its command is, or who blocks it";
        let finding = Finding::new(FindingCode::TrackActivities, Severity::Warning, detail, "turn it on");
        look.report.find(finding.sql("ALTER SYSTEM SET track_activities = on").sql("SELECT pg_reload_conf()"));
    }
}

fn invalid_indexes(look: &mut Look<'_>, from_queue: Option<&FromQueue>) {
    let sql = "SELECT format('%I.%I', n.nspname, i.relname), i.relname, x.indrelid::regclass::text, pg_relation_size(i.oid),
                      i.relkind = 'I', n.nspname = 'pg_toast'
                 FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_namespace n ON n.oid = i.relnamespace
                WHERE NOT x.indisvalid AND i.relkind IN ('i', 'I') AND n.nspname !~ '^pg_toast_temp'
                  AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index p WHERE p.index_relid = i.oid OR p.relid = x.indrelid)
                  AND NOT EXISTS (SELECT FROM pg_locks l WHERE l.relation = x.indrelid AND l.granted AND l.pid <> pg_backend_pid()
                                     AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
                                     AND l.mode IN ('ShareUpdateExclusiveLock', 'ShareLock'))
                ORDER BY 1 LIMIT 50";
    let Some(answer) = look.ask("invalid indexes", sql, &[]) else { return };
    for row in (0..answer.len()).take(NAMED) {
        let (qualified, name) = (answer.text(row, 0), answer.text(row, 1));
        let (partitioned, toast) = (answer.is(row, 4), answer.is(row, 5));
        let rebuilt = name.contains("_ccnew") || name.contains("_ccold");
        let whose = match from_queue.is_some_and(|queue| queue.indexes.contains(name)) {
            true => "a job of maintain was to build it",
            false if partitioned => "some partitions lack their index",
            false if rebuilt => "a REINDEX CONCURRENTLY left it",
            false => "somebody's CREATE INDEX CONCURRENTLY left it",
        };
        let costs = match partitioned {
            true => "each new partition gets an index for it, and it serves no query by itself".to_owned(),
            false => format!(
                "it is written with each change, takes {}, and serves no query",
                crate::doctor::look::bytes(answer.number(row, 3).unwrap_or(0))
            ),
        };
        let detail = format!(
            "the index {qualified} of {} is invalid ({whose}), and nobody is building it: {costs}",
            answer.text(row, 2)
        );
        let args = match partitioned {
            true => {
                json!({"action": "drop_index", "index": qualified, "concurrently": false, "allow_exclusive_lock": true})
            }
            false => json!({"action": "drop_index", "index": qualified}),
        };
        let job = format!(r#"{{"kind":"maintain","args":{args}}}"#);
        let fix = match (partitioned, toast) {
            (true, _) => {
                format!(
                    "submit the create_index of maintain that makes it, which builds what is missing; or drop it with all that belongs to it, by the job {job}"
                )
            }
            (_, true) => "drop it, in psql, as a superuser: no job may".to_owned(),
            _ => format!("drop it, by the job {job}, and build it again if it is wanted"),
        };
        let concurrently = if partitioned { "" } else { " CONCURRENTLY" };
        let finding = Finding::new(FindingCode::InvalidIndex, Severity::Warning, detail, fix);
        look.report.find(finding.sql(format!("DROP INDEX{concurrently} {qualified}")));
    }
}

/// An import's own table goes with its transaction. What can be left is a schema in which the demo's data were being
/// loaded.
fn staging(look: &mut Look<'_>) {
    let sql = format!(
        "SELECT n.nspname FROM pg_namespace n
                WHERE n.nspname ~ '^slowlane_demo_[0-9a-f]{{32}}$' AND obj_description(n.oid, 'pg_namespace') LIKE 'slowlane demo load%'
                  AND NOT EXISTS (SELECT FROM pg_locks l WHERE l.locktype = 'advisory' AND l.granted
                        AND (l.classid::bigint << 32 | l.objid::bigint) = {DEMO_LOAD_LOCK}
                        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()))
                ORDER BY 1 LIMIT 20"
    );
    let Some(answer) = look.ask("what loads of the demo left", &sql, &[]) else { return };
    for row in 0..answer.len() {
        let name = answer.text(row, 0);
        let detail = format!("the schema {name} holds tables of a load of the demo that was interrupted");
        let fix = "the next `slowlane demo load` drops it; by hand:";
        let finding = Finding::new(FindingCode::StagingLeft, Severity::Warning, detail, fix);
        look.report.find(finding.sql(format!("DROP SCHEMA {} CASCADE", identifier(name))));
    }
}

fn orphans(look: &mut Look<'_>, queue: &FromQueue) {
    let sql = "SELECT pid, application_name, coalesce(state, ''), extract(epoch FROM clock_timestamp() - state_change)::bigint,
                      coalesce(wait_event_type || ':' || wait_event, '')
                 FROM pg_stat_activity
                WHERE application_name ~ '^slowlane:[0-9a-f-]{36}:[0-9]+$' AND datname = current_database() AND pid <> pg_backend_pid()
                  AND state_change < clock_timestamp() - $1::int * interval '1 second' ORDER BY 4 DESC LIMIT 1000";
    // What began since the queue was asked isn't known.
    let patience = ORPHAN_AFTER.saturating_add(queue.read_at.elapsed().as_secs()).to_string();
    let Some(answer) = look.ask("sessions of jobs", sql, &[Some(&patience)]) else { return };
    let lost = (0..answer.len()).filter(|row| !queue.running.contains(answer.text(*row, 1)));
    for row in lost.take(NAMED) {
        let pid = answer.text(row, 0);
        let detail = format!(
            "process {pid} works for {}, which no worker runs any more ({} for {}{}): it may hold locks",
            answer.text(row, 1),
            answer.text(row, 2),
            crate::doctor::look::span(answer.number(row, 3).unwrap_or(0)),
            Some(answer.text(row, 4))
                .filter(|event| !event.is_empty())
                .map(|event| format!(", waits for {event}"))
                .unwrap_or_default()
        );
        let fix = "it is ended when its job is taken over, unless it is a job of another slowlane that works here too; by hand, as the same role:";
        let finding = Finding::new(FindingCode::OrphanedSession, Severity::Warning, detail, fix);
        look.report.find(finding.sql(format!("SELECT pg_terminate_backend({pid})")));
    }
}
