//! The table as the catalog has it, and the key by which it is gone through.

use crate::kinds::names::Named;
use crate::pq::Session;
use crate::pq::quote::{identifier, text_array};
use crate::queue::{ErrorCode, JobError};
use crate::work::WorkError;

/// The first half of the advisory lock that a heavy writer of a table holds; the second is the table's oid.
const WRITER_LOCK: i32 = 0x736c_6f77;

/// A table.
pub(super) struct Table {
    pub oid: String,
    /// Schema and name, quoted.
    pub name: String,
    /// Rows, as the planner has them. `None` when nobody has counted yet.
    pub estimate: Option<i64>,
    columns: Vec<Column>,
}

/// The columns by which a table is gone through, in the order of an index.
pub(super) struct Key {
    pub names: Vec<String>,
    /// The schema, quoted, in which the index's own operators are. `None` where the session finds them by itself.
    pub operators: Option<String>,
    /// Which columns these are, their types and collations: in another order of rows a place among them means nothing.
    pub shape: Vec<String>,
    /// Of each, how its values are written and read.
    pub forms: Vec<Form>,
}

/// How a value of a key becomes a text and a value again.
#[derive(Clone, Debug, Default)]
pub(super) struct Form {
    /// The type as which it is read, where the server can't tell it from its operator: a composite type.
    pub read_as: Option<String>,
    /// It is written as a number: the text of a `regclass` and its like is a name, which isn't always one that leads
    /// back.
    pub as_oid: bool,
    /// It is written as a number: an amount of money is written in the way of `lc_monetary`, which reads another one's
    /// as another amount.
    pub money: bool,
}

struct Column {
    name: String,
    /// Its number, type and collation.
    shape: String,
    not_null: bool,
    /// The server makes its values: GENERATED ALWAYS.
    generated: bool,
    /// GENERATED ALWAYS AS IDENTITY: values can be given to a new row, and not be changed.
    identity: bool,
    form: Form,
}

/// In which directions an index may order its columns.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Directions {
    /// All ascending, or all descending.
    Alike,
    /// Each its own.
    Any,
}

fn fail<T>(code: ErrorCode, message: String, hint: &str) -> Result<T, WorkError> {
    let error = JobError::new(code, message);
    Err(WorkError::Fail(if hint.is_empty() { error } else { error.with_hint(hint) }))
}

impl Table {
    /// Looks a name up as the session's `search_path` has it. `pointer` says which argument it is.
    pub fn find(session: &mut Session, pointer: &str, name: &str) -> Result<Table, WorkError> {
        let found = Named::table(pointer, name).oid(session)?;
        let rows = session.query(
            "SELECT c.oid, n.nspname, c.relname, c.relkind,
                    (SELECT sum(p.reltuples)::bigint FROM pg_catalog.pg_class p
                      WHERE p.reltuples >= 0 AND p.relkind = 'r'
                        AND (p.oid = c.oid OR p.oid IN (SELECT relid FROM pg_catalog.pg_partition_tree(c.oid))))
               FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
              WHERE c.oid = $1::oid",
            &[Some(&found)],
        )?;
        let text = |column| rows.get(0, column).unwrap_or_default().to_owned();
        match text(3).as_str() {
            "" => {
                return fail(ErrorCode::TableNotFound, format!("there is no table {name} any more"), "");
            }
            "r" | "p" => {}
            _ => {
                let message = format!("{name} is no table of this database with rows of its own");
                return fail(ErrorCode::TableNotFound, message, "name the table itself, not a view of it");
            }
        }
        let oid = text(0);
        let columns = columns(session, &oid)?;
        let estimate = rows.get(0, 4).and_then(|rows| rows.parse().ok());
        Ok(Table { name: format!("{}.{}", identifier(&text(1)), identifier(&text(2))), oid, estimate, columns })
    }

    /// The column `name`, which the table has and doesn't fill itself; `whose` says where the name comes from. `new`:
    /// for new rows, whose identity may be given.
    pub fn check(&self, name: &str, whose: &str, new: bool) -> Result<(), WorkError> {
        let Some(column) = self.columns.iter().find(|column| column.name == name) else {
            let known: Vec<&str> = self.columns.iter().map(|column| column.name.as_str()).collect();
            let message = format!("{whose} names the column {name}, which {} doesn't have", self.name);
            return fail(ErrorCode::UnknownColumns, message, &format!("it has: {}", known.join(", ")));
        };
        if column.generated || (column.identity && !new) {
            return fail(ErrorCode::GeneratedColumn, format!("{} makes the values of {name} itself", self.name), "");
        }
        Ok(())
    }

    /// Values are given for a column whose identity the server would make.
    pub fn has_identity(&self, names: &[String]) -> bool {
        self.columns.iter().any(|column| column.identity && names.contains(&column.name))
    }

