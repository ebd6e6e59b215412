//! Results: complete or not there (P6), and equal to what Postgres itself writes.

use std::io::Read;

use serde_json::{Value, json};

use crate::support::app::TestApp;
use crate::support::client::Answer;
use crate::support::eventually;

const ALL_FLIGHTS: &str = "SELECT * FROM public.flights ORDER BY time_hour, carrier, flight";

/// What psql prints.
fn psql(app: &TestApp, arguments: &[&str]) -> Vec<u8> {
    let mut command = app.target.program("psql", &app.target.dsn);
    command.args(["-X", "-q"]).args(arguments);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn data(app: &TestApp, id: &str, format: &str, headers: &[(&str, &str)]) -> Answer {
    app.get_with(&format!("/v1/jobs/{id}/result/data?format={format}"), headers)
}

#[test]
fn all_flights_equal_what_postgres_writes() {
    let app = TestApp::with_flights();
    let job = app.query(ALL_FLIGHTS, &json!([]));
    assert_eq!((&job["state"], &job["result"]["rows"]), (&json!("succeeded"), &json!(336_776)), "{job}");
    let id = job["id"].as_str().unwrap();
    let csv = data(&app, id, "csv", &[]);
    assert_eq!(csv.header("content-length").unwrap(), csv.body.len().to_string());
    let copied = psql(&app, &["-c", &format!("\\copy ({ALL_FLIGHTS}) TO STDOUT CSV HEADER")]);
    assert!(csv.body == copied, "CSV differs from \\copy: {} and {} bytes", csv.body.len(), copied.len());
    let ndjson = data(&app, id, "ndjson", &[]);
    let written = psql(&app, &["-A", "-t", "-c", &format!("SELECT row_to_json(f) FROM ({ALL_FLIGHTS}) f")]);
    let lines = || ndjson.body.split(|b| *b == b'\n').zip(written.split(|b| *b == b'\n'));
    assert_eq!(ndjson.body.iter().filter(|b| **b == b'\n').count(), 336_776);
    for (ours, theirs) in lines().filter(|(ours, theirs)| ours != theirs) {
        let value = |text| serde_json::from_slice::<Value>(text).unwrap();
        assert_eq!(value(ours), value(theirs));
    }
    let whole = data(&app, id, "json", &[]);
    let rows: Vec<Value> = serde_json::from_slice(&whole.body).unwrap();
    assert_eq!(rows.len(), 336_776);
    assert_eq!(
        rows[336_775],
        serde_json::from_slice::<Value>(ndjson.body.trim_ascii_end().rsplit(|b| *b == b'\n').next().unwrap()).unwrap()
    );
    // Ranges: at the ends, across parts, of every format.
    for (format, all) in [("csv", &csv), ("ndjson", &ndjson), ("json", &whole)] {
        let length = all.body.len();
        for (from, to) in
            [(0, 0), (0, 99), (1_048_000, 1_060_000), (length / 2, length / 2 + 3_000_000), (length - 5, length - 1)]
        {
            let part = data(&app, id, format, &[("range", &format!("bytes={from}-{to}"))]);
            assert_eq!(part.status, 206);
            assert_eq!(part.header("content-range").unwrap(), format!("bytes {from}-{to}/{length}"));
            assert!(part.body == all.body[from..=to], "{format} {from}-{to}");
        }
        let tag = all.header("etag").unwrap();
        let same = data(&app, id, format, &[("range", "bytes=5-9"), ("if-range", tag)]);
        assert_eq!((same.status, same.body.len()), (206, 5));
        let other = data(&app, id, format, &[("range", "bytes=5-9"), ("if-range", "\"other\"")]);
        assert_eq!((other.status, other.body.len()), (200, length));
        assert_eq!(data(&app, id, format, &[("if-none-match", tag)]).status, 304);
        let outside = data(&app, id, format, &[("range", &format!("bytes={length}-"))]);
        assert_eq!(outside.problem().1, "range_not_satisfiable");
        assert_eq!(outside.header("content-range").unwrap(), format!("bytes */{length}"));
    }
    // Encoded on the way, the same bytes arrive.
    let zipped = data(&app, id, "csv", &[("accept-encoding", "zstd, gzip;q=0.5")]);
    assert_eq!(zipped.header("content-encoding"), Some("zstd"));
    // One frame and one member in all: many clients read no further than the first.
    let mut unzipped = Vec::new();
    zstd::Decoder::new(&zipped.body[..]).unwrap().single_frame().read_to_end(&mut unzipped).unwrap();
    assert!(unzipped == csv.body);
    let zipped = data(&app, id, "csv", &[("accept-encoding", "gzip")]);
    assert_eq!(zipped.header("content-encoding"), Some("gzip"));
    let mut unzipped = Vec::new();
    flate2::read::GzDecoder::new(&zipped.body[..]).read_to_end(&mut unzipped).unwrap();
    assert!(unzipped == csv.body);
    assert_ne!(zipped.header("etag"), csv.header("etag"));
}

#[test]
fn values_of_every_kind_are_written_as_postgres_does() {
    let app = TestApp::start();
    let sql = "SELECT * FROM (VALUES (1, 'a,b', 'x\"y', E'line\\nend', '', NULL::text, '\\.', true, 1.50::numeric, 'NaN'::float8,
                      date '2024-01-01', '{1,2}'::int[], '{\"a\": 1}'::jsonb, interval '1 day', '\\x01'::bytea, point '(1,2)'),
                     (2, 'é', E'tab\\t', E'cr\\r', ' ', 'n', '\\', false, -0.0, 'Infinity', 'infinity', '{}', '[]', '-1 mon', '', NULL)) v";
    let job = app.query(sql, &json!([]));
    let id = job["id"].as_str().unwrap();
    let one_line = sql.replace('\n', " ");
    assert_eq!(
        String::from_utf8(data(&app, id, "csv", &[]).body).unwrap(),
        String::from_utf8(psql(&app, &["-c", &format!("\\copy ({one_line}) TO STDOUT CSV HEADER")])).unwrap()
    );
    let single = app.query("SELECT '\\.' AS \"a,b\"", &json!([]));
    assert_eq!(data(&app, single["id"].as_str().unwrap(), "csv", &[]).text(), "\"a,b\"\n\"\\.\"\n");
}

