//! `maintain`: VACUUM, ANALYZE, REINDEX, CREATE INDEX and DROP INDEX, outside of a transaction, and no invalid index
//! left behind.
//!
//! Names are looked up in the catalog and quoted by the server. Each step can be repeated: what an attempt that was cut
//! off has left is found by the indexes that were recorded before its first step. A lock is waited for in bounded tries.
//!
//! | file | what it has |
//! | --- | --- |
//! | `arguments`, `storage` | which arguments go together |
//! | `relation` | the table or index, as the catalog has it, and what the role may do with it |
//! | `definition` | the index that is to be created, and whether it is there |
//! | `compare` | whether two indexes are the same |
//! | `trial` | for which argument the server takes no such index |
//! | `build` | REINDEX, and CREATE INDEX of one table |
//! | `partitions`, `parents` | CREATE INDEX of a partitioned table, by parts |
//! | `drop` | DROP INDEX |
//! | `statement` | the other statements |
//! | `indexes` | invalid indexes: whose they are, and dropping our own |
//! | `locks` | tries |
//! | `tables` | the tables that a VACUUM or an ANALYZE goes through, and which of them were done |
//! | `rebuilt` | the indexes that a REINDEX goes through, and which of them were rebuilt |
//! | `skipped` | what was left out, and when that is a failure |
//! | `validate` | what a run would refuse |

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::db::fate::SAFE_COMMITS_SQL;
use crate::kinds::backfill::Misplaced;
use crate::kinds::planning::look_at_target;
use crate::kinds::reads;
use crate::pq::Session;
use crate::queue::{ErrorCode, JobError, RawJson};
use crate::work::context::{HEAR_WARNINGS_SQL, Warning, WorkContext};
use crate::work::validation::Validation;
use crate::work::{ArgError, CleanedUp, Work, WorkError};

mod arguments;
mod build;
mod compare;
mod definition;
mod drop;
mod indexes;
mod locks;
mod parents;
mod partitions;
mod rebuilt;
mod relation;
mod skipped;
mod statement;
mod storage;
mod tables;
mod trial;
mod validate;

pub use arguments::IndexColumn;
pub use locks::TRIES;
pub use skipped::Skipped;
pub use storage::StorageParameters;

use build::Steps;
use indexes::Start;
use locks::Locks;
use relation::Relation;
use skipped::Told;

/// The arguments of a `maintain`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Maintain {
    /// What is done.
    pub action: Action,
    /// The table, with its schema or as the target's `search_path` finds it; quoted where SQL would have it. For `reindex` either this
    /// or `index`.
    pub table: Option<String>,
    /// `reindex`: one index, named like a table, instead of all of a table. `drop_index`: the index.
    pub index: Option<String>,
    /// How long one try waits for a lock, in milliseconds: 1 to 60,000. Defaults to what the job and the target say, 5,000 where they
    /// say nothing.
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
    /// `vacuum`, `analyze`: leaves out what is locked, and names it in `skipped`. Where that is everything, the job fails.
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
    /// `reindex`, `create_index`, `drop_index`: writers aren't kept out. True by default.
    pub concurrently: Option<bool>,
    /// `create_index`: the index's name, without a schema: an index is where its table is. At most 63 bytes.
    pub name: Option<String>,
    /// `create_index`: a unique index (`btree`).
    pub unique: Option<bool>,
    /// `create_index`: the access method, `btree` by default.
    pub method: Option<IndexMethod>,
    /// `create_index`: columns that the index holds beside its key.
    pub include: Option<Vec<String>>,
    /// `create_index`: only rows for which this SQL expression over their columns is true.
    #[serde(rename = "where")]
    pub condition: Option<String>,
    /// `create_index` with `unique`: a NULL equals another. From PostgreSQL 15 on.
    pub nulls_not_distinct: Option<bool>,
    /// `create_index`: storage parameters.
    pub with: Option<StorageParameters>,
    /// `create_index`: where its files are. The server decides by default.
    pub tablespace: Option<String>,
    /// `drop_index`: an index that isn't there is a success too.
    pub if_exists: Option<bool>,
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
    /// DROP INDEX.
    DropIndex,
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
    /// The table, with its schema, quoted where SQL needs it. `None` for an index that wasn't there to be dropped.
    pub table: Option<String>,
    /// The index that was created, rebuilt or dropped, when it was one.
    pub index: Option<MaintainedIndex>,
    /// How many tables (partitions among them) were vacuumed or analyzed, or indexes rebuilt, created or dropped.
    pub done: u64,
    /// Tables, partitions and indexes that the server left out: the first hundred.
    pub skipped: Vec<Skipped>,
    /// How many it left out.
    pub skipped_count: u64,
    /// What the server warned of, the first twenty: not only what it left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<Warning>,
    /// How often it had to be tried until no lock was in the way, in this attempt.
    pub tries: u32,
    /// Invalid indexes that an earlier attempt of this job had left, and that this one dropped.
    pub dropped_invalid: Vec<String>,
    /// Invalid indexes of the table that aren't this job's, and were not touched.
    pub left_invalid: Vec<String>,
    /// What was done on the partitions, where an index was made by parts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partitions: Option<MaintainedParts>,
}

