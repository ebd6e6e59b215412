//! What a connection string means: read as its driver would, translated for libpq, or refused by name.
//!
//! Pure: no I/O, no environment, no libpq. The table of parameters is handed in (see [`crate::pq::parameters`]), and so
//! is what stands around a string ([`Surroundings`]). Only a string that this room rebuilt is ever given to libpq,
//! because libpq reads what it doesn't understand as something else, and repeats it, password included, in its errors.
//!
//! | file | what it has |
//! | --- | --- |
//! | [`driver`] | whom a string was written for |
//! | `tidy` | what surrounds a pasted string |
//! | `scheme` | what kind of string it is |
//! | `raw` | text to pairs |
//! | `place` | the path of a URL: a database, or a socket's folder |
//! | [`foreign`] | other drivers' parameters |
//! | [`adonet`] | Npgsql's pairs and keywords |
//! | `translate` | pairs to libpq's parameters |
//! | `check` | what libpq's parameters may be |
//! | [`environment`] | services and libpq's variables |
//! | [`refusal`] | why a string is refused |
//! | `render` | parameters to text |
//! | `shown` | which texts may be shown to people |
//! | [`dialects`] | the same database in every driver's words |

pub mod adonet;
mod check;
pub mod dialects;
pub mod driver;
pub mod environment;
pub mod foreign;
mod place;
mod raw;
pub mod refusal;
mod render;
mod scheme;
mod shown;
mod tidy;
mod translate;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

pub use driver::Driver;
pub use environment::Surroundings;
pub use refusal::{Code, DsnError};
pub use shown::{MEMORY_EXPECTED, is_memory, is_plain, may_be_a_connection_string, path_or, plain_or};

use scheme::Syntax;

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
    /// It is not to be shown.
    pub secret: bool,
    /// The variable that gives it where a string doesn't.
    pub variable: Option<String>,
}

/// Something that was read otherwise than it stands there. Never holds a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// A stable word: `trimmed`, `unquoted`, `scheme`, `host`, `encoded`, `renamed`, `replaced`, `dropped`, `tls`,
    /// `service`,
    /// `variable`.
    pub name: &'static str,
    /// What was done, for people.
    pub text: String,
}

impl Change {
    fn new(name: &'static str, text: impl Into<String>) -> Change {
        Change { name, text: text.into() }
    }
}

/// A string that was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// What it means to libpq.
    pub dsn: Dsn,
    /// Whom it was written for.
    pub driver: Driver,
    /// What was changed on the way; nothing when libpq would have read it so itself.
    pub changes: Vec<Change>,
}

/// Reads a connection string, whoever it was written for.
///
/// # Errors
/// [`DsnError`] for what can't be understood without a guess, and for what no Postgres understands.
///
/// ```
/// let table = slowlane::pq::parameters();
/// let read = slowlane::dsn::read("postgresql+asyncpg://app:s3cret@db.example/app?ssl=require", table)?;
/// assert_eq!(read.driver.asynchronous(), Some(true));
/// assert_eq!(read.changes.len(), 2);
/// assert_eq!(read.dsn.masked(), "postgresql://app:***@db.example/app?sslmode=require");
/// # Ok::<(), slowlane::dsn::DsnError>(())
/// ```
pub fn read(text: &str, table: &[Parameter]) -> Result<Reading, DsnError> {
    let mut changes = Vec::new();
    let text = tidy::tidy(text, &mut changes)?;
    tidy::check_pasted(text, table).map_err(|(error, within)| error.right_is(within, table))?;
    tidy::check_variables(text).map_err(|error| match scheme::classify(text, &mut Vec::new()) {
        Ok((driver, _)) => error.written_for(driver),
        Err(_) => error,
    })?;
    let (driver, syntax) =
        scheme::classify(text, &mut changes).map_err(|error| with_what_would_be_right(error, text, table))?;
    let known = |name: &str| translate::is_known(name, table);
    let take_apart = |driver: Driver| {
        let url = |rest: &str| tidy::check_quotes(text).and_then(|()| raw::url(rest, driver.plus_is_a_blank(), &known));
        let raw = match syntax {
            Syntax::Url(rest) => url(rest),
            Syntax::Database(rest) => url(&format!("/{rest}")),
            Syntax::KeyValue(rest) => raw::key_value(rest, &known),
            Syntax::Pairs(rest) => adonet::pairs(rest),
        };
        raw.map_err(|error| error.written_for(driver))
    };
    let raw = take_apart(driver)?;
    // Its parameters may show another driver, which reads the query by other rules.
    let (raw, driver) = match translate::shown_by(&raw, driver) {
        shown if shown == driver => (raw, driver),
        shown => (take_apart(shown)?, shown),
    };
    let translated = translate::translate(raw, driver, table, &mut changes)?;
    Ok(Reading { dsn: translated.dsn, driver: translated.driver, changes })
}

