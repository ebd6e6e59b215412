//! What the service's role can do in the queue's database: whether its schema is one that this build can look at, and the
//! role's rights on it. Knows nothing of what the tables hold.

use serde_json::json;

use crate::db::{migrations, roles};
use crate::doctor::look::Look;
use crate::doctor::report::{Finding, FindingCode, Severity};
use crate::pq::quote::identifier;

/// The schema is one that this build can look at.
pub(super) fn schema(look: &mut Look<'_>) -> bool {
    let sql = "SELECT pg_is_in_recovery(), (SELECT reset_val FROM pg_settings WHERE name = 'default_transaction_read_only') = 'on',
                      current_user, current_database(),
                      (SELECT has_schema_privilege(oid, 'USAGE') FROM pg_namespace WHERE nspname = 'slowlane')";
    let Some(answer) = look.ask("the schema", sql, &[]) else { return false };
    let (role, database) = (answer.text(0, 2).to_owned(), answer.text(0, 3).to_owned());
    look.fact("role", role.clone());
    look.fact("database", database.clone());
    if answer.is(0, 0) || answer.is(0, 1) {
        let why = if answer.is(0, 0) { "it is a standby" } else { "its sessions are read-only by default" };
        let detail = format!("the server only reads ({why}), and no job can be accepted");
        let fix = "connect to the primary: name all hosts and target_session_attrs=read-write";
        look.find(FindingCode::QueueReadOnly, Severity::Error, detail, fix);
    }
    let migrate = "run `slowlane migrate up` with a login of the schema's owner";
    match answer.text(0, 4) {
        "t" => {}
        "f" => {
            let detail = format!("the role {role} may not use the schema slowlane, and nothing more can be looked at");
            let fix = with_its_name(&role);
            let finding = Finding::new(FindingCode::RoleTooWeak, Severity::Error, detail, fix);
            look.report.find(with_grants(finding, &identifier(&role)));
            return false;
        }
        _ => {
            let detail = format!("the database {database} has no schema slowlane");
            look.find(FindingCode::MigrationsPending, Severity::Error, detail, migrate);
            return false;
        }
    }
    let table = "slowlane.__diesel_schema_migrations";
    let sql = "SELECT to_regclass($1) IS NOT NULL, coalesce(has_table_privilege(to_regclass($1), 'SELECT'), false)";
    let Some(answer) = look.ask("the table of migrations", sql, &[Some(table)]) else { return false };
    if !answer.is(0, 0) {
        let detail = "the schema slowlane has no migrations";
        look.find(FindingCode::MigrationsPending, Severity::Error, detail, migrate);
        return false;
    }
    if !answer.is(0, 1) {
        let detail = format!(
            "the role {role} may not read the tables of the schema slowlane, and nothing more can be looked at"
        );
        let fix = with_its_name(&role);
        let finding = Finding::new(FindingCode::RoleTooWeak, Severity::Error, detail, fix);
        look.report.find(with_grants(finding, &identifier(&role)));
        return false;
    }
    let sql = format!("SELECT version FROM {table} ORDER BY version");
    let Some(answer) = look.ask("applied migrations", &sql, &[]) else { return false };
    let applied = (0..answer.len()).map(|row| answer.text(row, 0).to_owned()).collect();
    let Ok(status) = migrations::compared(applied) else { return false };
    look.fact("migrations", json!({"applied": status.applied, "pending": status.pending, "unknown": status.unknown}));
    if !status.unknown.is_empty() {
        let detail =
            format!("the schema has migrations that this slowlane doesn't know: {}", status.unknown.join(", "));
        look.find(FindingCode::SchemaNewer, Severity::Error, detail, "use the newer slowlane");
    }
    if !status.pending.is_empty() {
        let detail = format!("the schema lacks migrations: {}", status.pending.join(", "));
        look.find(FindingCode::MigrationsPending, Severity::Error, detail, migrate);
    }
    status.is_current()
}

fn with_its_name(role: &str) -> String {
    format!(
        "run `slowlane migrate up --service-role {}` with a login of the owner, or as the owner:",
        roles::shell_word(role)
    )
}

/// With what `slowlane migrate up --service-role` grants; `role` is quoted.
fn with_grants(finding: Finding, role: &str) -> Finding {
    finding
        .sql(format!("GRANT USAGE ON SCHEMA slowlane TO {role}"))
        .sql(format!("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA slowlane TO {role}"))
        .sql(format!("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA slowlane TO {role}"))
        .sql(format!(
            "ALTER DEFAULT PRIVILEGES IN SCHEMA slowlane GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {role}"
        ))
        .sql(format!("ALTER DEFAULT PRIVILEGES IN SCHEMA slowlane GRANT EXECUTE ON FUNCTIONS TO {role}"))
}

