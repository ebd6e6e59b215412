//! What it costs to look at 100 running jobs every second: of this process, and of the target's server.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::Scale;
use crate::http;
use crate::postgres::{Database, Postgres};
use crate::report::{Aim, Outcome, Row, Unit, Values};
use crate::server::Server;

const JOBS: i64 = 100;

pub fn run(postgres: &Postgres, scale: Scale) -> Outcome {
    let (queue, target) = (postgres.queue(), postgres.target());
    let [mut ours, mut servers] = [(); 2].map(|()| Values::default());
    let server = Server::start(&queue, &target, &["--workers", &JOBS.to_string()]);
    let span = Duration::from_secs(scale.of(20, 3));
    for _ in 0..scale.rounds {
        queue.clear();
        let sleep = json!({"kind": "query", "args": {"sql": "SELECT pg_sleep(120)"}});
        let ids: Vec<String> = (0..JOBS).map(|_| http::submit(server.address, &sleep)).collect();
        wait_until(&queue, "SELECT count(*) FROM job_progress WHERE wait_event = 'Timeout:PgSleep'");
        let pid = sampler(&target);
        let before = (server.thread_cpu("slowlane-sample"), crate::server::cpu_of(pid), Instant::now());
        std::thread::sleep(span);
        let seconds = before.2.elapsed().as_secs_f64();
        let spent = |now: Duration, before: Duration| (now - before).as_secs_f64() * 1000.0 / seconds;
        ours.push(spent(server.thread_cpu("slowlane-sample"), before.0));
        servers.push(spent(crate::server::cpu_of(pid), before.1));
        ids.iter().for_each(|id| http::cancel(server.address, id));
        wait_until(&queue, "SELECT count(*) FROM finished_jobs");
    }
    Outcome {
        rows: vec![
            Row::new("looking at 100 running jobs, each second: slowlane's thread", &ours, Unit::Milliseconds)
                .aim(Aim::AtMost(10.0)),
            Row::new("the same: the target's server", &servers, Unit::Milliseconds).aim(Aim::AtMost(20.0)),
        ],
        notes: vec![
            "Looking at running jobs: processor time per second, of the thread that looks and of the server process that answers it, \
             by the kernel's own counts over 20 s"
                .to_owned(),
        ],
    }
}

fn sampler(target: &Database) -> u32 {
    let sql =
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'slowlane sampler' AND datname = current_database()";
    target.text(sql).parse().unwrap()
}

fn wait_until(queue: &Database, count: &str) {
    let until = Instant::now() + Duration::from_secs(60);
    while queue.count(count) < JOBS {
        assert!(Instant::now() < until, "not all jobs came so far: {count}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
