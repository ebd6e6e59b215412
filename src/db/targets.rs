//! The databases that work runs on: their pools, and the settings that every session is pinned to.
//!
//! Knows no job: it is told an `application_name` and hands out sessions that carry it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::connection::SimpleConnection;
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::r2d2::R2D2Connection;
use diesel::sql_types::{Bool, Integer, Text, Timestamptz};

use crate::db::DbError;
use crate::db::activity::Observer;
use crate::db::fate::{self, Fate, ServerLife, TransactionMark};
use crate::db::flusher::{self, Flusher};
use crate::db::line;
use crate::db::pool::{Manager, build_any, usage_of};
use crate::db::reach::Source;
use crate::db::sessions::SessionManager;
use crate::db::supervisor::Supervisor;
use crate::dsn::Dsn;
use crate::metrics::{Metrics, PoolUse};
use crate::pq::{Patience, PqError};

/// How long a statement waits for a lock: 5 s.
pub const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a job waits for a session of its target.
const CHECKOUT_WAIT: Duration = Duration::from_secs(10);
/// How long an answer may take to what is asked of a session before and after a job: there is nothing to wait for.
const HOUSEKEEPING: Duration = Duration::from_secs(5);
/// Connections that a process may have beside those of jobs: to cancel and end sessions, to flush, to look at what runs.
pub const CONNECTIONS_BESIDE: u32 = 5;
/// How long after its deadline an attempt's session is given up, so that its thread comes free whatever the network
/// does: by then the watchdog has cancelled the statement and ended the session, where the target can be reached.
const AFTER_DEADLINE: Duration = Duration::from_secs(15);
/// What a session must be set to before each job: results have one form whatever the role's or database's defaults.
const PINNED: &str = "SET DateStyle = 'ISO, MDY'; SET IntervalStyle = 'postgres'; SET TimeZone = 'UTC';
    SET bytea_output = 'hex'; SET extra_float_digits = 1; SET xmlbinary = 'base64'; SET search_path TO DEFAULT;";

/// What a target is told in the settings.
#[derive(Clone, Debug)]
pub struct TargetSettings {
    /// Where it is.
    pub dsn: Dsn,
    /// `work_mem` of its sessions; the server's own when absent.
    pub work_mem: Option<String>,
    /// A role with more rights than work needs is accepted.
    pub allow_unsafe_role: bool,
    /// Its sessions can only read, whatever the kind.
    pub read_only: bool,
    /// Whatever is promoted in its place is a synchronous standby: it has every commit that was acknowledged.
    pub synchronous: bool,
    /// It runs saved statements, and nothing else that a caller asks for.
    pub statements_only: bool,
}

/// Why a target can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// It can't be reached or refused us.
    #[error("target {name}: {source}")]
    Unreachable {
        /// Its name in the settings.
        name: String,
        /// Why.
        source: DbError,
    },
    /// Its role could do more than work may.
    #[error(
        "target_role_too_strong: target {name}: its role {what}; use a role without that right, or set \
         allow_unsafe_role = true for the target"
    )]
    RoleTooStrong {
        /// Its name in the settings.
        name: String,
        /// The right that is too much.
        what: String,
    },
}

/// A connection on loan that is closed instead of returned when something was left behind on it.
pub struct Work<C> {
    /// The connection.
    pub inner: C,
    /// The server process behind it, once it was asked for: the same for as long as the connection lasts.
    backend: Option<TargetBackend>,
    /// It isn't as it was: a cancel may still be in flight, or its reset failed.
    pub tainted: bool,
}

/// Hands out [`Work`] connections of another manager.
pub struct WorkManager<M>(M);

impl<M: r2d2::ManageConnection> r2d2::ManageConnection for WorkManager<M> {
    type Connection = Work<M::Connection>;
    type Error = M::Error;

    fn connect(&self) -> Result<Self::Connection, M::Error> {
        Ok(Work { inner: self.0.connect()?, backend: None, tainted: false })
    }

    fn is_valid(&self, connection: &mut Self::Connection) -> Result<(), M::Error> {
        self.0.is_valid(&mut connection.inner)
    }

    fn has_broken(&self, connection: &mut Self::Connection) -> bool {
        connection.tainted || self.0.has_broken(&mut connection.inner)
    }
}

/// A Diesel connection on loan for a job.
pub type DieselLoan = r2d2::PooledConnection<WorkManager<Manager>>;
/// A libpq session on loan for a job.
pub type SessionLoan = r2d2::PooledConnection<WorkManager<SessionManager>>;

/// One server process of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetBackend {
    /// Its process id.
    pub pid: i32,
    /// When it started.
    pub backend_start: DateTime<Utc>,
}

/// A database that work runs on. Opens sessions when they are first asked for.
pub struct Target {
    name: String,
    settings: TargetSettings,
    source: Source,
    diesel: r2d2::Pool<WorkManager<Manager>>,
    sessions: r2d2::Pool<WorkManager<SessionManager>>,
    supervisor: Supervisor,
    flusher: Flusher,
}

/// The targets of this process, by name.
pub type Targets = BTreeMap<String, Arc<Target>>;

