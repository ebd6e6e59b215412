//! The SQL by which a work role may maintain and refresh what somebody else owns, on each version of the server.
//!
//! From 17 on MAINTAIN is a privilege of its own. Before, only the owner's members may: the role joins the owner, unless that
//! would give it more than work may have. Then an owner of their own is made, which both are members of.

use crate::pq::quote::identifier;

/// The first version with the privilege MAINTAIN.
pub const HAS_MAINTAIN: i32 = 170_000;
/// The first version in which each membership says itself whether it inherits.
const MEMBERSHIPS_SAY: i32 = 160_000;

/// Schemas of the server's own.
const SYSTEM_SCHEMAS: [&str; 3] = ["pg_catalog", "pg_toast", "information_schema"];

/// A table or materialized view of somebody else, and who is to maintain it.
#[derive(Clone, Debug, Default)]
pub struct Theirs {
    /// Schema and name, quoted where SQL needs it.
    pub name: String,
    /// Its schema, as it is.
    pub schema: String,
    /// It is a materialized view.
    pub is_view: bool,
    /// The name of the work role.
    pub role: String,
    /// Who owns it.
    pub owner: Owner,
}

/// The owner of a table or view, and how the work role stands to it.
#[derive(Clone, Debug, Default)]
pub struct Owner {
    /// Its name.
    pub name: String,
    /// It is a superuser, or may create roles: no work role may be a member of it.
    pub is_strong: bool,
    /// It is a superuser.
    pub is_superuser: bool,
    /// It has the rights of what it is a member of without asking for them.
    pub inherits: bool,
    /// The work role is a member of it, and doesn't inherit its rights.
    pub has_role: bool,
    /// The work role has the rights of what it is a member of without asking for them.
    pub role_inherits: bool,
    /// The name of an owner that both can be members of: one that nobody logs in as.
    pub common: String,
}

/// Of a relation `c`: the columns that [`Owner::from`] reads, each as a text.
pub const OWNER_SQL: &str = "pg_catalog.pg_get_userbyid(c.relowner),
    coalesce((SELECT o.rolsuper OR o.rolcreaterole FROM pg_catalog.pg_roles o WHERE o.oid = c.relowner), true),
    coalesce((SELECT o.rolsuper FROM pg_catalog.pg_roles o WHERE o.oid = c.relowner), true),
    coalesce((SELECT o.rolinherit FROM pg_catalog.pg_roles o WHERE o.oid = c.relowner), true),
    pg_catalog.pg_has_role(c.relowner, 'MEMBER') AND NOT pg_catalog.pg_has_role(c.relowner, 'USAGE'),
    coalesce((SELECT o.rolinherit FROM pg_catalog.pg_roles o WHERE o.rolname = current_user), true),
    current_user || CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_roles o WHERE o.rolname = current_user || '_owner'
                                         AND (o.rolsuper OR o.rolcreaterole OR o.rolcanlogin))
                         THEN '_tables_owner' ELSE '_owner' END";

impl Owner {
    /// Reads the columns of [`OWNER_SQL`], by their number from 0.
    pub fn from<'t>(column: impl Fn(usize) -> &'t str) -> Owner {
        let is = |n| column(n) == "t";
        Owner {
            name: column(0).to_owned(),
            is_strong: is(1),
            is_superuser: is(2),
            inherits: is(3),
            has_role: is(4),
            role_inherits: is(5),
            common: column(6).to_owned(),
        }
    }
}

/// Makes `role`, quoted, a member of `of`, quoted, with its rights.
fn join(version: i32, role: &str, of: &str, inherits: bool) -> Vec<String> {
    let grant = format!("GRANT {of} TO {role}");
    match (inherits, version >= MEMBERSHIPS_SAY) {
        (true, _) => vec![grant],
        (false, true) => vec![format!("{grant} WITH INHERIT TRUE")],
        (false, false) => vec![grant, format!("ALTER ROLE {role} INHERIT")],
    }
}

/// The SQL for all of these, each statement once, as the end of a sentence. What is the server's own nobody else is to own.
/// `of_owners`: MAINTAIN isn't enough.
pub fn as_a_superuser(theirs: &[&Theirs], version: i32, of_owners: bool) -> String {
    let mut sql: Vec<String> = Vec::new();
    for statement in theirs.iter().flat_map(|theirs| theirs.sql(version, of_owners)) {
        if !sql.contains(&statement) {
            sql.push(statement);
        }
    }
    match sql.is_empty() {
        true => "; but these are tables of the server's own, which it maintains itself: a superuser does it by psql"
            .to_owned(),
        false => format!("; as a superuser: {}", sql.join("; ")),
    }
}

