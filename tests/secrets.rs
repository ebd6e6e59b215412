//! P8: no password, token or key in any log line, error, response, metric, process listing or printed setting.

use std::fs;
use std::process::Command;

use serde_json::json;

use crate::support::child::{Server, program};
use crate::support::client::Client;
use crate::support::postgres::{Database, Postgres};

const TOKEN: &str = "t0ken-that-nobody-may-see";
const PASSWORD: &str = "s3cret-of-the-tests";

fn command(queue: &Database, target: &Database) -> Command {
    let mut command = program();
    command.args(["serve", "--listen", "127.0.0.1:0", "--target", "default=TARGET_URL"]);
    command.env("SLOWLANE_DATABASE_URL", queue.dsn.to_url().expose());
    command.env("TARGET_URL", target.dsn.to_url().expose());
    command.env("SLOWLANE_API_TOKEN", TOKEN).env("SLOWLANE_LOG", "trace").env("SLOWLANE_LOG_FORMAT", "json");
    command
}

#[track_caller]
fn clean(what: &str, text: &str) {
    for secret in [TOKEN, PASSWORD, "hunter2"] {
        assert!(!text.contains(secret), "{what} holds {secret}: {text}");
    }
}

#[test]
fn a_server_at_work_shows_no_secret() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let mut unprobed = command(&queue, &target);
    unprobed.args(["--workers", "2"]);
    let server = Server::spawn(unprobed);
    let auth = format!("Bearer {TOKEN}");
    let headers = [("content-type", "application/json"), ("authorization", auth.as_str())];
    let send = |client: &Client, method: &str, path: &str, body: &str| {
        let answer = client.send(method, path, &headers, body.as_bytes());
        clean(path, &format!("{:?} {}", answer.headers, answer.text()));
        answer.status
    };
    let post = |sql: &str| json!({"kind": "query", "args": {"sql": sql}}).to_string();
    assert_eq!(send(&server.client, "POST", "/v1/jobs", &post("SELECT 1")), 202);
    assert_eq!(send(&server.client, "POST", "/v1/jobs", &post("SELECT nope")), 202);
    assert_eq!(send(&server.client, "POST", "/v1/jobs", "{"), 400);
    assert_eq!(send(&server.client, "GET", "/metrics", ""), 200);
    assert_eq!(send(&server.client, "GET", "/readyz", ""), 200);
    let wrong = server.client.get_with("/v1/jobs", &[("authorization", "Bearer hunter2")]);
    assert_eq!(wrong.status, 401);
    clean("401", &wrong.text());
    // Its database refuses it from now on, and it says so.
    let outside = postgres.work();
    outside.run(&format!("ALTER DATABASE {} WITH ALLOW_CONNECTIONS false", queue.name()));
    outside.run(&format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}'", queue.name()));
    crate::support::eventually("it says so", || server.log().contains("can't be reached"));
    assert_eq!(send(&server.client, "GET", "/v1/jobs", ""), 503);
    let log = server.log();
    assert!(log.lines().filter(|line| line.starts_with('{')).count() > 10, "{log}");
    for line in log.lines().filter(|line| line.starts_with('{')) {
        serde_json::from_str::<serde_json::Value>(line).unwrap();
    }
    clean("the log", &log);
    let listing = fs::read(format!("/proc/{}/cmdline", server.pid())).unwrap();
    clean("the process listing", &String::from_utf8_lossy(&listing));
}

#[test]
fn settings_are_printed_without_secrets() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let output = command(&queue, &target).arg("--print-config").output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("api_token = \"***\"") && text.contains(":***@"), "{text}");
    clean("--print-config", &text);
    let help = program()
        .args(["serve", "--help"])
        .env("SLOWLANE_API_TOKEN", TOKEN)
        .env("SLOWLANE_DATABASE_URL", "postgres://u:hunter2@h/d")
        .output()
        .unwrap();
    clean("--help", &String::from_utf8(help.stdout).unwrap());
}

