//! Saved statements: what an operator lets callers run by a name and values, and no SQL.
//!
//! Owns what a file of the folder says, how values are checked against it, and the set that is in effect. Knows no job,
//! no database and no kind: whoever opens a set says how a kind checks its arguments.
//!
//! | file | what it has |
//! | --- | --- |
//! | [`mod@file`] | one file: its header, and what of it becomes a kind's arguments |
//! | `bounds` | what bounds a value |
//! | `decimal` | numbers compared as they are written |
//! | `lines` | where things stand in a file |
//! | `literal` | values of a header with the digits that they were written with |
//! | [`params`] | parameters: types, bounds, values |
//! | `schema` | the JSON Schema of parameters |
//! | `shape` | which JSON stands for a value of a type |
//! | `split` | where one statement of a file ends and the next begins |
//! | [`set`] | the folder, read whole; what stays when a file breaks |
//! | [`reload`] | the thread that reads the folder again |

mod bounds;
mod decimal;
mod error;
pub mod file;
mod lines;
mod literal;
pub mod params;
pub mod reload;
mod schema;
pub mod set;
mod shape;
mod spans;
mod split;

pub use error::FileError;
pub use file::{FileName, InnerKind, Statement};
pub use params::{Param, ValueError};
pub use reload::{Reloaded, Reloader};
pub use set::{Broken, Loaded, Statements, UnreadableFolder};
