//! Invalid indexes: which are this job's own, and dropping those.
//!
//! An index that can't be built is left by the server, invalid, under its name: by CREATE INDEX CONCURRENTLY that of
//! the index, by REINDEX CONCURRENTLY one that ends in `_ccnew`, or after the old and the new one were swapped,
//! `_ccold`. It is our own when it is invalid, named so, was not there before the job's first step, and nobody is
//! building it. Nothing else is touched. The `_ccold` one was there before under its own name: it has the oid of the
//! index that was to be rebuilt.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::locks::Locks;
use super::relation::Relation;
use super::statement::as_a_job;
use super::{MaintainedIndex, parents};
use crate::pq::Session;
use crate::queue::record::log::LogLevel;
use crate::queue::{ErrorCode, JobError, RawJson};
use crate::work::context::WorkContext;
use crate::work::{CleanedUp, WorkError};

/// The longest that the server adds behind a name is cut off the name itself, from this length on, in bytes.
const CUT_FROM: usize = 60;

/// Of the index `i`: somebody else may be building it. Whoever builds concurrently holds a lock on its table that keeps
/// others from the same; VACUUM and ANALYZE hold it too, and build nothing. What others do is hidden from a role
/// without rights on them, but for their locks.
pub(super) const BEING_BUILT: &str = "(EXISTS (SELECT FROM pg_catalog.pg_stat_progress_create_index p
      WHERE p.index_relid = i.indexrelid AND p.pid <> pg_catalog.pg_backend_pid())
    OR EXISTS (SELECT FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_database d ON d.oid = l.database
      WHERE d.datname = pg_catalog.current_database() AND l.locktype = 'relation' AND l.granted
        AND l.relation IN (i.indrelid, i.indexrelid) AND l.pid <> pg_catalog.pg_backend_pid()
        AND l.mode IN ('ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock',
                       'AccessExclusiveLock')
        AND NOT EXISTS (SELECT FROM pg_catalog.pg_stat_progress_vacuum v WHERE v.pid = l.pid)
        AND NOT EXISTS (SELECT FROM pg_catalog.pg_stat_progress_analyze v WHERE v.pid = l.pid)))";

/// An index as it is now.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    oid: String,
    /// The oid of its table.
    table: String,
    name: String,
    /// Schema and name, quoted where SQL needs it.
    pub qualified: String,
    pub valid: bool,
    /// It is one of a table, and no sum of others.
    plain: bool,
    being_built: bool,
}

/// An index that is dropped, as it was before.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Doomed {
    pub oid: String,
    /// Schema and name of the table, and of the index, quoted where SQL needs it.
    pub table: String,
    pub name: String,
    pub bytes: i64,
    pub valid: bool,
}

/// A partitioned index that this job has made. It stays invalid until each partition has its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Parent {
    /// The table's oid.
    pub table: String,
    /// The index's name, as it is.
    pub name: String,
}

/// How our own indexes are named.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Names {
    /// As this one, which is created.
    Created(String),
    /// As those that are rebuilt: the one with this oid, or all.
    Rebuilt(Option<String>),
    /// This one, and no other by its name.
    Dropped(Doomed),
}

/// What the checkpoint keeps: the indexes that were there before the first step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Start {
    /// The table's oid.
    table: String,
    names: Names,
    indexes: Vec<Known>,
    /// Made by this job, if they were not there before.
    #[serde(default)]
    pub parents: Vec<Parent>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Known {
    oid: String,
    name: String,
}

impl Start {
    /// What an earlier attempt has recorded.
    pub fn of_earlier_attempt(ctx: &WorkContext<'_>) -> Result<Option<Start>, WorkError> {
        Ok(ctx.checkpoint::<Option<Start>>()?.flatten())
    }

    /// The index that is dropped.
    pub fn doomed(&self) -> Option<&Doomed> {
        match &self.names {
            Names::Dropped(doomed) => Some(doomed),
            _ => None,
        }
    }

    /// The oid of the table.
    pub fn table(&self) -> &str {
        &self.table
    }

    /// Nothing of this job is left: what comes later isn't its own. That an index was dropped has to be known as long
    /// as the job is there: another attempt would find none.
    pub fn forget(&self, ctx: &WorkContext<'_>) {
        let kept = self.doomed().is_some().then_some(self);
        if let Err(error) = ctx.nothing_left(&kept) {
            log::debug!("a checkpoint of indexes stays: {error:?}");
        }
    }

