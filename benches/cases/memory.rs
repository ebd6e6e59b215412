//! The most memory that a serving process takes over idle while ten million rows are produced and fetched.

use serde_json::json;

use crate::Scale;
use crate::cases::export;
use crate::http;
use crate::postgres::Postgres;
use crate::report::{Aim, Outcome, Row, Unit, Values};
use crate::server::Server;

pub fn run(postgres: &Postgres, scale: Scale) -> Outcome {
    let (queue, target) = (postgres.queue(), postgres.target());
    let rows = scale.of(10_000_000, 200_000);
    export::fill(&target, rows);
    let file = postgres.folder().join("memory.csv");
    let [mut peak, mut idle] = [(); 2].map(|()| Values::default());
    for _ in 0..scale.rounds {
        queue.clear();
        let server = Server::start(&queue, &target, &[]);
        // A small job first: what every process needs counts as idle.
        let id = http::submit(server.address, &json!({"kind": "query", "args": {"sql": "SELECT 1"}}));
        http::ended(server.address, &id);
        let before = server.memory_kib("VmRSS:") as f64 / 1024.0;
        export::export(server.address, rows, &file);
        idle.push(before);
        peak.push(server.memory_kib("VmHWM:") as f64 / 1024.0 - before);
    }
    std::fs::remove_file(file).unwrap();
    Outcome {
        rows: vec![
            Row::new("peak memory over idle, 10 million rows", &peak, Unit::Mebibytes).aim(Aim::AtMost(100.0)),
            Row::new("memory of an idle process", &idle, Unit::Mebibytes),
        ],
        notes: vec![
            "Memory: the kernel's `VmHWM` of the process after the job and the fetch, less its `VmRSS` after a small job"
                .to_owned(),
        ],
    }
}
