//! A private Postgres: found, made, started, taken over, stopped. For development and for tests.
//!
//! Listens on a free loopback port, with scram and a random password, in a folder of its own that one process at a
//! time may use. Knows no role, no table and no job of ours.

mod binaries;
mod process;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use binaries::{Binaries, find_binaries};
pub use process::StopMode;

use crate::dsn::Dsn;
use crate::pq;
use process::{Server, ServiceUser};

/// The name of the cluster's superuser.
const SUPERUSER: &str = "postgres";
/// How long `initdb` may take.
const INITDB_TIMEOUT: Duration = Duration::from_secs(120);

/// What a cluster is told.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// Its folder. Made when it isn't there.
    pub data_dir: PathBuf,
    /// Server settings beside our own.
    pub settings: Vec<(String, String)>,
}

/// Why there is no cluster.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// No Postgres server is installed.
    #[error(
        "no Postgres server was found in PATH, by pg_config or under /usr/lib/postgresql: install it, on Debian and Ubuntu with `apt-get install postgresql`"
    )]
    NoBinaries,
    /// `SLOWLANE_POSTGRES_BIN` names a folder without the programs of a server.
    #[error(
        "SLOWLANE_POSTGRES_BIN names {0}, which holds no postgres and initdb of version 14 or newer that can be run: name \
         the folder of a server's programs, or unset it to use the newest that is installed"
    )]
    NoBinariesThere(PathBuf),
    /// Another process uses the folder.
    #[error("{0} is in use by another slowlane (process {1}): stop it, or choose another folder with --data-dir")]
    InUse(PathBuf, String),
    /// The folder holds something else.
    #[error("{0} holds files that aren't slowlane's: choose an empty or a new folder with --data-dir")]
    NotOurs(PathBuf),
    /// The server's user can't get to the folder.
    #[error(
        "{0} can't be reached by the user that Postgres runs as, because {1} is closed to others: choose another folder with --data-dir"
    )]
    Closed(PathBuf, PathBuf),
    /// The folder was made by another major version.
    #[error(
        "{0} was made by Postgres {1}, and only other versions are installed: install that one, or move the folder away"
    )]
    OtherVersion(PathBuf, String),
    /// A file or folder can't be used.
    #[error("{0}: {1}")]
    Io(PathBuf, std::io::Error),
    /// A program failed or took too long.
    #[error("{0} failed: {1}")]
    Program(&'static str, String),
    /// A folder's name can't be used.
    #[error("{0}: the folder's name must be UTF-8, and stand for an absolute path")]
    Name(PathBuf),
}

/// A private Postgres. It ends when this is dropped.
pub struct Cluster {
    folder: PathBuf,
    binaries: Binaries,
    settings: Vec<(String, String)>,
    user: Option<ServiceUser>,
    password: String,
    port: u16,
    server: Option<Server>,
    /// Held as long as the cluster is ours.
    _lock: File,
}

/// Where `slowlane dev` keeps its cluster: for root `/var/lib/slowlane/dev`, otherwise in the user's data directory.
pub fn default_data_dir() -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        return PathBuf::from("/var/lib/slowlane/dev");
    }
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/tmp".into())).join(".local/share");
    let base = std::env::var_os("XDG_DATA_HOME").filter(|dir| !dir.is_empty()).map_or_else(home, PathBuf::from);
    base.join("slowlane/dev")
}

