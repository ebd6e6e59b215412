//! P7: cancel stops the statement on the server, and the state says so only when it has stopped.

use serde_json::{Value, json};

use crate::support::app::TestApp;
use crate::support::eventually;
use crate::support::kinds::Gate;
use crate::support::postgres::Postgres;

fn sleep() -> Value {
    json!({"kind": "query", "args": {"sql": "SELECT pg_sleep(600)"}})
}

fn active(app: &TestApp, id: &str) -> i64 {
    app.target.count(&format!(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'slowlane:{id}:%' AND state <> 'idle'"
    ))
}

fn cancel(app: &TestApp, id: &str) -> u16 {
    app.post(&format!("/v1/jobs/{id}/cancel"), &json!({})).status
}

#[test]
fn a_running_statement_is_stopped() {
    let app = TestApp::start();
    let id = app.submit(&sleep());
    eventually("it runs", || active(&app, &id) == 1);
    assert_eq!(cancel(&app, &id), 202);
    let job = app.ended(&id);
    assert_eq!(active(&app, &id), 0, "the state came before the end of the statement");
    assert_eq!((&job["state"], &job["error"]), (&json!("cancelled"), &Value::Null));
    assert!(job["cancel_requested_at"].is_string());
    assert_eq!(cancel(&app, &id), 200);
    assert_eq!(app.query("SELECT 1", &json!([]))["state"], "succeeded");
}

#[test]
fn another_process_is_told_without_notify() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let runs = TestApp::on(queue.clone(), target.clone(), |config| config.notify = false);
    let id = runs.submit(&sleep());
    eventually("it runs", || active(&runs, &id) == 1);
    let asks = TestApp::on(queue.clone(), target, |config| {
        config.notify = false;
        config.queues = vec!["other".to_owned()];
    });
    assert_eq!(
        queue
            .count("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"),
        0
    );
    assert_eq!(cancel(&asks, &id), 202);
    assert_eq!(asks.ended(&id)["state"], "cancelled");
    assert_eq!(active(&runs, &id), 0);
}

#[test]
fn a_job_that_waits_is_cancelled_at_once() {
    let app = TestApp::start();
    let id = app.submit(&json!({"kind": "query", "args": {"sql": "SELECT 1"}, "run_at": "2999-01-01T00:00:00Z"}));
    let answer = app.post(&format!("/v1/jobs/{id}/cancel"), &json!({}));
    assert_eq!((answer.status, &answer.json()["state"]), (202, &json!("cancelled")));
    assert_eq!(cancel(&app, &id), 200);
    let done = app.query("SELECT 1", &json!([]));
    let answer = app.post(&format!("/v1/jobs/{}/cancel", done["id"].as_str().unwrap()), &json!({}));
    assert_eq!(answer.problem(), (409, "already_finished".to_owned(), vec!["id".to_owned()]));
}

#[test]
fn a_cancel_between_claim_and_dispatch_starts_nothing() {
    let app = TestApp::start();
    // Claimed, and held up before its first statement: the target takes nobody in.
    let name = app.target.name().to_owned();
    let admin = app.queue.clone();
    admin.run(&format!("ALTER DATABASE {name} WITH CONNECTION LIMIT 0"));
    app.queue.run(&format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"));
    let id = app.submit(&json!({"kind": "query", "args": {"sql": "SELECT pg_advisory_lock(1), pg_sleep(600)"}}));
    eventually("it is claimed", || app.job(&id)["state"] == "running");
    assert_eq!(app.job(&id)["backend"], Value::Null);
    assert_eq!(cancel(&app, &id), 202);
    admin.run(&format!("ALTER DATABASE {name} WITH CONNECTION LIMIT -1"));
    assert_eq!(app.ended(&id)["state"], "cancelled");
    assert_eq!(
        app.queue.count(&format!(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}' AND query LIKE '%pg_advisory_lock%'"
        )),
        0
    );
}

#[test]
fn the_flag_is_read_after_the_claim() {
    use slowlane::queue::fleet::workers::{self, Identity};
    use slowlane::queue::lifecycle::claim::{self, Noted, Positions, Scope};
    let app = TestApp::with(|config| config.queues = vec!["default".to_owned(), "idle".to_owned()]);
    let queue = Postgres::shared().queue();
    let mut connection = queue.service();
    let worker_id = uuid::Uuid::now_v7();
    let identity = Identity { id: worker_id, hostname: "h".into(), threads: 1, ..Identity::default() };
    workers::register(&mut connection, &identity).unwrap();
    queue.run("INSERT INTO jobs (id, kind, queue, target, priority, state, args, labels, created_at, run_at, queued_xid, timeout_ms, max_attempts, result_ttl_ms)
               SELECT (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint), 12, '0') || '7000800000000000000a')::uuid, 'query', 'default', 'default', 5, 'queued', '{}', '{}', now(), now(), pg_current_xact_id(), 60000, 3, 60000");
    let scope = Scope {
        worker_id,
        kinds: vec!["query".into()],
        targets: vec!["default".into()],
        queues: vec!["default".into()],
    };
    let claimed = claim::claim(&mut connection, &scope, "default", &mut Positions::default(), 5).unwrap();
    assert_eq!(claimed.len(), 1);
    slowlane::queue::lifecycle::cancel::request(&mut connection, claimed[0].lease.job_id).unwrap();
    let noted = claim::note_backend(&mut connection, &claimed[0].lease, 1, chrono::Utc::now()).unwrap();
    assert_eq!(noted, Noted::CancelRequested);
    drop(app);
}

#[test]
fn a_diesel_statement_is_stopped_too() {
    let app = TestApp::start();
    app.target.run(
        "CREATE TABLE public.airlines (carrier text, name text); ALTER TABLE public.airlines OWNER TO slowlane_demo",
    );
    let mut holder = app.target.session();
    holder.execute_batch("BEGIN; LOCK TABLE public.airlines").unwrap();
    let id = app.submit(&json!({"kind": "carrier_report", "args": {}}));
    eventually("it waits for the table", || active(&app, &id) == 1);
    assert_eq!(cancel(&app, &id), 202);
    assert_eq!(app.ended(&id)["state"], "cancelled");
    assert_eq!(active(&app, &id), 0);
}

#[test]
fn a_thread_that_is_stuck_is_replaced() {
    let app = TestApp::with(|config| config.workers = 1);
    let gate = Gate::new("stuck");
    let id = app.submit(&json!({"kind": "gated", "args": {"gate": "stuck", "deaf": true}}));
    gate.arrived();
    assert_eq!(cancel(&app, &id), 202);
    assert_eq!(app.ended(&id)["state"], "cancelled");
    // The only thread is still in there; another one has taken its place.
    assert_eq!(app.query("SELECT 1", &json!([]))["state"], "succeeded");
    assert!(app.get("/metrics").text().contains("slowlane_work_threads_replaced_total 1"));
    gate.go(crate::support::kinds::Step::Succeed);
    assert_eq!(app.job(&id)["state"], "cancelled");
}
