//! The statements about uploads and their parts.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use diesel::connection::SimpleConnection;
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Binary, Double, Integer, Nullable, Text, Timestamptz};
use uuid::Uuid;

use crate::db::schema::{upload_parts, uploads};
use crate::db::{DbError, prepared};
use crate::uploads::{ContentEncoding, ContentType, KEPT, KEPT_AFTER_USE, MAX_USERS_NAMED, NewUpload, Upload};

/// Parts deleted by one statement.
const SWEEP_PARTS: i64 = 32;
/// Uploads looked at by one statement.
const SWEEP_UPLOADS: i64 = 100;

/// Writes part `n` of an upload that is being received, again if need be; the first one makes the upload. `bytes` are
/// those of all parts up to this one. `false`, and nothing is written, when the upload was given up meanwhile.
///
/// A part isn't waited for until it is on disk: what makes the upload ready is, and looks whether all parts are there.
///
/// # Errors
/// When the database fails.
pub fn write_part(
    connection: &mut PgConnection,
    upload: &NewUpload,
    n: i32,
    bytes: i64,
    data: &[u8],
    patience: Duration,
) -> Result<bool, DbError> {
    within(connection, patience, "SET LOCAL synchronous_commit = off", |connection| {
        let statement = prepared(
            "WITH u AS (
                INSERT INTO uploads AS u (id, state, content_type, content_encoding, bytes, parts, created_at, expires_at)
                VALUES ($1, 'receiving', $2, $3, $4, $5 + 1, now(), now() + $6 * interval '1 second')
                ON CONFLICT (id) DO UPDATE SET bytes = excluded.bytes, parts = excluded.parts, expires_at = excluded.expires_at
                 WHERE u.state = 'receiving'
                RETURNING id)
             INSERT INTO upload_parts (upload_id, n, data) SELECT id, $5, $7 FROM u
             ON CONFLICT (upload_id, n) DO UPDATE SET data = excluded.data",
        )
        .bind::<diesel::sql_types::Uuid, _>(upload.id)
        .bind::<Text, _>(upload.content_type.as_str())
        .bind::<Text, _>(upload.content_encoding.as_str())
        .bind::<BigInt, _>(bytes)
        .bind::<Integer, _>(n)
        .bind::<Double, _>(upload.patience.as_secs_f64())
        .bind::<Binary, _>(data);
        Ok(statement.execute(connection)? == 1)
    })
}

/// Makes an upload visible, again if need be. `None` when it was given up meanwhile, or lacks a part.
///
/// # Errors
/// When the database fails.
pub fn make_ready(
    connection: &mut PgConnection,
    upload: &NewUpload,
    parts: i32,
    bytes: i64,
    sha256: &str,
    patience: Duration,
) -> Result<Option<Upload>, DbError> {
    within(connection, patience, "", |connection| {
        let ready = prepared(
            "INSERT INTO uploads AS u (id, state, content_type, content_encoding, bytes, parts, sha256, created_at, expires_at)
             SELECT $1, 'ready', $2, $3, $4, $5, $6, now(), now() + $7 * interval '1 second'
              WHERE (SELECT count(*) FROM upload_parts WHERE upload_id = $1) = $5
             ON CONFLICT (id) DO UPDATE SET state = 'ready', bytes = excluded.bytes, parts = excluded.parts,
                 sha256 = excluded.sha256, created_at = excluded.created_at, expires_at = excluded.expires_at
              WHERE u.state IN ('receiving', 'ready')",
        )
        .bind::<diesel::sql_types::Uuid, _>(upload.id)
        .bind::<Text, _>(upload.content_type.as_str())
        .bind::<Text, _>(upload.content_encoding.as_str())
        .bind::<BigInt, _>(bytes)
        .bind::<Integer, _>(parts)
        .bind::<Text, _>(sha256)
        .bind::<Double, _>(KEPT.as_secs_f64())
        .execute(connection)?;
        if ready == 0 { Ok(None) } else { upload_of(connection, upload.id) }
    })
}

fn within<T>(
    connection: &mut PgConnection,
    patience: Duration,
    settings: &str,
    work: impl FnOnce(&mut PgConnection) -> Result<T, DbError>,
) -> Result<T, DbError> {
    connection.transaction(|connection| {
        connection.batch_execute(&format!("SET LOCAL statement_timeout = {}; {settings}", patience.as_millis()))?;
        work(connection)
    })
}

