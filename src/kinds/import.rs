//! `import`: an upload becomes rows of a table, all of them in one transaction, or none.
//!
//! Names are looked up in the catalog and quoted; values go through COPY and are the server's to judge. Rows that must
//! be compared with those that are there wait in a temporary table. Where rows may be refused they go in blocks, each
//! under a savepoint, and a block that fails is halved down to the row. Memory is bounded whatever the file is.
//!
//! | file | what it has |
//! | --- | --- |
//! | `decode` | the upload's bytes as they were before they were coded |
//! | `sniff` | files that are no text in UTF-8 |
//! | `dialect` | what delimits, quotes and escapes values of CSV |
//! | `records` | lines, or CSV records |
//! | `csv`, `ndjson` | records as rows for COPY |
//! | `members`, `shape` | a JSON object's members; a JSON value as the text that its column's type reads |
//! | `unreadable` | lines that are no JSON object, and what they look like |
//! | `batch` | some rows, and on which lines they stand |
//! | `names` | names that no column has, and what they look like |
//! | `table`, `keys` | the catalog: columns, and unique indexes |
//! | `plan` | straight into the table, or first into a temporary one |
//! | `staging` | the temporary table, and what is done about rows that are there already |
//! | `load` | COPY, blocks, refused rows |
//! | `refusal` | what a server's error says of a row |

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::kinds::planning::look_at_target;
use crate::kinds::reads;
use crate::pq::Session;
use crate::pq::quote::{identifiers, literal};
use crate::queue::{ErrorCode, JobError};
use crate::uploads::{ContentType, Upload};
use crate::work::context::WorkContext;
use crate::work::validation::Validation;
use crate::work::{ArgError, UploadArg, Work, WorkError, exactly_once};

mod batch;
mod csv;
mod decode;
mod dialect;
mod keys;
mod load;
mod members;
mod names;
mod ndjson;
mod plan;
mod records;
mod refusal;
mod shape;
mod sniff;
mod staging;
mod table;
mod unreadable;

pub use decode::MAX_DECODED_BYTES;
pub use load::BLOCK_ROWS;
pub use plan::{AllColumns, ColumnNames, Missing};
pub use records::MAX_ROW_BYTES;

use decode::Decoded;
use dialect::Dialect;
use load::{Form, Sink, Source};
use plan::forced_columns;
use records::Records;
use refusal::Names;
use staging::{Merged, Staging};
use table::Table;

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
    /// What the file is, as its upload was sent: 422 `format_mismatch` otherwise.
    pub format: ImportFormat,
    /// CSV: what stands for NULL, without quotes; nothing by default, and not `\.`.
    pub null: Option<String>,
    /// CSV: the first line has the names of the columns: true by default, and false for an upload that was sent as
    /// `text/csv; header=absent`. Where `columns` is given it is read and dropped.
    pub header: Option<bool>,
    /// CSV: what stands between values: one character of ASCII, no dot and no backslash. Defaults to a comma.
    pub delimiter: Option<String>,
    /// CSV: what stands around values: one character of ASCII, no dot and no backslash, or nothing (`""`) where no value is quoted.
    /// Defaults to a double quote.
    pub quote: Option<String>,
    /// CSV: what stands before a quote within quotes: one character of ASCII. Defaults to the quote: it is doubled.
    pub escape: Option<String>,
    /// CSV: columns in which a value that is what `null` says is NULL within quotes too; `"*"` for all.
    pub force_null: Option<ColumnNames>,
    /// CSV: columns in which a value that is what `null` says is that text and not NULL; `"*"` for all.
    pub force_not_null: Option<ColumnNames>,
    /// NDJSON: what becomes of a column whose key a row lacks: its default (the default), or NULL, for which `columns` has to be
    /// given.
    pub missing: Option<Missing>,
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

