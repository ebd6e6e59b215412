//! The databases that work runs on: their pools, and what is set on a session before it is lent.
//!
//! Knows no job: it is told an `application_name` and what is asked of a session, and hands out sessions that carry it.
//!
//! | file | what it has |
//! | --- | --- |
//! | `settings` | what a target is told, and why one can't be used |
//! | `fitness` | whether its server and its role are fit for work |
//! | `loans` | connections on loan |
//! | [`prologue`] | what is set on a session first |
//! | [`sessions`] | libpq sessions in a pool |
//! | `supervisor` | the sessions from which others are ended |
//! | `flusher` | making sure that commits are on disk |
//! | [`activity`] | what sessions are doing |
//! | `work_role`, [`rights`] | what a role may do, and the SQL by which it may do more |

pub mod activity;
mod backend;
mod fitness;
mod flusher;
mod loans;
pub mod prologue;
pub mod rights;
pub mod sessions;
mod settings;
mod supervisor;
mod work_role;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::r2d2::R2D2Connection;
use diesel::sql_types::{Integer, Timestamptz};

use crate::db::DbError;
use crate::db::fate::{self, Fate, ServerLife, TransactionMark};
use crate::db::line;
use crate::db::pool::{Manager, build_any, usage_of};
use crate::db::reach::Source;
use crate::metrics::{Metrics, PoolUse};
use crate::pq::{Patience, PqError};
use crate::target::activity::Observer;
pub use crate::target::flusher::FlushError;
use crate::target::flusher::Flusher;
use crate::target::prologue::{Begun, Prologue};
pub use crate::target::prologue::{OwnLimits, SessionAsks};
use crate::target::sessions::SessionManager;
pub use crate::target::supervisor::END_SESSIONS_SQL;
use crate::target::supervisor::Supervisor;
pub use crate::target::work_role::{ROLE_SQL, RoleRights};

pub use backend::TargetBackend;
use loans::WorkManager;
pub use loans::{DieselLoan, SessionLoan, Work, reset_diesel, reset_session};
pub use settings::{TargetError, TargetSettings, TargetSpec};

/// How long a statement waits for a lock where nobody says it: 5 s.
pub const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
pub use crate::db::bounds::MAX_LOCK_TIMEOUT_MS;
/// How long a job waits for a session of its target.
const CHECKOUT_WAIT: Duration = Duration::from_secs(10);
/// How long an answer may take to what is asked of a session before and after a job: there is nothing to wait for.
const HOUSEKEEPING: Duration = Duration::from_secs(5);
/// Connections that a process may have beside those of jobs: to cancel and end sessions, to flush, to look at what runs.
pub const CONNECTIONS_BESIDE: u32 = 5;
/// How long after its deadline an attempt's session is given up, so that its thread comes free whatever the network
/// does: by then the watchdog has cancelled the statement and ended the session, where the target can be reached.
const AFTER_DEADLINE: Duration = Duration::from_secs(15);

/// A database that work runs on. Opens sessions when they are first asked for.
pub struct Target {
    name: String,
    settings: TargetSettings,
    source: Source,
    diesel: r2d2::Pool<WorkManager<Manager>>,
    sessions: r2d2::Pool<WorkManager<SessionManager>>,
    supervisor: Supervisor,
    flusher: Flusher,
    /// The server and the role were found fit for work. No job has a session before.
    verified: AtomicBool,
    /// Why it is unfit, since when that is known.
    unfit: Mutex<Option<(Instant, String)>>,
}

/// The targets of this process, by name.
pub type Targets = BTreeMap<String, Arc<Target>>;

impl Target {
    /// A target with pools of `size`. Connects when it is first needed, and gives a job no session before
    /// [`Target::verify`] has succeeded.
    pub fn new(name: &str, settings: TargetSettings, size: u32, metrics: &Arc<Metrics>) -> Target {
        let source = Source::from(&settings.dsn).for_connecting();
        // Diesel sets every connection to UTC.
        let diesel = Manager::work(&source, "RESET TimeZone").answering_within(HOUSEKEEPING);
        let sessions = SessionManager::new(source.clone(), HOUSEKEEPING);
        Target {
            name: name.to_owned(),
            flusher: Flusher::new(&source),
            supervisor: Supervisor::new(&source),
            source,
            diesel: build_any(WorkManager(diesel), size, &format!("{name} diesel"), metrics),
            sessions: build_any(WorkManager(sessions), size, &format!("{name} libpq"), metrics),
            settings,
            verified: AtomicBool::new(false),
            unfit: Mutex::default(),
        }
    }

