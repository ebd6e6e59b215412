//! `GET /v1/jobs`: pages of jobs, newest first.

use actix_web::{HttpRequest, HttpResponse};
use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::http::State;
use crate::http::extract::paging::{Paging, invalid};
use crate::http::jobs::one;
use crate::http::jobs::wire::JobResource;
use crate::http::problem::Problem;
use crate::queue::JobState;
use crate::queue::record::read;
use crate::queue::record::read::ListFilter;

#[derive(Serialize)]
struct Page<'j> {
    jobs: Vec<JobResource<'j>>,
    next_cursor: Option<String>,
}

pub(in crate::http) async fn list(request: HttpRequest, shared: State) -> Result<HttpResponse, Problem> {
    let mut wanted = ListFilter::default();
    let paging = Paging::read(request.query_string(), "", |name, value| filter(&mut wanted, name, value))?;
    let (behind, limit) = (paging.behind, paging.limit + 1);
    let found = shared.doorway.run(move |connection| read::list(connection, &wanted, behind, limit)).await?;
    let (page, more) = paging.cut(&found);
    let mut response = HttpResponse::Ok();
    let next_cursor = page.last().filter(|_| more).map(|last| paging.next(&mut response, "/v1/jobs", last.id));
    let jobs = page.iter().map(|job| one::resource(&shared, job)).collect();
    Ok(response.json(Page { jobs, next_cursor }))
}

fn filter(filter: &mut ListFilter, name: &str, value: &str) -> Result<(), Problem> {
    if value.contains('\0') || name.contains('\0') {
        return Err(invalid(name, "expected a text without NUL"));
    }
    match name {
        "state" => {
            let words = JobState::ALL.map(JobState::as_str).join(", ");
            let state = JobState::parse(value).ok_or_else(|| invalid(name, format!("expected one of: {words}")))?;
            filter.state = Some(state);
        }
        "kind" => filter.kind = Some(value.to_owned()),
        "queue" => filter.queue = Some(value.to_owned()),
        "target" => filter.target = Some(value.to_owned()),
        "created_after" => filter.created_after = Some(time(name, value)?),
        "created_before" => filter.created_before = Some(time(name, value)?),
        _ => match name.strip_prefix("label.").filter(|label| !label.is_empty()) {
            Some(label) => {
                filter.labels.insert(label.to_owned(), value.to_owned());
            }
            None => {
                let known = "state, kind, queue, target, label.<name>, created_after, created_before, limit, cursor";
                return Err(invalid(name, format!("unknown parameter; expected one of: {known}")));
            }
        },
    }
    Ok(())
}

fn time(name: &str, value: &str) -> Result<DateTime<Utc>, Problem> {
    // In a query a `+` that wasn't encoded arrives as a blank.
    DateTime::parse_from_rfc3339(&value.replace(' ', "+"))
        .map(|time| time.to_utc())
        .map_err(|_| invalid(name, "expected a time as RFC 3339 writes it, such as 2026-01-31T06:00:00Z"))
}
