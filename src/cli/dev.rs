//! `slowlane dev`: everything on a private Postgres, with demo data and something to try.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use crate::cli::process::{self, Addresses, Listeners, Parts};
use crate::cli::{Failure, Sources, demo, migrate, warn_of_unknown_variables};
use crate::config::{Config, Connections, TargetConfig};
use crate::db::cluster::{self, Cluster, ClusterOptions, default_data_dir};
use crate::db::pool::Manager;
use crate::db::roles::{self, Passwords};
use crate::dsn::Dsn;
use crate::kinds::Registry;
use crate::kinds::carrier_report::CarrierReport;

/// Between two looks whether the cluster still runs.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The file that says where the databases are.
const URLS_FILE: &str = "urls.env";

/// The arguments of `slowlane dev`.
#[derive(clap::Args)]
pub struct Dev {
    #[command(flatten)]
    sources: Sources,
    /// The folder of the private Postgres [default: the user's data directory; for root /var/lib/slowlane/dev]
    #[arg(long, env = "SLOWLANE_DATA_DIR", value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
}

/// The cluster, for as long as the process needs it.
type Slot = Mutex<Option<Cluster>>;

impl Dev {
    /// Serves until a signal says to stop, and takes the cluster down with it.
    ///
    /// # Errors
    /// When the address is taken, the folder in use, or no Postgres is installed.
    pub fn run(self) -> Result<(), Failure> {
        let (config, file) = self.sources.read()?;
        warn_of_unknown_variables(&Connections::default());
        if !(config.roles.http && config.roles.workers) {
            return Err("slowlane dev serves HTTP and runs jobs; to have one alone, use slowlane serve".into());
        }
        let data_dir = self.data_dir.or(file.data_dir()).unwrap_or_else(default_data_dir);
        cluster::check_unused(&data_dir)?;
        let listeners = Listeners::open(&config)?;
        let slot = Arc::<Slot>::default();
        let (prepared, settings) = (Arc::clone(&slot), config.clone());
        let prepare = move || {
            let databases = Databases::set_up(&prepared, data_dir)?;
            let targets = [("default".to_owned(), TargetConfig::at(databases.demo))].into();
            let registry = Registry::standard().with::<CarrierReport>();
            let target_names = vec!["default".to_owned()];
            Ok(Parts { config: settings, queue: databases.queue, target_names, targets, registry, listeners })
        };
        let ready = move |addresses: Addresses| {
            let address = addresses.api.unwrap_or(config.listen);
            println!("{}", what_to_try(&config, &address.to_string()));
        };
        let outcome = process::run(prepare, ready);
        // Taken out by this thread: the one that watches it must not be the one that is left to stop it.
        drop(slot.lock().unwrap_or_else(PoisonError::into_inner).take());
        outcome
    }
}

/// Where the databases of the cluster are.
struct Databases {
    queue: Dsn,
    demo: Dsn,
}

impl Databases {
    /// Starts the cluster and brings everything in it to where a job can run.
    fn set_up(slot: &Arc<Slot>, data_dir: PathBuf) -> Result<Databases, Failure> {
        log::info!(folder = data_dir.display().to_string(); "starting a private Postgres");
        // Held until the cluster stands in it: whoever stops this process waits for that, and stops the cluster too.
        let mut place = slot.lock().unwrap_or_else(PoisonError::into_inner);
        let cluster = Cluster::start(ClusterOptions { data_dir, settings: Vec::new() })?;
        let folder = cluster.folder().to_owned();
        let passwords = Passwords {
            owner: cluster::secret(&folder, "owner.password")?,
            queue: cluster::secret(&folder, "queue.password")?,
            demo: cluster::secret(&folder, "demo.password")?,
        };
        let superuser = cluster.superuser("postgres")?;
        let owner = cluster.login(roles::OWNER, &passwords.owner, roles::QUEUE_DATABASE)?;
        let databases = Databases {
            queue: cluster.login(roles::QUEUE, &passwords.queue, roles::QUEUE_DATABASE)?,
            demo: cluster.login(roles::DEMO, &passwords.demo, roles::DEMO_DATABASE)?,
        };
        *place = Some(cluster);
        drop(place);
        roles::set_up(&mut Manager::work(&superuser, "SELECT 1").open()?, &passwords)?;
        migrate::migrate(&owner, roles::QUEUE)?;
        demo::load(&databases.demo)?;
        let urls = format!(
            "SLOWLANE_DATABASE_URL={}\nSLOWLANE_DEMO_URL={}\n",
            databases.queue.to_url().expose(),
            databases.demo.to_url().expose()
        );
        cluster::write_private(&folder.join(URLS_FILE), &urls)?;
        log::info!("the databases' addresses are in {}", folder.join(URLS_FILE).display());
        watch(Arc::downgrade(slot))?;
        Ok(databases)
    }
}

/// Starts the server again when it ends by itself.
fn watch(slot: Weak<Slot>) -> std::io::Result<()> {
    let look = move || {
        while let Some(slot) = slot.upgrade() {
            if let Some(cluster) = slot.lock().unwrap_or_else(PoisonError::into_inner).as_mut()
                && cluster.pid().is_none()
            {
                log::error!("the private Postgres ended, and is started again");
                if let Err(error) = cluster.start_server() {
                    log::error!("the private Postgres could not be started: {error}");
                }
            }
            drop(slot);
            std::thread::sleep(LOOK_EVERY);
        }
    };
    std::thread::Builder::new().name("slowlane-cluster".to_owned()).spawn(look).map(drop)
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

  # a kind of work written in Rust with Diesel
  {post} -H 'prefer: wait=10' -d '{{"kind":"carrier_report","args":{{"month":7}}}}'

Ctrl-C stops it.
"#
    )
}
