//! What the server leaves out of a statement and only warns of.

use serde_json::json;

use super::{code, run, with_table};

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
