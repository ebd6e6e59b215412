//! `slowlane doctor` and `POST /v1/targets/{name}/check`, on clusters that have what they find.
//!
//! Where time or the server's surroundings can't be moved, a database of its own is told by its catalog that they were.

mod roles;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use slowlane::doctor::FindingCode;
use slowlane::dsn::Dsn;
use slowlane::pq::Session;

use crate::support::app::TestApp;
use crate::support::child::program;
use crate::support::eventually;
use crate::support::pooler::{Pooler, Pooling, message, read_startup};
use crate::support::postgres::{Database, Postgres};
use crate::support::proxy::{Mode, Proxy};

/// What the doctor said, and what it ended with.
struct Said {
    status: i32,
    all: Value,
}

impl Said {
    fn of(output: &std::process::Output) -> Said {
        let text = String::from_utf8_lossy(&output.stdout);
        let error = String::from_utf8_lossy(&output.stderr);
        let all = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}{error}"));
        Said { status: output.status.code().unwrap(), all }
    }

    fn report(&self, subject: &str) -> &Value {
        let reports = self.all["reports"].as_array().unwrap();
        reports.iter().find(|report| report["subject"] == subject).unwrap_or_else(|| panic!("{}", self.all))
    }

    /// The first finding with this code.
    #[track_caller]
    fn finding(&self, subject: &str, code: &str) -> &Value {
        let findings = self.report(subject)["findings"].as_array().unwrap();
        let found = findings.iter().find(|finding| finding["code"] == code);
        found.unwrap_or_else(|| panic!("no {code}: {}", serde_json::to_string_pretty(self.report(subject)).unwrap()))
    }

    /// There is this finding, as bad as this; some word of it, and of its SQL.
    #[track_caller]
    fn has(&self, subject: &str, code: &str, severity: &str, word: &str, sql: &str) {
        let finding = self.finding(subject, code);
        assert_eq!(finding["severity"], severity, "{finding}");
        assert!(finding["detail"].as_str().unwrap().contains(word), "{finding}");
        assert!(!finding["fix"].as_str().unwrap().is_empty(), "{finding}");
        let statements = finding["sql"].as_array().unwrap();
        let found = statements.iter().any(|statement| statement.as_str().unwrap().contains(sql));
        assert!(if sql.is_empty() { statements.is_empty() } else { found }, "{finding}");
    }

    /// As `has`, of several findings with the same code.
    #[track_caller]
    fn has_one_of(&self, subject: &str, code: &str, severity: &str, word: &str) {
        let findings = self.report(subject)["findings"].as_array().unwrap();
        let is = |finding: &&Value| finding["code"] == code && finding["detail"].as_str().unwrap().contains(word);
        let found = findings.iter().find(is).unwrap_or_else(|| panic!("{code}, {word}: {}", self.all));
        assert_eq!(found["severity"], severity, "{found}");
    }

    #[track_caller]
    fn has_not(&self, subject: &str, code: &str) {
        let findings = self.report(subject)["findings"].as_array().unwrap();
        assert!(!findings.iter().any(|finding| finding["code"] == code), "{code}: {findings:?}");
    }
}

fn command(queue: Option<&Dsn>, target: Option<&Dsn>) -> Command {
    let mut command = program();
    command.arg("doctor").args(["--target", "default=TARGET_URL"]);
    for (name, dsn) in [("SLOWLANE_DATABASE_URL", queue), ("TARGET_URL", target)] {
        dsn.map(|dsn| command.env(name, dsn.to_url().expose()));
    }
    command
}

/// What is said of the queue.
fn of_queue(queue: &Dsn, more: &[&str]) -> Said {
    Said::of(&command(Some(queue), None).args(["--json", "--only", "queue"]).args(more).output().unwrap())
}

/// What is said of the target, with the queue's word.
fn of_target(queue: &Dsn, target: &Dsn, more: &[&str]) -> Said {
    Said::of(&command(Some(queue), Some(target)).args(["--json", "--only", "default"]).args(more).output().unwrap())
}

/// A cluster without anything to find.
fn healthy() -> Postgres {
    Postgres::with(&[("fsync", "on"), ("synchronous_commit", "on"), ("max_prepared_transactions", "5")])
}

