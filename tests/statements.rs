//! Saved statements: the list and its schemas, what callers may send, what runs and is recorded, reloading, broken
//! files, targets that run nothing else, and the check before a deployment.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;

use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use slowlane::config::Config;
use slowlane::{Server as Embedded, Target};

use crate::support::app::TestApp;
use crate::support::child::{Server, program, without_settings};
use crate::support::client::Client;
use crate::support::eventually;
use crate::support::postgres::{Database, Postgres};

const LATE: &str = "-- kind = 'query'
-- description = 'Late ones'
-- timeout = '20s'
-- [[params]]
-- name = 'least'
-- type = 'integer'
-- minimum = 0
-- default = 3
-- [[params]]
-- name = 'names'
-- type = 'text[]'
-- nullable = true
SELECT id, name FROM t WHERE id >= $1 AND ($2 IS NULL OR name = ANY ($2)) ORDER BY id";

const CHANGE: &str = "-- kind = 'execute'
-- queue = 'second'
-- [[params]]
-- name = 'id'
-- type = 'integer'
-- [[params]]
-- name = 'name'
-- type = 'text'
UPDATE t SET name = $2 WHERE id = $1;
-- Both values go to each statement, and none has to use them.
INSERT INTO changes (note) VALUES ('a;b');
DELETE FROM t WHERE id = $1 + 1;";

const FILL: &str = "-- kind = 'backfill'
-- [[params]]
-- name = 'word'
-- type = 'text'
-- [args]
-- table = 't'
-- batch_rows = 2
-- where = 'name <> $1'
-- [args.set]
-- name = '$1'
";

const VIEW: &str = "-- kind = 'refresh'\n-- [args]\n-- view = 'v'\n";

/// A folder of statements.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    files.iter().for_each(|(name, text)| fs::write(folder.path().join(name), text).unwrap());
    folder
}

fn tables(target: &Database) {
    target.run(
        "CREATE TABLE public.t (id int PRIMARY KEY, name text); INSERT INTO public.t SELECT g, 'n' || g FROM generate_series(1, 5) g;
         CREATE TABLE public.changes (note text); CREATE TABLE public.secrets (a int);
         ALTER TABLE public.t OWNER TO slowlane_demo; ALTER TABLE public.changes OWNER TO slowlane_demo;
         CREATE MATERIALIZED VIEW public.v AS SELECT count(*) AS n FROM public.t; ALTER MATERIALIZED VIEW public.v OWNER TO slowlane_demo",
    );
}

fn all() -> tempfile::TempDir {
    folder(&[("late.sql", LATE), ("change.sql", CHANGE), ("fill.sql", FILL), ("view.sql", VIEW)])
}

fn app(folder: &Path) -> TestApp {
    let app = TestApp::with(|config: &mut Config| {
        config.statements = Some(folder.to_owned());
        config.queues = vec!["default".to_owned(), "second".to_owned()];
    });
    tables(&app.target);
    app
}

fn statement(name: &str, params: &Value) -> Value {
    json!({"kind": "statement", "args": {"name": name, "params": params}})
}

fn run(client: &Client, name: &str, params: &Value) -> Value {
    client.ended(&client.submit(&statement(name, params)))
}

#[test]
fn each_kind_runs_with_the_values_of_its_caller() {
    let folder = all();
    let app = app(folder.path());
    let job = run(&app, "late", &json!({"names": ["n3", "n5"]}));
    assert_eq!((&job["state"], &job["result"]["rows"]), (&json!("succeeded"), &json!(2)), "{job}");
    assert_eq!(
        (&job["timeout_ms"], &job["target"], &job["queue"]),
        (&json!(20_000), &json!("default"), &json!("default"))
    );
    let data = app.get(&format!("/v1/jobs/{}/result/data?format=csv", job["id"].as_str().unwrap()));
    assert_eq!(data.text().trim(), "id,name\n3,n3\n5,n5");
    // A job of it has a result, as one of its own kind has.
    let pending =
        app.post("/v1/jobs", &json!({"kind": "statement", "args": {"name": "late"}, "run_at": "2100-01-01T00:00:00Z"}));
    assert_eq!(pending.json()["result"]["state"], "pending");

    let hostile = "'; DROP TABLE t; --";
    let job = run(&app, "change", &json!({"id": 1, "name": hostile}));
    let output = &job["output"]["statements"];
    assert_eq!((&job["state"], &job["queue"]), (&json!("succeeded"), &json!("second")), "{job}");
    let counts: Vec<(&str, i64)> = output
        .as_array()
        .unwrap()
        .iter()
        .map(|s| (s["command"].as_str().unwrap(), s["rows_affected"].as_i64().unwrap()))
        .collect();
    assert_eq!(counts, [("UPDATE", 1), ("INSERT", 1), ("DELETE", 1)]);
    assert_eq!(app.target.text("SELECT name FROM public.t WHERE id = 1"), hostile);

    let job = run(&app, "fill", &json!({"word": "same"}));
    assert_eq!((&job["state"], &job["output"]["rows_affected"]), (&json!("succeeded"), &json!(4)), "{job}");
    assert_eq!(run(&app, "view", &json!({}))["state"], "succeeded");
    assert_eq!(app.target.text("SELECT n::text FROM public.v"), "4");
}

