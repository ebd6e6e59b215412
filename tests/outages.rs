//! Databases that go away without a word, and come back: silence is noticed within seconds, nothing hangs, nobody
//! storms the server, nobody is declared dead for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::serialize::{Output, ToSql};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use slowlane::db::DbError;
use slowlane::db::pool::{self, Manager, Purpose};
use slowlane::pq::{Patience, PqErrorKind, Session};
use slowlane::queue::fleet::signals::Signals;
use slowlane::queue::fleet::workers::DEAD_AFTER;
use slowlane::queue::intake::request::{AcceptError, Accepted, Principal, Submission};
use slowlane::queue::intake::writer::Writer;
use slowlane::queue::{JobSpec, RawJson};
use uuid::Uuid;

use crate::support::app::TestApp;
use crate::support::child::Server;
use crate::support::client::Client;
use crate::support::load::{Load, Servers};
use crate::support::postgres::{Database, Postgres};
use crate::support::proxy::{Mode, Proxy};
use crate::support::{PATIENCE, eventually, history};

fn later() -> Value {
    json!({"kind": "query", "args": {"sql": "SELECT 1"}, "run_at": "2999-01-01T00:00:00Z"})
}

/// The same database, through a proxy.
fn behind_a_proxy(database: &Database) -> (Database, Proxy) {
    let proxy = Proxy::before(&database.dsn);
    (Database { dsn: proxy.dsn(&database.dsn), superuser: database.superuser.clone() }, proxy)
}

#[track_caller]
fn is_a_503(answer: &crate::support::client::Answer) {
    assert_eq!(answer.problem().0, 503, "{}", answer.text());
    assert!(answer.header("retry-after").is_some());
}

/// Connections on loan, by the process' own count.
fn on_loan(client: &Client) -> f64 {
    let metrics = client.get("/metrics").text();
    let gauges = metrics.lines().filter(|line| line.starts_with("slowlane_pool_in_use{"));
    gauges.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

#[test]
fn a_queue_that_swallows_everything_is_noticed_and_everything_goes_on_by_itself() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let (through, proxy) = behind_a_proxy(&queue);
    let server = Server::serve(&through, &target, &[]);
    let id = server.client.submit(&later());
    let known = Servers::new(&[server.client.address]);
    let load = Load::start(&known, 2, &json!({"kind": "query", "args": {"sql": "SELECT pg_sleep(0.05)"}}));
    load.wait_for(20);
    let listening = "SELECT string_agg(pid::text, ',') FROM pg_stat_activity
        WHERE application_name = 'slowlane listener' AND datname = current_database()";
    eventually("it listens", || !queue.text(listening).is_empty());
    let old_listener = queue.text(listening);

    proxy.set(Mode::Blackhole);
    // Every way into the database is stuck by now, and no answer to a request is.
    std::thread::scope(|scope| {
        let gets: Vec<_> = (0..8).map(|_| scope.spawn(|| server.client.get(&format!("/v1/jobs/{id}")))).collect();
        let posts: Vec<_> = (0..4).map(|_| scope.spawn(|| server.client.post("/v1/jobs", &later()))).collect();
        assert_eq!(server.client.get("/healthz").status, 200);
        for answer in gets.into_iter().chain(posts) {
            is_a_503(&answer.join().unwrap());
        }
    });
    eventually("it says that it isn't ready", || server.client.get("/readyz").status == 503);
    eventually("the silence of the line for hints is noticed", || {
        server.log().contains("hints from other processes don't arrive")
    });
    eventually("the silence of the heartbeat is noticed", || server.log().contains("the queue can't be reached"));
    assert_eq!(server.client.get("/healthz").status, 200);

    // Nothing is cut: what was swallowed stays lost, and what waits for it has to help itself.
    proxy.set(Mode::Pass);
    let back = Instant::now();
    eventually("it is ready again", || server.client.get("/readyz").status == 200);
    eventually("jobs are accepted again", || server.client.post("/v1/jobs", &later()).status == 202);
    println!("everything worked again after {:?}", back.elapsed());
    assert_eq!(server.client.get(&format!("/v1/jobs/{id}")).status, 200);
    load.wait_for(20);
    let ids = load.stop();
    eventually("hints arrive again", || server.log().contains("hints from other processes arrive again"));
    eventually("by another session", || {
        let listener = queue.text(listening);
        !listener.is_empty() && listener != old_listener
    });
    // What was accepted before, meanwhile or afterwards has run, and ended once.
    eventually("everything that is due has ended", || {
        queue.run("UPDATE jobs SET run_at = now() WHERE state = 'scheduled' AND run_at < '2900-01-01'");
        queue.count("SELECT count(*) FROM jobs WHERE run_at < '2900-01-01'") == 0
    });
    history::check(&queue, &ids);
    assert_eq!(queue.count("SELECT count(*) FROM finished_jobs WHERE state <> 'succeeded'"), 0);
    eventually("nothing hangs", || on_loan(&server.client) == 0.0);
    assert!(server.log().contains("a connection is given up"), "{}", server.log());
}