#[test]
fn a_healthy_system_has_nothing_to_do_and_says_what_it_looked_at() {
    let postgres = healthy();
    let app = TestApp::on(postgres.queue(), postgres.work(), |_| {});
    app.query("SELECT 1", &json!([]));
    let output = command(Some(&app.queue.dsn), Some(&app.target.dsn)).arg("--json").output().unwrap();
    let said = Said::of(&output);
    assert_eq!((said.status, &said.all["worst"]), (0, &json!("info")), "{}", said.all);
    let queue = said.report("queue");
    let steps: Vec<&str> = queue["steps"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(steps[0], "resolve");
    assert!(steps.contains(&"connect") && steps.contains(&"login") && steps.contains(&"first_statement"), "{steps:?}");
    for (name, value) in [
        ("pooler", json!("none")),
        ("connections_of_one_process", json!(14)),
        ("days_ahead", json!(7)),
        ("workers_alive", json!(1)),
        ("fsync", json!("on")),
        ("role", json!("slowlane_queue")),
    ] {
        assert_eq!(queue["facts"][name], value, "{name}: {queue}");
    }
    assert!(queue["facts"]["tables"]["jobs"]["bytes"].as_i64().unwrap() > 0, "{queue}");
    assert!(queue["facts"]["indexes"]["jobs_claim"]["bytes"].as_i64().unwrap() > 0, "{queue}");
    assert_eq!(queue["facts"]["migrations"]["pending"], json!([]));
    let target = said.report("target");
    assert_eq!((&target["name"], &target["facts"]["connections_of_one_process"]), (&json!("default"), &json!(13)));
    assert_eq!(target["connection"]["written_for"], "libpq, which is synchronous");
    // Nothing that it prints is a secret, in either form.
    let text = command(Some(&app.queue.dsn), Some(&app.target.dsn)).output().unwrap();
    let text = String::from_utf8(text.stdout).unwrap() + &String::from_utf8(output.stdout).unwrap();
    let password = app.queue.dsn.get("password").unwrap();
    assert!(!text.contains(password) && text.contains("***"), "{text}");
    assert!(
        text.contains("the queue") && text.contains("the target default") && text.contains("0 errors, 0 warnings"),
        "{text}"
    );
    // Its databases take no TLS, and asking for it is no step that was taken.
    let preferring = |dsn: &Dsn| dsn.clone().with("sslmode", "prefer");
    let said = of_target(&app.queue.dsn, &preferring(&app.target.dsn), &[]);
    let steps = said.report("target")["steps"].to_string();
    assert!(steps.contains("login") && !steps.contains("tls"), "{steps}");
    // Of a database without tables nothing is said of what the role can run.
    assert_eq!(said.report("target")["facts"]["kinds"], Value::Null);
    assert!(text.contains("the database has no tables") && !text.contains("the role can run: ;"), "{text}");
    app.target.run("CREATE TABLE public.t (a int); GRANT SELECT ON public.t TO PUBLIC");
    let text = command(Some(&app.queue.dsn), Some(&app.target.dsn)).output().unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("the role can run: query; not: backfill, execute"), "{text}");
    app.target.run("ALTER TABLE public.t OWNER TO slowlane_demo; CREATE MATERIALIZED VIEW public.v AS SELECT 1 AS a; ALTER MATERIALIZED VIEW public.v OWNER TO slowlane_demo");
    let text = command(Some(&app.queue.dsn), Some(&app.target.dsn)).output().unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("query, refresh\n") && !text.contains("; not:"), "{text}");
}

