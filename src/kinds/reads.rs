//! What a transaction that only reads refuses, known before anything runs: from the plan where the server plans
//! something, and from the first words where it doesn't.
//!
//! What functions do isn't known: `nextval` and its like fail when they are called.

use crate::kinds::sql::{explained, first_words};
use crate::pq::{PqError, Session};
use crate::queue::{ErrorCode, JobError, RawJson};
use crate::work::WorkError;

/// What the server says of them in such a transaction (`read_only_sql_transaction`).
pub(super) const READ_ONLY: &str = "25006";
/// What the server plans.
const PLANNED: [&str; 9] = ["SELECT", "WITH", "VALUES", "TABLE", "INSERT", "UPDATE", "DELETE", "MERGE", "("];
/// What no transaction runs that only reads, whatever it is about (`ClassifyUtilityCommandAsReadOnly` in the server's
/// utility.c).
const ALWAYS_WRITES: [&str; 11] =
    ["CREATE", "ALTER", "DROP", "TRUNCATE", "COMMENT", "GRANT", "REVOKE", "REFRESH", "SECURITY", "IMPORT", "REASSIGN"];
/// What to do about a target of which every session only reads.
pub(super) const OTHER_TARGET: &str = "the sessions of this target can only read (read_only, a standby, or default_transaction_read_only): name another target";

/// The server has a plan of such a statement.
pub(super) fn is_planned(sql: &str) -> bool {
    first_words(sql, 1).first().is_some_and(|word| PLANNED.contains(&word.as_str()))
}

/// What of a statement is planned in order to know whether it changes something: all of it, or what an EXPLAIN ANALYZE
/// runs.
pub(super) fn planned_part(sql: &str) -> Option<&str> {
    match explained(sql) {
        Some((analyze, statement)) => Some(statement).filter(|statement| analyze && is_planned(statement)),
        None => Some(sql).filter(|sql| is_planned(sql)),
    }
}

/// Every transaction of the session only reads unless it says otherwise.
pub(super) fn only_reads(session: &mut Session) -> Result<bool, PqError> {
    let rows = session.query("SELECT pg_catalog.current_setting('transaction_read_only')", &[])?;
    Ok(rows.get(0, 0) == Some("on"))
}

/// As [`only_reads`], of the sessions that others open by the same login, whatever this one is set to.
pub(super) fn others_only_read(session: &mut Session) -> Result<bool, PqError> {
    let rows = session.query(
        "SELECT pg_catalog.pg_is_in_recovery()
             OR (SELECT reset_val FROM pg_catalog.pg_settings WHERE name = 'default_transaction_read_only') = 'on'",
        &[],
    )?;
    Ok(rows.get(0, 0) == Some("t"))
}

/// Fails on a target that only reads, as work would that changes something.
pub(super) fn must_write(session: &mut Session) -> Result<(), WorkError> {
    match only_reads(session)? {
        true => Err(read_only("the target can only be read, and this kind changes something")),
        false => Ok(()),
    }
}

/// Fails on a standby, as a command would that writes no rows and still needs a server that writes: VACUUM, ANALYZE.
pub(super) fn must_be_primary(session: &mut Session) -> Result<(), WorkError> {
    match session.query("SELECT pg_catalog.pg_is_in_recovery()", &[])?.get(0, 0) {
        Some("t") => Err(read_only("the target is a standby, and this command can't run on one")),
        _ => Ok(()),
    }
}

/// As the server refuses it.
pub(super) fn read_only(message: impl Into<String>) -> WorkError {
    let error = JobError::new(ErrorCode::ReadOnly, message).with_hint(OTHER_TARGET);
    WorkError::Fail(JobError { sqlstate: Some(READ_ONLY.to_owned()), ..error })
}

fn cannot_execute(what: &str) -> WorkError {
    read_only(format!("cannot execute {what} in a read-only transaction"))
}

/// A SELECT that makes a table, where nothing may be made.
pub(super) fn selects_into() -> WorkError {
    cannot_execute("SELECT INTO")
}

/// Fails where the plan of a statement changes or locks rows, in whatever place.
pub(super) fn check_plan(plan: &RawJson) -> Result<(), WorkError> {
    writes(plan.text()).map_or(Ok(()), |what| Err(cannot_execute(&what)))
}

/// Members whose values are texts are read one after the other: a plan may be nested deeper than a parser goes.
fn writes(plan: &str) -> Option<String> {
    let mut changes = false;
    for (name, value) in members(plan) {
        match (name, value) {
            ("Node Type", "LockRows") => return Some("a SELECT that locks rows".to_owned()),
            // The next member but few says which.
            ("Node Type", "ModifyTable") => changes = true,
            ("Operation", operation) if changes => return Some(operation.to_ascii_uppercase()),
            _ => {}
        }
    }
    changes.then(|| "what changes rows".to_owned())
}

/// The members of all objects in a JSON text whose values are texts, escapes as they stand there.
fn members(json: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut rest = json;
    std::iter::from_fn(move || {
        loop {
            let (name, after) = next_text(rest)?;
            rest = after;
            let Some(value) = after.trim_start().strip_prefix(':').map(str::trim_start) else { continue };
            if value.starts_with('"') {
                let (text, after) = next_text(value)?;
                rest = after;
                return Some((name, text));
            }
        }
    })
}

/// The next text in a JSON text, and what follows it.
fn next_text(json: &str) -> Option<(&str, &str)> {
    let (_, begun) = json.split_once('"')?;
    let mut escaped = false;
    let end = begun.find(|c| {
        let ends = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    })?;
    let (text, rest) = begun.split_at_checked(end)?;
    Some((text, rest.get(1..)?))
}

