//! What a job has left that has no next attempt: a worker drops it, and nothing that isn't the job's.

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{OLD_SNAPSHOTS, TABLE, as_role, builds, create, invalid, job, log, snapshot, valid};
use crate::support::child::Server;
use crate::support::eventually;
use crate::support::postgres::{Database, Postgres};

fn dropped_by_itself(queue: &Database, target: &Database) {
    eventually("a worker drops it", || {
        queue.run("UPDATE job_checkpoints SET looked_at = now() - interval '1 minute' WHERE leaves");
        invalid(target).is_empty() && queue.count("SELECT count(*) FROM job_checkpoints") == 0
    });
}

/// The worker of a job dies in the middle of a build, and the job ends without another attempt.
fn killed_for_good(args: &Value, end: impl FnOnce(&Server, &Database, &str), code: &str) {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    as_role(&target).execute_batch(TABLE).unwrap();
    target.run("GRANT USAGE ON SCHEMA pg_toast TO slowlane_demo");
    let api = Server::api(&queue, &[]);
    let mut doomed = Server::worker(&queue, &target, &[]);
    let mut old = snapshot(&target);
    let id = api.client.submit(&job(args));
    eventually("it builds", || builds(&target, OLD_SNAPSHOTS));
    doomed.signal(Signal::SIGKILL);
    doomed.wait();
    end(&api, &queue, &id);
    queue.run("DELETE FROM workers");
    let _heir = Server::worker(&queue, &target, &[]);
    let ended = api.client.ended(&id);
    let told = ended["error"]["code"].as_str().unwrap_or_else(|| ended["state"].as_str().unwrap());
    assert_eq!(told, code, "{ended}");
    old.execute_batch("COMMIT").unwrap();
    dropped_by_itself(&queue, &target);
    assert!(log(&api.client, &id).contains("dropped the invalid index public."), "{}", log(&api.client, &id));
    assert!(valid(&target, "public.t_name") && valid(&target, "public.t_pkey"));
}

#[test]
fn a_poisoned_build_leaves_nothing() {
    let poison = |_: &Server, queue: &Database, _: &str| queue.run("UPDATE jobs SET lost_in_a_row = 2");
    killed_for_good(&create("i"), poison, "poison");
}

#[test]
fn a_rebuild_that_is_cancelled_after_its_worker_died_leaves_nothing() {
    let cancel = |api: &Server, _: &Database, id: &str| {
        assert_eq!(api.client.post(&format!("/v1/jobs/{id}/cancel"), &json!({})).status, 202);
    };
    killed_for_good(&json!({"action": "reindex", "table": "t"}), cancel, "cancelled");
}

#[test]
fn a_checkpoint_of_a_job_that_left_nothing_goes_with_it() {
    let app = super::with_table();
    super::output(&app, &create("i"));
    let mut unique = create("u");
    unique["unique"] = json!(true);
    assert_eq!(super::run(&app, &unique)["error"]["sqlstate"], "23505");
    assert_eq!(app.queue.count("SELECT count(*) FROM job_checkpoints"), 0);
    // Somebody has the name just now: what is invalid by it is theirs.
    let mut old = snapshot(&app.target);
    let mut theirs = app.target.session();
    let build =
        std::thread::spawn(move || theirs.execute_batch("CREATE INDEX CONCURRENTLY v ON public.t (num)").is_ok());
    eventually("somebody builds", || builds(&app.target, OLD_SNAPSHOTS));
    app.queue.run(&format!(
        "INSERT INTO job_checkpoints (job_id, lease, cursor, updated_at, leaves)
         SELECT id, lease, json_build_object('cursor', json_build_object('table', '{}', 'names', json_build_object('created', 'v'),
                'indexes', json_build_array()), 'statistics', json_build_object('rows_returned', 0, 'rows_affected', 0, 'result_bytes', 0)), now(), true
           FROM finished_jobs WHERE state = 'failed'",
        app.target.text("SELECT 'public.t'::regclass::oid")
    ));
    eventually("it was looked at", || {
        app.queue.count("SELECT count(*) FROM job_checkpoints WHERE looked_at IS NOT NULL") == 1
    });
    old.execute_batch("COMMIT").unwrap();
    assert!(build.join().unwrap(), "their build was disturbed");
    dropped_by_itself(&app.queue, &app.target);
    assert!(valid(&app.target, "public.v"));
}

#[test]
fn nobody_waits_long_behind_a_table_that_is_to_be_locked_for_an_incomplete_index() {
    let app = super::with_table();
    as_role(&app.target)
        .execute_batch(
            "CREATE TABLE public.p (id int) PARTITION BY LIST (id); CREATE TABLE public.p1 PARTITION OF public.p FOR VALUES IN (1)",
        )
        .unwrap();
    let mut writer = app.target.session();
    writer.execute_batch("BEGIN; INSERT INTO public.p1 VALUES (1)").unwrap();
    let id = app.submit(&job(&json!({"action": "create_index", "table": "p", "name": "p_i", "columns": ["id"]})));
    eventually("it builds", || builds(&app.target, "waiting for writers before build"));
    let mut reader = app.target.session();
    reader.execute_batch("BEGIN; SELECT FROM ONLY public.p").unwrap();
    assert_eq!(app.post(&format!("/v1/jobs/{id}/cancel"), &json!({})).status, 202);
    assert_eq!(app.ended(&id)["state"], "cancelled");
    writer.execute_batch("COMMIT").unwrap();
    eventually("a worker waits for the table", || {
        app.queue.run("UPDATE job_checkpoints SET looked_at = now() - interval '1 minute' WHERE leaves");
        app.target.count(
            "SELECT count(*) FROM pg_locks WHERE relation = 'public.p'::regclass AND mode = 'AccessExclusiveLock' AND NOT granted
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        ) == 1
    });
    // Who comes behind it goes on soon: the worker itself would have five seconds.
    let mut another = app.target.session();
    another.execute_batch("SET lock_timeout = '3s'; SELECT FROM public.p").unwrap();
    reader.execute_batch("COMMIT").unwrap();
    dropped_by_itself(&app.queue, &app.target);
}