#[test]
fn one_is_counted_as_one() {
    let postgres = healthy();
    let (queue, target) = (postgres.queue(), postgres.work());
    target.run(&format!("ALTER DATABASE {} SET default_transaction_read_only = on", target.name()));
    let output = command(Some(&queue.dsn), Some(&target.dsn)).args(["--only", "default"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("0 errors, 1 warning, "), "{text}");
}

#[test]
fn settings_of_a_server_that_cost_or_endanger_something() {
    let postgres = Postgres::with(&[
        ("full_page_writes", "off"),
        ("autovacuum", "off"),
        ("max_wal_size", "64MB"),
        ("track_activities", "off"),
        ("max_connections", "24"),
        ("superuser_reserved_connections", "3"),
    ]);
    let (queue, target) = (postgres.queue(), postgres.work());
    let said = of_queue(&queue.dsn, &[]);
    assert_eq!(said.status, 4);
    said.has("queue", "unsafe_settings", "error", "fsync is off", "ALTER SYSTEM SET fsync = on");
    assert!(said.all.to_string().contains("full_page_writes is off"));
    said.has("queue", "autovacuum_off", "error", "dead rows", "ALTER SYSTEM SET autovacuum = on");
    said.has("queue", "max_wal_size", "warning", "64 MB", "max_wal_size");
    said.has("queue", "synchronous_commit", "info", "slowlane raises it", "");
    said.has("queue", "no_workers", "warning", "no process runs jobs", "");
    said.has_not("queue", "connections_short");
    // One process alone wants more than there is; and two together do.
    let said = of_queue(&queue.dsn, &["--api-connections", "30"]);
    said.has("queue", "connections_short", "error", "may open 40 connections to this server", "");
    for n in 0..2 {
        queue.run(&format!(
            "INSERT INTO slowlane.workers (id, hostname, pid, version, threads, kinds, queues, started_at, beat_at)
             VALUES ('00000000-0000-4000-8000-00000000000{n}', 'h', 1, '0', 8, '{{}}', '{{}}', now(), now())"
        ));
    }
    let said = of_queue(&queue.dsn, &[]);
    said.has("queue", "connections_short", "warning", "2 processes may open 28", "");
    // All databases of a server share its slots.
    let both = Said::of(&command(Some(&queue.dsn), Some(&target.dsn)).arg("--json").output().unwrap());
    both.has("queue", "connections_short", "error", "one process may open 27 connections to this server", "");
    let said = of_target(&queue.dsn, &target.dsn, &[]);
    said.has("target", "unsafe_settings", "warning", "fsync", "fsync");
    said.has("target", "autovacuum_off", "warning", "", "autovacuum");
    said.has("target", "track_activities", "warning", "who blocks it", "track_activities");
    said.has("target", "temp_file_limit", "info", "fill the server's disk", "temp_file_limit");
    said.has("target", "connections_short", "error", "27 connections to this server", "");
    assert_eq!(said.status, 4);
}

#[test]
fn limits_and_timeouts_of_roles_and_databases() {
    let postgres = Postgres::start();
    let (queue, target) = (postgres.queue(), postgres.work());
    queue.run(&format!(
        "ALTER ROLE slowlane_queue CONNECTION LIMIT 5; ALTER DATABASE {} CONNECTION LIMIT 10;
         ALTER ROLE slowlane_demo SET idle_in_transaction_session_timeout = '2s';
         ALTER ROLE slowlane_demo SET idle_session_timeout = '3s'; ALTER ROLE slowlane_demo SET temp_file_limit = '1GB'",
        target.name()
    ));
    of_queue(&queue.dsn, &[]).has(
        "queue",
        "connection_limit",
        "error",
        "slowlane_queue may have 5",
        "ALTER ROLE \"slowlane_queue\" CONNECTION LIMIT",
    );
    let said = of_target(&queue.dsn, &target.dsn, &[]);
    said.has("target", "connection_limit", "error", &format!("{} may have 10", target.name()), "ALTER DATABASE");
    said.has(
        "target",
        "idle_timeout",
        "warning",
        "is 2000 ms",
        "ALTER ROLE \"slowlane_demo\" SET idle_in_transaction_session_timeout = 0",
    );
    assert!(said.all.to_string().contains("idle_session_timeout is 3000 ms"));
    said.has_not("target", "temp_file_limit");
    said.has("target", "progress_limited", "info", "its own sessions only", "GRANT pg_read_all_stats");
    of_queue(&queue.dsn.clone(), &[]).has_not("queue", "progress_limited");
}

#[test]
fn ways_in_that_lead_nowhere_or_through_something() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let said = of_queue(&queue.dsn.clone().with("port", &free), &[]);
    said.has("queue", "unreachable", "error", "(refused)", "");
    assert_eq!((said.status, &said.report("queue")["facts"]["failure"]), (4, &json!("refused")));
    // A socket that isn't there is known at once, and no time is spent on it.
    let nowhere = queue.dsn.clone().with("host", "/nowhere").with("connect_timeout", "60");
    of_queue(&nowhere, &[]).has("queue", "unreachable", "error", "(refused)", "");
    let silent = Proxy::before(&queue.dsn);
    silent.set(Mode::Blackhole);
    let said = of_queue(&silent.dsn(&queue.dsn).with("connect_timeout", "1"), &[]);
    said.has("queue", "unreachable", "error", "(timed_out)", "");
    let steps = said.report("queue")["steps"].as_array().unwrap().clone();
    let login = steps.iter().find(|step| step["name"] == "login").unwrap();
    assert!(login["ms"].as_f64().unwrap() >= 900.0, "where it hung: {steps:?}");
    // The next address has its turn when one stays silent.
    let port = |dsn: &Dsn| dsn.get("port").unwrap().to_owned();
    let hosts = silent.dsn(&queue.dsn).with("host", "127.0.0.1,127.0.0.1").with("connect_timeout", "1");
    let hosts = hosts.clone().with("port", &format!("{},{}", port(&hosts), port(&queue.dsn)));
    of_queue(&hosts, &[]).has_not("queue", "unreachable");
    let said = of_queue(&queue.dsn.clone().with("password", "wrong"), &[]);
    said.has("queue", "unreachable", "error", "(password_wrong)", "");
    // A refused login is libpq's last word, whatever the next address would say.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let refusing = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut client in listener.incoming().map_while(Result::ok) {
            let Some(_) = read_startup(&mut client) else { return };
            let refusal = b"SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed for user \"x\"\0\0";
            let _ = client.write_all(&message(b'E', refusal));
        }
    });
    let hosts = queue.dsn.clone().with("host", "127.0.0.1,127.0.0.1");
    let hosts = hosts.with("port", &format!("{refusing},{}", port(&queue.dsn)));
    assert!(Session::connect(&hosts).is_err());
    of_queue(&hosts, &[]).has("queue", "unreachable", "error", "(password_wrong)", "");
    // A server that is too old says so in its first words.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    std::thread::spawn(move || {
        for mut client in listener.incoming().map_while(Result::ok) {
            let Some(_) = read_startup(&mut client) else { return };
            let answer = [
                message(b'R', &0_u32.to_be_bytes()),
                message(b'S', b"server_version\x0013.22\0"),
                message(b'K', &[1; 8]),
                message(b'Z', b"I"),
            ];
            let _ = client.write_all(&answer.concat());
            let _ = client.read_to_end(&mut Vec::new());
        }
    });
    let said = of_queue(&queue.dsn.clone().with("port", &port), &[]);
    said.has("queue", "server_too_old", "error", "version 13", "");
    // One string can't be used, another had to be translated.
    let mut refused = command(None, None);
    refused
        .env("SLOWLANE_DATABASE_URL", "mysql://u:hunter2@h/d")
        .env("TARGET_URL", "postgresql+asyncpg://nobody:hunter2@127.0.0.1:1/d");
    let output = refused.arg("--json").output().unwrap();
    let said = Said::of(&output);
    said.has("queue", "dsn_refused", "error", "SLOWLANE_DATABASE_URL", "");
    said.has("target", "dsn_translated", "info", "asyncpg, which is asynchronous,", "");
    said.has("target", "unreachable", "error", "", "");
    assert!(
        !said.all.to_string().contains("hunter2") && !String::from_utf8(output.stderr).unwrap().contains("hunter2")
    );
    assert_eq!(said.report("target")["connection"]["changes"].as_array().unwrap().len(), 1);
    // A variable that isn't set is told as that, and one error as one.
    let mut unset = command(None, None);
    unset.env("SLOWLANE_DATABASE_URL", "postgresql://u@127.0.0.1:1/d").args(["--only", "default"]);
    let text = String::from_utf8(unset.output().unwrap().stdout).unwrap();
    for words in ["dsn_refused", "TARGET_URL is not set", "set what is missing", "\n1 error, 0 warnings, 0 things"] {
        assert!(text.contains(words) && !text.contains("mend the string"), "{words}: {text}");
    }
    // Poolers, which the server must trust.
    let trusting = Postgres::start();
    let pgdata = trusting.cluster.lock().unwrap().folder().join("pgdata");
    fs::write(pgdata.join("pg_hba.conf"), "host all all 127.0.0.1/32 trust\nlocal all all trust\n").unwrap();
    Session::connect(&trusting.superuser()).unwrap().execute_batch("SELECT pg_reload_conf()").unwrap();
    let target =
        Database { dsn: target.dsn.with("port", trusting.superuser().get("port").unwrap()), ..trusting.work() };
    let dsn = target.superuser.clone().with("user", "slowlane_demo").with("options", "");
    // What is set on a session that is shared would be set for others.
    let untouched = |pooler: &Pooler| {
        let mut session = Session::connect(&pooler.dsn(&dsn)).unwrap();
        for name in ["default_transaction_read_only", "statement_timeout", "search_path"] {
            let value =
                session.query("SELECT setting = reset_val FROM pg_settings WHERE name = $1", &[Some(name)]).unwrap();
            assert_eq!(value.get(0, 0), Some("t"), "{name}");
        }
    };
    for (pooling, code, severity) in
        [(Pooling::Transactions, "pooler", "error"), (Pooling::Sessions, "pooler_sessions", "info")]
    {
        let pooler = Pooler::before(&dsn, pooling);
        eventually("the server trusts", || Session::connect(&dsn.clone().with("password", "")).is_ok());
        let said = of_target(&queue.dsn, &pooler.dsn(&dsn), &[]);
        said.has("target", code, severity, "a pooler is in between", "");
        if pooling == Pooling::Transactions {
            untouched(&pooler);
        }
    }
}

