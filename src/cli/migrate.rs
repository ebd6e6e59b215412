//! `slowlane migrate`: how the queue's schema stands, and the way up.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;

use crate::cli::{Failure, plain_dsn_reader};
use crate::config::{Connections, File};
use crate::db::pool::{Manager, Purpose};
use crate::db::{migrations, roles};
use crate::dsn::Dsn;
use crate::queue::partitions;

/// A migration may rewrite a table.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(3_600);

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
}

impl Where {
    fn manager(self) -> Result<Manager, Failure> {
        let file = File::read(self.config.as_deref())?;
        let connections = Connections { database_url: self.database_url, ..Connections::default() };
        Ok(manager(&connections.queue(&file, plain_dsn_reader(&file)?)?))
    }
}

fn manager(queue: &Dsn) -> Manager {
    Manager::queue(queue, &Purpose { name: "migrate", statement_timeout: STATEMENT_TIMEOUT })
}

impl Migrate {
    /// Does what it says.
    ///
    /// # Errors
    /// When the database can't be used, or was migrated by a newer slowlane.
    pub fn run(self) -> Result<(), Failure> {
        match self {
            Migrate::Status(queue) => status(&queue.manager()?),
            Migrate::Up(up) => {
                let role = up.service_role;
                let applied = apply(&up.queue.manager()?, &role)?;
                applied.iter().for_each(|version| println!("applied {version}"));
                if applied.is_empty() {
                    println!("nothing to apply");
                }
                Ok(())
            }
        }
    }
}

fn status(manager: &Manager) -> Result<(), Failure> {
    let status = migrations::status(&mut manager.open()?)?;
    for (what, versions) in [("applied", &status.applied), ("pending", &status.pending), ("unknown", &status.unknown)] {
        versions.iter().for_each(|version| println!("{what} {version}"));
    }
    if !status.unknown.is_empty() {
        return Err(migrations::MigrateError::Newer(status.unknown.join(", ")).into());
    }
    println!("{}", if status.is_current() { "up to date" } else { "run `slowlane migrate up`" });
    Ok(())
}

/// Migrates, makes the days of history, and grants the service its rights. Says what was applied.
///
/// # Errors
/// As [`migrations::up`].
pub fn migrate(owner: &Dsn, service_role: &str) -> Result<Vec<String>, Failure> {
    apply(&manager(owner), service_role)
}

fn apply(manager: &Manager, service_role: &str) -> Result<Vec<String>, Failure> {
    let mut connection = manager.open()?;
    let applied = migrations::up(&mut connection)?;
    partitions::ensure(&mut connection)?;
    if roles::exists(&mut connection, service_role)? {
        roles::grant_service(&mut connection, service_role)?;
    }
    Ok(applied)
}
