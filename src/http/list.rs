//! `GET /v1/jobs`: pages of jobs, newest first.

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

use crate::http::problem::{Code, Problem};
use crate::http::wire::JobResource;
use crate::http::{State, cursor, jobs};
use crate::queue::read::ListFilter;
use crate::queue::{JobState, read};

/// Jobs on a page when the caller names no number.
pub const DEFAULT_LIMIT: i64 = 50;
/// The most jobs on a page.
pub const MAX_LIMIT: i64 = 500;

#[derive(Serialize)]
struct Page<'j> {
    jobs: Vec<JobResource<'j>>,
    next_cursor: Option<String>,
}

struct Query {
    filter: ListFilter,
    limit: i64,
    before: Option<Uuid>,
    /// The parameters that say which list it is, as they were given: a cursor belongs to them.
    list: String,
}

pub(super) async fn list(request: HttpRequest, shared: State) -> Result<HttpResponse, Problem> {
    let query = parse(request.query_string())?;
    let (filter, before, limit) = (query.filter, query.before, query.limit);
    let found = shared.state.doorway.run(move |connection| read::list(connection, &filter, before, limit + 1)).await?;
    let page_length = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = found.len() > page_length;
    let page: Vec<_> = found.iter().take(page_length).collect();
    let next_cursor = page.last().filter(|_| more).map(|job| cursor::encode(job.id, &query.list));
    let mut response = HttpResponse::Ok();
    if let Some(cursor) = &next_cursor {
        let separator = if query.list.is_empty() { "" } else { "&" };
        let next = format!("</v1/jobs?{}{separator}limit={limit}&cursor={cursor}>; rel=\"next\"", query.list);
        response.insert_header((header::LINK, next));
    }
    let jobs = page.into_iter().map(|job| jobs::resource(&shared, job)).collect();
    Ok(response.json(Page { jobs, next_cursor }))
}

fn invalid(name: &str, expected: impl Into<String>) -> Problem {
    Problem::new(Code::InvalidParameter, format!("the query parameter {name} is not valid")).field(name, expected)
}

fn parse(query_string: &str) -> Result<Query, Problem> {
    let pairs = web::Query::<Vec<(String, String)>>::from_query(query_string)
        .map_err(|_| Problem::new(Code::MalformedRequest, "the query can't be read"))?
        .into_inner();
    let mut query = Query { filter: ListFilter::default(), limit: DEFAULT_LIMIT, before: None, list: String::new() };
    let mut cursor = None;
    let mut seen = Vec::new();
    for (name, value) in &pairs {
        if seen.contains(&name) {
            return Err(invalid(name, "expected it once"));
        }
        seen.push(name);
        match name.as_str() {
            "cursor" => cursor = Some(value),
            "limit" => query.limit = limit(value)?,
            _ => filter(&mut query.filter, name, value)?,
        }
    }
    query.list = query_string
        .split('&')
        .filter(|pair| !pair.is_empty() && !pair.starts_with("cursor=") && !pair.starts_with("limit="))
        .collect::<Vec<_>>()
        .join("&");
    if let Some(text) = cursor {
        let id = cursor::decode(text, &query.list).ok_or_else(|| {
            Problem::new(Code::InvalidCursor, "the cursor was changed, or belongs to another list")
                .field("cursor", "expected a next_cursor that this list gave out")
        })?;
        query.before = Some(id);
    }
    Ok(query)
}

fn limit(value: &str) -> Result<i64, Problem> {
    let limit = value.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
    limit.ok_or_else(|| invalid("limit", format!("expected an integer from 1 to {MAX_LIMIT}")))
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
            Some(label) => filter.labels.push((label.to_owned(), value.to_owned())),
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
