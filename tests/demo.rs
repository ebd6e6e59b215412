//! `slowlane demo load`: all of the data or nothing, however often, and into nobody else's tables.

use std::process::Stdio;

use crate::support::child::{Server, program};
use crate::support::postgres::{Database, Postgres};

const EVERY_ROW: &str = "loaded 367687 rows\n";
const ROWS: &str = "SELECT (SELECT count(*) FROM public.flights) + (SELECT count(*) FROM public.weather)
    + (SELECT count(*) FROM public.planes) + (SELECT count(*) FROM public.airports) + (SELECT count(*) FROM public.airlines)";

fn demo_load(queue: &Database) -> std::process::Command {
    let mut command = program();
    command.args(["demo", "load"]).env("SLOWLANE_DATABASE_URL", queue.dsn.to_url().expose());
    command
}

fn load(queue: &Database, database: &Database) -> std::process::Command {
    let mut command = demo_load(queue);
    command.env("SLOWLANE_DEMO_URL", database.dsn.to_url().expose());
    command
}

fn refusal(command: &mut std::process::Command) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && output.stdout.is_empty(), "{text}");
    assert!(!text.contains("s3cret-of-the-tests") && !text.contains("hunter2"), "{text}");
    text
}

#[test]
fn two_at_once_load_it_once() {
    let (queue, database) = (Postgres::shared().queue(), Postgres::shared().work());
    let started: Vec<_> = (0..2)
        .map(|_| load(&queue, &database).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
        .collect();
    let mut said: Vec<String> = started
        .into_iter()
        .map(|child| {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        })
        .collect();
    said.sort();
    assert_eq!(said, ["already there\n", EVERY_ROW]);
    assert_eq!(database.count(ROWS), 367_687);
    // A password in a flag would be in every process listing.
    let url = database.dsn.to_url().expose().to_owned();
    let text = refusal(demo_load(&queue).args(["--database-url", &url]));
    assert!(text.contains("SLOWLANE_DEMO_URL"), "{text}");
    let mut file = demo_load(&queue);
    file.args(["--database-url", &url.replace(":s3cret-of-the-tests@", "@")]);
    file.env("PGPASSWORD", "s3cret-of-the-tests");
    assert_eq!(String::from_utf8(file.output().unwrap().stdout).unwrap(), "already there\n");
}

#[test]
fn all_of_it_is_loaded_by_jobs_that_nobody_else_takes_or_nothing_is() {
    let (queue, database) = (Postgres::shared().queue(), Postgres::shared().work());
    // A worker of the same queue whose default target is another database.
    let elsewhere = Postgres::shared().work();
    let _others = Server::worker(&queue, &elsewhere, &[]);
    // The last of the tables can't be moved: its name is taken by a type.
    database.run("CREATE TYPE public.flights AS ENUM ('a')");
    assert!(refusal(&mut load(&queue, &database)).contains("flights"));
    let left = "SELECT (SELECT count(*) FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema'))
        + (SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'slowlane%')";
    assert_eq!(database.count(left), 0);
    // A table of somebody else's is not taken for the demo's.
    database.run("DROP TYPE public.flights; CREATE TABLE public.weather (mine int)");
    let text = refusal(&mut load(&queue, &database));
    assert!(text.contains("(weather)") && text.contains("another database"), "{text}");
    assert_eq!(database.count(left), 1);
    // What a try left that was killed is in nobody's way; what only looks like it is somebody's.
    let mark = "slowlane demo load fills tables here";
    let (ours, named_so) = (format!("slowlane_demo_{:032x}", 1), format!("slowlane_demo_{:032x}", 2));
    database.run(&format!(
        "DROP TABLE public.weather; CREATE SCHEMA {ours} AUTHORIZATION slowlane_demo; COMMENT ON SCHEMA {ours} IS '{mark}';
         CREATE SCHEMA {named_so} AUTHORIZATION slowlane_demo; COMMENT ON SCHEMA {named_so} IS 'mine';
         CREATE SCHEMA slowlane_demo_0 AUTHORIZATION slowlane_demo; COMMENT ON SCHEMA slowlane_demo_0 IS '{mark}'"
    ));
    for said in [EVERY_ROW, "already there\n"] {
        let output = load(&queue, &database).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), said, "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!((database.count(ROWS), database.count(left)), (367_687, 5 + 2));
    let jobs =
        "SELECT string_agg(DISTINCT kind || ' ' || state || ' ' || (output->>'rejected'), ',') FROM finished_jobs";
    assert_eq!(queue.text(jobs), "import succeeded 0");
    assert_eq!(queue.count("SELECT count(*) FROM jobs"), 0);
    assert_eq!(queue.count("SELECT count(*) FROM uploads"), 0);
    assert_eq!(queue.count("SELECT count(*) FROM workers"), 1, "that of the other one");
    assert_eq!(elsewhere.count(left), 0);
}

#[test]
fn a_database_is_needed_that_can_be_reached() {
    let queue = Postgres::shared().queue();
    let text = refusal(demo_load(&queue).env("SLOWLANE_DEMO_URL", ""));
    assert!(text.contains("SLOWLANE_DEMO_URL"), "{text}");
    let mut no_queue = program();
    let text = refusal(no_queue.args(["demo", "load"]).env("SLOWLANE_DEMO_URL", "postgres://app@127.0.0.1:1/app"));
    assert!(text.contains("SLOWLANE_DATABASE_URL"), "{text}");
    let text = refusal(demo_load(&queue).env("SLOWLANE_DEMO_URL", "mysql://app:hunter2@localhost/app"));
    assert!(text.contains("SLOWLANE_DEMO_URL: unsupported_scheme"), "{text}");
    let text = refusal(demo_load(&queue).env("SLOWLANE_DEMO_URL", "postgres://app:hunter2@127.0.0.1:1/app"));
    assert!(text.contains("refused"), "{text}");
}
