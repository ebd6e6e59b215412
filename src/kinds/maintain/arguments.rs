//! Which arguments of a `maintain` go together, and the forms of a column. Knows no database.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::storage::MAX_NAME_BYTES;
use super::{Action, IndexMethod, Maintain};
use crate::work::ArgError;

/// The longest `lock_timeout_ms`: a minute.
const MAX_LOCK_TIMEOUT_MS: u64 = 60_000;
/// The most columns of an index in Postgres, those that it includes among them.
const MAX_INDEX_COLUMNS: usize = 32;
/// The most columns of a table in Postgres.
const MAX_COLUMNS: usize = 1_600;
/// The most parallel workers that Postgres takes.
const MAX_PARALLEL: u32 = 1_024;

/// A column of an index: the name of one of the table's alone, or an object with it, or with an expression, and more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct IndexColumn {
    /// The name of the table's column, as it is: nothing in it is quoted. Either this or `expression`.
    pub column: Option<String>,
    /// `create_index`: an SQL expression over the columns of a row, such as `lower(email)`.
    pub expression: Option<String>,
    /// The collation, with its schema or as the target's `search_path` finds it. Defaults to that of the column or
    /// expression.
    pub collation: Option<String>,
    /// The operator class, with its schema or as the target's `search_path` finds it. Defaults to that of the type.
    pub opclass: Option<String>,
    /// `btree`: which values come first. Defaults to the smallest.
    pub order: Option<IndexOrder>,
    /// `btree`: where NULLs are. Defaults to last, and with `desc` to first.
    pub nulls: Option<IndexNulls>,
}

impl IndexColumn {
    /// A column with every default.
    pub fn new(column: impl Into<String>) -> IndexColumn {
        IndexColumn { column: Some(column.into()), ..IndexColumn::default() }
    }

    /// The name of the table's column; empty for an expression.
    pub(super) fn name(&self) -> &str {
        self.column.as_deref().unwrap_or_default()
    }

    fn is_plain(&self) -> bool {
        IndexColumn { column: None, ..self.clone() } == IndexColumn::default()
    }
}

/// Which values come first in an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum IndexOrder {
    /// The smallest.
    Asc,
    /// The largest.
    Desc,
}

/// Where NULLs are in an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum IndexNulls {
    /// Before everything else.
    First,
    /// Behind everything else.
    Last,
}

impl<'de> Deserialize<'de> for IndexColumn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Object {
            column: Option<String>,
            expression: Option<String>,
            collation: Option<String>,
            opclass: Option<String>,
            order: Option<IndexOrder>,
            nulls: Option<IndexNulls>,
        }

        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = IndexColumn;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "the name of a column, or an object with column or expression, collation, opclass, order and nulls",
                )
            }

            fn visit_str<E>(self, column: &str) -> Result<IndexColumn, E> {
                Ok(IndexColumn::new(column))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<IndexColumn, A::Error> {
                let Object { column, expression, collation, opclass, order, nulls } =
                    Object::deserialize(MapAccessDeserializer::new(map))?;
                Ok(IndexColumn { column, expression, collation, opclass, order, nulls })
            }
        }

        deserializer.deserialize_any(Either)
    }
}

/// What is wrong with the arguments, as far as they show it.
pub(super) fn check(args: &Maintain) -> Vec<ArgError> {
    let mut errors = belonging(args);
    let mut wrong = |pointer: &str, detail: String| errors.push(ArgError::new(pointer, detail));
    if args.lock_timeout_ms.is_some_and(|limit| limit == 0 || limit > MAX_LOCK_TIMEOUT_MS) {
        wrong("/lock_timeout_ms", format!("expected 1 to {MAX_LOCK_TIMEOUT_MS}"));
    }
    let blank = |name: &Option<String>| name.as_ref().is_some_and(|name| name.trim().is_empty());
    match args.action {
        Action::DropIndex if args.table.is_some() => wrong("/table", "expected an index alone".to_owned()),
        Action::DropIndex if args.index.is_none() => wrong("/index", "expected the name of an index".to_owned()),
        Action::DropIndex => {}
        Action::Reindex if !blank(&args.table) && args.table.is_some() == args.index.is_some() => {
            wrong("/table", "expected either a table or an index".to_owned());
        }
        Action::Reindex if !blank(&args.table) => {}
        _ if blank(&args.table) || args.table.is_none() => wrong("/table", "expected the name of a table".to_owned()),
        _ => {}
    }
    if blank(&args.index) {
        wrong("/index", "expected the name of an index".to_owned());
    }
    if args.parallel.is_some_and(|workers| workers > MAX_PARALLEL) {
        wrong("/parallel", format!("expected 0 to {MAX_PARALLEL}"));
    }
    errors.extend(consent(args));
    if args.action == Action::CreateIndex {
        errors.extend(definition(args));
    } else {
        errors.extend(analyzed(args));
    }
    errors
}

