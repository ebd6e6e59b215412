//! Roles that may too much or too little, and the SQL that makes them right.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use serde_json::json;
use slowlane::dsn::Dsn;

use super::{Said, command, healthy, of_queue, of_target};
use crate::support::app::TestApp;
use crate::support::child::program;
use crate::support::postgres::{Database, Postgres};

/// Runs the SQL of findings.
fn follow(database: &Database, said: &Said, code: &str) {
    let findings = said.report("queue")["findings"].as_array().unwrap();
    for sql in findings.iter().filter(|finding| finding["code"] == code).flat_map(|f| f["sql"].as_array().unwrap()) {
        database.run(sql.as_str().unwrap());
    }
}

#[test]
fn roles_that_may_too_much_or_too_little() {
    let postgres = Postgres::start();
    let (queue, target) = (postgres.queue(), postgres.work());
    let user = |dsn: &Dsn, name: &str| {
        let sql = format!("CREATE ROLE {name} LOGIN PASSWORD '{}'", dsn.get("password").unwrap());
        queue.run(&sql);
        dsn.clone().with("user", name)
    };
    let bare = user(&queue.dsn, "bare");
    queue.run(&format!("GRANT CONNECT ON DATABASE {} TO bare", queue.name()));
    of_queue(&bare, &[]).has(
        "queue",
        "role_too_weak",
        "error",
        "may not use the schema",
        "GRANT USAGE ON SCHEMA slowlane",
    );
    queue.run("GRANT USAGE ON SCHEMA slowlane TO bare");
    of_queue(&bare, &[]).has("queue", "role_too_weak", "error", "may not read the tables", "ON ALL TABLES IN SCHEMA");
    queue.run("GRANT SELECT ON ALL TABLES IN SCHEMA slowlane TO bare");
    let said = of_queue(&bare, &[]);
    said.has(
        "queue",
        "role_too_weak",
        "error",
        "lacks rights on tables of the queue: attempts, finished_jobs",
        "GRANT SELECT, INSERT",
    );
    assert!(said.all.to_string().contains("GRANT \\\"slowlane_owner\\\" TO \\\"bare\\\""), "{}", said.all);
    said.has(
        "queue",
        "role_too_weak",
        "error",
        "functions of the queue: enqueue, first_id_of",
        "EXECUTE ON ALL FUNCTIONS",
    );
    said.has("queue", "progress_limited", "info", "", "pg_read_all_stats");
    follow(&queue, &said, "role_too_weak");
    of_queue(&bare, &[]).has_not("queue", "role_too_weak");
    // What came by the owner's rights alone is there still when these are gone.
    let heir = user(&queue.dsn, "heir");
    queue.run(&format!("GRANT CONNECT ON DATABASE {} TO heir; GRANT slowlane_owner TO heir", queue.name()));
    let said = of_queue(&heir, &[]);
    // From 16 on the membership says it, before, the role.
    let inherits_not = if queue.version() >= 160_000 { "WITH INHERIT FALSE" } else { "NOINHERIT" };
    said.has("queue", "role_too_strong", "warning", "has the owner's rights without saying so", inherits_not);
    follow(&queue, &said, "role_too_strong");
    let said = of_queue(&heir, &[]);
    said.has_not("queue", "role_too_strong");
    said.has_not("queue", "role_too_weak");
    let said = of_queue(&queue.dsn.clone().with("user", "slowlane_owner"), &[]);
    said.has("queue", "role_too_strong", "warning", "owns the schema", "NOINHERIT");
    // A target's.
    let weak = user(&target.dsn, "weak");
    target.run("CREATE SCHEMA private; CREATE TABLE private.t (a int); CREATE TABLE public.u (a int); REVOKE TEMPORARY ON DATABASE current FROM PUBLIC".replace("current", target.name()).as_str());
    let said = of_target(&queue.dsn, &weak, &[]);
    said.has("target", "role_too_weak", "warning", "may read no table", "GRANT SELECT ON ALL TABLES");
    assert_eq!(said.report("target")["facts"]["kinds"]["query"], false);
    target.run("GRANT SELECT, INSERT ON public.u TO weak; CREATE MATERIALIZED VIEW public.v AS SELECT 1");
    let said = of_target(&queue.dsn, &weak, &[]);
    let texts = said.all.to_string();
    let maintain = match target.version() >= 170_000 {
        true => [
            "maintain: the work role may maintain no table",
            "may refresh no materialized view: it has MAINTAIN on none",
        ],
        false => ["maintain: the work role owns no table", "may refresh no materialized view: it owns none (public.v)"],
    };
    for words in ["import: the work role may make no temporary table", maintain[0], maintain[1]] {
        assert!(texts.contains(words), "{words}: {texts}");
    }
    assert_eq!(
        said.report("target")["facts"]["kinds"],
        json!({
            "query": true, "execute": true, "backfill": false, "import": true, "import_on_conflict": false, "maintain": false, "refresh": false,
        })
    );
    for (sql, word, mend) in [
        ("ALTER ROLE weak CREATEROLE", "may create roles", "ALTER ROLE \"weak\" NOCREATEROLE"),
        (
            "ALTER ROLE weak NOCREATEROLE; GRANT pg_read_server_files TO weak",
            "is a member of pg_read_server_files",
            "REVOKE \"pg_read_server_files\" FROM \"weak\"",
        ),
        (
            "REVOKE pg_read_server_files FROM weak; ALTER ROLE weak SUPERUSER",
            "is a superuser",
            "CREATE ROLE \"default_work\" LOGIN",
        ),
    ] {
        target.run(sql);
        of_target(&queue.dsn, &weak, &[]).has("target", "role_too_strong", "error", word, mend);
    }
}

