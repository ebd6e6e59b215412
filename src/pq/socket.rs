//! The socket behind a connection, for whoever is to shut it while another thread waits on it.
//!
//! libpq says which socket is its own. Diesel hides its libpq connection, so its socket is looked for: it is opened
//! with a `tcp_user_timeout` that no other socket of this process has (its [`Mark`]), found among the open files by
//! that, and given the timeout that was asked for. A Unix socket has no such option, and a system without `/proc`
//! shows no open files: there nothing is found.

use std::net::Shutdown;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use socket2::SockRef;

/// Marks lie above this one, in milliseconds: as a timeout each does no harm while the connection is opened.
const FIRST_MARK: u32 = 20_001;
/// So many connections may be in the opening at once.
const MARKS: u32 = 4_096;

/// A `tcp_user_timeout` that only one connection carries while it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(u32);

impl Mark {
    /// The next one.
    pub fn fresh() -> Mark {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Mark(FIRST_MARK + NEXT.fetch_add(1, Ordering::Relaxed) % MARKS)
    }

    /// The value for the connection string.
    pub fn millis(self) -> u32 {
        self.0
    }
}

/// A duplicate of libpq's own socket.
pub(super) fn duplicate(socket: RawFd) -> Option<OwnedFd> {
    if socket < 0 {
        return None;
    }
    // SAFETY: the caller's connection holds the socket open until this returns.
    unsafe { BorrowedFd::borrow_raw(socket) }.try_clone_to_owned().ok()
}

/// A duplicate of the one socket that carries `mark`.
#[cfg(target_os = "linux")]
pub(super) fn find(mark: Mark) -> Option<OwnedFd> {
    let files = std::fs::read_dir("/proc/self/fd").ok()?;
    let numbers = files.filter_map(|file| file.ok()?.file_name().to_str()?.parse::<RawFd>().ok());
    let mut found = numbers.filter_map(|number| duplicate_marked(number, mark));
    let first = found.next()?;
    // Two sockets are one too many: the wrong one must not be shut. Two files may well be one socket.
    let same = identity(&first)?;
    found.all(|other| identity(&other).is_some_and(|other| other == same)).then_some(first)
}

/// What the kernel calls the open file, such as `socket:[4711]`.
#[cfg(target_os = "linux")]
fn identity(file: &OwnedFd) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()
}

#[cfg(not(target_os = "linux"))]
pub(super) fn find(_: Mark) -> Option<OwnedFd> {
    None
}

#[cfg(target_os = "linux")]
fn duplicate_marked(number: RawFd, mark: Mark) -> Option<OwnedFd> {
    // SAFETY: another thread may close this file at any moment, and its number may then stand for another one. Only
    // an option is read and a duplicate made, which touches no memory and changes nothing; what the duplicate is of
    // is looked at again below.
    let file = unsafe { BorrowedFd::borrow_raw(number) };
    if !carries(&file, mark) {
        return None;
    }
    let duplicate = file.try_clone_to_owned().ok()?;
    carries(&duplicate, mark).then_some(duplicate)
}

#[cfg(target_os = "linux")]
fn carries(file: &impl std::os::fd::AsFd, mark: Mark) -> bool {
    let timeout = SockRef::from(file).tcp_user_timeout();
    timeout.is_ok_and(|timeout| timeout == Some(Duration::from_millis(u64::from(mark.0))))
}

/// Gives the socket the timeout that was asked for, instead of its mark.
pub(super) fn unmark(socket: &OwnedFd, timeout: Duration) {
    #[cfg(target_os = "linux")]
    if let Err(error) = SockRef::from(socket).set_tcp_user_timeout(Some(timeout)) {
        log::debug!("a connection keeps a tcp_user_timeout of {} ms or more: {error}", FIRST_MARK);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (socket, timeout);
}

/// Ends both directions: whoever waits on the socket reads its end.
pub(super) fn shut(socket: &OwnedFd) {
    if let Err(error) = SockRef::from(socket).shutdown(Shutdown::Both) {
        // The peer was faster, and then nobody waits.
        log::debug!("a socket was shut already: {error}");
    }
}
