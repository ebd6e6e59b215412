//! Rows as JSON objects: what JSON can hold exactly is a literal, everything else is a string.
//!
//! `int8` and `numeric` are strings, because most readers would round them; so are NaN and the infinities. `json` and
//! `jsonb` are themselves. A `timestamp` and a `timestamptz` are what PostgreSQL's `to_json` makes of them, in the time
//! zone of the session that wrote them; within an array, a range or a composite they stay as that one's text has them.
//! Of columns with the same name, later ones get `_2`, `_3` and so on.

use std::collections::HashSet;

use crate::results::Column;
use crate::results::rows::Value;

/// How the text of a type becomes JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Literal,
    Float,
    Bool,
    Json,
    Timestamp,
    Timestamptz,
    Text,
}

/// The forms by the oids of PostgreSQL's own types (src/include/catalog/pg_type.dat).
fn form_of(type_oid: u32) -> Form {
    match type_oid {
        16 => Form::Bool,
        21 | 23 | 26 => Form::Literal,
        700 | 701 => Form::Float,
        114 | 3802 => Form::Json,
        1114 => Form::Timestamp,
        1184 => Form::Timestamptz,
        _ => Form::Text,
    }
}

/// Writes rows as JSON objects.
pub(super) struct Encoder {
    /// For each column: what stands before its value, and its form.
    columns: Vec<(Vec<u8>, Form)>,
    fixed: usize,
}

impl Encoder {
    pub fn new(columns: &[Column]) -> Encoder {
        let columns: Vec<(Vec<u8>, Form)> = unique_names(columns)
            .into_iter()
            .zip(columns)
            .enumerate()
            .map(|(n, (name, column))| {
                let mut prefix = vec![if n == 0 { b'{' } else { b',' }];
                append_string(&mut prefix, name.as_bytes());
                prefix.push(b':');
                (prefix, form_of(column.type_oid))
            })
            .collect();
        // Without columns the opening bracket has no prefix to stand in.
        let opening = usize::from(columns.is_empty());
        let fixed = columns.iter().map(|(prefix, _)| prefix.len()).sum::<usize>() + opening + 1;
        Encoder { columns, fixed }
    }

    /// Appends one object.
    pub fn append(&self, out: &mut Vec<u8>, values: &[Value<'_>]) {
        if self.columns.is_empty() {
            out.push(b'{');
        }
        for ((prefix, form), value) in self.columns.iter().zip(values) {
            out.extend_from_slice(prefix);
            match value {
                None => out.extend_from_slice(b"null"),
                Some(value) => append_value(out, *form, value),
            }
        }
        out.push(b'}');
    }

    /// The length of one object.
    pub fn length(&self, values: &[Value<'_>]) -> usize {
        let lengths =
            self.columns.iter().zip(values).map(|((_, form), value)| value.map_or(4, |v| value_length(*form, v)));
        self.fixed + lengths.sum::<usize>()
    }
}

fn unique_names(columns: &[Column]) -> Vec<String> {
    let given: HashSet<&str> = columns.iter().map(|column| column.name.as_str()).collect();
    let mut taken: HashSet<String> = HashSet::new();
    columns
        .iter()
        .map(|column| {
            let mut name = column.name.clone();
            let mut n = 2;
            while taken.contains(&name) || (n > 2 && given.contains(name.as_str())) {
                name = format!("{}_{n}", column.name);
                n += 1;
            }
            taken.insert(name.clone());
            name
        })
        .collect()
}

fn append_value(out: &mut Vec<u8>, form: Form, value: &[u8]) {
    match form {
        Form::Literal => out.extend_from_slice(value),
        Form::Float if is_finite(value) => out.extend_from_slice(value),
        Form::Bool => out.extend_from_slice(if value == b"t" { b"true" } else { b"false" }),
        // Line ends outside strings are blanks in JSON, and can't stand inside them.
        Form::Json => out.extend(value.iter().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte })),
        Form::Timestamp | Form::Timestamptz => append_timestamp(out, value, form == Form::Timestamptz),
        Form::Float | Form::Text => append_string(out, value),
    }
}

fn value_length(form: Form, value: &[u8]) -> usize {
    match form {
        Form::Literal | Form::Json => value.len(),
        Form::Float if is_finite(value) => value.len(),
        Form::Bool => {
            if value == b"t" {
                4
            } else {
                5
            }
        }
        Form::Timestamp | Form::Timestamptz => {
            let zone = form == Form::Timestamptz && zone_of_hours(value).is_some();
            2 + value.len() + if zone { 3 } else { 0 }
        }
        Form::Float | Form::Text => 2 + value.iter().map(|byte| escaped_length(*byte)).sum::<usize>(),
    }
}

fn is_finite(value: &[u8]) -> bool {
    value.last().is_some_and(u8::is_ascii_digit)
}

