//! One line of the process' log for each job that ended, and nothing of the caller's in it.

use serde_json::{Value, json};

use crate::support::child::Server;
use crate::support::eventually;
use crate::support::postgres::Postgres;

/// Stands in what callers send, and in the server's messages about it.
const SECRET: &str = "hunter2";

fn lines(server: &Server) -> Vec<Value> {
    let log = server.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["module"] == "slowlane::jobs").collect()
}

/// Runs one job of each end; their ids, with what is to be said of them at which level and with which code.
fn run_some(server: &Server) -> Vec<(String, &'static str, &'static str, Value)> {
    let client = &server.client;
    let query = |sql: &str| client.submit(&json!({"kind": "query", "args": {"sql": sql}}));
    let well = query(&format!("SELECT '{SECRET}'"));
    client.ended(&well);
    let failed = query(&format!("SELECT '{SECRET}'::int"));
    assert!(client.ended(&failed)["error"]["message"].as_str().unwrap().contains(SECRET));
    let again = json!([{"sql": format!("DO $$ BEGIN RAISE '{SECRET}' USING ERRCODE = '40P01'; END $$")}]);
    let again = client.submit(&json!({"kind": "execute", "args": {"statements": again}, "max_attempts": 2}));
    client.ended(&again);
    let stopped = query("SELECT pg_sleep(600)");
    eventually("it runs", || client.job(&stopped)["state"] == "running");
    let waiting =
        client.submit(&json!({"kind": "query", "args": {"sql": "SELECT 1"}, "run_at": "2999-01-01T00:00:00Z"}));
    for id in [&stopped, &waiting] {
        assert_eq!(client.post(&format!("/v1/jobs/{id}/cancel"), &json!({})).status, 202);
        client.ended(id);
    }
    vec![
        (well, "info", "a job succeeded", Value::Null),
        (failed, "warn", "a job failed", json!("sql_error")),
        (again.clone(), "info", "an attempt failed, and the job is tried again", json!("sql_error")),
        (again, "warn", "a job failed", json!("sql_error")),
        (stopped, "info", "a job was cancelled", Value::Null),
        (waiting, "info", "a job was cancelled", Value::Null),
    ]
}

fn server(settings: &[&str]) -> Server {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    Server::serve(&queue, &target, &[&["--log-format", "json"], settings].concat())
}

#[test]
fn each_end_is_one_line_with_names_and_numbers_alone() {
    let server = server(&[]);
    let expected = run_some(&server);
    eventually("all is said", || lines(&server).len() >= expected.len());
    let said = lines(&server);
    assert_eq!(said.len(), expected.len(), "{said:?}");
    for (id, level, message, code) in &expected {
        let line = said.iter().find(|line| line["job"] == **id && line["message"] == *message).unwrap();
        assert_eq!((&line["level"], &line["code"]), (&json!(level), code), "{line}");
        assert_eq!(line["target"], "default", "{line}");
        assert!(["query", "execute"].contains(&line["kind"].as_str().unwrap()), "{line}");
        assert!(line["attempt"].is_i64(), "{line}");
        // What no attempt ran of took no time.
        let ran = *id != expected[expected.len() - 1].0;
        assert_eq!(line["duration_ms"].as_i64().is_some_and(|ms| ms < 60_000), ran, "{line}");
        assert_eq!(line.get("duration_ms").is_some(), ran, "{line}");
    }
    let of_the_second = said.iter().filter(|line| line["job"] == expected[3].0 && line["attempt"] == 2);
    assert_eq!(of_the_second.count(), 1, "{said:?}");
    assert!(!server.log().contains(SECRET), "{}", server.log());
}

#[test]
fn a_setting_leaves_lines_out_and_adds_none() {
    for (settings, levels) in [
        (vec!["--log-jobs", "failed"], vec!["warn", "warn"]),
        (vec!["--log-jobs", "none"], vec![]),
        // Where it serves is said at info.
        (vec!["--log", "warn,slowlane::app=info"], vec!["warn", "warn"]),
        (vec!["--log", "error,slowlane::app=info", "--log-jobs", "failed"], vec![]),
        (vec!["--log", "info,slowlane::jobs=off"], vec![]),
    ] {
        let mut server = server(&settings);
        run_some(&server);
        // What is to be said is said before the process ends.
        server.signal(nix::sys::signal::Signal::SIGTERM);
        assert!(server.wait().success(), "{}", server.log());
        let said: Vec<Value> = lines(&server).iter().map(|line| line["level"].clone()).collect();
        assert_eq!(said, levels, "{settings:?}: {}", server.log());
    }
}

