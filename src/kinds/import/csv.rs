//! CSV as COPY reads it. Records go through as they are: what a value means is the server's to say.

use crate::kinds::import::batch::{Batch, Reject};
use crate::kinds::import::dialect::{Dialect, Mark};
use crate::kinds::import::records::{Ending, Record, Records};
use crate::kinds::import::{MAX_COLUMNS, sniff, unreadable};
use crate::queue::{ErrorCode, JobError};
use crate::work::WorkError;

/// What is read of a name in a header: no column's is that long.
const MAX_NAME_BYTES: usize = 1024;
/// The SQLSTATE of what isn't even sent: `bad_copy_file_format`, the server's own for it.
const BAD_FORMAT: &str = "22P04";
const STRAY: &str = "write a quote within a value twice, and quotes around the value; or name another quote in `quote`, or \
                     \"\" where the file quotes nothing";

/// Gives records on to COPY.
pub(super) struct Reader {
    pub dialect: Dialect,
    /// What rows fill, in their order.
    pub columns: Vec<String>,
    /// Rows may be refused and left out: what follows one is read.
    pub may_refuse: bool,
}

impl Reader {
    /// The next rows, each ended by one line feed, and what can't be one; none at the end. Where none may be refused, the first
    /// that is ends them.
    pub fn fill(
        &self,
        records: &mut Records<'_>,
        batch: &mut Batch,
        most_rows: usize,
        most_bytes: usize,
    ) -> Result<(), WorkError> {
        while !batch.is_full(most_rows, most_bytes) {
            let Some(record) = records.next()? else { break };
            let bytes = records.bytes(record);
            if let Some(reject) = refusal(self.dialect, record, bytes) {
                batch.refuse(bytes.len(), reject);
                if !self.may_refuse {
                    break;
                }
                continue;
            }
            self.dialect.append(&mut batch.data, bytes);
            batch.end_row(bytes.len(), None, record.line, record.lines);
            if record.ending == Ending::File {
                batch.last_has_no_line_end();
            }
        }
        Ok(())
    }

    /// The row, which has no line end, may have been refused because the file was cut off within it: it lacks values, or its last
    /// value can't be read. `column` is the one that the error is about, where that is known.
    pub fn may_be_cut(&self, row: &[u8], sqlstate: &str, column: Option<&str>) -> bool {
        let row = row.strip_suffix(b"\n").unwrap_or(row);
        let values = self.dialect.values(row);
        let is_of_the_last = column.is_some() && column == self.columns.last().map(String::as_str);
        values < self.columns.len()
            || (values == self.columns.len() && sqlstate.starts_with("22") && is_of_the_last)
            || (sqlstate == "23502" && row.last() == Some(&self.dialect.delimiter))
    }
}

/// What keeps a record from being read: quotes that make one row of many.
pub(super) fn refusal(dialect: Dialect, record: Record, bytes: &[u8]) -> Option<Reject> {
    let last = record.line.saturating_add(record.spans).saturating_sub(1);
    let refused =
        |message: String| Reject::new(record.line, BAD_FORMAT, &message, bytes).standing_for(record.spans, "lines");
    match record.ending {
        Ending::InQuotes(line) => {
            let message = format!(
                "unterminated CSV quoted field: the quote that opens on line {line} isn't closed up to the end of the file, line \
                 {last}"
            );
            let hint = format!("the file was cut off, or the quote is one of the value: {STRAY}");
            Some(refused(message).of_a_torn_file().with_hint(hint))
        }
        _ if record.spans > 1 && dialect.has_stray_quotes(bytes) => {
            let message = format!("quotes within values make one row of the lines {} to {last}", record.line);
            Some(refused(message).standing_for(record.spans, "lines").with_hint(STRAY))
        }
        _ => None,
    }
}

