//! CREATE INDEX on a partitioned table that keeps no writer out: the server has no statement for it, so it is done by
//! parts.
//!
//! First the table itself gets its index, and so does each partition that is partitioned again: empty, invalid, and
//! inherited by every partition that comes. Then each partition gets its own concurrently, unless it has an equal
//! one; at last all of them become parts of the whole, which makes it valid, in one transaction. Each round looks at
//! the catalog anew: partitions come and go, and others build too, with whom names may collide. Parts are attached
//! together, because the server looks whether the whole is complete only when one is attached: if the last one that
//! is missing were detached instead, an index with some parts would stay invalid for ever.

use std::collections::{HashMap, HashSet};

use super::build::{Steps, by_name};
use super::compare::{Alike, Described, described};
use super::definition::Definition;
use super::indexes::{Names, Parent, Start};
use super::relation::Relation;
use super::storage::MAX_NAME_BYTES;
use super::{Action, MaintainedParts, name_was_taken};
use crate::pq::Session;
use crate::pq::quote::identifier;
use crate::queue::model::ProgressBasis;
use crate::queue::record::log::{LogLevel, cut};
use crate::queue::{ErrorCode, JobError};
use crate::work::WorkError;
use crate::work::progress::Report;

/// How often the parts are put together, where partitions come and go meanwhile.
const ROUNDS: u32 = 10;
/// How often a name that was free may be taken by somebody else until it is used.
const NAMES: u32 = 5;
/// SQLSTATEs of what became of a partition meanwhile: it was dropped, or detached.
const CHANGED: [&str; 5] = ["42P01", "42704", "42P17", "42809", "55000"];

/// A partition.
struct Node {
    relation: Relation,
    /// The oid of the table that it is a partition of.
    parent: String,
    level: usize,
    foreign: bool,
    owned: bool,
}

/// What there is and what is missing.
struct State {
    /// The index of the partitioned table itself.
    root: Option<Described>,
    /// Partitioned partitions without an index, and others without one.
    without_parent: Vec<Node>,
    without_part: Vec<Node>,
    /// Which index is to be attached to which.
    loose: Vec<(String, String)>,
    /// The partitioned tables.
    partitioned: Vec<String>,
    /// Partitions that hold rows.
    leaves: usize,
}

impl State {
    /// The partition needs an index.
    fn lacks(&self, oid: &str) -> bool {
        self.without_part.iter().any(|node| node.relation.oid == oid)
    }
}

/// Makes the index by parts, or what is missing of it.
pub(super) fn create(
    steps: &mut Steps<'_, '_>,
    relation: &Relation,
    definition: &Definition,
) -> Result<MaintainedParts, WorkError> {
    may_be_built(steps.session, relation)?;
    let outcome = Parts { relation, definition, built: HashSet::new(), taken: 0 }.make(steps);
    if outcome.is_err() && by_name(steps.session, &relation.oid, &definition.name).is_ok_and(|root| root.is_some()) {
        let told = format!(
            "{} is incomplete so far: what was built on partitions stays, and the same job submitted again goes on from there",
            definition.qualified()
        );
        steps.ctx.log(LogLevel::Warning, &told);
    }
    outcome
}

/// What the server takes no parts of, and what the role may not do.
fn may_be_built(session: &mut Session, relation: &Relation) -> Result<(), WorkError> {
    let nodes = tree(session, relation)?;
    let foreign: Vec<&str> =
        nodes.iter().filter(|node| node.foreign).map(|node| node.relation.table.as_str()).collect();
    if !foreign.is_empty() {
        let message = format!(
            "{} has foreign tables as partitions, and with those no index by parts becomes valid: {}",
            relation.table,
            foreign.join(", ")
        );
        let hint = "create the index on each other partition by a job of its own, and then submit this one with \
                    concurrently: false and allow_exclusive_lock: true: it uses those, and has nothing left to build";
        return Err(WorkError::Fail(JobError::new(ErrorCode::NotSupported, message).with_hint(hint)));
    }
    if let Some(node) = nodes.iter().find(|node| !node.owned) {
        node.relation.may_be_indexed(session, Action::CreateIndex)?;
    }
    Ok(())
}

