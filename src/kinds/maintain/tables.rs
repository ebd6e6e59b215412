//! The tables that a VACUUM or an ANALYZE goes through: what the role may do with each, and which of them were done.
//!
//! Both take the partitions of a table with it, and from PostgreSQL 18 on the children that inherit from it. Each is a table
//! of its own, with rights and locks of its own.

use std::time::{Duration, Instant};

use super::relation::Relation;
use super::skipped::{LOCK_NOT_AVAILABLE, NOT_ALLOWED, Outcome, Skipped, Told, WRONG_TYPE};
use super::{Action, Maintain};
use crate::pq::Session;
use crate::queue::record::log::LogLevel;
use crate::queue::{ErrorCode, JobError};
use crate::target::rights::{HAS_MAINTAIN, OWNER_SQL, Owner, Theirs, as_a_superuser};
use crate::work::WorkError;
use crate::work::context::{Warnings, WorkContext};

/// The first version whose statistics say at once what was counted. Before, a process of its own counts, a little later.
const COUNTS_AT_ONCE: i32 = 150_000;
/// The first version in which both go on to the children that inherit from a table.
const GOES_TO_CHILDREN: i32 = 180_000;
/// How long the counting of an older server is waited for. It writes what it has within half a second.
const COUNTED_WITHIN: Duration = Duration::from_secs(3);
/// Statements for so many tables that a hint has.
const NAMED_IN_HINT: usize = 20;
/// Between two looks at it.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What may be done to a table.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Vacuum,
    Analyze,
}

struct Table {
    oid: String,
    qualified: String,
    /// Its name as it is.
    name: String,
    kind: String,
    allowed: bool,
    /// Changes with each VACUUM, and with each ANALYZE.
    vacuumed: String,
    analyzed: String,
    owner: Theirs,
}

/// All of them, at a moment.
pub(super) struct Tables {
    tables: Vec<Table>,
    /// The server counts what is done.
    counted: bool,
}

impl Table {
    /// The step has something to do with it. A partitioned table has no rows of its own, but statistics.
    fn is_for(&self, step: Step) -> bool {
        step == Step::Analyze || self.kind != "p"
    }

    fn mark(&self, step: Step) -> &str {
        match step {
            Step::Vacuum => &self.vacuumed,
            Step::Analyze => &self.analyzed,
        }
    }
}

impl Tables {
    pub fn look(session: &mut Session, relation: &Relation, args: &Maintain) -> Result<Tables, WorkError> {
        let version = session.server_version();
        let goes_down = if version >= GOES_TO_CHILDREN { "true" } else { "p.relkind = 'p'" };
        let mark = |what: &str| {
            format!(
                "pg_catalog.concat_ws(' ', pg_catalog.pg_stat_get_{what}_count(c.oid), pg_catalog.pg_stat_get_last_{what}_time(c.oid))"
            )
        };
        let vacuumed = match args.full {
            Some(true) => "pg_catalog.pg_relation_filenode(c.oid)::text".to_owned(),
            _ => mark("vacuum"),
        };
        let sql = format!(
            "WITH RECURSIVE tree AS (
                 SELECT $1::pg_catalog.oid AS oid
                  UNION SELECT i.inhrelid FROM tree t JOIN pg_catalog.pg_class p ON p.oid = t.oid AND {goes_down}
                   JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid AND NOT i.inhdetachpending)
             SELECT c.oid, pg_catalog.format('%I.%I', n.nspname, c.relname), c.relname, c.relkind, {}, {vacuumed}, {},
                    pg_catalog.current_setting('track_counts'), n.nspname, current_user, {OWNER_SQL}
               FROM tree t JOIN pg_catalog.pg_class c ON c.oid = t.oid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
              ORDER BY c.oid <> $1::pg_catalog.oid, 2",
            is_allowed(version),
            mark("analyze"),
        );
        let rows = session.query(&sql, &[Some(&relation.oid)])?;
        let text = |row, column| rows.get(row, column).unwrap_or_default().to_owned();
        let is = |row, column| rows.get(row, column) == Some("t");
        let table = |row| Table {
            oid: text(row, 0),
            qualified: text(row, 1),
            name: text(row, 2),
            kind: text(row, 3),
            allowed: is(row, 4),
            vacuumed: text(row, 5),
            analyzed: text(row, 6),
            owner: Theirs {
                name: text(row, 1),
                schema: text(row, 8),
                is_view: text(row, 3) == "m",
                role: text(row, 9),
                owner: Owner::from(|column| rows.get(row, 10 + column).unwrap_or_default()),
            },
        };
        Ok(Tables { tables: (0..rows.len()).map(table).collect(), counted: rows.get(0, 7) == Some("on") })
    }

    /// Of a table of whose tree the role may do nothing, nothing is tried: the server would only warn.
    pub fn may_be_maintained(&self, version: i32, action: Action) -> Result<(), WorkError> {
        // One that was dropped at this moment is for the server to tell.
        match self.tables.is_empty() || self.tables.iter().any(|table| table.allowed) {
            true => Ok(()),
            false => Err(not_allowed(version, action, &self.refused())),
        }
    }

    fn refused(&self) -> Vec<&Theirs> {
        self.tables.iter().filter(|table| !table.allowed).map(|table| &table.owner).collect()
    }
}

