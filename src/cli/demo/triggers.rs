//! What servers are asked for: heavy work, all of it at one moment, and a path that needs the database.

use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::json;

use crate::cli::Failure;
use crate::cli::demo::child::{Dialect, Server};
use crate::cli::demo::probes::{ANSWER_TIMEOUT, agent};
use crate::cli::demo::statement::Statement;

/// How long a first job may take.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a server that was started again may take to do what it had accepted.
pub const RECOVERY_TIMEOUT: Duration = Duration::from_secs(90);
/// Between two looks at jobs that end.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The states of a job that an earlier run left.
const UNFINISHED: [&str; 3] = ["queued", "running", "scheduled"];

/// Requests for heavy work that are ready to be sent, each by a thread of its own. The threads end when this is
/// dropped.
pub struct Prepared {
    threads: Vec<Sender<Start>>,
    refused: Arc<OnceLock<String>>,
    answers: Receiver<Answer>,
}

/// Tells a thread its number, and when all of them were told to send.
type Start = (usize, Instant);

/// Requests that were sent at one moment.
pub struct Triggers {
    /// When they were sent.
    pub began: Instant,
    count: usize,
    refused: Arc<OnceLock<String>>,
    answers: Receiver<Answer>,
}

/// What became of one of them.
pub struct Answer {
    number: usize,
    /// How long it took.
    pub latency: Duration,
    /// The work's id; none when there was no success.
    pub accepted: Option<String>,
}

impl Prepared {
    /// Makes them ready.
    ///
    /// # Errors
    /// When a thread can't be started.
    pub fn new(
        server: &Server,
        dialect: Dialect,
        statement: Statement,
        queue: &str,
        count: usize,
    ) -> Result<Prepared, Failure> {
        let (address, refused) = (server.address, Arc::<OnceLock<String>>::default());
        let (done, answers) = channel();
        let mut threads = Vec::new();
        for _ in 0..count {
            let (start, told) = channel::<Start>();
            let (done, refused, queue) = (done.clone(), Arc::clone(&refused), queue.to_owned());
            let send = move || {
                // Nobody tells it when the run was given up meanwhile.
                let Ok((number, began)) = told.recv_timeout(START_TIMEOUT) else { return };
                let accepted = match dialect {
                    Dialect::Events => trigger(address, number),
                    Dialect::SlowlaneLog => submit(address, &queue, statement.sql()),
                };
                let latency = began.elapsed();
                if let Err(why) = &accepted {
                    refused.get_or_init(|| why.to_string());
                }
                // Whoever waited has given up.
                let _ = done.send(Answer { number, latency, accepted: accepted.ok() });
            };
            std::thread::Builder::new().name("slowlane-trigger".to_owned()).spawn(send)?;
            threads.push(start);
        }
        Ok(Prepared { threads, refused, answers })
    }

    /// Sends all of them now, with numbers from this one on.
    pub fn send(self, first: usize) -> Triggers {
        let began = Instant::now();
        for (number, thread) in (first..).zip(&self.threads) {
            // One that has ended has no answer, and is missed by whoever counts them.
            let _ = thread.send((number, began));
        }
        Triggers { began, count: self.threads.len(), refused: self.refused, answers: self.answers }
    }
}

impl Triggers {
    /// Why the first of those that had no success has none.
    pub fn refused(&self) -> Option<&str> {
        self.refused.get().map(String::as_str)
    }

    /// Waits for all of them; in their order.
    ///
    /// # Errors
    /// When a thread died.
    pub fn answers(self) -> Result<Vec<Answer>, Failure> {
        let until = self.began + ANSWER_TIMEOUT + START_TIMEOUT;
        let mut answers = Vec::new();
        while answers.len() < self.count {
            let left = until.saturating_duration_since(Instant::now());
            answers.push(self.answers.recv_timeout(left).map_err(|_| "a thread that sent a request died")?);
        }
        answers.sort_by_key(|answer| answer.number);
        Ok(answers)
    }
}

/// The path of a request that asks the database: for slowlane, the status of a job.
///
/// # Errors
/// When slowlane doesn't run its first job.
pub fn database_path(server: &Server, dialect: Dialect, queue: &str) -> Result<String, Failure> {
    match dialect {
        Dialect::Events => Ok("/database".to_owned()),
        Dialect::SlowlaneLog => {
            withdraw_leftovers(server.address)?;
            let id = submit(server.address, queue, "SELECT 1")?;
            match server.wait_until(START_TIMEOUT, |observed| observed.done.contains_key(&id)) {
                true => Ok(format!("/v1/jobs/{id}")),
                false => Err("slowlane did not run its first job in time".into()),
            }
        }
    }
}

#[derive(Deserialize)]
struct AcceptedWork {
    id: String,
}

fn trigger(address: SocketAddr, number: usize) -> Result<String, Failure> {
    let answer = agent().post(format!("http://{address}/trigger?id={number}")).send_empty()?;
    Ok(serde_json::from_reader::<_, AcceptedWork>(answer.into_body().into_reader())?.id)
}

fn submit(address: SocketAddr, queue: &str, sql: &str) -> Result<String, Failure> {
    let body = json!({"kind": "query", "queue": queue, "labels": {"demo": "blocking"}, "args": {"sql": sql}});
    let request = agent().post(format!("http://{address}/v1/jobs")).header("content-type", "application/json");
    let answer = request.send(body.to_string())?;
    Ok(serde_json::from_reader::<_, AcceptedWork>(answer.into_body().into_reader())?.id)
}

/// A run that was broken off leaves jobs, in a queue of its own: they are cancelled, and waited for, before the next
/// one is measured.
fn withdraw_leftovers(address: SocketAddr) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Page {
        jobs: Vec<AcceptedWork>,
    }
    let until = Instant::now() + RECOVERY_TIMEOUT;
    while Instant::now() < until {
        let mut left = Vec::new();
        for state in UNFINISHED {
            let url = format!("http://{address}/v1/jobs?label.demo=blocking&state={state}&limit=500");
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
    Err("jobs of an earlier run, labelled demo=blocking, are still there: cancel them, and try again".into())
}
