//! Files that are something else than text in UTF-8, told by their first bytes.

use crate::queue::{ErrorCode, JobError};
use crate::uploads::ContentEncoding;
use crate::work::WorkError;

/// So many bytes are looked at for NULs.
const LOOKED_AT: usize = 512;

/// How certain the first bytes are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sign {
    /// No text begins so.
    Certain,
    /// A text may begin so, if it is one.
    UnlessText,
}

use Sign::{Certain, UnlessText};

/// First bytes, what begins with them, and what to do.
const KNOWN: &[(&[u8], Sign, &str, &str)] = &[
    (b"\x1f\x8b", Certain, "gzip data", GZIP),
    (b"\x28\xb5\x2f\xfd", Certain, "zstd data", ZSTD),
    (b"PK\x03\x04", Certain, ZIP, "unpack it, and upload the file that is in it"),
    (b"\xd0\xcf\x11\xe0", Certain, "an Excel workbook (.xls), or another old Office file", SHEET),
    (b"PAR1", UnlessText, "a Parquet file", TABLE),
    (b"ARROW1", UnlessText, "an Arrow file", TABLE),
    (b"ORC", UnlessText, "an ORC file", TABLE),
    (b"Obj\x01", Certain, "an Avro file", TABLE),
    (b"SQLite format 3\0", Certain, "an SQLite database", TABLE),
    (b"PGDMP", UnlessText, "a dump of pg_dump", "restore it with pg_restore"),
    (b"PGCOPY\n\xff\r\n\0", Certain, "COPY's binary format", "write it again with COPY … TO … CSV HEADER"),
    (b"BZh", UnlessText, "bzip2 data", UNPACK),
    (b"\xfd7zXZ\0", Certain, "xz data", UNPACK),
    (b"\x04\x22\x4d\x18", Certain, "lz4 data", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", Certain, "a 7-Zip archive", "unpack it, and upload the file that is in it"),
    (b"%PDF-", UnlessText, "a PDF", TABLE),
];
const GZIP: &str = "upload it again with the header Content-Encoding: gzip";
const ZSTD: &str = "upload it again with the header Content-Encoding: zstd";
const ZIP: &str = "a zip archive";
const UNPACK: &str = "decompress it, or compress it as gzip or zstd, and say so in Content-Encoding";
const SHEET: &str = "save the sheet as \"CSV UTF-8\", and upload that";
const TABLE: &str = "write its rows as CSV or NDJSON, and upload that";

/// Refuses what is known to be something else. `head` is the beginning of the decoded file.
pub(super) fn check(head: &[u8], coding: ContentEncoding) -> Result<(), WorkError> {
    let (what, hint) = match (encoding(head), known(head)) {
        (Some(encoding), _) => {
            (format!("text in {encoding}, and has to be UTF-8"), format!("convert it: iconv -f {encoding} -t UTF-8"))
        }
        (None, Some((what, hint))) if coding == ContentEncoding::Identity => {
            (format!("{what}, and has to be text"), hint.to_owned())
        }
        (None, Some((what, _))) => {
            let again = format!("{what} again when it is decoded as {}, and has to be text", coding.as_str());
            (again, "it was compressed twice: decompress it once, and upload it again".to_owned())
        }
        (None, None) => return Ok(()),
    };
    let error = JobError::new(ErrorCode::FormatMismatch, format!("the upload is {what}"));
    Err(WorkError::Fail(error.with_hint(hint)))
}

fn known(head: &[u8]) -> Option<(&'static str, &'static str)> {
    let (_, _, what, hint) =
        KNOWN.iter().find(|(begin, sign, ..)| head.starts_with(begin) && (*sign == Certain || !is_text(head)))?;
    if *what == ZIP
        && memchr::memmem::find(head, b"[Content_Types].xml").or(memchr::memmem::find(head, b"xl/")).is_some()
    {
        return Some(("an Excel workbook (.xlsx)", SHEET));
    }
    Some((what, hint))
}

/// UTF-8, but for a character that the end of the head cuts, and without what no text has.
fn is_text(head: &[u8]) -> bool {
    let valid = match std::str::from_utf8(head) {
        Ok(_) => true,
        Err(error) => error.error_len().is_none(),
    };
    valid && !head.contains(&0)
}

/// The encoding of text that isn't UTF-8: by its byte order mark, or by the zeros beside each letter of ASCII.
fn encoding(head: &[u8]) -> Option<&'static str> {
    let marks: [(&[u8], &str); 4] = [
        (b"\xff\xfe\0\0", "UTF-32LE"),
        (b"\0\0\xfe\xff", "UTF-32BE"),
        (b"\xff\xfe", "UTF-16LE"),
        (b"\xfe\xff", "UTF-16BE"),
    ];
    if let Some((_, name)) = marks.iter().find(|(mark, _)| head.starts_with(mark)) {
        return Some(name);
    }
    let looked = head.get(..LOOKED_AT).unwrap_or(head);
    let pairs = looked.chunks_exact(2);
    let (all, mut low, mut high) = (pairs.len(), 0_usize, 0_usize);
    for pair in pairs {
        match pair {
            [0, 0] => return None,
            [_, 0] => low = low.saturating_add(1),
            [0, _] => high = high.saturating_add(1),
            _ => {}
        }
    }
    // Most of what a file of rows begins with is ASCII: names, digits, delimiters.
    let most = |count: usize| count >= 2 && count.saturating_mul(2) > all;
    match () {
        () if most(low) && high == 0 => Some("UTF-16LE"),
        () if most(high) && low == 0 => Some("UTF-16BE"),
        () => None,
    }
}

