//! The settings: each a flag, an environment variable and a key of slowlane.toml, in this order of precedence.
//!
//! Owns their names, their defaults and their checks. Opens no connection and starts nothing. Unknown keys are
//! refused; nothing that holds a secret can be printed, and none can be given as a flag, where `ps` shows it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use crate::dsn::{Dsn, DsnError, Parameter, Secret};

/// The file that is read when none is named and it is there.
pub const DEFAULT_FILE: &str = "slowlane.toml";
/// Where the server listens: loopback only.
const DEFAULT_LISTEN: &str = "127.0.0.1:8080";
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
/// How long a request waits for the database.
const DEFAULT_API_STATEMENT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long records of finished jobs are kept.
const DEFAULT_RETENTION: Duration = Duration::from_secs(30 * 86_400);
/// Bytes on disk of stored results: 20 GiB.
const DEFAULT_RESULT_STORE_BYTES: i64 = 20 * 1024 * 1024 * 1024;
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
    /// Wake other processes by NOTIFY; without it they poll [default: true]
    #[arg(value_name = "BOOL")]
    notify: bool, "SLOWLANE_NOTIFY";
    /// How long records of finished jobs are kept [default: 30d]
    retention: Span, "SLOWLANE_RETENTION";
    /// Bytes of stored results above which jobs with results are refused [default: 20 GiB]
    result_store_bytes: i64, "SLOWLANE_RESULT_STORE_BYTES";
    /// What is logged: a level, or levels by module as env_logger reads them [default: info]
    #[arg(value_name = "FILTER")]
    log: String, "SLOWLANE_LOG";
    /// How a log line looks [default: plain]
    log_format: LogFormat, "SLOWLANE_LOG_FORMAT";
}

/// Where the databases are. Given apart from [`Settings`] because `dev` has its own.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Connections {
    /// The queue's database, without a password; one with a password belongs into SLOWLANE_DATABASE_URL
    #[arg(long, value_name = "DSN")]
    pub database_url: Option<String>,
    /// A database that work runs on: a name, and the environment variable that holds its DSN; may be repeated
    #[arg(long, value_name = "NAME=VARIABLE", env = "SLOWLANE_TARGET", value_delimiter = ',')]
    pub target: Vec<String>,
}

const TARGET_KEYS: [&str; 5] = ["dsn", "dsn_env", "work_mem", "allow_unsafe_role", "read_only"];

/// `[targets.<name>]` of slowlane.toml.
#[derive(Clone, Deserialize)]
struct TargetEntry {
    dsn: Option<String>,
    dsn_env: Option<String>,
    work_mem: Option<String>,
    #[serde(default)]
    allow_unsafe_role: bool,
    #[serde(default)]
    read_only: bool,
}

/// What slowlane.toml says.
#[derive(Default)]
pub struct File {
    settings: Settings,
    database_url: Option<String>,
    api_token: Option<String>,
    data_dir: Option<String>,
    targets: BTreeMap<String, TargetEntry>,
}

/// A database that work runs on.
#[derive(Clone, Debug)]
pub struct TargetConfig {
    /// Where it is.
    pub dsn: Dsn,
    /// `work_mem` of its sessions; the server's own when absent.
    pub work_mem: Option<String>,
    /// A role with more rights than work needs is accepted. Defaults to no.
    pub allow_unsafe_role: bool,
    /// Its sessions can only read. Defaults to no.
    pub read_only: bool,
}

impl TargetConfig {
    /// A target with nothing said but where it is.
    pub fn at(dsn: Dsn) -> TargetConfig {
        TargetConfig { dsn, work_mem: None, allow_unsafe_role: false, read_only: false }
    }
}

/// The settings of a process, complete and checked. Each field is explained at [`Settings`].
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the fields are documented where they are given")]
pub struct Config {
    pub listen: SocketAddr,
    pub allowed_hosts: Vec<String>,
    pub api_token: Option<Secret>,
    pub queues: Vec<String>,
    pub workers: u32,
    pub api_connections: u32,
    pub control_connections: u32,
    pub result_connections: u32,
    pub api_statement_timeout: Duration,
    pub shutdown_grace: Duration,
    pub notify: bool,
    pub retention: Duration,
    pub result_store_bytes: i64,
    pub log: String,
    pub log_format: LogFormat,
}

