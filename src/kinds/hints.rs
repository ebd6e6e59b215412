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

/// For a statement that returns no rows, where some are to be returned.
pub(super) fn of_no_rows(sql: &str) -> &'static str {
    let words = first_words(sql, 6);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["COPY", ..] => COPY,
        ["BEGIN" | "START" | "COMMIT" | "END" | "ROLLBACK" | "ABORT" | "SAVEPOINT" | "RELEASE", ..]
        | ["PREPARE" | "SET", "TRANSACTION", ..] => {
            "each job runs in a transaction of its own, which begins and ends with it: leave transaction control out"
        }
        ["VACUUM" | "ANALYZE" | "REINDEX", ..] => "the kind maintain vacuums, analyzes and reindexes tables",
        ["CREATE" | "DROP", rest @ ..] if rest.contains(&"CONCURRENTLY") => {
            "the kind maintain creates and drops indexes concurrently"
        }
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
        // active_sql_transaction: VACUUM, CREATE INDEX CONCURRENTLY and their like.
        Some("25001") => Some(
            "execute runs its statements in one transaction, and this one can't run in any; the kind maintain vacuums tables, and \
             builds, rebuilds and drops indexes",
        ),
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
            ("CREATE UNIQUE INDEX CONCURRENTLY i ON t (a)", "the kind maintain"),
            ("REFRESH MATERIALIZED VIEW v", "the kind refresh"),
            ("COMMIT", "leave transaction control out"),
        ] {
            assert!(of_no_rows(sql).contains(kind), "{sql}");
        }
    }
}
