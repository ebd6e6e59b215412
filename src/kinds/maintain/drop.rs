//! DROP INDEX: what needs an index, and an index that another attempt has dropped.

use serde_json::json;

use super::build::Steps;
use super::indexes::{Doomed, Names, Start, drop_sql, found, settle};
use super::relation::Relation;
use super::skipped::Told;
use super::statement::as_a_job;
use super::{Action, Maintain, Maintained, MaintainedIndex};
use crate::kinds::names::Named;
use crate::pq::Session;
use crate::queue::{ErrorCode, JobError};
use crate::work::WorkError;
use crate::work::progress::Report;

impl Maintain {
    /// DROP INDEX. That it has taken effect is known by the index that was recorded before: a missing one alone may
    /// be misspelt.
    pub(super) fn drop_index(&self, mut steps: Steps<'_, '_>) -> Result<Maintained, WorkError> {
        let named = self.index.as_deref().unwrap_or_default();
        let earlier = Start::of_earlier_attempt(steps.ctx)?;
        let known = earlier.as_ref().and_then(Start::doomed).cloned();
        let relation = match &known {
            Some(doomed) => match name_of(steps.session, &doomed.oid)? {
                None => return Ok(done(&steps, doomed.clone())),
                Some(name) => Relation::of_index(steps.session, &name)?,
            },
            None => match Relation::of_index(steps.session, named) {
                Err(WorkError::Fail(error)) if error.code == ErrorCode::IndexNotFound => {
                    return self.missing(&mut steps, error);
                }
                found => found?,
            },
        };
        relation.may_be_indexed(steps.session, self.action)?;
        let Some(index) = &relation.index else { return Err(gone(named)) };
        let concurrently = self.concurrently();
        must_be_free(steps.session, &index.oid, concurrently)?;
        let is = found(steps.session, index.name.clone(), true)?;
        let (bytes, valid) = known.map_or((is.bytes, is.valid), |doomed| (doomed.bytes, doomed.valid));
        let (oid, table, name) = (index.oid.clone(), relation.table.clone(), index.name.clone());
        let doomed = Doomed { oid, table, name, bytes, valid };
        let mut locks = steps.locks(&relation);
        if concurrently {
            locks.probe(steps.session)?;
        }
        let names = Names::Dropped(doomed.clone());
        *steps.own = Some(Start::record(steps.ctx, steps.session, &relation, names, Vec::new())?);
        // Who was waited for may have dropped it, and made another one of its name.
        if name_of(steps.session, &doomed.oid)?.as_ref() == Some(&doomed.name) {
            let (phase, sql) = (format!("dropping index {}", doomed.name), drop_sql(&doomed.name, concurrently));
            let outcome = match concurrently {
                true => steps.concurrently(&mut locks, &Report::phase(phase), &sql),
                false => locks.step(steps.session, &phase, &sql),
            };
            outcome.map_err(|error| needed(error, &doomed.name))?;
        }
        if name_of(steps.session, &doomed.oid)?.is_some() {
            let error = JobError::new(ErrorCode::TableChanged, format!("{} was renamed meanwhile", doomed.name));
            return Err(WorkError::Retry(error.retryable()));
        }
        if let Some(start) = steps.own.as_ref() {
            settle(steps.ctx, steps.session, start)?;
        }
        steps.count(&locks);
        Ok(done(&steps, doomed))
    }

    /// As it is when there is no such index.
    fn missing(&self, steps: &mut Steps<'_, '_>, error: JobError) -> Result<Maintained, WorkError> {
        self.may_be_missing(steps.session, error)?;
        let name = self.index.clone().unwrap_or_default();
        let index = MaintainedIndex { name, bytes: 0, valid: false, was_there: false };
        Ok(maintained(steps, 0, None, index))
    }

    /// Only what could be read, and nothing has, is missing: a name that can't be read may be that of an index.
    pub(super) fn may_be_missing(&self, session: &mut Session, error: JobError) -> Result<(), WorkError> {
        let name = self.index.as_deref().unwrap_or_default();
        if !Named::index("/index", name).is_missing(session)? {
            let hint =
                error.hint.clone().unwrap_or_else(|| "name an index; psql's \\d lists those of a table".to_owned());
            return Err(WorkError::Fail(error.with_hint(&hint)));
        }
        if self.if_exists != Some(true) {
            let hint = "write if_exists: true where that is as good as dropped";
            return Err(WorkError::Fail(error.with_hint(hint)));
        }
        Ok(())
    }
}

fn maintained(steps: &Steps<'_, '_>, done: u64, table: Option<String>, index: MaintainedIndex) -> Maintained {
    let told = Told { done, ..Told::default() };
    Maintained { index: Some(index), ..Maintained::of(Action::DropIndex, table, told, steps.tries) }
}

fn done(steps: &Steps<'_, '_>, doomed: Doomed) -> Maintained {
    let Doomed { table, name, bytes, valid, .. } = doomed;
    maintained(steps, 1, Some(table), MaintainedIndex { name, bytes, valid, was_there: true })
}

fn gone(name: &str) -> WorkError {
    WorkError::Fail(JobError::new(ErrorCode::IndexNotFound, format!("{name} isn't there any more")))
}

/// Schema and name of a relation by its oid, quoted where SQL needs it.
fn name_of(session: &mut Session, oid: &str) -> Result<Option<String>, WorkError> {
    let rows = session.query(
        "SELECT pg_catalog.format('%I.%I', n.nspname, c.relname)
           FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1::oid",
        &[Some(oid)],
    )?;
    Ok(rows.get(0, 0).map(str::to_owned))
}

