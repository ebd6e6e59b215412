//! The temporary table in which rows wait, and how they come from there into the table.
//!
//! Rows wait where they are compared with those that are there, and where some of them lack a value whose default a COPY
//! can't be told to take. Each has its number in the file, and a mark for each column that it lacks.

use crate::kinds::import::keys::Key;
use crate::pq::quote::{identifier, identifiers};
use crate::pq::{PqError, Session};
use crate::queue::{ErrorCode, JobError};
use crate::work::WorkError;

/// Where rows wait.
const STAGING: &str = "pg_temp.slowlane_import";

/// What becomes of a row whose key is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Existing {
    Keep,
    Replace,
}

/// How rows are compared with those that are there.
pub(super) struct Conflict {
    pub keys: Vec<Key>,
    /// NULLs of keys are equal.
    pub nulls_are_equal: bool,
    pub existing: Existing,
}

/// A column that is imported.
pub(super) struct Staged {
    pub name: String,
    /// The value of a row that lacks it, as an expression. `None` is NULL.
    pub default: Option<String>,
    /// The type that a domain is over, where it has to wait as that: the domain may refuse the NULL of a row that lacks it.
    pub base: Option<String>,
    /// GENERATED ALWAYS AS IDENTITY: what is there isn't replaced.
    pub identity: bool,
}

/// Rows on their way.
pub(super) struct Staging {
    /// Schema and name, quoted.
    pub table: String,
    pub columns: Vec<Staged>,
    pub conflict: Option<Conflict>,
    /// The table has columns that the file doesn't, or can't say which rows were there: then rows that are there are
    /// looked for before others are inserted.
    pub looks_first: bool,
    pub partitioned: bool,
    /// Rows may lack columns.
    pub marked: bool,
}

/// Rows that were new, and rows that were replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Merged {
    pub inserted: u64,
    pub updated: u64,
}

impl Staging {
    /// What COPY writes to.
    pub const NAME: &str = STAGING;
    /// As the server's CONTEXT has it.
    pub const BARE: &str = "slowlane_import";

    /// A name that no column has: of the column that keeps the order of the file, or of the one that keeps the marks.
    fn free(&self, wanted: &str) -> String {
        let mut name = wanted.to_owned();
        while self.columns.iter().any(|column| column.name == name) {
            name.push('_');
        }
        identifier(&name)
    }

    fn n(&self) -> String {
        self.free("n")
    }

    fn lacks(&self) -> String {
        self.free("lacks")
    }

    fn names(&self) -> Vec<String> {
        self.columns.iter().map(|column| identifier(&column.name)).collect()
    }

    /// The columns that a COPY fills.
    pub fn copied(&self) -> String {
        let mut names = self.names();
        names.extend(self.marked.then(|| self.lacks()));
        names.join(", ")
    }

    /// Makes the table, which goes with the transaction.
    ///
    /// # Errors
    /// When the role may not make one.
    pub fn make(&self, session: &mut Session) -> Result<(), WorkError> {
        let allowed = session
            .query("SELECT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'TEMPORARY')", &[])?;
        if allowed.get(0, 0) != Some("t") {
            let message = "rows have to wait in a temporary table (on_conflict, or keys that rows lack before PostgreSQL 16), \
                           and the target's role may not make one";
            let error = JobError::new(ErrorCode::TempNotAllowed, message);
            return Err(WorkError::Fail(error.with_hint("GRANT TEMPORARY ON DATABASE … TO the role of the target")));
        }
        let column = |column: &Staged| match column.base.as_ref().filter(|_| self.marked) {
            Some(base) => format!("{0}::{base} AS {0}", identifier(&column.name)),
            None => identifier(&column.name),
        };
        let columns = self.columns.iter().map(column).collect::<Vec<_>>().join(", ");
        let marks = if self.marked { format!(", ADD COLUMN {} bit varying", self.lacks()) } else { String::new() };
        session.execute_batch(&format!(
            "CREATE TEMPORARY TABLE {} ON COMMIT DROP AS SELECT {columns} FROM {} WITH NO DATA;
             ALTER TABLE {STAGING} ADD COLUMN {} bigint GENERATED ALWAYS AS IDENTITY{marks}",
            Staging::BARE,
            self.table,
            self.n()
        ))?;
        Ok(())
    }

    /// Lets the rows go that were merged.
    pub fn empty() -> String {
        format!("TRUNCATE {STAGING}")
    }

    /// Brings what waits into the table. `lacking` says that some of it lacks columns.
    pub fn merge(&self, session: &mut Session, lacking: bool) -> Result<Merged, PqError> {
        let Some(conflict) = &self.conflict else {
            let (into, values) = (self.insert_into(), self.values(lacking, &[]));
            let tag = session.command(&format!("{into} SELECT {values} FROM {STAGING} ORDER BY {}", self.n()))?;
            return Ok(Merged { inserted: affected(&tag), updated: 0 });
        };
        let merge = Merge { staging: self, conflict, lacking };
        if lacking {
            merge.fill_keys(session)?;
        }
        let set = merge.set();
        match (conflict.existing, self.looks_first || lacking) {
            (Existing::Replace, true) if !set.is_empty() => merge.update_then_insert(session, &set),
            (Existing::Replace, false) if !set.is_empty() => merge.upsert(session, &set),
            (_, looks_first) => merge.insert_new(session, looks_first),
        }
    }

