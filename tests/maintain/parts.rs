//! An index of a partitioned table, made by parts while others read and write.

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{OLD_SNAPSHOTS, as_role, builds, code, hint, invalid, job, log, output, run, snapshot, valid};
use crate::support::app::TestApp;
use crate::support::child::Server;
use crate::support::postgres::{Database, Postgres};
use crate::support::{eventually, history};

/// Three partitions, one of which has two of its own; 400 rows.
const PARTITIONED: &str = "CREATE TABLE public.p (id int NOT NULL, name text) PARTITION BY RANGE (id);
    CREATE TABLE public.p1 PARTITION OF public.p FOR VALUES FROM (0) TO (100);
    CREATE TABLE public.p2 (name text, gone int, id int NOT NULL);
    ALTER TABLE public.p2 DROP COLUMN gone;
    ALTER TABLE public.p ATTACH PARTITION public.p2 FOR VALUES FROM (100) TO (200);
    CREATE TABLE public.p3 PARTITION OF public.p FOR VALUES FROM (200) TO (400) PARTITION BY RANGE (id);
    CREATE TABLE public.p3a PARTITION OF public.p3 FOR VALUES FROM (200) TO (300);
    CREATE TABLE public.p3b PARTITION OF public.p3 FOR VALUES FROM (300) TO (400);
    INSERT INTO public.p SELECT g, 'n' || g FROM generate_series(0, 399) g";

fn args() -> Value {
    json!({"action": "create_index", "table": "p", "name": "p_name",
           "columns": [{"expression": "lower(name)"}, "id"], "where": "id <> 7"})
}

fn with_partitions() -> TestApp {
    let app = TestApp::start();
    as_role(&app.target).execute_batch(PARTITIONED).unwrap();
    app
}

/// The parts of an index, all levels, and whether each is valid.
fn parts(target: &Database, index: &str) -> String {
    target.text(&format!(
        "SELECT string_agg(i.indrelid::regclass || ':' || i.indisvalid, ' ' ORDER BY i.indrelid::regclass::text)
           FROM pg_partition_tree('public.{index}') t JOIN pg_index i ON i.indexrelid = t.relid"
    ))
}

const WHOLE: &str = "public.p1:true public.p2:true public.p3a:true public.p3b:true public.p3:true public.p:true";

fn whole(target: &Database) -> bool {
    let mut all: Vec<String> = parts(target, "p_name").split(' ').map(|part| part.replace("public.", "")).collect();
    all.sort();
    let mut expected: Vec<String> = WHOLE.split(' ').map(|part| part.replace("public.", "")).collect();
    expected.sort();
    all == expected
}

#[test]
fn each_partition_gets_its_own_and_all_become_one() {
    let app = with_partitions();
    // One is there already, under another name, and one that is nearly the same.
    as_role(&app.target)
        .execute_batch("CREATE INDEX mine ON public.p2 (lower(name), id) WHERE id <> 7; CREATE INDEX p1_p_name ON public.p1 (lower(name), id)")
        .unwrap();
    let mine = app.target.text("SELECT 'public.mine'::regclass::oid");
    let done = output(&app, &args());
    assert_eq!(done["partitions"], json!({"built": 3, "found": 1}), "{done}");
    assert_eq!((&done["index"]["valid"], &done["index"]["was_there"]), (&json!(true), &json!(false)));
    assert!(whole(&app.target), "{}", parts(&app.target, "p_name"));
    assert_eq!(
        app.target.text("SELECT inhparent::regclass FROM pg_inherits WHERE inhrelid = 'public.mine'::regclass"),
        "p_name"
    );
    assert_eq!(app.target.text("SELECT 'public.mine'::regclass::oid"), mine);
    let again = output(&app, &args());
    assert_eq!((&again["index"]["was_there"], &again["partitions"]), (&json!(true), &Value::Null));
    assert_eq!(app.queue.count("SELECT count(*) FROM job_checkpoints"), 0);
    // Another definition by this name is no success.
    let mut other = args();
    other["where"] = json!("id <> 8");
    assert_eq!(code(&run(&app, &other)), ("failed", "index_exists"));
    // Nothing to be waited for: no partitions.
    as_role(&app.target).execute_batch("CREATE TABLE public.e (id int) PARTITION BY RANGE (id)").unwrap();
    let none = output(&app, &json!({"action": "create_index", "table": "e", "name": "e_id", "columns": ["id"]}));
    assert_eq!((&none["partitions"], &none["index"]["valid"]), (&json!({"built": 0, "found": 0}), &json!(true)));
}

