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
    let report = validate(&app, "carrier_report", &json!({"month": 1}));
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
    app.target.run(
        "GRANT ALL ON public.t TO slowlane_demo; CREATE TABLE public.copy (a int PRIMARY KEY, b int);
         CREATE TABLE public.others (a int PRIMARY KEY, b int, c int); GRANT SELECT ON public.others TO slowlane_demo;
         INSERT INTO public.others VALUES (1)",
    );
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
        (json!({"key": ["id", "name"], "set": null, "delete": true}), "/args/key", "nullable_key"),
        (json!({"set": {"nothing": "1"}}), "/args/set/nothing", "unknown_columns"),
        (json!({"set": {"name": "$1::text", "no/thing": "1"}}), "/args/set/no~1thing", "unknown_columns"),
        (json!({"set": {"id": "1"}}), "/args/set/id", "key_column"),
        (json!({"set": {"name": "nothing"}}), "/args/set/name", "sql_error"),
        (json!({"set": {"name": "1), (2"}}), "/args/set/name", "expression_not_allowed"),
        (
            json!({"table": "public.others", "set": {"b": "a", "c": "'\u{e9}' || a"}, "where": "a > $1"}),
            "/args/set/c",
            "sql_error",
        ),
        (json!({"table": "public.others", "set": {"b": "a"}, "where": "a > $1"}), "/args/set", "permission_denied"),
        (json!({"where": "id > $1)) OR ((true"}), "/args/where", "sql_error"),
        (json!({"where": "id > $1 AND"}), "/args/where", "sql_error"),
        (json!({"params": [5, 6]}), "/args/params", "parameter_count"),
        (json!({"params": [{"type": "nothing", "value": 1}]}), "/args/params/0/type", "invalid_parameter"),
        (json!({"params": [[1]]}), "/args/params/0", "invalid_parameter"),
        (json!({"guards": {"max_replica_lag_ms": 1}}), "/args/guards/max_replica_lag_ms", "guard_not_allowed"),
        (json!({"guards": {"condition": "nothing"}}), "/args/guards/condition", "sql_error"),
        (json!({"guards": {"condition": "1 / 0 = 1"}}), "/args/guards/condition", "guard_failed"),
        (
            json!({"set": null, "insert_select": {"into": "nowhere", "columns": ["a"], "select": ["id"]}}),
            "/args/insert_select/into",
            "table_not_found",
        ),
        (
            json!({"set": null, "insert_select": {"into": "public.copy", "columns": ["a", "c"], "select": ["id", "id"]}}),
            "/args/insert_select/columns/1",
            "unknown_columns",
        ),
        (
            json!({"set": null, "insert_select": {"into": "public.copy", "columns": ["a", "b"], "select": ["id", "count(*)"]}}),
            "/args/insert_select/select/1",
            "expression_not_allowed",
        ),
        (
            json!({"set": null, "insert_select": {"into": "public.copy", "columns": ["a"], "select": ["id"]}}),
            "/args/insert_select",
            "permission_denied",
        ),
        (
            json!({"set": null, "insert_select": {"into": "public.copy", "columns": ["a", "b"], "select": ["id", "name"]}}),
            "/args/insert_select/select/1",
            "sql_error",
        ),
    ] {
        let report = validate(&app, "backfill", &args(more.clone()));
        let problem = &report["problems"][0];
        assert_eq!(
            (&report["valid"], problem["pointer"].as_str(), problem["error"]["code"].as_str()),
            (&json!(false), Some(pointer), Some(code)),
            "{more}: {report}"
        );
    }
    let denied = validate(&app, "backfill", &json!({"table": "public.others", "delete": true}));
    let problem = (&denied["problems"][0]["pointer"], &denied["problems"][0]["error"]["code"]);
    assert_eq!(problem, (&json!("/args/delete"), &json!("permission_denied")), "{denied}");
    assert_eq!(app.target.count("SELECT count(*) FROM public.t WHERE name <> upper(name)"), 10_000, "nothing was run");
    app.target.run("TRUNCATE public.t");
    let report = validate(&app, "backfill", &args(json!({})));
    assert_eq!((&report["valid"], &report["estimated_batches"]), (&json!(true), &json!(0)), "{report}");
}

