//! slowlane inside another program: servers and workers put together from what the program says, and the migration of
//! the queue's schema.
//!
//! The only room beside the command line that knows them all, and the command line starts processes by it. Reads no
//! flag and no slowlane.toml, starts no log and takes no environment variable away: all three belong to the program.
//!
//! | file | what it has |
//! | --- | --- |
//! | `builder` | what a program says: databases, kinds, settings |
//! | `server` | [`Server`] and [`Workers`], run to their end or beside the program |
//! | [`mod@migrate`] | the queue's schema, brought up to this build |
//! | `listeners`, `signals` | where requests arrive; how a process is asked to stop |
//! | `process` | the assembly, and the order in which a process stops |
//! | `databases` | the queue and the targets when a process starts: waited for, looked at |
//! | `private` | roles and databases of a private cluster |
//! | `queue` | connections to the queue |
//! | `error` | why something can't be started |

mod builder;
mod databases;
mod error;
mod listeners;
pub mod migrate;
pub(crate) mod private;
pub(crate) mod process;
mod queue;
mod server;
mod signals;

pub use builder::{DatabaseUrl, ServerBuilder, Target, WorkersBuilder};
pub use error::AppError;
pub use migrate::{Grants, migrate, migrate_with};
pub use server::{Running, Server, Workers};