/// Of a relation `c`: the role may vacuum and analyze it.
fn is_allowed(version: i32) -> String {
    // From 17 on an owner may by the privilege alone, and pg_maintain has it on everything.
    let by_itself = match version >= HAS_MAINTAIN {
        true => "pg_catalog.has_table_privilege(c.oid, 'MAINTAIN')",
        false => "pg_catalog.pg_has_role(c.relowner, 'USAGE')",
    };
    format!(
        "({by_itself} OR NOT c.relisshared AND (
              SELECT pg_catalog.pg_has_role(d.datdba, 'USAGE') FROM pg_catalog.pg_database d
               WHERE d.datname = pg_catalog.current_database()))"
    )
}

/// The role may do it with none of these tables, of which there is one at least.
pub(super) fn not_allowed(version: i32, action: Action, tables: &[&Theirs]) -> WorkError {
    let first = tables.first().copied().cloned().unwrap_or_default();
    let message = format!("{}, the role of the target, may not {} {}", first.role, action.as_str(), first.name);
    let hint = lets(version, action, tables);
    WorkError::Fail(JobError::new(ErrorCode::PermissionDenied, message).with_hint(hint))
}

/// What would let the role do it.
fn lets(version: i32, action: Action, tables: &[&Theirs]) -> String {
    // MAINTAIN isn't enough to make or drop an index.
    let of_owner = [Action::CreateIndex, Action::DropIndex].contains(&action);
    let by_privilege = version >= HAS_MAINTAIN && !of_owner;
    let owner = tables.first().map(|table| table.owner.name.as_str()).unwrap_or_default();
    let or = match (by_privilege, tables.len()) {
        (false, _) => "",
        (true, 1) => ", or have MAINTAIN on it",
        (true, _) => ", or have MAINTAIN on each of these",
    };
    let tables: Vec<&Theirs> = tables.iter().copied().take(NAMED_IN_HINT).collect();
    let sql = as_a_superuser(&tables, version, of_owner);
    format!("the role has to be a member of the table's owner {owner}{or}{sql}")
}

/// Looks, runs `step`, and looks again.
pub(super) fn maintain(
    ctx: &WorkContext<'_>,
    session: &mut Session,
    relation: &Relation,
    args: &Maintain,
    run: impl FnOnce(&mut Session) -> Result<(), WorkError>,
) -> Result<Told, WorkError> {
    let before = Tables::look(session, relation, args)?;
    before.may_be_maintained(session.server_version(), args.action)?;
    ctx.take_warnings();
    run(session)?;
    let warnings = ctx.take_warnings();
    let version = session.server_version();
    let seen = Seen { ctx, args, before: &before, warnings: &warnings };
    let after = seen.counted(session, relation)?;
    if seen.skips_locked() && !after.counted && before.tables.len() > 1 {
        ctx.log(LogLevel::Warning, "track_counts is off: which partitions were left out as locked can't be told");
    }
    let outcome = seen.outcome(&after);
    outcome.told(ctx, warnings.clone(), |first| match first.sqlstate.as_deref() {
        Some(NOT_ALLOWED) => lets(version, args.action, &before.refused()),
        state => hint(args, state),
    })
}

fn hint(args: &Maintain, state: Option<&str>) -> String {
    match state {
        Some(LOCK_NOT_AVAILABLE) => {
            "submit it for a quieter time, or without skip_locked: then locks are waited for in tries".to_owned()
        }
        Some(WRONG_TYPE) => format!("name a table that Postgres can {}", args.action.as_str()),
        _ => "the job's log has what the server said".to_owned(),
    }
}

/// What is known of a step that has ended.
struct Seen<'s, 'a> {
    ctx: &'s WorkContext<'a>,
    args: &'s Maintain,
    before: &'s Tables,
    warnings: &'s Warnings,
}

