//! P3 and P4: one owner at a time, and what becomes of jobs whose owner is gone.

mod further;

use std::time::Duration;

use diesel::PgConnection;
use nix::sys::signal::Signal;
use serde_json::json;
use slowlane::queue::fleet::orphans::{self, Orphan};
use slowlane::queue::fleet::workers::Sighted;
use slowlane::queue::fleet::workers::{self, Identity};
use slowlane::queue::lifecycle::claim::{self, ClaimedJob, Noted, Positions, Scope};
use slowlane::queue::lifecycle::end::Interruption;
use slowlane::queue::lifecycle::end::{Became, Ending, Finished, FinishedResult};
use slowlane::queue::lifecycle::finish::{self};
use slowlane::queue::lifecycle::interruptions::interrupted;
use slowlane::queue::record::progress;
use slowlane::queue::{JobError, JobState, RawJson};
use slowlane::results::store;
use slowlane::work::progress::{Progress, Report};
use uuid::Uuid;

use crate::support::app::TestApp;
use crate::support::child::Server;
use crate::support::eventually;
use crate::support::kinds::{Gate, Step};
use crate::support::postgres::{Database, Postgres};

/// Enters a process among the living.
fn worker(connection: &mut PgConnection) -> Scope {
    let worker_id = Uuid::now_v7();
    let identity = Identity { id: worker_id, hostname: "test".into(), threads: 1, ..Identity::default() };
    workers::register(connection, &identity).unwrap();
    let kinds = vec!["query".to_owned(), "gated_once".to_owned()];
    Scope { worker_id, kinds, targets: vec!["default".into()], queues: vec!["default".into()] }
}

/// Puts queued jobs into the queue.
pub fn insert(database: &Database, jobs: u32) {
    database.run(&format!(
        "INSERT INTO jobs (id, kind, queue, target, priority, state, args, labels, created_at, run_at, queued_xid, timeout_ms, max_attempts, result_ttl_ms)
         SELECT (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint), 12, '0') || '70008000' || lpad(to_hex(n), 12, '0'))::uuid,
                'query', 'default', 'default', 5, 'queued', '{{}}', '{{}}', now(), now(), pg_current_xact_id(), 60000, 3, 60000
           FROM generate_series((SELECT count(*) FROM jobs) + 1, (SELECT count(*) FROM jobs) + {jobs}) n"
    ));
}

fn claim_one(connection: &mut PgConnection, scope: &Scope) -> Option<ClaimedJob> {
    claim::claim(connection, scope, "default", &mut Positions::default(), 1).unwrap().pop()
}

/// A process as somebody sees it who finds it dead.
fn dead(connection: &mut PgConnection, worker: Uuid) -> Vec<Sighted> {
    workers::beats(connection).unwrap().into_iter().filter(|sighted| sighted.id == worker).collect()
}

fn orphans(connection: &mut PgConnection, dead: &[Sighted]) -> Vec<Orphan> {
    let kinds = ["query".to_owned(), "gated_once".to_owned()];
    orphans::orphans(connection, &kinds, &["default".to_owned()], dead, 10).unwrap()
}

/// Rescues what a process left that is dead, or on no list; how many jobs.
fn rescue(connection: &mut PgConnection, worker: Uuid, repeatable: bool) -> usize {
    let dead = dead(connection, worker);
    let rescued = orphans(connection, &dead).into_iter().filter(|orphan| {
        assert!(workers::bury(connection, orphan.lease.worker_id, orphan.beat).unwrap());
        let ending = orphans::ending_of(orphan, repeatable);
        orphans::rescue(connection, orphan, ending).unwrap().is_some()
    });
    rescued.count()
}

/// An attempt that its worker hands back in order.
fn hand_back(connection: &mut PgConnection, scope: &Scope) -> Option<Became> {
    let job = claim_one(connection, scope).expect("it can't be claimed");
    let ending = interrupted(Interruption::HandedBack, true, "its worker shut down");
    finish::end(connection, &[(job.lease, ending)]).unwrap().remove(&job.lease.job_id)
}

