//! The benchmark: slowlane beside a peer or a limit, in the same run, on a private durable Postgres.
//!
//! `cargo bench --bench numbers -- [case…] [--quick] [--rounds N]`. A whole run writes its table into
//! docs/performance.md; chosen cases and quick runs only print theirs. A count that is off ends the run: speed that
//! loses or repeats a job is none.
//!
//! | file | what it has |
//! | --- | --- |
//! | [`postgres`] | the private cluster, its databases, `psql` and `pgbench` |
//! | [`server`] | slowlane as a child process: this program, called again |
//! | [`load`] | clients that cost little: they share the machine with what they measure |
//! | [`http`] | single requests, and bodies of any size |
//! | [`report`] | medians, spreads and the table |
//! | [`cases`] | what is measured, one file each |

mod cases;
mod http;
mod load;
mod machine;
mod postgres;
mod report;
mod server;

use std::process::ExitCode;

use clap::Parser;

use cases::CASES;
use postgres::Postgres;
use report::Report;

/// Measures slowlane beside its peers and limits.
#[derive(Parser)]
struct Options {
    /// Cases to run; all of them when none is named
    cases: Vec<String>,
    /// Small sizes, to see that everything works
    #[arg(long)]
    quick: bool,
    /// Rounds of each measure; the median counts
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// What cargo passes to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

/// How large the measures are.
#[derive(Clone, Copy)]
pub struct Scale {
    pub quick: bool,
    pub rounds: usize,
}

impl Scale {
    /// The full size, or a small one in a quick run.
    pub fn of<T>(self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(server::CHILD) {
        return server::serve();
    }
    let options = Options::parse();
    let unknown: Vec<&String> = options.cases.iter().filter(|n| !CASES.iter().any(|(name, _)| name == n)).collect();
    if !unknown.is_empty() {
        let known: Vec<&str> = CASES.iter().map(|(name, _)| *name).collect();
        eprintln!("there is no case {unknown:?}; there are {}", known.join(", "));
        return ExitCode::FAILURE;
    }
    let scale = Scale { quick: options.quick, rounds: options.rounds.max(1) };
    let postgres = Postgres::start();
    let mut report = Report::new(machine::describe(&postgres, scale));
    for (name, case) in CASES.iter().filter(|(n, _)| options.cases.is_empty() || options.cases.iter().any(|c| c == n)) {
        eprintln!("== {name}");
        report.add(case(&postgres, scale));
    }
    println!("{}", report.table());
    if options.cases.is_empty() && !options.quick {
        report.write();
    }
    ExitCode::SUCCESS
}
