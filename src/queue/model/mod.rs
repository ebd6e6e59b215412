//! The nouns of the queue: what a caller asks for, what becomes of it, and the bounds of both.
//!
//! A field that callers may set is a line of [`JobSpec`], its default, its check and its column, all of them here. Knows how a
//! job is stored; knows no statement.

mod blocked_by;
mod codes;
mod columns;
mod error;
mod job;
mod json;
mod labels;
mod lease;
mod limits;
pub mod pointer;
mod retry_policy;
mod spec;

pub use blocked_by::*;
pub use codes::*;
pub use columns::*;
pub use error::*;
pub use job::*;
pub use json::*;
pub use labels::*;
pub use lease::*;
pub use limits::*;
pub use retry_policy::*;
pub use spec::*;