    fn insert_into(&self) -> String {
        let always = self.columns.iter().any(|column| column.identity);
        let overriding = if always { "OVERRIDING SYSTEM VALUE" } else { "" };
        format!("INSERT INTO {} ({}) {overriding}", self.table, self.names().join(", "))
    }

    /// The values of new rows. Keys have theirs already.
    fn values(&self, lacking: bool, keys: &[Key]) -> String {
        let value = |(n, column): (usize, &Staged)| {
            let name = identifier(&column.name);
            match column.default.as_ref().filter(|_| lacking && keys.iter().all(|key| key.name != column.name)) {
                Some(default) => format!("CASE {} WHEN 1 THEN {default} ELSE {name} END AS {name}", self.mark("", n)),
                None => name,
            }
        };
        self.columns.iter().enumerate().map(value).collect::<Vec<_>>().join(", ")
    }

    /// Whether the row `of` lacks its column `n`: 1, 0 or NULL.
    fn mark(&self, of: &str, n: usize) -> String {
        format!("pg_catalog.get_bit({of}{}, {n})", self.lacks())
    }
}

/// How what waits comes into the table.
struct Merge<'s> {
    staging: &'s Staging,
    conflict: &'s Conflict,
    lacking: bool,
}

impl Merge<'_> {
    fn is_key(&self, name: &str) -> bool {
        self.conflict.keys.iter().any(|key| key.name == name)
    }

    /// The columns that are replaced of a row that is there, with their numbers.
    fn set(&self) -> Vec<(usize, String)> {
        let columns = self.staging.columns.iter().enumerate();
        let replaced = columns.filter(|(_, column)| !column.identity && !self.is_key(&column.name));
        replaced.map(|(n, column)| (n, identifier(&column.name))).collect()
    }

    /// Gives rows that lack a column of the key its default: by that they are compared.
    fn fill_keys(&self, session: &mut Session) -> Result<(), PqError> {
        for (n, column) in self.staging.columns.iter().enumerate() {
            if let Some(default) = column.default.as_ref().filter(|_| self.is_key(&column.name)) {
                let (name, mark) = (identifier(&column.name), self.staging.mark("", n));
                session.execute_batch(&format!("UPDATE {STAGING} SET {name} = {default} WHERE {mark} = 1"))?;
            }
        }
        Ok(())
    }

    fn keys(&self) -> String {
        identifiers(&self.conflict.keys.iter().map(|key| key.name.as_str()).collect::<Vec<_>>())
    }

    /// The rows are of the same key; rows with a NULL in it are compared where that counts, by `nulls`.
    fn same(&self, nulls: bool) -> String {
        let keys = &self.conflict.keys;
        let column = |of: &str, key: &Key| format!("{of}.{}{}", identifier(&key.name), key.collate);
        let mut terms: Vec<String> = Vec::new();
        if nulls {
            for of in ["s", "t"] {
                let any: Vec<_> = keys.iter().map(|key| format!("{of}.{} IS NULL", identifier(&key.name))).collect();
                terms.push(format!("({})", any.join(" OR ")));
            }
        }
        terms.extend(keys.iter().map(|key| match nulls {
            // Arrays hold NULLs for equal, and can be hashed.
            true => format!("ARRAY[{}] OPERATOR(pg_catalog.=) ARRAY[{}]", column("t", key), column("s", key)),
            false => format!("{} {} {}", column("t", key), key.equals, column("s", key)),
        }));
        terms.join(" AND ")
    }

    /// How often rows have to be looked for: once more where NULLs are equal.
    fn looks(&self) -> &'static [bool] {
        if self.conflict.nulls_are_equal { &[false, true] } else { &[false] }
    }

    /// Inserts the rows that are new.
    fn insert_new(&self, session: &mut Session, looks_first: bool) -> Result<Merged, PqError> {
        let staging = self.staging;
        let absent = |nulls: &bool| format!("NOT EXISTS (SELECT FROM {} t WHERE {})", staging.table, self.same(*nulls));
        // A row that is there could violate a constraint, were it to be inserted.
        let absent = match looks_first {
            true => format!("WHERE {}", self.looks().iter().map(absent).collect::<Vec<_>>().join(" AND ")),
            false => String::new(),
        };
        let tag = session.command(&format!(
            "{} SELECT {} FROM {STAGING} s {absent} ORDER BY {} ON CONFLICT ({}) DO NOTHING",
            staging.insert_into(),
            staging.values(self.lacking, &self.conflict.keys),
            staging.n(),
            self.keys()
        ))?;
        Ok(Merged { inserted: affected(&tag), updated: 0 })
    }

    /// Inserts all rows, or updates those that are in the way.
    fn upsert(&self, session: &mut Session, set: &[(usize, String)]) -> Result<Merged, PqError> {
        let excluded = set.iter().map(|(_, name)| format!("{name} = excluded.{name}")).collect::<Vec<_>>().join(", ");
        counted(
            session,
            &format!(
                "WITH merged AS ({} SELECT {} FROM ({}) s ORDER BY {} ON CONFLICT ({}) DO UPDATE SET {excluded}
                                 RETURNING xmax::text = '0' AS fresh)
                 SELECT count(*) FILTER (WHERE fresh), count(*) FILTER (WHERE NOT fresh) FROM merged",
                self.staging.insert_into(),
                self.staging.values(false, &[]),
                self.last_ones(),
                self.staging.n(),
                self.keys(),
            ),
        )
    }

    /// Updates the rows that are there, and inserts those for which none was found, in one statement. Another session may
    /// have inserted one of these meanwhile: it is updated then.
    fn update_then_insert(&self, session: &mut Session, set: &[(usize, String)]) -> Result<Merged, PqError> {
        let staging = self.staging;
        let (table, n) = (&staging.table, staging.n());
        let assign = |(place, name): &(usize, String)| match self.lacking {
            true => format!("{name} = CASE {} WHEN 1 THEN t.{name} ELSE s.{name} END", staging.mark("s.", *place)),
            false => format!("{name} = s.{name}"),
        };
        let assigned = set.iter().map(assign).collect::<Vec<_>>().join(", ");
        let update = |(look, nulls): (usize, &bool)| {
            let same = self.same(*nulls);
            format!(
                "there_{look} AS (UPDATE {table} t SET {assigned} FROM waiting s WHERE {same} RETURNING s.{n} AS n)"
            )
        };
        let updates = self.looks().iter().enumerate().map(update).collect::<Vec<_>>().join(", ");
        let each = |part: &dyn Fn(usize) -> String, between: &str| {
            (0..self.looks().len()).map(part).collect::<Vec<_>>().join(between)
        };
        let absent = each(&|look| format!("NOT EXISTS (SELECT FROM there_{look} u WHERE u.n = s.{n})"), " AND ");
        let updated = each(&|look| format!("(SELECT count(*) FROM there_{look})"), " + ");
        // A partitioned table doesn't say which rows are new: then all that weren't found are.
        let fresh = if staging.partitioned { "true" } else { "xmax::text = '0'" };
        counted(
            session,
            &format!(
                "WITH waiting AS MATERIALIZED ({}), {updates},
                      merged AS ({} SELECT {} FROM waiting s WHERE {absent} ORDER BY {n}
                                 ON CONFLICT ({}) DO UPDATE SET {} RETURNING {fresh} AS fresh)
                 SELECT count(*) FILTER (WHERE fresh), count(*) FILTER (WHERE NOT fresh) + {updated} FROM merged",
                self.last_ones(),
                staging.insert_into(),
                staging.values(self.lacking, &self.conflict.keys),
                self.keys(),
                self.meanwhile(set)
            ),
        )
    }

    /// What is replaced of a row that another session has inserted meanwhile: not what the row of the file lacks.
    fn meanwhile(&self, set: &[(usize, String)]) -> String {
        let assign = |(place, name): &(usize, String)| {
            if !self.lacking {
                return format!("{name} = excluded.{name}");
            }
            let excluded = |key: &Key| {
                let (name, collate) = (identifier(&key.name), &key.collate);
                format!("excluded.{name}{collate} {} s.{name}{collate}", key.equals)
            };
            let same = self.conflict.keys.iter().map(excluded).collect::<Vec<_>>().join(" AND ");
            let mark = format!("(SELECT {} FROM waiting s WHERE {same})", self.staging.mark("s.", *place));
            format!("{name} = CASE {mark} WHEN 1 THEN {}.{name} ELSE excluded.{name} END", self.staging.table)
        };
        set.iter().map(assign).collect::<Vec<_>>().join(", ")
    }

    /// Of rows with the same key the last one. NULLs aren't the same, unless the index says so.
    fn last_ones(&self) -> String {
        let n = self.staging.n();
        let keys = &self.conflict.keys;
        let apart = if self.conflict.nulls_are_equal {
            "NULL::bigint".to_owned()
        } else {
            let nulls: Vec<_> = keys.iter().map(|key| format!("{} IS NULL", identifier(&key.name))).collect();
            format!("CASE WHEN {} THEN {n} END", nulls.join(" OR "))
        };
        let by: Vec<_> = keys.iter().map(|key| format!("{}{}", identifier(&key.name), key.collate)).collect();
        let by = by.join(", ");
        let columns = self.staging.copied();
        format!("SELECT DISTINCT ON ({by}, {apart}) {columns}, {n} FROM {STAGING} ORDER BY {by}, {apart}, {n} DESC")
    }
}

fn counted(session: &mut Session, statement: &str) -> Result<Merged, PqError> {
    let rows = session.query(statement, &[])?;
    let number = |column| rows.get(0, column).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    Ok(Merged { inserted: number(0), updated: number(1) })
}

/// The number in a tag such as `INSERT 0 3`.
fn affected(tag: &str) -> u64 {
    tag.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}
