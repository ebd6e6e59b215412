//! P1: a 202 means committed, and no accepted job is lost.

use std::sync::Arc;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use slowlane::cluster::StopMode;
use slowlane::db::pool::{Manager, Purpose};
use slowlane::queue::fleet::signals::Signals;
use slowlane::queue::intake::request::{AcceptError, Accepted, Principal, Submission};
use slowlane::queue::intake::writer::Writer;
use slowlane::queue::{JobSpec, RawJson};
use uuid::Uuid;

use crate::support::app::TestApp;
use crate::support::child::Server;
use crate::support::eventually;
use crate::support::postgres::{Database, Postgres};
use crate::support::proxy::{Mode, Proxy};

fn later() -> Value {
    json!({"kind": "query", "args": {"sql": "SELECT 1"}, "run_at": "2999-01-01T00:00:00Z"})
}

#[test]
fn a_killed_server_loses_no_accepted_job() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let mut server = Server::serve(&queue, &target, &[]);
    let job = json!({"kind": "query", "args": {"sql": "SELECT count(*) FROM generate_series(1, 1000)"}});
    let client = server.client.clone();
    let ids: Vec<String> = std::thread::scope(|scope| {
        let posts = || (0..25).map(|_| client.submit(&job)).collect::<Vec<_>>();
        let threads: Vec<_> = (0..20).map(|_| scope.spawn(posts)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    server.signal(Signal::SIGKILL);
    server.wait();
    assert_eq!(ids.len(), 500);
    let known = "SELECT count(*) FROM (SELECT id FROM jobs UNION ALL SELECT id FROM finished_jobs) j";
    assert_eq!(queue.count(known), 500);
    let restarted = Server::serve(&queue, &target, &[]);
    for id in &ids {
        assert_eq!(restarted.client.ended(id)["state"], "succeeded");
    }
    assert_eq!(queue.count("SELECT count(DISTINCT id) FROM finished_jobs"), 500);
}

#[test]
fn commits_are_durable_whatever_the_servers_default() {
    let queue = Postgres::shared().queue();
    assert_eq!(queue.text("SHOW synchronous_commit"), "off");
    let in_service = |queue: &Database| {
        use diesel::prelude::*;
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = diesel::sql_types::Text)]
            value: String,
        }
        let row = diesel::sql_query("SELECT current_setting('synchronous_commit') AS value");
        row.get_result::<Row>(&mut queue.service()).unwrap().value
    };
    assert_eq!(in_service(&queue), "on");
    // A stronger default stays.
    queue.run(&format!("ALTER DATABASE {} SET synchronous_commit = remote_apply", queue.name()));
    assert_eq!(in_service(&queue), "remote_apply");
}

#[test]
fn a_crash_of_postgres_loses_no_accepted_job() {
    let postgres = Postgres::start();
    let app = TestApp::on(postgres.queue(), postgres.work(), |_| {});
    let sleeping =
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()";
    let runs = app.submit(&json!({"kind": "query", "args": {"sql": "SELECT pg_sleep(600)"}}));
    eventually("it sleeps", || app.target.count(sleeping) == 1);
    let mut ids: Vec<String> = (0..30).map(|_| app.submit(&later())).collect();
    ids.push(runs.clone());
    {
        let mut cluster = postgres.cluster.lock().unwrap();
        cluster.stop(StopMode::Immediate);
        assert_eq!(app.get("/healthz").status, 200);
        assert_eq!(app.post("/v1/jobs", &later()).problem().0, 503);
        cluster.start_server().unwrap();
    }
    eventually("the server comes back by itself", || app.get("/readyz").status == 200);
    for id in &ids {
        eventually("the job is found", || app.get(&format!("/v1/jobs/{id}")).status == 200);
    }
    // What ran is tried again, now that its session is gone.
    app.queue.run("UPDATE jobs SET run_at = now() WHERE state = 'scheduled' AND run_at < now() + interval '1 hour'");
    eventually("it sleeps again", || app.target.count(sleeping) == 1);
    assert_eq!(app.post(&format!("/v1/jobs/{runs}/cancel"), &json!({})).status, 202);
    assert_eq!(app.ended(&runs)["state"], "cancelled");
    assert_eq!(app.query("SELECT 1", &json!([]))["state"], "succeeded");
}

