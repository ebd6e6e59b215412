//! Effects exactly once: the worker dies, the target dies, or the connection between them is lost, at every point of
//! the way to the COMMIT and behind it; the effects are counted. Real processes, real faults, and locks for barriers.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use slowlane::cluster::StopMode;
use slowlane::pq::Session;

use crate::support::app::TestApp;
use crate::support::child::{Server, program};
use crate::support::postgres::{Database, Postgres};
use crate::support::proxy::{Mode, Proxy};
use crate::support::standby::Standby;
use crate::support::{eventually, history};

/// Where an attempt is held up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Point {
    /// Its statements have changed rows, and the last one waits.
    Work,
    /// The WAL of its transaction is being flushed by another session.
    Flush,
    /// The transaction is being recorded.
    Record,
    /// The COMMIT was sent, and a deferred trigger waits in it.
    Commit,
    /// The COMMIT was answered, and the end of the job can't be written yet.
    End,
}

const POINTS: [Point; 5] = [Point::Work, Point::Flush, Point::Record, Point::Commit, Point::End];

/// A worker on a target of its own, which may be broken, and a queue elsewhere.
struct Scene {
    postgres: Postgres,
    queue: Database,
    target: Database,
    api: Server,
    worker: Server,
}

impl Scene {
    fn new() -> Scene {
        Scene::on(Postgres::start())
    }

    /// On a cluster that writes its WAL only when a commit has it written: what nobody flushed is lost in a crash.
    fn forgetful() -> Scene {
        Scene::on(Postgres::with(&[("wal_level", "minimal"), ("max_wal_senders", "0"), ("autovacuum", "off")]))
    }

    fn on(postgres: Postgres) -> Scene {
        let (queue, target) = (Postgres::shared().queue(), postgres.work());
        target.run(
            "CREATE TABLE public.effects (job text);
             CREATE FUNCTION public.wait() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN PERFORM pg_advisory_xact_lock_shared(2); RETURN NULL; END $$;
             CREATE CONSTRAINT TRIGGER waits AFTER INSERT ON public.effects DEFERRABLE INITIALLY DEFERRED
                 FOR EACH ROW EXECUTE FUNCTION public.wait();
             GRANT ALL ON public.effects TO PUBLIC",
        );
        let api = Server::api(&queue, &[]);
        let worker = Server::worker(&queue, &target, &["--workers", "2"]);
        Scene { postgres, queue, target, api, worker }
    }

    fn submit(&self) -> String {
        let statements = json!([
            {"sql": "INSERT INTO public.effects VALUES ($1)", "params": ["once"]},
            {"sql": "SELECT pg_advisory_xact_lock_shared(1)"},
        ]);
        self.api.client.submit(&json!({"kind": "execute", "args": {"statements": statements}, "max_attempts": 5}))
    }

    /// Holds up whoever comes to the point, until the barrier is let go.
    fn hold(&self, point: Point) -> Barrier {
        match point {
            Point::Work => Barrier::Session(self.holding(&self.target, "SELECT pg_advisory_lock(1)")),
            Point::Commit => Barrier::Session(self.holding(&self.target, "SELECT pg_advisory_lock(2)")),
            Point::Record => Barrier::Session(
                self.holding(&self.queue, "BEGIN; LOCK TABLE job_checkpoints IN SHARE ROW EXCLUSIVE MODE"),
            ),
            Point::End => Barrier::Session(
                self.holding(&self.queue, "BEGIN; LOCK TABLE finished_jobs IN SHARE ROW EXCLUSIVE MODE"),
            ),
            Point::Flush => {
                wait_for_a_standby(&self.target, "nobody");
                Barrier::Standby
            }
        }
    }

    fn holding(&self, database: &Database, sql: &str) -> Session {
        let mut session = database.session();
        session.execute_batch("SET lock_timeout = '20s'").unwrap();
        session.execute_batch(sql).unwrap();
        session
    }

    fn is_reached(&self, point: Point) -> bool {
        // Housekeeping comes to the same tables, and isn't meant.
        let waits = "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
                      WHERE a.datname = current_database() AND a.application_name <> 'slowlane janitor'
                        AND NOT l.granted AND";
        match point {
            Point::Work => self.target.count(&format!("{waits} locktype = 'advisory' AND objid = 1")) > 0,
            Point::Commit => self.target.count(&format!("{waits} locktype = 'advisory' AND objid = 2")) > 0,
            Point::Record => self.queue.count(&format!("{waits} relation = 'job_checkpoints'::regclass")) > 0,
            Point::End => self.queue.count(&format!("{waits} relation = 'finished_jobs'::regclass")) > 0,
            Point::Flush => {
                let flushing = "SELECT count(*) FROM pg_stat_activity
                                 WHERE application_name = 'slowlane flush' AND wait_event = 'SyncRep' AND datname = current_database()";
                self.target.count(flushing) > 0
            }
        }
    }

