//! `GET /v1/workers`, `/v1/targets` and `/v1/queues`, and pausing and resuming a queue: what an operator looks at and
//! does.
//!
//! What counts jobs comes from one look at the database, at most once a second; what is done to a queue is answered
//! without it, however deep the queue is. None holds a secret.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::time::timeout;
use uuid::Uuid;

use crate::http::problem::{Code, Problem};
use crate::http::wire::Time;
use crate::http::{Shared, State, TargetFacts, jobs, no_parameters, submit};
use crate::queue::fleet::overview::{self, Group, Overview, Worker, WorkerState};
use crate::queue::fleet::queues::{self, MAX_REASON_CHARS};
use crate::queue::fleet::workers::TargetHealth;
use crate::queue::{JobState, model};

/// How old a look may be that answers a request.
const FRESH: Duration = Duration::from_secs(1);
/// How long a look that somebody else takes is waited for.
const TURN: Duration = Duration::from_secs(5);
/// How long a pause waits for claims that began before it: longer than one may take.
const CLAIMS_END_WITHIN: Duration = Duration::from_secs(12);
/// The pauses between two looks whether they have ended: the first, and the longest.
const LOOKS: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));
/// States of unfinished jobs.
const UNFINISHED: [JobState; 4] = [JobState::Scheduled, JobState::Queued, JobState::Running, JobState::Paused];

/// The last look, and when it was taken; `None` in the place of one that failed. Whoever comes while one is being taken
/// waits for it.
#[derive(Default)]
pub(super) struct LastLook(Mutex<Option<(Instant, Option<Arc<Overview>>)>>);

async fn look(shared: &Shared) -> Result<Arc<Overview>, Problem> {
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
async fn forget(shared: &Shared) {
    if let Ok(mut last) = timeout(TURN, shared.last_look.0.lock()).await {
        *last = None;
    }
}

/// How many jobs are in each state, those included of which there is none.
fn counts<'g>(groups: impl Iterator<Item = &'g Group>) -> BTreeMap<&'static str, i64> {
    let mut counts: BTreeMap<&str, i64> = UNFINISHED.map(|state| (state.as_str(), 0)).into();
    for group in groups {
        let count = counts.entry(group.state.as_str()).or_default();
        *count = count.saturating_add(group.count);
    }
    counts
}

/// How long the oldest job has waited that can be claimed.
fn oldest_ms<'g>(overview: &Overview, groups: impl Iterator<Item = &'g Group>) -> Option<i64> {
    let queued = groups.filter(|group| group.state == JobState::Queued);
    queued.map(|group| (overview.at - group.oldest).num_milliseconds().max(0)).max()
}

fn unserved<'g>(overview: &Overview, groups: impl Iterator<Item = &'g Group>) -> Vec<Unserved<'g>> {
    let waits = |group: &&Group| [JobState::Queued, JobState::Scheduled].contains(&group.state);
    let mut found: BTreeMap<(&str, &str, &str), i64> = BTreeMap::new();
    for group in groups.filter(waits).filter(|group| !overview.is_served(group)) {
        let count = found.entry((&group.queue, &group.kind, &group.target)).or_default();
        *count = count.saturating_add(group.count);
    }
    found.into_iter().map(|((queue, kind, target), count)| Unserved { queue, kind, target, count }).collect()
}

/// Jobs that no process that is alive may claim.
#[derive(Serialize)]
struct Unserved<'g> {
    queue: &'g str,
    kind: &'g str,
    target: &'g str,
    count: i64,
}

#[derive(Serialize)]
struct WorkerResource<'w> {
    id: Uuid,
    state: WorkerState,
    hostname: &'w str,
    pid: i32,
    version: &'w str,
    threads: i32,
    running: i64,
    kinds: &'w [String],
    queues: &'w [String],
    targets: Vec<TargetOfWorker<'w>>,
    started_at: Time,
    beat_at: Time,
}

#[derive(Serialize)]
struct TargetOfWorker<'w> {
    name: &'w str,
    available: bool,
    trouble: Option<&'w str>,
    since: Time,
}

