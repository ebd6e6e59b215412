//! `slowlane demo blocking`: what it says of threads and of lost work is so, it works beside a running `slowlane dev`,
//! and it leaves nothing running.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use slowlane::cli::demo::kill::kill;
use slowlane::cli::demo::measure::{Contestant, Environment};
use slowlane::cli::demo::statement::Statement;
use slowlane::cli::private::Databases;

use crate::support::child::{Running, Server, program};
use crate::support::eventually;
use crate::support::postgres::Postgres;

/// How long a demo may take that looks at three servers, idle and busy, and kills each.
const DEMO_PATIENCE: Duration = Duration::from_secs(300);

fn folder() -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("slowlane-blocking-").tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

fn demo(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = program();
    command.args(["demo", "blocking", "--data-dir"]).arg(folder.join("dev")).args(arguments);
    command
}

/// Children of a process, and theirs.
fn descendants(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let mut at = 0;
    while at < found.len() {
        for task in fs::read_dir(format!("/proc/{}/task", found[at])).into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().map(|pid| pid.parse::<u32>().unwrap()));
        }
        at += 1;
    }
    found.remove(0);
    found
}

fn command_line(pid: u32) -> String {
    String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()).replace('\0', " ")
}

/// What is in the files of the cluster's passwords.
fn passwords(folder: &Path) -> Vec<String> {
    let files = fs::read_dir(folder.join("dev")).unwrap().map(|entry| entry.unwrap().path());
    let passwords = files.filter(|path| path.extension().is_some_and(|extension| extension == "password"));
    passwords.map(|path| fs::read_to_string(path).unwrap().trim().to_owned()).collect()
}

fn runs(pid: u32) -> bool {
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !state.is_empty() && !state.contains(") Z ")
}

fn of<'v>(rows: &'v Value, server: &str) -> &'v Value {
    rows.as_array().unwrap().iter().find(|row| row["server"] == server).unwrap_or_else(|| panic!("no {server}: {rows}"))
}

/// The threads of the handlers and those of the work, for each piece of it.
fn threads(run: &Value) -> Vec<(i64, i64)> {
    let threads = run["threads"].as_array().unwrap();
    threads.iter().map(|pair| (pair["handler"].as_i64().unwrap(), pair["work"].as_i64().unwrap())).collect()
}

#[test]
fn it_tells_the_threads_and_what_a_kill_loses_beside_a_running_dev() {
    let folder = folder();
    let mut command = program();
    command.args(["dev", "--listen", "127.0.0.1:0", "--data-dir"]).arg(folder.path().join("dev"));
    let dev = Server::spawn(command);
    let arguments = ["--at-once", "3", "--work", "short-sleep", "--kill", "--json"];
    let mut demo = Running::start(&mut demo(folder.path(), &arguments));
    let (until, mut command_lines) = (Instant::now() + DEMO_PATIENCE, BTreeSet::new());
    while !demo.has_ended() {
        assert!(Instant::now() < until, "not in time: {}", demo.stderr());
        command_lines.extend(descendants(demo.pid()).into_iter().map(command_line));
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = demo.output();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    let printed = String::from_utf8(output.stdout).unwrap();
    let report: Value = serde_json::from_str(&printed).unwrap();

    let inline = threads(of(&report["runs"], "event loop"));
    assert!(inline.len() == 3 && inline.iter().all(|(handler, work)| handler == work), "{inline:?}");
    for server in ["thread pool", "slowlane"] {
        let run = of(&report["runs"], server);
        let pairs = threads(run);
        assert_eq!(pairs.len(), 3);
        assert!(pairs.iter().all(|(_, work)| pairs.iter().all(|(handler, _)| handler != work)), "{server}: {pairs:?}");
    }
    // As many requests for every server: ten seconds of them, 25 ms apart.
    for run in report["runs"].as_array().unwrap() {
        for measure in ["healthz_ms", "database_ms"] {
            let spread = &run[measure];
            assert!(spread["count"] == 400 && spread["failed"] == 0, "{run}");
            assert!(spread["p99"].as_f64() <= spread["max"].as_f64(), "{run}");
        }
    }

    let number = |server, what: &str| of(&report["kills"], server)[what].as_i64().unwrap();
    for server in ["event loop", "thread pool", "slowlane"] {
        let [accepted, before, after, lost] =
            ["accepted", "done_before", "done_after", "lost"].map(|what| number(server, what));
        assert!(accepted == before + after + lost && accepted <= number(server, "sent"), "{report}");
    }
    // An event loop answers when the work is done; a task of a thread pool is nowhere but in its process.
    assert_eq!((number("event loop", "lost"), number("event loop", "done_after")), (0, 0));
    assert!(number("thread pool", "accepted") == 3 && number("thread pool", "done_after") == 0, "{report}");
    assert_eq!((number("slowlane", "accepted"), number("slowlane", "lost")), (3, 0));

    // The jobs are records now, and none of them is left to do; the demo's queue isn't dev's own.
    let left = dev.client.get("/v1/jobs?label.demo=blocking&limit=500").json();
    let jobs = left["jobs"].as_array().unwrap();
    let submitted = 3 + 3 + 2;
    assert!(jobs.len() == submitted && jobs.iter().all(|job| job["state"] == "succeeded"), "{left}");
    assert!(jobs.iter().all(|job| job["queue"].as_str().unwrap().starts_with("demo_blocking_")), "{left}");
    assert!(said.contains("slowlane, SIGKILL after one second: 0 of 3"), "{said}");

    let (passwords, servers) =
        (passwords(folder.path()), command_lines.iter().filter(|line| line.contains("demo wrong")));
    assert!(passwords.len() >= 4 && servers.count() > 0, "{command_lines:?}");
    for password in passwords {
        assert!(password.len() > 10 && !said.contains(&password) && !printed.contains(&password));
        assert!(!command_lines.iter().any(|line| line.contains(&password)), "a password is in a process listing");
    }
}

#[test]
fn asked_to_stop_it_leaves_nothing_running() {
    let folder = folder();
    let mut demo = Running::start(&mut demo(folder.path(), &["--at-once", "60", "--work", "sleep"]));
    let mut family = Vec::new();
    eventually("a server of the demo runs", || {
        family = descendants(demo.pid());
        family.iter().any(|pid| command_line(*pid).ends_with("pg_sleep(2) "))
    });
    assert!(family.len() > 2, "Postgres is among them: {family:?}");
    demo.signal(Signal::SIGTERM);
    eventually("the demo ends", || demo.has_ended());
    let output = demo.output();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && said.contains("are withdrawn by the next run"), "{said}");
    eventually("nothing of it runs", || family.iter().all(|pid| !runs(*pid)));
}

