//! The domain: what a job is, which states it passes, and every statement that touches the queue's tables.
//!
//! Knows no HTTP and no kind of work. Functions take a connection and leave the transaction to their caller unless
//! they say otherwise; time is the database's.
//!
//! | file | what it holds |
//! | --- | --- |
//! | [`model`] | the nouns: what is asked for, states, jobs, errors, limits, columns |
//! | [`codes`] | what the code of an error can be |
//! | [`accept`] | the writer: requests become committed rows |
//! | [`enqueue`] | jobs of an application, within its own transaction |
//! | [`claim`] | rows become running jobs; positions and the sweep |
//! | [`finish`] | running jobs end, are retried or handed back, under their lease |
//! | [`cancel`] | what a caller asks of a job |
//! | [`pause`] | stopping a job so that it can go on, and having it go on |
//! | [`checkpoint`] | what survives a crash: cursors, and transactions about to be committed |
//! | [`promote`] | scheduled jobs become claimable |
//! | [`liveness`] | heartbeats, and what the dead left behind |
//! | [`sightings`] | who was seen to beat, and who is dead |
//! | [`interruptions`] | how many interruptions in a row a job may have |
//! | [`report`] | one line of the process' log for each attempt that ended |
//! | [`clock`] | the database's clock, as far as a step of it is believed |
//! | [`log`] | what attempts say while they run |
//! | [`attempts`] | the attempts of a job |
//! | [`retry`] | a job that failed becomes a new one |
//! | [`progress`] | how far running jobs are |
//! | [`history`] | what the same work took before |
//! | [`queues`] | queues paused and served again |
//! | [`overview`] | who serves, what waits, what nobody serves |
//! | [`read`] | single jobs, lists, counts |
//! | [`partitions`] | the days of history, made and dropped |
//! | [`signals`] | hints within and between processes |

pub mod accept;
pub mod attempts;
mod blocked_by;
pub mod cancel;
pub mod checkpoint;
pub mod claim;
pub mod clock;
pub mod codes;
pub mod enqueue;
pub mod finish;
pub mod history;
pub mod insert;
pub mod interruptions;
pub mod leavings;
pub mod liveness;
pub mod log;
pub mod model;
pub mod overview;
pub mod partitions;
pub mod pause;
pub mod pointer;
pub mod progress;
pub mod promote;
pub mod queues;
pub mod read;
pub mod report;
pub mod retry;
pub mod sightings;
pub mod signals;

pub use codes::ErrorCode;
pub use enqueue::{InsertError, insert, insert_without_notify};
pub use model::{InvalidJob, Job, JobError, JobSpec, JobState, Lease, RawJson, RetryPolicy};
