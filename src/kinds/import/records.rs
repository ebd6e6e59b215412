//! The records of a file, cut out of its bytes: lines, or CSV records with line ends within quotes.
//!
//! As for COPY, the first line end says what one is in a CSV file: behind a lone carriage return those end lines too, and
//! elsewhere they don't (COPY then refuses the row that has one). Line feeds, alone or behind a carriage return, always
//! do.

use crate::kinds::import::decode::Decoded;
use crate::kinds::import::dialect::Dialect;
use crate::queue::{ErrorCode, JobError};
use crate::work::WorkError;

/// The largest row: 64 MiB.
pub const MAX_ROW_BYTES: usize = 64 * 1024 * 1024;
/// Bytes read at a time.
const CHUNK: usize = 256 * 1024;
/// What some programs write before the first byte.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// How much of the file [`Records::head`] shows: 4 KiB.
const HEAD_BYTES: usize = 4096;

/// Where a record is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    start: usize,
    end: usize,
    /// The line on which it begins, from 1.
    pub line: u64,
    /// The lines that a COPY counts for it which was told to expect line feeds.
    pub lines: u64,
    /// The lines that it has in the file.
    pub spans: u64,
    pub ending: Ending,
}

/// What a record ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Line,
    /// The end of the file.
    File,
    /// The end of the file, within quotes that open on this line.
    InQuotes(u64),
}

/// What ends lines beside line feeds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Returns {
    /// The first line end isn't known yet.
    Unknown,
    /// Lone carriage returns do.
    End,
    /// Nothing.
    AreData,
}

/// Cuts records.
pub(super) struct Records<'c> {
    input: Decoded,
    /// Told by every read how many bytes of the upload were read, and says whether to go on: what is skipped and what is
    /// refused can be as long as the file.
    may_go_on: Box<dyn Fn(i64) -> Result<(), WorkError> + 'c>,
    /// CSV: line ends within quotes belong to the record.
    csv: Option<Dialect>,
    buffer: Vec<u8>,
    /// Where the next record begins, and how far was looked for its end.
    start: usize,
    looked: usize,
    in_quotes: bool,
    /// The line on which the quotes opened.
    opened: u64,
    /// What is behind the quote that closed last: a quote there is a doubled one, and opens nothing anew.
    behind_closing: Option<usize>,
    returns: Returns,
    line: u64,
    /// Line feeds and lone carriage returns within the record.
    feeds: u64,
    lone_returns: u64,
    begun: bool,
    ended: bool,
}

