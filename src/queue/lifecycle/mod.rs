//! From a claim to an end: every statement that moves a job from one state to another.
//!
//! | file | what it holds |
//! | --- | --- |
//! | [`claim`] | rows become running jobs; positions and the sweep |
//! | [`end`] | how an attempt ends, in nouns |
//! | [`finish`] | running jobs end, are retried or handed back, under their lease |
//! | [`interruptions`] | how many interruptions in a row a job may have |
//! | [`checkpoint`] | what survives a crash: cursors, and transactions about to be committed |
//! | [`leavings`] | what an ended job left on its target |
//! | [`cancel`], [`pause`] | what a caller asks of a job |
//! | [`promote`] | scheduled jobs become claimable |

pub mod cancel;
pub mod checkpoint;
pub mod claim;
pub mod end;
pub mod finish;
pub mod interruptions;
pub mod leavings;
pub mod pause;
pub mod promote;
