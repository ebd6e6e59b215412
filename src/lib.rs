//! slowlane: heavy Postgres work, out of the request path.
//!
//! The way of a job, and the rooms it passes:
//!
//! 1. `http` accepts it: checks the request, hands a [`queue::JobSpec`] to the writer.
//! 2. [`queue`] makes it a committed row; only then is the caller told `202`.
//! 3. `worker` claims it, runs it on a thread of its own, and finishes it under its lease.
//! 4. [`kinds`] is the work itself, on a target database, made of what [`work`] has.
//! 5. `results` keeps what it produced; `http` serves status and result. [`uploads`] keeps what it reads.
//!
//! Beside the way: [`dsn`] says what a connection string means, [`pq`] is the one room with `unsafe`,
//! [`db`] holds pools, the async doorway and the schema, [`target`] the databases that work runs on, [`cluster`] a private
//! Postgres, [`doctor`] looks at databases and says what is wrong, [`statements`] is what an operator lets callers run by
//! name, `config` the settings, [`app`] puts processes together, `cli` has the subcommands. [`testing`] runs jobs of your
//! kinds in your own tests.
//!
//! A program of your own needs [`Server`] or [`Workers`], and kinds of [`Work`]; docs/rust.md goes from the first line
//! of such a program to its last. [`queue::insert()`] puts a job in within a transaction of yours.
//!
//! Who may use whom is written in ARCHITECTURE.md and enforced by `tests/layers.rs`.

#![deny(unsafe_code)]
#![warn(missing_docs)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::as_conversions,
        clippy::panic,
        clippy::todo,
        clippy::unreachable
    )
)]

pub mod app;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod db;
pub mod doctor;
pub mod dsn;
pub mod http;
pub mod kinds;
pub mod metrics;
#[expect(unsafe_code, reason = "libpq is C: the only room that may call it")]
pub mod pq;
pub mod queue;
pub mod results;
pub mod statements;
pub mod target;
pub mod testing;
pub mod uploads;
pub mod work;
pub(crate) mod worker;

pub use app::{AppError, DatabaseUrl, Grants, Running, Server, Target, Workers, migrate};
pub use queue::{JobError, JobSpec};
pub use work::{ArgError, Registry, Work, WorkContext, WorkError};

/// The guide's blocks, compiled with the tests of this documentation.
#[cfg(doctest)]
#[doc = include_str!("../docs/rust.md")]
mod guide {}
