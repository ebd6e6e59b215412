//! slowlane as a process of its own: this program, called again with a first argument that nobody types.
//!
//! The only file that knows how a process of slowlane is put together. Beside the standard kinds it has two that do
//! nothing on a target, where what is measured is the queue, and one that commits without the protocol.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant, SystemTime};

use clap::Parser;
use serde::{Deserialize, Serialize};
use slowlane::config::{File, Settings};
use slowlane::{DatabaseUrl, Work, WorkContext, WorkError};

use crate::http;
use crate::postgres::Database;

/// The hidden first argument.
pub const CHILD: &str = "serve-for-the-benchmark";

const QUEUE_URL: &str = "BENCH_QUEUE_URL";
const TARGET_URL: &str = "BENCH_TARGET_URL";

/// Does nothing.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Noop {}

impl Work for Noop {
    const KIND: &'static str = "noop";
    const REPEATABLE: bool = true;
    type Output = ();
    fn run(&self, _: &mut WorkContext<'_>) -> Result<(), WorkError> {
        Ok(())
    }
}

/// Says when it ran: microseconds since 1970 by the machine's clock.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stamp {}

impl Work for Stamp {
    const KIND: &'static str = "stamp";
    const REPEATABLE: bool = true;
    type Output = i64;
    fn run(&self, _: &mut WorkContext<'_>) -> Result<i64, WorkError> {
        Ok(now_us())
    }
}

/// Runs a statement in a transaction, commits it, and hopes.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hopeful {
    sql: String,
}

impl Work for Hopeful {
    const KIND: &'static str = "hopeful";
    const REPEATABLE: bool = false;
    type Output = ();
    fn run(&self, ctx: &mut WorkContext<'_>) -> Result<(), WorkError> {
        let mut session = ctx.session()?;
        session.execute_batch("BEGIN")?;
        session.query(&self.sql, &[])?;
        session.command("COMMIT")?;
        Ok(())
    }
}

/// Microseconds since 1970.
pub fn now_us() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_micros().try_into().unwrap()
}

/// What the child is told.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    settings: Settings,
}

/// The child's main function.
pub fn serve() -> ExitCode {
    env_logger::Builder::new().filter_level(log::LevelFilter::Warn).init();
    let arguments = Arguments::parse_from(std::env::args().skip(1));
    let mut config = arguments.settings.resolve(&File::default()).unwrap();
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    config.listen = anywhere;
    if !config.roles.http {
        config.probe_listen = Some(anywhere);
    }
    let (queue, target) = (DatabaseUrl::env(QUEUE_URL), DatabaseUrl::env(TARGET_URL));
    let server = slowlane::Server::builder().config(config).queue(queue).target("default", target);
    let served = server.kind::<Noop>().kind::<Stamp>().kind::<Hopeful>().build().and_then(|server| {
        println!("http://{}", server.address().or(server.probe_address()).unwrap());
        server.run()
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// The processor time of a process so far.
pub fn cpu_of(pid: u32) -> Duration {
    cpu(Path::new(&format!("/proc/{pid}/stat")))
}

/// Fields 14 and 15 of proc(5)'s stat, counted behind the name in parentheses: ticks in user and kernel mode.
fn cpu(stat: &Path) -> Duration {
    let text = std::fs::read_to_string(stat).unwrap_or_default();
    let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum();
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).unwrap().unwrap();
    Duration::from_secs_f64(ticks as f64 / per_second as f64)
}

/// A process that serves. Asked to stop, then killed, when it is dropped.
pub struct Server {
    pub address: SocketAddr,
    child: Child,
}

impl Server {
    /// Starts one on these databases, and waits until it is ready.
    pub fn start(queue: &Database, target: &Database, arguments: &[&str]) -> Server {
        let server = Server::listening(queue, target, arguments);
        let until = Instant::now() + Duration::from_secs(30);
        while http::get(server.address, "/readyz").0 != 200 {
            assert!(Instant::now() < until, "the server did not become ready");
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }

    /// Starts one on these databases, and waits until it listens.
    pub fn listening(queue: &Database, target: &Database, arguments: &[&str]) -> Server {
        let mut command = Command::new(std::env::current_exe().unwrap());
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SLOWLANE_") || name.starts_with("PG")) {
            command.env_remove(name);
        }
        command.arg(CHILD).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
        command.env(QUEUE_URL, queue.dsn.to_url().expose()).env(TARGET_URL, target.dsn.to_url().expose());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("http://").expect("the server did not start").parse().unwrap();
        Server { address, child }
    }

    /// The processor time of the process's threads of this name so far.
    pub fn thread_cpu(&self, name: &str) -> Duration {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let paths = tasks.filter_map(|task| Some(task.ok()?.path()));
        // The kernel keeps 15 characters of a name.
        let named = |path: &Path| {
            std::fs::read_to_string(path.join("comm"))
                .is_ok_and(|comm| name.starts_with(comm.trim()) && comm.len() > 14)
        };
        paths.filter(|path| named(path)).map(|path| cpu(&path.join("stat"))).sum()
    }

    /// A line of the kernel's status of the process, in KiB.
    pub fn memory_kib(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let until = Instant::now() + Duration::from_secs(40);
        while Instant::now() < until {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
