//! The one test binary: a module for each promise or room. All on a real Postgres that it starts itself.

mod support;

mod accept;
mod bad_input;
mod cancel;
mod jobs_api;
mod query;
mod results;