#[test]
fn what_the_queues_own_tables_lack_or_carry() {
    let postgres = healthy();
    let queue = postgres.queue();
    queue.run(
        "INSERT INTO slowlane.run_history (fingerprint, ended_at, kind, target, duration_ms)
         SELECT decode(md5(g::text), 'hex'), now(), 'query', 'default', 1 FROM generate_series(1, 400000) g;
         DELETE FROM slowlane.run_history; SELECT pg_stat_force_next_flush()",
    );
    let said = of_queue(&queue.dsn, &[]);
    said.has(
        "queue",
        "dead_rows",
        "warning",
        "slowlane.run_history has 400000 dead rows",
        "VACUUM (ANALYZE) slowlane.\"run_history\"",
    );
    queue.run("VACUUM (TRUNCATE off) slowlane.run_history");
    let said = of_queue(&queue.dsn, &["--result-store-bytes", "1000"]);
    said.has_not("queue", "dead_rows");
    said.has("queue", "index_bloat", "warning", "slowlane.run_history_pkey takes", "REINDEX INDEX CONCURRENTLY");
    said.has("queue", "store_filling", "warning", "of the 1000 bytes", "");
    queue.run(
        "ALTER TABLE slowlane.queues SET UNLOGGED; ALTER TABLE slowlane.jobs RESET (autovacuum_vacuum_threshold);
         UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'slowlane.jobs_claim'::regclass",
    );
    let said = of_queue(&queue.dsn, &[]);
    said.has("queue", "unlogged_table", "error", "slowlane.queues is UNLOGGED", "SET LOGGED");
    said.has("queue", "autovacuum_settings", "warning", "vacuumed late", "autovacuum_vacuum_threshold = 1000");
    said.has("queue", "invalid_index", "error", "slowlane.jobs_claim of jobs is invalid", "REINDEX");
    // Its SQL mends it.
    for code in ["unlogged_table", "autovacuum_settings", "invalid_index", "index_bloat"] {
        for statement in said.finding("queue", code)["sql"].as_array().unwrap() {
            queue.run(statement.as_str().unwrap());
        }
    }
    let said = of_queue(&queue.dsn, &[]);
    for code in ["unlogged_table", "autovacuum_settings", "invalid_index", "index_bloat"] {
        said.has_not("queue", code);
    }
}

