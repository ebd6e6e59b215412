//! The kind `execute`: all of its statements or none, counted, logged, and never repeated blindly. Retries, attempts
//! and logs of jobs.

mod left_out;
mod outside;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use slowlane::queue::model::MAX_ERROR_BYTES;

use crate::support::app::TestApp;
use crate::support::child::Server;
use crate::support::client::Client;
use crate::support::postgres::{Database, Postgres};
use crate::support::proxy::{Mode, Proxy};
use crate::support::{eventually, history};

const SLEEPING: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()";

fn execute(statements: &Value) -> Value {
    json!({"kind": "execute", "args": {"statements": statements}})
}

#[track_caller]
fn run(client: &Client, statements: &Value) -> Value {
    let id = client.submit(&execute(statements));
    client.ended(&id)
}

/// An app whose target has an empty table `t (id, name)` of the work role's own.
fn with_table() -> TestApp {
    let app = TestApp::start();
    make_table(&app.target);
    app
}

fn make_table(target: &Database) {
    target.run(
        "CREATE TABLE public.t (id int PRIMARY KEY, name text); ALTER TABLE public.t OWNER TO slowlane_demo;
         GRANT ALL ON SCHEMA public TO slowlane_demo",
    );
}

fn code(job: &Value) -> (&str, &str) {
    (job["state"].as_str().unwrap(), job["error"]["code"].as_str().unwrap_or_default())
}

#[test]
fn statements_take_effect_together_and_are_counted() {
    let app = with_table();
    let job = run(
        &app,
        &json!([
            {"sql": "INSERT INTO public.t SELECT g, 'n' || g FROM generate_series($1::int, $2) g", "params": [1, 10]},
            {"sql": "UPDATE public.t SET name = $2 WHERE id = ANY($1) RETURNING id", "params": [[1, 2, 3], "x"]},
            {"sql": "SELECT * FROM public.t WHERE name = 'x'"},
            {"sql": "CREATE INDEX ON public.t (name)"},
            {"sql": "SELECT id INTO TEMP few FROM public.t WHERE id < 6"},
            {"sql": "DELETE FROM public.t WHERE id > 8;"},
        ]),
    );
    assert_eq!(job["state"], "succeeded", "{job}");
    assert_eq!(
        job["output"],
        json!({"statements": [
            {"command": "INSERT", "rows_affected": 10, "rows_returned": 0},
            {"command": "UPDATE", "rows_affected": 3, "rows_returned": 3},
            {"command": "SELECT", "rows_affected": 0, "rows_returned": 3},
            {"command": "CREATE INDEX", "rows_affected": 0, "rows_returned": 0},
            {"command": "SELECT", "rows_affected": 5, "rows_returned": 0},
            {"command": "DELETE", "rows_affected": 2, "rows_returned": 0},
        ]})
    );
    assert_eq!((&job["statistics"]["rows_affected"], &job["statistics"]["rows_returned"]), (&json!(20), &json!(6)));
    assert_eq!((&job["progress"]["done"], &job["progress"]["percent"]), (&json!(6), &json!(100.0)));
    assert_eq!(job["result"]["state"], "none");
    assert_eq!(app.target.text("SELECT count(*) || ' ' || count(*) FILTER (WHERE name = 'x') FROM public.t"), "8 3");
}