    /// The columns by which the table is gone through: those of a btree index, from its first column on, none of them
    /// nullable. `None` is the primary key.
    pub fn key(&self, session: &mut Session, named: Option<&[String]>) -> Result<Key, WorkError> {
        let key = match named {
            Some(columns) => columns.to_vec(),
            None => self.primary_key(session)?,
        };
        let unknown = key.iter().find(|name| self.columns.iter().all(|column| column.name != **name));
        if let Some(name) = unknown {
            return fail(
                ErrorCode::UnknownColumns,
                format!("key names the column {name}, which {} doesn't have", self.name),
                "",
            );
        }
        let nullable = |name: &&String| self.columns.iter().any(|column| column.name == **name && !column.not_null);
        if let Some(name) = key.iter().find(nullable) {
            let message =
                format!("{name} of {} may be NULL: such rows have no place in the order of the key", self.name);
            return fail(
                ErrorCode::NullableKey,
                message,
                "name the columns of another index in key, or make them NOT NULL",
            );
        }
        let Some(index) = self.index(session, &key, Directions::Alike)? else {
            let mixed = self.index(session, &key, Directions::Any)?.is_some();
            let names = key.join(", ");
            let message = match mixed {
                true => format!(
                    "the btree index of {} that begins with {names} has mixed directions (ASC and DESC): it can't be gone through in \
                     the order of the key",
                    self.name
                ),
                false => format!("no btree index of {} begins with {names}", self.name),
            };
            let hint = "create an index on these columns, in this order, all ascending or all descending, by the action \
                        create_index of a maintain job";
            return fail(ErrorCode::NoKeyIndex, message, hint);
        };
        let operators = self.operators(session, &index, &key)?;
        let shape_of = |name: &String| self.columns.iter().find(|column| column.name == *name);
        let shape = key.iter().filter_map(shape_of).map(|column| column.shape.clone()).collect();
        let forms = key.iter().filter_map(shape_of).map(|column| column.form.clone()).collect();
        Ok(Key { names: key, operators, shape, forms })
    }

    /// Where the operators by which an index orders its rows are found. The order of rows is always theirs; an operator
    /// that is only named is looked for in the session's `search_path`, and of a type from elsewhere another one would
    /// be taken without a word (`text <= text` for `citext`).
    fn operators(&self, session: &mut Session, index: &str, key: &[String]) -> Result<Option<String>, WorkError> {
        let rows = session.query(
            "SELECT pg_catalog.count(DISTINCT o.oprnamespace), pg_catalog.bool_and(pg_catalog.pg_operator_is_visible(o.oid)),
                    pg_catalog.min(pg_catalog.quote_ident(n.nspname))
               FROM pg_catalog.pg_index i
              CROSS JOIN LATERAL pg_catalog.generate_series(0, $2::int - 1) k
               JOIN pg_catalog.pg_opclass c ON c.oid = i.indclass[k]
               JOIN pg_catalog.pg_amop p ON p.amopfamily = c.opcfamily AND p.amoplefttype = c.opcintype
                    AND p.amoprighttype = c.opcintype AND p.amoppurpose = 's'
               JOIN pg_catalog.pg_operator o ON o.oid = p.amopopr
               JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace
              WHERE i.indexrelid = $1::oid",
            &[Some(index), Some(&key.len().to_string())],
        )?;
        match (rows.get(0, 1), rows.get(0, 0)) {
            (Some("t"), _) => Ok(None),
            (_, Some("1")) => Ok(rows.get(0, 2).map(str::to_owned)),
            _ => {
                let message = format!(
                    "the types of {} compare by operators of several schemas, some of which aren't in the search_path",
                    key.join(", ")
                );
                let hint = "in psql, as the role of the target itself or a superuser: ALTER ROLE … SET search_path to one with these schemas";
                fail(ErrorCode::NoKeyIndex, message, hint)
            }
        }
    }

    fn primary_key(&self, session: &mut Session) -> Result<Vec<String>, WorkError> {
        let rows = session.query(
            "SELECT a.attname FROM pg_catalog.pg_index i, pg_catalog.generate_series(0, i.indnkeyatts - 1) k
               JOIN pg_catalog.pg_attribute a ON true
              WHERE i.indrelid = $1::oid AND i.indisprimary AND a.attrelid = i.indrelid AND a.attnum = i.indkey[k]
              ORDER BY k",
            &[Some(&self.oid)],
        )?;
        let key: Vec<String> = (0..rows.len()).filter_map(|n| rows.get(n, 0)).map(str::to_owned).collect();
        if key.is_empty() {
            return fail(
                ErrorCode::NoKey,
                format!("{} has no primary key", self.name),
                "name the columns of a btree index in key",
            );
        }
        Ok(key)
    }

