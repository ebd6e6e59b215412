//! `GET /v1/jobs/{id}` while every worker runs heavy SQL, beside an idle server.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::Scale;
use crate::http::{self, Connection, get_request, post_request};
use crate::postgres::{Database, Postgres};
use crate::report::{Outcome, Row, Unit, Values};
use crate::server::Server;

const WORKERS: usize = 8;
const PAUSE: Duration = Duration::from_millis(5);
/// Keeps a core busy for longer than any round takes.
const HEAVY: &str = "SELECT sum(sqrt(a::float8 * b)) FROM generate_series(1, 1000000) a, generate_series(1, 100000) b";

pub fn run(postgres: &Postgres, scale: Scale) -> Outcome {
    let (queue, target) = (postgres.queue(), postgres.target());
    let server = Server::start(&queue, &target, &["--workers", &WORKERS.to_string()]);
    let [mut idle50, mut idle99, mut busy50, mut busy99] = [(); 4].map(|()| Values::default());
    for _ in 0..scale.rounds {
        let done = http::submit(server.address, &json!({"kind": "query", "args": {"sql": "SELECT 1"}}));
        http::ended(server.address, &done);
        let idle = polls(server.address, &done, scale);
        let jobs: Vec<String> = (0..WORKERS)
            .map(|_| http::submit(server.address, &json!({"kind": "query", "args": {"sql": HEAVY}})))
            .collect();
        wait_until_running(&queue, &target);
        let busy = polls(server.address, &jobs[0], scale);
        assert_eq!(running(&queue), WORKERS as i64, "every worker was busy to the end");
        cancel(server.address, &jobs);
        idle50.push(idle.quantile(0.5));
        idle99.push(idle.quantile(0.99));
        busy50.push(busy.quantile(0.5));
        busy99.push(busy.quantile(0.99));
    }
    let row = |name, busy, idle| {
        Row::new(format!("status poll under heavy SQL, {name}"), busy, Unit::Milliseconds).beside("idle", idle)
    };
    Outcome {
        rows: vec![row("p50", &busy50, &idle50), row("p99", &busy99, &idle99)],
        notes: vec![format!(
            "Status poll: `GET /v1/jobs/{{id}}` by one client every {} ms, while {WORKERS} workers each run an aggregate \
             that keeps a core busy",
            PAUSE.as_millis()
        )],
    }
}

fn running(queue: &Database) -> i64 {
    queue.count("SELECT count(*) FROM jobs WHERE state = 'running'")
}

fn wait_until_running(queue: &Database, target: &Database) {
    let until = Instant::now() + Duration::from_secs(30);
    let at_work = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' AND query = '{HEAVY}'"
    );
    while running(queue) < WORKERS as i64 || target.count(&at_work) < WORKERS as i64 {
        assert!(Instant::now() < until, "the workers did not become busy");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn polls(address: SocketAddr, id: &str, scale: Scale) -> Values {
    let mut connection = Connection::open(address);
    let request = get_request(&format!("/v1/jobs/{id}"));
    let mut latencies = Values::default();
    for n in 0..scale.of(1_020, 120) {
        let sent = Instant::now();
        assert_eq!(connection.send(&request).0, 200);
        // The first ones open connections.
        if n >= 20 {
            latencies.push(sent.elapsed().as_secs_f64() * 1_000.0);
        }
        std::thread::sleep(PAUSE);
    }
    latencies
}

fn cancel(address: SocketAddr, jobs: &[String]) {
    for id in jobs {
        let request = post_request(&format!("/v1/jobs/{id}/cancel"), "");
        assert_eq!(Connection::open(address).send(&request).0, 202);
    }
    for id in jobs {
        assert_eq!(http::ended(address, id)["state"], "cancelled");
    }
}
