//! Indexes with expressions and conditions, told apart by what the server makes of them, and dropping them.

use serde_json::{Value, json};

use super::{as_role, builds, code, hint, invalid, job, log, output, run, snapshot, valid, with_table};
use crate::support::app::TestApp;
use crate::support::eventually;
use crate::support::postgres::{Database, Postgres};

/// `create_index` on `t` by the name `i`, with more.
fn index(columns: &Value, more: &Value) -> Value {
    let mut args = json!({"action": "create_index", "table": "t", "name": "i", "columns": columns});
    args.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    args
}

fn definition(target: &Database, name: &str) -> String {
    target.text(&format!("SELECT pg_get_indexdef('public.{name}'::regclass)"))
}

fn drop_job(name: &str) -> Value {
    json!({"action": "drop_index", "index": name})
}

fn version(target: &Database) -> i64 {
    target.count("SELECT current_setting('server_version_num')::int / 10000")
}

#[test]
fn all_that_an_index_can_have_is_made_and_known_again() {
    let app = with_table();
    app.target.run("CREATE EXTENSION IF NOT EXISTS pg_trgm SCHEMA public");
    let mut described = vec![
        (
            json!([{"expression": "lower(name)"}]),
            json!({"where": "num > 1 -- not the others"}),
            "CREATE INDEX i ON public.t USING btree (lower(name)) WHERE (num > 1)",
            "CREATE INDEX i ON public.t USING btree (lower(t.name)) WHERE t.num > 1",
        ),
        (
            json!([{"column": "name", "collation": "C", "opclass": "text_pattern_ops", "order": "desc", "nulls": "last"}, "num"]),
            json!({"unique": true, "include": ["id"], "with": {"fillfactor": 70, "deduplicate_items": false}}),
            "CREATE UNIQUE INDEX i ON public.t USING btree (name COLLATE \"C\" text_pattern_ops DESC NULLS LAST, num) INCLUDE (id) WITH (fillfactor='70', deduplicate_items=off)",
            "CREATE UNIQUE INDEX i ON public.t (name COLLATE \"C\" text_pattern_ops DESC NULLS LAST, num ASC NULLS LAST) INCLUDE (id) WITH (deduplicate_items=False, fillfactor=70)",
        ),
        (
            json!([{"expression": "(num + 1)"}, {"expression": "t.id * 2", "order": "desc"}]),
            json!({"where": "name IN ('n1', 'n2') OR name IS NULL", "tablespace": "pg_default"}),
            "CREATE INDEX i ON public.t USING btree (((num + 1)), ((id * 2)) DESC) WHERE ((name = ANY (ARRAY['n1'::text, 'n2'::text])) OR (name IS NULL))",
            "CREATE INDEX i ON public.t ((num + 1), (id * 2) DESC) WHERE name IS NULL OR name = 'n1' OR name = 'n2'",
        ),
        (
            json!([{"column": "name", "opclass": "gin_trgm_ops"}]),
            json!({"method": "gin", "with": {"fastupdate": false, "gin_pending_list_limit": 128}}),
            "CREATE INDEX i ON public.t USING gin (name gin_trgm_ops) WITH (fastupdate=off, gin_pending_list_limit='128')",
            "CREATE INDEX i ON public.t USING gin (name gin_trgm_ops) WITH (gin_pending_list_limit=128, fastupdate=0)",
        ),
        (
            json!(["num"]),
            json!({"method": "brin", "with": {"pages_per_range": 8, "autosummarize": true}}),
            "CREATE INDEX i ON public.t USING brin (num) WITH (pages_per_range='8', autosummarize='on')",
            "CREATE INDEX i ON public.t USING brin (num) WITH (autosummarize, pages_per_range=8)",
        ),
    ];
    if version(&app.target) >= 15 {
        described.push((
            json!(["name"]),
            json!({"unique": true, "nulls_not_distinct": true, "where": "(num) = 1"}),
            "CREATE UNIQUE INDEX i ON public.t USING btree (name) NULLS NOT DISTINCT WHERE (num = 1)",
            "CREATE UNIQUE INDEX i ON public.t (name) NULLS NOT DISTINCT WHERE num = 1",
        ));
    }
    for (n, (columns, more, made, by_hand)) in described.into_iter().enumerate() {
        let args = index(&columns, &more);
        assert_eq!(output(&app, &args)["index"]["was_there"], false, "{args}");
        let there = definition(&app.target, "i");
        assert_eq!(there.replace('\'', ""), made.replace('\'', ""));
        assert_eq!(output(&app, &args)["index"]["was_there"], true, "{there}");
        // However it was written, unless it is something else.
        as_role(&app.target).execute_batch(&format!("DROP INDEX public.i; {by_hand}")).unwrap();
        if n == 2 {
            // `a OR b` in another order is another condition to the server.
            assert!(run(&app, &args)["error"]["message"].as_str().unwrap().contains("differs in where"));
        } else {
            assert_eq!(output(&app, &args)["index"]["was_there"], true, "{by_hand}");
        }
        // A role that may make no temporary tables compares as well.
        let name = app.target.name().to_owned();
        app.queue.run(&format!("REVOKE TEMPORARY ON DATABASE {name} FROM PUBLIC"));
        let other = run(&app, &index(&json!(["id"]), &json!({})));
        assert_eq!(code(&other), ("failed", "index_exists"), "{other}");
        app.queue.run(&format!("GRANT TEMPORARY ON DATABASE {name} TO PUBLIC"));
        assert_eq!(app.target.count("SELECT count(*) FROM pg_class WHERE relname LIKE 'slowlane%'"), 0);
        assert_eq!(output(&app, &drop_job("i"))["index"]["was_there"], true);
        assert_eq!(app.target.text("SELECT coalesce(to_regclass('public.i')::text, '-')"), "-");
    }
    assert_eq!(invalid(&app.target), "");
}

