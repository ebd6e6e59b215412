//! A caller's statement with its parameters: parsed and described by the server, its values encoded for what the server
//! described.
//!
//! The text is sent as it is, alone, as one statement of the extended protocol. Knows no kind.

use std::ffi::CString;

use serde_json::value::RawValue;

use crate::kinds::WorkError;
use crate::kinds::params::{self, ParamError, ParamType};
use crate::pq::{Column, PqError, Session};
use crate::queue::{ErrorCode, JobError};

/// A statement that the server has described.
pub(super) struct Prepared<'s> {
    sql: &'s str,
    /// The types that parameters name themselves; 0, or none at all, leaves the choice to the server.
    pub types: Vec<u32>,
    /// The types of its parameters, as the server described them.
    pub parameters: Vec<u32>,
    /// Its columns; none when it returns no rows.
    pub columns: Vec<Column>,
    /// Its parameters in text form; `None` is NULL.
    pub values: Vec<Option<CString>>,
}

/// Why a statement can't be run.
pub(super) enum PrepareError {
    /// The server says so.
    Server(PqError),
    /// The parameters aren't what the server described.
    Params(ParamError),
}

impl From<PqError> for PrepareError {
    fn from(error: PqError) -> Self {
        PrepareError::Server(error)
    }
}

impl From<ParamError> for PrepareError {
    fn from(error: ParamError) -> Self {
        PrepareError::Params(error)
    }
}

impl PrepareError {
    /// As a failure of the work, the server's errors as `server` has them.
    pub fn or_server(self, server: impl FnOnce(PqError) -> WorkError) -> WorkError {
        match self {
            PrepareError::Server(error) => server(error),
            PrepareError::Params(error) => WorkError::Fail(JobError::new(error.code, error.message)),
        }
    }
}

impl<'s> Prepared<'s> {
    /// Has the server parse and describe `sql`, and encodes `params` for it. Call [`Prepared::parse`] before it is run:
    /// looking types up takes the place of the unnamed statement.
    pub fn new(session: &mut Session, sql: &'s str, params: &[Box<RawValue>]) -> Result<Prepared<'s>, PrepareError> {
        let types = named_types(session, params)?;
        let statement = session.prepare(sql, &types)?;
        let values = params::encode(params, &classify(session, &statement.params)?)?;
        Ok(Prepared { sql, types, parameters: statement.params, columns: statement.columns, values })
    }

    /// Makes it the unnamed statement, ready to be run.
    pub fn parse(&self, session: &mut Session) -> Result<(), PqError> {
        session.prepare(self.sql, &self.types).map(drop)
    }
}

/// The oids of the types that parameters name themselves; 0, or none at all, leaves the choice to the server.
pub(super) fn named_types(session: &mut Session, params: &[Box<RawValue>]) -> Result<Vec<u32>, PrepareError> {
    let types = params::explicit_types(params);
    if types.iter().all(Option::is_none) {
        return Ok(Vec::new());
    }
    let mut oids = Vec::with_capacity(types.len());
    for (n, name) in types.iter().enumerate() {
        let Some(name) = name else {
            oids.push(0);
            continue;
        };
        let rows = session.query("SELECT to_regtype($1)::oid::text", &[Some(name)])?;
        let oid = rows.get(0, 0).and_then(|text| text.parse().ok());
        oids.push(oid.ok_or_else(|| {
            let message = format!("/params/{n}/type: there is no type {name}");
            ParamError { code: ErrorCode::InvalidParameter, message }
        })?);
    }
    Ok(oids)
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
        "SELECT format_type(oid, modifier) FROM unnest($1::oid[], $2::int[]) WITH ORDINALITY AS t(oid, modifier, n) ORDER BY n",
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
             SELECT n, oid FROM unnest($1::oid[]) WITH ORDINALITY AS t(oid, n)
             UNION ALL SELECT n, typbasetype FROM base JOIN pg_type t USING (oid) WHERE t.typtype = 'd')
         SELECT t.oid IN (114, 3802), t.typcategory = 'A', t.typelem IN (114, 3802), e.typdelim
           FROM base JOIN pg_type t USING (oid) LEFT JOIN pg_type e ON e.oid = t.typelem
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
