//! A body on its way into the database.
//!
//! It is stored part by part: while one is written on a thread of the doorway, the next one is gathered, and no more is
//! read before that is done. A body that breaks off, is too large, comes too slowly or isn't what its digest says
//! leaves nothing behind.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_rt::task::JoinHandle;
use actix_web::error::PayloadError;
use actix_web::web;
use actix_web::web::Bytes;
use futures_core::Stream;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::db::DbError;
use crate::http::State;
use crate::http::problem::{Code, Problem};
use crate::uploads::{ContentEncoding, ContentType, NewUpload, PART_BYTES, Upload, store};

/// How long a part may take to be written, its turn included.
const PART_PATIENCE: Duration = Duration::from_secs(60);
/// A part may take as many times longer than the silence that is borne.
const SLOW_PARTS: u32 = 10;

/// What a request says of its body.
pub(super) struct Declared {
    pub content_type: ContentType,
    pub content_encoding: ContentEncoding,
    pub sha256: Option<[u8; 32]>,
    pub length: Option<i64>,
}

/// Stores a body, and says what it has become.
pub(super) async fn receive(shared: &State, declared: &Declared, body: web::Payload) -> Result<Upload, Problem> {
    if declared.length.is_some_and(|length| length > shared.settings.upload_limit_bytes) {
        return Err(too_large(shared));
    }
    check_room(shared, declared.length.unwrap_or(0))?;
    let mut receiving = Receiving::new(shared.clone(), declared);
    let outcome = receiving.run(body, declared).await;
    if outcome.is_err() {
        receiving.give_up().await;
    }
    outcome
}

fn check_room(shared: &State, more: i64) -> Result<(), Problem> {
    let (stored, limit) = (shared.metrics.result_store_bytes(), shared.settings.result_store_bytes);
    if stored < limit && stored.saturating_add(more) <= limit {
        return Ok(());
    }
    Err(no_room().hint("delete results and uploads that are no longer needed, or raise result_store_bytes"))
}

fn no_room() -> Problem {
    Problem::new(Code::ResultStoreFull, "there is no room for another upload")
}

fn too_large(shared: &State) -> Problem {
    let limit = shared.settings.upload_limit_bytes;
    Problem::new(Code::BodyTooLarge, format!("the upload is larger than {limit} bytes"))
        .field("", format!("expected at most {limit} bytes"))
}

fn too_slow(detail: &str) -> Problem {
    Problem::new(Code::RequestTimeout, detail)
}

struct Receiving {
    shared: State,
    upload: NewUpload,
    /// The longest that a part may take to arrive.
    slowest: Duration,
    /// Of the parts that were written.
    digest: Sha256,
    bytes: i64,
    parts: i32,
    /// The part that is being written, and what the digest is behind it.
    writing: Option<JoinHandle<Result<Sha256, Problem>>>,
}

impl Receiving {
    fn new(shared: State, declared: &Declared) -> Receiving {
        let slowest = shared.settings.upload_idle.saturating_mul(SLOW_PARTS);
        let upload = NewUpload {
            id: Uuid::now_v7(),
            content_type: declared.content_type,
            content_encoding: declared.content_encoding,
            patience: slowest.saturating_add(PART_PATIENCE.saturating_mul(5)),
        };
        Receiving { shared, upload, slowest, digest: Sha256::new(), bytes: 0, parts: 0, writing: None }
    }