#[test]
fn who_held_a_lock_stands_in_the_one_line_of_its_job() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    target.run("CREATE TABLE public.t (n int); GRANT ALL ON public.t TO slowlane_demo");
    let server = Server::serve(&queue, &target, &["--log-format", "json"]);
    let mut holder = target.session();
    holder.execute_batch("SET application_name = 'nightly load'; BEGIN; LOCK TABLE public.t").unwrap();
    let args = json!({"statements": [{"sql": "INSERT INTO public.t VALUES (1)"}]});
    let job = json!({"kind": "execute", "args": args, "lock_timeout_ms": 1_000, "max_attempts": 1});
    let id = server.client.submit(&job);
    assert_eq!(server.client.ended(&id)["error"]["code"], "lock_timeout");
    eventually("it has its line", || !lines(&server).is_empty());
    let told = lines(&server);
    assert_eq!((told.len(), &told[0]["code"]), (1, &json!("lock_timeout")), "{told:?}");
    let blocked_by = told[0]["blocked_by"].as_str().unwrap();
    assert!(blocked_by.contains(&format!("process {} (nightly load)", holder.backend_pid())), "{blocked_by}");
    let others = server.log();
    assert_eq!(
        others.lines().filter(|line| line.contains(&id) && !line.contains("a job failed")).count(),
        0,
        "{others}"
    );
}

#[test]
fn a_job_that_was_to_be_paused_is_paused_however_its_attempt_ended() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let server = Server::serve(&queue, &target, &["--log-format", "json"]);
    let mut gate = target.session();
    gate.execute_batch("SELECT pg_advisory_lock(1)").unwrap();
    let sql = "DO $$ BEGIN PERFORM pg_advisory_lock(1); RAISE 'again' USING ERRCODE = '40P01'; END $$";
    let id = server.client.submit(&json!({"kind": "execute", "args": {"statements": [{"sql": sql}]}}));
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
    eventually("it waits", || target.count(waits) == 1);
    // Asked between the end of the attempt and its being written: the attempt never hears of it.
    let mut asked = queue.session();
    let ask = format!("BEGIN; UPDATE slowlane.jobs SET pause_requested_at = clock_timestamp() WHERE id = '{id}'");
    asked.execute_batch(&ask).unwrap();
    drop(gate);
    eventually("its end waits to be written", || queue.count(waits) == 1);
    asked.execute_batch("COMMIT").unwrap();
    eventually("it has its line", || !lines(&server).is_empty());
    let told = lines(&server);
    assert_eq!(
        (told.len(), &told[0]["message"], &told[0]["code"]),
        (1, &json!("a job is paused"), &json!("sql_error")),
        "{told:?}"
    );
    assert_eq!(server.client.job(&id)["state"], "paused");
    let metrics = server.client.get("/metrics").text();
    let paused = |line: &&str| line.contains("outcome=\"paused\"") && line.ends_with(" 1");
    assert_eq!(metrics.lines().filter(paused).count(), 1, "{metrics}");
    assert!(!metrics.contains("outcome=\"retried\""), "{metrics}");
}

#[test]
fn a_job_that_nobody_ran_has_no_duration() {
    let queue = Postgres::shared().queue();
    let server = Server::serve(&queue, &Postgres::shared().work(), &["--log-format", "json"]);
    queue.run(
        "INSERT INTO jobs (id, kind, queue, target, priority, state, args, labels, created_at, run_at, lease, attempt,
                           worker_id, started_at, deadline_at, timeout_ms, max_attempts, result_ttl_ms)
         SELECT (left(first_id_of(current_date)::text, 23) || right(gen_random_uuid()::text, 13))::uuid, 'query',
                'default', 'default', 5, 'running', '{\"sql\": \"SELECT 1\"}', '{}', now(), now(), 1, 1,
                (SELECT id FROM workers), now() - interval '1 minute', now() + interval '1 hour', 60000, 3, 60000",
    );
    eventually("it is put back, and runs", || lines(&server).len() == 2);
    let told = lines(&server);
    assert_eq!((&told[0]["message"], told[0].get("duration_ms")), (&json!("a job is handed back"), None), "{told:?}");
    assert!(told[1]["message"] == "a job succeeded" && told[1]["duration_ms"].is_i64(), "{told:?}");
}
