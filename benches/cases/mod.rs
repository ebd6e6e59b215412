//! What is measured, one file for each promise of speed.

mod accept;
mod backfill;
mod cancel;
mod drain;
mod export;
mod import;
mod memory;
mod once;
mod poll;
mod sampler;
mod start;

use crate::Scale;
use crate::postgres::Postgres;
use crate::report::Outcome;

/// A case: runs every round of its measures.
pub type Case = fn(&Postgres, Scale) -> Outcome;

/// Every case, in the order of the table.
pub const CASES: &[(&str, Case)] = &[
    ("accept", accept::run),
    ("drain", drain::run),
    ("start", start::run),
    ("poll", poll::run),
    ("cancel", cancel::run),
    ("sampler", sampler::run),
    ("once", once::run),
    ("export", export::run),
    ("import", import::run),
    ("backfill", backfill::run),
    ("memory", memory::run),
];
