//! docs/from-fastapi.md does what it says: its Python files are run against a real server, and what it shows is what is
//! printed. `SLOWLANE_WRITE_DOCS=1 cargo test from_fastapi` writes that anew.
//!
//! They run with Debian's packages, or with those of the Python that SLOWLANE_TEST_PYTHON names.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use slowlane::pq::Session;
use tempfile::TempDir;

use crate::support::child::{Running, Server, program};
use crate::support::eventually;
use crate::support::postgres::{Database, Postgres};
use crate::support::proxy::{Mode, Proxy};

const TOKEN: &str = "t0ken-of-the-page";
/// Every Python file of the page. The first is only compiled: it shows what not to do, and needs SQLAlchemy.
const FILES: [&str; 10] = [
    "before.py",
    "app.py",
    "reports.py",
    "main.py",
    "client.py",
    "poll.py",
    "wait.py",
    "cancel.py",
    "fetch.py",
    "errors.py",
];
/// What the pages say of app.py, without its empty lines.
const LINES_OF_CODE: usize = 20;

fn path() -> PathBuf {
    // That of this run: what was compiled may be shared with another clone.
    Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("docs/from-fastapi.md")
}

/// The text of each fenced block of a language.
fn blocks(page: &str, language: &str) -> Vec<String> {
    let fence = format!("\n```{language}\n");
    page.split(&fence).skip(1).map(|rest| rest.split_once("\n```\n").unwrap().0.to_owned() + "\n").collect()
}

/// The Python files of the page, in a folder.
fn files() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut names = Vec::new();
    for block in blocks(&fs::read_to_string(path()).unwrap(), "python") {
        let name = block.lines().next().unwrap().strip_prefix("# ").expect("a file begins with its name").to_owned();
        fs::write(folder.path().join(&name), block).unwrap();
        names.push(name);
    }
    assert_eq!(names, FILES);
    folder
}

fn python(folder: &TempDir, slowlane: SocketAddr) -> Command {
    let python = std::env::var_os("SLOWLANE_TEST_PYTHON").unwrap_or_else(|| "/usr/bin/python3".into());
    let mut command = Command::new(python);
    for name in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        command.env_remove(name);
    }
    command.current_dir(folder.path()).stdin(Stdio::null()).env("PYTHONDONTWRITEBYTECODE", "1");
    command.env("SLOWLANE_URL", format!("http://{slowlane}")).env("SLOWLANE_API_TOKEN", TOKEN);
    command
}

/// The app of the page, as the page says that it is started.
fn serve(folder: &TempDir, app: &str, slowlane: SocketAddr) -> Server {
    let mut command = python(folder, slowlane);
    command.args(["-m", "uvicorn", app, "--port", "0"]);
    Server::listening(command)
}