/// An attempt whose worker dies, after it has done something.
fn lose(connection: &mut PgConnection, work: impl FnOnce(&mut PgConnection, &ClaimedJob)) {
    let scope = worker(connection);
    let job = claim_one(connection, &scope).expect("it can't be claimed");
    work(connection, &job);
    assert_eq!(rescue(connection, scope.worker_id, true), 1);
}

fn error() -> JobError {
    JobError::new("x", "x")
}

fn succeeded() -> Ending {
    let result = FinishedResult { rows: 1, bytes: 1, truncated: false, manifest: RawJson::of("m").unwrap() };
    Ending::from(Finished { result: Some(result), ..Finished::plain(JobState::Succeeded) })
}

#[test]
fn a_worker_that_lost_its_lease_changes_nothing() {
    let queue = Postgres::shared().queue();
    let mut connection = queue.service();
    insert(&queue, 1);
    let stale = worker(&mut connection);
    let old = claim_one(&mut connection, &stale).unwrap();
    assert!(store::write_part(&mut connection, &old.lease, 0, b"old").unwrap());
    let seen = dead(&mut connection, stale.worker_id)[0];
    // Buried, it can't even end what is still its own.
    assert!(workers::bury(&mut connection, stale.worker_id, Some(seen.beat)).unwrap());
    assert!(finish::end(&mut connection, &[(old.lease, succeeded())]).unwrap().is_empty());
    assert_eq!(claim::note_backend(&mut connection, &old.lease, 1, chrono::Utc::now()).unwrap(), Noted::LeaseLost);
    assert_eq!(rescue(&mut connection, stale.worker_id, true), 1);
    // A process that was declared dead gets nothing, and learns it at its next beat.
    assert!(claim_one(&mut connection, &stale).is_none());
    assert!(!workers::beat(&mut connection, stale.worker_id, None, false).unwrap());
    let fresh = worker(&mut connection);
    let new = claim_one(&mut connection, &fresh).unwrap();
    assert_eq!((new.attempt, new.lease.number), (1, old.lease.number + 1));
    assert_eq!(queue.count("SELECT interruptions FROM jobs"), 1);
    let before = queue.text("SELECT jobs::text FROM jobs");
    let endings = [
        succeeded(),
        Ending::Retry { delay: Duration::from_millis(1), error: error() },
        Ending::Snooze { delay: Duration::from_millis(1), error: None },
        interrupted(Interruption::HandedBack, true, "x"),
    ];
    for ending in endings {
        assert!(finish::end(&mut connection, &[(old.lease, ending)]).unwrap().is_empty());
    }
    assert!(!store::write_part(&mut connection, &old.lease, 1, b"late").unwrap());
    assert_eq!(claim::note_backend(&mut connection, &old.lease, 1, chrono::Utc::now()).unwrap(), Noted::LeaseLost);
    let mut said = Progress::default();
    said.report(Report::phase("p"), false);
    progress::write(&mut connection, &[(old.lease, said.now().unwrap())]).unwrap();
    assert_eq!(queue.text("SELECT jobs::text FROM jobs"), before);
    assert_eq!(queue.count("SELECT (SELECT count(*) FROM finished_jobs) + (SELECT count(*) FROM results) + (SELECT count(*) FROM job_progress)"), 0);
    assert_eq!(queue.count("SELECT count(*) FROM all_attempts WHERE outcome IS NOT NULL"), 1);
    // The owner ends it, and only its own parts can be named by the result.
    assert_eq!(finish::end(&mut connection, &[(new.lease, succeeded())]).unwrap().len(), 1);
    assert_eq!(queue.count("SELECT lease FROM results"), new.lease.number);
}

#[test]
fn a_worker_that_came_back_in_time_keeps_its_jobs() {
    let queue = Postgres::shared().queue();
    let mut connection = queue.service();
    insert(&queue, 1);
    let alive = worker(&mut connection);
    claim_one(&mut connection, &alive).unwrap();
    let seen = dead(&mut connection, alive.worker_id);
    let found = orphans(&mut connection, &seen);
    assert_eq!(found.len(), 1);
    // It beats in the same moment as the last time, by a clock that was set back.
    assert!(workers::beat(&mut connection, alive.worker_id, None, false).unwrap());
    queue.run("UPDATE workers SET beat_at = started_at");
    assert!(!workers::bury(&mut connection, alive.worker_id, found[0].beat).unwrap());
    let ending = orphans::ending_of(&found[0], true);
    assert!(orphans::rescue(&mut connection, &found[0], ending).unwrap().is_none());
    assert_eq!(queue.text("SELECT state FROM jobs"), "running");
    // What was seen before says nothing any more.
    assert!(orphans(&mut connection, &seen).is_empty());
}

