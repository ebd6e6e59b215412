//! How a process reaches a database, shared by all of its connections there: when one can't be opened, the others
//! don't all find that out for themselves.
//!
//! After a failure nobody tries before a jittered, growing pause is over; whoever asks meanwhile is refused at once,
//! with the last reason. Then one tries, and the first success lets everybody in, one after the other in a moment's
//! time. So a database that is away, starting or full isn't stormed, and is found again within about two seconds.
//!
//! Once it was reached, its loss is logged, and its return: one line each, however many connections find out.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::db::error::DbError;
use crate::dsn::Dsn;
use crate::pq::{PqError, PqErrorKind};

/// The longest first pause; each failure doubles it.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// How long one try holds up others: one that a dead network swallows lasts until `connect_timeout`.
const ALONE: Duration = Duration::from_millis(1_500);
/// For so long after a success connecting is spread.
const RUSH: Duration = Duration::from_secs(1);
/// How far.
const STAGGER: Duration = Duration::from_millis(100);
/// For so long after a return a new loss isn't logged: a server without free slots comes and goes.
const SETTLING: Duration = Duration::from_secs(10);

/// A database, and how this process reaches it.
#[derive(Clone, Debug)]
pub struct Source {
    dsn: Dsn,
    reach: Arc<Reach>,
}

impl Source {
    /// Its connection string.
    pub fn dsn(&self) -> &Dsn {
        &self.dsn
    }

    /// The same database by a string with a parameter set.
    #[must_use]
    pub fn with(mut self, keyword: &str, value: &str) -> Source {
        self.dsn = self.dsn.with(keyword, value);
        self
    }

    /// The same database by a string with what every connection of ours has.
    #[must_use]
    pub fn for_connecting(mut self) -> Source {
        self.dsn = self.dsn.for_connecting();
        self
    }

    /// Opens something by `connect`, when it is its turn.
    ///
    /// # Errors
    /// What `connect` failed with, or the last such failure when it isn't the time to try again.
    pub fn connect<T, E: ConnectError>(&self, connect: impl FnOnce(&Dsn) -> Result<T, E>) -> Result<T, E> {
        self.reach.connect(Duration::ZERO, || connect(&self.dsn))
    }

    /// As [`Source::connect`], and waits up to `patience` for its turn.
    ///
    /// # Errors
    /// As [`Source::connect`].
    pub fn connect_within<T, E: ConnectError>(
        &self,
        patience: Duration,
        connect: impl FnOnce(&Dsn) -> Result<T, E>,
    ) -> Result<T, E> {
        self.reach.connect(patience, || connect(&self.dsn))
    }

