//! Invalid indexes: the job's own go after an error, a cancel and a crash, and nobody else's.

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use slowlane::cluster::StopMode;
use slowlane::pq::Session;

use super::{
    OLD_SNAPSHOTS, TABLE, as_role, builds, code, create, hint, invalid, job, log, output, run, snapshot, valid,
    with_table,
};
use crate::support::app::TestApp;
use crate::support::child::Server;
use crate::support::postgres::{Database, Postgres};
use crate::support::{eventually, history};

const WRITERS: &str = "waiting for writers before build";
const READERS: &str = "waiting for readers before marking dead";

/// A statement of somebody else's that runs while the test goes on. Its outcome.
fn elsewhere(target: &Database, sql: &str) -> std::thread::JoinHandle<bool> {
    let (mut session, sql) = (target.session(), sql.to_owned());
    std::thread::spawn(move || session.execute_batch(&sql).is_ok())
}

#[test]
fn an_index_that_fails_or_is_stopped_is_gone() {
    let app = with_table();
    let mut unique = create("u");
    unique["unique"] = json!(true);
    let id = app.submit(&job(&unique));
    let failed = app.ended(&id);
    assert_eq!((code(&failed), &failed["error"]["sqlstate"]), (("failed", "sql_error"), &json!("23505")), "{failed}");
    assert!(hint(&failed).contains("unique"), "{failed}");
    assert_eq!(invalid(&app.target), "");
    assert!(log(&app, &id).contains("dropped the invalid index public.u of this attempt"));
    for args in
        [create("i"), json!({"action": "reindex", "table": "t"}), json!({"action": "reindex", "index": "t_name"})]
    {
        let mut old = snapshot(&app.target);
        let id = app.submit(&job(&args));
        eventually("it waits for old transactions", || builds(&app.target, OLD_SNAPSHOTS));
        assert_ne!(invalid(&app.target), "");
        assert_eq!(app.post(&format!("/v1/jobs/{id}/cancel"), &json!({})).status, 202);
        assert_eq!(app.ended(&id)["state"], "cancelled");
        assert_eq!(invalid(&app.target), "", "the state came first");
        let told = log(&app, &id);
        assert!(told.contains("dropped the invalid index public."), "{told}");
        // What the role can't drop is said.
        assert_eq!(told.contains("GRANT USAGE ON SCHEMA pg_toast"), args.get("table") == Some(&json!("t")), "{told}");
        // So does its deadline.
        let mut args = job(&args);
        args["timeout_ms"] = json!(3_000);
        let ended = app.ended(&app.submit(&args));
        assert_eq!(code(&ended), ("failed", "timeout"), "{ended}");
        assert_eq!(invalid(&app.target), "");
        old.execute_batch("COMMIT").unwrap();
    }
    assert!(valid(&app.target, "public.t_name") && valid(&app.target, "public.t_pkey"));
    assert_eq!(output(&app, &create("i"))["index"]["was_there"], false);
}

#[test]
fn a_shutdown_leaves_no_index_either() {
    let mut app = with_table();
    let mut old = snapshot(&app.target);
    let id = app.submit(&job(&create("i")));
    eventually("it waits for old transactions", || builds(&app.target, OLD_SNAPSHOTS));
    app.ask_to_stop();
    app.join();
    assert_eq!(invalid(&app.target), "");
    assert_eq!(app.queue.text("SELECT state FROM jobs"), "queued");
    old.execute_batch("COMMIT").unwrap();
    let next = TestApp::on(app.queue.clone(), app.target.clone(), |_| {});
    let job = next.ended(&id);
    assert_eq!((&job["state"], &job["output"]["dropped_invalid"]), (&json!("succeeded"), &json!([])), "{job}");
}

