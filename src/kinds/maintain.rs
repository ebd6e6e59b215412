//! `maintain`: VACUUM, ANALYZE, REINDEX and CREATE INDEX, outside of a transaction, and no invalid index left behind.
//!
//! Names are looked up in the catalog and quoted by the server. Each step can be repeated: what an attempt that was cut
//! off has left is found by the indexes that were recorded before its first step. A lock is waited for in bounded tries.
//!
//! | file | what it has |
//! | --- | --- |
//! | `arguments` | which arguments go together |
//! | `relation` | the table or index, as the catalog has it, and what the role may do with it |
//! | `definition` | the index that is to be created, and whether it is there |
//! | `statement` | the statements |
//! | `indexes` | invalid indexes: whose they are, and dropping our own |
//! | `locks` | tries |

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::db::fate::SAFE_COMMITS_SQL;
use crate::db::targets::LOCK_TIMEOUT;
use crate::kinds::context::WorkContext;
use crate::kinds::{ArgError, Work, WorkError};
use crate::pq::Session;
use crate::queue::JobError;

mod arguments;
mod definition;
mod indexes;
mod locks;
mod relation;
mod statement;

pub use arguments::IndexColumn;
pub use locks::TRIES;

use definition::Definition;
use indexes::{Index, Names, Start};
use locks::Locks;
use relation::Relation;

/// The arguments of a `maintain`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Maintain {
    /// What is done.
    pub action: Action,
    /// The table, with its schema or as the target's `search_path` finds it; quoted where SQL would have it. For `reindex` either this
    /// or `index`.
    pub table: Option<String>,
    /// `reindex`: one index, named like a table, instead of all of a table.
    pub index: Option<String>,
    /// How long one try waits for a lock, in milliseconds: 1 to 60,000. Defaults to 5,000.
    pub lock_timeout_ms: Option<u64>,
    /// Must be true where the action keeps others out for as long as it takes: `full`, and `concurrently: false`.
    #[serde(default)]
    pub allow_exclusive_lock: bool,
    /// `vacuum`: rewrites the table; nobody can use it meanwhile.
    pub full: Option<bool>,
    /// `vacuum`: freezes all rows.
    pub freeze: Option<bool>,
    /// `vacuum`: does an ANALYZE too.
    pub analyze: Option<bool>,
    /// `vacuum`: looks at every page.
    pub disable_page_skipping: Option<bool>,
    /// `vacuum`, `analyze`: leaves out what is locked. The job succeeds all the same; its log has the server's warning.
    pub skip_locked: Option<bool>,
    /// `vacuum`: always (true) or never removes dead entries from indexes. The server decides by default.
    pub index_cleanup: Option<bool>,
    /// `vacuum`: gives empty pages at the table's end back. The server does by default.
    pub truncate: Option<bool>,
    /// `vacuum`: the TOAST table too. The server does by default.
    pub process_toast: Option<bool>,
    /// `vacuum`: workers for the indexes, 0 to 1,024. The server decides by default.
    pub parallel: Option<u32>,
    /// `analyze`, and `vacuum` with `analyze`: the columns that are looked at, all by default. `create_index`, where it is needed: the
    /// key. Each is a name, or an object.
    pub columns: Option<Vec<IndexColumn>>,
    /// `reindex`, `create_index`: writers aren't kept out. True by default.
    pub concurrently: Option<bool>,
    /// `create_index`: the index's name, without a schema: an index is where its table is. At most 63 bytes.
    pub name: Option<String>,
    /// `create_index`: a unique index (`btree`).
    pub unique: Option<bool>,
    /// `create_index`: the access method, `btree` by default.
    pub method: Option<IndexMethod>,
    /// `create_index`: columns that the index holds beside its key.
    pub include: Option<Vec<String>>,
}

/// What a `maintain` does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// VACUUM.
    #[default]
    Vacuum,
    /// ANALYZE.
    Analyze,
    /// REINDEX.
    Reindex,
    /// CREATE INDEX.
    CreateIndex,
}

