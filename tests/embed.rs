//! slowlane as a part of another program: builders, ways to run, and what they say when something is wrong.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;
use slowlane::db::roles;
use slowlane::{AppError, DatabaseUrl, Grants, Server, Target, Work, WorkContext, WorkError, Workers};

use crate::support::child::{Server as Child, without_settings};
use crate::support::client::Client;
use crate::support::kinds::{Gate, Gated, Step};
use crate::support::postgres::{Database, Postgres};
use crate::support::{PATIENCE, eventually};

/// The kind of a program that embeds slowlane.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Greet {
    name: String,
}

impl Work for Greet {
    const KIND: &'static str = "greet";
    const REPEATABLE: bool = true;
    type Output = String;
    fn run(&self, _ctx: &mut WorkContext<'_>) -> Result<String, WorkError> {
        Ok(format!("hello {}", self.name))
    }
}

fn anywhere() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn url(database: &Database) -> String {
    database.dsn.to_url().expose().to_owned()
}

#[test]
fn a_server_beside_the_program_runs_its_kinds_and_stops() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let server =
        Server::builder().queue(url(&queue)).target("default", url(&target)).kind::<Greet>().listen(anywhere());
    let running = server.build().unwrap().start().unwrap();
    let client = Client::new(running.address().unwrap());
    let id = client.submit(&json!({"kind": "greet", "args": {"name": "you"}}));
    assert_eq!(client.ended(&id)["output"], "hello you");
    assert_eq!(client.query("SELECT 1", &json!([]))["state"], "succeeded");
    assert_eq!(client.post("/v1/jobs", &json!({"kind": "greet", "args": {}})).problem().1, "invalid_args");
    running.stop().unwrap();
    assert!(client.try_send("GET", "/healthz", &[], b"").is_err());
    assert_eq!(queue.count("SELECT count(*) FROM workers"), 0);
}

#[test]
fn it_runs_on_the_calling_thread_until_a_future_is_done() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let server = Server::builder().queue(&queue.dsn).target("default", &target.dsn).listen(anywhere()).build().unwrap();
    let client = Client::new(server.address().unwrap());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let asks = std::thread::spawn(move || {
        eventually("it is ready", || client.get("/readyz").status == 200);
        stop.send(()).unwrap();
    });
    server
        .run_until(async {
            let _ = stopped.await;
        })
        .unwrap();
    asks.join().unwrap();
}

#[test]
fn workers_without_http_run_what_a_server_without_workers_accepts() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let server = Server::builder().queue(&queue.dsn).without_workers().target_name("default").kind::<Greet>();
    let server = server.queues(["default", "greetings"]).listen(anywhere()).build().unwrap().start().unwrap();
    let client = Client::new(server.address().unwrap());
    let id = client.submit(&json!({"kind": "greet", "args": {"name": "you"}, "queue": "greetings"}));
    let workers = Workers::builder().queue(&queue.dsn).target("default", &target.dsn).kind::<Greet>().workers(2);
    let workers = workers.queues(["greetings"]).probe_listen(anywhere()).build().unwrap();
    let probes = Client::new(workers.probe_address().unwrap());
    let workers = workers.start().unwrap();
    assert_eq!(client.ended(&id)["output"], "hello you");
    assert_eq!((probes.get("/readyz").status, probes.get("/v1/jobs").status, workers.address()), (200, 404, None));
    workers.stop().unwrap();
    server.stop().unwrap();
}

#[test]
fn dropping_it_hands_back_what_runs() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let server = Server::builder().queue(&queue.dsn).target("default", &target.dsn).kind::<Gated>().listen(anywhere());
    let running = server.build().unwrap().start().unwrap();
    let client = Client::new(running.address().unwrap());
    let gate = Gate::new("dropping");
    let id = client.submit(&json!({"kind": "gated", "args": {"gate": "dropping"}}));
    gate.arrived();
    drop(running);
    let job = queue.text(&format!("SELECT concat_ws(' ', state, attempt, interruptions) FROM jobs WHERE id = '{id}'"));
    assert_eq!(job, "queued 0 1");
    // Asked once it waits for what runs, as long as its grace is.
    let server = Server::builder().queue(&queue.dsn).target("default", &target.dsn).kind::<Gated>().listen(anywhere());
    let running = server.shutdown_grace(PATIENCE).build().unwrap().start().unwrap();
    gate.arrived();
    running.ask_to_stop();
    gate.go(Step::Succeed);
    running.wait().unwrap();
    assert_eq!(queue.text(&format!("SELECT state FROM finished_jobs WHERE id = '{id}'")), "succeeded");
}

