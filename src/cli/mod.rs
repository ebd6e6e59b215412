//! The command line: one file per subcommand. Wires the rooms together, and is the only one that knows them all.

pub mod demo;
pub mod dev;
pub mod doctor;
pub mod dsn;
pub mod logging;
pub mod migrate;
pub mod private;
pub mod probe;
pub mod serve;
pub mod statements;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::{self, Config, Connections, DsnReader, File, Settings};
use crate::dsn::{is_plain, may_be_a_connection_string, plain_or};
use crate::pq;

/// What a subcommand fails with: one line for people.
pub type Failure = Box<dyn Error + Send + Sync>;

/// Heavy Postgres work, out of the request path.
#[derive(Parser)]
#[command(name = "slowlane", version, about, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve HTTP and run jobs, on the databases that the settings name
    Serve(serve::Serve),
    /// Serve on a private Postgres with demo data, made for you and gone with the process
    Dev(dev::Dev),
    /// See or apply migrations of the queue's schema
    #[command(subcommand)]
    Migrate(migrate::Migrate),
    /// See what heavy work does to a web server; or load the demo's data into a database of yours
    #[command(subcommand)]
    Demo(demo::Demo),
    /// Explain a connection string: for whom it was written, what it means to libpq, and how others write it
    Dsn(dsn::Explain),
    /// Ask a running slowlane how it is: ends with 0 when it is well, and with 1 otherwise
    Probe(probe::Probe),
    /// Look at the queue and the targets, and say what is wrong and what to do
    Doctor(doctor::Doctor),
    /// See whether a folder of saved statements can be used
    #[command(subcommand)]
    Statements(statements::Statements),
    /// Say which version this is
    Version,
}

/// Where settings come from: the same for every subcommand that has any.
#[derive(clap::Args)]
struct Sources {
    /// The settings' file [default: slowlane.toml, where it is there]
    #[arg(long, env = "SLOWLANE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

impl Sources {
    /// Reads the file, completes the settings, and starts to log as they say.
    fn read(self) -> Result<(Config, File), Failure> {
        let file = File::read(self.config.as_deref())?;
        let config = self.settings.resolve(&file)?;
        logging::start(&config)?;
        Ok((config, file))
    }
}

fn warn_of_unknown_variables(connections: &Connections, file: &File) {
    for name in config::unknown_variables(connections, file) {
        let similar = config::similar_variable(&name).map_or_else(String::new, |similar| format!(": is it {similar}?"));
        let name = plain_or(&name, "of another name");
        log::warn!("the environment variable {name} is no setting of slowlane, and has no effect{similar}");
    }
}

/// A folder that something is made in, or that is shown. A connection string in its place would be both.
fn folder(path: PathBuf) -> Result<PathBuf, Failure> {
    match is_plain(&path.display().to_string().replace(' ', "")) {
        true => Ok(path),
        false => {
            Err("a folder is expected where something stands that may be a connection string: its name has letters, \
                      digits, blanks, `/`, `.`, `_`, `-`, `~` and `+`"
                .into())
        }
    }
}

/// `1 error`, `2 errors`.
fn counted(n: usize, what: &str) -> String {
    let ending = if n == 1 { "" } else { "s" };
    format!("{n} {what}{ending}")
}

/// The command line as clap has it, for tests that try every argument.
pub fn command() -> clap::Command {
    Cli::command()
}

/// A variable that is set to nothing counts as unset: compose files pass such on.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    let is_empty = |arg: &clap::Arg| arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
    let command = command.mut_args(|arg| if is_empty(&arg) { arg.env(Resettable::Reset) } else { arg });
    command.mut_subcommands(without_empty_variables)
}

fn dsn_reader(strict: bool) -> DsnReader<'static> {
    DsnReader { table: pq::parameters(), surroundings: pq::surroundings(), strict }
}