/// Which character a byte that isn't UTF-8 is in Windows' encoding of Western Europe, of which Latin-1 is a part.
pub(super) fn as_latin(byte: u8) -> Option<char> {
    (byte >= 0xa0).then(|| char::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(head: &[u8], coding: ContentEncoding) -> Option<String> {
        match check(head, coding) {
            Err(WorkError::Fail(error)) => Some(format!("{} {}", error.message, error.hint.unwrap())),
            _ => None,
        }
    }

    #[test]
    fn what_is_no_text_is_known_by_its_first_bytes() {
        let utf16 = |text: &str, big: bool| -> Vec<u8> {
            let bytes = |unit: u16| if big { unit.to_be_bytes() } else { unit.to_le_bytes() };
            text.encode_utf16().flat_map(bytes).collect()
        };
        for (head, words) in [
            (utf16("\u{feff}id,n\n1,2\n", false), "UTF-16LE"),
            (utf16("\u{feff}id,n\n1,2\n", true), "UTF-16BE"),
            (utf16("id,n\n1,é\n", false), "UTF-16LE"),
            (utf16("{\"n\":1}\n", true), "UTF-16BE"),
            (b"\x1f\x8b\x08\0".to_vec(), "Content-Encoding: gzip"),
            (b"\x28\xb5\x2f\xfd\0".to_vec(), "Content-Encoding: zstd"),
            (b"PK\x03\x04\x14\0[Content_Types].xml".to_vec(), ".xlsx"),
            (b"PK\x03\x04\x14\0data.csv".to_vec(), "zip archive"),
            (b"PAR1\x15\x04\x15\0\xff".to_vec(), "Parquet"),
            (b"BZh91AY&SY\xff".to_vec(), "bzip2"),
        ] {
            let told = told(&head, ContentEncoding::Identity).unwrap();
            assert!(told.contains(words), "{told}");
        }
        let twice = told(b"\x1f\x8b\x08\0", ContentEncoding::Gzip).unwrap();
        assert!(twice.contains("compressed twice"), "{twice}");
    }

    #[test]
    fn text_is_no_such_file() {
        let cut = [b"ORC,".repeat(100), b"\xc3".to_vec()].concat();
        for head in
            [&b""[..], b"a", b"id,n\n1,2\n", b"PAR1,ORC\n", b"BZh,x\n", b"%PDF-,x", "größe,é\n".as_bytes(), &cut]
        {
            assert_eq!(told(head, ContentEncoding::Identity), None, "{head:?}");
        }
        // Some zeros are the server's to refuse.
        assert_eq!(told(b"a,b\n\0,1\n1,2\n", ContentEncoding::Identity), None);
    }
}
