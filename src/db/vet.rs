//! What a server is looked at for before a process relies on its sessions: its age, and whether they stay its sessions.
//!
//! A pooler that gives each transaction another session breaks everything that belongs to one: settings, prepared
//! statements, LISTEN, locks, cancels. One is noticed by the process number that libpq was told at the start, which is
//! the server's own only where nothing is in between. Then a second session is opened, and both are asked in turn
//! whose process answers.

use std::time::Duration;

use crate::db::reach::Source;
use crate::dsn::Dsn;
use crate::pq::{ConnectFailure, Patience, PqError, PqErrorKind, Session};

/// The oldest server that is supported.
pub(crate) const OLDEST_SERVER: i32 = 140_000;
/// How long an answer may take. A pooler of whole sessions that has none left holds a statement up: it breaks none.
const ANSWER: Duration = Duration::from_secs(5);
/// How often both are asked, in case others use the pooler meanwhile.
const ROUNDS: u32 = 3;

/// Looks at a database before the first connection of this process that relies on it. Asks nothing after a success.
///
/// # Errors
/// [`PqErrorKind::Connect`] with what to do about it: no session came about, the server is too old, or its sessions don't
/// stay; [`PqErrorKind::ConnectionLost`] when it isn't the time to try again.
pub fn preflight(source: &Source) -> Result<(), PqError> {
    source.connect(|dsn| source.once(|| vet(dsn)))
}

/// Opens a session by `dsn` and looks at it.
///
/// # Errors
/// [`PqErrorKind::Connect`] with what to do about it: no session came about, the server is too old, or its sessions
/// don't stay.
pub(crate) fn vet(dsn: &Dsn) -> Result<(), PqError> {
    let refused = |failure: ConnectFailure| Err(PqError::refused(failure, dsn));
    let mut session = Session::connect(dsn)?;
    session.allow(Patience::Each(ANSWER));
    if (1..OLDEST_SERVER).contains(&session.server_version()) {
        return refused(ConnectFailure::ServerTooOld);
    }
    // A pooler logs in where it leads to with the first statement, and passes on what it is told there.
    if let Err(error) = process(&mut session) {
        return refused(ConnectFailure::of(&error.message));
    }
    match in_between(dsn, &mut session) {
        Ok(InBetween::ChangesSessions) => refused(ConnectFailure::Pooler),
        Ok(InBetween::Nothing | InBetween::KeepsSessions) => Ok(()),
        Err(error) if matches!(error.kind, PqErrorKind::Connect(_)) => Err(error),
        Err(error) => {
            log::debug!("whether a pooler in between keeps sessions could not be found out: {error}");
            Ok(())
        }
    }
}

/// What is between a session and its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InBetween {
    /// Nothing that shows.
    Nothing,
    /// A pooler whose sessions stay.
    KeepsSessions,
    /// A pooler that gives each transaction another session.
    ChangesSessions,
}

/// Looks for a pooler between a session by `dsn` and its server.
///
/// # Errors
/// When that can't be found out.
pub(crate) fn in_between(dsn: &Dsn, session: &mut Session) -> Result<InBetween, PqError> {
    let process = process(session)?;
    if process == session.backend_pid() {
        return Ok(InBetween::Nothing);
    }
    let mut other = Session::connect(dsn)?;
    other.allow(Patience::Each(ANSWER));
    match changes_hands(session, &mut other, process) {
        Ok(true) => Ok(InBetween::ChangesSessions),
        Ok(false) => Ok(InBetween::KeepsSessions),
        // Such as a pooler by statements, which refuses BEGIN.
        Err(error) if error.kind == PqErrorKind::Server => Ok(InBetween::ChangesSessions),
        Err(error) => Err(error),
    }
}

/// The number of the server process that answers.
fn process(session: &mut Session) -> Result<i32, PqError> {
    let rows = session.query("SELECT pg_backend_pid()", &[])?;
    Ok(rows.get(0, 0).and_then(|text| text.parse().ok()).unwrap_or_default())
}

/// `session`, which `first` answered, is answered by another process, or shares its own. A pooler takes up again what
/// was given back last, or what was given back first: the one shows while another session holds a process, the other
/// when one asks twice in a row.
fn changes_hands(session: &mut Session, other: &mut Session, first: i32) -> Result<bool, PqError> {
    for _ in 0..ROUNDS {
        if process(session)? != first || process(session)? != first {
            return Ok(true);
        }
        other.execute_batch("BEGIN")?;
        let held = process(other)?;
        let answers = process(session)?;
        other.execute_batch("ROLLBACK")?;
        if held == first || answers != first {
            return Ok(true);
        }
    }
    Ok(false)
}
