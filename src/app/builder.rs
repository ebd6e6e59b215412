//! What a program says of the server or the workers that it wants. Nothing is opened before [`ServerBuilder::build`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::app::AppError;
use crate::app::process::{Listeners, Parts};
use crate::app::server::{Server, Workers};
use crate::config::{self, Config, ConfigError, DsnReader, RefusedTarget};
use crate::dsn::{Dsn, Secret};
use crate::pq;
use crate::target::{TargetSettings, TargetSpec};
use crate::work::{Registry, Work};

/// Where a database is: a connection string, or the environment variable that holds one.
///
/// A string may be written for any driver; one that isn't libpq's own is translated, and the change is logged.
/// Printing it shows no password.
///
/// ```
/// use slowlane::DatabaseUrl;
///
/// let given = DatabaseUrl::from("postgresql+asyncpg://app:s3cret@db.example/app");
/// let named = DatabaseUrl::env("REPORTS_URL");
/// let slip = DatabaseUrl::env("postgresql://app:s3cret@db.example/app");
/// assert!(!format!("{given:?} {named:?} {slip:?}").contains("s3cret"));
/// ```
#[derive(Clone, Debug)]
pub struct DatabaseUrl(Place);

#[derive(Clone)]
enum Place {
    Text(Secret),
    Variable(String),
    Parsed(Box<Dsn>),
}

/// A connection string is easily given in the place of a variable's name: only what can be one is shown.
impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Text(text) => f.debug_tuple("Text").field(text).finish(),
            Place::Variable(name) if name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') => {
                f.debug_tuple("Variable").field(name).finish()
            }
            Place::Variable(_) => f.write_str("Variable(***)"),
            Place::Parsed(dsn) => f.debug_tuple("Parsed").field(dsn).finish(),
        }
    }
}

impl DatabaseUrl {
    /// What the environment variable `name` holds when the server is built.
    pub fn env(name: &str) -> DatabaseUrl {
        DatabaseUrl(Place::Variable(name.to_owned()))
    }

    /// What it means to libpq, with libpq's own variables in effect. `setting` names it in messages.
    pub(super) fn read(self, setting: &str, strict: bool) -> Result<Dsn, ConfigError> {
        let reader = DsnReader { table: pq::parameters(), surroundings: pq::surroundings(), strict };
        match self.0 {
            Place::Parsed(dsn) => Ok(*dsn),
            Place::Text(text) => reader.read(setting, text.expose()),
            Place::Variable(name) => reader.read_variable(setting, &name),
        }
    }
}

impl From<&str> for DatabaseUrl {
    fn from(text: &str) -> DatabaseUrl {
        DatabaseUrl(Place::Text(Secret::new(text)))
    }
}

impl From<String> for DatabaseUrl {
    fn from(text: String) -> DatabaseUrl {
        DatabaseUrl(Place::Text(Secret::new(text)))
    }
}

impl From<Dsn> for DatabaseUrl {
    fn from(dsn: Dsn) -> DatabaseUrl {
        DatabaseUrl(Place::Parsed(Box::new(dsn)))
    }
}

impl From<&Dsn> for DatabaseUrl {
    fn from(dsn: &Dsn) -> DatabaseUrl {
        DatabaseUrl::from(dsn.clone())
    }
}

/// A database that work runs on.
///
/// ```
/// use slowlane::target::TargetSpec;
/// use slowlane::{DatabaseUrl, Target};
///
/// let mut target = Target::at(DatabaseUrl::env("REPORTS_URL"));
/// target.spec = TargetSpec { read_only: true, work_mem: Some("256MB".to_owned()), ..TargetSpec::default() };
/// ```
#[derive(Clone, Debug)]
pub struct Target {
    /// Where it is. Its role is one of its own: no superuser, and without any right on the schema `slowlane`.
    pub url: DatabaseUrl,
    /// What it is told.
    pub spec: TargetSpec,
}

impl Target {
    /// A target with nothing said but where it is.
    pub fn at(url: impl Into<DatabaseUrl>) -> Target {
        Target { url: url.into(), spec: TargetSpec::default() }
    }

    fn read(self, name: &str, strict: bool) -> Result<TargetSettings, ConfigError> {
        Ok(TargetSettings { dsn: self.url.read(&format!("target {name}"), strict)?, spec: self.spec })
    }
}

impl From<TargetSettings> for Target {
    fn from(settings: TargetSettings) -> Target {
        Target { url: settings.dsn.into(), spec: settings.spec }
    }
}

impl<U: Into<DatabaseUrl>> From<U> for Target {
    fn from(url: U) -> Target {
        Target::at(url)
    }
}

/// A target as far as it was said.
#[derive(Default)]
struct GivenTarget {
    target: Option<Target>,
    /// Why it isn't known where it is.
    refused: Option<RefusedTarget>,
    statements_only: bool,
}

/// What both builders gather.
struct Given {
    config: Config,
    queue: Option<DatabaseUrl>,
    /// Where no jobs are run, a name and whether it runs saved statements only are enough.
    targets: BTreeMap<String, GivenTarget>,
    registry: Registry,
}

