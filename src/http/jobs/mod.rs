//! `/v1/jobs`: asked for, listed, watched, stopped, tried again.
//!
//! | file | what it has |
//! | --- | --- |
//! | `asked` | the job that a request asks for, read and checked |
//! | `submit` | making it a committed row, and the answer |
//! | `validate`, `asking` | what only a worker can answer, asked by a job |
//! | `one` | a job by its id: its status, and what is asked of it |
//! | `list` | many |
//! | `history` | its attempts, its log, and trying it again |
//! | `wire` | the job as callers see it |

pub(super) mod asked;
pub(super) mod asking;
pub(super) mod history;
pub(super) mod list;
pub(super) mod one;
pub(super) mod submit;
pub(super) mod validate;
pub(super) mod wire;
