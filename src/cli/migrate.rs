//! `slowlane migrate`: how the queue's schema stands, and the way up.

use std::path::PathBuf;

use clap::Subcommand;

use crate::app::migrate::{Migrated, migrate_and_grant};
use crate::app::{self, Grants};
use crate::cli::{Failure, plain_dsn_reader};
use crate::config::{Connections, File};
use crate::db::migrations;
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
    /// The role that `slowlane serve` uses: it is granted what the service needs
    /// [default: slowlane_queue]
    #[arg(long, value_name = "ROLE")]
    service_role: Option<String>,
    /// The role whose members may enqueue by SQL: it is granted that and nothing else
    /// [default: slowlane_client]
    #[arg(long, value_name = "ROLE")]
    client_role: Option<String>,
}

impl Where {
    fn dsn(&self) -> Result<Dsn, Failure> {
        let file = File::read(self.config.as_deref())?;
        let connections = Connections { database_url: self.database_url.clone(), ..Connections::default() };
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
            Migrate::Up(up) => up.run(),
        }
    }
}

impl Up {
    fn run(self) -> Result<(), Failure> {
        // A role that was named has to be there; those of the documentation may be.
        let needed: Vec<&str> = self.service_role.iter().chain(&self.client_role).map(String::as_str).collect();
        let defaults = Grants::default();
        let grants = Grants {
            service: self.service_role.clone().unwrap_or(defaults.service),
            client: self.client_role.clone().unwrap_or(defaults.client),
        };
        let Migrated { applied, service, client } = migrate_and_grant(&self.queue.dsn()?, &grants, &needed)?;
        applied.iter().for_each(|version| println!("applied {version}"));
        if applied.is_empty() {
            println!("nothing to apply");
        }
        let told = [
            (service, &grants.service, "the service", "--service-role"),
            (client, &grants.client, "applications that enqueue by SQL", "--client-role"),
        ];
        for (granted, role, whom, flag) in told {
            match granted {
                true => println!("granted {role} what {whom} may do"),
                false => println!("there is no role {role}: name another one for {whom} by {flag}"),
            }
        }
        Ok(())
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
