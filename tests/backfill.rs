//! `backfill`: each row once, whatever the key is; what is refused; how batches find their size; who else may be at
//! work.

mod contention;
mod faults;
mod guards;

use serde_json::{Value, json};

use crate::support::app::TestApp;
use crate::support::eventually;
use crate::support::postgres::Database;

/// A table of `count` rows, to which everybody may do anything.
fn table(target: &Database, count: i64) {
    target.run(&format!(
        "CREATE TABLE public.rows (id bigint PRIMARY KEY, n int NOT NULL DEFAULT 0, name text);
         INSERT INTO public.rows (id, name) SELECT 10 * g, 'row ' || g FROM generate_series(1, {count}) g;
         GRANT ALL ON public.rows TO PUBLIC; ANALYZE public.rows"
    ));
}

fn submit(app: &TestApp, args: &Value) -> String {
    app.submit(&json!({"kind": "backfill", "args": args}))
}

#[track_caller]
fn run(app: &TestApp, args: &Value) -> Value {
    let job = app.ended(&submit(app, args));
    assert_eq!(job["state"], "succeeded", "{job}");
    job
}

/// How its job failed: code and message.
#[track_caller]
fn failure(app: &TestApp, args: &Value) -> (String, String) {
    let job = app.ended(&submit(app, args));
    assert_eq!(job["state"], "failed", "{job}");
    let text = |name: &str| job["error"][name].as_str().unwrap_or_default().to_owned();
    (text("code"), text("message"))
}

/// Each number of times that a row was changed, with how many rows.
fn changed(target: &Database) -> String {
    target.text("SELECT string_agg(n || ': ' || c, ', ' ORDER BY n) FROM (SELECT n, count(*) AS c FROM public.rows GROUP BY n) x")
}

#[test]
fn every_row_is_changed_once() {
    let app = TestApp::start();
    table(&app.target, 5_000);
    let job = run(&app, &json!({"table": "public.rows", "set": {"n": "n + 1"}, "batch_rows": 300}));
    assert_eq!(changed(&app.target), "1: 5000");
    let output = &job["output"];
    assert_eq!((&output["rows_scanned"], &output["rows_affected"]), (&json!(5000), &json!(5000)), "{job}");
    let batches = output["batches"].as_i64().unwrap();
    assert!((2..=17).contains(&batches), "{job}");
    assert_eq!(job["statistics"]["rows_affected"], 5000);
    let progress = &job["progress"];
    assert_eq!(
        (&progress["done"], &progress["total"], &progress["basis"]),
        (&json!(5000), &json!(5000), &json!("exact"))
    );
    // Each was a transaction of its own.
    let transactions = app.target.count("SELECT count(DISTINCT xmin::text) FROM public.rows");
    assert_eq!(transactions, batches);
}

#[test]
fn rows_are_chosen_deleted_and_copied() {
    let app = TestApp::start();
    table(&app.target, 1_000);
    let args = json!({"table": "rows", "set": {"n": "$1::int + length(name)", "name": "upper(name)"},
                      "where": "id % 20 = 0 -- every second\n AND name <> $2", "params": [7, "row 2"], "batch_rows": 90});
    let job = run(&app, &args);
    assert_eq!((&job["output"]["rows_scanned"], &job["output"]["rows_affected"]), (&json!(1000), &json!(499)), "{job}");
    assert_eq!(app.target.text("SELECT name || n FROM public.rows WHERE id = 40"), "ROW 412");
    assert_eq!(app.target.count("SELECT count(*) FROM public.rows WHERE n > 0"), 499);

    // Types that only the parameters tell.
    let args = json!({"table": "rows", "set": {"name": "name || $1"}, "where": "$1 IS NOT NULL AND $2 IS NULL AND id = 10",
                      "params": [{"type": "text", "value": "!"}, {"type": "date", "value": null}]});
    assert_eq!(run(&app, &args)["output"]["rows_affected"], 1);

    app.target.run(
        "CREATE TABLE public.copies (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, what text);
         INSERT INTO public.copies OVERRIDING SYSTEM VALUE VALUES (10, 'was there'); GRANT ALL ON public.copies TO PUBLIC",
    );
    let mut args = json!({"table": "rows", "insert_select": {"into": "copies", "columns": ["id", "what"],
                          "select": ["rows.id", "lower(name)"], "on_conflict": "skip"}, "batch_rows": 64});
    let job = run(&app, &args);
    assert_eq!(job["output"]["rows_affected"], 999, "{job}");
    assert_eq!(
        app.target.text("SELECT string_agg(what, ',' ORDER BY id) FROM public.copies WHERE id IN (10, 40)"),
        "was there,row 4"
    );
    args["insert_select"]["on_conflict"] = json!("error");
    assert_eq!(failure(&app, &args).0, "sql_error");

    let job = run(&app, &json!({"table": "rows", "delete": true, "where": "n = 0", "batch_rows": 77}));
    assert_eq!((&job["output"]["rows_scanned"], &job["output"]["rows_affected"]), (&json!(1000), &json!(501)), "{job}");
    run(&app, &json!({"table": "rows", "delete": true}));
    assert_eq!(app.target.count("SELECT count(*) FROM public.rows"), 0);
    let job = run(&app, &json!({"table": "rows", "delete": true}));
    assert_eq!((&job["output"]["batches"], &job["output"]["rows_scanned"]), (&json!(0), &json!(0)), "{job}");
}

