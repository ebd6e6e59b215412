//! NDJSON as rows of COPY's text format: keys are columns, a number is the literal that it was.

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};

use serde_json::value::RawValue;

use crate::kinds::import::batch::Batch;
use crate::kinds::import::members::members;
use crate::kinds::import::records::{Record, Records};
use crate::kinds::import::shape::{Refusal, Shape};
use crate::kinds::import::unreadable::{self, INVALID_JSON, NOT_UTF8};
use crate::queue::record::log::cut;
use crate::work::WorkError;

/// SQLSTATEs of what isn't even sent.
const DUPLICATE_KEY: &str = "22030";
const UNKNOWN_KEY: &str = "42703";
/// What is told of a key, in bytes.
const MAX_KEY_BYTES: usize = 100;

/// What a COPY from PostgreSQL 16 on takes for a column's default, where it is told to.
pub(super) const DEFAULT_MARK: &str = "\\D";

/// A column that objects have.
pub(super) struct Field {
    pub name: String,
    pub shape: Shape,
    /// What stands there in the row of an object that lacks it: [`DEFAULT_MARK`] instead of NULL.
    pub defaults: bool,
}

/// Writes objects as rows of these columns.
pub(super) struct Encoder {
    places: HashMap<String, usize>,
    fields: Vec<Field>,
    /// Each row ends with a bit for each column that says whether it lacks it, or with NULL when it has all.
    marks: bool,
    /// Keys that name a column which can't be written.
    generated: Vec<String>,
    table: String,
    /// Rows may be refused and left out: what follows one is read, and each row's text kept.
    may_refuse: bool,
    /// A line was a JSON object, whatever else was wrong with it.
    read_one: Cell<bool>,
}

impl Encoder {
    pub fn new(table: &str, fields: Vec<Field>, marks: bool, generated: Vec<String>, may_refuse: bool) -> Encoder {
        let places = fields.iter().enumerate().map(|(n, field)| (field.name.clone(), n)).collect();
        Encoder { places, fields, marks, generated, table: table.to_owned(), may_refuse, read_one: Cell::new(false) }
    }

    /// Its rows may have [`DEFAULT_MARK`]s.
    pub fn has_defaults(&self) -> bool {
        self.fields.iter().any(|field| field.defaults)
    }

    /// No line was a JSON object up to here.
    pub fn read_none(&self) -> bool {
        !self.read_one.get()
    }