#[test]
fn days_and_migrations_that_are_missing_or_too_many() {
    let postgres = healthy();
    let queue = postgres.queue();
    let day =
        |ahead: i64| queue.text(&format!("SELECT to_char((now() AT TIME ZONE 'UTC')::date + {ahead}, 'YYYYMMDD')"));
    queue.run(&format!(
        "DROP TABLE slowlane.attempts_{}; ALTER TABLE slowlane.job_log DETACH PARTITION slowlane.job_log_{}",
        day(2),
        day(7)
    ));
    let said = of_queue(&queue.dsn, &[]);
    said.has("queue", "partitions_missing", "warning", "ready for 1 beyond today (missing of: attempts, job_log)", "");
    said.has("queue", "partitions_left", "info", &format!("slowlane.job_log_{}", day(7)), "ATTACH PARTITION");
    // What it says mends both.
    let back = said.finding("queue", "partitions_left")["sql"][0].as_str().unwrap().to_owned();
    queue.run(&back);
    slowlane::queue::record::partitions::ensure(&mut queue.service()).unwrap();
    let said = of_queue(&queue.dsn, &[]);
    said.has_not("queue", "partitions_missing");
    said.has_not("queue", "partitions_left");
    queue.run(&format!("DROP TABLE slowlane.result_parts_{}", day(0)));
    of_queue(&queue.dsn, &[]).has("queue", "partitions_missing", "error", "ready for 0", "");
    queue.run("INSERT INTO slowlane.__diesel_schema_migrations (version) VALUES ('99990101000000')");
    let said = of_queue(&queue.dsn, &[]);
    said.has("queue", "schema_newer", "error", "99990101000000", "");
    queue.run("DELETE FROM slowlane.__diesel_schema_migrations");
    of_queue(&queue.dsn, &[]).has("queue", "migrations_pending", "error", "lacks migrations", "");
    let empty = postgres.empty("slowlane_queue");
    of_queue(&empty.dsn, &[]).has("queue", "migrations_pending", "error", "has no schema slowlane", "");
    // And one that can't be written.
    let other = postgres.queue();
    other.run(&format!("ALTER DATABASE {} SET default_transaction_read_only = on", other.name()));
    of_queue(&other.dsn, &[]).has("queue", "queue_read_only", "error", "only reads", "");
    let target = postgres.work();
    target.run(&format!("ALTER DATABASE {} SET default_transaction_read_only = on", target.name()));
    of_target(&other.dsn, &target.dsn, &[]).has("target", "target_read_only", "warning", "read-only by default", "");
}