/// Statements that a transaction which only reads refuses.
const WRITES: [&str; 14] = [
    "WITH d AS (DELETE FROM public.t RETURNING id) SELECT * FROM d",
    "WITH d AS (UPDATE public.t SET name = 'x' WHERE false RETURNING id) SELECT 1 AS one",
    "SELECT * FROM (SELECT * FROM public.t FOR UPDATE) x",
    "SELECT * FROM public.t WHERE id = $1 FOR SHARE",
    "SELECT * FROM public.t WHERE id = (SELECT id FROM public.t LIMIT 1 FOR NO KEY UPDATE)",
    "(SELECT id FROM public.t FOR KEY SHARE)",
    "INSERT INTO public.t VALUES (0, 'x') RETURNING id",
    "/* a */ UPDATE public.t SET name = 'x' RETURNING id",
    "EXPLAIN ANALYZE DELETE FROM public.t",
    "EXPLAIN (VERBOSE, ANALYZE true, FORMAT json) UPDATE public.t SET name = 'x' WHERE id = $1",
    "EXPLAIN ANALYSE VERBOSE SELECT * FROM public.t FOR UPDATE",
    "SELECT id INTO made FROM public.t",
    "SELECT INTO TEMP made FROM public.t",
    "WITH a AS (SELECT $1::int AS b) SELECT b INTO made FROM a",
];

/// Statements that it runs.
const READS: [&str; 9] = [
    "SELECT FROM public.t",
    "SELECT 'DELETE FROM t FOR UPDATE' AS text",
    "EXPLAIN DELETE FROM public.t",
    "EXPLAIN (ANALYZE off) DELETE FROM public.t",
    "EXPLAIN ANALYZE SELECT * FROM public.t",
    "EXPLAIN (SELECT 1)",
    "WITH d AS (SELECT id FROM public.t) SELECT * FROM d",
    "TABLE public.t",
    "SHOW work_mem",
];

fn values(sql: &str) -> Value {
    if sql.contains("$1") { json!([1]) } else { json!([]) }
}

#[test]
fn what_a_query_may_not_run_is_known_before() {
    let app = with_table();
    for sql in WRITES {
        let report = validate(&app, "query", &json!({"sql": sql, "params": values(sql)}));
        let problem = &report["problems"][0];
        assert_eq!((&report["valid"], &problem["pointer"]), (&json!(false), &json!("/args/sql")), "{sql}: {report}");
        let error = &app.query(sql, &values(sql))["error"];
        for field in ["code", "sqlstate", "hint"] {
            assert_eq!(problem["error"][field], error[field], "{field} of {sql}: {problem} {error}");
        }
        assert_eq!((&error["code"], &error["sqlstate"]), (&json!("read_only"), &json!("25006")), "{sql}");
        assert!(error["hint"].as_str().unwrap().contains("the kind execute"), "{sql}: {error}");
    }
    for sql in READS {
        let report = validate(&app, "query", &json!({"sql": sql, "params": []}));
        assert_eq!(report["valid"], true, "{sql}: {report}");
        assert_eq!(app.query(sql, &json!([]))["state"], "succeeded", "{sql}");
    }
    assert_eq!(app.target.count("SELECT count(*) FROM public.t WHERE name LIKE 'n%'"), 10_000);
}