impl Target {
    /// Tries one connection, checks the role, and makes pools of `size`.
    ///
    /// # Errors
    /// [`TargetError`], with what to do about it.
    pub fn open(
        name: &str,
        settings: TargetSettings,
        size: u32,
        metrics: &Arc<Metrics>,
    ) -> Result<Target, TargetError> {
        let unreachable = |source: DbError| TargetError::Unreachable { name: name.to_owned(), source };
        let source = Source::from(&settings.dsn).for_connecting();
        let (supervisor, mut first) = Supervisor::open(&source).map_err(unreachable)?;
        check(name, &settings, &mut first)?;
        supervisor.keep(first);
        let diesel = Manager::work(&source, "SELECT 1").answering_within(HOUSEKEEPING);
        let sessions = SessionManager::new(source.clone(), HOUSEKEEPING);
        Ok(Target {
            name: name.to_owned(),
            flusher: Flusher::new(&source),
            source,
            diesel: build_any(WorkManager(diesel), size, &format!("{name} diesel"), metrics),
            sessions: build_any(WorkManager(sessions), size, &format!("{name} libpq"), metrics),
            supervisor,
            settings,
        })
    }

    /// Its name in the settings.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Why it can't be reached, as far as is known.
    pub fn trouble(&self) -> Option<String> {
        self.source.trouble()
    }

    /// How its pools are used at the moment, by their names.
    pub fn usage(&self) -> [(String, PoolUse); 2] {
        [
            (format!("{} diesel", self.name), usage_of(&self.diesel)),
            (format!("{} libpq", self.name), usage_of(&self.sessions)),
        ]
    }

    /// A Diesel connection that carries `application_name`, pinned and limited, and the server process behind it.
    ///
    /// # Errors
    /// When none can be had within 10 s, or the target refuses it.
    pub fn diesel(&self, application_name: &str, timeout: Duration) -> Result<(DieselLoan, TargetBackend), DbError> {
        let prologue = self.prologue(application_name, timeout);
        let mut loan = self.checkout_diesel()?;
        // All that lay in the pool may have died together: the one after them is fresh, or fails for a reason.
        let mut spare = self.diesel.max_size();
        while let Err(error) = loan.inner.batch_execute(&prologue) {
            loan.tainted = true;
            if spare == 0 || !loan.inner.is_broken() {
                return Err(error.into());
            }
            spare -= 1;
            drop(loan);
            loan = self.checkout_diesel()?;
        }
        let backend = match loan.backend.take() {
            Some(backend) => backend,
            None => {
                let row = diesel::sql_query(BACKEND_SQL).get_result::<BackendRow>(&mut loan.inner)?;
                TargetBackend { pid: row.pid, backend_start: row.backend_start }
            }
        };
        loan.backend = Some(backend.clone());
        line::allow(&mut loan.inner, for_an_attempt(timeout));
        Ok((loan, backend))
    }

