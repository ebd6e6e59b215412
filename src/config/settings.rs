//! The list of settings, and how what was given of them becomes a [`Config`].

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use crate::config::{Config, ConfigError, File, Roles, variable};
use crate::dsn::{self, Secret};

/// Where the server listens: loopback only.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:8080";
/// The port of [`DEFAULT_LISTEN`].
const DEFAULT_PORT: u16 = 8080;
/// Threads that run jobs.
const DEFAULT_WORKERS: u32 = 8;
/// The most threads that can be asked for.
const MAX_WORKERS: u32 = 1_000;
/// Connections for the requests' reads.
const DEFAULT_API_CONNECTIONS: u32 = 4;
/// Connections for claims and ends.
const DEFAULT_CONTROL_CONNECTIONS: u32 = 2;
/// Connections for parts of results.
const DEFAULT_RESULT_CONNECTIONS: u32 = 4;
/// How long running work may take to end after SIGTERM.
const DEFAULT_SHUTDOWN_GRACE: Duration = Duration::from_secs(30);
/// How long a start waits for the queue's database: as long as an orchestrator's own start of a database may take.
const DEFAULT_WAIT_FOR_QUEUE: Duration = Duration::from_secs(60);
/// How long a request waits for the database.
const DEFAULT_API_STATEMENT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a process goes without looking for jobs when no hint wakes it.
const DEFAULT_POLL: Duration = Duration::from_secs(1);
/// How long records of finished jobs are kept.
const DEFAULT_RETENTION: Duration = Duration::from_secs(30 * 86_400);
/// Bytes on disk of stored results: 20 GiB.
const DEFAULT_RESULT_STORE_BYTES: i64 = 20 * 1024 * 1024 * 1024;
/// The largest upload: 10 GiB.
const DEFAULT_UPLOAD_LIMIT_BYTES: i64 = 10 * 1024 * 1024 * 1024;
/// How long nothing may come of a body.
const DEFAULT_UPLOAD_IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// What is logged.
const DEFAULT_LOG: &str = "info,actix_server=warn";

/// A duration written as `30s`, `500ms` or `30d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Span, Self::Err> {
        humantime::parse_duration(text).map(Span).map_err(|_| "expected a duration such as 30s, 500ms or 30d")
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", humantime::format_duration(self.0))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Span, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Plain,
    /// One JSON object a line.
    Json,
}

/// Of which jobs a line is logged when an attempt of theirs ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogJobs {
    /// Of all, those that failed as warnings.
    All,
    /// Of those alone that ended as failed.
    Failed,
    /// Of none.
    None,
}

impl LogJobs {
    /// The word in slowlane.toml.
    pub fn as_str(self) -> &'static str {
        match self {
            LogJobs::All => "all",
            LogJobs::Failed => "failed",
            LogJobs::None => "none",
        }
    }
}

