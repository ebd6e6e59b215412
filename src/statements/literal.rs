//! Values of a header as they are written. A float of TOML's would lose digits, and an integer beyond 64 bits would be
//! refused: so each value becomes its JSON text before anything else reads the header.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use toml::de::{DeTable, DeValue};

/// The keys of a parameter whose values are kept as they are written.
const KEPT: [&str; 4] = ["default", "minimum", "maximum", "values"];

/// A value of a header, as JSON with the digits that it was written with.
#[derive(Clone, Debug)]
pub(super) struct Literal(pub Box<RawValue>);

impl<'de> Deserialize<'de> for Literal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Literal, D::Error> {
        let json = String::deserialize(deserializer)?;
        RawValue::from_string(json).map(Literal).map_err(|_| D::Error::custom("expected what JSON has"))
    }
}

/// A value that JSON doesn't have.
pub(super) struct NoJson {
    /// Where it stands in the header, in bytes.
    pub at: usize,
    /// The parameter and what is wrong.
    pub message: String,
}

/// Puts the JSON text of each value that is kept in the place of the value.
///
/// # Errors
/// The first one that JSON doesn't have.
pub(super) fn keep(header: &mut DeTable<'_>) -> Result<(), NoJson> {
    let Some(DeValue::Array(params)) = header.get_mut("params").map(|params| params.get_mut()) else { return Ok(()) };
    for param in params.iter_mut() {
        if let DeValue::Table(param) = param.get_mut() {
            keep_of(param)?;
        }
    }
    Ok(())
}

/// As [`keep`], of one parameter.
pub(super) fn keep_of(param: &mut DeTable<'_>) -> Result<(), NoJson> {
    let name = param.get("name").and_then(|name| name.get_ref().as_str()).unwrap_or_default().to_owned();
    for key in KEPT {
        let Some(value) = param.get_mut(key) else { continue };
        let at = value.span().start;
        let json = json(value.get_ref());
        let json = json.map_err(|what| NoJson { at, message: format!("params.{name}: {key}: {what}") })?;
        *value.get_mut() = DeValue::String(json.into());
    }
    Ok(())
}

fn json(value: &DeValue<'_>) -> Result<String, &'static str> {
    match value {
        DeValue::String(text) => Ok(quoted(text)),
        DeValue::Boolean(value) => Ok(value.to_string()),
        // JSON has no plus in front. What stands between digits is left out already.
        DeValue::Integer(number) if number.radix() == 10 => Ok(number.as_str().trim_start_matches('+').to_owned()),
        DeValue::Integer(number) => u128::from_str_radix(number.as_str(), number.radix())
            .map(|number| number.to_string())
            .map_err(|_| "expected a number of at most 128 bits, or one in decimal digits"),
        DeValue::Float(number) if number.as_str().contains(['i', 'n']) => Err("expected a number that JSON has"),
        DeValue::Float(number) => Ok(number.as_str().trim_start_matches('+').to_owned()),
        // A time of TOML's own is no JSON.
        DeValue::Datetime(_) => Err("expected a date or a time in quotes"),
        DeValue::Array(items) => {
            let items: Result<Vec<String>, _> = items.iter().map(|item| json(item.get_ref())).collect();
            Ok(format!("[{}]", items?.join(",")))
        }
        DeValue::Table(members) => {
            let member = |(key, value): (&toml::Spanned<toml::de::DeString<'_>>, &toml::Spanned<DeValue<'_>>)| {
                Ok(format!("{}:{}", quoted(key.get_ref()), json(value.get_ref())?))
            };
            let members: Result<Vec<String>, &'static str> = members.iter().map(member).collect();
            Ok(format!("{{{}}}", members?.join(",")))
        }
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_stay_as_they_are_written() {
        for (toml, expected) in [
            ("12345678901234567.891", "12345678901234567.891"),
            ("-0.10", "-0.10"),
            ("+1_000.50", "1000.50"),
            ("1e400", "1e400"),
            ("6.02E+23", "6.02E+23"),
            ("99999999999999999999999", "99999999999999999999999"),
            ("+9_223_372_036_854_775_808", "9223372036854775808"),
            ("0xFFFFFFFFFFFFFFFFFF", "4722366482869645213695"),
            ("[1.10, 'a\"b', true]", "[1.10,\"a\\\"b\",true]"),
            ("{ a = 1.10, \"b c\" = [2.0] }", "{\"a\":1.10,\"b c\":[2.0]}"),
        ] {
            let read = DeValue::parse(toml).unwrap();
            let json = json(read.get_ref()).unwrap();
            assert_eq!(json, expected, "{toml}");
            RawValue::from_string(json).unwrap();
        }
        for none in ["inf", "-inf", "nan", "+nan", "2026-01-01", "[2026-01-01]", "{ a = inf }"] {
            assert!(json(DeValue::parse(none).unwrap().get_ref()).is_err(), "{none}");
        }
    }
}