/// What a script of the page prints.
#[track_caller]
fn run(folder: &TempDir, slowlane: SocketAddr, script: &str, arguments: &[&str]) -> String {
    let output = Running::start(python(folder, slowlane).arg(script).args(arguments)).output();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// As [`run`], for a script that ends with an error: what it says of it.
fn run_to_an_error(folder: &TempDir, slowlane: SocketAddr, script: &str, arguments: &[&str]) -> String {
    let output = Running::start(python(folder, slowlane).arg(script).args(arguments)).output();
    assert!(!output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).unwrap()
}

/// slowlane with the target that an app has: written for asyncpg.
fn slowlane(queue: &str, target: &Database) -> Server {
    let mut command = program();
    command.args(["serve", "--listen", "127.0.0.1:0", "--target", "default=REPORTS_URL"]);
    let url = target.dsn.to_url().expose().replacen("postgresql://", "postgresql+asyncpg://", 1);
    command.env("SLOWLANE_DATABASE_URL", queue).env("REPORTS_URL", url).env("SLOWLANE_API_TOKEN", TOKEN);
    Server::spawn(command)
}

/// Flights of two months. The name of one carrier holds a mark that is the end of a line to some.
fn flights() -> Database {
    let target = Postgres::shared().work();
    target.run(
        "CREATE TABLE public.flights (month smallint, carrier text, origin text, arr_delay integer);
         INSERT INTO public.flights VALUES (7, 'AA', 'JFK', 10), (7, 'AA', 'JFK', 15), (7, E'U\\u2028S', 'LGA', -4),
                                           (8, 'UA', 'JFK', 1);
         GRANT SELECT ON public.flights TO PUBLIC",
    );
    target
}

/// Holds up everybody who reads flights, until it is dropped.
fn hold(target: &Database) -> Session {
    let mut session = target.session();
    session.execute_batch("BEGIN; LOCK TABLE public.flights IN ACCESS EXCLUSIVE MODE").unwrap();
    session
}

fn held_up(target: &Database) -> i64 {
    target
        .count("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()")
}

#[track_caller]
fn start_report(app: &Server, month: u32) -> String {
    let answer = app.client.post(&format!("/reports?month={month}"), &Value::Null);
    assert_eq!(answer.status, 202, "{}", answer.text());
    let id = answer.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(answer.header("location"), Some(format!("/reports/{id}").as_str()));
    id
}

fn accepted(queue: &Database) -> i64 {
    queue.count("SELECT (SELECT count(*) FROM jobs) + (SELECT count(*) FROM finished_jobs)")
}

const REPORT: &str = "carrier,minutes\nAA,12.5\nU\u{2028}S,-4.0\n";

#[test]
fn every_python_file_compiles() {
    let folder = files();
    for file in FILES {
        let check = "import sys; compile(open(sys.argv[1], encoding='utf-8').read(), sys.argv[1], 'exec')";
        let mut command = python(&folder, SocketAddr::from(([127, 0, 0, 1], 9)));
        let output = Running::start(command.args(["-c", check, file])).output();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn the_work_is_handed_over_in_as_many_lines_as_the_page_says() {
    let page = fs::read_to_string(path()).unwrap();
    let app = blocks(&page, "python").into_iter().find(|block| block.starts_with("# app.py\n")).unwrap();
    let lines = app.lines().filter(|line| !line.trim().is_empty()).count();
    assert!(lines == LINES_OF_CODE && page.contains("in 20 lines of code"), "{lines} lines:\n{app}");
    for page in ["README.md", "docs/blocking.md"] {
        let text = fs::read_to_string(path().parent().unwrap().parent().unwrap().join(page)).unwrap();
        assert!(text.contains("20 lines of Python"), "{page}");
    }
}

/// What a caller of the page's app is told when slowlane refuses the app.
#[test]
fn what_is_wrong_between_the_app_and_slowlane_is_no_callers_business() {
    let (folder, queue, target) = (files(), Postgres::shared().queue(), flights());
    let server = slowlane(queue.dsn.to_url().expose(), &target);
    for (app, status) in [("app:app", 503), ("main:app", 502)] {
        let mut command = python(&folder, server.client.address);
        command.args(["-m", "uvicorn", app, "--port", "0"]).env("SLOWLANE_API_TOKEN", "not-the-token");
        let app = Server::listening(command);
        let answer = app.client.post("/reports?month=7", &Value::Null);
        assert!(answer.status == status && !answer.text().contains("token"), "{}", answer.text());
        if status == 502 {
            let nobodys = uuid::Uuid::nil();
            assert_eq!(app.client.get(&format!("/reports/{nobodys}")).status, 502);
            assert_eq!(app.client.get(&format!("/reports/{nobodys}/csv")).status, 502);
        }
    }
    assert_eq!(accepted(&queue), 0);
}

#[test]
fn the_app_hands_its_work_over_and_scripts_follow_it() {
    let (folder, queue, target) = (files(), Postgres::shared().queue(), flights());
    let server = slowlane(queue.dsn.to_url().expose(), &target);
    assert!(server.log().contains("was written for SQLAlchemy with asyncpg"), "{}", server.log());
    let at = server.client.address;
    let app = serve(&folder, "main:app", at);
    let holder = hold(&target);
    // Both are answered while neither can be done.
    let (wanted, unwanted) = (start_report(&app, 7), start_report(&app, 8));
    eventually("both are held up", || held_up(&target) == 2);
    let state = app.client.get(&format!("/reports/{wanted}"));
    assert_eq!((state.status, state.json()), (200, json!({"id": wanted, "state": "running", "rows": null})));
    assert!(state.header("retry-after").unwrap().parse::<u32>().is_ok());
    let early = app.client.get(&format!("/reports/{wanted}/csv"));
    assert_eq!((early.status, &early.json()["detail"]["code"]), (409, &json!("result_not_ready")));
    assert!(early.header("retry-after").unwrap().parse::<u32>().is_ok());
    let told = run_to_an_error(&folder, at, "fetch.py", &[&wanted]);
    assert!(told.contains("result_not_ready: ") && !folder.path().join("report.csv").exists(), "{told}");
    assert_eq!(run(&folder, at, "cancel.py", &[&unwanted]), "cancelled\n");
    assert_eq!(held_up(&target), 1, "the state came before the end of the statement");
    let poll = Running::start(python(&folder, at).args(["poll.py", &wanted]));
    // Again with each look at what it waits for.
    eventually("the first state is printed", || poll.stdout().starts_with("running\n"));
    drop(holder);
    let polled = poll.output();
    assert!(polled.status.success() && polled.stdout.ends_with(b"\nsucceeded\n"), "{polled:?}");

    assert_eq!(run(&folder, at, "fetch.py", &[&wanted]), "AA 12.5\nU\u{2028}S -4.0\n");
    assert_eq!(fs::read_to_string(folder.path().join("report.csv")).unwrap(), REPORT);
    let csv = app.client.get(&format!("/reports/{wanted}/csv"));
    assert_eq!((csv.status, csv.text().as_str()), (200, REPORT));
    assert_eq!(csv.header("content-length"), Some(REPORT.len().to_string().as_str()));
    assert!(csv.header("content-type").unwrap().starts_with("text/csv"));
    assert_eq!(app.client.get(&format!("/reports/{wanted}")).json()["rows"], 2);
    assert_eq!(run(&folder, at, "wait.py", &["JFK"]), "succeeded count\n3\n\n");

    // What is wrong is passed on: rows that nobody can have, an id of nobody's, a key for another month.
    let cancelled = app.client.get(&format!("/reports/{unwanted}/csv"));
    assert_eq!((cancelled.status, &cancelled.json()["detail"]["code"]), (409, &json!("job_cancelled")));
    assert_eq!(app.client.get(&format!("/reports/{}", uuid::Uuid::nil())).status, 404);
    let with_key =
        |month| app.client.post_with(&format!("/reports?month={month}"), &[("idempotency-key", "k")], &json!({}));
    assert_eq!(with_key(7).json()["id"], with_key(7).json()["id"]);
    let refused = with_key(8);
    assert_eq!((refused.status, &refused.json()["detail"]["code"]), (422, &json!("idempotency_key_reused")));
    assert_eq!(accepted(&queue), 4);
}

#[test]
fn an_app_that_is_killed_loses_nothing() {
    let (folder, queue, target) = (files(), Postgres::shared().queue(), flights());
    let server = slowlane(queue.dsn.to_url().expose(), &target);
    let mut app = serve(&folder, "app:app", server.client.address);
    let holder = hold(&target);
    let ids: Vec<String> = (0..5).map(|_| start_report(&app, 7)).collect();
    app.signal(Signal::SIGKILL);
    app.wait();
    drop(holder);
    for id in ids {
        let polled = run(&folder, server.client.address, "poll.py", &[&id]);
        assert_eq!(polled.lines().last(), Some("succeeded"));
        run(&folder, server.client.address, "fetch.py", &[&id]);
        assert_eq!(fs::read_to_string(folder.path().join("report.csv")).unwrap(), REPORT);
    }
}

#[test]
fn an_answer_that_is_lost_is_asked_for_again_by_its_key() {
    let (folder, queue, target) = (files(), Postgres::shared().queue(), flights());
    let server = slowlane(queue.dsn.to_url().expose(), &target);
    let proxy = Proxy::to(server.client.address.to_string());
    let app = serve(&folder, "reports:app", proxy.address);
    proxy.set(Mode::Mute);
    std::thread::scope(|scope| {
        let started = scope.spawn(|| start_report(&app, 7));
        eventually("the answer is lost", || proxy.swallowed() > 0);
        assert_eq!(accepted(&queue), 1);
        proxy.set(Mode::Pass);
        proxy.cut();
        let id = started.join().unwrap();
        assert_eq!(queue.text("SELECT id FROM jobs UNION ALL SELECT id FROM finished_jobs"), id);
        assert_eq!(accepted(&queue), 1);
    });
}

#[test]
fn a_503_is_repeated_and_then_passed_on() {
    let (folder, queue, target) = (files(), Postgres::shared().queue(), flights());
    let proxy = Proxy::before(&queue.dsn);
    let server = slowlane(proxy.dsn(&queue.dsn).to_url().expose(), &target);
    let app = serve(&folder, "reports:app", server.client.address);
    proxy.set(Mode::Refuse);
    proxy.cut();
    let answer = app.client.post("/reports?month=7", &Value::Null);
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{}", answer.text());
    let bearer = format!("Bearer {TOKEN}");
    let metrics = server.client.get_with("/metrics", &[("authorization", &bearer)]).text();
    assert!(metrics.contains("http_requests_total{method=\"POST\",status=\"503\"} 3\n"), "{metrics}");
    assert_eq!(accepted(&queue), 0);
}

/// What the command of a `$ ` line prints: `slowlane dsn` with one variable.
fn printed_by(line: &str) -> String {
    let command = line.strip_prefix("DATABASE_URL='").unwrap();
    let (url, command) = command.split_once("' ").unwrap();
    let arguments = command.strip_prefix("slowlane ").unwrap().split(' ');
    let output = Running::start(program().args(arguments).env("DATABASE_URL", url)).output();
    assert!(output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn what_the_page_shows_is_what_is_printed() {
    let server = slowlane(Postgres::shared().queue().dsn.to_url().expose(), &flights());
    let page = fs::read_to_string(path()).unwrap();
    let mut written = page.clone();
    let shown = blocks(&page, "console");
    assert_eq!(shown.len(), 3);
    for block in shown {
        let line = block.lines().next().unwrap();
        let now = format!("{line}\n{}", printed_by(line.strip_prefix("$ ").unwrap()));
        written = written.replace(&format!("```console\n{block}```"), &format!("```console\n{now}```"));
    }
    let mark = "<!-- output of errors.py -->\n```text\n";
    let (before, rest) = written.split_once(mark).unwrap();
    let (_, after) = rest.split_once("```").unwrap();
    let now = run(&files(), server.client.address, "errors.py", &[]);
    written = format!("{before}{mark}{now}```{after}");
    if std::env::var_os("SLOWLANE_WRITE_DOCS").is_some() {
        fs::write(path(), &written).unwrap();
        return;
    }
    assert!(page == written, "docs/from-fastapi.md is out of date: SLOWLANE_WRITE_DOCS=1 cargo test from_fastapi");
}
