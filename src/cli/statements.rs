//! `slowlane statements check`: whether a folder of saved statements can be used, and what each would meet on its
//! target.
//!
//! For a deployment, before the files reach a server. Asks the targets alone: no queue is needed, and nothing is run.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use serde::Serialize;

use crate::cli::{Failure, Sources, counted, dsn_reader, folder};
use crate::config::{ConfigError, Connections};
use crate::dsn::path_or;
use crate::kinds::{self, saved_statements as check};
use crate::pq::Session;
use crate::statements::{FileName, Loaded, Statement};
use crate::target::TargetSettings;
use crate::target::sessions;
use crate::work::WorkError;

/// The subcommands of `slowlane statements`.
#[derive(Subcommand)]
pub enum Statements {
    /// Read a folder of saved statements, and ask each one's target whether it can be parsed, may be run, and how
    Check(Check),
}

/// The arguments of `slowlane statements check`.
#[derive(clap::Args)]
#[command(
    after_help = "Exit status: 0 when every statement can be used, 3 when it is uncertain of one, 4 when one can't, 1 when a target \
                        could not be asked."
)]
pub struct Check {
    #[command(flatten)]
    sources: Sources,
    #[command(flatten)]
    connections: Connections,
    /// The folder [default: the setting statements]
    #[arg(value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What a program is told.
#[derive(Serialize)]
struct Report<'l> {
    folder: String,
    valid: bool,
    statements: Vec<Looked<'l>>,
    broken: Vec<BrokenFile<'l>>,
}

#[derive(Serialize)]
struct BrokenFile<'l> {
    file: &'l FileName,
    line: usize,
    message: &'l str,
}

#[derive(Serialize)]
struct Looked<'l> {
    name: &'l str,
    file: &'l FileName,
    kind: &'static str,
    target: &'l str,
    version: &'l str,
    valid: bool,
    /// The settings don't name its target.
    unknown_target: bool,
    /// Its target could not be asked, for this reason.
    not_asked: Option<String>,
    #[serde(flatten)]
    checked: check::Checked,
}

/// The sessions with the targets, opened when they are first needed, or why there is none.
struct Targets {
    configured: BTreeMap<String, Result<TargetSettings, ConfigError>>,
    open: BTreeMap<String, Result<Session, String>>,
}

impl Targets {
    /// A session, and whether it can only read. `None` for a target that the settings don't name.
    fn session(&mut self, name: &str) -> Option<Result<(&mut Session, bool), String>> {
        let target = match self.configured.get(name)? {
            Ok(target) => target,
            Err(error) => return Some(Err(error.to_string())),
        };
        let open = || sessions::open_alone(&target.dsn, "slowlane statements check").map_err(|error| error.to_string());
        let session = self.open.entry(name.to_owned()).or_insert_with(open);
        Some(session.as_mut().map(|session| (session, target.spec.read_only)).map_err(|error| error.clone()))
    }
}

impl Statements {
    /// Does what it says.
    ///
    /// # Errors
    /// When the folder can't be read, or a target not be asked.
    pub fn run(self) -> Result<ExitCode, Failure> {
        let Statements::Check(check) = self;
        check.run()
    }
}

impl Check {
    fn run(self) -> Result<ExitCode, Failure> {
        let (config, file) = self.sources.read()?;
        let folder = self.folder.map(folder).transpose()?.or(config.statements).ok_or(
            "no folder of saved statements is named: give one as argument, or set statements in slowlane.toml",
        )?;
        let registry = kinds::standard().with_statements(&folder)?;
        let loaded = registry.loaded().ok_or("the folder of saved statements could not be read")?;
        let configured = self.connections.each_target(&file, dsn_reader(config.dsn_strict))?;
        let mut targets = Targets { configured, open: BTreeMap::new() };
        let mut statements = Vec::new();
        for saved in loaded.statements.values() {
            statements.push(look(&mut targets, saved));
        }
        let report = Report {
            folder: path_or(&folder, "the folder that is named"),
            valid: loaded.broken.is_empty() && statements.iter().all(|looked| looked.valid),
            statements,
            broken: broken(&loaded),
        };
        let mut out = io::stdout().lock();
        let written = match self.json {
            true => writeln!(out, "{}", serde_json::to_string(&report)?),
            false => report.print(&mut out),
        };
        match written {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(ExitCode::from(report.status())),
        }
    }
}

