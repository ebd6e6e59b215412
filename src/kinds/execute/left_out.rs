//! What a statement left out of what it was told, as far as the server warns of it, and whether that was all of it.
//!
//! A warning's words are the server's language, and its SQLSTATE is mostly that of every other one. So what was done is looked
//! at: what an ANALYZE has analyzed is locked until the transaction ends, and a GRANT has changed the rights of something.

use crate::kinds::sql::first_word;
use crate::pq::{PqError, Session};
use crate::queue::{ErrorCode, JobError};
use crate::work::WorkError;
use crate::work::context::{Warnings, WorkContext};

/// SQLSTATEs of a GRANT and of a REVOKE that left something out.
const NOT_GRANTED: [&str; 2] = ["01007", "01006"];
/// SQLSTATE `lock_not_available`.
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// A sum over all rights in the database: another one when any of them has changed.
const RIGHTS: &str = "SELECT pg_catalog.sum(pg_catalog.hashtextextended(oid::text || ' ' || part || ' ' || acl::text, 0)::numeric) FROM (
          SELECT oid, 'class' AS part, relacl AS acl FROM pg_catalog.pg_class
    UNION ALL SELECT attrelid, 'attribute ' || attnum, attacl FROM pg_catalog.pg_attribute
    UNION ALL SELECT oid, 'proc', proacl FROM pg_catalog.pg_proc
    UNION ALL SELECT oid, 'type', typacl FROM pg_catalog.pg_type
    UNION ALL SELECT oid, 'namespace', nspacl FROM pg_catalog.pg_namespace
    UNION ALL SELECT oid, 'database', datacl FROM pg_catalog.pg_database
    UNION ALL SELECT oid, 'tablespace', spcacl FROM pg_catalog.pg_tablespace
    UNION ALL SELECT oid, 'language', lanacl FROM pg_catalog.pg_language
    UNION ALL SELECT oid, 'wrapper', fdwacl FROM pg_catalog.pg_foreign_data_wrapper
    UNION ALL SELECT oid, 'server', srvacl FROM pg_catalog.pg_foreign_server
    UNION ALL SELECT oid, 'object', lomacl FROM pg_catalog.pg_largeobject_metadata) rights
    WHERE acl IS NOT NULL";

/// What there was before a statement.
pub(super) struct Before {
    /// For a GRANT or a REVOKE: the sum of all rights.
    rights: Option<String>,
}

/// Whatever the role's settings are, warnings are heard.
pub(super) fn hear_warnings(session: &mut Session) -> Result<(), PqError> {
    let sql = "SELECT pg_catalog.set_config('client_min_messages', 'warning', true)
                WHERE pg_catalog.current_setting('client_min_messages') IN ('error', 'fatal', 'panic')";
    session.query(sql, &[]).map(drop)
}

impl Before {
    pub fn look(ctx: &WorkContext<'_>, session: &mut Session, sql: &str) -> Result<Before, WorkError> {
        ctx.take_warnings();
        let changes_rights = first_word(sql)
            .is_some_and(|word| ["GRANT", "REVOKE"].iter().any(|known| word.eq_ignore_ascii_case(known)));
        let rights = if changes_rights { Some(rights(session)?) } else { None };
        Ok(Before { rights })
    }

    /// Fails when the statement, whose tag is `command`, did nothing but warn.
    pub fn something_was_done(
        &self,
        session: &mut Session,
        command: &str,
        warnings: &Warnings,
    ) -> Result<(), WorkError> {
        if command == "ANALYZE" && warnings.total > 0 && !analyzed(session)? {
            let hint = "the role has to be a member of the table's owner or the database's, or from Postgres 17 on have MAINTAIN";
            return Err(all_skipped(warnings, None, hint));
        }
        let not_granted = NOT_GRANTED.into_iter().find(|state| warnings.has(state));
        if let (Some(before), Some(state)) = (&self.rights, not_granted)
            && *before == rights(session)?
        {
            let hint = "the role has to own what it grants rights on, or to have them WITH GRANT OPTION";
            return Err(all_skipped(warnings, Some(state), hint));
        }
        Ok(())
    }
}

fn rights(session: &mut Session) -> Result<String, WorkError> {
    let rows = session.query(RIGHTS, &[])?;
    Ok(rows.get(0, 0).unwrap_or_default().to_owned())
}

/// The transaction has analyzed something: it holds the lock until its end. Of a table that isn't analyzed it is given back.
fn analyzed(session: &mut Session) -> Result<bool, WorkError> {
    let rows = session.query(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_locks WHERE pid = pg_catalog.pg_backend_pid() AND locktype = 'relation'
                           AND mode = 'ShareUpdateExclusiveLock' AND granted)",
        &[],
    )?;
    Ok(rows.get(0, 0) == Some("t"))
}

fn all_skipped(warnings: &Warnings, state: Option<&str>, hint: &str) -> WorkError {
    let told = warnings.kept.iter().find(|warning| state.is_none_or(|state| warning.sqlstate == state));
    let message = format!(
        "the server left out all that the statement asked for: {}",
        told.map(|warning| warning.message.as_str()).unwrap_or_default()
    );
    let locked = warnings.kept.iter().all(|warning| warning.sqlstate == LOCK_NOT_AVAILABLE);
    let error = JobError::new(ErrorCode::AllSkipped, message);
    let error = if locked { error.retryable() } else { error.with_hint(hint) };
    WorkError::of(JobError { sqlstate: told.map(|warning| warning.sqlstate.clone()), ..error })
}
