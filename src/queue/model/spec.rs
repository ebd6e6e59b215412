//! What a caller asks for: the fields of a job that is to be, their defaults, and what each may be.

use chrono::{DateTime, Datelike, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Integer, Json, Jsonb, Nullable, SmallInt, Text, Timestamptz};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::db::time_zone;
use crate::queue::model::{
    DEFAULT_MAX_ATTEMPTS, DEFAULT_PRIORITY, DEFAULT_RESULT_TTL_MS, DEFAULT_TIMEOUT_MS, Labels, MAX_ARGS_BYTES,
    MAX_ARGS_DEPTH, MAX_LABEL_CHARS, MAX_LABELS, MAX_LOCK_TIMEOUT_MS, MAX_MAX_ATTEMPTS, MAX_NAME_CHARS, MAX_PRIORITY,
    MAX_RESULT_TTL_MS, MAX_TIMEOUT_MS, RawJson,
};

/// A job as a caller asks for it: the same by HTTP, by SQL and from Rust.
///
/// [`Work::job`](crate::work::Work::job) makes one of a kind's own type, and
/// [`Registry::job`](crate::work::Registry::job) one whose kind and arguments come from elsewhere; both check them.
///
/// ```
/// use slowlane::queue::{JobSpec, RawJson};
///
/// let args = RawJson::of(&serde_json::json!({"sql": "REFRESH MATERIALIZED VIEW sales"}))?;
/// let job = JobSpec { priority: 8, max_attempts: 1, ..JobSpec::new("execute", args) };
/// assert_eq!(job.queue, "default");
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Serialize, Deserialize, QueryableByName)]
#[serde(default, deny_unknown_fields)]
pub struct JobSpec {
    /// The name of the kind of work.
    #[diesel(sql_type = Text)]
    pub kind: String,
    /// What the kind is told, as the caller wrote it.
    #[diesel(sql_type = Json)]
    pub args: RawJson,
    /// The database that the work runs on.
    #[diesel(sql_type = Text)]
    pub target: String,
    /// The queue that it waits in.
    #[diesel(sql_type = Text)]
    pub queue: String,
    /// 0 to 9, lower first.
    #[diesel(sql_type = SmallInt)]
    pub priority: i16,
    /// Not before this time; a time that has passed means now. Of a stored job: when it may run, or could.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub run_at: Option<DateTime<Utc>>,
    /// How long one attempt may take.
    #[diesel(sql_type = BigInt)]
    pub timeout_ms: i64,
    /// How often it is tried.
    #[diesel(sql_type = Integer)]
    pub max_attempts: i32,
    /// The caller's own words for finding it again.
    #[diesel(sql_type = Jsonb)]
    pub labels: Labels,
    /// How long its result is kept.
    #[diesel(sql_type = BigInt)]
    pub result_ttl_ms: i64,
    /// The time zone of its sessions on the target, by name. That of the target or its login when absent.
    #[diesel(sql_type = Nullable<Text>)]
    pub time_zone: Option<String>,
    /// How long its statements wait for a lock, in milliseconds: 1 to [`MAX_LOCK_TIMEOUT_MS`]. As the target says when
    /// absent.
    #[diesel(sql_type = Nullable<BigInt>)]
    pub lock_timeout_ms: Option<i64>,
    /// The upload that its arguments name: kept until the job has ended. An `import`'s is known from its arguments.
    #[diesel(sql_type = Nullable<diesel::sql_types::Uuid>)]
    pub upload: Option<Uuid>,
}

impl JobSpec {
    /// A job of `kind` on the target `default`, with every default of the contract.
    pub fn new(kind: &str, args: RawJson) -> JobSpec {
        JobSpec { kind: kind.to_owned(), args, ..JobSpec::default() }
    }
}

/// Every default of the contract. The kind has none: an empty one is refused.
impl Default for JobSpec {
    fn default() -> JobSpec {
        JobSpec {
            kind: String::new(),
            args: RawJson::empty_object(),
            target: "default".to_owned(),
            queue: "default".to_owned(),
            priority: DEFAULT_PRIORITY,
            run_at: None,
            timeout_ms: DEFAULT_TIMEOUT_MS,
            max_attempts: DEFAULT_MAX_ATTEMPTS,
            labels: Labels::default(),
            result_ttl_ms: DEFAULT_RESULT_TTL_MS,
            time_zone: None,
            lock_timeout_ms: None,
            upload: None,
        }
    }
}

/// A field of a job that no queue accepts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: expected {expected}")]
pub struct InvalidJob {
    /// Which one.
    pub field: &'static str,
    /// What it may be.
    pub expected: String,
}