/// A server whose queue is reached through a proxy.
fn behind_a_proxy() -> (TestApp, Proxy) {
    let postgres = Postgres::shared();
    let mut queue = postgres.queue();
    let proxy = Proxy::before(&queue.dsn);
    queue.dsn = proxy.dsn(&queue.dsn);
    (TestApp::on(queue, postgres.work(), |_| {}), proxy)
}

#[test]
fn a_commit_whose_answer_is_lost_is_looked_up() {
    let (app, proxy) = behind_a_proxy();
    app.submit(&later());
    proxy.set(Mode::Mute);
    let client = app.client.clone();
    let post = std::thread::spawn(move || client.post("/v1/jobs", &later()));
    eventually("the row is committed", || app.queue.count("SELECT count(*) FROM jobs") == 2);
    assert!(!post.is_finished(), "answered without having heard from the server");
    proxy.set(Mode::Pass);
    proxy.cut();
    let answer = post.join().unwrap();
    assert_eq!(answer.status, 202, "{}", answer.text());
    let id = answer.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(app.queue.count(&format!("SELECT count(*) FROM jobs WHERE id = '{id}'")), 1);
    assert_eq!(app.queue.count("SELECT count(*) FROM jobs"), 2);
}

#[test]
fn a_commit_that_did_not_happen_is_made_up_for() {
    let app = TestApp::start();
    // The first row that is to be committed takes its session down with it, before the commit.
    app.queue.run(
        "CREATE SEQUENCE once; GRANT USAGE ON SEQUENCE once TO PUBLIC;
         CREATE FUNCTION die_once() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = slowlane AS $$ BEGIN
            IF nextval('once') = 1 THEN PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(10); END IF; RETURN NULL; END $$;
         CREATE CONSTRAINT TRIGGER dies AFTER INSERT ON jobs DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION die_once()",
    );
    let answer = app.post("/v1/jobs", &later());
    assert_eq!(answer.status, 202, "{}", answer.text());
    assert_eq!(app.queue.count("SELECT count(*) FROM jobs"), 1);
    assert_eq!(app.queue.count("SELECT last_value FROM once"), 2);
}

#[test]
fn an_undecided_commit_is_settled_by_its_key() {
    let (app, proxy) = behind_a_proxy();
    // From now on the statement is prepared: one message carries it to its commit.
    assert_eq!(app.post_with("/v1/jobs", &[("idempotency-key", "first")], &later()).status, 202);
    proxy.set(Mode::Mute);
    let client = app.client.clone();
    let post = std::thread::spawn(move || client.post_with("/v1/jobs", &[("idempotency-key", "settles")], &later()));
    eventually("the row is committed", || app.queue.count("SELECT count(*) FROM jobs") == 2);
    proxy.set(Mode::Refuse);
    proxy.cut();
    let answer = post.join().unwrap();
    let (status, code, _) = answer.problem();
    assert_eq!((status, code.as_str()), (503, "outcome_unknown"));
    assert!(answer.header("retry-after").is_some());
    let location = answer.header("location").unwrap().to_owned();
    proxy.set(Mode::Pass);
    eventually("the queue is reached again", || app.get("/readyz").status == 200);
    assert_eq!(app.get(&location).status, 200);
    let again = app.post_with("/v1/jobs", &[("idempotency-key", "settles")], &later());
    assert_eq!((again.status, again.header("idempotency-replayed")), (202, Some("true")));
    assert_eq!(again.header("location"), Some(location.as_str()));
    assert_eq!(app.queue.count("SELECT count(*) FROM jobs"), 2);
}

#[test]
fn a_queue_that_is_gone_is_a_503() {
    let (app, proxy) = behind_a_proxy();
    proxy.set(Mode::Refuse);
    proxy.cut();
    let answer = app.post("/v1/jobs", &later());
    assert_eq!(answer.problem().0, 503, "{}", answer.text());
    assert!(answer.header("retry-after").is_some());
    assert_eq!(app.get("/healthz").status, 200);
    eventually("it says that it isn't ready", || app.get("/readyz").status == 503);
    proxy.set(Mode::Pass);
    eventually("it comes back by itself", || app.get("/readyz").status == 200);
    assert_eq!(app.query("SELECT 1", &json!([]))["state"], "succeeded");
}

