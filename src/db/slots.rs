//! How many connections a server lets a login have, against how many a process may open.

use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{Integer, Text};

use crate::db::DbError;

/// The slots of the server that aren't reserved, and the limits of the login and of the database: -1 for none.
const SQL: &str = "
    SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
             - coalesce(current_setting('reserved_connections', true)::int, 0) AS server,
           rolconnlimit AS role, datconnlimit AS database, rolname::text, datname::text
      FROM pg_catalog.pg_roles, pg_catalog.pg_database WHERE rolname = session_user AND datname = current_database()";

#[derive(QueryableByName)]
struct Slots {
    #[diesel(sql_type = Integer)]
    server: i32,
    #[diesel(sql_type = Integer)]
    role: i32,
    #[diesel(sql_type = Integer)]
    database: i32,
    #[diesel(sql_type = Text)]
    rolname: String,
    #[diesel(sql_type = Text)]
    datname: String,
}

/// Says what is too small where a process that may open `needed` connections can't have them all, whoever else is connected.
///
/// # Errors
/// When the server can't be asked.
pub fn shortage(connection: &mut PgConnection, needed: u32) -> Result<Option<String>, DbError> {
    let slots: Slots = diesel::sql_query(SQL).get_result(connection)?;
    let limits = [
        (slots.server, "the server has".to_owned()),
        (slots.role, format!("the role {} may have", slots.rolname)),
        (slots.database, format!("the database {} may have", slots.datname)),
    ];
    let too_small = |limit: &i32| u32::try_from(*limit).is_ok_and(|limit| limit < needed);
    let found = limits.iter().find(|(limit, _)| too_small(limit));
    Ok(found.map(|(limit, what)| {
        format!(
            "this process may open {needed} connections, and {what} {limit}: raise that limit, or lower slowlane's numbers of \
             connections and workers"
        )
    }))
}
