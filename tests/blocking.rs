//! `slowlane demo blocking`: what it says of threads and of lost work is so, it works beside a running `slowlane dev`,
//! and it leaves nothing running.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::child::{Server, program};
use crate::support::eventually;

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
    let output =
        demo(folder.path(), &["--at-once", "3", "--work", "short-sleep", "--kill", "--json"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let story: Value = serde_json::from_slice(&output.stdout).unwrap();

    let inline = threads(of(&story["runs"], "event loop"));
    assert!(inline.len() == 3 && inline.iter().all(|(handler, work)| handler == work), "{inline:?}");
    for server in ["thread pool", "slowlane"] {
        let run = of(&story["runs"], server);
        let pairs = threads(run);
        assert_eq!(pairs.len(), 3);
        assert!(pairs.iter().all(|(_, work)| pairs.iter().all(|(handler, _)| handler != work)), "{server}: {pairs:?}");
        for measure in ["healthz_ms", "pooled_ms"] {
            assert!(run[measure]["count"].as_u64().unwrap() > 10 && run[measure]["failed"] == 0, "{run}");
        }
    }

    let lost = |server| of(&story["kills"], server)["lost"].as_i64().unwrap();
    let accepted = |server| of(&story["kills"], server)["accepted"].as_i64().unwrap();
    // The handler of the first had no answer to give yet; the second's had, and nobody knows of the work any more.
    assert_eq!((accepted("event loop"), lost("event loop")), (0, 0));
    assert_eq!((accepted("thread pool"), lost("thread pool")), (3, 3));
    assert_eq!((accepted("slowlane"), lost("slowlane")), (3, 0));
    assert_eq!(of(&story["kills"], "slowlane")["done_after"], 3);
    assert!(of(&story["kills"], "thread pool")["sessions_left"].as_i64().unwrap() > 0, "{story}");

    // The jobs are records now, and none of them is left to do; the demo isn't dev's own queue.
    let left = dev.client.get("/v1/jobs?label.demo=blocking&limit=500").json();
    let jobs = left["jobs"].as_array().unwrap();
    assert!(jobs.len() == 8 && jobs.iter().all(|job| job["state"] == "succeeded"), "{left}");
    assert!(!said.contains("password") && said.contains("slowlane, SIGKILL after one second: 0 of 3"), "{said}");
}

#[test]
fn asked_to_stop_it_leaves_nothing_running() {
    let folder = folder();
    let mut command = demo(folder.path(), &["--at-once", "60", "--work", "sleep"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let is_server = |pid: u32| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default().ends_with(b"pg_sleep(2)\0");
    let mut family = Vec::new();
    eventually("a server of the demo runs", || {
        family = descendants(child.id());
        family.iter().any(|pid| is_server(*pid))
    });
    assert!(family.len() > 2, "Postgres is among them: {family:?}");
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    let mut status = None;
    eventually("the demo ends", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.unwrap().code(), Some(1));
    eventually("nothing of it runs", || family.iter().all(|pid| !runs(*pid)));
}

#[test]
fn what_cannot_be_asked_for_is_refused() {
    let folder = folder();
    for (arguments, expected) in [
        (["--at-once", "0"], "expected numbers from 1 to 200"),
        (["--at-once", "1,x"], "expected numbers from 1 to 200"),
        (["--work", "dance"], "short-sleep"),
    ] {
        let output = demo(folder.path(), &arguments).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && text.contains(expected), "{text}");
    }
    assert!(!folder.path().join("dev").exists());
}
