//! The table or index that is maintained, as the catalog has it, and what the target's role may do with it.

use super::Action;
use super::tables::not_allowed;
use crate::kinds::names::Named;
use crate::pq::Session;
use crate::pq::quote::identifier;
use crate::queue::{ErrorCode, JobError};
use crate::target::rights::{HAS_MAINTAIN, OWNER_SQL, Owner, Theirs};
use crate::work::WorkError;

/// A table, and one of its indexes where that is what was named.
pub(super) struct Relation {
    /// The table's oid.
    pub oid: String,
    /// Schema and name of the table, quoted where SQL needs it.
    pub table: String,
    /// The table's schema as it is.
    pub schema: String,
    /// The table's name as it is.
    pub name_as_it_is: String,
    pub partitioned: bool,
    /// LOCK TABLE takes it: no materialized view.
    pub may_be_locked: bool,
    pub index: Option<NamedIndex>,
}

/// An index that was named.
pub(super) struct NamedIndex {
    pub oid: String,
    /// Schema and name, quoted where SQL needs it.
    pub name: String,
}

fn fail<T>(code: ErrorCode, message: String) -> Result<T, WorkError> {
    Err(WorkError::Fail(JobError::new(code, message)))
}

const FIND: &str = "SELECT c.oid, c.relkind, pg_catalog.format('%I.%I', n.nspname, c.relname), n.nspname, c.relname
       FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace";

impl Relation {
    /// Looks a table up as the session's `search_path` has it.
    pub fn find(session: &mut Session, name: &str, action: Action) -> Result<Relation, WorkError> {
        let oid = Named::table("/table", name).oid(session)?;
        let rows = session.query(&format!("{FIND} WHERE c.oid = $1::oid"), &[Some(&oid)])?;
        let text = |column| rows.get(0, column).unwrap_or_default().to_owned();
        let kind = text(1);
        match (kind.as_str(), action) {
            ("", _) => return fail(ErrorCode::TableNotFound, format!("there is no table {name} any more")),
            ("r" | "m" | "p", _) | ("f", Action::Analyze) | ("t", Action::Vacuum) => {}
            _ => return fail(ErrorCode::TableNotFound, format!("{name} is no table that {} is for", action.as_str())),
        }
        Ok(Relation::from(text, None))
    }

    /// Looks an index up, and the table that it is on.
    pub fn of_index(session: &mut Session, name: &str) -> Result<Relation, WorkError> {
        let oid = Named::index("/index", name).oid(session)?;
        let rows = session.query(
            "SELECT c.oid, pg_catalog.format('%I.%I', n.nspname, c.relname), i.indrelid
               FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
              WHERE c.oid = $1::oid",
            &[Some(&oid)],
        )?;
        let text = |column| rows.get(0, column).unwrap_or_default().to_owned();
        if rows.is_empty() {
            return fail(ErrorCode::IndexNotFound, format!("{name} is no index"));
        }
        let index = NamedIndex { oid: text(0), name: text(1) };
        let rows = session.query(&format!("{FIND} WHERE c.oid = $1::oid"), &[Some(&text(2))])?;
        let text = |column| rows.get(0, column).unwrap_or_default().to_owned();
        Ok(Relation::from(text, Some(index)))
    }

    /// A table that was known by its oid; `None` when it is gone.
    pub fn of_oid(session: &mut Session, oid: &str) -> Result<Option<Relation>, WorkError> {
        let rows = session.query(&format!("{FIND} WHERE c.oid = $1::oid"), &[Some(oid)])?;
        let text = |column| rows.get(0, column).unwrap_or_default().to_owned();
        Ok((!rows.is_empty()).then(|| Relation::from(text, None)))
    }

    /// From the columns of a table that were looked up in this order: oid, kind, quoted, schema and name.
    pub fn from(text: impl Fn(usize) -> String, index: Option<NamedIndex>) -> Relation {
        let kind = text(1);
        Relation {
            oid: text(0),
            table: text(2),
            schema: text(3),
            name_as_it_is: text(4),
            partitioned: kind == "p",
            may_be_locked: ["r", "p"].contains(&kind.as_str()),
            index,
        }
    }

    /// What was named.
    pub fn name(&self) -> &str {
        self.index.as_ref().map_or(&self.table, |index| &index.name)
    }

    /// Checks that the role may rebuild, create or drop indexes. Partitions aren't looked at: the server doesn't either.
    pub fn may_be_indexed(&self, session: &mut Session, action: Action) -> Result<(), WorkError> {
        let version = session.server_version();
        let allowed = match version >= HAS_MAINTAIN && action == Action::Reindex {
            true => "pg_catalog.has_table_privilege(c.oid, 'MAINTAIN')",
            false => "pg_catalog.pg_has_role(c.relowner, 'USAGE')",
        };
        let rows = session.query(
            &format!(
                "SELECT current_user, c.relkind = 'm', {OWNER_SQL} FROM pg_catalog.pg_class c
                  WHERE c.oid = $1::oid AND NOT {allowed}"
            ),
            &[Some(&self.oid)],
        )?;
        if !rows.is_empty() {
            let text = |column| rows.get(0, column).unwrap_or_default();
            let theirs = Theirs {
                name: self.table.clone(),
                schema: self.schema.clone(),
                is_view: text(1) == "t",
                role: text(0).to_owned(),
                owner: Owner::from(|column| text(2 + column)),
            };
            return Err(not_allowed(version, action, &[&theirs]));
        }
        self.may_be_written(session)
    }

    /// An index is made in its table's schema, by the role itself.
    pub fn may_get_an_index(&self, session: &mut Session) -> Result<(), WorkError> {
        let rows = session.query(
            "SELECT current_user WHERE NOT pg_catalog.has_schema_privilege($1, 'CREATE')",
            &[Some(&self.schema)],
        )?;
        let Some(role) = rows.get(0, 0) else { return Ok(()) };
        let message = format!("{role}, the role of the target, may not create anything in the schema {}", self.schema);
        let hint = format!(
            "an index is made in its table's schema; in psql, as the schema's owner: GRANT CREATE ON SCHEMA {} TO {}",
            identifier(&self.schema),
            identifier(role)
        );
        Err(WorkError::Fail(JobError::new(ErrorCode::PermissionDenied, message).with_hint(hint)))
    }

    /// A REINDEX that fails on a target that can only be read would leave what nobody may drop.
    fn may_be_written(&self, session: &mut Session) -> Result<(), WorkError> {
        let rows = session.query("SELECT pg_catalog.current_setting('transaction_read_only')", &[])?;
        if rows.get(0, 0) == Some("on") {
            let error = JobError::new(ErrorCode::ReadOnly, "the target can only be read, and indexes are written");
            return Err(WorkError::Fail(error.with_hint("use a target without read_only, and no standby")));
        }
        Ok(())
    }
}