#[test]
fn the_third_worker_in_a_row_that_dies_is_poison_and_one_is_too_many_for_some() {
    let queue = Postgres::shared().queue();
    let mut connection = queue.service();
    insert(&queue, 2);
    for round in 1..=3 {
        lose(&mut connection, |_, job| assert_eq!(job.attempt, 1, "interruptions are not charged"));
        assert_eq!(queue.count("SELECT count(*) FROM finished_jobs"), i64::from(round == 3));
    }
    assert_eq!(
        queue.text("SELECT state || ' ' || (error->>'code') || ' ' || interruptions FROM finished_jobs"),
        "failed poison 3"
    );
    let scope = worker(&mut connection);
    claim_one(&mut connection, &scope).unwrap();
    assert_eq!(rescue(&mut connection, scope.worker_id, false), 1);
    assert_eq!(queue.count("SELECT count(*) FROM finished_jobs WHERE error->>'code' = 'outcome_unknown'"), 1);
    assert_eq!(queue.count("SELECT count(*) FROM workers"), 0);
}

#[test]
fn shutdowns_are_not_the_jobs_fault_up_to_a_bound() {
    let queue = Postgres::shared().queue();
    let mut connection = queue.service();
    insert(&queue, 2);
    let scope = worker(&mut connection);
    for _ in 0..19 {
        assert_eq!(hand_back(&mut connection, &scope), Some(Became::AsSaid));
    }
    let job = claim_one(&mut connection, &scope).unwrap();
    assert_eq!(finish::end(&mut connection, &[(job.lease, succeeded())]).unwrap().len(), 1);
    assert_eq!(
        queue.text("SELECT state || ' ' || attempt || ' ' || interruptions FROM finished_jobs"),
        "succeeded 1 19"
    );
    for _ in 0..19 {
        assert_eq!(hand_back(&mut connection, &scope), Some(Became::AsSaid));
    }
    assert_eq!(hand_back(&mut connection, &scope), Some(Became::Poison));
    let poison =
        "SELECT state || ' ' || (error->>'code') || ' ' || interruptions FROM finished_jobs WHERE state = 'failed'";
    assert_eq!(queue.text(poison), "failed poison 20");
    assert!(
        queue.text("SELECT error->>'message' FROM finished_jobs WHERE state = 'failed'").contains("20 times in a row")
    );
}

#[test]
fn workers_that_die_are_counted_in_a_row() {
    let queue = Postgres::shared().queue();
    let mut connection = queue.service();
    insert(&queue, 1);
    let waits = |queue: &Database| assert_eq!(queue.count("SELECT count(*) FROM finished_jobs"), 0);
    let scope = worker(&mut connection);
    let ends = |connection: &mut PgConnection, ending: Ending| {
        let job = claim_one(connection, &scope).unwrap();
        assert_eq!(finish::end(connection, &[(job.lease, ending)]).unwrap().len(), 1);
        queue.run("UPDATE jobs SET state = 'queued', queued_xid = pg_current_xact_id() WHERE state <> 'queued'");
    };
    // An attempt that ended by itself, with an error or as it wished, lets them begin anew.
    for ending in [
        Ending::Retry { delay: Duration::from_millis(1), error: error() },
        Ending::Snooze { delay: Duration::from_millis(1), error: None },
    ] {
        lose(&mut connection, |_, _| {});
        lose(&mut connection, |_, _| {});
        waits(&queue);
        ends(&mut connection, ending);
    }
    // A target that is away, a pause and a shutdown say nothing; nor does a death during a shutdown count.
    lose(&mut connection, |_, _| {});
    lose(&mut connection, |_, _| {});
    ends(&mut connection, Ending::Snooze { delay: Duration::from_millis(1), error: Some(error()) });
    ends(&mut connection, Ending::Pause);
    ends(&mut connection, interrupted(Interruption::HandedBack, true, "x"));
    lose(&mut connection, |connection, job| {
        assert!(workers::beat(connection, job.lease.worker_id, None, true).unwrap());
    });
    waits(&queue);
    lose(&mut connection, |_, _| {});
    assert_eq!(queue.text("SELECT error->>'message' FROM finished_jobs"), "3 workers in a row died while they ran it");
}