/// Makes the settings from one list: a struct for flags, environment and file, and the way of one over the other.
macro_rules! settings {
    ($($(#[$meta:meta])* $name:ident: $type:ty, $env:literal;)*) => {
        /// The settings of a process, as far as they were given.
        #[derive(Clone, Debug, Default, Deserialize, clap::Args)]
        #[serde(deny_unknown_fields, default)]
        pub struct Settings {
            $($(#[$meta])* #[arg(long, env = $env)] pub $name: Option<$type>,)*
        }

        impl Settings {
            /// The key of every setting in slowlane.toml.
            pub const KEYS: &'static [&'static str] = &[$(stringify!($name),)*];
            /// The environment variable of every setting.
            pub const VARIABLES: &'static [&'static str] = &[$($env,)*];

            /// What is given here, and for the rest what `other` says.
            #[must_use]
            pub fn or(self, other: Settings) -> Settings {
                Settings { $($name: self.$name.or(other.$name),)* }
            }
        }
    };
}

settings! {
    /// Address and port to listen on; beyond loopback only with a token [default: 127.0.0.1:8080]
    listen: SocketAddr, "SLOWLANE_LISTEN";
    /// Serve HTTP only: jobs are run by other processes
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    no_workers: bool, "SLOWLANE_NO_WORKERS";
    /// Run jobs only: HTTP is served by other processes
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    no_http: bool, "SLOWLANE_NO_HTTP";
    /// A second address, for /healthz, /readyz and /metrics alone; the only one with --no-http [default: none]
    #[arg(value_name = "ADDRESS")]
    probe_listen: SocketAddr, "SLOWLANE_PROBE_LISTEN";
    /// A name that the Host header may carry beside loopback names; may be repeated or separated by commas
    #[arg(value_delimiter = ',', value_name = "NAME")]
    allowed_host: Vec<String>, "SLOWLANE_ALLOWED_HOST";
    /// A file that holds the token which requests must carry; SLOWLANE_API_TOKEN may hold the token itself
    #[arg(value_name = "FILE")]
    api_token_file: PathBuf, "SLOWLANE_API_TOKEN_FILE";
    /// The queues that this process serves, separated by commas [default: default]
    #[arg(value_delimiter = ',', value_name = "NAME")]
    queues: Vec<String>, "SLOWLANE_QUEUES";
    /// Threads that run jobs [default: 8]
    workers: u32, "SLOWLANE_WORKERS";
    /// Connections for reads of requests [default: 4]
    api_connections: u32, "SLOWLANE_API_CONNECTIONS";
    /// Connections for claims and ends of jobs [default: 2]
    control_connections: u32, "SLOWLANE_CONTROL_CONNECTIONS";
    /// Connections for storing results [default: 4]
    result_connections: u32, "SLOWLANE_RESULT_CONNECTIONS";
    /// How long a request waits for the database [default: 2s]
    api_statement_timeout: Span, "SLOWLANE_API_STATEMENT_TIMEOUT";
    /// How long running jobs may take to end after SIGTERM [default: 30s]
    shutdown_grace: Span, "SLOWLANE_SHUTDOWN_GRACE";
    /// How long a start waits for a queue's database that can't be reached; 0 fails at once [default: 60s]
    wait_for_queue: Span, "SLOWLANE_WAIT_FOR_QUEUE";
    /// Start although a target is wrong for good, such as a role that is too strong; its jobs wait [default: false]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    start_without_targets: bool, "SLOWLANE_START_WITHOUT_TARGETS";
    /// Wake other processes by NOTIFY; without it they poll [default: true]
    #[arg(value_name = "BOOL")]
    notify: bool, "SLOWLANE_NOTIFY";
    /// How long records of finished jobs are kept [default: 30d]
    retention: Span, "SLOWLANE_RETENTION";
    /// Bytes of stored results and uploads above which further ones are refused [default: 20 GiB]
    result_store_bytes: i64, "SLOWLANE_RESULT_STORE_BYTES";
    /// The most bytes of one upload, as it is sent [default: 10 GiB]
    upload_limit_bytes: i64, "SLOWLANE_UPLOAD_LIMIT_BYTES";
    /// How long an upload may stay silent; a MiB of it may take ten times as long [default: 30s]
    upload_idle_timeout: Span, "SLOWLANE_UPLOAD_IDLE_TIMEOUT";
    /// The folder of saved statements, which callers run by their names [default: none]
    #[arg(value_name = "FOLDER")]
    statements: PathBuf, "SLOWLANE_STATEMENTS";
    /// Refuse a connection string that would have to be translated [default: false]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    dsn_strict: bool, "SLOWLANE_DSN_STRICT";
    /// What is logged: a level, or levels by module as env_logger reads them [default: info]
    #[arg(value_name = "FILTER")]
    log: String, "SLOWLANE_LOG";
    /// How a log line looks [default: plain]
    log_format: LogFormat, "SLOWLANE_LOG_FORMAT";
    /// Which jobs have a line in the log when they end: failed ones at level warn, the others at level info [default: all]
    log_jobs: LogJobs, "SLOWLANE_LOG_JOBS";
}

fn expect(holds: bool, setting: &'static str, expected: impl Into<String>) -> Result<(), ConfigError> {
    if holds { Ok(()) } else { Err(ConfigError::Invalid(setting, expected.into())) }
}

fn set<T>(place: &mut T, given: Option<T>) {
    if let Some(value) = given {
        *place = value;
    }
}

fn set_span(place: &mut Duration, given: Option<Span>) {
    set(place, given.map(|span| span.0));
}

impl Default for Config {
    fn default() -> Config {
        Config {
            listen: SocketAddr::from(([127, 0, 0, 1], DEFAULT_PORT)),
            probe_listen: None,
            roles: Roles { http: true, workers: true },
            allowed_hosts: Vec::new(),
            api_token: None,
            queues: vec!["default".to_owned()],
            workers: DEFAULT_WORKERS,
            api_connections: DEFAULT_API_CONNECTIONS,
            control_connections: DEFAULT_CONTROL_CONNECTIONS,
            result_connections: DEFAULT_RESULT_CONNECTIONS,
            api_statement_timeout: DEFAULT_API_STATEMENT_TIMEOUT,
            shutdown_grace: DEFAULT_SHUTDOWN_GRACE,
            wait_for_queue: DEFAULT_WAIT_FOR_QUEUE,
            start_without_targets: false,
            notify: true,
            poll: DEFAULT_POLL,
            retention: DEFAULT_RETENTION,
            result_store_bytes: DEFAULT_RESULT_STORE_BYTES,
            upload_limit_bytes: DEFAULT_UPLOAD_LIMIT_BYTES,
            upload_idle_timeout: DEFAULT_UPLOAD_IDLE_TIMEOUT,
            statements: None,
            dsn_strict: false,
            log: DEFAULT_LOG.to_owned(),
            log_format: LogFormat::Plain,
            log_jobs: LogJobs::All,
        }
    }
}

impl Config {
    /// Checks what was set field by field.
    ///
    /// # Errors
    /// For a value that can't be used.
    pub fn check(&self) -> Result<(), ConfigError> {
        let named = !self.queues.is_empty() && !self.queues.iter().any(String::is_empty);
        expect(named, "queues", "expected the names of queues")?;
        // Answers and lines of the log show them as they are. A host may stand with its port, or as an address in
        // brackets.
        let why = "it holds marks of a connection string, which belongs elsewhere: expected";
        let is_host = |host: &String| {
            let (name, port) = host.rsplit_once(':').unwrap_or((host, ""));
            let is_address = host.trim_matches(['[', ']']).parse::<std::net::Ipv6Addr>().is_ok();
            is_address || dsn::is_plain(name.trim_matches(['[', ']', ':'])) && port.bytes().all(|b| b.is_ascii_digit())
        };
        let queues = self.queues.iter().all(|queue| dsn::is_plain(queue));
        expect(queues, "queues", format!("{why} letters, digits, `_`, `-`, `.`, `/`"))?;
        expect(self.allowed_hosts.iter().all(is_host), "allowed_host", format!("{why} names of hosts"))?;
        let folder = self.statements.iter().map(|folder| folder.display().to_string());
        let misplaced = folder.into_iter().any(|folder| dsn::may_be_a_connection_string(&folder));
        expect(!misplaced, "statements", "it looks like a connection string, which belongs elsewhere")?;
        expect(self.result_store_bytes >= 0, "result_store_bytes", "expected 0 or more")?;
        expect(self.upload_limit_bytes >= 0, "upload_limit_bytes", "expected 0 or more")?;
        let why = "together with no_http nothing is left to do: leave one of them out";
        expect(self.roles.http || self.roles.workers, "no_workers", why)?;
        for (setting, span) in [
            ("api_statement_timeout", self.api_statement_timeout),
            ("retention", self.retention),
            ("upload_idle_timeout", self.upload_idle_timeout),
        ] {
            expect(!span.is_zero(), setting, "expected more than 0")?;
        }
        for (setting, number) in [
            ("workers", self.workers),
            ("api_connections", self.api_connections),
            ("control_connections", self.control_connections),
            ("result_connections", self.result_connections),
        ] {
            expect((1..=MAX_WORKERS).contains(&number), setting, format!("expected 1 to {MAX_WORKERS}"))?;
        }
        let blank = |c: char| c.is_whitespace() || c.is_control();
        let whole = |token: &Secret| !token.expose().is_empty() && !token.expose().contains(blank);
        expect(self.api_token.as_ref().is_none_or(whole), "api_token", "expected a token without blanks")
    }
}

impl Settings {
    /// What flags and environment say, then what the file says, then the defaults.
    ///
    /// # Errors
    /// For a value that can't be used.
    pub fn resolve(self, file: &File) -> Result<Config, ConfigError> {
        let mut config = Config { api_token: self.api_token(file)?, ..Config::default() };
        self.or(file.settings.clone()).apply(&mut config);
        config.check()?;
        Ok(config)
    }

    fn apply(self, config: &mut Config) {
        set(&mut config.listen, self.listen);
        set(&mut config.probe_listen, self.probe_listen.map(Some));
        set(&mut config.roles.http, self.no_http.map(|no| !no));
        set(&mut config.roles.workers, self.no_workers.map(|no| !no));
        set(&mut config.allowed_hosts, self.allowed_host);
        set(&mut config.queues, self.queues);
        set(&mut config.workers, self.workers);
        set(&mut config.api_connections, self.api_connections);
        set(&mut config.control_connections, self.control_connections);
        set(&mut config.result_connections, self.result_connections);
        set_span(&mut config.api_statement_timeout, self.api_statement_timeout);
        set_span(&mut config.shutdown_grace, self.shutdown_grace);
        set_span(&mut config.wait_for_queue, self.wait_for_queue);
        set(&mut config.start_without_targets, self.start_without_targets);
        set(&mut config.notify, self.notify);
        set_span(&mut config.retention, self.retention);
        set(&mut config.result_store_bytes, self.result_store_bytes);
        set(&mut config.upload_limit_bytes, self.upload_limit_bytes);
        set_span(&mut config.upload_idle_timeout, self.upload_idle_timeout);
        set(&mut config.statements, self.statements.map(Some));
        set(&mut config.dsn_strict, self.dsn_strict);
        set(&mut config.log, self.log);
        set(&mut config.log_format, self.log_format);
        set(&mut config.log_jobs, self.log_jobs);
    }

    fn api_token(&self, file: &File) -> Result<Option<Secret>, ConfigError> {
        let read = |path: &PathBuf| {
            let text = std::fs::read_to_string(path).map_err(|e| ConfigError::File(path.clone(), e.to_string()))?;
            Ok(Some(text.trim().to_owned()))
        };
        let token = match (variable("SLOWLANE_API_TOKEN"), &self.api_token_file, &file.settings.api_token_file) {
            (Some(_), Some(_), _) => {
                let why = "both SLOWLANE_API_TOKEN and a file are given: unset one of them";
                return Err(ConfigError::Invalid("api_token_file", why.to_owned()));
            }
            (Some(token), None, _) => Some(token),
            (None, Some(path), _) => read(path)?,
            (None, None, Some(path)) if file.api_token.is_none() => read(path)?,
            (None, None, _) => file.api_token.clone(),
        };
        Ok(token.map(Secret::new))
    }
}
