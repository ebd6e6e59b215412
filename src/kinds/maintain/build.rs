//! CREATE INDEX and REINDEX of one table, with what earlier tries have left dropped before.

use std::time::Duration;

use super::compare::described;
use super::definition::{Definition, There};
use super::indexes::{self, Index, Names, Start};
use super::locks::{DEADLOCK, FIRST_PAUSE, Locks, TRIES};
use super::rebuilt::Rebuilt;
use super::relation::Relation;
use super::skipped::Told;
use super::{Action, Maintain, Maintained, MaintainedParts, partitions, statement, trial};
use crate::pq::Session;
use crate::queue::record::log::LogLevel;
use crate::queue::{ErrorCode, JobError};
use crate::work::WorkError;
use crate::work::context::WorkContext;
use crate::work::progress::Report;

/// An attempt at its indexes.
pub(super) struct Steps<'s, 'c> {
    pub ctx: &'s WorkContext<'c>,
    pub session: &'s mut Session,
    /// How long one try waits for a lock.
    pub timeout: Duration,
    /// What is to be dropped should the attempt end early.
    pub own: &'s mut Option<Start>,
    /// Invalid indexes of earlier attempts that were dropped.
    pub dropped: Vec<String>,
    /// The most tries that a step has needed.
    pub tries: u32,
}

impl<'s, 'c> Steps<'s, 'c> {
    /// The locks of a table. What they needed is counted by [`Steps::count`].
    pub fn locks(&self, relation: &Relation) -> Locks<'s, 'c> {
        Locks::new(self.ctx, self.timeout, relation)
    }

    pub fn count(&mut self, locks: &Locks<'_, '_>) {
        self.tries = self.tries.max(locks.tries);
    }

    /// Drops what an earlier attempt has left. Nothing of it is known as this job's any more when all is gone.
    pub fn drop_left_over(&mut self) -> Result<(), WorkError> {
        let Some(start) = Start::of_earlier_attempt(self.ctx)? else { return Ok(()) };
        // Without its table there is nothing of it.
        if let Some(table) = Relation::of_oid(self.session, start.table())? {
            let mut locks = self.locks(&table);
            let start = self.own.insert(start);
            let gone = indexes::drop_left_over(self.ctx, self.session, start, &mut locks, &mut self.dropped)?;
            if gone && start.parents.is_empty() {
                *self.own = None;
            }
            self.count(&locks);
        }
        Ok(())
    }

    /// Runs a concurrent statement. A deadlock, into which two builds can get each other, is no end: what it has left
    /// is dropped, and it is tried again, later each time.
    pub fn concurrently(&mut self, locks: &mut Locks<'_, '_>, report: &Report, sql: &str) -> Result<(), WorkError> {
        let (mut n, mut pause) = (1, FIRST_PAUSE);
        loop {
            self.ctx.coarse_progress(report.clone());
            let error = match locks.without_limit(self.session, sql) {
                Err(WorkError::Retry(error)) if error.sqlstate.as_deref() == Some(DEADLOCK) => error,
                outcome => return outcome,
            };
            if n >= TRIES {
                return Err(WorkError::Retry(error));
            }
            n += 1;
            locks.tried(n);
            // Those that were in each other's way must not meet again.
            let now = pause.mul_f64(rand::random_range(0.5..1.5));
            let told = format!(
                "{}: {}, and this was ended; try {n} of {TRIES} begins in {} ms",
                report.phase,
                error.message,
                now.as_millis()
            );
            self.ctx.log(LogLevel::Warning, &told);
            if let Some(start) = self.own.as_ref() {
                indexes::drop_left_over(self.ctx, self.session, start, locks, &mut Vec::new())?;
            }
            self.ctx.phase(&told);
            self.ctx.wait(now)?;
            locks.probe(self.session)?;
            pause = pause.saturating_mul(2);
        }
    }
}

impl Maintain {
    /// REINDEX and CREATE INDEX.
    pub(super) fn index(&self, relation: &Relation, mut steps: Steps<'_, '_>) -> Result<Maintained, WorkError> {
        let definition = match self.action {
            Action::CreateIndex => Some(Definition::find(steps.session, self, relation)?),
            _ => None,
        };
        let made = self.indexed(relation, &mut steps, definition.as_ref());
        match (made, &definition) {
            // What the server has against it is told with its argument.
            (Err(WorkError::Fail(error)), Some(definition)) if error.code == ErrorCode::SqlError => {
                let told = trial::refusal(steps.session, definition, relation).ok().flatten();
                Err(told.map_or(WorkError::Fail(error), WorkError::from))
            }
            (made, definition) => {
                let (told, parts, there) = made?;
                if let Some(start) = steps.own.as_ref() {
                    indexes::settle(steps.ctx, steps.session, start)?;
                }
                let was_there = there == There::Whole || definition.is_none();
                let built = self.built(steps, relation, definition.as_ref(), was_there, told)?;
                Ok(Maintained { partitions: parts, ..built })
            }
        }
    }