    /// The next rows, and what can't be one; none at the end. Where none may be refused, the first that is ends them.
    pub fn fill(
        &self,
        records: &mut Records<'_>,
        batch: &mut Batch,
        most_rows: usize,
        most_bytes: usize,
    ) -> Result<(), WorkError> {
        while !batch.is_full(most_rows, most_bytes) {
            let Some(record) = next(records)? else { break };
            let (bytes, before) = (records.bytes(record), batch.data.len());
            match self.row(bytes, &mut batch.data) {
                Ok(lacking) => {
                    self.read_one.set(true);
                    batch.lacking |= lacking;
                    batch.end_row(bytes.len(), self.may_refuse.then_some(bytes), record.line, 1);
                }
                Err((column, (sqlstate, message))) => {
                    batch.data.truncate(before);
                    self.read_one.set(!self.read_none() || ![INVALID_JSON, NOT_UTF8].contains(&sqlstate));
                    let reject = unreadable::refusal(record, bytes, sqlstate, &message);
                    batch.refuse(bytes.len(), reject.about(column));
                    if !self.may_refuse {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// Writes one row. Says whether it lacks a column, where that is marked.
    ///
    /// # Errors
    /// Why it has no form, and the column that this is about.
    fn row(&self, line: &[u8], out: &mut Vec<u8>) -> Result<bool, (Option<String>, Refusal)> {
        let mut values: Vec<Option<&RawValue>> = vec![None; self.fields.len()];
        let mut refusal = None;
        let read = each_member(line, |key, value| {
            let slot = self.places.get(key).and_then(|place| values.get_mut(*place));
            if let Some(slot @ None) = slot {
                *slot = Some(value);
                return;
            }
            let twice = slot.is_some();
            refusal.get_or_insert_with(|| self.refused_key(key, twice));
        });
        read.map_err(|refusal| (None, refusal))?;
        if let Some(refusal) = refusal {
            return Err((None, refusal));
        }
        for (n, (value, field)) in values.iter().zip(&self.fields).enumerate() {
            if n > 0 {
                out.push(b'\t');
            }
            field.write(*value, out).map_err(|refusal| (Some(field.name.clone()), refusal))?;
        }
        let lacking = self.marks && values.iter().any(Option::is_none);
        if lacking {
            out.push(b'\t');
            out.extend(values.iter().map(|value| if value.is_none() { b'1' } else { b'0' }));
        } else if self.marks {
            out.extend_from_slice(b"\t\\N");
        }
        out.push(b'\n');
        Ok(lacking)
    }

    fn refused_key(&self, key: &str, twice: bool) -> Refusal {
        let shown = cut(key, MAX_KEY_BYTES);
        if twice {
            (DUPLICATE_KEY, format!("the key {shown:?} stands twice"))
        } else if self.generated.iter().any(|name| name == key) {
            (UNKNOWN_KEY, format!("{shown:?} is generated by {} itself", self.table))
        } else {
            (UNKNOWN_KEY, format!("{} has no column {shown:?} among those that are imported", self.table))
        }
    }
}

impl Field {
    /// A value as COPY's text format has it.
    fn write(&self, value: Option<&RawValue>, out: &mut Vec<u8>) -> Result<(), Refusal> {
        match value {
            None if self.defaults => out.extend_from_slice(DEFAULT_MARK.as_bytes()),
            None => out.extend_from_slice(b"\\N"),
            Some(value) => match self.shape.text(value)? {
                None => out.extend_from_slice(b"\\N"),
                Some(text) => escape(out, &text),
            },
        }
        Ok(())
    }
}

/// The keys of a file.
pub(super) struct Keys {
    /// Those of any row that name a column.
    pub seen: BTreeSet<String>,
    /// Some row lacks one of the columns that were watched.
    pub some_lack: bool,
}

/// The keys of all rows, as far as they name one of `columns`; the file is read until all of those were seen, and until it is
/// known whether some row lacks one of those that are `watched`: one that others have, or with `lacks_all` any.
/// `None` when there is no row.
///
/// # Errors
/// What is wrong with the first line, when no line can be read.
pub(super) fn keys(
    records: &mut Records<'_>,
    columns: &[&str],
    watched: &[&str],
    lacks_all: bool,
) -> Result<Option<Keys>, WorkError> {
    let places: HashMap<&str, usize> = columns.iter().enumerate().map(|(n, name)| (*name, n)).collect();
    let mut keys = Keys { seen: BTreeSet::new(), some_lack: false };
    // How many rows have each column, of all that can be read.
    let mut counts = vec![0_u64; columns.len()];
    let (mut rows, mut unreadable) = (0_u64, None);
    while keys.seen.len() < columns.len() || !(watched.is_empty() || keys.some_lack) {
        let Some(record) = next(records)? else { break };
        let bytes = records.bytes(record);
        let mut here = vec![false; columns.len()];
        let read = each_member(bytes, |key, _| {
            if let Some(has) = places.get(key).and_then(|place| here.get_mut(*place)) {
                *has = true;
            }
        });
        if let Err((sqlstate, message)) = read {
            // What is wrong with a line among others is said when its row is written.
            if rows == 0 {
                unreadable.get_or_insert_with(|| unreadable::refusal(record, bytes, sqlstate, &message));
            }
            continue;
        }
        rows = rows.saturating_add(1);
        for ((name, count), _) in columns.iter().zip(&mut counts).zip(here).filter(|(_, has)| *has) {
            if *count == 0 {
                keys.seen.insert((*name).to_owned());
            }
            *count = count.saturating_add(1);
        }
        let counts = watched.iter().filter_map(|name| counts.get(*places.get(name)?).copied());
        keys.some_lack = counts.into_iter().any(|count| count < rows && (lacks_all || count > 0));
    }
    match unreadable.filter(|_| rows == 0) {
        Some(first) => Err(WorkError::Fail(first.as_the_end())),
        None => Ok((rows > 0).then_some(keys)),
    }
}

/// The next line that isn't blank.
fn next(records: &mut Records<'_>) -> Result<Option<Record>, WorkError> {
    while let Some(record) = records.next()? {
        if !records.bytes(record).trim_ascii().is_empty() {
            return Ok(Some(record));
        }
    }
    Ok(None)
}

fn each_member<'l>(line: &'l [u8], each: impl FnMut(&str, &'l RawValue)) -> Result<(), Refusal> {
    let invalid = |detail: String| (INVALID_JSON, format!("the line is no JSON object: {detail}"));
    let text = std::str::from_utf8(line).map_err(|error| {
        (NOT_UTF8, format!("the line isn't UTF-8 from its byte {} on", error.valid_up_to().saturating_add(1)))
    })?;
    let begin = text.trim_start_matches([' ', '\t', '\r']);
    if !begin.starts_with('{') {
        // The reader's own message would have all of a text that stands here.
        let column = text.len().saturating_sub(begin.len()).saturating_add(1);
        return Err(invalid(unreadable::instead_of_an_object(text, column)));
    }
    members(text, each).map_err(|error| invalid(unreadable::within_an_object(text, &error)))
}

fn escape(out: &mut Vec<u8>, text: &str) {
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|byte| matches!(byte, b'\\' | b'\n' | b'\r' | b'\t')) {
        let (plain, special) = rest.split_at(at);
        out.extend_from_slice(plain);
        out.extend_from_slice(match special.first() {
            Some(b'\n') => b"\\n",
            Some(b'\r') => b"\\r",
            Some(b'\t') => b"\\t",
            _ => b"\\\\",
        });
        rest = special.get(1..).unwrap_or_default();
    }
    out.extend_from_slice(rest);
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io;

    use super::*;
    use crate::kinds::import::decode::Decoded;

    fn encoder(may_refuse: bool) -> Encoder {
        Encoder::new("t", vec![field("a", Shape::Scalar, false)], false, Vec::new(), may_refuse)
    }

    fn field(name: &str, shape: Shape, defaults: bool) -> Field {
        Field { name: name.to_owned(), shape, defaults }
    }

    #[test]
    fn blank_lines_without_end_can_be_stopped() {
        let reads = Cell::new(0);
        let stop_at_the_tenth = |_| {
            reads.set(reads.get() + 1);
            if reads.get() < 10 { Ok(()) } else { Err(WorkError::Cancelled) }
        };
        for look in [true, false] {
            reads.set(0);
            let mut records = Records::new(Decoded::of(io::repeat(b'\n')), None, stop_at_the_tenth);
            let outcome = if look {
                keys(&mut records, &["a"], &[], false).map(drop)
            } else {
                encoder(true).fill(&mut records, &mut Batch::default(), usize::MAX, usize::MAX)
            };
            assert!(matches!(outcome, Err(WorkError::Cancelled)));
            assert_eq!(reads.get(), 10);
        }
    }

    #[test]
    fn the_first_refused_row_is_the_last_one_where_none_may_be() {
        let file = "{\"a\":1}\n{\"x\":1}\n".repeat(100);
        for (may_refuse, expected) in [(false, (1, 1)), (true, (100, 100))] {
            let file = io::Cursor::new(file.clone());
            let mut records = Records::new(Decoded::of(file), None, |_| Ok(()));
            let mut batch = Batch::default();
            encoder(may_refuse).fill(&mut records, &mut batch, usize::MAX, usize::MAX).unwrap();
            assert_eq!((batch.rows.len(), batch.refused.len()), expected);
        }
    }

    #[test]
    fn a_refusal_has_no_more_than_the_beginning_of_a_key_or_a_text() {
        let long = "k".repeat(1_000_000);
        for line in [format!("{{\"{long}\":1}}"), format!("{{\"{long}\":1,\"{long}\":1}}"), format!("\"{long}\"")] {
            let (_, (_, message)) = row(&line).unwrap_err();
            assert!(message.len() < 500, "{} bytes", message.len());
        }
    }

    fn row(line: &str) -> Result<String, (Option<String>, Refusal)> {
        let array = Shape::Array { element: Box::new(Shape::Scalar), delimiter: ',' };
        let fields = vec![field("a", Shape::Scalar, false), field("b", Shape::Json, false), field("c", array, false)];
        let encoder = Encoder::new("t", fields, false, vec!["g".to_owned()], false);
        let mut out = Vec::new();
        encoder.row(line.as_bytes(), &mut out).map(|_| String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_column_that_a_row_lacks_is_marked_where_that_is_wanted() {
        let fields = |defaults| vec![field("a", Shape::Scalar, false), field("b", Shape::Scalar, defaults)];
        for (marks, defaults, line, expected, lacks) in [
            (false, true, r#"{"a":"\\D"}"#, "\\\\D\t\\D\n", false),
            (false, true, r#"{"b":null}"#, "\\N\t\\N\n", false),
            (true, false, r#"{"b":1}"#, "\\N\t1\t10\n", true),
            (true, false, r#"{"b":null,"a":1}"#, "1\t\\N\t\\N\n", false),
            (true, false, "{}", "\\N\t\\N\t11\n", true),
        ] {
            let encoder = Encoder::new("t", fields(defaults), marks, Vec::new(), false);
            let mut out = Vec::new();
            let lacking = encoder.row(line.as_bytes(), &mut out).unwrap();
            assert_eq!((String::from_utf8(out).unwrap().as_str(), lacking), (expected, lacks), "{line}");
        }
    }

    #[test]
    fn a_file_is_read_until_it_is_known_what_its_rows_lack() {
        let look = |file: &str, watched: &[&str], lacks_all: bool| {
            let mut records = Records::new(Decoded::of(io::Cursor::new(file.to_owned())), None, |_| Ok(()));
            let keys = keys(&mut records, &["a", "b"], watched, lacks_all).unwrap().unwrap();
            (keys.seen.into_iter().collect::<String>(), keys.some_lack, records.next().unwrap().is_some())
        };
        let both = "{\"a\":1,\"b\":2}\n";
        let file = |rest: &str| format!("{both}{both}{rest}");
        assert_eq!(look(&file("{\"a\":1}\n"), &[], false), ("ab".to_owned(), false, true));
        assert_eq!(look(&file("{\"a\":1}\n{}\n"), &["b"], false), ("ab".to_owned(), true, true));
        assert_eq!(look(&file("{\"b\":1}\n"), &["b"], false), ("ab".to_owned(), false, false));
        // A line that can't be read lacks nothing.
        assert_eq!(look(&file("{\"a\":1\n"), &["b"], false), ("ab".to_owned(), false, false));
        assert_eq!(look("{\"b\":1\n{\"a\":1}\n", &[], false), ("a".to_owned(), false, false));
        // A column that no row has is not one that some lack, unless it was named.
        assert_eq!(look("{\"a\":1}\n", &["b"], false), ("a".to_owned(), false, false));
        assert_eq!(look("{\"a\":1}\n", &["b"], true), ("a".to_owned(), true, false));
        assert_eq!(look("{\"a\":1}\n{\"b\":1}\n", &["a"], false), ("ab".to_owned(), true, false));
    }

    #[test]
    fn values_are_what_they_were() {
        for (line, expected) in [
            (
                r#"{"a": 123456789012345678901234567890.10, "b": {"x": 1.0}, "c": [1, null]}"#,
                "123456789012345678901234567890.10\t{\"x\": 1.0}\t{\"1\",NULL}\n",
            ),
            (r#"{"a":"x\ty\\z\n","b":"s"}"#, "x\\ty\\\\z\\n\t\"s\"\t\\N\n"),
            (r#"{"c":null,"a":"\\N"}"#, "\\\\N\t\\N\t\\N\n"),
            (r#"{"a":[1, {"k": 2}]}"#, "[1, {\"k\": 2}]\t\\N\t\\N\n"),
            (r#"{"\u0061":true}"#, "true\t\\N\t\\N\n"),
            ("{}", "\\N\t\\N\t\\N\n"),
        ] {
            assert_eq!(row(line).unwrap(), expected, "{line}");
        }
    }

    #[test]
    fn what_is_no_row_says_why() {
        for (line, sqlstate) in [
            ("{\"a\":1,\"a\":2}", DUPLICATE_KEY),
            ("{\"x\":1}", UNKNOWN_KEY),
            ("{\"g\":1}", UNKNOWN_KEY),
            ("[1]", INVALID_JSON),
            ("{\"a\":1} x", INVALID_JSON),
            ("{\"a\":1", INVALID_JSON),
            ("{\"a\":\"\\u0000\"}", "22P05"),
            ("{\"c\":[{}]}", "22P02"),
        ] {
            let (column, (found, _)) = row(line).unwrap_err();
            assert_eq!(found, sqlstate, "{line}");
            // A value's refusal says whose it is.
            let expected = match sqlstate {
                "22P05" => Some("a"),
                "22P02" => Some("c"),
                _ => None,
            };
            assert_eq!(column.as_deref(), expected, "{line}");
        }
    }
}