impl Default for Given {
    fn default() -> Given {
        Given { config: Config::default(), queue: None, targets: BTreeMap::new(), registry: crate::kinds::standard() }
    }
}

impl Given {
    fn parts(self) -> Result<Parts, AppError> {
        self.config.check()?;
        let listeners = Listeners::open(&self.config)?;
        self.parts_on(listeners)
    }

    fn parts_on(self, listeners: Listeners) -> Result<Parts, AppError> {
        let Given { config, queue, targets: given, registry } = self;
        let registry = match &config.statements {
            Some(folder) => registry.with_statements(folder)?,
            None => registry,
        };
        let queue = match queue {
            Some(url) => url.read("the queue", config.dsn_strict)?,
            None => surrounding_queue()?.read("the queue", config.dsn_strict)?,
        };
        let mut targets = BTreeMap::new();
        let mut refused = BTreeMap::new();
        let mut target_names = BTreeMap::new();
        for (name, given) in given {
            config::check_target_name(&name)?;
            target_names.insert(name.clone(), given.statements_only);
            match given.target {
                // Who runs no jobs needs no way to where they run.
                _ if !config.roles.workers => {}
                Some(target) => match target.read(&name, config.dsn_strict) {
                    Ok(target) => drop(targets.insert(name.clone(), target)),
                    Err(error) if config.start_without_targets => {
                        drop(refused.insert(name.clone(), RefusedTarget::from(&error)));
                    }
                    Err(error) => return Err(error.into()),
                },
                None if given.refused.is_some() => drop(given.refused.map(|why| refused.insert(name.clone(), why))),
                None => {
                    let why = format!("workers need to know where the target {name} is: call target(\"{name}\", …)");
                    return Err(ConfigError::Missing(why).into());
                }
            }
        }
        if target_names.is_empty() {
            let why = "no database is named that work runs on: call target(\"default\", …)";
            return Err(ConfigError::Missing(why.to_owned()).into());
        }
        for (name, refused) in &refused {
            log::error!("target {name}: {refused}; its jobs wait, and the others run");
        }
        Ok(Parts { config, queue, target_names, targets, refused, registry, listeners })
    }
}

fn surrounding_queue() -> Result<DatabaseUrl, ConfigError> {
    let names = ["SLOWLANE_DATABASE_URL", "DATABASE_URL"];
    let set = names.into_iter().find(|name| config::variable(name).is_some());
    set.map(DatabaseUrl::env).ok_or_else(|| {
        ConfigError::Missing(
            "no database is named for the queue: call queue(…), or set SLOWLANE_DATABASE_URL".to_owned(),
        )
    })
}

/// What is said in the same words of servers and of workers.
macro_rules! said_of_both {
    () => {
        /// The queue's database, as the role of the service. Defaults to what `SLOWLANE_DATABASE_URL` holds, then
        /// `DATABASE_URL`.
        pub fn queue(mut self, url: impl Into<DatabaseUrl>) -> Self {
            self.given.queue = Some(url.into());
            self
        }

        /// A database that work runs on, by the name that jobs give it. At least one is needed; jobs that name none run
        /// on `default`.
        pub fn target(mut self, name: &str, target: impl Into<Target>) -> Self {
            let target = target.into();
            let statements_only = target.spec.statements_only;
            self.given
                .targets
                .insert(name.to_owned(), GivenTarget { target: Some(target), refused: None, statements_only });
            self
        }

        /// Adds a kind of work to [`kinds::standard`](crate::kinds::standard).
        pub fn kind<W: Work>(mut self) -> Self {
            self.given.registry = self.given.registry.with::<W>();
            self
        }

        /// The kinds that it knows, instead of the standard ones and of those added so far.
        pub fn registry(mut self, registry: Registry) -> Self {
            self.given.registry = registry;
            self
        }

        /// Every setting at once, instead of those said so far: such as those that a program reads from flags.
        pub fn config(mut self, config: Config) -> Self {
            self.given.config = config;
            self
        }

        /// The queues that it serves. Defaults to `default`.
        pub fn queues(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
            self.given.config.queues = names.into_iter().map(Into::into).collect();
            self
        }

        /// Threads that run jobs, and connections to each target. Defaults to 8.
        pub fn workers(mut self, threads: u32) -> Self {
            self.given.config.workers = threads;
            self
        }

        /// A second address, for `/healthz`, `/readyz` and `/metrics` alone. Defaults to none.
        pub fn probe_listen(mut self, address: impl Into<SocketAddr>) -> Self {
            self.given.config.probe_listen = Some(address.into());
            self
        }

        /// What requests must carry as `Authorization: Bearer …`. Without one it listens on loopback only.
        pub fn api_token(mut self, token: impl Into<String>) -> Self {
            self.given.config.api_token = Some(Secret::new(token));
            self
        }

        /// A name that `Host` may carry beside loopback names and the listen address; may be repeated.
        pub fn allowed_host(mut self, name: impl Into<String>) -> Self {
            self.given.config.allowed_hosts.push(name.into());
            self
        }

        /// Whether other processes are woken by NOTIFY, and this one by theirs. Defaults to yes; without it they poll.
        pub fn notify(mut self, notify: bool) -> Self {
            self.given.config.notify = notify;
            self
        }

        /// How long records of finished jobs are kept. Defaults to 30 days.
        pub fn retention(mut self, kept: Duration) -> Self {
            self.given.config.retention = kept;
            self
        }

        /// How long running jobs may take to end after the first request to stop. Defaults to 30 s.
        pub fn shutdown_grace(mut self, grace: Duration) -> Self {
            self.given.config.shutdown_grace = grace;
            self
        }

        /// How long a start waits for a queue's database that can't be reached. Defaults to 60 s.
        pub fn wait_for_queue(mut self, longest: Duration) -> Self {
            self.given.config.wait_for_queue = longest;
            self
        }

        /// Starts although a target is wrong for good, such as a role that is too strong: its jobs wait until that is
        /// mended. One that can't be reached never ends a start. Defaults to no.
        pub fn start_without_targets(mut self, start: bool) -> Self {
            self.given.config.start_without_targets = start;
            self
        }

        /// The folder of saved statements, which callers run by their names. Defaults to none.
        pub fn statements(mut self, folder: impl Into<PathBuf>) -> Self {
            self.given.config.statements = Some(folder.into());
            self
        }

        /// Refuses a connection string that would have to be translated. Defaults to no.
        pub fn dsn_strict(mut self, strict: bool) -> Self {
            self.given.config.dsn_strict = strict;
            self
        }
    };
}

