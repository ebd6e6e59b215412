//! Locks from both sides: others hold what a batch wants, and others want what a batch holds.

use serde_json::json;

use super::{changed, submit, table};
use crate::support::app::TestApp;
use crate::support::eventually;

#[test]
fn a_batch_that_meets_a_lock_is_tried_again() {
    let app = TestApp::start();
    table(&app.target, 100);
    let mut holder = app.target.session();
    holder.execute_batch("BEGIN; UPDATE public.rows SET name = 'theirs' WHERE id = 500").unwrap();
    let id = submit(&app, &json!({"table": "rows", "set": {"n": "n + 1"}, "batch_rows": 40}));
    let mut phase = String::new();
    eventually("it has met the lock", || {
        phase = app.job(&id)["progress"]["phase"].as_str().unwrap_or_default().to_owned();
        phase.starts_with("waiting: ")
    });
    assert!(phase.contains("lock timeout") && phase.contains("of 10"), "{phase}");
    // What is before the lock is done, and stays so.
    assert_eq!(app.target.text("SELECT n FROM public.rows WHERE id = 400"), "1");
    holder.execute_batch("COMMIT").unwrap();
    let job = app.ended(&id);
    assert_eq!(
        (&job["state"], &job["attempt"], &job["output"]["rows_affected"]),
        (&json!("succeeded"), &json!(1), &json!(100)),
        "{job}"
    );
    assert_eq!(changed(&app.target), "1: 100");
    assert_eq!(app.target.text("SELECT name FROM public.rows WHERE id = 500"), "theirs");
    assert!(app.get(&format!("/v1/jobs/{id}/log")).text().contains("lock timeout"));
}

#[test]
fn a_deadlock_costs_no_attempt() {
    let app = TestApp::start();
    table(&app.target, 100);
    // Ours looks for a deadlock after 4 s of waiting, before it gives the lock up after 5 s; the other one doesn't
    // look.
    app.target.run(&format!("ALTER DATABASE {} SET deadlock_timeout = '4s'", app.target.name()));
    app.target.run(
        "CREATE FUNCTION public.waits() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN IF NEW.id = 500 THEN PERFORM pg_advisory_xact_lock_shared(1); END IF; RETURN NEW; END $$;
         CREATE TRIGGER waits BEFORE UPDATE ON public.rows FOR EACH ROW EXECUTE FUNCTION public.waits()",
    );
    let mut holder = app.target.session();
    holder.execute_batch("SET deadlock_timeout = '30s'; BEGIN; SELECT pg_advisory_lock(1)").unwrap();
    let id = submit(&app, &json!({"table": "rows", "set": {"n": "n + 1"}, "target_batch_ms": 2_000}));
    let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 1 AND NOT granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    eventually("it waits", || app.target.count(waits) == 1);
    // A row that it holds already: a circle.
    holder
        .execute_batch("UPDATE public.rows SET name = 'theirs' WHERE id = 10; COMMIT; SELECT pg_advisory_unlock(1)")
        .unwrap();
    let job = app.ended(&id);
    assert_eq!((&job["state"], &job["attempt"]), (&json!("succeeded"), &json!(1)), "{job}");
    assert_eq!(changed(&app.target), "1: 100");
    assert!(app.get(&format!("/v1/jobs/{id}/log")).text().contains("deadlock"));
}

#[test]
fn others_get_their_turn_between_batches() {
    let app = TestApp::start();
    table(&app.target, 400);
    let id = submit(&app, &json!({"table": "rows", "set": {"n": "n + 1"}, "batch_rows": 20, "max_rate": 40}));
    eventually("it runs", || app.target.count("SELECT count(*) FROM public.rows WHERE n = 1") > 0);
    // Ten seconds of work are left, and no lock of it stands in the way of a change of the whole table.
    let mut other = app.target.session();
    other.execute_batch("SET lock_timeout = '5s'; ALTER TABLE public.rows ADD COLUMN more int").unwrap();
    assert_eq!(app.job(&id)["state"], "running");
    let idle = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'slowlane:%' AND state = 'idle'
                   AND backend_xmin IS NULL AND datname = current_database()";
    eventually("it holds no transaction while it waits", || app.target.count(idle) == 1);
    assert_eq!(app.post(&format!("/v1/jobs/{id}/cancel"), &json!({})).status, 202);
    assert_eq!(app.ended(&id)["state"], "cancelled");
}
