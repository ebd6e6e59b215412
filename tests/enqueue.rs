//! Jobs that applications put in: in their own transactions, by Rust and by SQL, as a role that may do nothing else.

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use serde_json::{Value, json};
use slowlane::kinds::import::Import;
use slowlane::kinds::query::Query;
use slowlane::pq::{PqError, Session};
use slowlane::queue::fleet::signals::Envelope;
use slowlane::queue::model::{
    DEFAULT_MAX_ATTEMPTS, DEFAULT_PRIORITY, DEFAULT_RESULT_TTL_MS, DEFAULT_TIMEOUT_MS, MAX_ARGS_BYTES, MAX_ARGS_DEPTH,
    MAX_LABEL_CHARS, MAX_LABELS, MAX_MAX_ATTEMPTS, MAX_NAME_CHARS, MAX_PRIORITY, MAX_RESULT_TTL_MS, MAX_TIMEOUT_MS,
};
use slowlane::queue::{self, InsertError, JobSpec, RawJson};
use slowlane::work::Work;
use uuid::Uuid;

use crate::support::app::TestApp;
use crate::support::postgres::{Database, Postgres};
use crate::support::{PATIENCE, eventually};

/// An application's login: a member of `slowlane_client` with a schema of its own, and no other right.
fn application(queue: &Database) -> slowlane::dsn::Dsn {
    let name = format!("app_{}", queue.name());
    let password = queue.dsn.get("password").unwrap();
    queue.run(&format!(
        "CREATE ROLE {name} LOGIN PASSWORD '{password}' IN ROLE slowlane_client;
         CREATE SCHEMA {name} AUTHORIZATION {name}; CREATE TABLE {name}.orders (n int); ALTER TABLE {name}.orders OWNER TO {name}"
    ));
    queue.dsn.clone().with("user", &name)
}

fn session(dsn: &slowlane::dsn::Dsn) -> Session {
    Session::connect(dsn).unwrap()
}

/// As applications have it, and not as slowlane does.
fn diesel_connection(dsn: &slowlane::dsn::Dsn) -> PgConnection {
    PgConnection::establish(dsn.conninfo().expose()).unwrap()
}

fn enqueue(session: &mut Session, arguments: &str) -> Result<String, PqError> {
    let rows = session.query(&format!("SELECT slowlane.enqueue({arguments})"), &[])?;
    Ok(rows.get(0, 0).unwrap().to_owned())
}

const SELECT_1: &str = r#"'query', '{"sql": "SELECT 1"}'"#;

fn select_1() -> JobSpec {
    slowlane::kinds::standard().job("query", &json!({"sql": "SELECT 1"})).unwrap()
}

#[test]
fn a_job_is_there_with_its_transaction_and_gone_with_it() {
    let app = TestApp::start();
    let mut connection = diesel_connection(&application(&app.queue));
    let committed = connection
        .transaction(|connection| {
            connection.batch_execute("INSERT INTO orders VALUES (1)")?;
            QueryResult::Ok(queue::insert(connection, &select_1())?)
        })
        .unwrap();
    let mut given_up = None;
    let rolled_back = connection.transaction::<(), _, _>(|connection| {
        connection.batch_execute("INSERT INTO orders VALUES (2)")?;
        given_up = Some(queue::insert(connection, &select_1())?);
        // What a savepoint takes back is gone too, and what stands around it isn't.
        Err(diesel::result::Error::RollbackTransaction)
    });
    assert!(rolled_back.is_err());
    let mut within = None;
    let around = connection
        .transaction(|connection| {
            let around = queue::insert(connection, &select_1())?;
            let inner = connection.transaction::<(), _, _>(|connection| {
                within = Some(queue::insert(connection, &select_1())?);
                Err(diesel::result::Error::RollbackTransaction)
            });
            assert!(inner.is_err());
            QueryResult::Ok(around)
        })
        .unwrap();
    for id in [committed, around] {
        let job = app.ended(&id.to_string());
        assert_eq!((&job["state"], &job["kind"], &job["attempt"]), (&json!("succeeded"), &json!("query"), &json!(1)));
    }
    for id in [given_up, within] {
        assert_eq!(app.get(&format!("/v1/jobs/{}", id.unwrap())).status, 404);
    }
    assert_eq!(app.queue.count("SELECT count(*) FROM jobs"), 0);
    assert_eq!(app.queue.count("SELECT count(*) FROM finished_jobs"), 2);
}