#[test]
fn a_result_without_rows_is_a_result() {
    let app = TestApp::start();
    let job = app.query("SELECT 1 AS a, 2 AS b WHERE false", &json!([]));
    assert_eq!((&job["result"]["state"], &job["result"]["rows"]), (&json!("available"), &json!(0)));
    let id = job["id"].as_str().unwrap();
    assert_eq!(data(&app, id, "csv", &[]).text(), "a,b\n");
    assert_eq!(data(&app, id, "ndjson", &[]).text(), "");
    assert_eq!(data(&app, id, "json", &[]).json(), json!([]));
}

#[test]
fn formats_are_negotiated() {
    let app = TestApp::start();
    let job = app.query("SELECT 1 AS a", &json!([]));
    let path = format!("/v1/jobs/{}/result/data", job["id"].as_str().unwrap());
    for (accept, content_type) in [
        ("*/*", "text/csv; charset=utf-8; header=present"),
        ("application/json", "application/json"),
        ("application/x-ndjson", "application/x-ndjson"),
        ("text/csv;q=0.1, application/json;q=0.9", "application/json"),
        ("application/jsonl", "application/x-ndjson"),
        ("application/x-jsonlines; charset=utf-8", "application/x-ndjson"),
        ("application/csv", "text/csv; charset=utf-8; header=present"),
        ("text/csv; header=present", "text/csv; charset=utf-8; header=present"),
        ("text/csv; header=absent", "text/csv; charset=utf-8; header=absent"),
    ] {
        assert_eq!(app.get_with(&path, &[("accept", accept)]).header("content-type"), Some(content_type), "{accept}");
    }
    for accept in ["image/png", "text/csv; charset=latin1", "text/csv; header=maybe"] {
        assert_eq!(app.get_with(&path, &[("accept", accept)]).problem().0, 406, "{accept}");
    }
    let head = app.send("HEAD", &path, &[], b"");
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, Some("4"), 0));
}

