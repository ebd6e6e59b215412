//! How jobs come in: over HTTP by one writer, by SQL and from Rust within an application's own transaction.
//!
//! | file | what it holds |
//! | --- | --- |
//! | [`request`] | what HTTP asks for, and what it is answered |
//! | [`writer`] | the thread: requests become committed rows |
//! | [`insert`] | the statements |
//! | [`enqueue`] | jobs of an application, within its own transaction |
//! | [`retry`] | a job that failed becomes a new one |

pub mod enqueue;
pub mod insert;
pub mod request;
pub mod retry;
pub mod writer;
