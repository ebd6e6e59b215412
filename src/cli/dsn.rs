//! `slowlane dsn`: explains a connection string to a person, or to a program.
//!
//! Opens no connection. Prints a password only when it is asked for by name.

use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::process::ExitCode;

use serde::Serialize;

use crate::cli::Failure;
use crate::config;
use crate::dsn::{self, Change, DsnError, Reading, dialects};
use crate::pq;

/// The longest string that is read from standard input: 64 KiB.
const MAX_BYTES: u64 = 64 * 1024;

/// The arguments of `slowlane dsn`.
#[derive(clap::Args)]
#[command(
    after_help = "Exit status: 0 when it is libpq's own, 3 when it is translated, 4 when it is refused; of several \
                        lines, the highest."
)]
pub struct Explain {
    /// The connection string, or `-` for standard input. An argument can be seen by every user of this machine (ps):
    /// prefer `-` or --env
    #[arg(value_name = "STRING", required_unless_present = "env", conflicts_with = "env")]
    string: Option<String>,
    /// The environment variable that holds it
    #[arg(long, value_name = "NAME")]
    env: Option<String>,
    /// Print one JSON object
    #[arg(long, conflicts_with = "show_password")]
    json: bool,
    /// With `-`: one string a line, as a JSON string; one JSON object a line comes out
    #[arg(long, conflicts_with = "show_password")]
    lines: bool,
    /// Print the password too
    #[arg(long)]
    show_password: bool,
}

/// What a program is told.
#[derive(Serialize)]
struct Report {
    outcome: &'static str,
    code: Option<&'static str>,
    family: &'static str,
    driver: &'static str,
    asynchronous: Option<bool>,
    changes: Vec<Told>,
    conninfo: Option<String>,
    message: String,
}

#[derive(Serialize)]
struct Told {
    name: &'static str,
    text: String,
}

/// A string that was looked at, with what stands around it.
struct Looked {
    outcome: Result<Reading, DsnError>,
    around: Vec<Change>,
    /// The service couldn't be expanded, or a variable not be used.
    trouble: Option<DsnError>,
}

impl Looked {
    fn at(text: &str) -> Looked {
        let mut looked = Looked { outcome: dsn::read(text, pq::parameters()), around: Vec::new(), trouble: None };
        if let Ok(reading) = &mut looked.outcome {
            match reading.dsn.within(pq::surroundings(), pq::parameters(), &mut looked.around) {
                Ok(dsn) => reading.dsn = dsn,
                Err(error) => looked.trouble = Some(error),
            }
        }
        looked
    }