    /// Its name in the settings.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How its pools are used at the moment, by their names.
    pub fn usage(&self) -> [(String, PoolUse); 2] {
        [
            (format!("{} diesel", self.name), usage_of(&self.diesel)),
            (format!("{} libpq", self.name), usage_of(&self.sessions)),
        ]
    }

    /// A Diesel connection that carries `application_name` and is limited, and the server process behind it. Its other
    /// settings are those of the login, but for what `asks` says.
    ///
    /// # Errors
    /// When none can be had within 10 s, or the target refuses it.
    pub fn diesel(
        &self,
        application_name: &str,
        timeout: Duration,
        asks: &SessionAsks,
    ) -> Result<(DieselLoan, TargetBackend), DbError> {
        self.ready().map_err(DbError::Unavailable)?;
        let prologue = self.prologue(application_name, timeout, asks);
        // All that lay in the pool may have died together, or be of before a change of the login's settings: the one after
        // them is fresh, or fails for a reason.
        let mut spare = self.diesel.max_size();
        loop {
            let mut loan = self.checkout_diesel()?;
            match prologue.on_diesel(&mut loan.inner) {
                Ok(begun) if loan.begin(&begun) => {
                    loan.on_standby = begun.on_standby;
                    let backend = self.backend(&mut loan.backend, begun)?;
                    line::allow(&mut loan.inner, for_an_attempt(timeout));
                    return Ok((loan, backend));
                }
                Ok(_) if spare == 0 => return Err(no_session(&self.name)),
                Err(error) if spare == 0 || !loan.inner.is_broken() => {
                    loan.tainted = true;
                    return Err(error.into());
                }
                Ok(_) | Err(_) => loan.tainted = true,
            }
            spare -= 1;
        }
    }

    /// A libpq session that carries `application_name` and is limited, and the server process behind it. Its other settings
    /// are those of the login, but for what `asks` says.
    ///
    /// # Errors
    /// As [`Target::diesel`].
    pub fn session(
        &self,
        application_name: &str,
        timeout: Duration,
        asks: &SessionAsks,
    ) -> Result<(SessionLoan, TargetBackend), PqError> {
        self.ready().map_err(|reason| PqError::connection_lost(&reason))?;
        let prologue = self.prologue(application_name, timeout, asks);
        let unknown = |error: DbError| PqError::connection_lost(&error.to_string());
        let mut spare = self.sessions.max_size();
        loop {
            let mut loan = self.checkout_session()?;
            match prologue.on_session(&mut loan.inner) {
                Ok(begun) if loan.begin(&begun) => {
                    loan.on_standby = loan.inner.is_on_standby();
                    let backend = self.backend(&mut loan.backend, begun).map_err(unknown)?;
                    loan.inner.allow(for_an_attempt(timeout));
                    return Ok((loan, backend));
                }
                Ok(_) if spare == 0 => return Err(unknown(no_session(&self.name))),
                Err(error) if spare == 0 || !loan.inner.is_broken() => {
                    loan.tainted = true;
                    return Err(error);
                }
                Ok(_) | Err(_) => loan.tainted = true,
            }
            spare -= 1;
        }
    }

    /// The server process of a session. A login that takes on another role may not see when its own process started: then
    /// it is asked as the login itself.
    fn backend(&self, known: &mut Option<TargetBackend>, begun: Begun) -> Result<TargetBackend, DbError> {
        if let Some(backend) = known {
            return Ok(backend.clone());
        }
        let backend_start = match begun.backend_start {
            Some(start) => start,
            None => self.supervisor.supervise(|connection| {
                let sql = format!("{BACKEND_SQL} pg_catalog.pg_stat_get_activity($1)");
                Ok(diesel::sql_query(sql)
                    .bind::<Integer, _>(begun.pid)
                    .get_result::<BackendRow>(connection)?
                    .backend_start)
            })?,
        };
        Ok(known.insert(TargetBackend { pid: begun.pid, backend_start }).clone())
    }

    fn checkout_diesel(&self) -> Result<DieselLoan, DbError> {
        let mut loan = self.diesel.get_timeout(CHECKOUT_WAIT).map_err(|_| no_session(&self.name))?;
        line::allow(&mut loan.inner, Patience::Each(HOUSEKEEPING));
        Ok(loan)
    }

    fn checkout_session(&self) -> Result<SessionLoan, PqError> {
        let loan = self.sessions.get_timeout(CHECKOUT_WAIT);
        let loan = loan.map_err(|_| PqError::connection_lost(&no_session(&self.name).to_string()))?;
        loan.inner.allow(Patience::Each(HOUSEKEEPING));
        Ok(loan)
    }

