//! `slowlane demo blocking`: the same heavy statement on an event loop, on a thread pool and as a job, and what becomes
//! of the requests beside it. Decides what is run; [`measure`](super::measure) and [`kill`](mod@kill) run it, and
//! [`tables`](super::tables) shows what came of it.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_types::Bool;
use indicatif::{ProgressBar, ProgressStyle};
use nix::sys::signal::Signal;
use serde::Serialize;

use crate::app::process::{self, StopRequests, StopSignals};
use crate::cli::demo::child;
use crate::cli::demo::kill::{self, Kill};
use crate::cli::demo::measure::{Contestant, Environment, Measured, Run};
use crate::cli::demo::statement::Statement;
use crate::cli::private::{Databases, Slot};
use crate::cli::{Failure, folder, plain_dsn_reader};
use crate::cluster::{self, ClusterError, default_data_dir};
use crate::config::{DsnReader, File};
use crate::db::pool::Manager;

/// One demo at a time on a cluster.
const LOCK_KEY: i64 = 0x626c_6f63_6b69_6e67;
/// The longest statement about it, and its answer.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long what was begun may go on after a request to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// How many at once, unless something else is asked for.
const AT_ONCE: [usize; 4] = [1, 8, 40, 60];
/// How many at once in a minute's version.
const QUICK_AT_ONCE: usize = 20;
/// The most that can be asked for: each is a thread and a connection here.
const MAX_AT_ONCE: usize = 200;

/// The arguments of `slowlane demo blocking`.
#[derive(clap::Args)]
pub struct Blocking {
    /// In about a minute: 20 at once, of one second each
    #[arg(long, conflicts_with_all = ["at_once", "work"])]
    quick: bool,
    /// How many at once, separated by commas [default: 1,8,40,60]
    #[arg(long, value_delimiter = ',', value_name = "N", value_parser = at_once)]
    at_once: Option<Vec<usize>>,
    /// Which heavy statements: one that waits for 2 s, one that keeps a core busy [default: sleep,cpu]
    #[arg(long, value_enum, value_delimiter = ',')]
    work: Option<Vec<Statement>>,
    /// Also kill each server one second after it has accepted the largest number at once, and count what is lost
    #[arg(long)]
    kill: bool,
    /// Print one JSON document instead of tables
    #[arg(long)]
    json: bool,
    /// The settings' file, for the folder that it names [default: slowlane.toml, where it is there]
    #[arg(long, env = "SLOWLANE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The folder of the private Postgres, which may be running [default: the one of slowlane dev]
    #[arg(long, env = "SLOWLANE_DATA_DIR", value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
}

fn at_once(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if (1..=MAX_AT_ONCE).contains(&number) => Ok(number),
        _ => Err(format!("expected numbers from 1 to {MAX_AT_ONCE}")),
    }
}

/// Everything that was measured.
#[derive(Default, Serialize)]
pub struct Report {
    /// Runs, in their order.
    pub runs: Vec<Run>,
    /// Kills.
    pub kills: Vec<Kill>,
}

/// What is to be measured.
pub struct Plan {
    /// The servers, in the order of the tables.
    pub servers: Vec<Contestant>,
    /// The heavy statements.
    pub statements: Vec<Statement>,
    /// How many at once.
    pub at_once: Vec<usize>,
    /// Signals one second after so many at once of [`Statement::Sleep`], which nobody has done by then.
    pub kills: Vec<(Signal, usize)>,
}

impl Blocking {
    /// Runs all of it, and prints what came of it.
    ///
    /// # Errors
    /// When there is no cluster to run on, or a server doesn't do what it is for.
    pub fn run(self) -> Result<(), Failure> {
        let at_once = match (self.quick, self.at_once) {
            (true, _) => vec![QUICK_AT_ONCE],
            (false, given) => given.unwrap_or_else(|| AT_ONCE.to_vec()),
        };
        let statements = match (self.quick, self.work) {
            (true, _) => vec![Statement::ShortSleep],
            (false, given) => given.unwrap_or_else(|| vec![Statement::Sleep, Statement::Cpu]),
        };
        let largest = at_once.iter().copied().max().unwrap_or(1);
        let plan = Plan {
            servers: vec![
                Contestant::wrong("event loop", "inline"),
                Contestant::wrong("thread pool", "thread-pool"),
                Contestant::slowlane(),
            ],
            statements,
            at_once,
            kills: if self.kill { vec![(Signal::SIGKILL, largest)] } else { Vec::new() },
        };
        let file = File::read(self.config.as_deref())?;
        let reader = plain_dsn_reader(&file)?;
        let data_dir = folder(self.data_dir.or(file.data_dir()).unwrap_or_else(default_data_dir))?;
        // Ended with this function, should it have been started by it.
        let slot = Arc::<Slot>::default();
        let cluster = Arc::clone(&slot);
        let outcome = stoppable(move || report(&cluster, data_dir, reader, &plan));
        drop(slot.lock().unwrap_or_else(PoisonError::into_inner).take());
        let report = outcome?.ok_or("stopped; jobs that it leaves in the queue are withdrawn by the next run")?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&report)?);
        } else {
            print!("{}", report.to_text());
        }
        Ok(())
    }
}