#[test]
fn writers_are_kept_out_nowhere_and_progress_counts_partitions() {
    let app = with_partitions();
    let mut old = snapshot(&app.target);
    let id = app.submit(&job(&args()));
    eventually("it waits for old transactions", || builds(&app.target, OLD_SNAPSHOTS));
    app.target.run("INSERT INTO public.p VALUES (50, 'new'), (150, 'new'), (250, 'new')");
    eventually("that is told", || {
        let phase = app.job(&id)["progress"]["phase"].as_str().unwrap_or_default().to_owned();
        phase.starts_with("creating index public.p_name on public.p1: waiting for old snapshots")
    });
    // Meanwhile one comes and one goes.
    app.target.run(
        "SET search_path = public; SET ROLE slowlane_demo;
         CREATE TABLE p5 PARTITION OF p FOR VALUES FROM (400) TO (500); ALTER TABLE p DETACH PARTITION p2",
    );
    old.execute_batch("COMMIT").unwrap();
    let job = app.ended(&id);
    assert_eq!(job["state"], "succeeded", "{job}");
    assert!(valid(&app.target, "public.p_name"));
    assert_eq!(app.target.count("SELECT count(*) FROM pg_partition_tree('public.p_name') WHERE isleaf"), 4);
    assert_eq!(invalid(&app.target), "");
}

#[test]
fn a_killed_worker_s_parts_are_used_by_the_next_attempt() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    as_role(&target).execute_batch(PARTITIONED).unwrap();
    let api = Server::api(&queue, &[]);
    let mut doomed = Server::worker(&queue, &target, &[]);
    // The second one waits for whoever has written to it.
    let mut writer = target.session();
    writer.execute_batch("BEGIN; INSERT INTO public.p2 (id, name) VALUES (150, 'x')").unwrap();
    let id = api.client.submit(&job(&args()));
    eventually("it has come to the second partition", || builds(&target, "waiting for writers before build"));
    let first = target.text("SELECT 'public.p1_p_name'::regclass::oid");
    doomed.signal(Signal::SIGKILL);
    doomed.wait();
    queue.run("DELETE FROM workers");
    let _heir = Server::worker(&queue, &target, &[]);
    eventually("somebody else has the job", || api.client.job(&id)["interruptions"] == 1);
    writer.execute_batch("COMMIT").unwrap();
    let job = api.client.ended(&id);
    assert_eq!(
        (&job["state"], &job["output"]["partitions"]),
        (&json!("succeeded"), &json!({"built": 3, "found": 1})),
        "{job}"
    );
    assert_eq!(job["output"]["dropped_invalid"], json!(["public.p2_p_name"]));
    assert_eq!(target.text("SELECT 'public.p1_p_name'::regclass::oid"), first);
    assert!(whole(&target), "{}", parts(&target, "p_name"));
    history::check(&queue, &[id]);
}

#[test]
fn what_a_cancelled_one_has_built_stays_and_what_is_incomplete_goes() {
    let app = with_partitions();
    let mut writer = app.target.session();
    writer.execute_batch("BEGIN; INSERT INTO public.p2 (id, name) VALUES (150, 'x')").unwrap();
    let id = app.submit(&job(&args()));
    eventually("it has come to the second partition", || builds(&app.target, "waiting for writers before build"));
    assert_eq!(app.post(&format!("/v1/jobs/{id}/cancel"), &json!({})).status, 202);
    assert_eq!(app.ended(&id)["state"], "cancelled");
    writer.execute_batch("COMMIT").unwrap();
    assert!(log(&app, &id).contains("public.p_name is incomplete so far"), "{}", log(&app, &id));
    eventually("the rest goes by itself", || {
        app.queue.run("UPDATE job_checkpoints SET looked_at = now() - interval '1 minute' WHERE leaves");
        invalid(&app.target).is_empty() && app.queue.count("SELECT count(*) FROM job_checkpoints") == 0
    });
    assert_eq!(app.target.text("SELECT coalesce(to_regclass('public.p_name')::text, '-')"), "-");
    assert!(valid(&app.target, "public.p1_p_name"));
    assert_eq!(output(&app, &args())["partitions"], json!({"built": 3, "found": 1}));
    assert!(whole(&app.target));
}

/// The indexes of each partition that aren't parts of an other one.
fn loose(target: &Database) -> String {
    target.text(
        "SELECT coalesce(string_agg(indexrelid::regclass::text, ' '), '') FROM pg_index JOIN pg_class c ON c.oid = indexrelid
          WHERE relnamespace = 'public'::regnamespace AND relname <> 'p_name'
            AND NOT EXISTS (SELECT FROM pg_inherits WHERE inhrelid = indexrelid)",
    )
}