#[test]
fn on_a_target_that_only_reads_every_kind_that_changes_something_is_refused() {
    let app = with_table();
    app.target.run(&format!(
        "CREATE MATERIALIZED VIEW public.v AS SELECT 1 AS a; ALTER MATERIALIZED VIEW public.v OWNER TO slowlane_demo;
         ALTER DATABASE {} SET default_transaction_read_only = on",
        app.target.name()
    ));
    let upload = app.send("POST", "/v1/uploads", &[("content-type", "text/csv")], b"id,name\n0,x\n");
    let upload = upload.json()["id"].clone();
    for (kind, args) in [
        ("import", json!({"upload": upload, "table": "public.t", "format": "csv"})),
        ("backfill", json!({"table": "public.t", "set": {"name": "'x'"}})),
        ("maintain", json!({"action": "reindex", "table": "public.t"})),
        ("maintain", json!({"action": "create_index", "table": "public.t", "columns": ["name"], "name": "t_name"})),
        ("refresh", json!({"view": "public.v"})),
    ] {
        let report = validate(&app, kind, &args);
        let problem = &report["problems"][0];
        let found = (&report["valid"], &problem["pointer"], &problem["error"]["code"]);
        assert_eq!(found, (&json!(false), &json!("/target"), &json!("read_only")), "{kind}: {report}");
        let job = app.ended(&app.submit(&json!({"kind": kind, "args": args, "max_attempts": 1})));
        assert_eq!((&job["state"], &job["error"]["code"]), (&json!("failed"), &json!("read_only")), "{kind}: {job}");
    }
    // It writes no row, and a server that isn't a standby does it.
    let vacuum = json!({"action": "vacuum", "table": "public.t"});
    assert_eq!(validate(&app, "maintain", &vacuum)["valid"], true);
    assert_eq!(app.ended(&app.submit(&json!({"kind": "maintain", "args": vacuum})))["state"], "succeeded");
    let more = ["CREATE TABLE public.made (a int)", "TRUNCATE public.t", "DELETE FROM public.t", "DROP TABLE public.t"];
    for sql in WRITES.iter().chain(&more) {
        let args = json!({"statements": [{"sql": "SELECT 1"}, {"sql": sql, "params": values(sql)}]});
        let report = validate(&app, "execute", &args);
        let problem = &report["problems"][0];
        assert_eq!(problem["pointer"], "/args/statements/1/sql", "{sql}: {report}");
        let job = app.ended(&app.submit(&json!({"kind": "execute", "args": args, "max_attempts": 1})));
        for field in ["code", "sqlstate", "hint"] {
            assert_eq!(problem["error"][field], job["error"][field], "{field} of {sql}: {problem} {job}");
        }
        assert!(problem["error"]["hint"].as_str().unwrap().contains("another target"), "{sql}: {problem}");
    }
    for sql in READS {
        let report = validate(&app, "execute", &json!({"statements": [{"sql": sql}]}));
        assert_eq!(report["valid"], true, "{sql}: {report}");
    }
}

#[test]
fn a_view_that_is_to_be_refreshed_is_looked_up() {
    let app = with_table();
    let report = validate(&app, "refresh", &json!({"view": "nowhere"}));
    let problem = (&report["problems"][0]["pointer"], &report["problems"][0]["error"]["code"]);
    assert_eq!(problem, (&json!("/args/view"), &json!("view_not_found")), "{report}");
}