/// What a start with these settings fails with.
fn failure(change: impl FnOnce(&mut Command)) -> String {
    let mut command = program();
    command.arg("serve").env("SLOWLANE_LISTEN", "127.0.0.1:0");
    change(&mut command);
    let output = command.output().unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap() + &String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_start_that_fails_says_why_and_no_secret() {
    let database = Postgres::shared().work();
    let good = database.dsn.to_url().expose().to_owned();
    for (url, word) in [
        ("PostgreSQL+AsyncPG://app:hunter2@localhost/app", "SLOWLANE_DATABASE_URL: unsupported_scheme"),
        (
            "postgresql+asyncpg://app:hunter2@127.0.0.1:1/app",
            "SLOWLANE_DATABASE_URL was written for SQLAlchemy with asyncpg",
        ),
        ("mysql://app:hunter2@localhost/app", "unsupported_scheme"),
        ("postgres://app:hunter2@localhost:99999/app", "invalid_port"),
        ("postgres://app:x@hunter2@localhost/app", "unescaped_password"),
        ("host=localhost password=hunter2 nope=1", "unknown_parameter"),
        ("postgres://app:hunter2@127.0.0.1:1/app", "refused"),
        (&good.replace(PASSWORD, "hunter2"), "password"),
    ] {
        let text = failure(|command| {
            command.env("SLOWLANE_DATABASE_URL", url).env("TARGET", &good).args(["--target", "default=TARGET"]);
            command.args(["--wait-for-queue", "0s"]);
        });
        assert!(text.contains(word), "{url}: {text}");
        clean(url, &text);
    }
    let flag = failure(|command| {
        command.args(["--database-url", "postgres://app:hunter2@h/d", "--target", "default=TARGET"]);
    });
    assert!(flag.contains("SLOWLANE_DATABASE_URL"), "{flag}");
    clean("a flag with a password", &flag);
    let target = failure(|command| {
        command.env("SLOWLANE_DATABASE_URL", &good).args(["--target", "default=postgres://app:hunter2@h/d"]);
    });
    assert!(target.contains("environment variable"), "{target}");
    clean("a target with a DSN", &target);
    let name = failure(|command| {
        command.env("SLOWLANE_DATABASE_URL", &good).args(["--target", "postgres://app:hunter2@h/d?sslmode=require"]);
    });
    assert!(name.contains("a target's name"), "{name}");
    clean("a DSN as a target", &name);
}

#[test]
fn files_are_read_strictly_and_not_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("slowlane.toml");
    for (text, word) in [
        ("wrokers = 3\n", "wrokers"),
        ("[targets.default]\ndsn = \"postgres://a:hunter2@h/d\"\ncolour = 1\n", "colour"),
        ("database_url = \"postgres://a:hunter2@h/d\nx", "line 2"),
        ("listen = \"nowhere\"\n", "listen"),
        ("shutdown_grace = 5\n", "shutdown_grace"),
    ] {
        fs::write(&file, text).unwrap();
        let shown = failure(|command| {
            command.arg("--config").arg(&file);
        });
        assert!(shown.contains(word), "{text}: {shown}");
        clean(text, &shown);
    }
    // The file, the environment over it, the flag over both.
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    fs::write(&file, "workers = 3\napi_connections = 3\ncontrol_connections = 3\n").unwrap();
    let mut command = command(&queue, &target);
    command.env("SLOWLANE_API_CONNECTIONS", "5").env("SLOWLANE_CONTROL_CONNECTIONS", "5");
    let output =
        command.args(["--control-connections", "7", "--print-config", "--config"]).arg(&file).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let empty = self::command(&queue, &target)
        .envs([
            ("SLOWLANE_QUEUES", ""),
            ("SLOWLANE_WORKERS", ""),
            ("SLOWLANE_CONFIG", ""),
            ("SLOWLANE_API_TOKEN_FILE", ""),
        ])
        .arg("--print-config")
        .output()
        .unwrap();
    let defaults = String::from_utf8(empty.stdout).unwrap();
    assert!(defaults.contains("workers = 8") && defaults.contains("queues = [\"default\"]"), "{defaults}");
    for line in ["workers = 3", "api_connections = 5", "control_connections = 7"] {
        assert!(text.contains(line), "{line}: {text}");
    }
}

