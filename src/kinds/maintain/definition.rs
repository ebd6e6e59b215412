//! The index that is to be created: its names looked up, its expressions tried, its SQL, and whether the catalog has
//! it already.
//!
//! Names come from the catalog, quoted. An expression of the caller's stands between two pairs of parentheses, and is
//! refused unless it is a single expression between one pair: so it reaches no word of ours.

use serde_json::json;
use uuid::Uuid;

use super::arguments::{IndexColumn, IndexNulls, IndexOrder};
use super::compare::{Alike, Words, described};
use super::drop::{Dropping, dropping};
use super::indexes::BEING_BUILT;
use super::relation::Relation;
use super::statement::{as_a_job, list};
use super::{IndexMethod, Maintain};
use crate::kinds::backfill::{Misplaced, Params, enclosed, try_expression};
use crate::pq::quote::identifier;
use crate::pq::{PqError, Session};
use crate::queue::{ErrorCode, JobError};
use crate::work::WorkError;

/// An index as it is to be. All but `name` is quoted.
#[derive(Clone)]
pub(super) struct Definition {
    /// Its name as it is.
    pub name: String,
    pub quoted_name: String,
    pub quoted_schema: String,
    pub unique: bool,
    pub nulls_not_distinct: bool,
    pub method: IndexMethod,
    pub keys: Vec<String>,
    /// The argument of each of them.
    pub places: Vec<String>,
    pub included: Vec<String>,
    pub storage: Vec<String>,
    /// Its name as it is, where one was asked for.
    pub tablespace: Option<String>,
    pub condition: Option<String>,
}

/// What there is of an index already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum There {
    /// Nothing by its name.
    Nothing,
    /// It is there and valid.
    Whole,
    /// It is there and of a partitioned table, some of whose partitions lack it.
    Incomplete,
}

/// The columns of these names, quoted.
pub(super) fn quoted_columns(
    session: &mut Session,
    relation: &Relation,
    columns: &[IndexColumn],
) -> Result<Vec<String>, Misplaced> {
    find_columns(session, relation, "/columns", columns.iter().map(IndexColumn::name).enumerate())
}

/// The columns of these names, each with its place in the argument at `pointer`.
fn find_columns<'n>(
    session: &mut Session,
    relation: &Relation,
    pointer: &str,
    names: impl Iterator<Item = (usize, &'n str)>,
) -> Result<Vec<String>, Misplaced> {
    let rows = session.query(
        "SELECT attname, pg_catalog.quote_ident(attname) FROM pg_catalog.pg_attribute
          WHERE attrelid = $1::oid AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        &[Some(&relation.oid)],
    )?;
    let text = |row, column| rows.get(row, column).unwrap_or_default();
    let (mut found, mut unknown) = (Vec::new(), Vec::new());
    for (n, name) in names {
        match (0..rows.len()).find(|row| text(*row, 0) == name) {
            Some(row) => found.push(text(row, 1).to_owned()),
            None => unknown.push((n, name)),
        }
    }
    let Some((first, _)) = unknown.first() else { return Ok(found) };
    let known: Vec<&str> = (0..rows.len()).map(|row| text(row, 0)).collect();
    let names: Vec<&str> = unknown.iter().map(|(_, name)| *name).collect();
    let message = format!("{} doesn't have these columns: {}", relation.table, names.join(", "));
    let mut hint = format!("it has: {}", known.join(", "));
    if let Some(expression) = names.iter().find(|name| name.contains(['(', '-', '+', ':', '|'])) {
        hint.push_str(&format!("; an expression of an index is written as {}", json!({"expression": expression})));
    }
    let error = WorkError::Fail(JobError::new(ErrorCode::UnknownColumns, message).with_hint(hint));
    Err(Misplaced::at(format!("{pointer}/{first}"), error))
}

fn find_opclass(session: &mut Session, name: &str, method: IndexMethod) -> Result<String, WorkError> {
    let rows = session.query(
        "SELECT pg_catalog.format('%I.%I', n.nspname, o.opcname)
           FROM pg_catalog.pg_opclass o JOIN pg_catalog.pg_namespace n ON n.oid = o.opcnamespace
           JOIN pg_catalog.pg_am a ON a.oid = o.opcmethod
          WHERE a.amname = $2 AND ((o.opcname = $1 AND pg_catalog.pg_opclass_is_visible(o.oid))
                                   OR n.nspname || '.' || o.opcname = $1)
          ORDER BY o.opcname = $1 DESC LIMIT 1",
        &[Some(name), Some(method.as_str())],
    )?;
    rows.get(0, 0).map(str::to_owned).ok_or_else(|| {
        let message = format!("there is no operator class {name} for the method {}", method.as_str());
        let hint = "name it with its schema, or leave it out for that of the column's type";
        WorkError::Fail(JobError::new(ErrorCode::UnknownOpclass, message).with_hint(hint))
    })
}