/// The names that a header has.
pub(super) fn header(record: &[u8], dialect: Dialect) -> Result<Vec<String>, WorkError> {
    if let Err(error) = std::str::from_utf8(record) {
        let at = error.valid_up_to();
        let byte = record.get(at).copied().unwrap_or_default();
        let letter = sniff::as_latin(byte).map(|letter| format!(", {letter} in Latin-1 and Windows-1252"));
        let place = at.saturating_add(1);
        let message = format!("the header isn't UTF-8: its byte {place} is 0x{byte:02x}{}", letter.unwrap_or_default());
        let error = JobError::new(ErrorCode::FormatMismatch, message);
        return Err(WorkError::Fail(error.with_hint(unreadable::CONVERT)));
    }
    fields(record, dialect, MAX_COLUMNS).ok_or_else(|| {
        let message = format!("the header has more than {MAX_COLUMNS} names, which no table has columns for");
        WorkError::Fail(JobError::new(ErrorCode::TooManyColumns, message))
    })
}

/// The fields of a header, each at most so long that it can't be a column's name. `None` when there are more than `most`.
fn fields(record: &[u8], dialect: Dialect, most: usize) -> Option<Vec<String>> {
    let mut fields = Vec::new();
    let mut field = Vec::new();
    for mark in dialect.marks(record) {
        match mark {
            Mark::Quoted(byte) | Mark::Plain(byte) if field.len() < MAX_NAME_BYTES => field.push(byte),
            Mark::Delimiter => {
                fields.push(String::from_utf8_lossy(&std::mem::take(&mut field)).into_owned());
                if fields.len() >= most {
                    return None;
                }
            }
            _ => {}
        }
    }
    fields.push(String::from_utf8_lossy(&field).into_owned());
    Some(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dialect(delimiter: u8) -> Dialect {
        Dialect::new(delimiter, Some(b'"'), None, "").unwrap()
    }

    #[test]
    fn headers_are_read_as_copy_reads_rows() {
        let read = |record: &[u8], delimiter| fields(record, dialect(delimiter), 3).unwrap();
        assert_eq!(read(b"a,b", b','), ["a", "b"]);
        assert_eq!(read(b"\"a,b\",\"c\"\"d\",", b','), ["a,b", "c\"d", ""]);
        assert_eq!(read(b"a;\"b\nc\"", b';'), ["a", "b\nc"]);
        assert_eq!(read(b"", b','), [""]);
        assert_eq!(fields(b",,", dialect(b','), 3).map(|fields| fields.len()), Some(3));
        assert_eq!(fields(b",,,", dialect(b','), 3), None);
        assert_eq!(read(&[b'x'; 5_000], b',')[0].len(), MAX_NAME_BYTES);
        let escaped = Dialect::new(b',', Some(b'\''), Some(b'\\'), "").unwrap();
        assert_eq!(fields(b"'a\\',\\\\b\\n',\"c\"", escaped, 3).unwrap(), ["a',\\b\\n", "\"c\""]);
        let unquoted = Dialect::new(b'\t', None, None, "").unwrap();
        assert_eq!(fields(b"\"a\t'b", unquoted, 3).unwrap(), ["\"a", "'b"]);
    }

    #[test]
    fn a_row_without_a_line_end_may_be_cut_off_where_its_last_value_is() {
        let columns = ["a", "b"].map(str::to_owned).to_vec();
        let reader = Reader { dialect: dialect(b','), columns, may_refuse: true };
        for (row, sqlstate, column, cut) in [
            ("1\n", "22P04", Some("b"), true),
            ("1\n", "22P04", None, true),
            ("1,2024-0\n", "22007", Some("b"), true),
            ("1,\n", "23502", Some("b"), true),
            ("x,1\n", "22P02", Some("a"), false),
            ("1,x\n", "22P02", None, false),
            ("1,2,3\n", "22P04", None, false),
            ("1,2\n", "23505", None, false),
            ("1,2\n", "23514", Some("b"), false),
            ("1,2\n", "23502", Some("a"), false),
        ] {
            assert_eq!(reader.may_be_cut(row.as_bytes(), sqlstate, column), cut, "{row:?} {sqlstate} {column:?}");
        }
    }
}