/// For subcommands without settings of their own: `SLOWLANE_DSN_STRICT`, then the file; what is read is logged.
fn plain_dsn_reader(file: &File) -> Result<DsnReader<'static>, Failure> {
    logging::start_plain();
    let strict = match config::variable("SLOWLANE_DSN_STRICT") {
        Some(text) => text.parse().map_err(|_| "SLOWLANE_DSN_STRICT: expected true or false")?,
        None => file.settings.dsn_strict.unwrap_or(false),
    };
    Ok(dsn_reader(strict))
}

/// What is expected of a number or an address, which Rust says in its own terms.
fn in_own_words(why: &str) -> &str {
    match why {
        "invalid digit found in string"
        | "number too large to fit in target type"
        | "cannot parse integer from empty string" => "expected a whole number",
        "invalid socket address syntax" => "expected an address and a port, such as 127.0.0.1:8080",
        other => other,
    }
}

/// clap repeats what it doesn't understand, and the values of variables that it can't use: any of them may be a
/// connection string, or a piece of one, in the wrong place. What is known to be ours is named, and nothing else.
fn refuse_arguments(error: &clap::Error) -> ! {
    let named = |kind: ContextKind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let flag = named(ContextKind::InvalidArg);
    let text = match error.kind() {
        ErrorKind::UnknownArgument => {
            let is_flag = |text: &&str| {
                text.strip_prefix("--").is_some_and(|name| name.chars().all(|c| c.is_ascii_lowercase() || c == '-'))
            };
            let what = flag.filter(is_flag).map_or("an argument".to_owned(), |flag| format!("the flag {flag}"));
            let similar =
                named(ContextKind::SuggestedArg).map_or(String::new(), |similar| format!(": is it {similar}?"));
            let pieces = std::env::args_os().skip(1).any(|text| may_be_a_connection_string(&text.to_string_lossy()));
            let pieces = match pieces {
                true => "; a connection string is one argument, in quotes, or better a variable",
                false => "",
            };
            format!("{what} isn't known here{similar}{pieces}")
        }
        ErrorKind::InvalidSubcommand => "there is no such subcommand".to_owned(),
        ErrorKind::ValueValidation | ErrorKind::InvalidValue | ErrorKind::InvalidUtf8 => {
            let why = match error.get(ContextKind::ValidValue) {
                Some(ContextValue::Strings(words)) if !words.is_empty() => {
                    format!(": it is one of {}", words.join(", "))
                }
                _ => error.source().map_or(String::new(), |why| format!(": {}", in_own_words(&why.to_string()))),
            };
            format!("the value of {} (or of its variable) can't be used{why}", flag.unwrap_or("an argument"))
        }
        ErrorKind::TooManyValues | ErrorKind::TooFewValues | ErrorKind::WrongNumberOfValues | ErrorKind::NoEquals => {
            format!("{} has too many values, or too few", flag.unwrap_or("an argument"))
        }
        // These name arguments as they are defined, and repeat none.
        _ => error.exit(),
    };
    eprintln!("slowlane: {text}; see --help");
    std::process::exit(2);
}

/// Reads the command line and does what it says.
pub fn main() -> ExitCode {
    // Before there is a second thread.
    pq::take_surroundings();
    let command = without_empty_variables(Cli::command());
    let matches = command.try_get_matches().unwrap_or_else(|error| refuse_arguments(&error));
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| refuse_arguments(&error));
    let outcome = match cli.command {
        Command::Serve(serve) => serve.run(),
        Command::Dev(dev) => dev.run(),
        Command::Migrate(migrate) => migrate.run(),
        Command::Demo(demo) => demo.run(),
        Command::Dsn(explain) => match explain.run() {
            Ok(status) => return status,
            Err(failure) => Err(failure),
        },
        Command::Doctor(doctor) => match doctor.run() {
            Ok(status) => return status,
            Err(failure) => Err(failure),
        },
        Command::Statements(statements) => match statements.run() {
            Ok(status) => return status,
            Err(failure) => Err(failure),
        },
        Command::Probe(probe) => probe.run(),
        Command::Version => {
            println!("slowlane {} (libpq {})", env!("CARGO_PKG_VERSION"), crate::pq::libpq_version() / 10_000);
            Ok(())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("slowlane: {failure}");
            ExitCode::FAILURE
        }
    }
}
