//! What a target is told in the settings, and why one can't be used.

use serde::{Deserialize, Serialize};

use crate::db::time_zone;
use crate::dsn::{Dsn, MEMORY_EXPECTED, is_memory};
use crate::target::MAX_LOCK_TIMEOUT_MS;

/// What a target is told, whoever tells it: `[targets.<name>]` of slowlane.toml, or a program that embeds slowlane. Operators see
/// it in `GET /v1/targets`.
///
/// ```
/// use slowlane::target::TargetSpec;
///
/// let spec = TargetSpec { read_only: true, work_mem: Some("256MB".to_owned()), ..TargetSpec::default() };
/// assert!(!spec.synchronous);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TargetSpec {
    /// `work_mem` of its sessions. Defaults to the server's own.
    pub work_mem: Option<String>,
    /// The time zone of its sessions, by name. Defaults to that of the login: of its role, its database or its connection string.
    /// A job may name another.
    pub time_zone: Option<String>,
    /// How long a statement waits for a lock, in milliseconds: 1 to [`MAX_LOCK_TIMEOUT_MS`]. Defaults to
    /// [`LOCK_TIMEOUT`](super::LOCK_TIMEOUT). A job may say another time.
    pub lock_timeout_ms: Option<i64>,
    /// A role with more rights than work needs is accepted. Defaults to no.
    pub allow_unsafe_role: bool,
    /// Its sessions can only read, whatever the kind. Defaults to no.
    pub read_only: bool,
    /// Whatever is promoted in its place is a synchronous standby: it has every commit that was acknowledged. Defaults to no.
    pub synchronous: bool,
    /// It runs saved statements, and nothing else that a caller asks for. Defaults to no.
    pub statements_only: bool,
}

/// A target as it is to be opened.
#[derive(Clone, Debug)]
pub struct TargetSettings {
    /// Where it is.
    pub dsn: Dsn,
    /// What it is told.
    pub spec: TargetSpec,
}

impl TargetSettings {
    /// A target with nothing said but where it is.
    pub fn at(dsn: Dsn) -> TargetSettings {
        TargetSettings { dsn, spec: TargetSpec::default() }
    }
}

impl TargetSpec {
    /// The keys of `[targets.<name>]` that are fields of this.
    pub const KEYS: [&str; 7] = [
        "work_mem",
        "time_zone",
        "lock_timeout_ms",
        "allow_unsafe_role",
        "read_only",
        "synchronous",
        "statements_only",
    ];

    /// What of it may be shown: what is no size and no name may be a secret in the wrong place.
    pub fn shown(&self) -> TargetSpec {
        TargetSpec {
            work_mem: self.work_mem.clone().filter(|size| is_memory(size)),
            time_zone: self.time_zone.clone().filter(|zone| time_zone::is_name(zone)),
            ..self.clone()
        }
    }

    /// What is wrong with it, as far as that is known without a server.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_a_key() {
        let fields = serde_json::to_value(TargetSpec::default()).unwrap();
        let mut keys: Vec<&str> = TargetSpec::KEYS.to_vec();
        keys.sort_unstable();
        assert_eq!(fields.as_object().unwrap().keys().collect::<Vec<_>>(), keys);
    }

    #[test]
    fn what_may_be_a_secret_is_not_shown() {
        let slip = |text: &str| Some(text.to_owned());
        let spec = TargetSpec { work_mem: slip("s3cret"), time_zone: slip("s3cret@db"), ..TargetSpec::default() };
        assert_eq!(spec.shown(), TargetSpec::default());
        let right = TargetSpec { work_mem: slip("64MB"), time_zone: slip("Europe/Berlin"), ..spec };
        assert_eq!(right.shown(), right);
    }
}
