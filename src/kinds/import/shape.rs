//! What a JSON value becomes in a column: the text form that the type of the column reads.
//!
//! A number keeps the literal that was written. Arrays, composite types and hstore have literals of their own, within one
//! another to any depth; everything else is the server's to read and to refuse.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use serde::Deserializer as _;
use serde::de::{Error as _, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::kinds::import::members::members;
use crate::pq::{PqError, Rows, Session};
use crate::queue::record::log::cut;

/// SQLSTATEs of values that have no form.
const NO_FORM: &str = "22P02";
const DUPLICATE_KEY: &str = "22030";
const UNKNOWN_KEY: &str = "42703";
const INVALID_JSON: &str = "22032";
const NUL: &str = "22P05";

/// The longest literal of an array, a composite or an hstore: 64 MiB, as long as a row of a file may be.
const MAX_LITERAL_BYTES: usize = 64 * 1024 * 1024;
/// The most dimensions of an array in Postgres.
const MAX_DIMENSIONS: usize = 6;
/// The deepest nesting of types that is looked at.
const MAX_DEPTH: usize = 32;
/// What is told of a key, in bytes.
const MAX_KEY_BYTES: usize = 100;

/// What a type is, as far as its text form is concerned. A domain is what it is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Anything that isn't one of the others.
    Scalar,
    /// json or jsonb: the JSON text itself.
    Json,
    /// hstore: an object's members.
    Hstore,
    /// A range or a multirange, by its name: no object is one.
    Range(String),
    /// An array.
    Array {
        element: Box<Shape>,
        /// What stands between elements: a comma for every type but box.
        delimiter: char,
    },
    /// A composite type: its name, and its fields in order.
    Composite { name: String, fields: Vec<(String, Shape)> },
}

/// Why a value has no form: the SQLSTATE of the same meaning, and what is wrong.
pub(super) type Refusal = (&'static str, String);

/// The types that some types are made of, themselves included.
const PARTS: &str = "WITH RECURSIVE part (oid) AS (
    SELECT u FROM pg_catalog.unnest($1::oid[]) u
     UNION
    SELECT inner_type.oid FROM part p JOIN pg_catalog.pg_type t ON t.oid = p.oid CROSS JOIN LATERAL (
        SELECT t.typbasetype WHERE t.typtype = 'd'
         UNION ALL
        SELECT e.oid FROM pg_catalog.pg_type e WHERE e.oid = t.typelem AND e.typarray = t.oid
         UNION ALL
        SELECT a.atttypid FROM pg_catalog.pg_attribute a
         WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
    ) inner_type (oid))";

/// The shapes of types, in the order of their oids.
pub(super) fn shapes(session: &mut Session, oids: &[u32]) -> Result<Vec<Shape>, PqError> {
    let list = format!("{{{}}}", oids.iter().map(u32::to_string).collect::<Vec<_>>().join(","));
    let types = session.query(
        &format!(
            "{PARTS} SELECT t.oid, t.typtype, t.typbasetype, coalesce(e.oid, 0), coalesce(e.typdelim, ','),
                    t.oid IN (114, 3802), pg_catalog.format_type(t.oid, NULL),
                    EXISTS (SELECT FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_extension x ON x.oid = d.refobjid
                             WHERE d.classid = 'pg_catalog.pg_type'::regclass AND d.objid = t.oid AND d.deptype = 'e'
                               AND d.refclassid = 'pg_catalog.pg_extension'::regclass
                               AND x.extname = 'hstore' AND t.typname = 'hstore')
               FROM part p JOIN pg_catalog.pg_type t ON t.oid = p.oid
               LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem AND e.typarray = t.oid"
        ),
        &[Some(&list)],
    )?;
    let fields = session.query(
        &format!(
            "{PARTS} SELECT t.oid, a.attname, a.atttypid FROM part p JOIN pg_catalog.pg_type t ON t.oid = p.oid
               JOIN pg_catalog.pg_attribute a ON a.attrelid = t.typrelid
              WHERE t.typtype = 'c' AND a.attnum > 0 AND NOT a.attisdropped ORDER BY t.oid, a.attnum"
        ),
        &[Some(&list)],
    )?;
    let types = Types { places: (0..types.len()).map(|row| (oid(&types, row, 0), row)).collect(), types, fields };
    Ok(oids.iter().map(|oid| types.shape(*oid, 0)).collect())
}

