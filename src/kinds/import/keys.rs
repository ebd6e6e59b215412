//! The unique indexes of a table: by which of them rows can be compared, and why not by the others.

use crate::pq::{Rows, Session};
use crate::queue::{ErrorCode, JobError};
use crate::work::WorkError;

/// So many indexes are told of.
const MAX_SHOWN: usize = 5;

/// A column by which rows are compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub name: String,
    /// The operator by which the index finds equals, as SQL has it.
    pub equals: String,
    /// `COLLATE …` where the index has another collation than the column, or nothing.
    pub collate: String,
}

/// An index of the table.
struct Index {
    oid: String,
    /// As SQL has it.
    name: String,
    primary: bool,
    unique: bool,
    /// It belongs to an exclusion constraint, or to a key WITHOUT OVERLAPS.
    excludes: bool,
    immediate: bool,
    valid: bool,
    nulls_are_equal: bool,
    predicate: Option<String>,
    /// Columns of the key, without those that are only included; `None` where an expression stands.
    keys: Vec<Option<Key>>,
    /// The same as SQL has them.
    shown: Vec<String>,
}

/// The key by which rows are compared.
pub(super) struct Comparison {
    pub keys: Vec<Key>,
    /// NULLs in it are equal.
    pub nulls_are_equal: bool,
}

/// Finds the unique index on exactly these columns, or that of the primary key.
///
/// # Errors
/// [`ErrorCode::NoUniqueIndex`], saying why the indexes that come close can't be used.
pub(super) fn find(
    session: &mut Session,
    table_oid: &str,
    table: &str,
    names: Option<&[String]>,
) -> Result<Comparison, WorkError> {
    let indexes = Index::all(session, table_oid)?;
    let primary = || {
        let primary = indexes.iter().find(|index| index.primary);
        primary.map(|index| index.keys.iter().flatten().map(|key| key.name.clone()).collect::<Vec<_>>())
    };
    let Some(names) = names.map(<[String]>::to_vec).or_else(primary) else {
        let error = JobError::new(ErrorCode::NoUniqueIndex, format!("{table} has no primary key"));
        let hint = format!("name the columns of a unique index in conflict_columns{}", usable(&indexes));
        return Err(WorkError::Fail(error.with_hint(hint)));
    };
    let fitting: Vec<&Index> =
        indexes.iter().filter(|index| index.obstacle().is_none() && index.is_on(&names)).collect();
    let Some(first) = fitting.first() else { return Err(none_fits(table, &names, &indexes)) };
    let key = |name: &String| first.keys.iter().flatten().find(|key| key.name == *name).cloned();
    Ok(Comparison {
        keys: names.iter().filter_map(key).collect(),
        // ON CONFLICT looks at each of them.
        nulls_are_equal: fitting.iter().any(|index| index.nulls_are_equal),
    })
}

impl Index {
    fn all(session: &mut Session, table_oid: &str) -> Result<Vec<Index>, WorkError> {
        let nulls = if session.server_version() >= 150_000 { "i.indnullsnotdistinct" } else { "false" };
        // One row for each column of a key: indkey has the included columns too, behind them.
        let rows = session.query(
            &format!(
                "SELECT i.indexrelid, pg_catalog.quote_ident(x.relname), i.indisprimary, i.indisunique, i.indisexclusion,
                        i.indimmediate, i.indisvalid, {nulls}, pg_catalog.pg_get_expr(i.indpred, i.indrelid, true),
                        a.attname, pg_catalog.pg_get_indexdef(i.indexrelid, k.n + 1, true),
                        pg_catalog.format('OPERATOR(%I.%s)', s.nspname, o.oprname),
                        CASE WHEN l.oid <> a.attcollation
                             THEN pg_catalog.format(' COLLATE %I.%I', ls.nspname, l.collname) END
                   FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
                  CROSS JOIN LATERAL pg_catalog.generate_series(0, i.indnkeyatts - 1) k (n)
                   LEFT JOIN pg_catalog.pg_attribute a
                          ON a.attrelid = i.indrelid AND a.attnum = i.indkey[k.n] AND a.attnum <> 0
                   LEFT JOIN pg_catalog.pg_opclass c ON c.oid = i.indclass[k.n]
                   LEFT JOIN pg_catalog.pg_amop p ON p.amopfamily = c.opcfamily AND p.amoplefttype = c.opcintype
                          AND p.amoprighttype = c.opcintype AND p.amopstrategy = 3 AND p.amoppurpose = 's'
                   LEFT JOIN pg_catalog.pg_operator o ON o.oid = p.amopopr
                   LEFT JOIN pg_catalog.pg_namespace s ON s.oid = o.oprnamespace
                   LEFT JOIN pg_catalog.pg_collation l ON l.oid = i.indcollation[k.n]
                   LEFT JOIN pg_catalog.pg_namespace ls ON ls.oid = l.collnamespace
                  WHERE i.indrelid = $1::oid AND i.indislive
                  ORDER BY i.indisprimary DESC, i.indexrelid, k.n"
            ),
            &[Some(table_oid)],
        )?;
        let mut indexes: Vec<Index> = Vec::new();
        for row in 0..rows.len() {
            match indexes.last_mut().filter(|index| rows.get(row, 0) == Some(&index.oid)) {
                Some(index) => index.push(&rows, row),
                None => indexes.push(Index::of(&rows, row)),
            }
        }
        Ok(indexes)
    }

