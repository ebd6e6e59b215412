//! What tests stand on: a private Postgres, a database for each test, the server in this process or as one of its
//! own, and a client.

pub mod app;
pub mod child;
pub mod client;
pub mod clock;
pub mod history;
pub mod kinds;
pub mod load;
pub mod pooler;
pub mod postgres;
pub mod proxy;
pub mod standby;
pub mod tls;

use std::time::{Duration, Instant};

/// How long anything may take that a test waits for.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Looks again and again until something is so; fails the test when it isn't in time.
#[track_caller]
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < until, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
