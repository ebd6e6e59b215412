//! `import`: an upload becomes rows of a table, all of them in one transaction, or none.
//!
//! Names are looked up in the catalog and quoted; values go through COPY and are the server's to judge. Rows that must
//! be compared with those that are there wait in a temporary table. Where rows may be refused they go in blocks, each
//! under a savepoint, and a block that fails is halved down to the row. Memory is bounded whatever the file is.
//!
//! | file | what it has |
//! | --- | --- |
//! | `decode` | the upload's bytes as they were before they were coded |
//! | `records` | lines, or CSV records |
//! | `csv`, `ndjson` | records as rows for COPY |
//! | `batch` | some rows, and on which lines they stand |
//! | `table` | the catalog, and what is done about rows that are there already |
//! | `load` | COPY, blocks, refused rows |

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::kinds::context::WorkContext;
use crate::kinds::params::ParamType;
use crate::kinds::{ArgError, UploadArg, Work, WorkError, exactly_once};
use crate::pq::Session;
use crate::pq::quote::{identifiers, literal};
use crate::queue::{ErrorCode, JobError};
use crate::uploads::{ContentType, Upload};

mod batch;
mod csv;
mod decode;
mod load;
mod ndjson;
mod records;
mod table;

pub use decode::MAX_DECODED_BYTES;
pub use load::BLOCK_ROWS;
pub use records::MAX_ROW_BYTES;

use decode::Decoded;
use load::{Form, Sink, Source};
use records::Records;
use table::{Conflict, Existing, Merged, Table};

/// The largest `reject_limit`.
pub const MAX_REJECT_LIMIT: u64 = 10_000;
/// The most columns of a table in Postgres.
const MAX_COLUMNS: usize = 1_600;

/// The arguments of an `import`.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Import {
    /// An upload that is ready: 422 `unknown_upload` otherwise.
    #[schema(value_type = String, format = "uuid")]
    pub upload: Uuid,
    /// The table, with its schema or as the target's `search_path` finds it; quoted where SQL would have it.
    pub table: String,
    /// The columns that the file has, in its order. Defaults to what the header or the keys say; without either, to all that can
    /// be written.
    pub columns: Option<Vec<String>>,
    /// What the file is, as its upload was sent.
    pub format: ImportFormat,
    /// CSV: what stands for NULL, without quotes; nothing by default, and not `\.`.
    pub null: Option<String>,
    /// CSV: the first line has the names of the columns, true by default. Where `columns` is given it is read and dropped.
    pub header: Option<bool>,
    /// CSV: what stands between values: one character of ASCII, no dot and no backslash. Defaults to a comma.
    pub delimiter: Option<String>,
    /// What becomes of rows whose key is in the table already: the job fails (the default), they are left out, or they
    /// replace what is there in the columns that the file has.
    #[serde(default)]
    pub on_conflict: OnConflict,
    /// The columns of the unique index by which rows are compared. Defaults to the primary key.
    pub conflict_columns: Option<Vec<String>>,
    /// So many rows may be refused and left out, up to 10,000. Defaults to none.
    #[serde(default)]
    pub reject_limit: u64,
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ImportFormat {
    /// CSV as COPY reads it.
    Csv,
    /// One JSON object a line.
    Ndjson,
}

/// What becomes of rows whose key is in the table already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnConflict {
    /// They are an error, as any that violates a constraint.
    #[default]
    Error,
    /// They are left out.
    Skip,
    /// They replace what is there, in the columns that the file has.
    Update,
}

/// What an `import` did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Imported {
    /// Rows of the file.
    pub rows_read: u64,
    /// Rows that are new in the table.
    pub inserted: u64,
    /// Rows that replaced others.
    pub updated: u64,
    /// Rows that weren't needed: their key was there, or came once more in the file; or a trigger left them out.
    pub skipped: u64,
    /// Rows that were refused.
    pub rejected: u64,
}

impl Imported {
    fn count(&mut self, merged: Merged) {
        self.inserted = self.inserted.saturating_add(merged.inserted);
        self.updated = self.updated.saturating_add(merged.updated);
    }
}

impl Work for Import {
    const KIND: &'static str = "import";
    const REPEATABLE: bool = true;
    const FENCED: bool = true;
    type Output = Imported;

