//! The records of a file, cut out of its bytes: lines, or CSV records with line ends within quotes.

use crate::kinds::WorkError;
use crate::kinds::import::decode::Decoded;
use crate::queue::JobError;

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
    /// The lines that it takes.
    pub lines: u64,
}

/// Cuts records.
pub(super) struct Records<'c> {
    input: Decoded,
    /// Asked before every read: what is skipped and what is refused can be as long as the file.
    may_go_on: Box<dyn Fn() -> Result<(), WorkError> + 'c>,
    /// Line ends within double quotes belong to the record.
    quotes: bool,
    buffer: Vec<u8>,
    /// Where the next record begins, and how far was looked for its end.
    start: usize,
    looked: usize,
    in_quotes: bool,
    line: u64,
    lines: u64,
    begun: bool,
    ended: bool,
}

impl<'c> Records<'c> {
    pub fn new(input: Decoded, quotes: bool, may_go_on: impl Fn() -> Result<(), WorkError> + 'c) -> Records<'c> {
        Records {
            input,
            may_go_on: Box::new(may_go_on),
            quotes,
            buffer: Vec::new(),
            start: 0,
            looked: 0,
            in_quotes: false,
            line: 1,
            lines: 1,
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
            if let Some(end) = self.look() {
                return Ok(Some(self.take(end, end.saturating_add(1))));
            }
            if self.ended {
                let end = self.buffer.len();
                return Ok((self.start < end).then(|| self.take(end, end)));
            }
            self.fill()?;
        }
    }

    /// Looks for the line end that ends the record.
    fn look(&mut self) -> Option<usize> {
        while let Some(rest) = self.buffer.get(self.looked..).filter(|rest| !rest.is_empty()) {
            let found = if self.quotes { memchr::memchr2(b'\n', b'"', rest) } else { memchr::memchr(b'\n', rest) };
            let Some(found) = found else {
                self.looked = self.buffer.len();
                return None;
            };
            let at = self.looked.saturating_add(found);
            self.looked = at.saturating_add(1);
            match self.buffer.get(at) {
                Some(b'"') => self.in_quotes = !self.in_quotes,
                _ if self.in_quotes => self.lines = self.lines.saturating_add(1),
                _ => return Some(at),
            }
        }
        None
    }

    fn take(&mut self, end: usize, behind: usize) -> Record {
        let carriage_return = end.checked_sub(1).filter(|last| *last >= self.start);
        let end = carriage_return.filter(|last| self.buffer.get(*last) == Some(&b'\r')).unwrap_or(end);
        let record = Record { start: self.start, end, line: self.line, lines: self.lines };
        self.line = self.line.saturating_add(self.lines);
        (self.start, self.looked, self.lines, self.in_quotes) = (behind, behind, 1, false);
        record
    }

    fn fill(&mut self) -> Result<(), WorkError> {
        (self.may_go_on)()?;
        self.buffer.drain(..self.start);
        (self.looked, self.start) = (self.looked.saturating_sub(self.start), 0);
        if self.buffer.len() > MAX_ROW_BYTES {
            let message = format!("line {}: the row that begins there is larger than {MAX_ROW_BYTES} bytes", self.line);
            let error = JobError::new("row_too_large", message);
            return Err(WorkError::Fail(match self.quotes {
                true => error.with_hint("a double quote that isn't closed makes one row of all that follows"),
                false => error,
            }));
        }
        let filled = self.buffer.len();
        self.buffer.resize(filled.saturating_add(CHUNK), 0);
        let read = self.input.read(self.buffer.get_mut(filled..).unwrap_or_default())?;
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
