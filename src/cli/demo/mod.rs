//! `slowlane demo`: data to try things on, and the story of blocking to look at.
//!
//! | file | what it has |
//! | --- | --- |
//! | `load` | `slowlane demo load` |
//! | `jobs` | the flights of 2013 by slowlane's own import jobs |
//! | [`statements`] | the saved statements that `slowlane dev` has |
//! | [`blocking`] | `slowlane demo blocking`: what is run |
//! | [`tables`] | what is shown of it |
//! | [`measure`] | one run of one server |
//! | [`kill`](mod@kill) | one kill of one server |
//! | [`triggers`] | heavy requests, all sent at one moment |
//! | [`probes`] | other requests, at intended times |
//! | [`child`] | servers as processes, and what they say of their threads |
//! | `wrong` | the servers that do it wrong: for child processes alone, and used by nothing else |

pub mod blocking;
pub mod child;
mod jobs;
pub mod kill;
mod load;
pub mod measure;
pub mod probes;
pub mod statement;
pub mod statements;
pub mod tables;
pub mod triggers;
mod wrong;

pub use jobs::{Queue, load_by_jobs};

use crate::cli::Failure;

/// The subcommands of `slowlane demo`.
#[derive(clap::Subcommand)]
pub enum Demo {
    /// Load every flight that left New York in 2013 into a database of yours by import jobs, unless it is there
    Load(load::Load),
    /// Run heavy statements on an event loop, on a thread pool and as jobs, and see what becomes of other requests
    Blocking(blocking::Blocking),
    /// A server that does it wrong, for `slowlane demo blocking`
    #[command(hide = true)]
    Wrong(wrong::Wrong),
}

impl Demo {
    /// Does what it says.
    ///
    /// # Errors
    /// Each subcommand's own.
    pub fn run(self) -> Result<(), Failure> {
        match self {
            Demo::Load(load) => load.run(),
            Demo::Blocking(blocking) => blocking.run(),
            Demo::Wrong(wrong) => wrong.run(),
        }
    }
}
