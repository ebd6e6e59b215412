//! `refresh`: a materialized view is computed anew, in one transaction that is committed exactly once.
//!
//! What a concurrent refresh needs is looked up beforehand, so that it fails at once and says what is missing, not
//! after the query of the view has run for an hour.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::kinds::names::Named;
use crate::kinds::planning::look_at_target;
use crate::kinds::reads;
use crate::pq::Session;
use crate::queue::{ErrorCode, JobError};
use crate::target::rights::{HAS_MAINTAIN, OWNER_SQL, Owner, Theirs, as_a_superuser};
use crate::work::context::{HEAR_WARNINGS_SQL, Warning, WorkContext};
use crate::work::validation::Validation;
use crate::work::{ArgError, Work, WorkError, exactly_once};

/// The arguments of a `refresh`.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Refresh {
    /// The materialized view, with its schema where the search path doesn't lead to it; quoted where SQL would have it.
    pub view: String,
    /// Readers go on reading what was there until the new rows are complete; false by default. Takes longer, and needs a
    /// unique index on columns, without a WHERE, and a view that was filled before.
    #[serde(default)]
    pub concurrently: bool,
}

/// What a `refresh` did.
#[derive(Debug, Serialize)]
pub struct Refreshed {
    /// The view, with its schema.
    pub view: String,
    /// Readers were let through meanwhile.
    pub concurrently: bool,
    /// Bytes of the view and its indexes afterwards.
    pub bytes: i64,
    /// What the server, or a function of the view, warned of: the first twenty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<Warning>,
}

impl Work for Refresh {
    const KIND: &'static str = "refresh";
    const REPEATABLE: bool = true;
    const FENCED: bool = true;
    const VALIDATES: bool = true;
    type Output = Refreshed;

    fn check(&self) -> Result<(), Vec<ArgError>> {
        if self.view.trim().is_empty() {
            return Err(vec![ArgError::new("/view", "expected the name of a materialized view")]);
        }
        Ok(())
    }

    fn run(&self, ctx: &mut WorkContext<'_>) -> Result<Refreshed, WorkError> {
        let mut work = ctx.committing_session()?;
        let (session, _, close) = work.split();
        let view = View::find(session, &self.view)?;
        view.may_be_refreshed(session, self.concurrently)?;
        match self.up_to_commit(session, ctx, &view) {
            Ok(refreshed) => exactly_once::commit(ctx, session, &refreshed).map(|()| refreshed),
            Err(error) => {
                *close = session.command("ROLLBACK").is_err();
                Err(error)
            }
        }
    }

    fn validate(&self, ctx: &WorkContext<'_>) -> Result<Validation, WorkError> {
        look_at_target(ctx, reads::must_write, |session| {
            self.look(session).map_err(|error| ("/view".to_owned(), error))
        })
    }
}

impl Refresh {
    /// What stands in its way, as far as the catalog shows it.
    pub(super) fn look(&self, session: &mut Session) -> Result<(), WorkError> {
        View::find(session, &self.view)?.may_be_refreshed(session, self.concurrently)
    }

    /// Everything but the COMMIT.
    fn up_to_commit(&self, session: &mut Session, ctx: &WorkContext<'_>, view: &View) -> Result<Refreshed, WorkError> {
        ctx.check()?;
        let left = ctx.statement_ms_left();
        session.query(HEAR_WARNINGS_SQL, &[])?;
        session.execute_batch(&format!("BEGIN; SET LOCAL statement_timeout = {left}"))?;
        ctx.phase("refreshing");
        let concurrently = if self.concurrently { "CONCURRENTLY " } else { "" };
        ctx.take_warnings();
        session.execute_batch(&format!("REFRESH MATERIALIZED VIEW {concurrently}{}", view.name))?;
        let warnings = ctx.take_warnings().shown();
        let rows = session.query("SELECT pg_catalog.pg_total_relation_size($1::oid)", &[Some(&view.oid)])?;
        let bytes = rows.get(0, 0).and_then(|bytes| bytes.parse().ok()).unwrap_or(0);
        Ok(Refreshed { view: view.name.clone(), concurrently: self.concurrently, bytes, warnings })
    }
}