#[test]
fn a_session_of_a_target_that_swallows_everything_is_replaced() {
    let postgres = Postgres::shared();
    let (queue, (target, proxy)) = (postgres.queue(), behind_a_proxy(&postgres.demo()));
    let app = TestApp::on(queue, target, |config| config.workers = 2);
    let jobs = [
        json!({"kind": "query", "args": {"sql": "SELECT 1"}}),
        json!({"kind": "carrier_report", "args": {"month": 1}}),
    ];
    for job in &jobs {
        // One that lies in the pool, and is dead without knowing it.
        assert_eq!(app.ended(&app.submit(job))["state"], "succeeded");
        proxy.set(Mode::Blackhole);
        let swallowed = proxy.swallowed();
        let id = app.submit(job);
        eventually("the session is asked, and doesn't answer", || proxy.swallowed() > swallowed);
        proxy.set(Mode::Pass);
        let back = Instant::now();
        let job = app.ended(&id);
        println!("a job on a dead session ended {:?} after the target came back", back.elapsed());
        assert_eq!((&job["state"], &job["attempt"]), (&json!("succeeded"), &json!(1)));
    }
}

#[test]
fn the_session_of_a_broken_connection_is_ended_whatever_it_calls_itself() {
    let postgres = Postgres::shared();
    let (queue, (target, proxy)) = (postgres.queue(), behind_a_proxy(&postgres.work()));
    let app = TestApp::on(queue, target, |_| {});
    let disguised = "SELECT set_config('application_name', 'somebody else', false), pg_sleep(600)";
    let id = app.submit(&json!({"kind": "query", "args": {"sql": disguised}, "max_attempts": 1}));
    let sleeping =
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()";
    eventually("it sleeps", || app.target.count(sleeping) == 1);
    // The server doesn't notice while it sleeps.
    proxy.cut();
    let job = app.ended(&id);
    assert_eq!((&job["state"], &job["error"]["code"]), (&json!("failed"), &json!("connection_lost")), "{job}");
    assert_eq!(app.target.count(sleeping), 0);
}

#[test]
fn threads_come_free_after_the_deadline_though_the_target_stays_silent() {
    let postgres = Postgres::shared();
    let (queue, (target, proxy)) = (postgres.queue(), behind_a_proxy(&postgres.work()));
    let app = TestApp::on(queue, target, |config| config.workers = 4);
    let job = json!({"kind": "query", "args": {"sql": "SELECT pg_sleep(600)"}, "timeout_ms": 5000});
    let ids: Vec<String> = (0..4).map(|_| app.submit(&job)).collect();
    let sleeping =
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()";
    eventually("all sleep", || app.target.count(sleeping) == 4);
    proxy.set(Mode::Blackhole);
    let silent = Instant::now();
    for id in &ids {
        let job = app.ended(id);
        assert_eq!((&job["state"], &job["error"]["code"]), (&json!("failed"), &json!("timeout")));
    }
    let took = silent.elapsed();
    println!("4 threads came free {took:?} after the target went silent");
    // The deadline, 15 s in which sessions may still answer, and what one thread needs to see that nothing can be ended
    // there: none waits until the others have seen it.
    assert!(took < Duration::from_secs(36), "{took:?}");
    proxy.set(Mode::Pass);
    assert_eq!(app.query("SELECT 1", &json!([]))["state"], "succeeded");
    assert!(app.get("/metrics").text().contains("slowlane_work_threads_replaced_total 0"));
}

