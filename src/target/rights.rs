//! The SQL by which a work role may maintain and refresh what somebody else owns, on each version of the server.
//!
//! From 17 on MAINTAIN is a privilege of its own. Before, only the owner's members may: the role joins the owner, unless that
//! would give it more than work may have. Then an owner of their own is made, which both can be members of.

use crate::pq::quote::identifier;

/// The first version with the privilege MAINTAIN.
pub const HAS_MAINTAIN: i32 = 170_000;
/// The first version in which each membership says itself whether it inherits.
const MEMBERSHIPS_SAY: i32 = 160_000;

/// A table or materialized view of somebody else, and who is to maintain it.
#[derive(Clone, Debug, Default)]
pub struct Theirs {
    /// Schema and name, quoted where SQL needs it.
    pub name: String,
    /// Its schema, as it is.
    pub schema: String,
    /// It is a materialized view.
    pub is_view: bool,
    /// The name of its owner.
    pub owner: String,
    /// The owner is a superuser, or may create roles: no work role may be a member of it.
    pub owner_is_strong: bool,
    /// The role is a member of the owner, and doesn't inherit its rights.
    pub is_member: bool,
    /// The name of the work role.
    pub role: String,
}

/// Of a relation `c`: the columns `owner`, `owner_is_strong` and `is_member` of [`Theirs`], each as a text.
pub const OWNER_SQL: &str = "pg_catalog.pg_get_userbyid(c.relowner),
    coalesce((SELECT o.rolsuper OR o.rolcreaterole FROM pg_catalog.pg_roles o WHERE o.oid = c.relowner), true),
    pg_catalog.pg_has_role(c.relowner, 'MEMBER') AND NOT pg_catalog.pg_has_role(c.relowner, 'USAGE')";

impl Theirs {
    /// The statements, to be run as a superuser, on a server of this version.
    pub fn sql(&self, version: i32) -> Vec<String> {
        let (role, owner) = (identifier(&self.role), identifier(&self.owner));
        if version >= HAS_MAINTAIN {
            return vec![format!("GRANT MAINTAIN ON {} TO {role}", self.name)];
        }
        match (self.owner_is_strong, self.is_member) {
            (false, true) if version >= MEMBERSHIPS_SAY => vec![format!("GRANT {owner} TO {role} WITH INHERIT TRUE")],
            (false, true) => vec![format!("ALTER ROLE {role} INHERIT")],
            (false, false) => vec![format!("GRANT {owner} TO {role}")],
            (true, _) => self.with_a_common_owner(&role),
        }
    }

    fn with_a_common_owner(&self, role: &str) -> Vec<String> {
        let common = identifier(&format!("{}_owner", self.role));
        let mut sql = vec![format!("CREATE ROLE {common} NOLOGIN"), format!("GRANT {common} TO {role}")];
        if self.is_view {
            // The query of a view runs with its owner's rights.
            let schema = identifier(&self.schema);
            sql.push(format!("GRANT USAGE ON SCHEMA {schema} TO {common}"));
            sql.push(format!("GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {common}"));
        }
        let what = if self.is_view { "MATERIALIZED VIEW" } else { "TABLE" };
        sql.push(format!("ALTER {what} {} OWNER TO {common}", self.name));
        sql
    }
}

#[cfg(test)]
mod tests {
    use super::Theirs;

    #[test]
    fn each_version_has_its_own_way() {
        let view = Theirs {
            name: "public.v".to_owned(),
            schema: "public".to_owned(),
            is_view: true,
            owner: "app".to_owned(),
            role: "work".to_owned(),
            ..Theirs::default()
        };
        assert_eq!(view.sql(180_000), ["GRANT MAINTAIN ON public.v TO \"work\""]);
        assert_eq!(view.sql(160_000), ["GRANT \"app\" TO \"work\""]);
        let member = Theirs { is_member: true, ..view.clone() };
        assert_eq!(member.sql(160_000), ["GRANT \"app\" TO \"work\" WITH INHERIT TRUE"]);
        assert_eq!(member.sql(150_000), ["ALTER ROLE \"work\" INHERIT"]);
        let of_superuser = Theirs { owner_is_strong: true, is_member: true, ..view };
        let sql = of_superuser.sql(150_000);
        assert!(sql.iter().all(|sql| !sql.contains("\"app\"")), "{sql:?}");
        assert_eq!(sql.last().unwrap(), "ALTER MATERIALIZED VIEW public.v OWNER TO \"work_owner\"");
    }
}