#[test]
fn any_key_of_an_index_will_do() {
    let app = TestApp::start();
    // Composite, of two types, with names and values that must be quoted; descending; with many equal keys;
    // partitioned.
    app.target.run(
        r#"CREATE TABLE public.rows ("a ""b" text, at timestamptz NOT NULL, n int NOT NULL DEFAULT 0, grp int NOT NULL,
                                     PRIMARY KEY ("a ""b", at));
           INSERT INTO public.rows SELECT chr(97 + g % 7) || E'\'"\\' || CASE WHEN g % 2 = 0 THEN 'é' ELSE '' END,
                  timestamptz '2026-01-01' + g * interval '1.000001 s', 0, g % 3 FROM generate_series(1, 1000) g;
           CREATE INDEX ON public.rows (grp DESC, at DESC);
           CREATE TABLE public.parts (id int NOT NULL, n int NOT NULL DEFAULT 0, PRIMARY KEY (id)) PARTITION BY HASH (id);
           CREATE TABLE public.parts0 PARTITION OF public.parts FOR VALUES WITH (MODULUS 2, REMAINDER 0);
           CREATE TABLE public.parts1 PARTITION OF public.parts FOR VALUES WITH (MODULUS 2, REMAINDER 1);
           INSERT INTO public.parts SELECT g FROM generate_series(1, 1000) g;
           GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC; ANALYZE"#,
    );
    let keys = [json!(null), json!(["grp", "at"]), json!(["a \"b"]), json!(["grp"])];
    for (n, key) in keys.iter().enumerate() {
        let job = run(&app, &json!({"table": "rows", "key": key, "set": {"n": "n + 1"}, "batch_rows": 10}));
        let output = &job["output"];
        assert_eq!((&output["rows_scanned"], &output["rows_affected"]), (&json!(1000), &json!(1000)), "{key}: {job}");
        assert!(output["batches"].as_i64().unwrap() > 2, "{key}: {job}");
        assert_eq!(changed(&app.target), format!("{}: 1000", n + 1), "{key}");
    }
    let job = run(&app, &json!({"table": "parts", "set": {"n": "n + 1"}, "batch_rows": 100}));
    assert_eq!(job["output"]["rows_scanned"], 1000, "{job}");
    assert_eq!(app.target.text("SELECT min(n) || ' ' || max(n) FROM public.parts"), "1 1");
}

