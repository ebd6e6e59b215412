//! Servers as child processes: how one is started, what it says of its threads, and how it ends.
//!
//! Knows two ways of saying it: lines of JSON that servers of the demo print, and slowlane's own log.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use serde_json::Value;

use crate::cli::Failure;

/// How long a server may take until it listens.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the end of a process that was killed is waited for.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks whether a process has ended.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Standard output and standard error.
const STREAMS: usize = 2;
/// As many of its last lines are shown when something goes wrong.
const SHOWN_LINES: usize = 5;

/// How a server says what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `{"event": "listening", "url"}`, and `handled`, `working`, `done` and `failed` with `id` and `thread`, on
    /// standard output.
    Events,
    /// slowlane's log as JSON, on standard error.
    SlowlaneLog,
}

/// What a server said so far.
#[derive(Debug, Default)]
pub struct Observed {
    address: Option<SocketAddr>,
    /// By the work's id, the thread whose handler took it.
    pub handled: BTreeMap<String, i64>,
    /// By the work's id, the thread that works on it.
    pub working: BTreeMap<String, i64>,
    /// By the work's id, how often it was said to be done.
    pub done: BTreeMap<String, u32>,
    /// How often work was said to have ended otherwise.
    pub failed: usize,
    /// Streams that have ended.
    ended: usize,
    /// The last lines that were none of the events.
    last: Vec<String>,
}

impl Observed {
    /// The last lines that were none of the events, for a message.
    pub fn last_lines(&self) -> String {
        match self.last.is_empty() {
            true => "it said nothing else".to_owned(),
            false => self.last.join(" | "),
        }
    }

    /// Nothing more will be said.
    pub fn has_ended(&self) -> bool {
        self.ended == STREAMS
    }

    fn add(&mut self, event: Event) {
        match event {
            Event::Listening(address) => self.address = Some(address),
            Event::Handled(id, thread) => drop(self.handled.insert(id, thread)),
            Event::Working(id, thread) => drop(self.working.insert(id, thread)),
            Event::Done(id) => *self.done.entry(id).or_default() += 1,
            Event::Failed => self.failed += 1,
        }
    }

    fn add_other(&mut self, line: String) {
        if self.last.len() == SHOWN_LINES {
            self.last.remove(0);
        }
        self.last.push(line);
    }
}

#[derive(Default)]
struct Output {
    observed: Mutex<Observed>,
    changed: Condvar,
}

