//! The kind `import`, the table's side: which unique index compares rows, and what becomes of rows that are there.

mod refusals;
mod values;

use serde_json::{Value, json};
use slowlane::pq::Session;

use crate::support::app::TestApp;
use crate::support::client::Client;
use crate::support::eventually;

const CSV: &str = "text/csv";
const NDJSON: &str = "application/x-ndjson";

fn submit(client: &Client, content_type: &str, body: &str, args: &Value) -> String {
    let answer = client.send("POST", "/v1/uploads", &[("content-type", content_type)], body.as_bytes());
    assert_eq!(answer.status, 201, "{}", answer.text());
    let format = if content_type == CSV { "csv" } else { "ndjson" };
    let mut all = json!({"upload": answer.json()["id"], "format": format});
    all.as_object_mut().unwrap().extend(args.as_object().unwrap().clone());
    client.submit(&json!({"kind": "import", "args": all}))
}

#[track_caller]
fn import(client: &Client, content_type: &str, body: &str, args: &Value) -> Value {
    client.ended(&submit(client, content_type, body, args))
}

#[track_caller]
fn imports(client: &Client, content_type: &str, body: &str, args: &Value, counts: [u64; 5]) {
    let job = import(client, content_type, body, args);
    let names = ["rows_read", "inserted", "updated", "skipped", "rejected"];
    let expected: Value = names.into_iter().zip(counts).map(|(name, n)| (name.to_owned(), json!(n))).collect();
    assert_eq!(job["output"], expected, "{job}");
}

#[track_caller]
fn fails(client: &Client, content_type: &str, body: &str, args: &Value, code: &str) -> Value {
    let job = import(client, content_type, body, args);
    assert_eq!(job["error"]["code"], code, "{job}");
    job["error"].clone()
}

fn app_with(tables: &str) -> TestApp {
    let app = TestApp::start();
    run(&app, tables);
    app
}

