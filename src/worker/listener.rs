//! Hints between processes: NOTIFY out, at most one in a while; LISTEN in, on a session of its own.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel::sql_types::Text;
use uuid::Uuid;

use crate::pq::{PqError, Session};
use crate::queue::signals::{CHANNEL, Envelope, Message, ReadyHint};
use crate::worker::Shared;
use crate::worker::threads::{Threads, jittered};

/// At most one NOTIFY in this time: it takes a lock of the whole database at commit.
const COOLDOWN: Duration = Duration::from_millis(25);
/// Ids that one payload carries; Postgres allows 8,000 bytes. More are sent as an empty list.
const MAX_IDS: usize = 150;
/// How long a LISTEN waits before it looks whether the process is to end.
const LISTEN_WAIT: Duration = Duration::from_secs(1);
/// The pause before a lost LISTEN is opened again.
const RECONNECT: Duration = Duration::from_secs(1);

pub(super) fn start(shared: &Arc<Shared>, threads: &mut Threads) -> std::io::Result<()> {
    if !shared.config.notify {
        return Ok(());
    }
    let origin = Uuid::new_v4();
    let (sender, messages) = channel();
    shared.config.signals.send_with(move |message| {
        // Nobody sends any more: the others find out by polling.
        let _ = sender.send(message.clone());
    });
    let notifier = Arc::clone(shared);
    threads.spawn("slowlane-notify", move || notify(&notifier, origin, &messages))?;
    let listener = Arc::clone(shared);
    threads.spawn("slowlane-listen", move || listen(&listener, origin))
}

fn notify(shared: &Shared, origin: Uuid, messages: &Receiver<Message>) {
    while !shared.stop.is_set() {
        let first = match messages.recv_timeout(Duration::from_secs(1)) {
            Ok(first) => first,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let mut outgoing = Outgoing::default();
        outgoing.add(first);
        messages.try_iter().for_each(|message| outgoing.add(message));
        send(shared, origin, outgoing);
        shared.stop.wait(COOLDOWN);
    }
}

fn send(shared: &Shared, origin: Uuid, outgoing: Outgoing) {
    let Ok(mut connection) = shared.config.control.get() else {
        return;
    };
    for message in outgoing.into_messages() {
        let Ok(payload) = serde_json::to_string(&Envelope { origin, message }) else {
            continue;
        };
        let sent = diesel::sql_query("SELECT pg_notify($1, $2)")
            .bind::<Text, _>(CHANNEL)
            .bind::<Text, _>(payload)
            .execute(&mut *connection);
        if let Err(error) = sent {
            log::debug!("a NOTIFY could not be sent; the others will poll: {error}");
        }
    }
}

/// What gathered during a cooldown.
#[derive(Default)]
struct Outgoing {
    ready: HashMap<(String, i16), ReadyHint>,
    scheduled: bool,
    cancel: Vec<Uuid>,
    changed: Vec<Uuid>,
}

impl Outgoing {
    fn add(&mut self, message: Message) {
        match message {
            Message::Ready(hints) => hints.into_iter().for_each(|hint| self.add_ready(hint)),
            Message::Scheduled => self.scheduled = true,
            Message::Cancel(ids) => self.cancel.extend(ids),
            Message::Changed(ids) => self.changed.extend(ids),
        }
    }

    fn add_ready(&mut self, hint: ReadyHint) {
        let first = self.ready.entry((hint.queue.clone(), hint.priority)).or_insert_with(|| hint.clone());
        if (hint.run_at, hint.id) < (first.run_at, first.id) {
            *first = hint;
        }
    }

    fn into_messages(self) -> Vec<Message> {
        let mut messages = Vec::new();
        let ready: Vec<ReadyHint> = self.ready.into_values().collect();
        messages.extend(ready.chunks(20).map(|hints| Message::Ready(hints.to_vec())));
        if self.scheduled {
            messages.push(Message::Scheduled);
        }
        messages.extend(self.cancel.chunks(MAX_IDS).map(|ids| Message::Cancel(ids.to_vec())));
        if self.changed.len() > MAX_IDS {
            messages.push(Message::Changed(Vec::new()));
        } else if !self.changed.is_empty() {
            messages.push(Message::Changed(self.changed));
        }
        messages
    }
}

fn listen(shared: &Shared, origin: Uuid) {
    let mut failing_since: Option<Instant> = None;
    while !shared.stop.is_set() {
        let error = match open(shared) {
            Ok(mut session) => {
                if failing_since.take().is_some() {
                    log::info!("hints from other processes arrive again");
                }
                // What was missed meanwhile is unknown: look.
                shared.slots.wake(&[]);
                receive(shared, origin, &mut session)
            }
            Err(error) => Some(error),
        };
        let Some(error) = error else { return };
        if failing_since.is_none() {
            failing_since = Some(Instant::now());
            log::warn!("hints from other processes don't arrive; this process polls: {error}");
        }
        shared.stop.wait(jittered(RECONNECT));
    }
}

fn open(shared: &Shared) -> Result<Session, PqError> {
    let dsn = shared.config.queue.clone().for_connecting().with("application_name", "slowlane listener");
    let mut session = Session::connect(&dsn)?;
    session.execute_batch(&format!("LISTEN {CHANNEL}"))?;
    Ok(session)
}

/// Passes hints on until the session is lost (the error) or the process is to end.
fn receive(shared: &Shared, origin: Uuid, session: &mut Session) -> Option<PqError> {
    while !shared.stop.is_set() {
        match session.wait_notification(LISTEN_WAIT) {
            Ok(Some(notification)) => match serde_json::from_str::<Envelope>(&notification.payload) {
                Ok(envelope) if envelope.origin == origin => {}
                Ok(envelope) => shared.config.signals.received(&envelope.message),
                Err(_) => log::debug!("a NOTIFY on the channel {CHANNEL} isn't one of ours"),
            },
            Ok(None) => {}
            Err(error) => return Some(error),
        }
    }
    None
}
