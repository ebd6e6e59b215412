//! No-op jobs drained per second: from few and from a million waiting, and the million under one held snapshot.

use std::time::{Duration, Instant};

use slowlane::db::pool::{Manager, Purpose};
use slowlane::pq::Session;
use slowlane::queue::fleet::workers::{self, Identity};
use slowlane::queue::lifecycle::claim::{self, Positions, Scope};
use slowlane::queue::lifecycle::end::{Ending, Finished};
use slowlane::queue::lifecycle::finish::{self};
use slowlane::queue::model::JobState;
use uuid::Uuid;

use crate::Scale;
use crate::http;
use crate::postgres::{Database, Postgres};
use crate::report::{Aim, Outcome, Row, Unit, Values};
use crate::server::Server;

const FEW: i64 = 20_000;
const MANY: i64 = 1_000_000;
/// Threads of the draining process: a claim is as large as there are free ones.
const WORKERS: u32 = 200;
/// Jobs in one claim of the limit.
const CLAIM: i64 = 100;
const PATIENCE: Duration = Duration::from_secs(300);

pub fn run(postgres: &Postgres, scale: Scale) -> Outcome {
    let (queue, target) = (postgres.queue(), postgres.target());
    let many = scale.of(MANY, 100_000);
    let [mut few, mut free, mut held, mut limit] = [(); 4].map(|()| Values::default());
    for _ in 0..scale.rounds {
        limit.push(by_sql(&queue));
        few.push(drain(&queue, &target, FEW, false));
        free.push(drain(&queue, &target, many, false));
        held.push(drain(&queue, &target, many, true));
    }
    let row = |name: &str, values: &Values| Row::new(format!("no-op jobs drained, {name}"), values, Unit::PerSecond);
    Outcome {
        rows: vec![
            row("20,000 waiting", &few).aim(Aim::AtLeast(40_000.0)),
            row("20,000 waiting", &few).beside("the same statements by one client", &limit),
            row("1,000,000 waiting", &free).beside("20,000 waiting", &few).aim_ratio(Aim::AtLeast(0.95)),
            row("1,000,000 waiting, one snapshot held", &held).beside("none held", &free).aim_ratio(Aim::AtLeast(0.9)),
        ],
        notes: vec![format!(
            "Drained: one process with `--workers {WORKERS}`; from the commit that made the jobs claimable to the end of \
             the last, by the database's clock; each job was found in `finished_jobs` once, at its first attempt. The \
             held snapshot is a REPEATABLE READ transaction from before the first job to after the last. The same \
             statements by one client: claims of {CLAIM} and their ends in a loop, no thread and no job in between"
        )],
    }
}

/// Makes jobs claimable by one commit, and gives the time just before it.
fn insert(queue: &Database, jobs: i64, session: &mut Session) -> String {
    let sql = format!(
        "BEGIN;
         INSERT INTO jobs (id, kind, queue, target, priority, state, args, labels, created_at, run_at, queued_xid,
                           timeout_ms, max_attempts, result_ttl_ms)
         SELECT (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint), 12, '0') || '70008000' || lpad(to_hex(n), 12, '0'))::uuid,
                'noop', 'default', 'default', 5, 'queued', '{{}}', '{{}}', now(), now(), pg_current_xact_id(), 3600000,
                3, 86400000
           FROM generate_series(1, {jobs}) n;
         ANALYZE jobs"
    );
    session.execute_batch(&sql).unwrap();
    // What the writer of another process says of its rows.
    let hint = session.query("SELECT id::text, to_char(run_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') FROM jobs ORDER BY run_at, id LIMIT 1", &[]).unwrap();
    let hint = format!(
        r#"{{"origin":"{}","message":{{"ready":[{{"queue":"default","priority":5,"run_at":"{}","id":"{}"}}]}}}}"#,
        Uuid::new_v4(),
        hint.get(0, 1).unwrap(),
        hint.get(0, 0).unwrap()
    );
    session.query("SELECT pg_notify('slowlane', $1)", &[Some(&hint)]).unwrap();
    queue.run("CHECKPOINT");
    let released = session.query("SELECT clock_timestamp()::text", &[]).unwrap().get(0, 0).unwrap().to_owned();
    session.execute_batch("COMMIT").unwrap();
    released
}

fn drain(queue: &Database, target: &Database, jobs: i64, hold: bool) -> f64 {
    queue.clear();
    let server = Server::start(queue, target, &["--workers", &WORKERS.to_string()]);
    let mut holder = queue.session();
    if hold {
        holder.execute_batch("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM jobs").unwrap();
    }
    let released = insert(queue, jobs, &mut queue.session());
    let until = Instant::now() + PATIENCE;
    while finished(&server) < jobs {
        assert!(Instant::now() < until, "not drained in time");
        std::thread::sleep(Duration::from_millis(50));
    }
    if hold {
        holder.execute_batch("COMMIT").unwrap();
    }
    check(queue, jobs);
    let took = queue
        .text(&format!("SELECT extract(epoch FROM max(finished_at) - '{released}'::timestamptz) FROM finished_jobs"));
    jobs as f64 / took.parse::<f64>().unwrap()
}

fn finished(server: &Server) -> i64 {
    let (_, metrics) = http::get(server.address, "/metrics");
    let line = metrics.lines().find_map(|line| line.strip_prefix("slowlane_attempts_finished_total{"));
    line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

fn check(queue: &Database, jobs: i64) {
    assert_eq!(queue.count("SELECT count(*) FROM jobs"), 0, "jobs left");
    let once = "SELECT count(*) FROM finished_jobs WHERE state = 'succeeded' AND attempt = 1 AND lease = 1";
    assert_eq!(queue.count(once), jobs, "finished jobs");
    assert_eq!(queue.count("SELECT count(*) FROM finished_jobs"), jobs, "finished jobs in all");
    assert_eq!(queue.count("SELECT count(*) FROM all_attempts WHERE outcome = 'succeeded'"), jobs, "attempts");
}

/// The limit: one client that claims and ends, and does nothing in between.
fn by_sql(queue: &Database) -> f64 {
    queue.clear();
    insert(queue, FEW, &mut queue.session());
    let purpose = Purpose { name: "limit", statement_timeout: PATIENCE };
    let mut connection = Manager::queue(&queue.dsn, &purpose).open().unwrap();
    let worker_id = Uuid::now_v7();
    let identity = Identity { id: worker_id, hostname: "limit".into(), threads: 1, ..Identity::default() };
    workers::register(&mut connection, &identity).unwrap();
    let names = |name: &str| vec![name.to_owned()];
    let scope = Scope { worker_id, kinds: names("noop"), targets: names("default"), queues: names("default") };
    let mut positions = Positions::default();
    let began = Instant::now();
    loop {
        let claimed = claim::claim(&mut connection, &scope, "default", &mut positions, CLAIM).unwrap();
        if claimed.is_empty() {
            break;
        }
        let end = || Ending::from(Finished::plain(JobState::Succeeded));
        let ends: Vec<_> = claimed.iter().map(|job| (job.lease, end())).collect();
        assert_eq!(finish::end(&mut connection, &ends).unwrap().len(), ends.len());
    }
    let per_second = FEW as f64 / began.elapsed().as_secs_f64();
    check(queue, FEW);
    workers::unregister(&mut connection, worker_id).unwrap();
    per_second
}
