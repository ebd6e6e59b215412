//! How an attempt ended, on its way to the thread that writes it.

use std::time::Duration;

use crate::queue::Lease;
use crate::queue::lifecycle::end::Ending;
use crate::queue::record::history::Run;
use crate::queue::record::log::LogLine;
use crate::queue::record::report::Attempted;

/// One attempt's end.
#[derive(Clone, Debug)]
pub struct Ended {
    /// The right to say so.
    pub lease: Lease,
    /// The kind of work.
    pub kind: String,
    /// The database that it ran on.
    pub target: String,
    /// The number of the attempt, from 1.
    pub attempt: i32,
    /// How long it ran.
    pub took: Duration,
    /// How it ended.
    pub ending: Ending,
    /// What it said last.
    pub log: Vec<LogLine>,
    /// What it took, where that is worth remembering.
    pub run: Option<Run>,
}

impl Ended {
    pub(super) fn attempted(&self) -> Attempted<'_> {
        let Ended { lease, kind, target, attempt, took, .. } = self;
        Attempted { job_id: lease.job_id, kind, target, attempt: *attempt, took: Some(*took) }
    }
}
