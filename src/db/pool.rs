//! r2d2 pools of Diesel connections: how one is opened, set up, checked, and how its loss is logged.
//!
//! Only strings rebuilt by [`crate::dsn`] reach libpq, and no error or log line holds one.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::pg::PgConnection;
use diesel::r2d2::R2D2Connection;
use diesel::{Connection, ConnectionError, RunQueryDsl};

use crate::db::error::DbError;
use crate::dsn::Dsn;
use crate::metrics::{Metrics, PoolUse};

/// A pool of Diesel connections.
pub type Pool = r2d2::Pool<Manager>;
/// A connection on loan from a [`Pool`].
pub type Pooled = r2d2::PooledConnection<Manager>;

/// Opens Diesel connections from a rebuilt connection string, and sets each up.
#[derive(Clone)]
pub struct Manager {
    dsn: Dsn,
    setup: Arc<str>,
    cached_statements: bool,
}

/// What one connection is for: the part of its set-up that differs.
#[derive(Clone, Debug)]
pub struct Purpose {
    /// Shown in `pg_stat_activity`, after `slowlane `.
    pub name: &'static str,
    /// The longest that a single statement may take.
    pub statement_timeout: Duration,
}

impl Manager {
    /// Connections to the queue: `search_path` is the schema `slowlane` alone, and a commit is durable whatever
    /// the server's default says.
    pub fn queue(dsn: &Dsn, purpose: &Purpose) -> Manager {
        let dsn = dsn.clone().for_connecting().with("application_name", &format!("slowlane {}", purpose.name));
        let setup = format!(
            "SET search_path = slowlane; SET TimeZone = 'UTC'; SET DateStyle = 'ISO'; SET jit = off;
             SET statement_timeout = {}; SET lock_timeout = {}; SET idle_in_transaction_session_timeout = 60000;
             SELECT set_config('synchronous_commit', 'on', false)
              WHERE current_setting('synchronous_commit') NOT IN ('on', 'remote_apply')",
            purpose.statement_timeout.as_millis(),
            purpose.statement_timeout.as_millis(),
        );
        Manager { dsn, setup: setup.into(), cached_statements: true }
    }

    /// Connections that jobs run on: `setup` is run on each new one, and no statement is kept prepared, because
    /// `DISCARD ALL` between jobs would drop it behind Diesel's back.
    pub fn work(dsn: &Dsn, setup: &str) -> Manager {
        Manager { dsn: dsn.clone().for_connecting(), setup: setup.into(), cached_statements: false }
    }

    /// Opens one connection outside any pool.
    ///
    /// # Errors
    /// [`DbError::Unavailable`] with a text that names host and database and never the password.
    pub fn open(&self) -> Result<PgConnection, DbError> {
        let mut connection = PgConnection::establish(self.dsn.conninfo().expose()).map_err(|e| self.refused(&e))?;
        if !self.cached_statements {
            connection.set_prepared_statement_cache_size(diesel::connection::CacheSize::Disabled);
        }
        connection.batch_execute(&self.setup)?;
        Ok(connection)
    }

    fn refused(&self, error: &ConnectionError) -> DbError {
        let reason = match error {
            ConnectionError::BadConnection(text) => crate::pq::explain_connect_failure(&self.dsn, text),
            _ => format!("could not connect to {}", self.dsn.masked()),
        };
        DbError::Unavailable(reason)
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
        std::thread::panicking() || connection.is_broken()
    }
}

/// Builds a pool of at most `size` connections. It opens none yet: open one with [`Manager::open`] first, so that
/// a wrong setting is one clear error instead of a pool that retries. Whoever asks waits at most `wait`.
pub fn build<M: r2d2::ManageConnection>(
    manager: M,
    size: u32,
    name: &str,
    wait: Duration,
    metrics: &Arc<Metrics>,
) -> r2d2::Pool<M> {
    r2d2::Pool::builder()
        .max_size(size)
        .min_idle(Some(0))
        .connection_timeout(wait)
        .test_on_check_out(false)
        .error_handler(Box::new(LogRarely { name: name.to_owned(), last: Mutex::new(None) }))
        .event_handler(Box::new(CountWaits { name: name.to_owned(), metrics: Arc::clone(metrics) }))
        .build_unchecked(manager)
}

/// r2d2's own handler logs each failed attempt, connection string included. This one says at most once a minute
/// that connecting fails; the pool's users say what it means for them.
#[derive(Debug)]
struct LogRarely {
    name: String,
    last: Mutex<Option<Instant>>,
}

impl<E: std::fmt::Display> r2d2::HandleError<E> for LogRarely {
    fn handle_error(&self, error: E) {
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

/// How a pool is used at the moment. Who waits isn't known here: waits are counted when they end.
pub fn usage<M: r2d2::ManageConnection>(pool: &r2d2::Pool<M>) -> PoolUse {
    let state = pool.state();
    PoolUse {
        size: i64::from(pool.max_size()),
        in_use: i64::from(state.connections.saturating_sub(state.idle_connections)),
        waiting: 0,
    }
}