#[test]
fn what_ran_is_recorded_with_the_job_and_its_attempts() {
    let folder = all();
    let app = app(folder.path());
    let listed = app.get("/v1/statements/late").json();
    let version = listed["version"].as_str().unwrap();
    assert_eq!(version.len(), 12);
    let waiting =
        app.post("/v1/jobs", &json!({"kind": "statement", "args": {"name": "late"}, "run_at": "2100-01-01T00:00:00Z"}));
    assert_eq!(waiting.json()["statement"], json!({"name": "late", "version": null}));
    let job = run(&app, "late", &json!({}));
    assert_eq!(job["statement"], json!({"name": "late", "version": version}));
    let attempts = app.get(&format!("/v1/jobs/{}/attempts", job["id"].as_str().unwrap())).json();
    assert_eq!(attempts["attempts"][0]["statement_version"], version);
    assert_eq!(app.query("SELECT 1", &json!([]))["statement"], Value::Null);
    // Another text is another version, and only what runs from then on has it.
    fs::write(folder.path().join("late.sql"), LATE.replace("ORDER BY id", "ORDER BY id DESC")).unwrap();
    assert_eq!(app.post("/v1/statements/reload", &json!({})).status, 200);
    let later = run(&app, "late", &json!({}));
    assert_ne!(later["statement"]["version"], version);
    assert_eq!(app.job(job["id"].as_str().unwrap())["statement"]["version"], version);
}

#[test]
fn what_a_caller_gets_wrong_is_said_with_its_place() {
    let folder = all();
    let app = app(folder.path());
    for (job, code, pointers) in [
        (statement("nothing", &json!({})), "unknown_statement", vec!["/args/name"]),
        (json!({"kind": "statement", "args": {"params": {}}}), "invalid_args", vec!["/args"]),
        (json!({"kind": "statement", "args": {"name": "late", "sql": "SELECT 1"}}), "invalid_args", vec!["/args/sql"]),
        (statement("late", &json!({"least": -1})), "invalid_args", vec!["/args/params/least"]),
        (statement("late", &json!({"least": "3"})), "invalid_args", vec!["/args/params/least"]),
        (statement("late", &json!({"names": ["a", 1]})), "invalid_args", vec!["/args/params/names/1"]),
        (
            statement("late", &json!({"most": 1, "least": 1.5})),
            "invalid_args",
            vec!["/args/params/least", "/args/params/most"],
        ),
        (statement("change", &json!({})), "invalid_args", vec!["/args/params/id", "/args/params/name"]),
        (
            json!({"kind": "statement", "args": {"name": "late"}, "timeout_ms": 20_001}),
            "invalid_request",
            vec!["/timeout_ms"],
        ),
    ] {
        let (status, found, places) = app.post("/v1/jobs", &job).problem();
        assert_eq!((status, found.as_str()), (422, code), "{job}");
        assert_eq!(places, pointers, "{job}");
    }
    // Less time than it may take is its caller's choice.
    let short = app.post("/v1/jobs", &json!({"kind": "statement", "args": {"name": "late"}, "timeout_ms": 1_000}));
    assert_eq!((short.status, &short.json()["timeout_ms"]), (202, &json!(1_000)));
    assert_eq!(app.get("/v1/statements/nothing").problem().1, "statement_not_found");
    assert_eq!(app.get("/v1/statements?x=1").problem().1, "invalid_parameter");
    assert_eq!(app.post("/v1/statements/reload", &json!({"x": 1})).problem().2, ["/x"]);
}

