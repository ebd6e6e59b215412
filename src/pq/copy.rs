//! Bytes into a `COPY … FROM STDIN`, in bounded memory.
//!
//! The server's word on them comes at the end: after an error it takes what is still sent and drops it. libpq keeps the
//! error to itself until then, so whoever may end a COPY and begin another does so now and then.

use std::ffi::CStr;

use pq_sys::ExecStatusType;

use crate::pq::error::{PqError, PqErrorKind};
use crate::pq::raw::Conn;

/// Bytes handed to libpq at a time.
const PIECE: usize = 256 * 1024;
/// What the server is told when a COPY is given up.
const GIVEN_UP: &CStr = c"given up by the client";

/// A COPY that takes data. Dropped before its end, it leaves the session in the middle: then it must be closed.
pub struct CopyIn<'s> {
    conn: &'s mut Conn,
}

impl<'s> CopyIn<'s> {
    pub(super) fn new(conn: &'s mut Conn) -> CopyIn<'s> {
        CopyIn { conn }
    }

    /// Sends some bytes. Waits while the server has no room for them; a cancel ends that wait too.
    ///
    /// # Errors
    /// When the connection is lost.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), PqError> {
        bytes.chunks(PIECE).try_for_each(|piece| self.conn.put_copy_data(piece))
    }

    /// Says that this was all, and waits for the server's word. Gives the number of rows that it stored.
    ///
    /// # Errors
    /// What the server has against any of the bytes, or that the connection is lost. Nothing of the COPY is stored
    /// then.
    pub fn finish(self) -> Result<u64, PqError> {
        self.conn.put_copy_end(None)?;
        let mut outcome = Err(self.conn.lost());
        let mut failed = None;
        while let Some(result) = self.conn.next_result() {
            match result.status() {
                ExecStatusType::PGRES_COMMAND_OK => {
                    let tag = result.command_tag();
                    let rows = tag.strip_prefix("COPY ").and_then(|rows| rows.parse().ok());
                    outcome = rows.ok_or_else(|| PqError::of(PqErrorKind::Usage, "a COPY ended without its count"));
                }
                // What follows would come again and again.
                ExecStatusType::PGRES_COPY_IN | ExecStatusType::PGRES_COPY_OUT | ExecStatusType::PGRES_COPY_BOTH => {
                    return Err(PqError::of(PqErrorKind::Copy, "the COPY did not end"));
                }
                _ => {
                    failed.get_or_insert(self.conn.error_of(&result));
                }
            }
        }
        match failed {
            Some(error) => Err(error),
            None => outcome,
        }
    }

    /// Has the server give the COPY up. The session can go on then, in a failed transaction. Gives the error by which
    /// the server had given it up before, where it had.
    ///
    /// # Errors
    /// When the connection is lost.
    pub fn abandon(self) -> Result<Option<PqError>, PqError> {
        self.conn.put_copy_end(Some(GIVEN_UP))?;
        let mut failed = None;
        while let Some(result) = self.conn.next_result() {
            let error = self.conn.error_of(&result);
            if error.kind == PqErrorKind::ConnectionLost {
                return Err(self.conn.lost());
            }
            failed.get_or_insert(error);
        }
        // Its answer to what we say has our words, in whatever language.
        Ok(failed.filter(|error| !error.message.contains(&*GIVEN_UP.to_string_lossy())))
    }
}