#[test]
fn what_cannot_be_dropped_is_said_with_what_to_do() {
    let app = with_table();
    // A transaction that has written to the table is waited for by whoever would drop an index of it.
    let mut writer = app.target.session();
    writer.execute_batch("BEGIN; INSERT INTO public.t VALUES (101, 'x', 1)").unwrap();
    let id = app.submit(&job(&create("i")));
    eventually("it waits for writers", || builds(&app.target, WRITERS));
    assert_eq!(app.post(&format!("/v1/jobs/{id}/cancel"), &json!({})).status, 202);
    assert_eq!(app.ended(&id)["state"], "cancelled");
    assert_eq!(invalid(&app.target), "public.i");
    let told = log(&app, &id);
    assert!(told.contains(r#""action":"drop_index","index":"public.i""#), "{told}");
    // Another job can't know whose it is.
    let job = run(&app, &create("i"));
    assert_eq!(code(&job), ("failed", "index_exists"), "{job}");
    assert!(hint(&job).contains(r#""action":"drop_index","index":"public.i""#), "{job}");
    // Once nobody is in the way it goes by itself, and that is told with the job.
    writer.execute_batch("COMMIT").unwrap();
    eventually("a worker drops it", || {
        app.queue.run("UPDATE job_checkpoints SET looked_at = now() - interval '1 minute' WHERE leaves");
        invalid(&app.target).is_empty() && app.queue.count("SELECT count(*) FROM job_checkpoints") == 0
    });
    assert!(log(&app, &id).ends_with("dropped the invalid index public.i of this job"), "{}", log(&app, &id));
    output(&app, &create("i"));
}

/// Indexes that somebody else couldn't finish: by name.
fn leave_invalid(target: &Database, sql: &str) {
    let mut old = snapshot(target);
    let build = elsewhere(target, sql);
    eventually("somebody else waits for old transactions", || builds(target, OLD_SNAPSHOTS));
    target.run("SELECT pg_cancel_backend(pid) FROM pg_stat_progress_create_index WHERE datname = current_database()");
    assert!(!build.join().unwrap());
    old.execute_batch("COMMIT").unwrap();
}

#[test]
fn what_somebody_else_left_stays() {
    let app = with_table();
    leave_invalid(&app.target, "CREATE INDEX CONCURRENTLY theirs ON public.t (num)");
    leave_invalid(&app.target, "REINDEX INDEX CONCURRENTLY public.t_name");
    let theirs = "public.t_name_ccnew public.theirs";
    assert_eq!(invalid(&app.target), theirs);
    let oids =
        || app.target.text("SELECT string_agg(indexrelid::text, ' ' ORDER BY 1) FROM pg_index WHERE NOT indisvalid");
    let before = oids();
    let job = run(&app, &create("theirs"));
    assert_eq!(code(&job), ("failed", "index_exists"), "{job}");
    let left = json!(["public.t_name_ccnew", "public.theirs"]);
    for args in
        [create("i"), json!({"action": "reindex", "table": "t"}), json!({"action": "reindex", "index": "t_name"})]
    {
        let id = app.submit(&super::job(&args));
        let job = app.ended(&id);
        assert_eq!(job["state"], "succeeded", "{job}");
        assert_eq!((&job["output"]["left_invalid"], &job["output"]["dropped_invalid"]), (&left, &json!([])));
        assert!(log(&app, &id).contains("public.theirs is invalid and left as it is: it isn't this job's"));
    }
    // Also when the job's own one goes.
    let mut unique = create("u");
    unique["unique"] = json!(true);
    assert_eq!(run(&app, &unique)["error"]["sqlstate"], "23505");
    let mut old = snapshot(&app.target);
    let id = app.submit(&super::job(&json!({"action": "reindex", "index": "t_name"})));
    eventually("it waits for old transactions", || builds(&app.target, OLD_SNAPSHOTS));
    assert!(invalid(&app.target).contains("public.t_name_ccnew1"));
    assert_eq!(app.post(&format!("/v1/jobs/{id}/cancel"), &json!({})).status, 202);
    assert_eq!(app.ended(&id)["state"], "cancelled");
    old.execute_batch("COMMIT").unwrap();
    assert_eq!(oids(), before);
}

#[test]
fn what_somebody_else_builds_is_waited_for_and_stays() {
    let app = with_table();
    let mut old = snapshot(&app.target);
    let build = elsewhere(&app.target, "CREATE INDEX CONCURRENTLY i ON public.t (num)");
    eventually("somebody else waits for old transactions", || builds(&app.target, OLD_SNAPSHOTS));
    let mut args = create("i");
    args["lock_timeout_ms"] = json!(50);
    let mut args = job(&args);
    args["max_attempts"] = json!(1);
    let job = app.ended(&app.submit(&args));
    assert_eq!(code(&job), ("failed", "lock_timeout"), "{job}");
    assert_eq!(invalid(&app.target), "public.i");
    old.execute_batch("COMMIT").unwrap();
    assert!(build.join().unwrap());
    assert_eq!(output(&app, &create("i"))["index"]["was_there"], true);
}

/// A worker that dies in the middle of a build, when the server has come to `phase`; another that isn't started yet.
struct Killed {
    api: Server,
    queue: Database,
    target: Database,
    /// What the build waits for.
    holder: Session,
    id: String,
}

impl Killed {
    fn during(args: &Value, phase: &str) -> Killed {
        let postgres = Postgres::shared();
        let (queue, target) = (postgres.queue(), postgres.work());
        as_role(&target).execute_batch(TABLE).unwrap();
        target.run("GRANT USAGE ON SCHEMA pg_toast TO slowlane_demo");
        let api = Server::api(&queue, &[]);
        let mut doomed = Server::worker(&queue, &target, &[]);
        let mut holder = target.session();
        let reads = ["BEGIN; SELECT FROM public.t", "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1"];
        holder.execute_batch(reads[usize::from(phase != READERS)]).unwrap();
        let id = api.client.submit(&job(args));
        eventually("it builds", || builds(&target, phase));
        doomed.signal(Signal::SIGKILL);
        doomed.wait();
        queue.run("DELETE FROM workers");
        assert!(builds(&target, phase), "the server process that it left is still at it");
        assert_ne!(invalid(&target), "");
        Killed { api, queue, target, holder, id }
    }

    fn heir(&self) -> Server {
        Server::worker(&self.queue, &self.target, &[])
    }

    fn job(&self) -> Value {
        self.api.client.job(&self.id)
    }
}

#[test]
fn what_a_killed_worker_left_is_dropped_by_the_next_attempt() {
    for (args, phase, left) in [
        (create("i"), OLD_SNAPSHOTS, "public.i"),
        (json!({"action": "reindex", "table": "t"}), OLD_SNAPSHOTS, "public.t_name_ccnew"),
        (json!({"action": "reindex", "index": "t_name"}), READERS, "public.t_name_ccold"),
    ] {
        let mut killed = Killed::during(&args, phase);
        let _heir = killed.heir();
        eventually("somebody else has the job", || killed.job()["interruptions"] == 1);
        killed.holder.execute_batch("COMMIT").unwrap();
        let job = killed.api.client.ended(&killed.id);
        assert_eq!((&job["state"], &job["interruptions"]), (&json!("succeeded"), &json!(1)), "{job}");
        let dropped = job["output"]["dropped_invalid"].as_array().unwrap();
        assert!(dropped.contains(&json!(left)), "{left}: {job}");
        let toast = dropped.iter().any(|name| name.as_str().unwrap().starts_with("pg_toast."));
        assert_eq!(toast, left == "public.t_name_ccnew", "{job}");
        assert_eq!((&job["output"]["left_invalid"], invalid(&killed.target).as_str()), (&json!([]), ""));
        assert!(valid(&killed.target, "public.t_name"));
        assert_eq!(valid(&killed.target, "public.i"), left == "public.i");
        history::check(&killed.queue, &[killed.id]);
    }
}

#[test]
fn what_a_killed_worker_left_is_not_touched_while_somebody_builds_it() {
    let mut killed = Killed::during(&create("i"), OLD_SNAPSHOTS);
    // Somebody sees to it before the rescue does.
    killed.target.run(
        "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_progress_create_index WHERE datname = current_database()",
    );
    let build = elsewhere(&killed.target, "REINDEX INDEX CONCURRENTLY public.i");
    eventually("somebody rebuilds it", || builds(&killed.target, OLD_SNAPSHOTS));
    let _heir = killed.heir();
    eventually("the next attempt waits for them", || {
        let job = killed.job();
        let phase = job["progress"]["phase"].as_str().unwrap_or_default().to_owned();
        job["interruptions"] == 1 && phase.contains("public.t")
    });
    let client = &killed.api.client;
    assert_eq!(client.post(&format!("/v1/jobs/{}/cancel", killed.id), &json!({})).status, 202);
    assert_eq!(client.ended(&killed.id)["state"], "cancelled");
    assert!(log(client, &killed.id).contains("public.i is invalid, and somebody is at work on it"));
    assert!(invalid(&killed.target).contains("public.i_ccnew"));
    killed.holder.execute_batch("COMMIT").unwrap();
    assert!(build.join().unwrap(), "their build was disturbed");
    assert!(valid(&killed.target, "public.i"));
}

#[test]
fn a_worker_that_wakes_after_its_lease_leaves_the_index_of_the_next_attempt_alone() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    as_role(&target).execute_batch(TABLE).unwrap();
    let api = Server::api(&queue, &[]);
    let sleeper = Server::worker(&queue, &target, &[]);
    let mut old = snapshot(&target);
    let id = api.client.submit(&job(&create("i")));
    eventually("it builds", || builds(&target, OLD_SNAPSHOTS));
    sleeper.signal(Signal::SIGSTOP);
    queue.run("DELETE FROM workers");
    let _heir = Server::worker(&queue, &target, &[]);
    eventually("the next attempt builds", || {
        api.client.job(&id)["interruptions"] == 1 && builds(&target, OLD_SNAPSHOTS)
    });
    sleeper.signal(Signal::SIGCONT);
    eventually("it learns that its lease is lost", || sleeper.log().contains("the end of this attempt is not written"));
    assert!(builds(&target, OLD_SNAPSHOTS), "the other's build was ended");
    old.execute_batch("COMMIT").unwrap();
    let job = api.client.ended(&id);
    assert_eq!((&job["state"], &job["interruptions"]), (&json!("succeeded"), &json!(1)), "{job}");
    assert!(valid(&target, "public.i"));
    history::check(&queue, &[id]);
}

#[test]
fn a_crash_of_the_target_leaves_no_remnant_and_takes_no_index() {
    let postgres = Postgres::start();
    let app = TestApp::on(Postgres::shared().queue(), postgres.work(), |_| {});
    as_role(&app.target).execute_batch(TABLE).unwrap();
    let _old = snapshot(&app.target);
    let id = app.submit(&job(&create("i")));
    eventually("it waits for old transactions", || builds(&app.target, OLD_SNAPSHOTS));
    let mut cluster = postgres.cluster.lock().unwrap();
    cluster.stop(StopMode::Immediate);
    eventually("the attempt is over", || app.job(&id)["state"] == "scheduled");
    cluster.start_server().unwrap();
    drop(cluster);
    assert_eq!(invalid(&app.target), "public.i");
    eventually("time passes", || {
        app.queue.run("UPDATE jobs SET run_at = now() WHERE state = 'scheduled'");
        app.job(&id)["finished_at"].is_string()
    });
    let job = app.ended(&id);
    assert_eq!(
        (&job["state"], &job["output"]["dropped_invalid"]),
        (&json!("succeeded"), &json!(["public.i"])),
        "{job}"
    );
    // What it has said is so, whatever the server is set to.
    let mut cluster = postgres.cluster.lock().unwrap();
    cluster.stop(StopMode::Immediate);
    cluster.start_server().unwrap();
    drop(cluster);
    assert!(valid(&app.target, "public.i"));
}
