//! The server process behind a session of a target.

use chrono::{DateTime, Utc};

/// One server process of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetBackend {
    /// Its process id.
    pub pid: i32,
    /// When it started.
    pub backend_start: DateTime<Utc>,
}