impl Output {
    fn observed(&self) -> MutexGuard<'_, Observed> {
        self.observed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something is so.
    fn wait<T>(&self, patience: Duration, is_so: impl Fn(&Observed) -> Option<T>) -> Option<T> {
        let until = Instant::now() + patience;
        let mut observed = self.observed();
        loop {
            if let Some(found) = is_so(&observed) {
                return Some(found);
            }
            let left = until.checked_duration_since(Instant::now())?;
            observed = self.changed.wait_timeout(observed, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Every server that was started; nothing when the demo was asked to stop, and no more may be.
static STARTED: Mutex<Option<Vec<Weak<Mutex<Child>>>>> = Mutex::new(Some(Vec::new()));

/// Kills every server that still runs, and lets no other start.
pub fn kill_all() {
    let started = STARTED.lock().unwrap_or_else(PoisonError::into_inner).take();
    for process in started.iter().flatten().filter_map(Weak::upgrade) {
        kill_and_wait(&process);
    }
}

/// Starts a process that [`kill_all`] knows.
fn spawn(command: &mut Command) -> Result<Arc<Mutex<Child>>, Failure> {
    let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    let started = started.as_mut().ok_or("the demo is stopping")?;
    let process = Arc::new(Mutex::new(command.spawn()?));
    started.push(Arc::downgrade(&process));
    Ok(process)
}

fn kill_and_wait(process: &Mutex<Child>) {
    // One that has ended already is no matter.
    let _ = locked(process).kill();
    let until = Instant::now() + KILL_TIMEOUT;
    while matches!(locked(process).try_wait(), Ok(None)) && Instant::now() < until {
        std::thread::sleep(LOOK_EVERY);
    }
}

fn locked(process: &Mutex<Child>) -> MutexGuard<'_, Child> {
    process.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running server. Killed when it is dropped.
pub struct Server {
    /// Where it answers.
    pub address: SocketAddr,
    process: Arc<Mutex<Child>>,
    output: Arc<Output>,
    /// The demo's servers end with it.
    _stdin: Option<ChildStdin>,
}

impl Server {
    /// Starts it, and waits until it says where it listens. libpq's variables of this process aren't passed on: the
    /// databases are those that the command names.
    ///
    /// # Errors
    /// When it doesn't within a minute, with its last lines.
    pub fn start(mut command: Command, dialect: Dialect) -> Result<Server, Failure> {
        let is_of_libpq = |name: &std::ffi::OsString| name.as_encoded_bytes().starts_with(b"PG");
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_of_libpq(name)) {
            command.env_remove(name);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let process = spawn(&mut command)?;
        let output = Arc::<Output>::default();
        let (out, err, stdin) = {
            let mut process = locked(&process);
            (process.stdout.take(), process.stderr.take(), process.stdin.take())
        };
        let streams: [Option<Box<dyn Read + Send>>; STREAMS] = [
            out.map(|stream| -> Box<dyn Read + Send> { Box::new(stream) }),
            err.map(|stream| -> Box<dyn Read + Send> { Box::new(stream) }),
        ];
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut server = Server { address: nowhere, process, output: Arc::clone(&output), _stdin: stdin };
        for stream in streams.into_iter().flatten() {
            let output = Arc::clone(&output);
            std::thread::Builder::new()
                .name("slowlane-output".to_owned())
                .spawn(move || read_lines(stream, dialect, &output))?;
        }
        let listening = output.wait(START_TIMEOUT, |observed| match (observed.address, observed.has_ended()) {
            (Some(address), _) => Some(Ok(address)),
            (None, true) => Some(Err(observed.last_lines())),
            (None, false) => None,
        });
        match listening {
            Some(Ok(address)) => server.address = address,
            Some(Err(last)) => return Err(format!("a server of the demo did not start: {last}").into()),
            None => {
                let last = output.observed().last_lines();
                return Err(format!("a server of the demo did not start in time: {last}").into());
            }
        }
        Ok(server)
    }

    /// What it said so far.
    pub fn observed(&self) -> MutexGuard<'_, Observed> {
        self.output.observed()
    }

    /// Waits until something is so of what it said; whether it became so in time.
    pub fn wait_until(&self, patience: Duration, is_so: impl Fn(&Observed) -> bool) -> bool {
        self.output.wait(patience, |observed| is_so(observed).then_some(())).is_some()
    }

    /// Sends it a signal, and waits for its end: how long that took, or nothing when it went on.
    ///
    /// # Errors
    /// When it can't be signalled or looked at.
    pub fn signal_and_wait(&self, signal: Signal, patience: Duration) -> Result<Option<Duration>, Failure> {
        let began = Instant::now();
        let mut process = locked(&self.process);
        // Under the lock, so that nobody has its end told meanwhile: then its number could be another's.
        if process.try_wait()?.is_none() {
            kill(Pid::from_raw(i32::try_from(process.id())?), signal)?;
        }
        drop(process);
        while began.elapsed() < patience {
            if locked(&self.process).try_wait()?.is_some() {
                return Ok(Some(began.elapsed()));
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(None)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        kill_and_wait(&self.process);
    }
}

fn read_lines(stream: impl Read, dialect: Dialect, output: &Output) {
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        let event = serde_json::from_str(&line).ok().and_then(|value| match dialect {
            Dialect::Events => event_line(value),
            Dialect::SlowlaneLog => log_line(value),
        });
        match event {
            Some(event) => output.observed().add(event),
            None => output.observed().add_other(line),
        }
        output.changed.notify_all();
    }
    output.observed().ended += 1;
    output.changed.notify_all();
}

enum Event {
    Listening(SocketAddr),
    Handled(String, i64),
    Working(String, i64),
    Done(String),
    Failed,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
enum EventLine {
    Listening { url: String },
    Handled { id: String, thread: i64 },
    Working { id: String, thread: i64 },
    Done { id: String },
    Failed {},
}

fn event_line(line: Value) -> Option<Event> {
    Some(match serde_json::from_value(line).ok()? {
        EventLine::Listening { url } => Event::Listening(address(&url)?),
        EventLine::Handled { id, thread } => Event::Handled(id, thread),
        EventLine::Working { id, thread } => Event::Working(id, thread),
        EventLine::Done { id } => Event::Done(id),
        EventLine::Failed {} => Event::Failed,
    })
}

#[derive(Deserialize)]
struct LogLine {
    message: String,
    thread_id: i64,
    job: Option<String>,
}

fn log_line(line: Value) -> Option<Event> {
    let LogLine { message, thread_id, job } = serde_json::from_value(line).ok()?;
    match (message.as_str(), job) {
        ("accepted a job", Some(job)) => Some(Event::Handled(job, thread_id)),
        ("an attempt begins", Some(job)) => Some(Event::Working(job, thread_id)),
        ("a job succeeded", Some(job)) => Some(Event::Done(job)),
        ("a job failed" | "a job was cancelled", Some(_)) => Some(Event::Failed),
        (message, None) => message.strip_prefix("serving on ").and_then(address).map(Event::Listening),
        _ => None,
    }
}

fn address(url: &str) -> Option<SocketAddr> {
    url.strip_prefix("http://")?.parse().ok()
}
