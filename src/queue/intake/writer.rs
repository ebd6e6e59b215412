//! The writer: requests that wait are gathered, and become committed rows by one statement and one commit.
//!
//! Owns the only way into `jobs` for HTTP, with its own connection and thread. One request alone is written at
//! once; nothing is held back by a timer. Whoever is told [`Accepted`] has a row that survives a crash.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use diesel::pg::PgConnection;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::db::DbError;
use crate::db::pool::Manager;
use crate::queue::fleet::signals::{ReadyHint, Signals};
use crate::queue::intake::insert::{self, Inserted};
use crate::queue::intake::request::{AcceptError, Accepted, Submission};
use crate::queue::intake::retry;
use crate::queue::model::JobState;

/// Requests that may wait for the writer; one more is refused with [`AcceptError::Busy`].
pub const MAX_WAITING: usize = 1_000;
/// Bytes of arguments that may wait for the writer: 32 MiB.
pub const MAX_WAITING_BYTES: usize = 32 * 1024 * 1024;
/// Rows in one statement.
const MAX_GROUP: usize = 500;
/// How long the writer tries to learn what became of a commit whose connection was lost.
pub const UNDECIDED_AFTER: Duration = Duration::from_secs(5);
/// How long a request waits for the writer to take it up. One that is withdrawn then was not written, and won't be.
pub const WITHDRAWN_AFTER: Duration = Duration::from_secs(5);
/// How long a caller waits for the writer in all: a socket that swallows everything must not hold a request for ever.
pub const GIVE_UP_AFTER: Duration = Duration::from_secs(12);
/// Between two tries to reconnect, at the most.
const RECONNECT_PAUSE: Duration = Duration::from_millis(200);

/// Whether a request is written is decided once: by the writer that takes it up, or by the caller that withdraws it.
struct Ticket(AtomicU8);

impl Ticket {
    const WAITING: u8 = 0;
    const TAKEN: u8 = 1;
    const WITHDRAWN: u8 = 2;