fn broken(loaded: &Loaded) -> Vec<BrokenFile<'_>> {
    let files = loaded.broken.iter();
    files
        .map(|broken| BrokenFile { file: &broken.file, line: broken.error.line, message: &broken.error.message })
        .collect()
}

fn look<'l>(targets: &mut Targets, saved: &'l Statement) -> Looked<'l> {
    let asked = targets.session(&saved.target);
    let unknown_target = asked.is_none();
    let checked = asked.unwrap_or(Err(String::new())).and_then(|(session, read_only)| {
        check::check(session, saved, read_only).map_err(|error| match error {
            WorkError::Retry(error) | WorkError::Unavailable(error) => error.to_string(),
            _ => "it could not be asked".to_owned(),
        })
    });
    Looked {
        name: &saved.name,
        file: &saved.file,
        kind: saved.kind.as_str(),
        target: &saved.target,
        version: &saved.version,
        valid: checked.as_ref().is_ok_and(check::Checked::is_valid),
        unknown_target,
        not_asked: checked.as_ref().err().filter(|_| !unknown_target).cloned(),
        checked: checked.unwrap_or_default(),
    }
}

impl Looked<'_> {
    /// Something may stand in its way.
    fn is_uncertain(&self) -> bool {
        self.valid && !self.checked.findings.is_empty()
    }
}

impl Report<'_> {
    fn status(&self) -> u8 {
        match () {
            () if !self.broken.is_empty() => 4,
            () if self.statements.iter().any(|looked| !looked.valid && looked.not_asked.is_none()) => 4,
            () if self.statements.iter().any(|looked| looked.not_asked.is_some()) => 1,
            () if self.statements.iter().any(Looked::is_uncertain) => 3,
            () => 0,
        }
    }

    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        for looked in &self.statements {
            let word = match looked.valid {
                true if looked.is_uncertain() => "perhaps",
                true => "ok",
                false => "FAILED",
            };
            let cost: f64 = looked.checked.plans.iter().filter_map(|plan| plan.estimated_cost).sum();
            let planned = if looked.checked.plans.is_empty() {
                String::new()
            } else {
                format!(", planned at a cost of {cost:.0}")
            };
            writeln!(out, "{word:7} {} ({} on {}{planned})", looked.name, looked.kind, looked.target)?;
            if looked.unknown_target {
                writeln!(out, "        {}: the settings name no target {}", looked.file, looked.target)?;
            }
            if let Some(why) = &looked.not_asked {
                writeln!(out, "        the target {} could not be asked: {why}", looked.target)?;
            }
            if !looked.checked.unplanned.is_empty() {
                let lines: Vec<String> = looked.checked.unplanned.iter().map(ToString::to_string).collect();
                writeln!(out, "        {}: of line {} only the syntax was looked at", looked.file, lines.join(", "))?;
            }
            for finding in &looked.checked.findings {
                let perhaps = if finding.uncertain { "perhaps: " } else { "" };
                writeln!(out, "        {}:{}: {perhaps}{}", looked.file, finding.line, finding.error)?;
                for more in finding.error.detail.iter().chain(&finding.error.hint) {
                    writeln!(out, "          {more}")?;
                }
            }
        }
        for broken in &self.broken {
            writeln!(out, "FAILED  {}:{}: {}", broken.file, broken.line, broken.message)?;
        }
        let failed = self.statements.iter().filter(|looked| !looked.valid).count() + self.broken.len();
        let uncertain = self.statements.iter().filter(|looked| looked.is_uncertain()).count();
        let of_all = format!("{} in {}", counted(self.statements.len(), "saved statement"), self.folder);
        match failed {
            0 if uncertain == 0 => writeln!(out, "{of_all}: all can be used"),
            0 => writeln!(
                out,
                "{of_all}: nothing stands in their way for certain; of {uncertain} it can't be known before they run"
            ),
            n => writeln!(out, "{n} of {} in {} can't be used", self.statements.len() + self.broken.len(), self.folder),
        }
    }
}
