//! `slowlane doctor`: everything that can be seen from here of the queue and of the targets, and what to do about it.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use comfy_table::{Table, presets};
use serde::Serialize;
use serde_json::Value;

use crate::cli::{Failure, Sources, counted, dsn_reader};
use crate::config::{self, Config, ConfigError, File};
use crate::db::pool::{Manager, Purpose};
use crate::doctor::connect;
use crate::doctor::queue::QueueSettings;
use crate::doctor::target::{Examined, FromQueue};
use crate::doctor::{self, Connections, Finding, FindingCode, Report, Severity, Subject};
use crate::dsn::{self, Dsn};
use crate::target::CONNECTIONS_BESIDE;
use crate::target::TargetSettings;

/// How long a statement may take.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);
/// Indexes that are shown, the largest.
const INDEXES_SHOWN: usize = 8;

/// The arguments of `slowlane doctor`.
#[derive(clap::Args)]
#[command(
    after_help = "Exit status: 0 when there is nothing to do, 3 when the worst is a warning, 4 when it is an error, 1 when it \
                        could not begin."
)]
pub struct Doctor {
    #[command(flatten)]
    sources: Sources,
    #[command(flatten)]
    connections: config::Connections,
    /// Look at this alone: the name of a target, or `queue`
    #[arg(long, value_name = "NAME", conflicts_with = "role_sql")]
    only: Option<String>,
    /// Print one JSON object
    #[arg(long, conflicts_with = "role_sql")]
    json: bool,
    /// Print the SQL that makes the right role for a target, and look at nothing
    #[arg(long, value_name = "TARGET")]
    role_sql: Option<String>,
}

/// What a program is told.
#[derive(Serialize)]
struct Reports {
    version: &'static str,
    worst: Option<Severity>,
    reports: Vec<Report>,
}

impl Doctor {
    /// Looks, and says what it found.
    ///
    /// # Errors
    /// When the settings can't be read.
    pub fn run(self) -> Result<ExitCode, Failure> {
        let (config, file) = self.sources.read()?;
        if let Some(name) = &self.role_sql {
            return print_role_sql(&self.connections, &file, &config, name);
        }
        let reader = dsn_reader(config.dsn_strict);
        let queue = self.connections.queue(&file, reader);
        let targets = self.connections.each_target(&file, reader)?;
        // Of a process that runs no jobs a target's name is all that has to be right, unless somebody asks for it.
        let wanted = |name: &str| match self.only.as_deref() {
            Some(only) => only == name,
            None => name == "queue" || config.roles.workers,
        };
        if let Some(only) = self.only.as_deref().filter(|only| *only != "queue" && !targets.contains_key(*only)) {
            return Err(no_target(only, &names(targets.keys())).into());
        }
        let needs = Needs::of(&config, queue.as_ref().ok(), targets.values().filter_map(|target| target.as_ref().ok()));
        let mut reports = Vec::new();
        if wanted("queue") {
            reports.push(match &queue {
                Ok(dsn) => doctor::queue::examine(dsn, needs.of_queue(dsn)),
                Err(error) => refused(Subject::Queue, None, error),
            });
        }
        for (name, target) in targets.iter().filter(|(name, _)| wanted(name)) {
            reports.push(match target {
                Ok(target) => look_at(&examined(name, target, needs.connections(&target.dsn)), queue.as_ref()),
                Err(error) => refused(Subject::Target, Some(name), error),
            });
        }
        let worst = reports.iter().filter_map(Report::worst).max();
        let reports = Reports { version: env!("CARGO_PKG_VERSION"), worst, reports };
        let mut out = io::stdout().lock();
        let written = match self.json {
            true => writeln!(out, "{}", serde_json::to_string(&reports)?),
            false => reports.print(&mut out),
        };
        match written {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(ExitCode::from(match worst {
                Some(Severity::Error) => 4,
                Some(Severity::Warning) => 3,
                _ => 0,
            })),
        }
    }
}

fn names<'n>(names: impl Iterator<Item = &'n String>) -> String {
    names.map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn no_target(name: &str, known: &str) -> String {
    format!("there is no target {}: it is one of {known}", dsn::plain_or(name, "of this name"))
}

/// Connections that one process may open, by the server that they go to: `max_connections` is one number for all of its
/// databases.
struct Needs<'c> {
    config: &'c Config,
    of_queue: u32,
    of_target: u32,
    by_server: BTreeMap<Place, u32>,
}

