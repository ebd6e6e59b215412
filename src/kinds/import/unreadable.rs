//! Lines of NDJSON that are no JSON object: what they look like, what to do, and how many rows are lost with one.

use serde::de::IgnoredAny;

use crate::kinds::import::batch::Reject;
use crate::kinds::import::records::{Ending, Record};

/// The SQLSTATE of a line that is no JSON object.
pub(super) const INVALID_JSON: &str = "22032";
/// The SQLSTATE of a line that isn't UTF-8.
pub(super) const NOT_UTF8: &str = "22021";
/// What is done about text that isn't.
pub(super) const CONVERT: &str = "convert the file to UTF-8, such as by iconv -f WINDOWS-1252 -t UTF-8";
/// What begins each text of a JSON text sequence (RFC 7464).
const RECORD_SEPARATOR: u8 = 0x1e;
const MARK: &str = "\u{feff}";

/// Something that is often sent in the place of NDJSON.
struct Look {
    /// What the line is.
    is: &'static str,
    /// What makes NDJSON of it.
    hint: &'static str,
}

const ARRAY: Look = Look {
    is: "a JSON array begins there",
    hint: "write one object a line, without the array: jq -c '.[]' file.json > file.ndjson",
};
const SEQUENCE: Look = Look {
    is: "the record separator U+001E stands there, as in a JSON text sequence (RFC 7464)",
    hint: "write one object a line, without separators: tr -d '\\036' < file > file.ndjson",
};
const SECOND_MARK: Look = Look {
    is: "a byte order mark stands there",
    hint: "one byte order mark at the beginning of the file is skipped; remove further ones",
};
const DELIMITED: Look =
    Look { is: "the line looks like CSV", hint: "set format to csv, and upload the file as text/csv" };
const PRETTY: Look = Look {
    is: "the object goes on on the next line",
    hint: "write each object on one line: jq -c . file.json > file.ndjson",
};
const SEVERAL: Look = Look {
    is: "several objects stand on the line",
    hint: "write each object on a line of its own: jq -c . file > file.ndjson",
};
const COMMA: Look = Look {
    is: "a comma stands behind the object, as in an array",
    hint: "write one object a line, without commas between them and without an array: jq -c '.[]' file.json > file.ndjson",
};
const SINGLE_QUOTES: Look = Look {
    is: "JSON has double quotes, no single ones",
    hint: "write JSON, such as by Python's json.dumps(row) instead of str(row)",
};
const NO_QUOTES: Look = Look {
    is: "a key of JSON stands in double quotes",
    hint: "write JSON, such as by JavaScript's JSON.stringify(row)",
};
const NO_NUMBER: Look = Look {
    is: "NaN and Infinity are no JSON",
    hint: "write null, or the texts \"NaN\" and \"Infinity\", which columns of floating-point numbers and numeric take",
};
const PYTHON: Look = Look {
    is: "JSON has true, false and null, in small letters",
    hint: "write JSON, such as by Python's json.dumps(row) instead of str(row)",
};
const TRAILING: Look = Look {
    is: "a comma stands before the end of an object or an array",
    hint: "remove the comma: JSON has none behind the last value",
};

/// What a line is instead of an object. `at` is where its first byte is that isn't blank, from 1.
pub(super) fn instead_of_an_object(line: &str, at: usize) -> String {
    let expected = format!("expected an object at its character {at}");
    look(line).map_or(expected.clone(), |look| format!("{expected}, and {}", look.is))
}

/// Why a line that begins as an object isn't one.
pub(super) fn within_an_object(line: &str, error: &serde_json::Error) -> String {
    let words = error.to_string();
    let words = format!("{} at its character {}", words.split(" at line ").next().unwrap_or(&words), error.column());
    look(line).map_or(words.clone(), |look| format!("{words}; {}", look.is))
}

/// A line that was refused, and what that says of the file.
pub(super) fn refusal(record: Record, line: &[u8], sqlstate: &str, message: &str) -> Reject {
    let reject = Reject::new(record.line, sqlstate, message, line);
    if sqlstate != INVALID_JSON && sqlstate != NOT_UTF8 {
        return reject;
    }
    if record.ending != Ending::Line && is_cut(line) {
        let message = format!("the file ends in the middle of a row: {message}");
        let hint =
            "the last line has no line end and is no whole object, so the file was cut off there: upload it again";
        return Reject::new(record.line, sqlstate, &message, line).of_a_torn_file().with_hint(hint);
    }
    let reject = reject.standing_for(objects_of(line), "objects");
    match std::str::from_utf8(line).map(look) {
        Ok(Some(look)) => reject.with_hint(look.hint),
        Ok(None) => reject,
        Err(_) => reject.with_hint(CONVERT),
    }
}

/// It is the beginning of an object, and may be no more than that.
fn is_cut(line: &[u8]) -> bool {
    let line = line.trim_ascii();
    let ends_early = || serde_json::from_slice::<IgnoredAny>(line).is_err_and(|error| error.is_eof());
    line.starts_with(b"{") && (!line.ends_with(b"}") || ends_early()) && line != b"{"
}

