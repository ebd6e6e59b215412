//! The table or index that is maintained, as the catalog has it, and what the target's role may do with it.

use super::Action;
use crate::kinds::WorkError;
use crate::pq::Session;
use crate::queue::{ErrorCode, JobError};

/// A table, and one of its indexes where that is what was named.
pub(super) struct Relation {
    /// The table's oid.
    pub oid: String,
    /// Schema and name of the table, quoted where SQL needs it.
    pub table: String,
    /// The table's schema, and its name as it is.
    pub schema: String,
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

const FIND: &str = "SELECT c.oid, c.relkind, pg_catalog.format('%I.%I', n.nspname, c.relname), n.nspname
       FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace";

impl Relation {
    /// Looks a table up as the session's `search_path` has it.
    pub fn find(session: &mut Session, name: &str, action: Action) -> Result<Relation, WorkError> {
        let rows = session.query(&format!("{FIND} WHERE c.oid = pg_catalog.to_regclass($1)"), &[Some(name)])?;
        let text = |column| rows.get(0, column).unwrap_or_default().to_owned();
        let kind = text(1);
        match (kind.as_str(), action) {
            ("", _) => {
                return fail(
                    ErrorCode::TableNotFound,
                    format!("there is no table {name}, or its schema isn't in the search_path"),
                );
            }
            ("r" | "m" | "p", _) | ("f", Action::Analyze) | ("t", Action::Vacuum) => {}
            _ => return fail(ErrorCode::TableNotFound, format!("{name} is no table that {} is for", action.as_str())),
        }
        Ok(Relation::from(text, None))
    }

    /// Looks an index up, and the table that it is on.
    pub fn of_index(session: &mut Session, name: &str) -> Result<Relation, WorkError> {
        let rows = session.query(
            "SELECT c.oid, pg_catalog.format('%I.%I', n.nspname, c.relname), i.indrelid
               FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
              WHERE c.oid = pg_catalog.to_regclass($1)",
            &[Some(name)],
        )?;
        let text = |column| rows.get(0, column).unwrap_or_default().to_owned();
        if rows.is_empty() {
            return fail(
                ErrorCode::IndexNotFound,
                format!("there is no index {name}, or its schema isn't in the search_path"),
            );
        }
        let index = NamedIndex { oid: text(0), name: text(1) };
        let rows = session.query(&format!("{FIND} WHERE c.oid = $1::oid"), &[Some(&text(2))])?;
        let text = |column| rows.get(0, column).unwrap_or_default().to_owned();
        Ok(Relation::from(text, Some(index)))
    }

    fn from(text: impl Fn(usize) -> String, index: Option<NamedIndex>) -> Relation {
        let kind = text(1);
        Relation {
            oid: text(0),
            table: text(2),
            schema: text(3),
            partitioned: kind == "p",
            may_be_locked: ["r", "p"].contains(&kind.as_str()),
            index,
        }
    }

    /// What was named.
    pub fn name(&self) -> &str {
        self.index.as_ref().map_or(&self.table, |index| &index.name)
    }

    /// Checks what the role may do. VACUUM and ANALYZE would only warn, and do nothing; the others would fail later.
    pub fn may_be_maintained(&self, session: &mut Session, action: Action) -> Result<(), WorkError> {
        // From 17 on there is a privilege of its own, and pg_maintain has it on everything.
        let has_maintain = session.server_version() >= 170_000 && action != Action::CreateIndex;
        let maintain = if has_maintain { "pg_catalog.has_table_privilege(c.oid, 'MAINTAIN')" } else { "false" };
        let (owns_database, tree) = match action {
            Action::Vacuum | Action::Analyze => (
                "(NOT c.relisshared AND (SELECT pg_catalog.pg_has_role(d.datdba, 'USAGE') FROM pg_catalog.pg_database d
                   WHERE d.datname = pg_catalog.current_database()))",
                "UNION SELECT relid FROM pg_catalog.pg_partition_tree($1::oid)",
            ),
            Action::Reindex | Action::CreateIndex => ("false", ""),
        };
        let rows = session.query(
            &format!(
                "SELECT pg_catalog.format('%I.%I', n.nspname, c.relname), current_user
                   FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                  WHERE c.oid IN (SELECT $1::oid {tree})
                    AND NOT (pg_catalog.pg_has_role(c.relowner, 'USAGE') OR {owns_database} OR {maintain})
                  ORDER BY 1 LIMIT 1"
            ),
            &[Some(&self.oid)],
        )?;
        if let Some(table) = rows.get(0, 0) {
            let role = rows.get(0, 1).unwrap_or_default();
            let message = format!("{role}, the role of the target, may not {} {table}", action.as_str());
            let grant =
                if has_maintain { format!("GRANT MAINTAIN ON {table} TO {role}, or m") } else { "m".to_owned() };
            let hint = format!("{grant}ake it a member of the table's owner: GRANT … TO {role}");
            return Err(WorkError::Fail(JobError::new(ErrorCode::PermissionDenied, message).with_hint(hint)));
        }
        if [Action::Reindex, Action::CreateIndex].contains(&action) {
            self.may_be_written(session)?;
        }
        Ok(())
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
