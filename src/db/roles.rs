//! The roles and databases of a cluster of ours, and what the service may do in the queue's schema.
//!
//! `slowlane_owner` migrates; `slowlane_queue` is the service: it may act as the owner where partitions are made and
//! dropped, and only by saying so; a member of `slowlane_client` may put jobs in by SQL; a work role can do nothing but
//! work. Each step may be repeated.

use diesel::connection::SimpleConnection;
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{Bool, Nullable, Text};

use crate::db::DbError;
use crate::pq::quote::{identifier, literal};

/// Owns the schema `slowlane`.
pub const OWNER: &str = "slowlane_owner";
/// The service.
pub const QUEUE: &str = "slowlane_queue";
/// May enqueue by SQL, and nothing else. Nobody logs in as it: applications' own roles are made members.
pub const CLIENT: &str = "slowlane_client";
/// The work role of the demo.
pub const DEMO: &str = "slowlane_demo";
/// The queue's database in a cluster of ours.
pub const QUEUE_DATABASE: &str = "slowlane";
/// The demo's database.
pub const DEMO_DATABASE: &str = "demo";
/// The advisory lock of whoever loads the demo's data into a database: two that load at once take turns.
pub const DEMO_LOAD_LOCK: i64 = 0x736c_6f77_6465_6d6f;

/// The passwords of the roles.
pub struct Passwords {
    /// Of [`OWNER`].
    pub owner: String,
    /// Of [`QUEUE`].
    pub queue: String,
    /// Of [`DEMO`].
    pub demo: String,
}

#[derive(QueryableByName)]
struct Present {
    #[diesel(sql_type = Bool)]
    present: bool,
}

/// Makes roles and databases, as the cluster's superuser.
///
/// # Errors
/// When the database fails.
pub fn set_up(superuser: &mut PgConnection, passwords: &Passwords) -> Result<(), DbError> {
    // Whatever the settings are, a statement that holds a password is not to reach the server's log.
    superuser.batch_execute(
        "SET log_statement = 'none'; SET log_min_error_statement = 'panic'; SET log_min_duration_statement = -1;
         SET standard_conforming_strings = on",
    )?;
    for (role, password) in [(OWNER, &passwords.owner), (QUEUE, &passwords.queue), (DEMO, &passwords.demo)] {
        set_up_role(superuser, role, password)?;
    }
    // The statistics of others are for the doctor: whose old transaction it is.
    superuser.batch_execute(&format!("GRANT {}, pg_read_all_stats TO {}", identifier(OWNER), identifier(QUEUE)))?;
    if !exists(superuser, CLIENT)? {
        superuser.batch_execute(&format!("CREATE ROLE {} NOLOGIN", identifier(CLIENT)))?;
    }
    set_up_database(superuser, QUEUE_DATABASE, OWNER)?;
    set_up_database(superuser, DEMO_DATABASE, DEMO)?;
    superuser.batch_execute(&format!(
        "REVOKE ALL ON DATABASE {0} FROM PUBLIC; GRANT CONNECT ON DATABASE {0} TO {1}, {2}",
        identifier(QUEUE_DATABASE),
        identifier(QUEUE),
        identifier(CLIENT)
    ))?;
    Ok(())
}

/// There is a role of this name.
///
/// # Errors
/// When the database fails.
pub fn exists(connection: &mut PgConnection, role: &str) -> Result<bool, DbError> {
    let row = diesel::sql_query("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1) AS present");
    Ok(row.bind::<Text, _>(role).get_result::<Present>(connection)?.present)
}

fn set_up_role(superuser: &mut PgConnection, role: &str, password: &str) -> Result<(), DbError> {
    let verb = if exists(superuser, role)? { "ALTER" } else { "CREATE" };
    // The service acts as the owner only where it says so.
    let inherit = if role == QUEUE { "NOINHERIT" } else { "INHERIT" };
    superuser.batch_execute(&format!(
        "{verb} ROLE {} WITH LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION {inherit} PASSWORD {}",
        identifier(role),
        literal(password)
    ))?;
    Ok(())
}

