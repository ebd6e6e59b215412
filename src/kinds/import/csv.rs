//! CSV as COPY reads it. Records go through as they are: what a value means is the server's to say.

use crate::kinds::WorkError;
use crate::kinds::import::batch::Batch;
use crate::kinds::import::records::Records;

/// Alone on a line it ends a COPY before PostgreSQL 18, and all that follows is silently lost; in quotes it is what it
/// says.
const END_MARK: &[u8] = b"\\.";

/// The next rows, each ended by one line feed; none at the end.
pub(super) fn fill(
    records: &mut Records<'_>,
    batch: &mut Batch,
    most_rows: usize,
    most_bytes: usize,
) -> Result<(), WorkError> {
    while !batch.is_full(most_rows, most_bytes) {
        let Some(record) = records.next()? else { break };
        let bytes = records.bytes(record);
        batch.data.extend_from_slice(if bytes == END_MARK { b"\"\\.\"" } else { bytes });
        batch.data.push(b'\n');
        batch.end_row(bytes.len(), None, record.line, record.lines);
    }
    Ok(())
}

/// The fields of a record: of a header.
pub(super) fn fields(record: &[u8], delimiter: u8) -> Vec<String> {
    let mut fields = Vec::new();
    let mut field = Vec::new();
    let mut in_quotes = false;
    let mut bytes = record.iter().peekable();
    while let Some(byte) = bytes.next() {
        match *byte {
            b'"' if in_quotes && bytes.peek() == Some(&&b'"') => {
                bytes.next();
                field.push(b'"');
            }
            b'"' => in_quotes = !in_quotes,
            byte if byte == delimiter && !in_quotes => {
                fields.push(String::from_utf8_lossy(&std::mem::take(&mut field)).into_owned());
            }
            byte => field.push(byte),
        }
    }
    fields.push(String::from_utf8_lossy(&field).into_owned());
    fields
}

#[cfg(test)]
mod tests {
    use super::fields;

    #[test]
    fn headers_are_read_as_copy_reads_rows() {
        assert_eq!(fields(b"a,b", b','), ["a", "b"]);
        assert_eq!(fields(b"\"a,b\",\"c\"\"d\",", b','), ["a,b", "c\"d", ""]);
        assert_eq!(fields(b"a;\"b\nc\"", b';'), ["a", "b\nc"]);
        assert_eq!(fields(b"", b','), [""]);
    }
}
