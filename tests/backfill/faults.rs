//! Crashes, cancels and pauses at every point of a batch: each row is changed once, and the counts say so. Real
//! processes, real faults, and locks for barriers.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use slowlane::cluster::StopMode;
use slowlane::pq::Session;

use super::changed;
use crate::support::child::Server;
use crate::support::postgres::{Database, Postgres};
use crate::support::{eventually, history};

const ROWS: i64 = 300;

/// Where the second batch is held up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Point {
    /// Its rows are changed, but for the last.
    Work,
    /// The WAL of its transaction is being flushed.
    Flush,
    /// The transaction is being recorded, and with it the cursor of the first batch is saved.
    Record,
    /// The COMMIT was sent, and a deferred trigger waits in it.
    Commit,
    /// The first batch is committed, and the second hasn't begun.
    Between,
    /// Its COMMIT was answered, it was the last, and the end of the job can't be written yet.
    End,
}

const POINTS: [Point; 6] = [Point::Work, Point::Flush, Point::Record, Point::Commit, Point::Between, Point::End];

struct Scene {
    postgres: Postgres,
    queue: Database,
    target: Database,
    api: Server,
    worker: Server,
}

fn worker(queue: &Database, target: &Database) -> Server {
    Server::worker(queue, target, &["--workers", "2"])
}

impl Scene {
    fn new() -> Scene {
        let postgres = Postgres::start();
        let (queue, target) = (Postgres::shared().queue(), postgres.work());
        target.run(&format!(
            "CREATE TABLE public.rows (id int PRIMARY KEY, n int NOT NULL DEFAULT 0);
             INSERT INTO public.rows (id) SELECT generate_series(1, {ROWS});
             CREATE TABLE public.gate AS SELECT 1000 AS most;
             CREATE FUNCTION public.works() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN IF NEW.id IN (200, 300) THEN PERFORM pg_advisory_xact_lock_shared(1); END IF; RETURN NEW; END $$;
             CREATE FUNCTION public.commits() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN IF NEW.id = 200 THEN PERFORM pg_advisory_xact_lock_shared(2); END IF; RETURN NULL; END $$;
             CREATE TRIGGER works BEFORE UPDATE ON public.rows FOR EACH ROW EXECUTE FUNCTION public.works();
             CREATE CONSTRAINT TRIGGER commits AFTER UPDATE ON public.rows DEFERRABLE INITIALLY DEFERRED
                 FOR EACH ROW EXECUTE FUNCTION public.commits();
             GRANT ALL ON public.rows, public.gate TO PUBLIC"
        ));
        let api = Server::api(&queue, &[]);
        let worker = worker(&queue, &target);
        Scene { postgres, queue, target, api, worker }
    }

    /// Batches of 100 rows, as long as no time was taken for more; a batch may be held up for a minute.
    fn submit(&self) -> String {
        let args = json!({"table": "rows", "set": {"n": "n + 1"}, "batch_rows": 100, "max_rate": 100,
                          "target_batch_ms": 6000, "guards": {"condition": "(SELECT count(*) FROM rows WHERE n > 0) < (SELECT most FROM gate)"}});
        self.api.client.submit(&json!({"kind": "backfill", "args": args, "max_attempts": 5}))
    }

    fn holding(&self, database: &Database, sql: &str) -> Session {
        let mut session = database.session();
        session.execute_batch("SET lock_timeout = '20s'").unwrap();
        session.execute_batch(sql).unwrap();
        session
    }

    fn is_reached(&self, point: Point) -> bool {
        let waits = "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
                      WHERE a.datname = current_database() AND a.application_name <> 'slowlane janitor'
                        AND NOT l.granted AND";
        match point {
            Point::Work => self.target.count(&format!("{waits} locktype = 'advisory' AND objid = 1")) > 0,
            Point::Commit => self.target.count(&format!("{waits} locktype = 'advisory' AND objid = 2")) > 0,
            Point::Record => self.queue.count(&format!("{waits} relation = 'job_checkpoints'::regclass")) > 0,
            Point::End => self.queue.count(&format!("{waits} relation = 'finished_jobs'::regclass")) > 0,
            Point::Between => self.target.count("SELECT count(*) FROM public.rows WHERE n = 1") == 100,
            Point::Flush => {
                let flushing = "SELECT count(*) FROM pg_stat_activity
                                 WHERE application_name = 'slowlane flush' AND wait_event = 'SyncRep' AND datname = current_database()";
                self.target.count(flushing) > 0
            }
        }
    }