#[test]
fn another_definition_is_told_by_what_differs() {
    let app = with_table();
    let there = index(
        &json!([{"expression": "lower(name)"}, "num"]),
        &json!({"where": "num > 1", "with": {"fillfactor": 80}, "include": ["id"]}),
    );
    output(&app, &there);
    for (columns, more, told) in [
        (
            json!([{"expression": "upper(name)"}, "num"]),
            json!({"where": "num > 1", "with": {"fillfactor": 80}, "include": ["id"]}),
            vec!["columns"],
        ),
        (
            json!([{"expression": "lower(name)"}, {"column": "num", "order": "desc"}]),
            json!({"where": "num > 1", "with": {"fillfactor": 80}, "include": ["id"]}),
            vec!["columns"],
        ),
        (
            json!([{"expression": "lower(name)"}, "num"]),
            json!({"with": {"fillfactor": 80}, "include": ["id"]}),
            vec!["where"],
        ),
        (
            json!([{"expression": "lower(name)"}, "num"]),
            json!({"where": "num >= 1", "with": {"fillfactor": 81}, "unique": true}),
            vec!["unique", "include", "where", "with"],
        ),
        (
            json!([{"expression": "lower(name)", "opclass": "text_pattern_ops"}, "num"]),
            json!({"where": "num > 1", "with": {"fillfactor": 80}, "include": ["id"], "tablespace": "elsewhere"}),
            vec!["columns", "tablespace"],
        ),
    ] {
        let job = run(&app, &index(&columns, &more));
        assert_eq!(code(&job), ("failed", "index_exists"), "{job}");
        let message = job["error"]["message"].as_str().unwrap();
        let all =
            ["method (", "unique (", "columns (", "include (", "where (", "with (", "tablespace (", "constraint ("];
        let named: Vec<&str> = all.into_iter().filter(|name| message.contains(&format!(" {name}there: "))).collect();
        assert_eq!(named, told.iter().map(|name| format!("{name} (")).collect::<Vec<_>>(), "{message}");
        assert!(hint(&job).contains("another name") && hint(&job).contains("drop_index"), "{job}");
    }
    // What no index of this kind is.
    as_role(&app.target)
        .execute_batch("ALTER TABLE public.t ADD CONSTRAINT later UNIQUE (num, id) DEFERRABLE")
        .unwrap();
    let job = run(
        &app,
        &json!({"action": "create_index", "table": "t", "name": "later", "columns": ["num", "id"], "unique": true}),
    );
    assert!(job["error"]["message"].as_str().unwrap().contains("deferrable constraint"), "{job}");
}

