//! The kind `import`: what COPY would have stored, all of it or nothing, and what was refused to the line.

mod dialects;
mod interrupted;
mod lookalikes;
mod memory;
mod reading;
mod torn;

use std::fs;

use serde_json::{Value, json};
use slowlane::pq::Session;

use crate::support::app::TestApp;
use crate::support::client::Client;
use crate::support::postgres::{Database, Postgres};

const CSV: &str = "text/csv";
const NDJSON: &str = "application/x-ndjson";

fn upload_as(client: &Client, content_type: &str, encoding: &str, body: &[u8]) -> String {
    let headers = [("content-type", content_type), ("content-encoding", encoding)];
    let answer = client.send("POST", "/v1/uploads", &headers, body);
    assert_eq!(answer.status, 201, "{}", answer.text());
    answer.json()["id"].as_str().unwrap().to_owned()
}

fn job(client: &Client, content_type: &str, body: &[u8], args: &Value) -> String {
    job_of(client, &upload_as(client, content_type, "identity", body), content_type, args)
}

fn job_of(client: &Client, upload: &str, content_type: &str, args: &Value) -> String {
    let mut all = json!({"upload": upload, "format": if content_type == CSV { "csv" } else { "ndjson" }});
    all.as_object_mut().unwrap().extend(args.as_object().unwrap().clone());
    client.submit(&json!({"kind": "import", "args": all}))
}

#[track_caller]
fn import(client: &Client, content_type: &str, body: &str, args: &Value) -> Value {
    client.ended(&job(client, content_type, body.as_bytes(), args))
}

#[track_caller]
fn imports(client: &Client, content_type: &str, body: &str, args: &Value) -> Value {
    let job = import(client, content_type, body, args);
    assert_eq!(job["state"], "succeeded", "{job}");
    job["output"].clone()
}

fn counts(read: u64, inserted: u64, updated: u64, skipped: u64, rejected: u64) -> Value {
    json!({"rows_read": read, "inserted": inserted, "updated": updated, "skipped": skipped, "rejected": rejected})
}

fn error(job: &Value) -> (&str, &str, &str) {
    let word = |name: &str| job["error"][name].as_str().unwrap_or_default();
    (word("code"), word("sqlstate"), word("message"))
}

/// An app whose target has these tables, of the work role's own.
fn app_with(tables: &str) -> TestApp {
    let app = TestApp::start();
    make(&app.target, tables);
    app
}

fn make(target: &Database, tables: &str) {
    Session::connect(&target.dsn).unwrap().execute_batch(tables).unwrap();
}

fn rejects(client: &Client, job: &Value) -> Vec<(u64, String, String)> {
    let path = format!("/v1/jobs/{}/result/data?format=json", job["id"].as_str().unwrap());
    let rows = client.get(&path).json();
    let rows = rows.as_array().unwrap().iter().map(|row| {
        let text = |name: &str| row[name].as_str().unwrap().to_owned();
        (text("line").parse().unwrap(), text("sqlstate"), text("row"))
    });
    rows.collect()
}

#[test]
fn all_flights_are_what_copy_makes_of_them() {
    let app = app_with(include_str!("../demo/schema.sql"));
    let demo = Postgres::shared().demo();
    for table in ["airlines", "airports", "planes", "weather", "flights"] {
        let file = fs::read(format!("{}/demo/{table}.csv.zst", env!("CARGO_MANIFEST_DIR"))).unwrap();
        let upload = upload_as(&app, CSV, "zstd", &file);
        let job = app.ended(&job_of(&app, &upload, CSV, &json!({"table": table, "null": "NA"})));
        assert_eq!(job["state"], "succeeded", "{job}");
        let rows = demo.count(&format!("SELECT count(*) FROM public.{table}"));
        assert_eq!((&job["output"]["inserted"], &job["statistics"]["rows_affected"]), (&json!(rows), &json!(rows)));
        // Progress is counted in the bytes that were sent.
        let progress = &job["progress"];
        assert_eq!((&progress["done"], &progress["total"]), (&json!(file.len()), &json!(file.len())));
        assert_eq!(
            (&progress["unit"], &progress["basis"], &progress["percent"]),
            (&json!("bytes"), &json!("exact"), &json!(100.0))
        );
        let digest =
            format!("SELECT md5(string_agg(t::text, chr(10) ORDER BY t::text COLLATE \"C\")) FROM public.{table} t");
        assert_eq!(app.target.text(&digest), demo.text(&digest), "{table}");
        assert_eq!(job["result"]["state"], "none");
    }
}

