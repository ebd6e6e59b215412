//! One file of saved statements: a header of TOML in the comments at its top, and the SQL below it.
//!
//! The SQL is sent as it stands here. What a caller gives are values of `$1`, `$2` and so on, never text of a
//! statement.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use toml::de::DeTable;

use crate::dsn::plain_or;
use crate::queue::model::{TIME_ZONE_EXPECTED, is_time_zone};
use crate::statements::error::FileError;
use crate::statements::lines::{key_lines, line_of, parts};
use crate::statements::params::{self, Param, ParamEntry, ValueError, is_name};
use crate::statements::spans::{lock_timeout, timeout};
use crate::statements::{literal, schema, split};

/// The largest file: 256 KiB.
pub const MAX_FILE_BYTES: u64 = 256 * 1024;
/// What stands in the place of a name where all are read again.
const RELOAD: &str = "reload";
/// The most parameters.
const MAX_PARAMS: usize = 100;
/// The most bytes of values that all statements of a file together are given: 16 MiB.
const MAX_VALUES_BYTES: usize = 16 << 20;
/// Digits of a version.
const VERSION_DIGITS: usize = 12;

/// The keys of a header.
pub const HEADER_KEYS: [&str; 13] = [
    "name",
    "kind",
    "description",
    "timeout",
    "target",
    "queue",
    "time_zone",
    "lock_timeout",
    "params",
    "row_limit",
    "byte_limit",
    "on_limit",
    "args",
];

/// A header.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    name: Option<String>,
    kind: InnerKind,
    #[serde(default)]
    description: String,
    timeout: Option<String>,
    target: Option<String>,
    queue: Option<String>,
    time_zone: Option<String>,
    lock_timeout: Option<String>,
    #[serde(default)]
    params: Vec<ParamEntry>,
    row_limit: Option<u64>,
    byte_limit: Option<u64>,
    on_limit: Option<String>,
    args: Option<toml::Table>,
}

/// The kinds that a saved statement can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InnerKind {
    /// One statement that returns rows.
    Query,
    /// Statements in one transaction.
    Execute,
    /// A materialized view.
    Refresh,
    /// A table, in batches.
    Backfill,
}

impl InnerKind {
    /// The name of the kind.
    pub fn as_str(self) -> &'static str {
        match self {
            InnerKind::Query => "query",
            InnerKind::Execute => "execute",
            InnerKind::Refresh => "refresh",
            InnerKind::Backfill => "backfill",
        }
    }
}

/// One statement of SQL in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sql {
    /// The line on which it begins, from 1.
    pub line: usize,
    /// Its text.
    pub text: String,
}

impl Sql {
    /// A value may be named in it.
    fn uses_values(&self) -> bool {
        self.text.contains('$')
    }
}

/// A saved statement.
#[derive(Clone, Debug)]
pub struct Statement {
    /// What callers call it.
    pub name: String,
    /// The file in its folder.
    pub file: FileName,
    /// What it is run as.
    pub kind: InnerKind,
    /// For whoever reads the list.
    pub description: String,
    /// The database that it runs on.
    pub target: String,
    /// The queue that it waits in when its caller names none.
    pub queue: String,
    /// How long an attempt may take when its caller says nothing, and at most.
    pub timeout_ms: i64,
    /// The time zone of its sessions when its caller names none.
    pub time_zone: Option<String>,
    /// How long it waits for a lock when its caller says nothing.
    pub lock_timeout_ms: Option<i64>,
    /// `$1`, `$2` and so on.
    pub params: Vec<Param>,
    /// Names this text of it: the first digits of the SHA-256 of its file.
    pub version: String,
    /// The statements; none where the kind makes them itself.
    pub sql: Vec<Sql>,
    /// Arguments of the kind beside SQL and values.
    pub args: Map<String, Value>,
    /// Where the keys of the header stand.
    lines: BTreeMap<String, usize>,
}

/// The name of a file in the folder. A connection string in its place is not shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileName(String);

impl FileName {
    /// The file of this name.
    pub fn of(name: &str) -> FileName {
        FileName(name.to_owned())
    }
}

impl std::fmt::Display for FileName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(plain_or(&self.0, "a file of a name that is not shown"))
    }
}

impl serde::Serialize for FileName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl PartialEq<str> for FileName {
    fn eq(&self, name: &str) -> bool {
        self.0 == name
    }
}

impl PartialEq<&str> for FileName {
    fn eq(&self, name: &&str) -> bool {
        self.0 == *name
    }
}

