//! Each guard made false and true again for real: the work waits outside of any transaction, says for what, and goes
//! on.

use std::time::Duration;

use serde_json::{Value, json};

use super::{changed, failure, submit, table};
use crate::support::app::TestApp;
use crate::support::eventually;
use crate::support::postgres::Postgres;
use crate::support::standby::Standby;

fn guarded(guards: &Value) -> Value {
    json!({"table": "rows", "set": {"n": "n + 1"}, "batch_rows": 10, "max_rate": 1_000, "guards": guards})
}

fn phase(app: &TestApp, id: &str) -> String {
    app.job(id)["progress"]["phase"].as_str().unwrap_or_default().to_owned()
}

/// It waits for the reason, outside of any transaction.
#[track_caller]
fn waits(app: &TestApp, id: &str, reason: &str) {
    eventually(reason, || phase(app, id).starts_with(&format!("waiting: {reason}")));
    let open = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'slowlane:%' AND xact_start IS NOT NULL AND datname = current_database()";
    eventually("no transaction is open", || app.target.count(open) == 0);
}

#[track_caller]
fn goes_on(app: &TestApp, id: &str, rows: i64) {
    let job = app.ended(id);
    assert_eq!((&job["state"], &job["output"]["rows_affected"]), (&json!("succeeded"), &json!(rows)), "{job}");
    assert_eq!(changed(&app.target), format!("1: {rows}"));
    let log = app.get(&format!("/v1/jobs/{id}/log")).text();
    assert!(log.contains("waits before the next batch") && log.contains("goes on"), "{log}");
}

#[test]
fn a_condition_is_waited_for() {
    let app = TestApp::start();
    table(&app.target, 100);
    app.target.run("CREATE TABLE public.gate AS SELECT 40 AS most; GRANT ALL ON public.gate TO PUBLIC");
    let condition = "(SELECT count(*) FROM rows WHERE n = 1) < (SELECT most FROM gate) -- so many";
    let id = submit(&app, &guarded(&json!({"condition": condition})));
    waits(&app, &id, "the condition isn't true");
    // What was done by then is committed.
    assert!(app.target.count("SELECT count(*) FROM public.rows WHERE n = 1") >= 40);
    app.target.run("UPDATE public.gate SET most = NULL");
    waits(&app, &id, "the condition isn't true");
    app.target.run("UPDATE public.gate SET most = 1000");
    goes_on(&app, &id, 100);
}

/// Somebody who runs this and waits for such a lock.
fn waiting(app: &TestApp, sql: &'static str, lock: &str) -> std::thread::JoinHandle<()> {
    let target = app.target.clone();
    let waiter = std::thread::spawn(move || {
        target.session().execute_batch(&format!("SET lock_timeout = '60s'; {sql}")).unwrap();
    });
    let waits = format!(
        "SELECT count(*) FROM pg_locks WHERE NOT granted AND {lock}
            AND pid IN (SELECT pid FROM pg_stat_activity WHERE datname = current_database())"
    );
    eventually("somebody waits", || app.target.count(&waits) == 1);
    waiter
}

#[test]
fn sessions_that_wait_for_the_table_go_first() {
    let app = TestApp::start();
    table(&app.target, 100);
    // One that reads the table holds up one that would share it with no writer, and that one no reader.
    let mut holder = app.target.session();
    holder.execute_batch("BEGIN; LOCK TABLE public.rows IN SHARE ROW EXCLUSIVE MODE").unwrap();
    let of_the_table = "relation = 'public.rows'::regclass";
    let waiter = waiting(&app, "BEGIN; LOCK TABLE public.rows IN SHARE MODE; COMMIT", of_the_table);
    let id = submit(&app, &guarded(&json!({"max_lock_waiters": 0})));
    waits(&app, &id, "lock waiters on the table: 1");
    assert_eq!(changed(&app.target), "0: 100");
    holder.execute_batch("COMMIT").unwrap();
    waiter.join().unwrap();
    goes_on(&app, &id, 100);
    // As many as are allowed.
    app.target.run("UPDATE public.rows SET n = 0");
    holder.execute_batch("BEGIN; LOCK TABLE public.rows IN SHARE UPDATE EXCLUSIVE MODE").unwrap();
    let waiter = waiting(&app, "BEGIN; LOCK TABLE public.rows IN SHARE UPDATE EXCLUSIVE MODE; COMMIT", of_the_table);
    let id = submit(&app, &guarded(&json!({"max_lock_waiters": 1})));
    let job = app.ended(&id);
    assert_eq!((&job["state"], changed(&app.target).as_str()), (&json!("succeeded"), "1: 100"), "{job}");
    holder.execute_batch("COMMIT").unwrap();
    waiter.join().unwrap();
}

