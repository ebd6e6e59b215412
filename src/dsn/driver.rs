//! Whom a connection string was written for.

use std::fmt;

/// The program or library that a connection string was written for, as far as the string shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// libpq, and whatever takes its strings as they are.
    Libpq,
    /// SQLAlchemy with one of its drivers.
    SqlAlchemy(Dialect),
    /// asyncpg on its own.
    Asyncpg,
    /// psycopg 3 on its own.
    Psycopg,
    /// pg8000 on its own.
    Pg8000,
    /// Django and what reads its URLs.
    Django,
    /// Java's JDBC.
    Jdbc,
    /// node-postgres.
    NodePostgres,
    /// Prisma.
    Prisma,
    /// pgx, with its pool.
    Pgx,
    /// lib/pq.
    Pq,
    /// Rails.
    Rails,
    /// sqlx.
    Sqlx,
    /// tokio-postgres.
    TokioPostgres,
    /// Doctrine, as Symfony sets it up.
    Doctrine,
    /// Ecto.
    Ecto,
    /// Npgsql, or whatever takes ADO.NET's strings.
    AdoNet,
    /// PHP's PDO.
    Pdo,
    /// A database or protocol that isn't Postgres.
    Other(&'static str),
    /// Nothing shows it.
    Unknown,
}

/// A driver that SQLAlchemy speaks to Postgres with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is named as SQLAlchemy names it")]
pub enum Dialect {
    Psycopg2,
    Psycopg,
    PsycopgAsync,
    Asyncpg,
    Pg8000,
    Psycopg2cffi,
    Aiopg,
}

impl Dialect {
    /// Every one.
    pub const ALL: [Dialect; 7] = [
        Dialect::Psycopg2,
        Dialect::Psycopg,
        Dialect::PsycopgAsync,
        Dialect::Asyncpg,
        Dialect::Pg8000,
        Dialect::Psycopg2cffi,
        Dialect::Aiopg,
    ];

    /// The word behind the `+` of the scheme.
    pub fn name(self) -> &'static str {
        match self {
            Dialect::Psycopg2 => "psycopg2",
            Dialect::Psycopg => "psycopg",
            Dialect::PsycopgAsync => "psycopg_async",
            Dialect::Asyncpg => "asyncpg",
            Dialect::Pg8000 => "pg8000",
            Dialect::Psycopg2cffi => "psycopg2cffi",
            Dialect::Aiopg => "aiopg",
        }
    }
}

impl Driver {
    /// Every family but SQLAlchemy, and what isn't one.
    pub const FAMILIES: [Driver; 17] = [
        Driver::Libpq,
        Driver::Asyncpg,
        Driver::Psycopg,
        Driver::Pg8000,
        Driver::Django,
        Driver::Jdbc,
        Driver::NodePostgres,
        Driver::Prisma,
        Driver::Pgx,
        Driver::Pq,
        Driver::Rails,
        Driver::Sqlx,
        Driver::TokioPostgres,
        Driver::Doctrine,
        Driver::Ecto,
        Driver::AdoNet,
        Driver::Pdo,
    ];

    /// The family: the library or program that reads such strings.
    pub fn family(self) -> &'static str {
        match self {
            Driver::Libpq => "libpq",
            Driver::SqlAlchemy(_) => "SQLAlchemy",
            Driver::Asyncpg => "asyncpg",
            Driver::Psycopg => "psycopg",
            Driver::Pg8000 => "pg8000",
            Driver::Django => "Django",
            Driver::Jdbc => "JDBC",
            Driver::NodePostgres => "node-postgres",
            Driver::Prisma => "Prisma",
            Driver::Pgx => "pgx",
            Driver::Pq => "lib/pq",
            Driver::Rails => "Rails",
            Driver::Sqlx => "sqlx",
            Driver::TokioPostgres => "tokio-postgres",
            Driver::Doctrine => "Doctrine",
            Driver::Ecto => "Ecto",
            Driver::AdoNet => "ADO.NET",
            Driver::Pdo => "PDO",
            Driver::Other(name) => name,
            Driver::Unknown => "unknown",
        }
    }

    /// The driver within the family.
    pub fn name(self) -> &'static str {
        match self {
            Driver::SqlAlchemy(dialect) => dialect.name(),
            Driver::Django => "psycopg",
            Driver::Jdbc => "pgjdbc",
            Driver::AdoNet => "Npgsql",
            Driver::Pdo | Driver::Doctrine => "pdo_pgsql",
            Driver::Rails => "pg",
            Driver::Ecto => "postgrex",
            other => other.family(),
        }
    }

    /// Whether it works asynchronously; `None` where it can do either, or where that isn't known.
    pub fn asynchronous(self) -> Option<bool> {
        match self {
            Driver::Asyncpg
            | Driver::NodePostgres
            | Driver::Prisma
            | Driver::Sqlx
            | Driver::TokioPostgres
            | Driver::SqlAlchemy(Dialect::Asyncpg | Dialect::PsycopgAsync | Dialect::Aiopg)
            | Driver::Other("asyncpg" | "aiopg") => Some(true),
            Driver::Libpq
            | Driver::Pg8000
            | Driver::Django
            | Driver::Jdbc
            | Driver::Pdo
            | Driver::Doctrine
            | Driver::Rails
            | Driver::Pgx
            | Driver::Pq
            | Driver::Ecto
            | Driver::SqlAlchemy(Dialect::Psycopg2 | Dialect::Pg8000 | Dialect::Psycopg2cffi)
            | Driver::Other("psycopg2" | "pg8000") => Some(false),
            _ => None,
        }
    }

    /// Its query parameters have `+` for a blank, as forms do.
    pub(super) fn plus_is_a_blank(self) -> bool {
        !matches!(self, Driver::Libpq | Driver::TokioPostgres | Driver::Rails | Driver::Unknown)
    }

    /// Where it is told to verify the server's certificate and no file says whom to trust, it trusts the system's
    /// authorities.
    pub(super) fn trusts_the_system(self) -> bool {
        matches!(self, Driver::Pgx | Driver::Sqlx | Driver::AdoNet)
    }

    /// It verifies the server's certificate when it is only told to use TLS.
    pub(super) fn verifies_by_default(self) -> bool {
        matches!(self, Driver::NodePostgres)
    }
}

/// As a part of a sentence: `SQLAlchemy with asyncpg, which is asynchronous`.
impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.family())?;
        if self.name() != self.family() {
            write!(f, " with {}", self.name())?;
        }
        match self.asynchronous() {
            Some(true) => f.write_str(", which is asynchronous"),
            Some(false) => f.write_str(", which is synchronous"),
            None if matches!(self, Driver::Other(_) | Driver::Unknown) => Ok(()),
            None => f.write_str(", which can be synchronous or asynchronous"),
        }
    }
}