/// What lets a role do what it couldn't is what the doctor says.
#[test]
fn the_sql_of_a_role_that_may_not_maintain_lets_it() {
    let postgres = healthy();
    let (queue, target) = (postgres.queue(), postgres.work());
    target.run(&format!(
        "CREATE ROLE weak LOGIN PASSWORD '{}'; CREATE ROLE app; CREATE ROLE chief SUPERUSER; GRANT USAGE, CREATE ON SCHEMA public TO PUBLIC;
         CREATE TABLE public.t (a int); ALTER TABLE public.t OWNER TO app; CREATE TABLE public.u (a int); ALTER TABLE public.u OWNER TO chief;
         CREATE MATERIALIZED VIEW public.v AS SELECT a FROM public.t; ALTER MATERIALIZED VIEW public.v OWNER TO app;
         CREATE MATERIALIZED VIEW public.w AS SELECT a FROM public.u; ALTER MATERIALIZED VIEW public.w OWNER TO chief;
         GRANT SELECT ON ALL TABLES IN SCHEMA public TO weak",
        target.dsn.get("password").unwrap()
    ));
    let weak = target.dsn.clone().with("user", "weak");
    let lacks = |said: &Said, kind: &str| {
        let findings = said.report("target")["findings"].as_array().unwrap().clone();
        findings
            .into_iter()
            .find(|finding| finding["code"] == "role_too_weak" && finding["detail"].as_str().unwrap().starts_with(kind))
    };
    let said = of_target(&queue.dsn, &weak, &[]);
    for kind in ["maintain", "refresh"] {
        let finding = lacks(&said, kind).unwrap_or_else(|| panic!("{}", said.all));
        for sql in finding["sql"].as_array().unwrap() {
            // The common owner of both is made once.
            target.run(sql.as_str().unwrap());
        }
    }
    let said = of_target(&queue.dsn, &weak, &[]);
    assert_eq!((lacks(&said, "maintain"), lacks(&said, "refresh")), (None, None), "{}", said.all);
    said.has_not("target", "role_too_strong");
    let app = TestApp::on(queue.clone(), Database { dsn: weak, ..target.clone() }, |_| {});
    for job in [
        json!({"kind": "refresh", "args": {"view": "v"}}),
        json!({"kind": "refresh", "args": {"view": "w"}}),
        json!({"kind": "maintain", "args": {"action": "vacuum", "table": "t"}}),
        json!({"kind": "maintain", "args": {"action": "reindex", "table": "u"}}),
    ] {
        let ended = app.ended(&app.submit(&job));
        assert_eq!(ended["state"], "succeeded", "{ended}");
    }
    // pg_maintain is for all that comes.
    if target.version() >= 170_000 {
        return;
    }
    target.run("CREATE MATERIALIZED VIEW public.x AS SELECT 1 AS a");
    let finding = lacks(&of_target(&queue.dsn, &app.target.dsn, &[]), "refresh").unwrap();
    assert!(finding["detail"].as_str().unwrap().ends_with("may not refresh 1 of 3: public.x"), "{finding}");
}

