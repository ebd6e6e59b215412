//! The kind `maintain`: what each action does, what it refuses, and who is kept waiting.

use serde_json::{Value, json};
use slowlane::pq::Session;

use crate::support::app::TestApp;
use crate::support::client::Client;
use crate::support::eventually;
use crate::support::postgres::Database;

mod indexes;
mod invalid;
mod leavings;
mod parts;
mod skipped;
mod validate;

const OLD_SNAPSHOTS: &str = "waiting for old snapshots";

/// A table with 100 rows and one index beside its key, of the work role's own. Nobody else maintains it.
const TABLE: &str = "CREATE TABLE public.t (id int PRIMARY KEY, name text, num int) WITH (autovacuum_enabled = false);
    INSERT INTO public.t SELECT g, 'n' || g, g % 7 FROM generate_series(1, 100) g;
    CREATE INDEX t_name ON public.t (name)";

fn as_role(target: &Database) -> Session {
    Session::connect(&target.dsn).unwrap()
}

fn with_table() -> TestApp {
    let app = TestApp::start();
    as_role(&app.target).execute_batch(TABLE).unwrap();
    app
}

fn job(args: &Value) -> Value {
    json!({"kind": "maintain", "args": args})
}

#[track_caller]
fn run(client: &Client, args: &Value) -> Value {
    client.ended(&client.submit(&job(args)))
}

#[track_caller]
fn output(client: &Client, args: &Value) -> Value {
    let job = run(client, args);
    assert_eq!(job["state"], "succeeded", "{job}");
    assert_eq!(job["statistics"]["rows_affected"], 0);
    job["output"].clone()
}

fn create(name: &str) -> Value {
    json!({"action": "create_index", "table": "public.t", "name": name, "columns": ["num"]})
}

fn code(job: &Value) -> (&str, &str) {
    (job["state"].as_str().unwrap(), job["error"]["code"].as_str().unwrap_or_default())
}

fn hint(job: &Value) -> &str {
    job["error"]["hint"].as_str().unwrap_or_default()
}

/// What the job's log has from its work and the server, once it has ended.
fn log(client: &Client, id: &str) -> String {
    let log = client.get(&format!("/v1/jobs/{id}/log")).json();
    let lines = log["lines"].as_array().unwrap().iter();
    lines.map(|line| line["message"].as_str().unwrap().to_owned()).collect::<Vec<_>>().join("\n")
}

/// The invalid indexes, by name. Those of TOAST tables have names that no test knows, and the role mostly can't drop
/// them.
fn invalid(target: &Database) -> String {
    target.text(
        "SELECT string_agg(format('%I.%I', nspname, relname), ' ' ORDER BY relname)
           FROM pg_index JOIN pg_class c ON c.oid = indexrelid JOIN pg_namespace n ON n.oid = relnamespace
          WHERE NOT indisvalid AND nspname <> 'pg_toast'",
    )
}

fn valid(target: &Database, index: &str) -> bool {
    target.count(&format!("SELECT count(*) FROM pg_index WHERE indexrelid = to_regclass('{index}') AND indisvalid"))
        == 1
}

/// A transaction in the target's database that every concurrent build has to wait for, and that holds no lock on `t`.
fn snapshot(target: &Database) -> Session {
    let mut session = target.session();
    session.execute_batch("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1").unwrap();
    session
}

fn builds(target: &Database, phase: &str) -> bool {
    target.count(&format!(
        "SELECT count(*) FROM pg_stat_progress_create_index WHERE datname = current_database() AND phase = '{phase}'"
    )) == 1
}