/// As the owner of the tables.
fn run(app: &TestApp, sql: &str) {
    Session::connect(&app.target.dsn).unwrap().execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// Line, SQLSTATE, column and text of each row that was refused.
fn rejects(client: &Client, job: &Value) -> Vec<(u64, String, String, String)> {
    let rows = client.get(&format!("/v1/jobs/{}/result/data?format=json", job["id"].as_str().unwrap())).json();
    let rows = rows.as_array().unwrap().iter().map(|row| {
        let text = |name: &str| row[name].as_str().unwrap_or("-").to_owned();
        (text("line").parse().unwrap(), text("sqlstate"), text("column"), text("row"))
    });
    rows.collect()
}

/// The rows of a table, as text, in their order.
fn rows(app: &TestApp, table: &str) -> String {
    app.target.text(&format!(
        "SELECT string_agg(whole::text, ' ' ORDER BY whole::text COLLATE \"C\") FROM public.{table} whole"
    ))
}

#[test]
fn keys_are_the_columns_of_the_key_and_not_those_that_its_index_includes() {
    let app = app_with(
        "CREATE TABLE public.t (id int, name text, v int, PRIMARY KEY (id) INCLUDE (name));
         CREATE TABLE public.u (\"B b\" int NOT NULL, \"a\"\"\" int NOT NULL, v int, w int,
                                PRIMARY KEY (\"B b\", \"a\"\"\") INCLUDE (v, w));
         CREATE TABLE public.p (id int, at int, v int, UNIQUE (at, id) INCLUDE (v)) PARTITION BY LIST (at);
         CREATE TABLE public.p_1 PARTITION OF public.p FOR VALUES IN (1)",
    );
    run(&app, "INSERT INTO t VALUES (1, 'old', 1); INSERT INTO u VALUES (1, 2, 3, 4); INSERT INTO p VALUES (1, 1, 1)");
    let update = |table: &str| json!({"table": table, "on_conflict": "update"});
    imports(&app, CSV, "id,name,v\n1,new,2\n2,b,3\n", &update("t"), [2, 1, 1, 0, 0]);
    assert_eq!(rows(&app, "t"), "(1,new,2) (2,b,3)");
    imports(&app, CSV, "\"a\"\"\",w,B b\n2,40,1\n1,50,2\n", &update("u"), [2, 1, 1, 0, 0]);
    assert_eq!(rows(&app, "u"), "(1,2,3,40) (2,1,,50)");
    for keys in [json!(["id", "at"]), json!(["at", "id"])] {
        let args = json!({"table": "p", "on_conflict": "update", "conflict_columns": keys});
        imports(&app, CSV, "id,at,v\n1,1,7\n2,1,8\n2,1,9\n", &args, [3, 1, 1, 1, 0]);
        assert_eq!(rows(&app, "p"), "(1,1,7) (2,1,9)");
        run(&app, "DELETE FROM p WHERE id = 2");
    }
    // The column that is only included is none to compare by.
    let args = json!({"table": "t", "on_conflict": "skip", "conflict_columns": ["id", "name"]});
    let error = fails(&app, CSV, "id,name\n1,x\n", &args, "no_unique_index");
    assert!(error["hint"].as_str().unwrap().contains("there are: (id)"), "{error}");
}

#[test]
fn an_index_that_rows_cannot_be_compared_by_is_told_with_the_reason() {
    let app = app_with(
        "CREATE TABLE public.t (a int, b text, c int4range, d int, e int, gone timestamptz, \"F f\" int, v int, z int UNIQUE);
         CREATE UNIQUE INDEX partial ON public.t (a) WHERE gone IS NULL;
         CREATE UNIQUE INDEX expression ON public.t (lower(b));
         ALTER TABLE public.t ADD CONSTRAINT excluded EXCLUDE USING gist (c WITH &&);
         ALTER TABLE public.t ADD CONSTRAINT later UNIQUE (d) DEFERRABLE;
         CREATE INDEX plain ON public.t (e);
         CREATE UNIQUE INDEX \"Broken one\" ON public.t (\"F f\");
         CREATE TABLE public.bare (a int); CREATE TABLE public.keyed (a int, v int, PRIMARY KEY (a) DEFERRABLE)",
    );
    app.target.run("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'public.\"Broken one\"'::regclass");
    for (column, words, hint) in [
        ("a", "partial on (a) is partial: WHERE gone IS NULL", "ON CONFLICT (a) WHERE gone IS NULL DO"),
        ("b", "expression on (lower(b)) is on an expression", "ON CONFLICT (lower(b)) DO"),
        ("c", "excluded on (c) belongs to an exclusion constraint", "CREATE UNIQUE INDEX"),
        ("d", "later on (d) belongs to a constraint that is deferrable", "not deferrable"),
        ("e", "plain on (e) isn't unique", "CREATE UNIQUE INDEX"),
        ("F f", "\"Broken one\" on (\"F f\") is invalid", "reindex"),
        ("v", "no unique index on v that rows can be compared by", "there are: (z)"),
    ] {
        let args = json!({"table": "t", "on_conflict": "update", "conflict_columns": [column]});
        let error = fails(&app, CSV, &format!("{column},z\n,1\n"), &args, "no_unique_index");
        assert!(error["message"].as_str().unwrap().contains(words), "{error}");
        let told = error["hint"].as_str().unwrap();
        assert!(told.contains(hint) && told.contains("there are: (z)"), "{error}");
    }
    let error = fails(&app, CSV, "a,v\n1,1\n", &json!({"table": "keyed", "on_conflict": "update"}), "no_unique_index");
    assert!(
        error["message"].as_str().unwrap().contains("keyed_pkey on (a) belongs to a constraint that is"),
        "{error}"
    );
    let error = fails(&app, CSV, "a\n1\n", &json!({"table": "bare", "on_conflict": "skip"}), "no_unique_index");
    assert!(error["hint"].as_str().unwrap().contains("there is none"), "{error}");
    // A key over ranges that may not overlap.
    if app.target.session().server_version() >= 180_000 {
        run(&app, "CREATE TABLE period (a int4range, b int4range, PRIMARY KEY (a, b WITHOUT OVERLAPS))");
        let error = fails(&app, CSV, "a,b\n,\n", &json!({"table": "period", "on_conflict": "skip"}), "no_unique_index");
        assert!(error["message"].as_str().unwrap().contains("exclusion constraint"), "{error}");
    }
    run(&app, "CREATE UNIQUE INDEX on_both ON t (b, v)");
    let args = json!({"table": "t", "on_conflict": "update", "conflict_columns": ["v", "b"]});
    imports(&app, CSV, "b,v,e\nx,1,1\nx,1,2\n", &args, [2, 1, 0, 1, 0]);
}

#[test]
fn nulls_are_equal_where_the_index_says_so() {
    let app = app_with("CREATE TABLE public.t (a int, b text, v int, w int NOT NULL DEFAULT 9, UNIQUE (a, b))");
    let args = |mode: &str| json!({"table": "t", "on_conflict": mode, "conflict_columns": ["a", "b"]});
    run(&app, "INSERT INTO t VALUES (1, NULL, 1, 1)");
    imports(&app, CSV, "a,b,v\n1,,5\n", &args("skip"), [1, 1, 0, 0, 0]);
    if Session::connect(&app.target.dsn).unwrap().server_version() < 150_000 {
        return;
    }
    run(&app, "TRUNCATE t; ALTER TABLE t DROP CONSTRAINT t_a_b_key, ADD UNIQUE NULLS NOT DISTINCT (a, b)");
    run(&app, "INSERT INTO t VALUES (1, NULL, 1, 1), (NULL, NULL, 2, 2), (1, 'x', 3, 3)");
    imports(&app, CSV, "a,b,v\n1,,50\n,,60\n,y,70\n1,x,80\n,y,71\n", &args("update"), [5, 1, 3, 1, 0]);
    assert_eq!(rows(&app, "t"), "(,,60,2) (,y,71,9) (1,,50,1) (1,x,80,3)");
    imports(&app, CSV, "a,b,v\n1,,0\n,,0\n2,,4\n2,,5\n", &args("skip"), [4, 1, 0, 3, 0]);
    // All columns are in the file: it is one INSERT.
    imports(&app, CSV, "a,b,v,w\n1,,51,1\n2,,41,1\n3,,1,1\n", &args("update"), [3, 1, 2, 0, 0]);
    assert_eq!(rows(&app, "t"), "(,,60,2) (,y,71,9) (1,,51,1) (1,x,80,3) (2,,41,1) (3,,1,1)");
}

/// Equals are what the index holds for equal: a collation or a type of its own, in a schema that no search path leads
/// to.
#[test]
fn keys_are_compared_as_their_index_compares_them() {
    let app = app_with("CREATE TABLE public.t (k text, v int, w int NOT NULL)");
    app.target.run(
        "CREATE COLLATION public.nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
         CREATE UNIQUE INDEX ON public.t (k COLLATE public.nocase);
         CREATE SCHEMA elsewhere; CREATE EXTENSION citext SCHEMA elsewhere; GRANT USAGE ON SCHEMA elsewhere TO PUBLIC;
         CREATE TABLE public.c (k elsewhere.citext PRIMARY KEY, v int, w int NOT NULL); GRANT ALL ON public.c TO PUBLIC",
    );
    for table in ["t", "c"] {
        run(&app, &format!("INSERT INTO public.{table} VALUES ('Abc', 1, 1)"));
        let args = json!({"table": table, "on_conflict": "update", "conflict_columns": ["k"]});
        imports(&app, CSV, "k,v\naBC,2\nabc,3\n", &args, [2, 0, 1, 1, 0]);
        assert_eq!(rows(&app, table), "(Abc,3,1)");
    }
}

#[test]
fn some_columns_of_rows_that_are_there_are_updated_whatever_an_insert_would_need() {
    let app = app_with(
        "CREATE TABLE public.t (id int PRIMARY KEY, name text NOT NULL, v int, twice text NOT NULL
                                GENERATED ALWAYS AS (name || name) STORED, low int DEFAULT 100, CHECK (low < v + 1000));
         CREATE DOMAIN public.filled AS text NOT NULL;
         CREATE TABLE public.d (id int PRIMARY KEY, name public.filled, v int);
         CREATE TABLE public.f (id int PRIMARY KEY, up int NOT NULL REFERENCES public.t, v int);
         CREATE TABLE public.p (id int PRIMARY KEY, name text NOT NULL, v int) PARTITION BY RANGE (id);
         CREATE TABLE public.p_1 PARTITION OF public.p FOR VALUES FROM (0) TO (2);
         CREATE TABLE public.p_2 PARTITION OF public.p FOR VALUES FROM (2) TO (9);
         CREATE TABLE public.i (id int PRIMARY KEY, n int GENERATED ALWAYS AS IDENTITY, name text NOT NULL, v int);
         INSERT INTO public.t VALUES (1, 'a', 1), (2, 'b', 2); INSERT INTO public.d VALUES (1, 'a', 1), (2, 'b', 2);
         INSERT INTO public.f VALUES (1, 1, 1), (2, 2, 2); INSERT INTO public.p VALUES (1, 'a', 1), (2, 'b', 2);
         INSERT INTO public.i (id, name, v) VALUES (1, 'a', 1), (2, 'b', 2)",
    );
    let args =
        |table: &str, mode: &str, limit: u64| json!({"table": table, "on_conflict": mode, "reject_limit": limit});
    for (table, expected) in [
        ("t", "(1,a,10,aa,100) (2,b,20,bb,100)"),
        ("d", "(1,a,10) (2,b,20)"),
        ("f", "(1,1,10) (2,2,20)"),
        ("p", "(1,a,10) (2,b,20)"),
        ("i", "(1,1,a,10) (2,2,b,20)"),
    ] {
        imports(&app, CSV, "id,v\n1,10\n2,5\n2,20\n", &args(table, "update", 0), [3, 0, 2, 1, 0]);
        assert_eq!(rows(&app, table), expected);
        imports(&app, CSV, "id,v\n1,0\n2,0\n", &args(table, "skip", 0), [2, 0, 0, 2, 0]);
        // A row that isn't there is refused, with its line where others may be stored.
        let error = fails(&app, CSV, "id,v\n1,0\n3,30\n", &args(table, "update", 0), "sql_error");
        assert_eq!(error["sqlstate"], "23502", "{error}");
        assert_eq!(rows(&app, table), expected, "nothing of it is stored");
        let job = import(&app, CSV, "id,v\n3,30\n1,11\n4,40\n2,21\n", &args(table, "update", 5));
        assert_eq!((&job["output"]["updated"], &job["output"]["rejected"]), (&json!(2), &json!(2)), "{job}");
        let refused: Vec<(u64, String)> = rejects(&app, &job).into_iter().map(|row| (row.0, row.1)).collect();
        assert_eq!(refused, [(2, "23502".to_owned()), (4, "23502".to_owned())]);
    }
    let error = fails(&app, CSV, "id,v\n3,30\n", &args("t", "update", 0), "sql_error");
    assert_eq!(error["column"], "name", "{error}");
    assert!(error["hint"].as_str().unwrap().contains("can't be inserted without name"), "{error}");
}

#[test]
fn triggers_see_an_update_where_a_row_is_there_and_an_insert_where_it_is_new() {
    let app = app_with(
        "CREATE TABLE public.seen (what text);
         CREATE TABLE public.t (k text PRIMARY KEY, name text, v int);
         CREATE FUNCTION public.see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             INSERT INTO public.seen VALUES (TG_WHEN || ' ' || TG_OP || ' ' || NEW.k); NEW.k := lower(NEW.k); RETURN NEW; END $$;
         CREATE TRIGGER before BEFORE INSERT OR UPDATE ON public.t FOR EACH ROW EXECUTE FUNCTION public.see();
         CREATE TRIGGER after AFTER INSERT OR UPDATE ON public.t FOR EACH ROW EXECUTE FUNCTION public.see();
         INSERT INTO public.t VALUES ('a', 'kept', 1); TRUNCATE public.seen",
    );
    let args = json!({"table": "t", "on_conflict": "update"});
    imports(&app, CSV, "k,v\na,2\nb,3\n", &args, [2, 1, 1, 0, 0]);
    let expected = "(\"AFTER INSERT b\") (\"AFTER UPDATE a\") (\"BEFORE INSERT b\") (\"BEFORE UPDATE a\")";
    assert_eq!(rows(&app, "seen"), expected);
    // A key that a trigger makes another one is found by the index.
    imports(&app, CSV, "k,v\nA,5\n", &args, [1, 0, 1, 0, 0]);
    assert_eq!(rows(&app, "t"), "(a,kept,5) (b,,3)");
}

/// Another session deletes one of the rows and inserts another one while the import waits for it.
#[test]
fn what_another_session_does_meanwhile_is_neither_lost_nor_overwritten() {
    let app = app_with(
        "CREATE TABLE public.t (id int PRIMARY KEY, name text DEFAULT 'new', v int);
         INSERT INTO public.t VALUES (1, 'a', 1), (2, 'b', 2)",
    );
    for (content_type, body) in [
        (CSV, "id,v\n1,10\n2,20\n3,30\n"),
        (NDJSON, "{\"id\":1,\"v\":10}\n{\"id\":2,\"v\":20}\n{\"id\":3,\"v\":30}\n{\"id\":9,\"name\":\"x\"}\n"),
    ] {
        run(&app, "TRUNCATE t; INSERT INTO t VALUES (1, 'a', 1), (2, 'b', 2)");
        let mut other = Session::connect(&app.target.dsn).unwrap();
        other.execute_batch("BEGIN; DELETE FROM t WHERE id = 1; INSERT INTO t VALUES (3, 'other', 3)").unwrap();
        let id = submit(&app, content_type, body, &json!({"table": "t", "on_conflict": "update"}));
        let waits = "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
                      WHERE NOT l.granted AND a.datname = current_database() AND a.application_name LIKE 'slowlane:%'";
        eventually("it waits for the other session", || app.target.count(waits) > 0);
        other.execute_batch("COMMIT").unwrap();
        let job = app.ended(&id);
        assert_eq!(job["state"], "succeeded", "{job}");
        let ours = if content_type == CSV { "" } else { " (9,x,)" };
        assert_eq!(rows(&app, "t"), format!("(1,new,10) (2,b,20) (3,other,30){ours}"));
    }
}
