//! The doctor: looks at the queue's database and at targets as slowlane would use them, and says what is wrong with
//! each, what it costs, and what to do.
//!
//! Reads only, on a session of its own, each look bounded; knows no HTTP, no worker and no kind of work. What it can't
//! look at it says too. `slowlane doctor` looks at everything; the kind `check` has a worker look at its target.
//!
//! | file | what it has |
//! | --- | --- |
//! | [`report`] | what is found, and the closed list of codes |
//! | [`connect`] | the way to a session, step by step |
//! | `look` | asking, and noting what can't be asked |
//! | `server` | what holds of every server: versions, clocks, limits, old transactions |
//! | [`queue`] | the queue's own: schema, roles, tables, days, workers |
//! | [`target`] | a target's own: rights for each kind, limits, what was left behind |
//! | [`role_sql`] | the SQL that makes a work role |

pub mod connect;
mod look;
pub mod queue;
pub mod report;
pub mod role_sql;
mod server;
pub mod target;

pub use report::{Finding, FindingCode, Report, Severity, Step, Subject};
pub use server::Connections;
