//! Asking a server, and noting what can't be asked.

use serde_json::Value;

use crate::doctor::report::{Finding, FindingCode, Report, Severity};
use crate::pq::{Rows, Session};

/// Whether the examination may go on.
pub type MayGoOn<'g> = &'g dyn Fn() -> bool;

/// A session that is asked, and the report of what it says.
pub(super) struct Look<'l> {
    pub session: &'l mut Session,
    pub report: &'l mut Report,
    /// Asked before each look.
    pub may_go_on: MayGoOn<'l>,
    /// The session was lost: nothing more is asked.
    lost: bool,
}

/// The rows of an answer, by column names of ours.
pub(super) struct Answer(Rows);

impl Answer {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn text(&self, row: usize, column: usize) -> &str {
        self.0.get(row, column).unwrap_or_default()
    }

    pub fn number(&self, row: usize, column: usize) -> Option<i64> {
        self.0.get(row, column)?.parse().ok()
    }

    pub fn is(&self, row: usize, column: usize) -> bool {
        self.0.get(row, column) == Some("t")
    }
}

impl Look<'_> {
    /// Looks by a session.
    pub fn new<'l>(session: &'l mut Session, report: &'l mut Report, may_go_on: MayGoOn<'l>) -> Look<'l> {
        Look { session, report, may_go_on, lost: false }
    }

    /// Asks; what can't be asked becomes a finding. `what` completes "could not look at …".
    pub fn ask(&mut self, what: &str, sql: &str, params: &[Option<&str>]) -> Option<Answer> {
        if self.lost || !(self.may_go_on)() {
            return None;
        }
        let error = match self.session.query(sql, params) {
            Ok(rows) => return Some(Answer(rows)),
            Err(error) => error,
        };
        if self.session.is_broken() {
            self.lost = true;
            let detail =
                format!("the session was lost while looking at {what}, and nothing more is looked at: {error}");
            let fix = "see the server's log for why it ended the session, and run it again";
            self.find(FindingCode::Unreachable, Severity::Error, detail, fix);
            return None;
        }
        // A right that is missing is one thing; a server that doesn't answer is another.
        let denied = error.sqlstate.as_deref() == Some("42501");
        let severity = if denied { Severity::Info } else { Severity::Warning };
        let detail = format!("could not look at {what}: {error}");
        let fix = match denied {
            true => "grant the role what it lacks, or run it as another role",
            false => "the server may be busy: run it again",
        };
        self.find(FindingCode::NotLookedAt, severity, detail, fix);
        None
    }

    /// Adds a finding without SQL.
    pub fn find(&mut self, code: FindingCode, severity: Severity, detail: impl Into<String>, fix: impl Into<String>) {
        self.report.find(Finding::new(code, severity, detail, fix));
    }

    /// Notes a fact.
    pub fn fact(&mut self, name: &str, value: impl Into<Value>) {
        self.report.fact(name, value);
    }
}

/// Bytes for people.
pub(super) fn bytes(count: i64) -> String {
    let (mut value, mut unit) = (count, "bytes");
    for larger in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 10_240 {
            break;
        }
        (value, unit) = (value / 1024, larger);
    }
    format!("{value} {unit}")
}

/// A time for people.
pub(super) fn span(seconds: i64) -> String {
    let seconds = u64::try_from(seconds).unwrap_or(0);
    humantime::format_duration(std::time::Duration::from_secs(seconds)).to_string()
}
