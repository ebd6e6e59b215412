//! One run of one server: so many heavy statements at once, and what its other requests see meanwhile. And one kill of
//! it, and what that loses.
//!
//! Knows a server by its [`Contestant`]: how it is started, and how it says what it does. What is measured, and how, is
//! the same for all of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::cli::Failure;
use crate::cli::demo::child::{Dialect, Server};
use crate::cli::demo::probes::{Probe, Spread, agent};
use crate::cli::private::Databases;
use crate::db::pool::Manager;

/// The queue of a slowlane that is measured: other processes on the same database leave it alone.
pub const QUEUE: &str = "demo_blocking";
/// Between two intended requests of a probe.
const PROBE_EVERY: Duration = Duration::from_millis(25);
/// How long a first job may take.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long an idle server is looked at.
const IDLE_SPAN: Duration = Duration::from_secs(5);
/// Requests before the first that counts open connections.
const WARM_UP: Duration = Duration::from_millis(500);
/// The longest time for all of a run's work.
const RUN_TIMEOUT: Duration = Duration::from_secs(600);
/// When a server is killed, after the first request was sent.
const KILL_AFTER: Duration = Duration::from_secs(1);
/// When the sessions are counted that a killed server left at work: a server process notices a closed connection
/// when it has something to say to it.
const LOOK_AFTER_KILL: Duration = Duration::from_millis(500);
/// How long a server that was asked to stop may take before it is killed after all.
const STOP_TIMEOUT: Duration = Duration::from_secs(150);
/// How long a server that was started again may take to do what it had accepted.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(90);
/// How long a server that remembers nothing is listened to for signs of the opposite, after its last session ended.
const SILENCE: Duration = Duration::from_secs(3);
/// Between two looks at the sessions.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A heavy statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Waits in the server for 2 s, and costs nothing.
    Sleep,
    /// Waits for 1 s.
    ShortSleep,
    /// Keeps a core busy: medians over every flight.
    Cpu,
}

impl Work {
    /// The statement.
    pub fn sql(self) -> &'static str {
        match self {
            Work::Sleep => "SELECT pg_sleep(2)",
            Work::ShortSleep => "SELECT pg_sleep(1)",
            Work::Cpu => {
                "SELECT carrier, percentile_cont(0.5) WITHIN GROUP (ORDER BY arr_delay), stddev(distance / nullif(air_time, 0)) FROM flights GROUP BY 1"
            }
        }
    }

    /// What it is called in a table.
    pub fn name(self) -> &'static str {
        match self {
            Work::Sleep => "pg_sleep(2)",
            Work::ShortSleep => "pg_sleep(1)",
            Work::Cpu => "aggregate",
        }
    }
}

/// Where the servers work.
#[derive(Clone)]
pub struct Place {
    /// This program.
    pub program: PathBuf,
    /// The databases.
    pub databases: Databases,
}

/// A server that is measured.
pub struct Contestant {
    /// What it is called in a table.
    pub name: String,
    /// How it says what it does.
    pub dialect: Dialect,
    /// What starts it, for one heavy statement.
    pub command: Box<Starter>,
}

/// What starts a server.
pub type Starter = dyn Fn(&Place, Work) -> Command + Send + Sync;

impl Contestant {
    /// The demo's own server that does it wrong in this way.
    pub fn wrong(name: &str, way: &'static str) -> Contestant {
        let command = move |place: &Place, work: Work| {
            let mut command = place.program();
            command.args(["demo", "wrong", way, "--sql", work.sql()]);
            command.env("SLOWLANE_DEMO_URL", place.databases.demo.to_url().expose());
            command
        };
        Contestant { name: name.to_owned(), dialect: Dialect::Events, command: Box::new(command) }
    }

    /// slowlane as anybody starts it, but for a queue of its own and a log that tells the threads.
    pub fn slowlane() -> Contestant {
        let command = |place: &Place, _: Work| {
            let mut command = place.program();
            command.args(["serve", "--listen", "127.0.0.1:0", "--target", "default=SLOWLANE_DEMO_URL"]);
            command.args(["--queues", QUEUE, "--shutdown-grace", "4s", "--log-format", "json", "--log"]).arg(
                "warn,slowlane::cli::serve=info,slowlane::http::submit=debug,slowlane::worker::executor=debug,\
                 slowlane::worker::completer=debug",
            );
            command.env("SLOWLANE_DATABASE_URL", place.databases.queue.to_url().expose());
            command.env("SLOWLANE_DEMO_URL", place.databases.demo.to_url().expose());
            command
        };
        Contestant { name: "slowlane".to_owned(), dialect: Dialect::SlowlaneLog, command: Box::new(command) }
    }

    fn start(&self, place: &Place, work: Work) -> Result<Server, Failure> {
        Server::start((self.command)(place, work), self.dialect)
    }
}

