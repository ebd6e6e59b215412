//! The list of the living: one row per process, and one beat after another.
//!
//! Each beat changes the number in its row. A process whose number was the same for [`DEAD_AFTER`] is dead: it may still be
//! running, but it has lost its leases. How long that is says the clock that the looker's machine counts by and nobody sets
//! ([`Sightings`](crate::queue::fleet::sightings::Sightings)); the time of a beat is for people.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Json, Nullable};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::db::{DbError, prepared};
use crate::queue::model::RawJson;

/// Between two beats of a process.
pub const BEAT_EVERY: Duration = Duration::from_secs(2);
/// A process that hasn't beaten for this long has lost its leases.
pub const DEAD_AFTER: Duration = Duration::from_secs(15);
/// A process that couldn't beat for this long stops work that nothing else fences.
pub const STOP_WORK_AFTER: Duration = Duration::from_secs(10);

/// How a process says that a target of its is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetHealth {
    /// The target.
    pub name: String,
    /// It can be reached, as far as is known.
    pub available: bool,
    /// Why it can't.
    pub trouble: Option<String>,
    /// Since when that is so, by the process' clock.
    pub since: DateTime<Utc>,
}

/// A process, as it introduces itself.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// Fresh for each start of a process, and after each death.
    pub id: Uuid,
    /// The machine's name.
    pub hostname: String,
    /// Threads that run jobs.
    pub threads: i32,
    /// Kinds that it knows.
    pub kinds: Vec<String>,
    /// Queues that it serves.
    pub queues: Vec<String>,
    /// Its targets, and how they are.
    pub targets: Vec<TargetHealth>,
}

/// A process, as it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighted {
    /// The process.
    pub id: Uuid,
    /// How often it had beaten.
    pub beat: i64,
}

/// Enters a process among the living.
///
/// # Errors
/// When the database fails.
pub fn register(connection: &mut PgConnection, identity: &Identity) -> Result<(), DbError> {
    use crate::db::schema::workers::dsl;
    diesel::insert_into(dsl::workers)
        .values((
            dsl::id.eq(identity.id),
            dsl::hostname.eq(&identity.hostname),
            dsl::pid.eq(i32::try_from(std::process::id()).unwrap_or(i32::MAX)),
            dsl::version.eq(env!("CARGO_PKG_VERSION")),
            dsl::threads.eq(identity.threads),
            dsl::kinds.eq(&identity.kinds),
            dsl::queues.eq(&identity.queues),
            dsl::targets.eq(RawJson::column(&identity.targets)?),
            dsl::started_at.eq(diesel::dsl::now),
            dsl::beat_at.eq(diesel::dsl::now),
        ))
        .on_conflict(dsl::id)
        .do_update()
        .set((dsl::beat_at.eq(diesel::dsl::now), dsl::beat.eq(dsl::beat + 1)))
        .execute(connection)?;
    Ok(())
}

/// Beats, and says how the process' targets are where there is anything new, and that it shuts down where it does.
/// `false` when the process was declared dead meanwhile: its leases are gone, and it goes on under a new id.
///
/// # Errors
/// When the database fails.
pub fn beat(
    connection: &mut PgConnection,
    id: Uuid,
    targets: Option<&[TargetHealth]>,
    stopping: bool,
) -> Result<bool, DbError> {
    let statement = prepared(
        "UPDATE workers SET beat = beat + 1, beat_at = clock_timestamp(), targets = coalesce($2, targets),
                stopping_at = CASE WHEN $3 THEN coalesce(stopping_at, clock_timestamp()) END
          WHERE id = $1",
    );
    let changed = statement
        .bind::<diesel::sql_types::Uuid, _>(id)
        .bind::<Nullable<Json>, _>(targets.map(RawJson::column).transpose()?)
        .bind::<Bool, _>(stopping)
        .execute(connection)?;
    Ok(changed == 1)
}

/// Takes a process off the list, at its own end. What it still holds was left in order, and stays known as such.
///
/// # Errors
/// When the database fails.
pub fn unregister(connection: &mut PgConnection, id: Uuid) -> Result<(), DbError> {
    // In a statement of its own it could be there without the other.
    prepared(
        "WITH w AS (DELETE FROM workers WHERE id = $1 RETURNING id)
         INSERT INTO stopped_workers (id, stopped_at) SELECT w.id, clock_timestamp() FROM w ON CONFLICT (id) DO NOTHING",
    )
    .bind::<diesel::sql_types::Uuid, _>(id)
    .execute(connection)?;
    Ok(())
}

/// How often each process on the list has beaten.
///
/// # Errors
/// When the database fails.
pub fn beats(connection: &mut PgConnection) -> Result<Vec<Sighted>, DbError> {
    use crate::db::schema::workers::dsl;
    let rows: Vec<(Uuid, i64)> = dsl::workers.select((dsl::id, dsl::beat)).load(connection)?;
    Ok(rows.into_iter().map(|(id, beat)| Sighted { id, beat }).collect())
}

/// Takes those of the dead off the list that have been so for an hour, by the clock, and hold nothing any more; and forgets
/// those that had stopped before.
///
/// # Errors
/// When the database fails.
pub fn forget_the_dead(connection: &mut PgConnection, dead: &[Sighted]) -> Result<usize, DbError> {
    let (ids, beats) = columns(dead);
    diesel::sql_query(
        "DELETE FROM stopped_workers s
          WHERE s.stopped_at < clock_timestamp() - interval '1 hour'
            AND NOT EXISTS (SELECT FROM jobs j WHERE j.worker_id = s.id AND j.state = 'running')",
    )
    .execute(connection)?;
    Ok(diesel::sql_query(
        "DELETE FROM workers w USING unnest($1, $2) AS d(id, beat)
          WHERE w.id = d.id AND w.beat = d.beat AND w.beat_at < clock_timestamp() - interval '1 hour'
            AND NOT EXISTS (SELECT FROM jobs j WHERE j.worker_id = w.id AND j.state = 'running')",
    )
    .bind::<Array<diesel::sql_types::Uuid>, _>(ids)
    .bind::<Array<BigInt>, _>(beats)
    .execute(connection)?)
}

/// Makes sure that a process is dead, and stays so: from now on it can neither claim nor begin anything, and it
/// finds its row gone at its next beat. `beat` is the one with which it was found dead, `None` when it wasn't on the list.
/// `false` when it has beaten since: it is alive. That it was shutting down outlives its row: not all that it left is
/// taken at once.
///
/// # Errors
/// When the database fails.
pub fn bury(connection: &mut PgConnection, worker_id: Uuid, beat: Option<i64>) -> Result<bool, DbError> {
    use crate::db::schema::workers::dsl;
    // A beat at the same moment is before this, and changes the number, or after it, and finds no row.
    prepared(
        "WITH w AS (DELETE FROM workers WHERE id = $1 AND beat = $2 RETURNING id, stopping_at)
         INSERT INTO stopped_workers (id, stopped_at) SELECT w.id, clock_timestamp() FROM w WHERE w.stopping_at IS NOT NULL
         ON CONFLICT (id) DO NOTHING",
    )
    .bind::<diesel::sql_types::Uuid, _>(worker_id)
    .bind::<Nullable<BigInt>, _>(beat)
    .execute(connection)?;
    Ok(dsl::workers.find(worker_id).select(dsl::id).first::<Uuid>(connection).optional()?.is_none())
}

pub(super) fn columns(sighted: &[Sighted]) -> (Vec<Uuid>, Vec<i64>) {
    sighted.iter().map(|worker| (worker.id, worker.beat)).unzip()
}
