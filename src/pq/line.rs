//! How long the peer of a connection may stay silent: a socket that swallows everything is given up in time.
//!
//! A peer whose kernel, or a proxy before it, takes what is sent and never answers looks alive to TCP for ever. So
//! every connection notes on its [`Line`] when a statement begins and ends, which costs a store each. One thread of
//! the process, `slowlane-lines`, looks at all of them, and shuts the socket of one whose answer is overdue: libpq
//! reads an end of file, and whoever waits is told that the connection is lost.
//!
//! Time is counted in that thread's own ticks. So a process that was stopped for a minute, and for which the answers
//! lie ready, gives no connection up when it goes on.

use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use crate::pq::socket::{self, Mark};

/// Between two looks: silence is noticed so much later than its limit, at most.
const TICK: Duration = Duration::from_millis(200);
/// A limit that is never reached.
const NEVER: u64 = u64::MAX;

/// Looks so far; from 1, because 0 stands for no statement.
static TICKS: AtomicU64 = AtomicU64::new(1);

static LINES: Lines = Lines { known: Mutex::new(Known { lines: Vec::new(), watched: false }), more: Condvar::new() };

/// How long answers are waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// For each statement so long.
    Each(Duration),
    /// Whatever is asked from now on has to be over by then, however long a statement takes.
    Within(Duration),
    /// For ever.
    Endless,
}

/// A connection as the thread that watches sees it. Watched until the last clone is dropped.
#[derive(Clone)]
pub struct Line(Arc<State>);

struct State {
    name: String,
    /// The tick in which the statement began that is under way; 0 when there is none.
    since: AtomicU64,
    /// Ticks that a statement may take.
    limit: AtomicU64,
    /// The tick by which everything has to be over.
    until: AtomicU64,
    given_up: AtomicBool,
    socket: Mutex<Socket>,
}

enum Socket {
    /// It is being opened, or can't be found.
    Unknown,
    /// It is being opened with this mark.
    Marked(Mark),
    /// A duplicate: it can be shut without touching libpq's own.
    Known(OwnedFd),
}

impl Line {
    /// The line of a connection whose socket comes later; `name` is for the log.
    pub fn new(name: &str, patience: Patience) -> Line {
        Line::open(name, Socket::Unknown, patience)
    }

    /// As [`Line::new`], for a connection that is opened with `mark` as its `tcp_user_timeout`.
    pub fn marked(name: &str, mark: Mark, patience: Patience) -> Line {
        Line::open(name, Socket::Marked(mark), patience)
    }

    fn open(name: &str, socket: Socket, patience: Patience) -> Line {
        let line = Line(Arc::new(State {
            name: name.to_owned(),
            since: AtomicU64::new(0),
            limit: AtomicU64::new(NEVER),
            until: AtomicU64::new(NEVER),
            given_up: AtomicBool::new(false),
            socket: Mutex::new(socket),
        }));
        line.allow(patience);
        LINES.add(&line.0);
        line
    }

