//! The bytes of a result on their way.
//!
//! They are sent part by part: each is read and encoded on a thread of the doorway, at most two are in memory, and a
//! part that can't be had breaks the connection. An answer never ends cleanly before its last byte.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use actix_web::web::Bytes;
use tokio::sync::mpsc::Sender;
use uuid::Uuid;

use crate::db::DbError;
use crate::http::State;
use crate::http::results::body::{self, PartStream, Piece as Sent};
use crate::http::results::negotiate::{Coding, Encoder};
use crate::results::range::{self, Piece, Source};
use crate::results::store::{self, StoredResult};
use crate::results::{Format, Manifest, Representation, ResultError};

/// How long a part may take to be read and encoded: one can hold a value of hundreds of megabytes.
const PART_PATIENCE: Duration = Duration::from_secs(60);

/// The wanted bytes of a result, in one representation.
pub(super) struct Sending {
    shared: State,
    id: Uuid,
    lease: i64,
    manifest: Arc<Manifest>,
    format: Format,
    pieces: Vec<Piece>,
}

/// Why a result isn't sent to its end.
#[derive(Debug, thiserror::Error)]
enum SendError {
    /// Its reader has gone.
    #[error("nobody reads it any more")]
    Unread,
    /// It was deleted, or has expired, since it was begun.
    #[error("a part is gone")]
    PartGone,
    /// A part isn't what the manifest says.
    #[error(transparent)]
    Result(#[from] ResultError),
    /// Its bytes can't be coded.
    #[error("the body can't be coded: {0}")]
    Coding(#[from] std::io::Error),
    /// The queue's database failed.
    #[error(transparent)]
    Db(#[from] DbError),
}

impl Sending {
    pub fn new(
        shared: State,
        id: Uuid,
        stored: StoredResult,
        representation: Representation,
        wanted: Range<u64>,
    ) -> Sending {
        let (pieces, format) = (range::pieces(&stored.manifest, representation, &wanted), representation.format);
        Sending { shared, id, lease: stored.lease, manifest: Arc::new(stored.manifest), format, pieces }
    }

    /// Starts to produce them; at most one piece waits while another is sent.
    pub fn start(self, coding: Coding) -> PartStream {
        let (sender, stream) = body::channel();
        actix_rt::spawn(async move {
            let last = match self.send(coding, &sender).await {
                Ok(()) => Sent::End,
                Err(SendError::Unread) => return,
                Err(error) => {
                    log::warn!(job = self.id.to_string(); "a result broke off while it was sent: {error}");
                    Sent::Failed(error.to_string())
                }
            };
            // Whoever reads has gone: then nobody needs the end.
            let _ = sender.send(last).await;
        });
        stream
    }

    async fn send(&self, coding: Coding, sender: &Sender<Sent>) -> Result<(), SendError> {
        let encoder = Arc::new(Mutex::new(coding.encoder()?));
        for piece in &self.pieces {
            let bytes = self.produce(piece.clone(), Arc::clone(&encoder)).await?;
            // An empty chunk would be the end of the body (RFC 9112, 7.1).
            if !bytes.is_empty() && sender.send(Sent::Bytes(bytes)).await.is_err() {
                return Err(SendError::Unread);
            }
        }
        let rest = locked(&encoder).finish()?;
        if !rest.is_empty() && sender.send(Sent::Bytes(rest.into())).await.is_err() {
            return Err(SendError::Unread);
        }
        Ok(())
    }

    async fn produce(&self, piece: Piece, encoder: Arc<Mutex<Encoder>>) -> Result<Bytes, SendError> {
        let (id, lease, format, manifest) = (self.id, self.lease, self.format, Arc::clone(&self.manifest));
        let work = move |connection: &mut _| {
            let stored = match &piece.source {
                Source::Fixed(_) => Some(Vec::new()),
                Source::Part(n) => {
                    let n = i32::try_from(*n).unwrap_or(i32::MAX);
                    store::part(connection, id, lease, n, PART_PATIENCE)?
                }
            };
            // What is tried again after a lost connection has not come as far as this.
            Ok(encode(&manifest, format, &piece, stored, &encoder))
        };
        self.shared.doorway.run_within(PART_PATIENCE, work).await?
    }
}

fn locked(encoder: &Mutex<Encoder>) -> MutexGuard<'_, Encoder> {
    encoder.lock().unwrap_or_else(PoisonError::into_inner)
}

fn encode(
    manifest: &Manifest,
    format: Format,
    piece: &Piece,
    stored: Option<Vec<u8>>,
    encoder: &Mutex<Encoder>,
) -> Result<Bytes, SendError> {
    let stored = stored.ok_or(SendError::PartGone)?;
    let bytes = range::encode(manifest, format, piece, &stored)?;
    Ok(locked(encoder).encode(bytes)?.into())
}
