//! P10: bad input gets a problem document that names the field, and the queue is as before.

use serde_json::{Value, json};

use crate::support::app::TestApp;

const JSON: (&str, &str) = ("content-type", "application/json");

/// Where the 65th level begins.
const TOO_DEEP: &str = concat!(
    "/args/params/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0",
    "/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0"
);

/// A request, and what it is answered with: status, code, pointer.
type Case = (&'static str, Vec<u8>, u16, &'static str, &'static str);

fn query_with(field: &str, value: &str) -> Vec<u8> {
    format!("{{\"kind\":\"query\",\"args\":{{\"sql\":\"SELECT 1\"}},\"{field}\":{value}}}").into_bytes()
}

fn args(args: &str) -> Vec<u8> {
    format!("{{\"kind\":\"query\",\"args\":{args}}}").into_bytes()
}

fn cases() -> Vec<Case> {
    let deep = format!("{{\"sql\":\"SELECT 1\",\"params\":{}1{}}}", "[".repeat(70), "]".repeat(70));
    let many = format!("{{\"sql\":\"SELECT 1\",\"params\":[{}]}}", vec!["1"; 65_536].join(","));
    vec![
        ("no body", vec![], 400, "malformed_json", "-"),
        ("not JSON", b"hello".to_vec(), 400, "malformed_json", "-"),
        ("cut off", b"{\"kind\":".to_vec(), 400, "malformed_json", "-"),
        ("an array", b"[]".to_vec(), 400, "malformed_json", ""),
        ("invalid UTF-8", b"{\"kind\":\"\xff\"}".to_vec(), 400, "malformed_json", "-"),
        ("a name twice", query_with("kind", "\"query\""), 400, "malformed_json", "/kind"),
        ("a name twice, deeper", args("{\"sql\":\"a\",\"sql\":\"b\"}"), 400, "malformed_json", "/args/sql"),
        ("too deep", args(&deep), 400, "malformed_json", TOO_DEEP),
        ("unknown field", query_with("nope", "1"), 422, "invalid_request", "/nope"),
        ("a feature to come", query_with("webhook", "{}"), 422, "not_supported_yet", "/webhook"),
        ("no kind", b"{}".to_vec(), 422, "invalid_request", "/kind"),
        ("unknown kind", b"{\"kind\":\"nope\"}".to_vec(), 422, "unknown_kind", "/kind"),
        ("unknown target", query_with("target", "\"nope\""), 422, "unknown_target", "/target"),
        ("unknown queue", query_with("queue", "\"nope\""), 422, "unknown_queue", "/queue"),
        ("wrong type", query_with("priority", "\"high\""), 422, "invalid_request", "/priority"),
        ("negative", query_with("priority", "-1"), 422, "invalid_request", "/priority"),
        ("too large", query_with("priority", "10"), 422, "invalid_request", "/priority"),
        ("a fraction", query_with("timeout_ms", "1.5"), 422, "invalid_request", "/timeout_ms"),
        ("nothing", query_with("timeout_ms", "0"), 422, "invalid_request", "/timeout_ms"),
        ("a day and more", query_with("timeout_ms", "86400001"), 422, "invalid_request", "/timeout_ms"),
        ("huge", query_with("timeout_ms", "123456789012345678901234567890"), 422, "invalid_request", "/timeout_ms"),
        ("no attempt", query_with("max_attempts", "0"), 422, "invalid_request", "/max_attempts"),
        ("negative time", query_with("result_ttl_ms", "-5"), 422, "invalid_request", "/result_ttl_ms"),
        ("no time", query_with("run_at", "\"tomorrow\""), 422, "invalid_request", "/run_at"),
        ("labels that are none", query_with("labels", "{\"a\":1}"), 422, "invalid_request", "/labels"),
        ("args that are none", args("[]"), 422, "invalid_request", "/args"),
        ("NUL in a name", query_with("labels", "{\"a\\u0000\":\"x\"}"), 422, "invalid_request", "/labels/a\0"),
        ("NUL in a text", args("{\"sql\":\"SELECT '\\u0000'\"}"), 422, "invalid_request", "/args/sql"),
        (
            "NUL in a param",
            args("{\"sql\":\"SELECT $1\",\"params\":[1,\"\\u0000\"]}"),
            422,
            "invalid_request",
            "/args/params/1",
        ),
        ("no sql", args("{}"), 422, "invalid_args", "/args"),
        ("sql of another type", args("{\"sql\":1}"), 422, "invalid_args", "/args/sql"),
        ("empty sql", args("{\"sql\":\"  \"}"), 422, "invalid_args", "/args/sql"),
        ("only a comment", args("{\"sql\":\"/* a */ -- b\"}"), 422, "invalid_args", "/args/sql"),
        ("an unknown argument", args("{\"sql\":\"SELECT 1\",\"x\":1}"), 422, "invalid_args", "/args/x"),
        ("too many params", args(&many), 422, "invalid_args", "/args/params"),
        (
            "an object as a param",
            args("{\"sql\":\"SELECT $1\",\"params\":[{\"a\":1}]}"),
            422,
            "invalid_args",
            "/args/params/0",
        ),
        ("row_limit 0", args("{\"sql\":\"SELECT 1\",\"row_limit\":0}"), 422, "invalid_args", "/args/row_limit"),
        ("row_limit -1", args("{\"sql\":\"SELECT 1\",\"row_limit\":-1}"), 422, "invalid_args", "/args/row_limit"),
        (
            "byte_limit huge",
            args("{\"sql\":\"SELECT 1\",\"byte_limit\":1e30}"),
            422,
            "invalid_args",
            "/args/byte_limit",
        ),
        ("on_limit unknown", args("{\"sql\":\"SELECT 1\",\"on_limit\":\"x\"}"), 422, "invalid_args", "/args/on_limit"),
        ("2 MiB", args(&format!("{{\"sql\":\"{}\"}}", "x".repeat(2 << 20))), 413, "body_too_large", ""),
    ]
}

#[test]
fn a_bad_post_names_its_field_and_leaves_nothing() {
    let app = TestApp::start();
    for (name, body, status, code, pointer) in cases() {
        let answer = app.send("POST", "/v1/jobs", &[JSON], &body);
        let (got_status, got_code, pointers) = answer.problem();
        assert_eq!((got_status, got_code.as_str()), (status, code), "{name}: {}", answer.text());
        assert!(pointer == "-" || pointers == [pointer], "{name}: {pointers:?}");
        assert_eq!(answer.json()["instance"], "/v1/jobs");
    }
    for content_type in [None, Some("text/plain"), Some("application/x-www-form-urlencoded")] {
        let headers: Vec<_> = content_type.map(|value| ("content-type", value)).into_iter().collect();
        let answer = app.send("POST", "/v1/jobs", &headers, b"{\"kind\":\"query\",\"args\":{\"sql\":\"SELECT 1\"}}");
        assert_eq!(answer.problem(), (415, "unsupported_media_type".to_owned(), vec!["Content-Type".to_owned()]));
    }
    assert_eq!(app.queue.count("SELECT (SELECT count(*) FROM jobs) + (SELECT count(*) FROM finished_jobs)"), 0);
}

#[test]
fn what_is_asked_of_a_job_takes_no_fields_and_no_other_type() {
    let app = TestApp::start();
    let id = app.submit(&json!({"kind": "query", "args": {"sql": "SELECT 1"}, "run_at": "2999-01-01T00:00:00Z"}));
    for asked in ["resume", "pause", "cancel"] {
        let path = format!("/v1/jobs/{id}/{asked}");
        let before = app.job(&id);
        let answer = app.send("POST", &path, &[JSON], b"{\"reason\":\"x\"}");
        assert_eq!(answer.problem(), (422, "invalid_request".to_owned(), vec!["/reason".to_owned()]), "{asked}");
        let answer = app.send("POST", &path, &[("content-type", "text/plain")], b"{}");
        assert_eq!(answer.problem(), (415, "unsupported_media_type".to_owned(), vec!["Content-Type".to_owned()]));
        let answer = app.send("POST", &path, &[JSON], b"[");
        assert_eq!(answer.problem().1, "malformed_json", "{asked}");
        assert_eq!(app.job(&id)["state"], before["state"], "{asked}");
    }
    // Nothing to say needs no type.
    let path = format!("/v1/jobs/{id}/cancel");
    assert_eq!(app.send("POST", &path, &[], b"").status, 202);
    assert_eq!(app.send("POST", &path, &[("content-type", "text/plain")], b"").status, 200);
}

#[test]
fn a_compressed_body_is_refused_by_the_name_of_its_coding_wherever_json_is_taken() {
    let app = TestApp::start();
    let id = app.submit(&json!({"kind": "query", "args": {"sql": "SELECT 1"}, "run_at": "2999-01-01T00:00:00Z"}));
    let job = format!("/v1/jobs/{id}");
    let paths = [
        "/v1/jobs".to_owned(),
        "/v1/jobs/validate".to_owned(),
        format!("{job}/retry"),
        format!("{job}/cancel"),
        format!("{job}/pause"),
        format!("{job}/resume"),
        "/v1/queues/default/pause".to_owned(),
        "/v1/queues/default/resume".to_owned(),
        "/v1/targets/default/check".to_owned(),
        "/v1/statements/reload".to_owned(),
    ];
    for path in &paths {
        for coding in ["gzip", "zstd", "br", "deflate", "gzip, identity"] {
            let answer = app.send("POST", path, &[JSON, ("content-encoding", coding)], b"\x1f\x8b\x08\x00");
            let expected = (415, "unsupported_media_type".to_owned(), vec!["Content-Encoding".to_owned()]);
            assert_eq!(answer.problem(), expected, "{path} {coding}");
            assert!(answer.text().contains(&format!("coded as {coding},")), "{}", answer.text());
            assert_eq!(answer.header("accept-encoding"), Some("identity"), "{path}");
        }
        let odd = app.send("POST", path, &[JSON, ("content-encoding", "postgres://u:hunter2@h/d")], b"{}");
        assert!(odd.status == 415 && !odd.text().contains("hunter2"), "{}", odd.text());
    }
    assert_eq!(app.job(&id)["state"], "scheduled");
    // What says nothing, or that nothing was done, is read.
    let body = b"{\"kind\":\"query\",\"args\":{\"sql\":\"SELECT 1\"}}";
    for coding in ["identity", "IDENTITY", ""] {
        assert_eq!(app.send("POST", "/v1/jobs", &[JSON, ("content-encoding", coding)], body).status, 202, "{coding}");
    }
    let answer = app.send("POST", "/v1/jobs", &[JSON], b"\x1f\x8b\x08\x00");
    assert_eq!(answer.problem().1, "malformed_json");
    assert!(answer.text().contains("compressed by gzip"), "{}", answer.text());
}

#[test]
fn every_error_of_a_post_is_told_at_once() {
    let app = TestApp::start();
    let answer = app
        .post("/v1/jobs", &json!({"kind": "query", "args": {"sql": "SELECT 1"}, "priority": 99, "x": 1, "run_at": 5}));
    let (_, _, mut pointers) = answer.problem();
    pointers.sort();
    assert_eq!(pointers, ["/priority", "/run_at", "/x"]);
}

#[test]
fn bad_paths_and_queries_are_named() {
    let app = TestApp::start();
    let cursor = {
        for _ in 0..3 {
            app.submit(&json!({"kind": "query", "args": {"sql": "SELECT 1"}}));
        }
        app.get("/v1/jobs?limit=2").json()["next_cursor"].as_str().unwrap().to_owned()
    };
    let tampered = if cursor.starts_with('A') { cursor.replacen('A', "B", 1) } else { format!("A{}", &cursor[1..]) };
    let missing = "018f0000-0000-7000-8000-000000000000";
    for (path, status, code, pointer) in [
        ("/v1/jobs/not-a-uuid".to_owned(), 400, "invalid_id", "id"),
        (format!("/v1/jobs/{missing}"), 404, "job_not_found", "id"),
        (format!("/v1/jobs/{missing}/result"), 404, "job_not_found", "id"),
        (format!("/v1/jobs/{missing}/result/data"), 404, "job_not_found", "id"),
        (format!("/v1/jobs/{missing}/result/data?format=xml"), 400, "invalid_parameter", "format"),
        ("/v1/nothing".to_owned(), 404, "not_found", "-"),
        ("/v1/jobs?limit=0".to_owned(), 400, "invalid_parameter", "limit"),
        ("/v1/jobs?limit=501".to_owned(), 400, "invalid_parameter", "limit"),
        ("/v1/jobs?state=done".to_owned(), 400, "invalid_parameter", "state"),
        ("/v1/jobs?state=queued&state=failed".to_owned(), 400, "invalid_parameter", "state"),
        ("/v1/jobs?nope=1".to_owned(), 400, "invalid_parameter", "nope"),
        ("/v1/jobs?created_after=x".to_owned(), 400, "invalid_parameter", "created_after"),
        ("/v1/jobs?kind=%00".to_owned(), 400, "invalid_parameter", "kind"),
        (format!("/v1/jobs?limit=2&cursor={tampered}"), 400, "invalid_cursor", "cursor"),
        (format!("/v1/jobs?state=failed&cursor={cursor}"), 400, "invalid_cursor", "cursor"),
        ("/v1/jobs?cursor=%20".to_owned(), 400, "invalid_cursor", "cursor"),
    ] {
        let (got_status, got_code, pointers) = app.get(&path).problem();
        assert_eq!((got_status, got_code.as_str()), (status, code), "{path}");
        assert!(pointer == "-" || pointers == [pointer], "{path}: {pointers:?}");
    }
    assert_eq!(app.get(&format!("/v1/jobs?limit=2&cursor={cursor}")).status, 200);
    let put = app.send("PUT", "/v1/jobs", &[JSON], b"{}");
    assert_eq!((put.problem().1.as_str(), put.header("allow")), ("method_not_allowed", Some("GET, HEAD, POST")));
    assert_eq!(app.send("POST", &format!("/v1/jobs/{missing}/cancel"), &[], b"").problem().0, 404);
    for (header, value) in [("host", "evil.example"), ("origin", "http://evil.example")] {
        let before = app.queue.count("SELECT count(*) FROM jobs");
        let answer =
            app.post_with("/v1/jobs", &[(header, value)], &json!({"kind": "query", "args": {"sql": "SELECT 1"}}));
        let (status, _, pointers) = answer.problem();
        assert_eq!(status, if header == "host" { 421 } else { 403 });
        assert!(pointers[0].eq_ignore_ascii_case(header));
        assert!(app.queue.count("SELECT count(*) FROM jobs") <= before);
    }
}

#[test]
fn what_only_postgres_knows_is_accepted_and_fails_by_name() {
    let app = TestApp::start();
    app.target.run("CREATE TABLE public.t (a int); GRANT ALL ON public.t TO PUBLIC; INSERT INTO t VALUES (1)");
    let params = |value: Value| value;
    for (sql, values, code, sqlstate) in [
        ("SELECT 1; SELECT 2", params(json!([])), "sql_error", Some("42601")),
        ("SELECT 1; DROP TABLE public.t", json!([]), "sql_error", Some("42601")),
        ("SELECT 1) AS x; DELETE FROM public.t; SELECT (1", json!([]), "sql_error", Some("42601")),
        ("COPY (SELECT 1) TO PROGRAM 'true'", json!([]), "statement_not_allowed", None),
        ("COPY public.t TO STDOUT", json!([]), "statement_not_allowed", None),
        ("COPY public.t FROM STDIN", json!([]), "statement_not_allowed", None),
        ("COMMIT", json!([]), "statement_not_allowed", None),
        ("DELETE FROM public.t", json!([]), "statement_not_allowed", None),
        ("SELECT 1 AS a INTO TEMP t", json!([]), "read_only", Some("25006")),
        ("SELECT $1::int", json!([]), "parameter_count", None),
        ("SELECT $1::int", json!([1, 2]), "parameter_count", None),
        ("SELECT $1::int", json!([[1]]), "invalid_parameter", None),
        ("SELECT $1", json!([{"type": "no_such_type", "value": 1}]), "invalid_parameter", None),
        ("WITH d AS (DELETE FROM public.t RETURNING a) SELECT * FROM d", json!([]), "read_only", Some("25006")),
        ("INSERT INTO public.t VALUES (2) RETURNING a", json!([]), "read_only", Some("25006")),
        ("SELECT nope", json!([]), "sql_error", Some("42703")),
        ("SELECT $1::int", json!(["x"]), "sql_error", Some("22P02")),
        ("SELECT * FROM pg_authid", json!([]), "permission_denied", Some("42501")),
    ] {
        let job = app.query(sql, &values);
        assert_eq!((&job["state"], &job["error"]["code"]), (&json!("failed"), &json!(code)), "{sql}: {job}");
        assert_eq!(job["error"]["sqlstate"].as_str(), sqlstate, "{sql}");
        assert_eq!(job["attempt"], 1, "{sql}");
        assert_eq!(job["result"]["state"], "none", "{sql}");
        let path = format!("/v1/jobs/{}/result/data", job["id"].as_str().unwrap());
        assert_eq!(app.get(&path).problem().1, "job_failed");
    }
    assert_eq!(app.target.text("SELECT string_agg(a::text, ',') FROM public.t"), "1");
    let job = app.query("SELECT 1 +\n  nope", &json!([]));
    assert_eq!(job["error"]["position"], 14, "{job}");
}
