//! Limits: whose counts, and what is told when one ends a job.

use serde_json::{Value, json};

use super::{login_has, show};
use crate::support::app::TestApp;
use crate::support::eventually;

const LIMITS: &str = "concat_ws(' ', current_setting('statement_timeout'), current_setting('lock_timeout'),
    current_setting('idle_in_transaction_session_timeout'))";

#[test]
fn of_the_logins_own_limits_the_smaller_ones_count() {
    let app = TestApp::with(|config| config.workers = 1);
    let both = |further: &Value| {
        [false, true]
            .map(|diesel| show(&app, LIMITS, diesel, further)["output"].as_str().unwrap_or_default().to_owned())
    };
    let [libpq, diesel] = both(&json!({"timeout_ms": 3_600_000}));
    for shown in [libpq, diesel] {
        // What is left of the hour, and not the hour itself.
        assert!(shown.starts_with("359") && shown.ends_with("ms 5s 0"), "{shown}");
    }
    assert!(both(&json!({"lock_timeout_ms": 90_000})).iter().all(|shown| shown.ends_with(" 90s 0")));
    login_has(
        &app.target,
        &[
            ("statement_timeout", "'90min'"),
            ("lock_timeout", "'1500ms'"),
            ("idle_in_transaction_session_timeout", "'7min'"),
        ],
    );
    let [libpq, diesel] = both(&json!({"timeout_ms": 3_600_000, "lock_timeout_ms": 90_000}));
    for shown in [libpq, diesel] {
        assert!(shown.starts_with("359") && shown.ends_with("ms 1500ms 7min"), "{shown}");
    }
    assert_eq!(both(&json!({"timeout_ms": 10_000_000, "lock_timeout_ms": 90})), ["90min 90ms 7min", "90min 90ms 7min"]);
    // What a kind sets for each of its statements, too.
    let statements = json!([{"sql": "CREATE TABLE public.seen AS SELECT current_setting('statement_timeout') AS s, current_setting('lock_timeout') AS l"},
                            {"sql": "GRANT ALL ON public.seen TO PUBLIC"}]);
    app.target.run("GRANT ALL ON SCHEMA public TO slowlane_demo");
    let id = app.submit(&json!({"kind": "execute", "args": {"statements": statements}, "timeout_ms": 80_000_000}));
    assert_eq!(app.ended(&id)["state"], "succeeded");
    assert_eq!(app.target.text("SELECT concat_ws(' ', s, l) FROM public.seen"), "90min 1500ms");
    let set = json!({"s": "current_setting('statement_timeout')", "l": "current_setting('lock_timeout')"});
    app.target.run("ALTER TABLE public.seen ADD COLUMN id int PRIMARY KEY GENERATED ALWAYS AS IDENTITY");
    let id =
        app.submit(&json!({"kind": "backfill", "args": {"table": "public.seen", "set": set}, "lock_timeout_ms": 800}));
    assert_eq!(app.ended(&id)["state"], "succeeded");
    assert!(app.target.text("SELECT l FROM public.seen").ends_with("800ms"));
    login_has(&app.target, &[("statement_timeout", "'2s'"), ("lock_timeout", "'200ms'")]);
    let id = app.submit(&json!({"kind": "backfill", "args": {"table": "public.seen", "set": set}}));
    assert_eq!(app.ended(&id)["state"], "succeeded");
    assert_eq!(app.target.text("SELECT concat_ws(' ', s, l) FROM public.seen"), "2s 200ms");
}