impl<'c> Records<'c> {
    /// Records of CSV in a dialect, or lines.
    pub fn new(
        input: Decoded,
        csv: Option<Dialect>,
        may_go_on: impl Fn(i64) -> Result<(), WorkError> + 'c,
    ) -> Records<'c> {
        Records {
            input,
            may_go_on: Box::new(may_go_on),
            csv,
            buffer: Vec::new(),
            start: 0,
            looked: 0,
            in_quotes: false,
            opened: 0,
            behind_closing: None,
            returns: if csv.is_some() { Returns::Unknown } else { Returns::AreData },
            line: 1,
            feeds: 0,
            lone_returns: 0,
            begun: false,
            ended: false,
        }
    }

    /// Bytes of the upload that were read.
    pub fn position(&self) -> i64 {
        self.input.position()
    }

    /// The record's bytes, without its line end.
    pub fn bytes(&self, record: Record) -> &[u8] {
        self.buffer.get(record.start..record.end).unwrap_or_default()
    }

    /// The first bytes of the file, behind a byte order mark; to be asked for before the first record is.
    pub fn head(&mut self) -> Result<&[u8], WorkError> {
        while self.buffer.len() < HEAD_BYTES && !self.ended {
            self.fill()?;
        }
        Ok(self.buffer.get(..HEAD_BYTES).unwrap_or(&self.buffer))
    }

    /// The next record, which has to be looked at before the one after it is asked for. `None` at the end.
    pub fn next(&mut self) -> Result<Option<Record>, WorkError> {
        loop {
            if let Some((end, behind)) = self.look() {
                return Ok(Some(self.take(end, behind, Ending::Line)));
            }
            if self.ended {
                let end = self.buffer.len();
                let ending = if self.in_quotes { Ending::InQuotes(self.opened) } else { Ending::File };
                return Ok((self.start < end).then(|| self.take(end, end, ending)));
            }
            self.fill()?;
        }
    }

    /// Looks for the line end that ends the record: where it begins, and what is behind it.
    fn look(&mut self) -> Option<(usize, usize)> {
        while let Some(rest) = self.buffer.get(self.looked..).filter(|rest| !rest.is_empty()) {
            let Some(found) = self.find(rest) else {
                self.looked = self.buffer.len();
                return None;
            };
            let at = self.looked.saturating_add(found);
            let behind = at.saturating_add(1);
            let (byte, next) = (self.buffer.get(at).copied().unwrap_or_default(), self.buffer.get(behind).copied());
            let escapes = self.in_quotes && self.escapes(byte);
            // What it is shows with what is read next.
            if (byte == b'\r' || escapes) && next.is_none() && !self.ended {
                self.looked = at;
                return None;
            }
            self.looked = behind;
            match byte {
                b'\n' if self.in_quotes => self.feeds = self.feeds.saturating_add(1),
                b'\n' => {
                    if self.returns == Returns::Unknown {
                        self.returns = Returns::AreData;
                    }
                    return Some((at, behind));
                }
                b'\r' if next == Some(b'\n') => {}
                b'\r' if self.in_quotes => self.lone_returns = self.lone_returns.saturating_add(1),
                b'\r' => {
                    self.returns = Returns::End;
                    return Some((at, behind));
                }
                _ if escapes && next.is_some_and(|next| self.escapes(next) || self.quotes(next)) => {
                    self.looked = behind.saturating_add(1);
                }
                byte if self.quotes(byte) => {
                    self.in_quotes = !self.in_quotes;
                    if !self.in_quotes {
                        self.behind_closing = Some(behind);
                    } else if self.behind_closing != Some(at) {
                        self.opened = self.line.saturating_add(self.feeds).saturating_add(self.returned());
                    }
                }
                // An escape of nothing.
                _ => {}
            }
        }
        None
    }

    /// The next byte that may be more than one of a value.
    fn find(&self, rest: &[u8]) -> Option<usize> {
        let Some(csv) = self.csv else { return memchr::memchr(b'\n', rest) };
        match (csv.quote, self.returns == Returns::AreData) {
            (None, true) => memchr::memchr(b'\n', rest),
            (None, false) => memchr::memchr2(b'\n', b'\r', rest),
            (Some(quote), true) if quote == csv.escape => memchr::memchr2(b'\n', quote, rest),
            (Some(quote), true) => memchr::memchr3(b'\n', quote, csv.escape, rest),
            (Some(quote), false) if quote == csv.escape => memchr::memchr3(b'\n', quote, b'\r', rest),
            (Some(quote), false) => rest.iter().position(|byte| [b'\n', b'\r', quote, csv.escape].contains(byte)),
        }
    }

    fn quotes(&self, byte: u8) -> bool {
        self.csv.is_some_and(|csv| csv.quote == Some(byte))
    }

    /// It is an escape that isn't the quote itself: doubled quotes close and open.
    fn escapes(&self, byte: u8) -> bool {
        self.csv.is_some_and(|csv| csv.escape == byte && csv.quote.is_some_and(|quote| quote != byte))
    }

    /// Carriage returns within the record that end lines. Within the first record's quotes they are counted before it is known
    /// whether they do.
    fn returned(&self) -> u64 {
        if self.returns == Returns::End { self.lone_returns } else { 0 }
    }

    fn take(&mut self, end: usize, behind: usize, ending: Ending) -> Record {
        let last = end.checked_sub(1).filter(|last| *last >= self.start);
        let is_last = |byte: u8| last.is_some_and(|last| self.buffer.get(last) == Some(&byte));
        let lines = self.feeds.saturating_add(1);
        let mut spans = lines.saturating_add(self.lone_returns);
        let mut end = end;
        match ending {
            Ending::InQuotes(_) if is_last(b'\n') || is_last(b'\r') => spans = spans.saturating_sub(1),
            Ending::InQuotes(_) => {}
            Ending::Line | Ending::File if is_last(b'\r') => end = end.saturating_sub(1),
            Ending::Line | Ending::File => {}
        }
        let record = Record { start: self.start, end, line: self.line, lines, spans, ending };
        self.line = self.line.saturating_add(lines).saturating_add(self.returned());
        (self.start, self.looked, self.in_quotes) = (behind, behind, false);
        (self.feeds, self.lone_returns, self.behind_closing) = (0, 0, None);
        record
    }

    fn fill(&mut self) -> Result<(), WorkError> {
        self.buffer.drain(..self.start);
        self.behind_closing = self.behind_closing.and_then(|behind| behind.checked_sub(self.start));
        (self.looked, self.start) = (self.looked.saturating_sub(self.start), 0);
        if self.buffer.len() > MAX_ROW_BYTES {
            let message = format!("line {}: the row that begins there is larger than {MAX_ROW_BYTES} bytes", self.line);
            let error = JobError::new(ErrorCode::RowTooLarge, message);
            return Err(WorkError::Fail(match self.in_quotes {
                true => error.with_hint(format!(
                    "a quote opens on line {}: one that isn't closed makes one row of all that follows",
                    self.opened
                )),
                false => error,
            }));
        }
        let filled = self.buffer.len();
        self.buffer.resize(filled.saturating_add(CHUNK), 0);
        let read = self.input.read(self.buffer.get_mut(filled..).unwrap_or_default())?;
        (self.may_go_on)(self.position())?;
        self.buffer.truncate(filled.saturating_add(read));
        self.ended = read == 0;
        if !self.begun && (self.buffer.len() >= BYTE_ORDER_MARK.len() || self.ended) {
            self.begun = true;
            if self.buffer.starts_with(BYTE_ORDER_MARK) {
                self.buffer.drain(..BYTE_ORDER_MARK.len());
                self.looked = 0;
            }
        }
        // Nothing is cut before it is known whether there is a mark.
        if !self.begun { self.fill() } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    /// Gives one byte at a time, so that a line end is cut wherever it can be.
    struct Drip(std::io::Cursor<Vec<u8>>);

    impl Read for Drip {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            self.0.read(&mut buffer[..1])
        }
    }

    fn usual() -> Option<Dialect> {
        Dialect::new(b',', Some(b'"'), None, "")
    }

    fn read(file: &[u8], csv: Option<Dialect>) -> Records<'static> {
        Records::new(Decoded::of(Drip(std::io::Cursor::new(file.to_vec()))), csv, |_| Ok(()))
    }

    fn records(file: &[u8], csv: Option<Dialect>) -> Vec<(String, u64, u64)> {
        let mut records = read(file, csv);
        let mut found = Vec::new();
        while let Some(record) = records.next().unwrap() {
            let text = String::from_utf8(records.bytes(record).to_vec()).unwrap();
            found.push((text, record.line, record.lines));
        }
        found
    }

    #[test]
    fn the_first_line_end_says_what_a_carriage_return_is() {
        for (file, expected) in [
            ("a\nb\r\nc", &[("a", 1, 1), ("b", 2, 1), ("c", 3, 1)][..]),
            ("a\rb\rc", &[("a", 1, 1), ("b", 2, 1), ("c", 3, 1)]),
            ("a\rb\nc\r\nd\r", &[("a", 1, 1), ("b", 2, 1), ("c", 3, 1), ("d", 4, 1)]),
            // COPY refuses the second row.
            ("a\nb\rc\n", &[("a", 1, 1), ("b\rc", 2, 1)]),
            ("a\r\nb\rc\n", &[("a", 1, 1), ("b\rc", 2, 1)]),
            ("\r\r", &[("", 1, 1), ("", 2, 1)]),
            // Within quotes it is a value's, and one of the file's lines all the same.
            ("\"a\rb\"\r\"c\r\nd\"\re", &[("\"a\rb\"", 1, 1), ("\"c\r\nd\"", 3, 2), ("e", 5, 1)]),
            ("\"a\rb\"\n\"c\rd\"\ne", &[("\"a\rb\"", 1, 1), ("\"c\rd\"", 2, 1), ("e", 3, 1)]),
        ] {
            let expected: Vec<_> =
                expected.iter().map(|(text, line, lines)| ((*text).to_owned(), *line, *lines)).collect();
            assert_eq!(records(file.as_bytes(), usual()), expected, "{file:?}");
        }
        // To JSON it is a blank.
        assert_eq!(records(b"{}\r{}\r\n", None), [("{}\r{}".to_owned(), 1, 1)]);
    }

    #[test]
    fn an_escape_hides_a_quote_within_quotes_alone() {
        let escaped = Dialect::new(b',', Some(b'\''), Some(b'\\'), "");
        for (file, expected) in [
            ("'a\\'\n'\nb", &["'a\\'\n'", "b"][..]),
            ("'a\\\\'\nb", &["'a\\\\'", "b"]),
            ("a\\'\n'\nb", &["a\\'\n'", "b"]),
            ("'a\\\nb'\nc", &["'a\\\nb'", "c"]),
            ("'a'\r'b\\'\r'\rc", &["'a'", "'b\\'\r'", "c"]),
            ("\"a\n'\"\n'", &["\"a", "'\"\n'"]),
        ] {
            let found: Vec<_> = records(file.as_bytes(), escaped).into_iter().map(|(text, _, _)| text).collect();
            assert_eq!(found, expected, "{file:?}");
        }
        let unquoted = Dialect::new(b',', None, None, "");
        assert_eq!(records(b"\"a\n'b\r\n\"", unquoted).len(), 3);
    }

    #[test]
    fn what_a_record_ends_with_is_known() {
        for (file, expected) in [
            ("a\nb\n", &[(1, 1, Ending::Line), (2, 1, Ending::Line)][..]),
            ("a\nb", &[(1, 1, Ending::Line), (2, 1, Ending::File)]),
            ("a\n\"b\nc\",d\ne", &[(1, 1, Ending::Line), (2, 2, Ending::Line), (4, 1, Ending::File)]),
            ("a\nb,\"c\nd\ne", &[(1, 1, Ending::Line), (2, 3, Ending::InQuotes(2))]),
            ("a\n\"b\nc\",\"d\ne\n", &[(1, 1, Ending::Line), (2, 3, Ending::InQuotes(3))]),
            ("a\rb,\"c\rd\r", &[(1, 1, Ending::Line), (2, 2, Ending::InQuotes(2))]),
            // A doubled quote opens nothing.
            ("a\n\"b\nc\"\"\nd", &[(1, 1, Ending::Line), (2, 3, Ending::InQuotes(2))]),
            ("a\n\"b\nc\",\"\"\"d", &[(1, 1, Ending::Line), (2, 2, Ending::InQuotes(3))]),
        ] {
            let mut records = read(file.as_bytes(), usual());
            let mut found = Vec::new();
            while let Some(record) = records.next().unwrap() {
                found.push((record.line, record.spans, record.ending));
            }
            assert_eq!(found, expected, "{file:?}");
        }
    }

    #[test]
    fn the_head_is_behind_a_byte_order_mark_and_stays_to_be_read() {
        let file = [BYTE_ORDER_MARK, b"a,b\n".repeat(2_000).as_slice()].concat();
        let mut records = read(&file, usual());
        assert_eq!(records.head().unwrap(), b"a,b\n".repeat(HEAD_BYTES / 4));
        let first = records.next().unwrap().unwrap();
        assert_eq!((first.line, records.bytes(first)), (1, &b"a,b"[..]));
        assert_eq!(read(b"", None).head().unwrap(), b"");
    }
}