fn find_collation(session: &mut Session, name: &str) -> Result<String, WorkError> {
    let rows = session.query(
        "SELECT pg_catalog.format('%I.%I', n.nspname, c.collname)
           FROM pg_catalog.pg_collation c JOIN pg_catalog.pg_namespace n ON n.oid = c.collnamespace
          WHERE c.collencoding IN (-1, (SELECT d.encoding FROM pg_catalog.pg_database d
                                         WHERE d.datname = pg_catalog.current_database()))
            AND ((c.collname = $1 AND pg_catalog.pg_collation_is_visible(c.oid)) OR n.nspname || '.' || c.collname = $1)
          ORDER BY c.collname = $1 DESC LIMIT 1",
        &[Some(name)],
    )?;
    rows.get(0, 0).map(str::to_owned).ok_or_else(|| {
        let hint = "name it with its schema; SELECT collname FROM pg_collation lists what there is";
        let error = JobError::new(ErrorCode::UnknownCollation, format!("there is no collation {name}"));
        WorkError::Fail(error.with_hint(hint))
    })
}

/// The caller's expression, if it is one: with the parentheses that it needs in any place. It knows its table by the bare name:
/// by that one the server compares it with what is there.
fn tried(session: &mut Session, relation: &Relation, pointer: &str, expression: &str) -> Result<String, Misplaced> {
    let from = format!(" FROM {} AS {} WHERE false", relation.table, identifier(&relation.name_as_it_is));
    let parameters = try_expression(session, pointer, expression, &from, Params::default())
        .map_err(|error| error.explained(|error| with_the_bare_name(error, relation)))?;
    if parameters.is_empty() {
        return Ok(enclosed(expression));
    }
    let message = "expected an expression without parameters";
    Err(Misplaced::within(pointer, WorkError::Fail(JobError::new(ErrorCode::ExpressionNotAllowed, message))))
}

fn with_the_bare_name(error: JobError, relation: &Relation) -> JobError {
    match error.sqlstate.as_deref() {
        Some("42P01") => error.with_hint(format!(
            "write a column's name alone, or behind {}, without the schema: an index is of one table",
            identifier(&relation.name_as_it_is)
        )),
        _ => error,
    }
}

impl Definition {
    /// Looks up what the arguments name, and tries their expressions.
    pub fn find(session: &mut Session, args: &Maintain, relation: &Relation) -> Result<Definition, Misplaced> {
        let version = session.server_version() / 10_000;
        if args.nulls_not_distinct == Some(true) && version < 15 {
            let message = format!("nulls_not_distinct needs PostgreSQL 15, and the target is {version}");
            let error = WorkError::Fail(JobError::new(ErrorCode::NotSupported, message));
            return Err(Misplaced::at("/nulls_not_distinct", error));
        }
        let name = args.name.as_deref().unwrap_or_default();
        let quoted = session.query(
            "SELECT pg_catalog.quote_ident($1), pg_catalog.quote_ident($2)",
            &[Some(name), Some(&relation.schema)],
        )?;
        // All of them at once: each that isn't there is named.
        let columns = args.columns.iter().flatten().enumerate();
        let columns = columns.filter_map(|(n, column)| column.column.as_deref().map(|name| (n, name)));
        find_columns(session, relation, "/columns", columns)?;
        let (mut keys, mut places) = (Vec::new(), Vec::new());
        let method = args.method.unwrap_or_default();
        for (n, column) in args.columns.iter().flatten().enumerate() {
            keys.push(key(session, relation, method, n, column)?);
            let what = if column.expression.is_some() { "/expression" } else { "" };
            places.push(format!("/columns/{n}{what}"));
        }
        let condition = args.condition.as_deref();
        let condition = condition.map(|condition| tried(session, relation, "/where", condition)).transpose()?;
        let include = args.include.as_deref().unwrap_or_default();
        Ok(Definition {
            name: name.to_owned(),
            quoted_name: quoted.get(0, 0).unwrap_or_default().to_owned(),
            quoted_schema: quoted.get(0, 1).unwrap_or_default().to_owned(),
            unique: args.unique.unwrap_or(false),
            nulls_not_distinct: args.nulls_not_distinct.unwrap_or(false),
            method,
            keys,
            places,
            included: find_columns(session, relation, "/include", include.iter().map(String::as_str).enumerate())?,
            storage: args.with.as_ref().map(super::StorageParameters::sql).unwrap_or_default(),
            tablespace: args.tablespace.clone(),
            condition,
        })
    }