#[test]
fn a_socket_that_swallows_everything_holds_no_request_for_ever() {
    let (app, proxy) = behind_a_proxy();
    app.submit(&later());
    proxy.set(Mode::Blackhole);
    let answer = app.post_with("/v1/jobs", &[("idempotency-key", "swallowed")], &later());
    assert_eq!(answer.problem().1, "outcome_unknown");
    assert_eq!(app.get("/healthz").status, 200);
    proxy.cut();
    proxy.set(Mode::Pass);
    eventually("the queue is reached again", || app.get("/readyz").status == 200);
    let again = app.post_with("/v1/jobs", &[("idempotency-key", "swallowed")], &later());
    assert_eq!(again.status, 202, "{}", again.text());
    assert_eq!(app.queue.count("SELECT count(*) FROM jobs"), 2);
}

#[test]
fn work_stops_when_nobody_hears_the_beats_and_goes_on_when_they_arrive() {
    let (app, proxy) = behind_a_proxy();
    let sleeping =
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()";
    // Nothing fences its effects: it must not go on without its lease.
    let id = app.submit(&json!({"kind": "unfenced", "args": {}}));
    eventually("it sleeps", || app.target.count(sleeping) == 1);
    proxy.set(Mode::Blackhole);
    eventually("it is stopped on the server", || app.target.count(sleeping) == 0);
    // Nobody else has been given the job meanwhile: its lease was still held.
    assert_eq!(app.queue.text("SELECT state || ' ' || lease FROM jobs"), "running 1");
    proxy.cut();
    proxy.set(Mode::Pass);
    eventually("it sleeps again", || app.target.count(sleeping) == 1);
    assert_eq!(app.queue.text("SELECT attempt || ' ' || interruptions || ' ' || lease FROM jobs"), "1 1 2");
    // The connections that were cut lie in the pool, and no request is told so.
    for _ in 0..8 {
        assert_eq!(app.job(&id)["state"], "running");
    }
    assert_eq!(app.post(&format!("/v1/jobs/{id}/cancel"), &json!({})).status, 202);
    assert_eq!(app.ended(&id)["state"], "cancelled");
}

fn new_job(id: Uuid) -> Submission {
    Submission {
        principal: Principal::default(),
        id,
        spec: JobSpec {
            timeout_ms: 1000,
            max_attempts: 1,
            result_ttl_ms: 1000,
            ..JobSpec::new("query", RawJson::of(&json!({"sql": "SELECT 1"})).unwrap())
        },
        retry_of: None,
        idempotency: None,
    }
}

#[test]
fn one_bad_row_in_a_group_fails_alone() {
    let queue = Postgres::shared().queue();
    let purpose = Purpose { name: "writer", statement_timeout: crate::support::PATIENCE };
    let writer = Writer::start(Manager::queue(&queue.dsn, &purpose), Arc::<Signals>::default()).unwrap();
    let mut holder = queue.session();
    holder.execute_batch("BEGIN; LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE").unwrap();
    let from_1970 = Uuid::from_u128(0x7000_8000_0000_0000_0001);
    let outcomes = actix_rt::System::new().block_on(async move {
        let accept = |id: Uuid| {
            let writer = writer.clone();
            actix_rt::spawn(async move { writer.accept(new_job(id)).await })
        };
        // The first one holds the writer up, until the others have gathered behind it.
        let mut waiting = vec![accept(Uuid::now_v7())];
        let blocked = queue.clone();
        let wait = move || {
            eventually("the writer is held up", || {
                blocked.count("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = 'slowlane writer' AND datname = current_database()") == 1
            });
        };
        actix_rt::task::spawn_blocking(wait).await.unwrap();
        for n in 0..9 {
            waiting.push(accept(if n == 4 { from_1970 } else { Uuid::now_v7() }));
        }
        actix_rt::task::yield_now().await;
        holder.execute_batch("COMMIT").unwrap();
        let mut outcomes = Vec::new();
        for outcome in waiting {
            outcomes.push(outcome.await.unwrap());
        }
        assert_eq!(queue.count("SELECT count(*) FROM jobs"), 9);
        // Of the nine, at most eight came by one transaction: the group was repeated one by one.
        assert_eq!(queue.count("SELECT count(DISTINCT xmin::text) FROM jobs"), 9);
        outcomes
    });
    for (n, outcome) in outcomes.iter().enumerate() {
        match outcome {
            Ok(Accepted::Created(job)) if n != 5 => assert_ne!(job.id, from_1970),
            Err(AcceptError::ClockDifference) => assert_eq!(n, 5),
            other => panic!("{n}: {other:?}"),
        }
    }
}