impl<'w> WorkerResource<'w> {
    fn of(worker: &'w Worker) -> WorkerResource<'w> {
        let target = |health: &'w TargetHealth| TargetOfWorker {
            name: &health.name,
            available: health.available,
            trouble: health.trouble.as_deref(),
            since: Time(health.since),
        };
        WorkerResource {
            id: worker.id,
            state: worker.state,
            hostname: &worker.hostname,
            pid: worker.pid,
            version: &worker.version,
            threads: worker.threads,
            running: worker.running,
            kinds: &worker.kinds,
            queues: &worker.queues,
            targets: worker.targets.iter().map(target).collect(),
            started_at: Time(worker.started_at),
            beat_at: Time(worker.beat_at),
        }
    }
}

#[derive(Serialize)]
struct Workers<'w> {
    workers: Vec<WorkerResource<'w>>,
    looked_at: Time,
}

pub(super) async fn workers(request: HttpRequest, shared: State) -> Result<HttpResponse, Problem> {
    no_parameters(&request)?;
    let (at, workers) = shared.doorway.run(overview::workers_now).await?;
    let workers = workers.iter().map(WorkerResource::of).collect();
    Ok(HttpResponse::Ok().json(Workers { workers, looked_at: Time(at) }))
}

pub(super) async fn worker(shared: State, id: web::Path<String>) -> Result<HttpResponse, Problem> {
    let id = jobs::parse_id(&id)?;
    let (_, workers) = shared.doorway.run(overview::workers_now).await?;
    match workers.iter().find(|worker| worker.id == id) {
        Some(worker) => Ok(HttpResponse::Ok().json(WorkerResource::of(worker))),
        None => Err(Problem::new(Code::WorkerNotFound, format!("there is no worker {id}, or it is long dead"))
            .field("id", "expected the id of a worker")),
    }
}

#[derive(Serialize)]
struct QueueResource<'o> {
    name: String,
    paused_at: Option<Time>,
    paused_reason: Option<&'o str>,
    /// Unfinished jobs, by state.
    jobs: BTreeMap<&'static str, i64>,
    /// Jobs that can be claimed, by priority.
    queued_by_priority: BTreeMap<i16, i64>,
    oldest_queued_ms: Option<i64>,
    /// Processes that serve it, and their threads.
    served_by: ServedBy,
    unserved: Vec<Unserved<'o>>,
}

#[derive(Serialize)]
struct ServedBy {
    workers: usize,
    threads: i64,
}

impl ServedBy {
    fn of<'w>(workers: impl Iterator<Item = &'w Worker>) -> ServedBy {
        let threads: Vec<i64> = workers
            .filter(|worker| worker.state != WorkerState::Dead)
            .map(|worker| i64::from(worker.threads))
            .collect();
        ServedBy { workers: threads.len(), threads: threads.iter().sum() }
    }
}

impl<'o> QueueResource<'o> {
    fn of(overview: &'o Overview, name: String) -> QueueResource<'o> {
        let row = overview.queues.iter().find(|row| row.name == name);
        let groups: Vec<&Group> = overview.jobs.iter().filter(|group| group.queue == name).collect();
        let of_it = || groups.iter().copied();
        let mut queued_by_priority = BTreeMap::new();
        for group in of_it().filter(|group| group.state == JobState::Queued) {
            let count: &mut i64 = queued_by_priority.entry(group.priority).or_default();
            *count = count.saturating_add(group.count);
        }
        QueueResource {
            paused_at: row.and_then(|row| row.paused_at).map(Time),
            paused_reason: row.and_then(|row| row.paused_reason.as_deref()),
            jobs: counts(of_it()),
            queued_by_priority,
            oldest_queued_ms: oldest_ms(overview, of_it()),
            served_by: ServedBy::of(overview.workers.iter().filter(|worker| worker.queues.contains(&name))),
            unserved: unserved(overview, of_it()),
            name,
        }
    }
}

/// The names of queues: those of this server, those that a process serves, those with jobs, and those that were paused.
fn queue_names(shared: &Shared, overview: &Overview) -> BTreeSet<String> {
    let served = overview.workers.iter().flat_map(|worker| worker.queues.iter().cloned());
    let filled = overview.jobs.iter().map(|group| group.queue.clone());
    let said = overview.queues.iter().map(|row| row.name.clone());
    shared.queues.iter().cloned().chain(served).chain(filled).chain(said).collect()
}

#[derive(Serialize)]
struct Queues<'o> {
    queues: Vec<QueueResource<'o>>,
    looked_at: Time,
}

