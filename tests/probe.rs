//! `slowlane probe`: what a health check of a container is told.

use std::net::TcpListener;
use std::process::{Command, Output};

use crate::support::app::TestApp;
use crate::support::child::program;
use crate::support::postgres::Postgres;

fn probe(arguments: &[&str]) -> Command {
    let mut command = program();
    command.arg("probe").args(arguments);
    command
}

#[track_caller]
fn is_well(output: &Output) {
    assert!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
}

/// The one line that it ends with.
#[track_caller]
fn complaint(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(output.status.code() == Some(1) && text.lines().count() == 1 && output.stdout.is_empty(), "{output:?}");
    text
}

/// An address where nobody listens: the port is ours, and closed again.
fn nobody() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[test]
fn a_server_that_is_well_is_found_by_flag_and_environment() {
    let app = TestApp::start();
    let address = app.client.address.to_string();
    let everywhere = format!("0.0.0.0:{}", app.client.address.port());
    is_well(&probe(&["--address", &address]).output().unwrap());
    is_well(&probe(&["--address", &address, "--path", "/healthz"]).output().unwrap());
    is_well(&probe(&[]).env("SLOWLANE_LISTEN", &everywhere).output().unwrap());
    let nobody = nobody();
    is_well(&probe(&[]).env("SLOWLANE_LISTEN", &nobody).env("SLOWLANE_PROBE_LISTEN", &address).output().unwrap());
    complaint(&probe(&[]).env("SLOWLANE_LISTEN", &address).env("SLOWLANE_PROBE_LISTEN", &nobody).output().unwrap());
    // A proxy of the environment has no part in it.
    let mut proxied = probe(&["--address", &address]);
    for name in ["http_proxy", "HTTP_PROXY", "ALL_PROXY"] {
        proxied.env(name, format!("http://{nobody}"));
    }
    is_well(&proxied.output().unwrap());
    // Only these two are asked without the token.
    let other = probe(&["--address", &address, "--path", "/metrics"]).output().unwrap();
    assert!(!other.status.success() && String::from_utf8(other.stderr).unwrap().contains("/readyz"));
}

#[test]
fn one_that_cannot_work_says_what_it_lacks() {
    let app = TestApp::start();
    let address = app.client.address.to_string();
    let postgres = Postgres::shared().work();
    postgres.run(&format!("ALTER DATABASE {} WITH ALLOW_CONNECTIONS false", app.queue.name()));
    postgres
        .run(&format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}'", app.queue.name()));
    let line = complaint(&probe(&["--address", &address]).output().unwrap());
    assert!(line.contains("answers 503") && line.contains("\"database\":\"unavailable\""), "{line}");
    is_well(&probe(&["--address", &address, "--path", "/healthz"]).output().unwrap());
}

#[test]
fn nobody_and_one_that_says_nothing_are_no_answer() {
    let nobody = nobody();
    let line = complaint(&probe(&["--address", &nobody]).output().unwrap());
    assert!(line.contains(&format!("http://{nobody}/readyz gives no answer")), "{line}");
    // The kernel takes the connection, and nobody ever reads from it.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let line = complaint(&probe(&["--address", &silent.local_addr().unwrap().to_string()]).output().unwrap());
    assert!(line.contains("timeout"), "{line}");
    let line = complaint(&probe(&["--address", "somewhere"]).output().unwrap());
    assert!(line.contains("HOST:PORT"), "{line}");
}
