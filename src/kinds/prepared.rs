//! A caller's statement with its parameters: parsed and described by the server, its values encoded for what the server
//! described.
//!
//! The text is sent as it is, alone, as one statement of the extended protocol. Knows no kind.

use std::ffi::CString;

use serde_json::value::RawValue;

use crate::kinds::modifiers::{self, NamedType};
use crate::kinds::params::{self, ParamError, ParamType};
use crate::pq::{Column, PqError, Session};
use crate::queue::{ErrorCode, JobError};
use crate::work::WorkError;

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

/// Why a statement can't be run.
pub(super) enum PrepareError {
    /// The server says so.
    Server(PqError),
    /// The parameters aren't what the server described.
    Params(ParamError),
    /// The server says so of a value or of its type.
    Placed {
        /// A JSON pointer, such as `/params/0`.
        place: String,
        /// What the job ends with, where it isn't what the server's error says.
        code: Option<ErrorCode>,
        /// The server's error.
        error: Box<PqError>,
    },
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
    /// What the server says of a statement that it plans or runs: about one of its values, where the CONTEXT names
    /// that.
    pub fn of_run(error: PqError) -> PrepareError {
        match value_of(&error) {
            Some(n) => PrepareError::Placed { place: format!("/params/{n}"), code: None, error: Box::new(error) },
            None => PrepareError::Server(error),
        }
    }

    /// The values, or the one of them, that it is about: a JSON pointer such as `/params/0`. The message says so, too.
    pub fn place(&self) -> Option<String> {
        match self {
            PrepareError::Server(_) => None,
            PrepareError::Params(error) => match error.message.split_once(": ") {
                Some((place, _)) if place.starts_with('/') => Some(place.to_owned()),
                _ => Some("/params".to_owned()),
            },
            PrepareError::Placed { place, .. } => Some(place.clone()),
        }
    }

    /// As a failure of the work, the server's errors as `server` has them.
    pub fn or_server(self, server: impl FnOnce(PqError) -> WorkError) -> WorkError {
        match self {
            PrepareError::Server(error) => server(error),
            PrepareError::Params(error) => WorkError::Fail(JobError::new(error.code, error.message)),
            PrepareError::Placed { place, code, error } => {
                let message = format!("{place}: {}", error.message);
                let placed = |error: JobError| JobError {
                    code: code.map_or(error.code, |code| code.as_ref().to_owned()),
                    ..error
                };
                // Its position is one in a statement of ours.
                match WorkError::from(PqError { message, position: None, ..*error }) {
                    WorkError::Fail(error) => WorkError::Fail(placed(error)),
                    other => other,
                }
            }
        }
    }
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

/// The place of the value that the server can't read, from 0: the last line of the CONTEXT names it in every language,
/// as in
/// `unnamed portal parameter $1`. A list of all values, which a server may be set to add, has a colon in front.
fn value_of(error: &PqError) -> Option<usize> {
    let of_data = error.sqlstate.as_deref().is_some_and(|state| state.starts_with("22") || state.starts_with("23"));
    let line = error.context.as_deref().filter(|_| of_data)?.lines().last()?;
    let (before, behind) = line.split_once('$')?;
    let digits = behind.find(|c: char| !c.is_ascii_digit()).unwrap_or(behind.len());
    let number: usize = behind.get(..digits)?.parse().ok()?;
    number.checked_sub(1).filter(|_| !before.trim_end().ends_with(':'))
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

#[cfg(test)]
mod tests {
    use super::value_of;
    use crate::pq::{PqError, PqErrorKind};

    #[test]
    fn the_context_names_the_value() {
        for (state, context, expected) in [
            ("22P02", Some("unnamed portal parameter $2"), Some(1)),
            ("22P02", Some("unbenanntes Portal, Parameter $1 = '$9'"), Some(0)),
            ("23514", Some("SQL function \"f\" statement 1\nunnamed portal parameter $12"), Some(11)),
            ("22P02", Some("unnamed portal with parameters: $1 = 'a'"), None),
            ("22P02", Some("SQL statement \"SELECT $1\"\nPL/pgSQL function f() line 1"), None),
            ("42P01", Some("unnamed portal parameter $2"), None),
            ("22P02", Some("unnamed portal parameter $0"), None),
            ("22P02", None, None),
        ] {
            let mut error = PqError::of(PqErrorKind::Server, "");
            (error.sqlstate, error.context) = (Some(state.to_owned()), context.map(str::to_owned));
            assert_eq!(value_of(&error), expected, "{context:?}");
        }
    }
}
