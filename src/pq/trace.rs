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

/// What came of connecting, and how long each step took. Of several addresses the steps of all that were tried are
/// added up.
pub struct Trace {
    /// In the order in which they began: `resolve`, `connect`, `tls`, `login`, `startup`, `session_attributes`.
    pub steps: Vec<(&'static str, Duration)>,
    /// The session, or why there is none.
    pub outcome: Result<Session, ConnectFailure>,
}

/// Connects as [`Session::connect`] does: to one address after the other, to each for at most the string's
/// `connect_timeout`, 5 s where it says nothing, and for as long as `may_go_on` says yes.
pub fn trace_connect(dsn: &Dsn, may_go_on: &dyn Fn() -> bool) -> Trace {
    let began = Instant::now();
    let resolved = with_addresses(&dsn.clone().with_default("connect_timeout", "5"));
    let mut steps = vec![("resolve", began.elapsed())];
    let outcome = resolved.and_then(|dsn| connect(&dsn, &mut steps, may_go_on));
    Trace { steps, outcome }
}

/// libpq would wait for the first address for ever when it is asked step by step, so each has a string of its own.
fn each_address(dsn: &Dsn) -> Vec<Dsn> {
    let list = |keyword: &str| -> Vec<&str> { dsn.get(keyword).map_or(Vec::new(), |text| text.split(',').collect()) };
    let (hosts, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
    let count = hosts.len().max(addresses.len());
    if count < 2 {
        return vec![dsn.clone()];
    }
    let lists = [("host", hosts), ("hostaddr", addresses), ("port", ports)];
    let one = |n: usize| {
        lists.iter().fold(dsn.clone(), |dsn, (keyword, values)| match values.get(n).or(values.first()) {
            Some(value) => dsn.with(keyword, value),
            None => dsn,
        })
    };
    (0..count).map(one).collect()
}

fn connect(
    dsn: &Dsn,
    steps: &mut Vec<(&'static str, Duration)>,
    may_go_on: &dyn Fn() -> bool,
) -> Result<Session, ConnectFailure> {
    let mut failures = Vec::new();
    let addresses = each_address(dsn);
    // Any will do where none is what would be liked better.
    let prefers = dsn.get("target_session_attrs") == Some("prefer-standby") && addresses.len() > 1;
    let again = addresses.iter().map(|dsn| dsn.clone().with("target_session_attrs", "any")).filter(|_| prefers);
    let first = addresses.iter().map(|dsn| match prefers {
        true => dsn.clone().with("target_session_attrs", "standby"),
        false => dsn.clone(),
    });
    for dsn in first.chain(again) {
        match connect_to(&dsn, steps) {
            Ok(session) => return Ok(session),
            Err(raw) => {
                let next = tries_the_next(&raw);
                failures.push(raw);
                if !(next && may_go_on()) {
                    break;
                }
            }
        }
    }
    Err(connect_failure(dsn, &failures.join("\n")))
}

/// libpq goes on to the next address where nobody answered, or a server that isn't ready or isn't of the kind that is
/// wanted. A refused login is its last word, and so is TLS that didn't come about (`PQconnectPoll` in fe-connect.c,
/// libpq 18).
fn tries_the_next(raw: &str) -> bool {
    use ConnectFailure as F;
    let class = ConnectFailure::of(raw);
    matches!(
        class,
        F::Refused | F::TimedOut | F::HostNotResolved | F::StartingUp | F::ShuttingDown | F::NoSuitableServer
    )
}

/// One address. The error is libpq's raw text.
fn connect_to(dsn: &Dsn, steps: &mut Vec<(&'static str, Duration)>) -> Result<Session, String> {
    let timeout = dsn.get("connect_timeout").and_then(|text| text.trim().parse::<u64>().ok());
    let patience = Duration::from_secs(timeout.filter(|seconds| *seconds > 0).unwrap_or(60));
    let line = Line::new(dsn.get("application_name").unwrap_or("slowlane"), Patience::Endless);
    let conninfo = CString::new(dsn.conninfo().expose()).map_err(|_| String::new())?;
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
        // What libpq itself says of it where it keeps the time.
        Err(Progress::TimedOut) => Err("timeout expired".to_owned()),
        Err(Progress::Failed(raw)) => Err(raw),
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