impl Cluster {
    /// Starts the cluster of a folder: makes it the first time, and takes over one that an earlier process left
    /// running.
    ///
    /// # Errors
    /// [`ClusterError`], with what to do about it.
    pub fn start(options: ClusterOptions) -> Result<Cluster, ClusterError> {
        let folder = std::path::absolute(&options.data_dir).map_err(io(&options.data_dir))?;
        if folder.to_str().is_none() {
            return Err(ClusterError::Name(folder));
        }
        let user = process::service_user();
        make_folder(&folder, user.as_ref())?;
        // As the kernel names it: a server that was left running is known by its folder.
        let folder = fs::canonicalize(&folder).map_err(io(&folder))?;
        let lock = lock(&folder)?;
        process::end_stale_server(&folder.join("pgdata"))?;
        let binaries = binaries::for_folder(&folder.join("pgdata"))?;
        let password = secret(&folder, "superuser.password")?;
        init(&folder, &binaries, user.as_ref(), &password)?;
        let mut cluster = Cluster {
            folder,
            binaries,
            settings: options.settings,
            user,
            password,
            port: 0,
            server: None,
            _lock: lock,
        };
        cluster.start_server()?;
        Ok(cluster)
    }

    /// Starts the server again after [`Cluster::stop`] or its death, on the same port: others know it by that.
    ///
    /// # Errors
    /// When it doesn't become ready, or somebody else has the port.
    pub fn start_server(&mut self) -> Result<(), ClusterError> {
        if self.port == 0 {
            return self.start_server_anywhere();
        }
        let server = Server::start(&self.binaries, &self.folder, self.port, &self.settings, self.user.as_ref())?;
        self.server = Some(server);
        Ok(())
    }

