//! Some rows on their way into COPY, and those that can't be.

use crate::queue::record::log::cut;
use crate::queue::{ErrorCode, JobError};

/// The longest text of a row, and the longest message, that are kept with a refusal, in bytes.
const MAX_TEXT_BYTES: usize = 1024;

/// One row of a [`Batch`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    /// Where it ends in the data.
    pub end: usize,
    /// Where it ends in the originals.
    pub original_end: usize,
    /// The line on which it begins, from 1.
    pub line: u64,
    /// Lines that the server counts for it.
    pub lines: u64,
}

/// A row that isn't stored, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reject {
    pub line: u64,
    pub sqlstate: String,
    /// The column that it is about, where that is known.
    pub column: Option<String>,
    pub message: String,
    pub text: String,
    /// So many rows are lost with it: the lines that it has, as far as can be told.
    pub rows: u64,
    /// What to do.
    pub hint: Option<String>,
    /// What a job ends as that may refuse no row.
    pub code: ErrorCode,
}

impl Reject {
    /// A row that isn't even sent, as the end of a job.
    pub fn as_the_end(&self) -> JobError {
        let mut error = JobError::new(self.code, format!("line {}: {}", self.line, self.message));
        error.sqlstate = Some(self.sqlstate.clone());
        error.detail = Some(self.text.clone());
        error.column.clone_from(&self.column);
        error.hint.clone_from(&self.hint);
        error
    }

    pub fn new(line: u64, sqlstate: &str, message: &str, row: &[u8]) -> Reject {
        let text = String::from_utf8_lossy(head(row)).replace('\0', "\u{fffd}");
        Reject {
            line,
            sqlstate: sqlstate.to_owned(),
            column: None,
            message: cut(message, MAX_TEXT_BYTES),
            text,
            rows: 1,
            hint: None,
            code: ErrorCode::InvalidRow,
        }
    }

    /// The same, of a column.
    pub fn about(self, column: Option<String>) -> Reject {
        Reject { column, ..self }
    }

    /// It has so many lines or objects, and counts as so many rows: nobody knows how many of them one error made one row.
    pub fn standing_for(mut self, rows: u64, of: &str) -> Reject {
        if rows > 1 {
            let addition = format!(" (it has {rows} {of}, and counts as so many rows)");
            self.message = cut(&self.message, MAX_TEXT_BYTES.saturating_sub(addition.len())) + &addition;
            self.rows = rows;
        }
        self
    }

    /// What else was in the file can't be known: the job ends, however many rows may be refused.
    pub fn of_a_torn_file(mut self) -> Reject {
        self.code = ErrorCode::IncompleteFile;
        self
    }

    pub fn with_hint(mut self, hint: impl Into<String>) -> Reject {
        self.hint = Some(hint.into());
        self
    }

    /// However many rows may be refused.
    pub fn ends_the_job(&self) -> bool {
        self.code != ErrorCode::InvalidRow
    }

    /// What it takes in memory, about.
    fn bytes(&self) -> usize {
        let texts = [self.message.len(), self.text.len(), self.column.as_ref().map_or(0, String::len)];
        texts.into_iter().fold(size_of::<Reject>(), usize::saturating_add)
    }
}

fn head(row: &[u8]) -> &[u8] {
    row.get(..MAX_TEXT_BYTES).unwrap_or(row)
}

/// Rows in the form that COPY takes, one after the other.
#[derive(Default)]
pub(super) struct Batch {
    pub data: Vec<u8>,
    pub rows: Vec<Row>,
    /// Some of the rows lack a column, and say so by a mark.
    pub lacking: bool,
    /// The beginnings of the rows as they were, where that is another form and they are kept.
    originals: Vec<u8>,
    /// Rows that have no such form.
    pub refused: Vec<Reject>,
    refused_bytes: usize,
    /// Bytes of the file that its rows took.
    taken: usize,
    /// The row that the end of the file ends, and no line end.
    unended: Option<usize>,
}

impl Batch {
    pub fn clear(&mut self) {
        self.data.clear();
        self.rows.clear();
        self.originals.clear();
        self.refused.clear();
        (self.refused_bytes, self.taken) = (0, 0);
        (self.lacking, self.unended) = (false, None);
    }