/// About how many objects a line has: those behind the end of another one, with a comma between them in an array alone.
fn objects_of(line: &[u8]) -> u64 {
    let is_array = line.trim_ascii_start().starts_with(b"[");
    let mut behind_one = false;
    let mut objects = 1_u64;
    for byte in line {
        match byte {
            b'}' => behind_one = true,
            b' ' | b'\t' | b'\r' | &RECORD_SEPARATOR => {}
            b',' if is_array => {}
            byte => {
                objects = objects.saturating_add(u64::from(behind_one && *byte == b'{'));
                behind_one = false;
            }
        }
    }
    objects
}

fn look(line: &str) -> Option<&'static Look> {
    let begin = line.trim_start_matches([' ', '\t', '\r']);
    let text = begin.trim_end();
    match begin.as_bytes().first()? {
        b'[' => return Some(&ARRAY),
        &RECORD_SEPARATOR => return Some(&SEQUENCE),
        b'{' => {}
        b'"' if !delimited(text) => return None,
        _ if begin.starts_with(MARK) => return Some(&SECOND_MARK),
        _ => return delimited(text).then_some(&DELIMITED),
    }
    let Err(error) = serde_json::from_str::<IgnoredAny>(text) else { return None };
    if error.is_eof() {
        return Some(&PRETTY);
    }
    // The reader is behind the byte that it can't use, or before it.
    let column = error.column();
    let from = |column: usize| text.get(column..).unwrap_or_default().trim_start();
    let (here, before) = (from(column.saturating_sub(1)), text.get(..column.saturating_sub(1)).unwrap_or_default());
    let behind_an_object = before.trim_end().ends_with('}');
    let begins = |words: &[&str]| words.iter().any(|word| here.starts_with(word));
    match () {
        () if objects_of(text.as_bytes()) > 1 && behind_an_object && begins(&["{", "\u{1e}"]) => Some(&SEVERAL),
        () if here == "," && behind_an_object => Some(&COMMA),
        () if here.starts_with('\'') => Some(&SINGLE_QUOTES),
        () if begins(&["NaN", "nan", "Infinity", "-Infinity", "Inf", "-Inf", "inf"]) || before.ends_with('-') => {
            Some(&NO_NUMBER)
        }
        () if begins(&["None", "True", "False"]) => Some(&PYTHON),
        () if begins(&["}", "]"]) && before.trim_end().ends_with(',') => Some(&TRAILING),
        () if before.trim_end().ends_with(['{', ',']) && here.starts_with(|c: char| c.is_alphabetic() || c == '_') => {
            Some(&NO_QUOTES)
        }
        () => None,
    }
}

/// It has a delimiter of CSV, and no brace.
fn delimited(line: &str) -> bool {
    line.contains([',', ';', '\t', '|']) && !line.contains(['{', '}'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_often_sent_instead_is_known() {
        for (line, words) in [
            ("[{\"n\":1}]", "array"),
            ("[", "array"),
            ("\u{1e}{\"n\":1}", "RFC 7464"),
            ("\u{feff}{\"n\":1}", "byte order mark"),
            ("id,n", "CSV"),
            ("\"id\";\"n\"", "CSV"),
            ("{", "next line"),
            ("{ \"n\": [", "next line"),
            ("{\"n\":1}{\"n\":2}", "several objects"),
            ("{\"n\":1} \r{\"n\":2}", "several objects"),
            ("{\"n\":1},", "comma stands behind"),
            ("{'n': 1}", "single"),
            ("{\"n\": 'x'}", "single"),
            ("{n: 1}", "double quotes"),
            ("{\"n\":NaN}", "NaN"),
            ("{\"n\": -Infinity}", "NaN"),
            ("{\"n\": None}", "small letters"),
            ("{\"n\":1,}", "before the end"),
            ("{\"n\":[1,2,],\"m\":3}", "before the end"),
        ] {
            assert!(look(line).is_some_and(|look| look.is.contains(words)), "{line:?}: {:?}", look(line).map(|l| l.is));
        }
        for line in ["text", "\"a, b\" {", "12", "{\"n\":1} x", "{\"n\" 1}", "{\"n\":1}"] {
            assert!(look(line).is_none(), "{line:?}: {:?}", look(line).map(|look| look.is));
        }
    }

    #[test]
    fn objects_of_one_line_are_counted() {
        for (line, count) in [
            ("{\"a\":{\"b\":{}}}", 1),
            ("{\"a\":[{\"b\":1},{\"b\":2}], x}", 1),
            ("{}{} {}\r{}", 4),
            ("{}\u{1e}{}", 2),
            ("[{\"a\":1}, {\"a\":2},{\"a\":3}]", 3),
            ("{},{}", 1),
            ("x", 1),
        ] {
            assert_eq!(objects_of(line.as_bytes()), count, "{line}");
        }
    }

    #[test]
    fn a_line_that_may_be_the_beginning_of_one_is_known() {
        for line in ["{\"a\":1", "{\"a\":{\"b\":1}", "{\"a\":\"tex", "{\"a\":tr", "{\"a\":\"\u{e9}"] {
            assert!(is_cut(line.as_bytes()), "{line}");
        }
        assert!(is_cut(b"{\"a\":\"\xc3"));
        for line in ["{\"a\":NaN}", "[{\"a\":1", "x", "}", "{\"a\":1}}"] {
            assert!(!is_cut(line.as_bytes()), "{line}");
        }
    }
}