#[test]
fn an_expression_is_one_and_nothing_else() {
    let app = with_table();
    app.target.run("CREATE TABLE public.witness (id int); GRANT ALL ON public.witness TO slowlane_demo");
    let alone = |expression: &str| index(&json!([{"expression": expression}]), &json!({}));
    let filtered = |condition: &str| index(&json!(["num"]), &json!({"where": condition}));
    for text in [
        "num), (id",
        "num)); DROP TABLE witness; --",
        "num) FROM t; INSERT INTO witness VALUES (1); SELECT (1",
        "num /*",
        "num; INSERT INTO witness VALUES (1)",
        "$1::int + num",
        "num) text_pattern_ops, (id",
    ] {
        for (args, pointer) in [(alone(text), "/columns/0/expression"), (filtered(text), "/where")] {
            let job = run(&app, &args);
            assert_eq!(job["state"], "failed", "{args}: {job}");
            let code = job["error"]["code"].as_str().unwrap();
            assert!(["expression_not_allowed", "sql_error"].contains(&code), "{job}");
            assert!(job["error"]["message"].as_str().unwrap().starts_with(pointer), "{job}");
        }
    }
    // What is one, and what an index can't have.
    for (args, pointer, told) in [
        (alone("(SELECT 1)"), "/columns/0/expression: ", "subquer"),
        (alone("num, id"), "/columns/0/expression: ", "pseudo-type"),
        (alone("count(*)"), "/columns/0/expression: ", "aggregate"),
        (alone("now()::text || name"), "/columns/0/expression: ", "IMMUTABLE"),
        (index(&json!(["id", {"expression": "now()"}]), &json!({})), "/columns/1/expression: ", "IMMUTABLE"),
        (
            index(&json!(["id", {"expression": "point(num, 1)"}]), &json!({})),
            "/columns/1/expression: ",
            "operator class",
        ),
        (filtered("num"), "/where: ", "boolean"),
        (filtered("num > random()"), "/where: ", "IMMUTABLE"),
        (index(&json!(["num"]), &json!({"tablespace": "none"})), "/tablespace: ", "none"),
        (filtered("public.t.num > 1"), "/where: ", "FROM-clause"),
        (alone("public.t.num + 1"), "/columns/0/expression: ", "FROM-clause"),
    ] {
        let job = run(&app, &args);
        assert_eq!(code(&job), ("failed", "sql_error"), "{job}");
        let message = job["error"]["message"].as_str().unwrap();
        assert!(message.starts_with(pointer) && message.contains(told), "{job}");
        let looked = app.post("/v1/jobs/validate", &super::job(&args)).json();
        let problem = &looked["problems"][0];
        assert_eq!(
            (&problem["pointer"], &problem["error"]["sqlstate"]),
            (&json!(format!("/args{}", pointer.trim_end_matches(": "))), &job["error"]["sqlstate"]),
            "{looked}"
        );
        if told != "FROM-clause" {
            assert_eq!(job["error"]["position"], Value::Null, "{job}");
        }
        assert!(told != "IMMUTABLE" || hint(&job).contains("IMMUTABLE"), "{job}");
    }
    assert_eq!(app.target.count("SELECT count(*) FROM public.witness"), 0);
    assert_eq!(app.target.text("SELECT coalesce(to_regclass('public.i')::text, '-')"), "-");
    // An expression in the place of a name is told where it belongs.
    let job = run(&app, &index(&json!(["lower(name)"]), &json!({})));
    assert_eq!(code(&job), ("failed", "unknown_columns"), "{job}");
    assert!(hint(&job).contains(r#"{"expression":"lower(name)"}"#), "{job}");
    let job = run(&app, &index(&json!([{"column": "name", "collation": "nowhere"}]), &json!({})));
    assert_eq!(code(&job), ("failed", "unknown_collation"), "{job}");
    let job = run(&app, &index(&json!(["num"]), &json!({"tablespace": "nowhere"})));
    assert!(code(&job) == ("failed", "sql_error") && hint(&job).contains("pg_tablespace"), "{job}");
    if version(&app.target) < 15 {
        let job = run(&app, &index(&json!(["num"]), &json!({"unique": true, "nulls_not_distinct": true})));
        assert_eq!(code(&job), ("failed", "not_supported"), "{job}");
        assert!(job["error"]["message"].as_str().unwrap().contains("needs PostgreSQL 15"), "{job}");
    }
}

#[test]
fn an_index_is_dropped_unless_something_needs_it() {
    let app = with_table();
    as_role(&app.target)
        .execute_batch(
            "CREATE TABLE public.other (id int, t int REFERENCES public.t); CREATE UNIQUE INDEX t_u ON public.t (num, id);
             CREATE TABLE public.refers (num int, id int, FOREIGN KEY (num, id) REFERENCES public.t (num, id));
             CREATE TABLE public.p (id int) PARTITION BY RANGE (id); CREATE TABLE public.p1 PARTITION OF public.p DEFAULT;
             CREATE INDEX p_id ON public.p (id); CREATE TABLE public.identity (id int NOT NULL);
             CREATE UNIQUE INDEX identity_id ON public.identity (id); CREATE INDEX \"My Index\" ON public.other (id);
             ALTER TABLE public.identity REPLICA IDENTITY USING INDEX identity_id",
        )
        .unwrap();
    for (name, expected, told) in [
        ("t_pkey", "index_needed", "ALTER TABLE public.t DROP CONSTRAINT t_pkey"),
        ("t_u", "index_needed", "ALTER TABLE public.refers DROP CONSTRAINT refers_num_id_fkey"),
        ("p1_id_idx", "index_needed", r#""index":"public.p_id""#),
        ("p_id", "not_supported", "concurrently: false"),
        ("identity_id", "index_needed", "ALTER TABLE public.identity REPLICA IDENTITY"),
        ("t", "index_not_found", "name an index"),
        ("nowhere", "index_not_found", "if_exists"),
    ] {
        let job = run(&app, &drop_job(name));
        assert_eq!(code(&job), ("failed", expected), "{job}");
        assert!(hint(&job).contains(told), "{job}");
    }
    // What is there, or can't be read, isn't missing.
    for (name, told) in [("My Index", r"write"), ("other.public.t_name", "database"), ("t", "name an index")] {
        let mut drop = drop_job(name);
        drop["if_exists"] = json!(true);
        let job = run(&app, &drop);
        assert_eq!(code(&job), ("failed", "index_not_found"), "{job}");
        assert!(hint(&job).contains(told), "{name}: {job}");
    }
    let size = app.target.count("SELECT pg_relation_size('public.t_name')");
    let dropped = output(&app, &drop_job("public.t_name"));
    assert_eq!(dropped["index"], json!({"name": "public.t_name", "bytes": size, "valid": true, "was_there": true}));
    assert_eq!(dropped["table"], "public.t");
    let mut missing = drop_job("public.t_name");
    missing["if_exists"] = json!(true);
    let gone = output(&app, &missing);
    assert_eq!((&gone["index"]["was_there"], &gone["table"]), (&json!(false), &Value::Null));
    let mut whole = drop_job("p_id");
    whole["concurrently"] = json!(false);
    whole["allow_exclusive_lock"] = json!(true);
    output(&app, &whole);
    assert_eq!(app.target.text("SELECT coalesce(to_regclass('public.p1_id_idx')::text, '-')"), "-");
    assert_eq!(app.queue.count("SELECT count(*) FROM job_checkpoints"), 0);
}

#[test]
fn a_name_that_an_open_transaction_takes_is_taken() {
    let app = with_table();
    let mut user = as_role(&app.target);
    user.execute_batch("BEGIN; CREATE TABLE public.i (id int)").unwrap();
    let id = app.submit(&job(&super::create("i")));
    eventually("the job waits for the name", || {
        app.target.count(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'CREATE INDEX%'
                AND wait_event = 'transactionid'",
        ) == 1
    });
    user.execute_batch("COMMIT").unwrap();
    eventually("the next attempt looks at it", || {
        app.queue.run("UPDATE jobs SET run_at = now() WHERE state = 'scheduled'");
        app.job(&id)["finished_at"].is_string()
    });
    let job = app.ended(&id);
    assert_eq!(code(&job), ("failed", "index_exists"), "{job}");
    assert_eq!(hint(&job), "choose another name", "{job}");
}

#[test]
fn a_drop_waits_in_tries_and_keeps_no_writer_out() {
    let app = with_table();
    let mut holder = app.target.session();
    holder.execute_batch("BEGIN; LOCK TABLE public.t IN SHARE UPDATE EXCLUSIVE MODE").unwrap();
    let mut args = drop_job("t_name");
    args["lock_timeout_ms"] = json!(300);
    let id = app.submit(&job(&args));
    eventually("a further try is told", || {
        app.job(&id)["progress"]["phase"].as_str().is_some_and(|phase| phase.contains("try 2 of 5"))
    });
    assert!(valid(&app.target, "public.t_name"));
    holder.execute_batch("COMMIT; BEGIN; INSERT INTO public.t VALUES (101, 'x', 1)").unwrap();
    eventually("it waits for who uses it", || {
        app.target.count("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'DROP INDEX%' AND wait_event = 'virtualxid'") == 1
    });
    app.target.run("INSERT INTO public.t VALUES (102, 'y', 1)");
    eventually("who is in its way is told", || {
        app.job(&id)["progress"]["blocked_by"][0]["pid"] == json!(holder.backend_pid())
    });
    holder.execute_batch("COMMIT").unwrap();
    let job = app.ended(&id);
    assert_eq!(job["state"], "succeeded", "{job}");
    assert!(job["output"]["tries"].as_i64().unwrap() > 1, "{job}");
}

#[test]
fn a_drop_that_has_taken_effect_is_a_success_of_the_next_attempt() {
    let app = with_table();
    // The index goes, and the attempt ends as lost before it can say so: the session is ended while the drop still
    // waits, and the rest of the drop is done by somebody else.
    let mut writer = app.target.session();
    writer.execute_batch("BEGIN; INSERT INTO public.t VALUES (101, 'x', 1)").unwrap();
    let id = app.submit(&job(&drop_job("t_name")));
    eventually("it waits for who uses it", || invalid(&app.target) == "public.t_name");
    app.target.run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'DROP INDEX%'",
    );
    writer.execute_batch("COMMIT").unwrap();
    eventually("it is gone", || app.target.text("SELECT coalesce(to_regclass('public.t_name')::text, '-')") == "-");
    app.target.run("CREATE INDEX t_name ON public.t (name)");
    eventually("the next attempt runs", || {
        app.queue.run("UPDATE jobs SET run_at = now() WHERE state = 'scheduled'");
        app.job(&id)["finished_at"].is_string()
    });
    let job = app.ended(&id);
    assert_eq!((&job["state"], &job["output"]["index"]["was_there"]), (&json!("succeeded"), &json!(true)), "{job}");
    assert!(valid(&app.target, "public.t_name"), "another one of its name was dropped");
}

#[test]
fn a_deadlock_ends_no_job() {
    let postgres = Postgres::start();
    let app = TestApp::on(Postgres::shared().queue(), postgres.work(), |_| {});
    as_role(&app.target).execute_batch(super::TABLE).unwrap();
    // The build looks for deadlocks late enough for somebody to wait for it by then.
    app.target.run("ALTER ROLE slowlane_demo SET deadlock_timeout = '3s'");
    let mut other = snapshot(&app.target);
    other.execute_batch("SET deadlock_timeout = '1h'").unwrap();
    let mut args = job(&index(&json!([{"expression": "lower(name)"}]), &json!({"where": "num > 1"})));
    args["max_attempts"] = json!(1);
    let id = app.submit(&args);
    eventually("it waits for old transactions", || builds(&app.target, super::OLD_SNAPSHOTS));
    let waits = std::thread::spawn(move || {
        other.execute_batch("LOCK TABLE public.t IN SHARE UPDATE EXCLUSIVE MODE").unwrap();
        other
    });
    eventually("the deadlock is told", || log(&app, &id).contains("deadlock detected, and this was ended; try 2 of 5"));
    let mut other = waits.join().unwrap();
    other.execute_batch("COMMIT").unwrap();
    let job = app.ended(&id);
    assert_eq!((&job["state"], &job["attempt"]), (&json!("succeeded"), &json!(1)), "{job}");
    assert!(log(&app, &id).contains("dropped the invalid index public.i of an earlier try"), "{}", log(&app, &id));
    assert_eq!(invalid(&app.target), "");
}

#[test]
fn builds_beside_a_long_query_end_well_and_name_the_job_in_their_way() {
    let app = with_table();
    as_role(&app.target).execute_batch("CREATE TABLE public.u (id int, name text); INSERT INTO public.u SELECT g, 'n' FROM generate_series(1, 100) g").unwrap();
    let mut gate = app.target.session();
    gate.execute_batch("SELECT pg_advisory_lock(4711)").unwrap();
    let query = app.submit(
        &json!({"kind": "query", "args": {"sql": "SELECT pg_advisory_lock_shared(4711), count(*) FROM pg_class"}}),
    );
    eventually("the query runs", || {
        app.target.count("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())") == 1
    });
    let mut second = index(&json!([{"expression": "upper(name)"}]), &json!({"name": "j"}));
    second["table"] = json!("u");
    let builds: Vec<String> = [index(&json!(["num"]), &json!({"where": "num > 1"})), second]
        .iter()
        .map(|args| {
            let mut args = job(args);
            args["max_attempts"] = json!(1);
            app.submit(&args)
        })
        .collect();
    for id in &builds {
        eventually("the job in its way is named", || {
            let job = app.job(id);
            let blockers = job["progress"]["blocked_by"].as_array().cloned().unwrap_or_default();
            blockers.iter().any(|blocker| {
                blocker["job_id"] == json!(query)
                    || builds.iter().any(|other| other != id && blocker["job_id"] == json!(other))
            })
        });
    }
    gate.execute_batch("SELECT pg_advisory_unlock(4711)").unwrap();
    for id in builds.iter().chain([&query]) {
        let job = app.ended(id);
        assert_eq!((&job["state"], &job["attempt"]), (&json!("succeeded"), &json!(1)), "{job}");
    }
    assert!(valid(&app.target, "public.i") && valid(&app.target, "public.j"));
}

/// The job of a hint, as a caller would take it from there.
fn job_of(hint: &str) -> Option<Value> {
    let (_, rest) = hint.split_once("drop it by ")?;
    serde_json::Deserializer::from_str(rest).into_iter().next()?.ok()
}

#[test]
fn what_is_in_the_way_is_dropped_by_the_job_that_is_named_or_none_is() {
    let app = with_table();
    as_role(&app.target)
        .execute_batch(
            "CREATE TABLE public.p (id int, num int) PARTITION BY LIST (id); CREATE INDEX whole ON public.p (num);
             CREATE TABLE public.p1 PARTITION OF public.p FOR VALUES IN (1); CREATE INDEX alone ON public.t (num)",
        )
        .unwrap();
    for (table, name, dropped) in
        [("t", "alone", true), ("t", "t_pkey", false), ("p1", "p1_num_idx", false), ("p", "whole", true)]
    {
        let wanted = json!({"action": "create_index", "table": table, "name": name, "columns": ["num", "id"]});
        let failed = run(&app, &wanted);
        assert_eq!(code(&failed), ("failed", "index_exists"), "{failed}");
        let named = job_of(hint(&failed));
        if name == "t_pkey" {
            assert!(hint(&failed).contains("DROP CONSTRAINT t_pkey") && named.is_none(), "{failed}");
            continue;
        }
        if !dropped {
            assert!(hint(&failed).contains("a part of the partitioned index public.whole"), "{failed}");
            continue;
        }
        let job = app.ended(&app.submit(&named.unwrap_or_else(|| panic!("{failed}"))));
        assert_eq!(job["state"], "succeeded", "{job}");
        assert_eq!(output(&app, &wanted)["index"]["was_there"], false);
    }
}