fn tree(session: &mut Session, relation: &Relation) -> Result<Vec<Node>, WorkError> {
    let rows = session.query(
        "SELECT c.oid, c.relkind, pg_catalog.format('%I.%I', n.nspname, c.relname), n.nspname, c.relname,
                t.parentrelid::oid, t.level, pg_catalog.pg_has_role(c.relowner, 'USAGE')
           FROM pg_catalog.pg_partition_tree($1::oid) t JOIN pg_catalog.pg_class c ON c.oid = t.relid
           JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
          WHERE t.level > 0 ORDER BY t.level, n.nspname, c.relname",
        &[Some(&relation.oid)],
    )?;
    let node = |row| {
        let text = |column| rows.get(row, column).unwrap_or_default().to_owned();
        Node {
            foreign: rows.get(row, 1) == Some("f"),
            parent: text(5),
            level: text(6).parse().unwrap_or(0),
            owned: rows.get(row, 7) == Some("t"),
            relation: Relation::from(text, None),
        }
    };
    Ok((0..rows.len()).map(node).collect())
}

struct Parts<'p> {
    relation: &'p Relation,
    definition: &'p Definition,
    /// The oids of partitions on which this attempt has built.
    built: HashSet<String>,
    /// How often a name was taken by somebody else.
    taken: u32,
}

