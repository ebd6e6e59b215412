//! Requests that wait for a job to change: woken by hints, and by one statement for all of them four times a second.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{broadcast, watch};
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use crate::db::Doorway;
use crate::queue::fleet::health::Health;
use crate::queue::fleet::signals::{ANY_JOB, Signals};
use crate::queue::record::read::{self, JobMark};

/// Requests that may wait at a time; one more is answered at once.
pub const MAX_WAITERS: usize = 1_000;
/// How late a change may be noticed when no hint arrives.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Hints within this time are looked into together.
const GATHER: Duration = Duration::from_millis(5);

struct Watched {
    sender: watch::Sender<Option<JobMark>>,
    waiters: usize,
}

/// See the module. Cloning it is cheap.
#[derive(Clone)]
pub struct Waiters {
    doorway: Doorway,
    health: Arc<Health>,
    watched: Arc<Mutex<HashMap<Uuid, Watched>>>,
    arrived: watch::Sender<()>,
}

impl Waiters {
    /// Starts the task that looks. Must be called where tasks can be spawned.
    pub fn new(doorway: Doorway, signals: &Signals, health: Arc<Health>) -> Waiters {
        let waiters = Waiters { doorway, health, watched: Arc::default(), arrived: watch::Sender::new(()) };
        actix_rt::spawn(waiters.clone().look_after(signals.subscribe_changes()));
        waiters
    }

    /// Waits until `done` says yes to the job's mark, or until `until`. `None`, at once, when too many wait already;
    /// otherwise whether it was done. A server that closes holds nobody up: then this returns early.
    pub async fn wait(&self, id: Uuid, until: Instant, done: impl Fn(&JobMark) -> bool) -> Option<bool> {
        let mut place = Place::take(self, id)?;
        // What changed before the place was taken is seen by this.
        let looked = timeout_at(until, self.look(vec![id])).await;
        self.arrived.send_replace(());
        if looked.is_err() {
            return Some(false);
        }
        let changed = place.receiver.wait_for(|mark| mark.as_ref().is_some_and(&done));
        tokio::select! {
            outcome = timeout_at(until, changed) => Some(matches!(outcome, Ok(Ok(_)))),
            () = self.health.closing() => Some(false),
        }
    }

    async fn look_after(self, mut changes: broadcast::Receiver<Uuid>) {
        let mut arrived = self.arrived.subscribe();
        let mut next_look = Instant::now();
        loop {
            if self.lock().is_empty() {
                // Nobody waits: hints that come meanwhile are of no interest.
                if arrived.changed().await.is_err() {
                    return;
                }
                changes = changes.resubscribe();
            }
            // Hints about other jobs don't put the next look off.
            match timeout_at(next_look, changes.recv()).await {
                Ok(Ok(id)) if id != ANY_JOB && !self.lock().contains_key(&id) => continue,
                Ok(Ok(_)) => tokio::time::sleep(GATHER).await,
                Ok(Err(RecvError::Lagged(_))) | Err(_) => {}
                Ok(Err(RecvError::Closed)) => return,
            }
            // One look serves all hints that came until now.
            while !matches!(changes.try_recv(), Err(TryRecvError::Empty | TryRecvError::Closed)) {}
            let ids: Vec<Uuid> = self.lock().keys().copied().collect();
            self.look(ids).await;
            next_look = Instant::now() + LOOK_EVERY;
        }
    }

    async fn look(&self, ids: Vec<Uuid>) {
        let marks = self.doorway.run(move |connection| read::marks(connection, &ids)).await;
        // A look that failed is followed by another one.
        let Ok(marks) = marks else { return };
        let watched = self.lock();
        for mark in marks {
            if let Some(watched) = watched.get(&mark.id) {
                watched.sender.send_if_modified(|known| {
                    let modified = known.as_ref() != Some(&mark);
                    *known = Some(mark);
                    modified
                });
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Watched>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request's place among those who wait; given up when it is dropped.
struct Place<'w> {
    waiters: &'w Waiters,
    id: Uuid,
    receiver: watch::Receiver<Option<JobMark>>,
}

impl<'w> Place<'w> {
    fn take(waiters: &'w Waiters, id: Uuid) -> Option<Place<'w>> {
        let mut watched = waiters.lock();
        if watched.values().map(|w| w.waiters).sum::<usize>() >= MAX_WAITERS {
            return None;
        }
        let entry = watched.entry(id).or_insert_with(|| Watched { sender: watch::Sender::new(None), waiters: 0 });
        entry.waiters += 1;
        let receiver = entry.sender.subscribe();
        Some(Place { waiters, id, receiver })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut watched = self.waiters.lock();
        if let Some(entry) = watched.get_mut(&self.id) {
            entry.waiters = entry.waiters.saturating_sub(1);
            if entry.waiters == 0 {
                watched.remove(&self.id);
            }
        }
    }
}
