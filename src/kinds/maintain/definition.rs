//! The index that is to be created, with its columns looked up, and whether the catalog has it already.

use super::arguments::{IndexColumn, IndexNulls, IndexOrder};
use super::indexes::BEING_BUILT;
use super::relation::Relation;
use super::{IndexMethod, Maintain};
use crate::kinds::WorkError;
use crate::pq::Session;
use crate::queue::{ErrorCode, JobError};

/// The bits of an index column's `indoption`.
const DESCENDING: u8 = 1;
const NULLS_FIRST: u8 = 2;

/// A column of the table.
#[derive(Clone, Debug)]
pub(super) struct Column {
    pub number: String,
    pub quoted: String,
}

/// A column of an index's key.
pub(super) struct Key {
    pub column: Column,
    pub order: Option<IndexOrder>,
    pub nulls: Option<IndexNulls>,
    /// Oid, and name in SQL.
    pub opclass: Option<(String, String)>,
}

impl Key {
    /// As the catalog has order and NULLs.
    fn option(&self) -> u8 {
        let descending = self.order == Some(IndexOrder::Desc);
        let first = self.nulls.map_or(descending, |nulls| nulls == IndexNulls::First);
        u8::from(descending) * DESCENDING + u8::from(first) * NULLS_FIRST
    }
}

/// An index as it is to be.
pub(super) struct Definition {
    /// Its name as it is.
    pub name: String,
    pub quoted_name: String,
    quoted_schema: String,
    pub unique: bool,
    pub method: IndexMethod,
    pub keys: Vec<Key>,
    pub included: Vec<Column>,
}

/// The columns of these names, quoted.
pub(super) fn quoted_columns(
    session: &mut Session,
    relation: &Relation,
    columns: &[IndexColumn],
) -> Result<Vec<String>, WorkError> {
    let found = find_columns(session, relation, columns.iter().map(|column| column.column.as_str()))?;
    Ok(found.into_iter().map(|column| column.quoted).collect())
}

fn find_columns<'n>(
    session: &mut Session,
    relation: &Relation,
    names: impl Iterator<Item = &'n str>,
) -> Result<Vec<Column>, WorkError> {
    let rows = session.query(
        "SELECT attname, attnum, pg_catalog.quote_ident(attname) FROM pg_catalog.pg_attribute
          WHERE attrelid = $1::oid AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        &[Some(&relation.oid)],
    )?;
    let text = |row, column| rows.get(row, column).unwrap_or_default();
    let (mut found, mut unknown) = (Vec::new(), Vec::new());
    for name in names {
        match (0..rows.len()).find(|row| text(*row, 0) == name) {
            Some(row) => found.push(Column { number: text(row, 1).to_owned(), quoted: text(row, 2).to_owned() }),
            None => unknown.push(name),
        }
    }
    if unknown.is_empty() {
        return Ok(found);
    }
    let known: Vec<&str> = (0..rows.len()).map(|row| text(row, 0)).collect();
    let message = format!("{} doesn't have these columns: {}", relation.table, unknown.join(", "));
    let error = JobError::new(ErrorCode::UnknownColumns, message);
    Err(WorkError::Fail(error.with_hint(format!("it has: {}", known.join(", ")))))
}

fn find_opclass(session: &mut Session, name: &str, method: IndexMethod) -> Result<(String, String), WorkError> {
    let rows = session.query(
        "SELECT o.oid, pg_catalog.format('%I.%I', n.nspname, o.opcname)
           FROM pg_catalog.pg_opclass o JOIN pg_catalog.pg_namespace n ON n.oid = o.opcnamespace
           JOIN pg_catalog.pg_am a ON a.oid = o.opcmethod
          WHERE a.amname = $2 AND ((o.opcname = $1 AND pg_catalog.pg_opclass_is_visible(o.oid))
                                   OR n.nspname || '.' || o.opcname = $1)
          ORDER BY o.opcname = $1 DESC LIMIT 1",
        &[Some(name), Some(method.as_str())],
    )?;
    match (rows.get(0, 0), rows.get(0, 1)) {
        (Some(oid), Some(quoted)) => Ok((oid.to_owned(), quoted.to_owned())),
        _ => {
            let message = format!("there is no operator class {name} for the method {}", method.as_str());
            let hint = "name it with its schema, or leave it out for that of the column's type";
            Err(WorkError::Fail(JobError::new(ErrorCode::UnknownOpclass, message).with_hint(hint)))
        }
    }
}

impl Definition {
    /// Looks up what the arguments name.
    pub fn find(session: &mut Session, args: &Maintain, relation: &Relation) -> Result<Definition, WorkError> {
        if relation.partitioned && args.concurrently() {
            let message = format!("{} is partitioned: no index can be created on it concurrently", relation.table);
            let hint = "create it on each partition; or with concurrently: false and allow_exclusive_lock: true, which \
                        keeps writers out of all partitions until it is built";
            return Err(WorkError::Fail(JobError::new(ErrorCode::NotSupported, message).with_hint(hint)));
        }
        let name = args.name.as_deref().unwrap_or_default();
        let quoted = session.query(
            "SELECT pg_catalog.quote_ident($1), pg_catalog.quote_ident($2)",
            &[Some(name), Some(&relation.schema)],
        )?;
        let method = args.method.unwrap_or_default();
        let columns = args.columns.as_deref().unwrap_or_default();
        let found = find_columns(session, relation, columns.iter().map(|column| column.column.as_str()))?;
        let mut keys = Vec::with_capacity(columns.len());
        for (column, IndexColumn { order, nulls, opclass, .. }) in found.into_iter().zip(columns) {
            let opclass = opclass.as_deref().map(|name| find_opclass(session, name, method)).transpose()?;
            keys.push(Key { column, order: *order, nulls: *nulls, opclass });
        }
        let include = args.include.as_deref().unwrap_or_default();
        Ok(Definition {
            name: name.to_owned(),
            quoted_name: quoted.get(0, 0).unwrap_or_default().to_owned(),
            quoted_schema: quoted.get(0, 1).unwrap_or_default().to_owned(),
            unique: args.unique.unwrap_or(false),
            method,
            keys,
            included: find_columns(session, relation, include.iter().map(String::as_str))?,
        })
    }

