//! `slowlane demo load`: all of the data or nothing, however often, and into nobody else's tables.

use std::process::Stdio;

use crate::support::child::program;
use crate::support::postgres::{Database, Postgres};

const EVERY_ROW: &str = "loaded 367687 rows\n";
const ROWS: &str = "SELECT (SELECT count(*) FROM public.flights) + (SELECT count(*) FROM public.weather)
    + (SELECT count(*) FROM public.planes) + (SELECT count(*) FROM public.airports) + (SELECT count(*) FROM public.airlines)";
const TABLES: &str = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";

fn load(database: &Database) -> std::process::Command {
    let mut command = program();
    command.args(["demo", "load"]).env("SLOWLANE_DEMO_URL", database.dsn.to_url().expose());
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
    let database = Postgres::shared().work();
    let started: Vec<_> =
        (0..2).map(|_| load(&database).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()).collect();
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
    let mut flag = program();
    let text = refusal(flag.args(["demo", "load", "--database-url", &url]));
    assert!(text.contains("SLOWLANE_DEMO_URL"), "{text}");
    let mut file = program();
    file.args(["demo", "load", "--database-url", &url.replace(":s3cret-of-the-tests@", "@")]);
    file.env("PGPASSWORD", "s3cret-of-the-tests");
    assert_eq!(String::from_utf8(file.output().unwrap().stdout).unwrap(), "already there\n");
}

#[test]
fn what_cannot_be_loaded_whole_leaves_nothing() {
    let database = Postgres::shared().work();
    // The last of the tables can't be made: its name is taken by a type.
    database.run("CREATE TYPE public.flights AS ENUM ('a')");
    assert!(refusal(&mut load(&database)).contains("flights"));
    assert_eq!(database.count(TABLES), 0);
    // A table of somebody else's is not taken for the demo's.
    database.run("DROP TYPE public.flights; CREATE TABLE public.weather (mine int)");
    let text = refusal(&mut load(&database));
    assert!(text.contains("(weather)") && text.contains("another database"), "{text}");
    assert_eq!(database.count(TABLES), 1);
}

#[test]
fn a_database_is_needed_that_can_be_reached() {
    let mut nowhere = program();
    let text = refusal(nowhere.args(["demo", "load"]).env("SLOWLANE_DEMO_URL", ""));
    assert!(text.contains("SLOWLANE_DEMO_URL"), "{text}");
    let mut wrong = program();
    let text = refusal(wrong.args(["demo", "load"]).env("SLOWLANE_DEMO_URL", "mysql://app:hunter2@localhost/app"));
    assert!(text.contains("SLOWLANE_DEMO_URL: unsupported_scheme"), "{text}");
    let mut closed = program();
    let text =
        refusal(closed.args(["demo", "load"]).env("SLOWLANE_DEMO_URL", "postgres://app:hunter2@127.0.0.1:1/app"));
    assert!(text.contains("refused"), "{text}");
}

#[test]
fn jobs_load_it_whole_or_leave_nothing() {
    let (queue, database) = (Postgres::shared().queue(), Postgres::shared().work());
    let load = || slowlane::cli::demo::load_by_jobs(&queue.dsn, &database.dsn);
    // The last of the tables can't be moved: its name is taken by a type.
    database.run("CREATE TYPE public.flights AS ENUM ('a')");
    assert!(load().unwrap_err().to_string().contains("flights"));
    let left = "SELECT (SELECT count(*) FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema'))
        + (SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'slowlane%')";
    assert_eq!(database.count(left), 0);
    // What a try left that was killed is in nobody's way.
    database.run("DROP TYPE public.flights; CREATE SCHEMA slowlane_demo_0 AUTHORIZATION slowlane_demo");
    assert_eq!(load().unwrap(), Some(367_687));
    assert_eq!(load().unwrap(), None);
    assert_eq!((database.count(ROWS), database.count(left)), (367_687, 5));
    let jobs =
        "SELECT string_agg(DISTINCT kind || ' ' || state || ' ' || (output->>'rejected'), ',') FROM finished_jobs";
    assert_eq!(queue.text(jobs), "import succeeded 0");
    assert_eq!(queue.count("SELECT count(*) FROM uploads"), 0);
    assert_eq!(queue.count("SELECT count(*) FROM workers"), 0);
}
