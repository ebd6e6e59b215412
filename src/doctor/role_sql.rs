//! The SQL that makes the right work role for a target: what its jobs need, and nothing that would make slowlane refuse
//! it.

use crate::doctor::target::Examined;
use crate::pq::quote::{identifier, literal};

/// The script, for psql, with what it does said beside it. Names the role and the database of the target's connection
/// string.
pub fn script(target: &Examined<'_>) -> String {
    let said = |keyword: &str, default: &str| {
        target.dsn.get(keyword).filter(|value| !value.is_empty()).unwrap_or(default).to_owned()
    };
    let user = said("user", &format!("{}_work", target.name));
    let database = said("dbname", &user);
    let (role, quoted) = (identifier(&user), literal(&user));
    let base = identifier(&database);
    let writes = !target.spec.read_only;
    let rights = if writes { "SELECT, INSERT, UPDATE, DELETE" } else { "SELECT" };
    let change = match (target.spec.read_only, target.spec.statements_only) {
        (true, _) => "-- The target is declared read_only: jobs read.",
        (false, true) => "-- The target runs saved statements only: grant what these need, instead of all of this.",
        (false, false) => "-- Jobs read and change rows. Narrow it to the schemas and tables that jobs are for.",
    };
    let sequences = match writes {
        true => format!("GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role};\n"),
        false => String::new(),
    };
    let of_sequences = match writes {
        true => {
            "\n        EXECUTE format('ALTER DEFAULT PRIVILEGES FOR ROLE %I IN SCHEMA public GRANT USAGE ON SEQUENCES TO %I', r, work);"
        }
        false => "",
    };
    let more = match writes && !target.spec.statements_only {
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
\\set ON_ERROR_STOP on

DO $do$ DECLARE
    work CONSTANT text := {quoted};
    r text;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = work) THEN
        EXECUTE format('CREATE ROLE %I LOGIN', work);
    END IF;
    -- A role that is somebody else's already isn't made a work role: name another one in the target's connection string.
    IF work = current_user OR EXISTS (SELECT FROM pg_roles WHERE rolname = work AND (rolsuper OR rolreplication))
        OR EXISTS (SELECT FROM pg_database WHERE datname = current_database() AND pg_get_userbyid(datdba) = work)
        OR EXISTS (SELECT FROM pg_namespace WHERE nspname = 'slowlane' AND (pg_get_userbyid(nspowner) = work OR pg_has_role(work, nspowner, 'MEMBER')))
    THEN
        RAISE EXCEPTION '% is a superuser, this database''s owner or one of slowlane''s own: name a role of its own in the target''s connection string', work;
    END IF;
    -- What slowlane refuses: rights over the server's files and sessions, and those of superusers.
    FOR r IN SELECT g.rolname FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid
              WHERE m.member = (SELECT oid FROM pg_roles WHERE rolname = work) AND (g.rolsuper OR g.rolname IN
                    ('pg_read_server_files', 'pg_write_server_files', 'pg_execute_server_program', 'pg_signal_backend')) LOOP
        EXECUTE format('REVOKE %I FROM %I', r, work);
    END LOOP;
    IF EXISTS (SELECT FROM pg_namespace WHERE nspname = 'slowlane') THEN
        EXECUTE format('REVOKE ALL ON SCHEMA slowlane FROM %I', work);
    END IF;
    -- As on Postgres 14, and in databases that began there. Others may need it, so it isn't taken here.
    IF EXISTS (SELECT FROM pg_namespace, aclexplode(coalesce(nspacl, acldefault('n', nspowner))) AS a
                WHERE nspname = 'public' AND a.grantee = 0 AND a.privilege_type = 'CREATE') THEN
        RAISE WARNING 'every role may make tables and functions in the schema public, % too', work
            USING HINT = 'Where nobody needs that: REVOKE CREATE ON SCHEMA public FROM PUBLIC';
    END IF;
    -- Tables that their owners make later.
    FOR r IN SELECT current_user UNION SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class
              WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'm') LOOP
        EXECUTE format('ALTER DEFAULT PRIVILEGES FOR ROLE %I IN SCHEMA public GRANT {rights} ON TABLES TO %I', r, work);{of_sequences}
    END LOOP;
END $do$;
ALTER ROLE {role} NOCREATEDB NOCREATEROLE NOBYPASSRLS;

-- TEMPORARY is for imports with on_conflict.
GRANT CONNECT, TEMPORARY ON DATABASE {base} TO {role};

{change}
GRANT USAGE ON SCHEMA public TO {role};
GRANT {rights} ON ALL TABLES IN SCHEMA public TO {role};
{sequences}{more}
-- A job's sort can't fill the disk; and no session of it is ended by a timeout that is meant for people.
ALTER ROLE {role} SET temp_file_limit = '20GB';
ALTER ROLE {role} SET idle_in_transaction_session_timeout = 0;
ALTER ROLE {role} SET idle_session_timeout = 0;

-- So that progress names who blocks a job, and old transactions are found. It shows the statements of other roles.
-- GRANT pg_read_all_stats TO {role};
",
        name = target.name,
        // In comments: no name ends its line.
        plain = database.escape_debug(),
        user = user.escape_debug(),
    )
}
