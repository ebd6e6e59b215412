//! Parameters of statements: JSON values as the text forms that Postgres reads.
//!
//! A number keeps the literal that the caller wrote: no float comes in between, which would turn
//! 12345678901234567890123 into 1.2345678901234568e+22. What a value becomes follows the type that the server
//! described. Knows JSON and text; the types are looked up by its callers.

use std::ffi::CString;
use std::fmt;

use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer as _};
use serde_json::value::RawValue;

use crate::queue::ErrorCode;
use crate::work::ArgError;

/// The most parameters that the protocol can carry.
pub const MAX_PARAMS: usize = 65_535;

/// The most dimensions of an array in Postgres.
const MAX_DIMENSIONS: usize = 6;

/// The longest literal of an array: 64 MiB, as long as a row of a file may be.
const MAX_LITERAL_BYTES: usize = 64 * 1024 * 1024;

/// What a described type is, as far as its text form is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParamType {
    /// Anything that isn't one of the others.
    Scalar,
    /// json or jsonb: the JSON text itself.
    Json,
    /// An array.
    Array {
        /// Its elements are json or jsonb.
        of_json: bool,
        /// What stands between elements: a comma for every type but box.
        delimiter: char,
    },
}

/// A value that can't be sent as the type that the server described.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ParamError {
    /// `parameter_count` or `invalid_parameter`.
    pub code: ErrorCode,
    /// What is wrong, with the value's place.
    pub message: String,
}

/// A value that names its type itself.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Typed<'v> {
    #[serde(rename = "type")]
    type_name: String,
    #[serde(borrow)]
    value: &'v RawValue,
}

fn is(value: &RawValue, first: char) -> bool {
    value.get().starts_with(first)
}

fn typed(value: &RawValue) -> Option<Typed<'_>> {
    if is(value, '{') { serde_json::from_str(value.get()).ok() } else { None }
}

/// What can be said about the parameters at `place` (a JSON pointer) before a server has seen the statement.
pub fn check(place: &str, params: &[Box<RawValue>]) -> Vec<ArgError> {
    let mut errors = Vec::new();
    if params.len() > MAX_PARAMS {
        errors.push(ArgError::new(place, format!("expected at most {MAX_PARAMS} values")));
    }
    for (n, value) in params.iter().enumerate() {
        let pointer = format!("{place}/{n}");
        if is(value, '{') && typed(value).is_none() {
            errors.push(ArgError::new(&pointer, "expected a scalar, an array, or {\"type\": …, \"value\": …}"));
        }
        if holds_nul(value) {
            errors.push(ArgError::new(pointer, "expected a text without \\u0000, which Postgres can't store"));
        }
    }
    errors
}

/// An escape of NUL behind an even number of backslashes; a raw one is no JSON.
fn holds_nul(value: &RawValue) -> bool {
    let text = value.get();
    text.match_indices("\\u0000").any(|(at, _)| {
        let before = text.get(..at).unwrap_or_default();
        before.bytes().rev().take_while(|b| *b == b'\\').count() % 2 == 0
    })
}

/// The types that values name themselves.
pub fn explicit_types(params: &[Box<RawValue>]) -> Vec<Option<String>> {
    params.iter().map(|value| typed(value).map(|typed| typed.type_name)).collect()
}

/// The text form of each value, for the types that the server described. `None` is NULL.
///
/// # Errors
/// `parameter_count` when there are more or fewer values than the statement has; `invalid_parameter` for a value that
/// has no form in its type: an array or object where a scalar is expected.
pub fn encode(params: &[Box<RawValue>], types: &[ParamType]) -> Result<Vec<Option<CString>>, ParamError> {
    if params.len() != types.len() {
        let message = format!("the statement has {} parameters, and params has {} values", types.len(), params.len());
        return Err(ParamError { code: ErrorCode::ParameterCount, message });
    }
    let values = params.iter().zip(types).enumerate();
    values.map(|(n, (value, kind))| encode_one(value, *kind).map_err(|what| refused(n, what))).collect()
}

fn refused(n: usize, what: &str) -> ParamError {
    ParamError { code: ErrorCode::InvalidParameter, message: format!("/params/{n}: {what}") }
}

fn encode_one(given: &RawValue, kind: ParamType) -> Result<Option<CString>, &'static str> {
    let typed = typed(given);
    let value = typed.as_ref().map_or(given, |typed| typed.value);
    let text = match kind {
        // The only way to say JSON's own null is to name the type: a bare null is SQL's.
        ParamType::Json if typed.is_some() => value.get().to_owned(),
        _ if value.get() == "null" => return Ok(None),
        ParamType::Json => value.get().to_owned(),
        ParamType::Array { of_json, delimiter } if is(value, '[') => array_literal(value, of_json, delimiter)?,
        ParamType::Array { .. } | ParamType::Scalar => scalar(value)?,
    };
    CString::new(text).map(Some).map_err(|_| "a text holds the character \\u0000, which Postgres can't store")
}

fn scalar(value: &RawValue) -> Result<String, &'static str> {
    match value.get().chars().next() {
        Some('"') => serde_json::from_str(value.get()).map_err(|_| "it is no valid string"),
        Some('[') => Err(
            "an array is given, and the statement expects a scalar there; name another type with {\"type\": …, \"value\": …}",
        ),
        Some('{') => Err("an object is given, and the statement expects a scalar there"),
        _ => Ok(value.get().to_owned()),
    }
}

/// A JSON array as the literal of an array.
///
/// # Errors
/// What it holds that has no form there, and that the literal would be longer than [`MAX_LITERAL_BYTES`].
fn array_literal(value: &RawValue, of_json: bool, delimiter: char) -> Result<String, &'static str> {
    let mut literal = Literal { out: String::new(), of_json, delimiter, dimension: 0, wrong: None };
    literal.array(value)?;
    Ok(literal.out)
}

