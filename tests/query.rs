//! The kind `query`: parameters, limits, errors, and sessions that are the same for every job.

use serde_json::{Value, json};
use slowlane::queue::model::MAX_ERROR_BYTES;

use crate::support::app::TestApp;
use crate::support::eventually;

/// The first row of a query's result, as NDJSON has it.
#[track_caller]
fn first_row(app: &TestApp, sql: &str, params: &Value) -> Value {
    let job = app.query(sql, params);
    assert_eq!(job["state"], "succeeded", "{sql} {params}: {job}");
    let data = app.get(&format!("/v1/jobs/{}/result/data?format=ndjson", job["id"].as_str().unwrap()));
    serde_json::from_slice(data.body.split(|b| *b == b'\n').next().unwrap()).unwrap()
}

#[test]
fn params_of_every_common_type_come_back_exactly() {
    let app = TestApp::start();
    app.target.run("CREATE TYPE public.mood AS ENUM ('sad', 'ok'); CREATE DOMAIN public.doc AS jsonb; CREATE DOMAIN public.ints AS int[]");
    for (kind, param, back) in [
        ("boolean", json!(true), json!(true)),
        ("smallint", json!(-32768), json!(-32768)),
        ("integer", json!(2147483647), json!(2147483647)),
        ("integer", json!("7"), json!(7)),
        ("bigint", json!(9223372036854775807_i64), json!("9223372036854775807")),
        ("double precision", json!(1.5e-7), json!(1.5e-7)),
        ("double precision", json!("NaN"), json!("NaN")),
        ("real", json!(0.1), json!(0.1)),
        ("text", json!("a'b\"c\\d\n\t\u{e9}\u{1f600}"), json!("a'b\"c\\d\n\t\u{e9}\u{1f600}")),
        ("text", json!(""), json!("")),
        ("text", json!(12), json!("12")),
        ("varchar(2)", json!("abc"), json!("ab")),
        ("bytea", json!("\\x00ff"), json!("\\x00ff")),
        ("uuid", json!("018f0000-0000-7000-8000-00000000abcd"), json!("018f0000-0000-7000-8000-00000000abcd")),
        ("date", json!("2024-02-29"), json!("2024-02-29")),
        ("time", json!("23:59:59.5"), json!("23:59:59.5")),
        ("timestamp", json!("2024-02-29T12:00:00.25"), json!("2024-02-29T12:00:00.25")),
        ("timestamptz", json!("2024-02-29T12:00:00+02:00"), json!("2024-02-29T10:00:00+00:00")),
        ("interval", json!("1 day 02:03:04"), json!("1 day 02:03:04")),
        ("inet", json!("10.0.0.0/8"), json!("10.0.0.0/8")),
        ("int4range", json!("[1,5)"), json!("[1,5)")),
        ("public.mood", json!("ok"), json!("ok")),
        ("json", json!([1, {"a": null}]), json!([1, {"a": null}])),
        ("jsonb", json!("text"), json!("text")),
        ("jsonb", json!({"type": "jsonb", "value": {"b": [true, 1.5]}}), json!({"b": [true, 1.5]})),
        ("jsonb", json!({"type": "jsonb", "value": null}), json!(null)),
        ("public.doc", json!([1, 2]), json!([1, 2])),
        ("public.ints", json!([1, 2]), json!("{1,2}")),
        ("int[]", json!([1, null, 3]), json!("{1,NULL,3}")),
        ("int[]", json!([[1, 2], [3, 4]]), json!("{{1,2},{3,4}}")),
        ("int[]", json!([]), json!("{}")),
        (
            "text[]",
            json!(["a,b", "\"", "\\", "NULL", "", null]),
            json!("{\"a,b\",\"\\\"\",\"\\\\\",\"NULL\",\"\",NULL}"),
        ),
        ("jsonb[]", json!([{"a": [1]}, null]), json!("{\"{\\\"a\\\": [1]}\",NULL}")),
        ("box[]", json!(["(1,1),(0,0)", "(2,2),(0,0)"]), json!("{(1,1),(0,0);(2,2),(0,0)}")),
        ("integer", json!(null), json!(null)),
        ("int[]", json!(null), json!(null)),
    ] {
        let row = first_row(&app, &format!("SELECT $1::{kind} AS x"), &json!([param]));
        assert_eq!(row["x"], back, "{kind} {param}");
    }
}

#[test]
fn numbers_keep_their_literal() {
    let app = TestApp::start();
    let body = br#"{"kind":"query","args":{"sql":"SELECT $1::numeric AS a, $2::numeric AS b, $3::text AS c","params":[12345678901234567890123,0.10,1E400]}}"#;
    let answer = app.send("POST", "/v1/jobs", &[("content-type", "application/json")], body);
    assert_eq!(answer.status, 202, "{}", answer.text());
    let path = answer.header("location").unwrap().to_owned();
    eventually("it has ended", || app.get(&path).text().contains("\"state\":\"succeeded\""));
    // What was stored is what was sent.
    assert!(app.get(&path).text().contains("[12345678901234567890123,0.10,1E400]"));
    let data = app.get(&format!("{path}/result/data")).text();
    assert_eq!(data, "a,b,c\n12345678901234567890123,0.10,1E400\n");
}