    /// Rows that were read, refused ones included.
    pub fn read(&self) -> usize {
        self.rows.len().saturating_add(self.refused.len())
    }

    /// It has rows enough, holds bytes enough, or took enough of the file.
    pub fn is_full(&self, most_rows: usize, most_bytes: usize) -> bool {
        let held = self.data.len().saturating_add(self.originals.len()).saturating_add(self.refused_bytes);
        self.read() >= most_rows || held.max(self.taken) >= most_bytes
    }

    /// A row's data was added: the next one follows. `original` is what it was, where that is kept.
    pub fn end_row(&mut self, bytes: usize, original: Option<&[u8]>, line: u64, lines: u64) {
        self.originals.extend_from_slice(original.map_or(&[], head));
        self.taken = self.taken.saturating_add(bytes);
        self.rows.push(Row { end: self.data.len(), original_end: self.originals.len(), line, lines });
    }

    /// The row that was added last has no line end.
    pub fn last_has_no_line_end(&mut self) {
        self.unended = self.rows.len().checked_sub(1);
    }

    /// The row is the file's last one and has no line end.
    pub fn has_no_line_end(&self, n: usize) -> bool {
        self.unended == Some(n)
    }

    /// The lines that a row has in the file.
    pub fn lines_of(&self, n: usize) -> u64 {
        let data = self.data_of(n, n.saturating_add(1));
        let behind = data.iter().skip(1).chain(b"\n");
        let ends = data.iter().zip(behind).filter(|(byte, behind)| match **byte {
            b'\n' => true,
            b'\r' => **behind != b'\n',
            _ => false,
        });
        u64::try_from(ends.count()).unwrap_or(u64::MAX)
    }

    /// A row of so many bytes has no form.
    pub fn refuse(&mut self, bytes: usize, reject: Reject) {
        self.taken = self.taken.saturating_add(bytes);
        self.refused_bytes = self.refused_bytes.saturating_add(reject.bytes());
        self.refused.push(reject);
    }

    /// The data of some rows.
    pub fn data_of(&self, from: usize, to: usize) -> &[u8] {
        let end_of = |n: usize| n.checked_sub(1).and_then(|n| self.rows.get(n)).map_or(0, |row| row.end);
        self.data.get(end_of(from)..end_of(to)).unwrap_or_default()
    }

    /// A row as it was.
    pub fn original(&self, n: usize) -> &[u8] {
        if self.originals.is_empty() {
            return self.data_of(n, n.saturating_add(1)).trim_ascii_end();
        }
        let end_of = |n: usize| self.rows.get(n).map_or(0, |row| row.original_end);
        let start = n.checked_sub(1).map_or(0, end_of);
        self.originals.get(start..end_of(n)).unwrap_or_default()
    }
}

/// Which line of the upload a line of a COPY is: kept where the difference between the two changes.
#[derive(Default)]
pub(super) struct LineMap {
    /// The last line that the server counts for a row, and the line on which that row begins.
    changes: std::collections::VecDeque<(u64, u64)>,
    sent: u64,
    forgot: bool,
}

/// What is known of the place of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It begins on this line.
    On(u64),
    /// It is one before the row that begins on this line.
    Before(u64),
}

impl LineMap {
    /// The most changes that are kept: 16 MiB of them.
    const MOST: usize = 1_000_000;

    /// A map for a COPY whose first `lines` lines are no rows.
    pub fn behind(lines: u64) -> LineMap {
        LineMap { sent: lines, ..LineMap::default() }
    }

    /// With one more change it forgets the first one.
    pub fn is_full(&self) -> bool {
        self.changes.len() >= LineMap::MOST
    }

    /// A row is sent.
    pub fn push(&mut self, row: &Row) {
        self.sent = self.sent.saturating_add(row.lines);
        let same = |(sent, line): &(u64, u64)| self.sent.wrapping_sub(*sent) == row.line.wrapping_sub(*line);
        if !self.changes.back().is_some_and(same) {
            if self.is_full() {
                self.changes.pop_front();
                self.forgot = true;
            }
            self.changes.push_back((self.sent, row.line));
        }
    }

