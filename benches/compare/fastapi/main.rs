//! slowlane beside FastAPI, in one run on one private Postgres: the same heavy statements, the same measures, the same
//! kills. `make compare-fastapi` prepares the virtual environment and calls this.
//!
//! A whole run writes its tables and its chart into docs/; chosen numbers only print. What is promised of slowlane is
//! checked, and stands beside the tables as met or missed: at the largest number at once its answers stay within twice
//! those of an idle slowlane, and no kill loses accepted work. Where a promise is missed, or nothing was checked,
//! the run ends with a failure; README shows the numbers in any case, and what was missed below them. The aggregate is
//! judged too, but decides nothing: it keeps every core busy, so that what an answer waits for is a core.

use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, PoisonError};

use clap::Parser;
use nix::sys::signal::Signal;

use slowlane::cli::demo::blocking::{Plan, Report, stoppable};
use slowlane::cli::demo::child::Dialect;
use slowlane::cli::demo::kill::Kill;
use slowlane::cli::demo::measure::{Contestant, Environment, Run};
use slowlane::cli::demo::probes::Spread;
use slowlane::cli::demo::statement::Statement;
use slowlane::cli::demo::tables::{failures, span};
use slowlane::cli::private::{Databases, Slot};

/// How much slower than idle an answer of slowlane may be.
const WITHIN: f64 = 2.0;
/// How often slowlane is measured for that: p99 is the fifth slowest of 400 answers, and one run proves little. The
/// medians count.
const ROUNDS: usize = 5;
const SLOWLANE: &str = "slowlane";
const DOCUMENT: &str = "docs/blocking.md";
const CHART: &str = "docs/blocking.svg";
const BEGIN: &str = "<!-- begin: written by make compare-fastapi -->";
const END: &str = "<!-- end: written by make compare-fastapi -->";

/// Measures slowlane beside FastAPI.
#[derive(Parser)]
struct Options {
    /// The interpreter of the virtual environment
    #[arg(long)]
    python: PathBuf,
    /// How many at once; another choice than the default's isn't written into docs/
    #[arg(long, value_delimiter = ',', default_value = "1,40,60")]
    at_once: Vec<usize>,
    /// Which heavy statements
    #[arg(long, value_enum, value_delimiter = ',', default_value = "sleep,cpu")]
    work: Vec<Statement>,
    /// What cargo passes to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    fn is_whole(&self) -> bool {
        self.at_once == [1, 40, 60] && self.work == [Statement::Sleep, Statement::Cpu]
    }
}

fn folder() -> PathBuf {
    // That of this run: what was compiled may be shared with another clone.
    std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| ".".into()).into()
}

fn fastapi(python: &Path, name: &str, variant: &'static str) -> Contestant {
    let (python, app) = (python.to_owned(), folder().join("benches/compare/fastapi/app.py"));
    let command = move |environment: &Environment, statement: Statement| {
        let mut command = Command::new(&python);
        let is_of_python = |name: &std::ffi::OsString| name.as_encoded_bytes().starts_with(b"PYTHON");
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_of_python(name)) {
            command.env_remove(name);
        }
        command.arg(&app).arg(variant).env("DATABASE_URL", environment.databases.demo.to_url().expose());
        command.env("WORK_SQL", statement.sql()).env("GRACE", "4");
        command
    };
    Contestant { name: name.to_owned(), dialect: Dialect::Events, command: Box::new(command) }
}

