//! A Postgres of the benchmark's own: durable, with the roles and databases that slowlane has, gone with the process.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use slowlane::cluster::{Cluster, ClusterOptions};
use slowlane::db::pool::Manager;
use slowlane::db::roles::{self, Passwords};
use slowlane::dsn::Dsn;
use slowlane::pq::Session;

const PASSWORD: &str = "only-for-the-benchmark";
const TEMPLATE: &str = "slowlane_template";

/// What the server is told, beside its defaults.
pub const SETTINGS: [(&str, &str); 8] = [
    ("fsync", "on"),
    ("synchronous_commit", "on"),
    ("full_page_writes", "on"),
    ("max_connections", "200"),
    ("shared_buffers", "1GB"),
    ("max_wal_size", "8GB"),
    ("checkpoint_timeout", "30min"),
    // The same rows in the same order, whoever reads them.
    ("synchronize_seqscans", "off"),
];

pub struct Postgres {
    cluster: Cluster,
    folder: PathBuf,
}

/// One database: as the service or a work role has it, and as the superuser does.
#[derive(Clone)]
pub struct Database {
    pub dsn: Dsn,
    pub superuser: Dsn,
}

/// Removes the cluster when this process is gone, however it went.
#[expect(clippy::zombie_processes, reason = "it outlives this process: that is what it is for")]
fn watch(folder: &Path) {
    let script = "while kill -0 $0 2>/dev/null; do sleep 0.5; done
        pid=$(head -1 $1/cluster/pgdata/postmaster.pid 2>/dev/null) && kill -QUIT $pid; sleep 1; rm -rf $1";
    Command::new("sh")
        .args(["-c", script, &std::process::id().to_string(), folder.to_str().unwrap()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
}

impl Postgres {
    pub fn start() -> Postgres {
        let folder = tempfile::Builder::new().prefix("slowlane-bench-").tempdir().unwrap().keep();
        watch(&folder);
        // The cluster's user must get to its own part of it.
        std::fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
        let settings = SETTINGS.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let cluster = Cluster::start(ClusterOptions { data_dir: folder.join("cluster"), settings }).unwrap();
        let postgres = Postgres { cluster, folder };
        let passwords = Passwords { owner: PASSWORD.into(), queue: PASSWORD.into(), demo: PASSWORD.into() };
        let superuser = postgres.superuser("postgres");
        roles::set_up(&mut Manager::work(&superuser, "SELECT 1").open().unwrap(), &passwords).unwrap();
        postgres.create(TEMPLATE, &format!("OWNER {}", roles::OWNER));
        slowlane::migrate(postgres.login(roles::OWNER, TEMPLATE)).unwrap();
        postgres
    }

    /// A folder for files; it goes with the cluster.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn superuser(&self, database: &str) -> Dsn {
        self.cluster.superuser(database).unwrap().with("options", "-c search_path=slowlane,public")
    }

    fn login(&self, role: &str, database: &str) -> Dsn {
        self.cluster.login(role, PASSWORD, database).unwrap()
    }

    fn create(&self, name: &str, how: &str) {
        let sql = format!("CREATE DATABASE {name} {how}");
        Session::connect(&self.superuser("postgres")).unwrap().execute_batch(&sql).unwrap();
    }

    fn fresh(&self, how: &str, role: &str) -> Database {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("bench_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        self.create(&name, how);
        Database { dsn: self.login(role, &name), superuser: self.superuser(&name) }
    }

    /// A database with the queue's schema.
    pub fn queue(&self) -> Database {
        self.fresh(&format!("TEMPLATE {TEMPLATE} OWNER {}", roles::OWNER), roles::QUEUE)
    }

    /// An empty database that jobs work on.
    pub fn target(&self) -> Database {
        self.fresh(&format!("OWNER {}", roles::DEMO), roles::DEMO)
    }

    /// A client program such as `psql`, of the server's own version, told to use a database.
    pub fn program(&self, name: &str, dsn: &Dsn) -> Command {
        let server = self.cluster.binaries().path("postgres").canonicalize().unwrap();
        let beside = server.with_file_name(name);
        let mut command = Command::new(if beside.exists() { beside } else { name.into() });
        let variables = [
            ("PGHOST", "host"),
            ("PGPORT", "port"),
            ("PGUSER", "user"),
            ("PGPASSWORD", "password"),
            ("PGDATABASE", "dbname"),
            ("PGOPTIONS", "options"),
        ];
        for (variable, keyword) in variables {
            command.env(variable, dsn.get(keyword).unwrap_or_default());
        }
        command.env("PGTZ", "UTC").stdin(Stdio::null());
        command
    }

    /// Inserts of single rows by pgbench's clients, prepared, each with a commit of its own.
    pub fn pgbench(&self, database: &Database, script: &str, clients: u32, seconds: u32) -> PgbenchRun {
        let file = self.folder.join("pgbench.sql");
        std::fs::write(&file, script).unwrap();
        let (clients, seconds) = (clients.to_string(), seconds.to_string());
        let mut command = self.program("pgbench", &database.superuser);
        command.args(["-n", "-M", "prepared", "-c", &clients, "-j", "1", "-T", &seconds, "-f"]).arg(&file);
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        let after = |label: &str| {
            let rest = text.split_once(label).unwrap_or_else(|| panic!("no {label} in {text}")).1;
            rest.split(|c: char| !c.is_ascii_digit() && c != '.').next().unwrap().parse::<f64>().unwrap()
        };
        PgbenchRun {
            per_second: after("tps = "),
            transactions: after("number of transactions actually processed: ").round() as i64,
        }
    }
}

pub struct PgbenchRun {
    pub per_second: f64,
    pub transactions: i64,
}

impl Database {
    /// A session of the superuser; `search_path` begins with `slowlane`.
    pub fn session(&self) -> Session {
        Session::connect(&self.superuser).unwrap()
    }

    pub fn run(&self, sql: &str) {
        self.session().execute_batch(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
    }

    /// The first value of the first row.
    pub fn text(&self, sql: &str) -> String {
        let rows = self.session().query(sql, &[]).unwrap_or_else(|e| panic!("{sql}: {e}"));
        rows.get(0, 0).unwrap_or_default().to_owned()
    }

    pub fn count(&self, sql: &str) -> i64 {
        self.text(sql).parse().unwrap_or_else(|e| panic!("{sql}: {e}"))
    }

    /// Empties the queue, and has what was written before reach the disk: the next measure pays for itself alone.
    pub fn clear(&self) {
        self.run(
            "TRUNCATE jobs, finished_jobs, attempts, job_log, result_parts, results, job_progress, idempotency_keys",
        );
        self.run("CHECKPOINT");
    }
}