    fn effects(&self) -> i64 {
        self.target.count("SELECT count(*) FROM public.effects")
    }

    /// Ends the session of the attempt, as a lost connection does.
    fn end_session(&self) {
        let ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE 'slowlane:%' AND datname = current_database()";
        assert_eq!(self.target.count(ended), 1);
    }

    fn stop_target(&self) {
        self.postgres.cluster.lock().unwrap().stop(StopMode::Immediate);
    }

    fn start_target(&self) {
        self.postgres.cluster.lock().unwrap().start_server().unwrap();
    }

    /// The job has ended, and its effect is there once. Says how often it was tried.
    fn check(&self, id: &str, what: &dyn std::fmt::Debug) -> Value {
        let job = ended_within(&self.api, id, Duration::from_secs(120));
        assert_eq!((&job["state"], self.effects()), (&json!("succeeded"), 1), "{what:?}: {job}");
        let counts = job["output"]["statements"].as_array().unwrap();
        assert_eq!((&counts[0]["rows_affected"], counts.len()), (&json!(1), 2), "{what:?}: {job}");
        assert_eq!(job["statistics"]["rows_affected"], 1, "{what:?}: {job}");
        let all = self.queue.text("SELECT string_agg(id::text, ' ') FROM finished_jobs");
        let all: Vec<String> = all.split(' ').map(str::to_owned).collect();
        assert!(all.contains(&id.to_owned()));
        history::check(&self.queue, &all);
        job
    }
}

enum Barrier {
    /// Holds a lock.
    Session(Session),
    /// Nobody's acknowledgement is waited for.
    Standby,
}

impl Barrier {
    fn let_go(self, scene: &Scene) {
        match self {
            // Whatever it holds goes with it.
            Barrier::Session(session) => drop(session),
            Barrier::Standby => wait_for_a_standby(&scene.target, ""),
        }
    }
}

/// Commits wait for the acknowledgement of a standby of this name; of none when it is empty.
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

/// Runs one of them for each point, all at once: most of their time is spent waiting for a dead worker to be found
/// dead.
fn at_each<P: Copy + Sync>(points: &[P], run: impl Fn(P) + Sync) {
    std::thread::scope(|scope| {
        let threads: Vec<_> = points.iter().map(|point| scope.spawn(|| run(*point))).collect();
        for thread in threads {
            thread.join().unwrap();
        }
    });
}

#[test]
fn a_worker_that_is_killed_at_any_point_leaves_its_effect_once() {
    at_each(&POINTS, |point| {
        let mut scene = Scene::new();
        let barrier = scene.hold(point);
        let id = scene.submit();
        eventually("the point is reached", || scene.is_reached(point));
        scene.worker.signal(Signal::SIGKILL);
        scene.worker.wait();
        let _heir = Server::worker(&scene.queue, &scene.target, &["--workers", "2"]);
        barrier.let_go(&scene);
        let job = scene.check(&id, &point);
        assert_eq!(job["interruptions"], 1, "{point:?}: {job}");
        // What was committed is not run again; what wasn't, is. A COMMIT that is under way may be either.
        let attempts = scene.queue.count("SELECT count(*) FROM all_attempts");
        let expected = match point {
            Point::Work | Point::Flush | Point::Record => 2..=2,
            Point::Commit => 1..=2,
            Point::End => 1..=1,
        };
        assert!(expected.contains(&attempts), "{point:?}: {attempts}");
    });
}

/// Transactions of somebody else; their numbers.
fn others(target: &Database) -> Vec<i64> {
    (0..20).map(|_| target.count("SELECT pg_current_xact_id()::text")).collect()
}