#[derive(QueryableByName)]
struct UploadRow {
    #[diesel(sql_type = diesel::sql_types::Uuid)]
    id: Uuid,
    #[diesel(sql_type = Text)]
    content_type: String,
    #[diesel(sql_type = Text)]
    content_encoding: String,
    #[diesel(sql_type = BigInt)]
    bytes: i64,
    #[diesel(sql_type = Integer)]
    parts: i32,
    #[diesel(sql_type = Nullable<Text>)]
    sha256: Option<String>,
    #[diesel(sql_type = Timestamptz)]
    created_at: DateTime<Utc>,
    #[diesel(sql_type = Timestamptz)]
    expires_at: DateTime<Utc>,
    #[diesel(sql_type = Array<diesel::sql_types::Uuid>)]
    used_by: Vec<Uuid>,
}

impl From<UploadRow> for Upload {
    fn from(row: UploadRow) -> Upload {
        Upload {
            id: row.id,
            // Nothing else is ever written.
            content_type: ContentType::stored(&row.content_type).unwrap_or(ContentType::Csv),
            content_encoding: ContentEncoding::parse(&row.content_encoding).unwrap_or(ContentEncoding::Identity),
            bytes: row.bytes,
            parts: row.parts,
            sha256: row.sha256.unwrap_or_default(),
            created_at: row.created_at,
            expires_at: row.expires_at,
            used_by: row.used_by,
        }
    }
}

fn select(condition: &str) -> String {
    format!(
        "SELECT id, content_type, content_encoding, bytes, parts, sha256, created_at, expires_at,
                ARRAY(SELECT j.id FROM jobs j WHERE j.upload = u.id ORDER BY j.id LIMIT {MAX_USERS_NAMED}) AS used_by
           FROM uploads u WHERE {condition}"
    )
}

fn upload_of(connection: &mut PgConnection, id: Uuid) -> Result<Option<Upload>, DbError> {
    let statement = prepared(select("id = $1 AND state = 'ready'")).bind::<diesel::sql_types::Uuid, _>(id);
    Ok(statement.get_result::<UploadRow>(connection).optional()?.map(Upload::from))
}

/// An upload that is ready. `None` when there is none of this id.
///
/// # Errors
/// When the database fails.
pub fn upload(connection: &mut PgConnection, id: Uuid) -> Result<Option<Upload>, DbError> {
    upload_of(connection, id)
}

/// What an upload that is ready was sent as. `None` when there is none of this id.
///
/// # Errors
/// When the database fails.
pub fn content_type(connection: &mut PgConnection, id: Uuid) -> Result<Option<ContentType>, DbError> {
    let ready = uploads::table.find(id).filter(uploads::state.eq("ready"));
    let name: Option<String> = ready.select(uploads::content_type).first(connection).optional()?;
    Ok(name.as_deref().and_then(ContentType::stored))
}

/// At most `limit` uploads that are ready, newest first, behind the one of id `behind`.
///
/// # Errors
/// When the database fails.
pub fn list(connection: &mut PgConnection, behind: Option<Uuid>, limit: i64) -> Result<Vec<Upload>, DbError> {
    let condition = "state = 'ready' AND ($1 IS NULL OR id < $1) ORDER BY id DESC LIMIT $2";
    let rows = prepared(select(condition))
        .bind::<Nullable<diesel::sql_types::Uuid>, _>(behind)
        .bind::<BigInt, _>(limit)
        .load::<UploadRow>(connection)?;
    Ok(rows.into_iter().map(Upload::from).collect())
}

/// A part's bytes. `None` when it is gone.
///
/// # Errors
/// When the database fails.
pub fn part(connection: &mut PgConnection, id: Uuid, n: i32) -> Result<Option<Vec<u8>>, DbError> {
    Ok(upload_parts::table.find((id, n)).select(upload_parts::data).first(connection).optional()?)
}

/// Gives up what was received of an upload. Most of it is deleted at once, the rest by [`sweep`].
///
/// # Errors
/// When the database fails.
pub fn give_up(connection: &mut PgConnection, id: Uuid) -> Result<(), DbError> {
    mark_deleted(connection, id)?;
    remove(connection, &[id])?;
    Ok(())
}

/// What became of a request to delete an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deleted {
    /// It isn't there any more, or never was.
    Gone,
    /// Unfinished jobs use it.
    InUse(Vec<Uuid>),
}