#[test]
fn vacuum_and_analyze_do_what_they_say() {
    let app = with_table();
    let reltuples = || app.target.text("SELECT reltuples FROM pg_class WHERE oid = 'public.t'::regclass");
    app.target.run("INSERT INTO public.t SELECT g, 'n', 1 FROM generate_series(101, 150) g");
    assert_ne!(reltuples(), "150");
    let done = output(&app, &json!({"action": "analyze", "table": "t", "columns": ["num", "id"]}));
    assert_eq!(
        done,
        json!({"action": "analyze", "table": "public.t", "index": null, "done": 1, "skipped": [], "skipped_count": 0, "tries": 1,
            "dropped_invalid": [], "left_invalid": []})
    );
    assert_eq!(reltuples(), "150");
    let looked_at = "SELECT string_agg(attname, ' ' ORDER BY attname) FROM pg_stats WHERE tablename = 't'";
    assert_eq!(app.target.text(looked_at), "id num");
    let visible = || app.target.count("SELECT relallvisible FROM pg_class WHERE oid = 'public.t'::regclass");
    assert_eq!(visible(), 0);
    let all = json!({"action": "vacuum", "table": "public.t", "freeze": true, "analyze": true, "skip_locked": true,
        "disable_page_skipping": true, "index_cleanup": true, "truncate": false, "process_toast": true, "parallel": 0,
        "full": false, "columns": ["name"]});
    assert_eq!(output(&app, &all)["action"], "vacuum");
    assert_eq!(visible(), 1);
    assert_eq!(app.target.text(looked_at), "id name num");
    let file = || app.target.text("SELECT relfilenode FROM pg_class WHERE oid = 'public.t'::regclass");
    let before = file();
    let full = json!({"action": "vacuum", "table": "public.t", "full": true, "allow_exclusive_lock": true});
    assert_eq!(output(&app, &full)["table"], "public.t");
    assert_ne!(file(), before);
    // Names are what the catalog says, whatever is in them.
    as_role(&app.target)
        .execute_batch("CREATE SCHEMA \"a b\"; CREATE TABLE \"a b\".\"x\"\"; DROP TABLE t\" (\"c d\" int)")
        .unwrap();
    let odd =
        json!({"action": "vacuum", "table": "\"a b\".\"x\"\"; DROP TABLE t\"", "analyze": true, "columns": ["c d"]});
    assert_eq!(output(&app, &odd)["table"], "\"a b\".\"x\"\"; DROP TABLE t\"");
    let job = run(&app, &json!({"action": "analyze", "table": "t"}));
    let progress = &job["progress"];
    assert_eq!((&progress["phase"], &progress["basis"]), (&json!("analyzing public.t"), &json!("none")), "{job}");
}

#[test]
fn indexes_are_rebuilt() {
    let app = with_table();
    let oids = || {
        app.target.text(
            "SELECT string_agg(oid::text, ' ' ORDER BY relname) FROM pg_class WHERE relname IN ('t_name', 't_pkey')",
        )
    };
    let files = || {
        app.target.text("SELECT string_agg(relfilenode::text, ' ' ORDER BY relname) FROM pg_class WHERE relname IN ('t_name', 't_pkey')")
    };
    let (oid, file) = (oids(), files());
    let done = output(&app, &json!({"action": "reindex", "index": "t_name"}));
    let size = app.target.count("SELECT pg_relation_size('public.t_name')");
    let index = json!({"name": "public.t_name", "bytes": size, "valid": true, "was_there": true});
    assert_eq!((&done["table"], &done["index"]), (&json!("public.t"), &index));
    let after = oids();
    assert_ne!(after.split(' ').next(), oid.split(' ').next(), "it was not rebuilt concurrently");
    assert_eq!(after.split(' ').next_back(), oid.split(' ').next_back(), "the other one was rebuilt too");
    assert_eq!(output(&app, &json!({"action": "reindex", "table": "t"}))["index"], Value::Null);
    assert_ne!(oids(), after);
    let (oid, file_now) = (oids(), files());
    assert_ne!(file_now, file);
    output(&app, &json!({"action": "reindex", "table": "t", "concurrently": false, "allow_exclusive_lock": true}));
    assert_eq!(oids(), oid);
    assert_ne!(files(), file_now);
    // A materialized view, and a table in parts.
    as_role(&app.target)
        .execute_batch(
            "CREATE MATERIALIZED VIEW public.m AS SELECT * FROM public.t; CREATE INDEX m_num ON public.m (num);
             CREATE TABLE public.p (id int, name text) PARTITION BY RANGE (id); CREATE INDEX p_id ON public.p (id);
             CREATE TABLE public.p1 PARTITION OF public.p FOR VALUES FROM (0) TO (10)",
        )
        .unwrap();
    for args in [json!({"table": "m"}), json!({"index": "m_num"}), json!({"table": "p"}), json!({"index": "p_id"})] {
        let mut args = args;
        args["action"] = json!("reindex");
        output(&app, &args);
    }
    assert_eq!(invalid(&app.target), "");
}

