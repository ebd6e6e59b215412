//! What kind of string it is, by what it begins with.

use crate::dsn::driver::Dialect;
use crate::dsn::raw;
use crate::dsn::refusal::{Code, DsnError};
use crate::dsn::{Change, Driver};

/// How the rest is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Syntax<'t> {
    /// What follows `postgresql://`.
    Url(&'t str),
    /// What follows `jdbc:postgresql:`, without a host.
    Database(&'t str),
    /// `keyword=value …`.
    KeyValue(&'t str),
}

/// Databases, protocols and drivers whose names people write as a scheme, and what to say of them.
const OTHERS: [(&str, &str); 35] = [
    ("mysql", "MySQL"),
    ("mariadb", "MariaDB"),
    ("sqlite", "SQLite"),
    ("sqlite3", "SQLite"),
    ("file", "SQLite"),
    ("cockroachdb", "CockroachDB"),
    ("cockroach", "CockroachDB"),
    ("redshift", "Redshift"),
    ("mssql", "SQL Server"),
    ("sqlserver", "SQL Server"),
    ("oracle", "Oracle"),
    ("mongodb", "MongoDB"),
    ("mongodb+srv", "MongoDB"),
    ("redis", "Redis"),
    ("rediss", "Redis"),
    ("amqp", "AMQP"),
    ("clickhouse", "ClickHouse"),
    ("snowflake", "Snowflake"),
    ("duckdb", "DuckDB"),
    ("db2", "Db2"),
    ("http", "HTTP"),
    ("https", "HTTP"),
    ("tcp", "TCP"),
    ("unix", "a Unix socket"),
    ("odbc", "ODBC"),
    ("prisma", "Prisma's own service"),
    ("prisma+postgres", "Prisma's own service"),
    ("asyncpg", "asyncpg"),
    ("aiopg", "aiopg"),
    ("psycopg", "psycopg"),
    ("psycopg2", "psycopg2"),
    ("pg8000", "pg8000"),
    ("pg", "a short form"),
    ("r2dbc", "R2DBC"),
    ("timescaledb", "TimescaleDB"),
];

/// Names of Django's and its URL readers' for Postgres.
const SYNONYMS: [&str; 3] = ["pgsql", "psql", "postgis"];

/// Finds out whom the string was written for, and what is left to read.
pub(super) fn classify<'t>(text: &'t str, changes: &mut Vec<Change>) -> Result<(Driver, Syntax<'t>), DsnError> {
    let Some((scheme, rest)) = split(text) else {
        return without_scheme(text);
    };
    let lower = scheme.to_ascii_lowercase();
    if lower == "jdbc" {
        return jdbc(rest, changes);
    }
    if let Some(rest) = rest.strip_prefix("//") {
        return with_scheme(scheme, &lower, rest, changes);
    }
    match lower.as_str() {
        "postgres" | "postgresql" => {
            Err(DsnError::malformed("two slashes follow the scheme: postgresql://").written_for(Driver::Libpq))
        }
        "pgsql" => Err(pdo()),
        lower if lower.contains('+') || OTHERS.iter().any(|(name, _)| *name == lower) => Err(unsupported(lower)),
        _ => without_scheme(text),
    }
}

/// A word of letters before the first colon.
fn split(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once(':')?;
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.' | '_'));
    is_scheme.then_some((scheme, rest))
}

fn with_scheme<'t>(
    scheme: &str,
    lower: &str,
    rest: &'t str,
    changes: &mut Vec<Change>,
) -> Result<(Driver, Syntax<'t>), DsnError> {
    if matches!(lower, "postgres" | "postgresql") {
        if scheme != lower {
            changes.push(Change::new("scheme", "the scheme is written in small letters"));
        }
        return Ok((Driver::Libpq, Syntax::Url(rest)));
    }
    if SYNONYMS.contains(&lower) {
        changes.push(Change::new(
            "scheme",
            format!("the scheme is postgresql: {lower} is a name that Django's readers of URLs have for it"),
        ));
        return Ok((Driver::Django, Syntax::Url(rest)));
    }
    let Some((base, driver)) = lower.split_once('+').filter(|(base, _)| matches!(*base, "postgres" | "postgresql"))
    else {
        return Err(unsupported(lower));
    };
    let Some(dialect) = Dialect::ALL.into_iter().find(|dialect| dialect.name() == driver) else {
        return Err(DsnError::new(
            Code::UnsupportedScheme,
            "the scheme names a driver that isn't one of SQLAlchemy's for Postgres: write postgresql://",
        ));
    };
    let driver = Driver::SqlAlchemy(dialect);
    if !scheme.ends_with(dialect.name()) {
        // SQLAlchemy itself would not find it: what it is meant for isn't certain.
        let message = format!("SQLAlchemy writes its drivers in small letters: {base}+{}://", dialect.name());
        return Err(DsnError::new(Code::UnsupportedScheme, message).written_for(driver));
    }
    let name = dialect.name();
    changes.push(Change::new("scheme", format!("the scheme is postgresql: +{name} names a driver, {driver}")));
    Ok((driver, Syntax::Url(rest)))
}