    /// A job whose second batch has come to the point, and what holds it there.
    fn held_at(&self, point: Point) -> (String, Barrier) {
        if point == Point::End {
            let end = self.holding(&self.queue, "BEGIN; LOCK TABLE finished_jobs IN SHARE ROW EXCLUSIVE MODE");
            let id = self.submit();
            eventually("the end is reached", || self.is_reached(point));
            return (id, Barrier::Session(end));
        }
        if point == Point::Between {
            self.target.run("UPDATE public.gate SET most = 50");
            let id = self.submit();
            eventually("the first batch is committed", || self.is_reached(point));
            return (id, Barrier::Gate);
        }
        let work = self.holding(&self.target, "SELECT pg_advisory_lock(1)");
        let id = self.submit();
        eventually("the second batch is at work", || self.is_reached(Point::Work));
        let barrier = match point {
            Point::Flush => {
                wait_for_a_standby(&self.target, "nobody");
                Barrier::Standby
            }
            Point::Record => Barrier::Session(
                self.holding(&self.queue, "BEGIN; LOCK TABLE job_checkpoints IN SHARE ROW EXCLUSIVE MODE"),
            ),
            Point::Commit => Barrier::Session(self.holding(&self.target, "SELECT pg_advisory_lock(2)")),
            _ => return (id, Barrier::Session(work)),
        };
        drop(work);
        eventually("the point is reached", || self.is_reached(point));
        (id, barrier)
    }

    /// The job has ended, and every row was changed once. Says how it ended.
    fn check(&self, id: &str, what: &dyn std::fmt::Debug) -> Value {
        let job = ended_within(&self.api, id, Duration::from_secs(120));
        let expected = format!("1: {ROWS}");
        assert_eq!((&job["state"], changed(&self.target)), (&json!("succeeded"), expected), "{what:?}: {job}");
        let output = &job["output"];
        assert_eq!(
            (&output["rows_scanned"], &output["rows_affected"]),
            (&json!(ROWS), &json!(ROWS)),
            "{what:?}: {job}"
        );
        assert!(output["batches"].as_i64() >= Some(3), "{what:?}: {job}");
        assert_eq!(job["statistics"]["rows_affected"], ROWS, "{what:?}: {job}");
        assert_eq!(self.queue.count("SELECT count(*) FROM job_checkpoints"), 0);
        history::check(&self.queue, &[id.to_owned()]);
        job
    }

    fn ask(&self, id: &str, what: &str) -> u16 {
        self.api.client.post(&format!("/v1/jobs/{id}/{what}"), &json!({})).status
    }

    fn state(&self, id: &str) -> String {
        self.queue.text(&format!("SELECT state FROM jobs WHERE id = '{id}'"))
    }
}

enum Barrier {
    Session(Session),
    Standby,
    Gate,
}

impl Barrier {
    fn let_go(self, scene: &Scene) {
        match self {
            Barrier::Session(session) => drop(session),
            Barrier::Standby => wait_for_a_standby(&scene.target, ""),
            Barrier::Gate => scene.target.run("UPDATE public.gate SET most = 1000"),
        }
    }
}

fn wait_for_a_standby(target: &Database, name: &str) {
    target.run(&format!("ALTER SYSTEM SET synchronous_standby_names = '{name}'"));
    target.run("SELECT pg_reload_conf()");
    eventually("the setting is in effect", || target.text("SHOW synchronous_standby_names") == name);
}

#[track_caller]
fn ended_within(api: &Server, id: &str, patience: Duration) -> Value {
    let until = Instant::now() + patience;
    loop {
        let job = api.client.get_with(&format!("/v1/jobs/{id}"), &[("prefer", "wait=5")]).json();
        if job["finished_at"].is_string() {
            return job;
        }
        assert!(Instant::now() < until, "not in time: {job}");
    }
}

fn at_each<P: Copy + Sync>(points: &[P], run: impl Fn(P) + Sync) {
    std::thread::scope(|scope| {
        let threads: Vec<_> = points.iter().map(|point| scope.spawn(|| run(*point))).collect();
        for thread in threads {
            thread.join().unwrap();
        }
    });
}