    /// All of it but what is told of it.
    fn indexed(
        &self,
        relation: &Relation,
        steps: &mut Steps<'_, '_>,
        definition: Option<&Definition>,
    ) -> Result<(Told, Option<MaintainedParts>, There), WorkError> {
        steps.drop_left_over()?;
        let by_parts = self.concurrently() && relation.partitioned && definition.is_some();
        let mut locks = steps.locks(relation);
        // While somebody else builds here, what is theirs may not be there yet.
        match (by_parts, self.concurrently()) {
            (true, _) => locks.alone(steps.session, &relation.oid)?,
            (false, true) => locks.probe(steps.session)?,
            (false, false) => {}
        }
        let there = match definition {
            Some(definition) => definition.is_there(steps.session, relation)?,
            None => There::Nothing,
        };
        if definition.is_some() && there == There::Nothing {
            relation.may_get_an_index(steps.session)?;
        }
        let mut parts = None;
        let told = match (definition, there) {
            (_, There::Whole) => Told::default(),
            (Some(definition), _) if by_parts => {
                let made = parts.insert(partitions::create(steps, relation, definition)?);
                Told { done: u64::try_from(made.built).unwrap_or(u64::MAX), ..Told::default() }
            }
            (Some(definition), There::Incomplete) => return Err(incomplete(definition)),
            (Some(_), _) => {
                self.build(steps, &mut locks, relation, definition)?;
                Told { done: 1, ..Told::default() }
            }
            (None, _) => {
                let before = Rebuilt::look(steps.ctx, steps.session, relation, self.concurrently())?;
                self.build(steps, &mut locks, relation, None)?;
                before.told(steps.ctx, steps.session)?
            }
        };
        steps.count(&locks);
        Ok((told, parts, there))
    }

    /// One statement, concurrent or not.
    fn build(
        &self,
        steps: &mut Steps<'_, '_>,
        locks: &mut Locks<'_, '_>,
        relation: &Relation,
        definition: Option<&Definition>,
    ) -> Result<(), WorkError> {
        let concurrently = self.concurrently();
        let (phase, sql, names) = match (definition, &relation.index) {
            (Some(definition), _) => (
                format!("creating index {}", definition.qualified()),
                definition.create(concurrently, &relation.table),
                Names::Created(definition.name.clone()),
            ),
            (None, index) => (
                format!("reindexing {}", relation.name()),
                statement::reindex(self, relation),
                // That of a partitioned table is rebuilt by rebuilding those of its partitions.
                Names::Rebuilt(index.as_ref().filter(|_| !relation.partitioned).map(|index| index.oid.clone())),
            ),
        };
        if !concurrently {
            return locks.step(steps.session, &phase, &sql);
        }
        if steps.own.is_none() {
            *steps.own = Some(Start::record(steps.ctx, steps.session, relation, names, Vec::new())?);
        }
        steps.concurrently(locks, &Report::phase(phase), &sql)
    }

    /// What came of it.
    fn built(
        &self,
        steps: Steps<'_, '_>,
        relation: &Relation,
        definition: Option<&Definition>,
        was_there: bool,
        told: Told,
    ) -> Result<Maintained, WorkError> {
        let Steps { ctx, session, dropped, tries, .. } = steps;
        let index = match (definition, &relation.index) {
            (Some(definition), _) => Some(definition.qualified()),
            (None, index) => index.as_ref().map(|index| index.name.clone()),
        };
        let index = index.map(|name| indexes::found(session, name, was_there)).transpose()?;
        let left: Vec<Index> = indexes::of(session, &relation.oid)?.into_iter().filter(|index| !index.valid).collect();
        for index in &left {
            indexes::report(ctx, index);
        }
        Ok(Maintained {
            index,
            dropped_invalid: dropped,
            left_invalid: left.into_iter().map(|index| index.qualified).collect(),
            ..Maintained::of(self.action, Some(relation.table.clone()), told, tries)
        })
    }
}

pub(super) fn incomplete(definition: &Definition) -> WorkError {
    let name = definition.qualified();
    let message = format!("{name} is there, and is incomplete: some partitions lack their index");
    let hint = "submit it without concurrently: false: then what is missing is built, and it becomes whole";
    WorkError::Fail(JobError::new(ErrorCode::IndexExists, message).with_hint(hint))
}

/// The index of this table by this name.
pub(super) fn by_name(
    session: &mut Session,
    table: &str,
    name: &str,
) -> Result<Option<super::compare::Described>, WorkError> {
    let found = described(session, "i.indrelid = $1::oid AND x.relname = $2", &[Some(table), Some(name)])?;
    Ok(found.into_iter().next())
}