/// The indexes of partitions.
#[derive(Debug, Serialize)]
pub struct MaintainedParts {
    /// Those that this attempt has built.
    pub built: usize,
    /// Those that were there before, or came with a new partition.
    pub found: usize,
}

/// An index.
#[derive(Debug, Serialize)]
pub struct MaintainedIndex {
    /// Its name, with its schema, quoted where SQL needs it.
    pub name: String,
    /// Its size in bytes; of one that was dropped, before.
    pub bytes: i64,
    /// It can be used; of one that was dropped, before.
    pub valid: bool,
    /// It was there before this attempt: with the same definition, so that nothing had to be done, or to be dropped.
    pub was_there: bool,
}

impl Maintained {
    fn of(action: Action, table: Option<String>, told: Told, tries: u32) -> Maintained {
        let Told { done, skipped, skipped_count, warnings } = told;
        let (dropped_invalid, left_invalid) = (Vec::new(), Vec::new());
        Maintained {
            action,
            table,
            index: None,
            done,
            skipped,
            skipped_count,
            warnings,
            tries,
            dropped_invalid,
            left_invalid,
            partitions: None,
        }
    }
}

impl Work for Maintain {
    const KIND: &'static str = "maintain";
    const REPEATABLE: bool = true;
    const VALIDATES: bool = true;
    type Output = Maintained;

    fn check(&self) -> Result<(), Vec<ArgError>> {
        let errors = arguments::check(self);
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    fn clean_up_after(kept: &RawJson, session: &mut Session, until: Instant) -> Result<CleanedUp, WorkError> {
        indexes::clean_up_after(kept, session, until)
    }

    fn validate(&self, ctx: &WorkContext<'_>) -> Result<Validation, WorkError> {
        let needs = match self.action {
            Action::Vacuum | Action::Analyze => reads::must_be_primary,
            Action::Reindex | Action::CreateIndex | Action::DropIndex => reads::must_write,
        };
        look_at_target(ctx, needs, |session| self.look(session).map_err(Misplaced::apart))
    }

    fn run(&self, ctx: &mut WorkContext<'_>) -> Result<Maintained, WorkError> {
        let mut own = None;
        let outcome = self.perform(ctx, &mut own);
        match (&outcome, &own) {
            (Err(error), Some(start)) if name_was_taken(error) && start.parents.is_empty() => start.forget(ctx),
            (Err(_), Some(start)) => indexes::clean_up(ctx, start),
            _ => {}
        }
        outcome.map_err(|error| self.explained(error))
    }
}

impl Maintain {
    fn concurrently(&self) -> bool {
        self.concurrently.unwrap_or(true)
    }

    fn rebuilds_concurrently(&self) -> bool {
        self.action == Action::Reindex && self.concurrently()
    }

    /// Its own argument goes before what the job and the target say.
    fn lock_timeout(&self, ctx: &WorkContext<'_>) -> Duration {
        self.lock_timeout_ms.map_or_else(|| ctx.lock_timeout(), Duration::from_millis)
    }

