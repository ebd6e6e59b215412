//! From the 202's arrival at the client to the moment at which the job runs, on an idle worker; and from the start of a
//! process to its first job, where jobs wait.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Scale;
use crate::http::{Connection, post_request};
use crate::postgres::{Database, Postgres};
use crate::report::{Aim, Outcome, Row, Unit, Values};
use crate::server::{Server, now_us};

/// Between two jobs, so that each finds everything idle: the worker, and what goes from process to process.
const PAUSE: Duration = Duration::from_millis(50);
/// Jobs that wait for a process that starts.
const WAITING: usize = 500;
/// Processes that start in each round.
const STARTS: usize = 20;

pub fn run(postgres: &Postgres, scale: Scale) -> Outcome {
    let (queue, target) = (postgres.queue(), postgres.target());
    let (mut together, mut apart) = (Latencies::default(), Latencies::default());
    let mut fresh = Latencies::default();
    for _ in 0..scale.rounds {
        let both = Server::start(&queue, &target, &[]);
        together.add(measure(both.address, &queue, scale));
        drop(both);
        let _worker = Server::start(&queue, &target, &["--no-http"]);
        let api = Server::start(&queue, &target, &["--no-workers"]);
        apart.add(measure(api.address, &queue, scale));
        fresh.add(first_claims(&queue, &target, scale));
    }
    let [fresh_p50, fresh_p99] = fresh.rows("start of a process to its first claim");
    let (together, apart) = (together.rows("202 to start, one process"), apart.rows("202 to start, two processes"));
    let fresh = [fresh_p50, fresh_p99.aim(Aim::AtMost(50.0))];
    Outcome {
        rows: [together, apart, fresh].into_iter().flatten().collect(),
        notes: vec![
            "202 to start: from the moment at which the client has read the 202 to the first line of the kind's code, \
             both by the machine's clock; a job that began before its 202 was read counts as 0. Two processes: one with \
             `--no-workers`, one with `--no-http`, woken by NOTIFY"
                .to_owned(),
            format!(
                "First claim: from the moment before the program is started to the first line of the code of the first of \
                 {WAITING} jobs that waited, both by the machine's clock; {STARTS} starts in each round"
            ),
        ],
    }
}

#[derive(Default)]
struct Latencies {
    p50: Values,
    p99: Values,
}

impl Latencies {
    fn add(&mut self, round: Values) {
        self.p50.push(round.quantile(0.5));
        self.p99.push(round.quantile(0.99));
    }

    fn rows(&self, what: &str) -> [Row; 2] {
        let row = |name, values| Row::new(format!("{what}, {name}"), values, Unit::Milliseconds);
        [row("p50", &self.p50), row("p99", &self.p99)]
    }
}

/// From the start of a process to the first line of the first job's code.
fn first_claims(queue: &Database, target: &Database, scale: Scale) -> Values {
    let mut latencies = Values::default();
    for _ in 0..scale.of(STARTS, 5) {
        queue.clear();
        queue.run(&format!("SELECT slowlane.enqueue('stamp', notify => false) FROM generate_series(1, {WAITING})"));
        let before = now_us();
        let _server = Server::listening(queue, target, &[]);
        let until = Instant::now() + Duration::from_secs(30);
        while queue.count("SELECT count(*) FROM finished_jobs") < WAITING as i64 {
            assert!(Instant::now() < until, "jobs waited and did not run");
            std::thread::sleep(Duration::from_millis(20));
        }
        let first = queue.count("SELECT min(output::text::bigint) FROM finished_jobs");
        latencies.push((first - before) as f64 / 1_000.0);
    }
    latencies
}

fn measure(address: SocketAddr, queue: &Database, scale: Scale) -> Values {
    queue.clear();
    let request = post_request("/v1/jobs", &json!({"kind": "stamp"}).to_string());
    let mut connection = Connection::open(address);
    let mut answered = HashMap::new();
    for n in 0..scale.of(320, 60) {
        let (status, body) = connection.send(&request);
        let now = now_us();
        assert_eq!(status, 202);
        // The first ones open connections.
        if n >= 20 {
            let job: Value = serde_json::from_slice(body).unwrap();
            answered.insert(job["id"].as_str().unwrap().to_owned(), now);
        }
        std::thread::sleep(PAUSE);
    }
    let until = Instant::now() + Duration::from_secs(30);
    while queue.count("SELECT count(*) FROM jobs") > 0 {
        assert!(Instant::now() < until, "jobs were accepted and did not run");
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut session = queue.session();
    let rows = session.query("SELECT id, output FROM finished_jobs", &[]).unwrap();
    let mut latencies = Values::default();
    for row in 0..rows.len() {
        let started: i64 = rows.get(row, 1).unwrap().parse().unwrap();
        if let Some(told) = answered.remove(rows.get(row, 0).unwrap()) {
            latencies.push((started - told).max(0) as f64 / 1_000.0);
        }
    }
    assert!(answered.is_empty(), "{} jobs were accepted and never ended", answered.len());
    latencies
}
