//! The databases when a process starts: the queue is waited for, and each target is looked at.
//!
//! A queue that can't be reached is waited for, because nothing can be done without it. A target that can't be reached
//! holds nothing up: the jobs of the others run, and its own wait until it is back. What is wrong for good ends the
//! start, so that a mistake in a setting is seen by whoever made it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::pg::PgConnection;

use crate::app::AppError;
use crate::app::queue::{CONTROL_STATEMENT_TIMEOUT, manager};
use crate::config::Config;
use crate::db::migrations::{self, MigrateError};
use crate::db::{DbError, Source, preflight, roles, slots};
use crate::metrics::Metrics;
use crate::pq::{PqError, PqErrorKind, quote};
use crate::target::{Target, TargetSettings, Targets};
use crate::worker::threads::Stop;

/// Between two tries to reach the queue.
const AGAIN: Duration = Duration::from_millis(500);

/// Waits until the queue can be reached, for at most `wait_for_queue`, and checks its schema.
///
/// # Errors
/// [`AppError::Queue`] when it can't be reached in time or refuses us; [`AppError::Stopped`] when `stopping` was set
/// meanwhile; what [`check_queue`] says of its schema.
pub(super) fn wait_for_queue(queue: &Source, config: &Config, stopping: &Stop) -> Result<(), AppError> {
    let patience = config.wait_for_queue;
    let until = Instant::now() + patience;
    let mut said = false;
    loop {
        let error = match preflight(queue).map_err(NotYet::from).and_then(|()| Ok(check_queue(queue)?)) {
            Ok(mut connection) => {
                look_at_slots(&mut connection, config);
                return Ok(());
            }
            Err(NotYet { error, passes: true }) if Instant::now() < until => error,
            Err(NotYet { error, .. }) => return Err(error),
        };
        if !std::mem::replace(&mut said, true) {
            log::warn!(seconds = patience.as_secs(); "the queue can't be used yet, and is waited for: {error}");
        }
        if stopping.wait(AGAIN.min(until.saturating_duration_since(Instant::now()))) {
            return Err(AppError::Stopped);
        }
    }
}

/// Why the queue can't be used.
struct NotYet {
    error: AppError,
    /// It may pass without anybody's change of a setting or a right.
    passes: bool,
}

impl From<PqError> for NotYet {
    fn from(error: PqError) -> NotYet {
        // A refusal of the login is no outage, though no connection comes about either.
        let passes = !matches!(error.kind, PqErrorKind::Connect(failure) if !failure.passes());
        NotYet { error: AppError::Queue(DbError::Unavailable(error.message)), passes }
    }
}

impl From<AppError> for NotYet {
    fn from(error: AppError) -> NotYet {
        let passes = match &error {
            AppError::Queue(error) | AppError::Schema(MigrateError::Db(error)) => {
                matches!(error, DbError::Unavailable(_) | DbError::Busy(_))
            }
            _ => false,
        };
        NotYet { error, passes }
    }
}

/// One timed connection before any pool: a wrong setting is one clear message.
///
/// # Errors
/// When the queue can't be reached, or its schema isn't the one of this build.
pub(super) fn check_queue(queue: &Source) -> Result<PgConnection, AppError> {
    let mut connection = manager(queue, "start", CONTROL_STATEMENT_TIMEOUT).open()?;
    check_service_role(&mut connection)?;
    let status = migrations::status(&mut connection)?;
    if !migrations::speaks_english(&mut connection)? {
        log::warn!(
            "the queue's server writes its messages in another language: set lc_messages = 'C', or losses and timeouts are taken for refusals"
        );
    }
    if !status.unknown.is_empty() {
        return Err(MigrateError::Newer(status.unknown.join(", ")).into());
    }
    if !status.pending.is_empty() {
        return Err(AppError::SchemaBehind(status.pending.join(", ")));
    }
    Ok(connection)
}

/// A role of another name than the documentation's was granted nothing unless somebody said so.
fn check_service_role(connection: &mut PgConnection) -> Result<(), AppError> {
    let standing = roles::standing(connection)?;
    let Some(owner) = standing.owner else { return Ok(()) };
    if !standing.may_use {
        return Err(AppError::ServiceRole { role: standing.role, owner });
    }
    if !standing.may_act {
        // It works until the days that migrating made are over.
        let (member, role) = (quote::identifier(&owner), quote::identifier(&standing.role));
        log::warn!(
            "the role {} can't act as {owner}, the owner of the queue's schema, and so make no further days of history: as a \
             superuser, GRANT {member} TO {role}; `slowlane doctor --only queue` says more",
            standing.role
        );
    }
    Ok(())
}

/// A process that can't have all of its connections works, and finds none at the worst moment: that is worth a line.
fn look_at_slots(connection: &mut PgConnection, config: &Config) {
    match slots::shortage(connection, config.queue_connections()) {
        Ok(Some(shortage)) => log::warn!(database = "queue"; "{shortage}"),
        Ok(None) => {}
        Err(error) => log::debug!("the queue's connection slots can't be read: {error}"),
    }
}

/// Waits for the queue, and looks at the targets meanwhile: a process is to claim as soon as it can.
///
/// # Errors
/// As [`wait_for_queue`] and [`open_targets`].
pub(super) fn open_all(
    queue: &Source,
    targets: BTreeMap<String, TargetSettings>,
    config: &Config,
    metrics: &Arc<Metrics>,
    stopping: &Stop,
) -> Result<Targets, AppError> {
    let open = || open_targets(targets, config.workers, config.start_without_targets, metrics);
    std::thread::scope(|scope| {
        let opening = named("slowlane-targets").spawn_scoped(scope, open)?;
        wait_for_queue(queue, config, stopping)?;
        opening.join().map_err(|_| AppError::died())?
    })
}

fn named(name: &str) -> std::thread::Builder {
    std::thread::Builder::new().name(name.to_owned())
}

/// The targets, each looked at once, all at the same time: one that swallows everything holds up no other one.
/// `regardless`: the start goes on whatever is wrong with one.
///
/// # Errors
/// [`TargetError`](crate::target::TargetError) of one that is wrong for good, or when no thread can be started.
pub(super) fn open_targets(
    targets: BTreeMap<String, TargetSettings>,
    workers: u32,
    regardless: bool,
    metrics: &Arc<Metrics>,
) -> Result<Targets, AppError> {
    let open = |name: String, settings: TargetSettings| {
        let target = Target::new(&name, settings, workers, metrics);
        match target.verify() {
            Err(error) if !error.passes() && !regardless => return Err(error),
            Err(error) => log::warn!("{error}; its jobs wait until it can be used, and the others run"),
            Ok(()) => {}
        }
        Ok((name, Arc::new(target)))
    };
    std::thread::scope(|scope| {
        let start = |(name, target)| named("slowlane-target").spawn_scoped(scope, || open(name, target));
        let opening = targets.into_iter().map(start).collect::<Result<Vec<_>, _>>()?;
        let opened = opening.into_iter().map(|one| one.join().map_err(|_| AppError::died())?.map_err(AppError::from));
        opened.collect()
    })
}