fn set_up_database(superuser: &mut PgConnection, database: &str, owner: &str) -> Result<(), DbError> {
    let present = diesel::sql_query("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1) AS present")
        .bind::<Text, _>(database)
        .get_result::<Present>(superuser)?
        .present;
    if !present {
        superuser.batch_execute(&format!("CREATE DATABASE {} OWNER {}", identifier(database), identifier(owner)))?;
    }
    Ok(())
}

/// How the role of a session stands to the queue's schema, as the catalog has it: it may be asked by a role without any right.
#[derive(Clone, Debug, PartialEq, Eq, QueryableByName)]
pub struct Standing {
    /// The session's role.
    #[diesel(sql_type = Text)]
    pub role: String,
    /// Its database.
    #[diesel(sql_type = Text)]
    pub database: String,
    /// Who owns the schema; `None` where there is none yet.
    #[diesel(sql_type = Nullable<Text>)]
    pub owner: Option<String>,
    /// The role may use the schema, and read and change its jobs, as far as there are any tables.
    #[diesel(sql_type = Bool)]
    pub may_use: bool,
    /// The role is the owner, or can act as it by saying so.
    #[diesel(sql_type = Bool)]
    pub may_act: bool,
    /// The role may create a schema in the database.
    #[diesel(sql_type = Bool)]
    pub may_create: bool,
}

/// How the role of this session stands to the queue's schema.
///
/// # Errors
/// When the database fails.
pub fn standing(connection: &mut PgConnection) -> Result<Standing, DbError> {
    let row = diesel::sql_query(
        "SELECT current_user::text AS role, current_database()::text AS database,
                pg_get_userbyid(n.nspowner)::text AS owner,
                coalesce(has_schema_privilege(n.oid, 'USAGE'), true) AND NOT EXISTS (
                    SELECT FROM pg_class c WHERE c.relnamespace = n.oid AND (
                        c.relname = '__diesel_schema_migrations' AND NOT has_table_privilege(c.oid, 'SELECT')
                        OR c.relname = 'jobs' AND EXISTS (
                            SELECT FROM unnest('{SELECT,INSERT,UPDATE,DELETE}'::text[]) AS needed(right_)
                             WHERE NOT has_table_privilege(c.oid, needed.right_)))) AS may_use,
                coalesce(CASE WHEN current_setting('server_version_num')::int >= 160000
                              THEN pg_has_role(n.nspowner, 'SET') ELSE pg_has_role(n.nspowner, 'MEMBER') END, true) AS may_act,
                has_database_privilege(current_database(), 'CREATE') AS may_create
           FROM (SELECT) AS always LEFT JOIN pg_namespace n ON n.nspname = 'slowlane'",
    );
    Ok(row.get_result(connection)?)
}

/// A role's name as a word of a command line.
pub fn shell_word(role: &str) -> String {
    let plain = !role.is_empty() && role.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'));
    if plain { role.to_owned() } else { format!("'{}'", role.replace('\'', "'\\''")) }
}

/// Lets a role enqueue by SQL, as the schema's owner and after migrating: it sees no table and no job.
///
/// # Errors
/// When the database fails, or there is no such role.
pub fn grant_client(owner: &mut PgConnection, client: &str) -> Result<(), DbError> {
    let client = identifier(client);
    owner.batch_execute(&format!(
        "GRANT USAGE ON SCHEMA slowlane TO {client}; GRANT EXECUTE ON FUNCTION slowlane.enqueue TO {client}"
    ))?;
    Ok(())
}

/// Lets the service use the queue's schema, as the schema's owner and after migrating.
///
/// # Errors
/// When the database fails, or there is no such role.
pub fn grant_service(owner: &mut PgConnection, service: &str) -> Result<(), DbError> {
    let service = identifier(service);
    owner.batch_execute(&format!(
        "GRANT USAGE ON SCHEMA slowlane TO {service};
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA slowlane TO {service};
         GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA slowlane TO {service};
         ALTER DEFAULT PRIVILEGES IN SCHEMA slowlane GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {service};
         ALTER DEFAULT PRIVILEGES IN SCHEMA slowlane GRANT EXECUTE ON FUNCTIONS TO {service}"
    ))?;
    Ok(())
}
