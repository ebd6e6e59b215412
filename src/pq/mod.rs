//! A safe libpq session: the one room with `unsafe`.
//!
//! For what Diesel can't do: rows of unknown shape, in bounded memory; COPY of bytes as they come; parameters described
//! by the server; LISTEN with a blocking wait; cancelling through libpq; libpq's own parameter table; giving up a
//! connection, Diesel's too, whose peer stays silent ([`Line`]); saying why connecting failed ([`ConnectFailure`]);
//! taking libpq's variables away. Knows no job and no pool. A failure is always an error: libpq's
//! `PQgetResult` is read to its end, so a stream that stops early never looks complete.

mod copy;
mod error;
mod failure;
mod line;
pub mod quote;
mod raw;
mod resolve;
mod session;
mod socket;
mod stream;
mod surroundings;
mod trace;

pub use copy::CopyIn;
pub use error::{Notice, PqError, PqErrorKind, is_worth_another_try};
pub use failure::ConnectFailure;
pub use line::{Line, Patience};
pub use raw::NoticeSink;
pub use resolve::with_addresses;
pub use session::{Canceller, Column, Notification, Rows, Session, Statement, TransactionStatus, connect_failure};
pub use socket::Mark;
pub use stream::{Chunk, RowStream};
pub use surroundings::{surroundings, take_surroundings};
pub use trace::{Trace, trace_connect};

use std::sync::OnceLock;

use crate::dsn::Parameter;

/// Every parameter that the bundled libpq knows.
pub fn parameters() -> &'static [Parameter] {
    static TABLE: OnceLock<Vec<Parameter>> = OnceLock::new();
    TABLE.get_or_init(raw::parameter_table)
}

/// The bundled libpq's version, such as 180006.
pub fn libpq_version() -> i32 {
    raw::version()
}
