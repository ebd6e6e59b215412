//! Names in arguments: as SQL writes them, and with what there is under nearly the same name where there is none.

use serde_json::json;

use crate::support::app::TestApp;

#[test]
fn a_name_that_needs_quotes_is_told_by_its_argument() {
    let app = TestApp::start();
    app.target.run(
        "CREATE TABLE public.\"My Table\" (id int PRIMARY KEY); CREATE TABLE public.\"MyTable\" (id int PRIMARY KEY);
         CREATE SCHEMA sales; CREATE TABLE sales.orders (id int PRIMARY KEY); CREATE MATERIALIZED VIEW public.\"My View\" AS SELECT 1;
         GRANT USAGE ON SCHEMA sales TO PUBLIC; GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC;
         CREATE SCHEMA secret; CREATE TABLE secret.\"Hidden\" (id int)",
    );
    let upload = app.send("POST", "/v1/uploads", &[("content-type", "text/csv")], b"id\n1\n").json()["id"].clone();
    let import = |table: &str| json!({"kind": "import", "args": {"upload": upload, "table": table, "format": "csv"}});
    let backfill = |table: &str| json!({"kind": "backfill", "args": {"table": table, "delete": true}});
    let maintain = |table: &str| json!({"kind": "maintain", "args": {"action": "analyze", "table": table}});
    let refresh = |view: &str| json!({"kind": "refresh", "args": {"view": view}});
    for kind in ["import", "backfill", "maintain", "refresh"] {
        let argument = if kind == "refresh" { "view" } else { "table" };
        let job = |name: &str| match kind {
            "import" => import(name),
            "backfill" => backfill(name),
            "maintain" => maintain(name),
            _ => refresh(name),
        };
        let of_view = argument == "view";
        let cases = match of_view {
            true => vec![("My View", r#"there is "My View": write "view": "\"My View\"""#)],
            false => vec![
                ("My Table", r#"there is "My Table": write "table": "\"My Table\"""#),
                ("public.My Table", r#"write "table": "public.\"My Table\"""#),
                ("MyTable", r#"there is "MyTable": write "table": "\"MyTable\"""#),
                ("\"ORDERS\"", r#"there is sales.orders: write "table": "sales.orders""#),
                ("Hidden", "name its schema"),
            ],
        };
        for (name, hint) in cases {
            let ended = app.ended(&app.submit(&job(name)));
            let error = &ended["error"];
            let code = if of_view { "view_not_found" } else { "table_not_found" };
            assert_eq!((&ended["state"], &error["code"]), (&json!("failed"), &json!(code)), "{ended}");
            assert!(error["hint"].as_str().unwrap().contains(hint), "{hint}: {ended}");
            let named = error["message"].as_str().unwrap().starts_with(&format!("/{argument}: {name} "));
            assert_eq!(named, name.contains(' '), "{ended}");
        }
    }
    let there = app.ended(&app.submit(&import("\"My Table\"")));
    assert_eq!(there["state"], "succeeded", "{there}");
}
