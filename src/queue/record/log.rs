//! What attempts say while they run: the server's notices and the kind's own lines.
//!
//! Lines are written twice a second for all of a process, and what is left with the attempt's end, each under its
//! lease. A line is forgotten here only when it is known to be stored, so that none is lost between the two.

use chrono::{DateTime, Utc};
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Integer, Nullable, Text, Timestamptz};
use uuid::Uuid;

use crate::db::DbError;
use crate::queue::model::Lease;
use crate::queue::record::partitions;

/// The most lines of one attempt. What comes after them is counted, not kept.
pub const MAX_LINES: usize = 1_000;
/// The longest message, in bytes; a longer one is cut.
pub const MAX_MESSAGE_BYTES: usize = 8 * 1024;
/// The most that one statement stores, in bytes: it has to be done long before its timeout.
const MAX_PORTION_BYTES: usize = 1024 * 1024;
/// What a line takes beside its message, about.
const LINE_BYTES: usize = 100;

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// For whoever looks for a fault.
    Debug,
    /// What happened.
    Info,
    /// What somebody may want to know.
    Notice,
    /// What may be wrong.
    Warning,
    /// What is wrong.
    Error,
}

impl LogLevel {
    /// The word in columns and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            LogLevel::Debug => "debug",
            LogLevel::Info => "info",
            LogLevel::Notice => "notice",
            LogLevel::Warning => "warning",
            LogLevel::Error => "error",
        }
    }
}

/// Who said a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogSource {
    /// The target's server.
    Server,
    /// The kind of work.
    Work,
}

impl LogSource {
    /// The word in columns and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            LogSource::Server => "server",
            LogSource::Work => "work",
        }
    }
}

/// One line, before it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// Its number within the attempt, from 0.
    pub n: i32,
    /// When it was said, by the clock of the process that ran the attempt.
    pub at: DateTime<Utc>,
    /// How much it matters.
    pub level: LogLevel,
    /// Who said it.
    pub source: LogSource,
    /// The server's SQLSTATE.
    pub sqlstate: Option<String>,
    /// What was said.
    pub message: String,
}

/// The lines of one attempt that aren't known to be stored yet.
#[derive(Debug, Default)]
pub struct LogBuffer {
    lines: Vec<LogLine>,
    said: usize,
    dropped: usize,
}

impl LogBuffer {
    /// Adds a line. After [`MAX_LINES`] it is only counted.
    pub fn say(&mut self, level: LogLevel, source: LogSource, sqlstate: Option<String>, message: &str) {
        if self.said >= MAX_LINES {
            self.dropped += 1;
            return;
        }
        self.push(level, source, sqlstate, cut(message, MAX_MESSAGE_BYTES));
    }

    fn push(&mut self, level: LogLevel, source: LogSource, sqlstate: Option<String>, message: String) {
        let n = i32::try_from(self.said).unwrap_or(i32::MAX);
        self.lines.push(LogLine { n, at: Utc::now(), level, source, sqlstate, message });
        self.said += 1;
    }

    /// The lines that are to be stored. They stay here until [`LogBuffer::stored`].
    pub fn unstored(&self) -> Vec<LogLine> {
        self.lines.clone()
    }

    /// These lines are stored.
    pub fn stored(&mut self, lines: &[LogLine]) {
        self.lines.retain(|line| !lines.iter().any(|stored| stored.n == line.n));
    }

    /// What is left at the attempt's end, with a line about those that were only counted.
    pub fn take_rest(&mut self) -> Vec<LogLine> {
        if self.dropped > 0 {
            let message = format!("{} more lines were not kept", self.dropped);
            self.dropped = 0;
            self.push(LogLevel::Warning, LogSource::Work, None, message);
        }
        std::mem::take(&mut self.lines)
    }
}

/// A text's first bytes, as one that can be stored: Postgres can't keep NUL. The server never sends it, a kind or a file may.
pub(crate) fn cut(text: &str, most_bytes: usize) -> String {
    let mut head = text.get(..text.floor_char_boundary(most_bytes)).unwrap_or_default().replace('\0', "\u{fffd}");
    head.truncate(head.floor_char_boundary(most_bytes));
    head
}

