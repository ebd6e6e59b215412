//! r2d2 pools of Diesel connections: how one is opened, set up, checked, and how its loss is logged.
//!
//! Only strings rebuilt by [`crate::dsn`] reach libpq, and no error or log line holds one.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::pg::PgConnection;
use diesel::r2d2::R2D2Connection;
use diesel::{Connection, RunQueryDsl};

use crate::db::error::DbError;
use crate::db::fate::SAFE_COMMITS_SQL;
use crate::db::line;
use crate::db::reach::{ConnectError, Source};
use crate::db::vet::vet;
use crate::dsn::Dsn;
use crate::metrics::{Metrics, PoolUse};
use crate::pq::{ConnectFailure, Patience};

/// How long a statement may stay without an answer beyond the time that the server gives it.
pub const ANSWER_SLACK: Duration = Duration::from_secs(2);

/// A look at a pool whose connections are all in use, or in the opening.
const SLICE: Duration = Duration::from_millis(50);
/// r2d2 tries to connect again after half of it. Whether that reaches out is decided by [`Source`].
const RETRY: Duration = Duration::from_millis(500);

/// A connection on loan from a [`Pool`].
pub type Pooled = r2d2::PooledConnection<Manager>;

/// Opens Diesel connections from a rebuilt connection string, and sets each up.
#[derive(Clone)]
pub struct Manager {
    source: Source,
    setup: Arc<str>,
    cached_statements: bool,
    patience: Patience,
}

/// How the queue's own statements are planned: once for each connection, and always by an index and a nested loop.
///
/// All of them find a bounded number of rows by key. Planning one over the days of history takes longer than running
/// it, and left alone the server would do it each time, because pruning makes such a plan look better than it is. A
/// plan that was made while a table was nearly empty must not read all of it later: scans of whole tables and hash
/// joins are good for nothing here, however small the numbers that the planner has at the moment.
const PLANS: &str = "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET enable_bitmapscan = off;
             SET enable_hashjoin = off; SET enable_mergejoin = off;";

/// What one connection is for: the part of its set-up that differs.
#[derive(Clone, Debug)]
pub struct Purpose {
    /// Shown in `pg_stat_activity`, after `slowlane `.
    pub name: &'static str,
    /// The longest that a single statement may take. A connection on which nothing is heard for 2 s longer is given
    /// up.
    pub statement_timeout: Duration,
}

impl Manager {
    /// Connections to the queue: `search_path` is the schema `slowlane` alone, and a commit is durable whatever
    /// the server's default says.
    pub fn queue(source: impl Into<Source>, purpose: &Purpose) -> Manager {
        let source = source.into().for_connecting().with("application_name", &format!("slowlane {}", purpose.name));
        let setup = format!(
            "SET search_path = slowlane; SET TimeZone = 'UTC'; SET DateStyle = 'ISO'; SET jit = off; {PLANS}
             SET statement_timeout = {}; SET lock_timeout = {}; SET idle_in_transaction_session_timeout = 60000;
             {SAFE_COMMITS_SQL}",
            purpose.statement_timeout.as_millis(),
            purpose.statement_timeout.as_millis(),
        );
        let patience = Patience::Each(purpose.statement_timeout.saturating_add(ANSWER_SLACK));
        Manager { source, setup: setup.into(), cached_statements: true, patience }
    }

    /// Connections that jobs run on: `setup` is run on each new one, and no statement is kept prepared, because
    /// `DISCARD ALL` between jobs would drop it behind Diesel's back. Answers are waited for without end.
    pub fn work(source: impl Into<Source>, setup: &str) -> Manager {
        let source = source.into().for_connecting();
        Manager { source, setup: setup.into(), cached_statements: false, patience: Patience::Endless }
    }

    /// The same, with connections that are given up when nothing is heard of a statement for so long.
    #[must_use]
    pub fn answering_within(mut self, limit: Duration) -> Manager {
        self.patience = Patience::Each(limit);
        self
    }

    /// Opens one connection outside any pool, or is refused when the database was found to be away just now.
    ///
    /// # Errors
    /// [`DbError::Unavailable`] with a text that names host and database and never the password.
    pub fn open(&self) -> Result<PgConnection, DbError> {
        self.source.connect(|dsn| self.connect_to(dsn))
    }

    /// As [`Manager::open`], and waits up to `patience` until it is time to try again.
    ///
    /// # Errors
    /// As [`Manager::open`].
    pub fn open_within(&self, patience: Duration) -> Result<PgConnection, DbError> {
        self.source.connect_within(patience, |dsn| self.connect_to(dsn))
    }

    fn connect_to(&self, dsn: &Dsn) -> Result<PgConnection, DbError> {
        self.source.once(|| vet(dsn)).map_err(|error| DbError::Unavailable(error.message))?;
        let refused = |failure: ConnectFailure| DbError::Unavailable(failure.explain(dsn));
        let mut connection = line::establish(dsn, self.patience).map_err(refused)?;
        if !self.cached_statements {
            connection.set_prepared_statement_cache_size(diesel::connection::CacheSize::Disabled);
        }
        connection.batch_execute(&self.setup)?;
        Ok(connection)
    }
}

impl r2d2::ManageConnection for Manager {
    type Connection = PgConnection;
    type Error = DbError;

