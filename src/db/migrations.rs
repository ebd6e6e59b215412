//! The schema's version: what this build knows, what the database has, and the way up.
//!
//! Diesel's own table of applied migrations lives in the schema `slowlane`: one that an application keeps in its
//! own schema is never seen nor touched.

use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use crate::db::error::DbError;

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations");

/// Two processes that migrate take turns: the key of the advisory lock that they take.
const LOCK_KEY: i64 = 0x736c_6f77_6c61_6e65;

/// How the database's schema stands to this build's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Versions that the database has, oldest first.
    pub applied: Vec<String>,
    /// Versions that this build has and the database lacks, oldest first.
    pub pending: Vec<String>,
    /// Versions that the database has and this build doesn't know: it was migrated by a newer slowlane.
    pub unknown: Vec<String>,
}

impl Status {
    /// The schema is exactly what this build was made for.
    pub fn is_current(&self) -> bool {
        self.pending.is_empty() && self.unknown.is_empty()
    }
}

/// Why migrating stopped.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The database was migrated by a newer slowlane.
    #[error("the database has migrations that this slowlane doesn't know ({0}): run the newer slowlane")]
    Newer(String),
    /// A migration failed; it was rolled back.
    #[error("a migration failed and was rolled back: {0}")]
    Failed(String),
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
}

impl From<diesel::result::Error> for MigrateError {
    fn from(error: diesel::result::Error) -> Self {
        MigrateError::Db(error.into())
    }
}

#[derive(QueryableByName)]
struct Version {
    #[diesel(sql_type = diesel::sql_types::Text)]
    version: String,
}

#[derive(QueryableByName)]
struct Present {
    #[diesel(sql_type = diesel::sql_types::Bool)]
    present: bool,
}

/// Compares the database's schema with this build's. Reads only, and works before the first migration.
///
/// # Errors
/// When the database fails.
pub fn status(connection: &mut PgConnection) -> Result<Status, MigrateError> {
    let has_table =
        diesel::sql_query("SELECT to_regclass('slowlane.__diesel_schema_migrations') IS NOT NULL AS present")
            .get_result::<Present>(connection)?
            .present;
    let applied: Vec<String> = if has_table {
        diesel::sql_query("SELECT version FROM slowlane.__diesel_schema_migrations ORDER BY version")
            .load::<Version>(connection)?
            .into_iter()
            .map(|row| row.version)
            .collect()
    } else {
        Vec::new()
    };
    compared(applied)
}

/// How a database with these versions stands to this build.
///
/// # Errors
/// Never in practice: this build knows its own migrations.
pub fn compared(applied: Vec<String>) -> Result<Status, MigrateError> {
    let known = known()?;
    Ok(Status {
        pending: known.iter().filter(|v| !applied.contains(v)).cloned().collect(),
        unknown: applied.iter().filter(|v| !known.contains(v)).cloned().collect(),
        applied,
    })
}

/// Brings the schema up to this build's, one process at a time. Says what it applied. Days of history are made
/// apart, by `queue::record::partitions::ensure`.
///
/// # Errors
/// [`MigrateError::Newer`] when the database is ahead of this build; nothing is changed then.
pub fn up(connection: &mut PgConnection) -> Result<Vec<String>, MigrateError> {
    diesel::sql_query(format!("SELECT pg_advisory_lock({LOCK_KEY})")).execute(connection)?;
    let applied = locked_up(connection);
    diesel::sql_query(format!("SELECT pg_advisory_unlock({LOCK_KEY})")).execute(connection)?;
    applied
}

fn locked_up(connection: &mut PgConnection) -> Result<Vec<String>, MigrateError> {
    let status = status(connection)?;
    if !status.unknown.is_empty() {
        return Err(MigrateError::Newer(status.unknown.join(", ")));
    }
    diesel::sql_query("CREATE SCHEMA IF NOT EXISTS slowlane").execute(connection)?;
    diesel::sql_query("SET search_path = slowlane").execute(connection)?;
    let applied = connection.run_pending_migrations(MIGRATIONS).map_err(|e| MigrateError::Failed(e.to_string()))?;
    Ok(applied.iter().map(ToString::to_string).collect())
}

/// Takes every migration back, newest first. For tests of the migrations themselves.
///
/// # Errors
/// When a migration's way down fails.
pub fn down(connection: &mut PgConnection) -> Result<(), MigrateError> {
    connection.revert_all_migrations(MIGRATIONS).map_err(|e| MigrateError::Failed(e.to_string()))?;
    Ok(())
}

/// The server's messages can be told apart: Diesel passes no SQLSTATE on.
///
/// # Errors
/// When the database fails.
pub fn speaks_english(connection: &mut PgConnection) -> Result<bool, MigrateError> {
    let row = diesel::sql_query(
        "SELECT current_setting('lc_messages') ~* '^(c|posix|en)([._-]|$)' OR current_setting('lc_messages') = '' AS present",
    );
    Ok(row.get_result::<Present>(connection)?.present)
}

fn known() -> Result<Vec<String>, MigrateError> {
    use diesel::migration::{Migration, MigrationSource};
    let migrations: Vec<Box<dyn Migration<diesel::pg::Pg>>> =
        MIGRATIONS.migrations().map_err(|e| MigrateError::Failed(e.to_string()))?;
    let mut versions: Vec<String> = migrations.iter().map(|m| m.name().version().to_string()).collect();
    versions.sort();
    Ok(versions)
}