#[test]
fn deployments_in_a_row_are_not_the_jobs_fault() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let api = Server::api(&queue, &[]);
    let id = api.client.submit(&json!({"kind": "query", "args": {"sql": "SELECT pg_sleep(600)"}}));
    for round in 1..=4 {
        let mut worker = Server::worker(&queue, &target, &["--shutdown-grace", "0s"]);
        eventually("it sleeps", || !sleeping(&target).is_empty());
        worker.signal(Signal::SIGTERM);
        assert!(worker.wait().success(), "{}", worker.log());
        let row = format!("SELECT state || ' ' || interruptions FROM jobs WHERE id = '{id}'");
        assert_eq!(queue.text(&row), format!("queued {round}"));
    }
    assert_eq!(api.client.post(&format!("/v1/jobs/{id}/cancel"), &json!({})).status, 202);
    assert_eq!(api.client.ended(&id)["state"], "cancelled");
}

#[test]
fn a_worker_that_is_killed_while_it_shuts_down_is_not_the_jobs_fault() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let api = Server::api(&queue, &[]);
    let mut impatient = Server::worker(&queue, &target, &["--shutdown-grace", "10m"]);
    let id = api.client.submit(&json!({"kind": "query", "args": {"sql": "SELECT pg_sleep(600)"}}));
    eventually("it sleeps", || !sleeping(&target).is_empty());
    impatient.signal(Signal::SIGTERM);
    eventually("it says that it shuts down", || {
        queue.count("SELECT count(*) FROM workers WHERE stopping_at IS NOT NULL") == 1
    });
    impatient.signal(Signal::SIGKILL);
    impatient.wait();
    let heir = Server::worker(&queue, &target, &[]);
    let row = format!("SELECT state || ' ' || interruptions || ' ' || lost_in_a_row FROM jobs WHERE id = '{id}'");
    eventually("it runs again", || queue.text(&row) == "running 1 0");
    let error = queue.text(&format!("SELECT error->>'message' FROM attempts WHERE job_id = '{id}'"));
    assert_eq!(error, "its worker was ended while it shut down");
    drop(heir);
}

#[test]
fn what_an_orderly_end_could_not_write_is_not_the_jobs_fault() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let api = Server::api(&queue, &[]);
    let id = api.client.submit(&json!({"kind": "query", "args": {"sql": "SELECT pg_sleep(600)"}}));
    let mut worker = Server::worker(&queue, &target, &["--shutdown-grace", "0s"]);
    eventually("it sleeps", || !sleeping(&target).is_empty());
    let mut holder = queue.session();
    holder.execute_batch(&format!("BEGIN; SELECT FROM slowlane.jobs WHERE id = '{id}' FOR UPDATE")).unwrap();
    worker.signal(Signal::SIGTERM);
    assert!(worker.wait().success(), "{}", worker.log());
    assert_eq!(queue.count("SELECT count(*) FROM workers"), 0, "it has signed off");
    drop(holder);
    let heir = Server::worker(&queue, &target, &[]);
    let row = format!("SELECT state || ' ' || interruptions || ' ' || lost_in_a_row FROM jobs WHERE id = '{id}'");
    eventually("it runs again", || queue.text(&row) == "running 1 0");
    drop(heir);
}

