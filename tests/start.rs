//! Databases that are away, or unfit, when a process starts.

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use slowlane::dsn::Dsn;

use crate::support::child::{Running, Server, serving};
use crate::support::eventually;
use crate::support::postgres::{Database, Postgres};
use crate::support::proxy::{Mode, Proxy};

const ANYWHERE: [&str; 2] = ["--listen", "127.0.0.1:0"];

/// A process with a target that can be reached, and a second one by `second`.
fn with_a_second_target(queue: &Database, target: &Database, second: &Dsn, extra: &[&str]) -> std::process::Command {
    let mut command = serving(queue, &ANYWHERE);
    command.env("TARGET_URL", target.dsn.to_url().expose()).args(extra);
    command.args(["--target", "second=SECOND_URL"]).env("SECOND_URL", second.to_url().expose());
    command
}

fn on(target: &str) -> Value {
    json!({"kind": "query", "target": target, "args": {"sql": "SELECT 1"}})
}

/// The job waits, and says why.
fn why_it_waits(server: &Server, id: &str) -> String {
    let mut why = String::new();
    eventually("the job says why it waits", || {
        let job = server.client.get(&format!("/v1/jobs/{id}")).json();
        assert_ne!(job["state"], "succeeded");
        let attempts = server.client.get(&format!("/v1/jobs/{id}/attempts")).text();
        why = format!("{job} {attempts}");
        why.contains("target_unavailable")
    });
    why
}

fn usable(server: &Server, target: &str) -> Value {
    server.client.get("/readyz").json()["checks"]["targets"][target].clone()
}

#[test]
fn a_target_that_is_away_holds_nothing_up_and_its_jobs_run_when_it_is_back() {
    let postgres = Postgres::shared();
    let (queue, target, other) = (postgres.queue(), postgres.work(), postgres.work());
    let proxy = Proxy::before(&other.dsn);
    proxy.set(Mode::Refuse);
    let server = Server::spawn(with_a_second_target(&queue, &target, &proxy.dsn(&other.dsn), &[]));
    assert_eq!(server.log().matches("its jobs wait until it can be used").count(), 1, "{}", server.log());
    let waiting = server.client.submit(&on("second"));
    assert_eq!(server.client.ended(&server.client.submit(&on("default")))["state"], "succeeded");
    why_it_waits(&server, &waiting);
    let ready = server.client.get("/readyz");
    assert_eq!(
        (ready.status, usable(&server, "default"), usable(&server, "second")),
        (200, "ok".into(), "unavailable".into())
    );
    eventually("the operators see it", || {
        let second = server.client.get("/v1/targets/second").json();
        second["troubles"].as_array().is_some_and(|troubles| troubles.len() == 1)
    });

    proxy.set(Mode::Pass);
    eventually("it is found again without a job", || usable(&server, "second") == "ok");
    // Its next try is up to a minute away.
    queue.run("UPDATE jobs SET run_at = now() WHERE state = 'scheduled'");
    assert_eq!(server.client.ended(&waiting)["state"], "succeeded");
}

#[test]
fn a_role_that_is_too_strong_ends_the_start_unless_it_is_told_to_go_on() {
    let postgres = Postgres::shared();
    let (queue, target, other) = (postgres.queue(), postgres.work(), postgres.work());
    let role = format!("strong_{}", other.name());
    other.run(&format!("CREATE ROLE {role} LOGIN CREATEROLE PASSWORD 'hunter2'"));
    let strong = other.dsn.clone().with("user", &role).with("password", "hunter2");
    let refused = Running::start(&mut with_a_second_target(&queue, &target, &strong, &[])).output();
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && text.contains("target_role_too_strong: target second"), "{text}");

    let server = Server::spawn(with_a_second_target(&queue, &target, &strong, &["--start-without-targets"]));
    let waiting = server.client.submit(&on("second"));
    assert_eq!(server.client.ended(&server.client.submit(&on("default")))["state"], "succeeded");
    assert!(why_it_waits(&server, &waiting).contains("target_role_too_strong"));
    other.run(&format!("ALTER ROLE {role} NOCREATEROLE"));
    eventually("it is looked at again", || usable(&server, "second") == "ok");
    queue.run("UPDATE jobs SET run_at = now() WHERE state = 'scheduled'");
    assert_eq!(server.client.ended(&waiting)["state"], "succeeded");
}