#[test]
fn jobs_that_nobody_can_run_and_processes_that_are_gone() {
    let postgres = healthy();
    let queue = postgres.queue();
    queue.run(
        "INSERT INTO slowlane.workers (id, hostname, pid, version, threads, kinds, queues, started_at, beat_at, targets) VALUES
            ('00000000-0000-4000-8000-000000000001', 'alive.example', 7, '0', 2, '{query}', '{default}', now(), now() + interval '10 seconds', '[{\"name\":\"default\"}]'),
            ('00000000-0000-4000-8000-000000000002', 'dead.example', 8, '0', 2, '{query}', '{default}', now(), now() - interval '1 minute', '[]');
         INSERT INTO slowlane.queues VALUES ('default', now(), 'moving house', now());
         SELECT slowlane.enqueue('query', '{\"sql\":\"SELECT 1\"}');
         SELECT slowlane.enqueue('query', '{}', target => 'elsewhere'); SELECT slowlane.enqueue('query', '{}', target => 'elsewhere');
         SELECT slowlane.enqueue('query', '{}');
         UPDATE slowlane.jobs SET state = 'running', worker_id = '00000000-0000-4000-8000-000000000002', started_at = now(), deadline_at = now(), lease = 1, queued_xid = NULL
          WHERE target = 'default' AND args::text = '{}';
         INSERT INTO slowlane.job_checkpoints (job_id, lease, xid, system, timeline, outcome, updated_at)
         SELECT id, 1, '77', 's', 't', '{}', now() - interval '20 minutes' FROM slowlane.jobs WHERE target = 'elsewhere' LIMIT 1",
    );
    let said = of_queue(&queue.dsn, &[]);
    assert_eq!(said.status, 3, "{}", said.all);
    said.has_not("queue", "no_workers");
    said.has("queue", "worker_dead", "warning", "the process 8 on dead.example hasn't beaten for 1m", "");
    said.has(
        "queue",
        "jobs_unserved",
        "warning",
        "2 jobs of kind query wait in the queue default for the target elsewhere",
        "",
    );
    said.has("queue", "queue_paused", "info", "moving house", "");
    said.has("queue", "in_doubt", "warning", "of 1 jobs isn't known", "");
}

/// Has a database believe that its clock is two hours ahead, that it speaks German, and that its clients come from
/// elsewhere.
fn believe(database: &Database) {
    database.run(
        "SET allow_system_table_mods = on;
         UPDATE pg_proc SET proname = 'real_clock' WHERE proname = 'clock_timestamp';
         CREATE FUNCTION pg_catalog.clock_timestamp() RETURNS timestamptz LANGUAGE sql STABLE AS $$ SELECT real_clock() + interval '2 hours' $$;
         UPDATE pg_proc SET proname = 'real_setting' WHERE proname = 'current_setting' AND pronargs = 1;
         CREATE FUNCTION pg_catalog.current_setting(text) RETURNS text LANGUAGE sql STABLE AS
             $$ SELECT CASE $1 WHEN 'lc_messages' THEN 'de_DE.UTF-8' ELSE real_setting($1) END $$;
         ALTER VIEW pg_catalog.pg_stat_activity RENAME TO real_activity;
         CREATE VIEW pg_catalog.pg_stat_activity AS SELECT datid, datname, pid, usename, application_name, '192.0.2.1'::inet AS client_addr,
             backend_start, xact_start, state_change, wait_event_type, wait_event, state, backend_xid, backend_xmin, backend_type
             FROM pg_catalog.real_activity;
         GRANT SELECT ON pg_catalog.pg_stat_activity TO PUBLIC",
    );
}

