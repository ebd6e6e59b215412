//! Rows as they come, in bounded memory.
//!
//! libpq's chunked rows mode (PostgreSQL 17 and newer clients) hands out a few rows at a time. The end of the rows is
//! the server's own: a result of another status in between is an error, whatever was read before it.

use pq_sys::ExecStatusType;

use crate::pq::error::{PqError, PqErrorKind};
use crate::pq::raw::{Conn, PgResult};

/// A few rows. Keeps their memory until it is dropped.
pub struct Chunk(PgResult);

impl Chunk {
    /// How many rows.
    pub fn rows(&self) -> usize {
        self.0.rows()
    }

    /// How many columns.
    pub fn columns(&self) -> usize {
        self.0.columns()
    }

    /// A value's bytes in text form; `None` for NULL.
    pub fn value(&self, row: usize, column: usize) -> Option<&[u8]> {
        self.0.value(row, column)
    }
}

/// The rows of a running statement.
pub struct RowStream<'s> {
    conn: &'s mut Conn,
    /// There is nothing more to read.
    ended: bool,
    /// The server said that the statement is complete.
    complete: bool,
    returned_rows: bool,
    tag: Option<String>,
}

impl<'s> RowStream<'s> {
    /// Rows that libpq gathers before it hands them out: few enough that wide rows stay small in sum, many enough
    /// that narrow ones cost little each.
    pub(super) const ROWS_PER_CHUNK: i32 = 64;

    pub(super) fn new(conn: &'s mut Conn) -> RowStream<'s> {
        RowStream { conn, ended: false, complete: false, returned_rows: false, tag: None }
    }

    /// Waits for the next rows. `None` when the server said that the statement is complete.
    ///
    /// # Errors
    /// Whatever ended the statement early; the rows before it are then not a result.
    pub fn next_chunk(&mut self) -> Result<Option<Chunk>, PqError> {
        while !self.ended {
            let Some(result) = self.conn.next_result() else {
                self.ended = true;
                if !self.complete {
                    return Err(self.conn.lost());
                }
                break;
            };
            match result.status() {
                ExecStatusType::PGRES_TUPLES_CHUNK | ExecStatusType::PGRES_SINGLE_TUPLE => {
                    self.note_tag(&result);
                    return Ok(Some(Chunk(result)));
                }
                status @ (ExecStatusType::PGRES_TUPLES_OK | ExecStatusType::PGRES_COMMAND_OK) => {
                    self.complete = true;
                    self.returned_rows = status == ExecStatusType::PGRES_TUPLES_OK;
                    self.note_tag(&result);
                    if result.rows() > 0 {
                        return Ok(Some(Chunk(result)));
                    }
                }
                ExecStatusType::PGRES_EMPTY_QUERY => {
                    return self.fail(PqError::of(PqErrorKind::Usage, "the statement is empty"));
                }
                // Reading on would wait for data that nobody sends: the session must be closed.
                ExecStatusType::PGRES_COPY_IN | ExecStatusType::PGRES_COPY_OUT | ExecStatusType::PGRES_COPY_BOTH => {
                    self.ended = true;
                    return Err(copy_error());
                }
                _ => {
                    let error = self.conn.error_of(&result);
                    return self.fail(error);
                }
            }
        }
        Ok(None)
    }

    /// The finished statement was one that returns rows, were it none.
    pub fn returned_rows(&self) -> bool {
        self.returned_rows
    }

    /// What the server calls the finished statement, such as `SELECT 3`. `None` before the end.
    pub fn command_tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// libpq writes the tag on whatever result is open when it comes: perhaps the last rows.
    fn note_tag(&mut self, result: &PgResult) {
        let tag = result.command_tag();
        if !tag.is_empty() {
            self.tag = Some(tag);
        }
    }

    /// After an error the server has nothing more to say but that it is ready.
    fn fail<T>(&mut self, error: PqError) -> Result<T, PqError> {
        self.ended = true;
        while self.conn.next_result().is_some() {}
        Err(error)
    }
}

pub(super) fn copy_error() -> PqError {
    PqError::of(PqErrorKind::Copy, "COPY is not a statement that returns rows")
}
