//! `POST /v1/targets/{name}/check`: a target through the eyes of a worker.

use actix_web::{HttpRequest, HttpResponse, web};

use crate::http::asking::ask_a_worker;
use crate::http::problem::{Code, Problem};
use crate::http::{State, submit};
use crate::queue::{JobSpec, RawJson};
use crate::work::CHECK;

pub(super) async fn check(
    request: HttpRequest,
    shared: State,
    name: web::Path<String>,
    body: Result<web::Bytes, actix_web::Error>,
) -> Result<HttpResponse, Problem> {
    submit::refuse_when_stopping(&shared)?;
    let body = body.map_err(|error| submit::unreadable(&error))?;
    let queue = submit::only_text(&request, &body, "queue", |_| true, "expected a string")?;
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
    submit::check_names(&shared, &job)?;
    ask_a_worker(&request, &shared, job, "see the workers' log, and try again").await
}
