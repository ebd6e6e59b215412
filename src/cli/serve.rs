//! `slowlane serve`: HTTP, workers or both, on the databases that the settings name.

use std::collections::BTreeMap;

use crate::cli::process::{self, Addresses, Listeners, Parts};
use crate::cli::{Failure, Sources, dsn_reader, warn_of_unknown_variables};
use crate::config::Connections;
use crate::kinds::Registry;

/// The arguments of `slowlane serve`.
#[derive(clap::Args)]
pub struct Serve {
    #[command(flatten)]
    sources: Sources,
    #[command(flatten)]
    connections: Connections,
    /// Print the settings as they are in effect, secrets masked, and stop
    #[arg(long)]
    print_config: bool,
}

impl Serve {
    /// Serves until a signal says to stop.
    ///
    /// # Errors
    /// When the settings or the databases can't be used.
    pub fn run(self) -> Result<(), Failure> {
        let (config, file) = self.sources.read()?;
        warn_of_unknown_variables(&self.connections);
        let reader = dsn_reader(config.dsn_strict);
        let queue = self.connections.queue(&file, reader)?;
        let target_names = self.connections.target_names(&file)?;
        // Who runs no jobs needs no way to where they run.
        let targets = match config.roles.workers {
            true => self.connections.targets(&file, reader)?,
            false => BTreeMap::new(),
        };
        if self.print_config {
            print!("{}", config.print(&queue, &target_names, &targets));
            return Ok(());
        }
        let listeners = Listeners::open(&config)?;
        let parts = Parts { config, queue, target_names, targets, registry: Registry::standard(), listeners };
        process::run(move || Ok(parts), |addresses| say_where(&addresses))
    }
}

fn say_where(addresses: &Addresses) {
    match addresses.api {
        Some(address) => log::info!("serving on http://{address}"),
        None => log::info!("running jobs"),
    }
    if let Some(address) = addresses.probes {
        log::info!("probes are answered on http://{address}");
    }
}