#[test]
fn a_worker_that_is_killed_at_any_point_of_a_batch_leaves_every_row_changed_once() {
    at_each(&POINTS, |point| {
        let mut scene = Scene::new();
        let (id, barrier) = scene.held_at(point);
        scene.worker.signal(Signal::SIGKILL);
        scene.worker.wait();
        let _heir = worker(&scene.queue, &scene.target);
        barrier.let_go(&scene);
        let job = scene.check(&id, &point);
        assert_eq!(job["interruptions"], 1, "{point:?}: {job}");
    });
}

#[test]
fn a_target_that_crashes_at_any_point_of_a_batch_has_every_row_changed_once() {
    at_each(&POINTS, |point| {
        let scene = Scene::new();
        let (id, barrier) = scene.held_at(point);
        scene.postgres.cluster.lock().unwrap().stop(StopMode::Immediate);
        scene.postgres.cluster.lock().unwrap().start_server().unwrap();
        barrier.let_go(&scene);
        scene.check(&id, &point);
    });
}

#[test]
fn a_worker_that_was_frozen_within_a_batch_changes_nothing() {
    at_each(&[Point::Work, Point::Record, Point::Commit, Point::Between], |point| {
        let scene = Scene::new();
        let (id, barrier) = scene.held_at(point);
        scene.worker.signal(Signal::SIGSTOP);
        let _heir = worker(&scene.queue, &scene.target);
        barrier.let_go(&scene);
        scene.check(&id, &point);
        scene.worker.signal(Signal::SIGCONT);
        eventually("it learns that it was declared dead", || scene.worker.log().contains("declared dead"));
        scene.check(&id, &point);
    });
}

#[test]
fn a_session_that_is_lost_at_any_point_of_a_batch_leaves_every_row_changed_once() {
    at_each(&[Point::Work, Point::Flush, Point::Record, Point::Commit, Point::Between], |point| {
        let scene = Scene::new();
        let (id, barrier) = scene.held_at(point);
        let ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE 'slowlane:%' AND datname = current_database()";
        assert_eq!(scene.target.count(ended), 1);
        barrier.let_go(&scene);
        scene.check(&id, &point);
    });
}

#[test]
fn a_pause_at_any_point_of_a_batch_goes_on_where_it_was() {
    at_each(&[Point::Work, Point::Flush, Point::Record, Point::Commit, Point::Between], |point| {
        let scene = Scene::new();
        let (id, barrier) = scene.held_at(point);
        assert_eq!(scene.ask(&id, "pause"), 202);
        // What only waits is interrupted; what waits for queue or flush is let through.
        if matches!(point, Point::Flush | Point::Record) {
            barrier.let_go(&scene);
            eventually("it is paused", || scene.state(&id) == "paused");
        } else {
            eventually("it is paused", || scene.state(&id) == "paused");
            barrier.let_go(&scene);
        }
        let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'slowlane:%' AND state <> 'idle' AND datname = current_database()";
        assert_eq!(scene.target.count(sessions), 0, "{point:?}");
        let done = scene.target.count("SELECT count(*) FROM public.rows WHERE n = 1");
        let job = scene.api.client.job(&id);
        assert_eq!((&job["attempt"], &job["progress"]["done"]), (&json!(0), &json!(done)), "{point:?}: {job}");
        // Somebody changes what is done and what isn't while it is paused.
        scene.target.run("ALTER TABLE public.rows DISABLE TRIGGER USER; UPDATE public.rows SET n = n + 10; ALTER TABLE public.rows ENABLE TRIGGER USER");
        assert_eq!(scene.ask(&id, "resume"), 202);
        let job = ended_within(&scene.api, &id, Duration::from_secs(60));
        assert_eq!(
            (&job["state"], changed(&scene.target)),
            (&json!("succeeded"), format!("11: {ROWS}")),
            "{point:?}: {job}"
        );
        assert_eq!((&job["attempt"], &job["output"]["rows_affected"]), (&json!(1), &json!(ROWS)), "{point:?}: {job}");
        history::check(&scene.queue, &[id]);
    });
}