pub(super) async fn queues(request: HttpRequest, shared: State) -> Result<HttpResponse, Problem> {
    no_parameters(&request)?;
    let overview = look(&shared).await?;
    let names = queue_names(&shared, &overview).into_iter();
    let queues = names.map(|name| QueueResource::of(&overview, name)).collect();
    Ok(HttpResponse::Ok().json(Queues { queues, looked_at: Time(overview.at) }))
}

fn queue_not_found(name: &str) -> Problem {
    Problem::new(Code::QueueNotFound, format!("nobody serves a queue {name}, and no job is in it"))
        .field("name", "expected a queue that GET /v1/queues lists")
}

pub(super) async fn queue(shared: State, name: web::Path<String>) -> Result<HttpResponse, Problem> {
    let overview = look(&shared).await?;
    if !queue_names(&shared, &overview).contains(name.as_str()) {
        return Err(queue_not_found(&name));
    }
    Ok(HttpResponse::Ok().json(QueueResource::of(&overview, name.into_inner())))
}

/// What is said of a queue now, after something was.
#[derive(Serialize)]
struct SaidOfQueue<'q> {
    name: &'q str,
    paused_at: Option<Time>,
    paused_reason: Option<&'q str>,
}

async fn changed(shared: &Shared, name: &str) -> Result<HttpResponse, Problem> {
    forget(shared).await;
    let asked = name.to_owned();
    let row = shared.doorway.run(move |connection| queues::one(connection, &asked)).await?;
    let row = row.as_ref();
    Ok(HttpResponse::Ok().json(SaidOfQueue {
        name,
        paused_at: row.and_then(|row| row.paused_at).map(Time),
        paused_reason: row.and_then(|row| row.paused_reason.as_deref()),
    }))
}

async fn check_queue(shared: &Shared, name: &str) -> Result<(), Problem> {
    let named = (1..=model::MAX_NAME_CHARS).contains(&name.chars().count()) && !name.contains('\0');
    if named && shared.queues.iter().any(|known| known == name) {
        return Ok(());
    }
    let asked = name.to_owned();
    match named && shared.doorway.run(move |connection| queues::exists(connection, &asked)).await? {
        true => Ok(()),
        false => Err(queue_not_found(name)),
    }
}

pub(super) async fn pause(
    request: HttpRequest,
    shared: State,
    name: web::Path<String>,
    body: Result<web::Bytes, actix_web::Error>,
) -> Result<HttpResponse, Problem> {
    let body = body.map_err(|error| submit::unreadable(&error))?;
    let fits = |text: &str| (1..=MAX_REASON_CHARS).contains(&text.chars().count());
    let expected = format!("expected a text of 1 to {MAX_REASON_CHARS} characters");
    let reason = submit::only_text(&request, &body, "reason", fits, &expected)?;
    check_queue(&shared, &name).await?;
    let (asked, why) = (name.clone(), reason.clone());
    shared.doorway.run(move |connection| queues::pause(connection, &asked, why.as_deref())).await?;
    log::info!(queue:? = name.as_str(), reason:? = reason.unwrap_or_default(); "a queue is paused");
    wait_for_claims(&shared).await?;
    changed(&shared, &name).await
}

/// Waits until nothing can begin any more by a claim that didn't see the pause. No event of the server's tells of the
/// end of another session's transaction: it is looked for.
async fn wait_for_claims(shared: &Shared) -> Result<(), Problem> {
    let claims = shared.doorway.run(queues::claims_in_flight).await?;
    let until = Instant::now() + CLAIMS_END_WITHIN;
    let mut pause = LOOKS.0;
    while !claims.is_empty() {
        let asked = claims.clone();
        if shared.doorway.run(move |connection| queues::unended(connection, &asked)).await? == 0 {
            break;
        }
        if Instant::now() >= until {
            return Err(Problem::new(
                Code::DatabaseBusy,
                "the queue is paused, and a claim that began before it hasn't ended: one more job of it may begin",
            )
            .hint("repeat the request: it waits for that claim again"));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LOOKS.1);
    }
    Ok(())
}