#[test]
fn a_job_that_the_logins_own_statement_timeout_ended_says_so() {
    let app = TestApp::start();
    login_has(&app.target, &[("statement_timeout", "'300ms'")]);
    let sleep = "SELECT pg_sleep(600)";
    for job in [
        json!({"kind": "query", "args": {"sql": sleep}}),
        json!({"kind": "execute", "args": {"statements": [{"sql": sleep}]}}),
        json!({"kind": "shows", "args": {"sql": "pg_sleep(600)", "diesel": true}}),
    ] {
        let ended = app.ended(&app.submit(&job));
        let error = &ended["error"];
        // It would take as long the next time.
        assert_eq!((&ended["attempt"], &error["retryable"]), (&json!(1), &json!(false)), "{ended}");
        assert_eq!((&error["code"], &error["sqlstate"]), (&json!("cancelled_by_server"), &json!("57014")), "{ended}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("statement_timeout of the target's own login, 300 ms"), "{message}");
        assert!(error["hint"].as_str().unwrap().contains("ALTER ROLE"), "{ended}");
    }
    // One that is shorter than that is the job's own.
    let ended = app.ended(&app.submit(&json!({"kind": "query", "args": {"sql": sleep}, "timeout_ms": 100})));
    assert_eq!((&ended["error"]["code"], &ended["error"]["sqlstate"]), (&json!("timeout"), &json!("57014")), "{ended}");
}

#[test]
fn a_job_that_the_logins_own_lock_timeout_ended_says_so() {
    let app = TestApp::start();
    app.target.run("CREATE TABLE public.t (n int); GRANT ALL ON public.t TO slowlane_demo");
    login_has(&app.target, &[("lock_timeout", "'300ms'")]);
    let mut holder = app.target.session();
    holder.execute_batch("BEGIN; LOCK TABLE public.t").unwrap();
    let ends = |lock_timeout_ms: u32, sql: &str| {
        let statements = json!([{"sql": sql}]);
        let mut job = json!({"kind": "execute", "args": {"statements": statements}, "max_attempts": 1});
        job["lock_timeout_ms"] = json!(lock_timeout_ms);
        let error = app.ended(&app.submit(&job))["error"].clone();
        assert_eq!((&error["code"], &error["sqlstate"]), (&json!("lock_timeout"), &json!("55P03")), "{error}");
        (error["message"].as_str().unwrap().to_owned(), error["hint"].as_str().unwrap_or_default().to_owned())
    };
    let (message, hint) = ends(60_000, "INSERT INTO public.t VALUES (1)");
    assert!(message.contains("lock_timeout of the target's own login, 300 ms"), "{message}");
    assert!(hint.contains("ALTER ROLE"), "{hint}");
    // The job's own is shorter, or nothing was waited for.
    for (lock_timeout_ms, sql) in [(100, "INSERT INTO public.t VALUES (1)"), (60_000, "LOCK TABLE public.t NOWAIT")] {
        let (message, _) = ends(lock_timeout_ms, sql);
        assert!(!message.contains("own login"), "{message}");
    }
}

#[test]
fn a_timeout_has_the_servers_sqlstate_whatever_the_kind_was_doing() {
    let app = TestApp::start();
    app.target.run(
        "CREATE TABLE public.t (id int PRIMARY KEY, n int); INSERT INTO public.t VALUES (1, 1);
         CREATE MATERIALIZED VIEW public.v AS SELECT 1 AS s FROM pg_sleep(600) WITH NO DATA;
         CREATE FUNCTION public.slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(600); RETURN NEW; END';
         CREATE TRIGGER slow BEFORE INSERT ON public.t FOR EACH ROW EXECUTE FUNCTION public.slow();
         GRANT ALL ON SCHEMA public TO slowlane_demo;
         ALTER TABLE public.t OWNER TO slowlane_demo; ALTER MATERIALIZED VIEW public.v OWNER TO slowlane_demo",
    );
    let upload = app.send("POST", "/v1/uploads", &[("content-type", "text/csv")], b"id,n\n7,7\n").json();
    let backfill =
        json!({"table": "public.t", "set": {"n": "(SELECT 1 FROM pg_sleep(600))"}, "target_batch_ms": 60_000});
    for (kind, args) in [
        ("query", json!({"sql": "SELECT pg_sleep(600)"})),
        ("execute", json!({"statements": [{"sql": "SELECT 1"}, {"sql": "SELECT pg_sleep(600)"}]})),
        ("refresh", json!({"view": "public.v"})),
        ("backfill", backfill),
        ("import", json!({"upload": upload["id"], "format": "csv", "table": "public.t"})),
        ("shows", json!({"sql": "pg_sleep(600)", "diesel": true})),
    ] {
        let id = app.submit(&json!({"kind": kind, "args": args, "timeout_ms": 700}));
        let error = app.ended(&id)["error"].clone();
        assert_eq!((&error["code"], &error["sqlstate"]), (&json!("timeout"), &json!("57014")), "{kind}: {error}");
    }
    // The server didn't cancel anything.
    let gate = crate::support::kinds::Gate::new("timed_out");
    let id = app.submit(&json!({"kind": "gated", "args": {"gate": "timed_out"}, "timeout_ms": 200}));
    gate.arrived();
    let error = app.ended(&id)["error"].clone();
    assert_eq!((&error["code"], &error["sqlstate"]), (&json!("timeout"), &Value::Null), "{error}");
}

/// A table that is locked by somebody of this name, until the session goes.
fn held(app: &TestApp, name: &str) -> slowlane::pq::Session {
    app.target.run(
        "CREATE TABLE IF NOT EXISTS public.t (id int PRIMARY KEY, n int); INSERT INTO public.t VALUES (1, 1) ON CONFLICT DO NOTHING;
         ALTER TABLE public.t OWNER TO slowlane_demo; GRANT ALL ON SCHEMA public TO slowlane_demo",
    );
    let mut holder = app.target.session();
    holder.execute_batch(&format!("SET application_name = '{name}'; BEGIN; LOCK TABLE public.t")).unwrap();
    holder
}

#[test]
fn after_a_lock_timeout_it_is_told_who_held_the_lock_however_short_the_wait_was() {
    let app = TestApp::start();
    let holder = held(&app, "nightly load");
    let pid = holder.backend_pid();
    let blocked_by = json!([{"pid": pid, "application_name": "nightly load", "job_id": null}]);
    let upload = app.send("POST", "/v1/uploads", &[("content-type", "text/csv")], b"id,n\n7,7\n").json();
    let execute = json!({"statements": [{"sql": "UPDATE public.t SET n = n + 1"}]});
    for (kind, args, lock_timeout_ms) in [
        ("execute", execute.clone(), 3_000),
        ("execute", execute.clone(), 1_000),
        ("execute", execute.clone(), 300),
        ("execute", execute, 150),
        ("query", json!({"sql": "SELECT * FROM public.t"}), 300),
        ("import", json!({"upload": upload["id"], "format": "csv", "table": "public.t"}), 300),
        ("shows", json!({"sql": "SELECT n FROM public.t", "diesel": true}), 300),
        ("maintain", json!({"action": "analyze", "table": "public.t", "lock_timeout_ms": 150}), 60_000),
    ] {
        let job = json!({"kind": kind, "args": args, "lock_timeout_ms": lock_timeout_ms, "max_attempts": 2});
        let id = app.submit(&job);
        eventually("the first attempt is over", || {
            app.job(&id)["state"] != "running" && app.job(&id)["error"].is_object()
        });
        let first = app.get(&format!("/v1/jobs/{id}/attempts")).json()["attempts"][0].clone();
        assert_eq!(
            (&first["error"]["code"], &first["error"]["blocked_by"]),
            (&json!("lock_timeout"), &blocked_by),
            "{kind}: {first}"
        );
        assert_eq!(app.job(&id)["error"]["blocked_by"], blocked_by);
        app.queue.run(&format!("UPDATE jobs SET run_at = now() WHERE id = '{id}'"));
        let ended = app.ended(&id);
        assert_eq!(
            (&ended["error"]["code"], &ended["error"]["blocked_by"]),
            (&json!("lock_timeout"), &blocked_by),
            "{ended}"
        );
        let log = app.get(&format!("/v1/jobs/{id}/log")).text();
        assert!(log.contains(&format!("process {pid} (nightly load)")), "{log}");
    }
    // An error of another kind blames nobody.
    let ended = app.query("SELECT 1 / 0", &json!([]));
    assert_eq!(ended["error"]["blocked_by"], Value::Null);
}

#[test]
fn a_job_that_was_in_the_way_is_named_by_its_id() {
    let app = TestApp::start();
    drop(held(&app, "nobody"));
    let mut gate = app.target.session();
    gate.execute_batch("SELECT pg_advisory_lock(99)").unwrap();
    let statements = json!([{"sql": "LOCK TABLE public.t"}, {"sql": "SELECT set_config('lock_timeout', '0', true), pg_advisory_lock_shared(99)"}]);
    let first = app.submit(&json!({"kind": "execute", "args": {"statements": statements}}));
    eventually("it holds the table", || {
        app.target.count("SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())") == 1
    });
    let update = json!({"statements": [{"sql": "UPDATE public.t SET n = 2"}]});
    let second = app.submit(&json!({"kind": "execute", "args": update, "lock_timeout_ms": 400, "max_attempts": 1}));
    let error = app.ended(&second)["error"].clone();
    assert_eq!((&error["code"], &error["blocked_by"][0]["job_id"]), (&json!("lock_timeout"), &json!(first)), "{error}");
    drop(gate);
    assert_eq!(app.ended(&first)["state"], "succeeded");
}

#[test]
fn the_limits_of_maintain_its_job_its_target_and_its_login() {
    let app = TestApp::start();
    let holder = held(&app, "somebody");
    let wait = |args: Value, job: Value| {
        let mut all = json!({"action": "analyze", "table": "public.t"});
        all.as_object_mut().unwrap().extend(args.as_object().unwrap().clone());
        let mut job = job;
        (job["kind"], job["args"], job["max_attempts"]) = (json!("maintain"), all, json!(1));
        let message = app.ended(&app.submit(&job))["error"]["message"].as_str().unwrap_or_default().to_owned();
        // Behind a colon it says whose limit that was.
        let told = message.split("tries of ").nth(1).unwrap_or(&message);
        told.split(':').next().unwrap_or(told).to_owned()
    };
    assert_eq!(wait(json!({"lock_timeout_ms": 60}), json!({"lock_timeout_ms": 90})), "60 ms");
    assert_eq!(wait(json!({}), json!({"lock_timeout_ms": 90})), "90 ms");
    login_has(&app.target, &[("lock_timeout", "'50ms'")]);
    assert_eq!(wait(json!({"lock_timeout_ms": 60}), json!({"lock_timeout_ms": 90})), "50 ms");
    drop(holder);
}
