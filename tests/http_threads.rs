//! P2: no HTTP thread ever waits for the database.

use serde_json::json;

use crate::support::app::TestApp;
use crate::support::eventually;

/// Waits for a lock for as long as it takes.
const BLOCKED: &str = "SELECT set_config('lock_timeout', '0', true), pg_advisory_lock(1)";

fn waiting_for_locks(app: &TestApp, target: bool) -> i64 {
    let database = if target { &app.target } else { &app.queue };
    database
        .count("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()")
}

#[test]
fn answers_come_while_every_worker_and_every_connection_is_blocked() {
    let app = TestApp::with(|config| {
        config.workers = 8;
        config.api_statement_timeout = std::time::Duration::from_secs(5);
    });
    let mut target_lock = app.target.session();
    target_lock.execute_batch("SELECT pg_advisory_lock(1)").unwrap();
    let ids: Vec<String> = (0..8).map(|_| app.submit(&json!({"kind": "query", "args": {"sql": BLOCKED}}))).collect();
    eventually("every worker is blocked", || waiting_for_locks(&app, true) == 8);
    // Busy workers alone hold up nobody.
    for id in &ids {
        assert_eq!(app.job(id)["state"], "running");
    }
    assert_eq!(app.get("/healthz").status, 200);
    let mut queue_lock = app.queue.session();
    queue_lock.execute_batch("BEGIN; LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE").unwrap();
    std::thread::scope(|scope| {
        let polls: Vec<_> = (0..4)
            .map(|n| {
                scope.spawn({
                    let (client, id) = (app.client.clone(), ids[n].clone());
                    move || client.get(&format!("/v1/jobs/{id}"))
                })
            })
            .collect();
        let api = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = 'slowlane api' AND datname = current_database()";
        eventually("every api connection is blocked", || app.queue.count(api) == 4);
        for _ in 0..20 {
            assert_eq!(app.get("/healthz").status, 200);
            assert_eq!(app.get("/nothing").status, 404);
            assert_eq!(app.post("/v1/jobs", &json!({"kind": "nope"})).status, 422);
        }
        assert!(polls.iter().all(|poll| !poll.is_finished()), "the connections weren't blocked all the time");
        for poll in polls {
            let answer = poll.join().unwrap();
            let (status, code, _) = answer.problem();
            assert_eq!((status, code.as_str()), (503, "database_busy"));
            assert!(answer.header("retry-after").is_some());
        }
    });
    queue_lock.execute_batch("ROLLBACK").unwrap();
    target_lock.execute_batch("SELECT pg_advisory_unlock(1)").unwrap();
    for id in &ids {
        assert_eq!(app.ended(id)["state"], "succeeded");
    }
}

#[test]
fn many_wait_for_one_change_and_all_hear_of_it() {
    let app = TestApp::start();
    let gate = crate::support::kinds::Gate::new("many_waiters");
    let id = app.submit(&json!({"kind": "gated", "args": {"gate": "many_waiters"}}));
    gate.arrived();
    let tag = app.get(&format!("/v1/jobs/{id}")).header("etag").unwrap().to_owned();
    std::thread::scope(|scope| {
        let waiters: Vec<_> = (0..50)
            .map(|_| {
                scope.spawn(|| {
                    app.get_with(&format!("/v1/jobs/{id}"), &[("if-none-match", &tag), ("prefer", "wait=30")])
                })
            })
            .collect();
        gate.go(crate::support::kinds::Step::Succeed);
        for waiter in waiters {
            assert_eq!(waiter.join().unwrap().json()["state"], "succeeded");
        }
    });
}