#[test]
fn indexes_are_created_as_they_are_described_and_only_once() {
    let app = with_table();
    let described = [
        (json!(["num"]), json!({}), "CREATE INDEX i0 ON public.t USING btree (num)"),
        (
            json!([{"column": "num", "order": "desc"}, {"column": "name", "nulls": "first", "opclass": "text_pattern_ops"}]),
            json!({}),
            "CREATE INDEX i1 ON public.t USING btree (num DESC, name text_pattern_ops NULLS FIRST)",
        ),
        (
            json!([{"column": "id", "order": "desc", "nulls": "last"}]),
            json!({"unique": true, "include": ["name"]}),
            "CREATE UNIQUE INDEX i2 ON public.t USING btree (id DESC NULLS LAST) INCLUDE (name)",
        ),
        (json!(["id", "num"]), json!({"method": "brin"}), "CREATE INDEX i3 ON public.t USING brin (id, num)"),
        (
            json!(["name"]),
            json!({"method": "hash", "concurrently": false, "allow_exclusive_lock": true}),
            "CREATE INDEX i4 ON public.t USING hash (name)",
        ),
    ];
    for (n, (columns, more, definition)) in described.iter().enumerate() {
        let mut args = json!({"action": "create_index", "table": "t", "name": format!("i{n}"), "columns": columns});
        args.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let done = output(&app, &args);
        let oid = app.target.text(&format!("SELECT 'public.i{n}'::regclass::oid"));
        assert_eq!(app.target.text(&format!("SELECT pg_get_indexdef({oid})")), *definition);
        assert_eq!((&done["index"]["was_there"], &done["index"]["valid"]), (&json!(false), &json!(true)));
        // Once more: it is there.
        let done = output(&app, &args);
        assert_eq!(
            (&done["index"]["was_there"], &done["index"]["name"]),
            (&json!(true), &json!(format!("public.i{n}")))
        );
        assert!(done["index"]["bytes"].as_i64().unwrap() > 0);
        assert_eq!(app.target.text(&format!("SELECT 'public.i{n}'::regclass::oid")), oid);
    }
    // The same name, and something else.
    as_role(&app.target)
        .execute_batch("CREATE INDEX e ON public.t ((num + 1)); CREATE INDEX c ON public.t (name COLLATE \"C\"); CREATE INDEX w ON public.t (num) WHERE num > 1")
        .unwrap();
    for (name, columns) in [
        ("i0", json!(["name"])),
        ("i0", json!([{"column": "num", "order": "desc"}])),
        ("i1", json!([{"column": "num", "order": "desc"}, {"column": "name", "nulls": "first"}])),
        ("i2", json!([{"column": "id", "order": "desc", "nulls": "last"}])),
        ("e", json!(["num"])),
        ("c", json!(["name"])),
        ("w", json!(["num"])),
        ("t", json!(["num"])),
    ] {
        let job = run(&app, &json!({"action": "create_index", "table": "t", "name": name, "columns": columns}));
        assert_eq!(code(&job), ("failed", "index_exists"), "{name}: {job}");
        assert!(hint(&job).contains("another name"), "{job}");
    }
    // In parts: all at once, where that is asked for.
    as_role(&app.target)
        .execute_batch("CREATE TABLE public.p (id int) PARTITION BY RANGE (id); CREATE TABLE public.p1 PARTITION OF public.p DEFAULT")
        .unwrap();
    let mut args = json!({"action": "create_index", "table": "p", "name": "p_id", "columns": ["id"]});
    args["concurrently"] = json!(false);
    args["allow_exclusive_lock"] = json!(true);
    assert_eq!(output(&app, &args)["index"]["valid"], true);
    assert!(valid(&app.target, "public.p1_id_idx"));
}

