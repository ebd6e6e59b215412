//! Partitioned indexes that a job has made, and that stay invalid until each partition has its own.
//!
//! One that is left so serves no query by itself, but each new partition gets an index for its sake: where the job
//! has ended it goes, as long as nothing belongs to it. What was built on partitions stays: it is valid, and the same
//! job submitted again uses it.

use std::time::{Duration, Instant};

use super::indexes::{Parent, Start};
use crate::pq::Session;
use crate::work::WorkError;

/// How long a table is kept locked and waited for, together, to drop one that is incomplete: everybody waits meanwhile.
const LOCKED_FOR: Duration = Duration::from_millis(500);

/// The ones that are incomplete: schema and name of the table, and of the index, and whether nothing belongs to it.
fn incomplete(session: &mut Session, parent: &Parent) -> Result<Option<(String, String, bool)>, WorkError> {
    let rows = session.query(
        "SELECT pg_catalog.format('%I.%I', n.nspname, t.relname), pg_catalog.format('%I.%I', n.nspname, x.relname),
                NOT EXISTS (SELECT FROM pg_catalog.pg_inherits h WHERE h.inhparent = x.oid)
                AND NOT EXISTS (SELECT FROM pg_catalog.pg_inherits h WHERE h.inhrelid = x.oid)
           FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
           JOIN pg_catalog.pg_class t ON t.oid = i.indrelid
           JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace
          WHERE i.indrelid = $1::oid AND x.relname = $2 AND x.relkind = 'I' AND NOT i.indisvalid",
        &[Some(&parent.table), Some(&parent.name)],
    )?;
    let text = |column| rows.get(0, column).unwrap_or_default().to_owned();
    Ok((!rows.is_empty()).then(|| (text(0), text(1), rows.get(0, 2) == Some("t"))))
}

/// One of them is incomplete.
pub(super) fn any_is_incomplete(session: &mut Session, start: &Start) -> Result<bool, WorkError> {
    for parent in &start.parents {
        if incomplete(session, parent)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// SQL that lets each further statement of the transaction take what is left until `until`.
fn limit(until: Instant) -> String {
    let left = until.saturating_duration_since(Instant::now()).as_millis().max(1);
    format!("SET LOCAL statement_timeout = {left}")
}

/// Drops those that are incomplete and to which nothing belongs, until `until`. Their names, and whether nothing more is
/// to be done.
pub(super) fn drop_incomplete(
    session: &mut Session,
    start: &Start,
    until: Instant,
) -> Result<(Vec<String>, bool), WorkError> {
    let (mut dropped, mut all) = (Vec::new(), true);
    for parent in &start.parents {
        let Some((table, name, true)) = incomplete(session, parent)? else { continue };
        let until = Instant::now().checked_add(LOCKED_FOR).map_or(until, |limit| limit.min(until));
        session.execute_batch(&format!("BEGIN; SET LOCAL lock_timeout = 0; {}", limit(until)))?;
        // Once nobody else can change anything about it, it is looked at again.
        let outcome = session
            .execute_batch(&format!("LOCK TABLE ONLY {table} IN ACCESS EXCLUSIVE MODE"))
            .map_err(WorkError::from)
            .and_then(|()| match incomplete(session, parent)? {
                Some((_, _, true)) => {
                    session.execute_batch(&limit(until))?;
                    Ok(session.execute_batch(&super::indexes::drop_sql(&name, false)).map(|()| true)?)
                }
                _ => Ok(false),
            });
        session.execute_batch(if outcome.is_ok() { "COMMIT" } else { "ROLLBACK" })?;
        match outcome {
            Ok(true) => dropped.push(name),
            Ok(false) => {}
            Err(_) => all = false,
        }
    }
    Ok((dropped, all))
}