/// An array literal as Postgres' manual describes it (section 8.15.6): every element but NULL in double quotes. Written
/// as the array is read: a list of its elements would take many times what they take.
struct Literal {
    out: String,
    of_json: bool,
    delimiter: char,
    dimension: usize,
    /// Why it was given up.
    wrong: Option<&'static str>,
}

impl Literal {
    fn array(&mut self, value: &RawValue) -> Result<(), &'static str> {
        if self.dimension >= MAX_DIMENSIONS {
            return Err("an array has more than 6 dimensions");
        }
        self.dimension += 1;
        let read = serde_json::Deserializer::from_str(value.get()).deserialize_seq(&mut *self);
        self.dimension -= 1;
        read.map_err(|_| self.wrong.unwrap_or("it is no valid array"))
    }

    fn element(&mut self, item: &RawValue) -> Result<(), &'static str> {
        match item.get().chars().next() {
            Some('n') => self.out.push_str("NULL"),
            _ if self.of_json => quoted(&mut self.out, item.get()),
            Some('[') => self.array(item)?,
            Some('{') => return Err("an object stands in an array that isn't one of json or jsonb"),
            _ => quoted(&mut self.out, &scalar(item)?),
        }
        if self.out.len() > MAX_LITERAL_BYTES { Err("an array's literal is longer than 64 MiB") } else { Ok(()) }
    }
}

impl<'de> Visitor<'de> for &mut Literal {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        self.out.push('{');
        let mut first = true;
        while let Some(item) = items.next_element::<&RawValue>()? {
            if !std::mem::take(&mut first) {
                self.out.push(self.delimiter);
            }
            self.element(item).map_err(|wrong| {
                self.wrong = Some(wrong);
                A::Error::custom(wrong)
            })?;
        }
        self.out.push('}');
        Ok(())
    }
}

fn quoted(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        if matches!(c, '"' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    fn one(text: &str, kind: ParamType) -> Result<Option<String>, ParamError> {
        let mut values = encode(&[raw(text)], &[kind])?;
        Ok(values.remove(0).map(|value| value.into_string().unwrap()))
    }

    const ARRAY: ParamType = ParamType::Array { of_json: false, delimiter: ',' };

    #[test]
    fn literals_stay_what_they_are() {
        for number in ["12345678901234567890123", "0.10", "-1e400", "1E5"] {
            assert_eq!(one(number, ParamType::Scalar).unwrap().as_deref(), Some(number));
        }
        assert_eq!(one("true", ParamType::Scalar).unwrap().as_deref(), Some("true"));
        assert_eq!(one("\"a\\u00e9\\n\"", ParamType::Scalar).unwrap().as_deref(), Some("a\u{e9}\n"));
        assert_eq!(one("null", ParamType::Json).unwrap(), None);
        assert_eq!(one("{\"type\":\"jsonb\",\"value\":null}", ParamType::Json).unwrap().as_deref(), Some("null"));
        assert_eq!(
            one("{\"type\":\"json\",\"value\":{\"b\": 1.0}}", ParamType::Json).unwrap().as_deref(),
            Some("{\"b\": 1.0}")
        );
        assert_eq!(one("\"a\"", ParamType::Json).unwrap().as_deref(), Some("\"a\""));
        assert_eq!(one("[1, 2]", ParamType::Json).unwrap().as_deref(), Some("[1, 2]"));
    }

    #[test]
    fn arrays_become_array_literals() {
        let text = one("[1, null, \"a\\\"b\\\\c, d\", [true], \"NULL\", \"\"]", ARRAY).unwrap();
        assert_eq!(text.as_deref(), Some(r#"{"1",NULL,"a\"b\\c, d",{"true"},"NULL",""}"#));
        let of_json = ParamType::Array { of_json: true, delimiter: ',' };
        assert_eq!(one("[{\"a\":[1]}, null]", of_json).unwrap().as_deref(), Some(r#"{"{\"a\":[1]}",NULL}"#));
        assert_eq!(one("\"{1,2}\"", ARRAY).unwrap().as_deref(), Some("{1,2}"));
        assert_eq!(
            one("[\"(1,1),(0,0)\"]", ParamType::Array { of_json: false, delimiter: ';' }).unwrap().as_deref(),
            Some(r#"{"(1,1),(0,0)"}"#)
        );
        assert_eq!(one("[]", ARRAY).unwrap().as_deref(), Some("{}"));
        for (text, words) in [
            (format!("{}1{}", "[".repeat(7), "]".repeat(7)), "more than 6 dimensions"),
            ("[[{}]]".to_owned(), "an object stands"),
            (format!("[{}1]", "1,".repeat(17 << 20)), "longer than 64 MiB"),
        ] {
            let message = one(&text, ARRAY).unwrap_err().message;
            assert!(message.contains(words), "{message}");
        }
    }

    #[test]
    fn what_has_no_form_is_refused_with_its_place() {
        assert_eq!(encode(&[raw("1")], &[]).unwrap_err().code, ErrorCode::ParameterCount);
        assert!(one("[1]", ParamType::Scalar).unwrap_err().message.starts_with("/params/0: an array"));
        let pointers: Vec<String> =
            check("/params", &[raw("1"), raw("{\"a\":1}"), raw("[\"x\\u0000\"]"), raw("\"\\\\u0000\"")])
                .into_iter()
                .map(|e| e.pointer)
                .collect();
        assert_eq!(pointers, ["/params/1", "/params/2"]);
    }
}
