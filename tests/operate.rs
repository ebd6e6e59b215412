//! What operators look at and do: workers, targets and queues, and pausing a queue so that nothing of it begins any
//! more.

use std::sync::mpsc::channel;
use std::time::Duration;

use serde_json::{Value, json};
use slowlane::pq::Session;

use crate::support::app::TestApp;
use crate::support::child::Server;
use crate::support::client::Client;
use crate::support::eventually;
use crate::support::kinds::{Gate, Step};
use crate::support::postgres::Postgres;
use crate::support::proxy::{Mode, Proxy};

fn queue(client: &Client, name: &str) -> Value {
    client.get(&format!("/v1/queues/{name}")).json()
}

fn two_queues() -> TestApp {
    TestApp::with(|config| config.queues = vec!["default".to_owned(), "other".to_owned()])
}

#[test]
fn nothing_of_a_paused_queue_begins_and_what_runs_goes_on() {
    let app = two_queues();
    let gate = Gate::new("paused-queue");
    let running = app.submit(&json!({"kind": "gated", "args": {"gate": "paused-queue"}}));
    gate.arrived();
    let paused = app.post("/v1/queues/default/pause", &json!({"reason": "a new index is built"}));
    assert_eq!(paused.status, 200);
    let paused = paused.json();
    assert_eq!((&paused["name"], &paused["paused_reason"]), (&json!("default"), &json!("a new index is built")));
    assert_eq!(queue(&app, "default")["jobs"]["running"], 1);
    // It accepts as ever, and others are served.
    let waiting = app.submit(&json!({"kind": "query", "args": {"sql": "SELECT 1"}}));
    let elsewhere = app.submit(&json!({"kind": "query", "args": {"sql": "SELECT 1"}, "queue": "other"}));
    assert_eq!(app.ended(&elsewhere)["state"], "succeeded");
    gate.go(Step::Succeed);
    assert_eq!(app.ended(&running)["state"], "succeeded");
    // Whoever claimed the other one had looked here before.
    assert_eq!(app.job(&waiting)["state"], "queued");
    eventually("the next look sees it", || queue(&app, "default")["queued_by_priority"] == json!({"5": 1}));
    let now = queue(&app, "default");
    assert_eq!(now["jobs"], json!({"scheduled": 0, "queued": 1, "running": 0, "paused": 0}));
    assert!(now["oldest_queued_ms"].as_i64().unwrap() >= 0);
    assert!(app.get("/metrics").text().contains("slowlane_queue_paused{queue=\"default\"} 1"));
    assert!(app.get("/metrics").text().contains("slowlane_queue_paused{queue=\"other\"} 0"));
    // Said again, it stays paused since then; a reason stays until another is given.
    let again = app.post("/v1/queues/default/pause", &json!({})).json();
    assert_eq!((&again["paused_at"], &again["paused_reason"]), (&paused["paused_at"], &paused["paused_reason"]));
    assert_eq!(app.post("/v1/queues/default/pause", &json!({"reason": "x"})).json()["paused_reason"], "x");

    let resumed = app.post("/v1/queues/default/resume", &json!({}));
    assert_eq!((resumed.status, &resumed.json()["paused_at"]), (200, &Value::Null));
    assert_eq!(app.ended(&waiting)["state"], "succeeded");
    let again = app.post("/v1/queues/default/resume", &json!({}));
    assert_eq!((again.status, &again.json()["paused_reason"]), (200, &Value::Null));
}

