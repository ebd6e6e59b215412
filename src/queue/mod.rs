//! The domain: what a job is, which states it passes, and every statement that touches the queue's tables.
//!
//! Knows no HTTP and no kind of work. Functions take a connection and leave the transaction to their caller unless
//! they say otherwise; time is the database's.
//!
//! | folder | what it holds |
//! | --- | --- |
//! | [`model`] | the nouns: what is asked for, jobs, states, errors and their codes, bounds, columns |
//! | [`intake`] | how jobs come in |
//! | [`lifecycle`] | how they are claimed, asked to stop, and end |
//! | [`fleet`] | the processes that serve them |
//! | [`record`] | what is written down of them |

pub mod fleet;
pub mod intake;
pub mod lifecycle;
pub mod model;
pub mod record;

pub use intake::enqueue::{InsertError, insert, insert_without_notify};
pub use model::{ErrorCode, InvalidJob, Job, JobError, JobSpec, JobState, Labels, Lease, RawJson, RetryPolicy};