#[test]
fn what_has_been_open_for_long_and_what_else_only_time_shows() {
    let postgres = healthy();
    let (queue, target) = (postgres.queue(), postgres.work());
    let mut old = Session::connect(&queue.superuser.clone().with("application_name", "forgotten")).unwrap();
    old.execute_batch("BEGIN; SELECT pg_current_xact_id()").unwrap();
    queue.run("BEGIN; CREATE TABLE public.kept (a int); PREPARE TRANSACTION 'lost & found'");
    queue.run("SELECT pg_create_physical_replication_slot('nobody_reads', true)");
    let named = target.dsn.clone().with("application_name", "slowlane:00000000-0000-7000-8000-000000000001:3");
    let mut orphan = Session::connect(&named).unwrap();
    orphan.execute_batch("SELECT 1").unwrap();
    for database in [&queue, &target] {
        believe(database);
    }
    // A standby of which the transaction that it holds back is nearly a million old.
    queue.run(
        "SET allow_system_table_mods = on; ALTER VIEW pg_catalog.pg_stat_replication RENAME TO real_replication;
         CREATE VIEW pg_catalog.pg_stat_replication AS
             SELECT 1 AS pid, 'far away'::text AS application_name, NULL::inet AS client_addr, '4294000000'::xid AS backend_xmin;
         GRANT SELECT ON pg_catalog.pg_stat_replication TO PUBLIC",
    );
    let said = of_queue(&queue.dsn, &[]);
    assert_eq!(said.status, 4);
    said.has_one_of("queue", "old_transaction", "warning", "the standby far away (from this machine) holds back");
    said.has(
        "queue",
        "old_transaction",
        "error",
        "(forgotten, idle in transaction, from 192.0.2.1",
        &format!("pg_terminate_backend({})", old.backend_pid()),
    );
    said.has("queue", "old_transaction", "error", "vacuum can't take away", "pg_terminate_backend");
    said.has("queue", "prepared_transaction", "error", "lost & found", "ROLLBACK PREPARED 'lost & found'");
    said.has(
        "queue",
        "replication_slot",
        "warning",
        "nobody reads from the physical replication slot nobody_reads",
        "pg_drop_replication_slot('nobody_reads')",
    );
    said.has("queue", "clock_difference", "error", "ahead of this machine", "");
    said.has("queue", "lc_messages", "warning", "de_DE.UTF-8", "lc_messages = 'C'");
    said.has("queue", "tls_off", "warning", "crosses a network", "");
    let said = of_target(&queue.dsn, &target.dsn, &[]);
    said.has(
        "target",
        "orphaned_session",
        "warning",
        "which no worker runs any more",
        &format!("pg_terminate_backend({})", orphan.backend_pid()),
    );
    // What has changed something in another database is in every snapshot of this one.
    target.run("GRANT pg_read_all_stats TO slowlane_demo");
    let said = of_target(&queue.dsn, &target.dsn, &[]);
    said.has("target", "old_transaction", "warning", "(forgotten, idle in transaction", "pg_terminate_backend");
    said.has_one_of("target", "prepared_transaction", "warning", "lost & found");
    // One of a job's is told as what it is.
    let mut busy =
        Session::connect(&named.clone().with("application_name", "slowlane:00000000-0000-7000-8000-000000000002:1"))
            .unwrap();
    busy.execute_batch("BEGIN; SELECT pg_current_xact_id()").unwrap();
    let said = of_target(&queue.dsn, &target.dsn, &[]);
    said.has_one_of("target", "old_transaction", "info", "00000000-0000-7000-8000-000000000002");
    let pid = busy.backend_pid();
    drop(busy);
    eventually("it is gone", || target.count(&format!("SELECT count(*) FROM pg_locks WHERE pid = {pid}")) == 0);
    // A job of that name that runs has no orphan.
    queue.run(
        "INSERT INTO slowlane.workers (id, hostname, pid, version, threads, kinds, queues, started_at, beat_at)
         VALUES ('00000000-0000-4000-8000-000000000001', 'h', 1, '0', 1, '{}', '{}', now(), now());
         INSERT INTO slowlane.jobs (id, kind, queue, target, priority, state, args, labels, created_at, run_at, timeout_ms, max_attempts,
                                    lease, worker_id, started_at, deadline_at, result_ttl_ms)
         VALUES ('00000000-0000-7000-8000-000000000001', 'query', 'default', 'default', 5, 'running', '{}', '{}', now(), now(), 1, 1,
                 3, '00000000-0000-4000-8000-000000000001', now(), now(), 1)",
    );
    of_target(&queue.dsn, &target.dsn, &[]).has_not("target", "orphaned_session");
    // What can't be looked at is said, and the rest is looked at.
    queue.run("REVOKE SELECT ON pg_catalog.pg_prepared_xacts FROM PUBLIC");
    let said = of_queue(&queue.dsn, &[]);
    said.has("queue", "not_looked_at", "info", "prepared transactions: permission denied", "");
    said.has("queue", "old_transaction", "error", "", "pg_terminate_backend");
}