fn oid(rows: &Rows, row: usize, column: usize) -> u32 {
    rows.get(row, column).and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// Types as the catalog has them.
struct Types {
    types: Rows,
    fields: Rows,
    places: HashMap<u32, usize>,
}

impl Types {
    fn shape(&self, of: u32, depth: usize) -> Shape {
        let Some(row) = self.places.get(&of).copied().filter(|_| depth < MAX_DEPTH) else { return Shape::Scalar };
        let text = |column| self.types.get(row, column).unwrap_or_default();
        let element = oid(&self.types, row, 3);
        match text(1) {
            "d" => self.shape(oid(&self.types, row, 2), depth + 1),
            "c" => Shape::Composite { name: text(6).to_owned(), fields: self.fields_of(of, depth + 1) },
            "r" | "m" => Shape::Range(text(6).to_owned()),
            _ if text(5) == "t" => Shape::Json,
            _ if text(7) == "t" => Shape::Hstore,
            _ if element != 0 => Shape::Array {
                element: Box::new(self.shape(element, depth + 1)),
                delimiter: text(4).chars().next().unwrap_or(','),
            },
            _ => Shape::Scalar,
        }
    }

    fn fields_of(&self, of: u32, depth: usize) -> Vec<(String, Shape)> {
        let rows = (0..self.fields.len()).filter(|row| oid(&self.fields, *row, 0) == of);
        let field = |row| {
            let name = self.fields.get(row, 1).unwrap_or_default().to_owned();
            (name, self.shape(oid(&self.fields, row, 2), depth))
        };
        rows.map(field).collect()
    }
}

impl Shape {
    /// The text form of a value; `None` for JSON's null, which is NULL.
    ///
    /// # Errors
    /// When it has none.
    pub fn text<'v>(&self, value: &'v RawValue) -> Result<Option<Cow<'v, str>>, Refusal> {
        let text = value.get();
        let owned = |literal: String| Ok(Some(Cow::Owned(literal)));
        match (text.bytes().next(), self) {
            (Some(b'n'), _) => Ok(None),
            (_, Shape::Json) => Ok(Some(text.into())),
            (Some(b'"'), _) => string(text).map(Some),
            (Some(b'['), Shape::Array { element, delimiter }) => owned(array(value, element, *delimiter)?),
            (Some(b'{'), Shape::Composite { name, fields }) => owned(composite(text, name, fields)?),
            (Some(b'{'), Shape::Hstore) => owned(hstore(text)?),
            (Some(b'{'), Shape::Array { .. }) => {
                Err((NO_FORM, "an object is given, and the type is an array".to_owned()))
            }
            (Some(b'{'), Shape::Range(name)) => Err((
                NO_FORM,
                format!(
                    "an object is given, and the type is {name}: write it as a text, such as \"[1,5)\" or \"{{[1,5)}}\""
                ),
            )),
            _ => Ok(Some(text.into())),
        }
    }
}

/// The text that a JSON string stands for.
fn string(json: &str) -> Result<Cow<'_, str>, Refusal> {
    let text = match json.get(1..json.len().saturating_sub(1)).filter(|text| !text.contains('\\')) {
        Some(plain) => plain.into(),
        None => {
            let read = serde_json::from_str::<String>(json);
            read.map_err(|error| (INVALID_JSON, format!("the line is no JSON object: {error}")))?.into()
        }
    };
    without_nul(text)
}

