//! The records of a file, cut out of its bytes: lines, or CSV records with line ends within quotes.
//!
//! As for COPY, the first line end says what one is in a CSV file: behind a lone carriage return those end lines too, and
//! elsewhere they don't (COPY then refuses the row that has one). Line feeds, alone or behind a carriage return, always
//! do.

use crate::kinds::WorkError;
use crate::kinds::import::decode::Decoded;
use crate::queue::{ErrorCode, JobError};

/// The largest row: 64 MiB.
pub const MAX_ROW_BYTES: usize = 64 * 1024 * 1024;
/// Bytes read at a time.
const CHUNK: usize = 256 * 1024;
/// What some programs write before the first byte.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Where a record is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    start: usize,
    end: usize,
    /// The line on which it begins, from 1.
    pub line: u64,
    /// The lines that a COPY counts for it which was told to expect line feeds.
    pub lines: u64,
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
    /// Line ends within double quotes belong to the record.
    quotes: bool,
    buffer: Vec<u8>,
    /// Where the next record begins, and how far was looked for its end.
    start: usize,
    looked: usize,
    in_quotes: bool,
    returns: Returns,
    line: u64,
    /// Line feeds and lone carriage returns within the record.
    feeds: u64,
    lone_returns: u64,
    begun: bool,
    ended: bool,
}

impl<'c> Records<'c> {
    pub fn new(input: Decoded, quotes: bool, may_go_on: impl Fn(i64) -> Result<(), WorkError> + 'c) -> Records<'c> {
        Records {
            input,
            may_go_on: Box::new(may_go_on),
            quotes,
            buffer: Vec::new(),
            start: 0,
            looked: 0,
            in_quotes: false,
            returns: if quotes { Returns::Unknown } else { Returns::AreData },
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

    /// The next record, which has to be looked at before the one after it is asked for. `None` at the end.
    pub fn next(&mut self) -> Result<Option<Record>, WorkError> {
        loop {
            if let Some((end, behind)) = self.look() {
                return Ok(Some(self.take(end, behind)));
            }
            if self.ended {
                let end = self.buffer.len();
                return Ok((self.start < end).then(|| self.take(end, end)));
            }
            self.fill()?;
        }
    }

    /// Looks for the line end that ends the record: where it begins, and what is behind it.
    fn look(&mut self) -> Option<(usize, usize)> {
        while let Some(rest) = self.buffer.get(self.looked..).filter(|rest| !rest.is_empty()) {
            let found = match (self.quotes, self.returns) {
                (false, _) => memchr::memchr(b'\n', rest),
                (true, Returns::AreData) => memchr::memchr2(b'\n', b'"', rest),
                (true, _) => memchr::memchr3(b'\n', b'"', b'\r', rest),
            };
            let Some(found) = found else {
                self.looked = self.buffer.len();
                return None;
            };
            let at = self.looked.saturating_add(found);
            let behind = at.saturating_add(1);
            match (self.buffer.get(at), self.buffer.get(behind)) {
                (Some(b'"'), _) => self.in_quotes = !self.in_quotes,
                // Whether it is alone shows with what is read next.
                (Some(b'\r'), None) if !self.ended => {
                    self.looked = at;
                    return None;
                }
                (Some(b'\r'), Some(b'\n')) => {}
                (Some(b'\r'), _) if self.in_quotes => self.lone_returns = self.lone_returns.saturating_add(1),
                (Some(b'\r'), _) => {
                    self.returns = Returns::End;
                    return Some((at, behind));
                }
                _ if self.in_quotes => self.feeds = self.feeds.saturating_add(1),
                _ => {
                    if self.returns == Returns::Unknown {
                        self.returns = Returns::AreData;
                    }
                    return Some((at, behind));
                }
            }
            self.looked = behind;
        }
        None
    }

    fn take(&mut self, end: usize, behind: usize) -> Record {
        let carriage_return = end.checked_sub(1).filter(|last| *last >= self.start);
        let end = carriage_return.filter(|last| self.buffer.get(*last) == Some(&b'\r')).unwrap_or(end);
        let record = Record { start: self.start, end, line: self.line, lines: self.feeds.saturating_add(1) };
        // Within the first record's quotes they were counted before it was known whether they end lines.
        let returns = if self.returns == Returns::End { self.lone_returns } else { 0 };
        self.line = self.line.saturating_add(record.lines).saturating_add(returns);
        (self.start, self.looked, self.in_quotes) = (behind, behind, false);
        (self.feeds, self.lone_returns) = (0, 0);
        record
    }

    fn fill(&mut self) -> Result<(), WorkError> {
        self.buffer.drain(..self.start);
        (self.looked, self.start) = (self.looked.saturating_sub(self.start), 0);
        if self.buffer.len() > MAX_ROW_BYTES {
            let message = format!("line {}: the row that begins there is larger than {MAX_ROW_BYTES} bytes", self.line);
            let error = JobError::new(ErrorCode::RowTooLarge, message);
            return Err(WorkError::Fail(match self.quotes {
                true => error.with_hint("a double quote that isn't closed makes one row of all that follows"),
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

    fn records(file: &[u8], quotes: bool) -> Vec<(String, u64, u64)> {
        let mut records = Records::new(Decoded::of(Drip(std::io::Cursor::new(file.to_vec()))), quotes, |_| Ok(()));
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
            assert_eq!(records(file.as_bytes(), true), expected, "{file:?}");
        }
        // To JSON it is a blank.
        assert_eq!(records(b"{}\r{}\r\n", false), [("{}\r{}".to_owned(), 1, 1)]);
    }
}
