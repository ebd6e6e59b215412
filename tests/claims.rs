//! P9: long transactions don't slow the queue, and nothing that appears late is overlooked.

use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Json, SmallInt, Text, Timestamptz};
use serde_json::{Value, json};
use slowlane::queue::RawJson;
use slowlane::queue::fleet::workers::{self, Identity};
use slowlane::queue::lifecycle::claim::{self, CLAIM_SQL, Positions, Scope};
use uuid::Uuid;

use crate::leases::insert;
use crate::support::app::TestApp;
use crate::support::eventually;
use crate::support::postgres::Postgres;

fn scope(connection: &mut PgConnection) -> Scope {
    let worker_id = Uuid::now_v7();
    let identity = Identity { id: worker_id, hostname: "test".into(), threads: 1, ..Identity::default() };
    workers::register(connection, &identity).unwrap();
    Scope { worker_id, kinds: vec!["query".into()], targets: vec!["default".into()], queues: vec!["default".into()] }
}

/// How many buffers the claim of one job touches, by the server's own count. The claim is made.
fn buffers_of_a_claim(connection: &mut PgConnection, scope: &Scope, positions: &Positions) -> i64 {
    #[derive(QueryableByName)]
    struct Plan {
        #[diesel(sql_type = Json, column_name = "QUERY PLAN")]
        plan: RawJson,
    }
    let priorities: Vec<i16> = (0..=9).collect();
    let (run_ats, ids): (Vec<_>, Vec<_>) = priorities.iter().map(|p| positions.place("default", *p)).unzip();
    let plan = diesel::sql_query(format!("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {}", CLAIM_SQL.as_str()))
        .bind::<diesel::sql_types::Uuid, _>(scope.worker_id)
        .bind::<Array<SmallInt>, _>(&priorities)
        .bind::<Array<Timestamptz>, _>(run_ats)
        .bind::<Array<diesel::sql_types::Uuid>, _>(ids)
        .bind::<Text, _>("default")
        .bind::<Array<Text>, _>(&scope.kinds)
        .bind::<Array<Text>, _>(&scope.targets)
        .bind::<BigInt, _>(1)
        .get_result::<Plan>(connection)
        .unwrap()
        .plan;
    let plan: Value = serde_json::from_str(plan.text()).unwrap();
    let root = &plan[0]["Plan"];
    assert_eq!(root["Actual Rows"].as_f64(), Some(1.0), "{plan}");
    root["Shared Hit Blocks"].as_i64().unwrap() + root["Shared Read Blocks"].as_i64().unwrap()
}

#[test]
fn a_claim_stays_cheap_under_an_old_snapshot() {
    let queue = Postgres::shared().queue();
    let mut connection = queue.service();
    insert(&queue, 100_200);
    queue.run("ANALYZE jobs");
    let scope = scope(&mut connection);
    let mut snapshot = queue.session();
    snapshot.execute_batch("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM jobs").unwrap();
    let mut positions = Positions::default();
    let mut claimed = 0;
    while claimed < 100_000 {
        claimed += claim::claim(&mut connection, &scope, "default", &mut positions, 500).unwrap().len();
    }
    let buffers = buffers_of_a_claim(&mut connection, &scope, &positions);
    assert!(buffers < 50, "{buffers} buffers");
    // The measure can fail: from the first row on, the dead entries are all walked over.
    let from_the_start = buffers_of_a_claim(&mut connection, &scope, &Positions::default());
    assert!(from_the_start > 500, "{from_the_start} buffers");
}