#[test]
fn a_target_that_crashes_at_any_point_has_the_effect_once() {
    at_each(&POINTS, |point| {
        // A cluster without standbys waits for none.
        let scene = if point == Point::Flush { Scene::new() } else { Scene::forgetful() };
        let barrier = scene.hold(point);
        let id = scene.submit();
        eventually("the point is reached", || scene.is_reached(point));
        let numbers = "SELECT backend_xid FROM pg_stat_activity WHERE application_name LIKE 'slowlane:%' AND datname = current_database()";
        let xid = scene.target.text(numbers).parse::<i64>().unwrap_or_default();
        scene.stop_target();
        scene.start_target();
        // Somebody else takes the numbers that come next. Before the flush, the job's own is among them.
        let theirs = others(&scene.target);
        assert_eq!(theirs.contains(&xid), point == Point::Work, "{point:?}: {xid}, {theirs:?}");
        barrier.let_go(&scene);
        scene.check(&id, &point);
    });
}

#[test]
fn a_target_that_crashes_between_the_mark_and_its_flush_has_the_effect_once() {
    let scene = Scene::forgetful();
    let first = scene.submit();
    assert_eq!(ended_within(&scene.api, &first, Duration::from_secs(30))["state"], "succeeded");
    scene.target.run("TRUNCATE public.effects");
    // The session that flushes stands still: the mark is written, and isn't on disk.
    let flushing =
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'slowlane flush' AND datname = current_database()";
    let flusher = nix::unistd::Pid::from_raw(scene.target.text(flushing).parse().unwrap());
    nix::sys::signal::kill(flusher, Signal::SIGSTOP).unwrap();
    let id = scene.submit();
    let marked = "SELECT backend_xid FROM pg_stat_activity
                   WHERE datname = current_database() AND application_name LIKE 'slowlane:%' AND state = 'idle in transaction' AND query LIKE '%emit_message%'";
    let mut xid = String::new();
    eventually("it is marked", || {
        xid = scene.target.text(marked);
        !xid.is_empty()
    });
    scene.stop_target();
    scene.start_target();
    let theirs = others(&scene.target);
    let took_it = "SELECT pg_xact_status($1::text::xid8)".replace("$1", &format!("'{xid}'"));
    eventually("its number is somebody else's", || scene.target.text(&took_it) == "committed");
    assert!(theirs.iter().all(|number| *number >= xid.parse().unwrap()), "{xid}: {theirs:?}");
    scene.check(&id, &"between mark and flush");
}

#[test]
fn a_worker_that_was_frozen_on_its_way_to_the_commit_changes_nothing() {
    at_each(&[Point::Work, Point::Record, Point::Commit], |point| {
        let scene = Scene::new();
        let barrier = scene.hold(point);
        let id = scene.submit();
        eventually("the point is reached", || scene.is_reached(point));
        scene.worker.signal(Signal::SIGSTOP);
        let _heir = Server::worker(&scene.queue, &scene.target, &["--workers", "2"]);
        barrier.let_go(&scene);
        scene.check(&id, &point);
        scene.worker.signal(Signal::SIGCONT);
        eventually("it learns that it was declared dead", || scene.worker.log().contains("declared dead"));
        scene.check(&id, &point);
    });
}

#[test]
fn a_session_that_is_lost_at_any_point_leaves_the_effect_once() {
    at_each(&[Point::Work, Point::Flush, Point::Record, Point::Commit], |point| {
        let scene = Scene::new();
        let barrier = scene.hold(point);
        let id = scene.submit();
        eventually("the point is reached", || scene.is_reached(point));
        scene.end_session();
        barrier.let_go(&scene);
        scene.check(&id, &point);
    });
}

#[test]
fn work_on_a_diesel_connection_has_its_effect_once() {
    let lost = [Point::Work, Point::Flush, Point::Record, Point::Commit].map(|point| (point, true));
    let crashed = [Point::Record, Point::Commit, Point::End].map(|point| (point, false));
    at_each(&[lost.as_slice(), crashed.as_slice()].concat(), |(point, by_session)| {
        let mut scene = Scene::new();
        scene.worker.signal(Signal::SIGTERM);
        scene.worker.wait();
        let app = TestApp::on(scene.queue.clone(), scene.target.clone(), |_| {});
        let barrier = scene.hold(point);
        let id = app.submit(&json!({"kind": "diesel_once", "args": {}, "max_attempts": 5}));
        eventually("the point is reached", || scene.is_reached(point));
        if by_session {
            scene.end_session();
        } else {
            scene.stop_target();
            scene.start_target();
        }
        barrier.let_go(&scene);
        scene.check(&id, &(point, by_session));
    });
}

