//! `GET /v1/queues`, and pausing and resuming one. What is done to a queue is answered without counting jobs, however deep it is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;

use crate::http::extract::body::{no_fields, no_parameters, only_text, unreadable};
use crate::http::jobs::wire::Time;
use crate::http::overview::{ServedBy, Unserved, counts, forget, look, oldest_ms, unserved};
use crate::http::problem::{Code, Problem};
use crate::http::{Shared, State};
use crate::queue::fleet::overview::{Group, Overview};
use crate::queue::fleet::queues::{self, MAX_REASON_CHARS};
use crate::queue::{JobState, model};

/// How long a pause waits for claims that began before it: longer than one may take.
const CLAIMS_END_WITHIN: Duration = Duration::from_secs(12);

/// The pauses between two looks whether they have ended: the first, and the longest.
const LOOKS: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));

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
    let body = body.map_err(|error| unreadable(&error))?;
    let fits = |text: &str| (1..=MAX_REASON_CHARS).contains(&text.chars().count());
    let expected = format!("expected a text of 1 to {MAX_REASON_CHARS} characters");
    let reason = only_text(&request, &body, "reason", fits, &expected)?;
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
    no_fields(&request, body)?;
    check_queue(&shared, &name).await?;
    let asked = name.clone();
    if shared.doorway.run(move |connection| queues::resume(connection, &asked)).await? {
        log::info!(queue:? = name.as_str(); "a queue is served again");
        // Nothing of it was claimed, so nobody is past any of its jobs: a word is enough to have them looked for.
        shared.signals.look_again();
    }
    changed(&shared, &name).await
}