impl JobSpec {
    /// Checks what every queue checks. Whether there is such a kind, queue or target is known to processes alone.
    ///
    /// # Errors
    /// The first field that has no valid value.
    pub fn check(&self) -> Result<(), InvalidJob> {
        let name = |field, text: &str| {
            let fits = (1..=MAX_NAME_CHARS).contains(&text.chars().count()) && !text.contains('\0');
            expect(fits, field, || format!("a name of 1 to {MAX_NAME_CHARS} characters"))
        };
        name("kind", &self.kind)?;
        name("queue", &self.queue)?;
        name("target", &self.target)?;
        check_args(self.args.text())?;
        integer("priority", i64::from(self.priority), 0, i64::from(MAX_PRIORITY))?;
        expect(self.run_at.is_none_or(|time| (1..=9999).contains(&time.year())), "run_at", || {
            "a time of the years 1 to 9999".to_owned()
        })?;
        integer("timeout_ms", self.timeout_ms, 1, MAX_TIMEOUT_MS)?;
        integer("max_attempts", i64::from(self.max_attempts), 1, i64::from(MAX_MAX_ATTEMPTS))?;
        integer("result_ttl_ms", self.result_ttl_ms, 1, MAX_RESULT_TTL_MS)?;
        let is_zone = self.time_zone.as_deref().is_none_or(time_zone::is_name);
        expect(is_zone, "time_zone", || time_zone::EXPECTED.to_owned())?;
        integer("lock_timeout_ms", self.lock_timeout_ms.unwrap_or(1), 1, MAX_LOCK_TIMEOUT_MS)?;
        expect(self.labels.len() <= MAX_LABELS, "labels", || format!("at most {MAX_LABELS} labels"))?;
        let fits = |text: &str| text.chars().count() <= MAX_LABEL_CHARS && !text.contains('\0');
        let good = self.labels.iter().all(|(name, value)| !name.is_empty() && fits(name) && fits(value));
        expect(good, "labels", || format!("names of 1 to {MAX_LABEL_CHARS} characters and values of at most as many"))
    }
}

fn expect(holds: bool, field: &'static str, expected: impl FnOnce() -> String) -> Result<(), InvalidJob> {
    if holds { Ok(()) } else { Err(InvalidJob { field, expected: expected() }) }
}

fn integer(field: &'static str, value: i64, least: i64, most: i64) -> Result<(), InvalidJob> {
    expect((least..=most).contains(&value), field, || format!("an integer from {least} to {most}"))
}

fn check_args(text: &str) -> Result<(), InvalidJob> {
    expect(text.trim_start().starts_with('{'), "args", || "an object".to_owned())?;
    expect(text.len() <= MAX_ARGS_BYTES, "args", || format!("at most {MAX_ARGS_BYTES} bytes"))?;
    expect(!has_nul(text), "args", || "no \\u0000".to_owned())?;
    expect(depth(text) <= MAX_ARGS_DEPTH, "args", || format!("at most {MAX_ARGS_DEPTH} levels"))
}

/// How deep a valid document is nested.
fn depth(json: &str) -> usize {
    let (mut now, mut deepest) = (0_usize, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => now += 1,
            b'}' | b']' if !in_string => now = now.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(now);
    }
    deepest
}

/// A document says `\u0000`, which no text of Postgres can hold. Behind an even number of backslashes it is six plain
/// characters.
pub(crate) fn has_nul(json: &str) -> bool {
    json.match_indices("\\u0000").any(|(at, _)| {
        let before = json.get(..at).unwrap_or_default();
        (before.len() - before.trim_end_matches('\\').len()).is_multiple_of(2)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_in_strings_are_no_levels() {
        for (json, levels) in
            [("{}", 1), (r#"{"a":[{}]}"#, 3), (r#"{"[\"{[":"]","b":"\\"}"#, 1), (r#"[[],[[]],"[["]"#, 3)]
        {
            assert_eq!(depth(json), levels, "{json}");
        }
    }

    #[test]
    fn a_nul_is_found_and_six_plain_characters_are_none() {
        for json in [r#"{"a":"\u0000"}"#, r#"{"\\\u0000":1}"#, r#"{"a":"\\\\\u0000"}"#] {
            assert!(has_nul(json), "{json}");
        }
        for json in [r#"{"a":"\\u0000"}"#, r#"{"a":"\\\\u0000"}"#, r#"{"a":"\u0001"}"#, "{}"] {
            assert!(!has_nul(json), "{json}");
        }
    }
}