#[test]
fn a_size_that_is_none_is_refused_at_the_start_and_never_shown() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("slowlane.toml");
    let with = |size: &str| {
        fs::write(&file, format!("[targets.default]\ndsn_env = \"TARGET\"\nwork_mem = \"{size}\"\n")).unwrap();
        let mut command = program();
        command.args(["serve", "--listen", "127.0.0.1:0", "--config"]).arg(&file);
        command.env("SLOWLANE_DATABASE_URL", queue.dsn.to_url().expose()).env("TARGET", target.dsn.to_url().expose());
        command
    };
    for size in ["postgresql://u:hunter2@h/d", "hunter2", "64 megabytes", "64mb", "-1MB", "1kB", "3TB", ""] {
        let output = with(size).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{size}");
        assert!(text.contains("target default: work_mem: expected a size from 64kB"), "{size}: {text}");
        clean(size, &text);
        let printed = String::from_utf8(with(size).arg("--print-config").output().unwrap().stdout).unwrap();
        assert!(printed.contains("work_mem = \"***\""), "{printed}");
    }
    for size in ["64MB", "1.5 GB", "65536", "1TB", "65536B"] {
        let printed = String::from_utf8(with(size).arg("--print-config").output().unwrap().stdout).unwrap();
        assert!(printed.contains(&format!("work_mem = \"{size}\"")), "{printed}");
    }
    let server = crate::support::child::Server::spawn({
        let mut command = with("hunter2");
        command.arg("--start-without-targets");
        command
    });
    let shown = server.client.get("/v1/targets/default");
    assert_eq!((shown.status, &shown.json()["settings"]["work_mem"]), (200, &serde_json::Value::Null));
    clean("what a server without its target says", &(shown.text() + &server.log()));
}

#[test]
fn a_strong_role_and_an_open_door_are_refused() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let strong = target.superuser.to_url().expose().to_owned();
    let text = failure(|command| {
        command
            .env("SLOWLANE_DATABASE_URL", queue.dsn.to_url().expose())
            .env("T", &strong)
            .args(["--target", "default=T"]);
    });
    assert!(text.contains("target_role_too_strong") && text.contains("superuser"), "{text}");
    target.run("CREATE ROLE reader_of_files LOGIN PASSWORD 'x' IN ROLE pg_read_server_files");
    let member = target.dsn.clone().with("user", "reader_of_files").with("password", "x").to_url().expose().to_owned();
    let text = failure(|command| {
        command
            .env("SLOWLANE_DATABASE_URL", queue.dsn.to_url().expose())
            .env("T", &member)
            .args(["--target", "default=T"]);
    });
    assert!(text.contains("pg_read_server_files"), "{text}");
    for (role, grant, word) in [
        ("one_who_may", "IN ROLE postgres", "may become a superuser"),
        ("one_who_makes", "CREATEROLE", "may create roles"),
    ] {
        target.run(&format!("CREATE ROLE {role} LOGIN NOINHERIT PASSWORD 'x' {grant}"));
        let dsn = target.dsn.clone().with("user", role).with("password", "x").to_url().expose().to_owned();
        let text = failure(|command| {
            command
                .env("SLOWLANE_DATABASE_URL", queue.dsn.to_url().expose())
                .env("T", &dsn)
                .args(["--target", "default=T"]);
        });
        assert!(text.contains(word), "{text}");
    }
    let sees = failure(|command| {
        command
            .env("SLOWLANE_DATABASE_URL", queue.dsn.to_url().expose())
            .args(["--target", "default=SLOWLANE_DATABASE_URL"]);
    });
    assert!(sees.contains("schema slowlane"), "{sees}");
    let open = failure(|command| {
        let good = target.dsn.to_url().expose().to_owned();
        command.env("SLOWLANE_DATABASE_URL", queue.dsn.to_url().expose()).env("T", good);
        command.args(["--target", "default=T", "--listen", "0.0.0.0:0"]);
    });
    assert!(open.contains("SLOWLANE_API_TOKEN"), "{open}");
}
