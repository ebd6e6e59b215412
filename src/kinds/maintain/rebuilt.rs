//! The indexes that a REINDEX goes through, and which of them were rebuilt: those that are in another file afterwards.
//!
//! A concurrent one gives the old name to a new index, and leaves out what it can't rebuild so: an index of an exclusion
//! constraint, and one that is invalid. One that isn't concurrent leaves out invalid indexes of TOAST tables.

use super::relation::Relation;
use super::skipped::{NOT_IN_STATE, NOT_SUPPORTED, Outcome, Skipped, Told};
use crate::pq::Session;
use crate::pq::quote::text_array;
use crate::work::WorkError;
use crate::work::context::{Warnings, WorkContext};

/// What to do about an index that can't be rebuilt concurrently.
pub(super) const NOT_CONCURRENTLY: &str =
    "say \"concurrently\": false with \"allow_exclusive_lock\": true: writers wait until it is rebuilt";

/// The schema of TOAST tables.
const TOAST: &str = "pg_toast";

struct Index {
    schema: String,
    name: String,
    /// Schema and name, quoted.
    qualified: String,
    valid: bool,
    of_exclusion: bool,
    file: String,
}

/// The indexes as they were before.
pub(super) struct Rebuilt {
    before: Vec<Index>,
    /// One index was named, and not its table.
    by_name: bool,
    concurrently: bool,
}

impl Rebuilt {
    /// Looks at them before they are rebuilt.
    pub fn look(
        ctx: &WorkContext<'_>,
        session: &mut Session,
        relation: &Relation,
        concurrently: bool,
    ) -> Result<Rebuilt, WorkError> {
        let before = look(session, relation)?;
        ctx.take_warnings();
        Ok(Rebuilt { before, by_name: relation.index.is_some(), concurrently })
    }

    /// Looks again, and tells which were left out.
    pub fn told(self, ctx: &WorkContext<'_>, session: &mut Session) -> Result<Told, WorkError> {
        let warnings = ctx.take_warnings();
        let files = files(session, &self.before)?;
        let mut outcome = Outcome::default();
        for (index, file) in self.before.iter().zip(&files) {
            match file.as_deref() {
                // It was dropped meanwhile.
                None => {}
                Some(file) if file != index.file && (index.schema != TOAST || self.by_name) => outcome.did(),
                // That of a TOAST table comes along, and isn't what was asked for.
                Some(file) if file != index.file => {}
                Some(_) => outcome.skipped.push(index.skipped(self.concurrently, &warnings)),
            }
        }
        outcome.told(ctx, warnings, |first| match first.sqlstate.as_deref() {
            Some(NOT_IN_STATE) => {
                format!(
                    "drop it by a maintain job with action drop_index and index {}, or name it as index",
                    first.what
                )
            }
            _ => NOT_CONCURRENTLY.to_owned(),
        })
    }
}

impl Index {
    fn skipped(&self, concurrently: bool, warnings: &Warnings) -> Skipped {
        match (self.valid, self.of_exclusion && concurrently) {
            (_, true) => {
                let reason = "it belongs to an exclusion constraint, and can't be rebuilt concurrently";
                Skipped::new(&self.qualified, reason, NOT_SUPPORTED)
            }
            (false, _) => Skipped::new(&self.qualified, "it is invalid", NOT_IN_STATE),
            _ => Skipped::as_warned(&self.qualified, &self.name, warnings),
        }
    }
}

/// The indexes with rows of their own that the statement is about.
fn look(session: &mut Session, relation: &Relation) -> Result<Vec<Index>, WorkError> {
    let rows = session.query(
        "WITH tables AS (SELECT $1::oid AS oid UNION SELECT relid FROM pg_catalog.pg_partition_tree($1::oid)),
              all_tables AS (SELECT oid FROM tables
                              UNION SELECT c.reltoastrelid FROM pg_catalog.pg_class c JOIN tables t ON t.oid = c.oid)
         SELECT x.relname, pg_catalog.format('%I.%I', n.nspname, x.relname), i.indisvalid, i.indisexclusion,
                pg_catalog.pg_relation_filenode(x.oid), n.nspname
           FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
           JOIN pg_catalog.pg_namespace n ON n.oid = x.relnamespace
          WHERE x.relkind = 'i' AND i.indislive
            AND CASE WHEN $2::oid IS NULL THEN i.indrelid IN (SELECT oid FROM all_tables)
                     ELSE x.oid IN (SELECT $2::oid UNION SELECT relid FROM pg_catalog.pg_partition_tree($2::oid)) END
          ORDER BY 2",
        &[Some(&relation.oid), relation.index.as_ref().map(|index| index.oid.as_str())],
    )?;
    let text = |row, column| rows.get(row, column).unwrap_or_default().to_owned();
    let is = |row, column| rows.get(row, column) == Some("t");
    let index = |row| Index {
        schema: text(row, 5),
        name: text(row, 0),
        qualified: text(row, 1),
        valid: is(row, 2),
        of_exclusion: is(row, 3),
        file: text(row, 4),
    };
    Ok((0..rows.len()).map(index).collect())
}

/// In which file each is now; `None` for one that isn't there any more.
fn files(session: &mut Session, indexes: &[Index]) -> Result<Vec<Option<String>>, WorkError> {
    let names: Vec<&str> = indexes.iter().map(|index| index.name.as_str()).collect();
    let schemas: Vec<&str> = indexes.iter().map(|index| index.schema.as_str()).collect();
    // By the catalog alone: no role may name what is in pg_toast.
    let rows = session.query(
        "SELECT pg_catalog.pg_relation_filenode(c.oid)
           FROM ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[])) WITH ORDINALITY AS i(schema, name, n)
           LEFT JOIN (pg_catalog.pg_class c JOIN pg_catalog.pg_namespace s ON s.oid = c.relnamespace)
             ON s.nspname = i.schema AND c.relname = i.name
          ORDER BY n",
        &[Some(&text_array(&schemas)), Some(&text_array(&names))],
    )?;
    Ok((0..rows.len()).map(|row| rows.get(row, 0).map(str::to_owned)).collect())
}
