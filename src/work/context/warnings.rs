//! The warnings of the target's server, kept for the work: what a statement left out is told by them alone.

use std::collections::BTreeMap;
use std::sync::{MutexGuard, PoisonError};

use serde::Serialize;

use crate::pq::Notice;
use crate::queue::record::log::cut;
use crate::work::context::{Said, WorkContext};

/// Has a session hear warnings, whatever the login's settings say. It changes nothing but what is told.
pub(crate) const HEAR_WARNINGS_SQL: &str = "SELECT pg_catalog.set_config('client_min_messages', 'warning', false)
      WHERE pg_catalog.current_setting('client_min_messages') IN ('error', 'fatal', 'panic')";

/// The most that are kept; more are counted.
const KEPT: usize = 100;
/// The most that a job's output has.
const SHOWN: usize = 20;
/// The most bytes of each that are kept.
const MESSAGE_BYTES: usize = 1_000;
/// The most places of the server's source for which warnings are counted.
const PLACES: usize = 1_000;
/// The function of the server that analyzes one table, and says so: at `debug2`, or as INFO to a VERBOSE.
const ANALYZES: &str = "do_analyze_rel";

/// A warning of the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// Its SQLSTATE; `01000` where the server has no better one.
    pub sqlstate: String,
    /// What it says, in the server's language.
    pub message: String,
}

/// Warnings of one or more statements, in the order in which they came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Warnings {
    /// The first hundred.
    pub kept: Vec<Warning>,
    /// How many there were.
    pub total: u64,
    /// How many there were by SQLSTATE and line of the server's source: what has one SQLSTATE is told apart by it.
    pub by_place: BTreeMap<(String, String), u64>,
    /// The server said that it analyzed a table, as far as the session hears that.
    pub analyzed: bool,
}

/// What the job's log doesn't get of what the server says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Unlogged {
    /// All is for the log.
    #[default]
    Nothing,
    /// What is said at a `debug` level.
    Debug,
    /// All of it.
    Everything,
}

/// What was heard, and what of it isn't for the log.
#[derive(Debug, Default)]
pub(super) struct Heard {
    warnings: Warnings,
    unlogged: Unlogged,
}

impl Warnings {
    fn add(&mut self, notice: &Notice) {
        self.total = self.total.saturating_add(1);
        let place = (notice.sqlstate.clone(), notice.line.clone());
        if self.by_place.len() < PLACES || self.by_place.contains_key(&place) {
            let count = self.by_place.entry(place).or_default();
            *count = count.saturating_add(1);
        }
        if self.kept.len() < KEPT {
            let message = cut(&notice.message, MESSAGE_BYTES);
            self.kept.push(Warning { sqlstate: notice.sqlstate.clone(), message });
        }
    }

    /// The first ones, for a job's output.
    pub fn shown(mut self) -> Vec<Warning> {
        self.kept.truncate(SHOWN);
        self.kept
    }

    /// One of them has this SQLSTATE.
    pub fn has(&self, sqlstate: &str) -> bool {
        self.kept.iter().any(|warning| warning.sqlstate == sqlstate)
    }
}

impl Said {
    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a notice that is a warning; whether it is for the log. Severities come untranslated.
    pub(super) fn hear(&self, notice: &Notice) -> bool {
        let mut heard = self.heard();
        let is_debug = notice.severity.starts_with("DEBUG");
        match notice.severity.as_str() {
            "WARNING" => heard.warnings.add(notice),
            severity if is_debug || severity == "INFO" => heard.warnings.analyzed |= notice.function == ANALYZES,
            _ => {}
        }
        match heard.unlogged {
            Unlogged::Nothing => true,
            Unlogged::Debug => !is_debug,
            Unlogged::Everything => false,
        }
    }
}

impl WorkContext<'_> {
    /// The server's warnings since the last call.
    pub(crate) fn take_warnings(&self) -> Warnings {
        std::mem::take(&mut self.said.heard().warnings)
    }

    /// From now on the log doesn't get this.
    pub(crate) fn unlogged(&self, what: Unlogged) {
        self.said.heard().unlogged = what;
    }
}