    /// Records what is there. Durable when this returns.
    pub fn record(
        ctx: &WorkContext<'_>,
        session: &mut Session,
        relation: &Relation,
        names: Names,
        parents: Vec<Parent>,
    ) -> Result<Start, WorkError> {
        let indexes = of(session, &relation.oid)?.into_iter();
        // Those of partitions are recorded when it is their turn.
        let indexes = indexes.filter(|index| parents.is_empty() || index.table == relation.oid);
        let indexes = indexes.map(|Index { oid, name, .. }| Known { oid, name }).collect();
        let start = Start { table: relation.oid.clone(), names, indexes, parents };
        ctx.save_what_may_be_left(&start)?;
        Ok(start)
    }

    /// The index is this job's own, and nothing but a remnant.
    fn owns(&self, index: &Index) -> bool {
        if index.valid || !index.plain {
            return false;
        }
        let known = self.indexes.iter().find(|known| known.oid == index.oid);
        match &self.names {
            Names::Created(name) => known.is_none() && index.name == *name,
            Names::Dropped(doomed) => index.oid == doomed.oid,
            Names::Rebuilt(only) => {
                let Some((base, swapped)) = rebuilt(&index.name) else { return false };
                let is_of = |known: &Known| {
                    known.name == base || (index.name.len() >= CUT_FROM && known.name.starts_with(base))
                };
                let is_meant = |known: &Known| only.as_ref().is_none_or(|only| *only == known.oid);
                match known {
                    Some(known) => swapped && is_meant(known) && known.name != index.name && is_of(known),
                    None => self.indexes.iter().any(|known| is_meant(known) && is_of(known)),
                }
            }
        }
    }
}

/// The name of an index that was rebuilt, or what is left of it, and whether the new one has taken its place: from a
/// name such as `a_ccnew` or `a_ccold1`.
fn rebuilt(name: &str) -> Option<(&str, bool)> {
    let name = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let swapped = name.strip_suffix("_ccold").map(|base| (base, true));
    swapped.or_else(|| name.strip_suffix("_ccnew").map(|base| (base, false)))
}

/// The indexes of a table, of its partitions, and of their TOAST tables.
pub(super) fn of(session: &mut Session, table: &str) -> Result<Vec<Index>, WorkError> {
    let rows = session.query(
        &format!(
            "WITH tables AS (SELECT $1::oid AS oid UNION SELECT relid FROM pg_catalog.pg_partition_tree($1::oid)),
                  all_tables AS (SELECT oid FROM tables
                                  UNION SELECT c.reltoastrelid FROM pg_catalog.pg_class c JOIN tables t ON t.oid = c.oid)
             SELECT i.indexrelid, x.relname, pg_catalog.format('%I.%I', n.nspname, x.relname),
                    i.indisvalid AND i.indisready AND i.indislive, x.relkind = 'i', {BEING_BUILT}, i.indrelid
               FROM pg_catalog.pg_index i JOIN all_tables t ON t.oid = i.indrelid
               JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
               JOIN pg_catalog.pg_namespace n ON n.oid = x.relnamespace
              ORDER BY 3"
        ),
        &[Some(table)],
    )?;
    let text = |row, column| rows.get(row, column).unwrap_or_default().to_owned();
    let is = |row, column| rows.get(row, column) == Some("t");
    let index = |row| Index {
        oid: text(row, 0),
        name: text(row, 1),
        qualified: text(row, 2),
        valid: is(row, 3),
        plain: is(row, 4),
        being_built: is(row, 5),
        table: text(row, 6),
    };
    Ok((0..rows.len()).map(index).collect())
}

/// The index of this name, as it is now.
pub(super) fn found(session: &mut Session, name: String, was_there: bool) -> Result<MaintainedIndex, WorkError> {
    let rows = session.query(
        "SELECT pg_catalog.pg_relation_size(indexrelid), indisvalid FROM pg_catalog.pg_index
          WHERE indexrelid = pg_catalog.to_regclass($1)",
        &[Some(&name)],
    )?;
    let bytes = rows.get(0, 0).and_then(|bytes| bytes.parse().ok()).unwrap_or(0);
    Ok(MaintainedIndex { name, bytes, valid: rows.get(0, 1) == Some("t"), was_there })
}

/// Our own ones among those that are there now.
fn own(session: &mut Session, start: &Start) -> Result<Vec<Index>, WorkError> {
    Ok(of(session, &start.table)?.into_iter().filter(|index| start.owns(index)).collect())
}

/// As it is by now: what it is dropped for must still be so after the waits of those before it.
fn again(session: &mut Session, start: &Start, before: &Index) -> Result<Option<Index>, WorkError> {
    Ok(own(session, start)?.into_iter().find(|index| index.oid == before.oid))
}

/// DROP INDEX of this index, of which the name is quoted.
pub(super) fn drop_sql(qualified: &str, concurrently: bool) -> String {
    let concurrently = if concurrently { " CONCURRENTLY" } else { "" };
    format!("DROP INDEX{concurrently} IF EXISTS {qualified}")
}

