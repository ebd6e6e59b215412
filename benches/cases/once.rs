//! What it costs to commit exactly once: the same insert by `execute`, and by a kind that commits it and hopes.

use std::time::Duration;

use serde_json::{Value, json};

use crate::Scale;
use crate::http::{Connection, post_request};
use crate::postgres::{Database, Postgres};
use crate::report::{Outcome, Row, Unit, Values};
use crate::server::Server;

const INSERT: &str = "INSERT INTO effects VALUES (1)";
const PATIENCE: Duration = Duration::from_secs(120);

pub fn run(postgres: &Postgres, scale: Scale) -> Outcome {
    let mut rows = Vec::new();
    for threads in [1, 8] {
        let [mut once, mut plain] = [(); 2].map(|()| Values::default());
        for _ in 0..scale.rounds {
            let jobs = scale.of(2_000, 100);
            let execute = json!({"kind": "execute", "args": {"statements": [{"sql": INSERT}]}});
            plain.push(drained(postgres, threads, jobs, &json!({"kind": "hopeful", "args": {"sql": INSERT}})));
            once.push(drained(postgres, threads, jobs, &execute));
        }
        let what = format!("a job that inserts a row exactly once, {threads} threads");
        rows.push(Row::new(what, &once, Unit::Milliseconds).beside("committed without the protocol", &plain));
    }
    Outcome {
        rows,
        notes: vec![
            "Exactly once: from the first start to the last end of the jobs by the database's clock, by the number of jobs, of \
             which each is one INSERT in a transaction of its own. Without the protocol: the same session, transaction and \
             COMMIT, and nothing else"
                .to_owned(),
        ],
    }
}

/// Milliseconds per job.
fn drained(postgres: &Postgres, threads: usize, jobs: usize, job: &Value) -> f64 {
    let (queue, target) = (postgres.queue(), postgres.target());
    target.run("CREATE TABLE IF NOT EXISTS effects (n int); TRUNCATE effects; GRANT ALL ON effects TO PUBLIC");
    let api = Server::start(&queue, &target, &["--no-workers"]);
    let mut connection = Connection::open(api.address);
    let request = post_request("/v1/jobs", &job.to_string());
    for _ in 0..jobs {
        assert_eq!(connection.send(&request).0, 202);
    }
    let _worker = Server::start(&queue, &target, &["--no-http", "--workers", &threads.to_string()]);
    wait_until_ended(&queue, jobs);
    let failed = "SELECT count(*) FROM finished_jobs WHERE state <> 'succeeded' OR attempt <> 1";
    assert_eq!(queue.count(failed), 0);
    assert_eq!(target.count("SELECT count(*) FROM effects"), i64::try_from(jobs).unwrap(), "each took effect once");
    let span = "SELECT extract(epoch FROM max(finished_at) - min(started_at)) * 1000 FROM finished_jobs";
    queue.text(span).parse::<f64>().unwrap() / jobs as f64
}

fn wait_until_ended(queue: &Database, jobs: usize) {
    let until = std::time::Instant::now() + PATIENCE;
    while queue.count("SELECT count(*) FROM finished_jobs") < i64::try_from(jobs).unwrap() {
        assert!(std::time::Instant::now() < until, "the jobs did not end");
        std::thread::sleep(Duration::from_millis(20));
    }
}