/// A role is as strong as the roles that it may become, and no stronger.
#[test]
fn memberships_count_for_what_they_let_a_role_do() {
    let postgres = Postgres::start();
    let (queue, target) = (postgres.queue(), postgres.work());
    target.run(&format!(
        "CREATE ROLE member LOGIN PASSWORD '{}'; CREATE ROLE chief SUPERUSER; CREATE ROLE maker CREATEROLE; CREATE ROLE team;
         CREATE SCHEMA slowlane; CREATE ROLE seer; GRANT USAGE ON SCHEMA slowlane TO seer; CREATE TABLE public.t (a int); GRANT SELECT ON public.t TO PUBLIC",
        target.dsn.get("password").unwrap()
    ));
    let member = target.dsn.clone().with("user", "member");
    let strong = |grant: &str, words: &str, sql: &str| {
        target.run(grant);
        of_target(&queue.dsn, &member, &[]).has("target", "role_too_strong", "error", words, sql);
    };
    let harmless = |grant: &str| {
        target.run(grant);
        of_target(&queue.dsn, &member, &[]).has_not("target", "role_too_strong");
    };
    harmless("GRANT team TO member");
    strong("GRANT chief TO team", "may become a superuser", "CREATE ROLE \"default_work\"");
    strong(
        "REVOKE chief FROM team; GRANT pg_read_server_files TO team",
        "pg_read_server_files",
        "REVOKE \"team\" FROM \"member\"",
    );
    strong(
        "REVOKE pg_read_server_files FROM team; GRANT maker TO member",
        "may become maker, which may create roles",
        "REVOKE \"maker\" FROM",
    );
    strong(
        "REVOKE maker FROM member; ALTER ROLE member NOINHERIT; GRANT seer TO team",
        "use the schema slowlane",
        "REVOKE \"team\" FROM",
    );
    harmless("REVOKE seer FROM team");
    if target.version() < 160_000 {
        return;
    }
    // A membership that gives nothing, and those that give something after all.
    harmless("GRANT chief, pg_read_server_files, maker, seer TO member WITH INHERIT FALSE, SET FALSE");
    strong("GRANT chief TO member WITH INHERIT FALSE, SET TRUE", "may become a superuser", "CREATE ROLE");
    strong("GRANT chief TO member WITH INHERIT TRUE, SET FALSE", "may become a superuser", "CREATE ROLE");
    harmless("GRANT chief TO member WITH INHERIT FALSE, SET FALSE");
    // Nobody but a superuser grants what is a superuser's; anything else it could grant to itself.
    harmless("GRANT chief TO member WITH ADMIN TRUE, INHERIT FALSE, SET FALSE");
    strong("GRANT maker TO member WITH ADMIN TRUE, INHERIT FALSE, SET FALSE", "may become maker", "REVOKE \"maker\"");
    strong(
        "REVOKE maker FROM member; GRANT pg_read_server_files TO member WITH ADMIN TRUE, INHERIT FALSE, SET FALSE",
        "pg_read_server_files",
        "REVOKE \"pg_read_server_files\"",
    );
    // The attribute CREATEROLE isn't inherited.
    harmless("REVOKE pg_read_server_files FROM member; GRANT maker TO member WITH INHERIT TRUE, SET FALSE");
}

