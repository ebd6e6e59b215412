//! What a caller can do instead of a statement that a kind doesn't run: only what there is. Looks at SQLSTATEs and
//! first words; what is refused is decided elsewhere.

use crate::kinds::reads::{OTHER_TARGET, READ_ONLY};
use crate::kinds::sql::first_words;
use crate::pq::PqError;
use crate::queue::JobError;
use crate::work::WorkError;

/// What brings a file's rows in, and a table's out.
pub(super) const COPY: &str =
    "the kind import brings the rows of a file in; a query brings rows out: SELECT them, and fetch the result as CSV";
const CHANGES: &str = "query runs one statement that returns rows and only reads; the kind execute runs statements that change or \
                       lock something";
const EACH_BY_ITSELF: &str = "send one statement; the kind execute runs several in one transaction, each by itself";

const MAINTAIN: &str = "the kind maintain vacuums, analyzes and reindexes tables, outside of a transaction";
const INDEXES: &str = "the kind maintain creates and drops indexes concurrently";
const NO_KIND: &str = "no kind runs this: psql does, with a role that may";
/// Words of a statement that are looked at.
const WORDS: usize = 64;

/// Who runs a statement that can't run in a transaction, by its first words. `None` for one that can.
fn outside(words: &[&str]) -> Option<&'static str> {
    match words {
        ["VACUUM", rest @ ..] => Some(if names_a_table(rest) { MAINTAIN } else { NO_KIND }),
        ["REINDEX", rest @ ..] => match behind_parentheses(rest) {
            ["SCHEMA" | "DATABASE" | "SYSTEM", ..] => Some(NO_KIND),
            rest => rest.contains(&"CONCURRENTLY").then_some(MAINTAIN),
        },
        ["CREATE", "INDEX", "CONCURRENTLY", ..] | ["CREATE", "UNIQUE", "INDEX", "CONCURRENTLY", ..] => Some(INDEXES),
        ["DROP", "INDEX", "CONCURRENTLY", ..] => Some(INDEXES),
        ["CREATE" | "DROP", "DATABASE" | "TABLESPACE" | "SUBSCRIPTION", ..] | ["ALTER", "SYSTEM", ..] => Some(NO_KIND),
        ["ALTER", "DATABASE", rest @ ..] => rest.has_words(&["SET", "TABLESPACE"]).then_some(NO_KIND),
        ["ALTER", "TABLE", rest @ ..] => {
            (rest.has_words(&["DETACH", "PARTITION"]) && rest.contains(&"CONCURRENTLY")).then_some(NO_KIND)
        }
        ["CLUSTER", rest @ ..] => (!names_a_table(rest)).then_some(NO_KIND),
        _ => None,
    }
}

trait Words {
    /// These two stand side by side somewhere.
    fn has_words(&self, pair: &[&str; 2]) -> bool;
}

impl Words for [&str] {
    fn has_words(&self, pair: &[&str; 2]) -> bool {
        self.windows(2).any(|words| words == pair)
    }
}

/// What stands behind a list in parentheses, where one comes first.
fn behind_parentheses<'w, 's>(words: &'w [&'s str]) -> &'w [&'s str] {
    if words.first() != Some(&"(") {
        return words;
    }
    let end = words.iter().position(|word| *word == ")");
    end.and_then(|end| words.get(end + 1..)).unwrap_or_default()
}

/// More than options stands behind VACUUM, ANALYZE or CLUSTER.
fn names_a_table(words: &[&str]) -> bool {
    let option = |word: &&&str| ["FULL", "FREEZE", "VERBOSE", "ANALYZE", "ANALYSE"].contains(*word);
    behind_parentheses(words).iter().any(|word| !option(&word))
}

/// Who runs a statement that can't run in a transaction. `None` for one that can, as far as its first words show it.
pub(super) fn outside_of_transactions(sql: &str) -> Option<&'static str> {
    let words = first_words(sql, WORDS);
    outside(&words.iter().map(String::as_str).collect::<Vec<_>>())
}

/// For a statement that returns no rows, where some are to be returned.
pub(super) fn of_no_rows(sql: &str) -> &'static str {
    let words = first_words(sql, WORDS);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    if let Some(hint) = outside(&words) {
        return hint;
    }
    match words.as_slice() {
        ["COPY", ..] => COPY,
        ["BEGIN" | "START" | "COMMIT" | "END" | "ROLLBACK" | "ABORT" | "SAVEPOINT" | "RELEASE", ..]
        | ["PREPARE" | "SET", "TRANSACTION", ..] => {
            "each job runs in a transaction of its own, which begins and ends with it: leave transaction control out"
        }
        ["ANALYZE" | "ANALYSE", rest @ ..] if names_a_table(rest) => MAINTAIN,
        ["REINDEX", ..] => MAINTAIN,
        ["REFRESH", ..] => "the kind refresh refreshes a materialized view",
        _ => CHANGES,
    }
}