fn unsupported(lower: &str) -> DsnError {
    let base = lower.split('+').next().unwrap_or_default();
    let known = OTHERS.iter().find(|(name, _)| *name == lower || *name == base);
    match known {
        Some((name, what)) if ["asyncpg", "aiopg", "psycopg", "psycopg2", "pg8000", "pg"].contains(name) => {
            DsnError::new(
                Code::UnsupportedScheme,
                format!("{name} is the name of {what}, not of a scheme: write postgresql://"),
            )
            .written_for(Driver::Other(what))
        }
        Some((name, what)) => DsnError::new(
            Code::UnsupportedScheme,
            format!("the scheme {name} is that of {what}: slowlane works on Postgres, whose scheme is postgresql://"),
        )
        .written_for(Driver::Other(what)),
        None => DsnError::new(
            Code::UnsupportedScheme,
            "the scheme isn't one of Postgres': it is postgresql:// or postgres://",
        ),
    }
}

/// `jdbc:postgresql://host/db`, `jdbc:postgresql:db`, `jdbc:postgresql:/`.
fn jdbc<'t>(rest: &'t str, changes: &mut Vec<Change>) -> Result<(Driver, Syntax<'t>), DsnError> {
    let (name, rest) = rest.split_once(':').unwrap_or((rest, ""));
    if !name.eq_ignore_ascii_case("postgresql") {
        let lower = name.to_ascii_lowercase();
        let what = OTHERS.iter().find(|(known, _)| *known == lower).map_or("another database", |(_, what)| *what);
        let message = format!("it is a JDBC URL for {what}: slowlane works on Postgres, whose scheme is postgresql://");
        return Err(DsnError::new(Code::UnsupportedScheme, message).written_for(Driver::Jdbc));
    }
    changes.push(Change::new("scheme", "the scheme is postgresql: jdbc: is for Java"));
    if let Some(rest) = rest.strip_prefix("//") {
        return Ok((Driver::Jdbc, Syntax::Url(rest)));
    }
    let database = rest.split('?').next().unwrap_or_default();
    if database.contains(['@', ':', ';']) {
        return Err(
            DsnError::malformed("two slashes come before the host: jdbc:postgresql://").written_for(Driver::Jdbc)
        );
    }
    Ok((Driver::Jdbc, Syntax::Database(rest.trim_start_matches('/'))))
}

fn pdo() -> DsnError {
    DsnError::new(
        Code::ForeignSyntax,
        "pgsql: and pairs set apart by `;` are PDO's: write postgresql://, or the same pairs with blanks between them",
    )
    .written_for(Driver::Pdo)
}

fn without_scheme(text: &str) -> Result<(Driver, Syntax<'_>), DsnError> {
    if let Some(driver) = foreign_pairs(text) {
        let message =
            "pairs set apart by `;` are another syntax: write postgresql://, or keyword=value with blanks between";
        return Err(DsnError::new(Code::ForeignSyntax, message).written_for(driver));
    }
    if raw::looks_like_key_value(text) {
        return Ok((Driver::Libpq, Syntax::KeyValue(text)));
    }
    Err(DsnError::new(Code::MissingScheme, "it begins with no scheme: write postgresql:// before it"))
}

/// The pairs of ADO.NET or PDO as `keyword=value`; `None` where one is none.
pub(super) fn as_key_value(text: &str) -> Option<String> {
    let pairs = text.strip_prefix("pgsql:").unwrap_or(text).split(';').filter(|pair| !pair.trim().is_empty());
    let mut keywords = Vec::new();
    for pair in pairs {
        let (name, value) = pair.split_once('=')?;
        let keyword = match name.trim().to_ascii_lowercase().as_str() {
            "host" | "server" | "data source" => "host",
            "port" => "port",
            "database" | "initial catalog" | "dbname" => "dbname",
            "user id" | "userid" | "uid" | "username" | "user name" | "user" => "user",
            "password" | "pwd" => "password",
            // Another setting of that driver's, or a piece of a password with a `;` in it.
            _ => return None,
        };
        keywords.push(format!("{keyword}='{}'", value.replace('\\', "\\\\").replace('\'', "\\'")));
    }
    Some(keywords.join(" "))
}

/// ADO.NET's `Host=…;Username=…`, or PDO's pairs without their prefix.
fn foreign_pairs(text: &str) -> Option<Driver> {
    const ADO: [&str; 16] = [
        "server",
        "data source",
        "host",
        "user id",
        "userid",
        "uid",
        "username",
        "user name",
        "pwd",
        "password",
        "database",
        "initial catalog",
        "port",
        "ssl mode",
        "sslmode",
        "pooling",
    ];
    let pairs: Vec<&str> = text.split(';').filter(|pair| !pair.trim().is_empty()).collect();
    let names = pairs.iter().filter_map(|pair| pair.split_once('=')).map(|(name, _)| name.trim());
    let known: Vec<&str> = names.filter(|name| ADO.contains(&name.to_ascii_lowercase().as_str())).collect();
    if pairs.len() < 2 || known.len() < 2 || text.starts_with(char::is_whitespace) {
        return None;
    }
    let small = known.iter().all(|name| !name.contains(|c: char| c.is_ascii_uppercase() || c == ' '));
    Some(if small { Driver::Pdo } else { Driver::AdoNet })
}
