//! What a VACUUM, an ANALYZE or a REINDEX leaves out is named; when that is everything, the job has failed.
//!
//! Where the server knows German, it speaks German here: nothing may depend on its words.

use serde_json::{Value, json};

use slowlane::pq::Session;

use super::{as_role, code, hint, job, log, output, run, with_table};
use crate::support::app::TestApp;
use crate::support::postgres::{Database, Postgres};

/// A database whose server speaks another language, where it can.
fn with_another_language() -> TestApp {
    let app = TestApp::start();
    let speaks = app.target.session().execute_batch("SET lc_messages = 'de_DE.UTF-8'").is_ok();
    if speaks {
        app.target.run(&format!("ALTER DATABASE {} SET lc_messages = 'de_DE.UTF-8'", app.target.name()));
    }
    app
}

/// A partitioned table with 30 rows in three partitions, of the work role's own.
fn partitioned(target: &Database) {
    as_role(target)
        .execute_batch(
            "CREATE TABLE public.p (id int, name text) PARTITION BY RANGE (id);
             CREATE TABLE public.p1 PARTITION OF public.p FOR VALUES FROM (0) TO (10);
             CREATE TABLE public.p2 PARTITION OF public.p FOR VALUES FROM (10) TO (20);
             CREATE TABLE public.p3 PARTITION OF public.p FOR VALUES FROM (20) TO (30);
             INSERT INTO public.p SELECT g, 'n' || g FROM generate_series(0, 29) g",
        )
        .unwrap();
}

/// What was left out, each with its SQLSTATE.
fn skipped<'v>(output: &'v Value) -> Vec<(&'v str, &'v str)> {
    let list = output["skipped"].as_array().unwrap();
    assert_eq!(output["skipped_count"], list.len(), "{output}");
    let word = |skipped: &'v Value, name: &str| skipped[name].as_str().unwrap_or_default();
    list.iter().map(|skipped| (word(skipped, "what"), word(skipped, "sqlstate"))).collect()
}

fn once(args: &Value) -> Value {
    let mut job = job(args);
    job["max_attempts"] = json!(1);
    job
}

