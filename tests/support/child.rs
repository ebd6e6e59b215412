//! The program as a process of its own.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::client::Client;
use super::postgres::Database;
use super::{PATIENCE, eventually};

/// The program, with nothing of the surrounding environment that would be a setting. It hears SIGHUP also where the tests run under
/// `nohup`, which would have it ignored.
pub fn program() -> Command {
    let mut command = Command::new("env");
    command.args(["--default-signal=HUP", env!("CARGO_BIN_EXE_slowlane")]);
    without_settings(command)
}

/// Any program, with nothing of the surrounding environment that would be a setting. Which server it runs stays: that
/// is what the tests are run on.
pub fn without_settings(mut command: Command) -> Command {
    for (name, _) in std::env::vars() {
        let ours = name.starts_with("SLOWLANE_") && name != "SLOWLANE_POSTGRES_BIN";
        if ours || name.starts_with("PG") || name == "DATABASE_URL" {
            command.env_remove(name);
        }
    }
    command.current_dir(std::env::temp_dir()).stdin(Stdio::null());
    command
}

/// A process that serves. Killed when it is dropped.
pub struct Server {
    pub client: Client,
    child: Child,
    log: Arc<Mutex<String>>,
}

impl Server {
    /// `slowlane serve` on these databases.
    pub fn serve(queue: &Database, target: &Database, extra: &[&str]) -> Server {
        let mut command = serving(queue, &["--listen", "127.0.0.1:0"]);
        command.args(extra).env("TARGET_URL", target.dsn.to_url().expose());
        Server::spawn(command)
    }

    /// A process that serves HTTP and runs no jobs. It isn't told where the target is.
    pub fn api(queue: &Database, extra: &[&str]) -> Server {
        let mut command = serving(queue, &["--no-workers", "--listen", "127.0.0.1:0"]);
        command.args(extra);
        Server::spawn(command)
    }

    /// A process that runs jobs and answers probes alone.
    pub fn worker(queue: &Database, target: &Database, extra: &[&str]) -> Server {
        let mut command = serving(queue, &["--no-http", "--probe-listen", "127.0.0.1:0"]);
        command.args(extra).env("TARGET_URL", target.dsn.to_url().expose());
        Server::spawn(command)
    }

    /// Waits until the process says where it serves, and is ready.
    pub fn spawn(command: Command) -> Server {
        let server = Server::listening(command);
        eventually("the server is ready", || server.client.get("/readyz").status == 200);
        server
    }

    /// Waits until the process, of whatever program, says where it serves.
    pub fn listening(mut command: Command) -> Server {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (log, lines) = gather(&mut child);
        let address = loop {
            let line =
                lines.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("it did not serve: {}", log.lock().unwrap()));
            if let Some((_, rest)) = line.split_once("http://") {
                break rest.split([',', ' ', '"']).next().unwrap().trim().parse().unwrap();
            }
        };
        Server { client: Client::new(address), child, log }
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// Everything that it printed and logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the process ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

/// `slowlane serve` with these arguments, and no target's address yet.
pub fn serving(queue: &Database, role: &[&str]) -> Command {
    let mut command = program();
    command.arg("serve").args(role).args(["--target", "default=TARGET_URL"]);
    command.env("SLOWLANE_DATABASE_URL", queue.dsn.to_url().expose());
    command
}

fn gather(child: &mut Child) -> (Arc<Mutex<String>>, Receiver<String>) {
    let log = Arc::<Mutex<String>>::default();
    let (sender, lines) = channel();
    let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let streams: [Box<dyn std::io::Read + Send>; 2] = [Box::new(out), Box::new(err)];
    for stream in streams {
        let (log, sender) = (Arc::clone(&log), sender.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                log.lock().unwrap().push_str(&format!("{line}\n"));
                let _ = sender.send(line);
            }
        });
    }
    (log, lines)
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How long a program may take to end by itself when it is told to.
const STOP_PATIENCE: Duration = Duration::from_secs(40);

/// A program that comes to an end. One that is dropped before is told to stop, so that it can stop what it started, and
/// killed when it doesn't.
pub struct Running {
    child: Child,
    out: Arc<Mutex<Vec<u8>>>,
    err: Arc<Mutex<Vec<u8>>>,
    readers: (JoinHandle<()>, JoinHandle<()>),
}

impl Running {
    pub fn start(command: &mut Command) -> Running {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (stdout, stderr): (ChildStdout, ChildStderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let ((out, out_reader), (err, err_reader)) = (collect(stdout), collect(stderr));
        Running { child, out, err, readers: (out_reader, err_reader) }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.pid()).unwrap()), signal).unwrap();
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// What it printed so far.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.out.lock().unwrap()).into_owned()
    }

    /// What it said beside that so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.err.lock().unwrap()).into_owned()
    }

    /// Everything that it printed, once it has ended.
    #[track_caller]
    pub fn output(mut self) -> Output {
        let until = Instant::now() + PATIENCE;
        while !self.has_ended() {
            assert!(Instant::now() < until, "it doesn't end: {} {}", self.stdout(), self.stderr());
            std::thread::sleep(Duration::from_millis(10));
        }
        let status = self.child.wait().unwrap();
        eventually("its output ends", || self.readers.0.is_finished() && self.readers.1.is_finished());
        let bytes = |buffer: &Mutex<Vec<u8>>| buffer.lock().unwrap().clone();
        Output { status, stdout: bytes(&self.out), stderr: bytes(&self.err) }
    }
}

fn collect(mut stream: impl Read + Send + 'static) -> (Arc<Mutex<Vec<u8>>>, JoinHandle<()>) {
    let collected = Arc::<Mutex<Vec<u8>>>::default();
    let into = Arc::clone(&collected);
    let reader = std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = stream.read(&mut buffer) {
            into.lock().unwrap().extend_from_slice(&buffer[..read]);
        }
    });
    (collected, reader)
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(Signal::SIGTERM);
            let until = Instant::now() + STOP_PATIENCE;
            while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