/// As where the first look takes only some, a session is still ending or a target is away.
#[test]
fn a_worker_that_was_shutting_down_is_remembered_as_such_when_it_is_buried() {
    let queue = Postgres::shared().queue();
    let mut connection = queue.service();
    for says_so in [true, false] {
        insert(&queue, 2);
        let scope = worker(&mut connection);
        for _ in 0..2 {
            claim_one(&mut connection, &scope).unwrap();
        }
        assert!(workers::beat(&mut connection, scope.worker_id, None, says_so).unwrap());
        let seen = dead(&mut connection, scope.worker_id);
        let found = orphans(&mut connection, &seen);
        assert!(workers::bury(&mut connection, scope.worker_id, found[0].beat).unwrap());
        let later = orphans(&mut connection, &[]);
        assert!(later.len() == 2 && later.iter().all(|orphan| orphan.stopping == says_so), "{later:?}");
        workers::forget_the_dead(&mut connection, &[]).unwrap();
        queue.run("UPDATE stopped_workers SET stopped_at = stopped_at - interval '2 hours'");
        workers::forget_the_dead(&mut connection, &[]).unwrap();
        assert_eq!(queue.count("SELECT count(*) FROM stopped_workers"), i64::from(says_so), "it holds something");
        assert_eq!(rescue(&mut connection, scope.worker_id, true), 2);
        assert_eq!(queue.count("SELECT sum(lost_in_a_row)::bigint FROM jobs"), if says_so { 0 } else { 2 });
        workers::forget_the_dead(&mut connection, &[]).unwrap();
        assert_eq!(queue.count("SELECT count(*) FROM stopped_workers"), 0);
        queue.run("DELETE FROM jobs");
    }
}

#[test]
fn a_job_that_was_to_be_cancelled_does_not_come_back() {
    let queue = Postgres::shared().queue();
    let mut connection = queue.service();
    insert(&queue, 3);
    let scope = worker(&mut connection);
    let endings = [
        Ending::Retry { delay: Duration::from_millis(1000), error: error() },
        Ending::Snooze { delay: Duration::from_millis(1000), error: None },
        interrupted(Interruption::HandedBack, true, "x"),
    ];
    for ending in endings {
        let job = claim_one(&mut connection, &scope).unwrap();
        slowlane::queue::lifecycle::cancel::request(&mut connection, job.lease.job_id).unwrap();
        assert_eq!(finish::end(&mut connection, &[(job.lease, ending)]).unwrap().len(), 1);
    }
    assert_eq!(queue.text("SELECT string_agg(state, ' ') FROM finished_jobs"), "cancelled cancelled cancelled");
    assert_eq!(queue.count("SELECT count(*) FROM jobs"), 0);
}

#[test]
fn a_claim_whose_answer_was_lost_is_put_back_by_its_owner() {
    let app = TestApp::start();
    app.queue.run(
        "INSERT INTO jobs (id, kind, queue, target, priority, state, args, labels, created_at, run_at, lease, attempt, worker_id, started_at, deadline_at, timeout_ms, max_attempts, result_ttl_ms)
         SELECT (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint), 12, '0') || '70008000000000000001')::uuid, 'query', 'default', 'default', 5, 'running',
                '{\"sql\": \"SELECT 1\"}', '{}', now(), now(), 1, 1, (SELECT id FROM workers), now() - interval '1 minute', now() + interval '1 hour', 60000, 3, 60000",
    );
    let id = app.queue.text("SELECT id FROM jobs");
    let job = app.ended(&id);
    assert_eq!((&job["state"], &job["attempt"], &job["interruptions"]), (&json!("succeeded"), &json!(1), &json!(1)));
}

#[test]
fn a_kind_that_may_not_be_repeated_isnt() {
    let mut app = TestApp::start();
    let gate = Gate::new("only_once");
    let once = json!({"kind": "gated_once", "args": {"gate": "only_once"}});
    let panics = app.submit(&once);
    gate.arrived();
    gate.go(Step::Panic);
    let job = app.ended(&panics);
    assert_eq!(
        (&job["state"], &job["error"]["code"], &job["attempt"]),
        (&json!("failed"), &json!("outcome_unknown"), &json!(1))
    );
    // What the kind itself says is worth another try has another one.
    let retried = app.submit(&once);
    gate.arrived();
    gate.go(Step::Retry);
    eventually("it waits", || app.job(&retried)["state"] == "scheduled");
    let stopped = app.submit(&once);
    gate.arrived();
    app.ask_to_stop();
    app.join();
    assert_eq!(
        app.queue.text(&format!("SELECT error->>'code' FROM finished_jobs WHERE id = '{stopped}'")),
        "outcome_unknown"
    );
}