    fn decide(&self, state: u8) -> bool {
        self.0.compare_exchange(Ticket::WAITING, state, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// `false` when the caller was faster: then it must not be written.
    fn take(&self) -> bool {
        self.decide(Ticket::TAKEN)
    }

    /// `false` when the writer was faster: then what became of it is the writer's to say.
    fn withdraw(&self) -> bool {
        self.decide(Ticket::WITHDRAWN)
    }
}

struct Waiting {
    request: Submission,
    bytes: usize,
    ticket: Arc<Ticket>,
    answer: oneshot::Sender<Result<Accepted, AcceptError>>,
}

/// A handle to the writer. Cloning it is cheap; the thread ends when the last one is gone.
#[derive(Clone)]
pub struct Writer {
    requests: SyncSender<Waiting>,
    waiting_bytes: Arc<AtomicUsize>,
}

impl Writer {
    /// Starts the thread `slowlane-writer`. It connects when the first request comes.
    ///
    /// # Errors
    /// When the thread can't be started.
    pub fn start(manager: Manager, signals: Arc<Signals>) -> std::io::Result<Writer> {
        let (requests, incoming) = sync_channel(MAX_WAITING);
        let waiting_bytes = Arc::new(AtomicUsize::new(0));
        let room = Arc::clone(&waiting_bytes);
        std::thread::Builder::new().name("slowlane-writer".to_owned()).spawn(move || {
            WriterThread { manager, signals, incoming, waiting_bytes: room, connection: None }.serve();
        })?;
        Ok(Writer { requests, waiting_bytes })
    }

    /// Waits until `request` is a committed row, or is known not to be one.
    ///
    /// # Errors
    /// [`AcceptError`] says what the caller can do.
    pub async fn accept(&self, request: Submission) -> Result<Accepted, AcceptError> {
        let id = request.id;
        let bytes = request.spec.args.text().len();
        if self.waiting_bytes.fetch_add(bytes, Ordering::AcqRel).saturating_add(bytes) > MAX_WAITING_BYTES {
            self.waiting_bytes.fetch_sub(bytes, Ordering::AcqRel);
            return Err(AcceptError::Busy);
        }
        let (answer, mut answered) = oneshot::channel();
        let ticket = Arc::new(Ticket(AtomicU8::new(Ticket::WAITING)));
        let waiting = Waiting { request, bytes, ticket: Arc::clone(&ticket), answer };
        if let Err(error) = self.requests.try_send(waiting) {
            self.waiting_bytes.fetch_sub(bytes, Ordering::AcqRel);
            return Err(match error {
                TrySendError::Full(_) => AcceptError::Busy,
                TrySendError::Disconnected(_) => AcceptError::Unavailable("the writer has stopped".to_owned()),
            });
        }
        let mut outcome = tokio::time::timeout(WITHDRAWN_AFTER, &mut answered).await;
        if outcome.is_err() {
            if ticket.withdraw() {
                return Err(AcceptError::Unavailable("the writer gets no answer".to_owned()));
            }
            outcome = tokio::time::timeout(GIVE_UP_AFTER.saturating_sub(WITHDRAWN_AFTER), answered).await;
        }
        match outcome {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) | Err(_) => Err(AcceptError::OutcomeUnknown(id)),
        }
    }
}

struct WriterThread {
    manager: Manager,
    signals: Arc<Signals>,
    incoming: Receiver<Waiting>,
    waiting_bytes: Arc<AtomicUsize>,
    connection: Option<Session>,
}

struct Session {
    connection: PgConnection,
    backend: insert::Backend,
}

impl WriterThread {
    fn serve(mut self) {
        loop {
            match self.incoming.recv_timeout(Duration::from_secs(60)) {
                Ok(first) => {
                    let group = self.gather(first);
                    // Whoever waits in a group that panicked is told that its outcome is unknown.
                    if catch_unwind(AssertUnwindSafe(|| self.write(group))).is_err() {
                        log::error!("the writer panicked over a group, and goes on with a new connection");
                        self.connection = None;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn gather(&self, first: Waiting) -> Vec<Waiting> {
        let mut group = vec![first];
        group.extend(self.incoming.try_iter().take(MAX_GROUP - 1));
        let bytes = group.iter().map(|waiting| waiting.bytes).sum();
        self.waiting_bytes.fetch_sub(bytes, Ordering::AcqRel);
        group.retain(|waiting| waiting.ticket.take());
        group
    }

    /// A group that the database refuses is repeated one by one, so that a bad row fails alone.
    fn write(&mut self, group: Vec<Waiting>) {
        if group.is_empty() {
            return;
        }
        let requests: Vec<&Submission> = group.iter().map(|waiting| &waiting.request).collect();
        let outcomes = match self.insert(&requests) {
            Err(GroupError::Refused(_)) if requests.len() > 1 => {
                requests.iter().map(|request| self.insert_alone(request)).collect()
            }
            Ok(outcomes) => outcomes,
            Err(error) => requests.iter().map(|request| Err(error.for_job(request.id))).collect(),
        };
        self.hint(&outcomes);
        for (waiting, outcome) in group.into_iter().zip(outcomes) {
            // A caller that has gone away can ask by id or by key.
            let _ = waiting.answer.send(outcome);
        }
    }

    fn insert_alone(&mut self, request: &Submission) -> Result<Accepted, AcceptError> {
        let id = request.id;
        let mut outcomes = self.insert(&[request]).map_err(|error| error.for_job(id))?;
        outcomes.pop().unwrap_or(Err(AcceptError::OutcomeUnknown(id)))
    }

    fn insert(&mut self, requests: &[&Submission]) -> Result<Vec<Result<Accepted, AcceptError>>, GroupError> {
        let mut lost: Option<(insert::Backend, Instant)> = None;
        loop {
            let attempt = self.try_insert(requests, lost.as_ref().map(|(backend, _)| backend));
            match attempt {
                Ok(inserted) => return Ok(inserted.into_iter().map(answer).collect()),
                Err(DbError::Unavailable(reason)) => {
                    let session = self.connection.take();
                    match (session, &lost) {
                        // The statement was under way: it may be committed.
                        (Some(session), None) => lost = Some((session.backend, Instant::now())),
                        // Nothing was sent: nothing can be committed.
                        (None, None) => return Err(GroupError::Unavailable(reason)),
                        (_, Some((_, since))) if since.elapsed() >= UNDECIDED_AFTER => return Err(GroupError::Unknown),
                        (_, Some(_)) => pause(),
                    }
                }
                // Whatever else goes wrong while the outcome is looked up: nothing is certain before it is known.
                Err(error) if lost.is_some() => {
                    if lost.as_ref().is_some_and(|(_, since)| since.elapsed() >= UNDECIDED_AFTER) {
                        return Err(GroupError::Unknown);
                    }
                    log::warn!("what became of a lost commit can't be looked up, and is tried again: {error}");
                    pause();
                }
                Err(error @ DbError::Busy(_)) => return Err(GroupError::Unavailable(error.to_string())),
                Err(DbError::Query(error)) => return Err(GroupError::Refused(error)),
            }
        }
    }

    /// With `lost`, the session of an earlier try is ended first: only then is it certain that what isn't found
    /// now will not appear later.
    fn try_insert(
        &mut self,
        requests: &[&Submission],
        lost: Option<&insert::Backend>,
    ) -> Result<Vec<Inserted>, DbError> {
        let session = match self.connection.take() {
            Some(session) => self.connection.insert(session),
            None => {
                let mut connection = self.manager.open()?;
                let backend = insert::backend(&mut connection)?;
                self.connection.insert(Session { connection, backend })
            }
        };
        if let Some(backend) = lost {
            insert::end_backend(&mut session.connection, backend)?;
            return insert::insert_missing(&mut session.connection, requests);
        }
        insert::insert(&mut session.connection, requests)
    }

    fn hint(&self, outcomes: &[Result<Accepted, AcceptError>]) {
        let mut hints: Vec<ReadyHint> = Vec::new();
        let mut scheduled = false;
        for job in outcomes.iter().filter_map(|outcome| match outcome {
            Ok(Accepted::Created(job)) => Some(job),
            _ => None,
        }) {
            if job.status.state == JobState::Scheduled {
                scheduled = true;
                continue;
            }
            let hint = ReadyHint {
                queue: job.spec.queue.clone(),
                priority: job.spec.priority,
                run_at: job.status.run_at,
                id: job.id,
            };
            match hints.iter_mut().find(|h| h.queue == hint.queue && h.priority == hint.priority) {
                Some(first) if (hint.run_at, hint.id) < (first.run_at, first.id) => *first = hint,
                Some(_) => {}
                None => hints.push(hint),
            }
        }
        if !hints.is_empty() {
            self.signals.ready(hints);
        }
        if scheduled {
            self.signals.scheduled();
        }
    }
}

fn pause() {
    std::thread::sleep(RECONNECT_PAUSE.mul_f64(rand::random_range(0.1..1.0)));
}

enum GroupError {
    Unavailable(String),
    Unknown,
    Refused(diesel::result::Error),
}

impl GroupError {
    fn for_job(&self, id: Uuid) -> AcceptError {
        match self {
            GroupError::Unavailable(reason) => AcceptError::Unavailable(reason.clone()),
            GroupError::Unknown => AcceptError::OutcomeUnknown(id),
            GroupError::Refused(error) => refused(error),
        }
    }
}

fn refused(error: &diesel::result::Error) -> AcceptError {
    let diesel::result::Error::DatabaseError(_, info) = error else {
        return AcceptError::Failed(error.to_string());
    };
    match info.constraint_name() {
        Some(retry::ONE_AT_A_TIME) => AcceptError::RetryUnfinished,
        Some("jobs_id_near_clock") => AcceptError::ClockDifference,
        _ => AcceptError::Failed(error.to_string()),
    }
}

fn answer(inserted: Inserted) -> Result<Accepted, AcceptError> {
    match inserted {
        Inserted::Created(job) => Ok(Accepted::Created(job)),
        Inserted::Replayed(job) => Ok(Accepted::Replayed(job)),
        Inserted::KeyReused => Err(AcceptError::KeyReused),
        Inserted::NoUpload => Err(AcceptError::NoUpload),
        Inserted::Unknown(id) => Err(AcceptError::OutcomeUnknown(id)),
        Inserted::Gone => Err(AcceptError::Failed("a row vanished between two statements".to_owned())),
    }
}
