//! slowlane beside FastAPI, in one run on one private Postgres: the same heavy statements, the same measures, the same
//! kills. `make compare-fastapi` prepares the virtual environment and calls this.
//!
//! A whole run writes its tables and its chart into docs/; chosen numbers only print. What slowlane promises here ends
//! the run with a failure when it isn't so: at the largest number at once its answers stay within twice those of an
//! idle slowlane, and no kill loses accepted work.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, PoisonError};

use clap::Parser;
use nix::sys::signal::Signal;

use slowlane::cli::demo::blocking::{Plan, Story, span, unless_stopped};
use slowlane::cli::demo::child::Dialect;
use slowlane::cli::demo::measure::{Contestant, Place, Run, Work};
use slowlane::cli::private::{Databases, Slot};

/// How much slower than idle an answer of slowlane may be.
const WITHIN: f64 = 2.0;
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
    work: Vec<Work>,
    /// What cargo passes to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    fn is_whole(&self) -> bool {
        self.at_once == [1, 40, 60] && self.work == [Work::Sleep, Work::Cpu]
    }
}

fn folder() -> PathBuf {
    // That of this run: what was compiled may be shared with another clone.
    std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| ".".into()).into()
}

fn fastapi(python: &Path, name: &str, variant: &'static str) -> Contestant {
    let (python, app) = (python.to_owned(), folder().join("benches/compare/fastapi/app.py"));
    let command = move |place: &Place, work: Work| {
        let mut command = Command::new(&python);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PG") || name.starts_with("PYTHON")) {
            command.env_remove(name);
        }
        command.arg(&app).arg(variant).env("DATABASE_URL", place.databases.demo.to_url().expose());
        command.env("WORK_SQL", work.sql()).env("GRACE", "4");
        command
    };
    Contestant { name: name.to_owned(), dialect: Dialect::Events, command: Box::new(command) }
}

fn main() -> ExitCode {
    env_logger::Builder::new().filter_level(log::LevelFilter::Warn).init();
    let options = Options::parse();
    let (whole, python) = (options.is_whole(), options.python.clone());
    let slot = Arc::<Slot>::default();
    let place = Arc::clone(&slot);
    let story = unless_stopped(move || {
        let folder = tempfile::Builder::new().prefix("slowlane-compare-").tempdir()?;
        // The server's own user must reach it.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(folder.path(), open)?;
        let databases = Databases::set_up(&place, folder.path().join("postgres"))?;
        let program = PathBuf::from(env!("CARGO_BIN_EXE_slowlane"));
        let largest = options.at_once.iter().copied().max().unwrap_or(1);
        let plan = Plan {
            servers: vec![
                fastapi(&options.python, "FastAPI, async def", "async-def"),
                fastapi(&options.python, "FastAPI, def", "def"),
                fastapi(&options.python, "FastAPI, AsyncSession", "asyncpg"),
                Contestant::slowlane(),
            ],
            works: options.work,
            at_once: options.at_once,
            kills: vec![(Signal::SIGKILL, largest), (Signal::SIGTERM, largest)],
        };
        let story = plan.measure(&Place { program, databases });
        drop(place.lock().unwrap_or_else(PoisonError::into_inner).take());
        story
    });
    drop(slot.lock().unwrap_or_else(PoisonError::into_inner).take());
    let story = match story {
        Ok(story) => story,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    println!("{}", tables(&story));
    if whole {
        write(&story, &python);
    }
    let broken = broken_promises(&story);
    for promise in &broken {
        eprintln!("not as promised: {promise}");
    }
    if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn tables(story: &Story) -> String {
    let lines: Vec<String> = story.thread_lines().iter().map(|line| format!("- {line}.")).collect();
    format!("{}\n\n{}\n\n{}\n", story.run_table(), story.kill_table(), lines.join("\n"))
}

/// The largest run of the work that only waits, and what the kills of it lost.
fn headline(story: &Story) -> String {
    let largest = story.runs.iter().map(|run| run.at_once).max().unwrap_or_default();
    let mut text = format!(
        "| {largest} times `{}` at once, given to | the caller's answer, at most | `/healthz` p99 | a request on the same \
         pool, p99 | lost by SIGKILL | lost by SIGTERM |\n| --- | ---: | ---: | ---: | ---: | ---: |\n",
        Work::Sleep.name()
    );
    for run in story.runs.iter().filter(|run| run.at_once == largest && run.work == Work::Sleep) {
        let lost = |signal: &str| {
            let kill = story.kills.iter().find(|kill| kill.server == run.server && kill.signal == signal);
            kill.map_or_else(String::new, |kill| format!("{} of {}", kill.lost, kill.accepted))
        };
        let (answer, healthz, pooled) = (run.trigger_ms.max, run.healthz_ms.p99, run.pooled_ms.p99);
        let columns = [span(answer), span(healthz), span(pooled), lost("SIGKILL"), lost("SIGTERM")];
        text.push_str(&format!("| {} | {} |\n", run.server, columns.join(" | ")));
    }
    text
}

/// What of it isn't so.
fn broken_promises(story: &Story) -> Vec<String> {
    let mut broken = Vec::new();
    let largest = story.runs.iter().map(|run| run.at_once).max();
    let ours = |run: &&Run| run.server == SLOWLANE && Some(run.at_once) == largest && run.work == Work::Sleep;
    for run in story.runs.iter().filter(ours) {
        let pairs =
            [("/healthz", run.healthz_ms, run.idle.healthz_ms), ("same pool", run.pooled_ms, run.idle.pooled_ms)];
        for (what, busy, idle) in pairs {
            if busy.p99 > WITHIN * idle.p99 || busy.failed > 0 {
                broken.push(format!("{what}: p99 {:.1} ms, idle {:.1} ms, {} failed", busy.p99, idle.p99, busy.failed));
            }
        }
    }
    for kill in story.kills.iter().filter(|kill| kill.server == SLOWLANE) {
        if kill.lost > 0 || kill.accepted == 0 {
            broken.push(format!("{}: {} of {} lost", kill.signal, kill.lost, kill.accepted));
        }
    }
    broken
}

/// Writes the tables between the marks of the page, the end of the story into README, and has the chart drawn.
fn write(story: &Story, python: &Path) {
    let folder = folder();
    replace(&folder.join(DOCUMENT), &tables(story));
    replace(&folder.join("README.md"), &headline(story));
    let results = folder.join("target/compare-fastapi.json");
    let results =
        std::env::var_os("CARGO_TARGET_DIR").map_or(results, |dir| Path::new(&dir).join("compare-fastapi.json"));
    std::fs::write(&results, serde_json::to_string_pretty(story).unwrap()).unwrap();
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