/// Lines of some who said them, in portions that a statement each can store. Nobody's lines come out of order.
pub fn portions<T: Clone>(said: &[(T, Vec<LogLine>)]) -> Vec<Vec<(T, Vec<LogLine>)>> {
    let mut portions: Vec<Vec<(T, Vec<LogLine>)>> = Vec::new();
    let mut room = 0;
    for (who, lines) in said {
        let mut begun = false;
        for line in lines {
            let bytes = line.message.len().saturating_add(LINE_BYTES);
            if bytes > room {
                portions.push(Vec::new());
                room = MAX_PORTION_BYTES;
                begun = false;
            }
            room = room.saturating_sub(bytes);
            let Some(portion) = portions.last_mut() else { continue };
            match portion.last_mut().filter(|_| begun) {
                Some((_, lines)) => lines.push(line.clone()),
                None => portion.push((who.clone(), vec![line.clone()])),
            }
            begun = true;
        }
    }
    portions
}

/// Stores one of the [`portions`] of what attempts said, as far as their leases still hold. Storing a line again
/// changes nothing.
///
/// # Errors
/// When the database fails. Nothing is stored then.
pub fn write(connection: &mut PgConnection, lines: &[(Lease, Vec<LogLine>)]) -> Result<(), DbError> {
    if lines.iter().all(|(_, lines)| lines.is_empty()) {
        return Ok(());
    }
    let ids = lines.iter().map(|(lease, _)| lease.job_id);
    partitions::with_days_of(connection, ids, |connection| {
        insert(
            connection,
            lines,
            "JOIN jobs j ON j.id = l.id AND j.lease = l.lease AND j.worker_id = l.worker_id AND j.state = 'running'",
        )
    })
}

/// Stores the last lines of attempts that end in this transaction, their leases checked by whoever ends them.
pub(in crate::queue) fn write_last(
    connection: &mut PgConnection,
    mut lines: Vec<(Lease, Vec<LogLine>)>,
) -> Result<(), DbError> {
    // Across statements too, in the order in which each of them stores its lines.
    lines.sort_by_key(|(lease, _)| (lease.job_id, lease.number));
    portions(&lines).iter().try_for_each(|portion| insert(connection, portion, ""))
}