    async fn run(&mut self, mut body: web::Payload, declared: &Declared) -> Result<Upload, Problem> {
        let mut part = Vec::new();
        let mut began = Instant::now();
        while let Some(chunk) = self.next_chunk(&mut body).await? {
            self.bytes = self.bytes.saturating_add(i64::try_from(chunk.len()).unwrap_or(i64::MAX));
            if self.bytes > self.shared.settings.upload_limit_bytes {
                return Err(too_large(&self.shared));
            }
            let mut rest = &chunk[..];
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(PART_BYTES.saturating_sub(part.len())));
                part.extend_from_slice(now);
                rest = later;
                if part.len() >= PART_BYTES {
                    let behind = i64::try_from(rest.len()).unwrap_or(0);
                    self.write(std::mem::replace(&mut part, Vec::with_capacity(PART_BYTES)), behind).await?;
                    began = Instant::now();
                }
            }
            if began.elapsed() > self.slowest {
                return Err(too_slow("the body came too slowly"));
            }
        }
        if !part.is_empty() {
            self.write(part, 0).await?;
        }
        self.written().await?;
        self.make_ready(declared).await
    }

    async fn next_chunk(&self, body: &mut web::Payload) -> Result<Option<Bytes>, Problem> {
        let next = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_next(cx));
        match tokio::time::timeout(self.shared.settings.upload_idle, next).await {
            Err(_) => Err(too_slow("nothing came of the body for too long")),
            Ok(None) => Ok(None),
            Ok(Some(Ok(chunk))) => Ok(Some(chunk)),
            Ok(Some(Err(PayloadError::Overflow))) => Err(too_large(&self.shared)),
            Ok(Some(Err(_))) => Err(Problem::new(Code::MalformedRequest, "the body did not arrive whole")),
        }
    }

    /// Has a part written, as soon as the one before it is. `behind` bytes of those that have come belong to later
    /// parts.
    async fn write(&mut self, part: Vec<u8>, behind: i64) -> Result<(), Problem> {
        self.written().await?;
        check_room(&self.shared, 0)?;
        let (shared, upload, digest) = (self.shared.clone(), self.upload.clone(), self.digest.clone());
        let (n, bytes, part) = (self.parts, self.bytes.saturating_sub(behind), Arc::new(part));
        self.parts = self.parts.saturating_add(1);
        self.writing = Some(actix_rt::spawn(async move {
            let began = Instant::now();
            let turn = tokio::time::timeout(PART_PATIENCE, Arc::clone(&shared.part_writers).acquire_owned()).await;
            let Ok(Ok(_turn)) = turn else {
                return Err(DbError::Busy("too many uploads are being written").into());
            };
            let left = PART_PATIENCE.saturating_sub(began.elapsed());
            let write = move |connection: &mut _| {
                if !store::write_part(connection, &upload, n, bytes, &part, PART_PATIENCE)? {
                    return Ok(None);
                }
                let mut digest = digest.clone();
                digest.update(&*part);
                Ok(Some(digest))
            };
            shared.doorway.run_within(left, write).await.map_err(failed)?.ok_or_else(given_up)
        }));
        Ok(())
    }

    /// Waits for the part that is being written.
    async fn written(&mut self) -> Result<(), Problem> {
        if let Some(writing) = self.writing.take() {
            self.digest = writing.await.map_err(|error| Problem::internal(&error))??;
        }
        Ok(())
    }

    async fn make_ready(&self, declared: &Declared) -> Result<Upload, Problem> {
        let digest: [u8; 32] = self.digest.clone().finalize().into();
        if declared.sha256.is_some_and(|expected| expected != digest) {
            return Err(Problem::new(Code::DigestMismatch, "the body isn't the one that Content-Digest is of")
                .field("Content-Digest", "expected the SHA-256 of the body as it is sent")
                .hint("nothing of it was kept; send it again"));
        }
        let sha256: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let (upload, parts, bytes) = (self.upload.clone(), self.parts, self.bytes);
        let ready =
            move |connection: &mut _| store::make_ready(connection, &upload, parts, bytes, &sha256, PART_PATIENCE);
        self.shared.doorway.run_within(PART_PATIENCE, ready).await.map_err(failed)?.ok_or_else(given_up)
    }

    /// Nothing is to be left. What can't be removed now goes when its time has passed.
    async fn give_up(&mut self) {
        // One that is still being written must not come after its removal.
        let _ = self.written().await;
        let id = self.upload.id;
        if self.parts > 0
            && let Err(error) = self.shared.doorway.run(move |connection| store::give_up(connection, id)).await
        {
            log::info!(upload = id.to_string(); "what came of a broken upload is removed later: {error}");
        }
    }
}

fn failed(error: DbError) -> Problem {
    if error.is_disk_full() { no_room() } else { error.into() }
}

/// The server lost what it had not flushed, or the upload was taken for abandoned.
fn given_up() -> Problem {
    Problem::new(Code::DatabaseUnavailable, "the database lost a part of the upload; send it again")
}
