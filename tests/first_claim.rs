//! The first claim comes when the queue is reached, and waits for no timer: here, none would come within an hour.

use std::net::SocketAddr;
use std::time::Duration;

use slowlane::config::Config;
use slowlane::pq::Session;
use slowlane::{Running, Server};

use crate::support::eventually;
use crate::support::postgres::{Database, Postgres};

/// A process that nothing wakes: no hints from others, and no look of its own for an hour.
fn start(queue: &Database, target: &Database) -> Running {
    let config = Config {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        notify: false,
        poll: Duration::from_secs(3_600),
        workers: 2,
        ..Config::default()
    };
    let server = Server::builder().config(config).queue(&queue.dsn).target("default", &target.dsn);
    server.build().unwrap().start().unwrap()
}

/// Puts jobs in that nobody is told of.
fn enqueue(session: &mut Session, jobs: u32) {
    let sql =
        "SELECT slowlane.enqueue('query', '{\"sql\": \"SELECT 1\"}', notify => false) FROM generate_series(1, $1::int)";
    session.query(sql, &[Some(&jobs.to_string())]).unwrap();
}

fn all_ended(queue: &Database, jobs: i64) {
    eventually("every job ran", || queue.count("SELECT count(*) FROM finished_jobs WHERE state = 'succeeded'") == jobs);
}

#[test]
fn a_fresh_process_claims_the_moment_it_is_registered() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let mut holder = queue.session();
    enqueue(&mut holder, 5);
    holder.execute_batch("BEGIN; LOCK TABLE workers IN ACCESS EXCLUSIVE MODE").unwrap();
    let running = start(&queue, &target);
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'slowlane heartbeat'
                    AND wait_event_type = 'Lock' AND datname = current_database()";
    eventually("it is about to register", || queue.count(waits) == 1);
    assert_eq!(queue.count("SELECT count(*) FROM jobs WHERE state = 'queued'"), 5);
    holder.execute_batch("COMMIT").unwrap();
    all_ended(&queue, 5);
    running.stop().unwrap();
}

#[test]
fn a_process_looks_the_moment_its_queue_is_back() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let mut session = queue.session();
    enqueue(&mut session, 1);
    let running = start(&queue, &target);
    all_ended(&queue, 1);
    let allow = |allowed: bool| {
        let sql = format!("ALTER DATABASE {} ALLOW_CONNECTIONS {allowed}", queue.name());
        Session::connect(&postgres.superuser()).unwrap().execute_batch(&sql).unwrap();
    };
    allow(false);
    let others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name LIKE 'slowlane %'";
    session.query(&format!("SELECT pg_terminate_backend(pid, 10000) {others}"), &[]).unwrap();
    assert_eq!(session.query(&format!("SELECT count(*) {others}"), &[]).unwrap().get(0, 0), Some("0"));
    enqueue(&mut session, 1);
    allow(true);
    all_ended(&queue, 2);
    running.stop().unwrap();
}