/// Stored in one order by whoever stores them: the thread that beats and the one that writes ends may hold the same
/// lines at a time, and would wait for each other.
fn insert(connection: &mut PgConnection, lines: &[(Lease, Vec<LogLine>)], fence: &str) -> Result<(), DbError> {
    let rows: Vec<(&Lease, &LogLine)> =
        lines.iter().flat_map(|(lease, lines)| lines.iter().map(move |line| (lease, line))).collect();
    diesel::sql_query(format!(
        "INSERT INTO job_log (job_id, lease, n, at, level, source, sqlstate, message)
         SELECT l.id, l.lease, l.n, l.at, l.level, l.source, l.sqlstate, l.message
           FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9)
                AS l(id, lease, worker_id, n, at, level, source, sqlstate, message) {fence}
          ORDER BY l.id, l.lease, l.n
         ON CONFLICT (job_id, lease, n) DO NOTHING"
    ))
    .bind::<Array<diesel::sql_types::Uuid>, _>(rows.iter().map(|(l, _)| l.job_id).collect::<Vec<_>>())
    .bind::<Array<BigInt>, _>(rows.iter().map(|(l, _)| l.number).collect::<Vec<_>>())
    .bind::<Array<diesel::sql_types::Uuid>, _>(rows.iter().map(|(l, _)| l.worker_id).collect::<Vec<_>>())
    .bind::<Array<Integer>, _>(rows.iter().map(|(_, line)| line.n).collect::<Vec<_>>())
    .bind::<Array<Timestamptz>, _>(rows.iter().map(|(_, line)| line.at).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(rows.iter().map(|(_, line)| line.level.as_str()).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(rows.iter().map(|(_, line)| line.source.as_str()).collect::<Vec<_>>())
    .bind::<Array<Nullable<Text>>, _>(rows.iter().map(|(_, line)| line.sqlstate.as_deref()).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(rows.iter().map(|(_, line)| line.message.as_str()).collect::<Vec<_>>())
    .execute(connection)?;
    Ok(())
}

/// A line as it is stored.
#[derive(Clone, Debug, Queryable)]
pub struct StoredLine {
    /// The lease of the attempt that said it.
    pub lease: i64,
    /// Its number within the attempt, from 0.
    pub n: i32,
    /// When it was said.
    pub at: DateTime<Utc>,
    /// How much it matters.
    pub level: String,
    /// Who said it.
    pub source: String,
    /// The server's SQLSTATE.
    pub sqlstate: Option<String>,
    /// What was said.
    pub message: String,
}

/// At most `limit` lines of a job behind line `n` of the attempt `lease`, in the order in which they were said.
///
/// # Errors
/// When the database fails.
pub fn page(
    connection: &mut PgConnection,
    job_id: Uuid,
    (lease, n): (i64, i32),
    limit: i64,
) -> Result<Vec<StoredLine>, DbError> {
    use crate::db::schema::job_log::dsl;
    let behind = dsl::lease.gt(lease).or(dsl::lease.eq(lease).and(dsl::n.gt(n)));
    Ok(dsl::job_log
        .filter(dsl::job_id.eq(job_id).and(behind))
        .order((dsl::lease, dsl::n))
        .limit(limit)
        .select((dsl::lease, dsl::n, dsl::at, dsl::level, dsl::source, dsl::sqlstate, dsl::message))
        .load(connection)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(buffer: &mut LogBuffer, message: &str) {
        buffer.say(LogLevel::Info, LogSource::Work, None, message);
    }

    #[test]
    fn lines_stay_until_they_are_stored() {
        let mut buffer = LogBuffer::default();
        say(&mut buffer, "a");
        let first = buffer.unstored();
        say(&mut buffer, "b");
        buffer.stored(&first);
        say(&mut buffer, "c");
        let rest = buffer.take_rest();
        let numbered: Vec<(i32, &str)> = rest.iter().map(|line| (line.n, line.message.as_str())).collect();
        assert_eq!(numbered, [(1, "b"), (2, "c")]);
    }

    #[test]
    fn lines_are_stored_in_portions_and_each_once() {
        let buffer = |lines: usize| {
            let mut buffer = LogBuffer::default();
            (0..lines).for_each(|_| say(&mut buffer, &"x".repeat(MAX_MESSAGE_BYTES)));
            buffer.unstored()
        };
        let said = [("a", buffer(1)), ("b", Vec::new()), ("c", buffer(300)), ("d", buffer(2))];
        let portions = portions(&said);
        assert_eq!(portions.len(), 3);
        for portion in &portions {
            let bytes: usize = portion.iter().flat_map(|(_, lines)| lines).map(|line| line.message.len()).sum();
            assert!(bytes <= MAX_PORTION_BYTES, "{bytes}");
            assert!(portion.iter().all(|(_, lines)| !lines.is_empty()));
        }
        for (who, lines) in &said {
            let of_who = portions.iter().flatten().filter(|(other, _)| other == who);
            assert_eq!(&of_who.flat_map(|(_, lines)| lines.clone()).collect::<Vec<_>>(), lines, "{who}");
        }
        assert_eq!(portions[0].iter().map(|(who, _)| *who).collect::<Vec<_>>(), ["a", "c"]);
    }

    #[test]
    fn what_is_too_much_is_counted_and_what_is_too_long_is_cut() {
        let mut buffer = LogBuffer::default();
        for _ in 0..MAX_LINES + 7 {
            say(&mut buffer, &"\u{e9}".repeat(MAX_MESSAGE_BYTES));
        }
        let rest = buffer.take_rest();
        assert_eq!(rest.len(), MAX_LINES + 1);
        assert_eq!(rest[0].message.len(), MAX_MESSAGE_BYTES);
        assert_eq!(rest[MAX_LINES].message, "7 more lines were not kept");
    }
}
