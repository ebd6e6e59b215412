//! A caller's own words for finding a job again.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};

use diesel::deserialize::{self, FromSql, FromSqlRow};
use diesel::expression::AsExpression;
use diesel::pg::{Pg, PgValue};
use diesel::serialize::{self, Output, ToSql};
use diesel::sql_types::Jsonb;
use serde::{Deserialize, Serialize};

use crate::queue::model::RawJson;

/// Names and values. A job has at most [`MAX_LABELS`](super::MAX_LABELS), none longer than [`MAX_LABEL_CHARS`](super::MAX_LABEL_CHARS).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, AsExpression, FromSqlRow)]
#[diesel(sql_type = Jsonb)]
#[serde(transparent)]
pub struct Labels(pub BTreeMap<String, String>);

impl Deref for Labels {
    type Target = BTreeMap<String, String>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Labels {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(labels: I) -> Labels {
        Labels(labels.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

impl<N: Into<String>, V: Into<String>, const COUNT: usize> From<[(N, V); COUNT]> for Labels {
    fn from(labels: [(N, V); COUNT]) -> Labels {
        labels.into_iter().collect()
    }
}

impl FromSql<Jsonb, Pg> for Labels {
    fn from_sql(value: PgValue<'_>) -> deserialize::Result<Labels> {
        let json = <RawJson as FromSql<Jsonb, Pg>>::from_sql(value)?;
        // Written from a map of texts. Others that somebody put into the row are no reason to hide the job.
        Ok(serde_json::from_str(json.text()).unwrap_or_default())
    }
}

impl ToSql<Jsonb, Pg> for Labels {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> serialize::Result {
        RawJson::of(self)?.write_jsonb(out)
    }
}
