//! What the role of a target may do that work may not.

use diesel::prelude::*;
use diesel::sql_types::{Bool, Text};

/// What a target's role may do that work may not, by itself or as a role that it may become.
#[derive(Clone, Debug, QueryableByName)]
pub struct RoleRights {
    /// Everything.
    #[diesel(sql_type = Bool)]
    pub superuser: bool,
    /// It may make roles.
    #[diesel(sql_type = Bool)]
    pub creates_roles: bool,
    /// It has the rights of a superuser, or may become one.
    #[diesel(sql_type = Bool)]
    pub may_become_superuser: bool,
    /// Groups with rights over the server's files and sessions whose rights it has or may take, separated by commas.
    #[diesel(sql_type = Text)]
    pub memberships: String,
    /// It may use the schema `slowlane`.
    #[diesel(sql_type = Bool)]
    pub sees_queue: bool,
    /// Roles that it may become and that may make roles, separated by commas.
    #[diesel(sql_type = Text)]
    pub creators: String,
    /// Roles that it may become and that may use the schema `slowlane`, separated by commas.
    #[diesel(sql_type = Text)]
    pub seers: String,
}

/// The columns of [`RoleRights`], and the role's name. Up to 15 every member may become the role, and `ALTER ROLE … INHERIT` says
/// whether it has its rights without doing so; from 16 on each membership says both, and one can be neither. Whoever may grant
/// a membership may grant it to itself, but only a superuser that of a superuser.
pub const ROLE_SQL: &str = "
    WITH others AS (
        SELECT g.rolname, g.rolsuper, g.rolcreaterole, pg_catalog.pg_has_role(r.oid, g.oid, 'USAGE') AS has,
               CASE WHEN pg_catalog.current_setting('server_version_num')::int >= 160000 THEN pg_catalog.pg_has_role(r.oid, g.oid, 'SET')
                    ELSE pg_catalog.pg_has_role(r.oid, g.oid, 'MEMBER') END
               OR NOT g.rolsuper AND pg_catalog.pg_has_role(r.oid, g.oid, 'MEMBER WITH ADMIN OPTION') AS becomes,
               coalesce(pg_catalog.has_schema_privilege(g.oid, (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = 'slowlane'), 'USAGE'),
                        false) AS sees
          FROM pg_catalog.pg_roles r, pg_catalog.pg_roles g WHERE r.rolname = current_user AND NOT r.rolsuper AND g.oid <> r.oid)
    SELECT rolsuper AS superuser, rolcreaterole AS creates_roles,
           EXISTS (SELECT FROM others WHERE rolsuper AND (has OR becomes)) AS may_become_superuser,
           coalesce((SELECT pg_catalog.string_agg(rolname, ', ' ORDER BY rolname) FROM others
                      WHERE (has OR becomes)
                        AND rolname IN ('pg_read_server_files', 'pg_write_server_files',
                                        'pg_execute_server_program', 'pg_signal_backend')), '') AS memberships,
           coalesce(pg_catalog.has_schema_privilege(current_user, (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = 'slowlane'),
                                         'USAGE'), false) AS sees_queue,
           rolname,
           coalesce((SELECT pg_catalog.string_agg(rolname, ', ' ORDER BY rolname) FROM others WHERE rolcreaterole AND becomes), '')
               AS creators,
           coalesce((SELECT pg_catalog.string_agg(rolname, ', ' ORDER BY rolname) FROM others WHERE sees AND becomes), '') AS seers
      FROM pg_catalog.pg_roles r WHERE rolname = current_user";

impl RoleRights {
    /// The right that is too much, as the end of a sentence that begins with the role.
    pub fn excess(&self) -> Option<String> {
        match () {
            () if self.superuser => Some("is a superuser".to_owned()),
            () if self.may_become_superuser => Some("may become a superuser".to_owned()),
            () if self.creates_roles => Some("may create roles".to_owned()),
            () if !self.memberships.is_empty() => Some(format!("is a member of {}", self.memberships)),
            () if self.sees_queue => Some("may use the schema slowlane".to_owned()),
            () if !self.creators.is_empty() => Some(format!("may become {}, which may create roles", self.creators)),
            () if !self.seers.is_empty() => {
                Some(format!("may become {}, which may use the schema slowlane", self.seers))
            }
            () => None,
        }
    }
}