    fn check(&self) -> Result<(), Vec<ArgError>> {
        let mut errors = Vec::new();
        let mut wrong = |pointer: &str, detail: String| errors.push(ArgError::new(pointer, detail));
        if self.table.trim().is_empty() {
            wrong("/table", "expected the name of a table".to_owned());
        }
        for (pointer, names) in [("/columns", &self.columns), ("/conflict_columns", &self.conflict_columns)] {
            let Some(names) = names else { continue };
            if names.is_empty() || names.len() > MAX_COLUMNS || names.iter().any(String::is_empty) {
                wrong(pointer, format!("expected 1 to {MAX_COLUMNS} names of columns"));
            } else if let Some(n) =
                (1..names.len()).find(|n| names.iter().take(*n).any(|name| Some(name) == names.get(*n)))
            {
                wrong(&format!("{pointer}/{n}"), "expected each column once".to_owned());
            }
        }
        if self.conflict_columns.is_some() && self.on_conflict == OnConflict::Error {
            wrong("/conflict_columns", "expected on_conflict: skip or update beside it".to_owned());
        }
        if self.reject_limit > MAX_REJECT_LIMIT {
            wrong("/reject_limit", format!("expected 0 to {MAX_REJECT_LIMIT}"));
        }
        let csv_only = [
            ("/null", self.null.is_some()),
            ("/header", self.header.is_some()),
            ("/delimiter", self.delimiter.is_some()),
        ];
        for (pointer, _) in csv_only.iter().filter(|(_, given)| *given && self.format == ImportFormat::Ndjson) {
            wrong(pointer, "expected it with the format csv only".to_owned());
        }
        let delimiter = self.delimiter.as_deref().unwrap_or(",");
        // A line that is `\.` has to be one value, and that one.
        if delimiter.len() != 1 || delimiter.contains(['"', '\n', '\r', '\0', '.', '\\']) {
            let expected = "expected one character of ASCII that is no quote, line end, dot or backslash";
            wrong("/delimiter", expected.to_owned());
        }
        let unfit = |null: &str| null.contains(['"', '\n', '\r', '\0']) || null.contains(delimiter) || null == "\\.";
        if self.null.as_deref().is_some_and(unfit) {
            wrong("/null", "expected a text without quotes, line ends and delimiters, and not \\.".to_owned());
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    fn upload(&self) -> Option<UploadArg> {
        Some(UploadArg { pointer: "/upload", id: self.upload })
    }

    fn run(&self, ctx: &mut WorkContext<'_>) -> Result<Imported, WorkError> {
        let upload = ctx.upload(self.upload)?;
        self.check_format(&upload)?;
        let mut work = ctx.session()?;
        let (session, _, close) = work.split();
        match self.up_to_commit(session, ctx, &upload) {
            Ok(imported) => {
                let affected = imported.inserted.saturating_add(imported.updated);
                ctx.count(|statistics| statistics.rows_affected = i64::try_from(affected).unwrap_or(i64::MAX));
                exactly_once::commit(ctx, session, &imported).map(|()| imported)
            }
            Err(error) => {
                // One that is still in the middle of a COPY is of no further use.
                *close = session.command("ROLLBACK").is_err();
                Err(error)
            }
        }
    }
}

impl Import {
    fn check_format(&self, upload: &Upload) -> Result<(), WorkError> {
        let expected = match self.format {
            ImportFormat::Csv => ContentType::Csv,
            ImportFormat::Ndjson => ContentType::Ndjson,
        };
        if upload.content_type == expected {
            return Ok(());
        }
        let message = format!("the upload was sent as {}, and format says otherwise", upload.content_type.as_str());
        Err(WorkError::Fail(JobError::new(ErrorCode::FormatMismatch, message)))
    }

    /// Everything but the COMMIT.
    fn up_to_commit(
        &self,
        session: &mut Session,
        ctx: &WorkContext<'_>,
        upload: &Upload,
    ) -> Result<Imported, WorkError> {
        session.execute_batch("BEGIN")?;
        let table = Table::find(session, &self.table)?;
        let mut records = self.records(ctx, upload, "copying rows")?;
        let Some(columns) = self.columns(ctx, upload, &table, &mut records)? else { return Ok(Imported::default()) };
        let conflict = match self.on_conflict {
            OnConflict::Error => None,
            OnConflict::Skip => Some(Existing::Keep),
            OnConflict::Update => Some(Existing::Replace),
        };
        let keys = self.conflict_columns.as_deref();
        let conflict = conflict.map(|existing| table.conflict(session, keys, &columns, existing)).transpose()?;
        if let Some(conflict) = &conflict {
            conflict.make_staging(session)?;
        }
        let staged = conflict.is_some();
        let target = if staged { Conflict::STAGING } else { &table.name };
        let copied = if staged { Conflict::STAGING.trim_start_matches("pg_temp.") } else { &table.bare_name };
        let mut sink = Sink {
            copy: self.copy(target, &columns),
            copied: copied.to_owned(),
            may_split: staged || table.may_split,
            conflict,
            session,
        };
        let form = self.form(&table, &columns);
        let mut source = Source { ctx, records, form, total: upload.bytes };
        let mut imported = match self.reject_limit {
            0 => sink.load_all(&mut source)?,
            limit => sink.load_most(&mut source, limit)?,
        };
        let stored = imported.inserted.saturating_add(imported.updated).saturating_add(imported.rejected);
        imported.skipped = imported.rows_read.saturating_sub(stored);
        load::report(ctx, "committing", upload.bytes, upload.bytes);
        ctx.check()?;
        Ok(imported)
    }

    /// The file's records from the first one on; progress tells how much of it is read, and what for.
    fn records<'c>(&self, ctx: &'c WorkContext<'_>, upload: &Upload, phase: &'c str) -> Result<Records<'c>, WorkError> {
        let decoded = Decoded::new(ctx.read_upload(upload)?, upload.content_encoding)?;
        let total = upload.bytes;
        Ok(Records::new(decoded, self.format == ImportFormat::Csv, move |done| {
            load::report(ctx, phase, done, total);
            ctx.check()
        }))
    }