/// What keeps others out needs a word more; what goes with it.
fn consent(args: &Maintain) -> Vec<ArgError> {
    let mut errors = Vec::new();
    let mut wrong = |pointer: &str, detail: String| errors.push(ArgError::new(pointer, detail));
    let consent = "expected allow_exclusive_lock: true beside it, for nobody can";
    if args.action == Action::Vacuum && args.full == Some(true) {
        if !args.allow_exclusive_lock {
            wrong("/full", format!("{consent} use the table until it is rewritten"));
        }
        for (pointer, given) in [
            ("/disable_page_skipping", args.disable_page_skipping == Some(true)),
            ("/parallel", args.parallel.is_some_and(|workers| workers > 0)),
            ("/process_toast", args.process_toast == Some(false)),
        ] {
            if given {
                wrong(pointer, "expected something that goes with full".to_owned());
            }
        }
    }
    if args.concurrently == Some(false) && !args.allow_exclusive_lock {
        match args.action {
            Action::Reindex | Action::CreateIndex => {
                wrong("/concurrently", format!("{consent} write to the table until the index is built"));
            }
            Action::DropIndex => wrong("/concurrently", format!("{consent} use the table while its index is dropped")),
            Action::Vacuum | Action::Analyze => {}
        }
    }
    errors
}

/// Arguments that the action has no use for.
fn belonging(args: &Maintain) -> Vec<ArgError> {
    use Action::{Analyze, CreateIndex, DropIndex, Reindex, Vacuum};
    let all: [(&str, bool, &[Action]); 21] = [
        ("/index", args.index.is_some(), &[Reindex, DropIndex]),
        ("/full", args.full.is_some(), &[Vacuum]),
        ("/freeze", args.freeze.is_some(), &[Vacuum]),
        ("/analyze", args.analyze.is_some(), &[Vacuum]),
        ("/disable_page_skipping", args.disable_page_skipping.is_some(), &[Vacuum]),
        ("/skip_locked", args.skip_locked.is_some(), &[Vacuum, Analyze]),
        ("/index_cleanup", args.index_cleanup.is_some(), &[Vacuum]),
        ("/truncate", args.truncate.is_some(), &[Vacuum]),
        ("/process_toast", args.process_toast.is_some(), &[Vacuum]),
        ("/parallel", args.parallel.is_some(), &[Vacuum]),
        ("/columns", args.columns.is_some(), &[Vacuum, Analyze, CreateIndex]),
        ("/concurrently", args.concurrently.is_some(), &[Reindex, CreateIndex, DropIndex]),
        ("/name", args.name.is_some(), &[CreateIndex]),
        ("/unique", args.unique.is_some(), &[CreateIndex]),
        ("/method", args.method.is_some(), &[CreateIndex]),
        ("/include", args.include.is_some(), &[CreateIndex]),
        ("/where", args.condition.is_some(), &[CreateIndex]),
        ("/nulls_not_distinct", args.nulls_not_distinct.is_some(), &[CreateIndex]),
        ("/with", args.with.is_some(), &[CreateIndex]),
        ("/tablespace", args.tablespace.is_some(), &[CreateIndex]),
        ("/if_exists", args.if_exists.is_some(), &[DropIndex]),
    ];
    all.into_iter()
        .filter(|(_, given, of)| *given && !of.contains(&args.action))
        .map(|(pointer, _, of)| {
            let of: Vec<&str> = of.iter().map(|action| action.as_str()).collect();
            ArgError::new(pointer, format!("expected it with the action {} only", of.join(" or ")))
        })
        .collect()
}