/// 100 MiB of rows of a kibibyte: more than one COPY takes where several do as well.
fn rows_of_100_mib() -> String {
    let filler = "x".repeat(1_000);
    (0..104_858).map(|n| format!("{n},{n},{filler}\n")).collect()
}

#[test]
fn an_error_ends_what_is_sent_where_nothing_looks_at_a_copy_as_a_whole() {
    let app = app_with(
        "CREATE TABLE public.p (id int PRIMARY KEY); INSERT INTO public.p SELECT generate_series(0, 110000);
         CREATE TABLE public.t (a int, up int REFERENCES public.p, b text, UNIQUE (a) DEFERRABLE);
         CREATE FUNCTION public.same() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
         CREATE TRIGGER same BEFORE INSERT ON public.t FOR EACH ROW EXECUTE FUNCTION public.same();
         CREATE TABLE public.tree (a int PRIMARY KEY, up int REFERENCES public.tree, b text);
         CREATE TABLE public.copies (n serial);
         CREATE TABLE public.told (a int, up int, b text);
         CREATE FUNCTION public.tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             INSERT INTO public.copies DEFAULT VALUES; RETURN NULL; END $$;
         CREATE TRIGGER tell AFTER INSERT ON public.told FOR EACH STATEMENT EXECUTE FUNCTION public.tell()",
    );
    let args = |table: &str| json!({"table": table, "header": false});
    let body = rows_of_100_mib();
    let job = import(&app, CSV, &format!("bad,1,x\n{body}"), &args("t"));
    assert!(error(&job).2.starts_with("line 1: invalid input syntax"), "{job}");
    let (done, total) = (job["progress"]["done"].as_u64().unwrap(), job["progress"]["total"].as_u64().unwrap());
    assert!(done < total / 10 * 8, "{done} of {total} bytes were read");
    // The first row refers to the last one.
    let upload = upload_as(&app, CSV, "identity", format!("200000,104857,x\n{body}").as_bytes());
    for table in ["tree", "told"] {
        let job = app.ended(&job_of(&app, &upload, CSV, &args(table)));
        assert_eq!(job["output"], counts(104_859, 104_859, 0, 0, 0), "{job}");
    }
    assert_eq!(app.target.count("SELECT count(*) FROM copies"), 1);
}

#[test]
fn of_a_row_that_is_refused_here_and_one_that_is_refused_there_the_first_is_told() {
    let app = app_with(
        "CREATE TABLE public.t (a int UNIQUE);
         CREATE TABLE public.told (a int);
         CREATE FUNCTION public.tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
         CREATE TRIGGER tell AFTER INSERT ON public.told FOR EACH STATEMENT EXECUTE FUNCTION public.tell()",
    );
    for (table, body, expected) in [
        ("t", "{\"a\":1}\n{\"a\":1}\n{\"x\":1}\n", ("sql_error", "23505", "line 2: duplicate key")),
        ("t", "{\"a\":1}\n{\"x\":1}\n{\"a\":1}\n", ("invalid_row", "42703", "line 2: ")),
        ("told", "{\"a\":1}\n{\"a\":\"x\"}\n{\"x\":1}\n", ("sql_error", "22P02", "line 2: invalid input syntax")),
        ("told", "{\"a\":1}\n{\"x\":1}\n{\"a\":\"x\"}\n", ("invalid_row", "42703", "line 2: ")),
    ] {
        let job = import(&app, NDJSON, body, &json!({"table": table}));
        let (code, sqlstate, message) = error(&job);
        assert_eq!((code, sqlstate), (expected.0, expected.1), "{job}");
        assert!(message.starts_with(expected.2), "{job}");
    }
}