/// A string whose scheme alone is wrong is right with another one.
fn with_what_would_be_right(error: DsnError, text: &str, table: &[Parameter]) -> DsnError {
    match (error.code, error.driver) {
        (
            Code::UnsupportedScheme,
            Driver::SqlAlchemy(_) | Driver::Other("asyncpg" | "aiopg" | "psycopg" | "psycopg2" | "pg8000"),
        ) => {
            let rest = text.split_once("://").map_or("", |(_, rest)| rest);
            error.right_is(&format!("postgresql://{rest}"), table)
        }
        (Code::UnsupportedScheme, Driver::Jdbc | Driver::Other("R2DBC")) => match scheme::unwrapped(text) {
            Some(wrapped) => error.right_is(&wrapped, table),
            None => error,
        },
        (Code::ForeignSyntax, _) => match scheme::as_key_value(text) {
            Some(pairs) => error.right_is(&pairs, table),
            None => error,
        },
        _ => error,
    }
}

impl DsnError {
    /// What would be right is this, as far as it can be read.
    fn right_is(self, text: &str, table: &[Parameter]) -> DsnError {
        match read(text, table) {
            Ok(reading) => self.with_right(reading.dsn.masked()).written_for(reading.driver),
            Err(_) => self,
        }
    }
}

/// A connection string taken apart. Printing it shows no secret.
#[derive(Clone)]
pub struct Dsn {
    parameters: BTreeMap<String, String>,
    secrets: Vec<String>,
    origin: Option<Arc<Origin>>,
}

/// Where a string came from doesn't make it another one.
impl PartialEq for Dsn {
    fn eq(&self, other: &Dsn) -> bool {
        (&self.parameters, &self.secrets) == (&other.parameters, &other.secrets)
    }
}

impl Eq for Dsn {}

/// How a string was understood. Holds no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Whom it was written for.
    pub driver: Driver,
    /// What was changed, or found around the process, on the way.
    pub changes: Vec<String>,
    /// Some of the changes were those of a translation.
    pub translated: bool,
}

impl Dsn {
    fn of(parameters: BTreeMap<String, String>, table: &[Parameter]) -> Dsn {
        let secrets = table.iter().filter(|known| known.secret).map(|known| known.keyword.clone()).collect();
        Dsn { parameters, secrets, origin: None }
    }

    /// What [`read()`] understands, without the rest of what it says.
    ///
    /// # Errors
    /// As [`read()`].
    ///
    /// ```
    /// let table = slowlane::pq::parameters();
    /// let dsn = slowlane::dsn::Dsn::parse("postgresql://app:s3cret@db.example/app", table)?;
    /// assert_eq!(dsn.get("host"), Some("db.example"));
    /// assert_eq!(dsn.masked(), "postgresql://app:***@db.example/app");
    /// # Ok::<(), slowlane::dsn::DsnError>(())
    /// ```
    pub fn parse(text: &str, table: &[Parameter]) -> Result<Dsn, DsnError> {
        Ok(read(text, table)?.dsn)
    }

    /// The same string, with how it was understood.
    #[must_use]
    pub fn understood(mut self, origin: Origin) -> Dsn {
        self.origin = Some(Arc::new(origin));
        self
    }

    /// How it was understood, where whoever read it said so.
    pub fn origin(&self) -> Option<&Origin> {
        self.origin.as_deref()
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
    /// that is gone without a word. One without a host means the socket of this machine, where Debian and where
    /// PostgreSQL itself put it.
    #[must_use]
    pub fn for_connecting(self) -> Dsn {
        let dsn = match self.get("hostaddr") {
            Some(_) => self,
            None => self.with_default("host", "/var/run/postgresql,/tmp"),
        };
        dsn.with_default("connect_timeout", "5")
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
        render::url(&self.parameters, |keyword, value| self.shown(keyword, value))
    }

    /// The string as `keyword='value'` for people, secrets replaced by `***`.
    pub fn masked_conninfo(&self) -> String {
        let shown = self.parameters.iter().map(|(keyword, value)| (keyword.clone(), self.shown(keyword, value)));
        render::conninfo(&shown.collect())
    }

    /// A value as people may see it. A name with marks in it may be a name and a password with the wrong mark between.
    fn shown(&self, keyword: &str, value: &str) -> String {
        let plain = |extra: &[char]| {
            value.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '_' | '-') || extra.contains(&c))
        };
        let visible = match keyword {
            _ if self.secrets.iter().any(|secret| secret == keyword) => false,
            "user" | "dbname" => plain(&['@']),
            "service" => plain(&[]),
            // A PEM may stand in the place of its file's name.
            "sslkey" | "sslcert" | "sslrootcert" | "sslcrl" | "sslcrldir" | "passfile" => shown::is_plain_path(value),
            "host" | "hostaddr" => plain(&['/', ':', ',', '%', '@']),
            _ => !value.contains(char::is_control),
        };
        if visible { value.to_owned() } else { "***".to_owned() }
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