    fn of(rows: &Rows, row: usize) -> Index {
        let text = |column| rows.get(row, column).unwrap_or_default().to_owned();
        let is = |column| rows.get(row, column) == Some("t");
        let mut index = Index {
            oid: text(0),
            name: text(1),
            primary: is(2),
            unique: is(3),
            excludes: is(4),
            immediate: is(5),
            valid: is(6),
            nulls_are_equal: is(7),
            predicate: rows.get(row, 8).map(str::to_owned),
            keys: Vec::new(),
            shown: Vec::new(),
        };
        index.push(rows, row);
        index
    }

    fn push(&mut self, rows: &Rows, row: usize) {
        let text = |column| rows.get(row, column).unwrap_or_default().to_owned();
        let key = |name: &str| Key { name: name.to_owned(), equals: text(11), collate: text(12) };
        self.keys.push(rows.get(row, 9).map(key));
        self.shown.push(text(10));
    }

    /// Its key has exactly these columns, in any order.
    fn is_on(&self, names: &[String]) -> bool {
        let mut own: Vec<&str> = self.keys.iter().flatten().map(|key| key.name.as_str()).collect();
        let mut wanted: Vec<&str> = names.iter().map(String::as_str).collect();
        own.sort_unstable();
        own.dedup();
        wanted.sort_unstable();
        own == wanted
    }

    /// It is on these columns, or on expressions of some of them.
    fn is_near(&self, names: &[String]) -> bool {
        let is_expression_of =
            |(key, shown): (&Option<Key>, &String)| key.is_none() && names.iter().any(|name| stands_in(name, shown));
        self.is_on(names) || self.keys.iter().zip(&self.shown).any(is_expression_of)
    }

    /// Why ON CONFLICT with its columns can't use it.
    fn obstacle(&self) -> Option<String> {
        if self.excludes {
            return Some("belongs to an exclusion constraint".to_owned());
        }
        if !self.unique {
            return Some("isn't unique".to_owned());
        }
        if !self.valid {
            return Some("is invalid".to_owned());
        }
        if !self.immediate {
            return Some("belongs to a constraint that is deferrable".to_owned());
        }
        if let Some(predicate) = &self.predicate {
            return Some(format!("is partial: WHERE {predicate}"));
        }
        let is_expression = |key: &Option<Key>| key.is_none();
        self.keys.iter().any(is_expression).then(|| "is on an expression".to_owned())
    }

    fn columns(&self) -> String {
        format!("({})", self.shown.join(", "))
    }

    /// What to do about its obstacle.
    fn way_out(&self, table: &str) -> String {
        if self.unique && !self.excludes && !self.valid {
            return format!("build it anew (a maintain job: reindex), or DROP INDEX {} and create it again", self.name);
        }
        if self.unique && !self.excludes && self.immediate && (self.predicate.is_some() || self.keys.contains(&None)) {
            let condition = self.predicate.as_ref().map_or_else(String::new, |predicate| format!(" WHERE {predicate}"));
            return format!(
                "import into another table, and store its rows by an execute job with INSERT INTO {table} … SELECT … \
                 ON CONFLICT {}{condition} DO …",
                self.columns()
            );
        }
        format!("CREATE UNIQUE INDEX ON {table} (…), not deferrable, on just these columns")
    }
}

/// The name is one of the words of an expression.
fn stands_in(name: &str, expression: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    expression.match_indices(name).any(|(at, _)| {
        let before = expression.get(..at).unwrap_or_default();
        let behind = expression.get(at.saturating_add(name.len())..).unwrap_or_default();
        !before.ends_with(is_word) && !behind.starts_with(is_word)
    })
}

/// The columns of indexes that can be used, for a hint.
fn usable(indexes: &[Index]) -> String {
    let usable = indexes.iter().filter(|index| index.obstacle().is_none());
    let usable: Vec<String> = usable.take(MAX_SHOWN).map(Index::columns).collect();
    match usable.is_empty() {
        true => "; there is none".to_owned(),
        false => format!("; there are: {}", usable.join(", ")),
    }
}

fn none_fits(table: &str, names: &[String], indexes: &[Index]) -> WorkError {
    let near: Vec<&Index> = indexes.iter().filter(|index| index.is_near(names)).take(MAX_SHOWN).collect();
    let told: Vec<String> = near
        .iter()
        .filter_map(|index| Some(format!("{} on {} {}", index.name, index.columns(), index.obstacle()?)))
        .collect();
    let mut message = format!("{table} has no unique index on {} that rows can be compared by", names.join(", "));
    if !told.is_empty() {
        message = format!("{message}: {}", told.join("; "));
    }
    let best = near.iter().max_by_key(|index| (index.unique, index.is_on(names)));
    let way_out = match best {
        Some(index) => index.way_out(table),
        None => format!("CREATE UNIQUE INDEX ON {table} (…) on just these columns"),
    };
    let hint = format!(
        "conflict_columns takes the columns of a unique index on columns alone, valid, without a WHERE and not deferrable{}. \
         Or {way_out}",
        usable(indexes)
    );
    WorkError::Fail(JobError::new(ErrorCode::NoUniqueIndex, message).with_hint(hint))
}
