//! A Postgres of the tests' own, which goes when their process goes, and databases in it.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};

use slowlane::cluster::{Cluster, ClusterOptions};
use slowlane::db::pool::{Manager, Purpose};
use slowlane::db::roles::{self, Passwords};
use slowlane::dsn::Dsn;
use slowlane::pq::Session;

use super::PATIENCE;

const PASSWORD: &str = "s3cret-of-the-tests";
const TEMPLATE: &str = "slowlane_template";

/// A cluster with roles and a migrated template.
pub struct Postgres {
    pub cluster: Mutex<Cluster>,
    superuser: Dsn,
    queue: Dsn,
    demo: Dsn,
}

/// Removes a cluster when the process that started it is gone, however it went.
#[expect(clippy::zombie_processes, reason = "it outlives this process: that is what it is for")]
fn watch(folder: &std::path::Path) {
    let script = "while kill -0 $0 2>/dev/null; do sleep 0.5; done
        pid=$(head -1 $1/pgdata/postmaster.pid 2>/dev/null) && kill -QUIT $pid; sleep 1; rm -rf $1";
    Command::new("sh")
        .args(["-c", script, &std::process::id().to_string(), folder.to_str().unwrap()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
}

/// Ends a process when the one that started it is gone.
#[expect(clippy::zombie_processes, reason = "it outlives this process: that is what it is for")]
pub fn watch_process(pid: u32) {
    let script = "while kill -0 $0 2>/dev/null; do sleep 0.5; done; kill -QUIT $1 2>/dev/null";
    Command::new("sh")
        .args(["-c", script, &std::process::id().to_string(), &pid.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
}

impl Postgres {
    /// A cluster that only the caller uses: it may be stopped and broken.
    pub fn start() -> Postgres {
        Postgres::with(&[])
    }

    /// As [`Postgres::start`], with further settings of the server.
    pub fn with(further: &[(&str, &str)]) -> Postgres {
        let folder = tempfile::Builder::new().prefix("slowlane-test-").tempdir().unwrap().keep();
        watch(&folder);
        // The server's default is the weak one: what slowlane promises must not depend on it.
        let settings = [
            ("fsync", "off"),
            ("synchronous_commit", "off"),
            ("max_connections", "400"),
            ("shared_buffers", "64MB"),
            ("log_min_duration_statement", "-1"),
        ];
        let settings = settings.iter().chain(further);
        let settings = settings.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let cluster = Cluster::start(ClusterOptions { data_dir: folder, settings }).unwrap();
        let superuser = cluster.superuser("postgres").unwrap();
        let passwords = Passwords { owner: PASSWORD.into(), queue: PASSWORD.into(), demo: PASSWORD.into() };
        roles::set_up(&mut Manager::work(&superuser, "SELECT 1").open().unwrap(), &passwords).unwrap();
        let postgres = Postgres {
            queue: cluster.login(roles::QUEUE, PASSWORD, "postgres").unwrap(),
            demo: cluster.login(roles::DEMO, PASSWORD, "postgres").unwrap(),
            superuser,
            cluster: Mutex::new(cluster),
        };
        postgres.create(&format!("CREATE DATABASE {TEMPLATE} OWNER {}", roles::OWNER));
        let owner = postgres.queue.clone().with("user", roles::OWNER).with("dbname", TEMPLATE);
        slowlane::migrate(&owner).unwrap();
        postgres
    }

    /// The cluster that tests share.
    pub fn shared() -> &'static Postgres {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        SHARED.get_or_init(Postgres::start)
    }

    /// A login that may do anything.
    pub fn superuser(&self) -> Dsn {
        self.superuser.clone()
    }

    /// A client program such as `psql`: beside the server's own, or in PATH.
    pub fn program(&self, name: &str) -> PathBuf {
        let server = self.cluster.lock().unwrap().binaries().path("postgres").canonicalize().unwrap();
        let beside = server.with_file_name(name);
        if beside.exists() { beside } else { name.into() }
    }

    fn create(&self, sql: &str) {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
        Session::connect(&self.superuser).unwrap().execute_batch(sql).unwrap();
    }

    fn fresh_name(prefix: &str) -> String {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        format!("{prefix}_{}", NUMBER.fetch_add(1, Ordering::Relaxed))
    }

    /// A database with the queue's schema.
    pub fn queue(&self) -> Database {
        let name = Postgres::fresh_name("queue");
        self.create(&format!("CREATE DATABASE {name} TEMPLATE {TEMPLATE} OWNER {}", roles::OWNER));
        self.database(&name, &self.queue)
    }

    /// An empty database that belongs to `owner`.
    pub fn empty(&self, owner: &str) -> Database {
        let name = Postgres::fresh_name("empty");
        self.create(&format!("CREATE DATABASE {name} OWNER {owner}"));
        self.database(&name, &self.queue.clone().with("user", owner))
    }

    /// An empty database that jobs work on.
    pub fn work(&self) -> Database {
        let database = self.empty(roles::DEMO);
        Database { dsn: self.demo.clone().with("dbname", database.name()), superuser: database.superuser }
    }

    /// The database with all flights. Tests only read it.
    pub fn demo(&self) -> Database {
        static LOADED: Mutex<bool> = Mutex::new(false);
        let database = self.database(roles::DEMO_DATABASE, &self.demo);
        let mut loaded = LOADED.lock().unwrap();
        if !std::mem::replace(&mut *loaded, true) {
            let queue = self.queue();
            let queue = slowlane::cli::demo::Queue { dsn: &queue.dsn, name: "default" };
            slowlane::cli::demo::load_by_jobs(&queue, &database.dsn).unwrap();
        }
        database
    }

    fn database(&self, name: &str, login: &Dsn) -> Database {
        Database {
            dsn: login.clone().with("dbname", name),
            superuser: self.superuser.clone().with("dbname", name).with("options", "-c search_path=slowlane,public"),
        }
    }
}

/// One database, with the role that it is used by and one that may do anything.
#[derive(Clone)]
pub struct Database {
    pub dsn: Dsn,
    pub superuser: Dsn,
}

impl Database {
    pub fn name(&self) -> &str {
        self.superuser.get("dbname").unwrap()
    }

    /// A session of the superuser; `search_path` begins with `slowlane`.
    pub fn session(&self) -> Session {
        Session::connect(&self.superuser).unwrap()
    }

    pub fn run(&self, sql: &str) {
        self.session().execute_batch(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
    }

    /// The first value of the first row; empty for NULL and for no row.
    pub fn text(&self, sql: &str) -> String {
        let rows = self.session().query(sql, &[]).unwrap_or_else(|e| panic!("{sql}: {e}"));
        rows.get(0, 0).unwrap_or_default().to_owned()
    }

    pub fn count(&self, sql: &str) -> i64 {
        self.text(sql).parse().unwrap()
    }

    /// The server's version, such as 150018.
    pub fn version(&self) -> i32 {
        self.session().server_version()
    }

    /// A client program such as `psql`, told to use this database as `login` does.
    pub fn program(&self, name: &str, login: &Dsn) -> Command {
        let mut command = Command::new(Postgres::shared().program(name));
        let variables = [
            ("PGHOST", "host"),
            ("PGPORT", "port"),
            ("PGUSER", "user"),
            ("PGPASSWORD", "password"),
            ("PGDATABASE", "dbname"),
        ];
        for (variable, keyword) in variables {
            command.env(variable, login.get(keyword).unwrap());
        }
        command.env("PGTZ", "UTC");
        command
    }

    /// A Diesel connection as the service has it.
    pub fn service(&self) -> diesel::PgConnection {
        Manager::queue(&self.dsn, &Purpose { name: "test", statement_timeout: PATIENCE }).open().unwrap()
    }

    /// A Diesel connection as the owner of the schema has it.
    pub fn owner(&self) -> diesel::PgConnection {
        let dsn = self.dsn.clone().with("user", roles::OWNER);
        Manager::queue(&dsn, &Purpose { name: "test owner", statement_timeout: PATIENCE }).open().unwrap()
    }
}
