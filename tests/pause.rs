//! Pausing and resuming: which jobs can be, what a pause does to one that runs, and what it comes to beside a cancel,
//! an end and a change of mind.

use serde_json::{Value, json};

use crate::support::app::TestApp;
use crate::support::client::{Answer, Client};
use crate::support::kinds::{Gate, Step};
use crate::support::postgres::Postgres;
use crate::support::{eventually, history};

fn ask(app: &Client, id: &str, what: &str) -> Answer {
    app.post(&format!("/v1/jobs/{id}/{what}"), &json!({}))
}

#[track_caller]
fn told(answer: &Answer) -> (u16, String) {
    (answer.status, answer.json()["state"].as_str().unwrap_or_else(|| panic!("{}", answer.text())).to_owned())
}

fn gated(gate: &str, deaf: bool) -> Value {
    json!({"kind": "gated_resumable", "args": {"gate": gate, "deaf": deaf}})
}

fn is(status: u16, state: &str) -> (u16, String) {
    (status, state.to_owned())
}

#[test]
fn a_running_job_is_paused_and_goes_on_uncharged() {
    let app = TestApp::start();
    let gate = Gate::new("paused");
    let id = app.submit(&gated("paused", false));
    assert_eq!(gate.arrived(), 1);
    assert_eq!(told(&ask(&app, &id, "pause")).0, 202);
    eventually("it is paused", || app.job(&id)["state"] == "paused");
    let job = app.job(&id);
    assert_eq!((&job["attempt"], &job["interruptions"], &job["error"]), (&json!(0), &json!(0), &Value::Null), "{job}");
    assert_eq!((&job["finished_at"], &job["deadline_at"]), (&Value::Null, &Value::Null), "{job}");
    assert_eq!(told(&ask(&app, &id, "pause")), is(200, "paused"));
    let listed = app.get("/v1/jobs?state=paused").json();
    assert_eq!(listed["jobs"][0]["id"], id.as_str(), "{listed}");
    let answer = ask(&app, &id, "resume");
    assert_eq!(told(&answer), is(202, "queued"));
    assert_eq!(answer.header("location").unwrap(), format!("/v1/jobs/{id}"));
    assert_eq!(gate.arrived(), 1, "the attempt that was paused was charged");
    assert_eq!(told(&ask(&app, &id, "resume")), is(200, "running"));
    gate.go(Step::Succeed);
    assert_eq!(app.ended(&id)["state"], "succeeded");
    let attempts = app.get(&format!("/v1/jobs/{id}/attempts")).json();
    assert_eq!(
        (&attempts["attempts"][0]["outcome"], &attempts["attempts"][1]["outcome"]),
        (&json!("paused"), &json!("succeeded"))
    );
    history::check(&app.queue, std::slice::from_ref(&id));
    for what in ["pause", "resume"] {
        assert_eq!(ask(&app, &id, what).problem(), (409, "already_finished".to_owned(), vec!["id".to_owned()]));
    }
}

#[test]
fn a_job_that_waits_is_paused_at_once_and_waits_for_its_time_again() {
    let app = TestApp::start();
    let id = app.submit(&json!({"kind": "gated_resumable", "args": {"gate": "x"}, "run_at": "2999-01-01T00:00:00Z"}));
    assert_eq!(told(&ask(&app, &id, "pause")), is(202, "paused"));
    assert_eq!(told(&ask(&app, &id, "pause")), is(200, "paused"));
    assert_eq!(told(&ask(&app, &id, "resume")), is(202, "scheduled"));
    assert_eq!(told(&ask(&app, &id, "resume")), is(200, "scheduled"));
    assert_eq!(told(&ask(&app, &id, "pause")), is(202, "paused"));
    assert_eq!(told(&ask(&app, &id, "cancel")), is(202, "cancelled"));
}

#[test]
fn a_paused_job_is_claimed_by_nobody() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let app = TestApp::on(queue.clone(), target.clone(), |config| config.queues = vec!["idle".to_owned()]);
    let gate = Gate::new("claimed by nobody");
    let job = json!({"kind": "gated_resumable", "args": {"gate": "claimed by nobody"}, "queue": "idle", "run_at": "2999-01-01T00:00:00Z"});
    let id = app.submit(&job);
    assert_eq!(told(&ask(&app, &id, "pause")), is(202, "paused"));
    // Its time comes while it is paused.
    queue.run(&format!("UPDATE jobs SET run_at = now() - interval '1 minute' WHERE id = '{id}'"));
    let other = app.submit(&json!({"kind": "query", "args": {"sql": "SELECT 1"}, "queue": "idle"}));
    assert_eq!(app.ended(&other)["state"], "succeeded");
    assert_eq!(app.job(&id)["state"], "paused");
    assert_eq!(told(&ask(&app, &id, "resume")), is(202, "queued"));
    gate.arrived();
    gate.go(Step::Succeed);
    assert_eq!(app.ended(&id)["state"], "succeeded");
}

#[test]
fn what_cannot_be_paused_says_why() {
    let app = TestApp::start();
    let gate = Gate::new("not resumable");
    let id = app.submit(&json!({"kind": "gated", "args": {"gate": "not resumable"}}));
    gate.arrived();
    for what in ["pause", "resume"] {
        let answer = ask(&app, &id, what);
        assert_eq!(answer.problem(), (409, "kind_not_resumable".to_owned(), vec!["id".to_owned()]));
        assert!(answer.text().contains("diesel_batches"), "{}", answer.text());
        let unknown = uuid::Uuid::now_v7().to_string();
        assert_eq!(ask(&app, &unknown, what).problem().1, "job_not_found");
        assert_eq!(ask(&app, "x", what).problem().1, "invalid_id");
        let answer = app.get(&format!("/v1/jobs/{id}/{what}"));
        assert_eq!((answer.status, answer.header("allow")), (405, Some("POST")));
    }
    gate.go(Step::Succeed);
    assert_eq!(app.ended(&id)["state"], "succeeded");
}