fn without_nul(text: Cow<'_, str>) -> Result<Cow<'_, str>, Refusal> {
    if text.contains('\0') {
        return Err((NUL, "a text holds the character \\u0000, which Postgres can't store".to_owned()));
    }
    Ok(text)
}

fn bounded(literal: &str, what: &str) -> Result<(), Refusal> {
    if literal.len() > MAX_LITERAL_BYTES {
        return Err((NO_FORM, format!("{what} literal is longer than 64 MiB")));
    }
    Ok(())
}

/// A text in double quotes, with a backslash before quotes and backslashes: as arrays and hstore have it, and composites
/// read it too.
fn quoted(out: &mut String, text: &str) {
    out.push('"');
    let mut rest = text;
    while let Some(at) = rest.find(['"', '\\']) {
        let (plain, special) = rest.split_at(at);
        out.push_str(plain);
        out.push('\\');
        out.push_str(special.get(..1).unwrap_or_default());
        rest = special.get(1..).unwrap_or_default();
    }
    out.push_str(rest);
    out.push('"');
}

/// The literal of a composite type: fields in parentheses, nothing for NULL. A field that the object lacks is NULL.
fn composite(text: &str, name: &str, fields: &[(String, Shape)]) -> Result<String, Refusal> {
    let mut values: Vec<Option<&RawValue>> = vec![None; fields.len()];
    let mut refusal = None;
    let read = members(text, |key, value| {
        let place = fields.iter().position(|(name, _)| name == key);
        match place.and_then(|place| values.get_mut(place)) {
            Some(slot @ None) => *slot = Some(value),
            Some(Some(_)) => drop(refusal.get_or_insert_with(|| twice(key))),
            None => drop(refusal.get_or_insert_with(|| unknown_field(key, name))),
        }
    });
    read.map_err(|error| (INVALID_JSON, format!("the value is no JSON object: {error}")))?;
    if let Some(refusal) = refusal {
        return Err(refusal);
    }
    let mut out = "(".to_owned();
    for (n, (value, (field, shape))) in values.into_iter().zip(fields).enumerate() {
        if n > 0 {
            out.push(',');
        }
        let within = |(sqlstate, what): Refusal| (sqlstate, format!("field {field:?}: {what}"));
        if let Some(text) = value.map(|value| shape.text(value)).transpose().map_err(within)?.flatten() {
            quoted(&mut out, &text);
        }
        bounded(&out, "a composite's")?;
    }
    out.push(')');
    Ok(out)
}

fn twice(key: &str) -> Refusal {
    (DUPLICATE_KEY, format!("the key {:?} stands twice", cut(key, MAX_KEY_BYTES)))
}

fn unknown_field(key: &str, type_name: &str) -> Refusal {
    (UNKNOWN_KEY, format!("{type_name} has no field {:?}", cut(key, MAX_KEY_BYTES)))
}

/// The literal of an hstore. Its values are texts: numbers keep their literal, objects and arrays become their JSON text.
fn hstore(text: &str) -> Result<String, Refusal> {
    let mut out = String::new();
    let mut seen = std::collections::HashSet::new();
    let mut wrong = Ok(());
    let read = members(text, |key, value| {
        if wrong.is_ok() {
            wrong = hstore_member(&mut out, &mut seen, key, value);
        }
    });
    read.map_err(|error| (INVALID_JSON, format!("the value is no JSON object: {error}")))?;
    wrong.map(|()| out)
}

fn hstore_member(
    out: &mut String,
    seen: &mut std::collections::HashSet<String>,
    key: &str,
    value: &RawValue,
) -> Result<(), Refusal> {
    without_nul(key.into())?;
    if !seen.insert(key.to_owned()) {
        return Err(twice(key));
    }
    if !out.is_empty() {
        out.push_str(", ");
    }
    quoted(out, key);
    out.push_str("=>");
    match Shape::Scalar.text(value)? {
        Some(text) => quoted(out, &text),
        None => out.push_str("NULL"),
    }
    bounded(out, "an hstore's")
}

fn array(value: &RawValue, element: &Shape, delimiter: char) -> Result<String, Refusal> {
    let mut literal = Literal { out: String::new(), element, delimiter, dimension: 0, wrong: None };
    literal.array(value)?;
    Ok(literal.out)
}

/// An array literal as Postgres' manual describes it (section 8.15.6): every element but NULL in double quotes. Written
/// as the array is read: a list of its elements would take many times what they take.
struct Literal<'s> {
    out: String,
    element: &'s Shape,
    delimiter: char,
    dimension: usize,
    /// Why it was given up.
    wrong: Option<Refusal>,
}

impl Literal<'_> {
    fn array(&mut self, value: &RawValue) -> Result<(), Refusal> {
        if self.dimension >= MAX_DIMENSIONS {
            return Err((NO_FORM, "an array has more than 6 dimensions".to_owned()));
        }
        self.dimension += 1;
        let read = serde_json::Deserializer::from_str(value.get()).deserialize_seq(&mut *self);
        self.dimension -= 1;
        read.map_err(|_| self.wrong.take().unwrap_or_else(|| (NO_FORM, "it is no valid array".to_owned())))
    }

    fn element(&mut self, item: &RawValue) -> Result<(), Refusal> {
        match (item.get().bytes().next(), self.element) {
            (Some(b'n'), _) => self.out.push_str("NULL"),
            // An element that is an array itself is of a domain over one, and not another dimension.
            (Some(b'['), Shape::Scalar | Shape::Hstore | Shape::Range(_) | Shape::Composite { .. }) => {
                self.array(item)?
            }
            (Some(b'{'), Shape::Scalar) => {
                let what = "an object stands in an array that isn't one of json, hstore or a composite type";
                return Err((NO_FORM, what.to_owned()));
            }
            (_, shape) => {
                if let Some(text) = shape.text(item)? {
                    quoted(&mut self.out, &text);
                }
            }
        }
        bounded(&self.out, "an array's")
    }
}