/// Host and port, as the string has them.
type Place = (Option<String>, String);

fn place(dsn: &Dsn) -> Place {
    let said = |keyword: &str| dsn.get(keyword).filter(|value| !value.is_empty());
    let host = said("host").or(said("hostaddr")).map(|host| match host {
        "localhost" | "::1" => "127.0.0.1".to_owned(),
        host => host.to_owned(),
    });
    (host, said("port").unwrap_or("5432").to_owned())
}

impl<'c> Needs<'c> {
    /// Counted as docs/operations.md does.
    fn of<'t>(config: &'c Config, queue: Option<&Dsn>, targets: impl Iterator<Item = &'t TargetSettings>) -> Needs<'c> {
        let of_queue = config.queue_connections();
        let of_target = config.workers.saturating_add(CONNECTIONS_BESIDE);
        let mut by_server: BTreeMap<Place, u32> = BTreeMap::new();
        let mut add = |dsn: &Dsn, count: u32| {
            let known = by_server.entry(place(dsn)).or_default();
            *known = known.saturating_add(count);
        };
        queue.into_iter().for_each(|dsn| add(dsn, of_queue));
        targets.filter(|_| config.roles.workers).for_each(|target| add(&target.dsn, of_target));
        Needs { config, of_queue, of_target, by_server }
    }

    fn beside(&self, dsn: &Dsn, here: u32) -> Connections {
        let all = self.by_server.get(&place(dsn)).copied().unwrap_or(here);
        Connections { here, beside: all.saturating_sub(here) }
    }

    fn of_queue(&self, dsn: &Dsn) -> QueueSettings {
        QueueSettings { connections: self.beside(dsn, self.of_queue), store_bytes: self.config.result_store_bytes }
    }

    fn connections(&self, dsn: &Dsn) -> Connections {
        self.beside(dsn, self.of_target)
    }
}

fn examined<'t>(name: &'t str, target: &'t TargetSettings, connections: Connections) -> Examined<'t> {
    Examined { name, dsn: &target.dsn, spec: &target.spec, connections, session_name: connect::NAME }
}

