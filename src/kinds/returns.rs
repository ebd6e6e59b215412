//! Whether a statement returns rows, as those of a `query` have to.

use crate::kinds::hints;
use crate::kinds::prepared::Prepared;
use crate::kinds::sql::first_word;
use crate::queue::{ErrorCode, JobError};
use crate::work::WorkError;

/// A statement of a `query` has to.
pub(super) fn returns_rows(prepared: &Prepared<'_>, sql: &str) -> Result<(), WorkError> {
    if prepared.columns.is_empty() && !may_return_no_columns(sql) {
        return Err(not_allowed("this statement returns no rows", hints::of_no_rows(sql)));
    }
    Ok(())
}

/// The end of a statement that a `query` doesn't run.
pub(super) fn not_allowed(what: &str, hint: &str) -> WorkError {
    WorkError::Fail(JobError::new(ErrorCode::StatementNotAllowed, what).with_hint(hint))
}

/// `SELECT FROM t` has no columns and still returns rows.
pub(super) fn may_return_no_columns(sql: &str) -> bool {
    first_word(sql).is_some_and(|word| {
        ["select", "with", "values", "table"].iter().any(|known| word.eq_ignore_ascii_case(known))
            || word.starts_with('(')
    })
}