/// The columns of an ANALYZE.
fn analyzed(args: &Maintain) -> Vec<ArgError> {
    let Some(columns) = &args.columns else { return Vec::new() };
    let mut errors = names("/columns", columns.iter().map(IndexColumn::name), MAX_COLUMNS);
    if args.action == Action::Vacuum && args.analyze != Some(true) {
        errors.push(ArgError::new("/columns", "expected analyze: true beside it"));
    }
    for (n, _) in columns.iter().enumerate().filter(|(_, column)| !column.is_plain()) {
        errors.push(ArgError::new(format!("/columns/{n}"), "expected the name of a column alone"));
    }
    errors
}

/// What describes an index.
fn definition(args: &Maintain) -> Vec<ArgError> {
    let mut errors = Vec::new();
    if !args.name.as_ref().is_some_and(|name| !name.is_empty() && name.len() <= MAX_NAME_BYTES) {
        errors.push(ArgError::new("/name", format!("expected a name of 1 to {MAX_NAME_BYTES} bytes")));
    }
    if let Some(included) = &args.include {
        errors.extend(names("/include", included.iter().map(String::as_str), MAX_INDEX_COLUMNS));
    }
    if args.condition.as_ref().is_some_and(|condition| condition.trim().is_empty()) {
        errors.push(ArgError::new("/where", "expected an SQL expression"));
    }
    if args.tablespace.as_ref().is_some_and(String::is_empty) {
        errors.push(ArgError::new("/tablespace", "expected the name of a tablespace"));
    }
    let method = args.method.unwrap_or_default();
    if method != IndexMethod::Btree && args.unique == Some(true) {
        errors.push(ArgError::new("/unique", "expected it with the method btree only"));
    }
    errors.extend(keys(args));
    if args.nulls_not_distinct == Some(true) && args.unique != Some(true) {
        errors.push(ArgError::new("/nulls_not_distinct", "expected unique: true beside it"));
    }
    errors.extend(args.with.iter().flat_map(|with| with.check(method)));
    errors
}

/// The columns of an index's key.
fn keys(args: &Maintain) -> Vec<ArgError> {
    let columns = args.columns.as_deref().unwrap_or_default();
    let room = MAX_INDEX_COLUMNS.saturating_sub(args.include.as_ref().map_or(0, Vec::len));
    if columns.is_empty() || columns.len() > room {
        return vec![ArgError::new("/columns", format!("expected 1 to {room} columns or expressions"))];
    }
    let method = args.method.unwrap_or_default();
    let mut errors = Vec::new();
    for (n, column) in columns.iter().enumerate() {
        let mut wrong = |detail: &str| errors.push(ArgError::new(format!("/columns/{n}"), detail));
        let blank = |text: &Option<String>| text.as_ref().is_none_or(|text| text.trim().is_empty());
        if blank(&column.column) == blank(&column.expression) || column.column.is_some() == column.expression.is_some()
        {
            wrong("expected either the name of a column or an expression");
        } else if columns.iter().take(n).any(|other| other == column) {
            wrong("expected each column once");
        }
        if method != IndexMethod::Btree && (column.order.is_some() || column.nulls.is_some()) {
            wrong("expected order and nulls with the method btree only");
        }
    }
    errors
}

/// A list of columns, each once.
fn names<'a>(pointer: &str, names: impl Iterator<Item = &'a str>, most: usize) -> Vec<ArgError> {
    let names: Vec<&str> = names.collect();
    if names.is_empty() || names.len() > most || names.iter().any(|name| name.is_empty()) {
        return vec![ArgError::new(pointer, format!("expected 1 to {most} names of columns"))];
    }
    let twice = names.iter().enumerate().filter(|(n, name)| names.iter().take(*n).any(|other| other == *name));
    twice.map(|(n, _)| ArgError::new(format!("{pointer}/{n}"), "expected each column once")).collect()
}

impl Action {
    /// The word in arguments.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Action::Vacuum => "vacuum",
            Action::Analyze => "analyze",
            Action::Reindex => "reindex",
            Action::CreateIndex => "create_index",
            Action::DropIndex => "drop_index",
        }
    }
}
