//! Who asks: what the guard has found out, as handlers get it.

use actix_web::{HttpMessage, HttpRequest};

use crate::http::problem::Problem;
use crate::queue::intake::request::Principal;

/// The principal of a request. None reaches a handler without one.
pub(in crate::http) fn principal(request: &HttpRequest) -> Result<Principal, Problem> {
    let found = request.extensions().get::<Principal>().cloned();
    found.ok_or_else(|| Problem::internal(&"a request came past the guard"))
}
