//! The settings: each a flag, an environment variable and a key of slowlane.toml, in this order of precedence.
//!
//! Owns their names, their defaults and their checks. Opens no connection and starts nothing. Unknown keys are
//! refused; nothing that holds a secret can be printed, and none can be given as a flag, where `ps` shows it.
//!
//! | file | what it has |
//! | --- | --- |
//! | [`settings`] | the list of settings, and how they become a [`Config`] |
//! | [`connections`] | where the databases are |
//! | [`reader`] | how a connection string is read |
//! | [`mod@file`] | what slowlane.toml says |

pub mod connections;
pub mod file;
pub mod reader;
pub mod settings;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub(crate) use connections::check_name as check_target_name;
pub use connections::{Connections, demo_database};
pub use file::File;
pub use reader::DsnReader;
pub use settings::{DEFAULT_LISTEN, LogFormat, LogJobs, Settings, Span};

use crate::dsn::{self, Dsn, DsnError, Secret};
use crate::target::TargetSettings;
use connections::DEMO_VARIABLE;

/// The settings of a process, complete and checked. Each field is explained at [`Settings`].
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the fields are documented where they are given")]
pub struct Config {
    pub listen: SocketAddr,
    pub probe_listen: Option<SocketAddr>,
    pub roles: Roles,
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
    pub wait_for_queue: Duration,
    pub start_without_targets: bool,
    /// How long a process goes without looking for jobs when no hint wakes it. No setting: a second is what a lost hint
    /// costs.
    pub poll: Duration,
    pub retention: Duration,
    pub result_store_bytes: i64,
    pub upload_limit_bytes: i64,
    pub upload_idle_timeout: Duration,
    pub statements: Option<PathBuf>,
    pub dsn_strict: bool,
    pub log: String,
    pub log_format: LogFormat,
    pub log_jobs: LogJobs,
}

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roles {
    /// It serves the HTTP contract.
    pub http: bool,
    /// It runs jobs.
    pub workers: bool,
}

/// A setting that can't be used. Never holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("{shown}: {1}", shown = dsn::path_or(.0, "the file that is named"))]
    File(PathBuf, String),
    /// A setting has no valid value.
    #[error("{0}: {1}")]
    Invalid(&'static str, String),
    /// A connection string was refused.
    #[error("{0}: {1}")]
    Dsn(String, DsnError),
    /// A connection string isn't libpq's own, and has to be.
    #[error("{0}: it would be translated, and dsn_strict forbids that: {1}; write {2}")]
    Translated(String, String, String),
    /// A setting that must be there isn't.
    #[error("{0}")]
    Missing(String),
}

/// A target whose place can't be told from the settings, where the process starts nevertheless.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedTarget {
    /// The stable word for why.
    pub code: &'static str,
    /// Why, for everybody: it holds nothing of a connection string.
    pub reason: String,
}

impl From<&ConfigError> for RefusedTarget {
    fn from(error: &ConfigError) -> RefusedTarget {
        let (code, reason) = match error {
            ConfigError::Dsn(setting, error) => (error.code.as_str(), format!("{setting}: {}", error.message)),
            ConfigError::Translated(setting, ..) => {
                ("dsn_strict", format!("{setting}: it would be translated, and dsn_strict forbids that"))
            }
            ConfigError::Missing(reason) => ("dsn_missing", reason.clone()),
            ConfigError::File(..) | ConfigError::Invalid(..) => ("invalid_setting", error.to_string()),
        };
        RefusedTarget { code, reason }
    }
}

impl std::fmt::Display for RefusedTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}; mend that, and start the process again", self.code, self.reason)
    }
}

/// What a variable holds. One that is set to nothing counts as unset.
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Variables that are read besides the settings'.
const OTHER_VARIABLES: [&str; 6] = [
    "SLOWLANE_DATABASE_URL",
    "SLOWLANE_API_TOKEN",
    "SLOWLANE_TARGET",
    "SLOWLANE_CONFIG",
    "SLOWLANE_DATA_DIR",
    "SLOWLANE_POSTGRES_BIN",
];
/// How alike two names have to be for one to be taken for the other, misspelt.
const ALIKE: f64 = 0.85;

/// The variable that is read and whose name is most like this one's, where one is like it.
pub fn similar_variable(name: &str) -> Option<&'static str> {
    let known = Settings::VARIABLES.iter().copied().chain(OTHER_VARIABLES);
    // They all begin alike.
    let rest = |name: &str| name.trim_start_matches("SLOWLANE_").to_owned();
    let scored = known.map(|known| (strsim::jaro_winkler(&rest(known), &rest(name)), known));
    best(scored)
}

