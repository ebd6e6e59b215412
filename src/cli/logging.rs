//! Log lines: for people, or one JSON object each, with the key-values of `log` and the thread that wrote it.

use std::io::Write;

use chrono::{SecondsFormat, Utc};
use log::kv::{Error, Key, Value, VisitSource};
use log::{LevelFilter, Log, Metadata, Record};
use serde_json::{Map, Value as Json};

use crate::cli::Failure;
use crate::config::{Config, LogFormat, LogJobs};
use crate::dsn::may_be_a_connection_string;
use crate::queue::record::report;

/// Starts to log as the settings say. Panics are logged too.
///
/// # Errors
/// When the filter can't be read.
pub fn start(config: &Config) -> Result<(), Failure> {
    let mut builder = env_logger::Builder::new();
    let filter = env_filter(&config.log)?;
    builder.parse_filters(filter);
    if config.log_format == LogFormat::Json {
        builder.format(|out, record| writeln!(out, "{}", json(record)));
    }
    let logger = builder.build();
    let level = logger.filter();
    let logger = Lines { logger, jobs: of_jobs(config.log_jobs) };
    log::set_boxed_logger(Box::new(logger)).map_err(|_| "logging was started twice")?;
    log::set_max_level(level);
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let place = panic.location().map_or_else(String::new, |at| format!("{}:{}", at.file(), at.line()));
        let text = panic.payload_as_str().unwrap_or("no text");
        log::error!(thread = thread.name().unwrap_or("?"), place = place.as_str(); "panic: {text}");
    }));
    Ok(())
}

/// What is left of the lines about jobs that ended.
fn of_jobs(setting: LogJobs) -> LevelFilter {
    match setting {
        LogJobs::All => LevelFilter::Trace,
        LogJobs::Failed => LevelFilter::Warn,
        LogJobs::None => LevelFilter::Off,
    }
}

/// What the filter lets through, less the lines about jobs that nobody wants. A filter by module would let through what
/// `log` keeps out.
struct Lines {
    logger: env_logger::Logger,
    jobs: LevelFilter,
}

impl Log for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        (metadata.target() != report::LOG_TARGET || metadata.level() <= self.jobs) && self.logger.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            self.logger.log(record);
        }
    }

    fn flush(&self) {
        self.logger.flush();
    }
}

/// Starts to log warnings to standard error, for subcommands without settings.
pub fn start_plain() {
    // Started twice, it goes on as it was.
    let _ = env_logger::Builder::new().filter_level(log::LevelFilter::Warn).try_init();
}

/// env_logger only prints what it can't read, and goes on without it.
fn env_filter(filter: &str) -> Result<&str, Failure> {
    if may_be_a_connection_string(filter) {
        return Err("log: expected levels; a connection string belongs elsewhere".into());
    }
    let directives = filter.split('/').next().unwrap_or_default().split(',').filter(|part| !part.trim().is_empty());
    for directive in directives {
        let level = directive.rsplit('=').next().unwrap_or_default().trim();
        let is_level = level.parse::<log::LevelFilter>().is_ok();
        let is_module =
            !directive.contains('=') && level.chars().all(|c| c.is_ascii_alphanumeric() || "_:".contains(c));
        if !is_level && (!is_module || directive == filter) {
            // Not repeated: whatever stands there may be meant for another setting.
            return Err("log: expected off, error, warn, info, debug or trace, or such levels by module".into());
        }
    }
    Ok(filter)
}

struct Fields<'m>(&'m mut Map<String, Json>);

impl<'kvs> VisitSource<'kvs> for Fields<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        let json = match (value.to_i64(), value.to_f64(), value.to_bool()) {
            (Some(number), _, _) => Json::from(number),
            (_, _, Some(truth)) => Json::from(truth),
            (_, Some(number), _) => Json::from(number),
            _ => Json::from(value.to_string()),
        };
        self.0.insert(key.as_str().to_owned(), json);
        Ok(())
    }
}

fn json(record: &log::Record<'_>) -> Json {
    let mut line = Map::new();
    let thread = std::thread::current();
    line.insert("thread".to_owned(), Json::from(thread.name().unwrap_or("?")));
    line.insert("thread_id".to_owned(), Json::from(nix::unistd::gettid().as_raw()));
    // A key that fails to be read is left out; the line is still worth having.
    let _ = record.key_values().visit(&mut Fields(&mut line));
    line.insert("time".to_owned(), Json::from(Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true)));
    line.insert("level".to_owned(), Json::from(record.level().as_str().to_ascii_lowercase()));
    line.insert("module".to_owned(), Json::from(record.target()));
    line.insert("message".to_owned(), Json::from(record.args().to_string()));
    Json::Object(line)
}