    /// An index that begins with these columns; with [`Directions::Alike`] one that gives the rows in the order in
    /// which the columns compare.
    fn index(
        &self,
        session: &mut Session,
        key: &[String],
        directions: Directions,
    ) -> Result<Option<String>, WorkError> {
        let any = if directions == Directions::Any { "t" } else { "f" };
        let rows = session.query(
            "SELECT i.indexrelid FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
                  JOIN pg_catalog.pg_am m ON m.oid = x.relam
                 WHERE i.indrelid = $1::oid AND m.amname = 'btree' AND i.indisvalid AND i.indisready
                   AND i.indpred IS NULL AND i.indnkeyatts >= pg_catalog.cardinality($2::text[])
                   AND NOT EXISTS (
                        SELECT FROM pg_catalog.unnest($2::text[]) WITH ORDINALITY AS w(name, n)
                          LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attname = w.name
                          LEFT JOIN pg_catalog.pg_opclass o ON o.oid = i.indclass[w.n::int - 1]
                         WHERE a.attnum IS DISTINCT FROM i.indkey[w.n::int - 1] OR NOT o.opcdefault
                            OR i.indcollation[w.n::int - 1] <> a.attcollation
                            OR NOT $3::bool AND (i.indoption[w.n::int - 1] & 1) <> (i.indoption[0] & 1)) LIMIT 1",
            &[Some(&self.oid), Some(&text_array(key)), Some(any)],
        )?;
        Ok(rows.get(0, 0).map(str::to_owned))
    }

    /// Becomes the one heavy writer of the table, until the session is given back. `false` when there is another one.
    pub fn lock(&self, session: &mut Session) -> Result<bool, WorkError> {
        // Half of all oids are above the largest integer; what counts is that each has its own.
        let oid = self.oid.parse::<u32>().unwrap_or_default().cast_signed();
        let rows = session.query(
            "SELECT pg_catalog.pg_try_advisory_lock($1::int4, $2::int4)",
            &[Some(&WRITER_LOCK.to_string()), Some(&oid.to_string())],
        )?;
        Ok(rows.get(0, 0) == Some("t"))
    }
}

fn columns(session: &mut Session, oid: &str) -> Result<Vec<Column>, WorkError> {
    let rows = session.query(
        "WITH RECURSIVE base AS (
             SELECT oid AS of, oid, typtype, typbasetype FROM pg_catalog.pg_type
              WHERE oid IN (SELECT atttypid FROM pg_catalog.pg_attribute WHERE attrelid = $1::oid)
              UNION ALL SELECT b.of, t.oid, t.typtype, t.typbasetype
               FROM base b JOIN pg_catalog.pg_type t ON t.oid = b.typbasetype WHERE b.typtype = 'd')
         SELECT attname, attnotnull, attgenerated <> '', attidentity = 'a', pg_catalog.concat_ws(' ', attnum, atttypid, attcollation),
                CASE WHEN b.typtype = 'c' THEN pg_catalog.format_type(b.oid, NULL) END,
                b.oid IN ('pg_catalog.regclass'::pg_catalog.regtype, 'pg_catalog.regcollation'::pg_catalog.regtype,
                          'pg_catalog.regconfig'::pg_catalog.regtype, 'pg_catalog.regdictionary'::pg_catalog.regtype,
                          'pg_catalog.regnamespace'::pg_catalog.regtype, 'pg_catalog.regoper'::pg_catalog.regtype,
                          'pg_catalog.regoperator'::pg_catalog.regtype, 'pg_catalog.regproc'::pg_catalog.regtype,
                          'pg_catalog.regprocedure'::pg_catalog.regtype, 'pg_catalog.regrole'::pg_catalog.regtype,
                          'pg_catalog.regtype'::pg_catalog.regtype),
                b.oid = 'pg_catalog.money'::pg_catalog.regtype
           FROM pg_catalog.pg_attribute LEFT JOIN base b ON b.of = atttypid AND b.typtype <> 'd'
          WHERE attrelid = $1::oid AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        &[Some(oid)],
    )?;
    let is = |n: usize, column: usize| rows.get(n, column) == Some("t");
    let column = |n| Column {
        name: rows.get(n, 0).unwrap_or_default().to_owned(),
        not_null: is(n, 1),
        generated: is(n, 2),
        identity: is(n, 3),
        shape: rows.get(n, 4).unwrap_or_default().to_owned(),
        form: Form { read_as: rows.get(n, 5).map(str::to_owned), as_oid: is(n, 6), money: is(n, 7) },
    };
    Ok((0..rows.len()).map(column).collect())
}
