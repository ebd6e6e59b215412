//! What no transaction runs: who does.

use serde_json::json;

use super::{execute, run, with_table};

#[test]
fn what_no_transaction_runs_is_told_with_who_does() {
    let app = with_table();
    let database = app.target.name().to_owned();
    for (sql, told) in [
        ("VACUUM public.t", "kind maintain"),
        ("VACUUM", "no kind runs this"),
        ("CREATE INDEX CONCURRENTLY ON public.t (name)", "kind maintain"),
        ("REINDEX TABLE public.parted", "kind maintain"),
        (&format!("REINDEX DATABASE {database}"), "no kind runs this"),
        ("CREATE DATABASE nothing", "no kind runs this"),
        ("ALTER SYSTEM SET work_mem = '1MB'", "no kind runs this"),
        ("ALTER TABLE public.parted DETACH PARTITION public.part CONCURRENTLY", "no kind runs this"),
        ("CLUSTER", "no kind runs this"),
    ] {
        app.target.run(
            "DROP TABLE IF EXISTS public.parted; CREATE TABLE public.parted (id int) PARTITION BY LIST (id);
             CREATE TABLE public.part PARTITION OF public.parted FOR VALUES IN (1); ALTER TABLE public.parted OWNER TO slowlane_demo;
             ALTER TABLE public.part OWNER TO slowlane_demo",
        );
        let job = run(&app, &json!([{"sql": sql}]));
        assert_eq!(job["state"], "failed", "{sql}: {job}");
        let hint = job["error"]["hint"].as_str().unwrap_or_default();
        assert!(hint.contains(told) || job["error"]["sqlstate"] == "42501", "{sql}: {job}");
        if sql.starts_with("REINDEX TABLE") {
            continue;
        }
        let looked = app.post("/v1/jobs/validate", &execute(&json!([{"sql": sql}]))).json();
        let problem = &looked["problems"][0]["error"];
        assert!(problem["hint"].as_str().unwrap_or_default().contains(told), "{sql}: {looked}");
    }
}
