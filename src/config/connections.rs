//! Where the databases are: the queue, and the targets that work runs on.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::config::{ConfigError, DsnReader, File, variable};
use crate::dsn::{self, Dsn};
use crate::target::{TargetSettings, TargetSpec};

/// Where the databases are. Given apart from the other settings because `dev` has its own.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Connections {
    /// The queue's database, without a password; one with a password belongs into SLOWLANE_DATABASE_URL
    #[arg(long, value_name = "DSN")]
    pub database_url: Option<String>,
    /// A database that work runs on: a name, and the environment variable that holds its DSN; may be repeated
    #[arg(long, value_name = "NAME=VARIABLE", env = "SLOWLANE_TARGET", value_delimiter = ',')]
    pub target: Vec<String>,
}

/// Where `slowlane demo load` finds its database.
pub(super) const DEMO_VARIABLE: &str = "SLOWLANE_DEMO_URL";

/// The keys of `[targets.<name>]`.
pub(super) fn target_keys() -> impl Iterator<Item = &'static str> + Clone {
    ["dsn", "dsn_env"].into_iter().chain(TargetSpec::KEYS)
}

/// `[targets.<name>]` of slowlane.toml.
#[derive(Clone, Deserialize)]
pub(super) struct TargetEntry {
    dsn: Option<String>,
    dsn_env: Option<String>,
    #[serde(flatten)]
    spec: TargetSpec,
}

/// Where a target's connection string stands.
enum TargetSource<'s> {
    File(&'s TargetEntry),
    Variable(&'s str),
}

/// The demo's database: what `--database-url` says, then `SLOWLANE_DEMO_URL`.
///
/// # Errors
/// When neither says it, or what it says is refused.
pub fn demo_database(flag: Option<&str>, reader: DsnReader<'_>) -> Result<Dsn, ConfigError> {
    if let Some(text) = flag {
        return from_flag(text, DEMO_VARIABLE, reader);
    }
    match variable(DEMO_VARIABLE) {
        Some(text) => reader.read(DEMO_VARIABLE, &text),
        None => Err(ConfigError::Missing(format!("no database is named for the demo's data: set {DEMO_VARIABLE}"))),
    }
}

/// `--database-url`. A DSN with a password belongs into `variable`.
fn from_flag(text: &str, variable: &str, reader: DsnReader<'_>) -> Result<Dsn, ConfigError> {
    // The string's own: one from PGPASSWORD is where it belongs.
    if dsn::read(text, reader.table).is_ok_and(|reading| reading.dsn.has_password()) {
        let why = format!("a password in a flag can be seen by every user of this machine: use {variable}");
        return Err(ConfigError::Invalid("--database-url", why));
    }
    reader.read("--database-url", text)
}

impl Connections {
    /// The queue's database: the flag, `SLOWLANE_DATABASE_URL`, `DATABASE_URL`, then the file.
    ///
    /// # Errors
    /// When none of them says it, or what it says is refused.
    pub fn queue(&self, file: &File, reader: DsnReader<'_>) -> Result<Dsn, ConfigError> {
        if let Some(text) = &self.database_url {
            return from_flag(text, "SLOWLANE_DATABASE_URL", reader);
        }
        for name in ["SLOWLANE_DATABASE_URL", "DATABASE_URL"] {
            if let Some(text) = variable(name) {
                return reader.read(name, &text);
            }
        }
        match &file.database_url {
            Some(text) => reader.read("database_url", text),
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
    pub fn targets(&self, file: &File, reader: DsnReader<'_>) -> Result<BTreeMap<String, TargetSettings>, ConfigError> {
        let targets = self.each_target(file, reader)?;
        targets.into_iter().map(|(name, target)| Ok((name, target?))).collect()
    }

    /// As [`Connections::targets`], each with why it can't be used.
    ///
    /// # Errors
    /// When there is none, or a name can't be used.
    pub fn each_target(
        &self,
        file: &File,
        reader: DsnReader<'_>,
    ) -> Result<BTreeMap<String, Result<TargetSettings, ConfigError>>, ConfigError> {
        let read = |(name, source): (String, TargetSource<'_>)| {
            let target = match source {
                TargetSource::File(entry) => entry.resolve(&name, reader),
                TargetSource::Variable(variable) => {
                    reader.read_variable(&format!("target {name}"), variable).map(TargetSettings::at)
                }
            };
            (name, target)
        };
        Ok(self.target_sources(file)?.into_iter().map(read).collect())
    }

    /// The names of the databases that work runs on, each with whether it runs saved statements only: all that a process
    /// without workers needs of them.
    ///
    /// # Errors
    /// When there is none, or a name can't be used.
    pub fn target_names(&self, file: &File) -> Result<BTreeMap<String, bool>, ConfigError> {
        let statements_only =
            |source: &TargetSource<'_>| matches!(source, TargetSource::File(entry) if entry.spec.statements_only);
        let sources = self.target_sources(file)?.into_iter();
        Ok(sources.map(|(name, source)| (name, statements_only(&source))).collect())
    }

    fn target_sources<'s>(&'s self, file: &'s File) -> Result<BTreeMap<String, TargetSource<'s>>, ConfigError> {
        let mut sources = BTreeMap::new();
        for (name, entry) in &file.targets {
            check_name(name)?;
            sources.insert(name.clone(), TargetSource::File(entry));
        }
        for given in &self.target {
            let (name, variable) = given
                .split_once('=')
                .filter(|(name, variable)| !name.is_empty() && !variable.is_empty())
                .ok_or_else(|| {
                    ConfigError::Invalid(
                        "--target",
                        "expected NAME=VARIABLE, the variable being the one that holds the DSN".to_owned(),
                    )
                })?;
            check_name(name)?;
            sources.insert(name.to_owned(), TargetSource::Variable(variable));
        }
        if sources.is_empty() {
            return Err(ConfigError::Missing(
                "no database is named that work runs on: add [targets.default] to slowlane.toml, or --target default=VARIABLE"
                    .to_owned(),
            ));
        }
        Ok(sources)
    }
}

/// A connection string in the place of a name would be shown by every message about it.
pub(crate) fn check_name(name: &str) -> Result<(), ConfigError> {
    let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    if is_name {
        return Ok(());
    }
    Err(ConfigError::Invalid("target", "a target's name has letters, digits, `_` and `-` only".to_owned()))
}

impl TargetEntry {
    /// Its connection string stands in this variable.
    pub(super) fn is_in(&self, variable: &str) -> bool {
        self.dsn_env.as_deref() == Some(variable)
    }

    fn resolve(&self, name: &str, reader: DsnReader<'_>) -> Result<TargetSettings, ConfigError> {
        let setting = format!("targets.{name}");
        let dsn = match (&self.dsn, &self.dsn_env) {
            (Some(text), None) => reader.read(&setting, text)?,
            (None, Some(source)) => reader.read_variable(&setting, source)?,
            _ => {
                return Err(ConfigError::Missing(format!("{setting}: expected either dsn or dsn_env")));
            }
        };
        Ok(TargetSettings { dsn, spec: self.spec.clone() })
    }
}
