//! `GET /v1/statements`, `GET /v1/statements/{name}` and `POST /v1/statements/reload`: what callers may run by a name,
//! with the JSON Schema of its parameters.

use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::http::extract::body::{no_fields, no_parameters};
use crate::http::extract::refuse_when_stopping;
use crate::http::jobs::wire::Time;
use crate::http::problem::{Code, Problem};
use crate::http::{Shared, State};
use crate::statements::{Broken, FileName, Loaded, Statement};

#[derive(Serialize)]
struct StatementsPage<'l> {
    statements: Vec<StatementResource<'l>>,
    broken: Vec<BrokenResource<'l>>,
    /// When the folder was read; `null` where there is none.
    loaded_at: Option<Time>,
}

#[derive(Serialize)]
struct StatementResource<'l> {
    name: &'l str,
    kind: &'static str,
    description: &'l str,
    version: &'l str,
    target: &'l str,
    queue: &'l str,
    timeout_ms: i64,
    time_zone: Option<&'l str>,
    lock_timeout_ms: Option<i64>,
    /// It is in effect as its file was before it broke.
    stale: bool,
    file: &'l FileName,
    params: Box<RawValue>,
}

#[derive(Serialize)]
struct BrokenResource<'l> {
    file: &'l FileName,
    line: usize,
    message: &'l str,
    /// The statement that stays in effect as the file had it before.
    stale: Option<&'l str>,
}

impl<'l> StatementResource<'l> {
    fn of(statement: &'l Statement, stale: bool) -> StatementResource<'l> {
        StatementResource {
            name: &statement.name,
            kind: statement.kind.as_str(),
            description: &statement.description,
            version: &statement.version,
            target: &statement.target,
            queue: &statement.queue,
            timeout_ms: statement.timeout_ms,
            time_zone: statement.time_zone.as_deref(),
            lock_timeout_ms: statement.lock_timeout_ms,
            stale,
            file: &statement.file,
            params: statement.schema(),
        }
    }
}

impl<'l> StatementsPage<'l> {
    fn of(loaded: Option<&'l Loaded>) -> StatementsPage<'l> {
        let broken = |broken: &'l Broken| BrokenResource {
            file: &broken.file,
            line: broken.error.line,
            message: &broken.error.message,
            stale: broken.stale.as_deref(),
        };
        let statements = loaded.into_iter().flat_map(|loaded| {
            loaded
                .statements
                .values()
                .map(|statement| StatementResource::of(statement, loaded.is_stale(&statement.name)))
        });
        StatementsPage {
            statements: statements.collect(),
            broken: loaded.into_iter().flat_map(|loaded| loaded.broken.iter().map(broken)).collect(),
            loaded_at: loaded.map(|loaded| Time(loaded.loaded_at)),
        }
    }
}

pub(super) async fn list(request: HttpRequest, shared: State) -> Result<HttpResponse, Problem> {
    no_parameters(&request)?;
    let loaded = shared.registry.loaded();
    Ok(HttpResponse::Ok().json(StatementsPage::of(loaded.as_deref())))
}

pub(super) async fn get(shared: State, name: web::Path<String>) -> Result<HttpResponse, Problem> {
    let loaded = shared.registry.loaded();
    let found = loaded.as_ref().and_then(|loaded| Some((loaded, loaded.statements.get(name.as_str())?)));
    match found {
        Some((loaded, statement)) => {
            Ok(HttpResponse::Ok().json(StatementResource::of(statement, loaded.is_stale(&statement.name))))
        }
        None => Err(Problem::new(Code::StatementNotFound, "there is no saved statement of this name")
            .field("name", "expected a name that GET /v1/statements lists")),
    }
}

pub(super) async fn reload(
    request: HttpRequest,
    shared: State,
    body: Result<web::Bytes, actix_web::Error>,
) -> Result<HttpResponse, Problem> {
    refuse_when_stopping(&shared)?;
    no_fields(&request, body)?;
    let loaded = read_again(&shared).await?;
    // The others have folders of their own, and read them now.
    shared.signals.statements_changed();
    Ok(HttpResponse::Ok().json(StatementsPage::of(Some(&loaded))))
}

async fn read_again(shared: &Shared) -> Result<std::sync::Arc<Loaded>, Problem> {
    let Some(reloader) = &shared.reloader else {
        return Err(Problem::new(Code::NoStatements, "this server has no folder of saved statements")
            .hint("set statements to a folder, and start it again"));
    };
    reloader.reload().await.map_err(|why| {
        Problem::new(Code::StatementsUnreadable, format!("{why}; what was read before stays in effect"))
            .hint("put the folder back, and try again")
    })
}
