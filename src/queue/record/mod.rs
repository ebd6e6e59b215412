//! What is written down of jobs, and read again.
//!
//! | file | what it holds |
//! | --- | --- |
//! | [`read`] | single jobs, lists, counts |
//! | [`attempts`] | the attempts of a job |
//! | [`mod@log`] | what attempts say while they run |
//! | [`progress`] | how far running jobs are |
//! | [`history`] | what the same work took before |
//! | [`report`] | one line of the process' log for each attempt that ended |
//! | [`partitions`] | the days of history, made and dropped |

pub mod attempts;
pub mod history;
pub mod log;
pub mod partitions;
pub mod progress;
pub mod read;
pub mod report;