#[test]
fn csv_without_its_header_is_what_follows_the_header() {
    let app = TestApp::start();
    let job = app.query("SELECT g AS \"n,m\", repeat('x', 90) AS x FROM generate_series(1, 30000) g", &json!([]));
    let path = format!("/v1/jobs/{}/result/data", job["id"].as_str().unwrap());
    let get =
        |further: &[(&str, &str)]| app.get_with(&path, &[&[("accept", "text/csv; header=absent")], further].concat());
    let (with, without) = (app.get(&path), get(&[]));
    assert!(with.body == [b"\"n,m\",x\n", &without.body[..]].concat() && without.body.starts_with(b"1,xxx"));
    let length = without.body.len();
    assert_eq!(without.header("content-length").unwrap(), length.to_string());
    // Other bytes have another tag, with each coding.
    let tag = without.header("etag").unwrap();
    assert_ne!(with.header("etag"), Some(tag));
    assert_eq!(get(&[("if-none-match", tag)]).status, 304);
    assert_eq!(get(&[("if-none-match", with.header("etag").unwrap())]).status, 200);
    for (from, to) in [(0, 9), (1_048_000, 1_060_000), (length - 5, length - 1)] {
        let part = get(&[("range", &format!("bytes={from}-{to}")), ("if-range", tag)]);
        assert_eq!(
            (part.status, part.header("content-range")),
            (206, Some(format!("bytes {from}-{to}/{length}").as_str()))
        );
        assert!(part.body == without.body[from..=to]);
    }
    assert_eq!(get(&[("range", &format!("bytes={length}-"))]).problem().1, "range_not_satisfiable");
    let head = app.send("HEAD", &path, &[("accept", "text/csv; header=absent")], b"");
    assert_eq!((head.header("content-length"), head.header("etag")), (Some(length.to_string().as_str()), Some(tag)));
    let zipped = get(&[("accept-encoding", "zstd")]);
    assert!(zstd::decode_all(&zipped.body[..]).unwrap() == without.body);
    assert_ne!(zipped.header("etag"), Some(tag));
    // Nothing but the header is nothing.
    let job = app.query("SELECT 1 AS a WHERE false", &json!([]));
    let path = format!("/v1/jobs/{}/result/data", job["id"].as_str().unwrap());
    let empty = app.get_with(&path, &[("accept", "text/csv; header=absent")]);
    assert_eq!((empty.status, empty.header("content-length"), empty.text().as_str()), (200, Some("0"), ""));
}

/// Streams 200,000 rows, and stops before the next one.
const STOPS_IN_THE_MIDDLE: &str =
    "SELECT g, repeat('x', 50), CASE WHEN g = 200000 THEN pg_sleep(600)::text END FROM generate_series(1, 400000) g";

/// A query that has stopped in the middle, with rows stored already.
fn stop_in_the_middle(app: &TestApp, timeout_ms: u32) -> String {
    let args = json!({"sql": STOPS_IN_THE_MIDDLE});
    let id = app.submit(&json!({"kind": "query", "args": args, "max_attempts": 1, "timeout_ms": timeout_ms}));
    eventually("it waits in the middle", || {
        app.target.count(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()",
        ) == 1
            && app.queue.count(&format!("SELECT count(*) FROM result_parts WHERE job_id = '{id}'")) > 0
    });
    id
}

#[track_caller]
fn has_no_result(app: &TestApp, id: &str, state: &str, code: Option<&str>) {
    let job = app.ended(id);
    assert_eq!((job["state"].as_str().unwrap(), job["error"]["code"].as_str()), (state, code), "{job}");
    assert_eq!(job["result"]["state"], "none");
    for path in ["result", "result/data"] {
        assert_eq!(app.get(&format!("/v1/jobs/{id}/{path}")).problem().1, format!("job_{state}"));
    }
    assert_eq!(app.queue.count(&format!("SELECT count(*) FROM results WHERE job_id = '{id}'")), 0);
}

#[test]
fn a_timeout_in_the_middle_leaves_no_result() {
    let app = TestApp::start();
    let id = stop_in_the_middle(&app, 8_000);
    has_no_result(&app, &id, "failed", Some("timeout"));
}

