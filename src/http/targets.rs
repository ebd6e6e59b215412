//! `GET /v1/targets` and `POST /v1/targets/{name}/check`: the databases that work runs on, as operators see them. None of it
//! holds a secret.

use std::collections::{BTreeMap, BTreeSet};

use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use uuid::Uuid;

use crate::http::extract::body::{no_parameters, only_text, unreadable};
use crate::http::extract::refuse_when_stopping;
use crate::http::jobs::asked::check_names;
use crate::http::jobs::asking::ask_a_worker;
use crate::http::jobs::wire::Time;
use crate::http::overview::{ServedBy, Unserved, counts, look, oldest_ms, unserved};
use crate::http::problem::{Code, Problem};
use crate::http::{Shared, State, TargetFacts};
use crate::queue::fleet::overview::{Group, Overview, Worker, WorkerState};
use crate::queue::{JobSpec, RawJson};
use crate::work::CHECK;

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

#[derive(Serialize)]
struct Trouble<'o> {
    worker: Uuid,
    trouble: Option<&'o str>,
    since: Time,
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

/// A target through the eyes of a worker.
pub(super) async fn check(
    request: HttpRequest,
    shared: State,
    name: web::Path<String>,
    body: Result<web::Bytes, actix_web::Error>,
) -> Result<HttpResponse, Problem> {
    refuse_when_stopping(&shared)?;
    let body = body.map_err(|error| unreadable(&error))?;
    let queue = only_text(&request, &body, "queue", |_| true, "expected a string")?;
    if !shared.targets.contains_key(name.as_str()) {
        let known: Vec<&str> = shared.targets.keys().map(String::as_str).collect();
        return Err(Problem::new(Code::TargetNotFound, "this server has no target of this name")
            .field("name", format!("expected one of: {}", known.join(", "))));
    }
    let default = || shared.queues.iter().find(|queue| *queue == "default").or(shared.queues.first()).cloned();
    let args = RawJson::of(&serde_json::json!({})).map_err(|error| Problem::internal(&error))?;
    let job = JobSpec {
        target: name.into_inner(),
        queue: queue.or_else(default).unwrap_or_default(),
        ..JobSpec::new(CHECK, args)
    };
    check_names(&shared, &job)?;
    ask_a_worker(&request, &shared, job, "see the workers' log, and try again").await
}
