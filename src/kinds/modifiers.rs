//! Types that values name themselves, with their modifiers: `numeric(10,2)`, `varchar(2)`, `interval year`, a domain
//! over one of these.
//!
//! The protocol gives a parameter a type and no modifier. So the server casts such a value before it is sent, and the
//! statement gets what an explicit cast makes of it. A type's name is a caller's text: the server reads it as the name
//! of a type and as nothing else, and what is run has the name that the catalog writes. Knows no kind and no JSON.

use std::ffi::CString;

use crate::kinds::params::ParamError;
use crate::kinds::prepare_error::PrepareError;
use crate::pq::{PqError, PqErrorKind, Session, TransactionStatus};
use crate::queue::ErrorCode;

const TEXT: u32 = 25;
const INTERVAL: u32 = 1186;
/// Names without parentheses that stand for a type without a modifier, of those types that may have one all the same:
/// `char` is
/// `char(1)`, `bit` is `bit(1)`, and `interval year` has its modifier in words.
const PLAIN: [&str; 4] = ["interval", "interval[]", "bpchar", "bpchar[]"];
/// What is read back has to be the same value once more: a time zone in letters may be another one, and a float may
/// lose digits. Neither changes how a text is read.
const EXACT: &str = "SET LOCAL DateStyle = 'ISO'; SET LOCAL extra_float_digits = 1";

/// A type that a value names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NamedType {
    /// The type; 0 leaves the choice to the server.
    pub oid: u32,
    modified: Option<Modified>,
}

/// A type with a modifier, or a domain over one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Modified {
    /// As the catalog writes it.
    name: String,
    /// The type below all domains.
    base: u32,
    modifier: i32,
    is_domain: bool,
}

impl NamedType {
    /// No type is named.
    const NONE: NamedType = NamedType { oid: 0, modified: None };

    /// The modifier that the type shows, -1 for none.
    pub fn modifier(&self) -> i32 {
        self.modified.as_ref().filter(|modified| !modified.is_domain).map_or(-1, |modified| modified.modifier)
    }
}

/// Looks up the types that values name, each once; none at all where none is named.
pub(super) fn named(session: &mut Session, names: &[Option<String>]) -> Result<Vec<NamedType>, PrepareError> {
    if names.iter().all(Option::is_none) {
        return Ok(Vec::new());
    }
    let mut types: Vec<NamedType> = Vec::with_capacity(names.len());
    for (n, name) in names.iter().enumerate() {
        let known = names.iter().take(n).position(|earlier| earlier == name).and_then(|at| types.get(at)).cloned();
        types.push(match (name, known) {
            (None, _) => NamedType::NONE,
            (Some(_), Some(known)) => known,
            (Some(name), None) => look_up(session, name).map_err(|error| error.of_type(n, name))?,
        });
    }
    Ok(types)
}

/// Why a type can't be had.
enum Unusable {
    /// There is none of this name.
    Unknown,
    /// The catalog has no name for it that stands for the same type.
    Nameless,
    /// The server says so.
    Server(Box<PqError>),
}

impl From<PqError> for Unusable {
    fn from(error: PqError) -> Self {
        Unusable::Server(Box::new(error))
    }
}

impl Unusable {
    fn of_type(self, n: usize, name: &str) -> PrepareError {
        let place = format!("/params/{n}/type");
        let refused = |what: String| {
            PrepareError::Params(ParamError { code: ErrorCode::InvalidParameter, message: format!("{place}: {what}") })
        };
        match self {
            Unusable::Unknown => refused(format!("there is no type {name}")),
            Unusable::Nameless => {
                refused(format!("no value can be cast to {name}: the type doesn't write its modifier"))
            }
            Unusable::Server(error) => at(place, Some(ErrorCode::InvalidParameter), *error),
        }
    }
}

/// An error about a value, unless it is one of the connection.
fn at(place: String, code: Option<ErrorCode>, error: PqError) -> PrepareError {
    match error.kind {
        PqErrorKind::Server if !error.retryable() => PrepareError::Placed { place, code, error: Box::new(error) },
        _ => PrepareError::Server(error),
    }
}

