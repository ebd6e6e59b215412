//! What a connection string means: parsed into parts, checked against libpq's parameter table, and rebuilt.
//!
//! Pure: no I/O, no environment, no libpq. The table is handed in (see [`crate::pq::parameters`]). Only a string
//! that this room rebuilt is ever given to libpq, because libpq reads what it doesn't understand as something else,
//! and repeats it, password included, in its errors.

mod parse;
mod render;

use std::collections::BTreeMap;
use std::fmt;

/// A string that can't be printed: `Debug` and `Display` write `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides `text`.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A parameter that libpq knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name in a connection string.
    pub keyword: String,
    /// libpq marks it as not to be shown.
    pub secret: bool,
}

/// A connection string taken apart. Printing it shows no secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Dsn {
    parameters: BTreeMap<String, String>,
    secrets: Vec<String>,
}

/// Why a connection string was refused. The text is fixed: it never repeats the string.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct DsnError {
    /// A stable word: `empty`, `unsupported_scheme`, `malformed`, `invalid_host`, `invalid_port`,
    /// `invalid_percent_encoding`, `unknown_parameter`, `duplicate_parameter`, `unexpanded_variable`,
    /// `redacted_password`, `unescaped_password`.
    pub code: &'static str,
    /// What is wrong, and what to do about it.
    pub message: &'static str,
}

impl DsnError {
    fn new(code: &'static str, message: &'static str) -> DsnError {
        DsnError { code, message }
    }
}

impl Dsn {
    /// Parses `postgres://…`, `postgresql://…` or `key=value …` by libpq's own rules.
    ///
    /// # Errors
    /// [`DsnError`] for everything else, and for anything that libpq would misread.
    ///
    /// ```
    /// let table = slowlane::pq::parameters();
    /// let dsn = slowlane::dsn::Dsn::parse("postgresql://app:s3cret@db.example/app", table)?;
    /// assert_eq!(dsn.get("host"), Some("db.example"));
    /// assert_eq!(dsn.masked(), "postgresql://app:***@db.example/app");
    /// # Ok::<(), slowlane::dsn::DsnError>(())
    /// ```
    pub fn parse(text: &str, table: &[Parameter]) -> Result<Dsn, DsnError> {
        let parameters = parse::parameters(text, table)?;
        let secrets = table.iter().filter(|known| known.secret).map(|known| known.keyword.clone()).collect();
        Ok(Dsn { parameters, secrets })
    }

    /// A parameter's value.
    pub fn get(&self, keyword: &str) -> Option<&str> {
        self.parameters.get(keyword).map(String::as_str)
    }

    /// The same string with a parameter set, whatever it was.
    #[must_use]
    pub fn with(mut self, keyword: &str, value: &str) -> Dsn {
        self.parameters.insert(keyword.to_owned(), value.to_owned());
        self
    }

    /// The same string with a parameter set if it has none.
    #[must_use]
    pub fn with_default(mut self, keyword: &str, value: &str) -> Dsn {
        self.parameters.entry(keyword.to_owned()).or_insert_with(|| value.to_owned());
        self
    }

    /// The same string with what every connection of ours has: a bound on connecting, and a way to notice a peer
    /// that is gone without a word.
    #[must_use]
    pub fn for_connecting(self) -> Dsn {
        self.with_default("connect_timeout", "5")
            .with_default("keepalives", "1")
            .with_default("keepalives_idle", "10")
            .with_default("keepalives_interval", "5")
            .with_default("keepalives_count", "3")
            .with_default("tcp_user_timeout", "20000")
            .with_default("client_encoding", "UTF8")
            .with_default("fallback_application_name", "slowlane")
    }

    /// It carries a password.
    pub fn has_password(&self) -> bool {
        self.parameters.contains_key("password")
    }

    /// The string for libpq: every value quoted, nothing left to its guessing.
    pub fn conninfo(&self) -> Secret {
        Secret(render::conninfo(&self.parameters))
    }

    /// The string as a URL.
    pub fn to_url(&self) -> Secret {
        Secret(render::url(&self.parameters, |_, value| value.to_owned()))
    }

    /// The string as a URL for people, secrets replaced by `***`.
    pub fn masked(&self) -> String {
        render::url(&self.parameters, |keyword, value| {
            if self.secrets.iter().any(|secret| secret == keyword) { "***".to_owned() } else { value.to_owned() }
        })
    }
}

impl fmt::Debug for Dsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.masked())
    }
}

impl fmt::Display for Dsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.masked())
    }
}