#[test]
fn a_statement_that_fails_takes_all_back_and_is_named() {
    let app = with_table();
    let insert = json!({"sql": "INSERT INTO public.t VALUES (1, 'a')"});
    let job = run(&app, &json!([insert, {"sql": "SELECT nothing FROM public.t"}]));
    assert_eq!(code(&job), ("failed", "sql_error"));
    let error = &job["error"];
    assert!(error["message"].as_str().unwrap().starts_with("/statements/1: column"), "{error}");
    assert_eq!((&error["sqlstate"], &error["position"]), (&json!("42703"), &json!(8)));
    // The place counts for the length of a message that is cut.
    let job = run(&app, &json!([insert, {"sql": "SELECT repeat('x', 20000)::int"}]));
    let message = job["error"]["message"].as_str().unwrap();
    assert!(message.starts_with("/statements/1: invalid input") && message.ends_with("x…"), "{message}");
    assert!(message.len() <= MAX_ERROR_BYTES, "{} bytes", message.len());
    // What only the end of the transaction shows is an error of the whole.
    app.target.run("ALTER TABLE public.t ADD CONSTRAINT later UNIQUE (name) DEFERRABLE INITIALLY DEFERRED");
    let job = run(&app, &json!([insert, {"sql": "INSERT INTO public.t VALUES (2, 'a')"}]));
    assert_eq!((code(&job), &job["error"]["sqlstate"]), (("failed", "sql_error"), &json!("23505")));
    for (statement, expected) in [
        (json!({"sql": "INSERT INTO public.t VALUES ($1)", "params": []}), "parameter_count"),
        (json!({"sql": "INSERT INTO public.t VALUES ($1)", "params": [[1]]}), "invalid_parameter"),
        (json!({"sql": "INSERT INTO public.t VALUES (9); DELETE FROM public.t"}), "sql_error"),
        (json!({"sql": "VACUUM public.t"}), "sql_error"),
    ] {
        let job = run(&app, &json!([insert, statement]));
        assert_eq!(code(&job), ("failed", expected), "{job}");
        assert!(job["error"]["message"].as_str().unwrap().starts_with("/statements/1"), "{job}");
    }
    let job = run(&app, &json!([{"sql": "VACUUM public.t"}]));
    assert!(job["error"]["hint"].as_str().unwrap().contains("outside of a transaction"), "{job}");
    assert_eq!(app.target.count("SELECT count(*) FROM public.t"), 0);
    // The sessions that failed hurt no later job.
    for n in 0..6 {
        let job = run(&app, &json!([{"sql": "INSERT INTO public.t VALUES ($1)", "params": [n]}]));
        assert_eq!(job["state"], "succeeded", "{job}");
    }
}

#[test]
fn transaction_control_and_copy_are_refused_where_they_stand() {
    let app = with_table();
    let answer = app.post(
        "/v1/jobs",
        &execute(&json!([
            {"sql": "SELECT 1"},
            {"sql": "/* a */ COMMIT AND CHAIN"},
            {"sql": "COPY public.t TO STDOUT"},
            {"sql": ""},
            {"sql": "SELECT $1", "params": [{"a": 1}]},
        ])),
    );
    let (status, code, pointers) = answer.problem();
    assert_eq!((status, code.as_str()), (422, "invalid_args"));
    let expected = ["1/sql", "2/sql", "3/sql", "4/params/0"].map(|place| format!("/args/statements/{place}"));
    assert_eq!(pointers, expected);
    assert_eq!(app.post("/v1/jobs", &execute(&json!([]))).problem().2, ["/args/statements"]);
    let unknown = json!({"kind": "execute", "args": {"statements": [{"sql": "SELECT 1", "parms": []}]}});
    assert_eq!(app.post("/v1/jobs", &unknown).problem().0, 422);
    assert_eq!(app.queue.count("SELECT count(*) FROM jobs"), 0);
}

/// An `execute` whose statements nobody has looked at.
fn submit_unchecked(app: &TestApp, statements: &Value) -> String {
    app.submit(&json!({"kind": "unchecked_execute", "args": {"statements": statements}}))
}

#[test]
fn what_ends_the_transaction_all_the_same_is_noticed() {
    let app = with_table();
    app.target.run(
        "CREATE PROCEDURE public.commits() LANGUAGE plpgsql AS $$ BEGIN COMMIT; END $$;
         GRANT EXECUTE ON PROCEDURE public.commits() TO PUBLIC",
    );
    let insert = |id: i32| json!({"sql": format!("INSERT INTO public.t VALUES ({id})")});
    // The server itself keeps a procedure from it.
    let job = run(&app, &json!([insert(1), {"sql": "CALL public.commits()"}]));
    assert_eq!(job["error"]["sqlstate"], "2D000", "{job}");
    assert_eq!(app.target.count("SELECT count(*) FROM public.t"), 0);
    for (id, control) in
        [(2, "COMMIT"), (4, "COMMIT AND CHAIN"), (6, "ROLLBACK AND CHAIN"), (8, "COPY public.t TO STDOUT")]
    {
        let job = submit_unchecked(&app, &json!([insert(id), {"sql": control}, insert(id + 1)]));
        let job = app.ended(&job);
        assert_eq!(code(&job), ("failed", "statement_not_allowed"), "{control}: {job}");
    }
    // Nor is it tried again, though what fails behind it may be: a part is committed already.
    let job = submit_unchecked(
        &app,
        &json!([insert(10), {"sql": "COMMIT AND CHAIN"}, {"sql": "DO $$ BEGIN RAISE EXCEPTION '' USING ERRCODE = '40001'; END $$"}]),
    );
    assert_eq!(code(&app.ended(&job)), ("failed", "statement_not_allowed"));
    // Whatever came behind is not committed.
    assert_eq!(app.target.text("SELECT string_agg(id::text, ' ' ORDER BY id) FROM public.t"), "2 4 10");
    assert_eq!(run(&app, &json!([insert(12)]))["state"], "succeeded");
}