#[test]
fn keys_of_types_that_only_their_table_tells_will_do() {
    let app = TestApp::start();
    app.target.run(
        "CREATE SCHEMA types; GRANT USAGE ON SCHEMA types TO PUBLIC;
         CREATE TYPE types.pair AS (x int, y text); CREATE DOMAIN types.whole AS types.pair CHECK ((VALUE).x IS NOT NULL);
         CREATE TYPE types.mood AS ENUM ('bad', 'good'); CREATE DOMAIN types.moods AS types.mood[];
         CREATE TABLE public.composite (k types.pair PRIMARY KEY, n int NOT NULL DEFAULT 0);
         INSERT INTO public.composite SELECT ROW(g % 10, CASE WHEN g % 7 > 0 THEN E'\"\\\\,(' || g END)::types.pair FROM generate_series(1, 100) g ON CONFLICT DO NOTHING;
         CREATE TABLE public.of_domain (a int, k types.whole, n int NOT NULL DEFAULT 0, PRIMARY KEY (a, k));
         INSERT INTO public.of_domain SELECT g % 3, ROW(g, 'é')::types.pair::types.whole FROM generate_series(1, 100) g;
         CREATE TABLE public.of_array (k types.pair[] PRIMARY KEY, n int NOT NULL DEFAULT 0);
         INSERT INTO public.of_array SELECT ARRAY[ROW(g, 'a'), NULL]::types.pair[] FROM generate_series(1, 100) g;
         CREATE TABLE public.of_mood (m types.mood, k types.moods, g int, n int NOT NULL DEFAULT 0, PRIMARY KEY (m, k, g));
         INSERT INTO public.of_mood SELECT 'good', ARRAY['bad', 'good']::types.mood[], g FROM generate_series(1, 100) g;
         CREATE TABLE public.of_names (k regproc PRIMARY KEY, n int NOT NULL DEFAULT 0);
         INSERT INTO public.of_names SELECT oid FROM pg_proc WHERE proname IN ('sum', 'max', 'length', 'lower') ORDER BY oid;
         CREATE TABLE public.of_range (k int4range PRIMARY KEY, n int NOT NULL DEFAULT 0);
         INSERT INTO public.of_range SELECT int4range(g, g + 5) FROM generate_series(1, 100) g;
         GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC",
    );
    for table in ["composite", "of_domain", "of_array", "of_mood", "of_names", "of_range"] {
        let job = run(&app, &json!({"table": table, "set": {"n": "n + 1"}, "batch_rows": 7}));
        let rows = app.target.count(&format!("SELECT count(*) FROM public.{table}"));
        assert!(
            job["output"]["batches"].as_i64().unwrap() > 1 && job["output"]["rows_scanned"] == rows,
            "{table}: {job}"
        );
        let once = format!("SELECT min(n) || ' ' || max(n) FROM public.{table}");
        assert_eq!(app.target.text(&once), "1 1", "{table}");
        let validation =
            app.post("/v1/jobs/validate", &json!({"kind": "backfill", "args": {"table": table, "set": {"n": "0"}}}));
        assert_eq!(validation.json()["valid"], true, "{table}: {}", validation.text());
    }
    app.target.run("CREATE TABLE public.\"My Table\" (id int PRIMARY KEY); GRANT ALL ON public.\"My Table\" TO PUBLIC");
    for (args, pointer) in [
        (json!({"table": "My Table", "delete": true}), "/table"),
        (
            json!({"table": "composite", "insert_select": {"into": "My Table", "columns": ["id"], "select": ["n"]}}),
            "/insert_select/into",
        ),
    ] {
        let job = app.ended(&submit(&app, &args));
        assert_eq!(job["error"]["code"], "table_not_found", "{job}");
        assert!(job["error"]["message"].as_str().unwrap().starts_with(&format!("{pointer}: My Table ")), "{job}");
        assert!(job["error"]["hint"].as_str().unwrap().contains(r#"there is "My Table": write "#), "{job}");
    }
}

#[test]
fn arguments_are_checked_before_anything_is_stored() {
    let app = TestApp::start();
    let cases = [
        (json!({"table": "t"}), ""),
        (json!({"table": "t", "delete": true, "set": {"a": "1"}}), ""),
        (json!({"table": " ", "delete": true}), "/table"),
        (json!({"table": "t", "set": {}}), "/set"),
        (json!({"table": "t", "set": {"a/b": " "}}), "/set/a~1b"),
        (json!({"table": "t", "set": {"a": "1"}, "key": ["a"]}), "/set/a"),
        (json!({"table": "t", "delete": true, "key": []}), "/key"),
        (json!({"table": "t", "delete": true, "key": ["a", "a"]}), "/key/1"),
        (json!({"table": "t", "delete": true, "where": ""}), "/where"),
        (json!({"table": "t", "delete": true, "batch_rows": 0}), "/batch_rows"),
        (json!({"table": "t", "delete": true, "batch_rows": 100_001}), "/batch_rows"),
        (json!({"table": "t", "delete": true, "target_batch_ms": 9}), "/target_batch_ms"),
        (json!({"table": "t", "delete": true, "max_rate": 0}), "/max_rate"),
        (json!({"table": "t", "delete": true, "guards": {"condition": ""}}), "/guards/condition"),
        (json!({"table": "t", "delete": true, "guards": {"lag": 1}}), "/guards/lag"),
        (json!({"table": "t", "delete": true, "params": [{"a": 1}]}), "/params/0"),
        (
            json!({"table": "t", "insert_select": {"into": "u", "columns": ["a", "a"], "select": ["1"]}}),
            "/insert_select/columns/1",
        ),
        (
            json!({"table": "t", "insert_select": {"into": "u", "columns": ["a"], "select": [" "]}}),
            "/insert_select/select/0",
        ),
        (
            json!({"table": "t", "insert_select": {"into": "", "columns": ["a"], "select": ["1"]}}),
            "/insert_select/into",
        ),
        (
            json!({"table": "t", "insert_select": {"into": "u", "columns": ["a"], "select": ["1"], "on_conflict": "update"}}),
            "/insert_select/on_conflict",
        ),
    ];
    for (args, pointer) in cases {
        let answer = app.post("/v1/jobs", &json!({"kind": "backfill", "args": args}));
        let (status, code, pointers) = answer.problem();
        assert_eq!((status, code.as_str()), (422, "invalid_args"), "{args}");
        assert!(pointers.contains(&format!("/args{pointer}")), "{args}: {pointers:?}");
    }
}

#[test]
fn what_only_the_server_knows_fails_before_the_first_batch() {
    let app = TestApp::start();
    table(&app.target, 10);
    app.target.run(
        "ALTER TABLE public.rows ADD COLUMN made int GENERATED ALWAYS AS (n + 1) STORED, ADD COLUMN own int UNIQUE,
                                 ADD COLUMN i int GENERATED ALWAYS AS IDENTITY;
         CREATE INDEX ON public.rows (name) WHERE n > 0; ALTER TABLE public.rows ALTER name SET NOT NULL;
         CREATE TABLE public.mixed (a int NOT NULL, b int NOT NULL); CREATE INDEX ON public.mixed (a, b DESC);
         CREATE TABLE public.keyless (a int); CREATE VIEW public.seen AS SELECT * FROM public.rows;
         CREATE TABLE public.secret (id int PRIMARY KEY, n int); INSERT INTO public.secret VALUES (1, 0);
         GRANT ALL ON public.mixed, public.keyless, public.seen TO PUBLIC",
    );
    let set = |column: &str, value: &str| json!({"table": "rows", "set": {column: value}});
    let given = json!({"table": "rows", "insert_select": {"into": "given", "columns": ["a", "b", "c", "d", "e"],
                       "select": ["$1", "(SELECT max(n) FROM rows)", "ROW(id, n)::pair", "n + $2", "coalesce($3::int, n)"]},
                       "params": ["x", 5, 7]});
    app.target.run(
        "CREATE TYPE public.pair AS (a bigint, b int); CREATE TABLE public.given (a text, b int, c pair, d int, e int); GRANT ALL ON public.given TO PUBLIC",
    );
    assert_eq!(run(&app, &given)["output"]["rows_affected"], 10);
    assert_eq!(
        app.target.count("SELECT count(*) FROM public.given WHERE a = 'x' AND b = 0 AND (c).a > 0 AND d = 5 AND e = 7"),
        10
    );
    let copied = |value: &str| json!({"table": "rows", "insert_select": {"into": "keyless", "columns": ["a"], "select": [value]}});
    let cases = [
        (json!({"table": "nowhere", "delete": true}), "table_not_found", "nowhere"),
        (json!({"table": "seen", "delete": true}), "table_not_found", "seen"),
        (json!({"table": "keyless", "delete": true}), "no_key", "primary key"),
        (json!({"table": "rows", "key": ["own"], "delete": true}), "nullable_key", "own"),
        (json!({"table": "rows", "key": ["name"], "delete": true}), "no_key_index", "name"),
        (json!({"table": "mixed", "key": ["a", "b"], "delete": true}), "no_key_index", "mixed directions"),
        (json!({"table": "mixed", "key": ["b", "a"], "delete": true}), "no_key_index", "no btree index"),
        (json!({"table": "rows", "key": ["wrong"], "delete": true}), "unknown_columns", "wrong"),
        (json!({"table": "secret", "delete": true}), "permission_denied", "secret"),
        (set("id", "1"), "key_column", "id"),
        (set("made", "1"), "generated_column", "made"),
        (set("i", "1"), "generated_column", "i"),
        (set("wrong", "1"), "unknown_columns", "wrong"),
        (set("n", "1, name = 'x'"), "sql_error", "record"),
        (set("n", "1), name = ('x'"), "expression_not_allowed", "/set/n"),
        (set("n", "1), name = ('x')"), "sql_error", "/set/n"),
        (set("n", "1) FROM public.rows; DELETE FROM public.rows; SELECT (1"), "sql_error", "/set/n"),
        (set("n", "1)) WHERE true --"), "sql_error", "/set/n"),
        (set("n", "nothing + 1"), "sql_error", "/set/n: column"),
        (set("n", "'x'::text"), "sql_error", "type"),
        (copied("count(*)"), "expression_not_allowed", "/insert_select/select/0"),
        (copied("max(n) OVER ()"), "expression_not_allowed", "window"),
        (copied("generate_series(1, 2)"), "expression_not_allowed", "one row"),
        (set("n", "$1::int"), "parameter_count", "0 values"),
        (json!({"table": "rows", "set": {"n": "1"}, "params": [1]}), "parameter_count", "0 parameters"),
        (
            json!({"table": "rows", "set": {"n": "1"}, "where": "$1 IS NULL", "params": [{"type": "nonsense", "value": 1}]}),
            "invalid_parameter",
            "nonsense",
        ),
        (json!({"table": "rows", "set": {"n": "$1::int"}, "params": [[1]]}), "invalid_parameter", "/params/0"),
        (json!({"table": "rows", "set": {"n": "1"}, "where": "true) OR (false"}), "", ""),
        (json!({"table": "rows", "set": {"n": "1"}, "where": "true)) OR ((true"}), "sql_error", "/where"),
        (
            json!({"table": "rows", "set": {"n": "1"}, "guards": {"condition": "wrong"}}),
            "sql_error",
            "/guards/condition",
        ),
        (json!({"table": "rows", "set": {"n": "1"}, "guards": {"condition": "1/0 = 1"}}), "guard_failed", "division"),
        (
            json!({"table": "rows", "set": {"n": "1"}, "guards": {"condition": "(SELECT true FROM rows LIMIT 1 FOR UPDATE)"}}),
            "guard_failed",
            "read-only",
        ),
    ];
    for (args, code, words) in cases {
        // An expression that closes one pair of parentheses and opens another stays within the second pair.
        if code.is_empty() {
            assert_eq!(run(&app, &args)["output"]["rows_affected"], 10, "{args}");
            app.target.run("UPDATE public.rows SET n = 0");
            continue;
        }
        let (found, message) = failure(&app, &args);
        assert_eq!(found, code, "{args}: {message}");
        assert!(message.contains(words), "{args}: {message}");
    }
    assert_eq!(changed(&app.target), "0: 10");
    // The place in the caller's own text.
    let job = app.ended(&submit(&app, &set("n", "n +\n wrong")));
    assert_eq!((&job["error"]["position"], &job["error"]["sqlstate"]), (&json!(6), &json!("42703")), "{job}");
}

#[test]
fn rows_that_come_and_go_meanwhile_are_nobodys_trouble() {
    let app = TestApp::start();
    table(&app.target, 3_000);
    let done = std::sync::atomic::AtomicBool::new(false);
    let target = app.target.clone();
    let args =
        json!({"table": "rows", "set": {"n": "n + 1"}, "batch_rows": 20, "target_batch_ms": 10, "max_rate": 1_500});
    let id = submit(&app, &args);
    eventually("it is at work", || target.count("SELECT count(*) FROM public.rows WHERE n = 1") > 0);
    std::thread::scope(|scope| {
        let others = scope.spawn(|| {
            let mut session = target.session();
            let mut round = 0;
            while !done.load(std::sync::atomic::Ordering::SeqCst) {
                round += 1;
                // New rows between the others and behind the last, rows that go, and rows that change by somebody else.
                session
                    .execute_batch(&format!(
                        "INSERT INTO public.rows (id, n, name) VALUES ({round} * 10 + 1, 0, 'new'), (100000 + {round}, 0, 'behind')
                             ON CONFLICT DO NOTHING;
                         DELETE FROM public.rows WHERE id = 30000 - {round} * 10 AND id % 100 = 0;
                         UPDATE public.rows SET name = 'theirs' WHERE id = {round} * 30 % 30000"
                    ))
                    .unwrap();
            }
            round
        });
        let job = app.ended(&id);
        done.store(true, std::sync::atomic::Ordering::SeqCst);
        assert!(others.join().unwrap() > 0);
        assert_eq!(job["state"], "succeeded", "{job}");
    });
    // What was there from the beginning was changed once; what came behind the last key, not at all.
    let wrong = "SELECT count(*) FROM public.rows WHERE name NOT IN ('new', 'behind') AND n <> 1";
    assert_eq!(app.target.count(wrong), 0, "{}", changed(&app.target));
    assert_eq!(app.target.count("SELECT count(*) FROM public.rows WHERE name = 'behind' AND n <> 0"), 0);
    assert_eq!(app.target.count("SELECT count(*) FROM public.rows WHERE n > 1"), 0);
}

#[test]
fn a_rate_keeps_batches_small_and_apart() {
    let app = TestApp::start();
    table(&app.target, 150);
    let began = std::time::Instant::now();
    let job = run(&app, &json!({"table": "rows", "set": {"n": "n + 1"}, "max_rate": 100, "target_batch_ms": 60_000}));
    // A hundred at once, and a second later the rest.
    assert!(began.elapsed() >= std::time::Duration::from_secs(1));
    assert_eq!((&job["output"]["batches"], &job["output"]["rows_affected"]), (&json!(2), &json!(150)), "{job}");
}

#[test]
fn a_batch_that_takes_too_long_is_split() {
    let app = TestApp::start();
    table(&app.target, 64);
    app.target.run(
        "CREATE FUNCTION public.slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.04); RETURN NEW; END $$;
         CREATE TRIGGER slow BEFORE UPDATE ON public.rows FOR EACH ROW EXECUTE FUNCTION public.slow()",
    );
    let id = submit(&app, &json!({"table": "rows", "set": {"n": "n + 1"}, "target_batch_ms": 100}));
    let job = app.ended(&id);
    assert_eq!((&job["state"], &job["output"]["rows_affected"]), (&json!("succeeded"), &json!(64)), "{job}");
    assert!(job["output"]["batches"].as_i64().unwrap() >= 4, "{job}");
    assert_eq!(changed(&app.target), "1: 64");
    assert!(app.get(&format!("/v1/jobs/{id}/log")).text().contains("took too long"));
    app.target.run("UPDATE pg_proc SET prosrc = replace(prosrc, '0.04', '5') WHERE proname = 'slow'");
    let (code, message) =
        failure(&app, &json!({"table": "rows", "set": {"n": "n + 1"}, "batch_rows": 1, "target_batch_ms": 10}));
    assert_eq!(code, "batch_timeout", "{message}");
    assert!(message.contains("behind the beginning"), "{message}");
}

#[test]
fn a_table_has_one_heavy_writer_unless_told_otherwise() {
    let app = TestApp::start();
    table(&app.target, 100);
    app.target.run("CREATE TABLE public.gate AS SELECT false AS open; GRANT ALL ON public.gate TO PUBLIC");
    let held = json!({"table": "rows", "set": {"n": "n + 1"}, "guards": {"condition": "(SELECT open FROM gate)"}});
    let first = submit(&app, &held);
    eventually("it waits", || app.job(&first)["progress"]["phase"] == "waiting: the condition isn't true");
    let args = json!({"table": "public.rows", "set": {"n": "n + 1"}});
    let second = submit(&app, &args);
    eventually("it is put off", || app.job(&second)["error"]["code"] == "table_busy");
    assert_eq!((&app.job(&second)["state"], &app.job(&second)["attempt"]), (&json!("scheduled"), &json!(0)));
    let mut both = args.clone();
    both["allow_other_writers"] = json!(true);
    run(&app, &both);
    app.target.run("UPDATE public.gate SET open = true");
    for id in [&first, &second] {
        app.queue.run(&format!("UPDATE jobs SET run_at = now() WHERE id = '{id}' AND state = 'scheduled'"));
        assert_eq!(app.ended(id)["state"], "succeeded");
    }
    assert_eq!(changed(&app.target), "3: 100");
}

#[test]
fn rows_are_compared_as_their_index_orders_them() {
    let app = TestApp::start();
    // A type whose order is its own, in a schema that the session doesn't look into: by name its operators would be
    // those of text.
    app.target.run(
        "CREATE SCHEMA ext; GRANT USAGE ON SCHEMA ext TO PUBLIC; CREATE EXTENSION citext SCHEMA ext;
         CREATE TABLE public.words (word ext.citext PRIMARY KEY, n int NOT NULL DEFAULT 0, CHECK (length(word::text) > 0));
         INSERT INTO public.words VALUES ('a'), ('B'), ('c'), ('D');
         CREATE TABLE public.pairs (a ext.citext, b ext.citext, n int NOT NULL DEFAULT 0, PRIMARY KEY (a, b));
         INSERT INTO public.pairs VALUES ('a', 'B'), ('B', 'c'), ('b', 'D'), ('C', 'a');
         CREATE TABLE public.mixed (id int, word ext.citext, n int, PRIMARY KEY (id, word));
         GRANT ALL ON public.words, public.pairs, public.mixed TO PUBLIC",
    );
    let job = run(&app, &json!({"table": "words", "set": {"n": "n + 1"}, "batch_rows": 1}));
    assert_eq!(job["output"]["rows_affected"], 4, "{job}");
    assert_eq!(app.target.text("SELECT string_agg(n::text, '' ORDER BY word) FROM public.words"), "1111");
    run(&app, &json!({"table": "pairs", "set": {"n": "n + 1"}, "batch_rows": 1, "max_rate": 1000}));
    assert_eq!(app.target.text("SELECT string_agg(n::text, '' ORDER BY a, b) FROM public.pairs"), "1111");
    let (code, message) = failure(&app, &json!({"table": "mixed", "delete": true}));
    assert!(code == "no_key_index" && message.contains("several schemas"), "{code}: {message}");
}

#[test]
fn a_key_that_has_become_another_one_ends_it() {
    let app = TestApp::start();
    table(&app.target, 1_000);
    app.target.run(
        "ALTER TABLE public.rows ADD COLUMN other int; UPDATE public.rows SET other = 1001 - id;
                    ALTER TABLE public.rows ALTER other SET NOT NULL",
    );
    let id = submit(&app, &json!({"table": "rows", "set": {"n": "n + 1"}, "batch_rows": 100, "max_rate": 100}));
    eventually("a batch is done", || app.target.count("SELECT count(*) FROM public.rows WHERE n = 1") > 0);
    assert_eq!(app.post(&format!("/v1/jobs/{id}/pause"), &json!({})).status, 202);
    eventually("it is paused", || app.job(&id)["state"] == "paused");
    let done = changed(&app.target);
    app.target
        .run("ALTER TABLE public.rows DROP CONSTRAINT rows_pkey; ALTER TABLE public.rows ADD PRIMARY KEY (other)");
    assert_eq!(app.post(&format!("/v1/jobs/{id}/resume"), &json!({})).status, 202);
    let job = app.ended(&id);
    assert_eq!(job["error"]["code"], "table_changed", "{job}");
    assert!(job["error"]["message"].as_str().unwrap().contains("is other now"), "{job}");
    assert_eq!(changed(&app.target), done, "rows were changed by another key");
}