#[test]
fn rows_are_refused_one_by_one_with_their_lines() {
    let app = app_with(
        "CREATE TABLE public.p (id int PRIMARY KEY); INSERT INTO public.p SELECT generate_series(0, 9);
         CREATE TABLE public.t (a int PRIMARY KEY, b int CHECK (b < 100), p int REFERENCES public.p);
         CREATE FUNCTION public.f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF NEW.a = 4243 THEN RAISE EXCEPTION 'not this one'; END IF; RETURN NEW; END $$;
         CREATE TRIGGER f BEFORE INSERT ON public.t FOR EACH ROW EXECUTE FUNCTION public.f()",
    );
    let mut lines = vec!["a,b,p".to_owned()];
    lines.extend((0..12_000).map(|n| format!("{n},\"{}\",{}", n % 100, n % 10)));
    // On line n + 2: a row of two lines moves those behind it.
    for (n, text) in [
        (0, "x,1,1"),
        (1, "1,1"),
        (4_999, "4999,100,1"),
        (5_000, "5000,1,77"),
        (7_000, "0,\"\n1\",1"),
        (7_001, "1,1,1"),
        (7_002, "1,2,2"),
        (11_999, "11999,1,1,1"),
    ] {
        lines[n + 1] = text.to_owned();
    }
    let body = lines.join("\n");
    let upload = upload_as(&app, CSV, "identity", body.as_bytes());
    let job = app.ended(&job_of(&app, &upload, CSV, &json!({"table": "t", "reject_limit": 100})));
    assert_eq!(job["output"], counts(12_000, 11_993, 0, 0, 7), "{job}");
    let expected = [
        (2, "22P02", "x,1,1"),
        (3, "22P04", "1,1"),
        (4_245, "P0001", "4243,\"43\",3"),
        (5_001, "23514", "4999,100,1"),
        (5_002, "23503", "5000,1,77"),
        // The first one with its key is kept, and a later one is refused.
        (7_005, "23505", "1,2,2"),
        (12_002, "22P04", "11999,1,1,1"),
    ];
    let found = rejects(&app, &job);
    let found: Vec<(u64, &str, &str)> = found.iter().map(|(n, s, t)| (*n, s.as_str(), t.as_str())).collect();
    assert_eq!(found, expected);
    assert_eq!(app.target.count("SELECT count(*) FROM t"), 11_993);
    // One fewer, and nothing is stored; the result and the log say which rows it was.
    make(&app.target, "TRUNCATE t");
    let job = app.ended(&job_of(&app, &upload, CSV, &json!({"table": "t", "reject_limit": 6})));
    let (code, sqlstate, message) = error(&job);
    assert_eq!((code, sqlstate), ("too_many_rejects", "22P02"), "{job}");
    assert!(message.contains("line 2"), "{message}");
    assert_eq!(app.target.count("SELECT count(*) FROM t"), 0);
    let result = &job["result"];
    assert_eq!(
        (&result["state"], &result["rows"], &result["truncated"]),
        (&json!("available"), &json!(7), &json!(true))
    );
    assert_eq!(rejects(&app, &job).len(), 7);
    let id = job["id"].as_str().unwrap();
    let log = app.get(&format!("/v1/jobs/{id}/log")).json();
    let log: Vec<(&str, &str)> = log["lines"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| (l["sqlstate"].as_str().unwrap(), l["message"].as_str().unwrap()))
        .collect();
    assert_eq!(log.len(), 7);
    for ((sqlstate, message), (line, expected, text)) in log.iter().zip(expected) {
        assert!(message.starts_with(&format!("line {line}: ")) && message.ends_with(text), "{message}");
        assert_eq!(*sqlstate, expected);
    }
    // Nothing is wrong: a result without rows.
    let job = app.ended(&job_of(
        &app,
        &upload_as(&app, CSV, "identity", b"a,b,p\n1,1,1\n"),
        CSV,
        &json!({"table": "t", "reject_limit": 1}),
    ));
    assert_eq!((&job["result"]["state"], &job["result"]["rows"]), (&json!("available"), &json!(0)));
}

