//! Every route, as one table: what serves it, what a caller has to be allowed, and what its body may be.
//!
//! HTTP serves what stands here and nothing else. A test asks for each of them.

use actix_web::http::Method;
use actix_web::{Resource, Route as Handler, guard, web};

use crate::http::jobs::{history, list, one, submit, validate};
use crate::http::{MAX_BODY_BYTES, probes, problem, queues, results, statements, targets, uploads, workers};

/// What a caller has to be allowed. Until callers have keys, the server's token allows everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Nothing: whoever reaches the address may ask.
    Open,
    /// Seeing jobs, results and uploads, and what an operator sees of a server.
    Read,
    /// Putting jobs and uploads in.
    Submit,
    /// Stopping, pausing and resuming jobs, and deleting results and uploads.
    Cancel,
    /// Pausing queues and reading statements again.
    Manage,
}

/// What a request may carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// Nothing that is read.
    None,
    /// JSON of at most [`MAX_BODY_BYTES`].
    Json,
    /// Bytes that are taken as they come, up to a limit of the settings.
    Stream,
}

/// One route.
pub struct Route {
    /// Its methods: reading has HEAD too.
    pub methods: &'static [Method],
    /// Its path, with `{id}` and the like for what differs.
    pub path: &'static str,
    /// What a caller has to be allowed.
    pub scope: Scope,
    /// What a request may carry.
    pub body: Body,
    /// It is answered at the address of probes as well.
    pub is_probe: bool,
    handler: fn() -> Handler,
}

const READ: &[Method] = &[Method::GET, Method::HEAD];
const POST: &[Method] = &[Method::POST];
const DELETE: &[Method] = &[Method::DELETE];

/// GET and, as every server must, HEAD: the same without its body.
fn reading() -> Handler {
    web::route().guard(guard::Any(guard::Get()).or(guard::Head()))
}

const fn read(path: &'static str, handler: fn() -> Handler) -> Route {
    Route { methods: READ, path, scope: Scope::Read, body: Body::None, is_probe: false, handler }
}

const fn post(path: &'static str, scope: Scope, handler: fn() -> Handler) -> Route {
    Route { methods: POST, path, scope, body: Body::Json, is_probe: false, handler }
}

const fn delete(path: &'static str, handler: fn() -> Handler) -> Route {
    Route { methods: DELETE, path, scope: Scope::Cancel, body: Body::None, is_probe: false, handler }
}

/// The table.
pub static ROUTES: [Route; 32] = [
    Route { scope: Scope::Open, is_probe: true, ..read("/healthz", || reading().to(probes::healthz)) },
    Route { scope: Scope::Open, is_probe: true, ..read("/readyz", || reading().to(probes::readyz)) },
    Route { is_probe: true, ..read("/metrics", || reading().to(probes::metrics)) },
    read("/v1/jobs", || reading().to(list::list)),
    post("/v1/jobs", Scope::Submit, || web::post().to(submit::submit)),
    post("/v1/jobs/validate", Scope::Submit, || web::post().to(validate::validate)),
    read("/v1/jobs/{id}", || reading().to(one::get)),
    post("/v1/jobs/{id}/cancel", Scope::Cancel, || web::post().to(one::cancel)),
    post("/v1/jobs/{id}/pause", Scope::Cancel, || web::post().to(one::pause)),
    post("/v1/jobs/{id}/resume", Scope::Cancel, || web::post().to(one::resume)),
    post("/v1/jobs/{id}/retry", Scope::Submit, || web::post().to(history::retry)),
    read("/v1/jobs/{id}/attempts", || reading().to(history::attempts)),
    read("/v1/jobs/{id}/log", || reading().to(history::log)),
    read("/v1/jobs/{id}/result", || reading().to(results::manifest)),
    delete("/v1/jobs/{id}/result", || web::delete().to(results::delete)),
    read("/v1/jobs/{id}/result/data", || reading().to(results::data)),
    read("/v1/workers", || reading().to(workers::workers)),
    read("/v1/workers/{id}", || reading().to(workers::worker)),
    read("/v1/targets", || reading().to(targets::targets)),
    read("/v1/targets/{name}", || reading().to(targets::target)),
    post("/v1/targets/{name}/check", Scope::Submit, || web::post().to(targets::check)),
    read("/v1/queues", || reading().to(queues::queues)),
    read("/v1/queues/{name}", || reading().to(queues::queue)),
    post("/v1/queues/{name}/pause", Scope::Manage, || web::post().to(queues::pause)),
    post("/v1/queues/{name}/resume", Scope::Manage, || web::post().to(queues::resume)),
    read("/v1/statements", || reading().to(statements::list)),
    post("/v1/statements/reload", Scope::Manage, || web::post().to(statements::reload)),
    read("/v1/statements/{name}", || reading().to(statements::get)),
    read("/v1/uploads", || reading().to(uploads::list)),
    Route { body: Body::Stream, ..post("/v1/uploads", Scope::Submit, || web::post().to(uploads::create)) },
    read("/v1/uploads/{id}", || reading().to(uploads::get)),
    delete("/v1/uploads/{id}", || web::delete().to(uploads::delete)),
];

/// The path answers without a token.
pub(super) fn is_open(path: &str) -> bool {
    ROUTES.iter().any(|route| route.scope == Scope::Open && route.path == path)
}

/// Serves the routes that are `wanted`. A path answers methods that it hasn't with 405, and names those that it has.
pub(super) fn serve(app: &mut web::ServiceConfig, wanted: fn(&Route) -> bool) {
    let served = || ROUTES.iter().filter(|route| wanted(route));
    let mut paths: Vec<&str> = served().map(|route| route.path).collect();
    paths.dedup();
    for path in paths {
        let of_path = || served().filter(|route| route.path == path);
        let methods: Vec<Method> = of_path().flat_map(|route| route.methods).cloned().collect();
        let resource = of_path().fold(web::resource(path), |resource, route| resource.route((route.handler)()));
        app.service(with_others(resource, methods));
    }
}

fn with_others(resource: Resource, methods: Vec<Method>) -> Resource {
    resource.app_data(web::PayloadConfig::new(MAX_BODY_BYTES)).default_service(web::to(move || {
        let answer = problem::method_not_allowed(&methods);
        async move { answer }
    }))
}