/// A setting that can't be used. Never holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("{0}: {1}")]
    File(PathBuf, String),
    /// A setting has no valid value.
    #[error("{0}: {1}")]
    Invalid(&'static str, String),
    /// A connection string was refused.
    #[error("{0}: {1}")]
    Dsn(String, DsnError),
    /// A setting that must be there isn't.
    #[error("{0}")]
    Missing(String),
}

impl File {
    /// Reads slowlane.toml: the one that is named, or [`DEFAULT_FILE`] where it is there.
    ///
    /// # Errors
    /// When a named file isn't there, or a file holds what isn't TOML, or an unknown key.
    pub fn read(named: Option<&Path>) -> Result<File, ConfigError> {
        let path = named.unwrap_or(Path::new(DEFAULT_FILE));
        match std::fs::read_to_string(path) {
            Ok(text) => File::parse(&text).map_err(|what| ConfigError::File(path.to_owned(), what)),
            Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => Ok(File::default()),
            Err(error) => Err(ConfigError::File(path.to_owned(), error.to_string())),
        }
    }

    fn parse(text: &str) -> Result<File, String> {
        // toml's own message repeats the line, and with it perhaps a password.
        let place = |error: &toml::de::Error| {
            error.span().map_or_else(String::new, |span| {
                let line = text.get(..span.start).unwrap_or_default().lines().count().max(1);
                format!(" (line {line})")
            })
        };
        let mut table: toml::Table = text
            .parse()
            .map_err(|error: toml::de::Error| format!("it is not valid TOML{}: {}", place(&error), error.message()))?;
        let targets = table.remove("targets").map(read_targets).transpose()?;
        Ok(File {
            database_url: take_text(&mut table, "database_url")?,
            api_token: take_text(&mut table, "api_token")?,
            data_dir: take_text(&mut table, "data_dir")?,
            targets: targets.unwrap_or_default(),
            settings: serde_path_to_error::deserialize(table)
                .map_err(|error| format!("{}: {}", error.path(), error.inner().message()))?,
        })
    }
}

/// What stands here may be a connection string in the wrong place: no message repeats it.
fn read_targets(value: toml::Value) -> Result<BTreeMap<String, TargetEntry>, String> {
    let tables: BTreeMap<String, toml::Table> =
        value.try_into().map_err(|_| "targets: expected tables, such as [targets.default]".to_owned())?;
    let mut targets = BTreeMap::new();
    for (name, table) in tables {
        if let Some(unknown) = table.keys().find(|key| !TARGET_KEYS.contains(&key.as_str())) {
            return Err(format!("targets.{name}: unknown key {unknown}, expected one of: {}", TARGET_KEYS.join(", ")));
        }
        let entry = serde_path_to_error::deserialize(table)
            .map_err(|error| format!("targets.{name}.{}: a value of another type is expected", error.path()))?;
        targets.insert(name, entry);
    }
    Ok(targets)
}

impl File {
    /// The folder of `slowlane dev`, where the file names one.
    pub fn data_dir(&self) -> Option<PathBuf> {
        self.data_dir.as_ref().map(PathBuf::from)
    }
}

