//! The JSON Schema of a statement's parameters, its numbers with the digits that they were written with.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::value::RawValue;

use crate::statements::bounds::Bound;
use crate::statements::params::Param;
use crate::statements::shape::Shape;

/// A JSON Schema.
type Schema = BTreeMap<String, Box<RawValue>>;

/// The JSON Schema (2020-12) of the `params` of a call.
pub fn schema(params: &[Param]) -> Box<RawValue> {
    let properties: BTreeMap<&str, Schema> = params.iter().map(|param| (param.name.as_str(), param.schema())).collect();
    let required: Vec<&str> =
        params.iter().filter(|param| !param.is_optional()).map(|param| param.name.as_str()).collect();
    let schema = Schema::from([
        ("$schema".to_owned(), raw("https://json-schema.org/draft/2020-12/schema")),
        ("type".to_owned(), raw("object")),
        ("properties".to_owned(), raw(&properties)),
        ("required".to_owned(), raw(&required)),
        ("additionalProperties".to_owned(), raw(&false)),
    ]);
    raw(&schema)
}

impl Param {
    /// The schema of one value.
    fn scalar_schema(&self) -> Schema {
        let mut schema = Schema::default();
        let mut put = |key: &str, value: Box<RawValue>| drop(schema.insert(key.to_owned(), value));
        let shown = |bound: &Option<Bound>| bound.as_ref().map(|bound| bound.shown.clone());
        let (mut minimum, mut maximum) = (shown(&self.bounds.minimum), shown(&self.bounds.maximum));
        match self.shape {
            Shape::Integer(least, most) => {
                put("type", raw("integer"));
                minimum = minimum.or(Some(raw(&least)));
                maximum = maximum.or(Some(raw(&most)));
            }
            Shape::Number => put("type", raw("number")),
            Shape::Boolean => put("type", raw("boolean")),
            Shape::Text(format) => {
                put("type", raw("string"));
                format.into_iter().for_each(|format| put("format", raw(format)));
            }
            Shape::Json => {}
        }
        for (key, bound) in [("minimum", minimum), ("maximum", maximum)] {
            bound.into_iter().for_each(|bound| put(key, bound));
        }
        for (key, bound) in [("minLength", self.bounds.length.0), ("maxLength", self.bounds.length.1)] {
            bound.into_iter().for_each(|bound| put(key, raw(&bound)));
        }
        self.bounds.pattern.iter().for_each(|pattern| put("pattern", raw(pattern.as_str())));
        // Only what is on the list may be given: null is on it then.
        let null = (self.nullable && !self.is_array).then(|| RawValue::NULL.to_owned());
        let listed = self.bounds.values.iter();
        listed.for_each(|values| put("enum", raw(&values.shown.iter().chain(null.as_ref()).collect::<Vec<_>>())));
        schema
    }

    /// The JSON Schema of its value.
    fn schema(&self) -> Schema {
        let mut schema = self.scalar_schema();
        if self.is_array {
            let items = raw(&std::mem::take(&mut schema));
            schema.insert("type".to_owned(), raw("array"));
            schema.insert("items".to_owned(), items);
            for (key, bound) in [("minItems", self.bounds.items.0), ("maxItems", self.bounds.items.1)] {
                bound.into_iter().for_each(|bound| drop(schema.insert(key.to_owned(), raw(&bound))));
            }
        }
        if let Some(kind) = schema.get("type").cloned().filter(|_| self.nullable) {
            schema.insert("type".to_owned(), raw(&[&kind, &raw("null")]));
        }
        if let Some(text) = &self.description {
            schema.insert("description".to_owned(), raw(text));
        }
        let default = self.default.clone().or_else(|| self.nullable.then(|| RawValue::NULL.to_owned()));
        if let Some(default) = default {
            schema.insert("default".to_owned(), default);
        }
        schema.insert("x-postgres-type".to_owned(), raw(&self.type_name));
        schema
    }
}

fn raw<T: Serialize + ?Sized>(value: &T) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).unwrap_or_default()
}
