//! What a server stops by its own rules: a standby that has to go on, transactions and sessions that take too long.

use serde_json::{Value, json};

use crate::support::app::TestApp;
use crate::support::eventually;
use crate::support::postgres::{Database, Postgres};
use crate::support::standby::Standby;

/// Holds a snapshot until the server has enough of it, by one driver or the other, and says which server it is.
fn held(driver: &str, pause_ms: u64) -> Value {
    json!({"kind": "held_snapshot", "args": {"driver": driver, "pause_ms": pause_ms}})
}

fn attempted(app: &TestApp, id: &str) -> Value {
    let mut error = Value::Null;
    eventually("its first attempt has ended", || {
        error = app.get(&format!("/v1/jobs/{id}/attempts")).json()["attempts"][0]["error"].clone();
        error != Value::Null
    });
    error
}

fn cancel(app: &TestApp, id: &str) {
    assert_eq!(app.post(&format!("/v1/jobs/{id}/cancel"), &json!({})).status, 202);
    assert_eq!(app.ended(id)["state"], "cancelled");
}

#[test]
fn what_a_standby_stops_is_a_recovery_conflict_and_is_tried_again_later() {
    let primary = Postgres::start();
    let target = primary.work();
    target.run("CREATE TABLE public.t (n int); GRANT SELECT ON public.t TO PUBLIC");
    let standby = Standby::of(&primary);
    let there = standby.database(&target);
    there.run("ALTER SYSTEM SET max_standby_streaming_delay = '50ms'");
    there.run("SELECT pg_reload_conf()");
    eventually("it follows", || there.text("SELECT to_regclass('public.t')") == "t");
    let app = TestApp::on(Postgres::shared().queue(), there.clone(), |_| {});
    let query = json!({"kind": "query", "args": {"sql": "SELECT count(*), pg_sleep(600) FROM public.t"}});
    let holds = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'slowlane:%' AND datname = current_database()
                    AND backend_xmin IS NOT NULL";
    // A statement that is under way, and sessions that are idle in a transaction: those are ended.
    for job in [query, held("libpq", 50), held("diesel", 50)] {
        let id = app.submit(&job);
        eventually("it holds a snapshot", || there.count(holds) == 1);
        target.run("INSERT INTO public.t VALUES (1); DELETE FROM public.t");
        target.run("VACUUM public.t");
        let error = attempted(&app, &id);
        assert!(error["hint"].as_str().unwrap().contains("hot_standby_feedback"), "{job}: {error}");
        assert_eq!(error["retryable"], true, "{job}: {error}");
        // The last words of a session that is ended may be lost on their way.
        if job["kind"] == "query" || error["code"] != "connection_lost" {
            assert_eq!(error["code"], "recovery_conflict", "{job}: {error}");
            // Of such a session, Diesel passes on words alone.
            assert!(error["sqlstate"] == "40001" || job == held("diesel", 50), "{job}: {error}");
            let wait =
                format!("SELECT state || ' ' || (run_at > now() + interval '10 seconds') FROM jobs WHERE id = '{id}'");
            assert_eq!(app.queue.text(&wait), "scheduled true");
        }
        println!("{job}: {error}");
        cancel(&app, &id);
    }
}

fn limited(setting: &str) -> (Database, TestApp) {
    let postgres = Postgres::shared();
    let target = postgres.work();
    target.run("CREATE TABLE public.t (n int); GRANT SELECT ON public.t TO PUBLIC");
    target.run(&format!("ALTER DATABASE {} SET {setting}", target.name()));
    (target.clone(), TestApp::on(postgres.queue(), target, |_| {}))
}

#[test]
fn a_transaction_that_may_not_be_so_long_is_not_begun_again() {
    if Postgres::shared().work().count("SHOW server_version_num") < 170_000 {
        println!("skipped: a server before 17 has no transaction_timeout");
        return;
    }
    let (_target, app) = limited("transaction_timeout = '300ms'");
    for job in [
        json!({"kind": "query", "args": {"sql": "SELECT pg_sleep(600)"}}),
        json!({"kind": "execute", "args": {"statements": [{"sql": "SELECT pg_sleep(600)"}]}}),
        held("libpq", 50),
        held("diesel", 50),
    ] {
        let job = app.ended(&app.submit(&job));
        let error = &job["error"];
        assert_eq!((&error["code"], &error["retryable"]), (&json!("transaction_timeout"), &json!(false)), "{job}");
        assert!(error["hint"].as_str().unwrap().contains("transaction_timeout"), "{job}");
        assert_eq!((&job["state"], &job["attempt"]), (&json!("failed"), &json!(1)), "{job}");
    }
}

#[test]
fn a_session_that_may_not_be_idle_names_the_setting() {
    let (_target, app) = limited("idle_in_transaction_session_timeout = '100ms'");
    for driver in ["libpq", "diesel"] {
        let id = app.submit(&held(driver, 2_000));
        let error = attempted(&app, &id);
        assert_eq!((&error["code"], &error["retryable"]), (&json!("connection_lost"), &json!(true)), "{error}");
        assert!(error["hint"].as_str().unwrap().contains("idle_in_transaction_session_timeout"), "{error}");
        cancel(&app, &id);
    }
}