#[test]
fn notices_are_in_the_log_while_the_job_runs() {
    let app = with_table();
    let mut lock = app.target.session();
    lock.execute_batch("SELECT pg_advisory_lock(4711)").unwrap();
    let id = app.submit(&execute(&json!([
        {"sql": "DO $$ BEGIN RAISE NOTICE 'first %', 1; RAISE WARNING 'second'; END $$"},
        {"sql": "SELECT set_config('lock_timeout', '0', true), pg_advisory_lock(4711)"},
        {"sql": "DO $$ BEGIN FOR n IN 1..1100 LOOP RAISE NOTICE 'line %', n; END LOOP; END $$"},
    ])));
    let log = || app.get(&format!("/v1/jobs/{id}/log")).json();
    eventually("the first lines are there", || log()["lines"].as_array().unwrap().len() == 2);
    let lines = log();
    let line =
        |n: usize| (lines["lines"][n]["level"].as_str().unwrap(), lines["lines"][n]["message"].as_str().unwrap());
    assert_eq!((line(0), line(1)), (("notice", "first 1"), ("warning", "second")));
    assert_eq!((&lines["lines"][1]["source"], &lines["lines"][1]["sqlstate"]), (&json!("server"), &json!("01000")));
    let running = app.get(&format!("/v1/jobs/{id}/attempts")).json();
    assert_eq!((&running["attempts"][0]["attempt"], &running["attempts"][0]["outcome"]), (&json!(1), &Value::Null));
    assert!(running["attempts"][0]["backend_pid"].is_i64());
    lock.execute_batch("SELECT pg_advisory_unlock(4711)").unwrap();
    assert_eq!(app.ended(&id)["state"], "succeeded");
    // Page by page, each line once and in order, with a last one about those that were too many.
    let mut messages = Vec::new();
    let mut path = format!("/v1/jobs/{id}/log?limit=400");
    loop {
        let page = app.get(&path).json();
        let of_page = page["lines"].as_array().unwrap().iter().map(|line| line["message"].as_str().unwrap().to_owned());
        messages.extend(of_page);
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/v1/jobs/{id}/log?limit=400&cursor={cursor}");
    }
    assert_eq!(messages.len(), 1001);
    assert_eq!((messages[2].as_str(), messages[999].as_str()), ("line 1", "line 998"));
    assert_eq!(messages[1000], "102 more lines were not kept");
    assert_eq!(app.get(&format!("/v1/jobs/{id}/log?cursor=x")).problem().1, "invalid_cursor");
    assert_eq!(app.get(&format!("/v1/jobs/{id}/log?level=x")).problem().1, "invalid_parameter");
    assert_eq!(app.get("/v1/jobs/018f0000-0000-7000-8000-00000000abcd/log").problem().0, 404);
    // A query's notices are there too.
    app.target.run(
        "CREATE FUNCTION public.says() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE 'said'; RETURN 1; END $$",
    );
    let query = app.query("SELECT public.says()", &json!([]));
    let log = app.get(&format!("/v1/jobs/{}/log", query["id"].as_str().unwrap())).json();
    assert_eq!(log["lines"][0]["message"], "said");
}

/// From now on a line that says `unspeakable` is refused, as one is whose characters the database's encoding lacks.
fn refuse_some_lines(queue: &Database) {
    queue.run(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF NEW.message = 'unspeakable' THEN
                RAISE EXCEPTION USING ERRCODE = '22P05', MESSAGE = 'a character has no equivalent in encoding';
            END IF; RETURN NEW; END $$;
         CREATE TRIGGER refuse BEFORE INSERT ON job_log FOR EACH ROW EXECUTE FUNCTION refuse()",
    );
}

/// Says something, and then waits for the lock 4711.
fn says_and_waits(message: &str) -> Value {
    json!([
        {"sql": format!("DO $$ BEGIN RAISE NOTICE '{message}'; END $$")},
        {"sql": "SELECT set_config('lock_timeout', '0', true), pg_advisory_lock_shared(4711)"},
    ])
}

