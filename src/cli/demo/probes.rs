//! Requests at intended times: each is sent at its time, whatever became of those before it, and its latency counts
//! from that time. A client that waits for one answer before it asks again would see a server that stalls for a minute
//! as one slow answer (Gil Tene calls this coordinated omission).
//!
//! Knows nothing of what answers.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::cli::Failure;

/// The longest wait for an answer, from the time at which its request was to be sent.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);
/// What a thread may need beyond that.
const SLACK: Duration = Duration::from_secs(10);
/// Connections of one probe. When all of them wait, the next requests are late, and their latency says so.
const MAX_CONNECTIONS: usize = 256;
/// Small, because there may be many threads.
const STACK_BYTES: usize = 256 * 1024;
const THREAD: &str = "slowlane-probe";

/// How latencies are spread, in milliseconds. A request that failed took longer than any other: what falls on it is
/// infinite, and `null` in JSON.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spread {
    /// The median.
    pub p50: f64,
    /// What 99 of 100 are at or below.
    pub p99: f64,
    /// The longest.
    pub max: f64,
    /// How many were measured, those that failed too.
    pub count: usize,
    /// How many had another answer than success, or none.
    pub failed: usize,
}

impl Spread {
    /// Of these, and of so many that failed; all zeros when there are none.
    pub fn of(latencies: &[Duration], failed: usize) -> Spread {
        let mut sorted: Vec<f64> = latencies.iter().map(|latency| latency.as_secs_f64() * 1_000.0).collect();
        sorted.resize(sorted.len() + failed, f64::INFINITY);
        sorted.sort_by(f64::total_cmp);
        let count = sorted.len();
        // The nearest rank: the value of a request that was made.
        let at = |per_cent: usize| {
            let rank = (count * per_cent).div_ceil(100).max(1);
            sorted.get(rank - 1).copied().unwrap_or_default()
        };
        Spread { p50: at(50), p99: at(99), max: at(100), count, failed }
    }
}

/// GETs of one path at a fixed pace, for a fixed time. Called off when it is dropped.
pub struct Probe {
    shared: Arc<Shared>,
    /// When every request has had its answer, or has failed.
    until: Instant,
}

struct Shared {
    url: String,
    state: Mutex<State>,
    /// A request is due, or nothing more will be.
    due: Condvar,
    /// A request ended, or nothing more will be due.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Intended times of requests that nobody has taken yet.
    due: VecDeque<Instant>,
    /// Requests that were sent and not answered yet.
    sent: usize,
    idle: usize,
    senders: usize,
    /// Nothing more will be due.
    over: bool,
    latencies: Vec<Duration>,
    failures: usize,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'s>(&self, what: &Condvar, state: MutexGuard<'s, State>, patience: Duration) -> MutexGuard<'s, State> {
        what.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Probe {
    /// Begins now, and intends to send as many requests as go into the span, whatever becomes of them.
    ///
    /// # Errors
    /// When a thread can't be started.
    pub fn start(url: String, every: Duration, span: Duration) -> Result<Probe, Failure> {
        let shared = Shared { url, state: Mutex::default(), due: Condvar::new(), changed: Condvar::new() };
        let probe = Probe { shared: Arc::new(shared), until: Instant::now() + span + ANSWER_TIMEOUT + SLACK };
        // One at least: when more can't be had, requests are late, and their latency says so.
        start_sender(&probe.shared)?;
        probe.shared.state().senders = 1;
        let ticking = Arc::clone(&probe.shared);
        std::thread::Builder::new().name(THREAD.to_owned()).spawn(move || tick(&ticking, every, span))?;
        Ok(probe)
    }

    /// Waits for the end of the span, and for every answer.
    ///
    /// # Errors
    /// When a thread of it died.
    pub fn finish(self) -> Result<Spread, Failure> {
        let mut state = self.shared.state();
        while !(state.over && state.due.is_empty() && state.sent == 0) {
            let left = self.until.checked_duration_since(Instant::now()).ok_or("a thread of the probes died")?;
            state = self.shared.wait(&self.shared.changed, state, left);
        }
        Ok(Spread::of(&state.latencies, state.failures))
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.over = true;
        state.due.clear();
        drop(state);
        self.shared.due.notify_all();
        self.shared.changed.notify_all();
    }
}

