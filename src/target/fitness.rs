//! Whether a target is fit for work: it can be reached, its server and its role are such as work needs.
//!
//! No job has a session before that is known. A target that can't be reached at the start, or is unfit, is looked at again.

use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::Text;

use crate::db::vet::preflight;
use crate::db::{DbError, slots, time_zone};
use crate::pq::PqErrorKind;
use crate::target::prologue::refuses_time_zone;
use crate::target::{CONNECTIONS_BESIDE, ROLE_SQL, RoleRights, Target, TargetError, TargetSettings};

/// How long a target that is unfit for work isn't looked at again.
const UNFIT_FOR: Duration = Duration::from_secs(10);

impl Target {
    /// Tries one connection, and looks at the server and the role. Done once: nothing is asked any more after a success.
    ///
    /// # Errors
    /// [`TargetError`], with what to do about it.
    pub fn verify(&self) -> Result<(), TargetError> {
        if self.verified.load(Ordering::Acquire) {
            return Ok(());
        }
        let verified = self.look();
        *self.unfit() = match &verified {
            Err(error) if !error.passes() => Some((Instant::now(), error.to_string())),
            _ => None,
        };
        self.verified.store(verified.is_ok(), Ordering::Release);
        verified
    }

    fn look(&self) -> Result<(), TargetError> {
        self.settings.spec.check(&self.name)?;
        let away = |reason: String, passes: bool| TargetError::Unreachable { name: self.name.clone(), reason, passes };
        preflight(&self.source).map_err(|error| match error.kind {
            PqErrorKind::Connect(failure) => away(error.message, failure.passes()),
            _ => away(error.message, true),
        })?;
        let rights = self
            .supervisor
            .supervise(|connection| Ok(diesel::sql_query(ROLE_SQL).get_result::<RoleRights>(connection)?));
        let rights = rights.map_err(|error| away(error.to_string(), !matches!(error, DbError::Query(_))))?;
        check(&self.name, &self.settings, &rights)?;
        self.check_time_zone()?;
        self.look_at_slots();
        Ok(())
    }

    /// Whether there is such a time zone, the server alone knows.
    fn check_time_zone(&self) -> Result<(), TargetError> {
        let Some(zone) = &self.settings.spec.time_zone else { return Ok(()) };
        let set = self.supervisor.supervise(|connection| {
            let set = diesel::sql_query("SELECT pg_catalog.set_config('TimeZone', $1, true)").bind::<Text, _>(zone);
            Ok(set.execute(connection)?)
        });
        match set {
            Ok(_) => Ok(()),
            Err(error) if refuses_time_zone(None, &error.to_string()) => Err(TargetError::Invalid {
                name: self.name.clone(),
                setting: "time_zone",
                expected: format!("{}; its server knows none called {zone}", time_zone::EXPECTED),
            }),
            Err(error) => {
                let passes = !matches!(error, DbError::Query(_));
                Err(TargetError::Unreachable { name: self.name.clone(), reason: error.to_string(), passes })
            }
        }
    }

    /// A process that can't have all of its connections works, and finds none at the worst moment: that is worth a line.
    fn look_at_slots(&self) {
        let needed = self.size().saturating_add(CONNECTIONS_BESIDE);
        match self.supervisor.supervise(|connection| slots::shortage(connection, needed)) {
            Ok(Some(shortage)) => log::warn!(target = self.name.as_str(); "{shortage}"),
            Ok(None) => {}
            Err(error) => log::debug!(target = self.name.as_str(); "its connection slots can't be read: {error}"),
        }
    }

    fn unfit(&self) -> MutexGuard<'_, Option<(Instant, String)>> {
        self.unfit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at a target that could not be reached when the process started. Why it is unfit for work is asked anew only
    /// now and then: somebody has to change something first.
    pub(super) fn ready(&self) -> Result<(), String> {
        if self.verified.load(Ordering::Acquire) {
            return Ok(());
        }
        if let Some((since, reason)) = &*self.unfit()
            && since.elapsed() < UNFIT_FOR
        {
            return Err(reason.clone());
        }
        let known = self.unfit().is_some();
        match self.verify() {
            Ok(()) => {
                log::info!(target = self.name.as_str(); "a target that could not be used can be used now");
                Ok(())
            }
            Err(error) => {
                if !error.passes() && !known {
                    log::error!(target = self.name.as_str(); "{error}; no job of this target runs until that is mended");
                }
                Err(error.to_string())
            }
        }
    }

    /// Tries to reach a target that can't be reached, or could not be used so far. Its return is noticed and logged.
    pub fn try_again(&self) {
        // Why it still fails is known: it is what [`Target::trouble`] says.
        if !self.verified.load(Ordering::Acquire) {
            drop(self.ready());
        } else if self.source.trouble().is_some() {
            drop(self.supervisor.supervise(|connection| Ok(connection.batch_execute("SELECT 1")?)));
        }
    }

    /// Why it can't be reached or used, as far as is known.
    pub fn trouble(&self) -> Option<String> {
        let unfit = self.unfit().as_ref().map(|(_, reason)| reason.clone());
        unfit.or_else(|| self.source.trouble())
    }
}

/// A read-only transaction is no wall: a superuser's `COPY … TO PROGRAM` starts its program inside one. Grants are.
fn check(name: &str, settings: &TargetSettings, rights: &RoleRights) -> Result<(), TargetError> {
    let Some(what) = rights.excess() else { return Ok(()) };
    if settings.spec.allow_unsafe_role {
        log::warn!(target = name; "the role of this target {what}, and allow_unsafe_role lets it");
        return Ok(());
    }
    Err(TargetError::RoleTooStrong { name: name.to_owned(), what })
}