    /// The columns that rows fill, in the order of the file. `None` when there is nothing to be imported.
    fn columns(
        &self,
        ctx: &WorkContext<'_>,
        upload: &Upload,
        table: &Table,
        records: &mut Records<'_>,
    ) -> Result<Option<Vec<String>>, WorkError> {
        let header = if self.format == ImportFormat::Csv && self.header.unwrap_or(true) {
            let Some(record) = records.next()? else {
                let error =
                    JobError::new(ErrorCode::NoHeader, "the file is empty: not even a line with the names of columns");
                return Err(WorkError::Fail(error.with_hint("set header to false for a file without one")));
            };
            // Names that are given count, and the header's aren't read.
            match self.columns {
                Some(_) => None,
                None => Some(self.header(records.bytes(record))?),
            }
        } else {
            None
        };
        let columns = match (&self.columns, header, self.format) {
            (Some(columns), _, _) => {
                table.check(columns, "columns")?;
                columns.clone()
            }
            (None, Some(header), _) => {
                table.check(&header, "the header")?;
                header
            }
            (None, None, ImportFormat::Csv) => table.writable().map(|column| column.name.clone()).collect(),
            (None, None, ImportFormat::Ndjson) => match self.keys(ctx, upload, table)? {
                Some(columns) => columns,
                None => return Ok(None),
            },
        };
        Ok(Some(columns))
    }

    fn header(&self, record: &[u8]) -> Result<Vec<String>, WorkError> {
        csv::fields(record, self.delimiter_byte(), MAX_COLUMNS).ok_or_else(|| {
            let message = format!("the header has more than {MAX_COLUMNS} names, which no table has columns for");
            WorkError::Fail(JobError::new(ErrorCode::TooManyColumns, message))
        })
    }

    /// The columns that a key of any row names: a column that none names is left to its default. The file is read for
    /// this until all columns were seen: to its end where a column, such as a serial one, has no key anywhere.
    fn keys(&self, ctx: &WorkContext<'_>, upload: &Upload, table: &Table) -> Result<Option<Vec<String>>, WorkError> {
        let mut records = self.records(ctx, upload, "looking for keys")?;
        let writable: Vec<&str> = table.writable().map(|column| column.name.as_str()).collect();
        let Some(seen) = ndjson::keys(&mut records, &writable)? else { return Ok(None) };
        if seen.is_empty() {
            let error =
                JobError::new(ErrorCode::UnknownColumns, format!("no key of any row is a column of {}", table.name));
            return Err(WorkError::Fail(error.with_hint(format!("it has: {}", writable.join(", ")))));
        }
        Ok(Some(writable.into_iter().filter(|name| seen.contains(*name)).map(str::to_owned).collect()))
    }

    fn delimiter_byte(&self) -> u8 {
        self.delimiter.as_ref().and_then(|delimiter| delimiter.bytes().next()).unwrap_or(b',')
    }

    fn copy(&self, target: &str, columns: &[String]) -> String {
        let columns = identifiers(columns);
        let options = match self.format {
            ImportFormat::Csv => format!(
                "FORMAT csv, HEADER true, DELIMITER {}, NULL {}",
                literal(self.delimiter.as_deref().unwrap_or(",")),
                literal(self.null.as_deref().unwrap_or_default())
            ),
            ImportFormat::Ndjson => "FORMAT text".to_owned(),
        };
        format!("COPY {target} ({columns}) FROM STDIN WITH ({options}, ENCODING 'UTF8')")
    }

    fn form(&self, table: &Table, columns: &[String]) -> Form {
        match self.format {
            ImportFormat::Csv => Form::Csv,
            ImportFormat::Ndjson => {
                let kind = |name: &String| {
                    let column = table.columns.iter().find(|column| column.name == *name);
                    (name.clone(), column.map_or(ParamType::Scalar, |column| column.kind))
                };
                let generated = table.columns.iter().filter(|column| column.generated);
                Form::Ndjson(ndjson::Encoder::new(
                    &table.name,
                    columns.iter().map(kind).collect(),
                    generated.map(|column| column.name.clone()).collect(),
                    self.reject_limit > 0,
                ))
            }
        }
    }
}