/// Deletes an upload, unless an unfinished job uses it. What is being received can't be seen, and stays.
///
/// # Errors
/// When the database fails.
pub fn delete(connection: &mut PgConnection, id: Uuid) -> Result<Deleted, DbError> {
    let deleted = connection.transaction(|connection| {
        // Whoever is about to use it holds the row; the statement after this one sees what they wrote.
        let ready: Option<Uuid> = uploads::table
            .find(id)
            .filter(uploads::state.eq("ready"))
            .select(uploads::id)
            .for_update()
            .first(connection)
            .optional()?;
        let Some(upload) = ready.map(|id| upload_of(connection, id)).transpose()?.flatten() else {
            return Ok::<_, DbError>(Deleted::Gone);
        };
        if !upload.used_by.is_empty() {
            return Ok(Deleted::InUse(upload.used_by));
        }
        mark_deleted(connection, id)?;
        Ok(Deleted::Gone)
    })?;
    if deleted == Deleted::Gone {
        remove(connection, &[id])?;
    }
    Ok(deleted)
}

fn mark_deleted(connection: &mut PgConnection, id: Uuid) -> Result<(), DbError> {
    diesel::update(uploads::table.find(id)).set(uploads::state.eq("deleted")).execute(connection)?;
    Ok(())
}

/// Deletes some parts of deleted uploads, and those uploads that have none left. Says how many parts.
fn remove(connection: &mut PgConnection, ids: &[Uuid]) -> Result<usize, DbError> {
    let parts = prepared(
        "DELETE FROM upload_parts WHERE (upload_id, n) IN (
            SELECT p.upload_id, p.n FROM uploads u JOIN upload_parts p ON p.upload_id = u.id
             WHERE u.id = ANY($1) AND u.state = 'deleted' LIMIT $2)",
    )
    .bind::<Array<diesel::sql_types::Uuid>, _>(ids)
    .bind::<BigInt, _>(SWEEP_PARTS)
    .execute(connection)?;
    prepared(
        "DELETE FROM uploads u WHERE u.id = ANY($1) AND u.state = 'deleted'
            AND NOT EXISTS (SELECT FROM upload_parts p WHERE p.upload_id = u.id)",
    )
    .bind::<Array<diesel::sql_types::Uuid>, _>(ids)
    .execute(connection)?;
    Ok(parts)
}

/// Gives up uploads whose time has passed at `now`, keeps those for longer that a job uses, and deletes what was given
/// up; for about as long as `patience`. What is left then is for the next time.
///
/// # Errors
/// When the database fails.
pub fn sweep(connection: &mut PgConnection, now: DateTime<Utc>, patience: Duration) -> Result<(), DbError> {
    let began = Instant::now();
    while expire(connection, now)? && began.elapsed() < patience {}
    loop {
        let deleted: Vec<Uuid> = uploads::table
            .filter(uploads::state.eq("deleted"))
            .order(uploads::id)
            .select(uploads::id)
            .limit(SWEEP_UPLOADS)
            .load(connection)?;
        if deleted.is_empty() || (remove(connection, &deleted)? > 0 && began.elapsed() >= patience) {
            return Ok(());
        }
    }
}

/// Looks at some uploads whose time has passed. Says whether there may be more of them.
fn expire(connection: &mut PgConnection, now: DateTime<Utc>) -> Result<bool, DbError> {
    connection.transaction(|connection| {
        // Locked first: the next statement sees every user that had the row before.
        let due: Vec<Uuid> = uploads::table
            .filter(uploads::state.eq_any(["receiving", "ready"]).and(uploads::expires_at.le(now)))
            .order(uploads::expires_at)
            .select(uploads::id)
            .limit(SWEEP_UPLOADS)
            .for_update()
            .skip_locked()
            .load(connection)?;
        if due.is_empty() {
            return Ok(false);
        }
        prepared(
            "UPDATE uploads u SET
                state = CASE WHEN used THEN state ELSE 'deleted' END,
                expires_at = CASE WHEN used THEN now() + $2 * interval '1 second' ELSE expires_at END
               FROM (SELECT due, EXISTS (SELECT FROM jobs j WHERE j.upload = due) AS used
                       FROM unnest($1) AS d(due)) d
              WHERE u.id = due",
        )
        .bind::<Array<diesel::sql_types::Uuid>, _>(&due)
        .bind::<Double, _>(KEPT_AFTER_USE.as_secs_f64())
        .execute(connection)?;
        Ok(true)
    })
}

/// Bytes of all uploads, of those too that are being received or deleted.
///
/// # Errors
/// When the database fails.
pub fn stored_bytes(connection: &mut PgConnection) -> Result<i64, DbError> {
    #[derive(QueryableByName)]
    struct Size {
        #[diesel(sql_type = BigInt)]
        bytes: i64,
    }
    let row = diesel::sql_query("SELECT coalesce(sum(bytes), 0)::bigint AS bytes FROM uploads");
    Ok(row.get_result::<Size>(connection)?.bytes)
}
