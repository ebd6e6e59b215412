//! Durable 202s per second over HTTP, beside pgbench's inserts of single rows into a table like `jobs`.

use std::time::Duration;

use crate::Scale;
use crate::http::post_request;
use crate::load;
use crate::postgres::{Database, Postgres};
use crate::report::{Aim, Outcome, Row, Unit, Values};
use crate::server::Server;

const CLIENTS: [usize; 3] = [1, 16, 64];
/// The best peer's accepts with 16 clients, where that was measured: a queue library without HTTP.
const BEST_PEER_16: f64 = 7_816.0;

/// The row that a POST makes, made by SQL: the id has the time in front as ours do.
const INSERT: &str = "INSERT INTO peer_jobs
    (id, kind, queue, target, priority, state, args, labels, created_at, run_at, queued_xid, timeout_ms, max_attempts,
     result_ttl_ms)
    VALUES ((lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000)::bigint), 12, '0')
             || substr(replace(gen_random_uuid()::text, '-', ''), 13))::uuid,
            'noop', 'default', 'default', 5, 'queued', '{}', '{}', now(), now(), pg_current_xact_id(), 3600000, 3, 86400000);";

pub fn run(postgres: &Postgres, scale: Scale) -> Outcome {
    let (queue, target) = (postgres.queue(), postgres.target());
    queue.run("CREATE TABLE peer_jobs (LIKE jobs INCLUDING ALL) WITH (fillfactor = 70)");
    // Nobody is there to claim what was accepted: the rows stay to be counted.
    let server = Server::start(&queue, &target, &["--no-workers"]);
    let mut ours = CLIENTS.map(|_| Values::default());
    let (mut alone, mut sixteen) = (Values::default(), Values::default());
    for _ in 0..scale.rounds {
        alone.push(pgbench(postgres, &queue, 1, scale));
        ours[0].push(accepts(&server, &queue, CLIENTS[0], scale));
        sixteen.push(pgbench(postgres, &queue, 16, scale));
        ours[1].push(accepts(&server, &queue, CLIENTS[1], scale));
        ours[2].push(accepts(&server, &queue, CLIENTS[2], scale));
    }
    let row = |n: usize| Row::new(format!("durable accepts, {} clients", CLIENTS[n]), &ours[n], Unit::PerSecond);
    Outcome {
        rows: vec![
            row(0).beside("pgbench, 1 client", &alone).aim_ratio(Aim::AtLeast(0.8)),
            row(1).beside("pgbench, 16 clients", &sixteen),
            row(1).aim(Aim::AtLeast(2.0 * BEST_PEER_16)),
            row(2).beside("pgbench, 16 clients", &sixteen).aim_ratio(Aim::AtLeast(1.0)),
        ],
        notes: vec![
            "Accepts: `POST /v1/jobs` over keep-alive connections, each client waiting for its 202 before it sends the \
             next; every 202 was counted as a row afterwards. pgbench: prepared inserts of the same columns into a \
             table with the same indexes and checks, one commit each"
                .to_owned(),
            format!(
                "The aim for 16 clients is twice the {BEST_PEER_16:.0}/s of the fastest queue library measured on such a \
                 machine, without HTTP"
            ),
        ],
    }
}

fn seconds(scale: Scale) -> u32 {
    scale.of(4, 1)
}

fn pgbench(postgres: &Postgres, queue: &Database, clients: u32, scale: Scale) -> f64 {
    queue.run("TRUNCATE peer_jobs; CHECKPOINT");
    let run = postgres.pgbench(queue, INSERT, clients, seconds(scale));
    assert_eq!(queue.count("SELECT count(*) FROM peer_jobs"), run.transactions, "rows of pgbench");
    run.per_second
}

fn accepts(server: &Server, queue: &Database, clients: usize, scale: Scale) -> f64 {
    queue.clear();
    let request = post_request("/v1/jobs", r#"{"kind":"noop","args":{}}"#);
    let span = Duration::from_secs(u64::from(seconds(scale)));
    let load = load::run(server.address, clients, &request, 202, Duration::from_millis(300), span);
    let rows = u64::try_from(queue.count("SELECT count(*) FROM jobs")).unwrap();
    assert_eq!(rows, load.answers, "every 202 is a row, and nothing else is");
    load.per_second
}
