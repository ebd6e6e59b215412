//! The processes of a private cluster: run as another user when we are root, ended when they are ours.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};

use crate::cluster::{Binaries, ClusterError, io};

/// How long a server may take to become ready: recovery after a crash included.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a server may take to stop before it is told more firmly.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks at a process that is to start or end.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The user that Postgres runs as when we are root: it refuses to run as root itself.
#[derive(Clone, Debug)]
pub(super) struct ServiceUser {
    pub uid: u32,
    pub gid: u32,
}

pub(super) fn service_user() -> Option<ServiceUser> {
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    let user = ["postgres", "nobody"].into_iter().find_map(|name| User::from_name(name).ok().flatten());
    user.map(|user| ServiceUser { uid: user.uid.as_raw(), gid: user.gid.as_raw() })
}

/// The user may go through this folder, as far as its owner and the rights of others say.
pub(super) fn may_pass(folder: &Path, user: &ServiceUser) -> bool {
    fs::metadata(folder).is_ok_and(|data| {
        let mode = data.mode();
        mode & 0o001 != 0
            || (data.uid() == user.uid && mode & 0o100 != 0)
            || (data.gid() == user.gid && mode & 0o010 != 0)
    })
}

/// A log that only we can read: it may hold statements.
fn private_log(path: &Path, append: bool) -> Result<File, ClusterError> {
    let mut options = File::options();
    options.create(true).write(true).mode(0o600);
    if append {
        options.append(true)
    } else {
        options.truncate(true)
    };
    options.open(path).map_err(io(path))
}

/// How a server is told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Ends sessions, then stops in order.
    Fast,
    /// Stops at once, as in a crash: the next start recovers.
    Immediate,
}

impl StopMode {
    fn signal(self) -> Signal {
        match self {
            StopMode::Fast => Signal::SIGINT,
            StopMode::Immediate => Signal::SIGQUIT,
        }
    }
}

fn prepare(command: &mut Command, folder: &Path, user: Option<&ServiceUser>) {
    // A group of its own: Ctrl-C in our terminal is ours to pass on.
    command.stdin(Stdio::null()).current_dir(folder).process_group(0);
    for variable in ["PGDATA", "PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGDATABASE", "PGSERVICE", "PGOPTIONS"] {
        command.env_remove(variable);
    }
    command.env("LC_ALL", "C");
    if let Some(user) = user {
        command.uid(user.uid).gid(user.gid);
    }
}

/// Runs a program to its end.
pub(super) fn run(
    mut command: Command,
    name: &'static str,
    folder: &Path,
    user: Option<&ServiceUser>,
    timeout: Duration,
) -> Result<(), ClusterError> {
    let failed = |reason: String| ClusterError::Program(name, reason);
    let log = folder.join(format!("{name}.log"));
    let file = private_log(&log, false)?;
    let copy = file.try_clone().map_err(io(&log))?;
    prepare(&mut command, folder, user);
    let mut child = command.stdout(file).stderr(copy).spawn().map_err(|error| failed(error.to_string()))?;
    match wait(&mut child, timeout) {
        Some(true) => Ok(()),
        Some(false) => Err(failed(last_lines(&log))),
        None => {
            // It has had its time; whatever it still says is in its log.
            let _ = child.kill();
            let _ = child.wait();
            Err(failed(format!("it did not end within {} s", timeout.as_secs())))
        }
    }
}

/// Whether a process ended well; `None` when it hasn't ended in time.
fn wait(child: &mut Child, timeout: Duration) -> Option<bool> {
    let until = Instant::now() + timeout;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status.success()),
            Ok(None) if Instant::now() < until => std::thread::sleep(LOOK_EVERY),
            Ok(None) => return None,
            Err(_) => return Some(false),
        }
    }
}

fn last_lines(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(5).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
}

/// A running server: a child of ours.
pub(super) struct Server {
    child: Child,
}

impl Server {
    pub fn start(
        binaries: &Binaries,
        folder: &Path,
        port: u16,
        settings: &[(String, String)],
        user: Option<&ServiceUser>,
    ) -> Result<Server, ClusterError> {
        let data = folder.join("pgdata");
        let log = folder.join("postgres.log");
        let file = private_log(&log, true)?;
        let copy = file.try_clone().map_err(io(&log))?;
        let mut command = Command::new(binaries.path("postgres"));
        command.arg("-D").arg(&data);
        let ours = [("listen_addresses", "127.0.0.1"), ("unix_socket_directories", ""), ("port", &port.to_string())]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        for (name, value) in ours.iter().chain(settings) {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        prepare(&mut command, folder, user);
        let child = command.stdout(file).stderr(copy).spawn();
        let mut server = Server { child: child.map_err(|e| ClusterError::Program("postgres", e.to_string()))? };
        server.wait_until_ready(&data, &log)?;
        Ok(server)
    }

    /// The server writes its state into the last line of `postmaster.pid`.
    fn wait_until_ready(&mut self, data: &Path, log: &Path) -> Result<(), ClusterError> {
        let until = Instant::now() + READY_TIMEOUT;
        while Instant::now() < until {
            let state = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
            let is_ours = state.lines().next().is_some_and(|pid| pid.trim() == self.pid().to_string());
            if is_ours && state.lines().nth(7).is_some_and(|line| line.trim() == "ready") {
                return Ok(());
            }
            if !self.is_running() {
                return Err(ClusterError::Program("postgres", last_lines(log)));
            }
            std::thread::sleep(LOOK_EVERY);
        }
        self.stop(StopMode::Immediate);
        Err(ClusterError::Program("postgres", format!("it was not ready within {} s", READY_TIMEOUT.as_secs())))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub fn stop(&mut self, mode: StopMode) {
        for mode in [mode, StopMode::Immediate] {
            signal(self.pid(), mode.signal());
            if wait(&mut self.child, STOP_TIMEOUT).is_some() {
                return;
            }
        }
        // Nothing else is left; the next start recovers.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn signal(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        // It may have ended just now.
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Ends a server that an earlier process of ours left running on this data folder. A number in a file alone proves
/// nothing: the process must be a Postgres that works in this folder.
pub(super) fn end_stale_server(data: &Path) -> Result<(), ClusterError> {
    let Ok(text) = fs::read_to_string(data.join("postmaster.pid")) else {
        return Ok(());
    };
    let Some(pid) = text.lines().next().and_then(|line| line.trim().parse::<u32>().ok()) else {
        return Ok(());
    };
    let is_it = || {
        let program = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let is_here = match fs::read_link(format!("/proc/{pid}/cwd")) {
            Ok(folder) => folder == data,
            // Root without the right to look into others' processes, as in a container.
            Err(_) => fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
                line.split(|byte| *byte == 0).any(|word| word == data.as_os_str().as_encoded_bytes())
            }),
        };
        is_here && program.trim().starts_with("postgres")
    };
    if !is_it() {
        return Ok(());
    }
    log::info!(pid = pid; "taking over a private Postgres that was left running");
    for mode in [StopMode::Fast, StopMode::Immediate] {
        signal(pid, mode.signal());
        let until = Instant::now() + STOP_TIMEOUT;
        while is_it() && Instant::now() < until {
            std::thread::sleep(LOOK_EVERY);
        }
        if !is_it() {
            return Ok(());
        }
    }
    Err(ClusterError::Program("postgres", format!("process {pid}, left running on {}, does not end", data.display())))
}