/// A materialized view, as the catalog has it.
struct View {
    oid: String,
    /// Schema and name, quoted.
    name: String,
    is_populated: bool,
    /// The role may refresh it.
    allowed: bool,
    theirs: Theirs,
}

fn fail<T>(code: ErrorCode, message: String, hint: String) -> Result<T, WorkError> {
    Err(WorkError::Fail(JobError::new(code, message).with_hint(hint)))
}

impl View {
    /// Looks a name up as the session's `search_path` has it.
    fn find(session: &mut Session, name: &str) -> Result<View, WorkError> {
        let oid = Named::view("/view", name).oid(session)?;
        // From 17 on a view can be refreshed by others than its owner.
        let allowed = match session.server_version() >= HAS_MAINTAIN {
            true => "pg_catalog.has_table_privilege(c.oid, 'MAINTAIN')",
            false => "pg_catalog.pg_has_role(c.relowner, 'USAGE')",
        };
        let rows = session.query(
            &format!(
                "SELECT c.oid, pg_catalog.format('%I.%I', n.nspname, c.relname), c.relkind, c.relispopulated, {allowed},
                        n.nspname, current_user, {OWNER_SQL}
                   FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                  WHERE c.oid = $1::oid"
            ),
            &[Some(&oid)],
        )?;
        let text = |column| rows.get(0, column).unwrap_or_default();
        match text(2) {
            "m" => {}
            "" => {
                return fail(
                    ErrorCode::ViewNotFound,
                    format!("there is no materialized view {name} any more"),
                    "submit the job again when it is there".to_owned(),
                );
            }
            _ => {
                return fail(
                    ErrorCode::NotAMaterializedView,
                    format!("{} is no materialized view", text(1)),
                    "a plain view is computed each time it is read and needs no refresh".to_owned(),
                );
            }
        }
        Ok(View {
            oid: text(0).to_owned(),
            name: text(1).to_owned(),
            is_populated: text(3) == "t",
            allowed: text(4) == "t",
            theirs: Theirs {
                name: text(1).to_owned(),
                schema: text(5).to_owned(),
                is_view: true,
                role: text(6).to_owned(),
                owner: Owner::from(|column| text(7 + column)),
            },
        })
    }

    fn may_be_refreshed(&self, session: &mut Session, concurrently: bool) -> Result<(), WorkError> {
        if !self.allowed {
            return fail(
                ErrorCode::PermissionDenied,
                format!("{}, the role of the target, may not refresh {}", self.theirs.role, self.name),
                format!(
                    "the role has to be a member of the view's owner {}, or from Postgres 17 on have MAINTAIN{}",
                    self.theirs.owner.name,
                    as_a_superuser(&[&self.theirs], session.server_version(), false)
                ),
            );
        }
        if !concurrently {
            return Ok(());
        }
        if !self.is_populated {
            return fail(
                ErrorCode::ViewNotPopulated,
                format!("{} was never filled, and can't be refreshed concurrently", self.name),
                "refresh it once without concurrently".to_owned(),
            );
        }
        // What the server itself looks for (is_usable_unique_index in matview.c).
        let rows = session.query(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_index WHERE indrelid = $1::oid AND indisunique AND indisvalid
                               AND indimmediate AND indpred IS NULL AND indexprs IS NULL AND indnatts > 0)",
            &[Some(&self.oid)],
        )?;
        if rows.get(0, 0) == Some("t") {
            return Ok(());
        }
        fail(
            ErrorCode::NoUniqueIndex,
            format!(
                "{} has no unique index on columns alone and without a WHERE, which a concurrent refresh needs",
                self.name
            ),
            format!(
                "create one by a maintain job with action create_index, table {}, a name, its columns and unique: true; or \
                 refresh it without concurrently",
                self.name
            ),
        )
    }
}
