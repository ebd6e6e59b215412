//! HTTP and workers in processes of their own, any number of each on one database.

use std::collections::BTreeSet;

use diesel::prelude::*;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use slowlane::db::pool::Manager;
use slowlane::dsn::Dsn;
use slowlane::pq::Session;

use crate::support::child::{Server, program};
use crate::support::eventually;
use crate::support::history;
use crate::support::postgres::{Database, Postgres};

const SLEEPING: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()";

fn query(sql: &str) -> Value {
    json!({"kind": "query", "args": {"sql": sql}})
}

/// Jobs go in at one process, run in others, and their ends and results come out at any.
fn share_the_work(notify: &str) {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let apis = [Server::api(&queue, &["--notify", notify]), Server::api(&queue, &["--notify", notify])];
    // Nobody runs it yet.
    let mut ids = vec![apis[0].client.submit(&query("SELECT 'early'"))];
    let extra = ["--notify", notify, "--workers", "2"];
    let workers = [Server::worker(&queue, &target, &extra), Server::worker(&queue, &target, &extra)];
    assert_eq!(apis[1].client.ended(&ids[0])["state"], "succeeded");
    // One alone would need four seconds for them: the other looks for work at least every 1.2 s.
    ids.extend((0..16).map(|n| apis[n % 2].client.submit(&query("SELECT pg_sleep(0.5)"))));
    for (n, id) in ids.iter().enumerate() {
        let other = &apis[(n + 1) % 2].client;
        assert_eq!(other.ended(id)["state"], "succeeded");
        assert_eq!(other.get(&format!("/v1/jobs/{id}/result/data")).status, 200);
    }
    history::check(&queue, &ids);
    let ran_in = queue.text("SELECT count(DISTINCT worker_id) FROM all_attempts");
    assert_eq!(ran_in, "2", "one of the workers had nothing to do");
    // A cancel reaches the process that runs the job.
    let id = apis[0].client.submit(&query("SELECT pg_sleep(600)"));
    eventually("it sleeps", || target.count(SLEEPING) == 1);
    assert_eq!(apis[1].client.post(&format!("/v1/jobs/{id}/cancel"), &json!({})).status, 202);
    assert_eq!(apis[0].client.ended(&id)["state"], "cancelled");
    assert_eq!(target.count(SLEEPING), 0);
    drop(workers);
}

#[test]
fn processes_wake_each_other_by_notify() {
    share_the_work("true");
}

#[test]
fn processes_work_together_without_notify() {
    share_the_work("false");
}

#[test]
fn hints_arrive_long_before_the_poll() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let api = Server::api(&queue, &[]);
    let _worker = Server::worker(&queue, &target, &[]);
    let listening = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'slowlane listener' AND datname = current_database()";
    eventually("both listen", || queue.count(listening) == 2);
    // Each of these would wait for half a second on average, and now and then for more, if nobody were woken.
    let ids: Vec<String> = (0..20)
        .map(|_| {
            let id = api.client.submit(&query("SELECT 1"));
            assert_eq!(api.client.ended(&id)["state"], "succeeded");
            id
        })
        .collect();
    let waited =
        queue.count("SELECT count(*) FROM finished_jobs WHERE started_at - created_at > interval '400 milliseconds'");
    assert!(waited < 10, "{waited} of {} jobs waited for the poll", ids.len());
}

#[test]
fn a_worker_process_answers_probes_and_nothing_else() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let mut worker = Server::worker(&queue, &target, &[]);
    assert_eq!(worker.client.get("/healthz").status, 200);
    assert_eq!(worker.client.get("/readyz").json()["checks"]["workers"], "ok");
    let metrics = worker.client.get("/metrics");
    assert!(metrics.text().contains("slowlane_pool_size{pool=\"default libpq\"}"), "{}", metrics.text());
    for path in ["/v1/jobs", "/", "/v1/jobs/018f0000-0000-7000-8000-00000000abcd"] {
        assert_eq!(worker.client.get(path).problem().1, "not_found");
    }
    assert_eq!(worker.client.post("/v1/jobs", &query("SELECT 1")).problem().0, 404);
    assert_eq!(worker.client.get_with("/healthz", &[("host", "evil.example")]).problem().0, 421);
    worker.signal(Signal::SIGTERM);
    assert!(worker.wait().success(), "{}", worker.log());
}

