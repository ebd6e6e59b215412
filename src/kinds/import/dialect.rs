//! What delimits, quotes and escapes values in a CSV file, and how a record is read by it. As COPY has it
//! (src/backend/commands/copyfromparse.c): a quote may open and close anywhere in a value, and the escape counts within quotes,
//! before a quote or another escape.

use crate::pq::quote::literal;

/// The marks of a CSV file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dialect {
    pub delimiter: u8,
    /// `None`: nothing is quoted, and each of these bytes is one of a value.
    pub quote: Option<u8>,
    /// The same as the quote where quotes are doubled.
    pub escape: u8,
    /// What COPY is told is the quote: ours where there is none, and then what a value has of it is quoted.
    copy_quote: u8,
}

impl Dialect {
    /// `null` is what stands for NULL. `None` when nothing is quoted and every byte that could be the quote of a COPY is in use.
    pub fn new(delimiter: u8, quote: Option<u8>, escape: Option<u8>, null: &str) -> Option<Dialect> {
        let free = |byte: &u8| {
            !matches!(byte, b'\n' | b'\r' | b'.' | b'\\') && *byte != delimiter && !null.as_bytes().contains(byte)
        };
        let copy_quote = quote.or_else(|| (1..0x80).find(free))?;
        Some(Dialect { delimiter, quote, escape: escape.filter(|_| quote.is_some()).unwrap_or(copy_quote), copy_quote })
    }

    /// The options of the COPY that [`Dialect::append`] writes for.
    pub fn options(&self) -> String {
        let text = |byte: u8| literal(&char::from(byte).to_string());
        let (delimiter, quote, escape) = (text(self.delimiter), text(self.copy_quote), text(self.escape));
        format!("DELIMITER {delimiter}, QUOTE {quote}, ESCAPE {escape}")
    }

    /// Appends a record as COPY is to read it, and a line feed.
    pub fn append(&self, out: &mut Vec<u8>, record: &[u8]) {
        if record == END_MARK {
            // Behind quotes, though there is nothing in them, it is what it says.
            out.extend([self.copy_quote; 2]);
            out.extend_from_slice(END_MARK);
        } else if self.quote.is_some() {
            out.extend_from_slice(record);
        } else {
            for part in record.split_inclusive(|byte| *byte == self.copy_quote) {
                out.extend_from_slice(part);
                if part.last() == Some(&self.copy_quote) {
                    // A quote in quotes.
                    out.extend([self.copy_quote; 3]);
                }
            }
        }
        out.push(b'\n');
    }

    /// The record byte by byte: what each is.
    pub fn marks<'r>(&self, record: &'r [u8]) -> Marks<'r> {
        Marks { record, at: 0, dialect: *self, in_quotes: false }
    }

    /// How many values it has.
    pub fn values(&self, record: &[u8]) -> usize {
        self.marks(record).filter(|mark| *mark == Mark::Delimiter).count().saturating_add(1)
    }

    /// A line end is in quotes that aren't around a value as a whole, but for blanks. No program that writes CSV does so: these quotes
    /// belong to two values of two rows, which they make one row together with all that is between them.
    pub fn has_stray_quotes(&self, record: &[u8]) -> bool {
        // A value's beginning, but for blanks; quotes around all of it; that have a line end; that were closed, and just now.
        let (mut begins, mut whole, mut spans, mut closed, mut just) = (true, false, false, false, false);
        for mark in self.marks(record) {
            match mark {
                Mark::Delimiter => (begins, closed) = (true, false),
                // As in a file that doubles its quotes, read with another escape.
                Mark::Opens if just => {}
                Mark::Opens if closed && spans => return true,
                Mark::Opens => (whole, spans, begins) = (begins, false, false),
                Mark::Quoted(byte) => spans = spans || matches!(byte, b'\n' | b'\r'),
                Mark::Closes if spans && !whole => return true,
                Mark::Closes => closed = true,
                Mark::Plain(b' ' | b'\t') => {}
                Mark::Plain(_) if closed && spans => return true,
                Mark::Plain(_) => begins = false,
            }
            just = mark == Mark::Closes;
        }
        false
    }
}