#[test]
fn a_row_that_committed_late_is_found_by_the_sweep() {
    let queue = Postgres::shared().queue();
    let mut connection = queue.service();
    let scope = scope(&mut connection);
    let mut late = queue.session();
    late.execute_batch(
        "BEGIN; INSERT INTO jobs (id, kind, queue, target, priority, state, args, labels, created_at, run_at, queued_xid, timeout_ms, max_attempts, result_ttl_ms)
         SELECT (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint), 12, '0') || '7000800000000000ffff')::uuid, 'query', 'default', 'default', 5, 'queued',
                '{}', '{}', now(), now(), pg_current_xact_id(), 60000, 3, 60000",
    ).unwrap();
    let (mut positions, queues) = (Positions::default(), ["default".to_owned()]);
    claim::sweep(&mut connection, &queues, &mut positions).unwrap();
    for _ in 0..10 {
        insert(&queue, 1_000);
        let mut left = 1_000;
        while left > 0 {
            left -= claim::claim(&mut connection, &scope, "default", &mut positions, 100).unwrap().len();
        }
        claim::sweep(&mut connection, &queues, &mut positions).unwrap();
    }
    assert!(claim::claim(&mut connection, &scope, "default", &mut positions, 10).unwrap().is_empty());
    late.execute_batch("COMMIT").unwrap();
    // It lies behind the position: a claim alone doesn't see it, the next sweep does.
    assert!(claim::claim(&mut connection, &scope, "default", &mut positions, 10).unwrap().is_empty());
    claim::sweep(&mut connection, &queues, &mut positions).unwrap();
    assert_eq!(claim::claim(&mut connection, &scope, "default", &mut positions, 10).unwrap().len(), 1);
}

#[test]
fn a_running_server_finds_late_rows_without_notify() {
    let app = TestApp::with(|config| config.notify = false);
    let mut late = app.queue.session();
    late.execute_batch(
        "BEGIN; INSERT INTO jobs (id, kind, queue, target, priority, state, args, labels, created_at, run_at, queued_xid, timeout_ms, max_attempts, result_ttl_ms)
         SELECT (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint), 12, '0') || '70008000000000000001')::uuid, 'query', 'default', 'default', 5, 'queued',
                '{\"sql\": \"SELECT 1\"}', '{}', now(), now(), pg_current_xact_id(), 60000, 3, 60000",
    ).unwrap();
    for _ in 0..20 {
        assert_eq!(app.query("SELECT 1", &json!([]))["state"], "succeeded");
    }
    assert_eq!(app.queue.count("SELECT count(*) FROM finished_jobs"), 20);
    late.execute_batch("COMMIT").unwrap();
    eventually("the late one has run", || app.queue.count("SELECT count(*) FROM finished_jobs") == 21);
}

#[test]
fn order_is_priority_then_time() {
    let queue = Postgres::shared().queue();
    let mut connection = queue.service();
    insert(&queue, 6);
    queue.run(
        "UPDATE jobs SET priority = CASE WHEN right(id::text, 1) IN ('3', '6') THEN 1 ELSE 5 END,
                      run_at = run_at - CASE WHEN right(id::text, 1) = '5' THEN interval '1 hour' ELSE interval '0' END,
                      kind = CASE WHEN right(id::text, 1) = '2' THEN 'unknown' ELSE kind END",
    );
    let scope = scope(&mut connection);
    let mut positions = Positions::default();
    let mut order = String::new();
    for _ in 0..6 {
        for job in claim::claim(&mut connection, &scope, "default", &mut positions, 1).unwrap() {
            order.extend(job.lease.job_id.to_string().chars().last());
        }
    }
    assert_eq!(order, "36514");
    assert_eq!(queue.text("SELECT kind FROM jobs WHERE state = 'queued'"), "unknown");
}

#[test]
fn scheduled_jobs_start_when_they_are_due() {
    let app = TestApp::with(|config| config.notify = false);
    let soon = chrono::Utc::now() + chrono::TimeDelta::milliseconds(1500);
    let id = app.submit(&json!({"kind": "query", "args": {"sql": "SELECT 1"}, "run_at": soon.to_rfc3339()}));
    assert_eq!(app.job(&id)["state"], "scheduled");
    let job = app.ended(&id);
    assert_eq!(job["state"], "succeeded");
    let time = |field: &str| chrono::DateTime::parse_from_rfc3339(job[field].as_str().unwrap()).unwrap();
    assert!(time("started_at") >= time("run_at"), "{job}");
    // A time that has passed is now.
    let id = app.submit(&json!({"kind": "query", "args": {"sql": "SELECT 1"}, "run_at": "2001-01-01T00:00:00Z"}));
    let job = app.ended(&id);
    assert_eq!(job["run_at"], job["created_at"]);
}