    /// Does what is to be done before the first connection of this process, until it succeeds.
    ///
    /// # Errors
    /// What it fails with.
    pub(crate) fn once<E>(&self, work: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        if !self.reach.vetted.load(Ordering::Relaxed) {
            work()?;
            self.reach.vetted.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Why the database can't be reached, as far as is known.
    pub fn trouble(&self) -> Option<String> {
        let inner = self.reach.lock();
        (inner.failures > 0).then(|| inner.reason.clone())
    }
}

/// A database of which nothing is known yet.
impl From<&Dsn> for Source {
    fn from(dsn: &Dsn) -> Source {
        Source { dsn: dsn.clone(), reach: Arc::default() }
    }
}

impl From<&Source> for Source {
    fn from(source: &Source) -> Source {
        source.clone()
    }
}

/// An error of connecting.
pub trait ConnectError {
    /// The reason, when it is that the database can't be reached.
    fn trouble(&self) -> Option<String>;
    /// The error for whoever isn't let through.
    fn refused(reason: String) -> Self;
}

impl ConnectError for DbError {
    fn trouble(&self) -> Option<String> {
        match self {
            DbError::Unavailable(reason) => Some(reason.clone()),
            DbError::Busy(_) | DbError::Query(_) => None,
        }
    }

    fn refused(reason: String) -> DbError {
        DbError::Unavailable(reason)
    }
}

impl ConnectError for PqError {
    fn trouble(&self) -> Option<String> {
        matches!(self.kind, PqErrorKind::Connect(_) | PqErrorKind::ConnectionLost).then(|| self.message.clone())
    }

    fn refused(reason: String) -> PqError {
        PqError::connection_lost(&reason)
    }
}

#[derive(Debug, Default)]
struct Reach {
    inner: Mutex<Inner>,
    changed: Condvar,
    /// It was looked at, and is fit.
    vetted: AtomicBool,
}

#[derive(Debug, Default)]
struct Inner {
    /// Since the last success.
    failures: u32,
    /// Of the last failure.
    reason: String,
    /// Outcomes so far: who began before the last one says nothing new.
    outcomes: u64,
    not_before: Option<Instant>,
    trying: Option<Instant>,
    recovered: Option<Instant>,
    log: Log,
}

/// What was said of the database.
#[derive(Debug, Default)]
enum Log {
    /// Nothing: it was never reached. Whoever starts says so.
    #[default]
    New,
    /// It could be reached, since then.
    Reached(Instant),
    /// That it is away, since then.
    Lost(Instant),
}

impl Log {
    fn failed(&mut self, now: Instant, reason: &str) {
        if let Log::Reached(since) = self
            && now.saturating_duration_since(*since) >= SETTLING
        {
            *self = Log::Lost(now);
            log::warn!("a database can't be reached any more, and is tried again: {reason}");
        }
    }

    fn succeeded(&mut self, now: Instant, reason: &str) {
        match self {
            Log::Reached(_) => {}
            Log::New => *self = Log::Reached(now.checked_sub(SETTLING).unwrap_or(now)),
            Log::Lost(since) => {
                let seconds = now.saturating_duration_since(*since).as_secs();
                *self = Log::Reached(now);
                log::info!(seconds = seconds; "a database can be reached again; before, {reason}");
            }
        }
    }
}

/// The right to try once.
struct Turn {
    outcomes: u64,
    stagger: Duration,
}

impl Reach {
    fn connect<T, E: ConnectError>(&self, patience: Duration, connect: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let turn = self.turn(patience).map_err(E::refused)?;
        if !turn.stagger.is_zero() {
            std::thread::sleep(turn.stagger);
        }
        let outcome = connect();
        match outcome.as_ref().err().and_then(E::trouble) {
            Some(reason) => self.failed(&turn, reason),
            None => self.succeeded(),
        }
        outcome
    }

    fn turn(&self, patience: Duration) -> Result<Turn, String> {
        let until = Instant::now() + patience;
        let mut inner = self.lock();
        loop {
            let now = Instant::now();
            let Some(next) = inner.wait_until(now) else { return Ok(inner.take_turn(now)) };
            if now >= until {
                return Err(inner.reason.clone());
            }
            let pause = next.min(until).saturating_duration_since(now);
            inner = self.changed.wait_timeout(inner, pause).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn failed(&self, turn: &Turn, reason: String) {
        let now = Instant::now();
        let mut inner = self.lock();
        inner.trying = None;
        // Those that began together fail together: that is one failure.
        if inner.outcomes == turn.outcomes {
            inner.outcomes += 1;
            inner.failures = inner.failures.saturating_add(1);
            inner.log.failed(now, &reason);
            inner.reason = reason;
            inner.not_before = Some(now + pause(inner.failures));
        }
        drop(inner);
        self.changed.notify_all();
    }

    fn succeeded(&self) {
        let now = Instant::now();
        let mut locked = self.lock();
        let inner = &mut *locked;
        inner.trying = None;
        inner.outcomes += 1;
        if std::mem::take(&mut inner.failures) > 0 {
            inner.recovered = Some(now);
        }
        inner.log.succeeded(now, &inner.reason);
        drop(locked);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// When it may be tried again; `None` when it may be tried now.
    fn wait_until(&self, now: Instant) -> Option<Instant> {
        if self.failures == 0 {
            return None;
        }
        let tried = self.trying.map(|since| since + ALONE);
        self.not_before.max(tried).filter(|next| *next > now)
    }

    fn take_turn(&mut self, now: Instant) -> Turn {
        if self.failures > 0 {
            self.trying = Some(now);
        }
        let rush = self.recovered.is_some_and(|at| now.saturating_duration_since(at) < RUSH);
        let stagger = if rush { STAGGER.mul_f64(rand::random_range(0.0..1.0)) } else { Duration::ZERO };
        Turn { outcomes: self.outcomes, stagger }
    }
}

/// Anything up to a bound that doubles: processes that lost the same database don't come back in step.
fn pause(failures: u32) -> Duration {
    let bound = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1).min(10))).min(MAX_PAUSE);
    bound.mul_f64(rand::random_range(0.0..1.0))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    fn unavailable() -> DbError {
        DbError::Unavailable("it is away".to_owned())
    }

    fn failing(tries: u32) -> Reach {
        let reach = Reach::default();
        for _ in 0..tries {
            reach.lock().not_before = None;
            assert!(reach.connect(Duration::ZERO, || Err::<(), _>(unavailable())).is_err());
        }
        reach
    }

    #[test]
    fn pauses_grow_to_a_bound() {
        for (failures, bound) in [(1, 100), (2, 200), (5, 1_600), (6, 2_000), (4_000_000, 2_000)] {
            for _ in 0..100 {
                assert!(pause(failures) <= Duration::from_millis(bound));
            }
            assert!((0..100).any(|_| pause(failures) > Duration::from_millis(bound / 2)));
        }
    }

    #[test]
    fn nobody_tries_within_a_pause_and_all_hear_why() {
        let reach = failing(1);
        reach.lock().not_before = Some(Instant::now() + Duration::from_secs(60));
        let outcome = reach.connect(Duration::ZERO, || -> Result<(), DbError> { panic!("it was tried") });
        assert!(matches!(outcome, Err(DbError::Unavailable(reason)) if reason == "it is away"));
    }

    #[test]
    fn a_loss_is_said_once_and_only_of_what_was_there() {
        let start = Instant::now();
        let after = |seconds: u64| start + Duration::from_secs(seconds);
        let lost = |log: &Log| matches!(log, Log::Lost(_));
        let mut log = Log::New;
        log.failed(after(0), "it never was");
        assert!(!lost(&log));
        log.succeeded(after(1), "");
        log.failed(after(1), "gone");
        log.failed(after(2), "gone");
        assert!(matches!(log, Log::Lost(since) if since == after(1)));
        log.succeeded(after(60), "gone");
        // It comes and goes: that is said when it stays away.
        log.failed(after(61), "gone");
        assert!(!lost(&log));
        log.failed(after(71), "gone");
        assert!(lost(&log));
    }

    #[test]
    fn one_tries_alone_and_its_success_lets_everybody_in() {
        let reach = failing(3);
        reach.lock().not_before = None;
        let (tries, trying) = channel();
        let (go, gone) = channel::<()>();
        std::thread::scope(|scope| {
            let first = scope.spawn(|| {
                reach.connect(Duration::ZERO, move || {
                    tries.send(()).unwrap();
                    gone.recv().unwrap();
                    Ok::<_, DbError>(1)
                })
            });
            trying.recv().unwrap();
            assert!(reach.connect(Duration::ZERO, || Ok::<_, DbError>(2)).is_err(), "two try at once");
            let waits = scope.spawn(|| reach.connect(Duration::from_secs(60), || Ok::<_, DbError>(3)));
            go.send(()).unwrap();
            assert_eq!((first.join().unwrap().unwrap(), waits.join().unwrap().unwrap()), (1, 3));
        });
        assert_eq!(reach.lock().failures, 0);
        assert!(reach.lock().take_turn(Instant::now()).stagger < STAGGER);
    }

    #[test]
    fn those_that_fail_together_fail_once() {
        let reach = Reach::default();
        let turns: Vec<Turn> = (0..8).map(|_| reach.turn(Duration::ZERO).unwrap()).collect();
        turns.iter().for_each(|turn| reach.failed(turn, "it is away".to_owned()));
        assert_eq!(reach.lock().failures, 1);
        // One that was refused for another reason has reached it.
        reach.lock().not_before = None;
        let refused = || Err::<(), _>(DbError::Query(diesel::result::Error::NotFound));
        assert!(reach.connect(Duration::ZERO, refused).is_err());
        assert_eq!(reach.lock().failures, 0);
    }
}
