//! What the server leaves out of a statement and only warns of.

use serde_json::{Value, json};

use super::{code, run, with_table};
use crate::support::app::TestApp;

#[test]
fn what_a_statement_left_out_is_named_and_fails_where_it_is_all() {
    let app = with_table();
    let name = app.target.name().to_owned();
    // Whatever the role wants to hear, and in whatever language.
    let speaks = app.target.session().execute_batch("SET lc_messages = 'de_DE.UTF-8'").is_ok();
    let language = if speaks { "de_DE.UTF-8" } else { "C" };
    app.target.run(&format!(
        "ALTER DATABASE {name} OWNER TO CURRENT_USER; ALTER DATABASE {name} SET client_min_messages = 'error';
         ALTER DATABASE {name} SET lc_messages = '{language}'; CREATE TABLE public.theirs (id int);
         GRANT SELECT, INSERT ON public.theirs TO slowlane_demo; GRANT SELECT ON public.theirs TO slowlane_demo WITH GRANT OPTION"
    ));
    for (sql, state) in [
        ("ANALYZE public.theirs", "01000"),
        ("/* x */ grant INSERT ON public.theirs TO PUBLIC", "01007"),
        ("REVOKE INSERT ON public.theirs FROM PUBLIC", "01006"),
    ] {
        let job = run(&app, &json!([{"sql": "INSERT INTO public.t VALUES (1)"}, {"sql": sql}]));
        assert_eq!(code(&job), ("failed", "all_skipped"), "{job}");
        assert_eq!(job["error"]["sqlstate"], state, "{job}");
        assert!(job["error"]["message"].as_str().unwrap().starts_with("/statements/1: "), "{job}");
        assert!(!job["error"]["hint"].as_str().unwrap().is_empty(), "{job}");
    }
    assert_eq!(app.target.count("SELECT count(*) FROM public.t"), 0, "it was not rolled back");
    let mut holder = app.target.session();
    holder.execute_batch("BEGIN; LOCK TABLE public.t IN SHARE UPDATE EXCLUSIVE MODE").unwrap();
    let locked = json!({"kind": "execute", "max_attempts": 1, "args": {"statements": [{"sql": "ANALYZE (SKIP_LOCKED) public.t"}]}});
    let job = app.ended(&app.submit(&locked));
    assert_eq!((code(&job), &job["error"]["retryable"]), (("failed", "all_skipped"), &json!(true)), "{job}");
    holder.execute_batch("COMMIT").unwrap();
    // Some of it, and what says nothing of the kind.
    for (sql, state) in [
        ("ANALYZE public.t, public.theirs", "01000"),
        ("GRANT SELECT, INSERT ON public.theirs TO PUBLIC", "01007"),
        ("DO $$ BEGIN RAISE WARNING 'of their own' USING ERRCODE = '01ABC'; END $$", "01ABC"),
    ] {
        let job = run(&app, &json!([{"sql": "SELECT 1"}, {"sql": sql}]));
        assert_eq!(job["state"], "succeeded", "{job}");
        let statements = &job["output"]["statements"];
        assert_eq!(statements[0].get("warnings"), None, "{job}");
        assert_eq!(
            (&statements[1]["warnings"][0]["sqlstate"], &statements[1]["warning_count"]),
            (&json!(state), &json!(1)),
            "{job}"
        );
    }
    // What was asked for isn't left out.
    let job = run(
        &app,
        &json!([{"sql": "DROP TABLE IF EXISTS nothing"}, {"sql": "CREATE TABLE IF NOT EXISTS public.t (id int)"},
        {"sql": "ANALYZE public.t"}, {"sql": "GRANT SELECT ON public.t TO PUBLIC"}, {"sql": "GRANT SELECT ON public.t TO PUBLIC"}]),
    );
    assert_eq!(job["state"], "succeeded", "{job}");
    assert!(!job["output"].to_string().contains("warning"), "{job}");
    // Many: as psql shows them all, the first twenty and their number.
    let job = run(&app, &json!([{"sql": "DO $$ BEGIN FOR n IN 1..150 LOOP RAISE WARNING '%', n; END LOOP; END $$"}]));
    let statement = &job["output"]["statements"][0];
    assert_eq!(
        (statement["warnings"].as_array().unwrap().len(), &statement["warning_count"]),
        (20, &json!(150)),
        "{job}"
    );
}

