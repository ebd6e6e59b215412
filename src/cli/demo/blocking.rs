//! `slowlane demo blocking`: the same heavy statement on an event loop, on a thread pool and as a job, and what becomes
//! of the requests beside it. Decides what is run and shows what came of it; [`measure`] does the rest.

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use comfy_table::{CellAlignment, Table, presets};
use diesel::prelude::*;
use diesel::sql_types::Bool;
use indicatif::{ProgressBar, ProgressStyle};
use nix::sys::signal::Signal;
use serde::Serialize;

use crate::cli::demo::child;
use crate::cli::demo::measure::{self, Contestant, Kill, Measured, Place, Run, Work};
use crate::cli::demo::probes::Spread;
use crate::cli::private::{Databases, Slot};
use crate::cli::process::{self, StopRequests, StopSignals};
use crate::cli::{Failure, plain_dsn_reader};
use crate::config::File;
use crate::db::cluster::{self, ClusterError, default_data_dir};
use crate::db::pool::Manager;

/// One demo at a time on a cluster.
const LOCK_KEY: i64 = 0x736c_6f77_6c61_6e65;
/// How many at once, unless something else is asked for.
const AT_ONCE: [usize; 4] = [1, 8, 40, 60];
/// How many at once in a minute's version.
const QUICK_AT_ONCE: usize = 20;
/// The most that can be asked for: each is a thread and a connection here.
const MAX_AT_ONCE: usize = 200;
/// How many threads are named in a line.
const SHOWN_THREADS: usize = 4;

/// The arguments of `slowlane demo blocking`.
#[derive(clap::Args)]
pub struct Blocking {
    /// The story in under a minute: 20 at once, of one second each
    #[arg(long, conflicts_with_all = ["at_once", "work"])]
    quick: bool,
    /// How many at once, separated by commas [default: 1,8,40,60]
    #[arg(long, value_delimiter = ',', value_name = "N", value_parser = at_once)]
    at_once: Option<Vec<usize>>,
    /// Which heavy statements: one that waits for 2 s, one that keeps a core busy [default: sleep,cpu]
    #[arg(long, value_enum, value_delimiter = ',')]
    work: Option<Vec<Work>>,
    /// Also kill each server one second after it has accepted the largest number at once, and count what is lost
    #[arg(long)]
    kill: bool,
    /// Print one JSON document instead of tables
    #[arg(long)]
    json: bool,
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
pub struct Story {
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
    pub works: Vec<Work>,
    /// How many at once.
    pub at_once: Vec<usize>,
    /// Signals one second after so many at once of [`Work::Sleep`], which nobody has done by then.
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
        let works = match (self.quick, self.work) {
            (true, _) => vec![Work::ShortSleep],
            (false, given) => given.unwrap_or_else(|| vec![Work::Sleep, Work::Cpu]),
        };
        let largest = at_once.iter().copied().max().unwrap_or(1);
        let plan = Plan {
            servers: vec![
                Contestant::wrong("event loop", "inline"),
                Contestant::wrong("thread pool", "thread-pool"),
                Contestant::slowlane(),
            ],
            works,
            at_once,
            kills: if self.kill { vec![(Signal::SIGKILL, largest)] } else { Vec::new() },
        };
        let data_dir = self.data_dir.unwrap_or_else(default_data_dir);
        // Ended with this function, should it have been started by it.
        let slot = Arc::<Slot>::default();
        let place = Arc::clone(&slot);
        let outcome = unless_stopped(move || story(&place, data_dir, &plan));
        drop(slot.lock().unwrap_or_else(PoisonError::into_inner).take());
        let story = outcome?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&story)?);
        } else {
            print!("{}", story.to_text());
        }
        Ok(())
    }
}

/// Does something that takes its time. Asked to stop meanwhile, ends every server that was started for it.
///
/// # Errors
/// The work's own, or that it was asked to stop.
pub fn unless_stopped<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    actix_rt::System::new().block_on(async move {
        let mut stop = StopSignals::new()?;
        tokio::select! {
            outcome = process::on_a_thread("slowlane-demo", work) => outcome,
            () = stop.next() => {
                child::kill_all();
                Err("stopped".into())
            }
        }
    })
}

fn story(slot: &Arc<Slot>, data_dir: PathBuf, plan: &Plan) -> Result<Story, Failure> {
    let reader = plain_dsn_reader(&File::default())?;
    let databases = match cluster::check_unused(&data_dir) {
        Ok(()) => {
            eprintln!("starting the private Postgres of slowlane dev in {}", data_dir.display());
            Databases::set_up(slot, data_dir)?
        }
        Err(ClusterError::InUse(..)) => Databases::of_running(&data_dir, reader)?,
        Err(error) => return Err(error.into()),
    };
    let _turn = take_turn(&databases)?;
    let place = Place { program: std::env::current_exe()?, databases };
    plan.measure(&place)
}