    /// A statement begins. Once more is a new beginning.
    pub fn begin(&self) {
        self.0.since.store(TICKS.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// The statement that was under way has its whole answer.
    pub fn end(&self) {
        self.0.since.store(0, Ordering::Relaxed);
    }

    /// From now on answers are waited for so long.
    pub fn allow(&self, patience: Patience) {
        let (limit, until) = match patience {
            Patience::Each(limit) => (ticks(limit), NEVER),
            Patience::Within(time) => (NEVER, TICKS.load(Ordering::Relaxed).saturating_add(ticks(time))),
            Patience::Endless => (NEVER, NEVER),
        };
        self.0.limit.store(limit, Ordering::Relaxed);
        self.0.until.store(until, Ordering::Relaxed);
    }

    /// The connection is there: its socket is looked for by its mark, and has `timeout` as its `tcp_user_timeout`
    /// from now on. `false` when it can't be found: nobody can shut it then.
    pub fn settle(&self, timeout: Duration) -> bool {
        let mut socket = self.0.socket();
        let Socket::Marked(mark) = *socket else { return false };
        *socket = socket::find(mark).map_or(Socket::Unknown, Socket::Known);
        match &*socket {
            Socket::Known(found) => socket::unmark(found, timeout),
            _ => return false,
        }
        true
    }

    /// The connection has this socket.
    pub(super) fn attach(&self, duplicate: Option<OwnedFd>) {
        *self.0.socket() = duplicate.map_or(Socket::Unknown, Socket::Known);
    }

    /// No answer came in time, and the connection was given up.
    pub fn given_up(&self) -> bool {
        self.0.given_up.load(Ordering::Relaxed)
    }

    /// What is said of a connection that was given up.
    pub(super) fn silence(&self) -> String {
        self.0.silence()
    }
}

impl State {
    fn is_overdue(&self, now: u64) -> bool {
        let since = self.since.load(Ordering::Relaxed);
        let silent = since != 0 && now.saturating_sub(since) > self.limit.load(Ordering::Relaxed);
        silent || now > self.until.load(Ordering::Relaxed)
    }

    /// While it is being opened, libpq may go on with another socket: that one's turn comes with the next tick.
    fn give_up(&self) {
        match &*self.socket() {
            Socket::Known(socket) if !self.given_up.swap(true, Ordering::Relaxed) => {
                socket::shut(socket);
                log::info!(connection = self.name.as_str(); "a connection is given up: {}", self.silence());
            }
            Socket::Known(_) | Socket::Unknown => {}
            Socket::Marked(mark) => drop(socket::find(*mark).map(|found| socket::shut(&found))),
        }
    }

    fn silence(&self) -> String {
        match self.limit.load(Ordering::Relaxed) {
            NEVER => "no answer came in time".to_owned(),
            limit => format!("no answer came within {:.0} s", TICK.as_secs_f64() * whole(limit)),
        }
    }

    fn socket(&self) -> MutexGuard<'_, Socket> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ticks in a time, rounded up.
fn ticks(time: Duration) -> u64 {
    u64::try_from(time.as_millis().div_ceil(TICK.as_millis())).unwrap_or(NEVER)
}

fn whole(ticks: u64) -> f64 {
    u32::try_from(ticks).map_or(f64::INFINITY, f64::from)
}

struct Lines {
    known: Mutex<Known>,
    more: Condvar,
}

struct Known {
    lines: Vec<Weak<State>>,
    /// The thread runs.
    watched: bool,
}

impl Lines {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, line: &Arc<State>) {
        let mut known = self.lock();
        known.lines.push(Arc::downgrade(line));
        if !known.watched {
            let thread = std::thread::Builder::new().name("slowlane-lines".to_owned()).spawn(watch);
            match thread {
                Ok(_) => known.watched = true,
                Err(error) => log::error!("connections that stay silent are not noticed: {error}"),
            }
        }
        drop(known);
        self.more.notify_all();
    }

    /// Waits for a tick, or for the first line, and gives up what is overdue.
    fn look(&self) {
        drop(self.more.wait_while(self.lock(), |known| known.lines.is_empty()));
        std::thread::sleep(TICK);
        let now = TICKS.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        for line in self.overdue(now) {
            line.give_up();
        }
    }

    fn overdue(&self, now: u64) -> Vec<Arc<State>> {
        let mut overdue = Vec::new();
        self.lock().lines.retain(|line| match line.upgrade() {
            Some(line) => {
                if line.is_overdue(now) {
                    overdue.push(line);
                }
                true
            }
            None => false,
        });
        overdue
    }
}

fn watch() {
    loop {
        if catch_unwind(AssertUnwindSafe(|| LINES.look())).is_err() {
            log::error!("the thread that watches connections panicked, and goes on");
            std::thread::sleep(TICK);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// A connection to a listener that never answers.
    fn silent() -> (TcpListener, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        (listener, stream)
    }

    fn overdue(line: &Line, later: u64) -> bool {
        line.0.is_overdue(TICKS.load(Ordering::Relaxed) + later)
    }

    #[test]
    fn a_statement_is_overdue_after_its_limit_and_only_while_it_is_under_way() {
        let line = Line::new("test", Patience::Each(Duration::from_secs(60)));
        assert!(!overdue(&line, 1_000));
        line.begin();
        assert!(!overdue(&line, 250) && overdue(&line, 400));
        line.end();
        assert!(!overdue(&line, 1_000));
        line.allow(Patience::Within(Duration::from_secs(60)));
        assert!(!overdue(&line, 250) && overdue(&line, 400));
        line.begin();
        line.allow(Patience::Endless);
        assert!(!overdue(&line, 1_000_000));
    }

    #[test]
    fn a_silent_socket_is_shut_and_a_quiet_one_isnt() {
        let (_listener, mut asks) = silent();
        let (_other, mut rests) = silent();
        let asking = Line::new("asks", Patience::Each(Duration::from_millis(400)));
        let resting = Line::new("rests", Patience::Each(Duration::from_millis(400)));
        asking.attach(Some(asks.try_clone().unwrap().into()));
        resting.attach(Some(rests.try_clone().unwrap().into()));
        asking.begin();
        assert_eq!(asks.read(&mut [0]).unwrap(), 0);
        assert!(asking.given_up() && !resting.given_up());
        rests.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        assert!(rests.read(&mut [0]).is_err(), "it was shut");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_socket_is_found_by_its_mark_alone() {
        let (_listener, mut stream) = silent();
        let mark = Mark::fresh();
        let line = Line::marked("test", mark, Patience::Endless);
        let options = stream.try_clone().unwrap();
        assert!(!line.settle(Duration::ZERO), "another socket was taken for it");
        socket::unmark(&options.try_clone().unwrap().into(), Duration::from_millis(mark.millis().into()));
        let line = Line::marked("test", mark, Patience::Each(Duration::from_millis(400)));
        assert!(line.settle(Duration::from_secs(7)));
        let timeout = socket2::SockRef::from(&options).tcp_user_timeout().unwrap();
        assert_eq!(timeout, Some(Duration::from_secs(7)));
        line.begin();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_connection_that_is_never_opened_is_given_up_too() {
        let (_listener, mut stream) = silent();
        let mark = Mark::fresh();
        socket::unmark(&stream.try_clone().unwrap().into(), Duration::from_millis(mark.millis().into()));
        let _line = Line::marked("test", mark, Patience::Within(Duration::from_millis(400)));
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    }
}
