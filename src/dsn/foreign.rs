//! What parameters of other drivers mean to libpq. The names and meanings are those of the drivers' own documentation:
//! asyncpg (`connect`), psycopg (`Connection.connect`), pg8000 (`connect`), SQLAlchemy's dialects and engines,
//! node-postgres (pg-connection-string), Prisma (connection URLs), pgjdbc (`PGProperty`), pgx (`ParseConfig` of pgx and
//! pgxpool), lib/pq (`NewConfig`), Rails (`PostgreSQLAdapter`), sqlx (`PgConnectOptions`), tokio-postgres (`Config`),
//! Doctrine DBAL (`DsnParser`, `PDO\PgSQL\Driver`), Ecto (`parse_url`), Npgsql (`NpgsqlConnectionStringBuilder`).
//!
//! | file | what it has |
//! | --- | --- |
//! | `table` | the parameters |
//! | `tls` | whether and how to use TLS |
//! | `values` | values, converted |

mod table;
mod tls;
mod values;

use crate::dsn::Driver;

pub(crate) use table::of;
pub use table::{SETTINGS, TABLE};
pub(super) use tls::Tls;
pub use tls::{SSL_MODES, strength};
pub(super) use values::*;

/// What becomes of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// libpq has it under this name.
    Renamed(&'static str),
    /// libpq has it under this name, and nothing more is to be said.
    Same(&'static str),
    /// libpq has it under this name, as the same word in small letters.
    Word(&'static str),
    /// Which ways to log in are taken, as libpq's `require_auth`.
    Login,
    /// libpq has it under this name, and it takes the place of what stands before the path.
    Instead(&'static str),
    /// As [`How::Seconds`], but not many of them: a large number may be meant in milliseconds.
    ShortSeconds(&'static str),
    /// libpq has it under this name, from a time with its unit, in whole seconds.
    Duration(&'static str),
    /// How transactions are kept apart.
    Isolation,
    /// libpq has it under this name, in whole seconds; fractions are rounded up.
    Seconds(&'static str),
    /// As [`How::Seconds`], from milliseconds.
    Milliseconds(&'static str),
    /// libpq has it under this name as 1 or 0.
    Flag(&'static str),
    /// A setting of the server's of this name, through `options`.
    Setting(&'static str),
    /// As [`How::Setting`], from seconds to milliseconds.
    SettingSeconds(&'static str),
    /// A schema's name as it is written, as the server's search_path.
    Schema,
    /// Whether transactions only read.
    ReadOnly,
    /// Settings of the server's, as JSON or `name=value,…`.
    Settings,
    /// A size or a time of a pool: slowlane has settings of its own.
    Pool,
    /// What is kept prepared: slowlane decides that itself.
    Prepared,
    /// Nothing that slowlane could do.
    Dropped(&'static str),
    /// It can't be translated without losing what it is for.
    Refused(&'static str),
    /// It can't be translated when it is true; else it says nothing.
    RefusedIf(&'static str),
    /// Whether and how to use TLS.
    Tls,
    /// Hosts, each perhaps with its port.
    Hosts,
    /// Which of several servers is wanted, in Npgsql's words.
    SessionAttributes,
    /// Which server's peculiarities are borne.
    Compatibility,
    /// How GSSAPI encrypts.
    GssEncryption,
    /// Which of several servers is wanted.
    ServerType,
    /// `true` is `random`.
    LoadBalance,
    /// A socket's path.
    Socket,
}

/// For the table of them: what becomes of it, in a few words.
impl std::fmt::Display for How {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            How::Renamed(keyword) | How::Same(keyword) => write!(f, "`{keyword}`"),
            How::Word(keyword) => write!(f, "`{keyword}`, in small letters"),
            How::Login => f.write_str("`require_auth`"),
            How::Instead(keyword) => write!(f, "`{keyword}`, in the place of the one before the path"),
            How::ShortSeconds(keyword) => {
                write!(
                    f,
                    "`{keyword}`, in whole seconds; more than {MOST_SECONDS} are refused, as they may be milliseconds"
                )
            }
            How::Duration(keyword) => write!(f, "`{keyword}`, from a time with its unit to whole seconds"),
            How::Isolation => f.write_str("`options=-c default_transaction_isolation=…`; AUTOCOMMIT is dropped"),
            How::Seconds(keyword) => write!(f, "`{keyword}`, in whole seconds"),
            How::Milliseconds(keyword) => write!(f, "`{keyword}`, from milliseconds to whole seconds"),
            How::Flag(keyword) => write!(f, "`{keyword}`, 1 or 0"),
            How::Setting(setting) => write!(f, "`options=-c {setting}=…`"),
            How::SettingSeconds(setting) => write!(f, "`options=-c {setting}=…`, from seconds to milliseconds"),
            How::Schema => f.write_str("`options=-c search_path=…`, quoted where it must be"),
            How::ReadOnly => f.write_str("`options=-c default_transaction_read_only=on`"),
            How::GssEncryption => f.write_str("`gssencmode`"),
            How::Settings => f.write_str("`options=-c name=value …`"),
            How::Pool => f.write_str("dropped: slowlane's pools have settings of their own"),
            How::Prepared => f.write_str("dropped: slowlane decides itself what is kept prepared"),
            How::Dropped(why) => write!(f, "dropped: {why}"),
            How::Refused(why) => write!(f, "refused: {why}"),
            How::RefusedIf(why) => write!(f, "refused when it is true: {why}"),
            How::Hosts => f.write_str("`host` and `port`"),
            How::Compatibility => f.write_str("dropped; Redshift is refused"),
            How::Tls => f.write_str("`sslmode`, never weaker than it was meant"),
            How::ServerType | How::SessionAttributes => f.write_str("`target_session_attrs`"),
            How::LoadBalance => f.write_str("`load_balance_hosts`, random or disable"),
            How::Socket => f.write_str("`host` and `port`"),
        }
    }
}

/// A parameter of another driver.
#[derive(Clone, Copy, Debug)]
pub struct Foreign {
    /// Its name there.
    pub name: &'static str,
    /// Whom it shows that the string was written for, where one alone has it.
    pub shows: Option<Driver>,
    /// What becomes of it.
    pub how: How,
}

/// The entry of a parameter, in a string of this driver's: its own where two drivers mean different things by one name.
pub fn find(name: &str, driver: Driver) -> Option<&'static Foreign> {
    let named = || TABLE.iter().filter(|foreign| foreign.name == name);
    named().find(|foreign| foreign.shows == Some(driver)).or_else(|| named().next())
}

/// The setting of the server's in `options[name]`, as sqlx writes it, or `variables[name]`.
pub(super) fn bracketed(name: &str) -> Option<&str> {
    let (word, rest) = name.split_once('[')?;
    matches!(word, "options" | "variables").then_some(())?;
    rest.strip_suffix(']').filter(|setting| SETTINGS.contains(setting) || is_dotted(setting))
}

/// A setting of an extension's or an application's own: words with dots between them.
pub(super) fn is_dotted(name: &str) -> bool {
    let is_word = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && word.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '$'))
    };
    name.contains('.') && name.split('.').all(is_word)
}