/// A table of somebody else's; the role may pass on its SELECT, and has its INSERT.
const THEIRS: &str =
    "CREATE TABLE public.theirs (id int, b int); GRANT SELECT, INSERT ON public.theirs TO slowlane_demo;
     GRANT SELECT ON public.theirs TO slowlane_demo WITH GRANT OPTION;";

fn statements(sql: &[&str]) -> Value {
    sql.iter().map(|sql| json!({"sql": sql})).collect()
}

#[track_caller]
fn warned(app: &TestApp, sql: &[&str]) -> Vec<u64> {
    let job = run(app, &statements(sql));
    assert_eq!(job["state"], "succeeded", "{job}");
    let counts = job["output"]["statements"].as_array().unwrap().iter();
    counts.map(|statement| statement["warning_count"].as_u64().unwrap_or(0)).collect()
}

#[test]
fn an_analyze_behind_another_one_is_told_apart() {
    let app = with_table();
    let database = app.target.name().to_owned();
    app.target.run(&format!(
        "ALTER DATABASE {database} OWNER TO CURRENT_USER; {THEIRS} CREATE TABLE public.p (id int) PARTITION BY LIST (id);
         CREATE TABLE public.p1 PARTITION OF public.p FOR VALUES IN (1); ALTER TABLE public.p1 OWNER TO slowlane_demo"
    ));
    for sql in [
        ["ANALYZE public.t", "ANALYZE pg_catalog.pg_authid"],
        ["ANALYZE VERBOSE public.t", "/* again */ analyse VERBOSE public.theirs"],
        ["LOCK TABLE public.t IN SHARE UPDATE EXCLUSIVE MODE", "ANALYZE public.theirs (b)"],
    ] {
        let job = run(&app, &statements(&sql));
        assert_eq!(code(&job), ("failed", "all_skipped"), "{sql:?}: {job}");
        assert!(job["error"]["message"].as_str().unwrap().starts_with("/statements/1: "), "{job}");
    }
    // Some of it is done: a table that was analyzed before too, an empty one, a partition.
    assert_eq!(warned(&app, &["ANALYZE public.t", "ANALYZE public.theirs, public.t"]), [0, 1]);
    assert_eq!(warned(&app, &["ANALYZE public.p", "ANALYZE public.p1"]), [1, 0]);
    assert!(warned(&app, &["ANALYZE"]).iter().all(|count| *count > 0));
}

#[test]
fn what_the_server_says_of_an_analyze_is_not_for_the_log() {
    let app = with_table();
    app.target.run(
        "CREATE FUNCTION public.loud(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS
             $$BEGIN RAISE DEBUG 'whispered'; RAISE WARNING 'loud'; RETURN $1; END$$;
         INSERT INTO public.t VALUES (1); CREATE INDEX ON public.t (public.loud(id))",
    );
    let id = app.submit(&super::execute(&statements(&["ANALYZE public.t", "SHOW client_min_messages"])));
    assert_eq!(app.ended(&id)["output"]["statements"][0]["warning_count"], 1);
    let log = app.get(&format!("/v1/jobs/{id}/log")).text();
    assert!(log.contains("loud") && !log.contains("whispered") && !log.contains("analyzing"), "{log}");
}

