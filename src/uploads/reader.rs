//! An upload's bytes in order: a thread of its own fetches the next part while one is read.

use std::io;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use crate::db::{DbError, RetryingPool};
use crate::uploads::{Upload, store};

/// Why an upload can't be read on.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A part is gone, or isn't as long as it was.
    #[error("a part of the upload is gone")]
    Gone,
    /// The thread that fetches parts can't be started.
    #[error("no thread that fetches the upload can be started: {0}")]
    Thread(#[source] io::Error),
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
}

/// Reads an upload from its first byte. At most two parts are in memory besides the one that is read.
pub struct Reader {
    parts: Option<Receiver<Result<Vec<u8>, ReadError>>>,
    thread: Option<JoinHandle<()>>,
    part: Vec<u8>,
    at: usize,
    /// Bytes handed out.
    read: i64,
    total: i64,
    failed: Option<ReadError>,
}

impl Reader {
    /// Reads from the queue's database.
    ///
    /// # Errors
    /// When the thread `slowlane-upload` can't be started.
    pub fn start(queue: RetryingPool, upload: &Upload) -> Result<Reader, ReadError> {
        let (sender, parts) = sync_channel(1);
        let (id, count) = (upload.id, upload.parts);
        let fetch = move || {
            for n in 0..count {
                let part = queue.run(|connection| store::part(connection, id, n));
                let part = part.map_err(ReadError::from).and_then(|part| part.ok_or(ReadError::Gone));
                let failed = part.is_err();
                // Whoever read has gone: then nobody needs the rest.
                if sender.send(part).is_err() || failed {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("slowlane-upload".to_owned()).spawn(fetch);
        let thread = thread.map_err(ReadError::Thread)?;
        Ok(Reader {
            parts: Some(parts),
            thread: Some(thread),
            part: Vec::new(),
            at: 0,
            read: 0,
            total: upload.bytes,
            failed: None,
        })
    }

    /// Bytes handed out so far.
    pub fn position(&self) -> i64 {
        self.read
    }

    /// Why reading failed, where it did: an [`io::Error`] says little.
    pub fn take_failure(&mut self) -> Option<ReadError> {
        self.failed.take()
    }

    fn next_part(&mut self) -> Result<bool, ReadError> {
        match self.parts.as_ref().map(Receiver::recv) {
            Some(Ok(part)) => {
                (self.part, self.at) = (part?, 0);
                Ok(true)
            }
            _ if self.read == self.total => Ok(false),
            _ => Err(ReadError::Gone),
        }
    }
}

impl io::Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.part.len() <= self.at {
            match self.next_part() {
                Ok(true) => {}
                Ok(false) => return Ok(0),
                Err(error) => {
                    let words = error.to_string();
                    self.failed = Some(error);
                    return Err(io::Error::other(words));
                }
            }
        }
        let rest = self.part.get(self.at..).unwrap_or_default();
        let length = rest.len().min(buffer.len());
        if let (Some(from), Some(to)) = (rest.get(..length), buffer.get_mut(..length)) {
            to.copy_from_slice(from);
        }
        self.at += length;
        self.read = self.read.saturating_add(i64::try_from(length).unwrap_or(i64::MAX));
        Ok(length)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // The thread ends with its next part: each of its own waits is bounded.
        self.parts = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread that fetches an upload panicked");
        }
    }
}
