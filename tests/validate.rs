//! `POST /v1/jobs/validate`: what it says of a job, and that nothing of the job is run.

use serde_json::{Value, json};

use crate::support::app::TestApp;
use crate::support::eventually;

fn with_table() -> TestApp {
    let app = TestApp::start();
    app.target.run(
        "CREATE TABLE public.t (id int PRIMARY KEY, name text); ALTER TABLE public.t OWNER TO slowlane_demo;
         INSERT INTO public.t SELECT g, 'n' || g FROM generate_series(1, 10000) g; ANALYZE public.t;
         CREATE TABLE public.secrets (a int); CREATE SEQUENCE public.s; GRANT ALL ON SEQUENCE public.s TO PUBLIC",
    );
    app
}

fn validate(app: &TestApp, kind: &str, args: &Value) -> Value {
    let answer = app.post("/v1/jobs/validate", &json!({"kind": kind, "args": args}));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

#[test]
fn a_query_is_described_and_planned_and_not_run() {
    let app = with_table();
    let sql = "SELECT id, name AS n, nextval('public.s') FROM public.t WHERE id <= $1";
    let report = validate(&app, "query", &json!({"sql": sql, "params": [100]}));
    assert_eq!((&report["valid"], &report["problems"]), (&json!(true), &json!([])));
    let statement = &report["statements"][0];
    assert_eq!((&statement["pointer"], &statement["parameters"]), (&json!("/args/sql"), &json!(["integer"])));
    assert_eq!(
        statement["columns"],
        json!([{"name": "id", "type": "integer"}, {"name": "n", "type": "text"}, {"name": "nextval", "type": "bigint"}])
    );
    let rows = statement["estimated_rows"].as_i64().unwrap();
    assert!((50..200).contains(&rows), "{rows}");
    assert!(statement["estimated_cost"].as_f64().unwrap() > 0.0);
    assert!(statement["plan"].to_string().contains("t_pkey"), "{statement}");
    assert_eq!(app.target.text("SELECT is_called FROM public.s"), "f", "nothing was run");
}

#[test]
fn what_stands_in_a_jobs_way_is_said_with_its_place() {
    let app = with_table();
    for (sql, params, code, sqlstate) in [
        ("SELEC 1", json!([]), "sql_error", json!("42601")),
        ("SELECT * FROM nowhere", json!([]), "sql_error", json!("42P01")),
        ("SELECT * FROM public.secrets", json!([]), "permission_denied", json!("42501")),
        ("SELECT $1::int", json!([]), "parameter_count", Value::Null),
        ("SELECT 1; SELECT 2", json!([]), "sql_error", json!("42601")),
        ("DELETE FROM public.t", json!([]), "statement_not_allowed", Value::Null),
    ] {
        let report = validate(&app, "query", &json!({"sql": sql, "params": params}));
        assert_eq!(report["valid"], false, "{sql}: {report}");
        let problem = &report["problems"][0];
        assert_eq!((&problem["pointer"], &problem["error"]["code"]), (&json!("/args/sql"), &json!(code)), "{sql}");
        assert_eq!(problem["error"]["sqlstate"], sqlstate, "{sql}");
        // It is what the job itself would end with.
        let job = app.query(sql, &params);
        assert_eq!(job["error"]["code"], code, "{sql}");
    }
    assert_eq!(app.target.count("SELECT count(*) FROM public.t"), 10_000);
}

#[test]
fn each_statement_of_an_execute_is_looked_at_by_itself_and_changes_nothing() {
    let app = with_table();
    let statements = json!([
        {"sql": "UPDATE public.t SET name = $1 WHERE id <= 1000", "params": ["x"]},
        {"sql": "DELETE FROM public.secrets"},
        {"sql": "EXPLAIN ANALYZE DELETE FROM public.t"},
        {"sql": "CREATE TABLE public.made (a int)"},
        {"sql": "INSERT INTO public.made VALUES (1)"},
        {"sql": "WITH d AS (DELETE FROM public.t RETURNING id) SELECT * FROM d"},
    ]);
    let report = validate(&app, "execute", &json!({"statements": statements}));
    assert_eq!(report["valid"], false);
    let problems: Vec<(&str, &str)> = report["problems"]
        .as_array()
        .unwrap()
        .iter()
        .map(|problem| (problem["pointer"].as_str().unwrap(), problem["error"]["sqlstate"].as_str().unwrap()))
        .collect();
    assert_eq!(problems, [("/args/statements/1/sql", "42501"), ("/args/statements/4/sql", "42P01")]);
    let of = |pointer: &str| {
        let found = report["statements"].as_array().unwrap().iter().find(|one| one["pointer"] == pointer);
        found.unwrap().clone()
    };
    let update = of("/args/statements/0/sql");
    assert_eq!(update["parameters"], json!(["text"]));
    assert!((500..2000).contains(&update["estimated_rows"].as_i64().unwrap()), "{update}");
    for unplanned in ["/args/statements/2/sql", "/args/statements/3/sql"] {
        assert_eq!((&of(unplanned)["plan"], &of(unplanned)["estimated_rows"]), (&Value::Null, &Value::Null));
    }
    assert_eq!(app.target.count("SELECT count(*) FROM public.t WHERE name <> 'x'"), 10_000);
    assert_eq!(app.target.text("SELECT to_regclass('public.made')"), "");
}

#[test]
fn a_request_is_checked_as_any_other_and_other_kinds_by_their_arguments_alone() {
    let app = with_table();
    let problem = |body: &Value| app.post("/v1/jobs/validate", body).problem();
    assert_eq!(problem(&json!({"kind": "query", "args": {}})).1, "invalid_args");
    assert_eq!(problem(&json!({"kind": "nothing", "args": {}})).1, "unknown_kind");
    assert_eq!(problem(&json!({"kind": "query", "args": {"sql": "SELECT 1"}, "target": "x"})).1, "unknown_target");
    assert_eq!(problem(&json!({"kind": "validate", "args": {"kind": "validate", "args": {}}})).1, "invalid_args");
    assert_eq!(app.get("/v1/jobs/validate").status, 405);
    let report = validate(&app, "refresh", &json!({"view": "nowhere"}));
    assert_eq!((&report["valid"], &report["statements"]), (&json!(true), &json!([])), "the target isn't asked");
    assert_eq!(app.queue.count("SELECT count(*) FROM finished_jobs"), 0);
}

#[test]
fn an_answer_that_takes_its_time_is_a_job_to_be_polled() {
    let app = TestApp::with(|config| config.workers = 1);
    let mut holder = app.target.session();
    holder.execute_batch("SELECT pg_advisory_lock(7)").unwrap();
    let busy = app.submit(&json!({"kind": "query", "args": {"sql": "SELECT pg_advisory_lock(7)"}}));
    eventually("it runs", || app.job(&busy)["state"] == "running");
    let body = json!({"kind": "query", "args": {"sql": "SELECT 1 AS one"}});
    let answer = app.post_with("/v1/jobs/validate", &[("prefer", "wait=0")], &body);
    assert_eq!(answer.status, 202, "{}", answer.text());
    let path = answer.header("location").unwrap().to_owned();
    assert_eq!((&answer.json()["kind"], &answer.json()["priority"]), (&json!("validate"), &json!(0)));
    holder.execute_batch("SELECT pg_advisory_unlock(7)").unwrap();
    let job = app.ended(path.rsplit('/').next().unwrap());
    assert_eq!(job["output"]["statements"][0]["columns"][0]["name"], "one", "{job}");
    // Put in by hand, its arguments are checked when it runs.
    let wrong = app.submit(&json!({"kind": "validate", "args": {"kind": "query", "args": {"sql": ""}}}));
    assert_eq!(app.ended(&wrong)["output"]["problems"][0]["pointer"], "/args/sql");
}

#[test]
fn a_backfill_shows_its_first_batch_and_how_many_there_would_be() {
    let app = with_table();
    app.target.run("GRANT ALL ON public.t TO slowlane_demo");
    let args = |more: Value| {
        let mut args = json!({"table": "public.t", "set": {"name": "upper(name)"}, "where": "id > $1", "params": [5]});
        args.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        args
    };
    let report = validate(&app, "backfill", &args(json!({"batch_rows": 400})));
    assert_eq!((&report["valid"], &report["estimated_batches"]), (&json!(true), &json!(25)), "{report}");
    let plan = &report["statements"][0];
    assert_eq!(plan["pointer"], Value::Null);
    assert!(plan["plan"].to_string().contains("t_pkey"), "{plan}");
    assert!((300..500).contains(&plan["estimated_rows"].as_i64().unwrap()), "{plan}");
    for (more, pointer, code) in [
        (json!({"table": "nowhere"}), "/args/table", "table_not_found"),
        (json!({"key": ["name"], "set": null, "delete": true}), "/args/key", "nullable_key"),
        (json!({"set": {"nothing": "1"}}), "/args/set", "unknown_columns"),
        (json!({"set": {"name": "nothing"}}), "/args", "sql_error"),
        (json!({"where": "id > $1)) OR ((true"}), "/args", "sql_error"),
        (json!({"guards": {"max_replica_lag_ms": 1}}), "/args/guards", "guard_not_allowed"),
        (json!({"guards": {"condition": "nothing"}}), "/args/guards", "sql_error"),
    ] {
        let report = validate(&app, "backfill", &args(more.clone()));
        let problem = &report["problems"][0];
        assert_eq!(
            (&report["valid"], problem["pointer"].as_str(), problem["error"]["code"].as_str()),
            (&json!(false), Some(pointer), Some(code)),
            "{more}: {report}"
        );
    }
    let denied = validate(&app, "backfill", &json!({"table": "public.secrets", "delete": true, "key": ["a"]}));
    assert_eq!(denied["valid"], false, "{denied}");
    assert_eq!(app.target.count("SELECT count(*) FROM public.t WHERE name <> upper(name)"), 10_000, "nothing was run");
    app.target.run("TRUNCATE public.t");
    let report = validate(&app, "backfill", &args(json!({})));
    assert_eq!((&report["valid"], &report["estimated_batches"]), (&json!(true), &json!(0)), "{report}");
}