#[test]
fn a_reindex_names_the_indexes_that_it_left_out() {
    let app = with_another_language();
    as_role(&app.target)
        .execute_batch(
            "CREATE TABLE public.e (r int4range, n int, CONSTRAINT e_ex EXCLUDE USING gist (r WITH &&));
             CREATE TABLE public.b (r int4range, n int, name text, CONSTRAINT \"b Ex\" EXCLUDE USING gist (r WITH &&));
             CREATE INDEX b_n ON public.b (n); CREATE INDEX b_n_ccnew ON public.b (n);
             CREATE TABLE public.none (n int)",
        )
        .unwrap();
    app.target.run(
        "SET allow_system_table_mods = on; UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'public.b_n_ccnew'::regclass",
    );
    // All that the table has, but for its TOAST table.
    let failed = run(&app, &json!({"action": "reindex", "table": "e"}));
    assert_eq!(code(&failed), ("failed", "all_skipped"), "{failed}");
    assert_eq!((&failed["error"]["sqlstate"], &failed["error"]["retryable"]), (&json!("0A000"), &json!(false)));
    assert!(failed["error"]["message"].as_str().unwrap().contains("public.e_ex: "), "{failed}");
    assert!(hint(&failed).contains("\"concurrently\": false"), "{failed}");
    // Asked for by name.
    let failed = run(&app, &json!({"action": "reindex", "index": "e_ex"}));
    assert_eq!(code(&failed), ("failed", "not_supported"), "{failed}");
    assert!(hint(&failed).contains("\"concurrently\": false"), "{failed}");
    // Some of it.
    let id = app.submit(&job(&json!({"action": "reindex", "table": "b"})));
    let done = app.ended(&id)["output"].clone();
    assert_eq!(skipped(&done), [("public.\"b Ex\"", "0A000"), ("public.b_n_ccnew", "55000")], "{done}");
    assert_eq!(done["done"], 1, "{done}");
    assert!(log(&app, &id).contains("public.\"b Ex\" was left out: it belongs to an exclusion constraint"));
    // Not concurrently, all are rebuilt, and the invalid one by its name.
    let all = json!({"action": "reindex", "table": "b", "concurrently": false, "allow_exclusive_lock": true});
    let done = output(&app, &all);
    assert_eq!((skipped(&done), &done["done"]), (vec![], &json!(3)), "{done}");
    let one = json!({"action": "reindex", "index": "e_ex", "concurrently": false, "allow_exclusive_lock": true});
    assert_eq!(output(&app, &one)["done"], 1);
    assert_eq!(output(&app, &json!({"action": "reindex", "index": "b_n_ccnew"}))["done"], 1);
    // Where there is none, none was left out.
    assert_eq!(output(&app, &json!({"action": "reindex", "table": "none"}))["done"], 0);
}

#[test]
fn a_reindex_of_partitions_names_those_that_it_left_out() {
    let app = with_another_language();
    partitioned(&app.target);
    as_role(&app.target)
        .execute_batch(
            "CREATE INDEX p_id ON public.p (id);
             ALTER TABLE public.p2 ADD CONSTRAINT p2_ex EXCLUDE USING btree (id WITH =)",
        )
        .unwrap();
    let done = output(&app, &json!({"action": "reindex", "table": "p"}));
    assert_eq!(skipped(&done), [("public.p2_ex", "0A000")], "{done}");
    assert_eq!(done["done"], 3, "{done}");
    let done = output(&app, &json!({"action": "reindex", "index": "p_id"}));
    assert_eq!((skipped(&done), &done["done"]), (vec![], &json!(3)), "{done}");
}

#[test]
fn what_is_locked_is_left_out_and_named() {
    let app = with_another_language();
    partitioned(&app.target);
    as_role(&app.target).execute_batch("CREATE TABLE public.t (id int); INSERT INTO public.t VALUES (1)").unwrap();
    let mut holder = app.target.session();
    holder.execute_batch("BEGIN; LOCK TABLE public.t; LOCK TABLE public.p2").unwrap();
    for action in ["vacuum", "analyze"] {
        let id = app.submit(&once(&json!({"action": action, "table": "t", "skip_locked": true})));
        let failed = app.ended(&id);
        assert_eq!(code(&failed), ("failed", "all_skipped"), "{failed}");
        assert_eq!((&failed["error"]["sqlstate"], &failed["error"]["retryable"]), (&json!("55P03"), &json!(true)));
        assert!(hint(&failed).contains("without skip_locked"), "{failed}");
    }
    // Of a partition the server says nothing at all.
    let done = output(&app, &json!({"action": "vacuum", "table": "p", "skip_locked": true}));
    assert_eq!((skipped(&done), &done["done"]), (vec![("public.p2", "55P03")], &json!(2)), "{done}");
    let full =
        json!({"action": "vacuum", "table": "p", "skip_locked": true, "full": true, "allow_exclusive_lock": true});
    let done = output(&app, &full);
    assert_eq!((skipped(&done), &done["done"]), (vec![("public.p2", "55P03")], &json!(2)), "{done}");
    // The rows of each partition are looked at for the whole, and waited for: here with a lock that lets them be read.
    holder.execute_batch("COMMIT; BEGIN; LOCK TABLE public.p2 IN SHARE UPDATE EXCLUSIVE MODE").unwrap();
    let done = output(&app, &json!({"action": "analyze", "table": "p", "skip_locked": true}));
    assert_eq!((skipped(&done), &done["done"]), (vec![("public.p2", "55P03")], &json!(3)), "{done}");
    holder.execute_batch("COMMIT").unwrap();
    for args in [
        json!({"action": "vacuum", "table": "p", "skip_locked": true}),
        json!({"action": "vacuum", "table": "p", "skip_locked": true, "analyze": true}),
        json!({"action": "analyze", "table": "p", "skip_locked": true}),
        json!({"action": "vacuum", "table": "t", "skip_locked": true}),
    ] {
        let done = output(&app, &args);
        assert_eq!(skipped(&done), [], "{args}: {done}");
    }
}

#[test]
fn what_the_role_may_not_or_nobody_can_is_left_out_and_named() {
    let app = with_another_language();
    partitioned(&app.target);
    let name = app.target.name().to_owned();
    app.target.run(&format!(
        "ALTER DATABASE {name} OWNER TO CURRENT_USER; GRANT ALL ON SCHEMA public TO slowlane_demo;
         CREATE ROLE owner_of_{name}; ALTER TABLE public.p2 OWNER TO owner_of_{name};
         CREATE FOREIGN DATA WRAPPER elsewhere; CREATE SERVER elsewhere FOREIGN DATA WRAPPER elsewhere;
         CREATE FOREIGN TABLE public.p4 PARTITION OF public.p FOR VALUES FROM (30) TO (40) SERVER elsewhere;
         ALTER FOREIGN TABLE public.p4 OWNER TO slowlane_demo"
    ));
    let id = app.submit(&job(&json!({"action": "vacuum", "table": "p"})));
    let done = app.ended(&id)["output"].clone();
    assert_eq!(skipped(&done), [("public.p2", "42501"), ("public.p4", "42809")], "{done}");
    assert_eq!(done["done"], 2, "{done}");
    assert!(log(&app, &id).contains("public.p2 was left out: slowlane_demo may not vacuum it"));
    app.target.run("DROP FOREIGN TABLE public.p4");
    let done = output(&app, &json!({"action": "analyze", "table": "p"}));
    assert_eq!((skipped(&done), &done["done"]), (vec![("public.p2", "42501")], &json!(3)), "{done}");
    // Nothing of it.
    for table in ["p", "p1", "p3"] {
        app.target.run(&format!("ALTER TABLE public.{table} OWNER TO owner_of_{name}"));
    }
    let failed = run(&app, &json!({"action": "vacuum", "table": "p"}));
    assert_eq!(code(&failed), ("failed", "permission_denied"), "{failed}");
    // What its hint says is what lets it.
    let sql = hint(&failed).split_once("as a superuser: ").unwrap().1.to_owned();
    app.target.run(&sql);
    output(&app, &json!({"action": "vacuum", "table": "p"}));
    app.target.run(&format!(
        "REASSIGN OWNED BY owner_of_{name} TO CURRENT_USER; DROP OWNED BY owner_of_{name}; DROP ROLE owner_of_{name}"
    ));
}

#[test]
fn children_that_inherit_are_gone_through_where_the_server_does() {
    let app = with_another_language();
    as_role(&app.target)
        .execute_batch("CREATE TABLE public.parent (id int); CREATE TABLE public.child () INHERITS (public.parent)")
        .unwrap();
    app.target.run("CREATE TABLE public.theirs () INHERITS (public.parent)");
    let name = app.target.name().to_owned();
    app.target
        .run(&format!("ALTER DATABASE {name} OWNER TO CURRENT_USER; GRANT ALL ON SCHEMA public TO slowlane_demo"));
    let (left_out, done_of_18) = (vec![("public.theirs", "42501")], json!(2));
    for action in ["vacuum", "analyze"] {
        let done = output(&app, &json!({"action": action, "table": "parent"}));
        match app.target.version() >= 180_000 {
            true => assert_eq!((skipped(&done), &done["done"]), (left_out.clone(), &done_of_18), "{done}"),
            false => assert_eq!((skipped(&done), &done["done"]), (vec![], &json!(1)), "{done}"),
        }
    }
}

#[test]
fn without_statistics_what_was_done_is_not_doubted() {
    let app = with_table();
    let name = app.target.name().to_owned();
    app.target.run(&format!("ALTER DATABASE {name} SET track_counts = off"));
    partitioned(&app.target);
    for args in [
        json!({"action": "vacuum", "table": "t", "analyze": true}),
        json!({"action": "analyze", "table": "p"}),
        json!({"action": "vacuum", "table": "p", "full": true, "allow_exclusive_lock": true}),
    ] {
        assert_eq!(skipped(&output(&app, &args)), [], "{args}");
    }
    let mut holder = app.target.session();
    holder.execute_batch("BEGIN; LOCK TABLE public.t").unwrap();
    let id = app.submit(&once(&json!({"action": "vacuum", "table": "t", "skip_locked": true})));
    assert_eq!(code(&app.ended(&id)), ("failed", "all_skipped"));
    let id = app.submit(&job(&json!({"action": "vacuum", "table": "p", "skip_locked": true})));
    assert_eq!(app.ended(&id)["state"], "succeeded");
    assert!(log(&app, &id).contains("track_counts is off"));
}

#[test]
fn maintain_is_a_privilege_from_17_on() {
    let app = with_table();
    let (version, name) = (app.target.version(), app.target.name().to_owned());
    app.target.run(&format!(
        "ALTER DATABASE {name} OWNER TO CURRENT_USER; GRANT ALL ON SCHEMA public TO slowlane_demo;
         CREATE TABLE public.theirs (id int); CREATE INDEX theirs_id ON public.theirs (id);
         CREATE MATERIALIZED VIEW public.seen AS SELECT 1 AS id"
    ));
    let all = [
        json!({"action": "vacuum", "table": "theirs"}),
        json!({"action": "analyze", "table": "theirs"}),
        json!({"action": "reindex", "table": "theirs"}),
        json!({"action": "reindex", "index": "theirs_id"}),
    ];
    let refresh = || {
        let id = app.submit(&json!({"kind": "refresh", "args": {"view": "seen"}}));
        app.ended(&id)
    };
    let refused = || {
        for args in &all {
            let failed = run(&app, args);
            assert_eq!(code(&failed), ("failed", "permission_denied"), "{failed}");
            assert_eq!(hint(&failed).contains("GRANT MAINTAIN ON public.theirs"), version >= 170_000, "{failed}");
        }
        assert_eq!(code(&refresh()), ("failed", "permission_denied"));
    };
    refused();
    if version < 170_000 {
        return;
    }
    app.target.run("GRANT MAINTAIN ON public.theirs, public.seen TO slowlane_demo");
    for args in &all {
        assert_eq!(skipped(&output(&app, args)), [], "{args}");
    }
    assert_eq!(refresh()["state"], "succeeded");
    // It isn't enough for an index of one's own making.
    let create = json!({"action": "create_index", "table": "theirs", "name": "i", "columns": ["id"]});
    let failed = run(&app, &create);
    assert_eq!(code(&failed), ("failed", "permission_denied"), "{failed}");
    assert!(!hint(&failed).contains("MAINTAIN"), "{failed}");
    // Nor does an owner that gave it away have it.
    app.target.run("REVOKE MAINTAIN ON public.theirs, public.seen FROM slowlane_demo");
    refused();
    app.target.run("REVOKE MAINTAIN ON public.t FROM slowlane_demo");
    assert_eq!(code(&run(&app, &json!({"action": "vacuum", "table": "t"}))), ("failed", "permission_denied"));
    // A member of pg_maintain has it on everything. Roles are the cluster's: this one is the test's own.
    app.target.run(&format!(
        "CREATE ROLE maintainer_{name} LOGIN IN ROLE pg_maintain PASSWORD '{}'",
        app.target.dsn.get("password").unwrap()
    ));
    let maintainer =
        Database { dsn: app.target.dsn.clone().with("user", &format!("maintainer_{name}")), ..app.target.clone() };
    let its = TestApp::on(Postgres::shared().queue(), maintainer, |_| {});
    for args in &all {
        assert_eq!(skipped(&output(&its, args)), [], "{args}");
    }
    its.target.run(&format!("DROP ROLE maintainer_{name}"));
}

#[test]
fn what_the_server_warns_of_is_heard_whatever_the_login_wants_to_hear() {
    let app = with_table();
    app.target.run(&format!("ALTER DATABASE {} SET client_min_messages = 'error'", app.target.name()));
    as_role(&app.target)
        .execute_batch(
            "CREATE FUNCTION public.loud(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS
                 $$BEGIN RAISE WARNING 'loud'; RETURN $1; END$$;
             CREATE TABLE public.l AS SELECT 1 AS id; CREATE INDEX ON public.l (public.loud(id));
             CREATE MATERIALIZED VIEW public.v AS SELECT public.loud(id) FROM public.l",
        )
        .unwrap();
    let warned = output(&app, &json!({"action": "analyze", "table": "l"}));
    assert_eq!(warned["warnings"][0]["message"], "loud", "{warned}");
    let job = app.ended(&app.submit(&json!({"kind": "refresh", "args": {"view": "v"}})));
    assert_eq!(job["output"]["warnings"][0]["message"], "loud", "{job}");
}

/// What comes with a refusal is run as it is: the role then can, and whoever owned the table still can.
#[test]
fn the_sql_of_a_refusal_lets_the_role() {
    let postgres = Postgres::shared();
    let (target, password) = (postgres.work(), postgres.work().dsn.get("password").unwrap().to_owned());
    let name = target.name().to_owned();
    // Neither inherits by itself, as from 16 on each membership says; the one that owns may create roles.
    let (work, strong, plain) = (format!("work_{name}"), format!("strong_{name}"), format!("plain_{name}"));
    target.run(&format!(
        "CREATE ROLE {work} LOGIN NOINHERIT PASSWORD '{password}'; CREATE ROLE {strong} LOGIN NOINHERIT CREATEROLE PASSWORD '{password}';
         CREATE ROLE {plain}; GRANT ALL ON SCHEMA public TO {work}, {strong}, {plain};
         CREATE TABLE public.s (id int); ALTER TABLE public.s OWNER TO {strong};
         CREATE TABLE public.z (id int); CREATE TABLE public.o (id int); ALTER TABLE public.o OWNER TO {plain};
         CREATE MATERIALIZED VIEW public.sv AS SELECT id FROM public.s; ALTER MATERIALIZED VIEW public.sv OWNER TO {strong};
         CREATE MATERIALIZED VIEW public.ov AS SELECT id FROM public.o; ALTER MATERIALIZED VIEW public.ov OWNER TO {plain}",
    ));
    let login = |role: &str| target.dsn.clone().with("user", role);
    let app = TestApp::on(postgres.queue(), Database { dsn: login(&work), ..target.clone() }, |_| {});
    let maintain = |table: &str, action: &str| job(&json!({"action": action, "table": table}));
    let create = |table: &str| {
        job(&json!({"action": "create_index", "table": table, "name": format!("{table}_i"), "columns": ["id"]}))
    };
    let refresh = |view: &str| json!({"kind": "refresh", "args": {"view": view}});
    for wanted in [
        maintain("s", "vacuum"),
        maintain("z", "analyze"),
        maintain("o", "reindex"),
        refresh("sv"),
        refresh("ov"),
        create("s"),
        create("z"),
        create("o"),
    ] {
        let first = app.ended(&app.submit(&wanted));
        if first["state"] == "succeeded" {
            // What was printed for another one of the same owner's.
            continue;
        }
        assert_eq!(code(&first), ("failed", "permission_denied"), "{first}");
        let (_, sql) = hint(&first).split_once("as a superuser: ").unwrap_or_else(|| panic!("{first}"));
        for _ in 0..2 {
            target.run(sql);
        }
        let then = app.ended(&app.submit(&wanted));
        assert_eq!(then["state"], "succeeded", "{sql}: {then}");
    }
    // Its memberships let it change what it has owned, and a superuser needs none.
    let mut owner = Session::connect(&login(&strong)).unwrap();
    owner.execute_batch("INSERT INTO public.s VALUES (1); SELECT * FROM public.s").unwrap();
    let version = target.version();
    if version >= 160_000 {
        owner.execute_batch("ALTER TABLE public.s ADD COLUMN more int").unwrap();
    }
    // What is the server's own stays so.
    let failed = app.ended(&app.submit(&maintain("pg_catalog.pg_authid", "vacuum")));
    assert_eq!(code(&failed), ("failed", "permission_denied"), "{failed}");
    assert!(hint(&failed).contains("of the server's own") && !hint(&failed).contains("GRANT"), "{failed}");
    drop(owner);
    target.run(&format!(
        "REASSIGN OWNED BY {strong}, {plain}, {work}_owner TO CURRENT_USER; DROP OWNED BY {strong}, {plain}, {work}, {work}_owner;
         DROP ROLE {strong}, {plain}, {work}_owner"
    ));
}
