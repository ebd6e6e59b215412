//! What bounds a value: limits, lengths, patterns and lists of the header, and what its type can hold.

use std::collections::HashSet;

use regex::Regex;
use serde_json::value::RawValue;

use crate::statements::decimal::Decimal;

/// The longest `pattern`, in bytes.
const MAX_PATTERN_BYTES: usize = 1_000;
/// The most memory of a compiled pattern.
const PATTERN_SIZE: usize = 1 << 20;

/// What a value, or each element of an array, may be.
#[derive(Clone, Debug, Default)]
pub(super) struct Bounds {
    pub minimum: Option<Bound>,
    pub maximum: Option<Bound>,
    /// What the type can't hold, for the modifier that it has.
    pub capacity: Option<Capacity>,
    pub length: (Option<u64>, Option<u64>),
    pub pattern: Option<Regex>,
    pub values: Option<Values>,
    pub items: (Option<u64>, Option<u64>),
}

/// A number that a value is compared with.
#[derive(Clone, Debug)]
pub(super) struct Bound {
    pub shown: Box<RawValue>,
    pub number: Decimal,
}

/// How large a `numeric(10,2)` can be.
#[derive(Clone, Debug)]
pub(super) struct Capacity {
    /// Digits before the point.
    pub whole: usize,
    /// Digits behind the point, to which the server rounds.
    pub scale: usize,
    /// The smallest number that has more of them when it is rounded to the digits behind the point.
    pub least_beyond: Decimal,
}

impl Capacity {
    /// Of a type without `[]`. `None` where it isn't certain what the server would say: without a modifier, and for
    /// scales that only newer servers have.
    pub fn of(type_name: &str) -> Option<Capacity> {
        let (base, modifier) = type_name.split_once('(')?;
        if !["numeric", "decimal", "dec"].contains(&base_of(base).as_str()) {
            return None;
        }
        let mut digits = modifier.trim_end().strip_suffix(')')?.split(',').map(|number| number.trim().parse::<usize>());
        let (precision, scale) = (digits.next()?.ok()?, digits.next().unwrap_or(Ok(0)).ok()?);
        if digits.next().is_some() || !(1..=1_000).contains(&precision) || scale > precision {
            return None;
        }
        let whole = precision - scale;
        // The server rounds halves away from zero.
        let least_beyond = Decimal::read(&format!("0{}.{}5", "9".repeat(whole), "9".repeat(scale)))?;
        Some(Capacity { whole, scale, least_beyond })
    }
}

/// The fewest and the most characters of a text type without `[]` that has a modifier: an explicit cast cuts a longer
/// text off, and fills a shorter `bit` up. `None` for another type.
pub(super) fn characters(type_name: &str) -> Option<(u64, u64)> {
    let base = base_of(type_name);
    let words: Vec<&str> = base.strip_prefix("national ").unwrap_or(&base).split_whitespace().collect();
    let (exactly, implied) = match words.as_slice() {
        ["varchar" | "varbit"] | ["character" | "char" | "nchar" | "bit", "varying"] => (false, None),
        ["character" | "char" | "nchar"] => (false, Some(1)),
        ["bpchar"] => (false, None),
        ["bit"] => (true, Some(1)),
        _ => return None,
    };
    let given = type_name.split_once('(').and_then(|(_, rest)| rest.split_once(')')?.0.trim().parse().ok());
    let most = given.or(implied)?;
    Some((if exactly { most } else { 0 }, most))
}

/// The only values that are taken.
#[derive(Clone, Debug)]
pub(super) struct Values {
    pub shown: Vec<Box<RawValue>>,
    pub texts: HashSet<String>,
    pub numbers: HashSet<Decimal>,
}

impl Values {
    pub fn of(shown: Vec<Box<RawValue>>) -> Values {
        let texts = shown.iter().filter_map(|value| serde_json::from_str::<String>(value.get()).ok()).collect();
        let numbers = shown.iter().filter_map(|value| Decimal::read(value.get())).collect();
        Values { shown, texts, numbers }
    }
}

/// A type's name without its modifier.
pub(super) fn base_of(type_name: &str) -> String {
    let plain = type_name.trim().trim_start_matches("pg_catalog.").to_ascii_lowercase();
    plain.split('(').next().unwrap_or_default().trim().to_owned()
}

pub(super) fn compiled(name: &str, text: &str) -> Result<Regex, String> {
    if text.len() > MAX_PATTERN_BYTES {
        return Err(format!("params.{name}: pattern: expected at most {MAX_PATTERN_BYTES} bytes"));
    }
    regex::RegexBuilder::new(text).size_limit(PATTERN_SIZE).build().map_err(|_| {
        format!("params.{name}: pattern: expected a regular expression, without look-around and back-references")
    })
}

/// The bounds, where a number lies outside of them.
pub(super) fn outside(number: u64, bounds: (Option<u64>, Option<u64>)) -> Option<String> {
    match bounds {
        (Some(least), _) if number < least => Some(format!("at least {least}")),
        (_, Some(most)) if number > most => Some(format!("at most {most}")),
        _ => None,
    }
}