#[test]
fn a_pause_survives_restarts_and_holds_for_every_process() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let first = TestApp::on(queue, target, |_| {});
    assert_eq!(first.post("/v1/queues/default/pause", &json!({})).status, 200);
    let second = Server::serve(&first.queue, &first.target, &[]);
    let id = second.client.submit(&json!({"kind": "query", "args": {"sql": "SELECT 1"}}));
    eventually("the other process has looked", || self::queue(&first, "default")["served_by"]["workers"] == 2);
    assert_eq!(first.job(&id)["state"], "queued");
    // Whoever resumes it wakes the others.
    let mut hints = first.queue.session();
    hints.execute_batch("LISTEN slowlane").unwrap();
    first.post("/v1/queues/default/resume", &json!({}));
    let woken = std::iter::from_fn(|| hints.wait_notification(Duration::from_secs(5)).unwrap());
    let mut woken = woken.map(|hint| hint.payload);
    assert!(woken.any(|payload| payload.contains(r#""message":{"ready":[]}"#)), "nobody was told");
    assert_eq!(second.client.ended(&id)["state"], "succeeded");
}

#[test]
fn a_pause_is_answered_when_no_claim_is_left_that_did_not_see_it() {
    let app = TestApp::start();
    let mut claim = Session::connect(&app.queue.dsn.clone().with("application_name", "slowlane control")).unwrap();
    claim.execute_batch("BEGIN; LOCK TABLE slowlane.jobs IN ROW EXCLUSIVE MODE").unwrap();
    // An application that enqueues in a long transaction holds the same lock, and is none.
    let mut application = Session::connect(&app.queue.dsn.clone().with("application_name", "shop")).unwrap();
    application.execute_batch("BEGIN; SELECT slowlane.enqueue('query', '{\"sql\":\"SELECT 1\"}')").unwrap();
    let (answered, answer) = channel();
    let client = app.client.clone();
    let pausing = std::thread::spawn(move || {
        answered.send(client.post("/v1/queues/default/pause", &json!({})).status).unwrap();
    });
    eventually("the pause is committed", || app.queue.text("SELECT paused_at IS NOT NULL FROM slowlane.queues") == "t");
    assert!(answer.recv_timeout(Duration::from_millis(300)).is_err(), "a claim is still under way");
    claim.execute_batch("COMMIT").unwrap();
    assert_eq!(answer.recv_timeout(Duration::from_secs(10)).unwrap(), 200);
    pausing.join().unwrap();
}

#[test]
fn under_load_no_job_begins_after_the_answer_to_a_pause() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let app = TestApp::on(queue, target, |_| {});
    let other = Server::serve(&app.queue, &app.target, &[]);
    let enqueue = |count: i64| {
        let sql = "SELECT count(slowlane.enqueue('query', '{\"sql\":\"SELECT 1\"}', priority => (g % 10)::int))";
        assert_eq!(app.queue.count(&format!("{sql} FROM generate_series(1, {count}) g")), count);
    };
    for round in 0..8 {
        let ended = "SELECT count(*) FROM slowlane.finished_jobs";
        let before = app.queue.count(ended);
        enqueue(200);
        eventually("some have run", || app.queue.count(ended) > before + 20);
        let client = if round % 2 == 0 { &app.client } else { &other.client };
        assert_eq!(client.post("/v1/queues/default/pause", &json!({})).status, 200);
        let answered = app.queue.text("SELECT clock_timestamp()::text");
        // Whatever still has to come, comes: hints, threads that become free, and what ends.
        enqueue(5);
        eventually("what began has ended", || queue_running(&app) == 0);
        let late = format!(
            "SELECT (SELECT count(*) FROM slowlane.finished_jobs WHERE started_at > '{answered}')
                  + (SELECT count(*) FROM slowlane.jobs WHERE started_at > '{answered}')"
        );
        assert_eq!(app.queue.count(&late), 0, "round {round}");
        assert!(app.queue.count("SELECT count(*) FROM slowlane.jobs WHERE state = 'queued'") >= 5);
        client.post("/v1/queues/default/resume", &json!({}));
        eventually("all have run", || app.queue.count("SELECT count(*) FROM slowlane.jobs") == 0);
    }
}

fn queue_running(app: &TestApp) -> i64 {
    app.queue.count("SELECT count(*) FROM slowlane.jobs WHERE state = 'running'")
}

#[test]
fn what_is_wrong_with_a_request_is_said() {
    let app = TestApp::start();
    for (path, body, status, code, pointers) in [
        ("/v1/queues/nobodys/pause", json!({}), 404, "queue_not_found", vec!["name"]),
        ("/v1/queues/nobodys/resume", json!({}), 404, "queue_not_found", vec!["name"]),
        ("/v1/queues/default/pause", json!({"reason": "x".repeat(513)}), 422, "invalid_request", vec!["/reason"]),
        ("/v1/queues/default/pause", json!({"reason": ""}), 422, "invalid_request", vec!["/reason"]),
        (
            "/v1/queues/default/pause",
            json!({"reason": 1, "until": 2}),
            422,
            "invalid_request",
            vec!["/reason", "/until"],
        ),
        ("/v1/queues/default/resume", json!({"reason": "x"}), 422, "invalid_request", vec!["/reason"]),
    ] {
        let (found, word, places) = app.post(path, &body).problem();
        assert_eq!((found, word.as_str()), (status, code), "{path} {body}");
        assert_eq!(places, pointers, "{path} {body}");
    }
    for (path, code) in [
        ("/v1/queues/nobodys", "queue_not_found"),
        ("/v1/targets/nobodys", "target_not_found"),
        ("/v1/workers/00000000-0000-0000-0000-000000000000", "worker_not_found"),
    ] {
        assert_eq!(app.get(path).problem().1, code, "{path}");
    }
    assert_eq!(app.get("/v1/workers/x").problem().1, "invalid_id");
    for path in ["/v1/queues", "/v1/targets", "/v1/workers"] {
        assert_eq!(app.get(&format!("{path}?x=1")).problem().1, "invalid_parameter");
        assert_eq!(app.send("DELETE", path, &[], b"").problem().0, 405);
    }
    assert_eq!(app.queue.count("SELECT count(*) FROM slowlane.queues"), 0);
}

#[test]
fn workers_say_who_they_are_and_what_they_run() {
    let app = two_queues();
    let gate = Gate::new("workers-list");
    app.submit(&json!({"kind": "gated", "args": {"gate": "workers-list"}}));
    gate.arrived();
    let list = app.get("/v1/workers").json();
    let [worker] = list["workers"].as_array().unwrap().as_slice() else { panic!("{list}") };
    assert_eq!((&worker["state"], &worker["running"], &worker["threads"]), (&json!("alive"), &json!(1), &json!(4)));
    assert_eq!((&worker["pid"], &worker["version"]), (&json!(std::process::id()), &json!(env!("CARGO_PKG_VERSION"))));
    assert_eq!(worker["queues"], json!(["default", "other"]));
    assert!(worker["kinds"].as_array().unwrap().contains(&json!("query")));
    let target = &worker["targets"][0];
    assert_eq!(
        (&target["name"], &target["available"], &target["trouble"]),
        (&json!("default"), &json!(true), &Value::Null)
    );
    assert_eq!(app.get(&format!("/v1/workers/{}", worker["id"].as_str().unwrap())).json()["id"], worker["id"]);
    gate.go(Step::Succeed);
    // Others, by their beats.
    let id = |n: u8| format!("00000000-0000-4000-8000-00000000000{n}");
    // The last one's beat is from a clock that was set back since.
    for (n, age) in [(1, 0), (2, 7), (3, 16), (4, -3600)] {
        app.queue.run(&format!(
            "INSERT INTO slowlane.workers (id, hostname, pid, version, threads, kinds, queues, started_at, beat_at, targets)
             VALUES ('{}', 'elsewhere', 7, '0', 2, '{{query}}', '{{third}}', now(), now() - interval '{age} seconds', '[\"not ours\"]')",
            id(n)
        ));
    }
    let state = |n: u8| app.get(&format!("/v1/workers/{}", id(n))).json()["state"].clone();
    eventually("the next look sees them", || state(3) == "dead");
    assert_eq!((state(1), state(2), state(4)), (json!("alive"), json!("late"), json!("dead")));
    let third = queue(&app, "third");
    assert_eq!(third["served_by"], json!({"workers": 2, "threads": 4}), "the dead serve nobody");
}

#[test]
fn what_nobody_serves_is_named() {
    let app = TestApp::start();
    for (kind, queue, target) in
        [("query", "nightly", "default"), ("mystery", "default", "default"), ("query", "default", "gone")]
    {
        app.queue.run(&format!("SELECT slowlane.enqueue('{kind}', '{{}}', queue => '{queue}', target => '{target}')"));
    }
    eventually("they are seen", || queue(&app, "nightly")["jobs"]["queued"] == 1);
    let unserved = |value: &Value| value["unserved"].clone();
    assert_eq!(
        unserved(&queue(&app, "nightly")),
        json!([{"queue": "nightly", "kind": "query", "target": "default", "count": 1}])
    );
    assert_eq!(
        unserved(&queue(&app, "default")),
        json!([
            {"queue": "default", "kind": "mystery", "target": "default", "count": 1},
            {"queue": "default", "kind": "query", "target": "gone", "count": 1},
        ])
    );
    let gone = app.get("/v1/targets/gone").json();
    assert_eq!((&gone["settings"], &gone["served_by"]["workers"]), (&Value::Null, &json!(0)));
    assert_eq!(unserved(&gone), json!([{"queue": "default", "kind": "query", "target": "gone", "count": 1}]));
    // A queue that only jobs know can be paused.
    assert_eq!(app.post("/v1/queues/nightly/pause", &json!({})).status, 200);
}

#[test]
fn a_target_that_is_away_says_so_and_no_list_holds_a_secret() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let proxy = Proxy::before(&target.dsn);
    let mut away = target.clone();
    away.dsn = proxy.dsn(&target.dsn);
    let app = TestApp::on(queue, away, |_| {});
    let listed = app.get("/v1/targets/default").json();
    let settings = &listed["settings"];
    assert_eq!((&settings["host"], &settings["database"]), (&json!("127.0.0.1"), &json!(target.name())));
    assert_eq!((&settings["user"], &settings["read_only"]), (&json!("slowlane_demo"), &json!(false)));
    assert_eq!((&listed["statements_only"], &listed["troubles"]), (&json!(false), &json!([])));
    proxy.set(Mode::Refuse);
    proxy.cut();
    app.submit(&json!({"kind": "query", "args": {"sql": "SELECT 1"}}));
    eventually("the worker says so", || app.get("/v1/targets/default").json()["troubles"][0]["trouble"].is_string());
    let text = app.get("/v1/targets").text() + &app.get("/v1/workers").text() + &app.get("/v1/queues").text();
    for dsn in [&app.queue.dsn, &target.dsn] {
        let password = dsn.get("password").unwrap();
        assert!(password.len() > 8 && !text.contains(password), "{text}");
    }
    proxy.set(Mode::Pass);
    eventually("it is back", || app.get("/v1/workers").json()["workers"][0]["targets"][0]["available"] == true);
}