/// What the service's role may do. The owner's and a superuser's may do too much.
pub(super) fn role(look: &mut Look<'_>) {
    // From 16 on each membership says itself what it is for; before, the role does.
    let each = look.session.server_version() >= 160_000;
    let acts = if each { "SET" } else { "MEMBER" };
    let sql = format!(
        "WITH t AS (SELECT c.oid, c.relname FROM pg_class c WHERE c.relnamespace = 'slowlane'::regnamespace
                       AND c.relkind IN ('r', 'p', 'v') AND NOT c.relispartition AND c.relname !~ '^__diesel')
         SELECT current_user, r.rolsuper, r.rolcreaterole, j.relowner = r.oid, pg_get_userbyid(j.relowner),
                pg_has_role(j.relowner, '{acts}'),
                coalesce((SELECT string_agg(relname, ', ' ORDER BY relname) FROM t
                           WHERE NOT has_table_privilege(oid, 'SELECT')
                              OR relname <> 'all_attempts' AND NOT (has_table_privilege(oid, 'INSERT')
                                 AND has_table_privilege(oid, 'UPDATE') AND has_table_privilege(oid, 'DELETE'))), ''),
                pg_has_role(j.relowner, 'USAGE'),
                coalesce((SELECT string_agg(DISTINCT proname, ', ') FROM pg_proc
                           WHERE pronamespace = 'slowlane'::regnamespace AND NOT has_function_privilege(oid, 'EXECUTE')), '')
           FROM pg_roles r, pg_class j WHERE r.rolname = current_user AND j.oid = 'slowlane.jobs'::regclass"
    );
    let Some(answer) = look.ask("the role's rights", &sql, &[]) else { return };
    let (role, owner) = (identifier(answer.text(0, 0)), answer.text(0, 4).to_owned());
    let member = identifier(&owner);
    let strong = match () {
        () if answer.is(0, 1) => Some("is a superuser"),
        () if answer.is(0, 2) => Some("may create roles"),
        () if answer.is(0, 3) => Some("owns the schema"),
        () if answer.is(0, 7) => Some("has the owner's rights without saying so"),
        () => None,
    };
    if let Some(what) = strong {
        let detail = format!(
            "the role of the service {what}: a mistake, or whoever gets hold of its password, can change the schema itself"
        );
        let inherits = !(answer.is(0, 1) || answer.is(0, 2) || answer.is(0, 3));
        // What it may do by the owner's rights alone has to be its own first.
        let fix = match (inherits, each) {
            (true, true) => "give it rights of its own, and let it act as the owner only where it says so",
            (true, false) => {
                "give it rights of its own, and let it act as the owner only where it says so; what it has by other groups is then to be \
                 granted to it as well"
            }
            (false, _) => {
                "use a role of its own that is a member of the owner with NOINHERIT, and run `slowlane migrate up --service-role` with its name"
            }
        };
        let finding = Finding::new(FindingCode::RoleTooStrong, Severity::Warning, detail, fix);
        look.report.find(match (inherits, each) {
            (true, true) => {
                with_grants(finding, &role).sql(format!("GRANT {member} TO {role} WITH INHERIT FALSE, SET TRUE"))
            }
            (true, false) => with_grants(finding, &role).sql(format!("ALTER ROLE {role} NOINHERIT")),
            (false, _) => finding.sql(format!("CREATE ROLE slowlane_service LOGIN NOINHERIT IN ROLE {member}")),
        });
    }
    let (tables, functions) = (answer.text(0, 6), answer.text(0, 8));
    if !(tables.is_empty() && functions.is_empty()) {
        let lacking = [("tables", tables), ("functions", functions)];
        let lacking: Vec<String> = lacking
            .iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(what, names)| format!("{what} of the queue: {names}"))
            .collect();
        let detail = format!("the role of the service lacks rights on {}", lacking.join("; and on "));
        let fix = with_its_name(answer.text(0, 0));
        let finding = Finding::new(FindingCode::RoleTooWeak, Severity::Error, detail, fix);
        look.report.find(with_grants(finding, &role));
    }
    if !answer.is(0, 5) {
        let detail = format!(
            "the role of the service may not act as the owner {owner}: it can neither make nor drop days of history"
        );
        let fix = "make it a member of the owner that acts as the owner only where it says so";
        let finding = Finding::new(FindingCode::RoleTooWeak, Severity::Error, detail, fix);
        look.report.find(match each {
            true => finding.sql(format!("GRANT {member} TO {role} WITH INHERIT FALSE, SET TRUE")),
            false => finding.sql(format!("ALTER ROLE {role} NOINHERIT")).sql(format!("GRANT {member} TO {role}")),
        });
    }
}