    fn start_server_anywhere(&mut self) -> Result<(), ClusterError> {
        let port_file = self.folder.join("port");
        let recorded = fs::read_to_string(&port_file).ok().and_then(|text| text.trim().parse().ok());
        let wanted: Option<u16> = recorded;
        let mut last = None;
        // Between choosing a port and the server's bind somebody else may take it.
        for attempt in 0..5 {
            let port = wanted
                .filter(|port| attempt == 0 && is_free(*port))
                .map_or_else(free_port, Ok)
                .map_err(io(&self.folder))?;
            match Server::start(&self.binaries, &self.folder, port, &self.settings, self.user.as_ref()) {
                Ok(server) => {
                    self.port = port;
                    self.server = Some(server);
                    return fs::write(&port_file, port.to_string()).map_err(io(&port_file));
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or(ClusterError::NoBinaries))
    }

    /// Stops the server, and leaves the folder ours.
    pub fn stop(&mut self, mode: StopMode) {
        if let Some(mut server) = self.server.take() {
            server.stop(mode);
        }
    }

    /// The server's process; `None` when it has ended.
    pub fn pid(&mut self) -> Option<u32> {
        self.server.as_mut().and_then(|server| server.is_running().then(|| server.pid()))
    }

    /// The loopback port that it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The installed programs that it runs by.
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// A connection string for the superuser.
    ///
    /// # Errors
    /// Never in practice: the string is ours.
    pub fn superuser(&self, database: &str) -> Result<Dsn, crate::dsn::DsnError> {
        self.login(SUPERUSER, &self.password, database)
    }

    /// A connection string for any role.
    ///
    /// # Errors
    /// Never in practice: the string is ours.
    pub fn login(&self, role: &str, password: &str, database: &str) -> Result<Dsn, crate::dsn::DsnError> {
        let text = format!("host=127.0.0.1 port={} sslmode=disable", self.port);
        let dsn = Dsn::parse(&text, pq::parameters())?;
        Ok(dsn.with("user", role).with("password", password).with("dbname", database))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop(StopMode::Fast);
    }
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> ClusterError + '_ {
    move |error| ClusterError::Io(path.to_owned(), error)
}

/// Makes the folder where it isn't there. Only what was made here, or made here before, is given other rights.
fn make_folder(folder: &Path, user: Option<&ServiceUser>) -> Result<(), ClusterError> {
    let has = |name: &str| folder.join(name).exists();
    // A `pgdata` alone may be anybody's.
    let is_ours = has("lock") && (has("superuser.password") || !has("pgdata"));
    let is_empty = fs::read_dir(folder).map_or(true, |mut entries| entries.next().is_none());
    if !is_ours && !is_empty {
        return Err(ClusterError::NotOurs(folder.to_owned()));
    }
    let missing: Vec<&Path> = folder.ancestors().take_while(|ancestor| !ancestor.exists()).collect();
    fs::create_dir_all(folder).map_err(io(folder))?;
    let Some(user) = user else {
        return fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).map_err(io(folder));
    };
    // The server's user must get through to its own part, and needs to see nothing else.
    for made in missing.into_iter().chain([folder]) {
        fs::set_permissions(made, fs::Permissions::from_mode(0o711)).map_err(io(made))?;
    }
    match folder.ancestors().skip(1).find(|ancestor| !process::may_pass(ancestor, user)) {
        Some(closed) => Err(ClusterError::Closed(folder.to_owned(), closed.to_owned())),
        None => Ok(()),
    }
}

/// Says no when another process uses the folder.
///
/// # Errors
/// [`ClusterError::InUse`].
pub fn check_unused(folder: &Path) -> Result<(), ClusterError> {
    if folder.join("lock").exists() { lock_file(folder, false).map(drop) } else { Ok(()) }
}

/// One process at a time: the lock goes with the process, however it ends.
fn lock(folder: &Path) -> Result<File, ClusterError> {
    lock_file(folder, true)
}

fn lock_file(folder: &Path, keep: bool) -> Result<File, ClusterError> {
    let path = folder.join("lock");
    let mut file =
        OpenOptions::new().create(true).read(true).write(true).truncate(false).open(&path).map_err(io(&path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let owner = fs::read_to_string(&path).unwrap_or_default();
            return Err(ClusterError::InUse(folder.to_owned(), owner.trim().to_owned()));
        }
        Err(TryLockError::Error(error)) => return Err(ClusterError::Io(path, error)),
    }
    if !keep {
        return Ok(file);
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(io(&path))?;
    Ok(file)
}

/// A random secret kept in a file that only we can read. Made the first time.
///
/// # Errors
/// When the file can't be read or written.
pub fn secret(folder: &Path, name: &str) -> Result<String, ClusterError> {
    let path = folder.join(name);
    if let Ok(text) = fs::read_to_string(&path)
        && !text.trim().is_empty()
    {
        return Ok(text.trim().to_owned());
    }
    let secret: String = (0..32).map(|_| format!("{:x}", rand::random_range(0..16_u8))).collect();
    write_private(&path, &secret)?;
    Ok(secret)
}

/// Writes a file that only we can read.
///
/// # Errors
/// When it can't be written.
pub fn write_private(path: &Path, text: &str) -> Result<(), ClusterError> {
    let temporary = path.with_extension("tmp");
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(io(&temporary))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(io(&temporary))?;
    fs::rename(&temporary, path).map_err(io(path))
}

/// Makes the data folder in one step that is there or not: an interrupted `initdb` leaves nothing that looks done.
fn init(folder: &Path, binaries: &Binaries, user: Option<&ServiceUser>, password: &str) -> Result<(), ClusterError> {
    let (data, temporary) = (folder.join("pgdata"), folder.join("pgdata.new"));
    if data.join("PG_VERSION").exists() {
        return Ok(());
    }
    if temporary.exists() {
        fs::remove_dir_all(&temporary).map_err(io(&temporary))?;
    }
    fs::create_dir(&temporary).map_err(io(&temporary))?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o700)).map_err(io(&temporary))?;
    let password_file = folder.join("initdb.password");
    write_private(&password_file, password)?;
    if let Some(user) = user {
        for path in [&temporary, &password_file] {
            chown(path, Some(user.uid), Some(user.gid)).map_err(io(path))?;
        }
    }
    let mut command = std::process::Command::new(binaries.path("initdb"));
    command.args(["--username", SUPERUSER, "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"]);
    command.arg("--pwfile").arg(&password_file).arg("--pgdata").arg(&temporary);
    let outcome = process::run(command, "initdb", folder, user, INITDB_TIMEOUT);
    fs::remove_file(&password_file).map_err(io(&password_file))?;
    outcome?;
    fs::rename(&temporary, &data).map_err(io(&data))
}

fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}
