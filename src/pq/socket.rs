//! The socket behind a connection, for whoever is to shut it while another thread waits on it.
//!
//! libpq says which socket is its own. Diesel hides its libpq connection, so its socket is looked for: it is opened
//! with a `tcp_user_timeout` that no other socket of this process has (its [`Mark`]), found among the open files by
//! that, and given the timeout that was asked for. A Unix socket has no such option, and a system without `/proc`
//! shows no open files: there nothing is found.

use std::net::Shutdown;
#[cfg(target_os = "linux")]
use std::os::fd::AsRawFd;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::libc;
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

/// A duplicate of an open file; `None` for a number that stands for none. What it is of is for the caller to know: a
/// number is no handle, and one that somebody closes meanwhile may stand for another file.
pub(super) fn duplicate(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: the call touches no memory, and fails for a number that stands for nothing.
    let duplicate = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 0) };
    if duplicate < 0 {
        return None;
    }
    // SAFETY: the number was made just now, and nobody else knows it.
    Some(unsafe { OwnedFd::from_raw_fd(duplicate) })
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

/// A duplicate of this file, if it carries `mark`. Another thread may close the file at any moment: what the duplicate
/// is of is looked at again. Only what carries the mark is duplicated, because closing a duplicate can have effects: it
/// ends POSIX locks that others hold on the same file.
#[cfg(target_os = "linux")]
fn duplicate_marked(number: RawFd, mark: Mark) -> Option<OwnedFd> {
    if !carries(number, mark) {
        return None;
    }
    duplicate(number).filter(|file| carries(file.as_raw_fd(), mark))
}

#[cfg(target_os = "linux")]
fn carries(number: RawFd, mark: Mark) -> bool {
    let mut timeout: libc::c_uint = 0;
    let mut size = libc::socklen_t::try_from(size_of::<libc::c_uint>()).unwrap_or(0);
    let value = (&raw mut timeout).cast::<libc::c_void>();
    // SAFETY: `value` and `size` live, and `size` says how much room there is. Anything but a TCP socket is refused.
    let outcome = unsafe { libc::getsockopt(number, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, value, &raw mut size) };
    outcome == 0 && timeout == mark.0
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