    /// Schema and name, quoted where SQL needs it: an index is where its table is.
    pub fn qualified(&self) -> String {
        format!("{}.{}", self.quoted_schema, self.quoted_name)
    }

    /// CREATE INDEX of this definition on the table of its name.
    pub fn create(&self, concurrently: bool, table: &str) -> String {
        self.create_as(concurrently, &self.quoted_name, table)
    }

    /// As [`Definition::create`], of another name, quoted, for another table. `table` may begin with ONLY.
    pub fn create_as(&self, concurrently: bool, quoted_name: &str, table: &str) -> String {
        let tablespace = self.tablespace.as_deref().map(identifier);
        let tablespace = tablespace.map(|name| format!(" TABLESPACE {name}")).unwrap_or_default();
        let concurrently = if concurrently { " CONCURRENTLY" } else { "" };
        self.sql(concurrently, quoted_name, table, &tablespace)
    }

    pub(super) fn sql(&self, concurrently: &str, quoted_name: &str, table: &str, tablespace: &str) -> String {
        let unique = if self.unique { " UNIQUE" } else { "" };
        let behind = |word: &str, items: &[String]| match items {
            [] => String::new(),
            items => format!(" {word}{}", list(items)),
        };
        let nulls = if self.nulls_not_distinct { " NULLS NOT DISTINCT" } else { "" };
        let condition = self.condition.as_ref().map(|condition| format!(" WHERE {condition}")).unwrap_or_default();
        format!(
            "CREATE{unique} INDEX{concurrently} {quoted_name} ON {table} USING {}{}{}{nulls}{}{tablespace}{condition}",
            self.method.as_str(),
            list(&self.keys),
            behind("INCLUDE", &self.included),
            behind("WITH", &self.storage),
        )
    }

    /// What there is by its name: nothing, or just this index.
    ///
    /// # Errors
    /// When there is something else by this name.
    pub fn is_there(&self, session: &mut Session, relation: &Relation) -> Result<There, WorkError> {
        let rows = session.query(
            &format!(
                "SELECT i.indrelid = $2::oid, i.indisvalid AND i.indisready AND i.indislive, x.relkind = 'I',
                        coalesce({BEING_BUILT}, false), x.oid, i.indrelid::pg_catalog.regclass
                   FROM pg_catalog.pg_class x JOIN pg_catalog.pg_namespace n ON n.oid = x.relnamespace
                   LEFT JOIN pg_catalog.pg_index i ON i.indexrelid = x.oid
                  WHERE n.nspname = $3 AND x.relname = $1"
            ),
            &[Some(&self.name), Some(&relation.oid), Some(&relation.schema)],
        )?;
        if rows.is_empty() {
            return Ok(There::Nothing);
        }
        let is = |column| rows.get(0, column) == Some("t");
        let (of_this_table, valid, partitioned, being_built) = (is(0), is(1), is(2), is(3));
        let name = self.qualified();
        let exists = |message: String| JobError::new(ErrorCode::IndexExists, message);
        match (of_this_table, valid || partitioned, being_built) {
            (true, true, _) => {}
            (true, false, true) => {
                return Err(WorkError::Retry(
                    exists(format!("{name} is being built by somebody else at the moment")).retryable(),
                ));
            }
            (true, false, false) => {
                let hint = if_nobody_needs(session, rows.get(0, 4).unwrap_or_default(), &name)?;
                return Err(WorkError::Fail(exists(invalid(&name)).with_hint(hint)));
            }
            (false, ..) => {
                let of = rows.get(0, 5).map(|table| format!(" an index of {table}"));
                let what = of.unwrap_or_else(|| " no index".to_owned());
                let message = format!("{name} is there, and is{what}");
                return Err(WorkError::Fail(exists(message).with_hint("choose another name")));
            }
        }
        let oid = rows.get(0, 4).unwrap_or_default().to_owned();
        self.must_be(session, relation, &oid)?;
        Ok(if valid { There::Whole } else { There::Incomplete })
    }

