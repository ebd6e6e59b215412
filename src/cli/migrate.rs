//! `slowlane migrate`: how the queue's schema stands, and the way up.

use std::path::PathBuf;

use clap::Subcommand;

use crate::app::{self, Grants};
use crate::cli::{Failure, plain_dsn_reader};
use crate::config::{Connections, File};
use crate::db::{migrations, roles};
use crate::dsn::Dsn;

/// The subcommands of `slowlane migrate`. Both want a DSN of the schema's owner.
#[derive(Subcommand)]
pub enum Migrate {
    /// Say which migrations the database has, and which it lacks
    Status(Where),
    /// Apply the migrations that the database lacks
    Up(Up),
}

/// Where the queue is.
#[derive(clap::Args)]
pub struct Where {
    /// The settings' file [default: slowlane.toml, where it is there]
    #[arg(long, env = "SLOWLANE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The queue's database, without a password; one with a password belongs into SLOWLANE_DATABASE_URL
    #[arg(long, value_name = "DSN")]
    database_url: Option<String>,
}

/// The arguments of `slowlane migrate up`.
#[derive(clap::Args)]
pub struct Up {
    #[command(flatten)]
    queue: Where,
    /// The role that `slowlane serve` uses: it is granted what the service needs, where it exists
    #[arg(long, value_name = "ROLE", default_value = roles::QUEUE)]
    service_role: String,
    /// The role whose members may enqueue by SQL: it is granted that and nothing else, where it exists
    #[arg(long, value_name = "ROLE", default_value = roles::CLIENT)]
    client_role: String,
}

impl Where {
    fn dsn(self) -> Result<Dsn, Failure> {
        let file = File::read(self.config.as_deref())?;
        let connections = Connections { database_url: self.database_url, ..Connections::default() };
        Ok(connections.queue(&file, plain_dsn_reader(&file)?)?)
    }
}

impl Migrate {
    /// Does what it says.
    ///
    /// # Errors
    /// When the database can't be used, or was migrated by a newer slowlane.
    pub fn run(self) -> Result<(), Failure> {
        match self {
            Migrate::Status(queue) => status(&queue.dsn()?),
            Migrate::Up(up) => {
                let grants = Grants { service: up.service_role, client: up.client_role };
                let applied = app::migrate_with(up.queue.dsn()?, &grants)?;
                applied.iter().for_each(|version| println!("applied {version}"));
                if applied.is_empty() {
                    println!("nothing to apply");
                }
                Ok(())
            }
        }
    }
}

fn status(queue: &Dsn) -> Result<(), Failure> {
    let status = migrations::status(&mut app::migrate::manager(queue).open()?)?;
    for (what, versions) in [("applied", &status.applied), ("pending", &status.pending), ("unknown", &status.unknown)] {
        versions.iter().for_each(|version| println!("{what} {version}"));
    }
    if !status.unknown.is_empty() {
        return Err(migrations::MigrateError::Newer(status.unknown.join(", ")).into());
    }
    println!("{}", if status.is_current() { "up to date" } else { "run `slowlane migrate up`" });
    Ok(())
}
