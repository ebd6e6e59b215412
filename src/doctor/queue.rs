//! The queue's database: schema, roles, tables, days of history, and whether anybody serves.

use serde_json::{Map, Value, json};

use crate::db::{migrations, roles};
use crate::doctor::connect;
use crate::doctor::look::{Look, bytes, span};
use crate::doctor::report::{Finding, FindingCode, Report, Severity, Subject};
use crate::doctor::server::{self, Connections};
use crate::dsn::Dsn;
use crate::pq::quote::identifier;
use crate::queue::fleet::workers::DEAD_AFTER;
use crate::queue::record::partitions;

/// Days of history that should be ready beyond today: fewer are worth a word.
const DAYS_AHEAD: i64 = 3;
/// Dead rows of a table that are worth a word.
const DEAD_ROWS: i64 = 50_000;
/// An index below this is never called too large, in bytes.
const INDEX_BYTES: i64 = 16 << 20;
/// What an entry of an index takes when it is well filled, in bytes, at most.
const ENTRY_BYTES: i64 = 100;
/// So many times what its entries need is too large.
const INDEX_FACTOR: i64 = 8;
/// How long a transaction may wait for its fate to be found out, in seconds.
const IN_DOUBT: i64 = 600;
/// Groups of jobs and the like that are named.
const NAMED: usize = 5;
/// So many are worth a word, however lately they were vacuumed.
const MANY_DEAD_ROWS: i64 = 1_000_000;
/// What the migration sets: without it dead rows of claims and of checkpoints pile up.
const OPTIONS: [(&str, [&str; 3]); 2] = [
    (
        "jobs",
        ["autovacuum_vacuum_scale_factor=0", "autovacuum_vacuum_threshold=1000", "autovacuum_vacuum_cost_delay=0"],
    ),
    (
        "job_checkpoints",
        ["autovacuum_vacuum_scale_factor=0", "autovacuum_vacuum_threshold=1000", "autovacuum_vacuum_cost_delay=0"],
    ),
];

/// What the settings say of the queue.
#[derive(Clone, Copy, Debug)]
pub struct QueueSettings {
    /// Connections that one process may open.
    pub connections: Connections,
    /// The most bytes of results and uploads.
    pub store_bytes: i64,
}

/// Looks at the queue.
pub fn examine(dsn: &Dsn, settings: QueueSettings) -> Report {
    let mut report = Report::new(Subject::Queue, None);
    connect::explain(&mut report, dsn);
    if let Some(mut session) = connect::connect(&mut report, dsn, connect::NAME, &|| true) {
        let mut look = Look::new(&mut session, &mut report, &|| true);
        let has_schema = schema(&mut look);
        let processes = if has_schema { workers(&mut look) } else { 0 };
        server::look(&mut look, settings.connections, processes);
        server::setting(&mut look, "temp_file_limit");
        language(&mut look);
        if has_schema {
            role(&mut look);
            tables(&mut look, settings.store_bytes);
            indexes(&mut look);
            days(&mut look);
            jobs(&mut look);
        }
    }
    report.sort();
    report
}