fn not_dropped(index: &Index, error: &str) -> String {
    let what = format!("the invalid index {} of this job could not be dropped: {error}", index.qualified);
    // That it belongs to our table isn't enough: the schema is a superuser's.
    if index.qualified.starts_with("pg_toast.") {
        let sql = drop_sql(&index.qualified, true);
        return format!(
            "{what}; in psql, as a superuser, run {sql}; with GRANT USAGE ON SCHEMA pg_toast a job can do so itself"
        );
    }
    let job = as_a_job(&json!({"action": "drop_index", "index": index.qualified}));
    format!("{what}; once the job has ended, a worker drops it as soon as nothing is in the way, and so does {job}")
}

fn left_to_others(index: &Index) -> String {
    format!("{} is invalid, and somebody is at work on it or its table: it is left", index.qualified)
}

/// Drops what earlier attempts of this job have left, and adds their names to `dropped`. Says whether that is all.
pub(super) fn drop_left_over(
    ctx: &WorkContext<'_>,
    session: &mut Session,
    start: &Start,
    locks: &mut Locks<'_, '_>,
    dropped: &mut Vec<String>,
) -> Result<bool, WorkError> {
    if own(session, start)?.is_empty() {
        return Ok(true);
    }
    locks.probe(session)?;
    let mut all = true;
    for index in own(session, start)? {
        let Some(index) = again(session, start, &index)? else { continue };
        if index.being_built {
            ctx.log(LogLevel::Warning, &left_to_others(&index));
            all = false;
            continue;
        }
        ctx.phase(&format!("dropping the invalid index {}", index.qualified));
        match locks.without_limit(session, &drop_sql(&index.qualified, true)) {
            Ok(()) => {
                ctx.log(LogLevel::Info, &format!("dropped the invalid index {} of an earlier try", index.qualified));
                dropped.push(index.qualified);
            }
            Err(WorkError::Fail(error)) if !ctx.is_stopping() => {
                ctx.log(LogLevel::Warning, &not_dropped(&index, &error.message));
                all = false;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

/// What became of one's own invalid indexes.
#[derive(Default)]
struct Remnants {
    dropped: Vec<String>,
    /// Those that stay, and why.
    left: Vec<String>,
    /// Those that this role can never drop, and why.
    denied: Vec<String>,
}

/// How long dropping may take: $1 milliseconds, or less where the login of the target allows less.
const DROP_LIMITS_SQL: &str = "
    SELECT pg_catalog.set_config('statement_timeout',
               LEAST(NULLIF(s.reset_val::pg_catalog.int8, 0), $1::pg_catalog.int8)::pg_catalog.text, false),
           pg_catalog.set_config('lock_timeout', l.reset_val, false)
      FROM pg_catalog.pg_settings s, pg_catalog.pg_settings l
     WHERE s.name = 'statement_timeout' AND l.name = 'lock_timeout'";

/// Drops one's own invalid indexes until `until`.
fn drop_own(session: &mut Session, start: &Start, until: Instant) -> Result<Remnants, WorkError> {
    let mut remnants = Remnants::default();
    for index in own(session, start)? {
        let Some(index) = again(session, start, &index)? else { continue };
        if index.being_built {
            remnants.left.push(left_to_others(&index));
            continue;
        }
        let left = until.saturating_duration_since(Instant::now()).as_millis().max(1).to_string();
        // How long a lock is waited for is limited by the whole, and by the login where that has a limit of its own.
        let dropped = session
            .query(DROP_LIMITS_SQL, &[Some(&left)])
            .and_then(|_| session.execute_batch(&drop_sql(&index.qualified, true)));
        match dropped {
            Ok(()) => remnants.dropped.push(index.qualified),
            Err(error) if error.sqlstate.as_deref() == Some("42501") => {
                remnants.denied.push(not_dropped(&index, &error.message));
            }
            Err(error) => remnants.left.push(not_dropped(&index, &error.message)),
        }
    }
    Ok(remnants)
}

/// Drops what this attempt leaves, whatever ended it. What can't be dropped in time is told with what to do about it.
pub(super) fn clean_up(ctx: &WorkContext<'_>, start: &Start) {
    let outcome = ctx.clean_up(|session, until| {
        let Remnants { dropped, left, denied } = drop_own(session, start, until)?;
        for index in dropped {
            ctx.log(LogLevel::Info, &format!("dropped the invalid index {index} of this attempt"));
        }
        for told in left.iter().chain(&denied) {
            ctx.log(LogLevel::Warning, told);
        }
        Ok(left.is_empty() && !parents::any_is_incomplete(session, start)?)
    });
    match outcome {
        Ok(true) => start.forget(ctx),
        // Without the lease it is the next attempt's.
        Ok(false) | Err(WorkError::Cancelled | WorkError::Snooze(_)) => {}
        Err(WorkError::Retry(error) | WorkError::Fail(error) | WorkError::Unavailable(error)) => {
            let told = format!("whether this attempt left an invalid index isn't known: {}", error.message);
            ctx.log(LogLevel::Warning, &told);
        }
    }
}

/// The work is done: says so, if nothing of it is left.
pub(super) fn settle(ctx: &WorkContext<'_>, session: &mut Session, start: &Start) -> Result<(), WorkError> {
    if own(session, start)?.is_empty() && !parents::any_is_incomplete(session, start)? {
        start.forget(ctx);
    }
    Ok(())
}

/// Sees to what a job has left that has ended: see [`Work::clean_up_after`](crate::work::Work::clean_up_after).
pub(super) fn clean_up_after(kept: &RawJson, session: &mut Session, until: Instant) -> Result<CleanedUp, WorkError> {
    let start = serde_json::from_str::<Option<Start>>(kept.text()).map_err(|error| {
        let message = format!("what a job has left can't be read: {error}");
        WorkError::Fail(JobError::new(ErrorCode::InvalidCheckpoint, message))
    })?;
    let Some(start) = start else { return Ok(CleanedUp { all: true, told: Vec::new() }) };
    let Remnants { dropped, left, denied } = drop_own(session, &start, until)?;
    let (gone, all_gone) = parents::drop_incomplete(session, &start, until)?;
    let dropped = dropped.into_iter().chain(gone);
    let dropped = dropped.map(|name| (LogLevel::Info, format!("dropped the invalid index {name} of this job")));
    // What is in the way mostly passes: that isn't told each time.
    let told = dropped.chain(denied.into_iter().map(|told| (LogLevel::Warning, told))).collect();
    Ok(CleanedUp { all: left.is_empty() && all_gone, told })
}

/// Tells of an invalid index that isn't ours.
pub(super) fn report(ctx: &WorkContext<'_>, index: &Index) {
    let why = if index.being_built { "somebody is at work on it or its table" } else { "it isn't this job's" };
    ctx.log(LogLevel::Warning, &format!("{} is invalid and left as it is: {why}", index.qualified));
}

#[cfg(test)]
mod tests {
    use super::{Index, Known, Names, Start};

    fn start(names: Names) -> Start {
        let known = |oid: &str, name: &str| Known { oid: oid.to_owned(), name: name.to_owned() };
        let long = "n".repeat(63);
        let indexes =
            vec![known("1", "a"), known("2", "b"), known("3", "b_ccnew"), known("4", "b_ccold"), known("5", &long)];
        Start { table: "9".to_owned(), names, indexes, parents: Vec::new() }
    }

    fn invalid(oid: &str, name: &str) -> Index {
        Index { oid: oid.to_owned(), name: name.to_owned(), plain: true, ..Index::default() }
    }

    #[test]
    fn of_a_created_index_only_one_of_its_name_that_was_not_there() {
        let start = start(Names::Created("b".to_owned()));
        assert!(start.owns(&invalid("10", "b")));
        assert!(!start.owns(&Index { valid: true, ..invalid("10", "b") }));
        assert!(!start.owns(&Index { plain: false, ..invalid("10", "b") }));
        for (oid, name) in [("2", "b"), ("10", "c"), ("10", "b_ccnew"), ("2", "b_ccold")] {
            assert!(!start.owns(&invalid(oid, name)), "{oid} {name}");
        }
    }

    #[test]
    fn of_rebuilt_indexes_those_that_the_server_names() {
        let all = start(Names::Rebuilt(None));
        let cut = format!("{}_ccnew", "n".repeat(57));
        // The last ones were swapped: they are the old ones, under another name.
        let own = [("10", "a_ccnew"), ("10", "b_ccnew1"), ("10", cut.as_str()), ("1", "a_ccold"), ("2", "b_ccold2")];
        for (oid, name) in own {
            assert!(all.owns(&invalid(oid, name)), "{oid} {name}");
        }
        for (oid, name) in [
            ("1", "a"),
            ("10", "a"),
            ("10", "c_ccnew"),
            ("10", "a_ccnewer"),
            ("10", "n_ccnew"),
            ("3", "b_ccnew"),
            ("4", "b_ccold"),
            ("1", "b_ccold"),
            ("1", "a_ccnew"),
        ] {
            assert!(!all.owns(&invalid(oid, name)), "{oid} {name}");
        }
        let one = start(Names::Rebuilt(Some("1".to_owned())));
        assert!(one.owns(&invalid("10", "a_ccnew")) && one.owns(&invalid("1", "a_ccold")));
        assert!(!one.owns(&invalid("10", "b_ccnew")) && !one.owns(&invalid("2", "b_ccold")));
    }
}