#[test]
fn types_are_described_by_the_statement_or_named_by_the_param() {
    let app = TestApp::start();
    app.target.run(
        "CREATE TABLE public.t AS SELECT g AS id FROM generate_series(1, 9) g; GRANT SELECT ON public.t TO PUBLIC",
    );
    let row = first_row(
        &app,
        "SELECT count(*)::int AS n FROM public.t WHERE id = ANY($1) AND id < $2",
        &json!([[1, 2, 8], 5]),
    );
    assert_eq!(row, json!({"n": 2}));
    let row =
        first_row(&app, "SELECT pg_typeof($1)::text AS t, $1 AS v", &json!([{"type": "numeric(5,2)", "value": 1.5}]));
    assert_eq!(row, json!({"t": "numeric", "v": "1.50"}));
    let row = first_row(&app, "SELECT 1 AS a, 2 AS a, 3 AS a_2, 4 AS \"?column?\"", &json!([]));
    assert_eq!(row, json!({"a": 1, "a_3": 2, "a_2": 3, "?column?": 4}));
    let job = app.query("SELECT FROM public.t", &json!([]));
    assert_eq!((&job["state"], &job["result"]["rows"]), (&json!("succeeded"), &json!(9)));
}

#[test]
fn limits_truncate_or_fail() {
    let app = TestApp::start();
    let run = |args: Value| {
        let id = app.submit(&json!({"kind": "query", "args": args}));
        app.ended(&id)
    };
    let sql = "SELECT g FROM generate_series(1, 3000000) g";
    let job = run(json!({"sql": sql, "row_limit": 1000}));
    assert_eq!(
        (&job["state"], &job["result"]["rows"], &job["result"]["truncated"]),
        (&json!("succeeded"), &json!(1000), &json!(true))
    );
    let data = app.get(&format!("/v1/jobs/{}/result/data", job["id"].as_str().unwrap())).text();
    assert_eq!((data.lines().count(), data.lines().last()), (1001, Some("1000")));
    let job = run(json!({"sql": sql, "row_limit": 1000, "on_limit": "fail"}));
    assert_eq!((&job["state"], &job["error"]["code"]), (&json!("failed"), &json!("limit_exceeded")));
    let job = run(json!({"sql": sql, "byte_limit": 5_000_000}));
    assert_eq!(job["result"]["truncated"], true);
    assert!(job["result"]["bytes"].as_i64().unwrap() <= 5_000_000);
    assert!(job["result"]["bytes"].as_i64().unwrap() > 4_999_000);
    // Exactly as many rows as allowed aren't too many.
    let job = run(json!({"sql": "SELECT generate_series(1, 10)", "row_limit": 10, "on_limit": "fail"}));
    assert_eq!((&job["state"], &job["result"]["truncated"]), (&json!("succeeded"), &json!(false)));
    // A session that was cancelled at a limit hurts no later job.
    for _ in 0..8 {
        assert_eq!(run(json!({"sql": "SELECT 1"}))["state"], "succeeded");
    }
}

#[test]
fn an_attempt_ends_at_its_timeout() {
    let app = TestApp::start();
    let id = app.submit(&json!({"kind": "query", "args": {"sql": "SELECT pg_sleep(600)"}, "timeout_ms": 300}));
    let job = app.ended(&id);
    assert_eq!(
        (&job["state"], &job["error"]["code"], &job["error"]["retryable"], &job["error"]["sqlstate"]),
        (&json!("failed"), &json!("timeout"), &json!(false), &json!("57014"))
    );
    eventually("the statement has ended", || {
        app.target.count("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(600)%' AND state = 'active' AND datname = current_database()") == 0
    });
}

#[test]
fn a_statement_cancelled_by_somebody_else_is_tried_again() {
    let app = TestApp::start();
    let id = app.submit(&json!({"kind": "query", "args": {"sql": "SELECT pg_sleep(600)"}, "max_attempts": 2}));
    let cancel = || {
        eventually("it sleeps", || {
            let cancelled = "SELECT count(*) FROM (SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()) c";
            app.target.count(cancelled) == 1
        });
    };
    cancel();
    eventually("it waits for its second attempt", || app.job(&id)["state"] == "scheduled");
    app.queue.run("UPDATE jobs SET run_at = now()");
    cancel();
    let job = app.ended(&id);
    assert_eq!(
        (&job["error"]["code"], &job["error"]["sqlstate"], &job["attempt"]),
        (&json!("cancelled_by_server"), &json!("57014"), &json!(2))
    );
}