#[test]
fn a_line_that_is_refused_disturbs_neither_the_beats_nor_other_jobs() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    refuse_some_lines(&queue);
    let server = Server::serve(&queue, &target, &[]);
    let mut lock = target.session();
    lock.execute_batch("SELECT pg_advisory_lock(4711)").unwrap();
    let ids = ["unspeakable", "heard"].map(|message| server.client.submit(&execute(&says_and_waits(message))));
    let said = |id: &str| server.client.get(&format!("/v1/jobs/{id}/log")).json()["lines"].as_array().unwrap().len();
    let refusals = || server.log().matches("storing what jobs say is refused").count();
    eventually("what can be stored is", || refusals() > 0 && said(&ids[1]) == 1);
    // Of this process' own, and nobody works on it: what comes behind the log is done as well.
    queue.run(
        "INSERT INTO jobs (id, kind, queue, target, priority, state, args, labels, created_at, run_at, lease, attempt, worker_id, started_at, deadline_at, timeout_ms, max_attempts, result_ttl_ms)
         SELECT (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint), 12, '0') || '70008000000000000001')::uuid, 'query', 'default', 'default', 5, 'running',
                '{\"sql\": \"SELECT 1\"}', '{}', now(), now(), 1, 1, (SELECT id FROM workers), now() - interval '1 minute', now() + interval '1 hour', 60000, 3, 60000",
    );
    let lost = queue.text("SELECT id FROM jobs WHERE kind = 'query'");
    assert_eq!(server.client.ended(&lost)["state"], "succeeded");
    assert_eq!((refusals(), server.log().contains("can't be reached")), (1, false), "{}", server.log());
    lock.execute_batch("SELECT pg_advisory_unlock(4711)").unwrap();
    ids.iter().for_each(|id| assert_eq!(server.client.ended(id)["state"], "succeeded"));
}

#[test]
fn a_log_that_is_refused_takes_no_end_with_it() {
    let app = with_table();
    refuse_some_lines(&app.queue);
    let job = run(
        &app,
        &json!([
            {"sql": "INSERT INTO public.t VALUES (1)"},
            {"sql": "DO $$ BEGIN RAISE NOTICE 'unspeakable'; END $$"},
        ]),
    );
    // What took effect must not look as if it hadn't.
    assert_eq!((&job["state"], &job["statistics"]["rows_affected"]), (&json!("succeeded"), &json!(1)), "{job}");
    assert_eq!(app.target.count("SELECT count(*) FROM public.t"), 1);
    assert_eq!(app.queue.count("SELECT count(*) FROM job_log"), 0);
    // One that can be stored isn't lost with the others.
    let job = run(&app, &json!([{"sql": "DO $$ BEGIN RAISE NOTICE 'heard'; END $$"}]));
    assert_eq!(job["state"], "succeeded");
    assert_eq!(app.queue.text("SELECT string_agg(message, ' ') FROM job_log"), "heard");
}

fn insert_and_sleep() -> Value {
    json!([{"sql": "INSERT INTO public.t VALUES (1)"}, {"sql": "SELECT pg_sleep(600)"}])
}

#[test]
fn a_cancel_or_a_timeout_leaves_nothing() {
    let app = with_table();
    let id = app.submit(&execute(&insert_and_sleep()));
    eventually("it sleeps", || app.target.count(SLEEPING) == 1);
    assert_eq!(app.post(&format!("/v1/jobs/{id}/cancel"), &json!({})).status, 202);
    let job = app.ended(&id);
    assert_eq!(job["state"], "cancelled", "{job}");
    let mut timed = execute(&insert_and_sleep());
    timed["timeout_ms"] = json!(300);
    let id = app.submit(&timed);
    assert_eq!(code(&app.ended(&id)), ("failed", "timeout"));
    assert_eq!(app.target.count("SELECT count(*) FROM public.t"), 0);
}

#[test]
fn a_broken_connection_has_it_run_again() {
    let app = with_table();
    let mut job = execute(&insert_and_sleep());
    job["max_attempts"] = json!(1);
    let id = app.submit(&job);
    eventually("its session is ended", || {
        app.target.count("SELECT count(*) FROM (SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()) t") == 1
    });
    // It knows that nothing was committed: it says why, and would be tried again had it another attempt.
    let job = app.ended(&id);
    assert_eq!((code(&job), &job["attempt"]), (("failed", "connection_lost"), &json!(1)), "{job}");
    assert_eq!(job["error"]["retryable"], true);
    assert_eq!(app.target.count("SELECT count(*) FROM public.t"), 0);
}