impl Parts<'_> {
    fn make(&mut self, steps: &mut Steps<'_, '_>) -> Result<MaintainedParts, WorkError> {
        let mut attached = 0;
        loop {
            steps.ctx.check()?;
            let state = self.look(steps.session)?;
            match &state.root {
                None => {
                    self.make_parent(steps, self.relation, &self.definition.name)?;
                    continue;
                }
                Some(root) if root.valid => {
                    let built = self.built.len();
                    return Ok(MaintainedParts { built, found: state.leaves.saturating_sub(built) });
                }
                Some(_) => {}
            }
            if !state.without_parent.is_empty() {
                for node in &state.without_parent {
                    let name = self.free_name(steps.session, &node.relation)?;
                    self.make_parent(steps, &node.relation, &name)?;
                }
            } else if !state.without_part.is_empty() {
                self.build_all(steps, &state)?;
            } else {
                attached += 1;
                self.attach(steps, &state, attached)?;
            }
        }
    }

    fn look(&self, session: &mut Session) -> Result<State, WorkError> {
        let nodes = tree(session, self.relation)?;
        let on_the_tree = "i.indrelid IN (SELECT t.relid FROM pg_catalog.pg_partition_tree($1::oid) t)";
        let indexes = described(session, on_the_tree, &[Some(&self.relation.oid)])?;
        let root = by_name(session, &self.relation.oid, &self.definition.name)?;
        let mut state = State {
            root: None,
            without_parent: Vec::new(),
            without_part: Vec::new(),
            loose: Vec::new(),
            partitioned: vec![self.relation.table.clone()],
            leaves: nodes.iter().filter(|node| !node.relation.partitioned).count(),
        };
        let Some(root) = root else { return Ok(state) };
        let mut chosen: HashMap<&str, &Described> = HashMap::from([(self.relation.oid.as_str(), &root)]);
        let mut loose = Vec::new();
        let mut missing = HashSet::new();
        for node in &nodes {
            if node.relation.partitioned {
                state.partitioned.push(node.relation.table.clone());
            }
            let Some(whole) = chosen.get(node.parent.as_str()).copied() else { continue };
            let of_node = || indexes.iter().filter(|index| index.table == node.relation.oid);
            let part = of_node().find(|index| index.part_of.as_ref() == Some(&whole.oid));
            let fits = |index: &&Described| {
                index.part_of.is_none()
                    && index.partitioned == node.relation.partitioned
                    && (index.valid || index.partitioned)
                    && index.words.differences(&root.words, Alike::Part).is_empty()
            };
            match part.or_else(|| of_node().find(fits)) {
                None => {
                    missing.insert(node.relation.oid.clone());
                }
                Some(index) => {
                    chosen.insert(&node.relation.oid, index);
                    if part.is_none() {
                        loose.push((node.level, index.qualified.clone(), whole.qualified.clone()));
                    }
                }
            }
        }
        drop(chosen);
        // What is deepest goes first: a part is whole when it is attached.
        loose.sort_by_key(|(level, ..)| std::cmp::Reverse(*level));
        state.loose = loose.into_iter().map(|(_, part, whole)| (part, whole)).collect();
        let missing = nodes.into_iter().filter(|node| missing.contains(&node.relation.oid));
        (state.without_parent, state.without_part) = missing.partition(|node| node.relation.partitioned);
        state.root = Some(root);
        Ok(state)
    }

    /// The index of a partitioned table alone: it is made at once, and its table is locked for that moment.
    fn make_parent(&mut self, steps: &mut Steps<'_, '_>, table: &Relation, name: &str) -> Result<(), WorkError> {
        let before = self.parents(steps);
        let mut parents = before.clone();
        let parent = Parent { table: table.oid.clone(), name: name.to_owned() };
        if !parents.contains(&parent) {
            parents.push(parent);
        }
        let names = Names::Created(name.to_owned());
        *steps.own = Some(Start::record(steps.ctx, steps.session, table, names, parents)?);
        let sql = self.definition.create_as(false, &identifier(name), &format!("ONLY {}", table.table));
        let mut locks = steps.locks(table);
        let outcome =
            locks.step(steps.session, &format!("creating index {} on {} itself", identifier(name), table.table), &sql);
        steps.count(&locks);
        match outcome {
            Err(error) if name_was_taken(&error) => {
                // What is there by now may be what is wanted.
                self.definition.is_there(steps.session, self.relation)?;
                self.look_again(steps, before, error)
            }
            outcome => outcome,
        }
    }

    /// Somebody else has taken a name: what there is by it isn't this job's, and the next round takes a free one.
    fn look_again(
        &mut self,
        steps: &mut Steps<'_, '_>,
        parents: Vec<Parent>,
        error: WorkError,
    ) -> Result<(), WorkError> {
        // No index of a partition is owned by this name.
        let names = Names::Created(self.definition.name.clone());
        *steps.own = Some(Start::record(steps.ctx, steps.session, self.relation, names, parents)?);
        self.taken += 1;
        match error {
            WorkError::Fail(error) if self.taken <= NAMES => {
                let told = format!("a name was taken meanwhile, looking again: {}", error.message);
                steps.ctx.log(LogLevel::Notice, &told);
                Ok(())
            }
            error => Err(error),
        }
    }

    fn parents(&self, steps: &Steps<'_, '_>) -> Vec<Parent> {
        steps.own.as_ref().map(|start| start.parents.clone()).unwrap_or_default()
    }

    fn build_all(&mut self, steps: &mut Steps<'_, '_>, state: &State) -> Result<(), WorkError> {
        let there = state.leaves.saturating_sub(state.without_part.len());
        for (n, node) in state.without_part.iter().enumerate() {
            let report = Report {
                phase: format!("creating index {} on {}", self.definition.qualified(), node.relation.table),
                done: i64::try_from(there.saturating_add(n)).unwrap_or(i64::MAX),
                total: i64::try_from(state.leaves).ok(),
                unit: "partitions".to_owned(),
                basis: ProgressBasis::Exact,
            };
            match self.build(steps, &node.relation, &report) {
                Err(WorkError::Fail(error)) if changed(&error) && !self.is_there(steps.session, node)? => {
                    let told = format!("{} is a partition no more: {}", node.relation.table, error.message);
                    steps.ctx.log(LogLevel::Notice, &told);
                }
                outcome => outcome?,
            }
        }
        Ok(())
    }

    fn is_there(&self, session: &mut Session, node: &Node) -> Result<bool, WorkError> {
        Ok(tree(session, self.relation)?.iter().any(|other| other.relation.oid == node.relation.oid))
    }

    fn build(&mut self, steps: &mut Steps<'_, '_>, table: &Relation, report: &Report) -> Result<(), WorkError> {
        if self.built.contains(&table.oid) {
            let message = format!("the index that was built on {} is gone, or isn't what was asked for", table.table);
            let hint = "see what else changes indexes of this table, and submit the job again";
            return Err(WorkError::Retry(JobError::new(ErrorCode::TableChanged, message).retryable().with_hint(hint)));
        }
        let mut locks = steps.locks(table);
        locks.probe(steps.session)?;
        steps.count(&locks);
        // Who was waited for may have built it, or detached the partition.
        if !self.look(steps.session)?.lacks(&table.oid) {
            return Ok(());
        }
        let name = self.free_name(steps.session, table)?;
        let sql = self.definition.create_as(true, &identifier(&name), &table.table);
        let (names, parents) = (Names::Created(name), self.parents(steps));
        *steps.own = Some(Start::record(steps.ctx, steps.session, table, names, parents.clone())?);
        let outcome = steps.concurrently(&mut locks, report, &sql);
        steps.count(&locks);
        match outcome {
            Ok(()) => {
                self.built.insert(table.oid.clone());
                Ok(())
            }
            Err(error) if name_was_taken(&error) => self.look_again(steps, parents, error),
            error => error,
        }
    }

    /// A name for the index of a partition that nothing has.
    fn free_name(&self, session: &mut Session, table: &Relation) -> Result<String, WorkError> {
        let whole = format!("{}_{}", table.name_as_it_is, self.definition.name);
        let names = (0..100).map(|n| match n {
            0 if whole.len() <= MAX_NAME_BYTES => whole.clone(),
            0 => with_end(&whole, &table.oid),
            n => with_end(&whole, &format!("{}_{n}", table.oid)),
        });
        for name in names {
            let rows = session.query(
                "SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                  WHERE c.relname = $1 AND n.nspname = $2",
                &[Some(&name), Some(&table.schema)],
            )?;
            if rows.is_empty() {
                return Ok(name);
            }
        }
        let message =
            format!("no name is free for the index of {}: {whole} and a hundred like it are taken", table.table);
        Err(WorkError::Fail(JobError::new(ErrorCode::IndexExists, message)))
    }

    /// Makes them one. `round` is how often that was begun.
    fn attach(&self, steps: &mut Steps<'_, '_>, state: &State, round: u32) -> Result<(), WorkError> {
        if state.loose.is_empty() || round > ROUNDS {
            return Err(self.stays_invalid(state));
        }
        let tables: Vec<String> = state.partitioned.iter().map(|table| format!("ONLY {table}")).collect();
        // While this is locked, no partition comes or goes.
        let mut sql = format!("LOCK TABLE {} IN SHARE UPDATE EXCLUSIVE MODE", tables.join(", "));
        for (part, whole) in &state.loose {
            sql.push_str(&format!("; ALTER INDEX {whole} ATTACH PARTITION {part}"));
        }
        let mut locks = steps.locks(self.relation);
        let phase = format!("attaching {} indexes to {}", state.loose.len(), self.definition.qualified());
        let outcome = locks.step(steps.session, &phase, &sql);
        steps.count(&locks);
        match outcome {
            Err(WorkError::Fail(error)) if changed(&error) && round < ROUNDS => {
                steps.ctx.log(LogLevel::Notice, &format!("partitions came or went, looking again: {}", error.message));
                Ok(())
            }
            outcome => outcome,
        }
    }

    fn stays_invalid(&self, state: &State) -> WorkError {
        let name = self.definition.qualified();
        let message = match state.loose.len() {
            0 => format!("each partition has its part of {name}, and the server takes it for incomplete all the same"),
            n => format!("{n} partitions could not be given their part of {name}: others change them all the time"),
        };
        let hint = format!(
            "a partition may have been detached while somebody attached parts one by one: drop it by {}, and submit this job again",
            super::statement::as_a_job(&serde_json::json!({"action": "drop_index", "index": name,
                "concurrently": false, "allow_exclusive_lock": true}))
        );
        WorkError::Fail(JobError::new(ErrorCode::TableChanged, message).with_hint(hint))
    }
}

fn changed(error: &JobError) -> bool {
    error.sqlstate.as_deref().is_some_and(|state| CHANGED.contains(&state))
}

/// The beginning of a name, with this behind it.
fn with_end(name: &str, end: &str) -> String {
    format!("{}_{end}", cut(name, MAX_NAME_BYTES.saturating_sub(end.len() + 1)))
}

#[cfg(test)]
mod tests {
    use super::{MAX_NAME_BYTES, with_end};

    #[test]
    fn a_name_that_is_too_long_keeps_its_end() {
        assert_eq!(with_end("measurements_2024_i", "16400"), "measurements_2024_i_16400");
        let long = with_end(&"é".repeat(40), "16400_1");
        assert!(long.len() <= MAX_NAME_BYTES && long.ends_with("é_16400_1"), "{long}");
    }
}
