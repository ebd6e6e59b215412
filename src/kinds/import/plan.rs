//! Where rows go and in which form: straight into the table, or first into a temporary one; and what the arguments say of
//! columns on the way.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::kinds::import::dialect::Dialect;
use crate::kinds::import::load::Form;
use crate::kinds::import::shape::Shape;
use crate::kinds::import::staging::{Conflict, Existing, Staged, Staging};
use crate::kinds::import::table::Table;
use crate::kinds::import::{Import, ImportFormat, OnConflict, csv, keys, names, ndjson};
use crate::pq::Session;
use crate::queue::{ErrorCode, JobError};
use crate::work::WorkError;

/// Some columns of those that are imported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum ColumnNames {
    /// All of them.
    All(AllColumns),
    /// These.
    Named(Vec<String>),
}

/// The word for all columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum AllColumns {
    /// All that are imported.
    #[serde(rename = "*")]
    All,
}

impl ColumnNames {
    pub(super) fn named(&self) -> Option<&Vec<String>> {
        match self {
            ColumnNames::All(_) => None,
            ColumnNames::Named(names) => Some(names),
        }
    }
}

/// What becomes of a column whose key a row lacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Missing {
    /// A new row gets the column's default, and one that is there keeps what it has.
    #[default]
    Default,
    /// It is NULL.
    Null,
}

impl Import {
    /// What a row lacks is filled in.
    pub(super) fn fills_in(&self) -> bool {
        self.format == ImportFormat::Ndjson && self.missing.unwrap_or_default() == Missing::Default
    }

    /// Where rows wait, if they have to. `some_lack` says that some lack a column whose default a COPY can't be told to take.
    pub(super) fn staging(
        &self,
        session: &mut Session,
        table: &Table,
        columns: &[String],
        some_lack: bool,
    ) -> Result<Option<Staging>, WorkError> {
        let conflict = self.conflict(session, table, columns)?;
        if conflict.is_none() && !some_lack {
            return Ok(None);
        }
        let staged = |name: &String| {
            let column = table.column(name);
            Staged {
                name: name.clone(),
                default: column.and_then(|column| column.default.clone()),
                base: column.and_then(|column| column.base.clone()),
                identity: column.is_some_and(|column| column.identity),
            }
        };
        Ok(Some(Staging {
            table: table.name.clone(),
            columns: columns.iter().map(staged).collect(),
            conflict,
            looks_first: table.partitioned || table.writable().any(|column| !columns.contains(&column.name)),
            partitioned: table.partitioned,
            marked: self.fills_in(),
        }))
    }

    /// The key by which rows are compared with those that are there, if they are.
    fn conflict(
        &self,
        session: &mut Session,
        table: &Table,
        columns: &[String],
    ) -> Result<Option<Conflict>, WorkError> {
        let existing = match self.on_conflict {
            OnConflict::Error => return Ok(None),
            OnConflict::Skip => Existing::Keep,
            OnConflict::Update => Existing::Replace,
        };
        if let Some(names) = &self.conflict_columns {
            table.check(names, "conflict_columns")?;
        }
        let keys::Comparison { keys, nulls_are_equal } =
            keys::find(session, &table.oid, &table.name, self.conflict_columns.as_deref())?;
        if let Some(missing) = keys.iter().find(|key| !columns.contains(&key.name)) {
            let names: Vec<&str> = keys.iter().map(|key| key.name.as_str()).collect();
            let message = format!("rows are compared by {}, and {} isn't imported", names.join(", "), missing.name);
            return Err(WorkError::Fail(JobError::new(ErrorCode::NoUniqueIndex, message)));
        }
        Ok(Some(Conflict { keys, nulls_are_equal, existing }))
    }

    pub(super) fn form(
        &self,
        table: &Table,
        columns: &[String],
        csv: Option<Dialect>,
        staging: Option<&Staging>,
        takes_defaults: bool,
    ) -> Form {
        let may_refuse = self.reject_limit > 0;
        if let Some(dialect) = csv {
            return Form::Csv(csv::Reader { dialect, columns: columns.to_vec(), may_refuse });
        }
        let marks = staging.is_some_and(|staging| staging.marked);
        // Rows that wait have marks instead.
        let defaults = takes_defaults && self.fills_in() && staging.is_none();
        let field = |name: &String| {
            let column = table.column(name);
            ndjson::Field {
                name: name.clone(),
                shape: column.map_or(Shape::Scalar, |column| column.shape.clone()),
                defaults: defaults && column.is_some_and(|column| column.default.is_some()),
            }
        };
        let generated = table.columns.iter().filter(|column| column.generated);
        Form::Ndjson(ndjson::Encoder::new(
            &table.name,
            columns.iter().map(field).collect(),
            marks,
            generated.map(|column| column.name.clone()).collect(),
            may_refuse,
        ))
    }
}

/// The columns that an argument names, of those that are imported.
pub(super) fn forced_columns<'c>(
    argument: &str,
    names: &'c ColumnNames,
    columns: &'c [String],
) -> Result<&'c [String], WorkError> {
    let Some(named) = names.named() else { return Ok(columns) };
    let known: Vec<&str> = columns.iter().map(String::as_str).collect();
    let Some((unknown, hint)) = names::unknown(named, &known) else { return Ok(named) };
    let message = format!("{argument} names columns that aren't imported: {unknown}");
    let these = format!("these are: {}", columns.iter().map(|name| names::shown(name)).collect::<Vec<_>>().join(", "));
    let hint = hint.map_or(these.clone(), |hint| format!("{hint}; {these}"));
    Err(WorkError::Fail(JobError::new(ErrorCode::UnknownColumns, message).with_hint(hint)))
}