#[test]
fn a_session_that_waits_for_a_row_goes_first() {
    let app = TestApp::start();
    table(&app.target, 100);
    let mut holder = app.target.session();
    holder.execute_batch("BEGIN; UPDATE public.rows SET name = 'x' WHERE id = 100").unwrap();
    // It waits for the transaction, and nothing says of which table.
    let waiter = waiting(&app, "UPDATE public.rows SET name = 'y' WHERE id = 100", "locktype = 'transactionid'");
    let id = submit(&app, &guarded(&json!({"max_lock_waiters": 0})));
    waits(&app, &id, "lock waiters on the table: 1");
    assert_eq!(changed(&app.target), "0: 100");
    holder.execute_batch("COMMIT").unwrap();
    waiter.join().unwrap();
    goes_on(&app, &id, 100);
}

#[test]
fn what_a_serializable_transaction_has_read_is_no_wait() {
    let app = TestApp::start();
    table(&app.target, 100);
    let mut reader = app.target.session();
    reader
        .execute_batch(
            "SET enable_seqscan = off; BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT name FROM public.rows WHERE id = 50",
        )
        .unwrap();
    let marks = "SELECT count(*) FROM pg_locks WHERE mode = 'SIReadLock' AND locktype = 'tuple'
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    assert_eq!(app.target.count(marks), 1);
    let job = app.ended(&submit(&app, &guarded(&json!({"max_lock_waiters": 0}))));
    assert_eq!(job["state"], "succeeded", "{job}");
}

#[test]
fn a_standby_that_lags_is_waited_for() {
    let postgres = Postgres::start();
    let standby = Standby::of(&postgres);
    let app = TestApp::on(Postgres::shared().queue(), postgres.work(), |_| {});
    table(&app.target, 3_000);
    let args = guarded(&json!({"max_replica_lag_ms": 300}));
    let (code, message) = failure(&app, &args);
    assert_eq!(code, "guard_not_allowed", "{message}");
    app.target.run("GRANT pg_monitor TO slowlane_demo");
    let all_there = "SELECT bool_and(replay_lsn = pg_current_wal_lsn()) FROM pg_stat_replication";
    eventually("the standby has everything", || app.target.text(all_there) == "t");
    standby.stop_receiving(&app.target);
    let id = submit(&app, &args);
    waits(&app, &id, "replica lag");
    let before = changed(&app.target);
    assert_ne!(before, "1: 3000");
    let lag = || phase(&app, &id).split(' ').nth(3).and_then(|lag| lag.parse::<f64>().ok()).unwrap_or(0.0);
    eventually("the lag grows", || lag() > Duration::from_secs(2).as_secs_f64());
    assert_eq!(changed(&app.target), before, "it went on");
    standby.receive_again();
    goes_on(&app, &id, 3_000);
}

#[test]
fn a_vacuum_of_the_table_is_waited_for() {
    let postgres = Postgres::with(&[("autovacuum_naptime", "1s")]);
    let app = TestApp::on(Postgres::shared().queue(), postgres.work(), |_| {});
    table(&app.target, 20_000);
    // It takes its time, and there is work for it.
    app.target.run(
        "ALTER TABLE public.rows SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1,
             autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1, autovacuum_analyze_threshold = 1000000000);
         UPDATE public.rows SET name = name WHERE id <= 100000",
    );
    let vacuums = "SELECT count(*) FROM pg_stat_progress_vacuum WHERE relid = 'public.rows'::regclass AND datname = current_database()";
    eventually("an autovacuum is at work", || app.target.count(vacuums) == 1);
    let mut args = guarded(&json!({"pause_on_autovacuum": true}));
    args["max_rate"] = Value::Null;
    let id = submit(&app, &args);
    waits(&app, &id, "the table is being vacuumed");
    assert_eq!(app.target.count(vacuums), 1);
    assert_eq!(changed(&app.target), "0: 20000");
    // It ends, and no other begins.
    app.target.run("ALTER SYSTEM SET autovacuum = off");
    app.target.run("SELECT pg_reload_conf()");
    app.target.run("SELECT pg_terminate_backend(pid) FROM pg_stat_progress_vacuum WHERE datname = current_database()");
    goes_on(&app, &id, 20_000);
}