impl ImportFormat {
    /// What an upload was sent as that is such a file.
    fn content_types(self) -> &'static [ContentType] {
        match self {
            ImportFormat::Csv => &[ContentType::Csv, ContentType::CsvWithoutHeader],
            ImportFormat::Ndjson => &[ContentType::Ndjson],
        }
    }
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
    const VALIDATES: bool = true;
    type Output = Imported;

    fn check(&self) -> Result<(), Vec<ArgError>> {
        let mut errors = Vec::new();
        let mut wrong = |pointer: &str, detail: String| errors.push(ArgError::new(pointer, detail));
        if self.table.trim().is_empty() {
            wrong("/table", "expected the name of a table".to_owned());
        }
        let lists = [
            ("/columns", self.columns.as_ref()),
            ("/conflict_columns", self.conflict_columns.as_ref()),
            ("/force_null", self.force_null.as_ref().and_then(ColumnNames::named)),
            ("/force_not_null", self.force_not_null.as_ref().and_then(ColumnNames::named)),
        ];
        for (pointer, names) in lists {
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
            ("/force_null", self.force_null.is_some()),
            ("/force_not_null", self.force_not_null.is_some()),
            ("/quote", self.quote.is_some()),
            ("/escape", self.escape.is_some()),
        ];
        for (pointer, _) in csv_only.iter().filter(|(_, given)| *given && self.format == ImportFormat::Ndjson) {
            wrong(pointer, "expected it with the format csv only".to_owned());
        }
        if self.missing.is_some() && self.format == ImportFormat::Csv {
            wrong("/missing", "expected it with the format ndjson only".to_owned());
        }
        if self.missing == Some(Missing::Null) && self.columns.is_none() {
            let expected =
                "expected columns beside null: the keys of some rows are not to decide what is NULL in others";
            wrong("/missing", expected.to_owned());
        }
        for (pointer, expected) in self.unfit_marks() {
            wrong(pointer, expected.to_owned());
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    fn upload(&self) -> Option<UploadArg> {
        Some(UploadArg::new("/upload", self.upload).reading("/format", self.format.content_types()))
    }

    fn validate(&self, ctx: &WorkContext<'_>) -> Result<Validation, WorkError> {
        look_at_target(ctx, reads::must_write, |_| Ok(()))
    }

    fn run(&self, ctx: &mut WorkContext<'_>) -> Result<Imported, WorkError> {
        let upload = ctx.upload(self.upload)?;
        self.check_format(&upload)?;
        let mut work = ctx.committing_session()?;
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
    /// What can't be among the marks of a CSV file: the argument, and what was expected.
    fn unfit_marks(&self) -> Vec<(&'static str, &'static str)> {
        let mut unfit = Vec::new();
        let delimiter = self.delimiter.as_deref().unwrap_or(",");
        let quote = self.quote.as_deref().unwrap_or("\"");
        let is_mark = |text: &str| text.len() == 1 && !text.contains(['\n', '\r', '\0']);
        // A line that is `\.` has to be one value, and that one.
        let is_free = |text: &str| is_mark(text) && !text.contains(['.', '\\']);
        if !is_free(delimiter) || delimiter == quote {
            unfit.push(("/delimiter", "expected one character of ASCII that is no quote, line end, dot or backslash"));
        }
        if !quote.is_empty() && !is_free(quote) {
            let expected = "expected nothing, or one character of ASCII that is no line end, dot or backslash";
            unfit.push(("/quote", expected));
        }
        match &self.escape {
            Some(escape) if !is_mark(escape) => {
                unfit.push(("/escape", "expected one character of ASCII that is no line end"));
            }
            Some(_) if quote.is_empty() => unfit.push(("/escape", "expected a quote beside it")),
            _ => {}
        }
        let null = self.null.as_deref().unwrap_or_default();
        let holds = |mark: &str| !mark.is_empty() && null.contains(mark);
        if null.contains(['\n', '\r', '\0']) || holds(delimiter) || holds(quote) || null == "\\." {
            unfit.push(("/null", "expected a text without quotes, line ends and delimiters, and not \\."));
        } else if unfit.is_empty() && self.dialect().is_none() {
            unfit.push(("/null", "expected a shorter text, where nothing is quoted"));
        }
        unfit
    }

    /// The marks of a CSV file. `None` when there can't be any.
    fn dialect(&self) -> Option<Dialect> {
        let byte = |text: &Option<String>| text.as_ref().and_then(|text| text.bytes().next());
        let quote = if self.quote.is_some() { byte(&self.quote) } else { Some(b'"') };
        let null = self.null.as_deref().unwrap_or_default();
        Dialect::new(byte(&self.delimiter).unwrap_or(b','), quote, byte(&self.escape), null)
    }

    /// The marks of the file, where it is CSV.
    fn csv(&self) -> Result<Option<Dialect>, WorkError> {
        if self.format == ImportFormat::Ndjson {
            return Ok(None);
        }
        let unfit =
            || WorkError::Fail(JobError::new(ErrorCode::InvalidArgs, "null leaves no byte that could be a quote"));
        self.dialect().map(Some).ok_or_else(unfit)
    }

    fn has_header(&self, upload: &Upload) -> bool {
        self.header.unwrap_or(upload.content_type != ContentType::CsvWithoutHeader)
    }

    fn check_format(&self, upload: &Upload) -> Result<(), WorkError> {
        if self.format.content_types().contains(&upload.content_type) {
            return Ok(());
        }
        let message = format!("the upload was sent as {}, and format says otherwise", upload.content_type.as_str());
        let hint = "name what the upload is in format, or send the file again with the Content-Type that it has";
        Err(WorkError::Fail(JobError::new(ErrorCode::FormatMismatch, message).with_hint(hint)))
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
        let csv = self.csv()?;
        let mut records = self.records(ctx, upload, "copying rows")?;
        sniff::check(records.head()?, upload.content_encoding)?;
        // From 16 on a COPY can be told to take the default for a value.
        let takes_defaults = session.server_version() >= 160_000;
        let watched = !takes_defaults && self.on_conflict == OnConflict::Error && self.fills_in();
        let Some((columns, some_lack)) = self.columns(ctx, upload, &table, &mut records, watched)? else {
            return Ok(Imported::default());
        };
        let staging = self.staging(session, &table, &columns, some_lack)?;
        if let Some(staging) = &staging {
            staging.make(session)?;
        }
        let form = self.form(&table, &columns, csv, staging.as_ref(), takes_defaults);
        let mut sink = Sink {
            copy: self.copy(&table, &columns, staging.as_ref(), &form)?,
            may_split: staging.is_some() || table.may_split,
            names: Names {
                copied: if staging.is_some() { Staging::BARE.to_owned() } else { table.bare_name.clone() },
                schema: table.schema.clone(),
                table: table.bare_name.clone(),
                columns,
            },
            staging,
            session,
        };
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
        Ok(Records::new(decoded, self.csv()?, move |done| {
            load::report(ctx, phase, done, total);
            ctx.check()
        }))
    }

    /// The columns that rows fill, in the order of the file, and whether some row lacks one that has a default, where that is
    /// `watched`. `None` when there is nothing to be imported.
    fn columns(
        &self,
        ctx: &WorkContext<'_>,
        upload: &Upload,
        table: &Table,
        records: &mut Records<'_>,
        watched: bool,
    ) -> Result<Option<(Vec<String>, bool)>, WorkError> {
        let header = if let Some(dialect) = self.csv()?.filter(|_| self.has_header(upload)) {
            let Some(record) = records.next()? else {
                let error =
                    JobError::new(ErrorCode::NoHeader, "the file is empty: not even a line with the names of columns");
                return Err(WorkError::Fail(error.with_hint("set header to false for a file without one")));
            };
            // Rows that it took with it would be lost.
            if let Some(reject) = csv::refusal(dialect, record, records.bytes(record)) {
                return Err(WorkError::Fail(reject.as_the_end()));
            }
            // Names that are given count, and the header's aren't read.
            match self.columns {
                Some(_) => None,
                None => Some(csv::header(records.bytes(record), dialect)?),
            }
        } else {
            None
        };
        let columns = match (&self.columns, header, self.format) {
            (Some(columns), _, format) => {
                table.check(columns, "columns")?;
                if watched && format == ImportFormat::Ndjson {
                    let keys = self.keys(ctx, upload, table, columns, true)?;
                    return Ok(keys.map(|keys| (columns.clone(), keys.some_lack)));
                }
                columns.clone()
            }
            (None, Some(header), _) => {
                table.check(&header, "the header")?;
                header
            }
            (None, None, ImportFormat::Csv) => table.writable().map(|column| column.name.clone()).collect(),
            (None, None, ImportFormat::Ndjson) => {
                let writable: Vec<String> = table.writable().map(|column| column.name.clone()).collect();
                let Some(keys) = self.keys(ctx, upload, table, &writable, watched)? else { return Ok(None) };
                if keys.seen.is_empty() {
                    let message = format!("no key of any row is a column of {}", table.name);
                    let error = JobError::new(ErrorCode::UnknownColumns, message);
                    return Err(WorkError::Fail(error.with_hint(format!("it has: {}", writable.join(", ")))));
                }
                return Ok(Some((
                    writable.into_iter().filter(|name| keys.seen.contains(name)).collect(),
                    keys.some_lack,
                )));
            }
        };
        Ok(Some((columns, false)))
    }

    /// Which of these columns a key of any row names. The file is read for this until all columns were seen: to its end where
    /// a column, such as a serial one, has no key anywhere. Where it is `watched`, also until some row lacks one that has a default.
    fn keys(
        &self,
        ctx: &WorkContext<'_>,
        upload: &Upload,
        table: &Table,
        columns: &[String],
        watched: bool,
    ) -> Result<Option<ndjson::Keys>, WorkError> {
        let mut records = self.records(ctx, upload, "looking for keys")?;
        let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
        let has_default = |name: &&str| watched && table.column(name).is_some_and(|column| column.default.is_some());
        let with_default: Vec<&str> = columns.iter().copied().filter(has_default).collect();
        // Columns that are named are imported whether a row has them or not.
        ndjson::keys(&mut records, &columns, &with_default, self.columns.is_some())
    }

    fn copy(
        &self,
        table: &Table,
        columns: &[String],
        staging: Option<&Staging>,
        form: &Form,
    ) -> Result<String, WorkError> {
        let target = staging.map_or(table.name.as_str(), |_| Staging::NAME);
        let copied = staging.map_or_else(|| identifiers(columns), Staging::copied);
        let mut options = match form {
            Form::Csv(reader) => {
                let null = literal(self.null.as_deref().unwrap_or_default());
                format!("FORMAT csv, HEADER true, {}, NULL {null}", reader.dialect.options())
            }
            Form::Ndjson(encoder) if encoder.has_defaults() => {
                format!("FORMAT text, DEFAULT {}", literal(ndjson::DEFAULT_MARK))
            }
            Form::Ndjson(_) => "FORMAT text".to_owned(),
        };
        let forced = [
            ("force_null", "FORCE_NULL", &self.force_null),
            ("force_not_null", "FORCE_NOT_NULL", &self.force_not_null),
        ];
        for (argument, option, names) in forced {
            if let Some(names) = names {
                let names = forced_columns(argument, names, columns)?;
                options = format!("{options}, {option} ({})", identifiers(names));
            }
        }
        Ok(format!("COPY {target} ({copied}) FROM STDIN WITH ({options}, ENCODING 'UTF8')"))
    }
}