#[test]
fn arguments_that_make_no_sense_are_refused_where_they_stand() {
    let app = TestApp::start();
    for (args, expected) in [
        (json!({"action": "cluster"}), vec!["/action"]),
        (json!({"table": "t"}), vec![""]),
        (json!({"action": "vacuum"}), vec!["/table"]),
        (json!({"action": "vacuum", "table": " "}), vec!["/table"]),
        (json!({"action": "vacuum", "table": "t", "ful": true}), vec!["/ful"]),
        (json!({"action": "vacuum", "table": "t", "full": "yes"}), vec!["/full"]),
        (json!({"action": "vacuum", "table": "t", "full": true}), vec!["/full"]),
        (
            json!({"action": "vacuum", "table": "t", "full": true, "allow_exclusive_lock": true, "parallel": 2,
                   "disable_page_skipping": true, "process_toast": false}),
            vec!["/disable_page_skipping", "/parallel", "/process_toast"],
        ),
        (json!({"action": "vacuum", "table": "t", "parallel": 1025}), vec!["/parallel"]),
        (json!({"action": "vacuum", "table": "t", "columns": ["a"]}), vec!["/columns"]),
        (json!({"action": "vacuum", "table": "t", "lock_timeout_ms": 0}), vec!["/lock_timeout_ms"]),
        (json!({"action": "vacuum", "table": "t", "lock_timeout_ms": 60_001}), vec!["/lock_timeout_ms"]),
        (json!({"action": "analyze", "table": "t", "freeze": true, "index": "i"}), vec!["/index", "/freeze"]),
        (json!({"action": "analyze", "table": "t", "columns": []}), vec!["/columns"]),
        (json!({"action": "analyze", "table": "t", "columns": ["a", "b", "a"]}), vec!["/columns/2"]),
        (
            json!({"action": "analyze", "table": "t", "columns": ["a", {"column": "b", "order": "asc"}]}),
            vec!["/columns/1"],
        ),
        (json!({"action": "reindex"}), vec!["/table"]),
        (json!({"action": "reindex", "table": "t", "index": "i"}), vec!["/table"]),
        (json!({"action": "reindex", "index": ""}), vec!["/index"]),
        (json!({"action": "reindex", "table": "t", "concurrently": false}), vec!["/concurrently"]),
        (json!({"action": "reindex", "table": "t", "columns": ["a"], "name": "x"}), vec!["/columns", "/name"]),
        (json!({"action": "create_index", "table": "t"}), vec!["/name", "/columns"]),
        (json!({"action": "create_index", "table": "t", "name": "x".repeat(64), "columns": ["a"]}), vec!["/name"]),
        (
            json!({"action": "create_index", "table": "t", "name": "i", "columns": [{"column": "a", "order": "up"}]}),
            vec!["/columns/0/order"],
        ),
        (
            json!({"action": "create_index", "table": "t", "name": "i", "columns": [{"colum": "a"}]}),
            vec!["/columns/0/colum"],
        ),
        (json!({"action": "create_index", "table": "t", "name": "i", "columns": ["a", 1]}), vec!["/columns/1"]),
        (
            json!({"action": "create_index", "table": "t", "name": "i", "columns": ["a"], "include": ["b", "b"]}),
            vec!["/include/1"],
        ),
        (
            json!({"action": "create_index", "table": "t", "name": "i", "columns": [{"order": "asc"}, {"column": "a", "expression": "b"},
                {"expression": " "}, "a", {"column": "a", "collation": "C"}]}),
            vec!["/columns/0", "/columns/1", "/columns/2"],
        ),
        (
            json!({"action": "create_index", "table": "t", "name": "i", "columns": ["a"], "where": "", "tablespace": "",
                "nulls_not_distinct": true, "with": {"fillfactor": 9, "fastupdate": true}}),
            vec!["/where", "/tablespace", "/nulls_not_distinct", "/with/fastupdate", "/with/fillfactor"],
        ),
        (
            json!({"action": "create_index", "table": "t", "name": "i", "columns": ["a"], "with": {"fillfactr": 90}}),
            vec!["/with/fillfactr"],
        ),
        (json!({"action": "drop_index"}), vec!["/index"]),
        (json!({"action": "drop_index", "index": "i", "table": "t", "where": "a"}), vec!["/where", "/table"]),
        (json!({"action": "drop_index", "index": "i", "concurrently": false}), vec!["/concurrently"]),
        (json!({"action": "vacuum", "table": "t", "if_exists": true}), vec!["/if_exists"]),
        (
            json!({"action": "create_index", "table": "t", "name": "i", "method": "gin", "unique": true,
                   "columns": ["a", {"column": "b", "nulls": "last"}], "concurrently": false, "full": true}),
            vec!["/full", "/concurrently", "/unique", "/columns/1"],
        ),
    ] {
        let (status, code, pointers) = app.post("/v1/jobs", &job(&args)).problem();
        assert_eq!((status, code.as_str()), (422, "invalid_args"), "{args}");
        let expected: Vec<String> = expected.iter().map(|pointer| format!("/args{pointer}")).collect();
        assert_eq!(pointers, expected, "{args}");
    }
    assert_eq!(app.queue.count("SELECT count(*) FROM jobs"), 0);
}

