//! What kind of string it is, by what it begins with.

use crate::dsn::driver::Dialect;
use crate::dsn::refusal::{Code, DsnError};
use crate::dsn::{Change, Driver};
use crate::dsn::{adonet, raw};

/// How the rest is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Syntax<'t> {
    /// What follows `postgresql://`.
    Url(&'t str),
    /// What follows `jdbc:postgresql:`, without a host.
    Database(&'t str),
    /// `keyword=value …`.
    KeyValue(&'t str),
    /// `Keyword=value;…`, Npgsql's.
    Pairs(&'t str),
}

/// Databases, protocols and drivers whose names people write as a scheme, and what to say of them.
const OTHERS: [(&str, &str); 36] = [
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
    ("r2dbcs", "R2DBC"),
    ("timescaledb", "TimescaleDB"),
];

/// What stands between `jdbc:` and the database where a library wraps the driver, and which.
const WRAPPERS: [(&str, &str); 7] = [
    ("aws-wrapper", "the AWS JDBC driver"),
    ("otel", "OpenTelemetry"),
    ("p6spy", "P6Spy"),
    ("log4jdbc", "log4jdbc"),
    ("tc", "Testcontainers"),
    ("tracing", "OpenTracing"),
    ("datasource-proxy", "datasource-proxy"),
];

/// What a wrapper wraps: `jdbc:otel:postgresql://…` is `jdbc:postgresql://…`, `r2dbc:pool:postgresql://…` is
/// `postgresql://…`. `None` where nothing is wrapped, and for Testcontainers, which starts a server of its own.
pub(super) fn unwrapped(text: &str) -> Option<String> {
    let (scheme, rest) = text.split_once(':')?;
    let after = |rest: &str| {
        let at = rest.find("//")?;
        let (name, rest) = rest.split_at(at);
        ["postgresql:", "postgres:"].iter().any(|known| name.eq_ignore_ascii_case(known)).then(|| rest.to_owned())
    };
    let lower = scheme.to_ascii_lowercase();
    match lower.as_str() {
        "jdbc" => {
            let (wrapper, rest) = rest.split_once(':')?;
            let known = WRAPPERS.iter().any(|(known, _)| *known != "tc" && wrapper.eq_ignore_ascii_case(known));
            Some(format!("jdbc:postgresql:{}", after(rest.strip_prefix("wrapper:").unwrap_or(rest)).filter(|_| known)?))
        }
        "r2dbc" | "r2dbcs" => {
            let rest = after(rest.strip_prefix("pool:").unwrap_or(rest))?;
            let tls = if rest.contains('?') { "&sslmode=verify-full" } else { "?sslmode=verify-full" };
            Some(format!("postgresql:{rest}{}", if lower == "r2dbcs" { tls } else { "" }))
        }
        _ => None,
    }
}

/// Names that others have for Postgres' scheme, and who.
const SYNONYMS: [(&str, Driver, &str); 11] = [
    ("pgsql", Driver::Django, "Django's readers of URLs and Doctrine"),
    ("psql", Driver::Django, "Django's readers of URLs"),
    ("postgis", Driver::Django, "Django's readers of URLs"),
    ("timescale", Driver::Django, "Django's readers of URLs"),
    ("timescalegis", Driver::Django, "Django's readers of URLs"),
    ("ecto", Driver::Ecto, "Ecto"),
    ("pdo-pgsql", Driver::Doctrine, "Doctrine"),
    ("pdo_pgsql", Driver::Doctrine, "Doctrine"),
    ("pgx", Driver::Pgx, "golang-migrate"),
    ("pgx4", Driver::Pgx, "golang-migrate"),
    ("pgx5", Driver::Pgx, "golang-migrate"),
];

/// Finds out whom the string was written for, and what is left to read.
pub(super) fn classify<'t>(text: &'t str, changes: &mut Vec<Change>) -> Result<(Driver, Syntax<'t>), DsnError> {
    let Some((scheme, rest)) = split(text) else {
        return without_scheme(text, changes);
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
        _ => without_scheme(text, changes),
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
    if let Some((name, driver, whose)) = SYNONYMS.into_iter().find(|(name, ..)| *name == lower) {
        changes.push(Change::new("scheme", format!("the scheme is postgresql: {name} is its name for {whose}")));
        return Ok((driver, Syntax::Url(rest)));
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
    if let Some((_, whose)) = WRAPPERS.iter().find(|(known, _)| name.eq_ignore_ascii_case(known)) {
        let message = format!("jdbc:{} is that of a wrapper, {whose}: write what it wraps", name.to_ascii_lowercase());
        return Err(DsnError::new(Code::UnsupportedScheme, message).written_for(Driver::Jdbc));
    }
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

fn without_scheme<'t>(text: &'t str, changes: &mut Vec<Change>) -> Result<(Driver, Syntax<'t>), DsnError> {
    if let Some(what) = odbc(text) {
        let message =
            format!("pairs with {what} are another syntax: write postgresql://, or keyword=value with blanks between");
        let whose = if what == "Provider" { "OLE DB" } else { "ODBC" };
        return Err(DsnError::new(Code::ForeignSyntax, message).written_for(Driver::Other(whose)));
    }
    if is_lone_host(text) {
        changes.push(Change::new("scheme", "Host with a capital letter is Npgsql's: libpq has host"));
        return Ok((Driver::AdoNet, Syntax::Pairs(text)));
    }
    if let Some(driver) = foreign_pairs(text) {
        if adonet::is_npgsql(names(text)) {
            changes.push(Change::new(
                "scheme",
                "pairs set apart by `;` are Npgsql's: libpq has blanks between them, or a URL",
            ));
            return Ok((Driver::AdoNet, Syntax::Pairs(text)));
        }
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
    let is_odbc = odbc(text).is_some();
    let mut keywords = Vec::new();
    for pair in pairs {
        let (name, value) = pair.split_once('=')?;
        let name = name.trim().to_ascii_lowercase();
        // ODBC's value in braces may hold any mark.
        let value = match value.trim().strip_prefix('{').filter(|_| is_odbc) {
            Some(inner) => inner.strip_suffix('}').filter(|inner| !inner.contains(['{', '}']))?,
            None => value,
        };
        if is_odbc && matches!(name.as_str(), "driver" | "provider") {
            continue;
        }
        let keyword = match name.as_str() {
            "host" | "server" | "data source" => "host",
            "port" => "port",
            "database" | "initial catalog" | "dbname" => "dbname",
            "user id" | "userid" | "uid" | "username" | "user name" | "user" => "user",
            "password" | "pwd" => "password",
            "sslmode" if is_odbc => "sslmode",
            "location" if is_odbc => "dbname",
            // Another setting of that driver's, or a piece of a password with a `;` in it.
            _ => return None,
        };
        keywords.push(format!("{keyword}='{}'", value.replace('\\', "\\\\").replace('\'', "\\'")));
    }
    Some(keywords.join(" "))
}

/// The keyword by which pairs are ODBC's or OLE DB's.
fn odbc(text: &str) -> Option<&'static str> {
    let is = |known: &str| names(text).any(|name| name.eq_ignore_ascii_case(known));
    let known = names(text).any(|name| {
        ["server", "uid", "pwd", "database", "data source", "user id", "location"]
            .iter()
            .any(|known| name.eq_ignore_ascii_case(known))
    });
    ["Driver", "Provider"].into_iter().find(|word| known && is(word))
}

/// `Host=h` alone: a pair that libpq would write in small letters.
fn is_lone_host(text: &str) -> bool {
    let text = text.strip_suffix(';').unwrap_or(text);
    let host = text.strip_prefix("Host=").or_else(|| text.strip_prefix("Server="));
    host.is_some_and(|host| {
        !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | ','))
    })
}

/// The keywords of pairs set apart by `;`.
fn names(text: &str) -> impl Iterator<Item = &str> + Clone {
    text.split(';').filter_map(|pair| pair.split_once('=')).map(|(name, _)| name.trim())
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
    let known: Vec<&str> = names(text).filter(|name| ADO.contains(&name.to_ascii_lowercase().as_str())).collect();
    if pairs.len() < 2 || known.len() < 2 || text.starts_with(char::is_whitespace) {
        return None;
    }
    let small = known.iter().all(|name| !name.contains(|c: char| c.is_ascii_uppercase() || c == ' '));
    Some(if small { Driver::Pdo } else { Driver::AdoNet })
}
