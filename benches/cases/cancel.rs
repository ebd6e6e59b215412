//! From the POST of a cancel to the moment at which a client learns that the running aggregate has stopped.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Scale;
use crate::cases::export;
use crate::http::{self, Connection, post_request, waiting_request};
use crate::postgres::{Database, Postgres};
use crate::report::{Aim, Outcome, Row, Unit, Values};
use crate::server::Server;

/// Hashes, for longer than anybody waits.
const AGGREGATE: &str = "SELECT sum(length(md5(a.note || b.note))) FROM events a, events b";

pub fn run(postgres: &Postgres, scale: Scale) -> Outcome {
    let (queue, target) = (postgres.queue(), postgres.target());
    export::fill(&target, 100_000);
    let server = Server::start(&queue, &target, &[]);
    let [mut p50, mut p99, mut direct50, mut direct99] = [(); 4].map(|()| Values::default());
    for _ in 0..scale.rounds {
        let times = scale.of(50, 5);
        let cancels = Values((0..times).map(|_| cancel(&server, &target)).collect());
        let signals = Values((0..times).map(|_| signal(&target)).collect());
        p50.push(cancels.quantile(0.5));
        p99.push(cancels.quantile(0.99));
        direct50.push(signals.quantile(0.5));
        direct99.push(signals.quantile(0.99));
    }
    let name = "a cancel ends a running aggregate";
    Outcome {
        rows: vec![
            Row::new(format!("{name}, p50"), &p50, Unit::Milliseconds).beside("`pg_cancel_backend`", &direct50),
            Row::new(format!("{name}, p99"), &p99, Unit::Milliseconds)
                .beside("`pg_cancel_backend`", &direct99)
                .aim(Aim::AtMost(100.0)),
        ],
        notes: vec![
            "Cancel: from the POST to the answer that says `cancelled`, of an aggregate that has computed hashes for half a second; 50 of them \
             in each round. While the server compiles a statement (JIT) it hears of no cancel, which may take some 100 ms. `pg_cancel_backend`: from the call to the moment at which the client of the same aggregate has its error"
                .to_owned(),
        ],
    }
}

/// By then the server has compiled the aggregate (JIT), and computes: while it compiles it hears of no cancel.
const COMPILED_AFTER: Duration = Duration::from_millis(500);

/// Waits until the aggregate is at work.
fn wait_for_it(target: &Database, application_name: &str) -> i64 {
    let until = Instant::now() + Duration::from_secs(30);
    let mut session = target.session();
    loop {
        let rows = session
            .query(
                "SELECT pid FROM pg_stat_activity WHERE application_name LIKE $1 AND state = 'active' AND query LIKE 'SELECT sum%'
                    AND wait_event IS NULL",
                &[Some(application_name)],
            )
            .unwrap();
        if let Some(pid) = rows.get(0, 0) {
            std::thread::sleep(COMPILED_AFTER);
            return pid.parse().unwrap();
        }
        assert!(Instant::now() < until, "the aggregate did not begin");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Milliseconds.
fn cancel(server: &Server, target: &Database) -> f64 {
    let id = http::submit(server.address, &json!({"kind": "query", "args": {"sql": AGGREGATE}}));
    wait_for_it(target, &format!("slowlane:{id}:%"));
    let mut connection = Connection::open(server.address);
    let began = Instant::now();
    assert_eq!(connection.send(&post_request(&format!("/v1/jobs/{id}/cancel"), "{}")).0, 202);
    loop {
        let (status, body) = connection.send(&waiting_request(&format!("/v1/jobs/{id}"), 10));
        let took = began.elapsed().as_secs_f64() * 1000.0;
        assert_eq!(status, 200);
        let job: Value = serde_json::from_slice(body).unwrap();
        match job["state"].as_str().unwrap() {
            "running" => {}
            "cancelled" => return took,
            other => panic!("the job ended as {other}"),
        }
    }
}

/// Milliseconds.
fn signal(target: &Database) -> f64 {
    let client = target.clone();
    let running = std::thread::spawn(move || {
        let mut session = client.session();
        session.execute_batch("SET application_name = 'cancelled directly'").unwrap();
        let error = session.execute_batch(AGGREGATE).unwrap_err();
        assert_eq!(error.sqlstate.as_deref(), Some("57014"));
        Instant::now()
    });
    let pid = wait_for_it(target, "cancelled directly").to_string();
    let mut other = target.session();
    let began = Instant::now();
    other.query("SELECT pg_cancel_backend($1)", &[Some(&pid)]).unwrap();
    (running.join().unwrap() - began).as_secs_f64() * 1000.0
}