pub(super) async fn resume(
    request: HttpRequest,
    shared: State,
    name: web::Path<String>,
    body: Result<web::Bytes, actix_web::Error>,
) -> Result<HttpResponse, Problem> {
    crate::http::no_fields(&request, body)?;
    check_queue(&shared, &name).await?;
    let asked = name.clone();
    if shared.doorway.run(move |connection| queues::resume(connection, &asked)).await? {
        log::info!(queue:? = name.as_str(); "a queue is served again");
        // Nothing of it was claimed, so nobody is past any of its jobs: a word is enough to have them looked for.
        shared.signals.look_again();
    }
    changed(&shared, &name).await
}

#[derive(Serialize)]
struct TargetResource<'o> {
    name: String,
    statements_only: Option<bool>,
    /// What this process knows of it; `null` where it doesn't open it.
    settings: Option<&'o TargetFacts>,
    jobs: BTreeMap<&'static str, i64>,
    oldest_queued_ms: Option<i64>,
    served_by: ServedBy,
    /// Processes that can't reach it, and why.
    troubles: Vec<Trouble<'o>>,
    unserved: Vec<Unserved<'o>>,
}

#[derive(Serialize)]
struct Trouble<'o> {
    worker: Uuid,
    trouble: Option<&'o str>,
    since: Time,
}

impl<'o> TargetResource<'o> {
    fn of(shared: &'o Shared, overview: &'o Overview, name: String) -> TargetResource<'o> {
        let groups: Vec<&Group> = overview.jobs.iter().filter(|group| group.target == name).collect();
        let of_it = || groups.iter().copied();
        let known = shared.targets.get(&name);
        let alive = || overview.workers.iter().filter(|worker| worker.state != WorkerState::Dead);
        let has = |worker: &&Worker| worker.targets.iter().any(|health| health.name == name);
        let healths = alive().flat_map(|worker| worker.targets.iter().map(move |health| (worker.id, health)));
        let troubles = healths
            .filter(|(_, health)| health.name == name && !health.available)
            .map(|(worker, health)| Trouble { worker, trouble: health.trouble.as_deref(), since: Time(health.since) });
        TargetResource {
            statements_only: known.map(|target| target.statements_only),
            settings: known.and_then(|target| target.facts.as_ref()),
            jobs: counts(of_it()),
            oldest_queued_ms: oldest_ms(overview, of_it()),
            served_by: ServedBy::of(alive().filter(has)),
            troubles: troubles.collect(),
            unserved: unserved(overview, of_it()),
            name,
        }
    }
}

/// The names of targets: those of this server, those that a process has, and those with jobs.
fn target_names(shared: &Shared, overview: &Overview) -> BTreeSet<String> {
    let served = overview.workers.iter().flat_map(|worker| worker.targets.iter().map(|health| health.name.clone()));
    let filled = overview.jobs.iter().map(|group| group.target.clone());
    shared.targets.keys().cloned().chain(served).chain(filled).collect()
}

#[derive(Serialize)]
struct Targets<'o> {
    targets: Vec<TargetResource<'o>>,
    looked_at: Time,
}

pub(super) async fn targets(request: HttpRequest, shared: State) -> Result<HttpResponse, Problem> {
    no_parameters(&request)?;
    let overview = look(&shared).await?;
    let names = target_names(&shared, &overview).into_iter();
    let targets = names.map(|name| TargetResource::of(&shared, &overview, name)).collect();
    Ok(HttpResponse::Ok().json(Targets { targets, looked_at: Time(overview.at) }))
}

fn target_not_found() -> Problem {
    Problem::new(Code::TargetNotFound, "there is no such target")
        .field("name", "expected a target that GET /v1/targets lists")
}

pub(super) async fn target(shared: State, name: web::Path<String>) -> Result<HttpResponse, Problem> {
    let overview = look(&shared).await?;
    if !target_names(&shared, &overview).contains(name.as_str()) {
        return Err(target_not_found());
    }
    Ok(HttpResponse::Ok().json(TargetResource::of(&shared, &overview, name.into_inner())))
}