#[test]
fn more_refused_rows_than_a_log_has_lines_are_the_result_of_the_job_that_failed() {
    let app = app_with("CREATE TABLE public.t (a int)");
    let body: String = (0..12_000).map(|n| if n % 4 == 0 { format!("bad{n}\n") } else { format!("{n}\n") }).collect();
    let args = json!({"table": "t", "header": false, "reject_limit": 2_000});
    let job = import(&app, CSV, &body, &args);
    assert_eq!(error(&job).0, "too_many_rejects", "{job}");
    assert!(job["error"]["hint"].as_str().unwrap().contains("result"), "{job}");
    let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
    let manifest = app.get(&format!("{path}/result")).json();
    assert_eq!((&manifest["rows"], &manifest["truncated"]), (&json!(2_001), &json!(true)));
    let found = rejects(&app, &job);
    let expected: Vec<(u64, String, String)> =
        (0..2_001).map(|n| (4 * n + 1, "22P02".to_owned(), format!("bad{}", 4 * n))).collect();
    assert_eq!(found, expected);
    // It goes as any result does.
    assert_eq!(app.send("DELETE", &format!("{path}/result"), &[], b"").status, 204);
    assert_eq!(app.get(&format!("{path}/result/data")).problem().1, "result_deleted");
    assert_eq!(app.target.count("SELECT count(*) FROM t"), 0);
}

