//! How many rows the next batch takes, and when it may begin. Pure: is told what the clock said.

use std::time::{Duration, Instant};

/// The most rows of a batch.
pub const MAX_BATCH_ROWS: u64 = 100_000;
/// A batch is at most so many times as large as the one before, so that one lucky batch makes no giant.
const GROWTH: u64 = 2;
/// A batch has at least the so-manieth part of the one before.
const SHRINK: u64 = 4;

/// The size of batches, steered towards a duration.
#[derive(Clone, Debug)]
pub(super) struct BatchSize {
    rows: u64,
    most: u64,
    target: Duration,
    /// Exponentially averaged over the batches of this attempt.
    nanos_per_row: Option<u64>,
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl BatchSize {
    /// Begins with `rows`, and takes `most` at most.
    pub fn new(rows: u64, most: u64, target: Duration) -> BatchSize {
        let most = most.clamp(1, MAX_BATCH_ROWS);
        BatchSize { rows: rows.clamp(1, most), most, target, nanos_per_row: None }
    }

    /// Rows of the next batch.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// A batch of `rows` took so long.
    pub fn took(&mut self, rows: u64, elapsed: Duration) {
        let average = self.averaged(nanos(elapsed) / rows.max(1));
        self.nanos_per_row = Some(average);
        let wanted = nanos(self.target) / average.max(1);
        let (least, most) = ((self.rows / SHRINK).max(1), self.rows.saturating_mul(GROWTH));
        self.rows = wanted.clamp(least, most).min(self.most);
    }

    /// Three tenths of the newest, so that one batch that met a checkpoint doesn't decide.
    fn averaged(&self, newest: u64) -> u64 {
        match self.nanos_per_row {
            Some(before) => (before.saturating_mul(7)).saturating_add(newest.saturating_mul(3)) / 10,
            None => newest,
        }
    }

    /// A batch came to nothing: the next one has half of its rows.
    pub fn split(&mut self) {
        self.rows = (self.rows / 2).max(1);
    }
}

/// At most so many rows per second, on average over the attempt's time.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    max_rate: Option<u64>,
    not_before: Instant,
}

impl Pace {
    /// From `now` on; without a rate there is nothing to wait for.
    pub fn new(max_rate: Option<u64>, now: Instant) -> Pace {
        Pace { max_rate, not_before: now }
    }

    /// A batch of `rows` began at `began`.
    pub fn took(&mut self, rows: u64, began: Instant) {
        let Some(rate) = self.max_rate else { return };
        let millis = rows.saturating_mul(1_000) / rate.max(1);
        self.not_before = self.not_before.max(began) + Duration::from_millis(millis);
    }

    /// How long until the next one may begin.
    pub fn pause(&self, now: Instant) -> Duration {
        self.not_before.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Duration = Duration::from_millis(500);

    fn size(rows: u64) -> BatchSize {
        BatchSize::new(rows, MAX_BATCH_ROWS, TARGET)
    }

    #[test]
    fn a_batch_grows_and_shrinks_within_bounds() {
        let mut size = size(1_000);
        size.took(1_000, Duration::from_micros(1));
        assert_eq!(size.rows(), 2_000);
        size.took(2_000, Duration::from_secs(60));
        assert_eq!(size.rows(), 500);
        for _ in 0..20 {
            size.took(size.rows(), Duration::from_secs(600));
        }
        assert_eq!(size.rows(), 1);
        for _ in 0..100 {
            size.took(size.rows(), Duration::ZERO);
        }
        assert_eq!(size.rows(), MAX_BATCH_ROWS);
    }

    #[test]
    fn batches_come_to_the_target() {
        // 0.25 ms for each row: 2,000 rows take 500 ms.
        for begin in [1, 1_000, 100_000] {
            let mut size = size(begin);
            for _ in 0..30 {
                size.took(size.rows(), Duration::from_micros(250) * u32::try_from(size.rows()).unwrap());
            }
            assert_eq!(size.rows(), 2_000, "from {begin}");
        }
    }

    #[test]
    fn one_slow_batch_does_not_decide() {
        let mut size = size(2_000);
        (0..10).for_each(|_| size.took(2_000, TARGET));
        assert_eq!(size.rows(), 2_000);
        size.took(2_000, TARGET * 2);
        assert!(size.rows() > 1_500, "{}", size.rows());
    }

    #[test]
    fn what_fails_is_halved_down_to_one() {
        let mut size = size(5);
        let halves: Vec<u64> = (0..4)
            .map(|_| {
                size.split();
                size.rows()
            })
            .collect();
        assert_eq!(halves, [2, 1, 1, 1]);
    }

    #[test]
    fn a_rate_spaces_batches() {
        let now = Instant::now();
        let mut pace = Pace::new(Some(100), now);
        assert_eq!(pace.pause(now), Duration::ZERO);
        pace.took(50, now);
        assert_eq!(pace.pause(now), Duration::from_millis(500));
        // What took longer than it had to saves nothing up for the next.
        let later = now + Duration::from_secs(10);
        pace.took(100, later);
        assert_eq!(pace.pause(later), Duration::from_secs(1));
        assert_eq!(Pace::new(None, now).pause(now), Duration::ZERO);
    }
}