/// The access method of an index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum IndexMethod {
    /// B-tree.
    #[default]
    Btree,
    /// Hash.
    Hash,
    /// GIN.
    Gin,
    /// GiST.
    Gist,
    /// SP-GiST.
    Spgist,
    /// BRIN.
    Brin,
}

impl IndexMethod {
    /// The word in SQL.
    fn as_str(self) -> &'static str {
        match self {
            IndexMethod::Btree => "btree",
            IndexMethod::Hash => "hash",
            IndexMethod::Gin => "gin",
            IndexMethod::Gist => "gist",
            IndexMethod::Spgist => "spgist",
            IndexMethod::Brin => "brin",
        }
    }
}

/// What a `maintain` did.
#[derive(Debug, Serialize)]
pub struct Maintained {
    /// What it was told to do.
    pub action: Action,
    /// The table, with its schema, quoted where SQL needs it.
    pub table: String,
    /// The index that was created or rebuilt, when it was one.
    pub index: Option<MaintainedIndex>,
    /// How often it had to be tried until no lock was in the way, in this attempt.
    pub tries: u32,
    /// Invalid indexes that an earlier attempt of this job had left, and that this one dropped.
    pub dropped_invalid: Vec<String>,
    /// Invalid indexes of the table that aren't this job's, and were not touched.
    pub left_invalid: Vec<String>,
}

/// An index.
#[derive(Debug, Serialize)]
pub struct MaintainedIndex {
    /// Its name, with its schema, quoted where SQL needs it.
    pub name: String,
    /// Its size in bytes.
    pub bytes: i64,
    /// It can be used.
    pub valid: bool,
    /// It was there before this attempt, with the same definition: nothing had to be done.
    pub was_there: bool,
}

impl Work for Maintain {
    const KIND: &'static str = "maintain";
    const REPEATABLE: bool = true;
    type Output = Maintained;

    fn check(&self) -> Result<(), Vec<ArgError>> {
        let errors = arguments::check(self);
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    fn run(&self, ctx: &mut WorkContext<'_>) -> Result<Maintained, WorkError> {
        let mut own = None;
        let outcome = self.perform(ctx, &mut own);
        if let (Err(error), Some(start)) = (&outcome, &own)
            && !name_was_taken(error)
        {
            indexes::clean_up(ctx, start);
        }
        outcome.map_err(|error| self.explained(error))
    }
}

impl Maintain {
    fn concurrently(&self) -> bool {
        self.concurrently.unwrap_or(true)
    }

    fn lock_timeout(&self) -> Duration {
        self.lock_timeout_ms.map_or(LOCK_TIMEOUT, Duration::from_millis)
    }

    /// All of it, but for what is left of an attempt that fails: `own` tells that from others', once there may be some.
    fn perform(&self, ctx: &WorkContext<'_>, own: &mut Option<Start>) -> Result<Maintained, WorkError> {
        let mut session = ctx.session()?;
        // An index that was there when the job succeeded is there after a crash of its server.
        session.execute_batch(SAFE_COMMITS_SQL)?;
        let relation = match (&self.table, &self.index) {
            (None, Some(index)) => Relation::of_index(&mut session, index)?,
            (table, _) => Relation::find(&mut session, table.as_deref().unwrap_or_default(), self.action)?,
        };
        relation.may_be_maintained(&mut session, self.action)?;
        let mut locks = Locks::new(ctx, self.lock_timeout(), &relation);
        match self.action {
            Action::Vacuum | Action::Analyze => {
                let columns = match &self.columns {
                    Some(columns) => definition::quoted_columns(&mut session, &relation, columns)?,
                    None => Vec::new(),
                };
                let (phase, sql) = match self.action {
                    Action::Vacuum => ("vacuuming", statement::vacuum(self, &relation, &columns)),
                    _ => ("analyzing", statement::analyze(self, &relation, &columns)),
                };
                locks.step(&mut session, &format!("{phase} {}", relation.table), &sql)?;
                let (index, tries) = (None, locks.tries);
                let (dropped_invalid, left_invalid) = (Vec::new(), Vec::new());
                Ok(Maintained {
                    action: self.action,
                    table: relation.table,
                    index,
                    tries,
                    dropped_invalid,
                    left_invalid,
                })
            }
            Action::Reindex | Action::CreateIndex => self.index(ctx, &mut session, &relation, &mut locks, own),
        }
    }

