//! Migrating from Rust: the schema, the days of history, and the rights of the roles that use it.

use std::time::Duration;

use diesel::PgConnection;

use crate::app::{AppError, DatabaseUrl};
use crate::db::migrations;
use crate::db::pool::{Manager, Purpose};
use crate::db::roles::{self, Standing};
use crate::dsn::{Dsn, plain_or};
use crate::pq::quote;
use crate::queue::record::partitions;

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
    Ok(migrate_and_grant(&owner, grants, &[])?.applied)
}

/// What migrating did.
pub(crate) struct Migrated {
    /// The versions that were applied.
    pub applied: Vec<String>,
    /// There is such a service, and it was granted its rights.
    pub service: bool,
    /// There is such a role of clients, and it was granted its rights.
    pub client: bool,
}

/// As [`migrate_with()`]; a role of `needed` that doesn't exist is an error, before anything is changed.
pub(crate) fn migrate_and_grant(owner: &Dsn, grants: &Grants, needed: &[&str]) -> Result<Migrated, AppError> {
    let mut connection = manager(owner).open()?;
    check_migrator(&mut connection)?;
    for role in needed {
        if !roles::exists(&mut connection, role)? {
            return Err(AppError::NoSuchRole(plain_or(role, "of the name that was given").to_owned()));
        }
    }
    let applied = migrations::up(&mut connection)?;
    partitions::ensure(&mut connection)?;
    let service = roles::exists(&mut connection, &grants.service)?;
    if service {
        roles::grant_service(&mut connection, &grants.service)?;
    }
    let client = roles::exists(&mut connection, &grants.client)?;
    if client {
        roles::grant_client(&mut connection, &grants.client)?;
    }
    Ok(Migrated { applied, service, client })
}

/// Who may migrate is the schema's owner, whatever its name; before there is a schema, who may create one.
fn check_migrator(connection: &mut PgConnection) -> Result<(), AppError> {
    let Standing { role, database, owner, may_act, may_create, .. } = roles::standing(connection)?;
    match owner {
        Some(owner) if !may_act => Err(AppError::Migrator(format!(
            "the schema slowlane belongs to {owner}, and the role {role} can't act as it: migrate with a login of {owner}"
        ))),
        None if !may_create => Err(AppError::Migrator(format!(
            "the role {role} may not create the schema slowlane: as the owner of the database, GRANT CREATE ON DATABASE {} TO {}",
            quote::identifier(&database),
            quote::identifier(&role)
        ))),
        _ => Ok(()),
    }
}

/// Connections that may take as long as a migration does.
pub(crate) fn manager(owner: &Dsn) -> Manager {
    Manager::queue(owner, &Purpose { name: "migrate", statement_timeout: STATEMENT_TIMEOUT })
}
