//! Migrating from Rust: the schema, the days of history, and the rights of the roles that use it.

use std::time::Duration;

use crate::app::{AppError, DatabaseUrl};
use crate::db::pool::{Manager, Purpose};
use crate::db::{migrations, roles};
use crate::dsn::Dsn;
use crate::queue::partitions;

/// A migration may rewrite a table.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(3_600);

/// The roles that are granted what they need, where they exist.
#[derive(Clone, Debug)]
pub struct Grants {
    /// The role that servers and workers use. Defaults to `slowlane_queue`.
    pub service: String,
    /// The role that may enqueue by SQL and nothing else. Defaults to `slowlane_client`.
    pub client: String,
}

impl Default for Grants {
    fn default() -> Grants {
        Grants { service: roles::QUEUE.to_owned(), client: roles::CLIENT.to_owned() }
    }
}

/// Brings the queue's schema up to this build, makes the days of history, and grants `slowlane_queue` and
/// `slowlane_client` their rights, where there are such roles. Says which migrations were applied.
///
/// `owner` is a login of the role that owns the schema, or may create it. Two that migrate take turns.
///
/// ```no_run
/// use slowlane::DatabaseUrl;
///
/// for version in slowlane::migrate(DatabaseUrl::env("SLOWLANE_OWNER_URL"))? {
///     println!("applied {version}");
/// }
/// # Ok::<(), slowlane::AppError>(())
/// ```
///
/// # Errors
/// When the database can't be used, or was migrated by a newer slowlane.
pub fn migrate(owner: impl Into<DatabaseUrl>) -> Result<Vec<String>, AppError> {
    migrate_with(owner, &Grants::default())
}

/// As [`migrate()`], for roles of other names.
///
/// # Errors
/// As [`migrate()`].
pub fn migrate_with(owner: impl Into<DatabaseUrl>, grants: &Grants) -> Result<Vec<String>, AppError> {
    let owner = owner.into().read("the database to migrate", false)?;
    let mut connection = manager(&owner).open()?;
    let applied = migrations::up(&mut connection)?;
    partitions::ensure(&mut connection)?;
    if roles::exists(&mut connection, &grants.service)? {
        roles::grant_service(&mut connection, &grants.service)?;
    }
    if roles::exists(&mut connection, &grants.client)? {
        roles::grant_client(&mut connection, &grants.client)?;
    }
    Ok(applied)
}

/// Connections that may take as long as a migration does.
pub(crate) fn manager(owner: &Dsn) -> Manager {
    Manager::queue(owner, &Purpose { name: "migrate", statement_timeout: STATEMENT_TIMEOUT })
}
