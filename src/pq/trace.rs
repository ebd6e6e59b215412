//! Connecting in steps, each with its time: for whoever wants to know where it hangs.

use std::ffi::CString;
use std::time::{Duration, Instant};

use pq_sys::ConnStatusType as S;

use crate::dsn::Dsn;
use crate::pq::failure::ConnectFailure;
use crate::pq::line::{Line, Patience};
use crate::pq::raw::{Conn, Progress};
use crate::pq::resolve::with_addresses;
use crate::pq::session::{Session, connect_failure};

/// What came of connecting, and how long each step took. Of several addresses the steps of all are added up.
pub struct Trace {
    /// In the order in which they began: `resolve`, `connect`, `tls`, `login`, `startup`, `session_attributes`.
    pub steps: Vec<(&'static str, Duration)>,
    /// The session, or why there is none.
    pub outcome: Result<Session, ConnectFailure>,
}

/// Connects as [`Session::connect`] does, for at most the string's `connect_timeout` for each address, 5 s where it says
/// nothing.
pub fn trace_connect(dsn: &Dsn) -> Trace {
    let began = Instant::now();
    let resolved = with_addresses(&dsn.clone().with_default("connect_timeout", "5"));
    let mut steps = vec![("resolve", began.elapsed())];
    let outcome = resolved.and_then(|dsn| connect(&dsn, &mut steps));
    Trace { steps, outcome }
}

fn connect(dsn: &Dsn, steps: &mut Vec<(&'static str, Duration)>) -> Result<Session, ConnectFailure> {
    let given = |keyword: &str| dsn.get(keyword).unwrap_or_default();
    let seconds = given("connect_timeout").trim().parse::<u64>().ok().filter(|seconds| *seconds > 0).unwrap_or(60);
    let addresses = given("host").split(',').count().max(given("hostaddr").split(',').count());
    let patience = Duration::from_secs(seconds.saturating_mul(u64::try_from(addresses).unwrap_or(1)));
    let line = Line::new(dsn.get("application_name").unwrap_or("slowlane"), Patience::Endless);
    let conninfo = CString::new(dsn.conninfo().expose()).map_err(|_| ConnectFailure::Other)?;
    let mut current: Option<(&'static str, Instant)> = None;
    let mut enter = |step: Option<&'static str>| {
        if step == current.map(|(name, _)| name) {
            return;
        }
        if let Some((name, since)) = current.take() {
            match steps.iter_mut().find(|(known, _)| *known == name) {
                Some((_, took)) => *took += since.elapsed(),
                None => steps.push((name, since.elapsed())),
            }
        }
        current = step.map(|name| (name, Instant::now()));
    };
    let outcome = Conn::connect_in_steps(&conninfo, line, patience, |status| enter(step(status)));
    enter(None);
    match outcome {
        Ok(conn) => Ok(Session { conn }),
        Err(Progress::TimedOut) => Err(ConnectFailure::TimedOut),
        Err(Progress::Failed(raw)) => Err(connect_failure(dsn, &raw)),
    }
}

/// What libpq is about at a status.
fn step(status: S) -> Option<&'static str> {
    match status {
        S::CONNECTION_NEEDED | S::CONNECTION_STARTED | S::CONNECTION_ALLOCATED => Some("connect"),
        S::CONNECTION_SSL_STARTUP | S::CONNECTION_GSS_STARTUP => Some("tls"),
        S::CONNECTION_MADE | S::CONNECTION_AWAITING_RESPONSE | S::CONNECTION_AUTHENTICATING => Some("login"),
        S::CONNECTION_AUTH_OK | S::CONNECTION_SETENV => Some("startup"),
        S::CONNECTION_CHECK_WRITABLE
        | S::CONNECTION_CONSUME
        | S::CONNECTION_CHECK_TARGET
        | S::CONNECTION_CHECK_STANDBY => Some("session_attributes"),
        S::CONNECTION_OK | S::CONNECTION_BAD => None,
    }
}
