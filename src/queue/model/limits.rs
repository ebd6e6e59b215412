//! The bounds of a job and of its fields: numbers only. `slowlane.enqueue` has them too; a test compares both.

use std::time::Duration;

pub use crate::db::bounds::MAX_LOCK_TIMEOUT_MS;
pub use crate::db::time_zone::{EXPECTED as TIME_ZONE_EXPECTED, MAX_TIME_ZONE_CHARS, is_name as is_time_zone};

/// `timeout_ms` when the caller names none: 1 hour.
pub const DEFAULT_TIMEOUT_MS: i64 = 3_600_000;
/// The longest `timeout_ms`: 24 hours.
pub const MAX_TIMEOUT_MS: i64 = 86_400_000;
/// `max_attempts` when the caller names none.
pub const DEFAULT_MAX_ATTEMPTS: i32 = 3;
/// The most attempts that a caller can ask for.
pub const MAX_MAX_ATTEMPTS: i32 = 25;
/// `priority` when the caller names none; 0 goes first, 9 last.
pub const DEFAULT_PRIORITY: i16 = 5;
/// The last priority.
pub const MAX_PRIORITY: i16 = 9;
/// How long a result is kept when the caller names nothing: 24 hours.
pub const DEFAULT_RESULT_TTL_MS: i64 = 86_400_000;
/// The longest that a caller can have a result kept: 30 days, as long as the record of the job itself.
pub const MAX_RESULT_TTL_MS: i64 = 2_592_000_000;
/// The most labels on a job.
pub const MAX_LABELS: usize = 32;
/// The longest label key and value, in characters.
pub const MAX_LABEL_CHARS: usize = 128;
/// The longest message, detail and hint of an error, in bytes; what is longer is cut, and ends in `…`.
pub const MAX_ERROR_BYTES: usize = 8 * 1024;
/// The longest name of a kind, a queue or a target, in characters.
pub const MAX_NAME_CHARS: usize = 128;
/// The longest arguments, as JSON text in bytes: 1 MiB.
pub const MAX_ARGS_BYTES: usize = 1024 * 1024;
/// The deepest nesting of arguments: with the request around them, 64 levels.
pub const MAX_ARGS_DEPTH: usize = 63;
/// A job during which so many workers in a row died ends as `failed`, `poison`.
pub const MAX_LOST_IN_A_ROW: i32 = 3;
/// The same for interruptions of every kind, orderly shutdowns included.
pub const MAX_INTERRUPTED_IN_A_ROW: i32 = 20;
/// An id's time may differ from the database's clock by this much.
pub const MAX_ID_CLOCK_DIFFERENCE: Duration = Duration::from_secs(86_400);
