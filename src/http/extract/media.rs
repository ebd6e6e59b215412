//! Media types: one list of names for what is uploaded and for what results are asked for, and how a header names one.

use crate::results::Format;

/// Every name that is taken. The one that is given out is [`Format::media_type`].
const NAMES: [(&str, Format); 15] = [
    ("text/csv", Format::Csv),
    ("application/csv", Format::Csv),
    ("text/x-csv", Format::Csv),
    ("application/x-csv", Format::Csv),
    ("text/comma-separated-values", Format::Csv),
    ("application/x-ndjson", Format::Ndjson),
    ("application/ndjson", Format::Ndjson),
    ("application/jsonl", Format::Ndjson),
    ("application/x-jsonl", Format::Ndjson),
    ("application/jsonlines", Format::Ndjson),
    ("application/x-jsonlines", Format::Ndjson),
    ("application/json-lines", Format::Ndjson),
    ("application/x-json-lines", Format::Ndjson),
    ("text/jsonl", Format::Ndjson),
    ("application/json", Format::Json),
];

/// A media type, or another word with parameters, as a header has it.
#[derive(Debug, PartialEq)]
pub(in crate::http) struct MediaType {
    name: String,
    parameters: Vec<(String, String)>,
}

impl MediaType {
    /// Reads one: `text/csv; header=absent`. Names and values are put in lower case.
    pub fn read(text: &str) -> MediaType {
        let mut parts = split(text, ';').into_iter().map(|part| part.trim().to_ascii_lowercase());
        let name = parts.next().unwrap_or_default();
        let parameters = parts.map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((&part, ""));
            (name.trim().to_owned(), value.trim().trim_matches('"').to_owned())
        });
        MediaType { name, parameters: parameters.collect() }
    }

    /// Reads a list of them, as in `Accept`.
    pub fn list(text: &str) -> Vec<MediaType> {
        split(text, ',').into_iter().map(MediaType::read).collect()
    }

    /// Without parameters.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The format that it is. `None` when it is of no known name.
    pub fn format(&self) -> Option<Format> {
        NAMES.iter().find(|(name, _)| *name == self.name).map(|(_, format)| *format)
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// How much it is wanted, from 0 to 1.
    pub fn weight(&self) -> f32 {
        self.parameter("q").and_then(|q| q.parse().ok()).unwrap_or(1.0)
    }

    /// Whether CSV has a header line, as it does where nothing says so (RFC 4180). `None` when the parameter is no
    /// answer.
    pub fn header(&self) -> Option<bool> {
        match self.parameter("header") {
            None | Some("present") => Some(true),
            Some("absent") => Some(false),
            Some(_) => None,
        }
    }

    /// It names no other encoding than UTF-8, of which ASCII is a part.
    pub fn is_utf8(&self) -> bool {
        self.parameter("charset").is_none_or(|charset| ["utf-8", "utf8", "us-ascii"].contains(&charset))
    }
}

/// Parts of a header's value; a separator in double quotes is none.
fn split(text: &str, separator: char) -> Vec<&str> {
    let mut in_quotes = false;
    let at_separator = |c: char| {
        in_quotes ^= c == '"';
        c == separator && !in_quotes
    };
    text.split(at_separator).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_types_are_read_with_their_parameters() {
        let read = |text: &str| {
            let read = MediaType::read(text);
            (read.format(), read.header(), read.is_utf8())
        };
        for format in Format::ALL {
            assert_eq!(read(format.media_type()), (Some(format), Some(true), true));
        }
        assert_eq!(read("Text/CSV; Charset=UTF-8 ;header=ABSENT"), (Some(Format::Csv), Some(false), true));
        assert_eq!(read("application/csv;charset=\"latin1\""), (Some(Format::Csv), Some(true), false));
        assert_eq!(read("text/csv; header"), (Some(Format::Csv), None, true));
        assert_eq!(read("text/plain"), (None, Some(true), true));
        assert_eq!(read(""), (None, Some(true), true));
        let list = MediaType::list("text/csv; x=\"a,b;c\"; q=0.5, application/json");
        assert_eq!((list.len(), list[0].weight(), list[1].format()), (2, 0.5, Some(Format::Json)));
    }
}
