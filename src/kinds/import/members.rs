//! The members of a JSON object, one after the other, each value as the text that it was. A key that stands twice comes twice.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Calls `each` for every member of the object that `text` is, and of nothing else.
///
/// # Errors
/// When `text` is no object. What was read up to there has been told by then.
pub(super) fn members<'t>(text: &'t str, each: impl FnMut(&str, &'t RawValue)) -> serde_json::Result<()> {
    let mut reader = serde_json::Deserializer::from_str(text);
    Members(each).deserialize(&mut reader)?;
    reader.end()
}

struct Members<F>(F);

#[derive(Deserialize)]
struct Key<'k>(#[serde(borrow)] Cow<'k, str>);

impl<'de, F: FnMut(&str, &'de RawValue)> DeserializeSeed<'de> for Members<F> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, F: FnMut(&str, &'de RawValue)> Visitor<'de> for Members<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some((key, value)) = map.next_entry::<Key<'de>, &'de RawValue>()? {
            (self.0)(&key.0, value);
        }
        Ok(())
    }
}