#[test]
fn an_http_process_needs_no_way_to_the_target_and_stops_at_once() {
    let postgres = Postgres::shared();
    let queue = postgres.queue();
    let mut api = Server::api(&queue, &["--probe-listen", "127.0.0.1:0"]);
    let ready = api.client.get("/readyz").json();
    assert_eq!(ready["checks"]["workers"], "ok");
    assert_eq!(queue.count("SELECT count(*) FROM workers"), 0);
    assert_eq!(
        api.client
            .post("/v1/jobs", &json!({"kind": "query", "target": "other", "args": {"sql": "SELECT 1"}}))
            .problem()
            .1,
        "unknown_target"
    );
    let id = api.client.submit(&query("SELECT 1"));
    assert_eq!(api.client.post(&format!("/v1/jobs/{id}/cancel"), &json!({})).json()["state"], "cancelled");
    // Who waits is answered as things are, and holds nobody up.
    let id = api.client.submit(&query("SELECT 1"));
    let client = api.client.clone();
    let waits = std::thread::spawn(move || client.get_with(&format!("/v1/jobs/{id}"), &[("prefer", "wait=30")]));
    // Nobody else has waited in this queue, and nothing else looks like that.
    let looks =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'slowlane api' AND datname = current_database()
        AND query LIKE '%SELECT id, version, state FROM jobs WHERE id = ANY($1)%'";
    eventually("it waits", || queue.count(looks) > 0);
    assert!(!waits.is_finished());
    let since = std::time::Instant::now();
    api.signal(Signal::SIGTERM);
    let answer = waits.join().unwrap();
    assert_eq!((answer.status, &answer.json()["state"]), (200, &json!("queued")));
    assert!(api.wait().success(), "{}", api.log());
    assert!(since.elapsed() < std::time::Duration::from_secs(25), "the wait held the process up");
    assert!(api.log().contains("probes are answered on"));
}