/// Fails on what the server says nothing of before it runs, and that changes something whatever it is about: also where
/// an EXPLAIN ANALYZE runs it, which the server lets a transaction do that only reads.
pub(super) fn check_words(sql: &str) -> Result<(), WorkError> {
    let words = first_words(run(sql), 2);
    match words.first().map(String::as_str).unwrap_or_default() {
        // It is about the server's own files, and can't run in a transaction anyway.
        "ALTER" if words.get(1).is_some_and(|word| word == "SYSTEM") => Ok(()),
        first if ALWAYS_WRITES.contains(&first) => Err(cannot_execute(first)),
        _ => Ok(()),
    }
}

/// What of a statement is run: of an EXPLAIN ANALYZE what it explains.
fn run(sql: &str) -> &str {
    explained(sql).filter(|(analyze, _)| *analyze).map_or(sql, |(_, statement)| statement)
}

/// Fails on an EXPLAIN ANALYZE that makes something, in the transaction that the session is in, which goes on.
pub(super) fn check_explained(session: &mut Session, sql: &str, types: &[u32]) -> Result<(), WorkError> {
    let Some((true, statement)) = explained(sql) else { return Ok(()) };
    check_words(sql)?;
    // Of other statements the server itself says what they change.
    let first = first_words(statement, 1);
    if !first.first().is_some_and(|word| ["SELECT", "WITH", "("].contains(&word.as_str())) {
        return Ok(());
    }
    session.execute_batch("SAVEPOINT slowlane_look")?;
    let outcome = check_into(session, statement, types);
    session.execute_batch("ROLLBACK TO slowlane_look; RELEASE slowlane_look")?;
    outcome
}

/// Fails on a SELECT that makes a table (`SELECT … INTO`), of which no plan tells. The server takes any other SELECT,
/// and this one not, as that of a cursor. `types` are those of the parameters. The transaction may be of no further
/// use.
///
/// # Errors
/// That, or what says nothing about the statement.
pub(super) fn check_into(session: &mut Session, sql: &str, types: &[u32]) -> Result<(), WorkError> {
    match session.prepare(&format!("DECLARE slowlane_look CURSOR FOR {sql}"), types) {
        Err(error) if error.sqlstate.as_deref() == Some("42601") => Err(selects_into()),
        Err(error) if error.retryable() || error.sqlstate.is_none() => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use serde_json::value::RawValue;

    use super::*;

    fn refused(plan: &str) -> Option<String> {
        match check_plan(&RawJson::of(&serde_json::from_str::<Value>(plan).unwrap()).unwrap()) {
            Err(WorkError::Fail(error)) => Some(error.message),
            _ => None,
        }
    }

    #[test]
    fn a_plan_tells_what_it_changes_wherever_that_stands() {
        assert_eq!(refused(r#"[{"Plan": {"Node Type": "Result", "Output": ["ModifyTable"]}}]"#), None);
        let deep =
            r#"[{"Plan": {"Node Type": "CTE Scan", "Plans": [{"Node Type": "ModifyTable", "Operation": "Delete"}]}}]"#;
        assert_eq!(refused(deep).unwrap(), "cannot execute DELETE in a read-only transaction");
        let locks = r#"[{"Plan": {"Node Type": "Limit", "Plans": [{"Node Type": "LockRows"}]}}]"#;
        assert!(refused(locks).unwrap().contains("locks rows"));
    }

    #[test]
    fn a_plan_of_any_depth_is_read() {
        let nested = |node: &str| {
            let deep = 10_000;
            let begin =
                r#"{"Node Type": "Append \" {", "Output": ["Node Type", "ModifyTable"], "Plans": ["#.repeat(deep);
            RawJson(RawValue::from_string(format!(r#"[{{"Plan": {begin}{node}{}}}]"#, "]}".repeat(deep))).unwrap())
        };
        assert!(check_plan(&nested(r#"{"Node Type": "Result"}"#)).is_ok());
        assert!(check_plan(&nested(r#"{"Node Type": "ModifyTable", "Operation": "Insert"}"#)).is_err());
    }

    #[test]
    fn what_an_explain_runs_is_planned() {
        for (sql, part) in [
            ("SELECT 1", Some("SELECT 1")),
            ("EXPLAIN SELECT 1", None),
            ("explain analyze verbose DELETE FROM t", Some(" DELETE FROM t")),
            ("EXPLAIN ANALYZE CREATE TABLE a AS SELECT 1", None),
            ("VACUUM t", None),
        ] {
            assert_eq!(planned_part(sql), part, "{sql}");
        }
    }

    #[test]
    fn first_words_tell_what_is_never_read_only() {
        for sql in [
            "create temp table a (b int)",
            "/* a */ Truncate t",
            "DROP TABLE t",
            "refresh materialized view v",
            "EXPLAIN ANALYZE CREATE TABLE a AS SELECT 1",
            "explain (analyze, verbose) refresh materialized view v",
        ] {
            assert!(check_words(sql).is_err(), "{sql}");
        }
        for sql in [
            "VACUUM t",
            "ALTER SYSTEM SET a = 1",
            "SET LOCAL a.b = 1",
            "SELECT 1",
            "CALL p()",
            "LOCK TABLE t",
            "EXPLAIN CREATE TABLE a AS SELECT 1",
        ] {
            assert!(check_words(sql).is_ok(), "{sql}");
        }
    }
}