/// Runs a script by psql as the superuser of a database, and returns what it warned of.
fn run_script(database: &Database, script: &str) -> String {
    let mut psql = database.program("psql", &database.superuser);
    psql.args(["-v", "ON_ERROR_STOP=1", "-q", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = psql.spawn().unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}\n{script}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn the_role_that_its_sql_makes_is_the_right_one() {
    let postgres = healthy();
    let (queue, target) = (postgres.queue(), postgres.work());
    target.run("CREATE TABLE public.t (a int); CREATE SCHEMA slowlane; CREATE SEQUENCE public.s");
    let worker = target.dsn.clone().with("user", "report worker");
    let role_sql = |more: &[&str]| {
        let output =
            command(Some(&queue.dsn), Some(&worker)).args(["--role-sql", "default"]).args(more).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let script = role_sql(&[]);
    assert!(!script.contains(worker.get("password").unwrap()), "{script}");
    // Until 14 everybody may make objects in public.
    let advice = "REVOKE CREATE ON SCHEMA public FROM PUBLIC";
    for _ in 0..2 {
        let warned = run_script(&target, &script);
        assert_eq!(warned.contains(advice), target.version() < 150_000, "{warned}");
    }
    target.run("GRANT CREATE ON SCHEMA public TO PUBLIC");
    let warned = run_script(&target, &script);
    assert!(warned.contains(advice), "{warned}");
    target.run(advice);
    let warned = run_script(&target, &script);
    assert!(!warned.contains(advice), "{warned}");
    target.run(&format!("ALTER ROLE \"report worker\" PASSWORD '{}'", worker.get("password").unwrap()));
    let said = of_target(&queue.dsn, &worker, &[]);
    for code in ["role_too_strong", "idle_timeout", "temp_file_limit"] {
        said.has_not("target", code);
    }
    assert_eq!(said.status, 0, "{}", said.all);
    let kinds = &said.report("target")["facts"]["kinds"];
    assert_eq!(
        (&kinds["query"], &kinds["execute"], &kinds["import_on_conflict"]),
        (&json!(true), &json!(true), &json!(true))
    );
    // slowlane takes it, and its jobs can do what they are for, tables that are made later included.
    target.run("CREATE TABLE public.later (a int); INSERT INTO public.later VALUES (1)");
    let app = TestApp::on(queue.clone(), Database { dsn: worker.clone(), ..target.clone() }, |_| {});
    let changed = app.submit(&json!({"kind": "execute", "args": {"statements": [{"sql": "DELETE FROM later"}, {"sql": "SELECT nextval('s')"}]}}));
    assert_eq!(app.ended(&changed)["state"], "succeeded", "{}", app.job(&changed));
    let outside = app.submit(&json!({"kind": "query", "args": {"sql": "SELECT * FROM pg_authid"}}));
    assert_eq!(app.ended(&outside)["error"]["code"], "permission_denied");
    // One that is somebody else's already is left as it is.
    for (user, sql) in [("chief", "CREATE ROLE chief LOGIN SUPERUSER"), ("slowlane_queue", "SELECT 1")] {
        target.run(sql);
        let theirs = target.dsn.clone().with("user", user).with("dbname", queue.name());
        let output = command(Some(&queue.dsn), Some(&theirs)).args(["--role-sql", "default"]).output().unwrap();
        let mut psql = queue.program("psql", &queue.superuser);
        psql.args([
            "-q",
            "-c",
            std::str::from_utf8(&output.stdout).unwrap().split("ON_ERROR_STOP on\n").last().unwrap(),
        ]);
        let refused = psql.output().unwrap();
        assert!(String::from_utf8(refused.stderr).unwrap().contains("name a role of its own"), "{user}");
    }
    assert_eq!(target.text("SELECT rolsuper FROM pg_roles WHERE rolname = 'chief'"), "t");
    // For a target that is declared read_only it grants reading alone.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("slowlane.toml");
    fs::write(&file, "[targets.reports]\ndsn_env = \"TARGET_URL\"\nread_only = true\n").unwrap();
    let mut reading = program();
    reading
        .args(["doctor", "--role-sql", "reports", "--config"])
        .arg(&file)
        .env("TARGET_URL", worker.to_url().expose());
    let script = String::from_utf8(reading.output().unwrap().stdout).unwrap();
    assert!(script.contains("GRANT SELECT ON ALL TABLES") && !script.contains("INSERT"), "{script}");
    let unknown = command(Some(&queue.dsn), Some(&worker)).args(["--role-sql", "nobodys"]).output().unwrap();
    assert_eq!(unknown.status.code(), Some(1));
    assert!(String::from_utf8(unknown.stderr).unwrap().contains("one of default"));
}