#[test]
fn what_is_wrong_is_told_by_rust_before_the_transaction_is_spoilt() {
    let queue = Postgres::shared().queue();
    let mut connection = diesel_connection(&application(&queue));
    let last_day: chrono::DateTime<chrono::Utc> = "9999-12-31T00:00:00Z".parse().unwrap();
    let wrong: [(&str, JobSpec); 8] = [
        ("kind", JobSpec { kind: String::new(), ..select_1() }),
        ("queue", JobSpec { queue: "q".repeat(MAX_NAME_CHARS + 1), ..select_1() }),
        ("target", JobSpec { target: "nul\0".to_owned(), ..select_1() }),
        ("args", JobSpec::new("query", RawJson::of(&[1]).unwrap())),
        ("args", JobSpec::new("query", RawJson::of(&json!({"sql": "\0"})).unwrap())),
        ("priority", JobSpec { priority: -1, ..select_1() }),
        ("run_at", JobSpec { run_at: Some(last_day + chrono::Days::new(1)), ..select_1() }),
        ("labels", JobSpec { labels: [(String::new(), String::new())].into(), ..select_1() }),
    ];
    connection
        .transaction(|connection| {
            for (field, job) in &wrong {
                match queue::insert(connection, job) {
                    Err(InsertError::Invalid(invalid)) => assert_eq!(&invalid.field, field, "{invalid}"),
                    other => panic!("{field}: {other:?}"),
                }
            }
            // In Diesel's own words, for a closure whose errors are those.
            let error = diesel::result::Error::from(queue::insert(connection, &wrong[0].1).unwrap_err());
            assert!(error.to_string().contains("kind: expected a name"), "{error}");
            QueryResult::Ok(queue::insert(connection, &select_1())?)
        })
        .unwrap();
    assert_eq!(queue.count("SELECT count(*) FROM jobs"), 1);
    // What only a kind knows is told where the job is made.
    let nothing: Query = serde_json::from_value(json!({"sql": " "})).unwrap();
    assert_eq!(nothing.job().unwrap_err().errors[0].pointer, "/sql");
    assert_eq!(slowlane::kinds::standard().job("nonsense", &json!({})).unwrap_err().errors.len(), 1);
}

/// Every field, by Rust and by SQL, is what a request over HTTP makes of it.
#[test]
fn every_field_arrives_and_the_defaults_are_those_of_http() {
    let app = TestApp::start();
    let dsn = application(&app.queue);
    let mut session = session(&dsn);
    let shown = |id: &str| {
        let mut job = app.job(id);
        for changing in ["id", "created_at", "run_at", "links", "queue_position", "timings"] {
            job.as_object_mut().unwrap().remove(changing);
        }
        job
    };
    let later = json!("2999-01-01T00:00:00Z");
    let by_http = app.submit(&json!({"kind": "query", "args": {"sql": "SELECT 1"}, "run_at": later}));
    let by_sql = enqueue(&mut session, &format!("{SELECT_1}, run_at => '2999-01-01Z'")).unwrap();
    let job = JobSpec { run_at: Some("2999-01-01T00:00:00Z".parse().unwrap()), ..select_1() };
    let by_rust = queue::insert(&mut diesel_connection(&dsn), &job).unwrap().to_string();
    assert_eq!(app.job(&by_http)["state"], "scheduled");
    assert_eq!(shown(&by_sql), shown(&by_http));
    assert_eq!(shown(&by_rust), shown(&by_http));
    assert_eq!(app.job(&by_sql)["run_at"], app.job(&by_http)["run_at"]);

    let fields = json!({"kind": "query", "args": {"sql": "SELECT 1"}, "target": "default", "queue": "default", "priority": 2,
        "run_at": later, "timeout_ms": 77_000, "max_attempts": 4, "labels": {"team": "x", "a": "ü"}, "result_ttl_ms": 5_000});
    let by_http = app.submit(&fields);
    let by_sql = enqueue(
        &mut session,
        r#"kind => 'query', args => '{"sql":"SELECT 1"}', target => 'default', queue => 'default', priority => 2,
           run_at => '2999-01-01Z', timeout_ms => 77000, max_attempts => 4, labels => '{"team": "x", "a": "ü"}', result_ttl_ms => 5000"#,
    )
    .unwrap();
    let job = JobSpec {
        priority: 2,
        timeout_ms: 77_000,
        max_attempts: 4,
        labels: [("team".to_owned(), "x".to_owned()), ("a".to_owned(), "ü".to_owned())].into(),
        result_ttl_ms: 5_000,
        ..job
    };
    let by_rust = queue::insert(&mut diesel_connection(&dsn), &job).unwrap().to_string();
    assert_eq!(shown(&by_sql), shown(&by_http));
    assert_eq!(shown(&by_rust), shown(&by_http));
    let row = |id: &str| {
        app.queue.text(&format!(
            "SELECT concat_ws(' ', timeout_ms, max_attempts, result_ttl_ms, priority) FROM jobs WHERE id = '{id}'"
        ))
    };
    assert_eq!(row(&by_sql), "77000 4 5000 2");
    assert_eq!(row(&by_rust), row(&by_sql));
    let plain = enqueue(&mut session, &format!("{SELECT_1}, queue => 'nobodys'")).unwrap();
    assert_eq!(
        row(&plain),
        format!("{DEFAULT_TIMEOUT_MS} {DEFAULT_MAX_ATTEMPTS} {DEFAULT_RESULT_TTL_MS} {DEFAULT_PRIORITY}")
    );
}

