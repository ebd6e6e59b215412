//! `slowlane dev`: everything on a private Postgres, with demo data and something to try.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use crate::app::process::{self, Addresses, Listeners};
use crate::app::{AppError, Server};
use crate::cli::private::{Databases, Slot};
use crate::cli::{Failure, Sources, demo, folder, warn_of_unknown_variables};
use crate::cluster::{self, default_data_dir};
use crate::config::{Config, Connections};
use crate::kinds::carrier_report::CarrierReport;

/// The arguments of `slowlane dev`.
#[derive(clap::Args)]
pub struct Dev {
    #[command(flatten)]
    sources: Sources,
    /// The folder of the private Postgres [default: the user's data directory; for root /var/lib/slowlane/dev]
    #[arg(long, env = "SLOWLANE_DATA_DIR", value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
}

impl Dev {
    /// Serves until a signal says to stop, and takes the cluster down with it.
    ///
    /// # Errors
    /// When the address is taken, the folder in use, or no Postgres is installed.
    pub fn run(self) -> Result<(), Failure> {
        let (config, file) = self.sources.read()?;
        warn_of_unknown_variables(&Connections::default(), &file);
        if !(config.roles.http && config.roles.workers) {
            return Err("slowlane dev serves HTTP and runs jobs; to have one alone, use slowlane serve".into());
        }
        let data_dir = folder(self.data_dir.or(file.data_dir()).unwrap_or_else(default_data_dir))?;
        cluster::check_unused(&data_dir)?;
        let listeners = Listeners::open(&config)?;
        let slot = Arc::<Slot>::default();
        let (prepared, mut settings) = (Arc::clone(&slot), config.clone());
        let prepare = move || {
            let databases = Databases::set_up(&prepared, data_dir.clone()).map_err(AppError::Preparing)?;
            if settings.statements.is_none() {
                settings.statements = Some(demo::statements::set_up(&data_dir).map_err(AppError::Preparing)?);
            }
            let server = Server::builder().config(settings).queue(databases.queue).target("default", databases.demo);
            server.kind::<CarrierReport>().parts_on(listeners)
        };
        let ready = move |addresses: Addresses| {
            let address = addresses.api.unwrap_or(config.listen);
            println!("{}", what_to_try(&config, &address.to_string()));
        };
        let outcome = process::run(true, prepare, ready);
        // Taken out by this thread: the one that watches it must not be the one that is left to stop it.
        drop(slot.lock().unwrap_or_else(PoisonError::into_inner).take());
        Ok(outcome?)
    }
}

fn what_to_try(config: &Config, address: &str) -> String {
    let token = if config.api_token.is_some() { " -H \"authorization: Bearer $SLOWLANE_API_TOKEN\"" } else { "" };
    let post = format!("curl -sS -i{token} {address}/v1/jobs -H 'content-type: application/json'");
    let get = format!("curl -sS{token} {address}");
    format!(
        r#"
slowlane serves on http://{address}, with every flight that left New York in 2013. Try:

  # a heavy query goes in; 202 and a Location come back
  {post} -d '{{"kind":"query","args":{{"sql":"SELECT carrier, month, avg(arr_delay) FROM flights GROUP BY 1,2 ORDER BY 1,2"}}}}'

  # the newest job, and its result as CSV
  {get}'/v1/jobs?limit=1'
  {get}/v1/jobs/$({get}'/v1/jobs?limit=1' | sed 's/.*"jobs":\[{{"id":"\([^"]*\)".*/\1/')/result/data

  # the same in one go, for a query that ends within 10 seconds
  {post} -H 'prefer: wait=10' -d '{{"kind":"query","args":{{"sql":"SELECT count(*) FROM flights WHERE origin = $1","params":["JFK"]}}}}'

  # a new column, filled in batches by key, and how far that is
  {post} -H 'prefer: wait=10' -d '{{"kind":"execute","args":{{"statements":[{{"sql":"ALTER TABLE flights ADD COLUMN IF NOT EXISTS route text"}}]}}}}'
  {post} -d '{{"kind":"backfill","args":{{"table":"flights","set":{{"route":"origin || dest"}},"where":"route IS NULL","target_batch_ms":100}}}}'
  {get}'/v1/jobs?limit=1'

  # an index on it that keeps no writer out
  {post} -H 'prefer: wait=30' -d '{{"kind":"maintain","args":{{"action":"create_index","table":"flights","name":"flights_route","columns":["route"]}}}}'

  # saved statements: what callers may run by a name and values, without any SQL of theirs
  {get}/v1/statements
  {post} -H 'prefer: wait=10' -d '{{"kind":"statement","args":{{"name":"late_flights","params":{{"month":7,"carrier":"UA"}}}}}}'

  # a kind of work written in Rust with Diesel
  {post} -H 'prefer: wait=10' -d '{{"kind":"carrier_report","args":{{"month":7}}}}'

Ctrl-C stops it.
"#
    )
}