#[test]
fn the_list_has_a_schema_that_other_tools_understand() {
    let folder = all();
    let app = app(folder.path());
    let list = app.get("/v1/statements").json();
    let names: Vec<&str> = list["statements"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["change", "fill", "late", "view"]);
    assert_eq!(list["broken"], json!([]));
    let late = &list["statements"][2];
    assert_eq!(
        (&late["kind"], &late["description"], &late["stale"]),
        (&json!("query"), &json!("Late ones"), &json!(false))
    );
    assert_eq!(
        late["params"],
        json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "additionalProperties": false, "required": [],
            "properties": {
                "least": {"type": "integer", "minimum": 0, "maximum": 2_147_483_647, "default": 3, "x-postgres-type": "integer"},
                "names": {"type": ["array", "null"], "items": {"type": "string"}, "default": null, "x-postgres-type": "text[]"},
            },
        })
    );
    assert_eq!(list["statements"][0]["params"]["required"], json!(["id", "name"]));
    assert!(!list.to_string().contains("SELECT"), "callers are shown no SQL");
    // It can be looked at before it is run, as any job.
    let report = app.post("/v1/jobs/validate", &statement("late", &json!({}))).json();
    assert_eq!(
        (&report["valid"], &report["statements"][0]["pointer"]),
        (&json!(true), &json!("/args/name")),
        "{report}"
    );
}

#[test]
fn a_broken_file_leaves_what_it_was_and_the_others() {
    let folder = all();
    let app = app(folder.path());
    let version = app.get("/v1/statements/late").json()["version"].clone();
    fs::write(folder.path().join("late.sql"), LATE.replace("'query'", "'query")).unwrap();
    fs::write(folder.path().join("new.sql"), "-- kind = 'query'\n-- knid = 1\nSELECT 1").unwrap();
    fs::write(folder.path().join("commits.sql"), "-- kind = 'execute'\nSELECT 1;\n\nCOMMIT;").unwrap();
    fs::remove_file(folder.path().join("change.sql")).unwrap();
    let list = app.post("/v1/statements/reload", &json!({})).json();
    let broken: Vec<(&str, i64, &Value)> = list["broken"]
        .as_array()
        .unwrap()
        .iter()
        .map(|b| (b["file"].as_str().unwrap(), b["line"].as_i64().unwrap(), &b["stale"]))
        .collect();
    assert_eq!(
        broken,
        [("commits.sql", 4, &Value::Null), ("late.sql", 1, &json!("late")), ("new.sql", 2, &Value::Null)]
    );
    assert!(list["broken"][0]["message"].as_str().unwrap().contains("no transaction control"), "{list}");
    let late = app.get("/v1/statements/late").json();
    assert_eq!((&late["stale"], &late["version"]), (&json!(true), &version));
    assert_eq!(run(&app, "late", &json!({}))["statement"]["version"], version);
    assert_eq!(app.post("/v1/jobs", &statement("change", &json!({}))).problem().1, "unknown_statement");
    // Without its folder everything stays.
    let path = folder.path().to_owned();
    fs::rename(&path, path.with_extension("away")).unwrap();
    let (status, code, _) = app.post("/v1/statements/reload", &json!({})).problem();
    assert_eq!((status, code.as_str()), (503, "statements_unreadable"));
    assert_eq!(run(&app, "late", &json!({}))["state"], "succeeded");
    fs::rename(path.with_extension("away"), &path).unwrap();
    assert_eq!(TestApp::start().post("/v1/statements/reload", &json!({})).problem().1, "no_statements");
}

