//! `refresh`: what it does to a view, what it needs, what it looks up beforehand, and that it takes effect once.

use serde_json::{Value, json};

use crate::support::app::TestApp;
use crate::support::eventually;

/// An app whose target has a table `t` and a materialized view `v` of it, both of the work role's own.
fn with_view() -> TestApp {
    let app = TestApp::start();
    app.target.run(
        "CREATE TABLE public.t (id int PRIMARY KEY); CREATE MATERIALIZED VIEW public.v AS SELECT id FROM public.t;
         ALTER TABLE public.t OWNER TO slowlane_demo; ALTER MATERIALIZED VIEW public.v OWNER TO slowlane_demo;
         GRANT ALL ON SCHEMA public TO slowlane_demo",
    );
    app
}

fn refresh(app: &TestApp, args: &Value) -> Value {
    let id = app.submit(&json!({"kind": "refresh", "args": args, "max_attempts": 1}));
    app.ended(&id)
}

fn code(job: &Value) -> (&str, &str) {
    (job["state"].as_str().unwrap(), job["error"]["code"].as_str().unwrap_or_default())
}

#[test]
fn a_view_is_computed_anew_and_readers_may_go_on() {
    let app = with_view();
    app.target.run("INSERT INTO public.t VALUES (1), (2)");
    let job = refresh(&app, &json!({"view": "v"}));
    assert_eq!(job["state"], "succeeded", "{job}");
    assert_eq!((&job["output"]["view"], &job["output"]["concurrently"]), (&json!("public.v"), &json!(false)));
    assert_eq!(job["output"]["bytes"], app.target.count("SELECT pg_total_relation_size('public.v')"));
    assert_eq!(app.target.count("SELECT count(*) FROM public.v"), 2);
    // Somebody reads: a plain refresh would have to wait, a concurrent one doesn't.
    app.target.run("INSERT INTO public.t VALUES (3); CREATE UNIQUE INDEX ON public.v (id)");
    let mut reader = app.target.session();
    reader.execute_batch("BEGIN; SELECT * FROM public.v").unwrap();
    let job = refresh(&app, &json!({"view": "public.v", "concurrently": true}));
    assert_eq!(job["state"], "succeeded", "{job}");
    assert_eq!(app.target.count("SELECT count(*) FROM public.v"), 3);
    let id = app.submit(&json!({"kind": "refresh", "args": {"view": "v"}}));
    eventually("who is in the way is named", || {
        app.job(&id)["progress"]["blocked_by"][0]["pid"] == json!(reader.backend_pid())
    });
    let job = app.job(&id);
    assert_eq!(
        (&job["progress"]["phase"], &job["progress"]["wait_event"]),
        (&json!("refreshing"), &json!("Lock:relation"))
    );
    assert_eq!(
        (&job["progress"]["done"], &job["progress"]["percent"]),
        (&Value::Null, &Value::Null),
        "nothing is known"
    );
    reader.execute_batch("COMMIT").unwrap();
    assert_eq!(app.ended(&id)["state"], "succeeded");
}

#[test]
fn what_a_refresh_needs_is_said_before_it_begins() {
    let app = with_view();
    app.target.run(
        "CREATE VIEW public.plain AS SELECT 1; CREATE MATERIALIZED VIEW public.others AS SELECT 1 AS a; CREATE MATERIALIZED VIEW public.\"MyView\" AS SELECT 1 AS a;
         CREATE MATERIALIZED VIEW public.empty AS SELECT 1 AS a WITH NO DATA; CREATE UNIQUE INDEX ON public.empty (a);
         ALTER MATERIALIZED VIEW public.empty OWNER TO slowlane_demo",
    );
    // None of these will do.
    app.target.run(
        "CREATE INDEX ON public.v (id); CREATE UNIQUE INDEX ON public.v (id) WHERE id > 0;
         CREATE UNIQUE INDEX ON public.v ((id + 1))",
    );
    for (args, code_wanted, hint) in [
        (json!({"view": "v", "concurrently": true}), "no_unique_index", "create_index, table public.v"),
        (json!({"view": "empty", "concurrently": true}), "view_not_populated", "without concurrently"),
        (json!({"view": "nowhere"}), "view_not_found", "schema"),
        (json!({"view": "plain"}), "not_a_materialized_view", "no refresh"),
        (json!({"view": "t"}), "not_a_materialized_view", ""),
        (json!({"view": "others"}), "permission_denied", "owner"),
        (json!({"view": "My View"}), "view_not_found", "write \"view\": \"\\\"My View\\\"\""),
        (json!({"view": "MyView"}), "view_not_found", "write \"view\": \"\\\"MyView\\\"\""),
    ] {
        let job = refresh(&app, &args);
        assert_eq!(code(&job), ("failed", code_wanted), "{job}");
        assert!(job["error"]["hint"].as_str().unwrap().contains(hint), "{job}");
        assert_eq!(job["error"]["retryable"], false);
    }
    assert_eq!(refresh(&app, &json!({"view": "empty"}))["state"], "succeeded");
    for (args, pointer) in [(json!({"view": " "}), "/args/view"), (json!({"view": "v", "fast": true}), "/args")] {
        let (status, code, pointers) = app.post("/v1/jobs", &json!({"kind": "refresh", "args": args})).problem();
        assert_eq!((status, code.as_str()), (422, "invalid_args"));
        assert!(pointers[0].starts_with(pointer), "{pointers:?}");
    }
}

#[test]
fn a_cancelled_refresh_leaves_the_view_as_it_was() {
    let app = with_view();
    app.target.run(
        "INSERT INTO public.t VALUES (1); REFRESH MATERIALIZED VIEW public.v;
         CREATE FUNCTION public.waits(int) RETURNS int LANGUAGE plpgsql AS
             $$ BEGIN SET LOCAL lock_timeout = 0; PERFORM pg_advisory_xact_lock(7); RETURN $1; END $$;
         CREATE MATERIALIZED VIEW public.w AS SELECT public.waits(id) AS id FROM public.t;
         ALTER MATERIALIZED VIEW public.w OWNER TO slowlane_demo; INSERT INTO public.t VALUES (2)",
    );
    let mut holder = app.target.session();
    holder.execute_batch("SELECT pg_advisory_lock(7)").unwrap();
    let id = app.submit(&json!({"kind": "refresh", "args": {"view": "w"}}));
    eventually("it is at work", || {
        app.target.count("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())") == 1
    });
    assert_eq!(app.post(&format!("/v1/jobs/{id}/cancel"), &json!({})).status, 202);
    assert_eq!(app.ended(&id)["state"], "cancelled");
    assert_eq!(app.target.count("SELECT count(*) FROM public.w"), 1);
    assert_eq!(
        app.target.count("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'REFRESH%' AND state = 'active' AND datname = current_database()"),
        0
    );
}