    /// A libpq session that carries `application_name`, pinned and limited, and the server process behind it.
    ///
    /// # Errors
    /// As [`Target::diesel`].
    pub fn session(&self, application_name: &str, timeout: Duration) -> Result<(SessionLoan, TargetBackend), PqError> {
        let prologue = self.prologue(application_name, timeout);
        let mut loan = self.checkout_session()?;
        let mut spare = self.sessions.max_size();
        while let Err(error) = loan.inner.execute_batch(&prologue) {
            loan.tainted = true;
            if spare == 0 || !loan.inner.is_broken() {
                return Err(error);
            }
            spare -= 1;
            drop(loan);
            loan = self.checkout_session()?;
        }
        let backend = match loan.backend.take() {
            Some(backend) => backend,
            None => {
                let rows = loan.inner.query(BACKEND_START_SQL, &[])?;
                let backend_start = rows.get(0, 0).and_then(|text| text.parse().ok()).unwrap_or_default();
                TargetBackend { pid: loan.inner.backend_pid(), backend_start }
            }
        };
        loan.backend = Some(backend.clone());
        loan.inner.allow(for_an_attempt(timeout));
        Ok((loan, backend))
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

    fn prologue(&self, application_name: &str, timeout: Duration) -> String {
        let work_mem = match &self.settings.work_mem {
            Some(value) => format!("SET work_mem = '{}';", value.replace('\'', "")),
            None => String::new(),
        };
        let read_only = if self.settings.read_only { "SET default_transaction_read_only = on;" } else { "" };
        format!(
            "SET application_name = '{}'; {PINNED} SET lock_timeout = {}; SET statement_timeout = {}; {work_mem} {read_only}",
            application_name.replace('\'', ""),
            LOCK_TIMEOUT.as_millis(),
            timeout.as_millis().max(1),
        )
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
    pub fn flush(&self, server: &ServerLife) -> Result<(), DbError> {
        let flushed = self.flusher.flush().inspect_err(|_| {
            if let Some(pid) = self.flusher.take_given_up() {
                // Should this fail, it goes when its standby comes back.
                let _ = self.supervisor.end_process(pid, flusher::NAME);
            }
        })?;
        if flushed == *server {
            return Ok(());
        }
        Err(DbError::Unavailable("the target was promoted or replaced at this moment".to_owned()))
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
        self.settings.statements_only
    }

    /// A commit waits for a standby.
    pub fn is_synchronous(&self) -> bool {
        self.settings.synchronous
    }

    /// What became of a transaction, where it was marked and flushed before its COMMIT. A commit that this finds will not
    /// be lost any more.
    ///
    /// # Errors
    /// When the target can't be asked.
    pub fn fate(&self, mark: &TransactionMark) -> Result<Fate, DbError> {
        let ask = || self.supervisor.supervise(|connection| fate::ask(connection, mark, self.settings.synchronous));
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

/// Makes a loan fit for the next job: everything that the last one set, locked, created or prepared goes.
pub fn reset_diesel(loan: &mut DieselLoan) {
    let watched = line::allow(&mut loan.inner, Patience::Each(HOUSEKEEPING));
    if !watched || loan.inner.batch_execute("DISCARD ALL").is_err() {
        loan.tainted = true;
    }
}

/// As [`reset_diesel`], for a libpq session. One that isn't idle is closed instead.
pub fn reset_session(loan: &mut SessionLoan) {
    loan.inner.allow(Patience::Each(HOUSEKEEPING));
    if !loan.inner.is_idle() || loan.inner.execute_batch("DISCARD ALL").is_err() {
        loan.tainted = true;
    }
}

const BACKEND_SQL: &str = "SELECT pid, backend_start FROM pg_stat_get_activity(pg_backend_pid())";
const BACKEND_START_SQL: &str = "SELECT to_char(backend_start AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')
       FROM pg_stat_get_activity(pg_backend_pid())";

#[derive(QueryableByName)]
struct BackendRow {
    #[diesel(sql_type = Integer)]
    pid: i32,
    #[diesel(sql_type = Timestamptz)]
    backend_start: DateTime<Utc>,
}

fn no_session(name: &str) -> DbError {
    DbError::Unavailable(format!("no session of target {name} could be opened within {} s", CHECKOUT_WAIT.as_secs()))
}

/// What a target's role may do that work may not.
#[derive(Clone, Debug, QueryableByName)]
pub struct RoleRights {
    /// Everything.
    #[diesel(sql_type = Bool)]
    pub superuser: bool,
    /// It may make roles.
    #[diesel(sql_type = Bool)]
    pub creates_roles: bool,
    /// It is a member of a superuser.
    #[diesel(sql_type = Bool)]
    pub may_become_superuser: bool,
    /// Groups with rights over the server's files and sessions that it is a member of, separated by commas.
    #[diesel(sql_type = Text)]
    pub memberships: String,
    /// It may use the schema `slowlane`.
    #[diesel(sql_type = Bool)]
    pub sees_queue: bool,
}

/// The columns of [`RoleRights`], and the role's name.
pub const ROLE_SQL: &str = "
    SELECT rolsuper AS superuser, rolcreaterole AS creates_roles,
           EXISTS (SELECT FROM pg_roles g WHERE g.rolsuper AND NOT r.rolsuper
                      AND pg_has_role(r.oid, g.oid, 'MEMBER')) AS may_become_superuser,
           coalesce((SELECT string_agg(g.rolname, ', ' ORDER BY g.rolname) FROM pg_roles g
                      WHERE NOT r.rolsuper AND pg_has_role(r.oid, g.oid, 'MEMBER')
                        AND g.rolname IN ('pg_read_server_files', 'pg_write_server_files',
                                          'pg_execute_server_program', 'pg_signal_backend')), '') AS memberships,
           coalesce(has_schema_privilege(current_user, (SELECT oid FROM pg_namespace WHERE nspname = 'slowlane'),
                                         'USAGE'), false) AS sees_queue,
           rolname
      FROM pg_roles r WHERE rolname = current_user";

impl RoleRights {
    /// The right that is too much, as the end of a sentence that begins with the role.
    pub fn excess(&self) -> Option<String> {
        match () {
            () if self.superuser => Some("is a superuser".to_owned()),
            () if self.may_become_superuser => Some("may become a superuser".to_owned()),
            () if self.creates_roles => Some("may create roles".to_owned()),
            () if !self.memberships.is_empty() => Some(format!("is a member of {}", self.memberships)),
            () if self.sees_queue => Some("may use the schema slowlane".to_owned()),
            () => None,
        }
    }
}

/// A read-only transaction is no wall: a superuser's `COPY … TO PROGRAM` starts its program inside one. Grants are.
fn check(name: &str, settings: &TargetSettings, connection: &mut PgConnection) -> Result<(), TargetError> {
    let rights = diesel::sql_query(ROLE_SQL)
        .get_result::<RoleRights>(connection)
        .map_err(|error| TargetError::Unreachable { name: name.to_owned(), source: error.into() })?;
    let Some(what) = rights.excess() else { return Ok(()) };
    if settings.allow_unsafe_role {
        log::warn!(target = name; "the role of this target {what}, and allow_unsafe_role lets it");
        return Ok(());
    }
    Err(TargetError::RoleTooStrong { name: name.to_owned(), what })
}