    fn word(&self) -> &'static str {
        match &self.outcome {
            Ok(reading) if reading.changes.is_empty() => "accept",
            Ok(_) => "translate",
            Err(_) => "refuse",
        }
    }

    fn status(&self) -> u8 {
        match self.word() {
            "accept" => 0,
            "translate" => 3,
            _ => 4,
        }
    }

    fn report(&self) -> Report {
        let driver = match &self.outcome {
            Ok(reading) => reading.driver,
            Err(error) => error.driver,
        };
        let told = |change: &Change| Told { name: change.name, text: change.text.clone() };
        let own = self.outcome.iter().flat_map(|reading| &reading.changes);
        let message = match &self.outcome {
            Ok(_) if self.trouble.is_some() => self.trouble.iter().map(ToString::to_string).collect(),
            Ok(reading) if reading.changes.is_empty() => "libpq reads it as it stands".to_owned(),
            Ok(reading) => format!("it was written for {driver}; right would be {}", reading.dsn.masked()),
            Err(error) => error.to_string(),
        };
        Report {
            outcome: self.word(),
            code: self.outcome.as_ref().err().map(|error| error.code.as_str()),
            family: driver.family(),
            driver: driver.name(),
            asynchronous: driver.asynchronous(),
            changes: own.chain(&self.around).map(told).collect(),
            conninfo: self.outcome.as_ref().ok().map(|reading| reading.dsn.masked_conninfo()),
            message,
        }
    }

    fn print(&self, out: &mut impl Write, with_password: bool) -> io::Result<()> {
        let paint = Paint(io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none());
        let report = self.report();
        let colour = match report.outcome {
            "accept" => "32",
            "translate" => "33",
            _ => "31",
        };
        writeln!(out, "{} {}", paint.of("1", "outcome:"), paint.of(colour, report.outcome))?;
        match &self.outcome {
            Ok(reading) => writeln!(out, "{} {}", paint.of("1", "written for:"), reading.driver)?,
            Err(error) => {
                writeln!(out, "{} {}", paint.of("1", "code:"), error.code.as_str())?;
                writeln!(out, "{} {}", paint.of("1", "written for:"), error.driver)?;
                writeln!(out, "{} {}", paint.of("1", "what is wrong:"), error.message)?;
                writeln!(out, "{} {}", paint.of("1", "right would be:"), error.right)?;
                return Ok(());
            }
        }
        if !report.changes.is_empty() {
            writeln!(out, "{}", paint.of("1", "changes:"))?;
            for change in &report.changes {
                writeln!(out, "  {}: {}", change.name, change.text)?;
            }
        }
        if let Some(trouble) = &self.trouble {
            writeln!(out, "{} {}", paint.of("31", "but:"), trouble.message)?;
        }
        writeln!(out, "{}", paint.of("1", "the same database:"))?;
        for rendering in self.outcome.iter().flat_map(|reading| dialects::all(&reading.dsn, with_password)) {
            let text = rendering.text.as_deref().unwrap_or("(can't be reached by it)");
            writeln!(out, "  {}\n    {text}", rendering.name)?;
            if !rendering.lost.is_empty() && rendering.text.is_some() {
                writeln!(out, "    without {}, for which it has no words", rendering.lost.join(", "))?;
            }
        }
        Ok(())
    }
}

/// Colours where a terminal shows them.
struct Paint(bool);

impl Paint {
    fn of(&self, code: &str, text: &str) -> String {
        if self.0 { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

impl Explain {
    /// Explains it.
    ///
    /// # Errors
    /// When there is nothing to read.
    pub fn run(self) -> Result<ExitCode, Failure> {
        let stdin = self.string.as_deref() == Some("-");
        if self.lines {
            return if stdin { lines() } else { Err("--lines reads standard input: give `-`".into()) };
        }
        let text = match (&self.env, &self.string) {
            (Some(name), _) => {
                config::variable(name).ok_or("the environment variable that --env names is not set, or is empty")?
            }
            (None, Some(_)) if stdin => {
                let mut text = String::new();
                let read = io::stdin().lock().take(MAX_BYTES).read_to_string(&mut text);
                read.map_err(|_| "standard input is no text")?;
                without_line_end(&text).to_owned()
            }
            (None, text) => text.clone().unwrap_or_default(),
        };
        let looked = Looked::at(&text);
        let mut out = io::stdout().lock();
        let written = match self.json {
            true => writeln!(out, "{}", serde_json::to_string(&looked.report())?),
            false => looked.print(&mut out, self.show_password),
        };
        ended(written, looked.status())
    }
}

/// The end of a file's last line is the file's, and no part of the string.
fn without_line_end(text: &str) -> &str {
    let text = text.strip_suffix('\n').unwrap_or(text);
    text.strip_suffix('\r').unwrap_or(text)
}

/// Whoever reads no more has seen enough.
fn ended(written: io::Result<()>, status: u8) -> Result<ExitCode, Failure> {
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::from(status)),
    }
}

fn lines() -> Result<ExitCode, Failure> {
    let mut highest = 0;
    let mut out = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let line = line.map_err(|_| "standard input is no text")?;
        if line.trim().is_empty() {
            continue;
        }
        let text: String = serde_json::from_str(&line).map_err(|_| "a line isn't a JSON string")?;
        let looked = Looked::at(&text);
        highest = highest.max(looked.status());
        if let Err(error) = writeln!(out, "{}", serde_json::to_string(&looked.report())?) {
            return ended(Err(error), highest);
        }
    }
    Ok(ExitCode::from(highest))
}