    fn prologue<'a>(&'a self, application_name: &'a str, timeout: Duration, asks: &'a SessionAsks) -> Prologue<'a> {
        let of_target =
            self.settings.spec.lock_timeout_ms.and_then(|ms| u64::try_from(ms).ok()).map(Duration::from_millis);
        Prologue {
            application_name,
            statement_timeout: timeout,
            lock_timeout: asks.lock_timeout.or(of_target).unwrap_or(LOCK_TIMEOUT),
            time_zone: asks.time_zone.as_deref().or(self.settings.spec.time_zone.as_deref()),
            work_mem: self.settings.spec.work_mem.as_deref(),
            read_only: self.settings.spec.read_only,
        }
    }

    /// Asks the server to stop what this backend does. Does nothing when the backend is another one by now.
    ///
    /// # Errors
    /// When the target can't be reached.
    pub fn cancel_backend(&self, backend: &TargetBackend, application_name: &str) -> Result<(), DbError> {
        self.supervisor.signal("pg_cancel_backend(pid)", backend, application_name)
    }

    /// Ends this backend. Does nothing when the backend is another one by now.
    ///
    /// # Errors
    /// When the target can't be reached.
    pub fn terminate_backend(&self, backend: &TargetBackend, application_name: &str) -> Result<(), DbError> {
        self.supervisor.signal("pg_terminate_backend(pid)", backend, application_name)
    }

    /// Makes what was written by any session of this server as safe as it makes a commit.
    ///
    /// # Errors
    /// When that isn't known within 10 s, or the target is another server by now.
    pub fn flush(&self, server: &ServerLife) -> Result<(), FlushError> {
        let flushed = self.flusher.flush().inspect_err(|_| {
            if let Some(pid) = self.flusher.take_given_up() {
                // Should this fail, it goes when its standby comes back.
                let _ = self.supervisor.end_process(pid, flusher::NAME);
            }
        })?;
        if flushed == *server {
            return Ok(());
        }
        Err(FlushError::Failed("the target was promoted or replaced at this moment".to_owned()))
    }

    /// Makes sure that [`Target::flush`] will have a session.
    ///
    /// # Errors
    /// [`FlushError::NoSession`]: the server has no slot left, or can't be reached.
    pub fn reserve_flush(&self) -> Result<(), FlushError> {
        self.flusher.reserve()
    }

    /// Looks at sessions of this target while they work. Connects when it is first asked.
    pub fn observer(&self) -> Observer {
        Observer::new(&self.source)
    }

    /// What the settings say of it.
    pub fn settings(&self) -> &TargetSettings {
        &self.settings
    }

    /// Sessions that jobs may have at a time.
    pub fn size(&self) -> u32 {
        self.sessions.max_size()
    }

    /// It runs saved statements only.
    pub fn is_statements_only(&self) -> bool {
        self.settings.spec.statements_only
    }

    /// A commit waits for a standby.
    pub fn is_synchronous(&self) -> bool {
        self.settings.spec.synchronous
    }

    /// What became of a transaction, where it was marked and flushed before its COMMIT. A commit that this finds will not
    /// be lost any more.
    ///
    /// # Errors
    /// When the target can't be asked.
    pub fn fate(&self, mark: &TransactionMark) -> Result<Fate, DbError> {
        let ask =
            || self.supervisor.supervise(|connection| fate::ask(connection, mark, self.settings.spec.synchronous));
        let (fate, server) = ask()?;
        if fate != Fate::Committed {
            return Ok(fate);
        }
        // Its own wait for a standby may have been cut short, or there was none. What the server still says then, stays.
        self.flush(&server)?;
        Ok(ask()?.0)
    }

    /// Ends every session that carries `application_name`, and each of `backends` unless it works for another job by
    /// now, and waits until they are gone. A statement can change its session's name, so one of them alone is not
    /// enough.
    ///
    /// # Errors
    /// [`DbError::Busy`] when one is still there after 5 s; otherwise when the target can't be reached. Known within a
    /// minute, however silent it is.
    pub fn end_sessions(&self, application_name: &str, backends: &[TargetBackend]) -> Result<(), DbError> {
        self.supervisor.end_sessions(application_name, backends)
    }
}

/// A job's own statements may take as long as its attempt may.
fn for_an_attempt(timeout: Duration) -> Patience {
    Patience::Within(timeout.saturating_add(AFTER_DEADLINE))
}

const BACKEND_SQL: &str = "SELECT backend_start FROM";

#[derive(QueryableByName)]
struct BackendRow {
    #[diesel(sql_type = Timestamptz)]
    backend_start: DateTime<Utc>,
}

fn no_session(name: &str) -> DbError {
    DbError::Unavailable(format!("no session of target {name} could be opened within {} s", CHECKOUT_WAIT.as_secs()))
}
