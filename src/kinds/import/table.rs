//! The table that rows go into, as the catalog has it.

use crate::kinds::import::names;
use crate::kinds::import::shape::{self, Shape};
use crate::kinds::names::Named;
use crate::pq::Session;
use crate::pq::quote::identifier;
use crate::queue::{ErrorCode, JobError};
use crate::work::WorkError;

/// A column.
#[derive(Clone, Debug)]
pub(super) struct Column {
    pub name: String,
    /// The server makes its values.
    pub generated: bool,
    /// GENERATED ALWAYS AS IDENTITY: values can be given, and not be changed.
    pub identity: bool,
    /// What a row gets that has no value for it, as an expression of its type. `None` is NULL.
    pub default: Option<String>,
    /// The type that it is over, where it is a domain.
    pub base: Option<String>,
    pub shape: Shape,
}

/// A table.
pub(super) struct Table {
    pub oid: String,
    /// Schema and name, quoted.
    pub name: String,
    pub schema: String,
    /// As the server's CONTEXT has it.
    pub bare_name: String,
    pub columns: Vec<Column>,
    /// No trigger looks at a COPY as a whole: several do as well as one, and an error shows at the end of each.
    pub may_split: bool,
    pub partitioned: bool,
}

fn fail<T>(code: ErrorCode, message: String) -> Result<T, WorkError> {
    Err(WorkError::Fail(JobError::new(code, message)))
}

impl Table {
    /// Looks a name up as the session's `search_path` has it.
    pub fn find(session: &mut Session, name: &str) -> Result<Table, WorkError> {
        let found = Named::table("/table", name).oid(session)?;
        let rows = session.query(
            // A trigger counts when it looks at inserts (the bit 4 of its type), unless it is one of a row before that is
            // stored (1 and 2) whose function, being volatile, sees the rows before it anyway; or one of a constraint
            // that no later row can satisfy: a unique one, or a reference to another table.
            "SELECT c.oid, n.nspname, c.relname, c.relkind,
                    NOT EXISTS (
                        SELECT FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc f ON f.oid = t.tgfoid
                          LEFT JOIN pg_catalog.pg_constraint k ON k.oid = t.tgconstraint
                         WHERE (t.tgrelid = c.oid OR t.tgrelid IN (SELECT relid FROM pg_catalog.pg_partition_tree(c.oid)))
                           AND t.tgtype & 4 <> 0
                           AND NOT (t.tgtype & 3 = 3 AND f.provolatile = 'v')
                           AND NOT (t.tgisinternal AND coalesce(
                                    k.contype IN ('u', 'x') OR k.contype = 'f' AND k.confrelid <> c.oid
                                        AND k.confrelid NOT IN (
                                            SELECT relid FROM pg_catalog.pg_partition_tree(
                                                coalesce(pg_catalog.pg_partition_root(c.oid), c.oid))), false))),
                    pg_catalog.row_security_active(c.oid)
               FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
              WHERE c.oid = $1::oid",
            &[Some(&found)],
        )?;
        let text = |column| rows.get(0, column).unwrap_or_default().to_owned();
        match text(3).as_str() {
            "" => {
                return fail(ErrorCode::TableNotFound, format!("there is no table {name} any more"));
            }
            "r" | "p" => {}
            _ => return fail(ErrorCode::TableNotFound, format!("{name} is no table that rows can be stored in")),
        }
        if text(5) == "t" {
            // COPY would refuse it too, but not the statement that merges rows.
            let message = format!("{name} has row-level security, which COPY can't keep");
            let error = JobError::new(ErrorCode::RowLevelSecurity, message);
            return Err(WorkError::Fail(
                error.with_hint("import into another table, and store its rows by an execute job"),
            ));
        }
        let oid = text(0);
        let name = format!("{}.{}", identifier(&text(1)), identifier(&text(2)));
        let columns = columns(session, &oid, &name)?;
        Ok(Table {
            oid,
            name,
            schema: text(1),
            bare_name: text(2),
            columns,
            may_split: text(4) == "t",
            partitioned: text(3) == "p",
        })
    }