fn look_at(target: &Examined<'_>, queue: Result<&Dsn, &ConfigError>) -> Report {
    let purpose = Purpose { name: "doctor", statement_timeout: PATIENCE };
    let ask = |queue: &Dsn| FromQueue::read(&mut Manager::queue(queue, &purpose).open()?, target.name);
    let from_queue = match queue {
        Ok(queue) => ask(queue).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    doctor::target::examine(target, from_queue.as_ref().map_err(String::as_str), &|| true)
}

/// A connection string that isn't there, or can't be used at all.
fn refused(subject: Subject, name: Option<&str>, error: &ConfigError) -> Report {
    let mut report = Report::new(subject, name);
    let fix = match error {
        ConfigError::Missing(_) => {
            "set what is missing, where this process can see it: nothing was given that could be read"
        }
        _ => "mend the string: `slowlane dsn` explains one, and says what would be right",
    };
    report.find(Finding::new(FindingCode::DsnRefused, Severity::Error, error.to_string(), fix));
    report
}

fn print_role_sql(
    connections: &config::Connections,
    file: &File,
    config: &Config,
    name: &str,
) -> Result<ExitCode, Failure> {
    let mut targets = connections.each_target(file, dsn_reader(config.dsn_strict))?;
    let known = names(targets.keys());
    let target = targets.remove(name).ok_or_else(|| no_target(name, &known))??;
    let script = doctor::role_sql::script(&examined(name, &target, Connections::default()));
    match io::stdout().lock().write_all(script.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Colours where a terminal shows them.
struct Paint(bool);

impl Paint {
    fn of(&self, code: &str, text: &str) -> String {
        if self.0 { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

impl Reports {
    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let paint = Paint(io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none());
        for report in &self.reports {
            print(report, out, &paint)?;
        }
        let count = |severity| {
            self.reports.iter().flat_map(|report| &report.findings).filter(|f| f.severity == severity).count()
        };
        let (errors, warnings, infos) = (count(Severity::Error), count(Severity::Warning), count(Severity::Info));
        let infos = if infos == 1 { "1 thing".to_owned() } else { format!("{infos} things") };
        writeln!(out, "{}, {}, {infos} worth knowing", counted(errors, "error"), counted(warnings, "warning"))
    }
}

fn print(report: &Report, out: &mut impl Write, paint: &Paint) -> io::Result<()> {
    let title = match (&report.subject, &report.name) {
        (Subject::Queue, _) => "the queue".to_owned(),
        (Subject::Target, name) => format!("the target {}", name.as_deref().unwrap_or_default()),
    };
    writeln!(out, "{}  {}", paint.of("1", &title), report.connection.dsn)?;
    if let Some(driver) = &report.connection.written_for {
        writeln!(out, "  written for {driver}")?;
    }
    for change in &report.connection.changes {
        writeln!(out, "    {change}")?;
    }
    if !report.steps.is_empty() {
        let steps: Vec<String> = report.steps.iter().map(|step| format!("{} {} ms", step.name, step.ms)).collect();
        writeln!(out, "  connecting: {}", steps.join(", "))?;
    }
    print_facts(report, out)?;
    for finding in &report.findings {
        let (word, colour) = match finding.severity {
            Severity::Error => ("error", "31"),
            Severity::Warning => ("warning", "33"),
            Severity::Info => ("info", "36"),
        };
        let code = paint.of("1", finding.code.as_str());
        writeln!(out, "  {} {code}: {}", paint.of(colour, word), harmless(&finding.detail))?;
        writeln!(out, "    {}", harmless(&finding.fix))?;
        for sql in &finding.sql {
            writeln!(out, "      {};", harmless(sql))?;
        }
    }
    writeln!(out)
}

/// Names and reasons are others' words: none of them moves the cursor or begins a line.
fn harmless(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    shown
}

/// Which kinds of work the role can run.
fn print_kinds(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let kinds = match report.facts.get("kinds") {
        Some(Value::Object(kinds)) => kinds,
        Some(_) => {
            return writeln!(out, "  the database has no tables: what the role can run can't be said");
        }
        None => return Ok(()),
    };
    let able = |able: bool| {
        let names = kinds.iter().filter(|(_, value)| **value == Value::Bool(able)).map(|(kind, _)| kind.as_str());
        let names: Vec<&str> = names.collect();
        if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
    };
    match (able(true), able(false)) {
        (all, none) if none == "nothing" => writeln!(out, "  the role can run: {all}"),
        (some, others) => writeln!(out, "  the role can run: {some}; not: {others}"),
    }
}

/// Plain facts on a few lines, and tables for what there are many of.
fn print_facts(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let mut line = String::new();
    for (name, value) in &report.facts {
        let fact = match value {
            Value::String(text) => format!("{name} {}", if text.is_empty() { "-".to_owned() } else { harmless(text) }),
            Value::Number(_) | Value::Bool(_) => format!("{name} {value}"),
            _ => continue,
        };
        if line.len() + fact.len() > 110 {
            writeln!(out, "  {line}")?;
            line.clear();
        }
        let separator = if line.is_empty() { "" } else { ", " };
        line.push_str(separator);
        line.push_str(&fact);
    }
    if !line.is_empty() {
        writeln!(out, "  {line}")?;
    }
    print_kinds(report, out)?;
    let columns = |name: &str, keys: &[&str], most: usize| {
        let Some(Value::Object(rows)) = report.facts.get(name) else { return None };
        let mut rows: Vec<_> = rows.iter().collect();
        rows.sort_by_key(|(_, row)| std::cmp::Reverse(row.get("bytes").and_then(Value::as_i64)));
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(std::iter::once(name).chain(keys.iter().copied()));
        for (name, row) in rows.into_iter().take(most) {
            let cell = |key: &&str| match row.get(*key) {
                Some(Value::String(text)) => text.clone(),
                Some(Value::Null) | None => "-".to_owned(),
                Some(value) => value.to_string(),
            };
            table.add_row(std::iter::once(name.clone()).chain(keys.iter().map(cell)));
        }
        Some(table)
    };
    let tables = [
        columns("tables", &["bytes", "live_rows", "dead_rows", "vacuumed_at"], usize::MAX),
        columns("indexes", &["bytes", "entries"], INDEXES_SHOWN),
    ];
    for table in tables.into_iter().flatten() {
        for line in table.lines() {
            writeln!(out, "   {}", line.trim_end())?;
        }
    }
    Ok(())
}
