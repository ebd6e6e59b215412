//! One look over a body before anything is read from it: JSON that two readers could understand differently, or that
//! Postgres can't hold, is refused with the place named.

use std::collections::{BTreeMap, HashSet};

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::http::problem::{Code, Problem};
use crate::queue::model::pointer::step;

/// How deep objects and arrays may be nested.
pub const MAX_DEPTH: usize = 64;

/// The members of an object, in the order of their names; values as they were written.
pub type Members<'b> = BTreeMap<String, &'b RawValue>;

/// Checks a body that must be one JSON object, and gives its members.
///
/// # Errors
/// 400 with the place: what isn't UTF-8 or JSON, names that stand twice, nesting over [`MAX_DEPTH`]. 422 for
/// `\u0000`, which JSON has and Postgres doesn't.
pub fn object(body: &[u8]) -> Result<Members<'_>, Problem> {
    if let Some(coding) = compressed(body) {
        return Err(malformed(&format!("it is compressed by {coding}")).hint("send the JSON as it is, uncompressed"));
    }
    let text = std::str::from_utf8(body)
        .map_err(|error| malformed(&format!("it is not UTF-8 from byte {} on", error.valid_up_to())))?;
    let value: &RawValue = parse(text)?;
    let mut names = HashSet::new();
    check(value, &mut String::new(), 0, &mut names)?;
    match kind(value) {
        Kind::Object => Ok(parse::<Object<'_>>(value.get())?.0.into_iter().collect()),
        _ => Err(malformed("it must be an object").field("", "expected an object")),
    }
}

/// What a body without a `Content-Encoding` was compressed by, told by its first bytes: no text begins so.
fn compressed(body: &[u8]) -> Option<&'static str> {
    let known: [(&[u8], &str); 2] = [(&[0x1f, 0x8b], "gzip"), (&[0x28, 0xb5, 0x2f, 0xfd], "zstd")];
    known.into_iter().find_map(|(magic, name)| body.starts_with(magic).then_some(name))
}

/// What a value is, told by its first character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `{…}`
    Object,
    /// `[…]`
    Array,
    /// `"…"`
    String,
    /// `null`
    Null,
    /// `true` or `false`
    Bool,
    /// A number.
    Number,
}

/// What a value is.
pub fn kind(value: &RawValue) -> Kind {
    match value.get().as_bytes().first() {
        Some(b'{') => Kind::Object,
        Some(b'[') => Kind::Array,
        Some(b'"') => Kind::String,
        Some(b'n') => Kind::Null,
        Some(b't' | b'f') => Kind::Bool,
        _ => Kind::Number,
    }
}

fn malformed(detail: &str) -> Problem {
    Problem::new(Code::MalformedJson, format!("the body can't be read: {detail}"))
}

fn parse<'t, T: Deserialize<'t>>(text: &'t str) -> Result<T, Problem> {
    serde_json::from_str(text).map_err(|error| {
        if error.to_string().starts_with("recursion limit") { too_deep("") } else { malformed(&error.to_string()) }
    })
}

fn too_deep(pointer: &str) -> Problem {
    malformed(&format!("it is nested more than {MAX_DEPTH} deep"))
        .field(pointer, format!("expected at most {MAX_DEPTH} levels"))
}

fn check(value: &RawValue, pointer: &mut String, depth: usize, names: &mut HashSet<String>) -> Result<(), Problem> {
    let length = pointer.len();
    match kind(value) {
        Kind::Object | Kind::Array if depth >= MAX_DEPTH => return Err(too_deep(pointer)),
        Kind::Object => {
            let members = parse::<Object<'_>>(value.get())?.0;
            names.clear();
            for (name, _) in &members {
                if !names.insert(name.clone()) {
                    let at = format!("{pointer}{}", step(name));
                    return Err(malformed("a name stands twice in an object").field(at, "expected each name once"));
                }
            }
            for (name, member) in members {
                pointer.push_str(&step(&name));
                check_text(&name, pointer)?;
                check(member, pointer, depth + 1, names)?;
                pointer.truncate(length);
            }
        }
        Kind::Array => {
            for (n, item) in parse::<Vec<&RawValue>>(value.get())?.into_iter().enumerate() {
                pointer.push_str(&format!("/{n}"));
                check(item, pointer, depth + 1, names)?;
                pointer.truncate(length);
            }
        }
        // Only an escape can hold the character: a raw one is no JSON.
        Kind::String if value.get().contains("\\u0000") => check_text(&parse::<String>(value.get())?, pointer)?,
        Kind::String => drop(parse::<String>(value.get())?),
        Kind::Null | Kind::Bool | Kind::Number => {}
    }
    Ok(())
}

fn check_text(text: &str, pointer: &str) -> Result<(), Problem> {
    if text.contains('\0') {
        return Err(Problem::new(
            Code::InvalidRequest,
            "a text holds the character \\u0000, which Postgres can't store",
        )
        .field(pointer, "expected a text without \\u0000"));
    }
    Ok(())
}

/// An object's members in order, names that stand twice included.
struct Object<'b>(Vec<(String, &'b RawValue)>);

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Object<'de>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<'de>, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry::<String, &'de RawValue>()? {
                    pairs.push(pair);
                }
                Ok(Object(pairs))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Object<'de>, A::Error> {
                Err(serde::de::Error::custom("expected an object"))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: &[u8]) -> (Code, String) {
        let problem = object(body).unwrap_err();
        (problem.code, format!("{problem:?}"))
    }

    #[test]
    fn what_two_readers_could_read_differently_is_refused() {
        assert!(object(br#"{"a":{"b":[1e999,"x"]},"c":null}"#).is_ok());
        for body in [&b""[..], b"nonsense", b"{", b"[1]", b"{\"a\":1} x", b"{\"a\":\"\xff\"}", br#"{"a":"\ud800"}"#] {
            assert_eq!(refused(body).0, Code::MalformedJson, "{body:?}");
        }
        for (body, name) in [(&b"\x1f\x8b\x08"[..], "gzip"), (b"\x28\xb5\x2f\xfd\x04", "zstd")] {
            let (code, text) = refused(body);
            assert!(code == Code::MalformedJson && text.contains(name), "{text}");
        }
        let (code, text) = refused(br#"{"a":{"x/y":1,"x/y":2}}"#);
        assert_eq!(code, Code::MalformedJson);
        assert!(text.contains("/a/x~1y"), "{text}");
        let (code, text) = refused(br#"{"args":{"p":["ok","a\u0000b"]}}"#);
        assert_eq!(code, Code::InvalidRequest);
        assert!(text.contains("/args/p/1"), "{text}");
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |n: usize| format!("{{\"a\":{}1{}}}", "[".repeat(n), "]".repeat(n));
        assert!(object(nested(MAX_DEPTH - 1).as_bytes()).is_ok());
        assert_eq!(refused(nested(MAX_DEPTH).as_bytes()).0, Code::MalformedJson);
        assert_eq!(refused(nested(5_000).as_bytes()).0, Code::MalformedJson);
    }
}