#[test]
fn a_connection_that_breaks_in_the_commit_is_looked_into() {
    let app = with_table();
    app.target.run(
        "CREATE FUNCTION public.slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(600); RETURN NULL; END $$;
         CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON public.t DEFERRABLE INITIALLY DEFERRED
             FOR EACH ROW EXECUTE FUNCTION public.slow()",
    );
    let mut job = execute(&json!([{"sql": "INSERT INTO public.t VALUES (1)"}]));
    job["max_attempts"] = json!(1);
    let id = app.submit(&job);
    eventually("its session is ended in the COMMIT", || {
        app.target.count("SELECT count(*) FROM (SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query = 'COMMIT' AND datname = current_database()) t") == 1
    });
    // The target says that it was rolled back: nothing is unknown.
    assert_eq!(code(&app.ended(&id)), ("failed", "connection_lost"));
    // An error that the server raises in the COMMIT is clear: nothing was committed, and the caller is told why.
    app.target.run(
        "CREATE OR REPLACE FUNCTION public.slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not so' USING ERRCODE = '23514'; END $$",
    );
    let job = run(&app, &json!([{"sql": "INSERT INTO public.t VALUES (2)"}]));
    assert_eq!((code(&job), &job["error"]["sqlstate"]), (("failed", "sql_error"), &json!("23514")), "{job}");
    assert_eq!(app.target.count("SELECT count(*) FROM public.t"), 0);
}

#[test]
fn what_never_reached_its_target_is_handed_back() {
    let postgres = Postgres::shared();
    let (queue, mut target) = (postgres.queue(), postgres.work());
    let proxy = Proxy::before(&target.dsn);
    target.dsn = proxy.dsn(&target.dsn);
    let mut server = Server::serve(&queue, &target, &["--shutdown-grace", "0s"]);
    proxy.set(Mode::Mute);
    let before = proxy.accepted();
    server.client.submit(&execute(&json!([{"sql": "SELECT 1"}])));
    eventually("it asks for a session", || proxy.accepted() > before);
    assert_eq!(queue.text("SELECT state FROM jobs"), "running");
    server.signal(Signal::SIGTERM);
    assert!(server.wait().success(), "{}", server.log());
    assert_eq!(queue.text("SELECT state || ' ' || attempt FROM jobs"), "queued 0");
}

#[test]
fn what_the_server_rolled_back_is_tried_again() {
    let app = with_table();
    let mut lock = app.target.session();
    lock.execute_batch("BEGIN; LOCK TABLE public.t").unwrap();
    let id = app.submit(&execute(&json!([
        {"sql": "SET LOCAL lock_timeout = '10ms'"},
        {"sql": "INSERT INTO public.t VALUES (1)"},
    ])));
    eventually("it waits for its second attempt", || app.job(&id)["state"] == "scheduled");
    assert_eq!(app.job(&id)["error"]["code"], "lock_timeout");
    lock.execute_batch("ROLLBACK").unwrap();
    app.queue.run("UPDATE jobs SET run_at = now()");
    let job = app.ended(&id);
    assert_eq!((&job["state"], &job["attempt"]), (&json!("succeeded"), &json!(2)));
    let attempts = app.get(&format!("/v1/jobs/{id}/attempts")).json();
    let outcomes: Vec<_> = attempts["attempts"].as_array().unwrap().iter().map(|a| a["outcome"].clone()).collect();
    assert_eq!(outcomes, ["retried", "succeeded"]);
    assert_eq!(attempts["attempts"][0]["error"]["code"], "lock_timeout");
    assert_eq!(app.target.count("SELECT count(*) FROM public.t"), 1);
}

#[test]
fn a_killed_worker_and_a_stopped_one_hand_their_execute_on() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    make_table(&target);
    let mut first = Server::serve(&queue, &target, &["--shutdown-grace", "0s"]);
    let id = first.client.submit(&execute(&insert_and_sleep()));
    eventually("it sleeps", || target.count(SLEEPING) == 1);
    first.signal(Signal::SIGTERM);
    assert!(first.wait().success(), "{}", first.log());
    // The server said that it was rolled back: it may run again, and isn't charged.
    let row = "SELECT state || ' ' || attempt || ' ' || interruptions FROM jobs";
    assert_eq!(queue.text(row), "queued 0 1");
    let mut second = Server::serve(&queue, &target, &[]);
    eventually("it sleeps again", || target.count(SLEEPING) == 1);
    second.signal(Signal::SIGKILL);
    second.wait();
    queue.run("DELETE FROM workers");
    // The old session is ended before the job is run again.
    let third = Server::serve(&queue, &target, &[]);
    eventually("it has been handed on", || queue.text(row) == "running 1 2" && target.count(SLEEPING) == 1);
    assert_eq!(third.client.post(&format!("/v1/jobs/{id}/cancel"), &json!({})).status, 202);
    let job = third.client.ended(&id);
    assert_eq!((&job["state"], &job["interruptions"]), (&json!("cancelled"), &json!(2)), "{job}");
    assert_eq!(target.count(SLEEPING), 0);
    assert_eq!(target.count("SELECT count(*) FROM public.t"), 0);
    history::check(&queue, &[id]);
}