#[test]
fn asked_to_stop_while_its_postgres_starts_it_leaves_nothing_running() {
    let folder = folder();
    let mut demo = Running::start(&mut demo(folder.path(), &["--quick"]));
    eventually("it begins", || demo.stderr().contains("starting the private Postgres"));
    demo.signal(Signal::SIGTERM);
    eventually("the demo ends", || demo.has_ended());
    let output = demo.output();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && said.contains("stopping as soon as"), "{said}");
    let path = folder.path().to_str().unwrap();
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let left: Vec<String> = pids.map(command_line).filter(|line| line.contains(path)).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_dev_that_is_still_starting_is_waited_for_by_people() {
    let folder = folder();
    fs::create_dir(folder.path().join("dev")).unwrap();
    let lock = fs::File::create(folder.path().join("dev/lock")).unwrap();
    lock.lock().unwrap();
    let output = Running::start(&mut demo(folder.path(), &["--quick"])).output();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && text.contains("slowlane dev is still starting"), "{text}");
}

#[test]
fn a_sigterm_loses_nothing_that_slowlane_accepted() {
    let (queue, target) = (Postgres::shared().queue(), Postgres::shared().work());
    let databases = Databases { queue: queue.dsn.clone(), demo: target.dsn.clone() };
    let environment = Environment::new(PathBuf::from(env!("CARGO_BIN_EXE_slowlane")), databases);
    // More than there are workers, so that some run and some wait when the signal comes.
    let told = kill(&environment, &Contestant::slowlane(), Statement::Sleep, 12, Signal::SIGTERM).unwrap();
    assert_eq!((told.accepted, told.lost, told.had_to_be_killed), (12, 0, false), "{told:?}");
    assert!(told.done_before + told.done_after == 12 && told.done_after > 0 && told.repeated == 0, "{told:?}");
    assert_eq!(told.sessions_left, 0, "{told:?}");
}

#[test]
fn jobs_that_run_or_wait_at_a_sigterm_succeed_after_a_new_start() {
    let (queue, target) = (Postgres::shared().queue(), Postgres::shared().work());
    target.run("CREATE TABLE public.held (n int); GRANT SELECT ON public.held TO PUBLIC");
    let mut holder = target.session();
    holder.execute_batch("BEGIN; LOCK TABLE public.held IN ACCESS EXCLUSIVE MODE").unwrap();
    let options = ["--workers", "1", "--shutdown-grace", "500ms"];
    let mut first = Server::serve(&queue, &target, &options);
    let job = json!({"kind": "query", "args": {"sql": "SELECT count(*) FROM public.held"}});
    let ids: Vec<String> = (0..3).map(|_| first.client.submit(&job)).collect();
    let held_up =
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
    eventually("one of them runs", || target.count(held_up) == 1);
    first.signal(Signal::SIGTERM);
    assert!(first.wait().success(), "{}", first.log());
    assert_eq!(target.count(held_up), 0, "its statement goes on");
    drop(holder);
    let next = Server::serve(&queue, &target, &options);
    for id in &ids {
        assert_eq!(next.client.ended(id)["state"], "succeeded");
    }
}

#[test]
fn what_cannot_be_asked_for_is_refused() {
    let folder = folder();
    for (arguments, expected) in [
        (["--at-once", "0"], "expected numbers from 1 to 200"),
        (["--at-once", "1,x"], "expected numbers from 1 to 200"),
        (["--work", "dance"], "short-sleep"),
    ] {
        let output = Running::start(&mut demo(folder.path(), &arguments)).output();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && text.contains(expected), "{text}");
    }
    assert!(!folder.path().join("dev").exists());
}