#[test]
fn a_session_that_gets_no_answer_in_time_is_lost() {
    let (database, proxy) = behind_a_proxy(&Postgres::shared().work());
    let mut session = Session::connect(&database.dsn).unwrap();
    let mut streams = Session::connect(&database.dsn).unwrap();
    session.allow(Patience::Each(Duration::from_secs(1)));
    session.ping().unwrap();
    streams.prepare("SELECT repeat('x', 1000) FROM generate_series(1, 1000000)", &[]).unwrap();
    streams.allow(Patience::Within(Duration::from_secs(3)));
    let mut rows = streams.stream(&[]).unwrap();
    rows.next_chunk().unwrap();
    proxy.set(Mode::Blackhole);
    let asked = Instant::now();
    let error = session.query("SELECT 1", &[]).err().unwrap();
    println!("noticed after {:?}", asked.elapsed());
    assert_eq!((error.kind, error.message.as_str()), (PqErrorKind::ConnectionLost, "no answer came within 1 s"));
    assert!(error.retryable() && session.is_broken());
    // A stream ends as well, and never as if it were complete.
    let ended = loop {
        match rows.next_chunk() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it looked complete"),
            Err(error) => break error,
        }
    };
    assert_eq!((ended.kind, ended.message.as_str()), (PqErrorKind::ConnectionLost, "no answer came in time"));
}

#[test]
fn a_diesel_connection_that_gets_no_answer_in_time_is_lost() {
    let (database, proxy) = behind_a_proxy(&Postgres::shared().queue());
    let purpose = Purpose { name: "test", statement_timeout: Duration::from_secs(1) };
    let open = || {
        proxy.set(Mode::Pass);
        Manager::queue(&database.dsn, &purpose).open().unwrap()
    };
    // By whatever way a statement is sent.
    type Ask = fn(&mut PgConnection) -> QueryResult<()>;
    let asks: [(&str, Ask); 4] = [
        ("prepared", |c| diesel::sql_query("SELECT 1").execute(c).map(drop)),
        ("loaded", |c| diesel::select(diesel::dsl::sql::<diesel::sql_types::Integer>("1")).load::<i32>(c).map(drop)),
        ("simple", |c| c.batch_execute("SELECT 1")),
        ("transaction", |c| c.transaction(|_| Ok(()))),
    ];
    for (name, ask) in asks {
        let mut connection = open();
        ask(&mut connection).unwrap();
        // Idle for longer than its limit, it stays.
        proxy.set(Mode::Blackhole);
        let asked = Instant::now();
        let error = DbError::from(ask(&mut connection).unwrap_err());
        println!("{name}: noticed after {:?}", asked.elapsed());
        assert!(error.is_unavailable(), "{name}: {error:?}");
        assert!(diesel::r2d2::R2D2Connection::is_broken(&mut connection), "{name}");
    }
    // A COMMIT whose answer is swallowed.
    let mut connection = open();
    let lost = connection.transaction(|_| {
        proxy.set(Mode::Mute);
        Ok::<_, diesel::result::Error>(())
    });
    assert!(DbError::from(lost.unwrap_err()).is_unavailable());
}