/// The known key that is most like this one, where one is like it.
fn most_alike<'k>(key: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    best(known.map(|known| (strsim::jaro_winkler(known, key), known)))
}

fn best<'k>(scored: impl Iterator<Item = (f64, &'k str)>) -> Option<&'k str> {
    scored.filter(|(score, _)| *score >= ALIKE).max_by(|one, other| one.0.total_cmp(&other.0)).map(|(_, known)| known)
}

/// Variables that look like settings and are none: a misspelt one must not be silently without effect.
pub fn unknown_variables(connections: &Connections, file: &File) -> Vec<String> {
    let named = |name: &str| {
        connections.target.iter().any(|given| given.split_once('=').is_some_and(|(_, v)| v == name))
            || file.names_variable(name)
    };
    let mut unknown: Vec<String> = std::env::vars_os()
        .filter_map(|(name, _)| name.into_string().ok())
        .filter(|name| name.starts_with("SLOWLANE_"))
        // A DSN for another program's use, or for another subcommand's.
        .filter(|name| !name.ends_with("_URL") || name != DEMO_VARIABLE && similar_variable(name).is_some())
        .filter(|name| {
            !Settings::VARIABLES.contains(&name.as_str()) && !OTHER_VARIABLES.contains(&name.as_str()) && !named(name)
        })
        .collect();
    unknown.sort();
    unknown
}

impl Config {
    /// Connections to the queue's server that a process with these settings may open, as docs/operations.md counts
    /// them.
    pub fn queue_connections(&self) -> u32 {
        let listener = u32::from(self.notify);
        // The heartbeat and the janitor.
        let of_workers = if self.roles.workers { self.result_connections.saturating_add(2) } else { 0 };
        let writer = u32::from(self.roles.http);
        let parts = [self.api_connections, self.control_connections, of_workers, writer, listener];
        parts.into_iter().fold(0, u32::saturating_add)
    }

    /// The settings as slowlane.toml would have them, secrets masked. Targets that this process doesn't open are shown
    /// by their names alone.
    pub fn print(
        &self,
        queue: &Dsn,
        names: &BTreeMap<String, bool>,
        targets: &BTreeMap<String, TargetSettings>,
    ) -> String {
        let text = |value: &str| toml::Value::String(value.to_owned()).to_string();
        let list = |values: &[String]| format!("[{}]", values.iter().map(|v| text(v)).collect::<Vec<_>>().join(", "));
        let shown = |values: &[String]| values.iter().map(|v| dsn::plain_or(v, "***").to_owned()).collect::<Vec<_>>();
        let span = |value: Duration| text(&Span(value).to_string());
        let mut lines = vec![
            format!("database_url = {}", text(&queue.masked())),
            format!("listen = {}", text(&self.listen.to_string())),
            format!("no_http = {}", !self.roles.http),
            format!("no_workers = {}", !self.roles.workers),
            format!("allowed_host = {}", list(&shown(&self.allowed_hosts))),
            format!("queues = {}", list(&shown(&self.queues))),
            format!("workers = {}", self.workers),
            format!("api_connections = {}", self.api_connections),
            format!("control_connections = {}", self.control_connections),
            format!("result_connections = {}", self.result_connections),
            format!("api_statement_timeout = {}", span(self.api_statement_timeout)),
            format!("shutdown_grace = {}", span(self.shutdown_grace)),
            format!("notify = {}", self.notify),
            format!("wait_for_queue = {}", span(self.wait_for_queue)),
            format!("start_without_targets = {}", self.start_without_targets),
            format!("retention = {}", span(self.retention)),
            format!("result_store_bytes = {}", self.result_store_bytes),
            format!("upload_limit_bytes = {}", self.upload_limit_bytes),
            format!("upload_idle_timeout = {}", span(self.upload_idle_timeout)),
            format!("dsn_strict = {}", self.dsn_strict),
            format!("log = {}", text(&shown_filter(&self.log))),
            format!(
                "log_format = {}",
                text(match self.log_format {
                    LogFormat::Plain => "plain",
                    LogFormat::Json => "json",
                })
            ),
            format!("log_jobs = {}", text(self.log_jobs.as_str())),
        ];
        if let Some(address) = self.probe_listen {
            lines.insert(2, format!("probe_listen = {}", text(&address.to_string())));
        }
        if let Some(folder) = &self.statements {
            lines.insert(2, format!("statements = {}", text(&dsn::path_or(folder, "***"))));
        }
        if self.api_token.is_some() {
            lines.insert(1, "api_token = \"***\"".to_owned());
        }
        for (name, statements_only) in names {
            lines.push(format!("\n[targets.{}]", text(name)));
            lines.push(format!("statements_only = {statements_only}"));
            let Some(target) = targets.get(name) else { continue };
            lines.push(format!("dsn = {}", text(&target.dsn.masked())));
            if let Some(work_mem) = &target.spec.work_mem {
                lines.push(format!("work_mem = {}", text(if dsn::is_memory(work_mem) { work_mem } else { "***" })));
            }
            if let Some(zone) = &target.spec.time_zone {
                // A connection string in its place isn't repeated.
                let is_name = zone.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'/' | b'+' | b'-'));
                lines.push(format!("time_zone = {}", text(if is_name { zone } else { "***" })));
            }
            if let Some(ms) = target.spec.lock_timeout_ms {
                lines.push(format!("lock_timeout_ms = {ms}"));
            }
            lines.push(format!("allow_unsafe_role = {}", target.spec.allow_unsafe_role));
            lines.push(format!("read_only = {}", target.spec.read_only));
            lines.push(format!("synchronous = {}", target.spec.synchronous));
        }
        lines.join("\n") + "\n"
    }
}