impl Seen<'_, '_> {
    fn steps(&self) -> &'static [Step] {
        match (self.args.action, self.args.analyze) {
            (Action::Vacuum, Some(true)) => &[Step::Vacuum, Step::Analyze],
            (Action::Vacuum, _) => &[Step::Vacuum],
            _ => &[Step::Analyze],
        }
    }

    fn skips_locked(&self) -> bool {
        self.args.skip_locked == Some(true)
    }

    /// As it is when what was done is counted. An older server's counting is waited for where it alone tells what was locked.
    fn counted(&self, session: &mut Session, relation: &Relation) -> Result<Tables, WorkError> {
        let mut after = Tables::look(session, relation, self.args)?;
        let at_once = session.server_version() >= COUNTS_AT_ONCE;
        if !at_once && !self.skips_locked() {
            after.counted = false;
        }
        if !after.counted {
            return Ok(after);
        }
        let until = Instant::now() + COUNTED_WITHIN;
        while !at_once && !self.outcome(&after).skipped.is_empty() && Instant::now() < until {
            self.ctx.wait(LOOK_AGAIN)?;
            after = Tables::look(session, relation, self.args)?;
        }
        Ok(after)
    }

    fn outcome(&self, after: &Tables) -> Outcome {
        let mut outcome = Outcome::default();
        for table in &self.before.tables {
            // One that was dropped meanwhile had nothing left to do.
            let Some(now) = after.tables.iter().find(|now| now.oid == table.oid) else { continue };
            let steps = self.steps().iter().filter(|step| table.is_for(**step));
            let left_out: Vec<(Step, Skipped)> = steps
                .clone()
                .filter_map(|step| self.left_out(table, now, *step, after.counted).map(|skipped| (*step, skipped)))
                .collect();
            if left_out.len() < steps.count() {
                outcome.did();
            }
            outcome.skipped.extend(left_out.into_iter().next().map(|(_, skipped)| skipped));
        }
        outcome
    }

    /// Why the step wasn't done with a table, if it wasn't.
    fn left_out(&self, before: &Table, now: &Table, step: Step, counted: bool) -> Option<Skipped> {
        let (what, words) = (before.qualified.as_str(), if step == Step::Vacuum { "vacuum" } else { "analyze" });
        if !before.allowed {
            return Some(Skipped::new(what, format!("{} may not {words} it", before.owner.role), NOT_ALLOWED));
        }
        if step == Step::Vacuum && before.kind == "f" {
            return Some(Skipped::new(what, "it is a foreign table: its rows are elsewhere", WRONG_TYPE));
        }
        let locked = self.skips_locked() || self.warnings.has(LOCK_NOT_AVAILABLE);
        let by_file = step == Step::Vacuum && self.args.full == Some(true);
        if before.mark(step) != now.mark(step) || self.has_nothing_to_do(before) {
            return None;
        }
        if !(counted || by_file) {
            let told = self.is_first(before) && self.warnings.has(LOCK_NOT_AVAILABLE);
            return told.then(|| is_locked(what, words));
        }
        match before.kind.as_str() {
            "f" => Some(Skipped::new(what, "its foreign data wrapper can't analyze it", WRONG_TYPE)),
            _ if locked => Some(is_locked(what, words)),
            _ => Some(Skipped::as_warned(what, &before.name, self.warnings)),
        }
    }

    fn is_first(&self, table: &Table) -> bool {
        self.before.tables.first().is_some_and(|first| first.oid == table.oid)
    }

    /// The statistics of a partitioned table are those of its partitions: without any of them there are none.
    fn has_nothing_to_do(&self, table: &Table) -> bool {
        table.kind == "p" && !(self.skips_locked() && self.before.tables.iter().any(|table| table.kind == "r"))
    }
}

fn is_locked(what: &str, words: &str) -> Skipped {
    Skipped::new(what, format!("somebody held a lock that keeps others from {words}"), LOCK_NOT_AVAILABLE)
}

#[cfg(test)]
mod tests {
    use super::{Action, Owner, Theirs, lets};

    #[test]
    fn only_an_owner_makes_and_drops_indexes() {
        let theirs = Theirs {
            name: "public.t".to_owned(),
            role: "work".to_owned(),
            owner: Owner { name: "app".to_owned(), role_inherits: true, ..Owner::default() },
            ..Theirs::default()
        };
        for (action, by_privilege) in [
            (Action::Vacuum, true),
            (Action::Analyze, true),
            (Action::Reindex, true),
            (Action::CreateIndex, false),
            (Action::DropIndex, false),
        ] {
            let hint = lets(180_000, action, &[&theirs]);
            assert_eq!(hint.contains("GRANT MAINTAIN"), by_privilege, "{hint}");
            assert!(by_privilege || hint.contains("GRANT \"app\" TO \"work\""), "{hint}");
            assert!(!lets(160_000, action, &[&theirs]).contains("MAINTAIN"));
        }
    }
}
