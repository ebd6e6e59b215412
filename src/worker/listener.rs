//! Hints between processes: NOTIFY out, a few at once and then one in a while; LISTEN in, on a session of its own.
//!
//! Every process has them, whether it runs jobs or not. Knows no job.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel::sql_types::Text;
use uuid::Uuid;

use crate::db::pool::Pool;
use crate::db::{Source, prepared};
use crate::pq::{Notification, Patience, PqError, Session};
use crate::queue::fleet::signals::{CHANNEL, Envelope, Message, ReadyHint, Signals};
use crate::worker::threads::{Growing, Stop, Threads};

/// Under load, at most one NOTIFY in this time: it takes a lock of the whole database at commit.
const COOLDOWN: Duration = Duration::from_millis(25);
/// After a quiet time so many go out without a pause in between: who submits, waits and cancels by hand isn't held up.
const BURST: u32 = 8;
/// Ids that one payload carries; Postgres allows 8,000 bytes. More are sent as an empty list.
const MAX_IDS: usize = 150;
/// How long a LISTEN waits before it looks whether the process is to end.
const LISTEN_WAIT: Duration = Duration::from_secs(1);
/// How long stopping waits for both threads.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// The pauses before a lost LISTEN is opened again: the first, and the longest.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(1));
/// After so long without a word the server is asked for one: a session that only listens is quiet by nature, and a
/// dead one is as quiet.
const QUIET: Duration = Duration::from_secs(3);
/// How long its answer is waited for.
const ANSWER: Duration = Duration::from_secs(5);

/// What hints travel by.
#[derive(Clone)]
pub struct HintsConfig {
    /// The queue, for LISTEN.
    pub queue: Source,
    /// Connections to the queue, for NOTIFY.
    pub control: Pool,
    /// The hints of this process.
    pub signals: Arc<Signals>,
}

/// The threads `slowlane-notify` and `slowlane-listen`.
pub struct Hints {
    threads: Threads,
}

impl Hints {
    /// Starts both threads.
    ///
    /// # Errors
    /// When a thread can't be started.
    pub fn start(config: HintsConfig) -> std::io::Result<Hints> {
        let stop = Arc::new(Stop::default());
        let mut threads = Threads::new(Arc::clone(&stop));
        let origin = Uuid::new_v4();
        let (sender, messages) = channel();
        config.signals.send_with(move |message| {
            // Nobody sends any more: the others find out by polling.
            let _ = sender.send(message.clone());
        });
        let carrier = Arc::new(Carrier { config, origin, stop });
        let notifier = Arc::clone(&carrier);
        threads.spawn("slowlane-notify", move || notifier.notify(&messages))?;
        threads.spawn("slowlane-listen", move || carrier.listen())?;
        Ok(Hints { threads })
    }

    /// Ends both threads.
    pub fn stop(self) {
        self.threads.stop_and_join(STOP_PATIENCE);
    }
}

struct Carrier {
    config: HintsConfig,
    /// Names this process in its own messages.
    origin: Uuid,
    stop: Arc<Stop>,
}

impl Carrier {
    fn notify(&self, messages: &Receiver<Message>) {
        let mut pace = Pace::default();
        let mut unsent = Outgoing::default();
        while !self.stop.is_set() {
            let mut outgoing = std::mem::take(&mut unsent);
            match messages.recv_timeout(Duration::from_secs(1)) {
                Ok(first) => outgoing.add(first),
                Err(RecvTimeoutError::Timeout) if outgoing.statements => {}
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return,
            }
            messages.try_iter().for_each(|message| outgoing.add(message));
            // Of the others a loss is found out by looking; nobody looks for this one.
            let statements = outgoing.statements;
            if !self.send(outgoing) && statements {
                unsent = Outgoing { statements, ..Outgoing::default() };
            }
            self.stop.wait(pace.pause(Instant::now()));
        }
    }

    /// `false` when not all of it was sent.
    fn send(&self, outgoing: Outgoing) -> bool {
        let Ok(mut connection) = self.config.control.get() else {
            return false;
        };
        let mut all = true;
        for message in outgoing.into_messages() {
            let Ok(payload) = serde_json::to_string(&Envelope { origin: self.origin, message }) else {
                continue;
            };
            let sent = prepared("SELECT pg_notify($1, $2)")
                .bind::<Text, _>(CHANNEL)
                .bind::<Text, _>(payload)
                .execute(&mut *connection);
            if let Err(error) = sent {
                log::debug!("a NOTIFY could not be sent; the others will poll: {error}");
                all = false;
            }
        }
        all
    }

    fn listen(&self) {
        let mut failing_since: Option<Instant> = None;
        let mut pause = Growing::new(RECONNECT.0, RECONNECT.1);
        while !self.stop.is_set() {
            let error = match self.open() {
                Ok(mut session) => {
                    if failing_since.take().is_some() {
                        log::info!("hints from other processes arrive again");
                    }
                    pause.reset();
                    self.look_at_everything();
                    self.receive(&mut session)
                }
                Err(error) => Some(error),
            };
            let Some(error) = error else { return };
            if failing_since.is_none() {
                failing_since = Some(Instant::now());
                log::warn!("hints from other processes don't arrive; this process polls: {error}");
            }
            self.stop.wait(pause.next_pause());
        }
    }