/// The schema is one that this build can look at.
fn schema(look: &mut Look<'_>) -> bool {
    let sql = "SELECT pg_is_in_recovery(), (SELECT reset_val FROM pg_settings WHERE name = 'default_transaction_read_only') = 'on',
                      current_user, current_database(),
                      (SELECT has_schema_privilege(oid, 'USAGE') FROM pg_namespace WHERE nspname = 'slowlane')";
    let Some(answer) = look.ask("the schema", sql, &[]) else { return false };
    let (role, database) = (answer.text(0, 2).to_owned(), answer.text(0, 3).to_owned());
    look.fact("role", role.clone());
    look.fact("database", database.clone());
    if answer.is(0, 0) || answer.is(0, 1) {
        let why = if answer.is(0, 0) { "it is a standby" } else { "its sessions are read-only by default" };
        let detail = format!("the server only reads ({why}), and no job can be accepted");
        let fix = "connect to the primary: name all hosts and target_session_attrs=read-write";
        look.find(FindingCode::QueueReadOnly, Severity::Error, detail, fix);
    }
    let migrate = "run `slowlane migrate up` with a login of the schema's owner";
    match answer.text(0, 4) {
        "t" => {}
        "f" => {
            let detail = format!("the role {role} may not use the schema slowlane, and nothing more can be looked at");
            let fix = with_its_name(&role);
            let finding = Finding::new(FindingCode::RoleTooWeak, Severity::Error, detail, fix);
            look.report.find(with_grants(finding, &identifier(&role)));
            return false;
        }
        _ => {
            let detail = format!("the database {database} has no schema slowlane");
            look.find(FindingCode::MigrationsPending, Severity::Error, detail, migrate);
            return false;
        }
    }
    let table = "slowlane.__diesel_schema_migrations";
    let sql = "SELECT to_regclass($1) IS NOT NULL, coalesce(has_table_privilege(to_regclass($1), 'SELECT'), false)";
    let Some(answer) = look.ask("the table of migrations", sql, &[Some(table)]) else { return false };
    if !answer.is(0, 0) {
        let detail = "the schema slowlane has no migrations";
        look.find(FindingCode::MigrationsPending, Severity::Error, detail, migrate);
        return false;
    }
    if !answer.is(0, 1) {
        let detail = format!(
            "the role {role} may not read the tables of the schema slowlane, and nothing more can be looked at"
        );
        let fix = with_its_name(&role);
        let finding = Finding::new(FindingCode::RoleTooWeak, Severity::Error, detail, fix);
        look.report.find(with_grants(finding, &identifier(&role)));
        return false;
    }
    let sql = format!("SELECT version FROM {table} ORDER BY version");
    let Some(answer) = look.ask("applied migrations", &sql, &[]) else { return false };
    let applied = (0..answer.len()).map(|row| answer.text(row, 0).to_owned()).collect();
    let Ok(status) = migrations::compared(applied) else { return false };
    look.fact("migrations", json!({"applied": status.applied, "pending": status.pending, "unknown": status.unknown}));
    if !status.unknown.is_empty() {
        let detail =
            format!("the schema has migrations that this slowlane doesn't know: {}", status.unknown.join(", "));
        look.find(FindingCode::SchemaNewer, Severity::Error, detail, "use the newer slowlane");
    }
    if !status.pending.is_empty() {
        let detail = format!("the schema lacks migrations: {}", status.pending.join(", "));
        look.find(FindingCode::MigrationsPending, Severity::Error, detail, migrate);
    }
    status.is_current()
}

fn language(look: &mut Look<'_>) {
    let sql = "SELECT current_setting('lc_messages'),
                      current_setting('lc_messages') ~* '^(c|posix|en)([._-]|$)' OR current_setting('lc_messages') = ''";
    let Some(answer) = look.ask("lc_messages", sql, &[]) else { return };
    look.fact("lc_messages", answer.text(0, 0));
    if !answer.is(0, 1) {
        let detail = format!(
            "the server writes its messages in {}: lost connections and timeouts are told by their words, and are taken for refusals",
            answer.text(0, 0)
        );
        let finding = Finding::new(FindingCode::LcMessages, Severity::Warning, detail, "set lc_messages to C");
        look.report.find(finding.sql("ALTER SYSTEM SET lc_messages = 'C'").sql("SELECT pg_reload_conf()"));
    }
}

fn with_its_name(role: &str) -> String {
    format!(
        "run `slowlane migrate up --service-role {}` with a login of the owner, or as the owner:",
        roles::shell_word(role)
    )
}

/// With what `slowlane migrate up --service-role` grants; `role` is quoted.
fn with_grants(finding: Finding, role: &str) -> Finding {
    finding
        .sql(format!("GRANT USAGE ON SCHEMA slowlane TO {role}"))
        .sql(format!("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA slowlane TO {role}"))
        .sql(format!("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA slowlane TO {role}"))
        .sql(format!(
            "ALTER DEFAULT PRIVILEGES IN SCHEMA slowlane GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {role}"
        ))
        .sql(format!("ALTER DEFAULT PRIVILEGES IN SCHEMA slowlane GRANT EXECUTE ON FUNCTIONS TO {role}"))
}

