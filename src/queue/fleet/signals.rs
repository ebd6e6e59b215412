//! Hints that save waiting: within this process at once, to other processes by a debounced NOTIFY.
//!
//! A hint is never the truth. Whoever waits for one also looks for itself from time to time, so that a lost hint
//! costs a second and nothing else. Knows no thread that sends or listens.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;
use uuid::Uuid;

/// The channel of NOTIFY. A payload is one [`Message`] as JSON.
pub const CHANNEL: &str = "slowlane";

/// Changes that a slow subscriber may lag behind; one that lags more looks at all it waits for.
const CHANGES_KEPT: usize = 4_096;

/// The first claimable row of a batch: fetchers that have passed this place go back to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadyHint {
    /// The queue.
    pub queue: String,
    /// The priority.
    pub priority: i16,
    /// The row's `run_at`.
    pub run_at: DateTime<Utc>,
    /// The row's id.
    pub id: Uuid,
}

/// What one process tells the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// Rows became claimable; an empty list stands for those that nobody has passed.
    Ready(Vec<ReadyHint>),
    /// A row was scheduled for later: promoters look when the first is due.
    Scheduled,
    /// The cancellation of running jobs was asked for.
    Cancel(Vec<Uuid>),
    /// Running jobs are to be paused.
    Pause(Vec<Uuid>),
    /// Jobs changed; an empty list stands for more than fit.
    Changed(Vec<Uuid>),
    /// The saved statements are to be read again.
    Statements,
}

/// A message as it travels in a NOTIFY.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// The process that sent it: it has acted on its own hints already.
    pub origin: Uuid,
    /// The hint.
    pub message: Message,
}

/// Stands among changes for jobs that weren't named.
pub const ANY_JOB: Uuid = Uuid::nil();

type Listener = Arc<dyn Fn(&Message) + Send + Sync>;

/// The hints of one process. Shared by every thread that makes or awaits one.
pub struct Signals {
    changes: broadcast::Sender<Uuid>,
    local: Mutex<Vec<Listener>>,
    remote: Mutex<Option<Listener>>,
}

impl Default for Signals {
    fn default() -> Self {
        Signals { changes: broadcast::channel(CHANGES_KEPT).0, local: Mutex::default(), remote: Mutex::default() }
    }
}

impl Signals {
    /// Jobs whose row or result changed.
    pub fn subscribe_changes(&self) -> broadcast::Receiver<Uuid> {
        self.changes.subscribe()
    }

    /// Calls `listener` for each hint, on the thread that makes it: it must not block.
    pub fn on_hint(&self, listener: impl Fn(&Message) + Send + Sync + 'static) {
        locked(&self.local).push(Arc::new(listener));
    }

    /// Calls `sender` for each hint that other processes should have, on the thread that makes it: it must not
    /// block.
    pub fn send_with(&self, sender: impl Fn(&Message) + Send + Sync + 'static) {
        *locked(&self.remote) = Some(Arc::new(sender));
    }

    /// Rows became claimable.
    pub fn ready(&self, hints: Vec<ReadyHint>) {
        self.tell(Message::Ready(hints));
    }

    /// Something may be claimable that nobody has passed.
    pub fn look_again(&self) {
        self.tell(Message::Ready(Vec::new()));
    }

    /// A row was scheduled for later.
    pub fn scheduled(&self) {
        self.tell(Message::Scheduled);
    }

    /// A job changed.
    pub fn job_changed(&self, id: Uuid) {
        self.tell(Message::Changed(vec![id]));
    }

    /// Jobs changed.
    pub fn jobs_changed(&self, ids: Vec<Uuid>) {
        self.tell(Message::Changed(ids));
    }

    /// The cancellation of a running job was asked for.
    pub fn cancel_requested(&self, id: Uuid) {
        self.tell(Message::Cancel(vec![id]));
    }

    /// A running job is to be paused.
    pub fn pause_requested(&self, id: Uuid) {
        self.tell(Message::Pause(vec![id]));
    }

    /// The saved statements were read again here: other processes read their own.
    pub fn statements_changed(&self) {
        let sender = locked(&self.remote).clone();
        if let Some(sender) = sender {
            sender(&Message::Statements);
        }
    }

    /// A hint from another process: it goes to the listeners here, and no further.
    pub fn received(&self, message: &Message) {
        if let Message::Changed(ids) = message {
            if ids.is_empty() {
                let _ = self.changes.send(ANY_JOB);
            }
            for id in ids {
                // Nobody waits: then nobody needs to know.
                let _ = self.changes.send(*id);
            }
        }
        let listeners = locked(&self.local).clone();
        for listener in listeners {
            listener(message);
        }
    }

    fn tell(&self, message: Message) {
        self.received(&message);
        let sender = locked(&self.remote).clone();
        if let Some(sender) = sender {
            sender(&message);
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