#[test]
fn jobs_of_the_same_index_build_each_part_once() {
    let app = with_partitions();
    // Whichever is first waits for this one, and the others for it.
    let mut old = snapshot(&app.target);
    let ids: Vec<String> = (0..3).map(|_| app.submit(&job(&args()))).collect();
    eventually("one builds", || builds(&app.target, OLD_SNAPSHOTS));
    eventually("the others wait for it", || {
        let waits =
            |id: &String| app.job(id)["progress"]["phase"] == "waiting for another job that makes an index of public.p";
        ids.iter().filter(|id| waits(id)).count() == 2
    });
    old.execute_batch("COMMIT").unwrap();
    let ended: Vec<Value> = ids.iter().map(|id| app.ended(id)).collect();
    for job in &ended {
        assert_eq!((&job["state"], &job["output"]["index"]["valid"]), (&json!("succeeded"), &json!(true)), "{job}");
    }
    let built = ended.iter().filter(|job| job["output"]["partitions"]["built"] == 4).count();
    let found = ended.iter().filter(|job| job["output"]["index"]["was_there"] == true).count();
    assert_eq!((built, found), (1, 2), "{ended:?}");
    assert!(whole(&app.target), "{}", parts(&app.target, "p_name"));
    assert_eq!(loose(&app.target), "");
}

#[test]
fn an_index_that_was_built_while_its_partition_was_waited_for_becomes_the_part() {
    let app = with_partitions();
    let mut user = as_role(&app.target);
    user.execute_batch("BEGIN; CREATE INDEX mine ON public.p2 (lower(name), id) WHERE id <> 7").unwrap();
    let id = app.submit(&job(&args()));
    eventually("the job waits for the partition", || {
        app.target.count(
            "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'public.p2'::regclass
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        ) == 1
    });
    user.execute_batch("COMMIT").unwrap();
    let job = app.ended(&id);
    assert_eq!(job["output"]["partitions"], json!({"built": 3, "found": 1}), "{job}");
    assert_eq!(loose(&app.target), "");
    assert!(whole(&app.target), "{}", parts(&app.target, "p_name"));
}

#[test]
fn a_name_that_is_taken_meanwhile_is_left_and_another_one_used() {
    let app = with_partitions();
    let mut user = as_role(&app.target);
    // Not to be seen until it is committed: the job takes the name for free.
    user.execute_batch("BEGIN; CREATE TABLE public.p1_p_name (id int)").unwrap();
    let id = app.submit(&job(&args()));
    eventually("the job waits for the name", || {
        app.target.count(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'CREATE INDEX%'
                AND wait_event = 'transactionid'",
        ) == 1
    });
    user.execute_batch("COMMIT").unwrap();
    let done = app.ended(&id);
    assert_eq!(done["output"]["partitions"], json!({"built": 4, "found": 0}), "{done}");
    assert!(log(&app, &id).contains("a name was taken meanwhile"), "{}", log(&app, &id));
    assert!(whole(&app.target), "{}", parts(&app.target, "p_name"));
}

#[test]
fn what_the_server_takes_no_parts_of_is_said() {
    let app = with_partitions();
    let mut unique = args();
    unique["unique"] = json!(true);
    unique["where"] = Value::Null;
    unique["columns"] = json!(["name"]);
    let job = run(&app, &unique);
    assert_eq!(code(&job), ("failed", "sql_error"), "{job}");
    assert!(job["error"]["message"].as_str().unwrap().contains("partitioning columns"), "{job}");
    // Rows that aren't unique: the parts that are stay, and the rest goes.
    unique["columns"] = json!(["id"]);
    app.target.run("INSERT INTO public.p VALUES (350, 'twice')");
    let id = app.submit(&super::job(&unique));
    let failed = app.ended(&id);
    assert_eq!(failed["error"]["sqlstate"], "23505", "{failed}");
    eventually("the rest goes by itself", || {
        app.queue.run("UPDATE job_checkpoints SET looked_at = now() - interval '1 minute' WHERE leaves");
        invalid(&app.target).is_empty()
    });
    app.target.run("DELETE FROM public.p WHERE name = 'twice'");
    assert_eq!(output(&app, &unique)["partitions"], json!({"built": 1, "found": 3}));
    // Partitions that aren't ours to build on.
    app.target.run("CREATE TABLE public.theirs (LIKE public.p); ALTER TABLE public.p ATTACH PARTITION public.theirs FOR VALUES FROM (600) TO (700)");
    let mut denied = args();
    denied["name"] = json!("denied");
    let job = run(&app, &denied);
    assert_eq!(code(&job), ("failed", "permission_denied"), "{job}");
    assert_eq!(app.target.text("SELECT coalesce(to_regclass('public.denied')::text, '-')"), "-");
    app.target.run("ALTER TABLE public.p DETACH PARTITION public.theirs; DROP INDEX public.p_name; CREATE FOREIGN DATA WRAPPER nothing; CREATE SERVER nowhere FOREIGN DATA WRAPPER nothing;
        CREATE FOREIGN TABLE public.far PARTITION OF public.p FOR VALUES FROM (600) TO (700) SERVER nowhere; ALTER FOREIGN TABLE public.far OWNER TO slowlane_demo");
    let mut foreign = args();
    foreign["name"] = json!("foreign_too");
    let job = run(&app, &foreign);
    assert_eq!(code(&job), ("failed", "not_supported"), "{job}");
    assert!(
        job["error"]["message"].as_str().unwrap().contains("public.far") && hint(&job).contains("concurrently: false"),
        "{job}"
    );
}
