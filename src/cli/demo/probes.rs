//! Requests at intended times: each is sent at its time, whatever became of those before it, and its latency counts
//! from that time. A client that waits for one answer before it asks again would see a server that stalls for a minute
//! as one slow answer (Gil Tene calls this coordinated omission).
//!
//! Knows nothing of what answers.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::cli::Failure;

/// The longest wait for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);
/// Connections of one probe. When all of them wait, the next requests are late, and their latency says so.
const MAX_CONNECTIONS: usize = 256;
/// Small, because there may be many threads.
const STACK_BYTES: usize = 256 * 1024;

/// How latencies are spread, in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spread {
    /// The median.
    pub p50: f64,
    /// What 99 of 100 stay below.
    pub p99: f64,
    /// The longest.
    pub max: f64,
    /// How many were measured, those that failed too.
    pub count: usize,
    /// How many had another answer than success, or none.
    pub failed: usize,
}

impl Spread {
    /// Of these; all zeros when there are none.
    pub fn of(latencies: &[Duration]) -> Spread {
        let mut sorted: Vec<f64> = latencies.iter().map(|latency| latency.as_secs_f64() * 1_000.0).collect();
        sorted.sort_by(f64::total_cmp);
        let count = sorted.len();
        // The nearest rank: the value of a request that was made.
        let at = |per_cent: usize| {
            let rank = (count * per_cent).div_ceil(100).max(1);
            sorted.get(rank - 1).copied().unwrap_or_default()
        };
        Spread { p50: at(50), p99: at(99), max: at(100), count, failed: 0 }
    }
}

/// GETs of one path, one after the other at a fixed pace. Joined when they are stopped.
pub struct Probe {
    shared: Arc<Shared>,
    clock: JoinHandle<()>,
}

struct Shared {
    url: String,
    state: Mutex<State>,
    /// For those who send.
    due: Condvar,
    /// For the clock.
    stopped: Condvar,
}

#[derive(Default)]
struct State {
    /// Intended times of requests that nobody has taken yet.
    due: VecDeque<Instant>,
    idle: usize,
    threads: Vec<JoinHandle<()>>,
    stopped: bool,
    latencies: Vec<Duration>,
    failures: usize,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Probe {
    /// Begins now.
    ///
    /// # Errors
    /// When a thread can't be started.
    pub fn start(url: String, every: Duration) -> Result<Probe, Failure> {
        let shared = Arc::new(Shared { url, state: Mutex::default(), due: Condvar::new(), stopped: Condvar::new() });
        let ticking = Arc::clone(&shared);
        let clock =
            std::thread::Builder::new().name("slowlane-probe".to_owned()).spawn(move || tick(&ticking, every))?;
        Ok(Probe { shared, clock })
    }

    /// Sends no more, and waits for the answers that are due.
    ///
    /// # Errors
    /// When a thread of it died.
    pub fn stop(self) -> Result<Spread, Failure> {
        self.shared.state().stopped = true;
        self.shared.stopped.notify_all();
        self.shared.due.notify_all();
        let died = || Failure::from("a thread of the probes died");
        self.clock.join().map_err(|_| died())?;
        let threads = std::mem::take(&mut self.shared.state().threads);
        for thread in threads {
            thread.join().map_err(|_| died())?;
        }
        let state = self.shared.state();
        Ok(Spread { failed: state.failures, ..Spread::of(&state.latencies) })
    }
}

/// Makes a request due at each intended time, and sees that there is somebody to send it.
fn tick(shared: &Arc<Shared>, every: Duration) {
    let mut next = Instant::now();
    let mut state = shared.state();
    while !state.stopped {
        let now = Instant::now();
        if next > now {
            state = shared.stopped.wait_timeout(state, next - now).unwrap_or_else(PoisonError::into_inner).0;
            continue;
        }
        state.due.push_back(next);
        next += every;
        if state.idle < state.due.len() && state.threads.len() < MAX_CONNECTIONS {
            let shared = Arc::clone(shared);
            let sender = std::thread::Builder::new().name("slowlane-probe".to_owned()).stack_size(STACK_BYTES);
            match sender.spawn(move || send(&shared)) {
                Ok(thread) => state.threads.push(thread),
                Err(_) => state.failures += 1,
            }
        }
        shared.due.notify_one();
    }
}

/// Sends what is due, on a connection of its own, until nothing will be.
fn send(shared: &Shared) {
    let agent = agent();
    let mut state = shared.state();
    loop {
        if let Some(intended) = state.due.pop_front() {
            drop(state);
            let answered = agent.get(&shared.url).call().and_then(|answer| answer.into_body().read_to_vec()).is_ok();
            let latency = intended.elapsed();
            state = shared.state();
            state.latencies.push(latency);
            state.failures += usize::from(!answered);
        } else if state.stopped {
            return;
        } else {
            state.idle += 1;
            state = shared.due.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }
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
        let of = |count: u64| Spread::of(&(1..=count).rev().map(Duration::from_millis).collect::<Vec<_>>());
        let values = |spread: Spread| (spread.p50, spread.p99, spread.max, spread.count);
        assert_eq!(values(of(100)), (50.0, 99.0, 100.0, 100));
        assert_eq!(values(of(1)), (1.0, 1.0, 1.0, 1));
        assert_eq!(values(of(201)), (101.0, 199.0, 201.0, 201));
        assert_eq!(values(of(0)), (0.0, 0.0, 0.0, 0));
    }
}