#[test]
fn a_cancel_at_any_point_of_a_batch_keeps_the_batches_before_and_counts_them() {
    at_each(&[Point::Work, Point::Flush, Point::Record, Point::Commit, Point::Between], |point| {
        let scene = Scene::new();
        let (id, barrier) = scene.held_at(point);
        assert_eq!(scene.ask(&id, "cancel"), 202);
        if matches!(point, Point::Flush | Point::Record) {
            barrier.let_go(&scene);
        }
        let job = ended_within(&scene.api, &id, Duration::from_secs(60));
        let done = scene.target.count("SELECT count(*) FROM public.rows WHERE n = 1");
        assert_eq!(
            (&job["state"], &job["statistics"]["rows_affected"]),
            (&json!("cancelled"), &json!(done)),
            "{point:?}: {job}"
        );
        assert!((100..ROWS).contains(&done), "{point:?}: {done}");
        history::check(&scene.queue, &[id]);
    });
}

#[test]
fn a_paused_job_that_is_cancelled_says_what_it_had_done() {
    let scene = Scene::new();
    let (id, _barrier) = scene.held_at(Point::Between);
    assert_eq!(scene.ask(&id, "pause"), 202);
    eventually("it is paused", || scene.state(&id) == "paused");
    assert_eq!(scene.ask(&id, "cancel"), 202);
    let job = scene.api.client.job(&id);
    assert_eq!((&job["state"], &job["statistics"]["rows_affected"]), (&json!("cancelled"), &json!(100)), "{job}");
}

#[test]
fn a_pause_of_a_job_whose_worker_is_dead_comes_with_its_rescue() {
    at_each(&[Point::Work, Point::Commit, Point::Between], |point| {
        let mut scene = Scene::new();
        let (id, barrier) = scene.held_at(point);
        scene.worker.signal(Signal::SIGKILL);
        scene.worker.wait();
        assert_eq!(scene.ask(&id, "pause"), 202);
        let _heir = worker(&scene.queue, &scene.target);
        barrier.let_go(&scene);
        eventually("it is paused", || scene.state(&id) == "paused");
        let recorded = scene.queue.count("SELECT count(*) FROM job_checkpoints WHERE xid IS NOT NULL");
        assert_eq!(recorded, 0, "{point:?}: a paused job is in doubt");
        assert_eq!(scene.ask(&id, "resume"), 202);
        scene.check(&id, &point);
    });
}

#[test]
fn a_batch_in_doubt_is_settled_before_its_job_is_paused_or_cancelled() {
    at_each(&["pause", "cancel"], |what| {
        let scene = Scene::new();
        let (id, barrier) = scene.held_at(Point::Commit);
        scene.postgres.cluster.lock().unwrap().stop(StopMode::Immediate);
        drop(barrier);
        eventually("it waits", || scene.state(&id) == "scheduled");
        assert_eq!(scene.ask(&id, what), 202);
        assert_eq!(scene.ask(&id, what), if what == "pause" { 200 } else { 202 });
        assert!(["scheduled", "queued", "running"].contains(&scene.state(&id).as_str()), "{what}");
        scene.postgres.cluster.lock().unwrap().start_server().unwrap();
        if what == "pause" {
            eventually("it is paused", || scene.state(&id) == "paused");
            assert_eq!(scene.ask(&id, "resume"), 202);
            scene.check(&id, &what);
        } else {
            let job = ended_within(&scene.api, &id, Duration::from_secs(60));
            assert_eq!(
                (&job["state"], &job["statistics"]["rows_affected"]),
                (&json!("cancelled"), &json!(100)),
                "{job}"
            );
            assert_eq!(changed(&scene.target), "0: 200, 1: 100");
        }
    });
}

#[test]
fn a_target_that_is_away_stops_no_pause_of_what_is_known() {
    let scene = Scene::new();
    let (id, barrier) = scene.held_at(Point::Between);
    // The COMMIT of the first batch was answered: nobody has to ask.
    scene.postgres.cluster.lock().unwrap().stop(StopMode::Immediate);
    assert_eq!(scene.ask(&id, "pause"), 202);
    eventually("it is paused", || scene.state(&id) == "paused");
    scene.postgres.cluster.lock().unwrap().start_server().unwrap();
    barrier.let_go(&scene);
    assert_eq!(scene.ask(&id, "resume"), 202);
    scene.check(&id, &"the target was away");
}
