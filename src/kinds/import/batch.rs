//! Some rows on their way into COPY, and those that can't be.

/// The longest text of a row that is kept with its refusal, in bytes.
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
    pub message: String,
    pub text: String,
}

impl Reject {
    pub fn new(line: u64, sqlstate: &str, message: impl Into<String>, row: &[u8]) -> Reject {
        let text = String::from_utf8_lossy(row.get(..MAX_TEXT_BYTES).unwrap_or(row)).replace('\0', "\u{fffd}");
        Reject { line, sqlstate: sqlstate.to_owned(), message: message.into(), text }
    }
}

/// Rows in the form that COPY takes, one after the other.
#[derive(Default)]
pub(super) struct Batch {
    pub data: Vec<u8>,
    pub rows: Vec<Row>,
    /// The rows as they were, where that is another form and they are kept.
    pub originals: Vec<u8>,
    /// Rows that have no such form.
    pub refused: Vec<Reject>,
}

impl Batch {
    pub fn clear(&mut self) {
        self.data.clear();
        self.rows.clear();
        self.originals.clear();
        self.refused.clear();
    }

    /// Rows that were read, refused ones included.
    pub fn read(&self) -> usize {
        self.rows.len().saturating_add(self.refused.len())
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
}

impl LineMap {
    /// More than what can be on its way between here and the server.
    const MOST: usize = 1_000_000;

    /// A map for a COPY whose first `lines` lines are no rows.
    pub fn behind(lines: u64) -> LineMap {
        LineMap { changes: std::collections::VecDeque::new(), sent: lines }
    }

    /// A row is sent.
    pub fn push(&mut self, row: &Row) {
        self.sent = self.sent.saturating_add(row.lines);
        let same = |(sent, line): &(u64, u64)| self.sent.wrapping_sub(*sent) == row.line.wrapping_sub(*line);
        if !self.changes.back().is_some_and(same) {
            if self.changes.len() >= LineMap::MOST {
                self.changes.pop_front();
            }
            self.changes.push_back((self.sent, row.line));
        }
    }

    /// The line on which the row begins that ends on this line of the COPY.
    pub fn line(&self, sent: u64) -> Option<u64> {
        let behind = self.changes.partition_point(|(from, _)| *from <= sent);
        let (from, line) = self.changes.get(behind.checked_sub(1)?)?;
        Some(line.saturating_add(sent.saturating_sub(*from)))
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
        let found: Vec<Option<u64>> = [2, 5, 6, 7, 8].into_iter().map(|line| map.line(line)).collect();
        assert_eq!(found, [2, 3, 6, 9, 10].map(Some));
        assert_eq!(map.line(1), None);
    }

    #[test]
    fn a_rows_text_is_bounded() {
        let reject = Reject::new(1, "22P02", "no", &[b'\xff'; 5000]);
        assert_eq!(reject.text.chars().count(), MAX_TEXT_BYTES);
    }
}