#[test]
fn a_commit_whose_answer_is_lost_is_a_success() {
    let mut scene = Scene::new();
    let proxy = Proxy::before(&scene.target.dsn);
    let beyond = Database { dsn: proxy.dsn(&scene.target.dsn), superuser: scene.target.superuser.clone() };
    scene.worker.signal(Signal::SIGTERM);
    scene.worker.wait();
    scene.worker = Server::worker(&scene.queue, &beyond, &["--workers", "2"]);
    let barrier = scene.hold(Point::Commit);
    let id = scene.submit();
    eventually("the point is reached", || scene.is_reached(Point::Commit));
    proxy.set(Mode::Mute);
    barrier.let_go(&scene);
    eventually("it is committed", || scene.effects() == 1);
    proxy.set(Mode::Pass);
    proxy.cut();
    let job = scene.check(&id, &"the answer was lost");
    assert_eq!((&job["attempt"], &job["interruptions"]), (&json!(1), &json!(0)), "{job}");
    assert_eq!(scene.queue.count("SELECT count(*) FROM all_attempts"), 1);
}

#[test]
fn a_cancel_while_the_commit_is_under_way_says_what_became_of_it() {
    let scene = Scene::new();
    let barrier = scene.hold(Point::Commit);
    let id = scene.submit();
    eventually("the point is reached", || scene.is_reached(Point::Commit));
    assert_eq!(scene.api.client.post(&format!("/v1/jobs/{id}/cancel"), &json!({})).status, 202);
    let job = ended_within(&scene.api, &id, Duration::from_secs(60));
    // The trigger was interrupted, and the transaction with it.
    assert_eq!((&job["state"], scene.effects()), (&json!("cancelled"), 0), "{job}");
    barrier.let_go(&scene);
    history::check(&scene.queue, &[id]);
}

#[test]
fn a_cancel_after_a_kill_behind_the_commit_comes_too_late() {
    let mut scene = Scene::new();
    let barrier = scene.hold(Point::End);
    let id = scene.submit();
    eventually("the point is reached", || scene.is_reached(Point::End));
    scene.worker.signal(Signal::SIGKILL);
    scene.worker.wait();
    let _heir = Server::worker(&scene.queue, &scene.target, &["--workers", "2"]);
    barrier.let_go(&scene);
    assert_eq!(scene.api.client.post(&format!("/v1/jobs/{id}/cancel"), &json!({})).status, 202);
    let job = scene.check(&id, &"cancelled too late");
    assert!(job["cancel_requested_at"].is_string(), "{job}");
}

#[test]
fn what_is_in_doubt_waits_for_its_target_and_is_not_cancelled_meanwhile() {
    let scene = Scene::new();
    let barrier = scene.hold(Point::Commit);
    let id = scene.submit();
    eventually("the point is reached", || scene.is_reached(Point::Commit));
    scene.stop_target();
    drop(barrier);
    // Nobody can be asked: the job waits, and a cancel is only noted.
    let state = format!("SELECT state FROM jobs WHERE id = '{id}'");
    eventually("it waits", || scene.queue.text(&state) == "scheduled");
    let error = scene.queue.text(&format!("SELECT error ->> 'message' FROM jobs WHERE id = '{id}'"));
    assert!(error.contains("isn't known yet"), "{error}");
    let answer = scene.api.client.post(&format!("/v1/jobs/{id}/cancel"), &json!({}));
    assert_eq!(answer.status, 202);
    assert_ne!(answer.json()["state"], "cancelled", "{}", answer.text());
    scene.start_target();
    let job = ended_within(&scene.api, &id, Duration::from_secs(120));
    assert_eq!((&job["state"], scene.effects()), (&json!("cancelled"), 0), "{job}");
    history::check(&scene.queue, &[id]);
}

#[test]
fn a_commit_is_durable_whatever_the_role_is_set_to() {
    let scene = Scene::new();
    // The cluster's default is off already; the transaction says so itself.
    let statements = json!([
        {"sql": "SET LOCAL synchronous_commit = off"},
        {"sql": "INSERT INTO public.effects VALUES ('once')"},
    ]);
    let job = json!({"kind": "execute", "args": {"statements": statements}});
    let id = scene.api.client.submit(&job);
    assert_eq!(scene.api.client.ended(&id)["state"], "succeeded");
    scene.stop_target();
    scene.start_target();
    assert_eq!(scene.effects(), 1);
}