fn main() -> ExitCode {
    env_logger::Builder::new().filter_level(log::LevelFilter::Warn).init();
    let options = Options::parse();
    let (whole, python) = (options.is_whole(), options.python.clone());
    // Owned here, and before the cluster that stands in it: gone in every case, and after that one.
    let folder = tempfile::Builder::new().prefix("slowlane-compare-").tempdir().unwrap();
    // The server's own user must reach it.
    set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let data_dir = folder.path().join("postgres");
    let slot = Arc::<Slot>::default();
    let cluster = Arc::clone(&slot);
    let measured = stoppable(move || {
        let databases = Databases::set_up(&cluster, data_dir)?;
        let machine = machine(&cluster, &options.python);
        let program = PathBuf::from(env!("CARGO_BIN_EXE_slowlane"));
        let largest = options.at_once.iter().copied().max().unwrap_or(1);
        let plan = Plan {
            servers: vec![
                fastapi(&options.python, "FastAPI, async def", "async-def"),
                fastapi(&options.python, "FastAPI, def", "def"),
                fastapi(&options.python, "FastAPI, AsyncSession", "asyncpg"),
                Contestant::slowlane(),
            ],
            statements: options.work,
            at_once: options.at_once,
            kills: vec![(Signal::SIGKILL, largest), (Signal::SIGTERM, largest)],
        };
        let environment = Environment::new(program, databases);
        let report = plan.measure(&environment)?;
        let again = Plan {
            servers: vec![Contestant::slowlane()],
            statements: plan.statements,
            at_once: vec![largest],
            kills: Vec::new(),
        };
        let mut rounds = report.runs.clone();
        for _ in 1..ROUNDS {
            rounds.extend(again.measure(&environment)?.runs);
        }
        Ok((report, rounds, machine))
    });
    drop(slot.lock().unwrap_or_else(PoisonError::into_inner).take());
    let (report, rounds, machine) = match measured {
        Ok(Some(measured)) => measured,
        Ok(None) => {
            eprintln!("stopped");
            return ExitCode::FAILURE;
        }
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let verdicts = Verdict::all(&report, &rounds);
    let text = tables(&report, &machine, &verdicts);
    println!("{text}");
    let deciding: Vec<&Verdict> = verdicts.iter().filter(|verdict| verdict.decides).collect();
    for missed in deciding.iter().filter(|verdict| !verdict.met) {
        eprintln!("{}", missed.line());
    }
    let was_checked = deciding.iter().any(|verdict| verdict.is_about_answers);
    if !was_checked {
        eprintln!("nothing was checked of what is promised of answers: it needs --work sleep");
    }
    let holds = was_checked && deciding.iter().all(|verdict| verdict.met);
    if whole {
        write(&report, &text, &verdicts, &python);
    }
    if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What everything ran on, a line each.
fn machine(slot: &Slot, python: &Path) -> Vec<String> {
    let postgres = slot.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|cluster| {
        let version = Command::new(cluster.binaries().path("postgres")).arg("--version").output().unwrap();
        String::from_utf8_lossy(&version.stdout).trim().replace("postgres (PostgreSQL)", "Postgres")
    });
    let processors = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let script = "import importlib.metadata, platform, sys\n\
                  versions = [f'{name} {importlib.metadata.version(name)}' for name in sys.argv[1:]]\n\
                  print('Python ' + platform.python_version(), *versions, sep=', ')";
    let packages = ["fastapi", "uvicorn", "uvloop", "httptools", "SQLAlchemy", "psycopg2-binary", "asyncpg"];
    let versions = Command::new(python).args(["-c", script]).args(packages).output().unwrap();
    vec![
        format!(
            "{} cores ({}), shared by the server, its clients and {}.",
            std::thread::available_parallelism().map_or(0, usize::from),
            processor.map_or("unknown", |(_, name)| name),
            postgres.unwrap_or_default()
        ),
        format!("{}.", String::from_utf8_lossy(&versions.stdout).trim()),
        "FastAPI is one process of uvicorn with one event loop, 40 threads for what is synchronous, and SQLAlchemy's \
         pool of 15 connections for everything."
            .to_owned(),
        format!(
            "slowlane {} is one process with two HTTP threads, 8 workers with connections of their own, and 4 \
             connections for the answers that need the database.",
            env!("CARGO_PKG_VERSION")
        ),
    ]
}

/// Everything that a page shows.
fn tables(report: &Report, machine: &[String], verdicts: &[Verdict]) -> String {
    let list = |lines: &[String]| lines.iter().map(|line| format!("- {line}\n")).collect::<String>();
    let threads = report.thread_lines(|statement| statement != Statement::Cpu);
    let threads: Vec<String> = threads.iter().map(|line| format!("{line}.")).collect();
    let promises: Vec<String> = verdicts.iter().map(Verdict::line).collect();
    format!(
        "Measured on:\n\n{}\n{}\n\n{}\n\nWhat is promised of slowlane:\n\n{}\nWhich thread did what:\n\n{}",
        list(machine),
        report.run_table(),
        report.kill_table(),
        list(&promises),
        list(&threads)
    )
}

/// The largest run of the work that only waits, and what the kills of it lost.
fn headline(report: &Report, verdicts: &[Verdict]) -> String {
    let largest = report.runs.iter().map(|run| run.at_once).max().unwrap_or_default();
    let mut text = format!(
        "| {largest} times `{}` at once, given to | the caller's answer, at most | `/healthz` p99 / max | an \
         endpoint that asks the database p99 / max | lost by SIGKILL | lost by SIGTERM |\n\
         | --- | ---: | ---: | ---: | ---: | ---: |\n",
        Statement::Sleep.name()
    );
    for run in report.runs.iter().filter(|run| run.at_once == largest && run.work == Statement::Sleep) {
        let lost = |signal: &str| {
            let kill = report.kills.iter().find(|kill| kill.server == run.server && kill.signal == signal);
            kill.map_or_else(String::new, |kill| format!("{} of {}", kill.lost, kill.accepted))
        };
        let seen = |spread: &Spread| format!("{} / {}{}", span(spread.p99), span(spread.max), failures(spread));
        let (answer, healthz, database) = (span(run.trigger_ms.max), seen(&run.healthz_ms), seen(&run.database_ms));
        let columns = [answer, healthz, database, lost("SIGKILL"), lost("SIGTERM")];
        text.push_str(&format!("| {} | {} |\n", run.server, columns.join(" | ")));
    }
    for missed in verdicts.iter().filter(|verdict| verdict.decides && !verdict.met) {
        text.push_str(&format!("\n{}\n", missed.line()));
    }
    text
}

/// Something that is promised of slowlane, and whether it is so.
struct Verdict {
    promise: String,
    met: bool,
    /// The run fails when it isn't so.
    decides: bool,
    is_about_answers: bool,
}

impl Verdict {
    /// `rounds`: every run, those of the report among them.
    fn all(report: &Report, rounds: &[Run]) -> Vec<Verdict> {
        let largest = report.runs.iter().map(|run| run.at_once).max();
        let ours = |run: &&Run| run.server == SLOWLANE && Some(run.at_once) == largest;
        let mut verdicts = Vec::new();
        for run in report.runs.iter().filter(ours) {
            let rounds: Vec<&Run> = rounds.iter().filter(ours).filter(|other| other.work == run.work).collect();
            let of = |spread: fn(&Run) -> &Spread| -> Vec<&Spread> { rounds.iter().map(|run| spread(run)).collect() };
            let (healthz, idle) = (of(|run| &run.healthz_ms), of(|run| &run.idle.healthz_ms));
            verdicts.push(Verdict::of_answers(run, "`/healthz`", &healthz, &idle));
            let (database, idle) = (of(|run| &run.database_ms), of(|run| &run.idle.database_ms));
            verdicts.push(Verdict::of_answers(run, "the status of a job", &database, &idle));
        }
        for signal in ["SIGKILL", "SIGTERM"] {
            let kill = report.kills.iter().find(|kill| kill.server == SLOWLANE && kill.signal == signal);
            verdicts.push(Verdict::of_kill(signal, kill));
        }
        verdicts
    }

    fn of_answers(run: &Run, what: &str, busy: &[&Spread], idle: &[&Spread]) -> Verdict {
        let median = |spreads: &[&Spread]| {
            let mut values: Vec<f64> = spreads.iter().map(|spread| spread.p99).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let failed: usize = busy.iter().chain(idle).map(|spread| spread.failed).sum();
        let (busy, idle, rounds) = (median(busy), median(idle), busy.len());
        let decides = run.work != Statement::Cpu;
        let also = if decides { "" } else { "; this one decides nothing: every core is busy" };
        Verdict {
            promise: format!(
                "{what}, p99 at {} at once of {} at most {WITHIN} times the idle one, medians of {rounds} runs: {}, idle {}, \
                 {failed} failed{also}",
                run.at_once,
                run.work.name(),
                span(busy),
                span(idle),
            ),
            met: busy <= WITHIN * idle && failed == 0,
            decides,
            is_about_answers: true,
        }
    }

    fn of_kill(signal: &str, kill: Option<&Kill>) -> Verdict {
        let what = kill.map_or("not measured".to_owned(), |kill| {
            let killed = if kill.had_to_be_killed { ", and it had to be killed" } else { "" };
            format!("{} of {} accepted, {} lost{killed}", kill.accepted, kill.sent, kill.lost)
        });
        Verdict {
            promise: format!("every job is accepted within a second, and {signal} then loses none: {what}"),
            met: kill.is_some_and(|kill| kill.lost == 0 && kill.accepted == kill.sent && !kill.had_to_be_killed),
            decides: true,
            is_about_answers: false,
        }
    }

    fn line(&self) -> String {
        format!("{}: {}.", if self.met { "met" } else { "missed" }, self.promise)
    }
}

/// Writes the tables between the marks of the page, the end of the story into README, and has the chart drawn.
fn write(report: &Report, text: &str, verdicts: &[Verdict], python: &Path) {
    let folder = folder();
    replace(&folder.join(DOCUMENT), text);
    replace(&folder.join("README.md"), &headline(report, verdicts));
    let results = folder.join("target/compare-fastapi.json");
    let results =
        std::env::var_os("CARGO_TARGET_DIR").map_or(results, |dir| Path::new(&dir).join("compare-fastapi.json"));
    std::fs::write(&results, serde_json::to_string_pretty(report).unwrap()).unwrap();
    let drawn = Command::new(python)
        .arg(folder.join("benches/compare/fastapi/chart.py"))
        .arg(&results)
        .arg(folder.join(CHART))
        .status()
        .unwrap();
    assert!(drawn.success(), "the chart was not drawn");
}

/// Replaces what stands between the marks; the prose around them stays.
fn replace(path: &Path, text: &str) {
    let document = std::fs::read_to_string(path).unwrap();
    let (before, rest) = document.split_once(BEGIN).expect("the page has lost its first mark");
    let (_, after) = rest.split_once(END).expect("the page has lost its second mark");
    std::fs::write(path, format!("{before}{BEGIN}\n{text}{END}{after}")).unwrap();
}
