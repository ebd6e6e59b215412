//! JSON that is kept as the text that came in, and how Postgres reads and writes it.

use diesel::deserialize::{self, FromSql, FromSqlRow};
use diesel::expression::AsExpression;
use diesel::pg::{Pg, PgValue};
use diesel::serialize::{self, IsNull, Output, ToSql};
use diesel::sql_types;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// A JSON document kept as the text that came in: no number passes through a float.
#[derive(Clone, Debug, AsExpression, FromSqlRow, Serialize, Deserialize)]
#[diesel(sql_type = sql_types::Json)]
#[diesel(sql_type = sql_types::Jsonb)]
#[serde(transparent)]
pub struct RawJson(pub Box<RawValue>);

impl RawJson {
    /// The document's text.
    pub fn text(&self) -> &str {
        self.0.get()
    }

    /// The JSON of `value`.
    ///
    /// # Errors
    /// When `value` has no JSON form.
    pub fn of<T: Serialize + ?Sized>(value: &T) -> serde_json::Result<RawJson> {
        serde_json::value::to_raw_value(value).map(RawJson)
    }

    /// The JSON of `value` for a column, whose failure is one of a statement's parameters.
    pub(in crate::queue) fn column<T: Serialize + ?Sized>(value: &T) -> Result<RawJson, diesel::result::Error> {
        RawJson::of(value).map_err(|error| diesel::result::Error::SerializationError(Box::new(error)))
    }

    /// `{}`.
    pub fn empty_object() -> RawJson {
        RawJson(RawValue::from_string("{}".to_owned()).unwrap_or_default())
    }

    /// Writes the binary form of jsonb: a version, then the text.
    pub(super) fn write_jsonb(&self, out: &mut Output<'_, '_, Pg>) -> serialize::Result {
        std::io::Write::write_all(out, &[1])?;
        std::io::Write::write_all(out, self.text().as_bytes())?;
        Ok(IsNull::No)
    }

    fn read(bytes: &[u8]) -> deserialize::Result<RawJson> {
        let text = std::str::from_utf8(bytes)?.to_owned();
        Ok(RawJson(RawValue::from_string(text)?))
    }
}

impl FromSql<sql_types::Json, Pg> for RawJson {
    fn from_sql(value: PgValue<'_>) -> deserialize::Result<Self> {
        RawJson::read(value.as_bytes())
    }
}

impl FromSql<sql_types::Jsonb, Pg> for RawJson {
    fn from_sql(value: PgValue<'_>) -> deserialize::Result<Self> {
        match value.as_bytes().split_first() {
            Some((1, text)) => RawJson::read(text),
            _ => Err("unknown version of the binary form of jsonb".into()),
        }
    }
}

impl ToSql<sql_types::Json, Pg> for RawJson {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> serialize::Result {
        std::io::Write::write_all(out, self.text().as_bytes())?;
        Ok(IsNull::No)
    }
}

impl ToSql<sql_types::Jsonb, Pg> for RawJson {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> serialize::Result {
        self.write_jsonb(out)
    }
}
