//! The database's clock is set an hour ahead or back: nobody loses a job by it, nobody who is dead hides, and nothing
//! that is to be kept goes.

use diesel::connection::SimpleConnection;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use slowlane::queue::fleet::clock::CautiousClock;
use slowlane::queue::intake::insert;
use slowlane::queue::lifecycle::{leavings, promote};
use slowlane::queue::record::partitions;
use slowlane::results::store;
use slowlane::uploads;

use crate::leases::insert as insert_jobs;
use crate::support::app::TestApp;
use crate::support::child::Server;
use crate::support::clock::{make_settable, step};
use crate::support::eventually;
use crate::support::kinds::{Gate, Step};
use crate::support::postgres::{Database, Postgres};

const SLEEPING: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()";

/// Waits until a janitor looks for the dead: it finds a job whose owner is on no list.
fn a_look(queue: &Database) {
    queue.run(
        "INSERT INTO jobs (id, kind, queue, target, priority, state, args, labels, created_at, run_at, lease, attempt, worker_id, started_at, deadline_at, timeout_ms, max_attempts, result_ttl_ms)
         VALUES ((left(first_id_of(current_date)::text, 23) || right(gen_random_uuid()::text, 13))::uuid, 'query', 'looks', 'default', 5, 'running', '{\"sql\": \"SELECT 1\"}', '{}', now(), now(), 1, 1,
                 gen_random_uuid(), now(), now(), 60000, 3, 60000)",
    );
    eventually("a janitor looks", || {
        queue.count("SELECT count(*) FROM jobs WHERE queue = 'looks' AND state = 'running'") == 0
    });
}

fn sleep(queue: &Database) -> String {
    queue.text("SELECT slowlane.enqueue('query', '{\"sql\": \"SELECT pg_sleep(600)\"}')")
}

#[test]
fn a_step_of_the_clock_kills_nobody_and_hides_nobody_who_is_dead() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    make_settable(&queue);
    // Serves another queue, and rescues whatever there is.
    let janitor = Server::serve(&queue, &target, &["--queues", "others"]);
    a_look(&queue);
    let mut worker = Server::worker(&queue, &target, &["--workers", "3"]);
    let ids: Vec<String> = (0..3).map(|_| sleep(&queue)).collect();
    eventually("all run", || target.count(SLEEPING) == 3);
    for by in ["1 hour", "0", "-1 hour", "1 day"] {
        step(&queue, by);
        (0..3).for_each(|_| a_look(&queue));
        let untouched = "SELECT count(*) FROM jobs WHERE state = 'running' AND lease = 1 AND interruptions = 0 AND queue = 'default'";
        assert_eq!(queue.count(untouched), 3, "{by}");
    }
    assert_eq!(target.count(SLEEPING), 3);
    assert_eq!(queue.count("SELECT count(*) FROM workers"), 2, "somebody was declared dead");
    // Its last beats are from what is the future now.
    worker.signal(Signal::SIGKILL);
    worker.wait();
    step(&queue, "-1 hour");
    eventually("its jobs are taken from it", || {
        queue.count("SELECT count(*) FROM jobs WHERE state = 'queued' AND interruptions = 1 AND queue = 'default'") == 3
    });
    for id in ids {
        assert_eq!(janitor.client.post(&format!("/v1/jobs/{id}/cancel"), &json!({})).status, 202);
    }
}

#[test]
fn what_was_put_off_waits_no_longer_when_the_clock_is_set_back() {
    let queue = Postgres::shared().queue();
    make_settable(&queue);
    let app = TestApp::on(queue, Postgres::shared().work(), |_| {});
    let gate = Gate::new("put_off");
    let job = |run_at: Value| json!({"kind": "gated", "args": {"gate": "put_off"}, "run_at": run_at});
    let later = app.submit(&job(json!("2999-01-01T00:00:00Z")));
    let id = app.submit(&job(Value::Null));
    gate.arrived();
    // For an hour.
    gate.go(Step::Snooze);
    eventually("it waits", || app.job(&id)["state"] == "scheduled");
    let waits = |hours: &str| {
        let within = format!(
            "run_at BETWEEN clock_timestamp() + interval '{hours} - 2 minutes' AND clock_timestamp() + interval '{hours}'"
        );
        app.queue.text(&format!("SELECT {within} FROM jobs WHERE id = '{id}'")) == "t"
    };
    assert!(waits("1 hour"));
    step(&app.queue, "-3 hours");
    assert!(waits("4 hours") || waits("1 hour"), "the promoter may have been here");
    eventually("it waits for an hour again", || waits("1 hour"));
    assert!(app.job(&later)["run_at"].as_str().unwrap().starts_with("2999-01-01"), "a caller's time stays");
    // Ahead, it is due.
    step(&app.queue, "0");
    gate.arrived();
    gate.go(Step::Succeed);
    assert_eq!(app.ended(&id)["state"], "succeeded");
}

