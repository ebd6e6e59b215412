//! For which of its arguments the server takes no such index: each is tried alone, on an empty copy of the table, in a
//! transaction that is rolled back.

use super::definition::Definition;
use super::relation::Relation;
use crate::kinds::backfill::Misplaced;
use crate::pq::quote::identifier;
use crate::pq::{PqError, Session};
use crate::work::WorkError;

/// SQLSTATE `query_canceled`.
const CANCELED: &str = "57014";

/// What the server has against the definition, with the argument; `None` where it takes it, or where that can't be tried.
pub(super) fn refusal(
    session: &mut Session,
    definition: &Definition,
    relation: &Relation,
) -> Result<Option<Misplaced>, WorkError> {
    let (table, index) = Definition::copy(session, relation)?;
    session.execute_batch("BEGIN")?;
    let mut found = None;
    // A role that may make no table finds out as it builds.
    if session.execute_batch(&format!("CREATE TABLE {table} (LIKE {})", relation.table)).is_ok() {
        for (n, (pointer, part)) in parts(definition).into_iter().enumerate() {
            let tablespace = part.tablespace.as_deref().map(|name| format!(" TABLESPACE {}", identifier(name)));
            let name = identifier(&format!("{index}_{n}"));
            let sql = part.sql("", &name, &table, &tablespace.unwrap_or_default());
            if let Err(error) = session.execute_batch(&sql) {
                found = Some((pointer, PqError { position: None, ..error }));
                break;
            }
        }
    }
    session.execute_batch("ROLLBACK")?;
    match found {
        Some((_, error)) if error.retryable() || error.sqlstate.as_deref() == Some(CANCELED) => Err(error.into()),
        Some((pointer, error)) if pointer.is_empty() => Ok(Some(error.into())),
        Some((pointer, error)) => Ok(Some(Misplaced::within(&pointer, error.into()))),
        None => Ok(None),
    }
}

/// Smaller definitions, each with the argument that it has before those that came earlier. All of it comes last.
fn parts(definition: &Definition) -> Vec<(String, Definition)> {
    let bare = |keys: &[String]| Definition {
        keys: keys.to_vec(),
        unique: false,
        nulls_not_distinct: false,
        included: Vec::new(),
        storage: Vec::new(),
        tablespace: None,
        condition: None,
        ..definition.clone()
    };
    let keys = definition.places.iter().cloned().zip(definition.keys.chunks(1));
    let mut parts: Vec<(String, Definition)> = keys.map(|(place, key)| (place, bare(key))).collect();
    let (all, first) = (|| bare(&definition.keys), definition.keys.chunks(1).next().unwrap_or_default());
    if definition.condition.is_some() {
        parts.push(("/where".to_owned(), Definition { condition: definition.condition.clone(), ..bare(first) }));
    }
    parts.push(("/columns".to_owned(), all()));
    parts.push(("/include".to_owned(), Definition { included: definition.included.clone(), ..all() }));
    parts.push(("/with".to_owned(), Definition { storage: definition.storage.clone(), ..all() }));
    parts.push((String::new(), Definition { tablespace: None, ..definition.clone() }));
    parts.push(("/tablespace".to_owned(), definition.clone()));
    parts
}
