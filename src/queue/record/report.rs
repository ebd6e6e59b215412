//! One line of the process' log for each attempt that ended, once its end is stored.
//!
//! A line has the job's id, kind, target and attempt, how long that took, and the code of its error: never arguments, SQL or a
//! message, which may hold values of the caller's. Jobs that failed are warnings, the others are told at level info.

use std::time::Duration;

use log::kv::Value;
use log::{Level, Record};
use uuid::Uuid;

use crate::queue::lifecycle::end::{Became, Ending};
use crate::queue::model::ErrorCode;
use crate::queue::model::{BlockedBy, Job, JobState};

/// The name under which these lines are logged: filters choose by it.
pub const LOG_TARGET: &str = "slowlane::jobs";

/// The longest name that is shown, in characters. Kinds and codes of an embedder's are his own words.
const SHOWN: usize = 128;

/// An attempt that ended.
#[derive(Clone, Copy, Debug)]
pub struct Attempted<'a> {
    /// The job.
    pub job_id: Uuid,
    /// The kind of work.
    pub kind: &'a str,
    /// The database that it was to run on.
    pub target: &'a str,
    /// The number of the attempt, from 1.
    pub attempt: i32,
    /// How long it ran, where that is known.
    pub took: Option<Duration>,
}

/// Tells how an attempt ended, once that is stored.
pub fn ended(attempted: &Attempted<'_>, ending: &Ending, became: Became) {
    let (level, text) = match (became, ending) {
        (Became::Cancelled, _) => (Level::Info, "a job was cancelled"),
        (Became::Poison, _) => (Level::Warn, "a job failed"),
        (Became::Paused, _) => (Level::Info, "a job is paused"),
        (Became::AsSaid, Ending::Finished(finished)) => match finished.state {
            JobState::Succeeded => (Level::Info, "a job succeeded"),
            JobState::Cancelled => (Level::Info, "a job was cancelled"),
            _ => (Level::Warn, "a job failed"),
        },
        (Became::AsSaid, Ending::Retry { .. }) => (Level::Info, "an attempt failed, and the job is tried again"),
        (Became::AsSaid, Ending::Snooze { .. }) => (Level::Info, "a job is put off"),
        (Became::AsSaid, Ending::HandBack { .. }) => (Level::Info, "a job is handed back"),
        // It was withdrawn while the attempt stopped for it.
        (Became::AsSaid, Ending::Pause) => (Level::Info, "a job is handed back"),
    };
    say(level, text, attempted, || told(ending, became));
}

/// Tells that a job was cancelled that no attempt of ran.
pub fn cancelled(job: &Job) {
    let (kind, target) = (job.spec.kind.as_str(), job.spec.target.as_str());
    let attempted = Attempted { job_id: job.id, kind, target, attempt: job.status.attempt, took: None };
    say(Level::Info, "a job was cancelled", &attempted, || None);
}

fn say<'e>(level: Level, text: &str, attempted: &Attempted<'_>, told: impl FnOnce() -> Option<Told<'e>>) {
    // Under load there are thousands a second, and most are filtered out.
    if !log::log_enabled!(target: LOG_TARGET, level) {
        return;
    }
    let (code, blockers) = told().map_or((None, &[][..]), |(code, blockers)| (Some(shown(code)), blockers));
    let job = attempted.job_id.to_string();
    let (kind, target, attempt) = (shown(attempted.kind), shown(attempted.target), attempted.attempt);
    let duration_ms = attempted.took.map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
    let blocked_by =
        (!blockers.is_empty()).then(|| shown(&blockers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")));
    // In this order, and only those that are known: a field that is absent isn't in the line.
    let mut fields: Vec<(&str, Value<'_>)> = vec![
        ("job", Value::from(job.as_str())),
        ("kind", Value::from(kind.as_str())),
        ("target", Value::from(target.as_str())),
    ];
    fields.extend(code.as_deref().map(|code| ("code", Value::from(code))));
    fields.push(("attempt", Value::from(attempt)));
    fields.extend(duration_ms.map(|ms| ("duration_ms", Value::from(ms))));
    fields.extend(blocked_by.as_deref().map(|by| ("blocked_by", Value::from(by))));
    let mut record = Record::builder();
    record.target(LOG_TARGET).module_path(Some(module_path!())).level(level).key_values(&fields);
    log::logger().log(&record.args(format_args!("{text}")).build());
}

/// The code of an attempt's error, and who held a lock that was waited for in vain.
type Told<'e> = (&'e str, &'e [BlockedBy]);

fn told(ending: &Ending, became: Became) -> Option<Told<'_>> {
    let error = match (became, ending) {
        (Became::Cancelled, _) | (_, Ending::Pause) => return None,
        (Became::Poison, _) => return Some((ErrorCode::Poison.as_str(), &[])),
        (_, Ending::Finished(finished)) => finished.error.as_ref()?,
        (_, Ending::Retry { error, .. } | Ending::HandBack { error, .. }) => error,
        (_, Ending::Snooze { error, .. }) => error.as_ref()?,
    };
    Some((&error.code, error.blocked_by.as_deref().unwrap_or_default()))
}

/// One line stays one line, whatever a name holds.
fn shown(name: &str) -> String {
    let safe =
        name.chars().take(SHOWN).flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] });
    safe.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_on_its_line_and_short() {
        assert_eq!(shown("query"), "query");
        assert_eq!(shown("a\nWARN b\u{1b}[1m"), "a\\nWARN b\\u{1b}[1m");
        assert_eq!(shown(&"é".repeat(1000)).chars().count(), SHOWN);
    }
}
