//! How long a job waits before it is tried again.

use std::time::Duration;

/// When a job that failed in a way worth another try runs again.
#[derive(Clone, Copy, Debug)]
pub struct RetryPolicy {
    /// The delay after the first failure. Doubles with each further one.
    pub base: Duration,
    /// The longest delay.
    pub cap: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        RetryPolicy { base: Duration::from_secs(2), cap: Duration::from_secs(600) }
    }
}

impl RetryPolicy {
    /// The delay after the failure of attempt `attempt` (from 1): exponential, then between half and all of it,
    /// so that jobs which failed together don't come back together.
    pub fn delay(&self, attempt: i32) -> Duration {
        let doublings = u32::try_from(attempt.saturating_sub(1)).unwrap_or(0).min(20);
        let full = self.base.saturating_mul(1 << doublings).min(self.cap);
        full.mul_f64(rand::random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_come_later_and_later_and_never_in_step() {
        let policy = RetryPolicy { base: Duration::from_secs(2), cap: Duration::from_secs(60) };
        for (attempt, most) in [(1, 2), (2, 4), (3, 8), (5, 32), (6, 60), (i32::MAX, 60)] {
            let most = Duration::from_secs(most);
            let delays: Vec<Duration> = (0..50).map(|_| policy.delay(attempt)).collect();
            assert!(delays.iter().all(|delay| *delay >= most / 2 && *delay <= most), "{attempt}: {delays:?}");
            assert!(delays.iter().any(|delay| *delay != delays[0]), "{attempt}");
        }
    }
}
