//! `slowlane serve`: HTTP and workers on the databases that the settings name.

use crate::cli::process::{self, Parts};
use crate::cli::{Failure, Sources, warn_of_unknown_variables};
use crate::config::Connections;
use crate::kinds::Registry;
use crate::pq;

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
        let queue = self.connections.queue(&file, pq::parameters())?;
        let targets = self.connections.targets(&file, pq::parameters())?;
        if self.print_config {
            print!("{}", config.print(&queue, &targets));
            return Ok(());
        }
        process::http_settings(&config)?;
        let listener = process::listen(config.listen)?;
        let parts = Parts { config, queue, targets, registry: Registry::standard(), listener };
        process::run(move || Ok(parts), |address| log::info!("serving on http://{address}"))
    }
}
