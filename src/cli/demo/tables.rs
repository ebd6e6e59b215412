//! What is shown of runs and kills: a line for each while they go on, tables, and which thread did what.

use std::collections::BTreeSet;

use comfy_table::{CellAlignment, Table, presets};

use crate::cli::demo::blocking::Report;
use crate::cli::demo::kill::Kill;
use crate::cli::demo::measure::{Run, Threads};
use crate::cli::demo::probes::Spread;
use crate::cli::demo::statement::Statement;

/// Milliseconds as people read them: `3.0 ms`, `2.1 s`. What never came to an end failed.
pub fn span(milliseconds: f64) -> String {
    match milliseconds {
        ms if ms < 9.95 => format!("{ms:.1} ms"),
        ms if ms < 999.5 => format!("{ms:.0} ms"),
        ms if ms < 9_950.0 => format!("{:.1} s", ms / 1_000.0),
        ms if ms.is_finite() => format!("{:.0} s", ms / 1_000.0),
        _ => "failed".to_owned(),
    }
}

fn spread(spread: &Spread) -> String {
    format!("{} / {} / {}{}", span(spread.p50), span(spread.p99), span(spread.max), failures(spread))
}

/// Nothing where there were none.
pub fn failures(spread: &Spread) -> String {
    match spread.failed {
        0 => String::new(),
        failed => format!(" ({failed} of {} failed)", spread.count),
    }
}

impl Run {
    /// One line.
    pub fn summary(&self) -> String {
        let seen = |spread: &Spread| format!("p99 {}{}", span(spread.p99), failures(spread));
        format!(
            "{}, {} at once of {}: trigger {} at most, /healthz {}, database {}",
            self.server,
            self.at_once,
            self.work.name(),
            span(self.trigger_ms.max),
            seen(&self.healthz_ms),
            seen(&self.database_ms)
        )
    }

    /// In one line, which thread took the first request and which one did its work, and how it is for all of them.
    fn threads_line(&self) -> String {
        let named = |thread: Option<i64>| thread.map_or("an unknown thread".to_owned(), |id| format!("thread {id}"));
        let first = self.threads.first().map_or_else(
            || "no request".to_owned(),
            |first| format!("request 1: handler on {}, its work on {}", named(first.handler), named(first.work)),
        );
        let distinct = |of: fn(&Threads) -> Option<i64>| {
            let threads: BTreeSet<i64> = self.threads.iter().filter_map(of).collect();
            match threads.len() {
                1 => "1 thread".to_owned(),
                count => format!("{count} threads"),
            }
        };
        format!(
            "{}, {} at once of {}: {first}; in all, handlers on {}, work on {}, {}",
            self.server,
            self.at_once,
            self.work.name(),
            distinct(|threads| threads.handler),
            distinct(|threads| threads.work),
            verdict(&self.threads)
        )
    }
}

/// What the threads prove. One that isn't known proves nothing.
fn verdict(threads: &[Threads]) -> String {
    let known: Vec<(i64, i64)> = threads.iter().filter_map(|threads| Some((threads.handler?, threads.work?))).collect();
    let same = known.iter().filter(|(handler, work)| handler == work).count();
    match (threads.len() - known.len(), same) {
        (0, 0) => "never on the thread of its handler".to_owned(),
        (0, same) if same == known.len() => "always on the thread of its handler".to_owned(),
        (0, same) => format!("{same} times on the thread of its handler"),
        (unknown, same) => format!("{same} times on the thread of its handler, {unknown} times unknown"),
    }
}

impl Kill {
    /// One line.
    pub fn summary(&self) -> String {
        format!(
            "{}, {} after one second: {} of {} accepted requests lost",
            self.server, self.signal, self.lost, self.accepted
        )
    }
}

const RUN_HEADER: [&str; 7] = [
    "work",
    "at once",
    "server",
    "trigger p50 / max",
    "/healthz p50 / p99 / max",
    "an endpoint that asks the database p50 / p99 / max",
    "all done after",
];
const KILL_HEADER: [&str; 8] =
    ["signal", "server", "accepted", "done", "done twice", "lost", "the process ended after", "sessions left at work"];

