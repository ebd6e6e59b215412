//! CSV as COPY reads it. Records go through as they are: what a value means is the server's to say.

use crate::kinds::WorkError;
use crate::kinds::import::batch::Batch;
use crate::kinds::import::records::Records;

/// Alone on a line it ends a COPY before PostgreSQL 18, and all that follows is silently lost; in quotes it is what it
/// says.
const END_MARK: &[u8] = b"\\.";
/// What is read of a name in a header: no column's is that long.
const MAX_NAME_BYTES: usize = 1024;

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

/// The fields of a header, each at most so long that it can't be a column's name. `None` when there are more than `most`.
pub(super) fn fields(record: &[u8], delimiter: u8, most: usize) -> Option<Vec<String>> {
    let mut fields = Vec::new();
    let mut field = Vec::new();
    let mut in_quotes = false;
    let mut bytes = record.iter().peekable();
    while let Some(byte) = bytes.next() {
        match *byte {
            b'"' if in_quotes && bytes.peek() == Some(&&b'"') => {
                bytes.next();
                push(&mut field, b'"');
            }
            b'"' => in_quotes = !in_quotes,
            byte if byte == delimiter && !in_quotes => {
                fields.push(String::from_utf8_lossy(&std::mem::take(&mut field)).into_owned());
                if fields.len() >= most {
                    return None;
                }
            }
            byte => push(&mut field, byte),
        }
    }
    fields.push(String::from_utf8_lossy(&field).into_owned());
    Some(fields)
}

fn push(field: &mut Vec<u8>, byte: u8) {
    if field.len() < MAX_NAME_BYTES {
        field.push(byte);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_copy_reads_rows() {
        let read = |record: &[u8], delimiter| fields(record, delimiter, 3).unwrap();
        assert_eq!(read(b"a,b", b','), ["a", "b"]);
        assert_eq!(read(b"\"a,b\",\"c\"\"d\",", b','), ["a,b", "c\"d", ""]);
        assert_eq!(read(b"a;\"b\nc\"", b';'), ["a", "b\nc"]);
        assert_eq!(read(b"", b','), [""]);
        assert_eq!(fields(b",,", b',', 3).map(|fields| fields.len()), Some(3));
        assert_eq!(fields(b",,,", b',', 3), None);
        assert_eq!(read(&[b'x'; 5_000], b',')[0].len(), MAX_NAME_BYTES);
    }
}