/// A filter of the log as it may be shown: levels, modules with levels, and a pattern behind a `/`.
fn shown_filter(filter: &str) -> String {
    let (levels, pattern) = filter.split_once('/').map_or((filter, None), |(levels, pattern)| (levels, Some(pattern)));
    let is_directive = |text: &str| {
        let (module, level) = text.split_once('=').unwrap_or((text, "off"));
        dsn::is_plain(&module.replace(':', "")) && level.parse::<log::LevelFilter>().is_ok()
    };
    let levels = if levels.split(',').all(|text| is_directive(text.trim())) { levels } else { "***" };
    pattern.map_or(levels.to_owned(), |pattern| format!("{levels}/{}", dsn::plain_or(pattern, "***")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dsn::Parameter;

    #[test]
    fn unknown_keys_are_refused_and_secrets_are_not_repeated() {
        let refused = |text: &str| File::parse(text).err().unwrap();
        assert_eq!(refused("wokers = 3"), "unknown key wokers: is it workers?");
        assert_eq!(refused("[targets.a]\ndns_env = \"x\""), "targets.a: unknown key dns_env: is it dsn_env?");
        assert!(refused("colour = 3").starts_with("unknown key colour, expected one of: listen, "));
        assert_eq!(refused("workers = \"many\""), "workers: expected a whole number");
        assert_eq!(refused("notify = 3"), "notify: expected true or false");
        assert_eq!(refused("log_format = \"x\""), "log_format: expected plain or json");
        assert_eq!(refused("listen = \"8080\""), "listen: expected an address and a port, such as 127.0.0.1:8080");
        for broken in [
            "targets = \"hunter2\"",
            "workers = \"hunter2\"",
            "queues = \"hunter2\"",
            "listen = \"hunter2\"",
            "[targets]\ndefault = \"hunter2\"",
            "[targets.a]\nread_only = \"hunter2\"",
            "database_url = \"postgres://u:hunter2@h/d",
            "database_url = [\"hunter2\"]",
            "x = hunter2\n",
            "[targets.\"postgres://u:hunter2@h/d\"]\nx = 1",
            "[targets.a]\n\"postgres://u:hunter2@h/d\" = 1",
            "\"postgres://u:hunter2@h/d\" = 1",
        ] {
            assert!(!refused(broken).contains("hunter2"), "{}", refused(broken));
        }
    }

    #[test]
    fn a_misspelt_variable_is_recognized() {
        assert_eq!(similar_variable("SLOWLANE_LISTN"), Some("SLOWLANE_LISTEN"));
        assert_eq!(similar_variable("SLOWLANE_WORKER"), Some("SLOWLANE_WORKERS"));
        assert_eq!(similar_variable("SLOWLANE_DATABASE_ULR"), Some("SLOWLANE_DATABASE_URL"));
        assert_eq!(similar_variable("SLOWLANE_DATABSE_URL"), Some("SLOWLANE_DATABASE_URL"));
        assert_eq!(similar_variable("SLOWLANE_COLOUR"), None);
        assert_eq!(similar_variable("SLOWLANE_REPORTS_URL"), None);
    }

    /// Every key that there is, and every one that will be.
    #[test]
    fn no_key_of_the_file_repeats_a_connection_string_in_its_place() {
        let table = [("host", false), ("user", false), ("password", true), ("dbname", false)]
            .map(|(keyword, secret)| Parameter { keyword: keyword.to_owned(), secret, variable: None });
        let surroundings = dsn::Surroundings::default();
        let reader = DsnReader { table: &table, surroundings: &surroundings, strict: false };
        let queue = Dsn::parse("postgresql://h/d", &table).unwrap();
        // What a start says of a file, and what it would print of it.
        let said = |toml: &str| -> String {
            let file = match File::parse(toml) {
                Ok(file) => file,
                Err(why) => return why,
            };
            let config = Settings::default().resolve(&file);
            let targets = Connections::default().targets(&file, reader);
            match (config, targets) {
                (Ok(config), Ok(targets)) => {
                    let names = targets.keys().map(|name| (name.clone(), false)).collect();
                    config.print(&queue, &names, &targets)
                }
                (config, targets) => format!("{:?} {:?}", config.err().map(|e| e.to_string()), targets.err()),
            }
        };
        let target = "\n[targets.default]\ndsn = \"postgresql://h/d\"";
        for text in [
            "postgresql://u:hunter2X@h/d",
            "host=h password=hunter2X",
            "hunter2X@h",
            "u:hunter2X@h.sql",
            "info/hunter2X@h",
        ] {
            for key in Settings::KEYS.iter().chain(&["database_url", "api_token", "data_dir", "targets"]) {
                for toml in [format!("{key} = \"{text}\""), format!("{key} = [\"{text}\"]")] {
                    let said = said(&format!("{toml}{}", if *key == "targets" { "" } else { target }));
                    assert!(!said.contains("hunter2X"), "{toml}: {said}");
                }
            }
            for key in connections::target_keys() {
                let dsn = if key.starts_with("dsn") { "" } else { target };
                let said =
                    said(&format!("{}\n{key} = \"{text}\"", if dsn.is_empty() { "[targets.default]" } else { dsn }));
                assert!(!said.contains("hunter2X"), "{key}: {said}");
            }
        }
    }

    #[test]
    fn a_connection_string_in_the_place_of_another_setting_is_refused_without_being_shown() {
        for text in ["postgresql://u:hunter2@h/d", "host=h password=hunter2", "Host=h;Password=hunter2", "u:hunter2@h"]
        {
            for toml in ["queues = [\"TEXT\"]", "allowed_host = [\"a\", \"TEXT\"]", "statements = \"TEXT\""] {
                let file = File::parse(&toml.replace("TEXT", text)).unwrap();
                let error = Settings::default().resolve(&file).unwrap_err().to_string();
                assert!(error.contains("connection string") && !error.contains("hunter2"), "{error}");
            }
            let file = File::parse(&format!("api_token_file = \"{text}\"")).unwrap();
            let error = Settings::default().resolve(&file).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn flags_go_before_the_file_and_defaults_come_last() {
        let file = File::parse("workers = 3\nretention = \"7d\"\nlisten = \"127.0.0.1:1\"").unwrap();
        let flags = Settings { workers: Some(5), ..Settings::default() };
        let config = flags.resolve(&file).unwrap();
        assert_eq!((config.workers, config.retention.as_secs()), (5, 7 * 86_400));
        assert_eq!((config.listen.port(), config.api_connections), (1, 4));
        let zero = Settings { workers: Some(0), ..Settings::default() };
        assert!(zero.resolve(&File::default()).unwrap_err().to_string().starts_with("workers"));
        assert_eq!(Config::default().listen.to_string(), DEFAULT_LISTEN);
    }

    #[test]
    fn what_is_printed_can_be_read_back_and_holds_no_secret() {
        let table = [("host", false), ("user", false), ("password", true), ("dbname", false)]
            .map(|(keyword, secret)| Parameter { keyword: keyword.to_owned(), secret, variable: None });
        let dsn = Dsn::parse("postgres://u:hunter2@h/d", &table).unwrap();
        let mut config = Settings::default().resolve(&File::default()).unwrap();
        config.api_token = Some(Secret::new("hunter2"));
        let text = config.print(
            &dsn,
            &BTreeMap::from([("default".to_owned(), false)]),
            &BTreeMap::from([("default".to_owned(), crate::target::TargetSettings::at(dsn.clone()))]),
        );
        assert!(!text.contains("hunter2"), "{text}");
        assert!(File::parse(&text).is_ok(), "{text}");
    }
}