impl Statement {
    /// Reads a file of this name.
    ///
    /// # Errors
    /// The first thing that is wrong, with its line.
    pub fn read(file: &str, text: &str) -> Result<Statement, FileError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let (header_text, body, body_line) = parts(text)?;
        let lines = key_lines(&header_text);
        let header = header(&header_text)?;
        let at = |key: &str| lines.get(key).copied().unwrap_or(1);
        let wrong = |key: &str, message: String| FileError { line: at(key), message };
        let stem = Path::new(file).file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let name = header.name.clone().unwrap_or(stem);
        if !is_name(&name) || name == RELOAD {
            let what = "name: expected letters, digits and `_`, no digit first, at most 63 of them, and not reload";
            return Err(wrong("name", what.to_owned()));
        }
        let named = |key: &'static str, value: &Option<String>| match value {
            Some(text) if text.is_empty() || text.chars().count() > 128 => {
                Err(wrong(key, format!("{key}: expected a name of 1 to 128 characters")))
            }
            Some(text) => Ok(text.clone()),
            None => Ok("default".to_owned()),
        };
        let (target, queue) = (named("target", &header.target)?, named("queue", &header.queue)?);
        let timeout_ms = timeout(header.timeout.as_deref()).map_err(|message| wrong("timeout", message))?;
        let lock_timeout_ms =
            lock_timeout(header.lock_timeout.as_deref()).map_err(|message| wrong("lock_timeout", message))?;
        if header.time_zone.as_deref().is_some_and(|zone| !is_time_zone(zone)) {
            return Err(wrong("time_zone", format!("time_zone: expected {TIME_ZONE_EXPECTED}")));
        }
        if header.params.len() > MAX_PARAMS {
            return Err(wrong("params", format!("params: expected at most {MAX_PARAMS} of them")));
        }
        let mut all = Vec::new();
        for (n, entry) in header.params.iter().enumerate() {
            let line = at(&format!("params.{n}"));
            let param = Param::read(entry.clone()).map_err(|message| FileError { line, message })?;
            if all.iter().any(|other: &Param| other.name == param.name) {
                return Err(FileError { line, message: format!("params.{}: expected each name once", param.name) });
            }
            all.push(param);
        }
        let sql = match header.kind {
            InnerKind::Query => vec![Sql { line: body_line, text: body.to_owned() }],
            InnerKind::Execute => {
                let found = split::statements(body).into_iter();
                found.map(|(line, text)| Sql { line: body_line + line, text: text.to_owned() }).collect()
            }
            InnerKind::Refresh | InnerKind::Backfill => {
                if let Some((line, _)) = split::statements(body).first() {
                    let kind = header.kind.as_str();
                    let message = format!("expected no SQL below the header: a {kind} says what it does in [args]");
                    return Err(FileError { line: body_line + line, message });
                }
                Vec::new()
            }
        };
        let args = header.args(&at)?;
        let digest = Sha256::digest(text.as_bytes());
        let version: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Statement {
            name,
            file: FileName::of(file),
            kind: header.kind,
            description: header.description,
            target,
            queue,
            timeout_ms,
            time_zone: header.time_zone.clone(),
            lock_timeout_ms,
            params: all,
            version: version.chars().take(VERSION_DIGITS).collect(),
            sql,
            args,
            lines,
        })
    }

    /// The arguments of the kind for these values.
    ///
    /// # Errors
    /// Each value that is missing, unknown or refused.
    pub fn arguments(&self, given: &BTreeMap<String, Box<RawValue>>) -> Result<Box<RawValue>, Vec<ValueError>> {
        let values = params::values(&self.params, given)?;
        let bytes: usize = values.iter().map(|value| value.get().len()).sum();
        let uses = self.sql.iter().filter(|sql| sql.uses_values()).count();
        if bytes.saturating_mul(uses) > MAX_VALUES_BYTES {
            let most = MAX_VALUES_BYTES / uses.max(1);
            let detail =
                format!("expected at most {most} bytes of values: each of {uses} statements is given all of them");
            return Err(vec![ValueError { pointer: String::new(), detail }]);
        }
        Ok(self.with_values(&values))
    }

    /// The same with NULL for each value: enough to have a kind look at the rest, and a server at the types.
    pub fn arguments_without_values(&self) -> Box<RawValue> {
        let null = |param: &Param| {
            let typed = format!("{{\"type\":{},\"value\":null}}", Value::String(param.type_name.clone()));
            RawValue::from_string(typed).unwrap_or_default()
        };
        self.with_values(&self.params.iter().map(null).collect::<Vec<_>>())
    }

    fn with_values(&self, values: &[Box<RawValue>]) -> Box<RawValue> {
        let values = format!("[{}]", values.iter().map(|value| value.get()).collect::<Vec<_>>().join(","));
        let json = |text: &str| Value::String(text.to_owned()).to_string();
        let mut members: Vec<String> = self.args.iter().map(|(key, value)| format!("{}:{value}", json(key))).collect();
        match self.kind {
            InnerKind::Query => {
                let text = self.sql.first().map_or("", |sql| sql.text.as_str());
                members.push(format!("\"sql\":{},\"params\":{values}", json(text)));
            }
            InnerKind::Execute => {
                // Each that may use one is given all of the values: a type that is named need not be used.
                let given = |sql: &Sql| if sql.uses_values() { values.as_str() } else { "[]" };
                let each =
                    self.sql.iter().map(|sql| format!("{{\"sql\":{},\"params\":{}}}", json(&sql.text), given(sql)));
                members.push(format!("\"statements\":[{}]", each.collect::<Vec<_>>().join(",")));
            }
            InnerKind::Backfill => members.push(format!("\"params\":{values}")),
            InnerKind::Refresh => {}
        }
        RawValue::from_string(format!("{{{}}}", members.join(","))).unwrap_or_default()
    }

    /// The JSON Schema of the values of a call.
    pub fn schema(&self) -> Box<RawValue> {
        schema::schema(&self.params)
    }

    /// The line that an argument of the kind comes from: by a JSON pointer such as `/statements/1/sql` or `/row_limit`.
    pub fn line_of(&self, pointer: &str) -> usize {
        let mut steps = pointer.split('/').skip(1);
        let first = steps.next().unwrap_or_default();
        let body = self.sql.first().map_or(1, |sql| sql.line);
        match first {
            "sql" => body,
            "statements" => {
                let statement = steps.next().and_then(|n| self.sql.get(n.parse::<usize>().ok()?));
                statement.map_or(body, |sql| sql.line)
            }
            key => [
                steps.next().map(|inner| format!("args.{key}.{inner}")).unwrap_or_default(),
                format!("args.{key}"),
                key.to_owned(),
                "args".to_owned(),
            ]
            .iter()
            .find_map(|key| self.lines.get(key))
            .copied()
            .unwrap_or(1),
        }
    }
}

