//! How this process does, by its own beats: known to its threads without asking the database.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::queue::fleet::workers::STOP_WORK_AFTER;

/// Between two beats there may be so much time without a doubt: two of them missing.
const GAP_MS: u64 = 6_000;

static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// From 1: 0 stands for no beat.
fn ms_of(at: Instant) -> u64 {
    u64::try_from(at.saturating_duration_since(*EPOCH).as_millis()).unwrap_or(u64::MAX).saturating_add(1)
}

/// How this process does, for /readyz. Written by the worker's threads, read without any database.
#[derive(Debug, Default)]
pub struct Health {
    /// Milliseconds from [`EPOCH`] to the last beat that reached the database, and one; 0 before the first. By a clock
    /// that nobody sets: a correction of the time must not look like an outage.
    last_beat_ms: AtomicU64,
    /// The first beat of those that came without a gap, counted alike.
    steady_since_ms: AtomicU64,
    has_workers: AtomicBool,
    stopping: AtomicBool,
    /// Requests that wait for something are to be answered now.
    closing: watch::Sender<bool>,
}

impl Health {
    /// This process runs workers: it is ready only while they beat.
    pub fn expect_workers(&self) {
        self.has_workers.store(true, Ordering::Relaxed);
    }

    /// A beat reached the database that was sent at `at`. Its answer may have taken seconds, and the database counts from
    /// the beat: so does whoever has to stop before it is declared dead.
    pub fn beat(&self, at: Instant) {
        self.beat_at(ms_of(at));
    }

    /// How long beats have come without a gap, up to now. Zero when one is missing at the moment: whoever was away
    /// itself, or cut off, can't tell who else was.
    pub fn steady_for(&self) -> Duration {
        Duration::from_millis(self.steady_at(ms_of(Instant::now())))
    }

    fn beat_at(&self, now: u64) {
        let last = self.last_beat_ms.load(Ordering::Acquire);
        // Stored first: whoever sees the new beat must not take it for one of the old series.
        if last == 0 || now.saturating_sub(last) > GAP_MS {
            self.steady_since_ms.store(now, Ordering::Release);
        }
        self.last_beat_ms.store(now, Ordering::Release);
    }

    fn steady_at(&self, now: u64) -> u64 {
        let last = self.last_beat_ms.load(Ordering::Acquire);
        if last == 0 || now.saturating_sub(last) > GAP_MS {
            return 0;
        }
        now.saturating_sub(self.steady_since_ms.load(Ordering::Acquire))
    }

    /// The process is going down: nothing new is accepted or claimed.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// The process is going down.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// The process is about to close its sockets: whoever waits is answered as things are.
    pub fn close(&self) {
        self.closing.send_replace(true);
    }

    /// Waits until [`Health::close`] was called.
    pub async fn closing(&self) {
        // The sender lives as long as this does.
        let _ = self.closing.subscribe().wait_for(|closing| *closing).await;
    }

    /// The workers of this process, if it has any, reach the database.
    pub fn workers_ready(&self) -> bool {
        if !self.has_workers.load(Ordering::Relaxed) {
            return true;
        }
        let last = self.last_beat_ms.load(Ordering::Relaxed);
        let age = ms_of(Instant::now()).saturating_sub(last);
        last > 0 && u128::from(age) < STOP_WORK_AFTER.as_millis()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::fleet::workers::DEAD_AFTER;

    #[test]
    fn a_gap_between_beats_starts_the_count_anew() {
        let health = Health::default();
        assert_eq!(health.steady_at(60_000), 0, "there was no beat yet");
        for beat in [1_000, 3_000, 5_000, 11_000] {
            health.beat_at(beat);
        }
        assert_eq!(health.steady_at(12_000), 11_000);
        assert_eq!(health.steady_at(17_000), 16_000);
        // Stopped for a while: before the first beat afterwards, and after it.
        assert_eq!(health.steady_at(17_001), 0);
        health.beat_at(20_000);
        assert_eq!(health.steady_at(20_000), 0);
        health.beat_at(22_000);
        assert_eq!(health.steady_at(23_000), 3_000);
    }

    #[test]
    fn beats_of_now_are_steady() {
        let health = Health::default();
        assert_eq!(health.steady_for(), Duration::ZERO);
        health.beat(Instant::now());
        assert!(health.steady_for() < DEAD_AFTER);
    }

    #[test]
    fn a_beat_counts_from_when_it_was_sent() {
        let health = Health::default();
        let sent = Instant::now() + Duration::from_secs(3600);
        health.beat(sent);
        assert_eq!(health.last_beat_ms.load(Ordering::Relaxed), ms_of(sent));
    }
}
