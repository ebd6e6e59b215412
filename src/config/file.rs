//! What slowlane.toml says. No message repeats what stands in it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::config::connections::{TargetEntry, target_keys};
use crate::config::{ConfigError, Settings, most_alike};

/// Keys that are no settings of their own.
const OTHER_KEYS: [&str; 4] = ["database_url", "api_token", "data_dir", "targets"];
/// What is expected of `listen`.
const ADDRESS: &str = "expected an address and a port, such as 127.0.0.1:8080";

/// The file that is read when none is named and it is there.
pub const DEFAULT_FILE: &str = "slowlane.toml";

/// What slowlane.toml says.
#[derive(Default)]
pub struct File {
    pub(crate) settings: Settings,
    pub(super) database_url: Option<String>,
    pub(super) api_token: Option<String>,
    data_dir: Option<String>,
    pub(super) targets: BTreeMap<String, TargetEntry>,
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

    pub(super) fn parse(text: &str) -> Result<File, String> {
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
        check_keys(table.keys())?;
        let known = || Settings::KEYS.iter().copied().chain(OTHER_KEYS);
        if let Some(unknown) = table.keys().find(|key| !known().any(|known| known == key.as_str())) {
            return Err(unknown_key(unknown, known()));
        }
        let targets = table.remove("targets").map(read_targets).transpose()?;
        Ok(File {
            database_url: take_text(&mut table, "database_url")?,
            api_token: take_text(&mut table, "api_token")?,
            data_dir: take_text(&mut table, "data_dir")?,
            targets: targets.unwrap_or_default(),
            settings: serde_path_to_error::deserialize(table)
                .map_err(|error| format!("{}: {}", error.path(), without_value(error.inner().message())))?,
        })
    }

    /// A target's connection string stands in this variable.
    pub(super) fn names_variable(&self, name: &str) -> bool {
        self.targets.values().any(|entry| entry.is_in(name))
    }

    /// The folder of `slowlane dev`, where the file names one.
    pub fn data_dir(&self) -> Option<PathBuf> {
        self.data_dir.as_ref().map(PathBuf::from)
    }
}

/// What stands here may be a connection string in the wrong place: no message repeats it.
fn read_targets(value: toml::Value) -> Result<BTreeMap<String, TargetEntry>, String> {
    let tables: BTreeMap<String, toml::Table> =
        value.try_into().map_err(|_| "targets: expected tables, such as [targets.default]".to_owned())?;
    check_keys(tables.keys())?;
    let mut targets = BTreeMap::new();
    for (name, table) in tables {
        check_keys(table.keys())?;
        if let Some(unknown) = table.keys().find(|key| !target_keys().any(|known| known == key.as_str())) {
            return Err(format!("targets.{name}: {}", unknown_key(unknown, target_keys())));
        }
        let entry = serde_path_to_error::deserialize(table)
            .map_err(|error| format!("targets.{name}.{}: a value of another type is expected", error.path()))?;
        targets.insert(name, entry);
    }
    Ok(targets)
}

/// A key may be shown when it is one: a connection string in its place has marks in it.
fn check_keys<'k>(mut keys: impl Iterator<Item = &'k String>) -> Result<(), String> {
    let is_key = |key: &String| key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    if keys.all(is_key) { Ok(()) } else { Err("a key has letters, digits, `_` and `-` only".to_owned()) }
}

/// What is said of a key that nobody reads: a similar one, or all of them.
fn unknown_key<'k>(unknown: &str, known: impl Iterator<Item = &'k str> + Clone) -> String {
    match most_alike(unknown, known.clone()) {
        Some(similar) => format!("unknown key {unknown}: is it {similar}?"),
        None => format!("unknown key {unknown}, expected one of: {}", known.collect::<Vec<_>>().join(", ")),
    }
}

/// serde's messages repeat the value that they don't like, and have Rust's words for what is expected.
fn without_value(message: &str) -> String {
    let repeats = message.starts_with("invalid ") || message.starts_with("unknown ");
    match message.rsplit_once(", expected ").filter(|_| repeats) {
        Some((_, "u32" | "i64")) => "expected a whole number".to_owned(),
        Some((_, "a boolean")) => "expected true or false".to_owned(),
        Some((_, "a sequence")) => "expected a list of strings".to_owned(),
        Some((_, "socket address")) => ADDRESS.to_owned(),
        Some((_, expected)) => format!("expected {}", expected.replace('`', "")),
        None if message == "invalid socket address syntax" => ADDRESS.to_owned(),
        None if repeats => "it has no valid value".to_owned(),
        None => message.to_owned(),
    }
}

fn take_text(table: &mut toml::Table, key: &str) -> Result<Option<String>, String> {
    match table.remove(key) {
        None => Ok(None),
        Some(toml::Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(format!("{key}: expected a string")),
    }
}