/// What the service's role may do. The owner's and a superuser's may do too much.
fn role(look: &mut Look<'_>) {
    // From 16 on each membership says itself what it is for; before, the role does.
    let each = look.session.server_version() >= 160_000;
    let acts = if each { "SET" } else { "MEMBER" };
    let sql = format!(
        "WITH t AS (SELECT c.oid, c.relname FROM pg_class c WHERE c.relnamespace = 'slowlane'::regnamespace
                       AND c.relkind IN ('r', 'p', 'v') AND NOT c.relispartition AND c.relname !~ '^__diesel')
         SELECT current_user, r.rolsuper, r.rolcreaterole, j.relowner = r.oid, pg_get_userbyid(j.relowner),
                pg_has_role(j.relowner, '{acts}'),
                coalesce((SELECT string_agg(relname, ', ' ORDER BY relname) FROM t
                           WHERE NOT has_table_privilege(oid, 'SELECT')
                              OR relname <> 'all_attempts' AND NOT (has_table_privilege(oid, 'INSERT')
                                 AND has_table_privilege(oid, 'UPDATE') AND has_table_privilege(oid, 'DELETE'))), ''),
                pg_has_role(j.relowner, 'USAGE'),
                coalesce((SELECT string_agg(DISTINCT proname, ', ') FROM pg_proc
                           WHERE pronamespace = 'slowlane'::regnamespace AND NOT has_function_privilege(oid, 'EXECUTE')), '')
           FROM pg_roles r, pg_class j WHERE r.rolname = current_user AND j.oid = 'slowlane.jobs'::regclass"
    );
    let Some(answer) = look.ask("the role's rights", &sql, &[]) else { return };
    let (role, owner) = (identifier(answer.text(0, 0)), answer.text(0, 4).to_owned());
    let member = identifier(&owner);
    let strong = match () {
        () if answer.is(0, 1) => Some("is a superuser"),
        () if answer.is(0, 2) => Some("may create roles"),
        () if answer.is(0, 3) => Some("owns the schema"),
        () if answer.is(0, 7) => Some("has the owner's rights without saying so"),
        () => None,
    };
    if let Some(what) = strong {
        let detail = format!(
            "the role of the service {what}: a mistake, or whoever gets hold of its password, can change the schema itself"
        );
        let inherits = !(answer.is(0, 1) || answer.is(0, 2) || answer.is(0, 3));
        // What it may do by the owner's rights alone has to be its own first.
        let fix = match (inherits, each) {
            (true, true) => "give it rights of its own, and let it act as the owner only where it says so",
            (true, false) => {
                "give it rights of its own, and let it act as the owner only where it says so; what it has by other groups is then to be \
                 granted to it as well"
            }
            (false, _) => {
                "use a role of its own that is a member of the owner with NOINHERIT, and run `slowlane migrate up --service-role` with its name"
            }
        };
        let finding = Finding::new(FindingCode::RoleTooStrong, Severity::Warning, detail, fix);
        look.report.find(match (inherits, each) {
            (true, true) => {
                with_grants(finding, &role).sql(format!("GRANT {member} TO {role} WITH INHERIT FALSE, SET TRUE"))
            }
            (true, false) => with_grants(finding, &role).sql(format!("ALTER ROLE {role} NOINHERIT")),
            (false, _) => finding.sql(format!("CREATE ROLE slowlane_service LOGIN NOINHERIT IN ROLE {member}")),
        });
    }
    let (tables, functions) = (answer.text(0, 6), answer.text(0, 8));
    if !(tables.is_empty() && functions.is_empty()) {
        let lacking = [("tables", tables), ("functions", functions)];
        let lacking: Vec<String> = lacking
            .iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(what, names)| format!("{what} of the queue: {names}"))
            .collect();
        let detail = format!("the role of the service lacks rights on {}", lacking.join("; and on "));
        let fix = with_its_name(answer.text(0, 0));
        let finding = Finding::new(FindingCode::RoleTooWeak, Severity::Error, detail, fix);
        look.report.find(with_grants(finding, &role));
    }
    if !answer.is(0, 5) {
        let detail = format!(
            "the role of the service may not act as the owner {owner}: it can neither make nor drop days of history"
        );
        let fix = "make it a member of the owner that acts as the owner only where it says so";
        let finding = Finding::new(FindingCode::RoleTooWeak, Severity::Error, detail, fix);
        look.report.find(match each {
            true => finding.sql(format!("GRANT {member} TO {role} WITH INHERIT FALSE, SET TRUE")),
            false => finding.sql(format!("ALTER ROLE {role} NOINHERIT")).sql(format!("GRANT {member} TO {role}")),
        });
    }
}