#[test]
fn a_quiet_connection_and_a_slow_statement_stay() {
    let database = Postgres::shared().queue();
    let purpose = Purpose { name: "test", statement_timeout: Duration::from_secs(1) };
    let mut connection = Manager::queue(&database.dsn, &purpose).open().unwrap();
    let pid = "SELECT pid::text FROM pg_stat_activity WHERE application_name = 'slowlane test' AND datname = current_database()";
    let old = database.text(pid);
    // Ended by the server, which is no silence.
    let error = DbError::from(connection.batch_execute("SELECT pg_sleep(60)").unwrap_err());
    assert!(matches!(error, DbError::Busy(_)), "{error:?}");
    let idle = "SELECT state_change < now() - interval '4 s' FROM pg_stat_activity WHERE application_name = 'slowlane test' AND datname = current_database()";
    eventually("it was idle for longer than a statement may be silent", || database.text(idle) == "t");
    connection.batch_execute("SELECT 1").unwrap();
    assert_eq!(database.text(pid), old);
}

/// A value that can't be sent.
#[derive(Debug)]
struct Unsendable;

impl ToSql<diesel::sql_types::Text, Pg> for Unsendable {
    fn to_sql<'b>(&'b self, _: &mut Output<'b, '_, Pg>) -> diesel::serialize::Result {
        Err("it can't be sent".into())
    }
}

#[derive(QueryableByName)]
struct Answer {
    #[diesel(sql_type = diesel::sql_types::Text)]
    #[diesel(column_name = value)]
    _value: String,
}

#[test]
fn a_statement_that_was_never_sent_is_no_silence() {
    let database = Postgres::shared().queue();
    let purpose = Purpose { name: "test", statement_timeout: Duration::from_secs(1) };
    let manager = Manager::queue(&database.dsn, &purpose);
    let pool = pool::build(manager, 1, "test", PATIENCE, &Arc::default());
    let pid = "SELECT pid::text FROM pg_stat_activity WHERE application_name = 'slowlane test' AND datname = current_database()";
    let mut connection = pool.get().unwrap();
    let unsent = diesel::sql_query("SELECT $1 AS value").bind::<diesel::sql_types::Text, _>(Unsendable);
    let error = unsent.load::<Answer>(&mut connection).err();
    assert!(matches!(error, Some(diesel::result::Error::SerializationError(_))));
    drop(connection);
    let old = database.text(pid);
    let idle = "SELECT state_change < now() - interval '4 s' FROM pg_stat_activity WHERE application_name = 'slowlane test' AND datname = current_database()";
    eventually("it was idle for longer than a statement may be silent", || database.text(idle) != "f");
    pool.get().unwrap().batch_execute("SELECT 1").unwrap();
    assert_eq!(database.text(pid), old);
}

fn new_job(id: Uuid) -> Submission {
    Submission {
        principal: Principal::default(),
        id,
        spec: JobSpec {
            timeout_ms: 1000,
            max_attempts: 1,
            result_ttl_ms: 1000,
            ..JobSpec::new("query", RawJson::of(&json!({"sql": "SELECT 1"})).unwrap())
        },
        retry_of: None,
        idempotency: None,
    }
}

#[test]
fn a_request_that_the_writer_never_took_up_was_not_written_and_says_so() {
    let queue = Postgres::shared().queue();
    let purpose = Purpose { name: "writer", statement_timeout: PATIENCE };
    let writer = Writer::start(Manager::queue(&queue.dsn, &purpose), Arc::<Signals>::default()).unwrap();
    let mut holder = queue.session();
    holder.execute_batch("BEGIN; LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE").unwrap();
    let (held_up, withdrawn, last) = (Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7());
    actix_rt::System::new().block_on(async move {
        let accept = |id: Uuid| {
            let writer = writer.clone();
            actix_rt::spawn(async move { writer.accept(new_job(id)).await })
        };
        let first = accept(held_up);
        let blocked = queue.clone();
        let wait = move || {
            eventually("the writer is held up", || {
                blocked.count("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = 'slowlane writer' AND datname = current_database()") == 1
            });
        };
        actix_rt::task::spawn_blocking(wait).await.unwrap();
        let outcome = accept(withdrawn).await.unwrap();
        assert!(matches!(outcome, Err(AcceptError::Unavailable(_))), "{outcome:?}");
        holder.execute_batch("COMMIT").unwrap();
        assert!(matches!(first.await.unwrap(), Ok(Accepted::Created(_))));
        // What was sent after it has been written: it would have been, too.
        assert!(matches!(accept(last).await.unwrap(), Ok(Accepted::Created(_))));
        let rows = queue.text("SELECT string_agg(id::text, ' ' ORDER BY id) FROM jobs");
        assert_eq!(rows, format!("{held_up} {last}"));
    });
}

