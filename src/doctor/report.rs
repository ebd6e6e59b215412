//! What the doctor found: facts, findings and how bad they are.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::queue::model::codes;

/// How bad a finding is. The exit status of `slowlane doctor` follows the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// It costs something, or will.
    Warning,
    /// Something doesn't work, or isn't safe.
    Error,
}

codes! {
    /// What a finding can be. docs/troubleshooting.md has an entry for each; a test compares.
    FindingCode {
        /// Autovacuum is off.
        AutovacuumOff = "autovacuum_off";
        /// A table of the queue has lost the autovacuum settings that its migration gave it.
        AutovacuumSettings = "autovacuum_settings";
        /// This machine's clock and the server's differ.
        ClockDifference = "clock_difference";
        /// The limit of a role or a database is below what a process opens.
        ConnectionLimit = "connection_limit";
        /// The server has fewer slots than the processes may open connections.
        ConnectionsShort = "connections_short";
        /// Many dead rows in a table of the queue.
        DeadRows = "dead_rows";
        /// The connection string is refused.
        DsnRefused = "dsn_refused";
        /// The connection string was written for another driver.
        DsnTranslated = "dsn_translated";
        /// The role ends sessions, or transactions, that slowlane needs.
        IdleTimeout = "idle_timeout";
        /// A transaction on a target was recorded, and nobody has found out yet what became of it.
        InDoubt = "in_doubt";
        /// An index of the queue is much larger than what is in it.
        IndexBloat = "index_bloat";
        /// An index is invalid.
        InvalidIndex = "invalid_index";
        /// Jobs wait that no living worker may claim.
        JobsUnserved = "jobs_unserved";
        /// The server writes its messages in another language.
        LcMessages = "lc_messages";
        /// Little WAL before a checkpoint, where results pass.
        MaxWalSize = "max_wal_size";
        /// The schema lacks migrations.
        MigrationsPending = "migrations_pending";
        /// No process runs jobs.
        NoWorkers = "no_workers";
        /// Something could not be looked at.
        NotLookedAt = "not_looked_at";
        /// A transaction has been open for long.
        OldTransaction = "old_transaction";
        /// A session of ours works for a job that nobody runs.
        OrphanedSession = "orphaned_session";
        /// Days of history are missing.
        PartitionsMissing = "partitions_missing";
        /// Days of history are on their way out and not gone.
        PartitionsLeft = "partitions_left";
        /// A pooler in between gives each transaction another session.
        Pooler = "pooler";
        /// A pooler in between keeps sessions.
        PoolerSessions = "pooler_sessions";
        /// A prepared transaction was forgotten.
        PreparedTransaction = "prepared_transaction";
        /// Progress can't show whom jobs wait for.
        ProgressLimited = "progress_limited";
        /// The queue is paused.
        QueuePaused = "queue_paused";
        /// The queue's server only reads.
        QueueReadOnly = "queue_read_only";
        /// A replication slot keeps old rows and WAL.
        ReplicationSlot = "replication_slot";
        /// The role may do more than it needs.
        RoleTooStrong = "role_too_strong";
        /// The role may not do what it needs.
        RoleTooWeak = "role_too_weak";
        /// The schema is newer than this slowlane.
        SchemaNewer = "schema_newer";
        /// The server is too old.
        ServerTooOld = "server_too_old";
        /// What an interrupted load of the demo left.
        StagingLeft = "staging_left";
        /// Results and uploads take nearly what they may.
        StoreFilling = "store_filling";
        /// Commits aren't durable by the server's default.
        SynchronousCommit = "synchronous_commit";
        /// A target only reads, and isn't declared so.
        TargetReadOnly = "target_read_only";
        /// Temporary files have no limit.
        TempFileLimit = "temp_file_limit";
        /// The connection isn't encrypted.
        TlsOff = "tls_off";
        /// The server doesn't say what sessions do.
        TrackActivities = "track_activities";
        /// A crash may lose or damage what was committed.
        UnsafeSettings = "unsafe_settings";
        /// A table of the queue doesn't survive a crash.
        UnloggedTable = "unlogged_table";
        /// No session came about.
        Unreachable = "unreachable";
        /// A process is dead, and its jobs aren't taken over yet.
        WorkerDead = "worker_dead";
    }
}

impl Serialize for FindingCode {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// Something that was found.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// Which one.
    pub code: FindingCode,
    /// How bad it is.
    pub severity: Severity,
    /// What is so, and what it costs.
    pub detail: String,
    /// What to do.
    pub fix: String,
    /// The SQL that does it, where SQL does; to be read before it is run.
    pub sql: Vec<String>,
}

impl Finding {
    /// A finding without SQL.
    pub fn new(code: FindingCode, severity: Severity, detail: impl Into<String>, fix: impl Into<String>) -> Finding {
        Finding { code, severity, detail: detail.into(), fix: fix.into(), sql: Vec::new() }
    }

    /// The same with one more statement.
    #[must_use]
    pub fn sql(mut self, sql: impl Into<String>) -> Finding {
        self.sql.push(sql.into());
        self
    }
}

/// What was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Subject {
    /// The queue's database.
    Queue,
    /// A database that work runs on.
    Target,
}

/// A step of connecting.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// Such as `resolve`, `connect`, `tls`, `login`.
    pub name: &'static str,
    /// How long it took, in milliseconds.
    pub ms: f64,
}

/// How a connection string was understood. Holds no secret.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Explained {
    /// The string as libpq gets it, secrets masked.
    pub dsn: String,
    /// Whom it was written for.
    pub written_for: Option<String>,
    /// What was changed on the way.
    pub changes: Vec<String>,
}

/// Everything about one database.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What it is to slowlane.
    pub subject: Subject,
    /// The target's name.
    pub name: Option<String>,
    /// How its string was understood.
    pub connection: Explained,
    /// The way to a session, in order.
    pub steps: Vec<Step>,
    /// What is so, good or bad, by stable names.
    pub facts: Map<String, Value>,
    /// What is to be done, the worst first.
    pub findings: Vec<Finding>,
}

impl Report {
    /// A report of which nothing is known yet.
    pub fn new(subject: Subject, name: Option<&str>) -> Report {
        Report {
            subject,
            name: name.map(str::to_owned),
            connection: Explained::default(),
            steps: Vec::new(),
            facts: Map::new(),
            findings: Vec::new(),
        }
    }

    /// The worst of the findings.
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(|finding| finding.severity).max()
    }

    /// Adds a finding.
    pub fn find(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// Notes a fact.
    pub fn fact(&mut self, name: &str, value: impl Into<Value>) {
        self.facts.insert(name.to_owned(), value.into());
    }

    /// The worst findings first; those that are as bad in the order in which they were found.
    pub(super) fn sort(&mut self) {
        self.findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    }
}
