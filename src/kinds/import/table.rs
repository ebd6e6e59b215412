//! The table that rows go into, as the catalog has it, and the statements that name it.

use crate::kinds::WorkError;
use crate::kinds::params::ParamType;
use crate::kinds::prepared::classify;
use crate::pq::Session;
use crate::pq::quote::{identifier, identifiers, text_array};
use crate::queue::log::cut;
use crate::queue::{ErrorCode, JobError};

/// Where rows wait that may be in the way of others.
const STAGING: &str = "pg_temp.slowlane_import";

/// So many of the columns that a table doesn't have are named, and of each name so many bytes.
const MAX_SHOWN_NAMES: usize = 10;
const MAX_SHOWN_BYTES: usize = 100;

/// A column.
#[derive(Clone, Debug)]
pub(super) struct Column {
    pub name: String,
    /// The server makes its values.
    pub generated: bool,
    /// GENERATED ALWAYS AS IDENTITY: values can be given, and not be changed.
    pub identity: bool,
    pub kind: ParamType,
}

/// A table.
pub(super) struct Table {
    oid: String,
    /// Schema and name, quoted.
    pub name: String,
    /// As the server's CONTEXT has it.
    pub bare_name: String,
    pub columns: Vec<Column>,
    /// No trigger looks at a COPY as a whole: several do as well as one, and an error shows at the end of each.
    pub may_split: bool,
    partitioned: bool,
}

/// What becomes of a row whose key is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Existing {
    Keep,
    Replace,
}

fn fail<T>(code: ErrorCode, message: String) -> Result<T, WorkError> {
    Err(WorkError::Fail(JobError::new(code, message)))
}

impl Table {
    /// Looks a name up as the session's `search_path` has it.
    pub fn find(session: &mut Session, name: &str) -> Result<Table, WorkError> {
        let rows = session.query(
            // A trigger counts when it looks at inserts (the bit 4 of its type), unless it is one of a row before that is
            // stored (1 and 2) whose function, being volatile, sees the rows before it anyway; or one of a constraint
            // that no later row can satisfy: a unique one, or a reference to another table.
            "SELECT c.oid, n.nspname, c.relname, c.relkind,
                    NOT EXISTS (
                        SELECT FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc f ON f.oid = t.tgfoid
                          LEFT JOIN pg_catalog.pg_constraint k ON k.oid = t.tgconstraint
                         WHERE (t.tgrelid = c.oid OR t.tgrelid IN (SELECT relid FROM pg_catalog.pg_partition_tree(c.oid)))
                           AND t.tgtype & 4 <> 0
                           AND NOT (t.tgtype & 3 = 3 AND f.provolatile = 'v')
                           AND NOT (t.tgisinternal AND coalesce(
                                    k.contype IN ('u', 'x') OR k.contype = 'f' AND k.confrelid <> c.oid
                                        AND k.confrelid NOT IN (
                                            SELECT relid FROM pg_catalog.pg_partition_tree(
                                                coalesce(pg_catalog.pg_partition_root(c.oid), c.oid))), false))),
                    pg_catalog.row_security_active(c.oid)
               FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
              WHERE c.oid = pg_catalog.to_regclass($1)",
            &[Some(name)],
        )?;
        let text = |column| rows.get(0, column).unwrap_or_default().to_owned();
        match text(3).as_str() {
            "" => {
                return fail(
                    ErrorCode::TableNotFound,
                    format!("there is no table {name}, or its schema isn't in the search_path"),
                );
            }
            "r" | "p" => {}
            _ => return fail(ErrorCode::TableNotFound, format!("{name} is no table that rows can be stored in")),
        }
        if text(5) == "t" {
            // COPY would refuse it too, but not the statement that merges rows.
            let message = format!("{name} has row-level security, which COPY can't keep");
            let error = JobError::new(ErrorCode::RowLevelSecurity, message);
            return Err(WorkError::Fail(
                error.with_hint("import into another table, and store its rows by an execute job"),
            ));
        }
        let oid = text(0);
        let columns = columns(session, &oid)?;
        Ok(Table {
            oid,
            name: format!("{}.{}", identifier(&text(1)), identifier(&text(2))),
            bare_name: text(2),
            columns,
            may_split: text(4) == "t",
            partitioned: text(3) == "p",
        })
    }

    /// The columns that values can be given for.
    pub fn writable(&self) -> impl Iterator<Item = &Column> {
        self.columns.iter().filter(|column| !column.generated)
    }

    fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// Checks the names of columns that rows are to fill; `whose` says where they come from.
    pub fn check(&self, names: &[String], whose: &str) -> Result<(), WorkError> {
        let mut unknown = names.iter().filter(|name| self.column(name).is_none());
        let mut shown: Vec<String> =
            unknown.by_ref().take(MAX_SHOWN_NAMES).map(|name| cut(name, MAX_SHOWN_BYTES)).collect();
        if !shown.is_empty() {
            match unknown.count() {
                0 => {}
                more => shown.push(format!("and {more} more")),
            }
            let known: Vec<&str> = self.writable().map(|column| column.name.as_str()).collect();
            let message = format!("{whose} names columns that {} doesn't have: {}", self.name, shown.join(", "));
            let error = JobError::new(ErrorCode::UnknownColumns, message);
            return Err(WorkError::Fail(error.with_hint(format!("it has: {}", known.join(", ")))));
        }
        for (n, name) in names.iter().enumerate() {
            if self.column(name).is_some_and(|column| column.generated) {
                return fail(
                    ErrorCode::GeneratedColumn,
                    format!("{} makes the values of {name} itself: leave it out", self.name),
                );
            }
            if names.get(..n).unwrap_or_default().contains(name) {
                return fail(ErrorCode::DuplicateColumns, format!("{whose} names the column {name} twice"));
            }
        }
        Ok(())
    }

    /// The columns of the primary key.
    pub fn primary_key(&self, session: &mut Session) -> Result<Vec<String>, WorkError> {
        let rows = session.query(
            "SELECT a.attname FROM pg_catalog.pg_index i
               JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey)
              WHERE i.indrelid = $1::oid AND i.indisprimary ORDER BY pg_catalog.array_position(i.indkey::int2[], a.attnum)",
            &[Some(&self.oid)],
        )?;
        Ok((0..rows.len()).filter_map(|n| rows.get(n, 0)).map(str::to_owned).collect())
    }

    /// The keys by which rows are compared with those that are there, ready for use. `None` is the primary key.
    pub fn conflict(
        &self,
        session: &mut Session,
        keys: Option<&[String]>,
        columns: &[String],
        existing: Existing,
    ) -> Result<Conflict, WorkError> {
        let keys = match keys {
            Some(keys) => keys.to_vec(),
            None => self.primary_key(session)?,
        };
        if keys.is_empty() {
            let error = JobError::new(ErrorCode::NoUniqueIndex, format!("{} has no primary key", self.name));
            return Err(WorkError::Fail(error.with_hint("name the columns of a unique index in conflict_columns")));
        }
        self.check(&keys, "conflict_columns")?;
        let nulls_are_equal = self.unique_index(session, &keys)?;
        if let Some(missing) = keys.iter().find(|key| !columns.contains(key)) {
            let message = format!("rows are compared by {}, and {missing} isn't imported", keys.join(", "));
            return fail(ErrorCode::NoUniqueIndex, message);
        }
        let allowed = session
            .query("SELECT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'TEMPORARY')", &[])?;
        if allowed.get(0, 0) != Some("t") {
            let message = "on_conflict needs a temporary table, and the target's role may not make one";
            let error = JobError::new(ErrorCode::TempNotAllowed, message);
            return Err(WorkError::Fail(error.with_hint("GRANT TEMPORARY ON DATABASE … TO the role of the target")));
        }
        let mut n = "n".to_owned();
        while columns.contains(&n) {
            n.push('_');
        }
        Ok(Conflict {
            table: self.name.clone(),
            always: columns.iter().any(|name| self.column(name).is_some_and(|column| column.identity)),
            set: columns
                .iter()
                .filter(|name| !keys.contains(name) && self.column(name).is_some_and(|column| !column.identity))
                .cloned()
                .collect(),
            columns: columns.to_vec(),
            keys,
            nulls_are_equal,
            partitioned: self.partitioned,
            existing,
            n: identifier(&n),
        })
    }

    /// Finds a unique index on exactly these columns that ON CONFLICT can use. Says whether its NULLs are equal.
    fn unique_index(&self, session: &mut Session, keys: &[String]) -> Result<bool, WorkError> {
        let keys_array = text_array(keys);
        let nulls = if session.server_version() >= 150_000 { "i.indnullsnotdistinct" } else { "false" };
        let rows = session.query(
            &format!(
                "SELECT {nulls} FROM pg_catalog.pg_index i
                  WHERE i.indrelid = $1::oid AND i.indisunique AND i.indimmediate AND i.indisvalid
                    AND i.indpred IS NULL AND i.indexprs IS NULL
                    AND ARRAY(SELECT a.attname::text FROM pg_catalog.unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) k
                                JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k ORDER BY 1)
                        = ARRAY(SELECT k FROM pg_catalog.unnest($2::text[]) k ORDER BY 1)
                  ORDER BY 1"
            ),
            &[Some(&self.oid), Some(&keys_array)],
        )?;
        match rows.get(0, 0) {
            Some(equal) => Ok(equal == "t"),
            None => {
                let message = format!("{} has no unique index on {} that isn't deferrable", self.name, keys.join(", "));
                fail(ErrorCode::NoUniqueIndex, message)
            }
        }
    }
}

fn columns(session: &mut Session, oid: &str) -> Result<Vec<Column>, WorkError> {
    let rows = session.query(
        "SELECT attname, attgenerated <> '', attidentity = 'a', atttypid FROM pg_catalog.pg_attribute
          WHERE attrelid = $1::oid AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        &[Some(oid)],
    )?;
    let types: Vec<u32> =
        (0..rows.len()).map(|n| rows.get(n, 3).and_then(|oid| oid.parse().ok()).unwrap_or_default()).collect();
    let kinds = classify(session, &types)?;
    let is = |n: usize, column: usize| rows.get(n, column) == Some("t");
    let column = |(n, kind)| Column {
        name: rows.get(n, 0).unwrap_or_default().to_owned(),
        generated: is(n, 1),
        identity: is(n, 2),
        kind,
    };
    Ok(kinds.into_iter().enumerate().map(column).collect())
}