impl<'de> Visitor<'de> for &mut Literal<'_> {
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
                A::Error::custom("given up")
            })?;
        }
        self.out.push('}');
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array_of(element: Shape) -> Shape {
        Shape::Array { element: Box::new(element), delimiter: ',' }
    }

    fn pair() -> Shape {
        let fields = vec![("x".to_owned(), Shape::Scalar), ("y".to_owned(), Shape::Json)];
        Shape::Composite { name: "pair".to_owned(), fields }
    }

    fn text(shape: &Shape, json: &str) -> Result<Option<String>, Refusal> {
        let value = RawValue::from_string(json.to_owned()).unwrap();
        shape.text(&value).map(|text| text.map(Cow::into_owned))
    }

    #[test]
    fn values_have_the_literal_of_their_type() {
        let nested = Shape::Composite { name: "n".to_owned(), fields: vec![("p".to_owned(), array_of(pair()))] };
        for (shape, json, expected) in [
            (Shape::Scalar, r#"{"a": 1}"#, r#"{"a": 1}"#),
            (Shape::Scalar, "123456789012345678901234567890.10", "123456789012345678901234567890.10"),
            (Shape::Json, r#""s""#, r#""s""#),
            (
                Shape::Hstore,
                r#"{"k\"":"v\\", "n": null, "d": 1.50, "o": {"a": [true]}, "": ""}"#,
                r#""k\""=>"v\\", "n"=>NULL, "d"=>"1.50", "o"=>"{\"a\": [true]}", ""=>"""#,
            ),
            (Shape::Hstore, "{}", ""),
            (Shape::Hstore, r#""k=>v""#, "k=>v"),
            (pair(), r#"{"y": {"k": "a\"b"}, "x": "1, 2"}"#, r#"("1, 2","{\"k\": \"a\\\"b\"}")"#),
            (pair(), "{}", "(,)"),
            (pair(), r#"{"x": null, "y": []}"#, r#"(,"[]")"#),
            (pair(), r#""(1,2)""#, "(1,2)"),
            (nested, r#"{"p": [{"x": "\""}, null]}"#, r#"("{\"(\\\"\\\\\\\"\\\",)\",NULL}")"#),
            (array_of(Shape::Json), r#"[{"a":[1]}, null]"#, r#"{"{\"a\":[1]}",NULL}"#),
            (array_of(Shape::Hstore), r#"[{"a":1}]"#, r#"{"\"a\"=>\"1\""}"#),
            (array_of(Shape::Scalar), r#"[1, null, [true], "NULL", ""]"#, r#"{"1",NULL,{"true"},"NULL",""}"#),
            (array_of(array_of(Shape::Scalar)), "[[1],[2,3]]", r#"{"{\"1\"}","{\"2\",\"3\"}"}"#),
            (Shape::Range("int4range".to_owned()), "[1,5]", "[1,5]"),
        ] {
            assert_eq!(text(&shape, json).unwrap().as_deref(), Some(expected), "{json}");
        }
        assert_eq!(text(&pair(), "null"), Ok(None));
        assert_eq!(text(&Shape::Json, "null"), Ok(None));
    }

    #[test]
    fn what_has_no_form_says_why() {
        for (shape, json, sqlstate, words) in [
            (pair(), r#"{"z": 1}"#, UNKNOWN_KEY, "pair has no field \"z\""),
            (pair(), r#"{"x": 1, "x": 2}"#, DUPLICATE_KEY, "\"x\" stands twice"),
            (pair(), r#"{"x": "\u0000"}"#, NUL, "field \"x\": a text holds"),
            (Shape::Hstore, r#"{"x": 1, "x": 2}"#, DUPLICATE_KEY, "stands twice"),
            (Shape::Hstore, r#"{"\u0000": 1}"#, NUL, "u0000"),
            (Shape::Range("daterange".to_owned()), r#"{"from": 1}"#, NO_FORM, "the type is daterange"),
            (array_of(Shape::Scalar), "{}", NO_FORM, "the type is an array"),
            (array_of(Shape::Scalar), "[[{}]]", NO_FORM, "an object stands"),
            (array_of(pair()), r#"[{"z": 1}]"#, UNKNOWN_KEY, "no field"),
            (array_of(Shape::Scalar), "[[[[[[[1]]]]]]]", NO_FORM, "more than 6 dimensions"),
        ] {
            let (state, message) = text(&shape, json).unwrap_err();
            assert!(state == sqlstate && message.contains(words), "{json}: {state} {message}");
        }
        let long = format!("[{}1]", "1,".repeat(17 << 20));
        assert!(text(&array_of(Shape::Scalar), &long).unwrap_err().1.contains("longer than 64 MiB"));
    }
}