#[test]
fn a_terminated_backend_in_the_middle_leaves_no_result() {
    let app = TestApp::start();
    let id = stop_in_the_middle(&app, 600_000);
    let job = app.job(&id);
    let pid = job["backend"]["pid"].as_i64().unwrap();
    assert_eq!(app.target.text(&format!("SELECT pg_terminate_backend({pid})")), "t");
    has_no_result(&app, &id, "failed", Some("connection_lost"));
}

#[test]
fn an_error_in_the_middle_leaves_no_result() {
    let app = TestApp::start();
    let id = app.submit(
        &json!({"kind": "query", "args": {"sql": "SELECT 1 / (250000 - g) FROM generate_series(1, 500000) g"}}),
    );
    has_no_result(&app, &id, "failed", Some("sql_error"));
    assert_eq!(app.job(&id)["error"]["sqlstate"], "22012");
    assert!(app.queue.count("SELECT count(*) FROM result_parts") > 0, "the error came before the middle");
    // What was stored meanwhile is swept away.
    while slowlane::results::store::sweep_orphans(&mut app.queue.service(), 1).unwrap() > 0 {}
    assert_eq!(app.queue.count("SELECT count(*) FROM result_parts"), 0);
}

#[test]
fn a_cancel_in_the_middle_leaves_no_result() {
    let app = TestApp::start();
    let id = stop_in_the_middle(&app, 600_000);
    assert_eq!(app.post(&format!("/v1/jobs/{id}/cancel"), &json!({})).status, 202);
    has_no_result(&app, &id, "cancelled", None);
}

#[test]
fn a_result_expires() {
    let app = TestApp::start();
    let job = app.query("SELECT 1", &json!([]));
    let id = job["id"].as_str().unwrap();
    app.queue.run("UPDATE results SET expires_at = now() - interval '1 second'");
    assert_eq!(slowlane::results::store::expire(&mut app.queue.service(), chrono::Utc::now(), 10).unwrap().len(), 1);
    assert_eq!(data(&app, id, "csv", &[]).problem(), (410, "result_expired".to_owned(), vec![]));
    assert_eq!(app.job(id)["result"]["state"], "expired");
    assert_eq!(app.queue.count("SELECT count(*) FROM result_parts"), 0);
}

/// A client that stores what it is sent must not take this for a result.
#[track_caller]
fn is_not_ready(app: &TestApp, id: &str, state: &str) {
    for path in ["result", "result/data", "result/data?format=ndjson"] {
        let answer = app.get(&format!("/v1/jobs/{id}/{path}"));
        assert_eq!(answer.problem(), (409, "result_not_ready".to_owned(), vec![]), "{path}");
        let problem = answer.json();
        assert!(problem["detail"].as_str().unwrap().contains(&format!("the job is {state}:")), "{problem}");
        assert_eq!(problem["retryable"], true);
        assert!(answer.header("retry-after").unwrap().parse::<u32>().is_ok_and(|seconds| seconds > 0));
        assert_eq!(answer.header("location"), Some(format!("/v1/jobs/{id}").as_str()));
        let head = app.send("HEAD", &format!("/v1/jobs/{id}/{path}"), &[], b"");
        assert_eq!((head.status, head.text().as_str()), (409, ""), "{path}");
        assert_eq!(head.header("retry-after"), answer.header("retry-after"));
    }
}

#[test]
fn a_job_in_every_state_before_its_end_has_no_result_yet() {
    let app = TestApp::start();
    let query = json!({"kind": "query", "args": {"sql": "SELECT pg_sleep(600)"}});
    let running = app.submit(&query);
    eventually("it runs", || app.job(&running)["state"] == "running");
    is_not_ready(&app, &running, "running");
    assert_eq!(app.post("/v1/queues/default/pause", &json!({})).status, 200);
    let queued = app.submit(&query);
    is_not_ready(&app, &queued, "queued");
    app.queue.run(&format!("UPDATE jobs SET state = 'paused' WHERE id = '{queued}'"));
    is_not_ready(&app, &queued, "paused");
    assert!(app.get(&format!("/v1/jobs/{queued}/result")).json()["hint"].as_str().unwrap().contains("/resume"));
}