    /// Compares an index of the table with what the server makes of this definition.
    fn must_be(&self, session: &mut Session, relation: &Relation, oid: &str) -> Result<(), WorkError> {
        let name = self.qualified();
        let fail = |session: &mut Session, message: String| {
            let hint = format!("choose another name; or, {}", if_nobody_needs(session, oid, &name)?);
            Err(WorkError::Fail(JobError::new(ErrorCode::IndexExists, message).with_hint(hint)))
        };
        let there = described(session, "i.indexrelid = $1::oid", &[Some(oid)])?.into_iter().next();
        let Some(there) = there else { return fail(session, format!("{name} was there, and is gone")) };
        let wanted = match self.as_the_server_has_it(session, relation)? {
            Ok(wanted) => wanted,
            Err(error) => {
                return fail(
                    session,
                    format!("{name} is there, and can't be compared with what is wanted: {}", error.message),
                );
            }
        };
        let (wanted, alike) = match &self.tablespace {
            Some(tablespace) => (wanted.in_tablespace(tablespace), Alike::HereAndThere),
            None => (wanted, Alike::Here),
        };
        let differences = there.words.differences(&wanted, alike);
        if differences.is_empty() {
            return Ok(());
        }
        fail(session, format!("{name} is there with another definition: it differs in {}", differences.join("; ")))
    }

    /// A name for a copy of the table, quoted, and one for its index as it is: of the same name where that can be, for an expression may name
    /// its table.
    pub(super) fn copy(session: &mut Session, relation: &Relation) -> Result<(String, String), WorkError> {
        let may_temp = session
            .query("SELECT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'TEMPORARY')", &[])?;
        let (schema, copy) = match may_temp.get(0, 0) {
            Some("t") => ("pg_temp".to_owned(), relation.name_as_it_is.clone()),
            _ => (identifier(&relation.schema), format!("slowlane_{}", Uuid::now_v7().simple())),
        };
        Ok((format!("{schema}.{}", identifier(&copy)), format!("slowlane_{}", Uuid::now_v7().simple())))
    }

    /// What the server makes of this definition: of an index of an empty table with the same columns, in a
    /// transaction that is rolled back. `Err` within: the server takes no such index.
    fn as_the_server_has_it(
        &self,
        session: &mut Session,
        relation: &Relation,
    ) -> Result<Result<Words, PqError>, WorkError> {
        let (table, index) = Definition::copy(session, relation)?;
        session.execute_batch("BEGIN")?;
        let compared =
            session.execute_batch(&format!("CREATE TABLE {table} (LIKE {})", relation.table)).and_then(|()| {
                session.execute_batch(&self.sql("", &identifier(&index), &table, ""))?;
                described(session, "i.indrelid = pg_catalog.to_regclass($1)", &[Some(&table)])
            });
        session.execute_batch("ROLLBACK")?;
        match compared {
            Ok(found) => Ok(Ok(found.into_iter().next().map(|index| index.words).unwrap_or_default())),
            Err(error) if error.retryable() || error.sqlstate.as_deref() == Some("57014") => Err(error.into()),
            Err(error) => Ok(Err(error)),
        }
    }
}

fn invalid(name: &str) -> String {
    format!("{name} is there, and is invalid: a build that was not finished has left it, or a drop")
}

/// How an index is got rid of: only what would be done.
fn if_nobody_needs(session: &mut Session, oid: &str, name: &str) -> Result<String, WorkError> {
    let job = match dropping(session, oid)? {
        Dropping::Concurrently => json!({"action": "drop_index", "index": name}),
        Dropping::Exclusively => {
            json!({"action": "drop_index", "index": name, "concurrently": false, "allow_exclusive_lock": true})
        }
        Dropping::Not(why) => return Ok(format!("it can't be dropped by itself, for {why}")),
    };
    Ok(format!(
        "if nobody needs it, drop it by {} and submit this job again; what a job of slowlane's left that has ended is \
         dropped by itself within a minute, once nobody is in the way",
        as_a_job(&job)
    ))
}

/// One element of the key, as it stands in SQL.
fn key(
    session: &mut Session,
    relation: &Relation,
    method: IndexMethod,
    n: usize,
    column: &IndexColumn,
) -> Result<String, Misplaced> {
    let at = |what: &str, error: WorkError| Misplaced::at(format!("/columns/{n}/{what}"), error);
    let mut text = match &column.expression {
        Some(expression) => tried(session, relation, &format!("/columns/{n}/expression"), expression)?,
        None => find_columns(session, relation, "/columns", std::iter::once((n, column.name())))?.join(""),
    };
    if let Some(collation) = &column.collation {
        text.push_str(&format!(
            " COLLATE {}",
            find_collation(session, collation).map_err(|error| at("collation", error))?
        ));
    }
    if let Some(opclass) = &column.opclass {
        text.push_str(&format!(" {}", find_opclass(session, opclass, method).map_err(|error| at("opclass", error))?));
    }
    text.push_str(match column.order {
        Some(IndexOrder::Asc) => " ASC",
        Some(IndexOrder::Desc) => " DESC",
        None => "",
    });
    text.push_str(match column.nulls {
        Some(IndexNulls::First) => " NULLS FIRST",
        Some(IndexNulls::Last) => " NULLS LAST",
        None => "",
    });
    Ok(text)
}