/// A worker whose target is whichever of two servers takes writes.
fn worker_on_both(scene: &Scene, standby: &Standby, synchronous: bool) -> (Server, tempfile::TempDir) {
    let (first, second) = (scene.target.dsn.get("port").unwrap(), standby.port.to_string());
    let dsn = scene.target.dsn.clone();
    let dsn = dsn.with("host", "127.0.0.1,127.0.0.1").with("port", &format!("{first},{second}"));
    let dsn = dsn.with("target_session_attrs", "read-write");
    let folder = tempfile::tempdir().unwrap();
    let settings = folder.path().join("slowlane.toml");
    let text = format!("[targets.default]\ndsn_env = \"BOTH_URL\"\nsynchronous = {synchronous}\n");
    std::fs::write(&settings, text).unwrap();
    let mut command = program();
    command.args(["serve", "--no-http", "--probe-listen", "127.0.0.1:0", "--config"]).arg(&settings);
    command.env("SLOWLANE_DATABASE_URL", scene.queue.dsn.to_url().expose()).env("BOTH_URL", dsn.to_url().expose());
    (Server::spawn(command), folder)
}

/// The worker dies behind its COMMIT, then the primary, and the standby takes over. `lag`: it had stopped following.
fn fail_over(synchronous: bool, lag: bool) -> (Value, i64) {
    let mut scene = Scene::new();
    let standby = Standby::of(&scene.postgres);
    if synchronous {
        wait_for_a_standby(&scene.target, "standby");
    }
    scene.worker.signal(Signal::SIGTERM);
    scene.worker.wait();
    let (mut worker, _settings) = worker_on_both(&scene, &standby, synchronous);
    if lag {
        let sent = "SELECT pg_current_wal_flush_lsn() = flush_lsn FROM pg_stat_replication";
        eventually("everything so far has arrived", || scene.target.text(sent) == "t");
        standby.stop_receiving(&scene.target);
    }
    let barrier = scene.hold(Point::End);
    let id = scene.submit();
    eventually("the point is reached", || scene.is_reached(Point::End));
    assert_eq!(scene.effects(), 1);
    worker.signal(Signal::SIGKILL);
    worker.wait();
    scene.stop_target();
    standby.lose_what_was_received();
    let promoted = standby.database(&scene.target);
    eventually("the standby answers", || Session::connect(&promoted.superuser).is_ok());
    promoted.run("SELECT pg_promote(true, 60)");
    // Others go on there at once, and take the numbers that come next.
    promoted.run("CREATE TABLE public.others (); CREATE TABLE public.more ()");
    let _heir = worker_on_both(&scene, &standby, synchronous);
    barrier.let_go(&scene);
    let job = ended_within(&scene.api, &id, Duration::from_secs(120));
    history::check(&scene.queue, &[id]);
    (job, promoted.count("SELECT count(*) FROM public.effects"))
}

#[test]
fn a_synchronous_standby_has_the_effect_once() {
    let (job, effects) = fail_over(true, false);
    assert_eq!((&job["state"], effects), (&json!("succeeded"), 1), "{job}");
}

#[test]
fn an_asynchronous_standby_never_makes_a_false_success() {
    let (job, effects) = fail_over(false, true);
    assert_eq!((&job["state"], &job["error"]["code"]), (&json!("failed"), &json!("outcome_unknown")), "{job}");
    assert_eq!(effects, 0, "it was lost, which nobody could know");
    let message = job["error"]["message"].as_str().unwrap();
    assert!(message.contains("promoted or restored"), "{message}");
}

#[test]
fn batches_on_a_diesel_connection_are_there_once_each() {
    at_each(&[Point::Work, Point::Flush, Point::Record, Point::Commit], |point| {
        let mut scene = Scene::new();
        scene.worker.signal(Signal::SIGTERM);
        scene.worker.wait();
        let app = TestApp::on(scene.queue.clone(), scene.target.clone(), |_| {});
        // The first batch is committed, and the second is at work.
        let work = scene.hold(Point::Work);
        let id = app.submit(&json!({"kind": "diesel_batches", "args": {}, "max_attempts": 5}));
        eventually("the second batch is at work", || scene.is_reached(Point::Work));
        let barrier = if point == Point::Work {
            work
        } else {
            let barrier = scene.hold(point);
            drop(work);
            barrier
        };
        eventually("the point is reached", || scene.is_reached(point));
        scene.end_session();
        barrier.let_go(&scene);
        let job = ended_within(&scene.api, &id, Duration::from_secs(60));
        assert_eq!(
            (&job["state"], scene.effects(), &job["output"]),
            (&json!("succeeded"), 3, &json!(3)),
            "{point:?}: {job}"
        );
        assert_eq!(job["statistics"]["rows_affected"], 3, "{point:?}: {job}");
        history::check(&scene.queue, &[id]);
    });
}