/// Where the zone of a timestamptz ends that is one of whole hours, such as `+02`: at its end, or before ` BC`. One
/// with minutes is complete.
fn zone_of_hours(value: &[u8]) -> Option<usize> {
    let end = value.strip_suffix(b" BC").unwrap_or(value);
    let sign = end.iter().rposition(|byte| matches!(byte, b'+' | b'-'))?;
    // A sign before the time of day is one of the date.
    let time = end.iter().position(|byte| *byte == b' ')?;
    let digits = end.get(sign + 1..)?;
    (sign > time && !digits.is_empty() && digits.iter().all(u8::is_ascii_digit)).then_some(end.len())
}

/// `2013-01-01 05:00:00+02` becomes `"2013-01-01T05:00:00+02:00"`. Infinities have no blank and stay.
fn append_timestamp(out: &mut Vec<u8>, value: &[u8], with_zone: bool) {
    out.push(b'"');
    let zone_end = if with_zone { zone_of_hours(value) } else { None };
    let mut separated = false;
    for (n, byte) in value.iter().enumerate() {
        if Some(n) == zone_end {
            out.extend_from_slice(b":00");
        }
        let separates = *byte == b' ' && !separated;
        separated |= separates;
        out.push(if separates { b'T' } else { *byte });
    }
    if zone_end == Some(value.len()) {
        out.extend_from_slice(b":00");
    }
    out.push(b'"');
}

fn append_string(out: &mut Vec<u8>, value: &[u8]) {
    out.push(b'"');
    for &byte in value {
        match short_escape(byte) {
            Some(letter) => out.extend_from_slice(&[b'\\', letter]),
            None if byte < 0x20 => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            None => out.push(byte),
        }
    }
    out.push(b'"');
}

fn short_escape(byte: u8) -> Option<u8> {
    match byte {
        b'"' | b'\\' => Some(byte),
        b'\n' => Some(b'n'),
        b'\r' => Some(b'r'),
        b'\t' => Some(b't'),
        0x08 => Some(b'b'),
        0x0c => Some(b'f'),
        _ => None,
    }
}

fn escaped_length(byte: u8) -> usize {
    match byte {
        b'"' | b'\\' => 2,
        0x20.. => 1,
        _ if short_escape(byte).is_some() => 2,
        _ => 6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, type_oid: u32) -> Column {
        Column { name: name.to_owned(), type_oid, type_name: String::new() }
    }

    fn encode(columns: &[Column], values: &[Value<'_>]) -> String {
        let encoder = Encoder::new(columns);
        let mut out = Vec::new();
        encoder.append(&mut out, values);
        assert_eq!(out.len(), encoder.length(values));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn each_type_has_its_form() {
        let cases: [(u32, &str, &str); 18] = [
            (23, "42", "42"),
            (20, "9007199254740993", "\"9007199254740993\""),
            (1700, "1.10", "\"1.10\""),
            (701, "1.5e-07", "1.5e-07"),
            (701, "NaN", "\"NaN\""),
            (701, "-Infinity", "\"-Infinity\""),
            (16, "t", "true"),
            (16, "f", "false"),
            (114, "{\"a\":\n 1}", "{\"a\":  1}"),
            (1184, "2013-01-01 05:00:00+00", "\"2013-01-01T05:00:00+00:00\""),
            (1184, "0044-03-15 00:00:00.5+00 BC", "\"0044-03-15T00:00:00.5+00:00 BC\""),
            (1184, "2024-06-01 00:30:00+02", "\"2024-06-01T00:30:00+02:00\""),
            (1184, "2024-06-01 00:30:00-03:30", "\"2024-06-01T00:30:00-03:30\""),
            (1184, "1800-06-01 00:30:00.25+00:53:28", "\"1800-06-01T00:30:00.25+00:53:28\""),
            (1184, "0044-03-15 00:00:00-05 BC", "\"0044-03-15T00:00:00-05:00 BC\""),
            (1184, "infinity", "\"infinity\""),
            (1114, "2013-01-01 05:00:00", "\"2013-01-01T05:00:00\""),
            (25, "a\"\\\u{1}\n\u{e9}", "\"a\\\"\\\\\\u0001\\n\u{e9}\""),
        ];
        for (oid, text, json) in cases {
            assert_eq!(encode(&[column("x", oid)], &[Some(text.as_bytes())]), format!("{{\"x\":{json}}}"));
        }
        assert_eq!(encode(&[column("x", 25)], &[None]), "{\"x\":null}");
        assert_eq!(encode(&[], &[]), "{}");
    }

    #[test]
    fn duplicate_names_are_told_apart() {
        let columns = [column("a", 25), column("a", 25), column("a_2", 25), column("a", 25)];
        assert_eq!(unique_names(&columns), ["a", "a_3", "a_2", "a_4"]);
    }
}
