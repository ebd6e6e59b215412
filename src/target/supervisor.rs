//! The sessions of a target from which others there are cancelled and ended, and asked about.
//!
//! Whoever asks may hold a thread that others wait for, so everything here is bounded, and nobody waits while somebody
//! else talks to a network: the lock covers who uses which session, never what is said on it. A session that lay idle
//! is asked for a sign of life first, and while the target is known to be away nobody waits for it.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Integer, Text, Timestamptz};

use crate::db::error::DbError;
use crate::db::line;
use crate::db::pool::{ANSWER_SLACK, Manager};
use crate::db::reach::Source;
use crate::pq::Patience;
use crate::target::backend::TargetBackend;

/// The longest statement, in milliseconds.
const TIMEOUT_MS: u64 = 10_000;
/// How long an answer may take.
const ANSWER: Duration = Duration::from_millis(TIMEOUT_MS).saturating_add(ANSWER_SLACK);
/// How long ending a session may take before the caller is told that it is still there.
const END_WAIT_MS: i64 = 5_000;
/// How long a session that lay idle has for its sign of life.
const SIGN_OF_LIFE: Duration = Duration::from_secs(3);
/// The most sessions at a time.
const MAX_SESSIONS: usize = 3;
/// How long the one that is there is waited for before another is opened: mostly it comes back at once.
const MOMENT: Duration = Duration::from_millis(100);
/// How long a turn is waited for when all sessions are in use.
const TURN: Duration = Duration::from_secs(3);

/// Ends sessions of this login, by `$1`, their `application_name`, and by process and begin of each (`$3`, `$4`), and
/// waits for each for `$2` milliseconds. It takes no name and no operator from the `search_path`: who was to be ended
/// and is taken for ended would work beside the next attempt.
pub const END_SESSIONS_SQL: &str = "
    SELECT pg_catalog.pg_terminate_backend(a.pid, $2) AS ended FROM pg_catalog.pg_stat_activity a
     WHERE a.usename OPERATOR(pg_catalog.=) session_user AND a.pid OPERATOR(pg_catalog.<>) pg_catalog.pg_backend_pid()
       AND (a.application_name OPERATOR(pg_catalog.=) $1
        OR (EXISTS (SELECT FROM ROWS FROM (pg_catalog.unnest($3), pg_catalog.unnest($4)) AS b(pid, backend_start)
                     WHERE b.pid OPERATOR(pg_catalog.=) a.pid
                       AND b.backend_start OPERATOR(pg_catalog.=) a.backend_start)
            AND NOT pg_catalog.starts_with(a.application_name, 'slowlane:')))";

/// See the module.
pub(super) struct Supervisor {
    manager: Manager,
    inner: Mutex<Inner>,
    given_back: Condvar,
}

struct Inner {
    idle: Option<PgConnection>,
    in_use: usize,
}

impl Supervisor {
    /// Connects when it is first needed.
    pub(super) fn new(source: &Source) -> Supervisor {
        let source = source.clone().with("application_name", "slowlane supervisor");
        // Whatever role the login is set to take on: what it opened is known by the login itself, and may be ended by it. And
        // whatever its search_path: a view of somebody else's would hide sessions that are still there.
        let setup = format!(
            "SET ROLE NONE; SET search_path = pg_catalog, pg_temp; SET statement_timeout = {TIMEOUT_MS}; SET TimeZone = 'UTC'"
        );
        let manager = Manager::work(source, &setup).answering_within(ANSWER);
        let inner = Mutex::new(Inner { idle: None, in_use: 0 });
        Supervisor { manager, inner, given_back: Condvar::new() }
    }

    /// Calls a function of the server's on this backend, `pg_cancel_backend(pid)` say. Does nothing when the backend is
    /// another one by now.
    ///
    /// # Errors
    /// When the target can't be reached.
    pub(super) fn signal(&self, call: &str, backend: &TargetBackend, application_name: &str) -> Result<(), DbError> {
        let sql = format!(
            "SELECT pg_catalog.{call} FROM pg_catalog.pg_stat_activity
              WHERE pid OPERATOR(pg_catalog.=) $1 AND backend_start OPERATOR(pg_catalog.=) $2
                AND (application_name OPERATOR(pg_catalog.=) $3
                     OR NOT pg_catalog.starts_with(application_name, 'slowlane:'))"
        );
        self.supervise(|connection| {
            diesel::sql_query(&sql)
                .bind::<Integer, _>(backend.pid)
                .bind::<Timestamptz, _>(backend.backend_start)
                .bind::<Text, _>(application_name)
                .execute(connection)?;
            Ok(())
        })
    }