#[test]
fn a_cancel_wins_over_a_pause() {
    let app = TestApp::start();
    let gate = Gate::new("both");
    let id = app.submit(&gated("both", true));
    gate.arrived();
    assert_eq!(told(&ask(&app, &id, "pause")), is(202, "running"));
    assert_eq!(told(&ask(&app, &id, "cancel")), is(202, "running"));
    // It was told of the pause first, and stops for that.
    gate.go(Step::Retry);
    assert_eq!(app.ended(&id)["state"], "cancelled");
    history::check(&app.queue, &[id]);
    // One that is paused ends at once.
    let gate = Gate::new("paused first");
    let id = app.submit(&gated("paused first", false));
    gate.arrived();
    ask(&app, &id, "pause");
    eventually("it is paused", || app.job(&id)["state"] == "paused");
    assert_eq!(told(&ask(&app, &id, "cancel")), is(202, "cancelled"));
}

#[test]
fn a_pause_that_is_withdrawn_does_not_come() {
    let app = TestApp::start();
    let gate = Gate::new("withdrawn");
    let id = app.submit(&gated("withdrawn", true));
    gate.arrived();
    assert_eq!(told(&ask(&app, &id, "pause")), is(202, "running"));
    assert_eq!(told(&ask(&app, &id, "pause")), is(200, "running"));
    assert_eq!(told(&ask(&app, &id, "resume")), is(202, "running"));
    assert_eq!(told(&ask(&app, &id, "resume")), is(200, "running"));
    // The attempt was told, and stops for it: the next one begins without anybody's doing.
    gate.go(Step::Retry);
    assert_eq!(gate.arrived(), 1);
    gate.go(Step::Succeed);
    assert_eq!(app.ended(&id)["state"], "succeeded");
    history::check(&app.queue, &[id]);
}

#[test]
fn what_ends_meanwhile_has_ended() {
    let app = TestApp::start();
    for (step, state) in [(Step::Succeed, "succeeded"), (Step::Fail, "failed")] {
        let gate = Gate::new(state);
        let id = app.submit(&gated(state, true));
        gate.arrived();
        assert_eq!(told(&ask(&app, &id, "pause")).0, 202);
        gate.go(step);
        assert_eq!(app.ended(&id)["state"], state);
    }
}

#[test]
fn what_would_wait_for_a_retry_is_paused_instead() {
    let app = TestApp::start();
    let gate = Gate::new("panics");
    let id = app.submit(&gated("panics", true));
    gate.arrived();
    ask(&app, &id, "pause");
    // A panic is no answer to a pause: the attempt is charged, and its error kept.
    gate.go(Step::Panic);
    eventually("it is paused", || app.job(&id)["state"] == "paused");
    let job = app.job(&id);
    assert_eq!((&job["attempt"], &job["error"]["code"]), (&json!(1), &json!("panic")), "{job}");
    assert_eq!(told(&ask(&app, &id, "resume")), is(202, "queued"));
    assert_eq!(gate.arrived(), 2);
    gate.go(Step::Succeed);
    assert_eq!(app.ended(&id)["state"], "succeeded");
    history::check(&app.queue, &[id]);
}

#[test]
fn another_process_is_told_without_notify() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let runs = TestApp::on(queue.clone(), target.clone(), |config| config.notify = false);
    let gate = Gate::new("elsewhere");
    let id = runs.submit(&gated("elsewhere", false));
    gate.arrived();
    let asks = TestApp::on(queue, target, |config| {
        config.notify = false;
        config.queues = vec!["other".to_owned()];
    });
    assert_eq!(told(&ask(&asks, &id, "pause")), is(202, "running"));
    eventually("it is paused", || asks.job(&id)["state"] == "paused");
    assert_eq!(told(&ask(&asks, &id, "resume")), is(202, "queued"));
    gate.arrived();
    gate.go(Step::Succeed);
    assert_eq!(asks.ended(&id)["state"], "succeeded");
}

#[test]
fn a_pause_between_claim_and_dispatch_starts_nothing() {
    let app = TestApp::start();
    let name = app.target.name().to_owned();
    app.target.run("CREATE TABLE public.effects (job text); GRANT ALL ON public.effects TO PUBLIC");
    app.queue.run(&format!("ALTER DATABASE {name} WITH CONNECTION LIMIT 0"));
    app.queue.run(&format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"));
    let id = app.submit(&json!({"kind": "diesel_batches", "args": {}}));
    eventually("it is claimed", || app.job(&id)["state"] == "running");
    assert_eq!(told(&ask(&app, &id, "pause")), is(202, "running"));
    app.queue.run(&format!("ALTER DATABASE {name} WITH CONNECTION LIMIT -1"));
    eventually("it is paused", || app.job(&id)["state"] == "paused");
    assert_eq!(app.target.count("SELECT count(*) FROM public.effects"), 0);
    assert_eq!(told(&ask(&app, &id, "resume")), is(202, "queued"));
    assert_eq!(app.ended(&id)["state"], "succeeded");
    assert_eq!(app.target.count("SELECT count(*) FROM public.effects"), 3);
}
