//! What a running job shows of itself: the server's own counts, what it waits for, and what earlier runs tell.

use std::time::Instant;

use serde_json::{Value, json};

use crate::support::app::TestApp;
use crate::support::postgres::Postgres;
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
    assert_eq!(progress["blocked_by"], json!([{"pid": holder.backend_pid(), "application_name": "nightly load"}]));
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
    slowlane::queue::history::sweep(&mut connection, 180).unwrap();
    assert_eq!(app.queue.text("SELECT string_agg(duration_ms::text, ',' ORDER BY duration_ms) FROM run_history WHERE fingerprint = '\\x00'"),
        (1..=20).map(|n| n.to_string()).collect::<Vec<_>>().join(","));
}