/// Held for as long as the connection is.
fn take_turn(databases: &Databases) -> Result<PgConnection, Failure> {
    #[derive(QueryableByName)]
    struct Taken {
        #[diesel(sql_type = Bool)]
        taken: bool,
    }
    let mut connection = Manager::work(&databases.demo, "SELECT 1").open()?;
    let Taken { taken } =
        diesel::sql_query(format!("SELECT pg_try_advisory_lock({LOCK_KEY}) AS taken")).get_result(&mut connection)?;
    match taken {
        true => Ok(connection),
        false => Err("another slowlane demo blocking runs on this cluster: two would measure each other".into()),
    }
}

impl Plan {
    /// Measures all of it, with a bar on standard error where that is a terminal, and a line for each run otherwise.
    ///
    /// # Errors
    /// When a server doesn't start, or doesn't do what it is asked.
    pub fn measure(&self, place: &Place) -> Result<Story, Failure> {
        let runs = self.works.len() * self.servers.len();
        let kills: usize = self.kills.iter().map(|(_, sent)| sent * self.servers.len()).sum();
        let pieces = runs * self.at_once.iter().sum::<usize>() + kills;
        let bar = ProgressBar::new(u64::try_from(pieces)?);
        bar.set_style(
            ProgressStyle::with_template("{elapsed_precise} [{bar:30}] {pos}/{len} {msg}")?.progress_chars("=> "),
        );
        let mut story = Story::default();
        for work in &self.works {
            for contestant in &self.servers {
                bar.set_message(format!("{}: idle", contestant.name));
                let measured = Measured::start(place, contestant, *work)?;
                for at_once in &self.at_once {
                    bar.set_message(format!("{}: {at_once} at once of {}", contestant.name, work.name()));
                    let from = bar.position();
                    let run = measured.run(*at_once, |done| {
                        bar.set_position(from + u64::try_from(done.min(*at_once)).unwrap_or_default());
                    })?;
                    say(&bar, run.summary());
                    story.runs.push(run);
                }
            }
        }
        for (signal, sent) in &self.kills {
            for contestant in &self.servers {
                bar.set_message(format!("{}: {} with {sent} at once", contestant.name, signal.as_str()));
                let kill = measure::kill(place, contestant, Work::Sleep, *sent, *signal)?;
                bar.inc(u64::try_from(*sent)?);
                say(&bar, kill.summary());
                story.kills.push(kill);
            }
        }
        bar.finish_and_clear();
        Ok(story)
    }
}

fn say(bar: &ProgressBar, line: String) {
    if std::io::stderr().is_terminal() { bar.println(line) } else { eprintln!("{line}") }
}

impl Run {
    fn summary(&self) -> String {
        format!(
            "{}, {} at once of {}: trigger {} at most, /healthz p99 {}, same pool p99 {}",
            self.server,
            self.at_once,
            self.work.name(),
            span(self.trigger_ms.max),
            span(self.healthz_ms.p99),
            span(self.pooled_ms.p99)
        )
    }

    /// In one line, which threads took the work, and which ones did it.
    fn threads_line(&self) -> String {
        let handlers: BTreeSet<i64> = self.threads.iter().filter_map(|threads| threads.handler).collect();
        let workers: BTreeSet<i64> = self.threads.iter().filter_map(|threads| threads.work).collect();
        let same = self.threads.iter().filter(|threads| threads.handler.is_some() && threads.handler == threads.work);
        let verdict = match same.count() {
            0 => "never the thread of the handler".to_owned(),
            all if all == self.threads.len() => "each on the thread of its handler".to_owned(),
            some => format!("{some} on the thread of their handler"),
        };
        format!(
            "{}, {} at once of {}: handlers on {}; the work on {}: {verdict}",
            self.server,
            self.at_once,
            self.work.name(),
            listed(&handlers),
            listed(&workers)
        )
    }
}

/// As `thread 12` or `4 threads 12, 13, 14, …`.
fn listed(threads: &BTreeSet<i64>) -> String {
    let mut shown: Vec<String> = threads.iter().take(SHOWN_THREADS).map(i64::to_string).collect();
    if threads.len() > SHOWN_THREADS {
        shown.push("…".to_owned());
    }
    match threads.len() {
        0 => "no thread".to_owned(),
        1 => format!("thread {}", shown.join("")),
        count => format!("{count} threads ({})", shown.join(", ")),
    }
}

impl Kill {
    fn summary(&self) -> String {
        format!(
            "{}, {} after one second: {} of {} accepted requests lost",
            self.server, self.signal, self.lost, self.accepted
        )
    }
}