#[test]
fn what_a_statement_sets_itself_is_kept_and_warnings_are_heard_all_the_same() {
    let app = with_table();
    app.target.run(&format!("ALTER DATABASE {} SET client_min_messages = 'error'; {THEIRS}", app.target.name()));
    let warn = "DO $$BEGIN RAISE WARNING 'heard'; END$$";
    let notice = "DO $$BEGIN RAISE NOTICE 'well'; RAISE WARNING 'heard'; END$$";
    let id = app.submit(&super::execute(&statements(&[
        warn,
        "SET LOCAL client_min_messages = 'error'",
        warn,
        "SET client_min_messages = 'notice'",
        "ANALYZE public.t",
        notice,
    ])));
    let job = app.ended(&id);
    let counts: Vec<&Value> =
        job["output"]["statements"].as_array().unwrap().iter().map(|s| &s["warning_count"]).collect();
    assert_eq!(counts, [&json!(1), &Value::Null, &json!(1), &Value::Null, &Value::Null, &json!(1)], "{job}");
    let log = app.get(&format!("/v1/jobs/{id}/log")).text();
    assert!(log.contains("well"), "what it had set was gone: {log}");
    let job =
        run(&app, &statements(&["SET LOCAL client_min_messages = 'error'", "GRANT INSERT ON public.theirs TO PUBLIC"]));
    assert_eq!(code(&job), ("failed", "all_skipped"), "{job}");
}

#[test]
fn a_grant_that_was_there_is_no_failure_and_one_that_may_not_be_is() {
    let app = with_table();
    app.target
        .run(&format!("{THEIRS} CREATE TABLE public.none (id int); GRANT SELECT ON public.none TO slowlane_demo"));
    // Each twice, and both in one transaction too.
    for sql in [
        "GRANT SELECT, INSERT ON public.theirs TO PUBLIC",
        "GRANT SELECT (id), INSERT (id) ON public.theirs TO PUBLIC",
        "GRANT SELECT ON public.t, public.none TO PUBLIC",
        "GRANT SELECT (id) ON public.t, public.none TO PUBLIC",
        "REVOKE SELECT, INSERT ON public.theirs FROM PUBLIC",
        "REVOKE SELECT ON public.t, public.none FROM PUBLIC",
    ] {
        for _ in 0..2 {
            assert!(warned(&app, &[sql])[0] > 0, "{sql}");
        }
        assert!(warned(&app, &[sql, sql])[1] > 0, "{sql}");
    }
    for sql in [
        "GRANT INSERT ON public.theirs TO PUBLIC",
        "GRANT INSERT (id, b) ON public.theirs TO PUBLIC",
        "GRANT SELECT ON public.none TO PUBLIC",
        "REVOKE INSERT ON public.theirs FROM PUBLIC",
        "REVOKE SELECT (id) ON public.none FROM PUBLIC",
    ] {
        let job = run(&app, &statements(&["GRANT SELECT ON public.t TO PUBLIC", sql]));
        assert_eq!(code(&job), ("failed", "all_skipped"), "{sql}: {job}");
    }
    let (id, log) =
        (app.submit(&super::execute(&statements(&["GRANT SELECT, INSERT ON public.theirs TO PUBLIC"]))), "log");
    app.ended(&id);
    let log = app.get(&format!("/v1/jobs/{id}/{log}")).text();
    assert!(!log.contains("pg_lsn") && !log.contains("lanname"), "{log}");
}

#[test]
fn rights_on_settings_are_rights_too() {
    let app = with_table();
    if app.target.version() < 150_000 {
        return;
    }
    // They are the cluster's, which other tests share.
    let setting = format!("left_out.{}", app.target.name());
    app.target.run(&format!(
        "GRANT SET, ALTER SYSTEM ON PARAMETER {setting} TO slowlane_demo;
         GRANT SET ON PARAMETER {setting} TO slowlane_demo WITH GRANT OPTION"
    ));
    let (some, none) = (
        format!("GRANT SET, ALTER SYSTEM ON PARAMETER {setting} TO PUBLIC"),
        format!("GRANT ALTER SYSTEM ON PARAMETER {setting} TO PUBLIC"),
    );
    assert_eq!(warned(&app, &[&some, &some]), [1, 1]);
    let job = run(&app, &statements(&[&none]));
    assert_eq!(code(&job), ("failed", "all_skipped"), "{job}");
    app.target.run(&format!("REVOKE ALL ON PARAMETER {setting} FROM PUBLIC, slowlane_demo CASCADE"));
}