#[test]
fn a_job_that_failed_is_retried_as_a_new_one() {
    let app = with_table();
    app.target.run("INSERT INTO public.t VALUES (1)");
    let mut job = execute(&json!([{"sql": "INSERT INTO public.t VALUES ($1)", "params": [1]}]));
    job["labels"] = json!({"team": "x"});
    job["priority"] = json!(2);
    let failed = app.submit(&job);
    let retry = format!("/v1/jobs/{failed}/retry");
    assert_eq!(app.ended(&failed)["error"]["sqlstate"], "23505");
    app.target.run("DELETE FROM public.t");
    let mut lock = app.target.session();
    lock.execute_batch("BEGIN; LOCK TABLE public.t").unwrap();
    let key = [("idempotency-key", "again")];
    let answer = app.send("POST", &retry, &key, b"");
    assert_eq!(answer.status, 202, "{}", answer.text());
    let new = answer.json();
    let location = format!("/v1/jobs/{}", new["id"].as_str().unwrap());
    assert_eq!(answer.header("location"), Some(location.as_str()));
    assert_eq!(
        (&new["retry_of"], &new["priority"], &new["labels"]),
        (&json!(failed), &json!(2), &json!({"team": "x"}))
    );
    assert_eq!((&new["args"], &new["attempt"]), (&job["args"], &json!(0)));
    // One at a time, which is named; the same key is the same retry.
    let busy = app.send("POST", &retry, &[], b"");
    assert_eq!(busy.problem().1, "retry_unfinished");
    assert_eq!(busy.header("location"), Some(location.as_str()));
    assert_eq!(app.send("POST", &retry, &[("idempotency-key", "other")], b"").problem().0, 409);
    let replayed = app.send("POST", &retry, &key, b"");
    assert_eq!((replayed.status, replayed.header("idempotency-replayed")), (202, Some("true")));
    assert_eq!(replayed.header("location"), Some(location.as_str()));
    lock.execute_batch("ROLLBACK").unwrap();
    assert_eq!(app.ended(new["id"].as_str().unwrap())["state"], "succeeded");
    // A key that came too early names nothing, and can be used when the way is free.
    let later = app.send("POST", &retry, &[("idempotency-key", "other")], b"");
    assert_eq!(later.status, 202, "{}", later.text());
    assert_eq!(app.ended(later.json()["id"].as_str().unwrap())["state"], "failed");
    // The old one never changes.
    assert_eq!(app.job(&failed)["state"], "failed");
    let succeeded = format!("{location}/retry");
    assert_eq!(app.send("POST", &succeeded, &[], b"").problem().1, "not_retryable");
    let json = [("content-type", "application/json")];
    assert_eq!(app.send("POST", &retry, &json, b"{\"args\": {}}").problem().2, ["/args"]);
    assert_eq!(app.send("POST", &retry, &[], b"{}").problem().0, 415);
    let nobody = "/v1/jobs/018f0000-0000-7000-8000-00000000abcd/retry";
    assert_eq!(app.send("POST", nobody, &[], b"").problem().1, "job_not_found");
}

#[test]
fn of_many_retries_at_once_one_is_made() {
    let app = with_table();
    let id = app.submit(&execute(&insert_and_sleep()));
    eventually("it sleeps", || app.target.count(SLEEPING) == 1);
    app.post(&format!("/v1/jobs/{id}/cancel"), &json!({}));
    assert_eq!(app.ended(&id)["state"], "cancelled");
    let retry = format!("/v1/jobs/{id}/retry");
    let answers: Vec<u16> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| app.send("POST", &retry, &[], b"").status)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(answers.iter().filter(|status| **status == 202).count(), 1, "{answers:?}");
    assert_eq!(answers.iter().filter(|status| **status == 409).count(), 7, "{answers:?}");
    assert_eq!(app.queue.count(&format!("SELECT count(*) FROM jobs WHERE retry_of = '{id}'")), 1);
}