/// Milliseconds as people read them: `3.0 ms`, `2.1 s`.
pub fn span(milliseconds: f64) -> String {
    match milliseconds {
        ms if ms < 9.95 => format!("{ms:.1} ms"),
        ms if ms < 999.5 => format!("{ms:.0} ms"),
        ms if ms < 9_950.0 => format!("{:.1} s", ms / 1_000.0),
        ms => format!("{:.0} s", ms / 1_000.0),
    }
}

fn spread(spread: &Spread) -> String {
    let failed = match spread.failed {
        0 => String::new(),
        failed => format!(" ({failed} of {} failed)", spread.count),
    };
    format!("{} / {} / {}{failed}", span(spread.p50), span(spread.p99), span(spread.max))
}

const RUN_HEADER: [&str; 7] = [
    "work",
    "at once",
    "server",
    "trigger p50 / max",
    "/healthz p50 / p99 / max",
    "same pool p50 / p99 / max",
    "all done after",
];
const KILL_HEADER: [&str; 7] =
    ["signal", "server", "accepted", "done", "lost", "the process ended after", "sessions left at work"];

impl Story {
    /// The rows of the table of runs: the idle servers first, then by work and number at once.
    fn run_rows(&self) -> Vec<[String; 7]> {
        let mut rows = Vec::new();
        let mut works: Vec<Work> = Vec::new();
        for run in &self.runs {
            if !works.contains(&run.work) {
                works.push(run.work);
            }
        }
        let mut idle_servers = BTreeSet::new();
        for run in self.runs.iter().filter(|run| idle_servers.insert(&run.server)) {
            let (healthz, pooled) = (spread(&run.idle.healthz_ms), spread(&run.idle.pooled_ms));
            let empty = String::new;
            rows.push(["idle".to_owned(), empty(), run.server.clone(), empty(), healthz, pooled, empty()]);
        }
        for work in works {
            let numbers: BTreeSet<usize> = self.runs.iter().map(|run| run.at_once).collect();
            for at_once in numbers {
                for run in self.runs.iter().filter(|run| run.work == work && run.at_once == at_once) {
                    rows.push([
                        work.name().to_owned(),
                        at_once.to_string(),
                        run.server.clone(),
                        format!("{} / {}", span(run.trigger_ms.p50), span(run.trigger_ms.max)),
                        spread(&run.healthz_ms),
                        spread(&run.pooled_ms),
                        span(run.all_done_ms),
                    ]);
                }
            }
        }
        rows
    }

    /// The rows of the table of kills.
    fn kill_rows(&self) -> Vec<[String; 7]> {
        let row = |kill: &Kill| {
            let done = match kill.done_after {
                0 => kill.done_before.to_string(),
                after => format!("{}, and {after} after a new start", kill.done_before),
            };
            let ended = match kill.had_to_be_killed {
                true => format!("it did not end within {}", span(kill.stopped_after_ms)),
                false => span(kill.stopped_after_ms),
            };
            [
                kill.signal.to_owned(),
                kill.server.clone(),
                format!("{} of {}", kill.accepted, kill.sent),
                done,
                kill.lost.to_string(),
                ended,
                kill.sessions_left.to_string(),
            ]
        };
        self.kills.iter().map(row).collect()
    }

    /// Which threads did what, a line for each server at the largest number at once.
    pub fn thread_lines(&self) -> Vec<String> {
        let largest = self.runs.iter().map(|run| run.at_once).max();
        let work = self.runs.first().map(|run| run.work);
        let shown = self.runs.iter().filter(|run| Some(run.at_once) == largest && Some(run.work) == work);
        shown.map(Run::threads_line).collect()
    }

    /// Everything, for people.
    fn to_text(&self) -> String {
        let mut text = String::new();
        for line in self.thread_lines() {
            text.push_str(&format!("{line}\n"));
        }
        text.push_str(&format!("\n{}\n", self.run_table()));
        if !self.kills.is_empty() {
            text.push_str(&format!("\n{}\n", self.kill_table()));
        }
        text.push_str(
            "\nLatencies count from the time at which a request was to be sent. `same pool` is a request that takes a\n\
             connection from the same pool; for slowlane, the status of a job. `lost`: the caller had its answer, and nobody\n\
             will do the work.\n",
        );
        text
    }

    /// The table of runs, in Markdown.
    pub fn run_table(&self) -> Table {
        in_columns(&RUN_HEADER, &self.run_rows(), &[1, 3, 4, 5, 6])
    }

    /// The table of kills, in Markdown.
    pub fn kill_table(&self) -> Table {
        in_columns(&KILL_HEADER, &self.kill_rows(), &[2, 3, 4, 5, 6])
    }
}

fn in_columns(header: &[&str], rows: &[[String; 7]], right: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(header.iter().copied());
    for row in rows {
        table.add_row(row.iter());
    }
    for column in right {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}
