//! A million rows changed in batches by key, each committed exactly once with its cursor, beside a loop in PL/pgSQL
//! that commits as large batches and keeps no cursor.

use std::time::Instant;

use serde_json::json;

use crate::Scale;
use crate::http;
use crate::postgres::{Database, Postgres};
use crate::report::{Aim, Outcome, Row, Unit, Values};
use crate::server::Server;

pub fn run(postgres: &Postgres, scale: Scale) -> Outcome {
    let (queue, target) = (postgres.queue(), postgres.target());
    let rows = scale.of(1_000_000, 50_000);
    let server = Server::start(&queue, &target, &[]);
    let [mut filled, mut looped] = [(); 2].map(|()| Values::default());
    for _ in 0..scale.rounds {
        queue.clear();
        fill(&target, rows);
        let job =
            json!({"kind": "backfill", "args": {"table": "numbers", "set": {"n": "n + 1"}, "batch_rows": 10_000}});
        let began = Instant::now();
        let job = http::ended(server.address, &http::submit(server.address, &job));
        filled.push(rows as f64 / began.elapsed().as_secs_f64());
        assert_eq!(job["output"]["rows_affected"], rows, "{job}");
        assert_eq!(target.count("SELECT count(*) FROM numbers WHERE n = id + 1"), rows);
        let batches = job["output"]["batches"].as_i64().unwrap();
        fill(&target, rows);
        let began = Instant::now();
        target.run(&by_a_loop(rows / batches));
        looped.push(rows as f64 / began.elapsed().as_secs_f64());
        assert_eq!(target.count("SELECT count(*) FROM numbers WHERE n = id + 1"), rows);
    }
    Outcome {
        rows: vec![
            Row::new("backfill of a million rows, exactly once", &filled, Unit::PerSecond)
                .beside("a loop in PL/pgSQL", &looped)
                .aim_ratio(Aim::AtLeast(0.9)),
        ],
        notes: vec![
            "Backfill: from the POST to the job's end, of a table with a primary key that was filled before; the loop finds the \
             same batches by the same key, as large as the job's were on average, and commits each"
                .to_owned(),
        ],
    }
}

fn fill(target: &Database, rows: i64) {
    target.run(&format!(
        "DROP TABLE IF EXISTS numbers; CREATE TABLE numbers (id bigint PRIMARY KEY, n bigint, filling text);
         INSERT INTO numbers SELECT g, g, repeat('x', 100) FROM generate_series(1, {rows}) g;
         GRANT ALL ON numbers TO {}",
        slowlane::db::roles::DEMO
    ));
    // Each for itself: neither can run in a transaction with the others.
    target.run("VACUUM ANALYZE numbers");
    target.run("CHECKPOINT");
}

fn by_a_loop(size: i64) -> String {
    format!(
        "DO $$ DECLARE after bigint := 0; upto bigint; BEGIN
             LOOP
                 SELECT max(id) INTO upto FROM (SELECT id FROM numbers WHERE id > after ORDER BY id LIMIT {size}) b;
                 EXIT WHEN upto IS NULL;
                 UPDATE numbers SET n = n + 1 WHERE id > after AND id <= upto;
                 COMMIT;
                 after := upto;
             END LOOP;
         END $$"
    )
}