    /// The columns that values can be given for.
    pub fn writable(&self) -> impl Iterator<Item = &Column> {
        self.columns.iter().filter(|column| !column.generated)
    }

    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// Checks the names of columns that rows are to fill; `whose` says where they come from.
    pub fn check(&self, names: &[String], whose: &str) -> Result<(), WorkError> {
        let known: Vec<&str> = self.columns.iter().map(|column| column.name.as_str()).collect();
        if let Some((unknown, hint)) = names::unknown(names, &known) {
            let writable: Vec<String> = self.writable().map(|column| names::shown(&column.name)).collect();
            let message = format!("{whose} names columns that {} doesn't have: {unknown}", self.name);
            let has = format!("it has: {}", writable.join(", "));
            let hint = hint.map_or(has.clone(), |hint| format!("{hint}; {has}"));
            return Err(WorkError::Fail(JobError::new(ErrorCode::UnknownColumns, message).with_hint(hint)));
        }
        for (n, name) in names.iter().enumerate() {
            if self.column(name).is_some_and(|column| column.generated) {
                return fail(
                    ErrorCode::GeneratedColumn,
                    format!("{} makes the values of {name} itself: leave it out", self.name),
                );
            }
            if names.get(..n).unwrap_or_default().contains(name) {
                let first = names.iter().position(|earlier| earlier == name).unwrap_or_default();
                let message = format!(
                    "{whose} names the column {name} twice: names {} and {} are the same",
                    first.saturating_add(1),
                    n.saturating_add(1)
                );
                let hint = "give one of them another name, or leave it out of the file; where they are right in another order, name \
                            the columns in `columns`: then the header isn't read";
                return Err(WorkError::Fail(JobError::new(ErrorCode::DuplicateColumns, message).with_hint(hint)));
            }
        }
        Ok(())
    }
}

fn columns(session: &mut Session, oid: &str, table: &str) -> Result<Vec<Column>, WorkError> {
    // An identity's default is its sequence, a column's own default goes before that of its domain.
    let rows = session.query(
        "SELECT a.attname, a.attgenerated <> '', a.attidentity = 'a', a.atttypid,
                CASE WHEN a.attgenerated <> '' THEN NULL
                     WHEN a.attidentity <> '' THEN pg_catalog.format('pg_catalog.nextval(%L::pg_catalog.regclass)',
                                                       pg_catalog.pg_get_serial_sequence($2, a.attname))
                     ELSE coalesce(pg_catalog.pg_get_expr(d.adbin, d.adrelid), pg_catalog.pg_get_expr(t.typdefaultbin, 0),
                                   pg_catalog.quote_literal(t.typdefault)) END,
                pg_catalog.format_type(a.atttypid, -1),
                CASE WHEN t.typtype = 'd' THEN (
                    WITH RECURSIVE base (oid, typtype, over) AS (
                        SELECT t.oid, t.typtype, t.typbasetype
                         UNION ALL
                        SELECT b.oid, b.typtype, b.typbasetype
                          FROM base JOIN pg_catalog.pg_type b ON b.oid = base.over WHERE base.typtype = 'd')
                    SELECT pg_catalog.format_type(base.oid, -1) FROM base WHERE base.typtype <> 'd') END
           FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
           LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
          WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
        &[Some(oid), Some(table)],
    )?;
    let types: Vec<u32> =
        (0..rows.len()).map(|n| rows.get(n, 3).and_then(|oid| oid.parse().ok()).unwrap_or_default()).collect();
    let shapes = shape::shapes(session, &types)?;
    let is = |n: usize, column: usize| rows.get(n, column) == Some("t");
    let text = |n: usize, column: usize| rows.get(n, column).map(str::to_owned);
    let column = |(n, shape)| Column {
        name: text(n, 0).unwrap_or_default(),
        generated: is(n, 1),
        identity: is(n, 2),
        default: text(n, 4).map(|value| format!("CAST({value} AS {})", rows.get(n, 5).unwrap_or_default())),
        base: text(n, 6),
        shape,
    };
    Ok(shapes.into_iter().enumerate().map(column).collect())
}
