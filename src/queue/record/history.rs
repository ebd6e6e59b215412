//! What work took before, so that a job of the same work can say how long it may still take.
//!
//! The same work is the same kind on the same target with the same arguments; only a digest of them is kept. Attempts that
//! succeeded after a second or more are remembered, the last ones of each. Losing one does no harm.

use std::collections::HashMap;

use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bytea, Text};
use sha2::{Digest, Sha256};

use crate::db::{DbError, prepared};
use crate::queue::RawJson;

/// Runs that are looked at: the last ones of the same work.
const RUNS: i64 = 20;
/// Runs deleted by one statement.
const SWEPT: i64 = 1_000;

/// Names the same work.
pub type Fingerprint = Vec<u8>;

/// A run that is worth remembering.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Of which work.
    pub fingerprint: Fingerprint,
    /// Its kind.
    pub kind: String,
    /// Its target.
    pub target: String,
    /// What it took.
    pub duration_ms: i64,
}

/// Names the work that a job does. The order of names in its arguments and white space make no difference.
pub fn fingerprint(kind: &str, target: &str, args: &RawJson) -> Fingerprint {
    let canonical = serde_json::from_str::<serde_json::Value>(args.text()).map(|value| value.to_string());
    let args = canonical.unwrap_or_else(|_| args.text().to_owned());
    let mut digest = Sha256::new();
    for part in [kind, target, &args] {
        digest.update(part.len().to_be_bytes());
        digest.update(part);
    }
    digest.finalize().to_vec()
}

/// Remembers runs.
///
/// # Errors
/// When the database fails.
pub fn remember(connection: &mut PgConnection, runs: &[Run]) -> Result<(), DbError> {
    prepared(
        "INSERT INTO run_history (fingerprint, kind, target, duration_ms, ended_at)
         SELECT r.fingerprint, r.kind, r.target, r.duration_ms, clock_timestamp() + n * interval '1 us'
           FROM unnest($1, $2, $3, $4) WITH ORDINALITY AS r(fingerprint, kind, target, duration_ms, n)
         ON CONFLICT DO NOTHING",
    )
    .bind::<Array<Bytea>, _>(runs.iter().map(|run| run.fingerprint.as_slice()).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(runs.iter().map(|run| run.kind.as_str()).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(runs.iter().map(|run| run.target.as_str()).collect::<Vec<_>>())
    .bind::<Array<BigInt>, _>(runs.iter().map(|run| run.duration_ms).collect::<Vec<_>>())
    .execute(connection)?;
    Ok(())
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Bytea)]
    fingerprint: Vec<u8>,
    #[diesel(sql_type = Array<BigInt>)]
    durations: Vec<i64>,
}

/// What the last runs of each work took, in milliseconds.
///
/// # Errors
/// When the database fails.
pub fn durations(connection: &mut PgConnection, of: &[Fingerprint]) -> Result<HashMap<Fingerprint, Vec<i64>>, DbError> {
    let rows: Vec<Row> = prepared(
        "SELECT f.fingerprint, ARRAY(SELECT h.duration_ms FROM run_history h WHERE h.fingerprint = f.fingerprint
                                      ORDER BY h.ended_at DESC LIMIT $2) AS durations
           FROM unnest($1) AS f(fingerprint)",
    )
    .bind::<Array<Bytea>, _>(of.iter().map(Vec::as_slice).collect::<Vec<_>>())
    .bind::<BigInt, _>(RUNS)
    .load(connection)?;
    Ok(rows.into_iter().map(|row| (row.fingerprint, row.durations)).collect())
}

/// Forgets runs that more recent ones of the same work have replaced, and those before `keep_days`, some of them: the rest
/// goes the next time.
///
/// # Errors
/// When the database fails.
pub fn sweep(connection: &mut PgConnection, keep_days: i64) -> Result<(), DbError> {
    // Looks at everything: there are few rows, and the plan for keys would be the wrong one.
    diesel::sql_query(
        "DELETE FROM run_history WHERE (fingerprint, ended_at) IN (
             SELECT fingerprint, ended_at FROM (
                 SELECT fingerprint, ended_at, row_number() OVER (PARTITION BY fingerprint ORDER BY ended_at DESC) AS n
                   FROM run_history) r
              WHERE r.n > $1 OR r.ended_at < now() - make_interval(days => $2::int) LIMIT $3)",
    )
    .bind::<BigInt, _>(RUNS)
    .bind::<BigInt, _>(keep_days)
    .bind::<BigInt, _>(SWEPT)
    .execute(connection)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_work_has_the_same_name() {
        let of = |kind, target, args: &str| fingerprint(kind, target, &serde_json::from_str(args).unwrap());
        let one = of("query", "t", r#"{"sql":"SELECT 1","row_limit":1}"#);
        assert_eq!(one, of("query", "t", r#"{ "row_limit": 1, "sql": "SELECT 1" }"#));
        for other in
            [of("execute", "t", r#"{"sql":"SELECT 1","row_limit":1}"#), of("query", "u", "{}"), of("queryt", "", "{}")]
        {
            assert_ne!(one, other);
        }
    }
}
