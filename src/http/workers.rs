//! `GET /v1/workers`: the processes that run jobs, and how they are.

use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use uuid::Uuid;

use crate::http::State;
use crate::http::extract::body::no_parameters;
use crate::http::extract::parse_id;
use crate::http::jobs::wire::Time;
use crate::http::problem::{Code, Problem};
use crate::queue::fleet::overview::{self, Worker, WorkerState};
use crate::queue::fleet::workers::TargetHealth;

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
struct TargetOfWorker<'w> {
    name: &'w str,
    available: bool,
    trouble: Option<&'w str>,
    since: Time,
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
    let id = parse_id(&id)?;
    let (_, workers) = shared.doorway.run(overview::workers_now).await?;
    match workers.iter().find(|worker| worker.id == id) {
        Some(worker) => Ok(HttpResponse::Ok().json(WorkerResource::of(worker))),
        None => Err(Problem::new(Code::WorkerNotFound, format!("there is no worker {id}, or it is long dead"))
            .field("id", "expected the id of a worker")),
    }
}