    fn index(
        &self,
        ctx: &WorkContext<'_>,
        session: &mut Session,
        relation: &Relation,
        locks: &mut Locks<'_, '_>,
        own: &mut Option<Start>,
    ) -> Result<Maintained, WorkError> {
        let definition = match self.action {
            Action::CreateIndex => Some(Definition::find(session, self, relation)?),
            _ => None,
        };
        let names = match (&definition, &relation.index) {
            (Some(definition), _) => Names::Created(definition.name.clone()),
            // That of a partitioned table is rebuilt by rebuilding those of its partitions.
            (None, Some(index)) if !relation.partitioned => Names::Rebuilt(Some(index.oid.clone())),
            (None, _) => Names::Rebuilt(None),
        };
        let mut dropped = Vec::new();
        if let Some(start) = Start::of_earlier_attempt(ctx, relation)? {
            let nothing_left = indexes::drop_left_over(ctx, session, own.insert(start), locks, &mut dropped)?;
            if nothing_left {
                *own = None;
            }
        }
        let concurrently = self.concurrently();
        if concurrently {
            // While somebody else builds here, what is theirs may not be there yet.
            locks.probe(session)?;
        }
        let was_there = match &definition {
            Some(definition) => definition.is_there(session, relation)?,
            None => false,
        };
        if !was_there {
            if concurrently && own.is_none() {
                *own = Some(Start::record(ctx, session, relation, names)?);
            }
            let (phase, sql) = match &definition {
                Some(definition) => (
                    format!("creating index {}", definition.qualified()),
                    statement::create_index(self, relation, definition),
                ),
                None => (format!("reindexing {}", relation.name()), statement::reindex(self, relation)),
            };
            let outcome = if concurrently {
                ctx.phase(&phase);
                locks.without_limit(session, &sql)
            } else {
                locks.step(session, &phase, &sql)
            };
            outcome?;
        }
        let index = match (&definition, &relation.index) {
            (Some(definition), _) => Some(definition.qualified()),
            (None, index) => index.as_ref().map(|index| index.name.clone()),
        };
        let index = index.map(|name| indexes::found(session, name, was_there)).transpose()?;
        let left: Vec<Index> = indexes::of(session, &relation.oid)?.into_iter().filter(|index| !index.valid).collect();
        for index in &left {
            indexes::report(ctx, index);
        }
        Ok(Maintained {
            action: self.action,
            table: relation.table.clone(),
            index,
            tries: locks.tries,
            dropped_invalid: dropped,
            left_invalid: left.into_iter().map(|index| index.qualified).collect(),
        })
    }

    /// What is to be done about an error that the server has no hint for.
    fn explained(&self, error: WorkError) -> WorkError {
        let explain = |error: JobError| {
            let hint = match error.sqlstate.as_deref() {
                Some("23505") if self.action == Action::CreateIndex => {
                    "the rows must be unique in these columns before the index can be"
                }
                Some("42501") if self.action == Action::CreateIndex => {
                    "the role of the target needs USAGE and CREATE on the schema: GRANT USAGE, CREATE ON SCHEMA … TO …"
                }
                Some("42501") => "the role of the target needs USAGE on the schema: GRANT USAGE ON SCHEMA … TO …",
                _ => return error,
            };
            if error.hint.is_some() { error } else { error.with_hint(hint) }
        };
        match error {
            WorkError::Fail(error) => WorkError::Fail(explain(error)),
            error => error,
        }
    }
}

/// Somebody else was quicker: what there is by this name is theirs.
fn name_was_taken(error: &WorkError) -> bool {
    matches!(error, WorkError::Fail(error) if error.sqlstate.as_deref() == Some("42P07"))
}
