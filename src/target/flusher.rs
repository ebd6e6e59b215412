//! Making sure that what a target's transactions have written so far is on disk, and on its synchronous standby.
//!
//! A commit of a session of its own flushes the WAL of everybody before it, whatever they have `synchronous_commit` set
//! to. One serves all who ask at the same moment.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::db::DbError;
use crate::db::fate::{MARK_SQL, SAFE_COMMITS_SQL, ServerLife};
use crate::db::reach::Source;
use crate::pq::{Notice, Patience, PqError, Session};

/// How long a flush may take. No `statement_timeout` does it: a commit that is interrupted while it waits for a standby
/// counts as committed, with a warning.
const LIMIT: Duration = Duration::from_secs(10);
/// At least `on`: a weaker setting is that of whoever works.
const SETUP: &str = "SET search_path = pg_catalog, pg_temp; SET statement_timeout = 0; SET lock_timeout = 0; SET client_min_messages = warning;";

/// Why a flush isn't known to have been done.
#[derive(Debug, thiserror::Error)]
pub enum FlushError {
    /// No session for it could be opened.
    #[error("no connection for the flush of its WAL could be opened: {0}")]
    NoSession(String),
    /// It began, and didn't end in time.
    #[error("the target's WAL could not be flushed: {0}")]
    Failed(String),
}

impl From<FlushError> for DbError {
    fn from(error: FlushError) -> DbError {
        DbError::Unavailable(error.to_string())
    }
}

/// Its sessions' `application_name`.
pub(super) const NAME: &str = "slowlane flush";

/// See the module.
pub(super) struct Flusher {
    source: Source,
    /// The server process of one that was given up: it may wait for a standby for ever.
    given_up: Mutex<Option<i32>>,
    /// Held by whoever flushes.
    turn: Mutex<Turn>,
    /// Flushes that have begun.
    begun: AtomicU64,
    /// The last one that succeeded, and the last one that failed, by its number.
    done: AtomicU64,
    failed: AtomicU64,
}

#[derive(Default)]
struct Turn {
    session: Option<Session>,
    /// The server of the last flush.
    server: Option<ServerLife>,
}

impl Flusher {
    /// Connects when it is first needed.
    pub(super) fn new(source: &Source) -> Flusher {
        let source = source.clone().with("application_name", NAME);
        let zero = || AtomicU64::new(0);
        Flusher {
            source,
            given_up: Mutex::default(),
            turn: Mutex::default(),
            begun: zero(),
            done: zero(),
            failed: zero(),
        }
    }

    /// Returns when everything that was written before the call is as safe as the server makes a commit. Says which server
    /// that was.
    ///
    /// # Errors
    /// When that isn't known within 10 s.
    pub(super) fn flush(&self) -> Result<ServerLife, FlushError> {
        let arrived = self.begun.load(Ordering::SeqCst);
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        // One that began after our arrival has covered us, or found out for us that it can't be done.
        if let Some(server) = turn.server.as_ref().filter(|_| self.done.load(Ordering::SeqCst) > arrived) {
            return Ok(server.clone());
        }
        if self.failed.load(Ordering::SeqCst) > arrived {
            return Err(FlushError::Failed("another flush at the same moment failed".to_owned()));
        }
        let number = self.begun.fetch_add(1, Ordering::SeqCst).saturating_add(1);
        match self.commit(&mut turn.session) {
            Ok(server) => {
                self.done.store(number, Ordering::SeqCst);
                Ok(turn.server.insert(server).clone())
            }
            Err(error) => {
                self.failed.store(number, Ordering::SeqCst);
                let given_up = turn.session.take().map(|session| session.backend_pid());
                *self.given_up.lock().unwrap_or_else(PoisonError::into_inner) = given_up;
                Err(error)
            }
        }
    }

    /// The server process of the last flush that failed, to be ended. Asked for once.
    pub(super) fn take_given_up(&self) -> Option<i32> {
        self.given_up.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// A session that lay in wait may have died: then once more with a fresh one.
    fn commit(&self, place: &mut Option<Session>) -> Result<ServerLife, FlushError> {
        let failed = |error: PqError| FlushError::Failed(error.message);
        if let Some(session) = place.as_mut() {
            match commit(session) {
                Err(_) if session.is_broken() => {}
                outcome => return outcome.map_err(failed),
            }
        }
        // Kept also when it fails: it is known then which process to end.
        commit(place.insert(self.open()?)).map_err(failed)
    }

    fn open(&self) -> Result<Session, FlushError> {
        let open = || {
            let mut session = self.source.connect(Session::connect)?;
            session.allow(Patience::Each(LIMIT));
            session.execute_batch(&format!("{SETUP} {SAFE_COMMITS_SQL}"))?;
            Ok(session)
        };
        open().map_err(|error: PqError| FlushError::NoSession(error.message))
    }

    /// Opens the session before it is needed, where there is none: who has taken locks already would hold them while it
    /// waits for a free slot of the server.
    ///
    /// # Errors
    /// [`FlushError::NoSession`].
    pub(super) fn reserve(&self) -> Result<(), FlushError> {
        // Somebody flushes at the moment: there is one, or its user finds out.
        let Ok(mut turn) = self.turn.try_lock() else { return Ok(()) };
        if turn.session.as_ref().is_none_or(Session::is_broken) {
            turn.session = Some(self.open()?);
        }
        Ok(())
    }
}

fn commit(session: &mut Session) -> Result<ServerLife, PqError> {
    session.take_notices();
    let rows = session.query(MARK_SQL, &[Some("flush")])?;
    let server = ServerLife::new(rows.get(0, 1).unwrap_or_default(), rows.get(0, 2).unwrap_or_default());
    // Committed here, and not yet on the standby: somebody cancelled the wait.
    match session.take_notices().into_iter().find(Notice::is_warning) {
        None => Ok(server),
        Some(warning) => Err(PqError::connection_lost(&warning.message)),
    }
}
