//! The private cluster of `slowlane dev` and `slowlane demo blocking`: started, filled, watched, and found again by
//! others through the addresses that it leaves in its folder.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use crate::app::private::Logins;
use crate::cli::{Failure, demo};
use crate::cluster::{self, Cluster, ClusterOptions};
use crate::config::DsnReader;
use crate::dsn::Dsn;

/// Between two looks whether the cluster still runs.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The file that says where the databases are.
const URLS_FILE: &str = "urls.env";
/// The names in it.
const QUEUE_NAME: &str = "SLOWLANE_DATABASE_URL";
const DEMO_NAME: &str = "SLOWLANE_DEMO_URL";

/// The cluster, for as long as the process needs it.
pub type Slot = Mutex<Option<Cluster>>;

/// Where the databases of the cluster are.
#[derive(Clone)]
pub struct Databases {
    /// The queue, as the service.
    pub queue: Dsn,
    /// The demo's data, as the work role.
    pub demo: Dsn,
}

impl Databases {
    /// Starts the cluster and brings everything in it to where a job can run.
    ///
    /// # Errors
    /// When the folder is in use, no Postgres is installed, or the databases can't be prepared.
    pub fn set_up(slot: &Arc<Slot>, data_dir: PathBuf) -> Result<Databases, Failure> {
        log::info!(folder = data_dir.display().to_string(); "starting a private Postgres");
        // Held until the cluster stands in it: whoever stops this process waits for that, and stops the cluster too.
        let mut place = slot.lock().unwrap_or_else(PoisonError::into_inner);
        let cluster = Cluster::start(ClusterOptions { data_dir, settings: Vec::new() })?;
        let folder = cluster.folder().to_owned();
        // What an earlier start left may lead elsewhere: there is none until this one has come to its end.
        drop(std::fs::remove_file(folder.join(URLS_FILE)));
        let (logins, passwords) = Logins::of(&cluster)?;
        *place = Some(cluster);
        drop(place);
        logins.set_up(&passwords)?;
        let databases = Databases { queue: logins.queue, demo: logins.work };
        demo::load_by_jobs(&demo::Queue { dsn: &databases.queue, name: "default" }, &databases.demo)?;
        let urls = format!(
            "{QUEUE_NAME}={}\n{DEMO_NAME}={}\n",
            databases.queue.to_url().expose(),
            databases.demo.to_url().expose()
        );
        cluster::write_private(&folder.join(URLS_FILE), &urls)?;
        log::info!("the databases' addresses are in {}", folder.join(URLS_FILE).display());
        watch(Arc::downgrade(slot))?;
        Ok(databases)
    }

    /// Reads where those of a cluster are that another process runs.
    ///
    /// # Errors
    /// When the file isn't there yet or can't be read for what it is.
    pub fn of_running(folder: &Path, reader: DsnReader<'_>) -> Result<Databases, Failure> {
        let path = folder.join(URLS_FILE);
        let text = std::fs::read_to_string(&path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => format!("slowlane dev is still starting in {}: try again", folder.display()),
            _ => format!("{}: {error}", path.display()),
        })?;
        let read = |name: &str| {
            let url = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            let url = url.ok_or_else(|| format!("{} lacks {name}: start slowlane dev again", path.display()))?;
            Ok::<_, Failure>(reader.read(name, url)?)
        };
        Ok(Databases { queue: read(QUEUE_NAME)?, demo: read(DEMO_NAME)? })
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
