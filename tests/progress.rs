//! What a running job shows of itself: the server's own counts, what it waits for, and what earlier runs tell.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};
use slowlane::metrics::Metrics;
use slowlane::target::activity::CommandProgress;
use slowlane::target::{Target, TargetBackend, TargetSettings, TargetSpec};

use crate::support::app::TestApp;
use crate::support::postgres::{Database, Postgres};
use crate::support::{PATIENCE, eventually};

/// Every progress that a job shows, until it has ended.
fn watch(app: &TestApp, id: &str, mut each: impl FnMut(&Value)) -> Value {
    let until = Instant::now() + PATIENCE;
    loop {
        let job = app.job(id);
        if !job["progress"].is_null() {
            each(&job["progress"]);
        }
        if !["queued", "running"].contains(&job["state"].as_str().unwrap()) {
            return job;
        }
        assert!(Instant::now() < until, "{job}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// A table of known size whose rows can be made to wait at a lock, in an index or a query.
fn with_rows(app: &TestApp) -> i64 {
    app.target.run(
        "CREATE TABLE public.t (id int, filling text); INSERT INTO public.t SELECT g, repeat('x', 100) FROM generate_series(1, 20000) g;
         ALTER TABLE public.t OWNER TO slowlane_demo; GRANT ALL ON SCHEMA public TO slowlane_demo; ANALYZE public.t;
         CREATE FUNCTION public.waits(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN
             IF $1 = 10000 THEN PERFORM set_config('lock_timeout', '0', true), pg_advisory_lock(7); END IF; RETURN $1; END $$",
    );
    app.target.count("SELECT pg_relation_size('public.t') / current_setting('block_size')::int")
}

#[test]
fn an_index_shows_the_blocks_that_the_server_has_read_of_a_table_of_known_size() {
    let app = TestApp::start();
    let blocks = with_rows(&app);
    let mut holder = app.target.session();
    holder.execute_batch("SELECT pg_advisory_lock(7)").unwrap();
    let statements = json!([
        {"sql": "SET LOCAL max_parallel_maintenance_workers = 0"},
        {"sql": "CREATE INDEX i ON public.t (public.waits(id))"}
    ]);
    let id = app.submit(&json!({"kind": "execute", "args": {"statements": statements}}));
    let phase = "running statements: building index: scanning table (t)";
    eventually("the server's count is shown", || app.job(&id)["progress"]["phase"] == phase);
    let progress = app.job(&id)["progress"].clone();
    assert_eq!(
        (&progress["unit"], &progress["basis"], &progress["total"]),
        (&json!("blocks"), &json!("exact"), &json!(blocks))
    );
    let done = progress["done"].as_i64().unwrap();
    assert!(done > 0 && done < blocks, "{progress}");
    assert_eq!(progress["percent"], json!((done * 1000 / blocks) as f64 / 10.0));
    assert_eq!(progress["wait_event"], "Lock:advisory");
    assert_eq!(progress["blocked_by"][0]["pid"], json!(holder.backend_pid()));
    assert_eq!(progress["temp_bytes"], Value::Null, "this role may not see them");
    holder.execute_batch("SELECT pg_advisory_unlock(7)").unwrap();
    let mut last = (Value::Null, 0.0);
    let job = watch(&app, &id, |progress| {
        let percent = progress["percent"].as_f64().unwrap_or_default();
        assert!(percent <= 100.0 && (progress["phase"] != last.0 || percent >= last.1), "{progress} after {last:?}");
        last = (progress["phase"].clone(), percent);
    });
    // Of one that has succeeded what the work itself counted.
    let progress = &job["progress"];
    assert_eq!(
        (&job["state"], &progress["unit"], &progress["percent"]),
        (&json!("succeeded"), &json!("statements"), &json!(100.0))
    );
    assert_eq!((&progress["wait_event"], &progress["eta_ms"]), (&Value::Null, &Value::Null));
}

#[test]
fn a_query_shows_its_temporary_files_and_what_it_waits_for_and_the_sampler_survives_its_connection() {
    // The role may see temporary files, as no other test's may.
    let cluster = Postgres::start();
    let app = TestApp::on(cluster.queue(), cluster.work(), |_| ());
    with_rows(&app);
    app.target.run("GRANT pg_monitor TO slowlane_demo; ALTER ROLE slowlane_demo SET work_mem = '64kB'");
    let mut holder = app.target.session();
    holder.execute_batch("SET application_name = 'nightly load'; SELECT pg_advisory_lock(7)").unwrap();
    // All rows are sorted, in files, before the one that waits.
    let sql = "SELECT public.waits(id) FROM (SELECT id, filling FROM public.t ORDER BY filling || id OFFSET 0) s";
    let id = app.submit(&json!({"kind": "query", "args": {"sql": sql}}));
    eventually("its files are seen", || {
        app.job(&id)["progress"]["temp_bytes"].as_i64().is_some_and(|bytes| bytes > 1_000_000)
    });
    let progress = app.job(&id)["progress"].clone();
    assert_eq!(
        progress["blocked_by"],
        json!([{"pid": holder.backend_pid(), "application_name": "nightly load", "job_id": null}])
    );
    // Whoever ends the connection that looks doesn't end the looking.
    let sampler = "FROM pg_stat_activity WHERE application_name = 'slowlane sampler' AND datname = current_database()";
    assert_eq!(app.target.count(&format!("SELECT count(pg_terminate_backend(pid, 5000)) {sampler}")), 1);
    eventually("it is looked at again", || app.target.count(&format!("SELECT count(*) {sampler}")) == 1);
    holder.execute_batch("SELECT pg_advisory_unlock(7)").unwrap();
    assert_eq!(app.ended(&id)["state"], "succeeded");
}

#[test]
fn work_that_was_done_before_says_how_long_it_takes() {
    let app = TestApp::start();
    app.target.run("CREATE TABLE public.pause (seconds float8); INSERT INTO public.pause VALUES (1.1); GRANT SELECT ON public.pause TO PUBLIC");
    let job = json!({"kind": "query", "args": {"sql": "SELECT pg_sleep(seconds) FROM public.pause"}});
    let first = app.submit(&job);
    let ended = watch(&app, &first, |progress| assert_eq!(progress["eta_ms"], Value::Null, "nothing is known"));
    assert_eq!(ended["state"], "succeeded");
    eventually("it is remembered", || {
        app.queue.count("SELECT count(*) FROM run_history WHERE duration_ms >= 1100") == 1
    });
    app.queue.run("UPDATE run_history SET duration_ms = 60000");
    app.target.run("UPDATE public.pause SET seconds = 60");
    let reordered =
        json!({"args": {"params": [], "sql": "SELECT pg_sleep(seconds) FROM public.pause"}, "kind": "query"});
    let others = json!({"kind": "query", "args": {"sql": "SELECT pg_sleep(seconds + 0) FROM public.pause"}});
    let (second, other, renamed) = (app.submit(&job), app.submit(&others), app.submit(&reordered));
    eventually("it says how long", || {
        app.job(&second)["progress"]["eta_ms"].as_i64().is_some_and(|eta| eta > 30_000 && eta < 60_000)
    });
    for unknown in [other, renamed] {
        eventually("it is looked at", || app.job(&unknown)["progress"]["phase"] == "running");
        assert_eq!(app.job(&unknown)["progress"]["eta_ms"], Value::Null);
    }
    assert_eq!(app.job(&second)["progress"]["percent"], Value::Null, "time is no percentage");
    app.queue.run("INSERT INTO run_history SELECT '\\x00', now() - n * interval '1 s', 'query', 't', n FROM generate_series(1, 30) n");
    let mut connection = app.queue.service();
    slowlane::queue::record::history::sweep(&mut connection, 180).unwrap();
    assert_eq!(app.queue.text("SELECT string_agg(duration_ms::text, ',' ORDER BY duration_ms) FROM run_history WHERE fingerprint = '\\x00'"),
        (1..=20).map(|n| n.to_string()).collect::<Vec<_>>().join(","));
}

/// Runs a command on a session of its own, looks at it until it has counted something in `phase`, and cancels it.
fn observe(target: &Target, database: &Database, set_up: &str, command: &str, phase: &str) -> CommandProgress {
    let mut session = database.session();
    session.execute_batch(set_up).unwrap();
    let pid = session.backend_pid();
    let started = format!(
        "SELECT to_char(backend_start AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') FROM pg_stat_activity WHERE pid = {pid}"
    );
    let backend = TargetBackend { pid, backend_start: database.text(&started).parse().unwrap() };
    let mut canceller = session.canceller().unwrap();
    let mut observer = target.observer();
    let mut found = None;
    std::thread::scope(|scope| {
        let running = scope.spawn(move || session.execute_batch(command));
        eventually(phase, || {
            let seen = observer.observe(std::slice::from_ref(&backend)).unwrap();
            found = seen.into_iter().find_map(|activity| activity.command).filter(|command| command.phase == phase);
            found.as_ref().is_some_and(|command| command.done.is_some_and(|done| done > 0))
        });
        canceller.cancel().unwrap();
        assert_eq!(running.join().unwrap().unwrap_err().sqlstate.as_deref(), Some("57014"));
    });
    found.unwrap()
}

#[test]
fn what_the_server_counts_is_read_of_every_command_that_it_counts() {
    let database = Postgres::shared().work();
    database.run(
        "CREATE TABLE public.t (id int, filling text) WITH (autovacuum_enabled = false);
         INSERT INTO public.t SELECT g, repeat('x', 500) FROM generate_series(1, 10000) g;
         CREATE FUNCTION public.naps(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN
             IF $1 > 9990 THEN PERFORM pg_sleep(1); END IF; RETURN $1; END $$;
         CREATE TABLE public.two (id int); INSERT INTO public.two SELECT generate_series(1, 9995);
         CREATE TABLE public.copied (id int)",
    );
    let settings = TargetSettings {
        dsn: Postgres::shared().superuser().with("dbname", database.name()),
        spec: TargetSpec { allow_unsafe_role: true, ..TargetSpec::default() },
    };
    let target = Target::new("observed", settings, 1, &Arc::new(Metrics::default()));
    let blocks = database.count("SELECT pg_relation_size('public.t') / current_setting('block_size')::int");
    // Slow enough to be looked at: a nap after each page, or in each of the last rows.
    let slowly = "SET vacuum_cost_delay = '20ms'; SET vacuum_cost_limit = 1";
    for (command, phase) in
        [("VACUUM public.t", "scanning heap (t)"), ("ANALYZE public.t", "acquiring sample rows (t)")]
    {
        let seen = observe(&target, &database, slowly, command, phase);
        assert_eq!((seen.total, seen.unit), (Some(blocks), "blocks"), "{command}");
        assert!(seen.done.unwrap() <= blocks);
    }
    let one_process = "SET max_parallel_maintenance_workers = 0";
    let create = "CREATE INDEX two_b ON public.two (public.naps(id))";
    let seen = observe(&target, &database, one_process, create, "building index: scanning table (two)");
    let of_two = database.count("SELECT pg_relation_size('public.two') / current_setting('block_size')::int");
    assert_eq!((seen.total, seen.unit), (Some(of_two), "blocks"));
    let copy = "COPY public.copied FROM PROGRAM 'for i in 1 2 3 4 5 6 7 8 9; do seq 1 20000; sleep 1; done'";
    let seen = observe(&target, &database, "", copy, "copy from (copied)");
    assert_eq!((seen.unit, seen.total), ("bytes", None), "how much will come isn't known");
}