/// Does something that takes its time. Asked to stop meanwhile, ends every server that was started for it, and waits
/// for its end: for a while, or until it is asked again. Nothing then.
///
/// # Errors
/// The work's own.
pub fn stoppable<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<Option<T>, Failure> {
    actix_rt::System::new().block_on(async move {
        let mut stop = StopSignals::new(false)?;
        let work = process::on_a_thread("slowlane-demo", "the demo failed; standard error says why", work);
        tokio::pin!(work);
        tokio::select! {
            outcome = &mut work => return outcome.map(Some),
            () = stop.next() => eprintln!("stopping as soon as what was begun can be left; a second signal hurries"),
        }
        child::kill_all();
        tokio::select! {
            // It fails now, because its servers are gone.
            _ = &mut work => {}
            () = tokio::time::sleep(STOP_TIMEOUT) => {}
            () = stop.next() => {}
        }
        Ok(None)
    })
}

fn report(slot: &Arc<Slot>, data_dir: PathBuf, reader: DsnReader<'_>, plan: &Plan) -> Result<Report, Failure> {
    let (databases, starting) = match cluster::check_unused(&data_dir) {
        Ok(()) => {
            eprintln!("starting the private Postgres of slowlane dev in {}", data_dir.display());
            (Databases::set_up(slot, data_dir)?, "")
        }
        Err(ClusterError::InUse(..)) => (
            Databases::of_running(&data_dir, reader)?,
            "slowlane dev is still starting, or lost its Postgres: try again; ",
        ),
        Err(error) => return Err(error.into()),
    };
    let mut turn = Manager::work(&databases.demo, &format!("SET statement_timeout = {}", LOCK_TIMEOUT.as_millis()))
        .answering_within(LOCK_TIMEOUT)
        .open()
        .map_err(|error| format!("{starting}{error}"))?;
    take_turn(&mut turn)?;
    plan.measure(&Environment::new(std::env::current_exe()?, databases))
}

/// Held for as long as the connection is.
fn take_turn(connection: &mut PgConnection) -> Result<(), Failure> {
    #[derive(QueryableByName)]
    struct Taken {
        #[diesel(sql_type = Bool)]
        taken: bool,
    }
    let sql = format!("SELECT pg_try_advisory_lock({LOCK_KEY}) AS taken");
    let Taken { taken } = diesel::sql_query(sql).get_result(connection)?;
    match taken {
        true => Ok(()),
        false => Err("another slowlane demo blocking runs on this cluster: two would measure each other".into()),
    }
}

impl Plan {
    /// Measures all of it, with a bar on standard error where that is a terminal, and a line for each run otherwise.
    ///
    /// # Errors
    /// When a server doesn't start, or doesn't do what it is asked.
    pub fn measure(&self, environment: &Environment) -> Result<Report, Failure> {
        let runs = self.statements.len() * self.servers.len();
        let kills: usize = self.kills.iter().map(|(_, sent)| sent * self.servers.len()).sum();
        let pieces = runs * self.at_once.iter().sum::<usize>() + kills;
        let bar = ProgressBar::new(u64::try_from(pieces)?);
        bar.set_style(
            ProgressStyle::with_template("{elapsed_precise} [{bar:30}] {pos}/{len} {msg}")?.progress_chars("=> "),
        );
        let mut report = Report::default();
        for statement in &self.statements {
            for contestant in &self.servers {
                bar.set_message(format!("{}: idle", contestant.name));
                let measured = Measured::start(environment, contestant, *statement)?;
                for at_once in &self.at_once {
                    bar.set_message(format!("{}: {at_once} at once of {}", contestant.name, statement.name()));
                    let from = bar.position();
                    let run = measured.run(*at_once, |done| {
                        bar.set_position(from + u64::try_from(done.min(*at_once)).unwrap_or_default());
                    })?;
                    say(&bar, run.summary());
                    report.runs.push(run);
                }
            }
        }
        for (signal, sent) in &self.kills {
            for contestant in &self.servers {
                bar.set_message(format!("{}: {} with {sent} at once", contestant.name, signal.as_str()));
                let kill = kill::kill(environment, contestant, Statement::Sleep, *sent, *signal)?;
                bar.inc(u64::try_from(*sent)?);
                say(&bar, kill.summary());
                report.kills.push(kill);
            }
        }
        bar.finish_and_clear();
        Ok(report)
    }
}

fn say(bar: &ProgressBar, line: String) {
    if std::io::stderr().is_terminal() { bar.println(line) } else { eprintln!("{line}") }
}