impl Place {
    /// This program, with nothing around it that would be a setting.
    fn program(&self) -> Command {
        let mut command = Command::new(&self.program);
        for (name, _) in std::env::vars_os() {
            let is_setting = name.to_str().is_some_and(|name| name.starts_with("SLOWLANE_") || name == "DATABASE_URL");
            if is_setting {
                command.env_remove(name);
            }
        }
        // No slowlane.toml of the folder in which the demo was called.
        command.current_dir("/");
        command
    }

    /// How many sessions run this work now.
    fn sessions(&self, connection: &mut PgConnection, work: Work) -> Result<i64, Failure> {
        #[derive(QueryableByName)]
        struct Count {
            #[diesel(sql_type = BigInt)]
            count: i64,
        }
        let sql = "SELECT count(*) FROM pg_stat_activity
                    WHERE datname = current_database() AND state = 'active' AND query = $1";
        let count: Count = diesel::sql_query(sql).bind::<Text, _>(work.sql()).get_result(connection)?;
        Ok(count.count)
    }

    fn observer(&self) -> Result<PgConnection, Failure> {
        Ok(Manager::work(&self.databases.demo, "SET statement_timeout = 10000").open()?)
    }
}

/// The threads of one piece of work, by the system's numbers.
#[derive(Clone, Copy, Debug, Serialize, PartialEq, Eq)]
pub struct Threads {
    /// The one whose handler took it.
    pub handler: Option<i64>,
    /// The one that worked on it.
    pub work: Option<i64>,
}

/// What the other requests of an idle server see.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Idle {
    /// GET /healthz.
    pub healthz_ms: Spread,
    /// A request that needs a connection of the pool.
    pub pooled_ms: Spread,
}

/// One run: so many heavy statements at once.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// The server's name.
    pub server: String,
    /// The heavy statement.
    pub work: Work,
    /// How many at once.
    pub at_once: usize,
    /// How long each caller waited for an answer.
    pub trigger_ms: Spread,
    /// GET /healthz meanwhile.
    pub healthz_ms: Spread,
    /// A request that needs a connection of the pool, meanwhile.
    pub pooled_ms: Spread,
    /// The same two before there was anything to do.
    pub idle: Idle,
    /// From the first request to the end of the last work, in milliseconds.
    pub all_done_ms: f64,
    /// For each piece of work.
    pub threads: Vec<Threads>,
}

/// What a kill of a server loses.
#[derive(Clone, Debug, Serialize)]
pub struct Kill {
    /// The server's name.
    pub server: String,
    /// The heavy statement.
    pub work: Work,
    /// `SIGKILL` or `SIGTERM`.
    pub signal: &'static str,
    /// Requests that were sent at once.
    pub sent: usize,
    /// Those that had been answered with success when the server ended.
    pub accepted: usize,
    /// Those of them that were done before it ended.
    pub done_before: usize,
    /// Those of them that were done after it was started again.
    pub done_after: usize,
    /// Those of them that nobody did or will do.
    pub lost: usize,
    /// Of all, how many were done more than once.
    pub repeated: usize,
    /// From the signal to the end of the process, in milliseconds.
    pub stopped_after_ms: f64,
    /// It went on, and had to be killed.
    pub had_to_be_killed: bool,
    /// Sessions that were still at work half a second after its end.
    pub sessions_left: i64,
}

/// A server under measure, with what an idle one looks like.
pub struct Measured<'m> {
    contestant: &'m Contestant,
    server: Server,
    work: Work,
    pooled: String,
    idle: Idle,
}