#[test]
fn no_job_sees_what_another_left_in_its_session() {
    let app = TestApp::with(|config| config.workers = 1);
    let name = app.target.name().to_owned();
    app.target.run(&format!("ALTER DATABASE {name} SET DateStyle = 'SQL, DMY'; ALTER DATABASE {name} SET bytea_output = 'escape'; ALTER DATABASE {name} SET TimeZone = 'Asia/Tokyo'"));
    let leave =
        "SELECT pg_advisory_lock(4711), set_config('work_mem', '123MB', false), set_config('lane.x', 'left', false)";
    assert_eq!(app.query(leave, &json!([]))["state"], "succeeded");
    let sql = "SELECT (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))::int AS locks,
                      current_setting('work_mem') AS mem, coalesce(current_setting('lane.x', true), '') AS x,
                      timestamptz '2024-01-02 03:04:05+00' AS t, '\\x00'::bytea AS b, current_setting('application_name') LIKE 'slowlane:%' AS named";
    let row = first_row(&app, sql, &json!([]));
    assert_eq!(
        row,
        json!({"locks": 0, "mem": "4MB", "x": "", "t": "2024-01-02T12:04:05+09:00", "b": "\\x00", "named": true})
    );
}

#[test]
fn what_a_read_only_transaction_may_make_does_not_stay() {
    let app = TestApp::start();
    app.target.run("CREATE SCHEMA room AUTHORIZATION slowlane_demo");
    for made in [
        "EXPLAIN ANALYZE CREATE TABLE room.a AS SELECT 1 AS b",
        "EXPLAIN (ANALYZE) SELECT 1 AS b INTO room.a",
        "EXPLAIN ANALYZE VERBOSE CREATE MATERIALIZED VIEW room.a AS SELECT 1 AS b",
    ] {
        let job = app.query(made, &json!([]));
        assert_eq!((&job["state"], &job["error"]["code"]), (&json!("failed"), &json!("read_only")), "{made}: {job}");
        let report = app.post("/v1/jobs/validate", &json!({"kind": "query", "args": {"sql": made}})).json();
        assert_eq!(report["problems"][0]["error"]["code"], "read_only", "{made}: {report}");
    }
    // What no text shows ends with the transaction.
    for made in ["SELECT lo_create(0)", "SELECT pg_notify('told', 'x')", "EXPLAIN ANALYZE SELECT 1"] {
        let job = app.query(made, &json!([]));
        assert_eq!(job["state"], "succeeded", "{made}: {job}");
    }
    assert_eq!(app.target.count("SELECT count(*) FROM pg_largeobject_metadata"), 0);
    assert_eq!(app.target.count("SELECT count(*) FROM pg_class WHERE relnamespace = 'room'::regnamespace"), 0);
}

#[test]
fn a_serializable_query_ends_only_where_nothing_can_be_an_anomaly() {
    let app = TestApp::start();
    let name = app.target.name();
    app.target.run(&format!("ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'"));
    app.queue.run(&format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"));
    let sql =
        "SELECT current_setting('transaction_isolation') AS level, current_setting('transaction_deferrable') AS waits";
    assert_eq!(first_row(&app, sql, &json!([])), json!({"level": "serializable", "waits": "on"}));
}

#[test]
fn errors_carry_what_the_server_said() {
    let app = TestApp::start();
    let job = app.query("SELECT count(*) FORM pg_class", &json!([]));
    let error = &job["error"];
    assert_eq!(
        (&error["code"], &error["sqlstate"], &error["retryable"], &error["position"]),
        (&json!("sql_error"), &json!("42601"), &json!(false), &json!(22))
    );
    let job = app.query("SELECT 1::no_such_type", &json!([]));
    assert_eq!(job["error"]["message"], "type \"no_such_type\" does not exist");
    let job = app.query("SELECT upper(1)", &json!([]));
    assert!(job["error"]["hint"].as_str().unwrap().contains("cast"), "{job}");
    // A message of 10 MiB is cut.
    let job = app.query("SELECT repeat('x', 10485760)::int", &json!([]));
    let message = job["error"]["message"].as_str().unwrap();
    assert!(message.starts_with("invalid input syntax") && message.ends_with("x…"), "{} bytes", message.len());
    assert!(message.len() <= MAX_ERROR_BYTES, "{} bytes", message.len());
}

#[test]
fn the_diesel_kind_reports_on_flights() {
    let app = TestApp::with_flights();
    let id = app.submit(&json!({"kind": "carrier_report", "args": {"month": 7}}));
    let job = app.ended(&id);
    assert_eq!(job["state"], "succeeded", "{job}");
    let counted = app.target.text("SELECT json_agg(x ORDER BY carrier) FROM (SELECT carrier, name, count(year) AS flights, count(*) FILTER (WHERE year IS NOT NULL AND dep_time IS NULL) AS cancelled, count(*) FILTER (WHERE arr_delay > 15) AS late, coalesce(sum(distance), 0) AS miles FROM public.airlines LEFT JOIN (SELECT * FROM public.flights WHERE month = 7) f USING (carrier) GROUP BY 1, 2) x");
    assert_eq!(job["output"], serde_json::from_str::<Value>(&counted).unwrap());
    let answer = app.post("/v1/jobs", &json!({"kind": "carrier_report", "args": {"month": 13}}));
    assert_eq!(answer.problem(), (422, "invalid_args".to_owned(), vec!["/args/month".to_owned()]));
}