/// Alone on a line it ends a COPY before PostgreSQL 18, and all that follows is silently lost.
const END_MARK: &[u8] = b"\\.";

/// What a byte of a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    Delimiter,
    Opens,
    Closes,
    /// One of a value, in quotes.
    Quoted(u8),
    /// One of a value.
    Plain(u8),
}

/// See [`Dialect::marks`].
pub(super) struct Marks<'r> {
    record: &'r [u8],
    at: usize,
    dialect: Dialect,
    in_quotes: bool,
}

impl Iterator for Marks<'_> {
    type Item = Mark;

    fn next(&mut self) -> Option<Mark> {
        let byte = *self.record.get(self.at)?;
        self.at = self.at.saturating_add(1);
        let is_quote = |byte: u8| self.dialect.quote == Some(byte);
        Some(match self.in_quotes {
            false if byte == self.dialect.delimiter => Mark::Delimiter,
            false if is_quote(byte) => {
                self.in_quotes = true;
                Mark::Opens
            }
            false => Mark::Plain(byte),
            true => {
                let next = self.record.get(self.at).copied();
                let escaped = next.filter(|next| *next == self.dialect.escape || is_quote(*next));
                if let Some(escaped) = escaped.filter(|_| byte == self.dialect.escape) {
                    self.at = self.at.saturating_add(1);
                    return Some(Mark::Quoted(escaped));
                }
                self.in_quotes = !is_quote(byte);
                if self.in_quotes { Mark::Quoted(byte) } else { Mark::Closes }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dialect(quote: Option<u8>, escape: Option<u8>) -> Dialect {
        Dialect::new(b',', quote, escape, "").unwrap()
    }

    #[test]
    fn quotes_around_a_part_of_a_value_over_lines_are_stray() {
        let usual = dialect(Some(b'"'), None);
        for (record, stray) in [
            ("1,\"a\nb\"", false),
            ("1, \"a\nb\" ,2", false),
            ("\"a\nb\",\"c\"\"\nd\"", false),
            ("1,a\"b\"c", false),
            ("1,5\" x 3\",\"a\n\"", false),
            ("1,\"\"\"\n\"", false),
            ("1,5\" pipe\n2,6\" pipe", true),
            ("1,\"never closed\n2,6\" pipe", true),
            ("1,\"never closed\n2,\"b\"", true),
            ("1,x\"never closed\n2\"", true),
            ("1,\"a\nb\" \"c\"", true),
        ] {
            assert_eq!(usual.has_stray_quotes(record.as_bytes()), stray, "{record:?}");
        }
        // Doubled quotes, read with another escape, are as COPY reads them.
        assert!(!dialect(Some(b'"'), Some(b'\\')).has_stray_quotes(b"1,\"a\nb\"\"c\""));
        assert!(!dialect(None, None).has_stray_quotes(b"1,5\" pipe\n2,6\" pipe"));
    }

    #[test]
    fn where_nothing_is_quoted_copy_is_told_of_a_quote_that_is() {
        let none = Dialect::new(1, None, None, "\u{2}").unwrap();
        assert_eq!(none.options(), "DELIMITER '\u{1}', QUOTE '\u{3}', ESCAPE '\u{3}'");
        let mut out = Vec::new();
        none.append(&mut out, b"a\x03\"b\x01\x03");
        none.append(&mut out, b"\\.");
        assert_eq!(out, b"a\x03\x03\x03\x03\"b\x01\x03\x03\x03\x03\n\x03\x03\\.\n");
        let every: String = (1_u8..0x80).map(char::from).collect();
        assert_eq!(Dialect::new(b',', None, None, &every), None);
        assert_eq!(dialect(Some(b'\''), Some(b'\\')).options(), "DELIMITER ',', QUOTE '''', ESCAPE E'\\\\'");
    }
}
