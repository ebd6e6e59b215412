//! What is told of rows that the server refuses, and what is no row's fault.

use serde_json::{Value, json};
use slowlane::pq::Session;

use super::{CSV, app_with, fails, import, rejects, run, submit};
use crate::support::eventually;

/// Each of a class that is no data exception: what input functions, functions and triggers raise.
#[test]
fn whatever_the_server_has_against_a_row_is_told_with_its_line() {
    let app = app_with("SELECT 1");
    app.target.run("CREATE EXTENSION hstore SCHEMA public; CREATE EXTENSION ltree SCHEMA public");
    run(
        &app,
        "CREATE TABLE public.t (id int, h hstore, l ltree, q tsquery, c regclass, j jsonb, what text);
         CREATE FUNCTION public.f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF NEW.what = 'nowhere' THEN PERFORM * FROM public.nowhere;
             ELSIF NEW.what <> '' THEN RAISE EXCEPTION 'not this one' USING ERRCODE = NEW.what; END IF;
             RETURN NEW; END $$;
         CREATE TRIGGER f BEFORE INSERT ON public.t FOR EACH ROW EXECUTE FUNCTION public.f()",
    );
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for (values, column, state) in [
        ("k,,,,,", "h", "?"),
        (",a..b,,,,", "l", "?"),
        (",,a &,,,", "q", "42601"),
        (",,,public.nowhere,,", "c", "42P01"),
        (&format!(",,,,{deep},"), "j", "54001"),
        (",,,,,0A000", "-", "0A000"),
        (",,,,,42804", "-", "42804"),
        (",,,,,MY001", "-", "MY001"),
        (",,,,,38000", "-", "38000"),
        (",,,,,nowhere", "-", "42P01"),
    ] {
        let body = format!("id,h,l,q,c,j,what\n1,,,,,,\n2,{values}\n3,,,,,,\n");
        let job = import(&app, CSV, &body, &json!({"table": "t", "reject_limit": 5}));
        assert_eq!(job["output"]["rejected"], 1, "{values:.20}: {job}");
        let refused = rejects(&app, &job);
        assert_eq!((refused[0].0, refused[0].2.as_str()), (3, column), "{refused:.200?}");
        assert!(state == "?" || refused[0].1 == state, "{refused:.200?}");
    }
    // What says nothing of the row ends the job.
    for state in ["42501", "53100", "55P03", "58030", "XX001"] {
        let body = format!("id,what\n1,\n2,{state}\n");
        let args = json!({"table": "t", "reject_limit": 5});
        let mut all = json!({"upload": "", "format": "csv"});
        all.as_object_mut().unwrap().extend(args.as_object().unwrap().clone());
        let answer = app.send("POST", "/v1/uploads", &[("content-type", CSV)], body.as_bytes());
        all["upload"] = answer.json()["id"].clone();
        let job = app.ended(&app.submit(&json!({"kind": "import", "args": all, "max_attempts": 1})));
        assert_eq!((&job["state"], &job["error"]["sqlstate"]), (&json!("failed"), &json!(state)), "{job}");
    }
}

/// A statement that fails for every row refuses no row.
#[test]
fn a_table_that_changes_meanwhile_is_no_fault_of_its_rows() {
    let app = app_with(
        "CREATE TABLE public.t (id int PRIMARY KEY, v int);
         CREATE FUNCTION public.f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$",
    );
    let mut other = Session::connect(&app.target.dsn).unwrap();
    other.execute_batch("BEGIN; ALTER TABLE public.t DROP COLUMN v").unwrap();
    let id = submit(&app, CSV, "id,v\n1,1\n2,2\n", &json!({"table": "t", "reject_limit": 5}));
    let waits = "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
                  WHERE NOT l.granted AND a.datname = current_database() AND a.application_name LIKE 'slowlane:%'";
    eventually("it waits for the table", || app.target.count(waits) > 0);
    other.execute_batch("COMMIT").unwrap();
    let job = app.ended(&id);
    assert_eq!((&job["state"], &job["error"]["sqlstate"]), (&json!("failed"), &json!("42703")), "{job}");
}

#[test]
fn the_column_and_the_constraint_that_the_server_names_are_told() {
    let app = app_with(
        "CREATE TABLE public.t (a int, b numeric(4,1) CONSTRAINT small CHECK (b < 10), \"c d\" date NOT NULL, k int UNIQUE);
         CREATE TABLE public.log (a int NOT NULL);
         CREATE FUNCTION public.f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF NEW.a = 77 THEN INSERT INTO public.log VALUES (NULL); END IF; RETURN NEW; END $$;
         CREATE TRIGGER f BEFORE INSERT ON public.t FOR EACH ROW EXECUTE FUNCTION public.f()",
    );
    for (row, sqlstate, column, constraint) in [
        ("1,n/a,2020-01-01,1", "22P02", json!("b"), Value::Null),
        ("1,12345,2020-01-01,1", "22003", json!("b"), Value::Null),
        ("1,1,2020-13-01,1", "22008", json!("c d"), Value::Null),
        ("99999999999,1,2020-01-01,1", "22003", json!("a"), Value::Null),
        ("1,1,,1", "23502", json!("c d"), Value::Null),
        ("1,50,2020-01-01,1", "23514", Value::Null, json!("small")),
        ("1,1,2020-01-01,9", "23505", Value::Null, json!("t_k_key")),
        ("1,1", "22P04", json!("c d"), Value::Null),
        ("1,1,2020-01-01,1,1", "22P04", Value::Null, Value::Null),
        // A column of another table.
        ("77,1,2020-01-01,1", "23502", Value::Null, Value::Null),
    ] {
        let body = format!("a,b,c d,k\n0,0,2020-01-01,9\n{row}\n");
        let job = import(&app, CSV, &body, &json!({"table": "t"}));
        let error = job["error"].as_object().unwrap();
        assert_eq!(error["sqlstate"], sqlstate, "{job}");
        assert_eq!(error.get("column").unwrap_or(&Value::Null), &column, "{job}");
        assert_eq!(error.get("constraint").unwrap_or(&Value::Null), &constraint, "{job}");
        for on_conflict in [json!({}), json!({"on_conflict": "skip", "conflict_columns": ["k"]})] {
            if sqlstate == "23505" && on_conflict != json!({}) {
                continue;
            }
            let mut args = json!({"table": "t", "reject_limit": 1});
            args.as_object_mut().unwrap().extend(on_conflict.as_object().unwrap().clone());
            let job = import(&app, CSV, &body, &args);
            let refused = rejects(&app, &job);
            assert_eq!((refused[0].0, refused[0].1.as_str()), (3, sqlstate), "{job}");
            assert_eq!(refused[0].2, column.as_str().unwrap_or("-"), "{row}: {job}");
            run(&app, "TRUNCATE t");
        }
    }
    let id = submit(&app, CSV, "a,b,c d,k\nx,1,2020-01-01,1\n", &json!({"table": "t", "reject_limit": 1}));
    let job = app.ended(&id);
    let csv = app.get(&format!("/v1/jobs/{id}/result/data")).text();
    assert!(csv.starts_with("line,sqlstate,column,message,row\n2,22P02,a,"), "{csv}: {job}");
    let log = app.get(&format!("/v1/jobs/{id}/log")).json();
    assert!(log["lines"][0]["message"].as_str().unwrap().contains("(column a)"), "{log}");
    // The first one of too many.
    let body = "a,b,c d,k\n1,x,2020-01-01,1\ny,1,2020-01-01,1\n";
    assert_eq!(fails(&app, CSV, body, &json!({"table": "t", "reject_limit": 1}), "too_many_rejects")["column"], "b");
}