#[test]
fn what_is_there_is_an_error_skipped_or_replaced() {
    let app = app_with(
        "CREATE TABLE public.t (id int PRIMARY KEY, code text UNIQUE, n int, note text DEFAULT 'kept');
         CREATE TABLE public.pairs (a int, b text, v int, UNIQUE (a, b));
         CREATE TABLE public.always (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, k text UNIQUE, v int);
         CREATE TABLE public.parts (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
         CREATE TABLE public.parts_low PARTITION OF public.parts FOR VALUES FROM (0) TO (10);
         CREATE TABLE public.parts_high PARTITION OF public.parts FOR VALUES FROM (10) TO (20);
         CREATE TABLE public.bare (a int)",
    );
    let rows =
        || app.target.text("SELECT string_agg(format('%s%s%s%s', id, code, n, left(note, 1)), ' ' ORDER BY id) FROM t");
    let start = || make(&app.target, "TRUNCATE t; INSERT INTO t VALUES (1, 'a', 1, 'own'), (2, 'b', 2, 'own')");
    let body = "id,code,n\n2,b,20\n3,c,30\n3,c,31\n4,d,40\n";
    start();
    let job = import(&app, CSV, body, &json!({"table": "t"}));
    assert_eq!(error(&job).1, "23505", "{job}");
    assert!(error(&job).2.starts_with("line 2: duplicate key"), "{job}");
    assert_eq!(imports(&app, CSV, body, &json!({"table": "t", "on_conflict": "skip"})), counts(4, 2, 0, 2, 0));
    assert_eq!(rows(), "1a1o 2b2o 3c30k 4d40k");
    start();
    let update = json!({"table": "t", "on_conflict": "update"});
    assert_eq!(imports(&app, CSV, body, &update), counts(4, 2, 1, 1, 0));
    assert_eq!(rows(), "1a1o 2b20o 3c31k 4d40k");
    // Another index; what only that index says is different stays an error.
    start();
    let by_code = json!({"table": "t", "on_conflict": "update", "conflict_columns": ["code"]});
    assert_eq!(imports(&app, CSV, "id,code,n\n9,b,7\n", &by_code), counts(1, 0, 1, 0, 0));
    assert_eq!(rows(), "1a1o 9b7o");
    assert_eq!(error(&import(&app, CSV, "id,code,n\n1,z,7\n", &by_code)).1, "23505");
    // In blocks, with refused rows among them.
    start();
    let args = json!({"table": "t", "on_conflict": "update", "reject_limit": 5});
    let job = import(&app, CSV, "id,code,n\n2,x,20\nq,c,1\n3,a,1\n4,d,40\n4,d,41\n", &args);
    assert_eq!(job["output"], counts(5, 1, 1, 1, 2), "{job}");
    let found: Vec<(u64, String)> =
        rejects(&app, &job).into_iter().map(|(line, sqlstate, _)| (line, sqlstate)).collect();
    assert_eq!(found, [(3, "22P02".to_owned()), (4, "23505".to_owned())]);
    assert_eq!(rows(), "1a1o 2x20o 4d41k");
    // NULLs aren't the same.
    let pairs = json!({"table": "pairs", "on_conflict": "update", "conflict_columns": ["b", "a"]});
    assert_eq!(imports(&app, CSV, "a,b,v\n1,,1\n1,,2\n1,x,3\n1,x,4\n", &pairs), counts(4, 3, 0, 1, 0));
    assert_eq!(app.target.text("SELECT string_agg(v::text, ' ' ORDER BY v) FROM pairs"), "1 2 4");
    // Identities, and keys alone.
    let by_k = json!({"table": "always", "on_conflict": "update", "conflict_columns": ["k"]});
    assert_eq!(imports(&app, CSV, "k,v\nx,1\ny,2\n", &by_k), counts(2, 2, 0, 0, 0));
    assert_eq!(imports(&app, CSV, "id,k,v\n70,x,3\n71,z,4\n", &by_k), counts(2, 1, 1, 0, 0));
    assert_eq!(app.target.text("SELECT string_agg(id || k || v, ' ' ORDER BY id) FROM always"), "1x3 2y2 71z4");
    assert_eq!(imports(&app, CSV, "k\nx\nnew\n", &by_k), counts(2, 1, 0, 1, 0));
    // Partitions.
    let parts = json!({"table": "parts", "on_conflict": "update"});
    assert_eq!(imports(&app, CSV, "id,v\n1,1\n11,1\n11,2\n", &parts), counts(3, 2, 0, 1, 0));
    assert_eq!(imports(&app, CSV, "id,v\n1,5\n12,1\n", &parts), counts(2, 1, 1, 0, 0));
    assert_eq!(app.target.text("SELECT string_agg(id || ':' || v, ' ' ORDER BY id) FROM parts"), "1:5 11:2 12:1");
    for (args, body) in [
        (json!({"table": "bare", "on_conflict": "skip"}), "a\n1\n"),
        (json!({"table": "t", "on_conflict": "skip", "conflict_columns": ["n"]}), "id,n\n1,1\n"),
        (json!({"table": "t", "on_conflict": "skip"}), "code\nq\n"),
    ] {
        assert_eq!(error(&import(&app, CSV, body, &args)).0, "no_unique_index");
    }
}

#[test]
fn without_the_right_to_temporary_tables_it_is_said_so() {
    let app = app_with("CREATE TABLE public.t (a int PRIMARY KEY)");
    let name = app.target.name();
    app.target.run(&format!(
        "ALTER DATABASE {name} OWNER TO slowlane_owner; REVOKE TEMPORARY ON DATABASE {name} FROM PUBLIC"
    ));
    let job = import(&app, CSV, "a\n1\n", &json!({"table": "t", "on_conflict": "skip"}));
    assert_eq!(error(&job).0, "temp_not_allowed", "{job}");
    assert!(job["error"]["hint"].as_str().unwrap().contains("GRANT TEMPORARY"));
    assert_eq!(imports(&app, CSV, "a\n1\n", &json!({"table": "t", "reject_limit": 1})), counts(1, 1, 0, 0, 0));
}

#[test]
fn a_table_with_row_level_security_is_refused_whatever_becomes_of_conflicts() {
    let app = app_with(
        "CREATE TABLE public.t (a int PRIMARY KEY); ALTER TABLE public.t ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
         CREATE POLICY all_of_them ON public.t USING (true)",
    );
    for on_conflict in ["error", "skip", "update"] {
        let job = import(&app, CSV, "a\n1\n", &json!({"table": "t", "on_conflict": on_conflict}));
        assert_eq!(error(&job).0, "row_level_security", "{job}");
    }
    // It doesn't bind the owner unless it is forced to.
    make(&app.target, "ALTER TABLE public.t NO FORCE ROW LEVEL SECURITY");
    assert_eq!(imports(&app, CSV, "a\n1\n", &json!({"table": "t"})), counts(1, 1, 0, 0, 0));
}

#[test]
fn an_error_that_is_no_rows_ends_the_job_and_one_at_the_end_has_no_line() {
    let app = app_with(
        "CREATE TABLE public.p (id int PRIMARY KEY); CREATE TABLE public.t (a int REFERENCES public.p);
         CREATE TABLE public.own (a int);
         CREATE FUNCTION public.f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             RAISE 'not this one' USING ERRCODE = CASE NEW.a WHEN 1 THEN '53100' ELSE 'MY001' END; END $$;
         CREATE TRIGGER f BEFORE INSERT ON public.own FOR EACH ROW EXECUTE FUNCTION public.f()",
    );
    let job = import(&app, CSV, "a\n1\n", &json!({"table": "own", "reject_limit": 5}));
    assert_eq!((error(&job).0, error(&job).1), ("sql_error", "53100"), "{job}");
    assert_eq!(imports(&app, CSV, "a\n2\n", &json!({"table": "own", "reject_limit": 5})), counts(1, 0, 0, 0, 1));
    let job = import(&app, CSV, "a\n1\n", &json!({"table": "t"}));
    assert!(error(&job).1 == "23503" && error(&job).2.starts_with("insert or update on table"), "{job}");
}

#[test]
fn deferred_constraints_are_looked_at_before_the_end() {
    let app = app_with(
        "CREATE TABLE public.t (a int PRIMARY KEY, u int UNIQUE DEFERRABLE INITIALLY DEFERRED,
                                up int REFERENCES public.t DEFERRABLE INITIALLY DEFERRED)",
    );
    let job = import(&app, CSV, "a,u\n1,1\n2,2\n3,1\n", &json!({"table": "t"}));
    assert_eq!((error(&job).0, error(&job).1), ("sql_error", "23505"), "{job}");
    // Rows may refer to later ones.
    assert_eq!(imports(&app, CSV, "a,u,up\n1,1,2\n2,2,1\n", &json!({"table": "t"})), counts(2, 2, 0, 0, 0));
    let args = json!({"table": "t", "reject_limit": 2});
    let job = import(&app, CSV, "a,u,up\n3,3,1\n4,2,\n5,5,99\n6,6,3\n", &args);
    assert_eq!(job["output"], counts(4, 2, 0, 0, 2), "{job}");
    let found: Vec<(u64, String)> =
        rejects(&app, &job).into_iter().map(|(line, sqlstate, _)| (line, sqlstate)).collect();
    assert_eq!(found, [(3, "23505".to_owned()), (4, "23503".to_owned())]);
}