#[test]
fn roles_that_leave_nothing_to_do_are_refused() {
    let run = |args: &[&str]| {
        let output = program()
            .args(["serve", "--listen", "127.0.0.1:0", "--target", "default=TARGET_URL"])
            .args(args)
            .env("SLOWLANE_DATABASE_URL", "postgres://nobody@127.0.0.1:1/none")
            .output()
            .unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    let (ok, error, _) = run(&["--no-http", "--no-workers"]);
    assert!(!ok && error.contains("nothing is left to do"), "{error}");
    // Workers need to know where the target is; HTTP alone doesn't.
    let (ok, error, _) = run(&["--no-http", "--print-config"]);
    assert!(!ok && error.contains("TARGET_URL"), "{error}");
    let (ok, error, config) = run(&["--no-workers", "--print-config"]);
    assert!(ok, "{error}");
    assert!(config.contains("no_workers = true") && config.contains("[targets.\"default\"]"), "{config}");
    // Beyond loopback only with a token, for probes too.
    let (ok, error, _) = run(&["--no-workers", "--probe-listen", "0.0.0.0:0"]);
    assert!(!ok && error.contains("SLOWLANE_API_TOKEN"), "{error}");
}

#[test]
fn ids_are_unique_across_processes() {
    let postgres = Postgres::shared();
    let queue = postgres.queue();
    let apis = [Server::api(&queue, &[]), Server::api(&queue, &[])];
    let ids: BTreeSet<String> = (0..50).map(|n| apis[n % 2].client.submit(&query("SELECT 1"))).collect();
    assert_eq!(ids.len(), 50);
    assert_eq!(queue.count("SELECT count(*) FROM jobs"), 50);
}

/// The system's name and niceness of each thread, the process's own first.
#[cfg(target_os = "linux")]
fn niceness(pid: i32) -> Vec<(String, i32)> {
    // A thread may end while it is looked at.
    let of = |folder: std::path::PathBuf| {
        let text = std::fs::read_to_string(folder.join("stat")).ok()?;
        let (name, rest) = text.split_once('(')?.1.rsplit_once(')')?;
        // Field 19 of proc_pid_stat(5), where the name is the second.
        Some((name.to_owned(), rest.split_whitespace().nth(16)?.parse().ok()?))
    };
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let tasks = tasks.filter_map(|task| of(task.ok()?.path()));
    std::iter::once(of(format!("/proc/{pid}").into()).unwrap()).chain(tasks).collect()
}

#[cfg(target_os = "linux")]
#[test]
fn threads_that_run_jobs_yield_to_all_others() {
    let (queue, target) = (Postgres::shared().queue(), Postgres::shared().work());
    let server = Server::serve(&queue, &target, &["--workers", "3"]);
    let is_work = |name: &str| name.starts_with("slowlane-work");
    let lowered = |threads: &[(String, i32)]| {
        let work = threads.iter().filter(|(name, nice)| is_work(name) && *nice == (threads[0].1 + 7).min(19));
        work.count()
    };
    eventually("its threads have begun", || lowered(&niceness(server.pid())) == 3);
    let threads = niceness(server.pid());
    assert!(threads.iter().all(|(name, nice)| is_work(name) || *nice == threads[0].1), "{threads:?}");
}

/// Runs `slowlane` with the queue's address: its status, and what it says.
fn told(arguments: &[&str], queue: &Dsn) -> (Option<i32>, String) {
    let output = program()
        .args(arguments)
        .env("SLOWLANE_DATABASE_URL", queue.to_url().expose())
        .env("T", queue.to_url().expose())
        .output()
        .unwrap();
    let told = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    (output.status.code(), told)
}

/// Roles of other names than the documentation's, an owner of the database who isn't the schema's among them.
#[test]
fn roles_of_other_names_work_and_are_told_what_they_lack() {
    let postgres = Postgres::shared();
    let database = postgres.empty("postgres");
    let name = database.name().to_owned();
    let password = database.dsn.get("password").unwrap().to_owned();
    let [owner, service, client, app] = ["owner of", "service", "client", "app"].map(|what| format!("{what} {name}"));
    for (role, more) in [(&owner, "LOGIN"), (&service, "LOGIN NOINHERIT"), (&client, "NOLOGIN"), (&app, "LOGIN")] {
        database.run(&format!("CREATE ROLE \"{role}\" {more} PASSWORD '{password}'"));
    }
    database.run(&format!("GRANT CONNECT ON DATABASE {name} TO PUBLIC; GRANT \"{client}\" TO \"{app}\""));
    let login = |role: &str| database.dsn.clone().with("user", role);

    // The database is another role's.
    let (status, log) = told(&["migrate", "up"], &login(&owner));
    assert_eq!(status, Some(1), "{log}");
    assert!(log.contains(&format!("GRANT CREATE ON DATABASE \"{name}\" TO \"{owner}\"")), "{log}");
    database.run(&format!("GRANT CREATE ON DATABASE {name} TO \"{owner}\""));
    let (status, log) = told(&["migrate", "up", "--service-role", "nobody of this name"], &login(&owner));
    assert!(status == Some(1) && log.contains("there is no role"), "{log}");
    assert_eq!(database.count("SELECT count(*) FROM pg_namespace WHERE nspname = 'slowlane'"), 0, "{log}");

    // The documentation's roles are there in a cluster of tests: rights of theirs are no rights of these.
    let (status, log) = told(&["migrate", "up"], &login(&owner));
    assert!(status == Some(0) && log.contains("granted slowlane_queue what the service may do"), "{log}");
    let serve = ["serve", "--listen", "127.0.0.1:0", "--target", "default=T"];
    let (status, log) = told(&serve, &login(&service));
    assert_eq!(status, Some(1), "{log}");
    assert!(log.contains(&format!("`slowlane migrate up --service-role '{service}'`")), "{log}");
    assert!(log.contains(&format!("its owner, {owner}")) && !log.contains("permission denied"), "{log}");
    let (_, log) = told(&["doctor", "--only", "queue", "--target", "default=T"], &login(&service));
    assert!(log.contains(&format!("slowlane migrate up --service-role '{service}'")), "{log}");
    // Who isn't the owner can't migrate.
    let (status, log) = told(&["migrate", "up"], &login(&service));
    assert!(status == Some(1) && log.contains(&format!("migrate with a login of {owner}")), "{log}");

    let (status, log) = told(&["migrate", "up", "--service-role", &service, "--client-role", &client], &login(&owner));
    assert!(status == Some(0) && log.contains(&format!("granted {service}")), "{log}");
    // It serves; without the owner's membership it says what will be missing.
    let target = postgres.work();
    let serving = || {
        let mut command = program();
        command.args(serve).env("SLOWLANE_DATABASE_URL", login(&service).to_url().expose());
        command.env("T", target.dsn.to_url().expose());
        Server::spawn(command)
    };
    let server = serving();
    assert!(server.log().contains(&format!("GRANT \"{owner}\" TO \"{service}\"")), "{}", server.log());
    drop(server);
    database.run(&format!("GRANT \"{owner}\" TO \"{service}\"; DROP TABLE slowlane.attempts_{}", day_ahead(&database)));
    let server = serving();
    assert!(!server.log().contains("further days"), "{}", server.log());
    // The day that is gone is made again, by the owner of this name.
    eventually("the day is there", || {
        database.count(&format!("SELECT count(*) FROM pg_class WHERE relname = 'attempts_{}'", day_ahead(&database)))
            == 1
    });
    assert_eq!(
        database.text(&format!(
            "SELECT pg_get_userbyid(relowner) FROM pg_class WHERE relname = 'attempts_{}'",
            day_ahead(&database)
        )),
        owner
    );
    let mut session = Session::connect(&login(&app)).unwrap();
    let id = session.query("SELECT slowlane.enqueue('query', '{\"sql\": \"SELECT 1\"}')", &[]).unwrap();
    assert_eq!(server.client.ended(id.get(0, 0).unwrap())["state"], "succeeded");
}

fn day_ahead(database: &Database) -> String {
    database.text("SELECT to_char((clock_timestamp() AT TIME ZONE 'UTC')::date + 3, 'YYYYMMDD')")
}

#[test]
fn sessions_are_ended_whatever_the_search_path_has() {
    use diesel::sql_types::{Array, BigInt, Bool, Integer, Text, Timestamptz};
    use slowlane::target::END_SESSIONS_SQL;
    #[derive(QueryableByName)]
    struct Ended {
        #[diesel(sql_type = Bool)]
        ended: bool,
    }
    let target = Postgres::shared().work();
    target.run(
        "CREATE SCHEMA shadows;
         CREATE FUNCTION shadows.unnest(int[]) RETURNS SETOF int LANGUAGE sql AS 'SELECT 0 WHERE false';
         CREATE FUNCTION shadows.unnest(timestamptz[]) RETURNS SETOF timestamptz LANGUAGE sql
             AS 'SELECT now() WHERE false';
         CREATE FUNCTION shadows.pg_terminate_backend(int, bigint) RETURNS bool LANGUAGE sql AS 'SELECT true';
         CREATE FUNCTION shadows.pg_backend_pid() RETURNS int LANGUAGE sql AS 'SELECT 0';
         CREATE FUNCTION shadows.starts_with(text, text) RETURNS bool LANGUAGE sql AS 'SELECT true';
         CREATE FUNCTION shadows.no(int, int) RETURNS bool LANGUAGE sql AS 'SELECT false';
         CREATE FUNCTION shadows.no(timestamptz, timestamptz) RETURNS bool LANGUAGE sql AS 'SELECT false';
         CREATE FUNCTION shadows.no(text, text) RETURNS bool LANGUAGE sql AS 'SELECT false';
         CREATE FUNCTION shadows.no(name, name) RETURNS bool LANGUAGE sql AS 'SELECT false';
         CREATE OPERATOR shadows.= (FUNCTION = shadows.no, LEFTARG = int, RIGHTARG = int);
         CREATE OPERATOR shadows.<> (FUNCTION = shadows.no, LEFTARG = int, RIGHTARG = int);
         CREATE OPERATOR shadows.= (FUNCTION = shadows.no, LEFTARG = timestamptz, RIGHTARG = timestamptz);
         CREATE OPERATOR shadows.= (FUNCTION = shadows.no, LEFTARG = text, RIGHTARG = text);
         CREATE OPERATOR shadows.= (FUNCTION = shadows.no, LEFTARG = name, RIGHTARG = name);
         CREATE VIEW shadows.pg_stat_activity AS SELECT * FROM pg_catalog.pg_stat_activity WHERE false;
         GRANT USAGE ON SCHEMA shadows TO PUBLIC; GRANT SELECT ON shadows.pg_stat_activity TO PUBLIC",
    );
    let mut by_name = Session::connect(&target.dsn.clone().with("application_name", "slowlane:one:1")).unwrap();
    let mut by_process = Session::connect(&target.dsn.clone().with("application_name", "disguised")).unwrap();
    let mut others = Session::connect(&target.dsn.clone().with("application_name", "slowlane:two:1")).unwrap();
    let began = format!("SELECT backend_start FROM pg_stat_activity WHERE pid = {}", by_process.backend_pid());
    let began: chrono::DateTime<chrono::Utc> = target
        .text(&format!("SELECT to_char(({began}) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"))
        .parse()
        .unwrap();
    let mut supervisor = Manager::work(&target.dsn, "SET search_path = shadows, pg_catalog").open().unwrap();
    let ended: Vec<Ended> = diesel::sql_query(END_SESSIONS_SQL)
        .bind::<Text, _>("slowlane:one:1")
        .bind::<BigInt, _>(5_000)
        .bind::<Array<Integer>, _>(vec![by_process.backend_pid()])
        .bind::<Array<Timestamptz>, _>(vec![began])
        .load(&mut supervisor)
        .unwrap();
    assert!(ended.len() == 2 && ended.iter().all(|row| row.ended));
    assert!(by_name.ping().is_err() && by_process.ping().is_err());
    others.ping().unwrap();
}
