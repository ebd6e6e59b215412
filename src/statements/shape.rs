//! Which JSON stands for a value of a type, by the type's name.

use crate::statements::bounds::base_of;

/// What JSON stands for a value of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// A whole number between these.
    Integer(i64, i64),
    /// A number.
    Number,
    /// true or false.
    Boolean,
    /// A string, in this `format` of JSON Schema where there is one.
    Text(Option<&'static str>),
    /// Whatever JSON there is.
    Json,
}

/// The type without `[]`, and what stands for it. The words are those of Postgres' grammar and catalog.
pub(super) fn shape_of(type_name: &str) -> Shape {
    match base_of(type_name).as_str() {
        "smallint" | "int2" => Shape::Integer(i64::from(i16::MIN), i64::from(i16::MAX)),
        "integer" | "int" | "int4" => Shape::Integer(i64::from(i32::MIN), i64::from(i32::MAX)),
        "bigint" | "int8" => Shape::Integer(i64::MIN, i64::MAX),
        "numeric" | "decimal" | "dec" | "real" | "float4" | "double precision" | "float8" | "float" => Shape::Number,
        "boolean" | "bool" => Shape::Boolean,
        "json" | "jsonb" => Shape::Json,
        "uuid" => Shape::Text(Some("uuid")),
        "date" => Shape::Text(Some("date")),
        _ => Shape::Text(None),
    }
}