fn sleeping(target: &Database) -> String {
    target.text("SELECT string_agg(pid::text, ',') FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()")
}

/// Its session is known by its process, too.
const DISGUISED: &str = "SELECT set_config('application_name', 'somebody else', false), pg_sleep(600)";

#[test]
fn a_killed_workers_job_runs_again_after_its_old_session_is_ended() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let mut first = Server::serve(&queue, &target, &[]);
    let id = first.client.submit(&json!({"kind": "query", "args": {"sql": DISGUISED}}));
    eventually("it sleeps", || !sleeping(&target).is_empty());
    let old = sleeping(&target);
    first.signal(Signal::SIGKILL);
    first.wait();
    let second = Server::serve(&queue, &target, &[]);
    eventually("it runs again", || second.client.job(&id)["interruptions"] == 1 && !sleeping(&target).is_empty());
    let new = sleeping(&target);
    assert!(new != old && !new.contains(','), "old {old}, new {new}");
    let job = second.client.job(&id);
    assert_eq!((&job["state"], &job["attempt"]), (&json!("running"), &json!(1)));
    assert_eq!(second.client.post(&format!("/v1/jobs/{id}/cancel"), &json!({})).status, 202);
    assert_eq!(second.client.ended(&id)["state"], "cancelled");
    assert!(second.log().contains("took a job from a dead worker"));
}

#[test]
fn a_stopping_server_lets_work_end_within_its_grace() {
    let mut app = TestApp::with(|config| config.shutdown_grace = crate::support::PATIENCE);
    let gate = Gate::new("grace");
    let id = app.submit(&json!({"kind": "gated", "args": {"gate": "grace"}}));
    gate.arrived();
    let waits = app.submit(&json!({"kind": "gated", "args": {"gate": "elsewhere"}, "run_at": "2999-01-01T00:00:00Z"}));
    app.ask_to_stop();
    eventually("it takes nothing more", || app.get("/readyz").status == 503);
    let answer = app.post("/v1/jobs", &json!({"kind": "query", "args": {"sql": "SELECT 1"}}));
    assert_eq!(answer.problem().1, "shutting_down");
    // Who polls is still answered.
    assert_eq!(app.job(&id)["state"], "running");
    gate.go(Step::Succeed);
    app.join();
    assert_eq!(app.queue.text(&format!("SELECT state FROM finished_jobs WHERE id = '{id}'")), "succeeded");
    assert_eq!(app.queue.text(&format!("SELECT state FROM jobs WHERE id = '{waits}'")), "scheduled");
    assert_eq!(app.queue.count("SELECT count(*) FROM workers"), 0);
}

#[test]
fn a_second_signal_hands_running_work_back_at_once() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let mut server = Server::serve(&queue, &target, &["--shutdown-grace", "10m"]);
    let id = server.client.submit(&json!({"kind": "query", "args": {"sql": "SELECT pg_sleep(600)"}}));
    eventually("it sleeps", || !sleeping(&target).is_empty());
    server.signal(Signal::SIGTERM);
    eventually("it takes nothing more", || server.client.get("/readyz").status == 503);
    server.signal(Signal::SIGINT);
    assert!(server.wait().success(), "{}", server.log());
    assert_eq!(sleeping(&target), "");
    let row = format!(
        "SELECT state || ' ' || attempt || ' ' || interruptions || ' ' || (error->>'code') FROM jobs WHERE id = '{id}'"
    );
    assert_eq!(queue.text(&row), "queued 0 1 interrupted");
}

#[test]
fn a_closed_terminal_stops_a_server_in_order() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let mut server = Server::serve(&queue, &target, &[]);
    let id = server.client.submit(&json!({"kind": "query", "args": {"sql": "SELECT pg_sleep(1)"}}));
    eventually("it sleeps", || !sleeping(&target).is_empty());
    server.signal(Signal::SIGHUP);
    server.signal(Signal::SIGHUP);
    assert!(server.wait().success(), "{}", server.log());
    // However often it is said, it hurries nobody.
    assert_eq!(queue.text(&format!("SELECT state FROM finished_jobs WHERE id = '{id}'")), "succeeded");
}
