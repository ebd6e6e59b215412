//! Bounds of what a job or a target may ask of a session, which both have to know.

/// The longest that a job or a target can have a statement wait for a lock, in milliseconds: an hour. Who waits keeps out
/// whoever comes behind.
pub const MAX_LOCK_TIMEOUT_MS: i64 = 3_600_000;