fn tables(look: &mut Look<'_>, store_bytes: i64) {
    let sql = "SELECT regexp_replace(c.relname, '_[0-9]{8}$', ''), sum(pg_total_relation_size(c.oid))::bigint,
                      sum(coalesce(s.n_live_tup, 0))::bigint, sum(coalesce(s.n_dead_tup, 0))::bigint,
                      max(greatest(s.last_autovacuum, s.last_vacuum))::text, bool_or(c.relpersistence = 'u'),
                      coalesce(max(greatest(s.last_autovacuum, s.last_vacuum)) > clock_timestamp() - interval '10 minutes', false)
                 FROM pg_class c LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid
                WHERE c.relnamespace = 'slowlane'::regnamespace AND c.relkind = 'r' AND c.relname !~ '^__diesel'
                GROUP BY 1 ORDER BY 2 DESC";
    let Some(answer) = look.ask("the sizes of tables", sql, &[]) else { return };
    let mut facts = Map::new();
    let keepers = [FindingCode::OldTransaction, FindingCode::PreparedTransaction, FindingCode::ReplicationSlot];
    let kept = look.report.findings.iter().any(|finding| keepers.contains(&finding.code));
    for row in 0..answer.len() {
        let (name, size) = (answer.text(row, 0), answer.number(row, 1).unwrap_or(0));
        let (live, dead) = (answer.number(row, 2).unwrap_or(0), answer.number(row, 3).unwrap_or(0));
        let vacuumed = answer.text(row, 4);
        facts.insert(
            name.to_owned(),
            json!({"bytes": size, "live_rows": live, "dead_rows": dead, "vacuumed_at": some(vacuumed)}),
        );
        // A busy queue has as many between two vacuums, and they go, unless somebody keeps them.
        let goes = answer.is(row, 6) && dead < MANY_DEAD_ROWS && !kept;
        if dead >= DEAD_ROWS && dead > live && !goes {
            let since =
                if vacuumed.is_empty() { "never vacuumed".to_owned() } else { format!("last vacuumed {vacuumed}") };
            let detail = format!(
                "slowlane.{name} has {dead} dead rows beside {live} that live ({since}, {} with its indexes)",
                bytes(size)
            );
            let fix = "see what keeps them: an old transaction, a prepared one, a slot; then vacuum";
            let finding = Finding::new(FindingCode::DeadRows, Severity::Warning, detail, fix);
            look.report.find(finding.sql(format!("VACUUM (ANALYZE) slowlane.{}", identifier(name))));
        }
        if answer.is(row, 5) && name != "job_progress" {
            let detail =
                format!("slowlane.{name} is UNLOGGED: a crash of the server empties it, and with it what was accepted");
            let finding =
                Finding::new(FindingCode::UnloggedTable, Severity::Error, detail, "make it a logged table again");
            look.report.find(finding.sql(format!("ALTER TABLE slowlane.{} SET LOGGED", identifier(name))));
        }
    }
    look.fact("tables", Value::Object(facts));
    store(look, store_bytes);
    autovacuum_settings(look);
}

