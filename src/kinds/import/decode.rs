//! The bytes of an upload as they were before they were coded.
//!
//! Memory is bounded whatever the bytes say: zstd's window by RFC 9659, the sum of what comes out by
//! [`MAX_DECODED_BYTES`]. What is cut off, or has something else behind its end, is an error: nothing is left out but zeros
//! behind gzip.

use std::cell::{Cell, RefCell};
use std::io::{self, BufRead, BufReader, Read};
use std::rc::Rc;

use flate2::bufread::GzDecoder;

use crate::queue::{ErrorCode, JobError};
use crate::uploads::{ContentEncoding, ReadError, Reader};
use crate::work::WorkError;

/// The most bytes that an upload may be when it is decoded: 100 GiB.
pub const MAX_DECODED_BYTES: u64 = 100 * 1024 * 1024 * 1024;
/// The largest window of a zstd frame, as a power of two: 8 MiB, which is what RFC 9659 has encoders keep to.
const ZSTD_WINDOW_LOG: u32 = 23;
/// Bytes that are read at a time of what is coded: 32 KiB.
const RAW_BYTES: usize = 32 * 1024;
/// The first byte of a gzip member (RFC 1952).
const GZIP_MAGIC: u8 = 0x1f;
/// What zstd says of bytes that begin no frame.
const NO_FRAME: &str = "Unknown frame descriptor";

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
        Decoded::coded(Tap { reader, raw: Rc::clone(&raw) }, raw, coding)
    }

    fn coded(input: impl Read + 'static, raw: Rc<Raw>, coding: ContentEncoding) -> Result<Decoded, WorkError> {
        let input = BufReader::with_capacity(RAW_BYTES, input);
        let inner: Box<dyn Read> = match coding {
            ContentEncoding::Identity => Box::new(input.into_inner()),
            ContentEncoding::Gzip => Box::new(Members { state: State::First(input), raw: Rc::clone(&raw) }),
            ContentEncoding::Zstd => {
                let decoder = zstd::Decoder::with_buffer(input).and_then(|mut decoder| {
                    decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                    Ok(decoder)
                });
                Box::new(decoder.map_err(|error| unreadable(coding, 0, &error))?)
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
            None => unreadable(self.coding, self.decoded, &error),
        })?;
        // Nothing at all is no zstd frame.
        if length == 0 && self.coding != ContentEncoding::Identity && self.position() == 0 {
            return Err(unreadable(self.coding, 0, &io::ErrorKind::UnexpectedEof.into()));
        }
        self.decoded = self.decoded.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        if self.decoded > MAX_DECODED_BYTES {
            let message = format!("the upload is more than {MAX_DECODED_BYTES} bytes when it is decoded");
            return Err(WorkError::Fail(JobError::new(ErrorCode::DecodedTooLarge, message)));
        }
        Ok(length)
    }
}

/// The members of gzip data, one after the other. Zeros behind a member are left out, as `gunzip` does, for tapes and disks pad
/// files with them. Other bytes are an error: `gunzip` leaves them out with a warning, and they may be data.
struct Members<R> {
    state: State<BufReader<R>>,
    raw: Rc<Raw>,
}

enum State<R> {
    First(R),
    Within(GzDecoder<R>),
    Between(R),
    Ended,
}

impl<R: Read> Members<R> {
    /// The first member. Zeros aren't left out before it.
    fn first(mut input: BufReader<R>) -> io::Result<GzDecoder<BufReader<R>>> {
        match input.fill_buf()?.first() {
            None => Err(io::ErrorKind::UnexpectedEof.into()),
            Some(&GZIP_MAGIC) => Ok(GzDecoder::new(input)),
            Some(_) => Err(io::Error::new(io::ErrorKind::InvalidInput, "invalid gzip header")),
        }
    }

    /// Whether there is another member behind the one that has ended.
    fn find_next(&self, input: &mut BufReader<R>) -> io::Result<bool> {
        loop {
            let waiting = input.fill_buf()?;
            let zeros = waiting.iter().take_while(|byte| **byte == 0).count();
            match waiting.get(zeros) {
                None if zeros == 0 => return Ok(false),
                None => input.consume(zeros),
                Some(&GZIP_MAGIC) => {
                    input.consume(zeros);
                    return Ok(true);
                }
                Some(_) => {
                    let left = i64::try_from(waiting.len().saturating_sub(zeros)).unwrap_or(i64::MAX);
                    let at = self.raw.position.get().saturating_sub(left);
                    return Err(io::Error::other(Trailing { at }));
                }
            }
        }
    }
}

impl<R: Read> Read for Members<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.state = match std::mem::replace(&mut self.state, State::Ended) {
                State::First(input) => State::Within(Self::first(input)?),
                State::Within(mut member) => match member.read(buffer)? {
                    0 => State::Between(member.into_inner()),
                    length => {
                        self.state = State::Within(member);
                        return Ok(length);
                    }
                },
                State::Between(mut input) => match self.find_next(&mut input)? {
                    true => State::Within(GzDecoder::new(input)),
                    false => State::Ended,
                },
                State::Ended => return Ok(0),
            };
        }
    }
}

/// What follows the last gzip member is none.
#[derive(Debug, thiserror::Error)]
#[error("{} bytes of gzip data are followed by bytes that are neither gzip data nor zeros", self.at)]
struct Trailing {
    /// The bytes before it.
    at: i64,
}

