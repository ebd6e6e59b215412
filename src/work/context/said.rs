//! What an attempt says of itself, and what its server says to it: written by the attempt, read by the threads that store it.

use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::pq::Notice;
use crate::queue::record::log::{LogBuffer, LogLevel, LogSource};
use crate::work::context::Waits;
use crate::work::context::warnings::Heard;
use crate::work::progress::Progress;

/// What an attempt says of itself, read by the threads that store it.
#[derive(Debug, Default)]
pub struct Said {
    progress: Mutex<Progress>,
    log: Mutex<LogBuffer>,
    pub(super) heard: Mutex<Heard>,
    /// Transactions that were recorded, or may have been.
    pub(super) recorded: AtomicI32,
    waits: Mutex<Waits>,
}

impl Said {
    /// How far it is.
    pub fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it waits for.
    pub fn waits(&self) -> MutexGuard<'_, Waits> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A transaction of it was recorded, or may have been: what became of that comes before any other end.
    pub fn may_have_committed(&self) -> bool {
        self.recorded.load(Ordering::SeqCst) > 0
    }

    /// What it has to say.
    pub fn log(&self) -> MutexGuard<'_, LogBuffer> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the server says of a statement: kept where it is a warning, and a line of the log.
    pub(super) fn say_notice(&self, notice: Notice) {
        if !self.hear(&notice) {
            return;
        }
        let level = match notice.severity.as_str() {
            severity if severity.starts_with("DEBUG") => LogLevel::Debug,
            "NOTICE" => LogLevel::Notice,
            "WARNING" => LogLevel::Warning,
            _ => LogLevel::Info,
        };
        self.log().say(level, LogSource::Server, Some(notice.sqlstate), &notice.message);
    }
}
