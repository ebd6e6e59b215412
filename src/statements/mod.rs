//! Saved statements: what an operator lets callers run by a name and values, and no SQL.
//!
//! Owns what a file of the folder says, how values are checked against it, and the set that is in effect. Knows no job, no
//! database and no kind: whoever opens a set says how a kind checks its arguments.
//!
//! | file | what it has |
//! | --- | --- |
//! | [`mod@file`] | one file: its header, and what of it becomes a kind's arguments |
//! | `decimal` | numbers compared as they are written |
//! | [`params`] | parameters: types, bounds, values, JSON Schema |
//! | `split` | where one statement of a file ends and the next begins |
//! | [`set`] | the folder, read whole; what stays when a file breaks |
//! | [`reload`] | the thread that reads the folder again |

mod decimal;
pub mod file;
pub mod params;
pub mod reload;
pub mod set;
mod split;

pub use file::{FileError, InnerKind, Statement};
pub use params::{Param, ValueError};
pub use reload::{Reloaded, Reloader};
pub use set::{Broken, Loaded, Statements, UnreadableFolder};
