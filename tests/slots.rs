//! Servers that have fewer connections to give than a process may need.

use serde_json::{Value, json};
use slowlane::pq::Session;

use crate::support::child::{Server, serving};
use crate::support::eventually;
use crate::support::postgres::{Database, Postgres};

/// A process with one thread, on a target whose login may have `limit` connections.
struct Scene {
    queue: Database,
    target: Database,
    role: String,
    server: Server,
}

impl Scene {
    fn with(limit: i32) -> Scene {
        let postgres = Postgres::shared();
        let (queue, work) = (postgres.queue(), postgres.work());
        let role = format!("few_{}", work.name());
        work.run(&format!(
            "CREATE ROLE {role} LOGIN PASSWORD 'of-few' CONNECTION LIMIT {limit};
             CREATE TABLE public.t (n int); INSERT INTO public.t VALUES (0); GRANT ALL ON public.t TO {role}"
        ));
        let dsn = work.dsn.clone().with("user", &role).with("password", "of-few");
        let target = Database { dsn, superuser: work.superuser };
        let mut command = serving(&queue, &["--listen", "127.0.0.1:0", "--workers", "1"]);
        command.env("TARGET_URL", target.dsn.to_url().expose());
        let server = Server::spawn(command);
        Scene { queue, target, role, server }
    }

    fn job(&self, id: &str) -> Value {
        self.server.client.get(&format!("/v1/jobs/{id}")).json()
    }

    fn is_locked(&self) -> bool {
        let locks = "SELECT count(*) FROM pg_locks WHERE relation = 'public.t'::regclass
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        self.target.count(locks) > 0
    }

    fn now_with_more(&self, id: &str) -> Value {
        self.target.run(&format!("ALTER ROLE {} CONNECTION LIMIT -1", self.role));
        self.queue.run("UPDATE jobs SET run_at = now() WHERE state = 'scheduled'");
        self.server.client.ended(id)
    }
}

fn counting(first: &str) -> Value {
    json!({"kind": "execute", "args": {"statements": [{"sql": "UPDATE public.t SET n = n + 1"}, {"sql": first}]}})
}

#[test]
fn work_that_could_not_be_committed_takes_no_lock_and_the_start_says_so() {
    // One to end sessions, and one that an execute would work on without ever being able to commit.
    let scene = Scene::with(2);
    let log = scene.server.log();
    assert!(log.contains("this process may open 6 connections") && log.contains(&scene.role), "{log}");
    let id = scene.server.client.submit(&counting("SELECT 1"));
    eventually("it says what is missing", || {
        assert!(!scene.is_locked());
        scene.job(&id)["error"]["code"] == "target_unavailable"
    });
    let job = scene.now_with_more(&id);
    assert_eq!((&job["state"], scene.target.count("SELECT n FROM public.t")), (&json!("succeeded"), 1), "{job}");
}

#[test]
fn work_whose_last_connection_goes_gives_its_locks_back() {
    let scene = Scene::with(3);
    let mut gate = Session::connect(&scene.target.superuser).unwrap();
    gate.query("SELECT pg_advisory_lock(7)", &[]).unwrap();
    let id = scene.server.client.submit(&counting("SELECT pg_advisory_xact_lock(7)"));
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
        AND application_name LIKE 'slowlane:%' AND wait_event = 'advisory'";
    eventually("it holds its locks", || scene.target.count(waits) == 1);
    // What it would be committed with is ended, and somebody else takes the place.
    let flusher = "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'slowlane flush'";
    assert_eq!(scene.target.count(flusher), 1);
    let mut taken = None;
    eventually("the place is taken", || {
        taken = Session::connect(&scene.target.dsn).ok();
        taken.is_some()
    });
    gate.query("SELECT pg_advisory_unlock(7)", &[]).unwrap();
    eventually("it is tried again later", || scene.job(&id)["state"] == "scheduled");
    assert!(!scene.is_locked());
    let error = scene.job(&id)["error"].clone();
    assert!(error["message"].as_str().unwrap().contains("no connection for the flush"), "{error}");
    let job = scene.now_with_more(&id);
    assert_eq!((&job["state"], scene.target.count("SELECT n FROM public.t")), (&json!("succeeded"), 1), "{job}");
}