impl Measured<'_> {
    /// Starts a server, and looks at it while it is idle.
    ///
    /// # Errors
    /// When it doesn't start.
    pub fn start<'m>(place: &Place, contestant: &'m Contestant, work: Work) -> Result<Measured<'m>, Failure> {
        let server = contestant.start(place, work)?;
        let pooled = pooled_path(&server, contestant.dialect)?;
        let (healthz, pooled_probe) = probes(&server, &pooled)?;
        std::thread::sleep(WARM_UP);
        healthz.stop().and(pooled_probe.stop())?;
        let (healthz, pooled_probe) = probes(&server, &pooled)?;
        std::thread::sleep(IDLE_SPAN);
        let idle = Idle { healthz_ms: healthz.stop()?, pooled_ms: pooled_probe.stop()? };
        Ok(Measured { contestant, server, work, pooled, idle })
    }

    /// Has it do so many pieces of its work at once. `on_done` is told how many of them are done.
    ///
    /// # Errors
    /// When a request is refused, or not everything is done within 10 minutes.
    pub fn run(&self, at_once: usize, on_done: impl Fn(usize)) -> Result<Run, Failure> {
        let before: usize = self.server.heard().done.len();
        let (healthz, pooled) = probes(&self.server, &self.pooled)?;
        let triggers = Triggers::send(self.server.address, self.contestant.dialect, self.work, at_once, before)?;
        let until = Instant::now() + RUN_TIMEOUT;
        let is_done = loop {
            let is_done = self.server.wait_until(LOOK_EVERY, |heard| {
                let done = heard.done.len().saturating_sub(before);
                on_done(done);
                done >= at_once || heard.failed()
            });
            if is_done || triggers.refused.load(Ordering::Relaxed) || Instant::now() > until {
                break is_done && !self.server.heard().failed();
            }
        };
        let all_done_ms = milliseconds(triggers.began.elapsed());
        let answers = triggers.answers()?;
        let (healthz_ms, pooled_ms) = (healthz.stop()?, pooled.stop()?);
        if let Some(refused) = answers.iter().find_map(|answer| answer.accepted.as_ref().err()) {
            return Err(format!("{}: a request was refused: {refused}", self.contestant.name).into());
        }
        if !is_done {
            let last = self.server.heard().last_lines();
            return Err(format!("{}: not everything was done in time: {last}", self.contestant.name).into());
        }
        let heard = self.server.heard();
        let threads = answers
            .iter()
            .filter_map(|answer| answer.accepted.as_ref().ok())
            .map(|id| Threads { handler: heard.handled.get(id).copied(), work: heard.working.get(id).copied() });
        let latencies: Vec<Duration> = answers.iter().map(|answer| answer.latency).collect();
        Ok(Run {
            server: self.contestant.name.clone(),
            work: self.work,
            at_once,
            trigger_ms: Spread::of(&latencies),
            healthz_ms,
            pooled_ms,
            idle: self.idle,
            all_done_ms,
            threads: threads.collect(),
        })
    }
}

/// Starts a server, gives it so much work at once, and sends it a signal one second later; then starts it again, and
/// counts what is done in the end.
///
/// # Errors
/// When it doesn't start, or the sessions can't be counted.
pub fn kill(
    place: &Place,
    contestant: &Contestant,
    work: Work,
    at_once: usize,
    signal: Signal,
) -> Result<Kill, Failure> {
    let mut observer = place.observer()?;
    let server = contestant.start(place, work)?;
    // As for a run: what an earlier one left isn't counted here.
    pooled_path(&server, contestant.dialect)?;
    let triggers = Triggers::send(server.address, contestant.dialect, work, at_once, 0)?;
    std::thread::sleep(KILL_AFTER.saturating_sub(triggers.began.elapsed()));
    let stopped = server.signal_and_wait(signal, STOP_TIMEOUT)?;
    let had_to_be_killed = stopped.is_none();
    let stopped_after_ms = milliseconds(stopped.unwrap_or(STOP_TIMEOUT));
    if had_to_be_killed {
        server.signal_and_wait(Signal::SIGKILL, STOP_TIMEOUT)?;
    }
    let ended = Instant::now();
    server.wait_until(SILENCE, |heard| heard.has_ended());
    let answers = triggers.answers()?;
    let accepted: Vec<&String> = answers.iter().filter_map(|answer| answer.accepted.as_ref().ok()).collect();
    let mut done = server.heard().done.clone();
    let done_before = accepted.iter().filter(|id| done.contains_key(**id)).count();
    std::thread::sleep(LOOK_AFTER_KILL.saturating_sub(ended.elapsed()));
    let sessions_left = place.sessions(&mut observer, work)?;
    drop(server);

    let next = contestant.start(place, work)?;
    let is_done = |done: &BTreeMap<String, u32>, id: &String| done.contains_key(id);
    let all_done = |more: &BTreeMap<String, u32>| accepted.iter().all(|id| is_done(&done, id) || is_done(more, id));
    let patience = match contestant.dialect {
        // A server that keeps no record can only be waited for until nothing of its work runs any more.
        Dialect::Events => {
            let until = Instant::now() + RECOVERY_TIMEOUT;
            while place.sessions(&mut observer, work)? > 0 && Instant::now() < until {
                std::thread::sleep(LOOK_EVERY);
            }
            SILENCE
        }
        Dialect::SlowlaneLog => RECOVERY_TIMEOUT,
    };
    next.wait_until(patience, |heard| all_done(&heard.done));
    for (id, times) in &next.heard().done {
        *done.entry(id.clone()).or_default() += times;
    }
    let done_at_last = accepted.iter().filter(|id| done.contains_key(**id)).count();
    Ok(Kill {
        server: contestant.name.clone(),
        work,
        signal: signal.as_str(),
        sent: at_once,
        accepted: accepted.len(),
        done_before,
        done_after: done_at_last - done_before,
        lost: accepted.len() - done_at_last,
        repeated: done.values().filter(|times| **times > 1).count(),
        stopped_after_ms,
        had_to_be_killed,
        sessions_left,
    })
}

