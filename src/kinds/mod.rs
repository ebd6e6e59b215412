//! The kinds of work that every slowlane has, and the list of them.
//!
//! A new kind is one file here, or a folder, and one line of [`standard`]. Knows no HTTP and no thread of the worker; what an
//! attempt can use is in `work`.

pub mod backfill;
pub mod carrier_report;
pub mod check;
pub mod execute;
mod hints;
pub mod import;
pub mod maintain;
mod modifiers;
mod names;
pub mod params;
mod planning;
mod prepare_error;
mod prepared;
pub mod query;
mod reads;
pub mod refresh;
mod returns;
pub mod saved_statements;
mod sql;

use crate::work::{Registry, Work};

/// The kinds that every slowlane has.
///
/// ```
/// assert_eq!(
///     slowlane::kinds::standard().names(),
///     ["backfill", "check", "execute", "import", "maintain", "query", "refresh", "validate"]
/// );
/// ```
pub fn standard() -> Registry {
    Registry::default()
        .with::<query::Query>()
        .with::<execute::Execute>()
        .with::<import::Import>()
        .with::<backfill::Backfill>()
        .with::<maintain::Maintain>()
        .with::<refresh::Refresh>()
        .with::<check::Check>()
        .with_validation()
}

// Nothing that a lost lease leaves behind, and nothing that can't be repeated: that holds for every kind that the file of a
// saved statement can name, so nobody needs to look a statement up to know.
const _: () = assert!(query::Query::REPEATABLE && query::Query::FENCED);
const _: () = assert!(execute::Execute::REPEATABLE && execute::Execute::FENCED);
const _: () = assert!(refresh::Refresh::REPEATABLE && refresh::Refresh::FENCED);
const _: () = assert!(backfill::Backfill::REPEATABLE && backfill::Backfill::FENCED);