    /// Ends a server process of this login that carries `application_name`.
    ///
    /// # Errors
    /// When the target can't be reached.
    pub(super) fn end_process(&self, pid: i32, application_name: &str) -> Result<(), DbError> {
        self.supervise(|connection| {
            diesel::sql_query(
                "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity
                  WHERE pid OPERATOR(pg_catalog.=) $1 AND usename OPERATOR(pg_catalog.=) session_user
                    AND application_name OPERATOR(pg_catalog.=) $2",
            )
            .bind::<Integer, _>(pid)
            .bind::<Text, _>(application_name)
            .execute(connection)?;
            Ok(())
        })
    }

    /// Ends every session that carries `application_name`, and each of `backends` unless it works for another job by
    /// now, and waits until they are gone.
    ///
    /// # Errors
    /// [`DbError::Busy`] when one is still there after 5 s; otherwise when the target can't be reached.
    pub(super) fn end_sessions(&self, application_name: &str, backends: &[TargetBackend]) -> Result<(), DbError> {
        #[derive(QueryableByName)]
        struct Ended {
            #[diesel(sql_type = Bool)]
            ended: bool,
        }
        self.supervise(|connection| {
            let rows = diesel::sql_query(END_SESSIONS_SQL)
                .bind::<Text, _>(application_name)
                .bind::<BigInt, _>(END_WAIT_MS)
                .bind::<Array<Integer>, _>(backends.iter().map(|backend| backend.pid).collect::<Vec<_>>())
                .bind::<Array<Timestamptz>, _>(backends.iter().map(|backend| backend.backend_start).collect::<Vec<_>>())
                .load::<Ended>(connection)?;
            if rows.iter().all(|row| row.ended) { Ok(()) } else { Err(DbError::Busy("a session is still ending")) }
        })
    }

    /// Does something on one of the sessions. Whether it was done before that went silent isn't known: it is something that
    /// may be done twice.
    ///
    /// # Errors
    /// The work's own, or when the target can't be reached.
    pub(super) fn supervise<T>(&self, work: impl Fn(&mut PgConnection) -> Result<T, DbError>) -> Result<T, DbError> {
        let mut place = self.take()?;
        if let Some(mut connection) = place.connection.take().and_then(alive) {
            match work(&mut connection) {
                Err(DbError::Unavailable(_)) => {}
                outcome => {
                    place.connection = Some(connection);
                    return outcome;
                }
            }
        }
        let mut connection = self.manager.open()?;
        let outcome = work(&mut connection);
        if !matches!(outcome, Err(DbError::Unavailable(_))) {
            place.connection = Some(connection);
        }
        outcome
    }

    fn take(&self) -> Result<Place<'_>, DbError> {
        let since = Instant::now();
        let mut inner = self.lock();
        loop {
            let full = inner.in_use >= MAX_SESSIONS;
            let patience = if full { TURN } else { MOMENT };
            let left = patience.saturating_sub(since.elapsed());
            if !full && (inner.idle.is_some() || inner.in_use == 0 || left.is_zero()) {
                inner.in_use += 1;
                return Ok(Place { supervisor: self, connection: inner.idle.take() });
            }
            if left.is_zero() {
                return Err(DbError::Unavailable(
                    "all sessions from which others are ended are waiting for the target".to_owned(),
                ));
            }
            inner = self.given_back.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to use one session. What is in it when it is dropped is kept.
struct Place<'s> {
    supervisor: &'s Supervisor,
    connection: Option<PgConnection>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut inner = self.supervisor.lock();
        inner.in_use = inner.in_use.saturating_sub(1);
        // Of those that were needed for a moment, one stays.
        if inner.idle.is_none() {
            inner.idle = self.connection.take();
        }
        drop(inner);
        self.supervisor.given_back.notify_one();
    }
}

/// The session, if it answers.
fn alive(mut connection: PgConnection) -> Option<PgConnection> {
    line::allow(&mut connection, Patience::Each(SIGN_OF_LIFE));
    connection.batch_execute("SELECT 1").ok()?;
    line::allow(&mut connection, Patience::Each(ANSWER));
    Some(connection)
}
