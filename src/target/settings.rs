//! What a target is told in the settings, and why one can't be used.

use crate::db::time_zone;
use crate::dsn::{Dsn, MEMORY_EXPECTED, is_memory};
use crate::target::MAX_LOCK_TIMEOUT_MS;

/// What a target is told in the settings.
#[derive(Clone, Debug)]
pub struct TargetSettings {
    /// Where it is.
    pub dsn: Dsn,
    /// `work_mem` of its sessions; the server's own when absent.
    pub work_mem: Option<String>,
    /// The time zone of its sessions, by name; that of the login when absent.
    pub time_zone: Option<String>,
    /// How long a statement waits for a lock, in milliseconds: 1 to [`MAX_LOCK_TIMEOUT_MS`]. [`LOCK_TIMEOUT`](super::LOCK_TIMEOUT) when absent.
    pub lock_timeout_ms: Option<i64>,
    /// A role with more rights than work needs is accepted.
    pub allow_unsafe_role: bool,
    /// Its sessions can only read, whatever the kind.
    pub read_only: bool,
    /// Whatever is promoted in its place is a synchronous standby: it has every commit that was acknowledged.
    pub synchronous: bool,
    /// It runs saved statements, and nothing else that a caller asks for.
    pub statements_only: bool,
}

impl TargetSettings {
    /// What is wrong with them, as far as that is known without a server.
    pub(super) fn check(&self, name: &str) -> Result<(), TargetError> {
        let invalid =
            |setting, expected: String| Err(TargetError::Invalid { name: name.to_owned(), setting, expected });
        if self.work_mem.as_deref().is_some_and(|size| !is_memory(size)) {
            return invalid("work_mem", MEMORY_EXPECTED.to_owned());
        }
        if self.time_zone.as_deref().is_some_and(|zone| !time_zone::is_name(zone)) {
            return invalid("time_zone", time_zone::EXPECTED.to_owned());
        }
        if self.lock_timeout_ms.is_some_and(|ms| !(1..=MAX_LOCK_TIMEOUT_MS).contains(&ms)) {
            return invalid("lock_timeout_ms", format!("an integer from 1 to {MAX_LOCK_TIMEOUT_MS}"));
        }
        Ok(())
    }
}

/// Why a target can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// It can't be reached, or refuses us.
    #[error("target {name}: {reason}")]
    Unreachable {
        /// Its name in the settings.
        name: String,
        /// Why, and what to do about it.
        reason: String,
        /// It may pass by itself: the server is away, starts, stops or is full.
        passes: bool,
    },
    /// A setting of it has a value that can't be.
    #[error("target {name}: {setting}: expected {expected}")]
    Invalid {
        /// Its name in the settings.
        name: String,
        /// The setting.
        setting: &'static str,
        /// What it may be.
        expected: String,
    },
    /// Its role could do more than work may.
    #[error(
        "target_role_too_strong: target {name}: its role {what}; use a role without that right, or set \
         allow_unsafe_role = true for the target"
    )]
    RoleTooStrong {
        /// Its name in the settings.
        name: String,
        /// The right that is too much.
        what: String,
    },
}

impl TargetError {
    /// It may pass without anybody's change of a setting or a right.
    pub fn passes(&self) -> bool {
        matches!(self, TargetError::Unreachable { passes: true, .. })
    }
}