#[test]
fn a_session_that_is_lost_while_it_looks_is_no_good_news() {
    let postgres = healthy();
    let queue = postgres.queue();
    queue.run(
        "INSERT INTO slowlane.queues VALUES ('default', now(), E'red \\x1b[31m\\nerror unreachable: no', now());
         SET allow_system_table_mods = on; UPDATE pg_proc SET proname = 'real_function' WHERE proname = 'pg_options_to_table';
         CREATE FUNCTION pg_catalog.pg_options_to_table(text[], OUT option_name text, OUT option_value text) RETURNS SETOF record LANGUAGE sql
             AS $$ SELECT 'a', pg_terminate_backend(pg_backend_pid())::text $$",
    );
    let said = of_queue(&queue.dsn, &[]);
    assert_eq!(said.status, 4);
    said.has("queue", "unreachable", "error", "the session was lost while looking at autovacuum settings", "");
    // Others' words move no cursor and begin no line.
    queue.run("SET allow_system_table_mods = on; DROP FUNCTION pg_catalog.pg_options_to_table; UPDATE pg_proc SET proname = 'pg_options_to_table' WHERE proname = 'real_function'");
    let output = command(Some(&queue.dsn), None).args(["--only", "queue"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("red \\u{1b}[31m\\nerror unreachable: no") && !text.contains('\u{1b}'), "{text}");
}

#[test]
fn what_was_left_behind_on_a_target() {
    let postgres = healthy();
    let (queue, target) = (postgres.queue(), postgres.work());
    target.run(
        "CREATE TABLE public.t (a int); INSERT INTO public.t VALUES (1), (1);
         CREATE SCHEMA slowlane_demo_0123456789abcdef0123456789abcdef;
         COMMENT ON SCHEMA slowlane_demo_0123456789abcdef0123456789abcdef IS 'slowlane demo load fills tables here'",
    );
    target.run("CREATE TABLE public.whole (a int) PARTITION BY RANGE (a); CREATE TABLE public.part PARTITION OF public.whole DEFAULT;
        CREATE INDEX whole_a ON ONLY public.whole (a)");
    let build = |name: &str| {
        let sql = format!("CREATE UNIQUE INDEX CONCURRENTLY {name} ON public.t (a)");
        assert!(target.session().execute_batch(&sql).is_err());
    };
    ["ours", "somebodys", "t_ccnew"].into_iter().for_each(build);
    queue.run("SELECT slowlane.enqueue('maintain', '{\"action\":\"create_index\",\"table\":\"t\",\"name\":\"ours\",\"columns\":[\"a\"]}')");
    let said = of_target(&queue.dsn, &target.dsn, &[]);
    let text = said.all.to_string();
    said.has(
        "target",
        "invalid_index",
        "warning",
        "public.ours of public.t is invalid (a job of maintain was to build it)",
        "DROP INDEX CONCURRENTLY public.ours",
    );
    assert!(
        text.contains(
            r#"by the job {\"kind\":\"maintain\",\"args\":{\"action\":\"drop_index\",\"index\":\"public.ours\"}"#
        ),
        "{text}"
    );
    assert!(text.contains("the index public.whole_a of public.whole is invalid (some partitions lack"), "{text}");
    assert!(
        text.contains("public.somebodys of public.t is invalid (somebody's")
            && text.contains("public.t_ccnew of public.t is invalid (a REINDEX"),
        "{text}"
    );
    said.has(
        "target",
        "staging_left",
        "warning",
        "interrupted",
        "DROP SCHEMA \"slowlane_demo_0123456789abcdef0123456789abcdef\" CASCADE",
    );
    target.run("DROP TABLE public.whole");
    // One that is being built right now is nobody's business; nor is a load that goes on.
    let mut builder = target.session();
    builder.execute_batch("BEGIN; LOCK TABLE public.t IN SHARE UPDATE EXCLUSIVE MODE").unwrap();
    let mut loader = target.session();
    loader.execute_batch("SELECT pg_advisory_lock(8317145170422623599)").unwrap();
    let said = of_target(&queue.dsn, &target.dsn, &[]);
    said.has_not("target", "invalid_index");
    said.has_not("target", "staging_left");
}

#[test]
fn a_worker_looks_at_its_target_by_a_call() {
    let app = TestApp::with(|config| config.queues = vec!["default".to_owned(), "other".to_owned()]);
    app.target.run("CREATE TABLE public.t (a int)");
    let answer = app.post("/v1/targets/default/check", &json!({}));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let report = answer.json();
    assert_eq!((&report["subject"], &report["name"]), (&json!("target"), &json!("default")));
    assert!(
        report["steps"].as_array().unwrap().len() > 2 && report["facts"]["kinds"]["query"].is_boolean(),
        "{report}"
    );
    let codes: Vec<&str> = report["findings"].as_array().unwrap().iter().map(|f| f["code"].as_str().unwrap()).collect();
    assert!(codes.contains(&"unsafe_settings") && codes.contains(&"temp_file_limit"), "{codes:?}");
    assert!(!answer.text().contains(app.target.dsn.get("password").unwrap()));
    // Without a body, and by the workers of another queue.
    assert_eq!(app.send("POST", "/v1/targets/default/check", &[], b"").status, 200);
    app.post("/v1/queues/default/pause", &json!({}));
    let waits = app.post_with("/v1/targets/default/check", &[("prefer", "wait=1")], &json!({}));
    assert_eq!((waits.status, &waits.json()["kind"]), (202, &json!("check")));
    assert!(waits.header("location").unwrap().starts_with("/v1/jobs/"));
    assert_eq!(app.post("/v1/targets/default/check", &json!({"queue": "other"})).status, 200);
    assert_eq!(app.post("/v1/targets/nobodys/check", &json!({})).problem().1, "target_not_found");
    assert_eq!(app.post("/v1/targets/default/check", &json!({"queue": "nobodys"})).problem().1, "unknown_queue");
    assert_eq!(app.post("/v1/targets/default/check", &json!({"x": 1, "queue": 2})).problem().2, ["/queue", "/x"]);
    assert_eq!(app.get("/v1/targets/default/check").problem().0, 405);
}

#[test]
fn every_code_is_found_somewhere_above() {
    let read = |file: &str| fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
    let tests = read("tests/doctor.rs") + &read("tests/doctor/roles.rs");
    let missing: Vec<&str> = FindingCode::ALL
        .iter()
        .map(|code| code.as_str())
        .filter(|code| !tests.contains(&format!("\"{code}\"")))
        .collect();
    assert_eq!(missing, Vec::<&str>::new());
}
