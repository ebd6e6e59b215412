//! The SQL that makes the right work role for a target: what its jobs need, and nothing that would make slowlane refuse it.

use crate::doctor::look::{identifier, literal};
use crate::doctor::target::Examined;

/// The script, for psql, with what it does said beside it. Names the role and the database of the target's connection string.
pub fn script(target: &Examined<'_>) -> String {
    let said = |keyword: &str, default: &str| {
        target.dsn.get(keyword).filter(|value| !value.is_empty()).unwrap_or(default).to_owned()
    };
    let user = said("user", &format!("{}_work", target.name));
    let database = said("dbname", &user);
    let (role, quoted) = (identifier(&user), literal(&user));
    let base = identifier(&database);
    let writes = !target.read_only;
    let rights = if writes { "SELECT, INSERT, UPDATE, DELETE" } else { "SELECT" };
    let change = match (target.read_only, target.statements_only) {
        (true, _) => "-- The target is declared read_only: jobs read.",
        (false, true) => "-- The target runs saved statements only: grant what these need, instead of all of this.",
        (false, false) => "-- Jobs read and change rows. Narrow it to the schemas and tables that jobs are for.",
    };
    let sequences = match writes {
        true => format!(
            "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role};\nALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT USAGE ON SEQUENCES TO {role};\n"
        ),
        false => String::new(),
    };
    let more = match writes && !target.statements_only {
        true => format!(
            "
-- Where jobs are to make tables and indexes of their own:
-- GRANT CREATE ON SCHEMA public TO {role};
-- For maintain and refresh the role has to own what they work on, or on Postgres 17 and newer:
-- GRANT pg_maintain TO {role};
"
        ),
        false => String::new(),
    };
    format!(
        "-- The work role of slowlane's target {name}: run it as a superuser, connected to the database {plain}:
--   slowlane doctor --role-sql {name} | psql -d {plain}
-- A password is set apart, so that it stands in no file and no log:  \\password {user}

DO $do$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {quoted}) THEN
        CREATE ROLE {role} LOGIN;
    END IF;
    -- What a server's operator has to have granted by hand, and a job must not have.
    IF EXISTS (SELECT FROM pg_namespace WHERE nspname = 'slowlane') THEN
        REVOKE ALL ON SCHEMA slowlane FROM {role};
    END IF;
END $do$;
ALTER ROLE {role} NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;
REVOKE pg_read_server_files, pg_write_server_files, pg_execute_server_program, pg_signal_backend FROM {role};

-- TEMPORARY is for imports with on_conflict.
GRANT CONNECT, TEMPORARY ON DATABASE {base} TO {role};

{change}
GRANT USAGE ON SCHEMA public TO {role};
GRANT {rights} ON ALL TABLES IN SCHEMA public TO {role};
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT {rights} ON TABLES TO {role};
{sequences}{more}
-- A job's sort can't fill the disk; and no session of it is ended by a timeout that is meant for people.
ALTER ROLE {role} SET temp_file_limit = '20GB';
ALTER ROLE {role} SET idle_in_transaction_session_timeout = 0;
ALTER ROLE {role} SET idle_session_timeout = 0;

-- So that progress names who blocks a job, and old transactions are found. It shows the statements of other roles.
-- GRANT pg_read_all_stats TO {role};
",
        name = target.name,
        plain = database,
    )
}