/// How full the store is, counted as accepting counts it.
fn store(look: &mut Look<'_>, store_bytes: i64) {
    let sql = "SELECT ((SELECT coalesce(sum(pg_total_relation_size(inhrelid)), 0) FROM pg_inherits
                         WHERE inhparent = 'slowlane.result_parts'::regclass)
                     + (SELECT coalesce(sum(bytes), 0) FROM slowlane.uploads))::bigint";
    let stored = look.ask("the store of results", sql, &[]).and_then(|answer| answer.number(0, 0));
    let Some(stored) = stored else { return };
    look.fact("stored_bytes", stored);
    if store_bytes > 0 && stored.saturating_mul(5) >= store_bytes.saturating_mul(4) {
        let detail = format!(
            "results and uploads take {} of the {} that result_store_bytes allows: above it new ones are refused",
            bytes(stored),
            bytes(store_bytes)
        );
        let fix = "delete results that are no longer needed, give them a shorter result_ttl_ms, or raise result_store_bytes with the disk";
        look.find(FindingCode::StoreFilling, Severity::Warning, detail, fix);
    }
}

/// What the migration sets on tables that change most is still so.
fn autovacuum_settings(look: &mut Look<'_>) {
    for (table, wanted) in OPTIONS {
        let sql = "SELECT coalesce((SELECT string_agg(option_name || '=' || option_value, ' ') FROM pg_options_to_table(reloptions)), ''),
                          EXISTS (SELECT FROM pg_options_to_table(reloptions)
                                   WHERE option_name = 'autovacuum_enabled' AND NOT option_value::boolean)
                     FROM pg_class WHERE oid = to_regclass($1)";
        let name = format!("slowlane.{table}");
        let Some(answer) = look.ask("autovacuum settings of the queue's tables", sql, &[Some(&name)]) else { return };
        look.fact(&format!("{table}_options"), answer.text(0, 0));
        let given: Vec<&str> = answer.text(0, 0).split(' ').collect();
        if wanted.iter().all(|option| given.contains(option)) && !answer.is(0, 1) {
            continue;
        }
        let detail = format!(
            "{name} has lost the autovacuum settings of its migration: by the server's own it is vacuumed late, and dead rows pile up"
        );
        let finding =
            Finding::new(FindingCode::AutovacuumSettings, Severity::Warning, detail, "set them again, as the owner");
        let options: Vec<String> = wanted.iter().map(|option| option.replacen('=', " = ", 1)).collect();
        look.report.find(
            finding
                .sql(format!("ALTER TABLE {name} RESET (autovacuum_enabled)"))
                .sql(format!("ALTER TABLE {name} SET ({})", options.join(", "))),
        );
    }
}

