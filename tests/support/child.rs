//! The program as a process of its own.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::client::Client;
use super::postgres::Database;
use super::{PATIENCE, eventually};

/// The program, with nothing of the surrounding environment that would be a setting.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slowlane"));
    for (name, _) in std::env::vars() {
        if name.starts_with("SLOWLANE_") || name.starts_with("PG") || name == "DATABASE_URL" {
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

fn serving(queue: &Database, role: &[&str]) -> Command {
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
