//! The nouns of the queue: what a caller asks for, what becomes of it, and the bounds of both.
//!
//! A field that callers may set is a line of [`JobSpec`], its default, its check and its column, all of them here. Knows how a
//! job is stored; knows no statement.

mod columns;
mod error;
mod job;
mod json;
mod labels;
mod lease;
mod limits;
mod retry_policy;
mod spec;

pub use columns::*;
pub use error::*;
pub use job::*;
pub use json::*;
pub use labels::*;
pub use lease::*;
pub use limits::*;
pub use retry_policy::*;
pub use spec::*;

pub use crate::queue::blocked_by::BlockedBy;