    /// Schema and name, quoted where SQL needs it: an index is where its table is.
    pub fn qualified(&self) -> String {
        format!("{}.{}", self.quoted_schema, self.quoted_name)
    }

    /// There is a valid index by this name with just this definition.
    ///
    /// # Errors
    /// When there is something else by this name.
    pub fn is_there(&self, session: &mut Session, relation: &Relation) -> Result<bool, WorkError> {
        let nulls = if session.server_version() >= 150_000 { "i.indnullsnotdistinct" } else { "false" };
        let rows = session.query(
            &format!(
                "SELECT i.indrelid = $2::oid,
                        i.indisvalid AND i.indisready AND i.indislive,
                        a.amname, i.indisunique, i.indkey, i.indoption,
                        i.indpred IS NULL AND i.indexprs IS NULL AND NOT {nulls} AND NOT EXISTS (
                          SELECT FROM ROWS FROM (pg_catalog.unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]),
                                         pg_catalog.unnest(i.indcollation::oid[]))
                                      k(attnum, collated)
                            JOIN pg_catalog.pg_attribute t ON t.attrelid = i.indrelid AND t.attnum = k.attnum
                           WHERE t.attcollation <> k.collated),
                        (SELECT pg_catalog.string_agg(CASE WHEN o.opcdefault THEN 't' ELSE 'f' END, ' ' ORDER BY k.n)
                           FROM pg_catalog.unnest(i.indclass::oid[]) WITH ORDINALITY k(oid, n)
                           JOIN pg_catalog.pg_opclass o ON o.oid = k.oid),
                        i.indclass, coalesce({BEING_BUILT}, false), pg_catalog.pg_get_indexdef(i.indexrelid)
                   FROM pg_catalog.pg_class x JOIN pg_catalog.pg_namespace n ON n.oid = x.relnamespace
                   LEFT JOIN pg_catalog.pg_index i ON i.indexrelid = x.oid
                   LEFT JOIN pg_catalog.pg_am a ON a.oid = x.relam
                  WHERE n.nspname = $3 AND x.relname = $1"
            ),
            &[Some(&self.name), Some(&relation.oid), Some(&relation.schema)],
        )?;
        if rows.is_empty() {
            return Ok(false);
        }
        let text = |column| rows.get(0, column).unwrap_or_default();
        let is = |column| rows.get(0, column) == Some("t");
        let found = Found {
            plain: is(6),
            method: text(2),
            unique: is(3),
            columns: text(4),
            options: text(5),
            defaults: text(7),
            classes: text(8),
        };
        if is(0) && is(1) && self.is(&found) {
            return Ok(true);
        }
        let name = self.qualified();
        Err(match (is(0), is(1), is(9)) {
            (true, false, true) => WorkError::Retry(
                JobError::new(ErrorCode::IndexExists, format!("{name} is being built by somebody else at the moment")).retryable(),
            ),
            (true, false, false) => WorkError::Fail(
                JobError::new(ErrorCode::IndexExists, format!("{name} is there, and is invalid")).with_hint(format!(
                    "if nobody needs it, DROP INDEX CONCURRENTLY {name} and submit the job again; or choose another name"
                )),
            ),
            (true, true, _) => WorkError::Fail(
                JobError::new(ErrorCode::IndexExists, format!("{name} is there with another definition: {}", text(10)))
                    .with_hint("choose another name"),
            ),
            (false, ..) => WorkError::Fail(
                JobError::new(ErrorCode::IndexExists, format!("{name} is there, and no index of {}", relation.table))
                    .with_hint("choose another name"),
            ),
        })
    }

    fn is(&self, found: &Found<'_>) -> bool {
        let all = self.keys.iter().map(|key| &key.column).chain(&self.included);
        let all: Vec<&str> = all.map(|column| column.number.as_str()).collect();
        let options: Vec<String> = self.keys.iter().map(|key| key.option().to_string()).collect();
        let classes = found.defaults.split(' ').zip(found.classes.split(' '));
        let same_class = |(key, (default, class)): (&Key, (&str, &str))| match &key.opclass {
            Some((oid, _)) => oid == class,
            None => default == "t",
        };
        found.plain
            && found.method == self.method.as_str()
            && found.unique == self.unique
            && found.columns == all.join(" ")
            && found.options == options.join(" ")
            && self.keys.iter().zip(classes).all(same_class)
    }
}

/// An index as the catalog has it. Lists are separated by blanks.
struct Found<'r> {
    /// No predicate, no expression, no collation of its own, and NULLs that aren't equal.
    plain: bool,
    method: &'r str,
    unique: bool,
    /// The numbers of all columns, those that are included last.
    columns: &'r str,
    /// One for each column of the key, as the next two.
    options: &'r str,
    /// The operator class is that of the type.
    defaults: &'r str,
    classes: &'r str,
}
