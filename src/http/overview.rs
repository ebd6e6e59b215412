//! What counts jobs: one look at the database, at most once a second, however many ask.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::http::Shared;
use crate::http::problem::{Code, Problem};
use crate::queue::JobState;
use crate::queue::fleet::overview::{self, Group, Overview, Worker, WorkerState};

/// How old a look may be that answers a request.
const FRESH: Duration = Duration::from_secs(1);

/// How long a look that somebody else takes is waited for.
const TURN: Duration = Duration::from_secs(5);

/// States of unfinished jobs.
const UNFINISHED: [JobState; 4] = [JobState::Scheduled, JobState::Queued, JobState::Running, JobState::Paused];

/// The last look, and when it was taken; `None` in the place of one that failed. Whoever comes while one is being taken
/// waits for it.
#[derive(Default)]
pub(super) struct LastLook(Mutex<Option<(Instant, Option<Arc<Overview>>)>>);

pub(super) async fn look(shared: &Shared) -> Result<Arc<Overview>, Problem> {
    let busy = || Problem::new(Code::DatabaseBusy, "the jobs could not be counted in time; try again shortly");
    let mut last = timeout(TURN, shared.last_look.0.lock()).await.map_err(|_| busy())?;
    if let Some((at, overview)) = last.as_ref()
        && at.elapsed() < FRESH
    {
        return overview.clone().ok_or_else(busy);
    }
    let looked = shared.doorway.run(overview::look).await.map(Arc::new);
    *last = Some((Instant::now(), looked.as_ref().ok().cloned()));
    Ok(looked?)
}

/// The next request sees what was changed just now.
pub(super) async fn forget(shared: &Shared) {
    if let Ok(mut last) = timeout(TURN, shared.last_look.0.lock()).await {
        *last = None;
    }
}

/// How many jobs are in each state, those included of which there is none.
pub(super) fn counts<'g>(groups: impl Iterator<Item = &'g Group>) -> BTreeMap<&'static str, i64> {
    let mut counts: BTreeMap<&str, i64> = UNFINISHED.map(|state| (state.as_str(), 0)).into();
    for group in groups {
        let count = counts.entry(group.state.as_str()).or_default();
        *count = count.saturating_add(group.count);
    }
    counts
}

/// How long the oldest job has waited that can be claimed.
pub(super) fn oldest_ms<'g>(overview: &Overview, groups: impl Iterator<Item = &'g Group>) -> Option<i64> {
    let queued = groups.filter(|group| group.state == JobState::Queued);
    queued.map(|group| (overview.at - group.oldest).num_milliseconds().max(0)).max()
}

/// Jobs that no process that is alive may claim.
#[derive(Serialize)]
pub(super) struct Unserved<'g> {
    queue: &'g str,
    kind: &'g str,
    target: &'g str,
    count: i64,
}

pub(super) fn unserved<'g>(overview: &Overview, groups: impl Iterator<Item = &'g Group>) -> Vec<Unserved<'g>> {
    let waits = |group: &&Group| [JobState::Queued, JobState::Scheduled].contains(&group.state);
    let mut found: BTreeMap<(&str, &str, &str), i64> = BTreeMap::new();
    for group in groups.filter(waits).filter(|group| !overview.is_served(group)) {
        let count = found.entry((&group.queue, &group.kind, &group.target)).or_default();
        *count = count.saturating_add(group.count);
    }
    found.into_iter().map(|((queue, kind, target), count)| Unserved { queue, kind, target, count }).collect()
}

#[derive(Serialize)]
pub(super) struct ServedBy {
    workers: usize,
    threads: i64,
}

impl ServedBy {
    pub fn of<'w>(workers: impl Iterator<Item = &'w Worker>) -> ServedBy {
        let threads: Vec<i64> = workers
            .filter(|worker| worker.state != WorkerState::Dead)
            .map(|worker| i64::from(worker.threads))
            .collect();
        ServedBy { workers: threads.len(), threads: threads.iter().sum() }
    }
}