#[test]
fn names_that_are_not_there_and_missing_rights_are_said() {
    let app = with_table();
    app.target.run(
        "CREATE TABLE public.theirs (id int); CREATE INDEX theirs_id ON public.theirs (id); CREATE VIEW public.v AS SELECT 1",
    );
    let mut unknown = create("i");
    unknown["columns"] = json!(["num", "nim"]);
    let mut opclass = create("i");
    opclass["columns"] = json!([{"column": "num", "opclass": "no_such_ops"}]);
    for (args, expected) in [
        (json!({"action": "vacuum", "table": "nothing"}), "table_not_found"),
        (json!({"action": "vacuum", "table": "v"}), "table_not_found"),
        (json!({"action": "reindex", "index": "t"}), "index_not_found"),
        (json!({"action": "drop_index", "index": "t"}), "index_not_found"),
        (json!({"action": "reindex", "table": "t_name"}), "table_not_found"),
        (json!({"action": "analyze", "table": "t", "columns": ["nim"]}), "unknown_columns"),
        (unknown, "unknown_columns"),
        (opclass, "unknown_opclass"),
    ] {
        assert_eq!(code(&run(&app, &args)), ("failed", expected), "{args}");
    }
    // A name is written as SQL writes it; what there is under another one is told.
    app.target.run(
        "CREATE TABLE public.\"My Table\" (id int PRIMARY KEY); ALTER TABLE public.\"My Table\" OWNER TO slowlane_demo",
    );
    let quoted = |argument: &str, name: &str| format!("write \"{argument}\": {}", json!(name));
    for (args, expected, words) in [
        (json!({"action": "analyze", "table": "My Table"}), "table_not_found", quoted("table", "\"My Table\"")),
        (
            json!({"action": "vacuum", "table": "public.my table"}),
            "table_not_found",
            quoted("table", "public.\"My Table\""),
        ),
        (json!({"action": "analyze", "table": "Your Table"}), "table_not_found", quoted("table", "\"Your Table\"")),
        (json!({"action": "analyze", "table": "\"T\""}), "table_not_found", quoted("table", "t")),
        (
            json!({"action": "reindex", "index": "My Table_pkey"}),
            "index_not_found",
            quoted("index", "\"My Table_pkey\""),
        ),
        (json!({"action": "reindex", "index": "\"T_NAME\""}), "index_not_found", quoted("index", "t_name")),
        (json!({"action": "reindex", "table": "a.b.c.d"}), "table_not_found", "write schema.name".to_owned()),
        (
            json!({"action": "reindex", "table": "other.public.t"}),
            "table_not_found",
            quoted("table", "\"public\".\"t\""),
        ),
    ] {
        let job = run(&app, &args);
        assert_eq!(code(&job), ("failed", expected), "{args}");
        assert!(hint(&job).contains(&words), "{words}: {job}");
        if args.to_string().contains(" T") {
            let argument = args.as_object().unwrap().keys().find(|key| *key != "action").unwrap();
            assert!(job["error"]["message"].as_str().unwrap().starts_with(&format!("/{argument}: ")), "{job}");
        }
    }
    let by_database = format!("{}.public.\"My Table\"", app.target.name());
    output(&app, &json!({"action": "analyze", "table": by_database}));
    // Whoever owns the database may vacuum and analyze all that is in it.
    output(&app, &json!({"action": "vacuum", "table": "theirs", "analyze": true}));
    let name = app.target.name().to_owned();
    app.queue.run(&format!("ALTER DATABASE {name} OWNER TO {}", app.target.text("SELECT current_user")));
    app.target
        .run("GRANT ALL ON SCHEMA public TO slowlane_demo; GRANT SELECT, UPDATE ON public.theirs TO slowlane_demo");
    for args in [
        json!({"action": "vacuum", "table": "theirs"}),
        json!({"action": "analyze", "table": "theirs"}),
        json!({"action": "reindex", "table": "theirs"}),
        json!({"action": "reindex", "index": "theirs_id"}),
        json!({"action": "create_index", "table": "theirs", "name": "i", "columns": ["id"]}),
    ] {
        let job = run(&app, &args);
        assert_eq!(code(&job), ("failed", "permission_denied"), "{job}");
        assert!(hint(&job).contains("owner"), "{job}");
    }
    app.target.run("CREATE SCHEMA hidden; CREATE TABLE hidden.t (id int)");
    let job = run(&app, &json!({"action": "analyze", "table": "hidden.t"}));
    assert_eq!(code(&job), ("failed", "permission_denied"), "{job}");
    assert!(hint(&job).contains("GRANT USAGE ON SCHEMA"), "{job}");
    // An index needs room in the schema too.
    app.target.run("REVOKE CREATE ON SCHEMA public FROM slowlane_demo, PUBLIC");
    let job = run(&app, &create("i"));
    assert_eq!(code(&job), ("failed", "permission_denied"), "{job}");
    assert!(hint(&job).contains("CREATE ON SCHEMA"), "{job}");
    app.target.run(&format!("ALTER DATABASE {name} SET default_transaction_read_only = on"));
    app.queue.run(&format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"));
    assert_eq!(code(&run(&app, &json!({"action": "reindex", "table": "t"}))), ("failed", "read_only"));
}

#[test]
fn a_lock_that_somebody_holds_is_waited_for_in_tries_that_are_told() {
    let app = with_table();
    for args in [json!({"action": "vacuum", "table": "t"}), create("i"), json!({"action": "reindex", "table": "t"})] {
        let mut args = args;
        args["lock_timeout_ms"] = json!(400);
        let mut holder = app.target.session();
        holder.execute_batch("BEGIN; LOCK TABLE public.t").unwrap();
        let id = app.submit(&job(&args));
        eventually("a further try is told", || {
            let job = app.job(&id);
            let phase = job["progress"]["phase"].as_str().unwrap_or_default();
            (2..=5).any(|n| phase.contains(&format!("try {n} of 5")))
        });
        holder.execute_batch("COMMIT").unwrap();
        let job = app.ended(&id);
        assert_eq!(job["state"], "succeeded", "{job}");
        assert!(job["output"]["tries"].as_i64().unwrap() > 1, "{job}");
        assert!(log(&app, &id).contains("somebody holds a lock on public.t: try 1 of 5 gave up after 400 ms"));
    }
    // Nor are there more tries than that.
    let mut holder = app.target.session();
    holder.execute_batch("BEGIN; LOCK TABLE public.t").unwrap();
    let mut args = job(&json!({"action": "analyze", "table": "t", "lock_timeout_ms": 50}));
    args["max_attempts"] = json!(1);
    let id = app.submit(&args);
    let job = app.ended(&id);
    assert_eq!((code(&job), &job["error"]["sqlstate"]), (("failed", "lock_timeout"), &json!("55P03")), "{job}");
    assert!(hint(&job).contains("lock_timeout_ms"), "{job}");
    // Beside them there may be who held it, where somebody was seen in so short a time.
    assert_eq!(log(&app, &id).lines().filter(|line| line.contains("gave up after 50 ms")).count(), 4);
}

#[test]
fn nobody_waits_long_behind_a_lock_that_is_waited_for() {
    let app = with_table();
    let waiting = || {
        app.target.count("SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'public.t'::regclass AND database = (SELECT oid FROM pg_database WHERE datname = current_database())") == 1
    };
    for (args, holds, wants) in [
        (json!({"action": "vacuum", "full": true}), "SELECT FROM public.t", "SELECT FROM public.t"),
        (
            json!({"action": "reindex", "concurrently": false}),
            "DELETE FROM public.t",
            "UPDATE public.t SET num = 1 WHERE id = 101",
        ),
    ] {
        let mut args = args;
        args["table"] = json!("public.t");
        args["allow_exclusive_lock"] = json!(true);
        args["lock_timeout_ms"] = json!(300);
        let mut holder = app.target.session();
        holder.execute_batch(&format!("BEGIN; {holds}")).unwrap();
        let id = app.submit(&job(&args));
        eventually("it waits for the table", waiting);
        // The holder is still there: what comes behind the job gets through because its try ends.
        let mut other = app.target.session();
        other.execute_batch("SET statement_timeout = '60s'").unwrap();
        other.execute_batch(wants).unwrap();
        assert_eq!(app.job(&id)["state"], "running");
        holder.execute_batch("ROLLBACK").unwrap();
        assert_eq!(app.ended(&id)["state"], "succeeded");
    }
    // A concurrent build keeps no writer out, however long it waits.
    let mut old = snapshot(&app.target);
    let id = app.submit(&job(&create("i")));
    eventually("it waits for old transactions", || builds(&app.target, OLD_SNAPSHOTS));
    app.target.run("INSERT INTO public.t VALUES (200, 'new', 1)");
    eventually("that is told", || app.job(&id)["progress"]["phase"] == "creating index public.i");
    old.execute_batch("COMMIT").unwrap();
    assert_eq!(app.ended(&id)["state"], "succeeded");
}
