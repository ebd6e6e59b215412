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
/// Between two looks whether a process has ended.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Standard output and standard error.
const STREAMS: usize = 2;
/// As many of its last lines as are shown when it doesn't start.
const SHOWN_LINES: usize = 5;

/// How a server says what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `{"event": "listening", "url"}`, and `handled`, `working` and `done` with `id` and `thread`, on standard output.
    Events,
    /// slowlane's log as JSON, on standard error.
    SlowlaneLog,
}

/// What a server said so far.
#[derive(Debug, Default)]
pub struct Heard {
    address: Option<SocketAddr>,
    /// By the work's id, the thread whose handler took it.
    pub handled: BTreeMap<String, i64>,
    /// By the work's id, the thread that works on it.
    pub working: BTreeMap<String, i64>,
    /// By the work's id, how often it was said to be done.
    pub done: BTreeMap<String, u32>,
    /// Streams that have ended.
    ended: usize,
    last: Vec<String>,
}

impl Heard {
    /// It said something else than what it does: that something went wrong, or it is gone.
    pub fn failed(&self) -> bool {
        !self.last.is_empty() || self.has_ended()
    }

    /// The last lines that were none of the events.
    pub fn last_lines(&self) -> String {
        self.last.join(" | ")
    }

    /// Nothing more will be heard.
    pub fn has_ended(&self) -> bool {
        self.ended == STREAMS
    }
}

#[derive(Default)]
struct Ears {
    heard: Mutex<Heard>,
    changed: Condvar,
}

impl Ears {
    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something is so.
    fn wait<T>(&self, patience: Duration, is_so: impl Fn(&Heard) -> Option<T>) -> Option<T> {
        let until = Instant::now() + patience;
        let mut heard = self.heard();
        loop {
            if let Some(found) = is_so(&heard) {
                return Some(found);
            }
            let left = until.checked_duration_since(Instant::now())?;
            heard = self.changed.wait_timeout(heard, left).unwrap_or_else(PoisonError::into_inner).0;
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
    let mut process = locked(process);
    // One that has ended already is no matter.
    let _ = process.kill();
    let _ = process.wait();
}

fn locked(process: &Mutex<Child>) -> MutexGuard<'_, Child> {
    process.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running server. Killed when it is dropped.
pub struct Server {
    /// Where it answers.
    pub address: SocketAddr,
    process: Arc<Mutex<Child>>,
    ears: Arc<Ears>,
    /// The demo's servers end with it.
    _stdin: Option<ChildStdin>,
}

impl Server {
    /// Starts it, and waits until it says where it listens.
    ///
    /// # Errors
    /// When it doesn't within a minute, with its last lines.
    pub fn start(mut command: Command, dialect: Dialect) -> Result<Server, Failure> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let process = spawn(&mut command)?;
        let ears = Arc::<Ears>::default();
        let (out, err, stdin) = {
            let mut process = locked(&process);
            (process.stdout.take(), process.stderr.take(), process.stdin.take())
        };
        let streams: [Option<Box<dyn Read + Send>>; STREAMS] = [
            out.map(|stream| -> Box<dyn Read + Send> { Box::new(stream) }),
            err.map(|stream| -> Box<dyn Read + Send> { Box::new(stream) }),
        ];
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut server = Server { address: nowhere, process, ears: Arc::clone(&ears), _stdin: stdin };
        for stream in streams.into_iter().flatten() {
            let ears = Arc::clone(&ears);
            std::thread::Builder::new()
                .name("slowlane-ears".to_owned())
                .spawn(move || listen(stream, dialect, &ears))?;
        }
        let said = ears.wait(START_TIMEOUT, |heard| match (heard.address, heard.has_ended()) {
            (Some(address), _) => Some(Ok(address)),
            (None, true) => Some(Err(heard.last_lines())),
            (None, false) => None,
        });
        match said {
            Some(Ok(address)) => server.address = address,
            Some(Err(last)) => return Err(format!("a server of the demo did not start: {last}").into()),
            None => return Err("a server of the demo did not start in time".into()),
        }
        Ok(server)
    }

    /// What it said so far.
    pub fn heard(&self) -> MutexGuard<'_, Heard> {
        self.ears.heard()
    }

    /// Waits until something is so of what it said; whether it became so in time.
    pub fn wait_until(&self, patience: Duration, is_so: impl Fn(&Heard) -> bool) -> bool {
        self.ears.wait(patience, |heard| is_so(heard).then_some(())).is_some()
    }

    /// Sends it a signal, and waits for its end: how long that took, or nothing when it went on.
    ///
    /// # Errors
    /// When it can't be signalled or looked at.
    pub fn signal_and_wait(&self, signal: Signal, patience: Duration) -> Result<Option<Duration>, Failure> {
        let began = Instant::now();
        let pid = locked(&self.process).id();
        kill(Pid::from_raw(i32::try_from(pid)?), signal)?;
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

fn listen(stream: impl Read, dialect: Dialect, ears: &Ears) {
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        let said = serde_json::from_str(&line).ok().and_then(|value| match dialect {
            Dialect::Events => event(value),
            Dialect::SlowlaneLog => log_line(value),
        });
        let mut heard = ears.heard();
        match said {
            Some(Said::Listening(address)) => heard.address = Some(address),
            Some(Said::Handled(id, thread)) => drop(heard.handled.insert(id, thread)),
            Some(Said::Working(id, thread)) => drop(heard.working.insert(id, thread)),
            Some(Said::Done(id)) => *heard.done.entry(id).or_default() += 1,
            None => {
                if heard.last.len() == SHOWN_LINES {
                    heard.last.remove(0);
                }
                heard.last.push(line);
            }
        }
        drop(heard);
        ears.changed.notify_all();
    }
    ears.heard().ended += 1;
    ears.changed.notify_all();
}

enum Said {
    Listening(SocketAddr),
    Handled(String, i64),
    Working(String, i64),
    Done(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
enum Event {
    Listening { url: String },
    Handled { id: String, thread: i64 },
    Working { id: String, thread: i64 },
    Done { id: String },
}

fn event(line: Value) -> Option<Said> {
    Some(match serde_json::from_value(line).ok()? {
        Event::Listening { url } => Said::Listening(address(&url)?),
        Event::Handled { id, thread } => Said::Handled(id, thread),
        Event::Working { id, thread } => Said::Working(id, thread),
        Event::Done { id } => Said::Done(id),
    })
}

#[derive(Deserialize)]
struct LogLine {
    message: String,
    thread_id: i64,
    job: Option<String>,
    outcome: Option<String>,
}

fn log_line(line: Value) -> Option<Said> {
    let LogLine { message, thread_id, job, outcome } = serde_json::from_value(line).ok()?;
    match (message.as_str(), job) {
        ("accepted a job", Some(job)) => Some(Said::Handled(job, thread_id)),
        ("an attempt begins", Some(job)) => Some(Said::Working(job, thread_id)),
        ("an attempt ended", Some(job)) if outcome.as_deref() == Some("succeeded") => Some(Said::Done(job)),
        (message, None) => message.strip_prefix("serving on ").and_then(address).map(Said::Listening),
        _ => None,
    }
}

fn address(url: &str) -> Option<SocketAddr> {
    url.strip_prefix("http://")?.parse().ok()
}