#[test]
fn a_hint_names_the_kind_that_runs_it() {
    let app = with_table();
    for (kind, sql, code, hint) in [
        ("query", "DELETE FROM public.t", "statement_not_allowed", "the kind execute"),
        ("query", "INSERT INTO public.t VALUES (0)", "statement_not_allowed", "the kind execute"),
        ("query", "CREATE TABLE public.made (a int)", "statement_not_allowed", "the kind execute"),
        ("query", "SELECT 1; SELECT 2", "sql_error", "the kind execute runs several"),
        ("query", "SELECT 1; DELETE FROM public.t", "sql_error", "the kind execute runs several"),
        ("query", "VACUUM public.t", "statement_not_allowed", "the kind maintain"),
        ("query", "COPY public.t TO STDOUT", "statement_not_allowed", "SELECT them"),
        ("query", "COMMIT", "statement_not_allowed", "leave transaction control out"),
        ("query", "SELECT nextval('public.s')", "read_only", "the kind execute"),
        ("execute", "DELETE FROM public.t; DELETE FROM public.t", "sql_error", "an item of its own in statements"),
        ("execute", "VACUUM public.t", "sql_error", "the kind maintain"),
    ] {
        let args = match kind {
            "query" => json!({"sql": sql}),
            _ => json!({"statements": [{"sql": sql}]}),
        };
        let job = app.ended(&app.submit(&json!({"kind": kind, "args": args})));
        let error = &job["error"];
        assert_eq!((&job["state"], &error["code"]), (&json!("failed"), &json!(code)), "{sql}: {job}");
        assert!(error["hint"].as_str().is_some_and(|text| text.contains(hint)), "{sql}: {error}");
        // Functions and what isn't planned aren't run to find out.
        let unknown = sql.contains("nextval") || kind == "execute" && sql.starts_with("VACUUM");
        if !unknown {
            let problem = &validate(&app, kind, &args)["problems"][0]["error"];
            assert_eq!((&problem["code"], &problem["hint"]), (&error["code"], &error["hint"]), "{sql}");
        }
    }
    // One error of syntax is no several statements.
    assert_eq!(app.query("SELECT ; 1", &json!([]))["error"]["hint"], Value::Null);
    let copy = app
        .post("/v1/jobs", &json!({"kind": "execute", "args": {"statements": [{"sql": "COPY public.t FROM STDIN"}]}}));
    let detail = copy.json()["errors"][0]["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("the kind import") && detail.contains("a query"), "{detail}");
}

#[test]
fn what_no_transaction_runs_is_refused_of_an_execute() {
    let app = with_table();
    for sql in
        ["VACUUM", "CREATE INDEX CONCURRENTLY i ON public.t (a)", "DROP INDEX CONCURRENTLY i", "CREATE DATABASE d"]
    {
        let told = validate(&app, "execute", &json!({"statements": [{"sql": "SELECT 1"}, {"sql": sql}]}));
        assert_eq!(
            (&told["valid"], &told["problems"][0]["pointer"]),
            (&json!(false), &json!("/args/statements/1/sql")),
            "{told}"
        );
        assert_eq!(told["problems"][0]["error"]["code"], "statement_not_allowed", "{told}");
    }
}

#[test]
fn what_is_wrong_with_a_value_points_at_the_value() {
    let folder = tempfile::tempdir().unwrap();
    let header =
        "-- [[params]]\n-- name = 'id'\n-- type = 'int4'\n-- [[params]]\n-- name = 'span'\n-- type = 'int4range'\n";
    for (name, kind, sql) in [
        ("one", "query", "SELECT $1, $2"),
        ("two", "execute", "SELECT 1;\nSELECT $1, $2;"),
        ("absent", "query", "SELECT a FROM nowhere WHERE a = $1 AND $2 IS NULL"),
        (
            "fill",
            "backfill",
            "-- [args]\n-- table = 'public.t'\n-- where = 'id <@ $2 AND id > $1'\n-- [args.set]\n-- name = '1'",
        ),
    ] {
        let path = folder.path().join(format!("{name}.sql"));
        std::fs::write(path, format!("-- kind = '{kind}'\n{header}{sql}")).unwrap();
    }
    let app = TestApp::with(|config| config.statements = Some(folder.path().to_owned()));
    app.target.run(
        "CREATE TABLE public.t (id int PRIMARY KEY, name text); ALTER TABLE public.t OWNER TO slowlane_demo;
         INSERT INTO public.t VALUES (1, 'a')",
    );
    let query = |params: Value| json!({"sql": "SELECT $1::int, $2::int4range", "params": params});
    let execute = |params: Value| json!({"statements": [{"sql": "SELECT 1"}, {"sql": "SELECT $1::int, $2::int4range", "params": params}]});
    let saved = |name: &str, span: &str| json!({"name": name, "params": {"id": 1, "span": span}});
    let fill = json!({"table": "public.t", "set": {"name": "'x'"}, "where": "id <@ $2 AND id > $1",
                      "params": [1, {"type": "int4range", "value": "all"}]});
    for (kind, args, pointer, message) in [
        ("query", query(json!([1])), "/args/params", ""),
        ("query", query(json!([1, "all"])), "/args/params/1", "/params/1: "),
        ("query", query(json!(["x", "[1,2]"])), "/args/params/0", "/params/0: "),
        ("query", query(json!([[1], "[1,2]"])), "/args/params/0", "/params/0: "),
        ("query", query(json!([{"type": "numeric(2)", "value": 100}, "[1,2]"])), "/args/params/0", "/params/0: "),
        ("query", query(json!([{"type": "no", "value": 1}, null])), "/args/params/0/type", "/params/0/type: "),
        ("execute", execute(json!([1])), "/args/statements/1/params", "/statements/1: "),
        ("execute", execute(json!([1, "all"])), "/args/statements/1/params/1", "/statements/1/params/1: "),
        ("execute", execute(json!([[1], null])), "/args/statements/1/params/0", "/statements/1/params/0: "),
        ("backfill", fill, "/args/params/1", "/params/1: "),
        ("statement", saved("one", "all"), "/args/params/span", "/params/span: "),
        ("statement", saved("two", "all"), "/args/params/span", "/params/span: "),
        ("statement", saved("fill", "all"), "/args/params/span", "/params/span: "),
        ("statement", saved("absent", "[1,2]"), "/args/name", ""),
    ] {
        let report = validate(&app, kind, &args);
        let problem = &report["problems"][0];
        assert_eq!((&report["valid"], &problem["pointer"]), (&json!(false), &json!(pointer)), "{args}: {report}");
        let job = app.ended(&app.submit(&json!({"kind": kind, "args": args, "max_attempts": 1})));
        assert!(job["error"]["message"].as_str().unwrap().starts_with(message), "{args}: {job}");
        for field in ["code", "sqlstate", "message"] {
            assert_eq!(problem["error"][field], job["error"][field], "{field} of {args}: {problem} {job}");
        }
    }
    // What is wrong with the values as they are used is no value's fault.
    let report = validate(&app, "query", &json!({"sql": "SELECT 1 / $1", "params": [0]}));
    let pointers: Vec<&Value> = report["problems"].as_array().unwrap().iter().map(|one| &one["pointer"]).collect();
    assert!(pointers.iter().all(|pointer| **pointer == "/args/sql"), "{report}");
}

#[test]
fn what_an_explain_makes_is_refused_where_nothing_may_be_made() {
    let app = with_table();
    app.target.run(&format!(
        "GRANT CREATE ON SCHEMA public TO slowlane_demo; ALTER DATABASE {} SET default_transaction_read_only = on",
        app.target.name()
    ));
    let makes = [
        "EXPLAIN ANALYZE CREATE TABLE public.made AS SELECT 1 AS a",
        "EXPLAIN (ANALYZE) SELECT 1 AS a INTO public.made",
        "EXPLAIN ANALYZE CREATE TEMP TABLE made AS SELECT 1 AS a",
    ];
    for sql in makes {
        let args = json!({"statements": [{"sql": sql}]});
        let report = validate(&app, "execute", &args);
        let problem = &report["problems"][0];
        assert_eq!(problem["error"]["code"], "read_only", "{sql}: {report}");
        let job = app.ended(&app.submit(&json!({"kind": "execute", "args": args, "max_attempts": 1})));
        for field in ["code", "sqlstate", "message", "hint"] {
            assert_eq!(problem["error"][field], job["error"][field], "{field} of {sql}: {problem} {job}");
        }
    }
    assert_eq!(app.target.text("SELECT to_regclass('public.made')"), "");
    let sql = "EXPLAIN ANALYZE SELECT * FROM public.t WHERE id = $1";
    let args = json!({"statements": [{"sql": sql, "params": [1]}, {"sql": "EXPLAIN ANALYZE VALUES (1)"}]});
    let job = app.ended(&app.submit(&json!({"kind": "execute", "args": args})));
    assert_eq!(job["state"], "succeeded", "{job}");
}