#[test]
fn a_statement_that_is_gone_or_other_when_it_is_to_run_is_not_guessed_at() {
    let folder = all();
    let app = app(folder.path());
    // Accepted by SQL: no process has looked at it.
    let enqueue = |args: &str, more: &str| {
        app.queue.text(&format!("SELECT slowlane.enqueue('statement', '{args}', max_attempts => 1 {more})::text"))
    };
    let unknown = app.ended(&enqueue(r#"{"name":"gone"}"#, ""));
    assert_eq!(
        (&unknown["error"]["code"], &unknown["error"]["retryable"]),
        (&json!("unknown_statement"), &json!(true))
    );
    let wrong = app.ended(&enqueue(r#"{"name":"late","params":{"least":-1}}"#, ""));
    assert_eq!(wrong["error"]["code"], "invalid_args");
    assert!(wrong["error"]["message"].as_str().unwrap().contains("/params/least"), "{wrong}");
    // A retry has what its statement has by then.
    let later = json!({"kind": "statement", "args": {"name": "late"}, "run_at": "2100-01-01T00:00:00Z"});
    let cancelled = app.submit(&later);
    app.post(&format!("/v1/jobs/{cancelled}/cancel"), &json!({}));
    fs::write(folder.path().join("late.sql"), LATE.replace("'20s'", "'10s'")).unwrap();
    app.post("/v1/statements/reload", &json!({}));
    let again = app.post(&format!("/v1/jobs/{cancelled}/retry"), &json!({}));
    assert_eq!((again.status, &again.json()["timeout_ms"]), (202, &json!(10_000)), "{}", again.text());
    // It may not ask for more time than the statement has.
    fs::write(folder.path().join("sleep.sql"), "-- kind = 'query'\n-- timeout = '300ms'\nSELECT pg_sleep(60)").unwrap();
    app.post("/v1/statements/reload", &json!({}));
    let slow = app.ended(&enqueue(r#"{"name":"sleep"}"#, ", timeout_ms => 60000"));
    assert_eq!(slow["error"]["code"], "timeout");
    assert!(slow["error"]["message"].as_str().unwrap().contains("300"), "{slow}");
}

#[test]
fn a_backfill_does_not_go_on_as_another_statement() {
    let folder = all();
    fs::write(folder.path().join("fill.sql"), FILL.replace("batch_rows = 2", "batch_rows = 2\n-- max_rate = 1"))
        .unwrap();
    let app = app(folder.path());
    let mut job = statement("fill", &json!({"word": "same"}));
    job["max_attempts"] = json!(2);
    let id = app.submit(&job);
    eventually("a batch is done", || app.target.count("SELECT count(*) FROM public.t WHERE name = 'same'") > 0);
    assert_eq!(app.post(&format!("/v1/jobs/{id}/pause"), &json!({})).status, 202);
    eventually("it is paused", || app.job(&id)["state"] == "paused");
    let version = app.job(&id)["statement"]["version"].clone();
    // Not even as another kind.
    let other = "-- kind = 'execute'\n-- [[params]]\n-- name = 'word'\n-- type = 'text'\nDELETE FROM t WHERE name = $1";
    fs::write(folder.path().join("fill.sql"), other).unwrap();
    app.post("/v1/statements/reload", &json!({}));
    assert_eq!(app.post(&format!("/v1/jobs/{id}/resume"), &json!({})).status, 202);
    // It is tried again: another process may have the right one.
    let job = app.ended(&id);
    assert_eq!(job["attempt"], 2);
    assert_eq!((&job["state"], &job["error"]["code"]), (&json!("failed"), &json!("statement_changed")), "{job}");
    assert_eq!(job["statement"]["version"], version, "nothing of the other one ran");
    assert_eq!(app.target.count("SELECT count(*) FROM public.t"), 5);
    // A query has nothing to go on from: it has no pause.
    let late = app
        .post("/v1/jobs", &json!({"kind": "statement", "args": {"name": "late"}, "run_at": "2100-01-01T00:00:00Z"}))
        .json();
    let pause = app.post(&format!("/v1/jobs/{}/pause", late["id"].as_str().unwrap()), &json!({}));
    assert_eq!(pause.problem().1, "kind_not_resumable");
}

#[test]
fn a_target_may_run_nothing_but_saved_statements() {
    let folder = all();
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    tables(&target);
    let mut closed = Target::at(&target.dsn);
    closed.spec.statements_only = true;
    let server = Embedded::builder().queue(&queue.dsn).target("default", closed).target("open", &target.dsn);
    let server = server.statements(folder.path()).queues(["default", "second"]).listen(([127, 0, 0, 1], 0)).workers(2);
    let running = server.build().unwrap().start().unwrap();
    let client = Client::new(running.address().unwrap());
    let sql = json!({"kind": "query", "args": {"sql": "SELECT 1"}});
    for path in ["/v1/jobs", "/v1/jobs/validate"] {
        let (status, code, pointers) = client.post(path, &sql).problem();
        assert_eq!((status, code.as_str(), pointers), (422, "statements_only", vec!["/kind".to_owned()]), "{path}");
    }
    assert_eq!(run(&client, "late", &json!({}))["state"], "succeeded");
    assert_eq!(client.post("/v1/jobs/validate", &statement("late", &json!({}))).json()["valid"], true);
    let open = client.submit(&json!({"kind": "query", "args": {"sql": "SELECT 1"}, "target": "open"}));
    assert_eq!(client.ended(&open)["state"], "succeeded");
    assert_eq!(client.post("/v1/targets/default/check", &json!({})).status, 200);
    // A statement is its own target's.
    let elsewhere = client.post("/v1/jobs", &json!({"kind": "statement", "args": {"name": "late"}, "target": "open"}));
    assert_eq!(elsewhere.problem().2, ["/target"]);
    // Who gets a job in by SQL gets no further.
    for (kind, args) in [
        ("execute", r#"{"statements":[{"sql":"DROP TABLE t"}]}"#),
        ("validate", r#"{"kind":"query","args":{"sql":"SELECT 1"}}"#),
    ] {
        let id = queue.text(&format!("SELECT slowlane.enqueue('{kind}', '{args}')::text"));
        assert_eq!(client.ended(&id)["error"]["code"], "statements_only", "{kind}");
    }
    let id = queue.text("SELECT slowlane.enqueue('statement', '{\"name\":\"late\"}', target => 'open')::text");
    let job = client.ended(&id);
    assert_eq!(job["error"]["code"], "invalid_args", "{job}");
    assert_eq!(target.count("SELECT count(*) FROM public.t"), 5);
    running.stop().unwrap();
}

/// `slowlane serve` with a folder of statements.
fn serve(queue: &Database, target: &Database, folder: &Path) -> Server {
    Server::serve(queue, target, &["--statements", folder.to_str().unwrap()])
}

fn versions(server: &Server) -> Vec<(String, String)> {
    let list = server.client.get("/v1/statements").json();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    list["statements"].as_array().unwrap().iter().map(|s| (text(&s["name"]), text(&s["version"]))).collect()
}

#[test]
fn a_signal_and_a_call_have_the_folder_read_again() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let folder = folder(&[("a.sql", "-- kind = 'query'\nSELECT 1")]);
    let first = serve(&queue, &target, folder.path());
    let second = serve(&queue, &target, folder.path());
    let before = versions(&first);
    fs::write(folder.path().join("a.sql"), "-- kind = 'query'\nSELECT 2").unwrap();
    first.signal(Signal::SIGHUP);
    eventually("the signal has it read", || versions(&first) != before);
    assert_eq!(first.client.get("/readyz").status, 200, "it stopped: {}", first.log());
    assert_eq!(versions(&second), before, "nobody told this one");
    // A call reaches every process.
    fs::write(folder.path().join("b.sql"), "-- kind = 'query'\nSELECT 3").unwrap();
    assert_eq!(first.client.post("/v1/statements/reload", &json!({})).status, 200);
    eventually("the other process has read it too", || versions(&second) == versions(&first));
    assert_eq!(versions(&second).len(), 2);
}

#[test]
fn a_closed_terminal_stops_a_server_that_reads_its_statements_by_the_same_signal() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let folder = folder(&[("a.sql", "-- kind = 'query'\nSELECT 1")]);
    // Nobody else may inherit its end of ours, or it would never be closed.
    let ours = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).unwrap();
    grantpt(&ours).and_then(|()| unlockpt(&ours)).unwrap();
    let mut theirs = fs::OpenOptions::new();
    let theirs =
        theirs.read(true).write(true).custom_flags(OFlag::O_NOCTTY.bits()).open(ptsname_r(&ours).unwrap()).unwrap();
    let mut command = without_settings(Command::new("setsid"));
    command.arg("--ctty").arg(env!("CARGO_BIN_EXE_slowlane"));
    command
        .args(["serve", "--listen", "127.0.0.1:0", "--target", "default=TARGET_URL", "--statements"])
        .arg(folder.path());
    command.env("SLOWLANE_DATABASE_URL", queue.dsn.to_url().expose()).env("TARGET_URL", target.dsn.to_url().expose());
    command.stdin(theirs);
    let mut server = Server::spawn(command);
    let before = versions(&server);
    fs::write(folder.path().join("a.sql"), "-- kind = 'query'\nSELECT 2").unwrap();
    server.signal(Signal::SIGHUP);
    eventually("the signal has it read", || versions(&server) != before);
    drop(ours);
    assert!(server.wait().success(), "{}", server.log());
}

#[test]
fn a_folder_that_is_not_there_is_said_at_the_start() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let mut command = program();
    command.args([
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--target",
        "default=TARGET_URL",
        "--statements",
        "/nowhere/at/all",
    ]);
    command.env("SLOWLANE_DATABASE_URL", queue.dsn.to_url().expose()).env("TARGET_URL", target.dsn.to_url().expose());
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && text.contains("/nowhere/at/all"), "{text}");
}

fn check(target: &Database, folder: &Path, more: &[&str]) -> (Option<i32>, String, String) {
    let mut command: Command = program();
    command.args(["statements", "check", "--target", "default=TARGET_URL"]).args(more).arg(folder);
    command.env("TARGET_URL", target.dsn.to_url().expose());
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_folder_is_checked_before_it_is_used() {
    let target = Postgres::shared().work();
    tables(&target);
    let good = all();
    let (status, out, err) = check(&target, good.path(), &[]);
    assert_eq!(status, Some(0), "{out}{err}");
    assert!(
        out.contains("4 saved statements") && out.contains("ok      late (query on default, planned at a cost of"),
        "{out}"
    );

    let bad = folder(&[
        ("a.sql", "-- kind = 'query'\nSELECT 1 AS a,\n       nothing"),
        ("b.sql", "-- kind = 'query'\nSELECT * FROM secrets"),
        ("c.sql", "-- kind = 'query'\n-- [[params]]\n-- name = 'x'\n-- type = 'text'\nSELECT id FROM t WHERE id = $1"),
        ("d.sql", "-- kind = 'execute'\nCREATE TABLE made (a int);\nINSERT INTO made VALUES (1);\nDELETE FROM t"),
        ("e.sql", "-- kind = 'execute'\nDELETE FROM t;\nDELETE FROM secrets"),
        ("f.sql", "-- kind = 'refresh'\n-- [args]\n-- view = 'v'\n-- concurrently = true\n"),
        (
            "g.sql",
            "-- kind = 'backfill'\n-- [args]\n-- table = 't'\n-- where = 'nobody'\n-- set = { name = 'upper(name)' }\n",
        ),
        ("h.sql", "-- kind = 'backfill'\n-- [args]\n-- table = 'secrets'\n-- key = ['a']\n-- delete = true\n"),
        ("i.sql", "-- kind = 'query'\n-- target = 'elsewhere'\nSELECT 1"),
        ("j.sql", "-- kind = 'query'\nDELETE FROM t"),
        ("k.sql", "-- kind = 'query'\n-- timeout = 'x'\nSELECT 1"),
        ("l.sql", "-- kind = 'query'\n-- [[params]]\n-- name = 'x'\n-- type = 'no_such_type'\nSELECT $1"),
        ("m.sql", "-- kind = 'execute'\n\nSET LOCAL work_mem = '1MB';\n-- a note\nDELETE FROM made_by_nobody"),
        ("n.sql", "-- kind = 'query'\nWITH d AS (DELETE FROM t RETURNING id) SELECT * FROM d"),
        ("o.sql", "-- kind = 'query'\nSELECT * FROM t FOR UPDATE"),
        ("p.sql", "-- kind = 'execute'\nCREATE INDEX CONCURRENTLY i ON t (name)"),
        ("q.sql", "-- kind = 'execute'\nSELECT id INTO kept FROM t;\nSELECT * FROM kept"),
        ("r.sql", "-- kind = 'query'\n\nSELECT id INTO kept FROM t"),
        (
            "s.sql",
            "-- kind = 'query'\n-- [[params]]\n-- name = 'x'\n-- type = 'int'\nEXPLAIN (ANALYZE) DELETE FROM t WHERE id = $1",
        ),
        ("t.sql", "-- kind = 'backfill'\n-- [args]\n-- table = 't'\n-- [args.set]\n-- name = 'nothing'\n"),
        ("u.sql", "-- kind = 'query'\n-- [[params]]\n-- name = 'x'\n-- type = 'varchar(0)'\nSELECT $1"),
    ]);
    let (status, out, err) = check(&target, bad.path(), &["--json"]);
    assert_eq!(status, Some(4), "{out}{err}");
    let report: Value = serde_json::from_str(&out).unwrap();
    let found: Vec<(String, bool, Value, Value, Value)> = report["statements"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| {
            let finding = &s["findings"][0];
            let name = s["name"].as_str().unwrap().to_owned();
            (
                name,
                s["valid"].as_bool().unwrap(),
                finding["line"].clone(),
                finding["error"]["code"].clone(),
                finding["uncertain"].clone(),
            )
        })
        .collect();
    let expected = [
        ("a", false, json!(3), json!("sql_error"), json!(false)),
        ("b", false, json!(2), json!("permission_denied"), json!(false)),
        ("c", false, json!(5), json!("sql_error"), json!(false)),
        ("d", true, json!(3), json!("sql_error"), json!(true)),
        ("e", false, json!(3), json!("permission_denied"), json!(false)),
        ("f", false, json!(3), json!("no_unique_index"), json!(false)),
        ("g", false, json!(4), json!("sql_error"), json!(false)),
        ("h", false, json!(4), json!("nullable_key"), json!(false)),
        ("i", false, Value::Null, Value::Null, Value::Null),
        ("j", false, json!(2), json!("statement_not_allowed"), json!(false)),
        ("l", false, json!(5), json!("invalid_parameter"), json!(false)),
        ("m", false, json!(5), json!("sql_error"), json!(false)),
        ("n", false, json!(2), json!("read_only"), json!(false)),
        ("o", false, json!(2), json!("read_only"), json!(false)),
        ("p", false, json!(2), json!("statement_not_allowed"), json!(false)),
        ("q", true, json!(3), json!("sql_error"), json!(true)),
        ("r", false, json!(3), json!("read_only"), json!(false)),
        ("s", false, json!(5), json!("read_only"), json!(false)),
        ("t", false, json!(5), json!("sql_error"), json!(false)),
        ("u", false, json!(5), json!("invalid_parameter"), json!(false)),
    ];
    for (found, expected) in found.iter().zip(&expected) {
        let (name, valid, line, code, uncertain) = expected;
        assert_eq!(*found, ((*name).to_owned(), *valid, line.clone(), code.clone(), uncertain.clone()), "{report}");
    }
    assert_eq!(found.len(), expected.len());
    assert_eq!(report["statements"][8]["unknown_target"], true);
    assert_eq!(report["broken"][0]["file"], "k.sql");
    assert_eq!(target.count("SELECT count(*) FROM public.t"), 5, "something was run");
    assert_eq!(report["statements"][3]["unplanned"], json!([2]), "{report}");
    // What only may stand in the way is told apart, and so is what can't run where nothing can be written.
    let perhaps = folder(&[("d.sql", "-- kind = 'execute'\nCREATE TABLE made (a int);\nINSERT INTO made VALUES (1)")]);
    let (status, out, _) = check(&target, perhaps.path(), &[]);
    assert!(
        status == Some(3) && out.contains("perhaps d (execute") && out.contains("of line 2 only the syntax"),
        "{out}"
    );
    let settings = folder(&[(
        "slowlane.toml",
        "[targets.default]\ndsn_env = 'TARGET_URL'\nread_only = true\n[targets.away]\ndsn_env = 'NOT_SET'\n",
    )]);
    let mut reading = program();
    reading
        .args(["statements", "check", "--json", "--config"])
        .arg(settings.path().join("slowlane.toml"))
        .arg(good.path());
    let output = reading.env("TARGET_URL", target.dsn.to_url().expose()).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let valid: Vec<(&str, bool)> = report["statements"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| (s["name"].as_str().unwrap(), s["valid"].as_bool().unwrap()))
        .collect();
    assert_eq!(valid, [("change", false), ("fill", false), ("late", true), ("view", false)], "{report}");
    assert_eq!(report["statements"][0]["findings"][0]["error"]["code"], "read_only");
    let mut reading = program();
    reading.args(["statements", "check", "--config"]).arg(settings.path().join("slowlane.toml")).arg(perhaps.path());
    let output = reading.env("TARGET_URL", target.dsn.to_url().expose()).output().unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.code() == Some(4)
            && out.contains("d.sql:2: read_only: cannot execute CREATE in a read-only transaction"),
        "{out}"
    );
    // One target that can't be asked takes nothing from the others.
    let two = folder(&[
        ("a.sql", "-- kind = 'query'\nSELECT 1"),
        ("b.sql", "-- kind = 'query'\n-- target = 'away'\nSELECT 1"),
    ]);
    let mut asking = program();
    asking.args(["statements", "check", "--config"]).arg(settings.path().join("slowlane.toml")).arg(two.path());
    let output = asking.env("TARGET_URL", target.dsn.to_url().expose()).output().unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.code() == Some(1)
            && out.contains("ok      a")
            && out.contains("FAILED  b")
            && out.contains("NOT_SET is not set"),
        "{out}"
    );
    // What can't be found out is neither.
    assert_eq!(check(&target, Path::new("/nowhere"), &[]).0, Some(1));
    // A connection string in the place of a file's name.
    let slip =
        folder(&[("u:s3cr3tX@h.sql", "SELECT 1"), ("host=h password=s3cr3tX.sql", "-- kind = 'query'\nSELECT 1")]);
    for extra in [&[][..], &["--json"]] {
        let (status, out, _) = check(&target, slip.path(), extra);
        assert!(status == Some(4) && out.contains("a file of a name that is not shown"), "{out}");
        assert!(!out.contains("s3cr3tX"), "{out}");
    }
}

#[test]
fn the_page_has_every_key_of_a_header_and_of_a_parameter() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/statements.md")).unwrap();
    let tables: Vec<Vec<&str>> = page
        .split("| key | meaning |")
        .skip(1)
        .map(|table| table.lines().skip(2).map_while(|line| line.strip_prefix("| `")?.split('`').next()).collect())
        .collect();
    let [header, params] = tables.as_slice() else { panic!("{} tables of keys", tables.len()) };
    assert_eq!(*header, slowlane::statements::file::HEADER_KEYS);
    assert_eq!(*params, slowlane::statements::params::PARAM_KEYS);
    // And the lists are what is read.
    let statement =
        |line: &str| slowlane::statements::Statement::read("a.sql", &format!("-- kind = 'query'\n{line}SELECT 1"));
    let of_header = statement("-- unknown = 1\n").unwrap_err().message;
    let of_params = statement("-- [[params]]\n-- unknown = 1\n").unwrap_err().message;
    for (message, keys) in [(of_header, header), (of_params, params)] {
        assert!(keys.iter().all(|key| message.contains(&format!("`{key}`"))), "{message}");
        assert_eq!(message.matches('`').count() / 2, keys.len() + 1, "{message}");
    }
}

#[test]
fn the_demos_statements_can_be_used() {
    let demo = Postgres::shared().demo();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/statements");
    // One makes a table and fills it: before its first run, the check can't know that the second would find it.
    let (status, out, err) = check(&demo, &folder, &[]);
    assert_eq!(status, Some(3), "{out}{err}");
    assert!(out.contains("perhaps report_delays") && out.contains("3 saved statements"), "{out}");
    let app = TestApp::on(Postgres::shared().queue(), demo, |config| config.statements = Some(folder));
    let late = run(&app, "late_flights", &json!({"month": 7, "carrier": "UA", "minutes": 300}));
    assert_eq!(late["state"], "succeeded", "{late}");
    assert!(late["result"]["rows"].as_i64().unwrap() > 0);
    let report = run(&app, "report_delays", &json!({"origins": ["JFK"]}));
    assert_eq!(report["output"]["statements"][2]["rows_affected"], 12, "{report}");
    let cleared = run(&app, "clear_tail_numbers", &json!({"carrier": "MQ"}));
    assert_eq!(cleared["state"], "succeeded", "{cleared}");
    assert!(cleared["output"]["rows_affected"].as_i64().unwrap() > 0);
}
