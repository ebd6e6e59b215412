//! What slowlane.toml says. No message repeats what stands in it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::config::connections::{TARGET_KEYS, TargetEntry};
use crate::config::{ConfigError, Settings};

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
        if let Some(unknown) = table.keys().find(|key| !TARGET_KEYS.contains(&key.as_str())) {
            return Err(format!("targets.{name}: unknown key {unknown}, expected one of: {}", TARGET_KEYS.join(", ")));
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

/// serde's messages repeat the value that they don't like.
fn without_value(message: &str) -> String {
    let repeats = message.starts_with("invalid type") || message.starts_with("invalid value");
    match message.rsplit_once(", expected ").filter(|_| repeats) {
        Some((_, expected)) => format!("expected {expected}"),
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