fn look_up(session: &mut Session, name: &str) -> Result<NamedType, Unusable> {
    // to_regtype reads the name of a type, modifier included, and nothing behind it.
    let rows = session.query(
        "SELECT t.oid, t.oid IN (1042, 1014, 1560, 1561, 1186, 1187), t.typtype = 'd',
                (WITH RECURSIVE base (oid, modifier) AS (
                     SELECT t.typbasetype, t.typtypmod WHERE t.typtype = 'd'
                     UNION ALL SELECT d.typbasetype, d.typtypmod
                                 FROM base JOIN pg_catalog.pg_type d ON d.oid = base.oid WHERE d.typtype = 'd')
                 SELECT pg_catalog.bool_or(modifier >= 0) FROM base)
           FROM pg_catalog.pg_type t WHERE t.oid = pg_catalog.to_regtype($1)",
        &[Some(name)],
    )?;
    let is = |column| rows.get(0, column) == Some("t");
    let oid = rows.get(0, 0).and_then(|oid| oid.parse().ok()).ok_or(Unusable::Unknown)?;
    let implied = is(1) && !PLAIN.contains(&name.trim().to_ascii_lowercase().as_str());
    let (is_domain, of_modified) = (is(2), is(3));
    let modified = match name.contains('(') || implied || of_modified {
        true => modified(session, oid, name, is_domain)?,
        false => None,
    };
    Ok(NamedType { oid, modified })
}

/// The modifier, as the server understands a name that it has read as a type's before. Only looked at, never run.
fn modified(session: &mut Session, oid: u32, name: &str, is_domain: bool) -> Result<Option<Modified>, Unusable> {
    let described = session.prepare(&format!("SELECT CAST(NULL AS\n{name}\n)"), &[])?;
    // Of a domain the server describes what is below it.
    let Some(column) = described.columns.first().filter(|column| column.type_modifier >= 0) else { return Ok(None) };
    let (base, modifier) = (column.type_oid, column.type_modifier);
    let shown = (!is_domain).then(|| modifier.to_string());
    let named = session.query(
        "SELECT pg_catalog.format_type($1::pg_catalog.oid, $2::pg_catalog.int4)",
        &[Some(&oid.to_string()), shown.as_deref()],
    )?;
    let name = named.get(0, 0).ok_or(Unusable::Unknown)?.to_owned();
    Ok(Some(Modified { name, base, modifier, is_domain }))
}

/// Has the server cast the values whose types have modifiers, each as an explicit cast of its text would.
///
/// # Errors
/// The first one that the server refuses, with its place.
pub(super) fn cast(
    session: &mut Session,
    types: &[NamedType],
    values: &mut [Option<CString>],
) -> Result<(), PrepareError> {
    let is_due = |(named, value): (&NamedType, &Option<CString>)| named.modified.is_some() && value.is_some();
    if !types.iter().zip(values.iter()).any(is_due) {
        return Ok(());
    }
    let (begin, end) = match session.transaction_status() {
        TransactionStatus::Idle => ("BEGIN READ ONLY", "ROLLBACK"),
        _ => ("SAVEPOINT slowlane_cast", "ROLLBACK TO SAVEPOINT slowlane_cast; RELEASE SAVEPOINT slowlane_cast"),
    };
    session.execute_batch(&format!("{begin}; {EXACT}"))?;
    let outcome = each(session, types, values);
    // What was set is set back, so that the caller's statement finds its session as it was.
    let ended = session.execute_batch(end);
    outcome?;
    Ok(ended?)
}

fn each(session: &mut Session, types: &[NamedType], values: &mut [Option<CString>]) -> Result<(), PrepareError> {
    for (n, (named, value)) in types.iter().zip(values).enumerate() {
        if let (Some(modified), Some(given)) = (&named.modified, value.as_ref()) {
            let cast = modified.cast(session, given).map_err(|error| match error {
                Unusable::Server(error) => at(format!("/params/{n}"), None, *error),
                other => other.of_type(n, &modified.name),
            })?;
            *value = Some(cast);
        }
    }
    Ok(())
}

impl Modified {
    fn cast(&self, session: &mut Session, value: &CString) -> Result<CString, Unusable> {
        // Of all types this one's modifier decides how a text is read: '10' is ten years, or ten seconds.
        let (given, from) = match self.base {
            INTERVAL => (format!("pg_catalog.interval_in(pg_catalog.textout($1), 0, {})", self.modifier), TEXT),
            base => ("$1".to_owned(), base),
        };
        let described = session.prepare(&format!("SELECT CAST({given} AS {})", self.name), &[from])?;
        let column = described.columns.first().map(|column| (column.type_oid, column.type_modifier));
        if column != Some((self.base, self.modifier)) {
            return Err(Unusable::Nameless);
        }
        let mut rows = session.stream(&[Some(value.clone())])?;
        let mut cast = None;
        while let Some(chunk) = rows.next_chunk()? {
            cast = chunk.value(0, 0).map(CString::new).or(cast);
        }
        cast.and_then(Result::ok).ok_or_else(|| PqError::unreadable("a value that was cast can't be read").into())
    }
}
