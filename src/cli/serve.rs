//! `slowlane serve`: HTTP, workers or both, on the databases that the settings name.

use std::collections::BTreeMap;

use crate::app::{Server, Target};
use crate::cli::{Failure, Sources, dsn_reader, warn_of_unknown_variables};
use crate::config::{Connections, RefusedTarget};

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
        warn_of_unknown_variables(&self.connections, &file);
        let reader = dsn_reader(config.dsn_strict);
        let queue = self.connections.queue(&file, reader)?;
        let target_names = self.connections.target_names(&file)?;
        // Who runs no jobs needs no way to where they run.
        let each = match config.roles.workers {
            true => self.connections.each_target(&file, reader)?,
            false => BTreeMap::new(),
        };
        let (mut targets, mut refused) = (BTreeMap::new(), BTreeMap::new());
        for (name, target) in each {
            match target {
                Ok(target) => drop(targets.insert(name, target)),
                Err(error) if config.start_without_targets => {
                    drop(refused.insert(name, RefusedTarget::from(&error)));
                }
                Err(error) => return Err(error.into()),
            }
        }
        if self.print_config {
            print!("{}", config.print(&queue, &target_names, &targets));
            return Ok(());
        }
        let mut server = Server::builder().config(config).queue(queue);
        for (name, statements_only) in target_names {
            server = match statements_only {
                true => server.target_name_for_statements(&name),
                false => server.target_name(&name),
            };
        }
        for (name, target) in targets {
            server = server.target(&name, Target::from(target));
        }
        for (name, why) in refused {
            server = server.refused_target(&name, why);
        }
        Ok(server.run()?)
    }
}
