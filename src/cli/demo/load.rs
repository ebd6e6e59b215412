//! `slowlane demo load`: nycflights13, shipped compressed in the program, into a database of the caller's.

use sha2::{Digest, Sha256};

use crate::cli::demo::jobs::{Queue, load_by_jobs};
use crate::cli::{Failure, plain_dsn_reader};
use crate::config::{self, Connections};
use crate::dsn::Dsn;

/// The arguments of `slowlane demo load`.
#[derive(clap::Args)]
pub struct Load {
    /// The demo's database, without a password; one with a password belongs into SLOWLANE_DEMO_URL
    #[arg(long, value_name = "DSN")]
    database_url: Option<String>,
}

impl Load {
    /// Loads the data by import jobs of the queue that SLOWLANE_DATABASE_URL names, unless they are there.
    ///
    /// # Errors
    /// When a database can't be used, or holds tables of the same names that aren't the demo's.
    pub fn run(self) -> Result<(), Failure> {
        let file = config::File::default();
        let reader = plain_dsn_reader(&file)?;
        let target = config::demo_database(self.database_url.as_deref(), reader)?;
        let queue = Connections::default().queue(&file, reader)?;
        match load_by_jobs(&Queue { dsn: &queue, name: &name_of(&target) }, &target)? {
            Some(rows) => println!("loaded {rows} rows"),
            None => println!("already there"),
        }
        Ok(())
    }
}

/// Nobody else's worker takes jobs of this name, and ours takes nobody else's. What a load left that was broken off is
/// taken by the next one into the same database.
fn name_of(target: &Dsn) -> String {
    let place = ["host", "port", "dbname"].map(|keyword| target.get(keyword).unwrap_or_default().to_owned());
    let digest = Sha256::digest(place.join("\0"));
    let name: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("demo-{name}")
}