#[test]
fn the_result_of_a_job_that_is_far_ahead_is_not_asked_for_every_second() {
    let app = TestApp::start();
    let at = |run_at: String| app.submit(&json!({"kind": "query", "args": {"sql": "SELECT 1"}, "run_at": run_at}));
    let far = at("2999-01-01T00:00:00Z".to_owned());
    is_not_ready(&app, &far, "scheduled");
    let answer = app.get(&format!("/v1/jobs/{far}/result"));
    assert_eq!(answer.header("retry-after"), Some("60"));
    let hint = answer.json()["hint"].as_str().unwrap().to_owned();
    assert!(hint.contains("2999-01-01T00:00:00Z") && hint.contains("run_at"), "{hint}");
    assert_eq!(app.get(&format!("/v1/jobs/{far}")).header("retry-after"), Some("60"));
    let near = at((chrono::Utc::now() + chrono::TimeDelta::seconds(40)).to_rfc3339());
    let seconds = app.get(&format!("/v1/jobs/{near}/result")).header("retry-after").unwrap().parse::<u32>().unwrap();
    assert!((2..=40).contains(&seconds), "{seconds}");
}

#[test]
fn a_result_that_is_not_ready_says_when_to_ask_again() {
    let app = TestApp::start();
    let id = app.submit(&json!({"kind": "query", "args": {"sql": "SELECT 1"}, "run_at": "2999-01-01T00:00:00Z"}));
    is_not_ready(&app, &id, "scheduled");
    assert_eq!(
        app.send("DELETE", &format!("/v1/jobs/{id}/result"), &[], b"").problem(),
        (409, "job_not_finished".to_owned(), vec!["id".to_owned()])
    );
}

#[test]
fn a_full_store_refuses_kinds_with_results_only() {
    let app = TestApp::with(|config| config.result_store_bytes = 0);
    let answer = app.post("/v1/jobs", &json!({"kind": "query", "args": {"sql": "SELECT 1"}}));
    assert_eq!(answer.problem().1, "result_store_full");
    assert!(answer.header("retry-after").is_some());
    assert_eq!(app.post("/v1/jobs", &json!({"kind": "carrier_report", "args": {}})).status, 202);
}

#[test]
fn a_part_that_is_gone_breaks_the_answer_off() {
    let app = TestApp::start();
    let job = app.query("SELECT g, repeat('x', 100) FROM generate_series(1, 60000) g", &json!([]));
    let id = job["id"].as_str().unwrap();
    let last = app.queue.count("SELECT max(n) FROM result_parts");
    assert!(last >= 3);
    app.queue.run(&format!("DELETE FROM result_parts WHERE n = {last}"));
    let path = format!("/v1/jobs/{id}/result/data");
    for coding in ["identity", "gzip", "zstd"] {
        let answer = app.try_send("GET", &path, &[("accept-encoding", coding)], b"");
        assert!(answer.is_err(), "{coding}: it looked complete: {:?}", answer.map(|a| (a.status, a.body.len())));
    }
}

#[test]
fn a_part_that_was_changed_breaks_the_answer_off() {
    let app = TestApp::start();
    let job = app.query("SELECT g, repeat('x', 100) FROM generate_series(1, 60000) g", &json!([]));
    let path = format!("/v1/jobs/{}/result/data", job["id"].as_str().unwrap());
    assert!(app.try_send("GET", &path, &[], b"").is_ok());
    // The last bytes are the checksum of what the part holds.
    for place in ["length(data) / 2", "length(data) - 1"] {
        let flip =
            format!("UPDATE result_parts SET data = set_byte(data, {place}, get_byte(data, {place}) # 1) WHERE n = 1");
        app.queue.run(&flip);
        let answer = app.try_send("GET", &path, &[], b"");
        assert!(answer.is_err(), "{place}: it looked complete: {:?}", answer.map(|a| (a.status, a.body.len())));
        app.queue.run(&flip);
    }
    assert!(app.try_send("GET", &path, &[], b"").is_ok());
}