fn start_sender(shared: &Arc<Shared>) -> std::io::Result<()> {
    let shared = Arc::clone(shared);
    let thread = std::thread::Builder::new().name(THREAD.to_owned()).stack_size(STACK_BYTES);
    thread.spawn(move || send(&shared)).map(drop)
}

/// Makes a request due at each intended time, and sees that there is somebody to send it.
fn tick(shared: &Arc<Shared>, every: Duration, span: Duration) {
    let mut next = Instant::now();
    let end = next + span;
    let mut state = shared.state();
    while !state.over && next < end {
        let now = Instant::now();
        if next > now {
            state = shared.wait(&shared.changed, state, next - now);
            continue;
        }
        state.due.push_back(next);
        next += every;
        if state.idle < state.due.len() && state.senders < MAX_CONNECTIONS && start_sender(shared).is_ok() {
            state.senders += 1;
        }
        shared.due.notify_one();
    }
    state.over = true;
    drop(state);
    shared.due.notify_all();
    shared.changed.notify_all();
}

/// Sends what is due, on a connection of its own, until nothing will be.
fn send(shared: &Shared) {
    let agent = agent();
    let mut state = shared.state();
    loop {
        if let Some(intended) = state.due.pop_front() {
            state.sent += 1;
            drop(state);
            let answered = ask(&agent, &shared.url, ANSWER_TIMEOUT.saturating_sub(intended.elapsed()));
            let latency = intended.elapsed();
            state = shared.state();
            state.sent -= 1;
            match answered {
                true => state.latencies.push(latency),
                false => state.failures += 1,
            }
            shared.changed.notify_all();
        } else if state.over {
            return;
        } else {
            state.idle += 1;
            state = shared.wait(&shared.due, state, ANSWER_TIMEOUT);
            state.idle -= 1;
        }
    }
}

/// Whether there was a whole answer of success in time. What is due for too long already isn't sent.
fn ask(agent: &ureq::Agent, url: &str, patience: Duration) -> bool {
    let request = agent.get(url).config().timeout_global(Some(patience)).build();
    !patience.is_zero() && request.call().and_then(|answer| answer.into_body().read_to_vec()).is_ok()
}

/// A client that asks nobody but the server that it is told.
pub fn agent() -> ureq::Agent {
    let settings =
        ureq::Agent::config_builder().timeout_global(Some(ANSWER_TIMEOUT)).max_redirects(0).proxy(None).build();
    ureq::Agent::from(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_the_values_of_the_nearest_ranks() {
        let of = |count: u64| Spread::of(&(1..=count).rev().map(Duration::from_millis).collect::<Vec<_>>(), 0);
        let values = |spread: Spread| (spread.p50, spread.p99, spread.max, spread.count);
        assert_eq!(values(of(100)), (50.0, 99.0, 100.0, 100));
        assert_eq!(values(of(1)), (1.0, 1.0, 1.0, 1));
        assert_eq!(values(of(201)), (101.0, 199.0, 201.0, 201));
        assert_eq!(values(of(0)), (0.0, 0.0, 0.0, 0));
    }

    #[test]
    fn what_failed_took_longer_than_anything_else() {
        let quick = [Duration::from_millis(1); 98];
        let spread = Spread::of(&quick, 2);
        assert_eq!((spread.p50, spread.p99, spread.count, spread.failed), (1.0, f64::INFINITY, 100, 2));
        assert!(serde_json::to_value(spread).unwrap()["p99"].is_null());
    }

    #[test]
    fn as_many_requests_count_as_go_into_the_span_however_late_the_answers_are() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let probe = Probe::start(url, Duration::from_millis(5), Duration::from_millis(100)).unwrap();
        // Nobody accepts before all of them are sent or wait to be.
        let mut state = probe.shared.state();
        while !state.over {
            state = probe.shared.wait(&probe.shared.changed, state, SLACK);
        }
        let waited = Instant::now();
        drop(state);
        let answer = move || {
            use std::io::{Read, Write};
            for mut stream in listener.incoming().map_while(Result::ok) {
                let mut head = [0; 1024];
                if stream.read(&mut head).unwrap_or(0) > 0 {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                }
            }
        };
        std::thread::spawn(answer);
        let spread = probe.finish().unwrap();
        assert_eq!((spread.count, spread.failed), (20, 0), "{spread:?}");
        assert!(spread.max >= spread.p50 && spread.max > 90.0, "{spread:?} {:?}", waited.elapsed());
    }
}
