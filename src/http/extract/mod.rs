//! What handlers read of a request: who asks, ids, headers, bodies, pages. Each says what is wrong, and where.

pub(super) mod body;
mod caller;
pub(super) mod cursor;
pub(super) mod headers;
pub(super) mod media;
pub(super) mod paging;
pub(super) mod strict_json;

use uuid::Uuid;

pub(in crate::http) use caller::principal;

use crate::http::Shared;
use crate::http::problem::{Code, Problem};

/// The id in a path.
pub(in crate::http) fn parse_id(text: &str) -> Result<Uuid, Problem> {
    Uuid::try_parse(text)
        .map_err(|_| Problem::new(Code::InvalidId, "the id in the path is not a UUID").field("id", "expected a UUID"))
}

/// A server that stops takes nothing more.
pub(in crate::http) fn refuse_when_stopping(shared: &Shared) -> Result<(), Problem> {
    match shared.health.is_stopping() {
        true => {
            Err(Problem::new(Code::ShuttingDown, "this server is shutting down; try again, another one may answer"))
        }
        false => Ok(()),
    }
}