    /// What was missed while nobody listened is unknown.
    fn look_at_everything(&self) {
        let all = [Message::Ready(Vec::new()), Message::Scheduled, Message::Changed(Vec::new()), Message::Statements];
        for message in all {
            self.config.signals.received(&message);
        }
    }

    fn open(&self) -> Result<Session, PqError> {
        let queue = self.config.queue.clone().for_connecting().with("application_name", "slowlane listener");
        let mut session = queue.connect(Session::connect)?;
        session.allow(Patience::Each(ANSWER));
        session.execute_batch(&format!("LISTEN {CHANNEL}"))?;
        Ok(session)
    }

    /// Passes hints on until the session is lost (the error) or the process is to end.
    fn receive(&self, session: &mut Session) -> Option<PqError> {
        let mut heard = Instant::now();
        while !self.stop.is_set() {
            match next(session, &mut heard) {
                Ok(Some(notification)) => match serde_json::from_str::<Envelope>(&notification.payload) {
                    Ok(envelope) if envelope.origin == self.origin => {}
                    Ok(envelope) => self.config.signals.received(&envelope.message),
                    Err(_) => log::debug!("a NOTIFY on the channel {CHANNEL} isn't one of ours"),
                },
                Ok(None) => {}
                Err(error) => return Some(error),
            }
        }
        None
    }
}

/// When the next NOTIFY may go out, by the generic cell rate algorithm (ITU-T I.371).
#[derive(Default)]
struct Pace {
    /// When those sent so far would be through if each took a cooldown.
    through: Option<Instant>,
}

impl Pace {
    /// One was sent: how long until the next.
    fn pause(&mut self, now: Instant) -> Duration {
        let through = self.through.map_or(now, |through| through.max(now)) + COOLDOWN;
        self.through = Some(through);
        (through - now).saturating_sub(COOLDOWN * (BURST - 1))
    }
}

/// What gathered during a cooldown.
#[derive(Default)]
struct Outgoing {
    ready: HashMap<(String, i16), ReadyHint>,
    look_again: bool,
    scheduled: bool,
    cancel: Vec<Uuid>,
    pause: Vec<Uuid>,
    changed: Vec<Uuid>,
    statements: bool,
}

impl Outgoing {
    fn add(&mut self, message: Message) {
        match message {
            Message::Ready(hints) => {
                self.look_again |= hints.is_empty();
                hints.into_iter().for_each(|hint| self.add_ready(hint));
            }
            Message::Scheduled => self.scheduled = true,
            Message::Cancel(ids) => self.cancel.extend(ids),
            Message::Pause(ids) => self.pause.extend(ids),
            Message::Changed(ids) => self.changed.extend(ids),
            Message::Statements => self.statements = true,
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
        if self.look_again && ready.is_empty() {
            messages.push(Message::Ready(Vec::new()));
        }
        messages.extend(ready.chunks(20).map(|hints| Message::Ready(hints.to_vec())));
        if self.scheduled {
            messages.push(Message::Scheduled);
        }
        if self.statements {
            messages.push(Message::Statements);
        }
        messages.extend(self.cancel.chunks(MAX_IDS).map(|ids| Message::Cancel(ids.to_vec())));
        messages.extend(self.pause.chunks(MAX_IDS).map(|ids| Message::Pause(ids.to_vec())));
        if self.changed.len() > MAX_IDS {
            messages.push(Message::Changed(Vec::new()));
        } else if !self.changed.is_empty() {
            messages.push(Message::Changed(self.changed));
        }
        messages
    }
}

/// The next notification, if there is one soon. A line that has been quiet for a while has to show that it lives.
fn next(session: &mut Session, heard: &mut Instant) -> Result<Option<Notification>, PqError> {
    let notification = session.wait_notification(LISTEN_WAIT)?;
    if notification.is_none() && heard.elapsed() >= QUIET {
        session.ping()?;
        *heard = Instant::now();
    } else if notification.is_some() {
        *heard = Instant::now();
    }
    Ok(notification)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_go_out_at_once_and_then_one_in_a_cooldown() {
        let mut pace = Pace::default();
        let now = Instant::now();
        for _ in 1..BURST {
            assert_eq!(pace.pause(now), Duration::ZERO);
        }
        assert_eq!(pace.pause(now), COOLDOWN);
        assert_eq!(pace.pause(now + COOLDOWN), COOLDOWN);
        // A quiet time gives the burst back, and no more than that.
        let later = now + Duration::from_secs(60);
        for _ in 1..BURST {
            assert_eq!(pace.pause(later), Duration::ZERO);
        }
        assert_eq!(pace.pause(later), COOLDOWN);
    }
}