#[test]
fn what_is_wrong_is_told_with_what_to_do_and_without_a_password() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let whole = || Server::builder().queue(url(&queue)).target("default", url(&target)).listen(anywhere());
    let bare = || Server::builder().queue(url(&queue)).listen(anywhere());
    let busy = std::net::TcpListener::bind(anywhere()).unwrap();
    let at_build = [
        (bare().build(), "call target(\"default\", …)"),
        (bare().target_name("default").build(), "call target(\"default\", …)"),
        (bare().target("no name", url(&target)).build(), "letters, digits"),
        (bare().target("default", DatabaseUrl::env("NOT_SET_ANYWHERE")).build(), "NOT_SET_ANYWHERE is not set"),
        (
            bare().target("default", DatabaseUrl::env("postgres://u:hunter2@h/d")).build(),
            "the name of an environment variable",
        ),
        (whole().queue("mysql://u:hunter2@h/d").build(), "the queue"),
        (whole().queue("postgresql+asyncpg://u:hunter2@h/d").dsn_strict(true).build(), "dsn_strict"),
        (whole().workers(0).build(), "workers: expected 1 to"),
        (whole().retention(Duration::ZERO).build(), "retention: expected more than 0"),
        (whole().queues([""; 0]).build(), "queues: expected"),
        (whole().api_token("two words").build(), "api_token: expected"),
        (whole().listen(([0, 0, 0, 0], 0)).build(), "token"),
        (whole().listen(busy.local_addr().unwrap()).build(), "in use"),
    ];
    for (built, words) in at_build {
        let error = built.err().unwrap_or_else(|| panic!("it was built, and should be told: {words}")).to_string();
        assert!(error.contains(words) && !error.contains("hunter2"), "{words}: {error}");
    }
    let empty = postgres.empty(roles::OWNER);
    let mut strong = Target::at(postgres.superuser());
    let refused = whole().target("default", strong.clone()).build().unwrap().start().err().unwrap();
    assert!(matches!(refused, AppError::Target(_)) && refused.to_string().contains("is a superuser"), "{refused}");
    strong.spec.allow_unsafe_role = true;
    whole().target("default", strong).build().unwrap().start().unwrap().stop().unwrap();
    let refused = whole().queue(&empty.dsn).build().unwrap().start().err().unwrap();
    assert!(
        matches!(refused, AppError::SchemaBehind(_)) && refused.to_string().contains("slowlane::migrate"),
        "{refused}"
    );
    let nowhere = "postgres://u:hunter2@127.0.0.1:1/d";
    let refused = whole().queue(nowhere).wait_for_queue(Duration::ZERO).build().unwrap().run().unwrap_err();
    assert!(matches!(refused, AppError::Queue(_)) && !refused.to_string().contains("hunter2"), "{refused}");
    let given = format!("{:?} {:?}", DatabaseUrl::from(nowhere), Target::at(nowhere));
    assert!(!given.contains("hunter2"), "{given}");
}

#[test]
fn an_async_thread_is_not_blocked_by_accident() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let server =
        || Server::builder().queue(&queue.dsn).target("default", &target.dsn).listen(anywhere()).build().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let refused = server().run().unwrap_err();
        assert!(matches!(refused, AppError::WithinRuntime), "{refused}");
        // As the error says.
        let running = tokio::task::spawn_blocking({
            let server = server();
            move || server.start().unwrap()
        });
        let running = running.await.unwrap();
        tokio::task::spawn_blocking(move || running.stop().unwrap()).await.unwrap();
    });
}

#[test]
fn migrating_from_rust_grants_the_roles_that_are_named() {
    let postgres = Postgres::shared();
    let empty = postgres.empty(roles::OWNER);
    let (service, client) = (format!("service_{}", empty.name()), format!("client_{}", empty.name()));
    empty.run(&format!("CREATE ROLE {service}; CREATE ROLE {client}"));
    let grants = Grants { service: service.clone(), client: client.clone() };
    assert_eq!(slowlane::app::migrate_with(url(&empty), &grants).unwrap().len(), 1);
    assert_eq!(slowlane::app::migrate_with(url(&empty), &grants).unwrap().len(), 0);
    let may = |role: &str| {
        empty.text(&format!(
            "SELECT concat_ws(' ', has_table_privilege('{role}', 'slowlane.jobs', 'INSERT'), (SELECT bool_or(has_function_privilege('{role}', oid, 'EXECUTE'))
               FROM pg_proc WHERE pronamespace = 'slowlane'::regnamespace AND proname = 'enqueue'))"
        ))
    };
    assert_eq!(
        [may(&service), may(&client), may("slowlane_queue"), may("slowlane_client")],
        ["t t", "f t", "f f", "f f"]
    );
    let error = slowlane::migrate("postgres://u:hunter2@127.0.0.1:1/d").unwrap_err().to_string();
    assert!(!error.contains("hunter2"), "{error}");
}

