//! Connections to the queue of a process, as each of its parts has them.

use std::time::Duration;

use crate::db::Source;
use crate::db::pool::{Manager, Purpose};

/// The longest statement of a claim or an end.
pub(super) const CONTROL_STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) fn manager(queue: &Source, name: &'static str, statement_timeout: Duration) -> Manager {
    Manager::queue(queue, &Purpose { name, statement_timeout })
}