/// How an index can be dropped.
pub(super) enum Dropping {
    Concurrently,
    /// Only while nobody uses its table.
    Exclusively,
    /// Not by itself: why, and what to do instead.
    Not(String),
}

/// Looks how an index can be dropped.
pub(super) fn dropping(session: &mut Session, oid: &str) -> Result<Dropping, WorkError> {
    match must_be_free(session, oid, true) {
        Ok(()) => Ok(Dropping::Concurrently),
        Err(WorkError::Fail(error)) if error.code == ErrorCode::NotSupported => Ok(Dropping::Exclusively),
        Err(WorkError::Fail(error)) if error.code == ErrorCode::IndexNeeded => {
            let hint = error.hint.map(|hint| format!(": {hint}")).unwrap_or_default();
            Ok(Dropping::Not(format!("{}{hint}", error.message)))
        }
        Err(error) => Err(error),
    }
}

/// Refuses what the server would refuse, with what to do instead.
pub(super) fn must_be_free(session: &mut Session, oid: &str, concurrently: bool) -> Result<(), WorkError> {
    let rows = session.query(
        "SELECT pg_catalog.format('%I.%I', n.nspname, x.relname), x.relkind = 'I',
                (SELECT pg_catalog.format('%I.%I', pn.nspname, p.relname) FROM pg_catalog.pg_inherits h
                   JOIN pg_catalog.pg_class p ON p.oid = h.inhparent JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace
                  WHERE h.inhrelid = x.oid LIMIT 1),
                pg_catalog.quote_ident(c.conname), c.contype = 'f',
                CASE WHEN t.oid IS NOT NULL THEN pg_catalog.format('%I.%I', tn.nspname, t.relname) END,
                (SELECT pg_catalog.format('%I.%I', rn.nspname, r.relname) FROM pg_catalog.pg_index i
                   JOIN pg_catalog.pg_class r ON r.oid = i.indrelid
                   JOIN pg_catalog.pg_namespace rn ON rn.oid = r.relnamespace
                  WHERE i.indexrelid = x.oid AND i.indisreplident)
           FROM pg_catalog.pg_class x JOIN pg_catalog.pg_namespace n ON n.oid = x.relnamespace
           LEFT JOIN pg_catalog.pg_constraint c ON c.conindid = x.oid
           LEFT JOIN pg_catalog.pg_class t ON t.oid = c.conrelid
           LEFT JOIN pg_catalog.pg_namespace tn ON tn.oid = t.relnamespace
          WHERE x.oid = $1::oid ORDER BY c.contype = 'f', c.conname LIMIT 1",
        &[Some(oid)],
    )?;
    let text = |column| rows.get(0, column).unwrap_or_default();
    let name = text(0);
    let needed = |message: String, hint: String| {
        Err(WorkError::Fail(JobError::new(ErrorCode::IndexNeeded, message).with_hint(hint)))
    };
    if let Some(whole) = rows.get(0, 2) {
        let job = json!({"action": "drop_index", "index": whole, "concurrently": false, "allow_exclusive_lock": true});
        let hint =
            format!("drop the whole of it, which keeps everybody off the table for a moment: {}", as_a_job(&job));
        return needed(format!("{name} is a part of the partitioned index {whole}, and goes with it only"), hint);
    }
    if let Some(constraint) = rows.get(0, 3) {
        let (table, foreign) = (text(5), rows.get(0, 4) == Some("t"));
        let what = if foreign { "the foreign key" } else { "the constraint" };
        let hint = format!(
            "where the constraint isn't wanted, its table's owner drops it, by psql or a job of the kind execute: \
             ALTER TABLE {table} DROP CONSTRAINT {constraint}{}",
            if foreign { "" } else { "; the index goes with it" }
        );
        return needed(format!("{what} {constraint} of {table} needs the index {name}"), hint);
    }
    if let Some(table) = rows.get(0, 6) {
        let hint = format!(
            "logical replication finds the table's rows by it; where another identity does too, the table's owner sets that \
             first, by psql or a job of the kind execute: ALTER TABLE {table} REPLICA IDENTITY DEFAULT (the primary key), or \
             USING INDEX …, or FULL"
        );
        return needed(format!("{name} is the replica identity of {table}"), hint);
    }
    if rows.get(0, 1) == Some("t") && concurrently {
        let message = format!("{name} is an index of a partitioned table, which can't be dropped concurrently");
        let hint = "write concurrently: false and allow_exclusive_lock: true: nobody can use the table and its partitions \
                    for the moment that it takes";
        return Err(WorkError::Fail(JobError::new(ErrorCode::NotSupported, message).with_hint(hint)));
    }
    Ok(())
}

/// Something that wasn't looked for depends on the index: the server's detail says what.
fn needed(error: WorkError, name: &str) -> WorkError {
    match error {
        WorkError::Fail(error) if error.sqlstate.as_deref() == Some("2BP01") => {
            let message = format!("something needs the index {name}: {}", error.message);
            let hint = "drop what needs it first, as the owner, by psql or a job of the kind execute";
            WorkError::Fail(JobError {
                code: ErrorCode::IndexNeeded.into(),
                message,
                hint: Some(hint.to_owned()),
                ..error
            })
        }
        error => error,
    }
}
