//! A caller's statement with its parameters: parsed and described by the server, its values encoded for what the server
//! described.
//!
//! The text is sent as it is, alone, as one statement of the extended protocol. Knows no kind.

use std::ffi::CString;

use serde_json::value::RawValue;

use crate::kinds::modifiers::{self, NamedType};
use crate::kinds::params::{self, ParamType};
use crate::kinds::prepare_error::PrepareError;
use crate::pq::{Column, PqError, Session};

/// A statement that the server has described.
pub(super) struct Prepared<'s> {
    sql: &'s str,
    /// The types that parameters name themselves; none at all leaves the choice to the server.
    named: Vec<NamedType>,
    /// The types of its parameters, as the server described them.
    pub parameters: Vec<u32>,
    /// Its columns; none when it returns no rows.
    pub columns: Vec<Column>,
    /// Its parameters in text form; `None` is NULL.
    pub values: Vec<Option<CString>>,
}

impl<'s> Prepared<'s> {
    /// Has the server parse and describe `sql`, and encodes `params` for it. Call [`Prepared::parse`] before it is run:
    /// looking types up takes the place of the unnamed statement.
    pub fn new(session: &mut Session, sql: &'s str, params: &[Box<RawValue>]) -> Result<Prepared<'s>, PrepareError> {
        let named = modifiers::named(session, &params::explicit_types(params))?;
        let statement = session.prepare(sql, &oids(&named))?;
        let mut values = params::encode(params, &classify(session, &statement.params)?)?;
        modifiers::cast(session, &named, &mut values)?;
        Ok(Prepared { sql, named, parameters: statement.params, columns: statement.columns, values })
    }

    /// Makes it the unnamed statement, ready to be run.
    pub fn parse(&self, session: &mut Session) -> Result<(), PqError> {
        session.prepare(self.sql, &self.types()).map(drop)
    }

    /// The types that parameters name themselves; 0, or none at all, leaves the choice to the server.
    pub fn types(&self) -> Vec<u32> {
        oids(&self.named)
    }

    /// The types of its parameters, each with the modifier that its value was cast to, -1 for none.
    pub fn cast_types(&self) -> Vec<(u32, i32)> {
        let modifiers = self.named.iter().map(NamedType::modifier).chain(std::iter::repeat(-1));
        self.parameters.iter().copied().zip(modifiers).collect()
    }
}

fn oids(types: &[NamedType]) -> Vec<u32> {
    types.iter().map(|named| named.oid).collect()
}

/// The oids of the types that parameters name themselves; 0, or none at all, leaves the choice to the server.
pub(super) fn named_types(session: &mut Session, params: &[Box<RawValue>]) -> Result<Vec<u32>, PrepareError> {
    Ok(oids(&modifiers::named(session, &params::explicit_types(params))?))
}

/// The names of types, each an oid and a modifier, as Postgres writes them.
pub(super) fn type_names(session: &mut Session, types: &[(u32, i32)]) -> Result<Vec<String>, PqError> {
    if types.is_empty() {
        return Ok(Vec::new());
    }
    let list = |value: fn(&(u32, i32)) -> i64| {
        let items: Vec<String> = types.iter().map(|one| value(one).to_string()).collect();
        format!("{{{}}}", items.join(","))
    };
    let oids = list(|(oid, _)| i64::from(*oid));
    let modifiers = list(|(_, modifier)| i64::from(*modifier));
    let rows = session.query(
        "SELECT pg_catalog.format_type(oid, modifier)
           FROM ROWS FROM (pg_catalog.unnest($1::pg_catalog.oid[]), pg_catalog.unnest($2::pg_catalog.int4[]))
                WITH ORDINALITY AS t(oid, modifier, n) ORDER BY n",
        &[Some(&oids), Some(&modifiers)],
    )?;
    Ok((0..rows.len()).map(|n| rows.get(n, 0).unwrap_or("unknown").to_owned()).collect())
}

/// What the described types are, domains as what they are over.
pub(super) fn classify(session: &mut Session, oids: &[u32]) -> Result<Vec<ParamType>, PqError> {
    if oids.is_empty() {
        return Ok(Vec::new());
    }
    let list: Vec<String> = oids.iter().map(u32::to_string).collect();
    let rows = session.query(
        "WITH RECURSIVE base (n, oid) AS (
             SELECT n, oid FROM pg_catalog.unnest($1::pg_catalog.oid[]) WITH ORDINALITY AS t(oid, n)
             UNION ALL SELECT n, typbasetype FROM base JOIN pg_catalog.pg_type t USING (oid) WHERE t.typtype = 'd')
         SELECT t.oid IN (114, 3802), t.typcategory = 'A', t.typelem IN (114, 3802), e.typdelim
           FROM base JOIN pg_catalog.pg_type t USING (oid) LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem
          WHERE t.typtype <> 'd' ORDER BY n",
        &[Some(&format!("{{{}}}", list.join(",")))],
    )?;
    let is = |row: usize, column: usize| rows.get(row, column) == Some("t");
    let kind = |row: usize| match () {
        () if is(row, 0) => ParamType::Json,
        () if is(row, 1) => {
            let delimiter = rows.get(row, 3).and_then(|text| text.chars().next()).unwrap_or(',');
            ParamType::Array { of_json: is(row, 2), delimiter }
        }
        () => ParamType::Scalar,
    };
    Ok((0..rows.len()).map(kind).collect())
}
