//! What a run would refuse is refused by validating it, with its argument, and the other way around.

use serde_json::{Value, json};

use super::{as_role, job, run, with_table};
use crate::support::app::TestApp;

#[track_caller]
fn validate(app: &TestApp, args: &Value) -> Value {
    let answer = app.post("/v1/jobs/validate", &job(args));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

fn create(table: &str, columns: &Value, more: &Value) -> Value {
    let mut args = json!({"action": "create_index", "table": table, "name": "i", "columns": columns});
    args.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    args
}

/// What exists: `t`, `p` with one part, `theirs`, and indexes that something needs.
fn with_all() -> TestApp {
    let app = with_table();
    as_role(&app.target)
        .execute_batch(
            "CREATE TABLE public.p (id int, num int) PARTITION BY LIST (id); CREATE INDEX p_num ON public.p (num);
             CREATE TABLE public.p1 PARTITION OF public.p FOR VALUES IN (1); CREATE INDEX t_num ON public.t (num);
             CREATE INDEX p_half ON ONLY public.p (num, id); CREATE VIEW public.v AS SELECT 1 AS one; CREATE SEQUENCE public.s",
        )
        .unwrap();
    app.target.run(&format!(
        "ALTER DATABASE {} OWNER TO CURRENT_USER; CREATE TABLE public.theirs (id int); CREATE INDEX theirs_id ON public.theirs (id);
         GRANT ALL ON SCHEMA public TO slowlane_demo; CREATE SCHEMA shut; CREATE TABLE shut.x (id int);
         GRANT USAGE ON SCHEMA shut TO slowlane_demo; ALTER TABLE shut.x OWNER TO slowlane_demo",
        app.target.name()
    ));
    app
}

#[test]
fn what_a_run_refuses_is_refused_with_its_argument() {
    let app = with_all();
    let expression = |text: &str| json!([{"expression": text}]);
    for (args, pointer) in [
        (json!({"action": "vacuum", "table": "nothing"}), "/table"),
        (json!({"action": "vacuum", "table": "v"}), "/table"),
        (json!({"action": "analyze", "table": "s"}), "/table"),
        (json!({"action": "vacuum", "table": "My Table"}), "/table"),
        (json!({"action": "vacuum", "table": "theirs"}), "/table"),
        (json!({"action": "analyze", "table": "theirs"}), "/table"),
        (json!({"action": "analyze", "table": "t", "columns": ["id", "nothing", "none"]}), "/columns/1"),
        (json!({"action": "vacuum", "table": "t", "analyze": true, "columns": ["nothing"]}), "/columns/0"),
        (json!({"action": "reindex", "table": "nothing"}), "/table"),
        (json!({"action": "reindex", "table": "theirs"}), "/table"),
        (json!({"action": "reindex", "index": "nothing"}), "/index"),
        (json!({"action": "reindex", "index": "t"}), "/index"),
        (json!({"action": "reindex", "index": "theirs_id"}), "/index"),
        (json!({"action": "drop_index", "index": "nothing"}), "/index"),
        (json!({"action": "drop_index", "index": "t", "if_exists": true}), "/index"),
        (json!({"action": "drop_index", "index": "t_pkey"}), "/index"),
        (json!({"action": "drop_index", "index": "p1_num_idx"}), "/index"),
        (json!({"action": "drop_index", "index": "p_num"}), "/concurrently"),
        (json!({"action": "drop_index", "index": "theirs_id"}), "/index"),
        (create("nothing", &json!(["id"]), &json!({})), "/table"),
        (create("theirs", &json!(["id"]), &json!({})), "/table"),
        (create("shut.x", &json!(["id"]), &json!({})), "/table"),
        (create("t", &json!(["id", "nothing"]), &json!({})), "/columns/1"),
        (create("t", &json!(["id"]), &json!({"include": ["num", "nothing"]})), "/include/1"),
        (create("t", &json!(["id", {"column": "name", "opclass": "nothing"}]), &json!({})), "/columns/1/opclass"),
        (create("t", &json!([{"column": "name", "collation": "nothing"}]), &json!({})), "/columns/0/collation"),
        (create("t", &json!([{"column": "id", "collation": "C"}]), &json!({})), "/columns/0"),
        (create("t", &json!(["id", "name"]), &json!({"method": "gin"})), "/columns/0"),
        (create("t", &expression("num +"), &json!({})), "/columns/0/expression"),
        (create("t", &expression("random()"), &json!({})), "/columns/0/expression"),
        (create("t", &json!(["num"]), &json!({"where": "id"})), "/where"),
        (create("t", &json!(["num"]), &json!({"where": "nothing > 1"})), "/where"),
        (create("t", &json!(["id", "num"]), &json!({"method": "hash"})), "/columns"),
        (create("t", &json!(["num"]), &json!({"tablespace": "nothing"})), "/tablespace"),
        (create("t", &json!(["num"]), &json!({"name": "t_name"})), "/name"),
        (create("t", &json!(["num"]), &json!({"name": "t"})), "/name"),
        (
            create(
                "p",
                &json!(["num", "id"]),
                &json!({"name": "p_half", "concurrently": false, "allow_exclusive_lock": true}),
            ),
            "/concurrently",
        ),
    ] {
        let submitted = app.post("/v1/jobs", &job(&args));
        if submitted.status == 422 {
            // The arguments alone tell.
            assert_eq!(app.post("/v1/jobs/validate", &job(&args)).status, 422, "{args}");
            continue;
        }
        let looked = validate(&app, &args);
        assert_eq!(looked["valid"], false, "{args}: {looked}");
        let problem = &looked["problems"][0];
        assert_eq!(problem["pointer"], format!("/args{pointer}"), "{args}: {looked}");
        let failed = app.ended(submitted.json()["id"].as_str().unwrap());
        assert_eq!(failed["state"], "failed", "{args}: {failed}");
        for member in ["code", "sqlstate", "hint"] {
            assert_eq!(problem["error"][member], failed["error"][member], "{args}: {looked} {failed}");
        }
    }
}

#[test]
fn what_a_run_does_is_valid_and_validating_it_does_nothing() {
    let app = with_all();
    let relations =
        || app.target.text("SELECT string_agg(oid || ' ' || relname || relfilenode, ',' ORDER BY oid) FROM pg_class");
    for args in [
        json!({"action": "vacuum", "table": "t"}),
        json!({"action": "analyze", "table": "p", "columns": ["num"]}),
        json!({"action": "reindex", "table": "t"}),
        json!({"action": "reindex", "index": "t_num"}),
        create("t", &json!(["num", {"expression": "lower(t.name)"}]), &json!({"where": "t.id > 1", "include": ["id"]})),
        create("t", &json!(["num", {"expression": "lower(t.name)"}]), &json!({"where": "t.id > 1", "include": ["id"]})),
        create("t", &json!(["num"]), &json!({"name": "t_num"})),
        create("p", &json!(["num", "id"]), &json!({"name": "p_half"})),
        create("t", &json!(["num"]), &json!({"name": "u", "with": {"fillfactor": 70}, "tablespace": "pg_default"})),
        json!({"action": "drop_index", "index": "nothing", "if_exists": true}),
        json!({"action": "drop_index", "index": "t_num"}),
        json!({"action": "drop_index", "index": "p_num", "concurrently": false, "allow_exclusive_lock": true}),
    ] {
        let before = relations();
        let looked = validate(&app, &args);
        assert_eq!((&looked["valid"], &looked["problems"]), (&json!(true), &json!([])), "{args}: {looked}");
        assert_eq!(relations(), before, "{args}");
        assert_eq!(run(&app, &args)["state"], "succeeded", "{args}");
    }
}