#[test]
fn a_queue_that_is_away_is_not_stormed() {
    let postgres = Postgres::shared();
    let (queue, proxy) = behind_a_proxy(&postgres.queue());
    let app = TestApp::on(queue, postgres.work(), |_| {});
    let id = app.submit(&later());
    proxy.set(Mode::Refuse);
    proxy.cut();
    // Whoever is the first to write finds the connection cut, and can't say before 5 s are over whether it was written.
    is_a_503(&app.post("/v1/jobs", &later()));
    let before = proxy.accepted();
    let (since, mut answers) = (Instant::now(), 0);
    // Whoever asks meanwhile is told at once, and nothing is tried for each of them.
    while since.elapsed() < Duration::from_secs(6) {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| is_a_503(&app.get(&format!("/v1/jobs/{id}"))));
            }
            scope.spawn(|| is_a_503(&app.post("/v1/jobs", &later())));
        });
        answers += 5;
    }
    let tries = proxy.accepted() - before;
    println!("{tries} connects in 6 s, {answers} answers");
    assert!(tries <= 30, "{tries} connects in 6 s");
    assert!(answers >= 100, "only {answers} answers in 6 s");
    proxy.set(Mode::Pass);
    let back = Instant::now();
    eventually("it comes back by itself", || app.get("/readyz").status == 200);
    eventually("jobs are accepted again", || app.post("/v1/jobs", &later()).status == 202);
    println!("everything worked again after {:?}", back.elapsed());
    assert_eq!(app.query("SELECT 1", &json!([]))["state"], "succeeded");
}

/// A running job whose owner has been dead for long.
fn orphan(queue: &Database, worker: Uuid, id: Uuid) {
    queue.run(&format!(
        "INSERT INTO jobs (id, kind, queue, target, priority, state, args, labels, created_at, run_at, lease, attempt, worker_id, started_at, deadline_at, timeout_ms, max_attempts, result_ttl_ms)
         VALUES ('{id}', 'query', 'default', 'default', 5, 'running', '{{\"sql\": \"SELECT 1\"}}', '{{}}', now(), now(), 1, 1, '{worker}', now(), now() + interval '1 hour', 60000, 3, 60000);
         INSERT INTO workers (id, hostname, pid, version, threads, kinds, queues, started_at, beat_at)
         VALUES ('{worker}', 'h', 1, 'v', 1, '{{}}', '{{}}', now(), now() - interval '1 minute')"
    ));
}

#[test]
fn a_janitor_that_was_itself_away_rescues_nobody_before_its_own_beats_are_steady() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let server = Server::serve(&queue, &target, &[]);
    let own = Uuid::parse_str(&queue.text("SELECT id FROM workers")).unwrap();
    let first = Uuid::now_v7();
    orphan(&queue, Uuid::now_v7(), first);
    let finished = |id: Uuid| queue.count(&format!("SELECT count(*) FROM finished_jobs WHERE id = '{id}'")) == 1;
    eventually("a steady janitor rescues", || finished(first));
    server.signal(Signal::SIGSTOP);
    let silent = format!("SELECT beat_at < clock_timestamp() - interval '7 s' FROM workers WHERE id = '{own}'");
    eventually("it was away for a while", || queue.text(&silent) == "t");
    let second = Uuid::now_v7();
    orphan(&queue, Uuid::now_v7(), second);
    server.signal(Signal::SIGCONT);
    eventually("it beats again", || queue.text(&silent) == "f");
    let back = Instant::now();
    eventually("it rescues again", || finished(second));
    let waited = back.elapsed();
    assert!(waited >= DEAD_AFTER - Duration::from_secs(1), "rescued after {waited:?}");
    assert_eq!(queue.text("SELECT id FROM workers"), own.to_string(), "it was declared dead itself");
}