#[test]
fn a_delay_stays_as_long_as_it_was_when_two_processes_notice_a_step_back() {
    let queue = Postgres::shared().queue();
    make_settable(&queue);
    insert_jobs(&queue, 1);
    queue.run(
        "UPDATE jobs SET state = 'scheduled', queued_xid = NULL, put_off_ms = 3600000,
                         run_at = clock_timestamp() + interval '1 hour'",
    );
    step(&queue, "-3 hours");
    let left = "SELECT round(extract(epoch FROM run_at - clock_timestamp()) / 60)::bigint FROM jobs";
    assert_eq!(queue.count(left), 240);
    let mut first = queue.service();
    let mut second = queue.service();
    first.batch_execute("BEGIN").unwrap();
    assert_eq!(promote::after_a_step_back(&mut first).unwrap(), 1);
    std::thread::scope(|scope| {
        // It has begun before the first one's end, and sees the row as it was.
        let asked = scope.spawn(|| promote::after_a_step_back(&mut second).unwrap());
        let waiting =
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
        eventually("the second one waits", || queue.count(waiting) == 1);
        first.batch_execute("COMMIT").unwrap();
        assert_eq!(asked.join().unwrap(), 0);
    });
    assert_eq!(queue.count(left), 60);
    // One that notices later, and one that has just begun.
    assert_eq!(promote::after_a_step_back(&mut second).unwrap(), 0);
    assert_eq!(queue.count(left), 60);
    // Set right again, the time is over.
    step(&queue, "0");
    assert_eq!(promote::due(&mut first).unwrap().len(), 1);
    assert_eq!(promote::after_a_step_back(&mut second).unwrap(), 0);
}

#[test]
fn nothing_expires_by_a_clock_that_is_ahead() {
    let queue = Postgres::shared().queue();
    make_settable(&queue);
    let app = TestApp::on(queue, Postgres::shared().work(), |_| {});
    let headers = [("content-type", "application/json"), ("idempotency-key", "k")];
    let once = json!({"kind": "query", "args": {"sql": "SELECT 1"}});
    let accepted = app.send("POST", "/v1/jobs", &headers, once.to_string().as_bytes());
    app.ended(accepted.json()["id"].as_str().unwrap());
    app.queue.run("UPDATE results SET expires_at = clock_timestamp() + interval '30 minutes'");
    assert_eq!(app.send("POST", "/v1/uploads", &[("content-type", "text/csv")], b"a\n1\n").status, 201);
    let mut janitor = app.queue.service();
    let mut clock = CautiousClock::default();
    let right = clock.now(&mut janitor).unwrap();
    step(&app.queue, "2 days");
    let now = clock.now(&mut janitor).unwrap();
    assert!(now - right < chrono::TimeDelta::minutes(10), "{now} after {right}");
    assert!(store::expire(&mut janitor, now, 10).unwrap().is_empty());
    uploads::store::sweep(&mut janitor, now, crate::support::PATIENCE).unwrap();
    assert_eq!(insert::forget_old_keys(&mut janitor, now).unwrap(), 0);
    assert_eq!(partitions::retire(&mut janitor, now - chrono::TimeDelta::days(1)).unwrap(), 0);
    assert_eq!(app.queue.count("SELECT count(*) FROM uploads WHERE state = 'ready'"), 1);
    // Whoever begins by that clock has no other: this is what the caution is about.
    let now = CautiousClock::default().now(&mut janitor).unwrap();
    assert_eq!(store::expire(&mut janitor, now, 10).unwrap().len(), 1);
    assert_eq!(insert::forget_old_keys(&mut janitor, now).unwrap(), 1);
}

#[test]
fn what_jobs_have_left_is_looked_at_again_after_a_step_back_and_kept_through_one_ahead() {
    let queue = Postgres::shared().queue();
    make_settable(&queue);
    insert_jobs(&queue, 1);
    queue.run(
        "INSERT INTO finished_jobs (id, kind, queue, target, priority, state, args, labels, created_at, run_at,
                                    timeout_ms, max_attempts, attempt, interruptions, lease, version, finished_at,
                                    result_ttl_ms)
         SELECT id, kind, queue, target, priority, 'cancelled', args, labels, created_at, run_at, timeout_ms,
                max_attempts, 1, 0, 7, 1, now(), result_ttl_ms FROM jobs;
         INSERT INTO job_checkpoints (job_id, lease, cursor, updated_at, leaves)
         SELECT id, 7, '{\"cursor\": 1}', now(), true FROM jobs;
         DELETE FROM jobs",
    );
    let mut cleaner = queue.service();
    let mut clock = CautiousClock::default();
    let mut take = |cleaner: &mut diesel::PgConnection| {
        let now = clock.now(cleaner).unwrap();
        leavings::take(cleaner, now, &["query".to_owned()], &["default".to_owned()]).unwrap()
    };
    let left = take(&mut cleaner).unwrap();
    assert_eq!(left.application_name(), format!("slowlane:{}:7", left.job_id));
    assert!(take(&mut cleaner).is_none(), "it was looked at just now");
    step(&queue, "-3 hours");
    assert!(take(&mut cleaner).is_some() && take(&mut cleaner).is_none());
    queue.run("UPDATE job_checkpoints SET looked_at = looked_at - interval '31 seconds'");
    assert!(take(&mut cleaner).is_some());
    // Nothing is given up by a clock that is ahead.
    step(&queue, "0");
    let mut clock = CautiousClock::default();
    clock.now(&mut cleaner).unwrap();
    step(&queue, "8 days");
    let now = clock.now(&mut cleaner).unwrap();
    leavings::sweep(&mut cleaner, now).unwrap();
    assert_eq!(queue.count("SELECT count(*) FROM job_checkpoints"), 1);
    let now = CautiousClock::default().now(&mut cleaner).unwrap();
    leavings::sweep(&mut cleaner, now).unwrap();
    assert_eq!(queue.count("SELECT count(*) FROM job_checkpoints"), 0);
}