#[test]
fn bad_values_are_refused_by_name_with_the_bounds_of_http() {
    let queue = Postgres::shared().queue();
    let mut session = session(&application(&queue));
    let labels = |n: usize| json!((0..n).map(|n| (n.to_string(), json!("x"))).collect::<serde_json::Map<_, _>>());
    let label = |name: usize, value: usize| json!({"n".repeat(name): "v".repeat(value)});
    let args = |bytes: usize| format!("'{{\"sql\":\"{}\"}}'", "x".repeat(bytes - r#"{"sql":""}"#.len()));
    let with = |more: String| format!("{SELECT_1}, {more}");
    let name = |chars: usize| format!("'{}'", "ü".repeat(chars));
    let good = [
        format!("{}, '{{}}'", name(MAX_NAME_CHARS)),
        with(format!("queue => {0}, target => {0}", name(MAX_NAME_CHARS))),
        format!("'query', {}", args(MAX_ARGS_BYTES)),
        format!("'query', '{}'", r#"{"sql": "\\u0000 \\\\u0000"}"#),
        with("priority => 0".to_owned()),
        with(format!("priority => {MAX_PRIORITY}")),
        with(format!("timeout_ms => {MAX_TIMEOUT_MS}, max_attempts => {MAX_MAX_ATTEMPTS}")),
        with(format!("timeout_ms => 1, max_attempts => 1, result_ttl_ms => {MAX_RESULT_TTL_MS}")),
        with("run_at => NULL".to_owned()),
        with("run_at => '0001-01-01Z'".to_owned()),
        with("run_at => '9999-12-31 23:59:59Z'".to_owned()),
        with(format!("labels => '{}'", labels(MAX_LABELS))),
        with(format!("labels => '{}'", label(MAX_LABEL_CHARS, MAX_LABEL_CHARS))),
        with(format!("labels => '{}'", label(1, 0))),
    ];
    for arguments in &good {
        enqueue(&mut session, arguments)
            .unwrap_or_else(|e| panic!("{}: {e}", arguments.get(..80).unwrap_or(arguments)));
    }
    assert_eq!(queue.count("SELECT count(*) FROM jobs"), i64::try_from(good.len()).unwrap());
    let bad = [
        ("kind", "NULL, '{}'".to_owned()),
        ("kind", "'', '{}'".to_owned()),
        ("kind", format!("{}, '{{}}'", name(MAX_NAME_CHARS + 1))),
        ("queue", with("queue => ''".to_owned())),
        ("target", with(format!("target => {}", name(MAX_NAME_CHARS + 1)))),
        ("target", with("target => NULL".to_owned())),
        ("args", "'query', NULL".to_owned()),
        ("args", "'query', '[]'".to_owned()),
        ("args", "'query', '\"text\"'".to_owned()),
        ("args", format!("'query', {}", args(MAX_ARGS_BYTES + 1))),
        ("args", format!("'query', '{}'", r#"{"sql": "\u0000"}"#)),
        ("args", format!("'query', '{}'", r#"{"sql": "\\\u0000"}"#)),
        ("args", format!("'query', '{}'", r#"{"\u0000": 1}"#)),
        ("priority", with("priority => -1".to_owned())),
        ("priority", with(format!("priority => {}", MAX_PRIORITY + 1))),
        ("priority", with("priority => NULL".to_owned())),
        ("timeout_ms", with("timeout_ms => 0".to_owned())),
        ("timeout_ms", with(format!("timeout_ms => {}", MAX_TIMEOUT_MS + 1))),
        ("max_attempts", with("max_attempts => 0".to_owned())),
        ("max_attempts", with(format!("max_attempts => {}", MAX_MAX_ATTEMPTS + 1))),
        ("result_ttl_ms", with("result_ttl_ms => 0".to_owned())),
        ("result_ttl_ms", with(format!("result_ttl_ms => {}", MAX_RESULT_TTL_MS + 1))),
        ("run_at", with("run_at => 'infinity'".to_owned())),
        ("run_at", with("run_at => '-infinity'".to_owned())),
        ("run_at", with("run_at => '10000-01-01Z'".to_owned())),
        ("run_at", with("run_at => '0001-12-31Z BC'".to_owned())),
        ("labels", with("labels => NULL".to_owned())),
        ("labels", with("labels => '[]'".to_owned())),
        ("labels", with(format!("labels => '{}'", json!({"n": 1})))),
        ("labels", with(format!("labels => '{}'", json!({"n": null})))),
        ("labels", with(format!("labels => '{}'", labels(MAX_LABELS + 1)))),
        ("labels", with(format!("labels => '{}'", label(MAX_LABEL_CHARS + 1, 1)))),
        ("labels", with(format!("labels => '{}'", label(1, MAX_LABEL_CHARS + 1)))),
        ("labels", with(format!("labels => '{}'", label(0, 1)))),
    ];
    for (field, arguments) in &bad {
        let error = enqueue(&mut session, arguments).unwrap_err();
        let shown = arguments.get(..80).unwrap_or(arguments);
        assert_eq!(error.sqlstate.as_deref(), Some("22023"), "{shown}: {error}");
        let start = format!("slowlane.enqueue: {field}: expected ");
        assert!(error.message.starts_with(&start) && error.message.len() < 200, "{shown}: {}", error.message);
    }
    assert_eq!(queue.count("SELECT count(*) FROM jobs"), i64::try_from(good.len()).unwrap());
    assert_eq!(MAX_ARGS_BYTES, slowlane::http::MAX_BODY_BYTES);
}

/// What SQL refuses and what Rust refuses is the same, and so are the words.
#[test]
fn rust_and_sql_say_the_same() {
    let queue = Postgres::shared().queue();
    let mut session = session(&application(&queue));
    for (job, arguments) in [
        (JobSpec { priority: 10, ..select_1() }, "priority => 10".to_owned()),
        (JobSpec { timeout_ms: 0, ..select_1() }, "timeout_ms => 0".to_owned()),
        (JobSpec { max_attempts: 26, ..select_1() }, "max_attempts => 26".to_owned()),
        (JobSpec { result_ttl_ms: -1, ..select_1() }, "result_ttl_ms => -1".to_owned()),
        (JobSpec { queue: String::new(), ..select_1() }, "queue => ''".to_owned()),
        (
            JobSpec { labels: (0..33).map(|n| (n.to_string(), String::new())).collect(), ..select_1() },
            format!(
                "labels => '{}'",
                json!((0..33).map(|n| (n.to_string(), json!(""))).collect::<serde_json::Map<_, _>>())
            ),
        ),
        (
            JobSpec { labels: [(String::new(), String::new())].into(), ..select_1() },
            "labels => '{\"\": \"\"}'".to_owned(),
        ),
    ] {
        let by_sql = enqueue(&mut session, &format!("{SELECT_1}, {arguments}")).unwrap_err().message;
        assert_eq!(by_sql, format!("slowlane.enqueue: {}", job.check().unwrap_err()));
    }
}

/// SQL knows no kind: what a request would have been refused for ends the job, before anything runs.
#[test]
fn arguments_that_nobody_has_checked_are_checked_before_anything_runs() {
    let app = TestApp::start();
    app.target.run("CREATE TABLE public.t (a int); GRANT ALL ON public.t TO PUBLIC");
    let mut session = session(&application(&app.queue));
    for (kind, args, pointer) in [
        (
            "execute",
            json!({"statements": [{"sql": "INSERT INTO public.t VALUES (1)"}, {"sql": "COMMIT"}]}),
            "/statements/1/sql",
        ),
        ("query", json!({"sql": "SELECT 1", "byte_limit": 1_000_000_000_000_000_u64}), "/byte_limit"),
        ("refresh", json!({"view": " "}), "/view"),
    ] {
        let id = enqueue(&mut session, &format!("'{kind}', '{args}'")).unwrap();
        let job = app.ended(&id);
        assert_eq!((&job["state"], &job["error"]["code"]), (&json!("failed"), &json!("invalid_args")), "{job}");
        assert!(job["error"]["message"].as_str().unwrap().starts_with(pointer), "{job}");
    }
    assert_eq!(app.target.count("SELECT count(*) FROM public.t"), 0);
}

/// Work of an application's own may do what it should not: it ends, and so does every other job.
#[test]
fn careless_work_ends_and_takes_no_other_with_it() {
    let app = TestApp::start();
    for (how, code) in [
        ("a checkpoint with a NUL", "invalid_checkpoint"),
        ("a checkpoint of 2 MiB", "invalid_checkpoint"),
        ("a batch within a transaction", "already_in_transaction"),
        ("a batch within the last transaction", "already_in_transaction"),
    ] {
        let id = app.submit(&json!({"kind": "careless", "args": {"how": how}}));
        let job = app.ended(&id);
        assert_eq!((&job["state"], &job["error"]["code"]), (&json!("failed"), &json!(code)), "{how}: {job}");
    }
    let id = app.submit(&json!({"kind": "careless", "args": {"how": "a phase with a NUL"}}));
    eventually("its phase is shown", || app.job(&id)["progress"]["phase"] == "a\u{fffd}b");
    assert_eq!(app.post(&format!("/v1/jobs/{id}/cancel"), &json!({})).status, 202);
    assert_eq!(app.ended(&id)["state"], "cancelled");
}

/// An import that an application puts in keeps its upload, as one over HTTP does.
#[test]
fn an_upload_is_held_by_whoever_names_it() {
    let app = TestApp::start();
    app.target.run("CREATE TABLE public.numbers (a int); GRANT ALL ON public.numbers TO PUBLIC");
    let dsn = application(&app.queue);
    let (mut session, mut connection) = (session(&dsn), diesel_connection(&dsn));
    let answer = app.send("POST", "/v1/uploads", &[("content-type", "text/csv")], b"a\n1\n2\n");
    let upload: Uuid = answer.json()["id"].as_str().unwrap().parse().unwrap();
    let args = json!({"upload": upload, "table": "public.numbers", "format": "csv"});
    let job = slowlane::kinds::standard().job("import", &args).unwrap();
    assert_eq!(job.upload, Some(upload));
    let work: Import = serde_json::from_value(args.clone()).unwrap();
    assert_eq!(work.job().unwrap().upload, Some(upload));
    let later = Some("2999-01-01T00:00:00Z".parse().unwrap());
    let waits = JobSpec { run_at: later, ..job.clone() };
    let by_rust = queue::insert(&mut connection, &waits).unwrap().to_string();
    let by_sql = |upload: &str| format!("'import', '{args}', run_at => '2999-01-01Z', upload => {upload}");
    let by_sql_id = enqueue(&mut session, &by_sql(&format!("'{upload}'"))).unwrap();
    let path = format!("/v1/uploads/{upload}");
    let used_by = app.get(&path).json()["used_by"].clone();
    let mut users: Vec<&str> = used_by.as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect();
    users.sort_unstable();
    assert_eq!(users, [by_rust.as_str(), by_sql_id.as_str()], "ids grow with time");
    assert_eq!(app.send("DELETE", &path, &[], b"").problem().0, 409);
    // One that isn't there is refused, and so is one that isn't ready.
    const NOT_READY: &str = "slowlane.enqueue: upload: expected the id of an upload that is ready";
    const ANOTHER: &str = "slowlane.enqueue: upload: expected the id that args names as its upload";
    let import_of = |id: Uuid| json!({"upload": id, "table": "public.numbers", "format": "csv"});
    for (state, id) in [("ready", Uuid::now_v7()), ("receiving", upload)] {
        app.queue.run(&format!("UPDATE uploads SET state = '{state}'"));
        let args = import_of(id);
        let refused = enqueue(&mut session, &format!("'import', '{args}', upload => '{id}'")).unwrap_err();
        assert_eq!((refused.sqlstate.as_deref(), refused.message.as_str()), (Some("22023"), NOT_READY));
        let other = JobSpec { upload: Some(id), args: RawJson::of(&args).unwrap(), ..job.clone() };
        let refused = queue::insert(&mut connection, &other).unwrap_err();
        assert!(matches!(&refused, InsertError::Database(error) if error.to_string() == NOT_READY), "{refused}");
    }
    app.queue.run("UPDATE uploads SET state = 'ready'");
    // An import's upload is known from its arguments, and none that differs is held in its place.
    let unnamed = enqueue(&mut session, &format!("'import', '{args}', run_at => '2999-01-01Z'")).unwrap();
    assert!(app.get(&path).json()["used_by"].as_array().unwrap().contains(&json!(unnamed)));
    for (args, upload) in [
        (&args, format!("'{}'", Uuid::now_v7())),
        (&json!({"upload": "x"}), "NULL".to_owned()),
        (&json!({}), "NULL".to_owned()),
    ] {
        let refused = enqueue(&mut session, &format!("'import', '{args}', upload => {upload}")).unwrap_err();
        assert_eq!((refused.sqlstate.as_deref(), refused.message.as_str()), (Some("22023"), ANOTHER));
    }
    let now = queue::insert(&mut connection, &job).unwrap().to_string();
    assert_eq!(app.ended(&now)["state"], "succeeded");
    assert_eq!(app.target.count("SELECT sum(a) FROM public.numbers"), 3);
}

#[test]
fn ids_are_of_version_7_near_the_clock_and_in_the_order_of_their_calls() {
    let queue = Postgres::shared().queue();
    let mut session = session(&application(&queue));
    // The transaction is older than what happens in it.
    session.execute_batch("BEGIN; SELECT pg_sleep(0.3)").unwrap();
    let rows =
        session.query(&format!("SELECT slowlane.enqueue({SELECT_1}) FROM generate_series(1, 500)"), &[]).unwrap();
    session.execute_batch("COMMIT").unwrap();
    let ids: Vec<Uuid> = (0..rows.len()).map(|n| rows.get(n, 0).unwrap().parse().unwrap()).collect();
    assert_eq!(ids.len(), 500);
    assert!(ids.is_sorted_by(|one, next| one < next), "{ids:?}");
    for id in &ids {
        assert_eq!((id.get_version_num(), id.get_variant()), (7, uuid::Variant::RFC4122), "{id}");
    }
    // 62 random bits: no two are alike in any of them.
    let random: std::collections::BTreeSet<u64> =
        ids.iter().map(|id| u64::try_from(id.as_u128() & ((1 << 62) - 1)).unwrap()).collect();
    assert_eq!(random.len(), ids.len());
    let milliseconds = "('x' || lpad(left(replace(id::text, '-', ''), 12), 16, '0'))::bit(64)::bigint";
    let off = format!(
        "SELECT count(*) FROM jobs WHERE {milliseconds} <> floor(extract(epoch FROM created_at) * 1000)
            OR created_at > clock_timestamp() OR created_at < clock_timestamp() - interval '1 minute' OR run_at <> created_at"
    );
    assert_eq!(queue.count(&off), 0);
    // Not the transaction's beginning.
    assert_eq!(queue.count("SELECT count(DISTINCT created_at) FROM jobs"), 500);
}

/// A worker that only polls looks once in 0.8 to 1.2 s.
#[test]
fn workers_wake_at_the_commit() {
    let app = TestApp::start();
    let dsn = application(&app.queue);
    let listening = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'slowlane listener' AND datname = current_database()";
    eventually("it listens", || app.queue.count(listening) == 1);
    let (mut session, mut connection) = (session(&dsn), diesel_connection(&dsn));
    for n in 0..20 {
        let id = match n % 2 {
            0 => enqueue(&mut session, SELECT_1).unwrap(),
            _ => queue::insert(&mut connection, &select_1()).unwrap().to_string(),
        };
        assert_eq!(app.ended(&id)["state"], "succeeded");
    }
    let waited = app
        .queue
        .count("SELECT count(*) FROM finished_jobs WHERE started_at - created_at > interval '400 milliseconds'");
    assert!(waited < 10, "{waited} of 20 jobs waited for the poll");
    // One for later runs when it is due.
    let at = "clock_timestamp() + interval '200 milliseconds'";
    let id = enqueue(&mut session, &format!("{SELECT_1}, run_at => {at}")).unwrap();
    assert_eq!(app.ended(&id)["state"], "succeeded");
}

#[test]
fn a_transaction_sends_few_hints_at_its_commit_and_none_when_told_so() {
    let queue = Postgres::shared().queue();
    let dsn = application(&queue);
    let (mut session, mut connection) = (session(&dsn), diesel_connection(&dsn));
    let mut listener = queue.session();
    listener.execute_batch("LISTEN slowlane").unwrap();
    let payloads = |listener: &mut Session| {
        // What comes is here when the listener's own word has come back.
        listener.execute_batch("NOTIFY slowlane, 'end'").unwrap();
        let mut payloads: Vec<Value> = Vec::new();
        loop {
            let notification = listener.wait_notification(PATIENCE).unwrap().expect("no word came back");
            if notification.payload == "end" {
                return payloads;
            }
            serde_json::from_str::<Envelope>(&notification.payload).expect("no hint that processes read");
            payloads.push(serde_json::from_str(&notification.payload).unwrap());
        }
    };
    session.execute_batch("SET TimeZone = 'Asia/Kathmandu'; SET DateStyle = 'SQL, DMY'; BEGIN").unwrap();
    session.query(&format!("SELECT slowlane.enqueue({SELECT_1}) FROM generate_series(1, 1000)"), &[]).unwrap();
    assert_eq!(payloads(&mut listener), Vec::<Value>::new(), "a hint before the commit");
    session.execute_batch("COMMIT").unwrap();
    let sent = payloads(&mut listener);
    // One for each 10 ms that the thousand took.
    assert!(!sent.is_empty() && sent.len() < 500, "{}", sent.len());
    let hint = &sent[0]["message"]["ready"][0];
    assert_eq!((&hint["queue"], &hint["priority"]), (&json!("default"), &json!(5)));
    let before = queue.text(&format!(
        "SELECT (min(run_at) - '{0}' BETWEEN '0 ms' AND '10 ms')::text FROM jobs",
        hint["run_at"].as_str().unwrap()
    ));
    assert_eq!(before, "true", "{hint}");
    session.execute_batch("BEGIN").unwrap();
    enqueue(&mut session, SELECT_1).unwrap();
    session.execute_batch("ROLLBACK").unwrap();
    enqueue(&mut session, &format!("{SELECT_1}, notify => false")).unwrap();
    queue::insert_without_notify(&mut connection, &select_1()).unwrap();
    assert_eq!(payloads(&mut listener), Vec::<Value>::new());
    let scheduled = format!("{SELECT_1}, run_at => now() + interval '1 hour'");
    for _ in 0..2 {
        enqueue(&mut session, &scheduled).unwrap();
    }
    let messages: Vec<Value> = payloads(&mut listener).into_iter().map(|sent| sent["message"].clone()).collect();
    assert_eq!(messages, [json!("scheduled"), json!("scheduled")]);
}

#[test]
fn a_late_commit_is_found_without_a_hint() {
    let app = TestApp::with(|config| config.notify = false);
    let mut session = session(&application(&app.queue));
    session.execute_batch("BEGIN").unwrap();
    let late = enqueue(&mut session, &format!("{SELECT_1}, notify => false")).unwrap();
    // The fetcher goes past its place.
    for _ in 0..20 {
        let id = app.submit(&json!({"kind": "query", "args": {"sql": "SELECT 1"}}));
        assert_eq!(app.ended(&id)["state"], "succeeded");
    }
    let since = app.queue.text("SELECT clock_timestamp()");
    session.execute_batch("COMMIT").unwrap();
    assert_eq!(app.ended(&late)["state"], "succeeded");
    let took =
        format!("SELECT extract(epoch FROM started_at - '{since}')::text FROM finished_jobs WHERE id = '{late}'");
    let took = Duration::from_secs_f64(app.queue.text(&took).parse().unwrap());
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn who_may_enqueue_may_do_nothing_else() {
    let queue = Postgres::shared().queue();
    let dsn = application(&queue);
    let user = dsn.get("user").unwrap();
    let mut session = session(&dsn);
    enqueue(&mut session, SELECT_1).unwrap();
    let tables = queue.text(
        "SELECT string_agg(oid::regclass::text, ' ') FROM pg_class WHERE relnamespace = 'slowlane'::regnamespace AND relkind IN ('r', 'p', 'v', 'S')",
    );
    assert!(tables.contains("finished_jobs") && tables.contains("all_attempts"), "{tables}");
    for table in tables.split(' ') {
        for right in ["SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER"] {
            assert_eq!(
                queue.text(&format!("SELECT has_table_privilege('{user}', 'slowlane.{table}', '{right}')")),
                "f"
            );
        }
    }
    let functions = "SELECT string_agg(proname, ' ') FROM pg_proc WHERE pronamespace = 'slowlane'::regnamespace AND has_function_privilege('{user}', oid, 'EXECUTE')";
    assert_eq!(queue.text(&functions.replace("{user}", user)), "enqueue");
    assert_eq!(queue.text(&format!("SELECT has_schema_privilege('{user}', 'slowlane', 'CREATE')")), "f");
    for (sql, sqlstate) in [
        ("SELECT * FROM slowlane.jobs", "42501"),
        ("INSERT INTO slowlane.jobs (id) VALUES (gen_random_uuid())", "42501"),
        ("SELECT slowlane.first_id_of('2020-01-01')", "42501"),
        ("SET ROLE slowlane_owner", "42501"),
        ("CREATE TABLE slowlane.mine (n int)", "42501"),
        (
            "CREATE OR REPLACE FUNCTION slowlane.enqueue(kind text) RETURNS uuid LANGUAGE sql AS 'SELECT NULL::uuid'",
            "42501",
        ),
    ] {
        let error = session.execute_batch(sql).unwrap_err();
        assert_eq!(error.sqlstate.as_deref(), Some(sqlstate), "{sql}: {error}");
    }
    // And nobody else may: neither without a right, nor by the right to see the schema alone.
    let stranger = format!("stranger_{}", queue.name());
    let password = dsn.get("password").unwrap();
    queue.run(&format!("CREATE ROLE {stranger} LOGIN PASSWORD '{password}'"));
    let mut session = Session::connect(&dsn.clone().with("user", &stranger)).unwrap();
    for _ in 0..2 {
        assert_eq!(enqueue(&mut session, SELECT_1).unwrap_err().sqlstate.as_deref(), Some("42501"));
        queue.run(&format!("GRANT USAGE ON SCHEMA slowlane TO {stranger}"));
    }
    assert_eq!(queue.count("SELECT count(*) FROM jobs"), 1);
}

/// Whatever the caller's search_path shows, the function's own names mean what they mean.
#[test]
fn no_search_path_leads_the_function_astray() {
    let queue = Postgres::shared().queue();
    let dsn = application(&queue);
    let user = dsn.get("user").unwrap().to_owned();
    let mut session = session(&dsn);
    session
        .execute_batch(&format!(
            "CREATE TABLE {user}.jobs (LIKE {user}.orders); CREATE TEMP TABLE jobs (n int);
             CREATE FUNCTION {user}.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS $$ SELECT '2000-01-01Z'::timestamptz $$;
             CREATE FUNCTION {user}.gen_random_uuid() RETURNS uuid LANGUAGE plpgsql AS $$ BEGIN RAISE 'astray'; END $$;
             CREATE FUNCTION {user}.pg_notify(text, text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'astray'; END $$;
             CREATE FUNCTION {user}.less(text, text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'astray'; END $$;
             CREATE OPERATOR {user}.~ (LEFTARG = text, RIGHTARG = text, FUNCTION = {user}.less)"
        ))
        .unwrap();
    let mut connection = diesel_connection(&dsn);
    let paths = ["''".to_owned(), format!("{user}, pg_temp, pg_catalog"), "public".to_owned(), "pg_temp".to_owned()];
    for path in &paths {
        session.execute_batch(&format!("SET search_path = {path}")).unwrap();
        enqueue(&mut session, &format!("{SELECT_1}, labels => '{{\"a\": \"b\"}}'")).unwrap();
        connection.batch_execute(&format!("SET search_path = {path}")).unwrap();
        queue::insert(&mut connection, &select_1()).unwrap();
        // It is the caller's own again.
        let shown = session.query("SELECT current_setting('search_path')", &[]).unwrap();
        assert_ne!(shown.get(0, 0), Some("slowlane, pg_temp"));
    }
    let written = "SELECT count(*) FROM slowlane.jobs WHERE created_at > now() - interval '1 minute'";
    assert_eq!(queue.count(written), i64::try_from(2 * paths.len()).unwrap());
}

/// One job whose arguments no JSON reader reads would spoil every list that it is in.
#[test]
fn arguments_are_as_deep_as_http_lets_them_be() {
    let app = TestApp::start();
    let mut session = session(&application(&app.queue));
    let args = |levels: usize| {
        let inner = levels - 3;
        format!(
            r#"{{"sql":"SELECT $1 /* [[[ */","params":[{{"type":"jsonb","value":{}1{}}}]}}"#,
            "[".repeat(inner),
            "]".repeat(inner)
        )
    };
    for (levels, good) in [(MAX_ARGS_DEPTH, true), (MAX_ARGS_DEPTH + 1, false), (MAX_ARGS_DEPTH + 1_000, false)] {
        let body = format!(r#"{{"kind":"query","args":{}}}"#, args(levels));
        let answer = app.send("POST", "/v1/jobs", &[("content-type", "application/json")], body.as_bytes());
        assert_eq!(answer.status == 202, good, "{levels}: {}", answer.text());
        let by_sql = enqueue(&mut session, &format!("'query', '{}'", args(levels)));
        assert_eq!(by_sql.is_ok(), good, "{levels}");
        let raw = serde_json::value::RawValue::from_string(args(levels)).unwrap();
        let by_rust = JobSpec::new("query", RawJson(raw)).check();
        assert_eq!(by_rust.is_ok(), good, "{levels}");
        if let (Err(by_sql), Err(by_rust)) = (by_sql, by_rust) {
            assert_eq!(by_sql.sqlstate.as_deref(), Some("22023"));
            assert_eq!(by_sql.message, format!("slowlane.enqueue: {by_rust}"));
        }
    }
    // Many brackets side by side, or in text, are no levels.
    let wide = format!("'query', '{{\"sql\":\"{}\",\"params\":[{}1]}}'", "[".repeat(200), "[1],".repeat(200));
    enqueue(&mut session, &wide).unwrap();
}

#[test]
fn a_kind_that_nobody_knows_waits_and_can_be_cancelled() {
    let app = TestApp::start();
    let mut session = session(&application(&app.queue));
    let unknown = enqueue(&mut session, "'not_yet', '{}'").unwrap();
    let lost = enqueue(&mut session, &format!("{SELECT_1}, target => 'elsewhere'")).unwrap();
    let bad = enqueue(&mut session, r#"'query', '{"sql": "SELECT 1", "nonsense": 1}'"#).unwrap();
    let known = enqueue(&mut session, SELECT_1).unwrap();
    assert_eq!(app.ended(&known)["state"], "succeeded");
    let job = app.ended(&bad);
    assert_eq!((&job["state"], &job["error"]["code"]), (&json!("failed"), &json!("invalid_args")));
    for id in [unknown, lost] {
        assert_eq!(app.job(&id)["state"], "queued");
        assert_eq!(app.post(&format!("/v1/jobs/{id}/cancel"), &json!({})).json()["state"], "cancelled");
    }
}

/// What docs/rust.md shows of SQL runs as it stands there.
#[test]
fn the_guides_sql_runs() {
    let queue = Postgres::shared().queue();
    let dsn = application(&queue);
    let user = dsn.get("user").unwrap();
    let guide = include_str!("../docs/rust.md");
    let blocks: Vec<&str> = guide.split("```sql\n").skip(1).map(|rest| rest.split_once("```").unwrap().0).collect();
    let [transaction, roles, function] = blocks[..] else { panic!("{} blocks", blocks.len()) };
    let mut session = session(&dsn);
    session
        .execute_batch(&format!("SET search_path = {user}; CREATE TABLE invoices (customer bigint, cents bigint)"))
        .unwrap();
    session.execute_batch(transaction).unwrap();
    let jobs = "SELECT string_agg(concat_ws(' ', kind, state, queue, priority, timeout_ms, max_attempts, labels ->> 'team', args), ',' ORDER BY id) FROM jobs";
    assert_eq!(
        queue.text(jobs),
        r#"add_up queued default 5 3600000 3 {"customer": 7},execute scheduled nightly 8 600000 1 billing {"statements" : [{"sql" : "ANALYZE invoices"}]}"#
    );
    assert!(roles.contains(slowlane::db::roles::CLIENT));
    // For a role that may nothing else.
    queue.run(&format!(
        "CREATE ROLE only_{user}; SET search_path = public; {}; SET ROLE only_{user}; SELECT public.add_up(8)",
        function.replace("TO shop", &format!("TO only_{user}"))
    ));
    assert_eq!(queue.count("SELECT count(*) FROM jobs WHERE (args ->> 'customer') = '8'"), 1);
    let by_hand = guide.split('`').find(|text| text.starts_with("GRANT USAGE")).unwrap().replace('\n', " ");
    queue.run(&format!("CREATE ROLE hand_{user}; {}", by_hand.replace("TO shop", &format!("TO hand_{user}"))));
    queue.run(&format!("SET ROLE hand_{user}; SELECT slowlane.enqueue('add_up')"));
    assert_eq!(queue.count("SELECT count(*) FROM jobs"), 4);
}
