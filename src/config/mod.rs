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
pub use connections::{Connections, TargetConfig, demo_database};
pub use file::File;
pub use reader::DsnReader;
pub use settings::{DEFAULT_LISTEN, LogFormat, Settings, Span};

use crate::dsn::{Dsn, DsnError, Secret};

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
    pub retention: Duration,
    pub result_store_bytes: i64,
    pub upload_limit_bytes: i64,
    pub upload_idle_timeout: Duration,
    pub statements: Option<PathBuf>,
    pub dsn_strict: bool,
    pub log: String,
    pub log_format: LogFormat,
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
    #[error("{shown}: {1}", shown = shown(.0))]
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

/// A path for people; a connection string in its place isn't shown.
fn shown(path: &std::path::Path) -> String {
    let text = path.display().to_string();
    if text.contains("://") || text.contains(['@', '=']) { "the file that is named".to_owned() } else { text }
}

/// What a variable holds. One that is set to nothing counts as unset.
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
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
    /// The settings as slowlane.toml would have them, secrets masked. Targets that this process doesn't open are shown
    /// by their names alone.
    pub fn print(
        &self,
        queue: &Dsn,
        names: &BTreeMap<String, bool>,
        targets: &BTreeMap<String, TargetConfig>,
    ) -> String {
        let text = |value: &str| toml::Value::String(value.to_owned()).to_string();
        let list = |values: &[String]| format!("[{}]", values.iter().map(|v| text(v)).collect::<Vec<_>>().join(", "));
        let span = |value: Duration| text(&Span(value).to_string());
        let mut lines = vec![
            format!("database_url = {}", text(&queue.masked())),
            format!("listen = {}", text(&self.listen.to_string())),
            format!("no_http = {}", !self.roles.http),
            format!("no_workers = {}", !self.roles.workers),
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
            format!("upload_limit_bytes = {}", self.upload_limit_bytes),
            format!("upload_idle_timeout = {}", span(self.upload_idle_timeout)),
            format!("dsn_strict = {}", self.dsn_strict),
            format!("log = {}", text(&self.log)),
            format!(
                "log_format = {}",
                text(match self.log_format {
                    LogFormat::Plain => "plain",
                    LogFormat::Json => "json",
                })
            ),
        ];
        if let Some(address) = self.probe_listen {
            lines.insert(2, format!("probe_listen = {}", text(&address.to_string())));
        }
        if let Some(folder) = &self.statements {
            lines.insert(2, format!("statements = {}", text(&folder.display().to_string())));
        }
        if self.api_token.is_some() {
            lines.insert(1, "api_token = \"***\"".to_owned());
        }
        for (name, statements_only) in names {
            lines.push(format!("\n[targets.{}]", text(name)));
            lines.push(format!("statements_only = {statements_only}"));
            let Some(target) = targets.get(name) else { continue };
            lines.push(format!("dsn = {}", text(&target.dsn.masked())));
            if let Some(work_mem) = &target.work_mem {
                lines.push(format!("work_mem = {}", text(work_mem)));
            }
            lines.push(format!("allow_unsafe_role = {}", target.allow_unsafe_role));
            lines.push(format!("read_only = {}", target.read_only));
            lines.push(format!("synchronous = {}", target.synchronous));
        }
        lines.join("\n") + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dsn::Parameter;

    #[test]
    fn unknown_keys_are_refused_and_secrets_are_not_repeated() {
        let refused = |text: &str| File::parse(text).err().unwrap();
        assert!(refused("wrokers = 3").contains("wrokers"));
        assert!(refused("[targets.a]\ndns = \"x\"").contains("dns"));
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
            &BTreeMap::from([("default".to_owned(), TargetConfig::at(dsn.clone()))]),
        );
        assert!(!text.contains("hunter2"), "{text}");
        assert!(File::parse(&text).is_ok(), "{text}");
    }
}