fn some(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

fn indexes(look: &mut Look<'_>) {
    // An index that no vacuum has been at says nothing of its entries: then those of its table are as many at most.
    let sql = "SELECT i.relname, t.relname, pg_relation_size(i.oid), greatest(i.reltuples, s.n_live_tup, 0)::bigint, x.indisvalid
                 FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class t ON t.oid = x.indrelid
                 LEFT JOIN pg_stat_all_tables s ON s.relid = t.oid
                WHERE t.relnamespace = 'slowlane'::regnamespace AND i.relkind = 'i' ORDER BY 3 DESC LIMIT 200";
    let Some(answer) = look.ask("the sizes of indexes", sql, &[]) else { return };
    let mut facts = Map::new();
    for row in 0..answer.len() {
        let (name, size, entries) =
            (answer.text(row, 0), answer.number(row, 2).unwrap_or(0), answer.number(row, 3).unwrap_or(0));
        facts.insert(name.to_owned(), json!({"bytes": size, "entries": entries}));
        let sql = format!("REINDEX INDEX CONCURRENTLY slowlane.{}", identifier(name));
        let fix = "build it anew, as the owner; it keeps no writer out";
        if !answer.is(row, 4) {
            let detail = format!(
                "the index slowlane.{name} of {} is invalid: it is written, and serves no query",
                answer.text(row, 1)
            );
            look.report.find(Finding::new(FindingCode::InvalidIndex, Severity::Error, detail, fix).sql(sql));
        } else if size >= INDEX_BYTES && size > entries.saturating_mul(ENTRY_BYTES).saturating_mul(INDEX_FACTOR) {
            let detail = format!(
                "the index slowlane.{name} takes {} for {entries} entries: what was in it was kept by an old transaction, or is gone",
                bytes(size)
            );
            look.report.find(Finding::new(FindingCode::IndexBloat, Severity::Warning, detail, fix).sql(sql));
        }
    }
    look.fact("indexes", Value::Object(facts));
}

fn days(look: &mut Look<'_>) {
    let tables = partitions::TABLES.map(|table| format!("'{table}'")).join(", ");
    let sql = format!(
        "WITH t AS (SELECT unnest(ARRAY[{tables}]) AS name),
         d AS (SELECT generate_series(0, 7) AS ahead),
         missing AS (
             SELECT d.ahead, t.name FROM d, t
              WHERE NOT EXISTS (SELECT FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                                 WHERE i.inhparent = to_regclass('slowlane.' || t.name) AND NOT i.inhdetachpending
                                   AND c.relname = t.name || '_' || to_char((clock_timestamp() AT TIME ZONE 'UTC')::date + d.ahead, 'YYYYMMDD')))
         SELECT coalesce(min(ahead), 8), string_agg(DISTINCT name, ', ') FROM missing"
    );
    let Some(answer) = look.ask("the days of history", &sql, &[]) else { return };
    let ahead = answer.number(0, 0).unwrap_or(0) - 1;
    look.fact("days_ahead", ahead);
    if ahead < DAYS_AHEAD {
        let severity = if ahead < 0 { Severity::Error } else { Severity::Warning };
        let detail = format!(
            "days of history are ready for {} beyond today (missing of: {}): an end that meets a missing day has to make it first",
            ahead.max(0),
            answer.text(0, 1)
        );
        let fix = "a process that runs jobs makes them every half minute, where its role may act as the owner; or run `slowlane migrate up`";
        look.find(FindingCode::PartitionsMissing, severity, detail, fix);
    }
    let sql = format!(
        "SELECT c.relname, i.inhdetachpending IS NOT NULL, left(c.relname, -9),
                slowlane.first_id_of(to_date(right(c.relname, 8), 'YYYYMMDD')), slowlane.first_id_of(to_date(right(c.relname, 8), 'YYYYMMDD') + 1)
           FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
          WHERE c.relnamespace = 'slowlane'::regnamespace AND c.relkind = 'r' AND left(c.relname, -9) IN ({tables})
            AND c.relname ~ '_[0-9]{{8}}$' AND i.inhdetachpending IS NOT FALSE ORDER BY 1 LIMIT 20"
    );
    let Some(answer) = look.ask("days that are on their way out", &sql, &[]) else { return };
    for row in (0..answer.len()).take(NAMED) {
        let (name, table) = (answer.text(row, 0), answer.text(row, 2));
        let detail = format!(
            "the day slowlane.{name} was taken out of {table} and is still there: what is in it isn't seen any more"
        );
        let fix = "past its retention, a process that runs jobs drops it; one of these days is taken back by it. To have it back by hand, as the owner:";
        let mut finding = Finding::new(FindingCode::PartitionsLeft, Severity::Info, detail, fix);
        if answer.is(row, 1) {
            finding = finding.sql(format!("ALTER TABLE slowlane.{table} DETACH PARTITION slowlane.{name} FINALIZE"));
        }
        look.report.find(finding.sql(format!(
            "ALTER TABLE slowlane.{table} ATTACH PARTITION slowlane.{name} FOR VALUES FROM ('{}') TO ('{}')",
            answer.text(row, 3),
            answer.text(row, 4)
        )));
    }
}

/// How many processes run jobs, as far as they say. The dead with jobs are a finding.
fn workers(look: &mut Look<'_>) -> usize {
    let sql = "SELECT w.id, w.hostname, w.pid, abs(extract(epoch FROM clock_timestamp() - w.beat_at)) < $1::int,
                      abs(extract(epoch FROM clock_timestamp() - w.beat_at))::bigint,
                      (SELECT count(*) FROM slowlane.jobs j WHERE j.worker_id = w.id AND j.state = 'running') AS running
                 FROM slowlane.workers w ORDER BY running DESC, w.started_at LIMIT 1000";
    let dead_after = DEAD_AFTER.as_secs().to_string();
    let Some(answer) = look.ask("the workers", sql, &[Some(&dead_after)]) else { return 0 };
    let alive = (0..answer.len()).filter(|row| answer.is(*row, 3)).count();
    look.fact("workers_alive", i64::try_from(alive).unwrap_or(0));
    let holds = |row: &usize| !answer.is(*row, 3) && answer.number(*row, 5).unwrap_or(0) > 0;
    for row in (0..answer.len()).filter(holds).take(NAMED) {
        let running = answer.number(row, 5).unwrap_or(0);
        let detail = format!(
            "the process {} on {} hasn't beaten for {} and holds {running} jobs: nobody has taken them over",
            answer.text(row, 2),
            answer.text(row, 1),
            span(answer.number(row, 4).unwrap_or(0))
        );
        let fix =
            "another process with the same kinds and targets takes them over within 30 s: start one, and see its log";
        look.find(FindingCode::WorkerDead, Severity::Warning, detail, fix);
    }
    if alive == 0 {
        let detail = "no process runs jobs: what is accepted waits, and days of history aren't made";
        look.find(FindingCode::NoWorkers, Severity::Warning, detail, "start `slowlane serve` with workers");
    }
    alive
}

fn jobs(look: &mut Look<'_>) {
    let sql = "WITH waiting AS (SELECT queue, kind, target, count(*) AS n FROM slowlane.jobs WHERE state = 'queued' GROUP BY 1, 2, 3)
               SELECT g.queue, g.kind, g.target, g.n FROM waiting g
                WHERE NOT EXISTS (SELECT FROM slowlane.workers w
                    WHERE abs(extract(epoch FROM clock_timestamp() - w.beat_at)) < $1::int AND g.queue = ANY(w.queues) AND g.kind = ANY(w.kinds)
                      AND EXISTS (SELECT FROM json_array_elements(w.targets) t WHERE t->>'name' = g.target))
                ORDER BY 4 DESC LIMIT 50";
    let dead_after = DEAD_AFTER.as_secs().to_string();
    if let Some(answer) = look.ask("jobs that nobody serves", sql, &[Some(&dead_after)]) {
        for row in (0..answer.len()).take(NAMED) {
            let detail = format!(
                "{} jobs of kind {} wait in the queue {} for the target {}, and no living process serves all three",
                answer.text(row, 3),
                answer.text(row, 1),
                answer.text(row, 0),
                answer.text(row, 2)
            );
            let fix = "start a process with that queue, kind and target, or cancel the jobs";
            look.find(FindingCode::JobsUnserved, Severity::Warning, detail, fix);
        }
    }
    let sql = "SELECT name, paused_at::text, coalesce(paused_reason, 'no reason given') FROM slowlane.queues
                WHERE paused_at IS NOT NULL ORDER BY paused_at LIMIT 20";
    if let Some(answer) = look.ask("paused queues", sql, &[]) {
        for row in 0..answer.len() {
            let name = answer.text(row, 0);
            let detail = format!("the queue {name} is paused since {}: {}", answer.text(row, 1), answer.text(row, 2));
            let fix = format!("resume it when its time has come: POST /v1/queues/{name}/resume");
            look.find(FindingCode::QueuePaused, Severity::Info, detail, fix);
        }
    }
    let sql = "SELECT count(*), min(c.job_id::text), extract(epoch FROM clock_timestamp() - min(c.updated_at))::bigint
                 FROM slowlane.job_checkpoints c
                WHERE c.xid IS NOT NULL AND c.updated_at < clock_timestamp() - $1::int * interval '1 second'
                  AND NOT EXISTS (SELECT FROM slowlane.jobs j WHERE j.id = c.job_id AND j.state = 'running')";
    let patience = IN_DOUBT.to_string();
    let Some(answer) = look.ask("transactions in doubt", sql, &[Some(&patience)]) else { return };
    if let Some(count) = answer.number(0, 0).filter(|count| *count > 0) {
        let detail = format!(
            "of {count} jobs isn't known whether their last transaction took effect, for up to {} (one is {}): their target can't be asked",
            span(answer.number(0, 2).unwrap_or(0)),
            answer.text(0, 1)
        );
        let fix =
            "bring the target back: they are settled at their next attempt; GET /v1/jobs/{id} says what they wait for";
        look.find(FindingCode::InDoubt, Severity::Warning, detail, fix);
    }
}