/// How rows come from where they wait into the table.
pub(super) struct Conflict {
    table: String,
    columns: Vec<String>,
    keys: Vec<String>,
    /// What is replaced of a row that is there.
    set: Vec<String>,
    always: bool,
    nulls_are_equal: bool,
    partitioned: bool,
    existing: Existing,
    /// The column that keeps the order of the file.
    n: String,
}

/// Rows that were new, and rows that were replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Merged {
    pub inserted: u64,
    pub updated: u64,
}

impl Conflict {
    /// What COPY writes to.
    pub const STAGING: &str = STAGING;

    /// The table in which rows wait; it goes with the transaction.
    pub fn make_staging(&self, session: &mut Session) -> Result<(), WorkError> {
        let columns = identifiers(&self.columns);
        let bare = STAGING.trim_start_matches("pg_temp.");
        session.execute_batch(&format!(
            "CREATE TEMPORARY TABLE {bare} ON COMMIT DROP AS SELECT {columns} FROM {} WITH NO DATA;
             ALTER TABLE {STAGING} ADD COLUMN {} bigint GENERATED ALWAYS AS IDENTITY",
            self.table, self.n
        ))?;
        Ok(())
    }

    /// Lets the rows go that were merged.
    pub fn empty_staging() -> String {
        format!("TRUNCATE {STAGING}")
    }

    /// Brings what waits into the table.
    pub fn merge(&self, session: &mut Session) -> Result<Merged, crate::pq::PqError> {
        let (table, columns, keys) = (&self.table, identifiers(&self.columns), identifiers(&self.keys));
        let overriding = if self.always { "OVERRIDING SYSTEM VALUE" } else { "" };
        if self.existing == Existing::Keep || self.set.is_empty() {
            let tag = session.command(&format!(
                "INSERT INTO {table} ({columns}) {overriding} SELECT {columns} FROM {STAGING} ORDER BY {}
                 ON CONFLICT ({keys}) DO NOTHING",
                self.n
            ))?;
            return Ok(Merged { inserted: affected(&tag), updated: 0 });
        }
        let insert = format!(
            "INSERT INTO {table} ({columns}) {overriding} SELECT {columns} FROM ({}) s ORDER BY {}
             ON CONFLICT ({keys}) DO UPDATE SET {}",
            self.last_ones(&columns, &keys),
            self.n,
            self.set.iter().map(|name| format!("{0} = excluded.{0}", identifier(name))).collect::<Vec<_>>().join(", ")
        );
        let number = |text: Option<&str>| text.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        if self.partitioned {
            // A partitioned table doesn't tell new rows from replaced ones: those that are there are counted first.
            let there = session.query(&self.count_existing(&columns, &keys), &[])?;
            let updated = number(there.get(0, 0));
            let all = affected(&session.command(&insert)?);
            return Ok(Merged { inserted: all.saturating_sub(updated), updated });
        }
        let rows = session.query(
            &format!(
                "WITH merged AS ({insert} RETURNING xmax::text = '0' AS fresh)
                 SELECT count(*) FILTER (WHERE fresh), count(*) FILTER (WHERE NOT fresh) FROM merged"
            ),
            &[],
        )?;
        Ok(Merged { inserted: number(rows.get(0, 0)), updated: number(rows.get(0, 1)) })
    }

    /// Of rows with the same key the last one. NULLs aren't the same, unless the index says so.
    fn last_ones(&self, columns: &str, keys: &str) -> String {
        let apart = if self.nulls_are_equal {
            "NULL::bigint".to_owned()
        } else {
            let nulls =
                self.keys.iter().map(|key| format!("{} IS NULL", identifier(key))).collect::<Vec<_>>().join(" OR ");
            format!("CASE WHEN {nulls} THEN {} END", self.n)
        };
        let n = &self.n;
        format!("SELECT DISTINCT ON ({keys}, {apart}) {columns}, {n} FROM {STAGING} ORDER BY {keys}, {apart}, {n} DESC")
    }

    fn count_existing(&self, columns: &str, keys: &str) -> String {
        let same = if self.nulls_are_equal { "IS NOT DISTINCT FROM" } else { "=" };
        let same = self.keys.iter().map(|key| format!("t.{0} {same} s.{0}", identifier(key))).collect::<Vec<_>>();
        format!(
            "SELECT count(*) FROM ({}) s WHERE EXISTS (SELECT FROM {} t WHERE {})",
            self.last_ones(columns, keys),
            self.table,
            same.join(" AND ")
        )
    }
}

/// The number in a tag such as `INSERT 0 3`.
fn affected(tag: &str) -> u64 {
    tag.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}