#[test]
fn ndjson_keeps_what_was_written() {
    let app = app_with(
        "CREATE TABLE public.t (id serial PRIMARY KEY, n numeric, t text, j jsonb, raw json, a int[], b boolean, d text DEFAULT 'd', late int,
                                g int GENERATED ALWAYS AS (1) STORED)",
    );
    let body = [
        r#"{"n": 123456789012345678901234567890.123456789012345678901234567890, "t": "a\tb\\N\n\"é\u00e9", "j": {"k": [1.0, null]}, "raw": {"k":1,  "k":2}}"#,
        r#"{"n": 1e3, "t": {"k": [1, "x"]}, "j": "text", "a": [1, null, 3], "b": true}"#,
        "",
        r#"{"t": 0.10, "j": null, "a": "{4}", "b": "f", "late": 5}"#,
    ];
    let output = imports(&app, NDJSON, &body.join("\n"), &json!({"table": "t"}));
    assert_eq!(output, counts(3, 3, 0, 0, 0));
    let value = |sql: &str| app.target.text(&format!("SELECT {sql}"));
    assert_eq!(value("n FROM t WHERE id = 1"), "123456789012345678901234567890.123456789012345678901234567890");
    assert_eq!(value("t FROM t WHERE id = 1"), "a\tb\\N\n\"éé");
    assert_eq!(value("raw || '' || j FROM t WHERE id = 1"), r#"{"k":1,  "k":2}{"k": [1.0, null]}"#);
    assert_eq!(value("n || t || j || a::text || b FROM t WHERE id = 2"), r#"1000{"k": [1, "x"]}"text"{1,NULL,3}true"#);
    assert_eq!(value("t || a::text || b || late FROM t WHERE id = 3 AND n IS NULL AND j IS NULL"), "0.10{4}false5");
    // What a row lacks is its default, whatever others have.
    assert_eq!(value("count(*) FROM t WHERE d = 'd' AND (late IS NULL) = (id < 3)"), "3");
    for (line, sqlstate, words) in [
        (r#"{"n": 1, "n": 2}"#, "22030", "stands twice"),
        (r#"{"n": 1, "x": 2}"#, "42703", "\"x\""),
        (r#"{"n": 1, "g": 2}"#, "42703", "generated"),
        (r#"{"n": 1"#, "22032", "no JSON object"),
        ("[1]", "22032", "expected an object"),
        (r#"{"n": 1, "t": "\u0000"}"#, "22P05", "u0000"),
        (r#"{"n": "one"}"#, "22P02", "invalid input syntax"),
    ] {
        let body = format!("{{\"n\": 5}}\n\n{line}\n{{\"n\": 6}}\n");
        let job = import(&app, NDJSON, &body, &json!({"table": "t"}));
        let (_, found, message) = error(&job);
        assert!(found == sqlstate && message.starts_with("line 3: ") && message.contains(words), "{line}: {job}");
        let job = import(&app, NDJSON, &body, &json!({"table": "t", "reject_limit": 1}));
        assert_eq!(job["output"], counts(3, 2, 0, 0, 1), "{line}: {job}");
        assert_eq!(rejects(&app, &job), [(3, sqlstate.to_owned(), line.to_owned())]);
    }
    // The columns that are named, and no others.
    assert_eq!(
        imports(&app, NDJSON, "{\"late\":1}\n{}\n", &json!({"table": "t", "columns": ["late", "d"]})),
        counts(2, 2, 0, 0, 0)
    );
    assert_eq!(value("count(*) FROM t WHERE d IS DISTINCT FROM 'd'"), "0");
    assert_eq!(imports(&app, NDJSON, "\n\n", &json!({"table": "t"})), counts(0, 0, 0, 0, 0));
    assert_eq!(error(&import(&app, NDJSON, "{\"x\":1}\n", &json!({"table": "t"}))).0, "unknown_columns");
}

#[test]
fn arguments_are_refused_where_they_stand() {
    let app = app_with("CREATE TABLE public.t (a int)");
    let upload = upload_as(&app, CSV, "identity", b"a\n");
    let gone = "018f0000-0000-7000-8000-00000000abcd";
    for (args, pointers) in [
        (
            json!({"upload": upload, "table": " ", "format": "csv", "columns": [], "reject_limit": 10_001}),
            &["/table", "/columns", "/reject_limit"][..],
        ),
        (
            json!({"upload": upload, "table": "t", "format": "csv", "columns": ["a", "b", "a"], "delimiter": ";;"}),
            &["/columns/2", "/delimiter"],
        ),
        (
            json!({"upload": upload, "table": "t", "format": "csv", "delimiter": "\n", "null": "a\"b"}),
            &["/delimiter", "/null"],
        ),
        (json!({"upload": upload, "table": "t", "format": "csv", "null": "a,b"}), &["/null"]),
        (json!({"upload": upload, "table": "t", "format": "csv", "null": "\\."}), &["/null"]),
        (json!({"upload": upload, "table": "t", "format": "csv", "delimiter": "."}), &["/delimiter"]),
        (json!({"upload": upload, "table": "t", "format": "csv", "delimiter": "\\"}), &["/delimiter"]),
        (
            json!({"upload": upload, "table": "t", "format": "ndjson", "header": true, "null": ""}),
            &["/null", "/header"],
        ),
        (json!({"upload": upload, "table": "t", "format": "csv", "conflict_columns": ["a"]}), &["/conflict_columns"]),
        (json!({"upload": upload, "table": "t", "format": "xml"}), &["/format"]),
        (json!({"upload": "x", "table": "t", "format": "csv"}), &["/upload"]),
        (json!({"upload": upload, "table": "t", "format": "csv", "on_conflict": "merge"}), &["/on_conflict"]),
    ] {
        let (status, code, found) = app.post("/v1/jobs", &json!({"kind": "import", "args": args})).problem();
        assert_eq!((status, code.as_str()), (422, "invalid_args"));
        assert_eq!(found, pointers.iter().map(|pointer| format!("/args{pointer}")).collect::<Vec<_>>(), "{args}");
    }
    let args = json!({"upload": gone, "table": "t", "format": "csv"});
    let answer = app.post("/v1/jobs", &json!({"kind": "import", "args": args}));
    assert_eq!(answer.problem(), (422, "unknown_upload".to_owned(), vec!["/args/upload".to_owned()]));
    assert_eq!(app.queue.count("SELECT count(*) FROM jobs"), 0);
}

/// A table whose rows refer to one another takes them in any order.
#[test]
fn a_foreign_key_to_the_table_itself_is_looked_at_behind_all_rows() {
    let app = app_with("CREATE TABLE public.tree (id int PRIMARY KEY, up int REFERENCES tree)");
    assert_eq!(imports(&app, CSV, "id,up\n1,2\n2,1\n", &json!({"table": "tree"})), counts(2, 2, 0, 0, 0));
}
