//! The warnings of the target's server, kept for the work: what a statement left out is told by them alone.

use std::sync::PoisonError;

use serde::Serialize;

use crate::pq::Notice;
use crate::queue::record::log::cut;
use crate::work::context::{Said, WorkContext};

/// The most that are kept; more are counted.
const KEPT: usize = 100;
/// The most that a job's output has.
const SHOWN: usize = 20;
/// The most bytes of each that are kept.
const MESSAGE_BYTES: usize = 1_000;

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
}

impl Warnings {
    fn add(&mut self, notice: &Notice) {
        self.total = self.total.saturating_add(1);
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
    /// Keeps a notice that is a warning. Severities come untranslated.
    pub(super) fn hear(&self, notice: &Notice) {
        if notice.severity == "WARNING" {
            self.warnings.lock().unwrap_or_else(PoisonError::into_inner).add(notice);
        }
    }
}

impl WorkContext<'_> {
    /// The server's warnings since the last call.
    pub(crate) fn take_warnings(&self) -> Warnings {
        std::mem::take(&mut *self.said.warnings.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