fn take_text(table: &mut toml::Table, key: &str) -> Result<Option<String>, String> {
    match table.remove(key) {
        None => Ok(None),
        Some(toml::Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(format!("{key}: expected a string")),
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn parse_dsn(setting: &str, text: &str, table: &[Parameter]) -> Result<Dsn, ConfigError> {
    Dsn::parse(text, table).map_err(|error| ConfigError::Dsn(setting.to_owned(), error))
}

impl Connections {
    /// The queue's database: the flag, `SLOWLANE_DATABASE_URL`, `DATABASE_URL`, then the file.
    ///
    /// # Errors
    /// When none of them says it, or what it says is refused.
    pub fn queue(&self, file: &File, table: &[Parameter]) -> Result<Dsn, ConfigError> {
        if let Some(text) = &self.database_url {
            let dsn = parse_dsn("--database-url", text, table)?;
            if dsn.has_password() {
                let why = "a password in a flag can be seen by every user of this machine: use SLOWLANE_DATABASE_URL";
                return Err(ConfigError::Invalid("--database-url", why.to_owned()));
            }
            return Ok(dsn);
        }
        for name in ["SLOWLANE_DATABASE_URL", "DATABASE_URL"] {
            if let Some(text) = variable(name) {
                return parse_dsn(name, &text, table);
            }
        }
        match &file.database_url {
            Some(text) => parse_dsn("database_url", text, table),
            None => Err(ConfigError::Missing(
                "no database is named for the queue: set SLOWLANE_DATABASE_URL, or database_url in slowlane.toml"
                    .to_owned(),
            )),
        }
    }

    /// The databases that work runs on.
    ///
    /// # Errors
    /// When there is none, or a connection string is missing or refused.
    pub fn targets(&self, file: &File, table: &[Parameter]) -> Result<BTreeMap<String, TargetConfig>, ConfigError> {
        let mut targets = BTreeMap::new();
        for (name, entry) in &file.targets {
            targets.insert(name.clone(), entry.resolve(name, table)?);
        }
        for given in &self.target {
            let (name, source) = given
                .split_once('=')
                .filter(|(name, source)| !name.is_empty() && !source.is_empty())
                .ok_or_else(|| {
                    ConfigError::Invalid(
                        "--target",
                        "expected NAME=VARIABLE, the variable being the one that holds the DSN".to_owned(),
                    )
                })?;
            targets.insert(name.to_owned(), TargetConfig::at(from_variable(&format!("target {name}"), source, table)?));
        }
        if targets.is_empty() {
            return Err(ConfigError::Missing(
                "no database is named that work runs on: add [targets.default] to slowlane.toml, or --target default=VARIABLE"
                    .to_owned(),
            ));
        }
        Ok(targets)
    }
}

fn from_variable(setting: &str, name: &str, table: &[Parameter]) -> Result<Dsn, ConfigError> {
    // A connection string in the place of a variable's name would be shown by the message.
    let is_name = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if !is_name {
        return Err(ConfigError::Missing(format!(
            "{setting}: expected the name of an environment variable that holds the DSN"
        )));
    }
    match variable(name) {
        Some(text) => parse_dsn(&format!("{setting} ({name})"), &text, table),
        None => Err(ConfigError::Missing(format!("{setting}: the environment variable {name} is not set"))),
    }
}

impl TargetEntry {
    fn resolve(&self, name: &str, table: &[Parameter]) -> Result<TargetConfig, ConfigError> {
        let setting = format!("targets.{name}");
        let dsn = match (&self.dsn, &self.dsn_env) {
            (Some(text), None) => parse_dsn(&setting, text, table)?,
            (None, Some(source)) => from_variable(&setting, source, table)?,
            _ => {
                return Err(ConfigError::Missing(format!("{setting}: expected either dsn or dsn_env")));
            }
        };
        Ok(TargetConfig {
            dsn,
            work_mem: self.work_mem.clone(),
            allow_unsafe_role: self.allow_unsafe_role,
            read_only: self.read_only,
        })
    }
}

fn at_least_one(setting: &'static str, given: Option<u32>, default: u32) -> Result<u32, ConfigError> {
    let value = given.unwrap_or(default);
    if (1..=MAX_WORKERS).contains(&value) {
        Ok(value)
    } else {
        Err(ConfigError::Invalid(setting, format!("expected 1 to {MAX_WORKERS}")))
    }
}

fn longer_than_nothing(setting: &'static str, given: Option<Span>, default: Duration) -> Result<Duration, ConfigError> {
    let value = given.map_or(default, |span| span.0);
    if value.is_zero() { Err(ConfigError::Invalid(setting, "expected more than 0".to_owned())) } else { Ok(value) }
}

impl Settings {
    /// What flags and environment say, then what the file says, then the defaults.
    ///
    /// # Errors
    /// For a value that can't be used.
    pub fn resolve(self, file: &File) -> Result<Config, ConfigError> {
        let api_token = self.api_token(file)?;
        let given = self.or(file.settings.clone());
        let default_listen =
            || DEFAULT_LISTEN.parse().map_err(|_| ConfigError::Invalid("listen", "no default".to_owned()));
        let queues = given.queues.unwrap_or_else(|| vec!["default".to_owned()]);
        if queues.is_empty() || queues.iter().any(String::is_empty) {
            return Err(ConfigError::Invalid("queues", "expected the names of queues".to_owned()));
        }
        let result_store_bytes = given.result_store_bytes.unwrap_or(DEFAULT_RESULT_STORE_BYTES);
        if result_store_bytes < 0 {
            return Err(ConfigError::Invalid("result_store_bytes", "expected 0 or more".to_owned()));
        }
        let timeout =
            longer_than_nothing("api_statement_timeout", given.api_statement_timeout, DEFAULT_API_STATEMENT_TIMEOUT)?;
        Ok(Config {
            listen: given.listen.map_or_else(default_listen, Ok)?,
            allowed_hosts: given.allowed_host.unwrap_or_default(),
            api_token,
            queues,
            workers: at_least_one("workers", given.workers, DEFAULT_WORKERS)?,
            api_connections: at_least_one("api_connections", given.api_connections, DEFAULT_API_CONNECTIONS)?,
            control_connections: at_least_one(
                "control_connections",
                given.control_connections,
                DEFAULT_CONTROL_CONNECTIONS,
            )?,
            result_connections: at_least_one(
                "result_connections",
                given.result_connections,
                DEFAULT_RESULT_CONNECTIONS,
            )?,
            api_statement_timeout: timeout,
            shutdown_grace: given.shutdown_grace.map_or(DEFAULT_SHUTDOWN_GRACE, |span| span.0),
            notify: given.notify.unwrap_or(true),
            retention: longer_than_nothing("retention", given.retention, DEFAULT_RETENTION)?,
            result_store_bytes,
            log: given.log.unwrap_or_else(|| DEFAULT_LOG.to_owned()),
            log_format: given.log_format.unwrap_or(LogFormat::Plain),
        })
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
        match token {
            Some(token) if token.is_empty() || token.chars().any(|c| c.is_whitespace() || c.is_control()) => {
                Err(ConfigError::Invalid("api_token", "expected a token without blanks".to_owned()))
            }
            token => Ok(token.map(Secret::new)),
        }
    }
}

/// Variables that look like settings and are none: a misspelt one must not be silently without effect.
pub fn unknown_variables(connections: &Connections) -> Vec<String> {
    const OTHERS: [&str; 5] =
        ["SLOWLANE_DATABASE_URL", "SLOWLANE_API_TOKEN", "SLOWLANE_TARGET", "SLOWLANE_CONFIG", "SLOWLANE_DATA_DIR"];
    let named =
        |name: &str| connections.target.iter().any(|given| given.split_once('=').is_some_and(|(_, v)| v == name));
    let mut unknown: Vec<String> = std::env::vars_os()
        .filter_map(|(name, _)| name.into_string().ok())
        // A DSN that a target may name.
        .filter(|name| name.starts_with("SLOWLANE_") && !name.ends_with("_URL"))
        .filter(|name| {
            !Settings::VARIABLES.contains(&name.as_str()) && !OTHERS.contains(&name.as_str()) && !named(name)
        })
        .collect();
    unknown.sort();
    unknown
}

impl Config {
    /// The settings as slowlane.toml would have them, secrets masked.
    pub fn print(&self, queue: &Dsn, targets: &BTreeMap<String, TargetConfig>) -> String {
        let text = |value: &str| toml::Value::String(value.to_owned()).to_string();
        let list = |values: &[String]| format!("[{}]", values.iter().map(|v| text(v)).collect::<Vec<_>>().join(", "));
        let span = |value: Duration| text(&Span(value).to_string());
        let mut lines = vec![
            format!("database_url = {}", text(&queue.masked())),
            format!("listen = {}", text(&self.listen.to_string())),
            format!("allowed_host = {}", list(&self.allowed_hosts)),
            format!("queues = {}", list(&self.queues)),
            format!("workers = {}", self.workers),
            format!("api_connections = {}", self.api_connections),
            format!("control_connections = {}", self.control_connections),
            format!("result_connections = {}", self.result_connections),
            format!("api_statement_timeout = {}", span(self.api_statement_timeout)),
            format!("shutdown_grace = {}", span(self.shutdown_grace)),
            format!("notify = {}", self.notify),
            format!("retention = {}", span(self.retention)),
            format!("result_store_bytes = {}", self.result_store_bytes),
            format!("log = {}", text(&self.log)),
            format!(
                "log_format = {}",
                text(match self.log_format {
                    LogFormat::Plain => "plain",
                    LogFormat::Json => "json",
                })
            ),
        ];
        if self.api_token.is_some() {
            lines.insert(1, "api_token = \"***\"".to_owned());
        }
        for (name, target) in targets {
            lines.push(format!("\n[targets.{}]", text(name)));
            lines.push(format!("dsn = {}", text(&target.dsn.masked())));
            if let Some(work_mem) = &target.work_mem {
                lines.push(format!("work_mem = {}", text(work_mem)));
            }
            lines.push(format!("allow_unsafe_role = {}", target.allow_unsafe_role));
            lines.push(format!("read_only = {}", target.read_only));
        }
        lines.join("\n") + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_are_refused_and_secrets_are_not_repeated() {
        let refused = |text: &str| File::parse(text).err().unwrap();
        assert!(refused("wrokers = 3").contains("wrokers"));
        assert!(refused("[targets.a]\ndns = \"x\"").contains("dns"));
        for broken in [
            "targets = \"hunter2\"",
            "[targets]\ndefault = \"hunter2\"",
            "[targets.a]\nread_only = \"hunter2\"",
            "database_url = \"postgres://u:hunter2@h/d",
            "database_url = [\"hunter2\"]",
            "x = hunter2\n",
        ] {
            assert!(!refused(broken).contains("hunter2"), "{}", refused(broken));
        }
    }

    #[test]
    fn flags_go_before_the_file_and_defaults_come_last() {
        let file = File::parse("workers = 3\nretention = \"7d\"\nlisten = \"127.0.0.1:1\"").unwrap();
        let flags = Settings { workers: Some(5), ..Settings::default() };
        let config = flags.resolve(&file).unwrap();
        assert_eq!((config.workers, config.retention.as_secs()), (5, 7 * 86_400));
        assert_eq!((config.listen.port(), config.api_connections), (1, DEFAULT_API_CONNECTIONS));
        let zero = Settings { workers: Some(0), ..Settings::default() };
        assert!(zero.resolve(&File::default()).unwrap_err().to_string().starts_with("workers"));
    }

    #[test]
    fn what_is_printed_can_be_read_back_and_holds_no_secret() {
        let table = [("host", false), ("user", false), ("password", true), ("dbname", false)]
            .map(|(keyword, secret)| Parameter { keyword: keyword.to_owned(), secret });
        let dsn = Dsn::parse("postgres://u:hunter2@h/d", &table).unwrap();
        let mut config = Settings::default().resolve(&File::default()).unwrap();
        config.api_token = Some(Secret::new("hunter2"));
        let text = config.print(&dsn, &BTreeMap::from([("default".to_owned(), TargetConfig::at(dsn.clone()))]));
        assert!(!text.contains("hunter2"), "{text}");
        assert!(File::parse(&text).is_ok(), "{text}");
    }
}