/// With a hint at what else runs a statement that a `query` can't.
pub(super) fn for_query(error: PqError, sql: &str) -> WorkError {
    let hint = match error.sqlstate.as_deref() {
        Some(READ_ONLY) => Some(CHANGES),
        _ if is_several(&error, sql) => Some(EACH_BY_ITSELF),
        _ => None,
    };
    hinted(error.into(), hint)
}

/// With a hint at what else runs a statement that an `execute` can't.
pub(super) fn for_execute(error: PqError, sql: &str) -> WorkError {
    let hint = match error.sqlstate.as_deref() {
        // active_sql_transaction. A table that is partitioned isn't reindexed in one either.
        Some("25001") => Some(outside_of_transactions(sql).unwrap_or(match of_no_rows(sql) {
            MAINTAIN => MAINTAIN,
            _ => NO_KIND,
        })),
        Some(READ_ONLY) => Some(OTHER_TARGET),
        _ if is_several(&error, sql) => Some("give each statement as an item of its own in statements"),
        _ => None,
    };
    hinted(error.into(), hint)
}

/// With the hint of a `query`, or of work on a target that only reads.
pub(super) fn for_reader(error: WorkError, is_query: bool) -> WorkError {
    match error {
        WorkError::Fail(error) if is_query => WorkError::Fail(error.with_hint(CHANGES)),
        other => other,
    }
}

/// The server took the text for several statements. It has one SQLSTATE for this and for all errors of syntax, which
/// have a place.
fn is_several(error: &PqError, sql: &str) -> bool {
    error.sqlstate.as_deref() == Some("42601") && error.position.is_none() && sql.contains(';')
}

/// The server's own hint goes first.
fn hinted(error: WorkError, hint: Option<&str>) -> WorkError {
    let add = |error: JobError| match hint {
        Some(hint) if error.hint.is_none() => error.with_hint(hint),
        _ => error,
    };
    match error {
        WorkError::Fail(error) => WorkError::Fail(add(error)),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::of_no_rows;

    #[test]
    fn a_hint_names_the_kind_that_runs_it() {
        for (sql, kind) in [
            ("INSERT INTO t VALUES (1)", "the kind execute"),
            ("create table t (a int)", "the kind execute"),
            ("COPY t FROM STDIN", "the kind import"),
            ("vacuum t", "the kind maintain"),
            ("VACUUM (FULL, ANALYZE) \"T\"", "the kind maintain"),
            ("VACUUM", "no kind runs this"),
            ("vacuum full verbose analyze;", "no kind runs this"),
            ("VACUUM (FREEZE, PARALLEL 2)", "no kind runs this"),
            ("ANALYZE VERBOSE t", "the kind maintain"),
            ("ANALYZE", "the kind execute"),
            ("REINDEX TABLE t", "the kind maintain"),
            ("REINDEX (VERBOSE) INDEX CONCURRENTLY i", "the kind maintain"),
            ("REINDEX (VERBOSE) DATABASE d", "no kind runs this"),
            ("reindex system", "no kind runs this"),
            ("CREATE DATABASE d", "no kind runs this"),
            ("DROP TABLESPACE s", "no kind runs this"),
            ("ALTER SYSTEM SET work_mem = 1", "no kind runs this"),
            ("ALTER DATABASE d SET TABLESPACE s", "no kind runs this"),
            ("ALTER TABLE a.\"B\" DETACH PARTITION a.c CONCURRENTLY", "no kind runs this"),
            ("ALTER TABLE a.b DETACH PARTITION a.c", "the kind execute"),
            ("CLUSTER", "no kind runs this"),
            ("CLUSTER t USING i", "the kind execute"),
            ("DROP INDEX CONCURRENTLY IF EXISTS i", "the kind maintain"),
            ("CREATE UNIQUE INDEX CONCURRENTLY i ON t (a)", "the kind maintain"),
            ("REFRESH MATERIALIZED VIEW v", "the kind refresh"),
            ("COMMIT", "leave transaction control out"),
        ] {
            assert!(of_no_rows(sql).contains(kind), "{sql}");
        }
    }
}
