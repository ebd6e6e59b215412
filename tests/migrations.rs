//! Migrations go up, down and up to the same schema, leave others' alone, and are what `schema.rs` says.

use std::collections::BTreeMap;

use slowlane::db::{migrations, roles};
use slowlane::queue::model::SPEC;

use crate::support::child::program;
use crate::support::postgres::{Database, Postgres};

/// The schema as the catalog has it, a line for each thing in it. Not by `pg_dump`, which only knows servers up to its
/// own version.
fn dump(database: &Database) -> String {
    const MINE: &str = "'slowlane'::regnamespace";
    let queries = [
        format!("SELECT 'schema', nspname, nspacl, obj_description(oid) FROM pg_namespace WHERE oid = {MINE}"),
        format!(
            "SELECT 'relation', relname, relkind, relpersistence, reloptions, relacl, relreplident, relrowsecurity,
                    pg_get_partkeydef(oid), pg_get_expr(relpartbound, oid), obj_description(oid, 'pg_class')
               FROM pg_class WHERE relnamespace = {MINE}"
        ),
        format!(
            "SELECT 'inheritance', inhrelid::regclass, inhparent::regclass FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid
              WHERE c.relnamespace = {MINE}"
        ),
        format!(
            "SELECT 'column', attrelid::regclass, attname, attnum, format_type(atttypid, atttypmod), attnotnull, attidentity,
                    attgenerated, attstorage, attcompression, attoptions, attacl, attcollation::regcollation,
                    pg_get_expr(adbin, adrelid), col_description(attrelid, attnum)
               FROM pg_attribute JOIN pg_class c ON c.oid = attrelid LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
              WHERE c.relnamespace = {MINE} AND attnum > 0 AND NOT attisdropped"
        ),
        format!(
            "SELECT 'constraint', conrelid::regclass, conname, contype, convalidated, pg_get_constraintdef(oid)
               FROM pg_constraint WHERE connamespace = {MINE}"
        ),
        format!(
            "SELECT 'index', pg_get_indexdef(indexrelid), indisprimary, indisunique, indisvalid, indisclustered
               FROM pg_index JOIN pg_class c ON c.oid = indexrelid WHERE c.relnamespace = {MINE}"
        ),
        format!(
            "SELECT 'function', oid::regprocedure, CASE prokind WHEN 'a' THEN '' ELSE pg_get_functiondef(oid) END, proacl,
                    obj_description(oid, 'pg_proc') FROM pg_proc WHERE pronamespace = {MINE}"
        ),
        format!(
            "SELECT 'trigger', tgrelid::regclass, tgname, tgenabled, pg_get_triggerdef(t.oid)
               FROM pg_trigger t JOIN pg_class c ON c.oid = tgrelid WHERE c.relnamespace = {MINE} AND NOT tgisinternal"
        ),
        format!("SELECT 'view', oid::regclass, pg_get_viewdef(oid) FROM pg_class WHERE relnamespace = {MINE} AND relkind IN ('v', 'm')"),
        format!("SELECT 'rule', ev_class::regclass, pg_get_ruledef(r.oid) FROM pg_rewrite r JOIN pg_class c ON c.oid = ev_class WHERE c.relnamespace = {MINE}"),
        format!(
            "SELECT 'policy', polrelid::regclass, polname, polcmd, pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid)
               FROM pg_policy JOIN pg_class c ON c.oid = polrelid WHERE c.relnamespace = {MINE}"
        ),
        format!(
            "SELECT 'type', typname, typtype, typacl, format_type(typbasetype, typtypmod), typnotnull, typdefault,
                    (SELECT string_agg(enumlabel, ',' ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = t.oid)
               FROM pg_type t WHERE typnamespace = {MINE}"
        ),
        format!(
            "SELECT 'sequence', seqrelid::regclass, format_type(seqtypid, NULL), seqstart, seqincrement, seqmax, seqmin, seqcache, seqcycle
               FROM pg_sequence JOIN pg_class c ON c.oid = seqrelid WHERE c.relnamespace = {MINE}"
        ),
        format!(
            "SELECT 'statistics', stxname, pg_get_statisticsobjdef(oid) FROM pg_statistic_ext WHERE stxnamespace = {MINE}"
        ),
        format!("SELECT 'operator', oid::regoperator, oprcode::regproc FROM pg_operator WHERE oprnamespace = {MINE}"),
        format!("SELECT 'default', defaclrole::regrole, defaclobjtype, defaclacl FROM pg_default_acl WHERE defaclnamespace = {MINE}"),
    ];
    let lines = |query: &String| {
        database.text(&format!("SELECT string_agg(q::text, E'\\n' ORDER BY q::text) FROM ({query}) q"))
    };
    queries.iter().map(lines).collect::<Vec<_>>().join("\n")
}

#[test]
fn up_down_up_is_the_same_schema() {
    let database = Postgres::shared().empty(roles::OWNER);
    let dsn = database.dsn.clone();
    assert_eq!(slowlane::migrate(&dsn).unwrap().len(), 1);
    let first = dump(&database);
    // It has what it is to compare.
    for part in ["(relation,jobs,", "(column,jobs,id,", "(index,", "(function,", "(constraint,", "(type,", "(schema,"] {
        assert!(first.contains(part), "{part}: {first}");
    }
    let mut owner = database.owner();
    migrations::down(&mut owner).unwrap();
    assert_eq!(
        database
            .count("SELECT count(*) FROM pg_tables WHERE schemaname = 'slowlane' AND tablename NOT LIKE '%migrations'"),
        0
    );
    assert_eq!(database.count("SELECT count(*) FROM pg_proc WHERE pronamespace = 'slowlane'::regnamespace"), 0);
    assert_eq!(slowlane::migrate(&dsn).unwrap().len(), 1);
    assert_eq!(dump(&database), first);
    assert_eq!(slowlane::migrate(&dsn).unwrap().len(), 0);
}

#[test]
fn an_applications_own_migrations_stay_untouched() {
    let database = Postgres::shared().empty(roles::OWNER);
    database.run("CREATE TABLE public.__diesel_schema_migrations (version varchar(50) PRIMARY KEY, run_on timestamp NOT NULL DEFAULT '2001-01-01');
                  INSERT INTO public.__diesel_schema_migrations VALUES ('20010101000000'), ('20261124000001');
                  GRANT ALL ON public.__diesel_schema_migrations TO PUBLIC; CREATE TABLE public.jobs (mine int)");
    let before = database.text("SELECT string_agg(m::text, ' ' ORDER BY m) FROM public.__diesel_schema_migrations m");
    slowlane::migrate(&database.dsn).unwrap();
    migrations::down(&mut database.owner()).unwrap();
    slowlane::migrate(&database.dsn).unwrap();
    assert_eq!(
        database.text("SELECT string_agg(m::text, ' ' ORDER BY m) FROM public.__diesel_schema_migrations m"),
        before
    );
    assert_eq!(database.count("SELECT count(*) FROM slowlane.__diesel_schema_migrations"), 1);
    assert_eq!(database.text("SELECT to_regclass('public.jobs')::text"), "public.jobs");
}

#[test]
fn the_command_says_how_things_stand_and_refuses_a_newer_schema() {
    let database = Postgres::shared().empty(roles::OWNER);
    let run = |arguments: &[&str]| {
        let output =
            program().args(arguments).env("SLOWLANE_DATABASE_URL", database.dsn.to_url().expose()).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        (output.status.success(), text)
    };
    let (good, text) = run(&["migrate", "status"]);
    assert!(good && text.contains("pending") && text.contains("slowlane migrate up"), "{text}");
    let (good, text) = run(&["serve", "--target", "default=SLOWLANE_DATABASE_URL", "--listen", "127.0.0.1:0"]);
    assert!(!good && text.contains("slowlane migrate up"), "{text}");
    assert!(run(&["migrate", "up"]).1.contains("applied"));
    assert!(run(&["migrate", "up"]).1.contains("nothing to apply"));
    assert!(run(&["migrate", "status"]).1.contains("up to date"));
    database.run("INSERT INTO slowlane.__diesel_schema_migrations (version) VALUES ('29990101000000')");
    for arguments in [
        &["migrate", "up"][..],
        &["migrate", "status"],
        &["serve", "--target", "default=SLOWLANE_DATABASE_URL", "--listen", "127.0.0.1:0"],
    ] {
        let (good, text) = run(arguments);
        assert!(!good && text.contains("newer slowlane"), "{text}");
    }
}

/// `table -> column -> type` as `schema.rs` has it.
fn declared() -> BTreeMap<String, BTreeMap<String, String>> {
    let mut tables = BTreeMap::new();
    let mut current: Option<(String, BTreeMap<String, String>)> = None;
    for line in include_str!("../src/db/schema.rs").lines().map(str::trim) {
        if let Some((column, kind)) = line.trim_end_matches(',').split_once(" -> ") {
            current.as_mut().unwrap().1.insert(column.to_owned(), kind.replace("crate::db::schema::types::", ""));
        } else if let Some((name, _)) = line.split_once(" (").filter(|_| line.ends_with(") {")) {
            tables.extend(current.replace((name.to_owned(), BTreeMap::new())));
        }
    }
    tables.extend(current);
    tables
}

fn diesel_name(postgres: &str, nullable: bool) -> String {
    let plain = |name: &str| match name {
        "uuid" => "Uuid",
        "text" => "Text",
        "int2" => "SmallInt",
        "int4" => "Integer",
        "int8" => "BigInt",
        "bool" => "Bool",
        "json" => "Json",
        "jsonb" => "Jsonb",
        "bytea" => "Bytea",
        "timestamptz" => "Timestamptz",
        "xid8" => "Xid8",
        other => panic!("no name for {other}"),
    };
    let name = match postgres.strip_prefix('_') {
        Some(element) => format!("Array<{}>", plain(element)),
        None => plain(postgres).to_owned(),
    };
    if nullable { format!("Nullable<{name}>") } else { name }
}

#[test]
fn the_schema_in_the_code_is_the_catalogs() {
    let queue = Postgres::shared().queue();
    let rows = queue.session().query(
        "SELECT c.relname, a.attname, t.typname, NOT a.attnotnull
           FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped JOIN pg_type t ON t.oid = a.atttypid
          WHERE c.relnamespace = 'slowlane'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relname NOT LIKE '\\_\\_diesel%' AND c.relname <> 'finished_jobs'",
        &[],
    ).unwrap();
    let mut catalog: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for n in 0..rows.len() {
        let text = |column| rows.get(n, column).unwrap().to_owned();
        catalog.entry(text(0)).or_default().insert(text(1), diesel_name(&text(2), text(3) == "t"));
    }
    let declared = declared();
    assert_eq!(declared.keys().collect::<Vec<_>>(), catalog.keys().collect::<Vec<_>>());
    for (table, columns) in &catalog {
        let mut expected = columns.clone();
        if table == "jobs" {
            // What a caller may set is listed elsewhere; Diesel is told what its own queries name.
            expected.retain(|name, _| declared[table].contains_key(name) || !SPEC.contains(&name.as_str()));
        }
        assert_eq!(declared[table], expected, "{table}");
    }
}
