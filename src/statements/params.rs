//! Parameters of a saved statement: what a value may be.
//!
//! A value keeps the literal that its caller wrote, and numbers are compared as they are written. Types are names of
//! Postgres' own; what this file knows of them decides which JSON stands for a value, and a type that it doesn't know
//! takes a string, as Postgres reads it.

use std::collections::BTreeMap;

use chrono::NaiveDate;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::queue::model::pointer::step;
use crate::statements::bounds::{Bound, Bounds, Capacity, Values, characters, compiled, outside};
use crate::statements::decimal::Decimal;
use crate::statements::literal::Literal;
use crate::statements::shape::{Shape, shape_of};

/// Unknown parameters of a call that are named.
const MAX_UNKNOWN: usize = 20;
/// The most `values` of a parameter.
const MAX_VALUES: usize = 1_000;

/// A table `[[params]]` of a header.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ParamEntry {
    pub name: String,
    #[serde(rename = "type")]
    type_name: String,
    description: Option<String>,
    default: Option<Literal>,
    minimum: Option<Literal>,
    maximum: Option<Literal>,
    min_length: Option<u64>,
    max_length: Option<u64>,
    pattern: Option<String>,
    values: Option<Literal>,
    min_items: Option<u64>,
    max_items: Option<u64>,
    #[serde(default)]
    nullable: bool,
}

/// The keys of `[[params]]`.
pub const PARAM_KEYS: [&str; 13] = [
    "name",
    "type",
    "description",
    "default",
    "minimum",
    "maximum",
    "min_length",
    "max_length",
    "pattern",
    "values",
    "min_items",
    "max_items",
    "nullable",
];

/// A value that a parameter doesn't take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueError {
    /// A JSON pointer from the values, such as `/month`.
    pub pointer: String,
    /// What was expected.
    pub detail: String,
}

/// A parameter: `$n` of the statement.
#[derive(Clone, Debug)]
pub struct Param {
    /// What callers call it.
    pub name: String,
    /// The type in Postgres, such as `integer` or `text[]`.
    pub type_name: String,
    pub(super) description: Option<String>,
    pub(super) default: Option<Box<RawValue>>,
    pub(super) shape: Shape,
    pub(super) is_array: bool,
    pub(super) nullable: bool,
    pub(super) bounds: Bounds,
}

/// Letters, digits and what else a name of a type can have, so that it is one whatever it is called.
fn is_type_name(text: &str) -> bool {
    let known = |c: char| c.is_alphanumeric() || matches!(c, '_' | ' ' | '.' | '(' | ')' | ',' | '"');
    let base = text.strip_suffix("[]").unwrap_or(text);
    !base.trim().is_empty() && text.len() <= 256 && base.chars().all(known)
}

