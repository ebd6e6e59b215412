//! CSV as PostgreSQL's `COPY … TO … CSV HEADER` writes it (src/backend/commands/copyto.c): NULL is nothing, the empty
//! text is `""`, and a value is quoted when it holds a comma, a quote or a line's end, or would be the end mark `\.`
//! alone on its line.

use crate::results::Column;
use crate::results::rows::Value;

/// The header line.
pub(super) fn header(columns: &[Column]) -> Vec<u8> {
    let mut line = Vec::new();
    let names: Vec<Value<'_>> = columns.iter().map(|column| Some(column.name.as_bytes())).collect();
    append(&mut line, &names);
    line
}

/// Appends one line.
pub(super) fn append(out: &mut Vec<u8>, values: &[Value<'_>]) {
    for (n, value) in values.iter().enumerate() {
        if n > 0 {
            out.push(b',');
        }
        let Some(value) = value else { continue };
        if !is_quoted(value, values.len()) {
            out.extend_from_slice(value);
            continue;
        }
        out.push(b'"');
        for &byte in *value {
            if byte == b'"' {
                out.push(b'"');
            }
            out.push(byte);
        }
        out.push(b'"');
    }
    out.push(b'\n');
}

/// The length of one line.
pub(super) fn length(values: &[Value<'_>]) -> usize {
    let separators = values.len().max(1);
    let lengths = values.iter().flatten().map(|value| {
        let quotes = if is_quoted(value, values.len()) { 2 + value.iter().filter(|b| **b == b'"').count() } else { 0 };
        value.len() + quotes
    });
    separators + lengths.sum::<usize>()
}

fn is_quoted(value: &[u8], columns: usize) -> bool {
    value.is_empty()
        || (columns == 1 && value == b"\\.")
        || value.iter().any(|byte| matches!(byte, b',' | b'"' | b'\n' | b'\r'))
}
