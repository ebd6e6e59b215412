//! A large result as CSV, through a job and over HTTP to a file, beside `psql \copy … csv header`.

use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Instant;

use serde_json::json;

use crate::Scale;
use crate::http;
use crate::postgres::{Database, Postgres};
use crate::report::{Aim, Outcome, Row, Unit, Values};
use crate::server::Server;

/// What is exported.
pub const SELECT: &str = "SELECT * FROM events";

/// Fills a table as reports have them: numbers, times, texts, and NULLs in between.
pub fn fill(target: &Database, rows: i64) {
    target.run(&format!(
        "CREATE TABLE events (id bigint, at timestamptz, account integer, kind text, amount numeric(12, 2), note text);
         INSERT INTO events
         SELECT n, timestamptz '2026-01-01 00:00+00' + n * interval '1.5 second', n % 50000,
                (ARRAY['created', 'paid', 'shipped', 'returned'])[n % 4 + 1], (n::bigint * 7919 % 1000000) / 100.0,
                CASE WHEN n % 3 = 0 THEN NULL ELSE 'order ' || n % 1000 || CASE WHEN n % 50 = 0 THEN ', gift' ELSE '' END END
           FROM generate_series(1, {rows}) n;
         GRANT SELECT ON events TO {};",
        slowlane::db::roles::DEMO
    ));
    target.run("VACUUM ANALYZE events");
    target.run("CHECKPOINT");
}

pub fn run(postgres: &Postgres, scale: Scale) -> Outcome {
    let (queue, target) = (postgres.queue(), postgres.target());
    let rows = scale.of(5_000_000, 200_000);
    fill(&target, rows);
    let server = Server::start(&queue, &target, &[]);
    let (by_psql, by_job) = (postgres.folder().join("psql.csv"), postgres.folder().join("job.csv"));
    let [mut copied, mut whole, mut ran, mut fetched] = [(); 4].map(|()| Values::default());
    // The table is in memory for everybody.
    copy(postgres, &target, &by_psql);
    for _ in 0..scale.rounds {
        queue.clear();
        copied.push(copy(postgres, &target, &by_psql));
        let (job, fetch) = export(server.address, rows, &by_job);
        ran.push(job);
        fetched.push(fetch);
        whole.push(job + fetch);
        assert!(same(&by_psql, &by_job), "both wrote the same bytes");
    }
    let bytes = fs::metadata(&by_psql).unwrap().len() / 1024 / 1024;
    fs::remove_file(by_psql).unwrap();
    fs::remove_file(by_job).unwrap();
    let row = |name: &str, values: &Values| Row::new(format!("CSV of 5 million rows{name}"), values, Unit::Seconds);
    Outcome {
        rows: vec![
            row(", through a job and fetched", &whole).beside("`psql \\copy`", &copied).aim_ratio(Aim::AtMost(1.0)),
            row(": the job", &ran),
            row(": the fetch", &fetched),
        ],
        notes: vec![format!(
            "CSV: from the POST to the last byte in a file, {bytes} MiB, byte for byte what `psql \\copy (…) to file csv \
             header` wrote; the ratio is one of times"
        )],
    }
}

fn copy(postgres: &Postgres, target: &Database, file: &Path) -> f64 {
    let mut command = postgres.program("psql", &target.dsn);
    command.args(["-X", "-q", "-c", &format!("\\copy ({SELECT}) to '{}' csv header", file.display())]);
    let began = Instant::now();
    assert!(command.status().unwrap().success());
    began.elapsed().as_secs_f64()
}

/// Runs the job and fetches its rows; how long each took.
pub fn export(address: SocketAddr, rows: i64, file: &Path) -> (f64, f64) {
    let began = Instant::now();
    let id = http::submit(address, &json!({"kind": "query", "args": {"sql": SELECT}}));
    let job = http::ended(address, &id);
    assert_eq!((&job["state"], &job["result"]["rows"]), (&json!("succeeded"), &json!(rows)), "{job}");
    let ran = began.elapsed().as_secs_f64();
    let began = Instant::now();
    let mut out = File::create(file).unwrap();
    http::fetch(address, &format!("/v1/jobs/{id}/result/data?format=csv"), &mut out);
    (ran, began.elapsed().as_secs_f64())
}

fn same(one: &Path, other: &Path) -> bool {
    let length = |path| fs::metadata(path).unwrap().len();
    if length(one) != length(other) {
        return false;
    }
    let (mut one, mut other) = (BufReader::new(File::open(one).unwrap()), BufReader::new(File::open(other).unwrap()));
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let n = one.read(&mut a).unwrap();
        if n == 0 {
            return true;
        }
        other.read_exact(&mut b[..n]).unwrap();
        if a[..n] != b[..n] {
            return false;
        }
    }
}