pub(super) fn is_name(text: &str) -> bool {
    let begins = text.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    begins && text.len() <= 63 && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

impl Param {
    /// What an entry says, checked.
    pub(super) fn read(entry: ParamEntry) -> Result<Param, String> {
        if !is_name(&entry.name) {
            return Err(
                "a parameter's name has letters, digits and `_`, begins with no digit, and is no longer than 63"
                    .to_owned(),
            );
        }
        let name = &entry.name;
        let wrong = |what: &str| Err(format!("params.{name}: {what}"));
        if !is_type_name(&entry.type_name) {
            return wrong("type: expected the name of a type of Postgres, such as integer or text[]");
        }
        let base = entry.type_name.strip_suffix("[]");
        let is_array = base.is_some();
        let shape = shape_of(base.unwrap_or(&entry.type_name));
        let numeric = matches!(shape, Shape::Integer(..) | Shape::Number);
        let textual = matches!(shape, Shape::Text(_));
        for (key, given, fits) in [
            ("minimum", entry.minimum.is_some(), numeric),
            ("maximum", entry.maximum.is_some(), numeric),
            ("min_length", entry.min_length.is_some(), textual),
            ("max_length", entry.max_length.is_some(), textual),
            ("pattern", entry.pattern.is_some(), textual),
            ("values", entry.values.is_some(), numeric || textual),
            ("min_items", entry.min_items.is_some(), is_array),
            ("max_items", entry.max_items.is_some(), is_array),
            // Of these, null is a value of its own.
            ("nullable", entry.nullable, shape != Shape::Json || is_array),
        ] {
            if given && !fits {
                return wrong(&format!("{key} doesn't go with the type {}", entry.type_name));
            }
        }
        let number = |key: &str, value: Option<Literal>| {
            let Some(Literal(shown)) = value else { return Ok(None) };
            let bound = Decimal::read(shown.get()).map(|number| Bound { number, shown });
            bound.map(Some).ok_or_else(|| format!("params.{name}: {key}: expected a number"))
        };
        let (minimum, maximum) = (number("minimum", entry.minimum)?, number("maximum", entry.maximum)?);
        let pattern = entry.pattern.map(|text| compiled(name, &text)).transpose()?;
        let values = entry.values.map(|values| serde_json::from_str::<Vec<Box<RawValue>>>(values.0.get()));
        let values = values.transpose().map_err(|_| format!("params.{name}: values: expected an array"))?;
        if values.as_ref().is_some_and(|values| values.is_empty() || values.len() > MAX_VALUES) {
            return wrong(&format!("values: expected 1 to {MAX_VALUES} of them"));
        }
        let characters = characters(base.unwrap_or(&entry.type_name)).filter(|_| textual);
        let mut length = (entry.min_length, entry.max_length);
        if let Some((least, most)) = characters {
            for (key, given) in [("min_length", length.0), ("max_length", length.1)] {
                if given.is_some_and(|given| given > most) {
                    return wrong(&format!("{key}: expected at most {most}, as {} has", entry.type_name));
                }
            }
            // What is compared has to be what the statement gets.
            if pattern.is_some() || values.is_some() {
                length = (length.0.max(Some(least).filter(|least| *least > 0)), length.1.or(Some(most)));
            }
        }
        let bounds = Bounds {
            minimum,
            maximum,
            capacity: Some(base.unwrap_or(&entry.type_name)).filter(|_| shape == Shape::Number).and_then(Capacity::of),
            length,
            pattern,
            values: values.map(Values::of),
            items: (entry.min_items, entry.max_items),
        };
        let (description, nullable) = (entry.description, entry.nullable);
        let mut param = Param {
            name: entry.name.clone(),
            type_name: entry.type_name,
            description,
            default: None,
            shape,
            is_array,
            nullable,
            bounds,
        };
        let bounds = &param.bounds;
        for (key, bound) in [("minimum", &bounds.minimum), ("maximum", &bounds.maximum)] {
            if let Some(bound) = bound {
                param.check_held(&bound.shown).map_err(|detail| format!("params.{name}: {key}: {detail}"))?;
            }
        }
        let chosen = bounds.values.iter().flat_map(|values| &values.shown).map(|value| ("values", value.as_ref()));
        let default = entry.default.as_ref().map(|default| default.0.as_ref());
        let items = default.and_then(|value| serde_json::from_str::<Vec<&RawValue>>(value.get()).ok());
        let defaults = items.filter(|_| is_array).unwrap_or_else(|| default.into_iter().collect());
        for (key, value) in chosen.chain(defaults.into_iter().map(|value| ("default", value))) {
            let held = param.check_held(value).and_then(|()| held_by(characters, value, &param.type_name));
            held.map_err(|detail| format!("params.{name}: {key}: {detail}"))?;
        }
        for value in param.bounds.values.iter().flat_map(|values| &values.shown) {
            let checked = param.check_scalar(value, "").map_err(|error| error.detail);
            checked.map_err(|detail| format!("params.{name}: values: {value}: {detail}"))?;
        }
        if let Some(default) = entry.default {
            param.check(&default.0).map_err(|error| format!("params.{name}: default: {}", error.detail))?;
            param.default = Some(default.0);
        }
        Ok(param)
    }

    /// A call may leave it out.
    pub fn is_optional(&self) -> bool {
        self.default.is_some() || self.nullable
    }

    /// The value that is sent for what a caller gave, by the type that it has.
    ///
    /// # Errors
    /// What was expected.
    pub fn value(&self, given: Option<&RawValue>) -> Result<Box<RawValue>, ValueError> {
        let null = RawValue::NULL;
        let value = match (given, &self.default) {
            (Some(value), _) => {
                self.check(value)?;
                value
            }
            (None, Some(default)) => default,
            (None, None) if self.nullable => null,
            (None, None) => return Err(self.wrong("expected a value".to_owned())),
        };
        let type_name = Value::String(self.type_name.clone());
        let typed = format!("{{\"type\":{type_name},\"value\":{}}}", value.get());
        RawValue::from_string(typed).map_err(|_| self.wrong("expected a value that is JSON".to_owned()))
    }

    fn wrong(&self, detail: String) -> ValueError {
        ValueError { pointer: format!("/{}", self.name), detail }
    }

    fn check(&self, value: &RawValue) -> Result<(), ValueError> {
        let (text, pointer) = (value.get(), format!("/{}", self.name));
        if text == "null" && (self.nullable || self.shape == Shape::Json && !self.is_array) {
            return Ok(());
        }
        if !self.is_array {
            return self.check_scalar(value, &pointer);
        }
        let Ok(items) = serde_json::from_str::<Vec<&RawValue>>(text) else {
            return Err(self.wrong(format!("expected an array of {}", self.words())));
        };
        let count = u64::try_from(items.len()).unwrap_or(u64::MAX);
        if let Some(what) = outside(count, self.bounds.items) {
            return Err(self.wrong(format!("expected {what} elements")));
        }
        items.iter().enumerate().try_for_each(|(n, item)| self.check_scalar(item, &format!("{pointer}/{n}")))
    }

    /// A number of the header that the type keeps as it is. What is no such value is refused where values are checked.
    fn check_held(&self, value: &RawValue) -> Result<(), String> {
        let text = value.get();
        let Some(number) = Decimal::read(text) else { return Ok(()) };
        match (self.shape, &self.bounds.capacity) {
            (Shape::Integer(least, most), _)
                if !text.parse::<i64>().is_ok_and(|number| (least..=most).contains(&number)) =>
            {
                Err(format!("expected {}", self.words()))
            }
            (Shape::Number, Some(capacity)) if number.reaches(&capacity.least_beyond) => Err(self.too_large(capacity)),
            (Shape::Number, Some(capacity)) if number != number.rounded(capacity.scale) => {
                Err(format!("expected at most {} digits behind the point, as {} has", capacity.scale, self.type_name))
            }
            _ => Ok(()),
        }
    }

    fn too_large(&self, capacity: &Capacity) -> String {
        format!("expected at most {} digits before the point, as {} has", capacity.whole, self.type_name)
    }

    fn check_scalar(&self, value: &RawValue, pointer: &str) -> Result<(), ValueError> {
        let wrong = |detail: String| Err(ValueError { pointer: pointer.to_owned(), detail });
        let text = value.get();
        let of_kind = match self.shape {
            Shape::Integer(least, most) => text.parse::<i64>().is_ok_and(|number| (least..=most).contains(&number)),
            Shape::Number => text.starts_with(|c: char| c == '-' || c.is_ascii_digit()),
            Shape::Boolean => text == "true" || text == "false",
            Shape::Text(_) => text.starts_with('"'),
            Shape::Json => true,
        };
        if !of_kind {
            return wrong(format!("expected {}", self.words()));
        }
        let bounds = &self.bounds;
        // Compared only where something is to be compared with, and as the type keeps it.
        let read = || Decimal::read(text);
        let number = || match &bounds.capacity {
            Some(capacity) => read().map(|number| number.rounded(capacity.scale)),
            None => read(),
        };
        if let Some(minimum) = &bounds.minimum
            && number().is_none_or(|number| number < minimum.number)
        {
            return wrong(format!("expected {} or more", minimum.shown));
        }
        if let Some(maximum) = &bounds.maximum
            && number().is_none_or(|number| number > maximum.number)
        {
            return wrong(format!("expected {} or less", maximum.shown));
        }
        if let Some(capacity) = &bounds.capacity
            && read().is_none_or(|number| number.reaches(&capacity.least_beyond))
        {
            return wrong(self.too_large(capacity));
        }
        let mut known = true;
        if let Some(values) = bounds.values.as_ref().filter(|_| !matches!(self.shape, Shape::Text(_))) {
            known = number().is_some_and(|number| values.numbers.contains(&number));
        }
        if matches!(self.shape, Shape::Text(_)) {
            let Ok(content) = serde_json::from_str::<String>(text) else {
                return wrong("expected a string".to_owned());
            };
            if content.contains('\0') {
                return wrong("expected a text without \\u0000, which Postgres can't store".to_owned());
            }
            known = bounds.values.as_ref().is_none_or(|values| values.texts.contains(&content));
            let length = u64::try_from(content.chars().count()).unwrap_or(u64::MAX);
            if let Some(what) = outside(length, bounds.length) {
                return wrong(format!("expected {what} characters"));
            }
            let formed = match self.shape {
                Shape::Text(Some("uuid")) => content.len() == 36 && Uuid::try_parse(&content).is_ok(),
                Shape::Text(Some("date")) => is_date(&content),
                _ => true,
            };
            if !formed {
                return wrong(format!("expected {}", self.words()));
            }
            if let Some(pattern) = &bounds.pattern
                && !pattern.is_match(&content)
            {
                return wrong(format!("expected a text that matches {pattern}"));
            }
        }
        if let Some(values) = bounds.values.as_ref().filter(|_| !known) {
            let shown: Vec<&str> = values.shown.iter().map(|value| value.get()).collect();
            return wrong(format!("expected one of {}", shown.join(", ")));
        }
        Ok(())
    }

    /// What stands for a value, in words.
    fn words(&self) -> String {
        match self.shape {
            Shape::Integer(least, most) => format!("an integer from {least} to {most}"),
            Shape::Number => "a number".to_owned(),
            Shape::Boolean => "true or false".to_owned(),
            Shape::Text(Some("date")) => "a string with a date, such as 2026-01-31".to_owned(),
            Shape::Text(Some(format)) => format!("a string with a {format}"),
            Shape::Text(None) => "a string".to_owned(),
            Shape::Json => "JSON".to_owned(),
        }
    }
}

/// The values of a call, in the order of the parameters, each with its type.
///
/// # Errors
/// Each value that is missing, unknown or refused.
pub fn values(
    params: &[Param],
    given: &BTreeMap<String, Box<RawValue>>,
) -> Result<Vec<Box<RawValue>>, Vec<ValueError>> {
    let mut errors = Vec::new();
    let mut values = Vec::with_capacity(params.len());
    for param in params {
        match param.value(given.get(&param.name).map(AsRef::as_ref)) {
            Ok(value) => values.push(value),
            Err(error) => errors.push(error),
        }
    }
    let unknown = given.keys().filter(|name| !params.iter().any(|param| param.name == **name));
    for name in unknown.take(MAX_UNKNOWN) {
        let known: Vec<&str> = params.iter().map(|param| param.name.as_str()).collect();
        let detail = match known.as_slice() {
            [] => "unknown parameter; the statement has none".to_owned(),
            known => format!("unknown parameter; expected one of: {}", known.join(", ")),
        };
        errors.push(ValueError { pointer: step(name), detail });
    }
    if errors.is_empty() { Ok(values) } else { Err(errors) }
}

/// A text of the header that the type keeps as it is.
fn held_by(characters: Option<(u64, u64)>, value: &RawValue, type_name: &str) -> Result<(), String> {
    let (Some((least, most)), Ok(text)) = (characters, serde_json::from_str::<String>(value.get())) else {
        return Ok(());
    };
    let length = u64::try_from(text.chars().count()).unwrap_or(u64::MAX);
    match outside(length, (Some(least), Some(most))) {
        Some(what) => Err(format!("expected {what} characters, as {type_name} has")),
        None => Ok(()),
    }
}

/// As `2026-01-31`, and there is such a day: the server reads other forms as other days.
fn is_date(text: &str) -> bool {
    let formed = text.len() == 10
        && text
            .bytes()
            .enumerate()
            .all(|(n, byte)| if n == 4 || n == 7 { byte == b'-' } else { byte.is_ascii_digit() });
    formed && NaiveDate::parse_from_str(text, "%Y-%m-%d").is_ok()
}

#[cfg(test)]
mod tests;