impl Report {
    /// The rows of the table of runs: the idle servers first, then by work and number at once.
    fn run_rows(&self) -> Vec<[String; 7]> {
        let mut rows = Vec::new();
        let mut statements: Vec<Statement> = Vec::new();
        for run in &self.runs {
            if !statements.contains(&run.work) {
                statements.push(run.work);
            }
        }
        let mut idle_servers = BTreeSet::new();
        for run in self.runs.iter().filter(|run| idle_servers.insert(&run.server)) {
            let (healthz, database) = (spread(&run.idle.healthz_ms), spread(&run.idle.database_ms));
            let empty = String::new;
            rows.push(["idle".to_owned(), empty(), run.server.clone(), empty(), healthz, database, empty()]);
        }
        for statement in statements {
            let numbers: BTreeSet<usize> = self.runs.iter().map(|run| run.at_once).collect();
            for at_once in numbers {
                for run in self.runs.iter().filter(|run| run.work == statement && run.at_once == at_once) {
                    rows.push([
                        statement.name().to_owned(),
                        at_once.to_string(),
                        run.server.clone(),
                        format!("{} / {}", span(run.trigger_ms.p50), span(run.trigger_ms.max)),
                        spread(&run.healthz_ms),
                        spread(&run.database_ms),
                        span(run.all_done_ms),
                    ]);
                }
            }
        }
        rows
    }

    /// The rows of the table of kills.
    fn kill_rows(&self) -> Vec<[String; 8]> {
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
                kill.repeated.to_string(),
                kill.lost.to_string(),
                ended,
                kill.sessions_left.to_string(),
            ]
        };
        self.kills.iter().map(row).collect()
    }

    /// Which thread did what, a line for each run of these statements.
    pub fn thread_lines(&self, of: impl Fn(Statement) -> bool) -> Vec<String> {
        self.runs.iter().filter(|run| of(run.work)).map(Run::threads_line).collect()
    }

    /// Everything, for people.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for line in self.thread_lines(|_| true) {
            text.push_str(&format!("{line}\n"));
        }
        text.push_str(&format!("\n{}\n", self.run_table()));
        if !self.kills.is_empty() {
            text.push_str(&format!("\n{}\n", self.kill_table()));
        }
        text.push_str(
            "\nLatencies count from the time at which a request was to be sent, over the first 10 s of each run. An\n\
             endpoint that asks the database takes a connection from the pool of the heavy work; slowlane's, the\n\
             status of a job, from a pool that heavy work never uses.\n",
        );
        if !self.kills.is_empty() {
            text.push_str("`lost`: the caller had its answer, and nobody will do the work.\n");
        }
        text
    }

    /// The table of runs, in Markdown.
    pub fn run_table(&self) -> Table {
        in_columns(&RUN_HEADER, &self.run_rows(), &[1, 3, 4, 5, 6])
    }

    /// The table of kills, in Markdown.
    pub fn kill_table(&self) -> Table {
        in_columns(&KILL_HEADER, &self.kill_rows(), &[2, 3, 4, 5, 6, 7])
    }
}

fn in_columns<const N: usize>(header: &[&str; N], rows: &[[String; N]], right: &[usize]) -> Table {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_is_not_known_proves_nothing() {
        let of = |pairs: &[(Option<i64>, Option<i64>)]| {
            let threads: Vec<Threads> = pairs.iter().map(|&(handler, work)| Threads { handler, work }).collect();
            verdict(&threads)
        };
        assert_eq!(of(&[(Some(1), Some(2)), (Some(1), Some(3))]), "never on the thread of its handler");
        assert_eq!(of(&[(Some(1), Some(1))]), "always on the thread of its handler");
        assert_eq!(of(&[(Some(1), Some(1)), (Some(1), Some(2))]), "1 times on the thread of its handler");
        assert_eq!(of(&[(Some(1), None)]), "0 times on the thread of its handler, 1 times unknown");
    }

    #[test]
    fn spans_are_as_people_read_them() {
        let spans: Vec<String> = [0.04, 9.96, 1_000.0, 59_700.0, f64::INFINITY].into_iter().map(span).collect();
        assert_eq!(spans, ["0.0 ms", "10 ms", "1.0 s", "60 s", "failed"]);
    }
}