    fn connect(&self) -> Result<PgConnection, DbError> {
        self.open()
    }

    fn is_valid(&self, connection: &mut PgConnection) -> Result<(), DbError> {
        diesel::sql_query("SELECT 1").execute(connection)?;
        Ok(())
    }

    fn has_broken(&self, connection: &mut PgConnection) -> bool {
        line::rest(connection);
        std::thread::panicking() || connection.is_broken() || line::is_lost(connection)
    }
}

/// A pool of Diesel connections to the queue.
#[derive(Clone)]
pub struct Pool {
    inner: r2d2::Pool<Manager>,
    source: Source,
    name: Arc<str>,
    wait: Duration,
    metrics: Arc<Metrics>,
}

impl Pool {
    /// A connection, waited for no longer than the pool's `wait`. While the database is away and there is none that
    /// somebody could give back, nobody is kept waiting.
    ///
    /// # Errors
    /// [`DbError::Unavailable`] with the reason when none can be opened, [`DbError::Busy`] when all stay in use.
    pub fn get(&self) -> Result<Pooled, DbError> {
        let asked = Instant::now();
        let outcome = self.wait_for_one(asked);
        self.metrics.waited(&self.name, asked.elapsed(), outcome.is_err());
        outcome
    }

    fn wait_for_one(&self, asked: Instant) -> Result<Pooled, DbError> {
        let mut slice = Duration::ZERO;
        loop {
            if let Ok(connection) = self.inner.get_timeout(slice) {
                return Ok(connection);
            }
            let trouble = self.source.trouble();
            let left = self.wait.saturating_sub(asked.elapsed());
            match trouble {
                Some(reason) if left.is_zero() || self.inner.state().connections == 0 => {
                    return Err(DbError::Unavailable(reason));
                }
                None if left.is_zero() => return Err(DbError::Busy("no connection became free in time")),
                _ => slice = SLICE.min(left),
            }
        }
    }

    /// Connections that it may hold.
    pub fn max_size(&self) -> u32 {
        self.inner.max_size()
    }
}

/// Builds a pool of at most `size` connections. It opens none yet: open one with [`Manager::open`] first, so that
/// a wrong setting is one clear error instead of a pool that retries. Whoever asks waits at most `wait`.
pub fn build(manager: Manager, size: u32, name: &str, wait: Duration, metrics: &Arc<Metrics>) -> Pool {
    let source = manager.source.clone();
    let inner = builder(size, name).build_unchecked(manager);
    Pool { inner, source, name: name.into(), wait, metrics: Arc::clone(metrics) }
}

/// As [`build()`], of any connections; who asks says how long it waits.
pub(crate) fn build_any<M: r2d2::ManageConnection<Error: ConnectError>>(
    manager: M,
    size: u32,
    name: &str,
    metrics: &Arc<Metrics>,
) -> r2d2::Pool<M> {
    let counts = CountWaits { name: name.to_owned(), metrics: Arc::clone(metrics) };
    builder(size, name).event_handler(Box::new(counts)).build_unchecked(manager)
}

fn builder<M: r2d2::ManageConnection<Error: ConnectError>>(size: u32, name: &str) -> r2d2::Builder<M> {
    r2d2::Pool::builder()
        .max_size(size)
        .min_idle(Some(0))
        .connection_timeout(RETRY)
        .test_on_check_out(false)
        .error_handler(Box::new(LogRarely { name: name.to_owned(), last: Mutex::new(None) }))
}

/// r2d2's own handler logs each failed attempt, connection string included. That a database can't be reached is said by
/// its [`Source`]; of what else fails, this one says at most once a minute that it does.
#[derive(Debug)]
struct LogRarely {
    name: String,
    last: Mutex<Option<Instant>>,
}

impl<E: std::fmt::Display + ConnectError> r2d2::HandleError<E> for LogRarely {
    fn handle_error(&self, error: E) {
        if error.trouble().is_some() {
            return;
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|at| at.elapsed() >= Duration::from_secs(60)) {
            *last = Some(Instant::now());
            log::warn!(pool = self.name.as_str(); "connecting fails, and is tried again when a connection is asked for: {error}");
        }
    }
}

/// Counts how long connections were waited for.
#[derive(Debug)]
struct CountWaits {
    name: String,
    metrics: Arc<Metrics>,
}

impl r2d2::HandleEvent for CountWaits {
    fn handle_checkout(&self, event: r2d2::event::CheckoutEvent) {
        self.metrics.waited(&self.name, event.duration(), false);
    }

    fn handle_timeout(&self, event: r2d2::event::TimeoutEvent) {
        self.metrics.waited(&self.name, event.timeout(), true);
    }
}

/// How a pool is used at the moment.
pub fn usage(pool: &Pool) -> PoolUse {
    usage_of(&pool.inner)
}

/// As [`usage()`], of any connections. Who waits isn't known here: waits are counted when they end.
pub(crate) fn usage_of<M: r2d2::ManageConnection>(pool: &r2d2::Pool<M>) -> PoolUse {
    let state = pool.state();
    PoolUse {
        size: i64::from(pool.max_size()),
        in_use: i64::from(state.connections.saturating_sub(state.idle_connections)),
        waiting: 0,
    }
}