fn milliseconds(span: Duration) -> f64 {
    span.as_secs_f64() * 1_000.0
}

fn probes(server: &Server, pooled: &str) -> Result<(Probe, Probe), Failure> {
    let url = |path: &str| format!("http://{}{path}", server.address);
    Ok((Probe::start(url("/healthz"), PROBE_EVERY)?, Probe::start(url(pooled), PROBE_EVERY)?))
}

/// The path of a request that needs a connection of the pool: for slowlane, the status of a job.
fn pooled_path(server: &Server, dialect: Dialect) -> Result<String, Failure> {
    match dialect {
        Dialect::Events => Ok("/pooled".to_owned()),
        Dialect::SlowlaneLog => {
            withdraw_leftovers(server.address)?;
            let id = submit(server.address, "SELECT 1")?;
            match server.wait_until(START_TIMEOUT, |heard| heard.done.contains_key(&id)) {
                true => Ok(format!("/v1/jobs/{id}")),
                false => Err("slowlane did not run its first job in time".into()),
            }
        }
    }
}

/// Requests for heavy work, all sent at once, each by a thread of its own.
struct Triggers {
    /// When they were sent.
    began: Instant,
    /// One of them had no success.
    refused: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Answer>>,
}

/// What became of one of them.
struct Answer {
    latency: Duration,
    /// The work's id, or why there is none.
    accepted: Result<String, String>,
}

impl Triggers {
    fn send(
        address: SocketAddr,
        dialect: Dialect,
        work: Work,
        at_once: usize,
        first: usize,
    ) -> Result<Triggers, Failure> {
        let start = Arc::new(Barrier::new(at_once + 1));
        let (began, refused) = (Arc::<OnceLock<Instant>>::default(), Arc::<AtomicBool>::default());
        let mut threads = Vec::new();
        for n in first..first + at_once {
            let (start, began, refused) = (Arc::clone(&start), Arc::clone(&began), Arc::clone(&refused));
            let send = move || {
                start.wait();
                let began = *began.get_or_init(Instant::now);
                let accepted = match dialect {
                    Dialect::Events => trigger(address, n),
                    Dialect::SlowlaneLog => submit(address, work.sql()),
                };
                refused.fetch_or(accepted.is_err(), Ordering::Relaxed);
                Answer { latency: began.elapsed(), accepted: accepted.map_err(|error| error.to_string()) }
            };
            threads.push(std::thread::Builder::new().name("slowlane-trigger".to_owned()).spawn(send)?);
        }
        start.wait();
        Ok(Triggers { began: *began.get_or_init(Instant::now), refused, threads })
    }

    /// Waits for all of them.
    fn answers(self) -> Result<Vec<Answer>, Failure> {
        let died = |_| Failure::from("a thread that sent a request died");
        self.threads.into_iter().map(|thread| thread.join().map_err(died)).collect()
    }
}

#[derive(Deserialize)]
struct AcceptedWork {
    id: String,
}

fn trigger(address: SocketAddr, n: usize) -> Result<String, Failure> {
    let answer = agent().post(format!("http://{address}/trigger?id={n}")).send_empty()?;
    Ok(serde_json::from_reader::<_, AcceptedWork>(answer.into_body().into_reader())?.id)
}

fn submit(address: SocketAddr, sql: &str) -> Result<String, Failure> {
    let body = json!({"kind": "query", "queue": QUEUE, "labels": {"demo": "blocking"}, "args": {"sql": sql}});
    let request = agent().post(format!("http://{address}/v1/jobs")).header("content-type", "application/json");
    let answer = request.send(body.to_string())?;
    Ok(serde_json::from_reader::<_, AcceptedWork>(answer.into_body().into_reader())?.id)
}

/// A run that was broken off leaves jobs: they are cancelled, and waited for, before the next one is measured.
fn withdraw_leftovers(address: SocketAddr) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Page {
        jobs: Vec<AcceptedWork>,
    }
    let until = Instant::now() + RECOVERY_TIMEOUT;
    while Instant::now() < until {
        let mut left = Vec::new();
        for state in ["queued", "running", "scheduled"] {
            let url = format!("http://{address}/v1/jobs?queue={QUEUE}&state={state}&limit=500");
            let page: Page = serde_json::from_reader(agent().get(url).call()?.into_body().into_reader())?;
            left.extend(page.jobs);
        }
        if left.is_empty() {
            return Ok(());
        }
        for AcceptedWork { id } in left {
            // One that has ended meanwhile refuses: the next look doesn't find it.
            let _ = agent().post(format!("http://{address}/v1/jobs/{id}/cancel")).send_empty();
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Err(format!("jobs of an earlier run are still in the queue {QUEUE}: cancel them, and try again").into())
}