fn unreadable(coding: ContentEncoding, decoded: u64, error: &io::Error) -> WorkError {
    let name = coding.as_str();
    let trailing = error.get_ref().and_then(|error| error.downcast_ref::<Trailing>());
    let no_frame = error.to_string() == NO_FRAME;
    let (why, hint) = match (coding, trailing) {
        (_, Some(Trailing { at })) => (
            error.to_string(),
            format!("cut them off, such as by head -c {at} (gunzip would leave them out), or compress the file again"),
        ),
        _ if error.kind() == io::ErrorKind::UnexpectedEof => (
            format!("it ends too early, behind {decoded} decoded bytes: it was cut off"),
            "upload it again as a whole; a Content-Digest lets that be checked".to_owned(),
        ),
        (ContentEncoding::Zstd, _) if no_frame && decoded > 0 => (
            format!("behind {decoded} decoded bytes follow bytes that are no zstd frame"),
            "cut them off, or compress the file again".to_owned(),
        ),
        (ContentEncoding::Zstd, _) if !no_frame => (
            error.to_string(),
            "frames may have a window of up to 8 MiB; compress with --ultra or --long no further than that".to_owned(),
        ),
        _ => (error.to_string(), "upload it again, with the Content-Encoding that it has".to_owned()),
    };
    let message = format!("the upload can't be decoded as {name}: {why}");
    WorkError::Fail(JobError::new(ErrorCode::UploadUnreadable, message).with_hint(hint))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Counts what is read of some bytes, a few at a time.
    struct Counted(io::Cursor<Vec<u8>>, Rc<Raw>);

    impl Read for Counted {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let few = buffer.len().min(7);
            let length = self.0.read(&mut buffer[..few])?;
            self.1.position.set(self.1.position.get() + i64::try_from(length).unwrap());
            Ok(length)
        }
    }

    fn decode(bytes: &[u8], coding: ContentEncoding) -> Result<Vec<u8>, JobError> {
        let raw = Rc::<Raw>::default();
        let input = Counted(io::Cursor::new(bytes.to_vec()), Rc::clone(&raw));
        let failed = |error| match error {
            WorkError::Fail(error) => error,
            _ => panic!("another end"),
        };
        let mut decoded = Decoded::coded(input, raw, coding).map_err(failed)?;
        let (mut found, mut buffer) = (Vec::new(), [0; 100]);
        loop {
            match decoded.read(&mut buffer).map_err(failed)? {
                0 => return Ok(found),
                length => found.extend_from_slice(&buffer[..length]),
            }
        }
    }

    fn gzip(text: &str) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(text: &str) -> Vec<u8> {
        zstd::encode_all(text.as_bytes(), 1).unwrap()
    }

    const SKIPPABLE: &[u8] = b"\x52\x2a\x4d\x18\x03\0\0\0abc";

    #[test]
    fn zeros_behind_gzip_and_skippable_frames_are_left_out() {
        let zeros = |length: usize| vec![0; length];
        for parts in [
            vec![gzip("a,b\n"), zeros(512)],
            vec![gzip("a,b\n"), zeros(1)],
            vec![gzip("a,"), gzip("b\n"), zeros(100_000)],
            vec![gzip("a,"), zeros(3), gzip(""), zeros(70_000), gzip("b\n")],
        ] {
            assert_eq!(decode(&parts.concat(), ContentEncoding::Gzip).unwrap(), b"a,b\n");
        }
        let parts = [SKIPPABLE, &zstd("a,"), SKIPPABLE, SKIPPABLE, &zstd("b\n"), SKIPPABLE].concat();
        assert_eq!(decode(&parts, ContentEncoding::Zstd).unwrap(), b"a,b\n");
    }

    #[test]
    fn other_bytes_behind_the_end_are_an_error() {
        let whole = gzip("a,b\n");
        for padding in [0, 3, 50_000] {
            let error = decode(&[&whole[..], &vec![0; padding], b"text"].concat(), ContentEncoding::Gzip).unwrap_err();
            let at = whole.len() + padding;
            assert!(error.message.contains(&format!("{at} bytes of gzip data are followed")), "{}", error.message);
            assert!(error.hint.unwrap().contains(&format!("head -c {at} ")));
        }
        for trailing in [&b"text"[..], &[0; 9], b"id,n\n1,2\n"] {
            let error = decode(&[&zstd("a,b\n"), trailing].concat(), ContentEncoding::Zstd).unwrap_err();
            assert!(error.message.contains("behind 4 decoded bytes"), "{}", error.message);
        }
        for coding in [ContentEncoding::Gzip, ContentEncoding::Zstd] {
            let error = decode(b"id,n\n1,2\n", coding).unwrap_err();
            assert!(error.hint.unwrap().contains("the Content-Encoding that it has"), "{}", error.message);
        }
    }

    #[test]
    fn whatever_is_cut_off_is_an_error() {
        let text = "1,x\n".repeat(100);
        for (coding, first, second) in [
            (ContentEncoding::Gzip, gzip(&text), gzip("2,y\n")),
            (ContentEncoding::Zstd, zstd(&text), zstd("2,y\n")),
            (ContentEncoding::Zstd, zstd(&text), SKIPPABLE.to_vec()),
        ] {
            let both = [&first[..], &second].concat();
            for length in (0..both.len()).filter(|length| *length != first.len()) {
                let error = decode(&both[..length], coding).unwrap_err();
                assert_eq!(error.code, "upload_unreadable");
                assert!(error.message.contains("cut off"), "{length} of {}: {}", both.len(), error.message);
            }
        }
    }
}