/// The example, built as whoever tries it builds it.
fn example() -> PathBuf {
    // Beside the tests' own: what they share is built once.
    let profile = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().to_owned();
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.args(["build", "--locked", "--example", "custom_kind", "--message-format", "json", "--target-dir"]);
    cargo.arg(profile.parent().unwrap());
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    let output =
        cargo.current_dir(std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let messages = String::from_utf8(output.stdout).unwrap();
    let built = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let built = built.filter(|message| message["target"]["name"] == "custom_kind");
    built.filter_map(|message| Some(PathBuf::from(message["executable"].as_str()?))).next_back().unwrap()
}

#[test]
fn the_example_goes_on_from_its_checkpoint_after_a_kill() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let program = example();
    let start = || {
        let mut command = without_settings(Command::new(&program));
        command.env("LISTEN", "127.0.0.1:0").env("SLOWLANE_DATABASE_URL", url(&queue));
        command.env("SLOWLANE_DEMO_URL", url(&target));
        Child::spawn(command)
    };
    // Three carriers that fly each day of a year; in July its rows can't be written before somebody lets go.
    target.run(
        "SET search_path = public; SET ROLE slowlane_demo;
         CREATE TABLE flights AS SELECT c.carrier, extract(month FROM day)::smallint AS month,
                CASE WHEN extract(day FROM day) <> 13 THEN (extract(day FROM day) * c.n - 20)::smallint END AS arr_delay
           FROM generate_series(date '2013-01-01', '2013-12-31', '1 day') AS day, (VALUES ('AA', 1), ('BB', 2), ('CC', 3)) AS c(carrier, n);
         CREATE TABLE delay_statistics (carrier text, month smallint, flights bigint NOT NULL,
             arrived bigint NOT NULL, late bigint NOT NULL, delay_minutes bigint, PRIMARY KEY (carrier, month));
         CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF NEW.month = 7 THEN PERFORM pg_advisory_xact_lock(7); END IF; RETURN NEW; END $$;
         CREATE TRIGGER hold BEFORE INSERT ON delay_statistics FOR EACH ROW EXECUTE FUNCTION hold()",
    );
    let mut holder = target.session();
    holder.execute_batch("SELECT pg_advisory_lock(7)").unwrap();
    let mut first = start();
    let id = first.client.submit(&json!({"kind": "delay_statistics", "args": {}}));
    let held = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory' AND application_name LIKE 'slowlane:%' AND datname = current_database()";
    eventually("it is in the middle", || target.count(held) == 1);
    first.signal(Signal::SIGKILL);
    first.wait();
    drop(holder);
    let written = "SELECT string_agg(concat_ws(' ', carrier, month, xmin), ',' ORDER BY month, carrier) FROM public.delay_statistics WHERE month < 7";
    let before = target.text(written);
    assert_eq!(before.split(',').count(), 18);
    let second = start();
    let job = second.client.ended(&id);
    assert_eq!(
        (&job["state"], &job["attempt"], &job["interruptions"]),
        (&json!("succeeded"), &json!(1), &json!(1)),
        "{job}"
    );
    assert_eq!(job["output"], json!({"rows": 36, "began_at": 7}));
    assert_eq!(target.text(written), before, "what was done is left alone");
    let log = second.client.get(&format!("/v1/jobs/{id}/log")).text();
    assert!(log.contains("going on with month 7"), "{log}");
    let wrong = "SELECT count(*) FROM public.delay_statistics FULL JOIN (
            SELECT carrier, month, count(*) AS flights, count(arr_delay) AS arrived, count(*) FILTER (WHERE arr_delay > 15) AS late, sum(arr_delay) AS delay_minutes
              FROM public.flights GROUP BY 1, 2) expected USING (carrier, month, flights, arrived, late, delay_minutes)";
    assert_eq!(target.count(wrong), 36);
    let refused =
        second.client.post("/v1/jobs", &json!({"kind": "delay_statistics", "args": {"from_month": 13}})).problem();
    assert_eq!(refused.2, ["/args/from_month", "/args/to_month"]);
}
