//! The durations in a file's header.

use std::time::Duration;

use crate::queue::model::{DEFAULT_TIMEOUT_MS, MAX_LOCK_TIMEOUT_MS, MAX_TIMEOUT_MS};

/// How long an attempt may take, in milliseconds.
pub(super) fn timeout(text: Option<&str>) -> Result<i64, String> {
    let Some(text) = text else { return Ok(DEFAULT_TIMEOUT_MS) };
    let ms = span_ms(text).ok_or("timeout: expected a duration such as 30s or 10m")?;
    if (1..=MAX_TIMEOUT_MS).contains(&ms) { Ok(ms) } else { Err("timeout: expected 1ms to 24h".to_owned()) }
}

/// How long a statement waits for a lock, in milliseconds.
pub(super) fn lock_timeout(text: Option<&str>) -> Result<Option<i64>, String> {
    let Some(text) = text else { return Ok(None) };
    let ms = span_ms(text).ok_or("lock_timeout: expected a duration such as 10s or 5m")?;
    let fits = (1..=MAX_LOCK_TIMEOUT_MS).contains(&ms);
    if fits { Ok(Some(ms)) } else { Err("lock_timeout: expected 1ms to 1h".to_owned()) }
}

fn span_ms(text: &str) -> Option<i64> {
    let span: Duration = humantime::parse_duration(text).ok()?;
    Some(i64::try_from(span.as_millis()).unwrap_or(i64::MAX))
}