/// Builds a [`Server`].
#[derive(Default)]
#[must_use = "nothing is started before build() or run()"]
pub struct ServerBuilder {
    given: Given,
}

impl ServerBuilder {
    said_of_both!();

    /// Where HTTP is served; port 0 takes any that is free. Defaults to 127.0.0.1:8080; beyond loopback only with a
    /// token.
    pub fn listen(mut self, address: impl Into<SocketAddr>) -> Self {
        self.given.config.listen = address.into();
        self
    }

    /// Serves HTTP only: jobs are run by other processes. Of a target, its name is then all that is used.
    pub fn without_workers(mut self) -> Self {
        self.given.config.roles.workers = false;
        self
    }

    /// A target of which isn't known where it is: the server starts, and its jobs wait.
    pub(crate) fn refused_target(mut self, name: &str, why: RefusedTarget) -> Self {
        self.given.targets.entry(name.to_owned()).or_default().refused = Some(why);
        self
    }

    /// The name of a target that only other processes reach, for a server without workers.
    pub fn target_name(mut self, name: &str) -> Self {
        self.given.targets.entry(name.to_owned()).or_default();
        self
    }

    /// As [`target_name`](ServerBuilder::target_name), of a target that runs saved statements only.
    pub fn target_name_for_statements(mut self, name: &str) -> Self {
        self.given.targets.entry(name.to_owned()).or_default().statements_only = true;
        self
    }

    /// How long a request waits for the database; then it is told so. Defaults to 2 s.
    pub fn api_statement_timeout(mut self, longest: Duration) -> Self {
        self.given.config.api_statement_timeout = longest;
        self
    }

    /// Bytes of stored results above which jobs with results are refused. Defaults to 20 GiB.
    pub fn result_store_bytes(mut self, bytes: i64) -> Self {
        self.given.config.result_store_bytes = bytes;
        self
    }

    /// Checks what was said, and listens. No database is asked yet.
    ///
    /// # Errors
    /// For a setting, a connection string or an address that can't be used.
    pub fn build(self) -> Result<Server, AppError> {
        Server::of(self.given.parts()?)
    }

    /// [`build`](ServerBuilder::build) and [`Server::run`].
    ///
    /// # Errors
    /// Those of both.
    pub fn run(self) -> Result<(), AppError> {
        self.build()?.run()
    }

    /// Its parts, on addresses that are listened on already.
    pub(crate) fn parts_on(self, listeners: Listeners) -> Result<Parts, AppError> {
        self.given.parts_on(listeners)
    }
}

/// Builds [`Workers`].
#[derive(Default)]
#[must_use = "nothing is started before build() or run()"]
pub struct WorkersBuilder {
    given: Given,
}

impl WorkersBuilder {
    said_of_both!();

    /// Checks what was said. No database is asked yet.
    ///
    /// # Errors
    /// For a setting, a connection string or an address that can't be used.
    pub fn build(mut self) -> Result<Workers, AppError> {
        self.given.config.roles.http = false;
        Workers::of(self.given.parts()?)
    }

    /// [`build`](WorkersBuilder::build) and [`Workers::run`].
    ///
    /// # Errors
    /// Those of both.
    pub fn run(self) -> Result<(), AppError> {
        self.build()?.run()
    }
}

impl Server {
    /// Says what a server is to be.
    pub fn builder() -> ServerBuilder {
        ServerBuilder::default()
    }
}

impl Workers {
    /// Says what workers are to be.
    pub fn builder() -> WorkersBuilder {
        WorkersBuilder::default()
    }
}
