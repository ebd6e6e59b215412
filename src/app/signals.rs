//! How a process is asked to stop, to hurry, and to read its saved statements again.

use actix_rt::signal::unix::{Signal, SignalKind, signal};

use crate::statements::Reloader;

/// Who says that a process is to stop, and that it is to hurry.
pub trait StopRequests: 'static {
    /// Waits for the next request.
    fn next(&mut self) -> impl Future<Output = ()>;

    /// From now on, whoever asks for the saved statements to be read again is heard. Defaults to nobody.
    fn reload_with(&mut self, _reloader: Reloader) {}
}

/// SIGTERM, SIGINT, and SIGHUP of a terminal that was closed, which comes more than once and hurries nobody. Any other SIGHUP
/// has the saved statements read again, where there are any.
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
    /// None when it is to be ignored, as under nohup.
    hang_up: Option<Signal>,
    /// There are saved statements.
    reloads: bool,
    reloader: Option<Reloader>,
    /// It was asked to read them again before it could.
    reload_asked: bool,
    /// The process ends with the terminal that it began in.
    ends_with_terminal: bool,
}

impl StopSignals {
    /// Begins to listen to them.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn new(reloads: bool) -> std::io::Result<StopSignals> {
        Ok(StopSignals {
            reloads,
            reloader: None,
            reload_asked: false,
            ends_with_terminal: has_terminal() && !ignores_hang_up(),
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            // Who reloads is told to by this signal, whatever it was started with.
            hang_up: if ignores_hang_up() && !reloads { None } else { Some(signal(SignalKind::hangup())?) },
        })
    }

    /// SIGHUP came. `true` when it means that the process is to stop.
    fn hung_up(&mut self) -> bool {
        if !self.reloads || (self.ends_with_terminal && !has_terminal()) {
            self.hang_up = None;
            return true;
        }
        match &self.reloader {
            Some(reloader) => reloader.ask(),
            None => self.reload_asked = true,
        }
        false
    }
}

/// The terminal that the process belongs to is there.
fn has_terminal() -> bool {
    std::fs::File::open("/dev/tty").is_ok()
}

impl StopRequests for StopSignals {
    async fn next(&mut self) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                () = received(self.hang_up.as_mut()) => if self.hung_up() { return },
            }
        }
    }

    fn reload_with(&mut self, reloader: Reloader) {
        if std::mem::take(&mut self.reload_asked) {
            reloader.ask();
        }
        self.reloader = Some(reloader);
    }
}

async fn received(signal: Option<&mut Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// Whoever started this process had SIGHUP ignored: the first bit of the mask that the kernel shows.
fn ignores_hang_up() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}