    /// All of it, but for what is left of an attempt that fails: `own` tells that from others', once there may be some.
    fn perform(&self, ctx: &WorkContext<'_>, own: &mut Option<Start>) -> Result<Maintained, WorkError> {
        let mut session = ctx.session()?;
        // An index that was there when the job succeeded is there after a crash of its server.
        session.execute_batch(SAFE_COMMITS_SQL)?;
        session.query(HEAR_WARNINGS_SQL, &[])?;
        let session = &mut *session;
        if self.action == Action::DropIndex {
            let steps = Steps { ctx, session, timeout: self.lock_timeout(ctx), own, dropped: Vec::new(), tries: 0 };
            return self.drop_index(steps);
        }
        let relation = match (&self.table, &self.index) {
            (None, Some(index)) => Relation::of_index(session, index)?,
            (table, _) => Relation::find(session, table.as_deref().unwrap_or_default(), self.action)?,
        };
        if [Action::Reindex, Action::CreateIndex].contains(&self.action) {
            relation.may_be_indexed(session, self.action)?;
            let steps = Steps { ctx, session, timeout: self.lock_timeout(ctx), own, dropped: Vec::new(), tries: 0 };
            return self.index(&relation, steps);
        }
        let columns = match &self.columns {
            Some(columns) => definition::quoted_columns(session, &relation, columns)?,
            None => Vec::new(),
        };
        let (phase, sql) = match self.action {
            Action::Vacuum => ("vacuuming", statement::vacuum(self, &relation, &columns)),
            _ => ("analyzing", statement::analyze(self, &relation, &columns)),
        };
        let mut locks = Locks::new(ctx, self.lock_timeout(ctx), &relation);
        let phase = format!("{phase} {}", relation.table);
        let told = tables::maintain(ctx, session, &relation, self, |session| locks.step(session, &phase, &sql))?;
        let tries = locks.tries;
        Ok(Maintained::of(self.action, Some(relation.table), told, tries))
    }

    /// What is to be done about an error that the server has no hint for.
    fn explain(&self, error: JobError) -> JobError {
        // One in a statement of ours says nothing to the caller; of an expression that was tried alone it does.
        let ours = self.action == Action::CreateIndex && !error.message.starts_with('/');
        let error = JobError { position: error.position.filter(|_| !ours), ..error };
        let hint = match error.sqlstate.as_deref() {
            Some(skipped::NOT_SUPPORTED) if self.rebuilds_concurrently() && error.code == ErrorCode::SqlError => {
                return JobError { code: ErrorCode::NotSupported.into(), ..error }.with_hint(rebuilt::NOT_CONCURRENTLY);
            }
            Some("23505") if self.action == Action::CreateIndex => {
                "the rows must be unique in these columns before the index can be"
            }
            Some("42501") if self.action == Action::CreateIndex => {
                "the role of the target needs USAGE and CREATE on the schema, and CREATE on the tablespace where one is \
                     named; in psql, as the owner: GRANT USAGE, CREATE ON SCHEMA … TO …"
            }
            Some("42P17") if self.action == Action::CreateIndex => {
                "an index holds only what functions give that are marked IMMUTABLE; what depends on a setting, such as \
                     the time zone, isn't: write t AT TIME ZONE 'UTC', say"
            }
            Some("42704") if self.tablespace.is_some() => "SELECT spcname FROM pg_tablespace lists the tablespaces",
            Some("42501") => {
                "the role of the target needs USAGE on the schema; in psql, as its owner: GRANT USAGE ON SCHEMA … TO …"
            }
            _ => return error,
        };
        if error.hint.is_some() { error } else { error.with_hint(hint) }
    }

    fn explained(&self, error: WorkError) -> WorkError {
        match error {
            // Another attempt looks whether it is what was wanted.
            error if self.action == Action::CreateIndex && name_was_taken(&error) => taken(error),
            WorkError::Fail(error) => WorkError::Fail(self.explain(error)),
            error => error,
        }
    }
}

/// Somebody else was quicker: what there is by this name is theirs. Of a name that a transaction had taken that was
/// still open then, the server says so by a unique index of its own.
fn name_was_taken(error: &WorkError) -> bool {
    let WorkError::Fail(error) = error else { return false };
    match error.sqlstate.as_deref() {
        Some("42P07") => true,
        Some("23505") => error.constraint.as_deref() == Some("pg_class_relname_nsp_index"),
        _ => false,
    }
}

fn taken(error: WorkError) -> WorkError {
    let WorkError::Fail(error) = error else { return error };
    let message = format!("somebody else took the index's name meanwhile: {}", error.message);
    let hint = "the next attempt looks whether that is the index that was asked for; if it isn't, choose another name";
    let error = JobError { code: ErrorCode::IndexExists.into(), message, position: None, ..error };
    WorkError::Retry(error.retryable().with_hint(hint))
}