    /// The row that ends on this line of the COPY.
    pub fn place(&self, sent: u64) -> Option<Place> {
        let behind = self.changes.partition_point(|(from, _)| *from <= sent);
        match behind.checked_sub(1).and_then(|change| self.changes.get(change)) {
            Some((from, line)) => Some(Place::On(line.saturating_add(sent.saturating_sub(*from)))),
            None => self.changes.front().filter(|_| self.forgot).map(|(_, line)| Place::Before(*line)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_behind_rows_of_many_lines_and_blank_ones() {
        let mut map = LineMap::behind(1);
        // Rows on the lines 2, 3 to 5, 6, and behind two blank lines 9 and 10.
        for (line, lines) in [(2, 1), (3, 3), (6, 1), (9, 1), (10, 1)] {
            map.push(&Row { end: 0, original_end: 0, line, lines });
        }
        let found: Vec<Option<Place>> = [2, 5, 6, 7, 8].into_iter().map(|line| map.place(line)).collect();
        assert_eq!(found, [2, 3, 6, 9, 10].map(|line| Some(Place::On(line))));
        assert_eq!(map.place(1), None);
    }

    #[test]
    fn what_was_forgotten_is_told_to_be_before_what_was_not() {
        let mut map = LineMap::behind(0);
        let most = u64::try_from(LineMap::MOST).unwrap();
        // Each row is followed by a blank line.
        for n in 0..most {
            assert!(!map.is_full());
            map.push(&Row { end: 0, original_end: 0, line: 2 * n + 1, lines: 1 });
        }
        assert!(map.is_full());
        assert_eq!(map.place(2), Some(Place::On(3)));
        (most..most + 2).for_each(|n| map.push(&Row { end: 0, original_end: 0, line: 2 * n + 1, lines: 1 }));
        assert_eq!(map.place(2), Some(Place::Before(5)));
        assert_eq!(map.place(3), Some(Place::On(5)));
    }

    #[test]
    fn what_is_kept_of_a_row_is_bounded() {
        let reject = Reject::new(1, "22P02", &"é".repeat(5000), &[b'\xff'; 5000]);
        assert_eq!(reject.text.chars().count(), MAX_TEXT_BYTES);
        assert!(reject.message.len() <= MAX_TEXT_BYTES && reject.message.starts_with("éé"));
        let mut batch = Batch::default();
        batch.end_row(5000, Some(&[b'x'; 5000]), 1, 1);
        assert_eq!(batch.original(0).len(), MAX_TEXT_BYTES);
    }

    #[test]
    fn everything_counts_against_a_batchs_bytes() {
        let full = |batch: &Batch| batch.is_full(usize::MAX, 1_000);
        let (mut data, mut originals, mut refused, mut taken) = <(Batch, Batch, Batch, Batch)>::default();
        data.data.resize(1_000, b'x');
        (0..10).for_each(|line| originals.end_row(1, Some(&[b'x'; 100]), line, 1));
        (0..10).for_each(|line| refused.refuse(1, Reject::new(line, "22P02", &"m".repeat(50), &[b'x'; 50])));
        taken.refuse(1_000, Reject::new(1, "22P02", "", b""));
        for batch in [&mut data, &mut originals, &mut refused, &mut taken] {
            assert!(full(batch));
            batch.clear();
            assert!(!full(batch));
        }
    }

    #[test]
    fn a_refused_row_counts_as_its_lines() {
        let mut batch = Batch::default();
        for row in ["a\n", "a,\"b\nc\r\nd\"\n", "a\rb\rc\n", "\"\r\"\n", "a\r\n"] {
            batch.data.extend_from_slice(row.as_bytes());
            batch.end_row(row.len(), None, 1, 1);
        }
        let lines: Vec<u64> = (0..5).map(|n| batch.lines_of(n)).collect();
        assert_eq!(lines, [1, 3, 3, 2, 1]);
        let reject = Reject::new(1, "22P04", &"m".repeat(2_000), b"").standing_for(3, "lines");
        assert!(reject.message.len() <= MAX_TEXT_BYTES && reject.message.ends_with("counts as so many rows)"));
        assert_eq!(reject.rows, 3);
    }
}