impl Header {
    /// What goes with the kind beside its SQL.
    fn args(&self, at: &dyn Fn(&str) -> usize) -> Result<Map<String, Value>, FileError> {
        let kind = self.kind.as_str();
        let wrong = |key: &str, message: String| FileError { line: at(key), message };
        let number = |value: Option<u64>| value.map(Value::from);
        let limits = [
            ("row_limit", number(self.row_limit)),
            ("byte_limit", number(self.byte_limit)),
            ("on_limit", self.on_limit.clone().map(Value::from)),
        ];
        let mut args = Map::new();
        for (key, value) in limits {
            let Some(value) = value else { continue };
            if self.kind != InnerKind::Query {
                return Err(wrong(key, format!("{key} doesn't go with the kind {kind}")));
            }
            args.insert(key.to_owned(), value);
        }
        let takes_args = matches!(self.kind, InnerKind::Refresh | InnerKind::Backfill);
        match &self.args {
            None if takes_args => {
                Err(wrong("kind", format!("expected [args] in the header: the arguments of the kind {kind}")))
            }
            None => Ok(args),
            Some(_) if !takes_args => {
                Err(wrong("args", format!("[args] doesn't go with the kind {kind}: its SQL stands below the header")))
            }
            Some(_) if self.kind == InnerKind::Refresh && !self.params.is_empty() => {
                Err(wrong("params", "params don't go with the kind refresh, which has no place for a value".to_owned()))
            }
            Some(table) if table.contains_key("params") => {
                Err(wrong("args.params", "expected [[params]] beside [args], and no params within it".to_owned()))
            }
            Some(table) => match serde_json::to_value(table) {
                Ok(Value::Object(map)) => Ok(map),
                _ => Err(wrong("args", "args: expected what JSON has".to_owned())),
            },
        }
    }
}

fn header(text: &str) -> Result<Header, FileError> {
    let wrong = |error: toml::de::Error| FileError {
        line: error.span().map_or(1, |span| line_of(text, span.start)),
        message: error.message().to_owned(),
    };
    let mut table = DeTable::parse(text).map_err(wrong)?;
    literal::keep(table.get_mut())
        .map_err(|error| FileError { line: line_of(text, error.at), message: error.message })?;
    Header::deserialize(toml::Deserializer::from(table)).map_err(wrong)
}

#[cfg(test)]
mod tests;
