//! The bytes of an upload as they were before they were coded.
//!
//! Memory is bounded whatever the bytes say: zstd's window by RFC 9659, the sum of what comes out by
//! [`MAX_DECODED_BYTES`].

use std::cell::{Cell, RefCell};
use std::io::{self, Read};
use std::rc::Rc;

use flate2::read::MultiGzDecoder;

use crate::kinds::WorkError;
use crate::queue::{ErrorCode, JobError};
use crate::uploads::{ContentEncoding, ReadError, Reader};

/// The most bytes that an upload may be when it is decoded: 100 GiB.
pub const MAX_DECODED_BYTES: u64 = 100 * 1024 * 1024 * 1024;
/// The largest window of a zstd frame, as a power of two: 8 MiB, which is what RFC 9659 has encoders keep to.
const ZSTD_WINDOW_LOG: u32 = 23;

/// What the raw side of a decoder knows.
#[derive(Default)]
struct Raw {
    position: Cell<i64>,
    failure: RefCell<Option<ReadError>>,
}

/// Reads an upload for a decoder.
struct Tap {
    reader: Reader,
    raw: Rc<Raw>,
}

impl Read for Tap {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let outcome = self.reader.read(buffer);
        self.raw.position.set(self.reader.position());
        if outcome.is_err() {
            *self.raw.failure.borrow_mut() = self.reader.take_failure();
        }
        outcome
    }
}

/// An upload, decoded.
pub(super) struct Decoded {
    inner: Box<dyn Read>,
    raw: Rc<Raw>,
    coding: ContentEncoding,
    decoded: u64,
}

impl Decoded {
    /// Decodes what `reader` reads.
    pub fn new(reader: Reader, coding: ContentEncoding) -> Result<Decoded, WorkError> {
        let raw = Rc::<Raw>::default();
        let tap = Tap { reader, raw: Rc::clone(&raw) };
        let inner: Box<dyn Read> = match coding {
            ContentEncoding::Identity => Box::new(tap),
            ContentEncoding::Gzip => Box::new(MultiGzDecoder::new(tap)),
            ContentEncoding::Zstd => {
                let decoder = zstd::Decoder::new(tap).and_then(|mut decoder| {
                    decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                    Ok(decoder)
                });
                Box::new(decoder.map_err(|error| unreadable(coding, &error))?)
            }
        };
        Ok(Decoded { inner, raw, coding, decoded: 0 })
    }

    /// Bytes that were never uploaded.
    #[cfg(test)]
    pub fn of(inner: impl Read + 'static) -> Decoded {
        Decoded { inner: Box::new(inner), raw: Rc::default(), coding: ContentEncoding::Identity, decoded: 0 }
    }

    /// Bytes of the upload that were read.
    pub fn position(&self) -> i64 {
        self.raw.position.get()
    }

    /// Reads on. 0 is the end.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, WorkError> {
        let length = self.inner.read(buffer).map_err(|error| match self.raw.failure.borrow_mut().take() {
            Some(failure) => failure.into(),
            None => unreadable(self.coding, &error),
        })?;
        self.decoded = self.decoded.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        if self.decoded > MAX_DECODED_BYTES {
            let message = format!("the upload is more than {MAX_DECODED_BYTES} bytes when it is decoded");
            return Err(WorkError::Fail(JobError::new(ErrorCode::DecodedTooLarge, message)));
        }
        Ok(length)
    }
}

fn unreadable(coding: ContentEncoding, error: &io::Error) -> WorkError {
    let message = format!("the upload can't be decoded as {}: {error}", coding.as_str());
    let error = JobError::new(ErrorCode::UploadUnreadable, message);
    WorkError::Fail(match coding {
        ContentEncoding::Zstd => error
            .with_hint("frames may have a window of up to 8 MiB; compress with --ultra or --long no further than that"),
        _ => error.with_hint("upload it again, with the Content-Encoding that it has"),
    })
}