impl Theirs {
    /// The statements, to be run as a superuser, on a server of this version. None for what is the server's own.
    /// `of_owners`: MAINTAIN isn't enough.
    pub fn sql(&self, version: i32, of_owners: bool) -> Vec<String> {
        let (role, owner) = (identifier(&self.role), identifier(&self.owner.name));
        if SYSTEM_SCHEMAS.contains(&self.schema.as_str()) {
            return Vec::new();
        }
        match version >= HAS_MAINTAIN && !of_owners {
            true => vec![format!("GRANT MAINTAIN ON {} TO {role}", self.name)],
            false => self.join_owner(version, &role, &owner),
        }
    }

    fn join_owner(&self, version: i32, role: &str, owner: &str) -> Vec<String> {
        let inherits = self.owner.role_inherits && !self.owner.has_role;
        match self.owner.is_strong {
            false => join(version, role, owner, inherits),
            true => self.with_a_common_owner(version, role, owner),
        }
    }

    fn with_a_common_owner(&self, version: i32, role: &str, owner: &str) -> Vec<String> {
        let common = identifier(&self.owner.common);
        let mut sql = vec![make_role(&self.owner.common)];
        sql.extend(join(version, role, &common, self.owner.role_inherits));
        if self.is_view {
            // The query of a view runs with its owner's rights.
            let schema = identifier(&self.schema);
            sql.push(format!("GRANT USAGE ON SCHEMA {schema} TO {common}"));
            sql.push(format!("GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {common}"));
        }
        let what = if self.is_view { "MATERIALIZED VIEW" } else { "TABLE" };
        sql.push(format!("ALTER {what} {} OWNER TO {common}", self.name));
        // Whoever has owned it can go on: a superuser needs nothing for that.
        if !self.owner.is_superuser {
            match self.owner.inherits || version >= MEMBERSHIPS_SAY {
                true => sql.extend(join(version, owner, &common, self.owner.inherits)),
                // Its other memberships are to stay as they are.
                false => {
                    sql.extend([format!("GRANT {common} TO {owner}"), format!("GRANT ALL ON {} TO {owner}", self.name)])
                }
            }
        }
        sql
    }
}

/// CREATE ROLE, where there is none of this name: several hints may ask for the same one.
fn make_role(name: &str) -> String {
    let create = format!("CREATE ROLE {} NOLOGIN", identifier(name));
    if name.contains('$') {
        return create;
    }
    format!("DO $make$ BEGIN {create}; EXCEPTION WHEN duplicate_object THEN NULL; END $make$")
}

#[cfg(test)]
mod tests {
    use super::{Owner, Theirs, as_a_superuser};

    #[test]
    fn each_version_has_its_own_way() {
        let owner = Owner {
            name: "app".to_owned(),
            inherits: true,
            role_inherits: true,
            common: "work_owner".to_owned(),
            ..Owner::default()
        };
        let view = Theirs {
            name: "public.v".to_owned(),
            schema: "public".to_owned(),
            is_view: true,
            owner: owner.clone(),
            role: "work".to_owned(),
        };
        assert_eq!(view.sql(180_000, false), ["GRANT MAINTAIN ON public.v TO \"work\""]);
        assert_eq!(view.sql(160_000, false), ["GRANT \"app\" TO \"work\""]);
        assert_eq!(view.sql(180_000, true), ["GRANT \"app\" TO \"work\""]);
        let member = Theirs { owner: Owner { has_role: true, role_inherits: false, ..owner.clone() }, ..view.clone() };
        assert_eq!(member.sql(160_000, false), ["GRANT \"app\" TO \"work\" WITH INHERIT TRUE"]);
        assert_eq!(member.sql(150_000, false), ["GRANT \"app\" TO \"work\"", "ALTER ROLE \"work\" INHERIT"]);
        let of_superuser = Owner { is_strong: true, is_superuser: true, has_role: true, ..owner.clone() };
        let of_superuser = Theirs { owner: of_superuser, ..view.clone() };
        let sql = of_superuser.sql(150_000, false);
        assert!(sql.iter().all(|sql| !sql.contains("\"app\"")), "{sql:?}");
        assert_eq!(sql.last().unwrap(), "ALTER MATERIALIZED VIEW public.v OWNER TO \"work_owner\"");
        let of_strong = Theirs { owner: Owner { is_strong: true, ..owner }, ..view.clone() };
        assert_eq!(of_strong.sql(150_000, false).last().unwrap(), "GRANT \"work_owner\" TO \"app\"");
        let system = Theirs { schema: "pg_catalog".to_owned(), ..view };
        assert_eq!(
            (system.sql(150_000, false), system.sql(180_000, false), system.sql(180_000, true)),
            Default::default()
        );
        assert!(!as_a_superuser(&[&system], 180_000, false).contains("GRANT"));
    }
}
