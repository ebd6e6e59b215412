//! Why a process can't be started, migrated or served. Each says what to do; none holds a connection string.

use std::error::Error;

use crate::config::ConfigError;
use crate::db::DbError;
use crate::db::migrations::MigrateError;
use crate::db::roles;
use crate::http::ListenError;
use crate::statements::UnreadableFolder;
use crate::target::TargetError;

/// Why a server or workers can't be started, or ended otherwise than by being asked to stop.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppError {
    /// A setting or a connection string can't be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// It would be reachable from other machines without a token.
    #[error(transparent)]
    Unguarded(#[from] ListenError),
    /// An address can't be listened on.
    #[error("{0}")]
    Listen(String),
    /// The queue's database can't be used.
    #[error(transparent)]
    Queue(#[from] DbError),
    /// The queue's schema can't be used, or not be migrated.
    #[error(transparent)]
    Schema(#[from] MigrateError),
    /// The queue's schema is older than this build.
    #[error("the queue's schema lacks migrations ({0}): run `slowlane migrate up`, or call slowlane::migrate")]
    SchemaBehind(String),
    /// The role may not use the queue's schema.
    #[error(
        "the role {role} may not use the queue's schema, slowlane: run `slowlane migrate up --service-role {word}` with a login of \
         its owner, {owner}, which grants it what a service needs",
        word = roles::shell_word(role)
    )]
    ServiceRole {
        /// The role that the connection string names.
        role: String,
        /// Who owns the schema.
        owner: String,
    },
    /// The role can't migrate.
    #[error("{0}")]
    Migrator(String),
    /// A role that is to be granted something doesn't exist.
    #[error("there is no role {0}, which was to be granted rights: create it first")]
    NoSuchRole(String),
    /// A database that work runs on can't be used.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The folder of saved statements can't be read.
    #[error(transparent)]
    Statements(#[from] UnreadableFolder),
    /// What the caller does before serving failed.
    #[error("{0}")]
    Preparing(Box<dyn Error + Send + Sync>),
    /// The system refused a thread, a socket or a signal handler.
    #[error(transparent)]
    System(#[from] std::io::Error),
    /// It was called on a thread of an async runtime, which must not be blocked.
    #[error("this thread belongs to an async runtime: call start() instead, or run it on a thread of its own")]
    WithinRuntime,
    /// It was asked to stop while it still waited for the queue.
    #[error("it was asked to stop before it had started")]
    Stopped,
    /// A thread ended that must not end.
    #[error("{0}")]
    Died(&'static str),
}

impl AppError {
    /// A thread panicked that the process needs.
    pub(crate) fn died() -> AppError {
        AppError::Died("a thread that the process needs has panicked; the log says why")
    }
}
