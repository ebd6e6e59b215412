//! A CSV file into a table, through an upload and an import, exactly once, beside `psql \copy … from`.

use std::path::Path;
use std::time::Instant;

use serde_json::json;

use crate::Scale;
use crate::cases::export;
use crate::http;
use crate::postgres::{Database, Postgres};
use crate::report::{Aim, Outcome, Row, Unit, Values};
use crate::server::Server;

pub fn run(postgres: &Postgres, scale: Scale) -> Outcome {
    let (queue, target) = (postgres.queue(), postgres.target());
    let rows = scale.of(5_000_000, 200_000);
    export::fill(&target, rows);
    target.run("CREATE TABLE taken (LIKE events)");
    target.run(&format!("GRANT ALL ON taken TO {}", slowlane::db::roles::DEMO));
    let file = postgres.folder().join("events.csv");
    psql(postgres, &target, &format!("\\copy ({}) to '{}' csv header", export::SELECT, file.display()));
    let server = Server::start(&queue, &target, &[]);
    let [mut copied, mut uploaded, mut imported] = [(); 3].map(|()| Values::default());
    for _ in 0..scale.rounds {
        queue.clear();
        copied.push(copy(postgres, &target, rows, &file));
        target.run("TRUNCATE taken");
        let began = Instant::now();
        let upload = http::upload(server.address, "text/csv", &file);
        uploaded.push(began.elapsed().as_secs_f64());
        let began = Instant::now();
        let job =
            json!({"kind": "import", "args": {"upload": upload, "table": "taken", "format": "csv", "header": true}});
        let job = http::ended(server.address, &http::submit(server.address, &job));
        imported.push(began.elapsed().as_secs_f64());
        assert_eq!(job["state"], "succeeded", "{job}");
        assert_eq!(target.count("SELECT count(*) FROM taken"), rows);
    }
    let speed = |values: &Values| Values(values.0.iter().map(|seconds| rows as f64 / seconds).collect());
    std::fs::remove_file(file).unwrap();
    Outcome {
        rows: vec![
            Row::new("import of 5 million rows, exactly once", &speed(&imported), Unit::PerSecond)
                .beside("`psql \\copy from`", &speed(&copied))
                .aim_ratio(Aim::AtLeast(0.9)),
            Row::new("its upload", &uploaded, Unit::Seconds),
        ],
        notes: vec![
            "Import: from the POST of the job to its end, of a file that was uploaded before; rows per second of a table \
             without indexes, beside `\\copy` of the same file into the same table"
                .to_owned(),
        ],
    }
}

fn psql(postgres: &Postgres, target: &Database, command: &str) {
    let mut psql = postgres.program("psql", &target.dsn);
    assert!(psql.args(["-X", "-q", "-c", command]).status().unwrap().success());
}

fn copy(postgres: &Postgres, target: &Database, rows: i64, file: &Path) -> f64 {
    target.run("TRUNCATE taken");
    let began = Instant::now();
    psql(postgres, target, &format!("\\copy taken from '{}' csv header", file.display()));
    let seconds = began.elapsed().as_secs_f64();
    assert_eq!(target.count("SELECT count(*) FROM taken"), rows);
    seconds
}