#[test]
fn a_target_whose_place_is_not_known_ends_the_start_unless_it_is_told_to_go_on() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let two_more = |extra: &[&str]| {
        let mut command = serving(&queue, &ANYWHERE);
        command.env("TARGET_URL", target.dsn.to_url().expose()).args(extra);
        command.args(["--target", "second=SECOND_URL", "--target", "third=NOT_SET_URL"]).env_remove("NOT_SET_URL");
        command.env("SECOND_URL", "mongodb://someone:hunter2@secret.example/app");
        command
    };
    let ended = Running::start(&mut two_more(&[])).output();
    let text = String::from_utf8(ended.stderr).unwrap();
    assert!(!ended.status.success() && text.contains("SECOND_URL"), "{text}");

    let server = Server::spawn(two_more(&["--start-without-targets"]));
    let waiting = ["second", "third"].map(|name| server.client.submit(&on(name)));
    assert_eq!(server.client.ended(&server.client.submit(&on("default")))["state"], "succeeded");
    assert_eq!(server.client.get("/readyz").status, 200);
    for (name, code) in [("second", "unsupported_scheme"), ("third", "dsn_missing")] {
        assert_eq!(usable(&server, name), format!("refused: {code}"));
        let mut shown = Value::Null;
        eventually("the operators see it", || {
            shown = server.client.get(&format!("/v1/targets/{name}")).json();
            shown["troubles"][0]["trouble"].as_str().is_some_and(|trouble| trouble.starts_with(code))
        });
        for secret in ["hunter2", "someone", "secret.example"] {
            assert!(!shown.to_string().contains(secret), "{shown}");
        }
    }
    assert!(!server.log().contains("hunter2"), "{}", server.log());
    for id in waiting {
        assert_eq!(server.client.job(&id)["state"], "queued");
        assert_eq!(server.client.job(&id)["attempt"], 0);
    }
}

#[test]
fn a_role_that_could_not_be_looked_at_at_the_start_is_looked_at_before_a_job_has_a_session() {
    let postgres = Postgres::shared();
    let (queue, target, other) = (postgres.queue(), postgres.work(), postgres.work());
    let proxy = Proxy::before(&other.superuser);
    proxy.set(Mode::Refuse);
    let strong = proxy.dsn(&postgres.superuser().with("dbname", other.name()));
    let server = Server::spawn(with_a_second_target(&queue, &target, &strong, &[]));
    let job = json!({"kind": "execute", "target": "second", "args": {"statements": [{"sql": "CREATE TABLE t ()"}]}});
    let waiting = server.client.submit(&job);
    why_it_waits(&server, &waiting);
    proxy.set(Mode::Pass);
    eventually("its role is looked at", || server.log().contains("no job of this target runs until that is mended"));
    queue.run("UPDATE jobs SET run_at = now() WHERE state = 'scheduled'");
    eventually("the job was refused for it", || why_it_waits(&server, &waiting).contains("target_role_too_strong"));
    assert_eq!(other.text("SELECT to_regclass('public.t')"), "");
    assert_eq!(usable(&server, "second"), "unavailable");
}

fn behind(proxy: &Proxy, queue: &Database) -> Database {
    Database { dsn: proxy.dsn(&queue.dsn), superuser: queue.superuser.clone() }
}

fn start(queue: &Database, target: &Database, extra: &[&str]) -> Running {
    Running::start(serving(queue, &ANYWHERE).args(extra).env("TARGET_URL", target.dsn.to_url().expose()))
}

#[test]
fn a_queue_that_is_away_at_the_start_is_waited_for() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let proxy = Proxy::before(&queue.dsn);
    proxy.set(Mode::Refuse);
    let mut waiting = start(&behind(&proxy, &queue), &target, &[]);
    eventually("it says that it waits", || waiting.stderr().contains("is waited for"));
    proxy.set(Mode::Pass);
    eventually("it serves", || waiting.stderr().contains("http://"));
    assert!(!waiting.has_ended());
    assert_eq!(waiting.stderr().matches("is waited for").count(), 1, "{}", waiting.stderr());
}

#[test]
fn a_wait_for_the_queue_ends_by_its_bound_and_by_a_signal_and_a_refusal_is_not_waited_out() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let proxy = Proxy::before(&queue.dsn);
    proxy.set(Mode::Refuse);
    let away = behind(&proxy, &queue);
    let ended = start(&away, &target, &["--wait-for-queue", "0s"]).output();
    let text = String::from_utf8(ended.stderr).unwrap();
    assert!(!ended.status.success() && !text.contains("is waited for"), "{text}");

    let waiting = start(&away, &target, &["--wait-for-queue", "1h"]);
    eventually("it says that it waits", || waiting.stderr().contains("is waited for"));
    waiting.signal(Signal::SIGTERM);
    let ended = waiting.output();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));

    let wrong = Database { dsn: queue.dsn.clone().with("password", "wrong"), superuser: queue.superuser.clone() };
    let ended = start(&wrong, &target, &["--wait-for-queue", "1h"]).output();
    let text = String::from_utf8(ended.stderr).unwrap();
    assert!(!ended.status.success() && text.contains("password_wrong"), "{text}");
}
