//! The HTTP side: routes, wire types, problem documents, and who may ask.
//!
//! No thread of it ever waits for the database: handlers reach a connection only through the [`Doorway`], and jobs
//! become rows through the [`Writer`]. Knows no worker, no libpq and no kind of work but by the [`Registry`] that it
//! is handed.

mod extract;
mod gauges;
mod guard;
mod jobs;
mod overview;
mod probes;
mod problem;
mod queues;
mod results;
pub mod routes;
mod statements;
mod targets;
mod uploads;
mod waiters;
mod workers;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::Server;
use actix_web::http::KeepAlive;
use actix_web::middleware::from_fn;
use actix_web::{App, HttpServer, web};
use serde::Serialize;
use tokio::sync::Semaphore;

pub use gauges::DepthClock;
pub use guard::{ListenError, check_listen};
pub use problem::Code;

use crate::db::Doorway;
use crate::http::waiters::Waiters;
use crate::metrics::Metrics;
use crate::queue::fleet::health::Health;
use crate::queue::fleet::signals::Signals;
use crate::queue::intake::writer::Writer;
use crate::statements::Reloader;
use crate::target::TargetSpec;
use crate::work::Registry;

/// The largest body of a request: 1 MiB.
pub const MAX_BODY_BYTES: usize = 1024 * 1024;
/// Threads that answer requests; none of them ever waits for the database.
const HTTP_THREADS: usize = 2;
/// How long a connection may take to send its request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How the HTTP side is set.
#[derive(Clone)]
pub struct HttpSettings {
    /// The addresses that it listens on.
    pub listen: Vec<SocketAddr>,
    /// Names that `Host` may carry beside loopback names and the listen address.
    pub allowed_hosts: Vec<String>,
    /// What `Authorization: Bearer` must carry, where it is set.
    pub api_token: Option<Token>,
    /// Kinds with results, and uploads, are refused above this many stored bytes.
    pub result_store_bytes: i64,
    /// The most bytes of one upload.
    pub upload_limit_bytes: i64,
    /// How long nothing may come of an upload's body.
    pub upload_idle: Duration,
    /// How long a stopping server lets requests end.
    pub grace: Duration,
}

/// A token that can't be printed.
#[derive(Clone)]
pub struct Token(pub(crate) Arc<str>);

impl Token {
    /// Hides `text`.
    pub fn new(text: &str) -> Token {
        Token(Arc::from(text))
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// What every handler of a process has, whatever its role.
pub struct Common {
    /// The way to a connection.
    pub doorway: Doorway,
    /// The names of the queues.
    pub queues: Vec<String>,
    /// How this process does.
    pub health: Arc<Health>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The targets that this process runs jobs on, each with whether it can be used.
    pub targets: Box<dyn Fn() -> BTreeMap<String, Usability> + Send + Sync>,
    /// How pools beside the doorway are used, asked for when metrics are.
    pub pools: Box<dyn Fn(&Metrics) + Send + Sync>,
    /// When the depth of the queues was last looked at.
    pub depths: DepthClock,
    /// Settings.
    pub settings: HttpSettings,
}

/// Whether a target can be used, as far as this process knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usability {
    /// Nothing is wrong with it.
    Usable,
    /// It is away, or unfit for work.
    Unavailable,
    /// Its connection string was refused, or there is none, with this code.
    Refused(&'static str),
}

/// What the routes of jobs have besides.
pub struct Api {
    /// What every handler has.
    pub common: web::Data<Common>,
    /// The way to a new row.
    pub writer: Writer,
    /// The kinds of this process.
    pub registry: Arc<Registry>,
    /// The targets, by name.
    pub targets: BTreeMap<String, ApiTarget>,
    /// Hints.
    pub signals: Arc<Signals>,
    /// Has the saved statements read again, where there are any.
    pub reloader: Option<Reloader>,
}

/// What the HTTP side knows of a target.
#[derive(Clone, Debug, Default)]
pub struct ApiTarget {
    /// It runs saved statements only.
    pub statements_only: bool,
    /// What else is known where this process opens it.
    pub facts: Option<TargetFacts>,
}

/// What an operator may see of a target's settings.
#[derive(Clone, Debug, Default, Serialize)]
pub struct TargetFacts {
    /// The server, or several in their order.
    pub host: Option<String>,
    /// Its port.
    pub port: Option<String>,
    /// The database.
    pub database: Option<String>,
    /// The role.
    pub user: Option<String>,
    /// What it is told.
    #[serde(flatten)]
    pub spec: TargetSpec,
}

pub(crate) struct Shared {
    api: Api,
    waiters: Waiters,
    /// Parts of uploads that may be written at a time: reads of other requests come through the same doorway.
    part_writers: Arc<Semaphore>,
    /// What operators were told last.
    last_look: overview::LastLook,
}

impl std::ops::Deref for Shared {
    type Target = Api;
    fn deref(&self) -> &Api {
        &self.api
    }
}

impl std::ops::Deref for Api {
    type Target = Common;
    fn deref(&self) -> &Common {
        &self.common
    }
}

/// What a handler of jobs takes.
type State = web::Data<Shared>;

/// The whole contract on `listener`. It runs when it is awaited, and stops by its handle.
///
/// # Errors
/// When the listener can't be used.
pub fn server(api: Api, listener: TcpListener) -> std::io::Result<Server> {
    let waiters = Waiters::new(api.doorway.clone(), &api.signals, Arc::clone(&api.health));
    let common = api.common.clone();
    let part_writers = Arc::new(Semaphore::new((api.doorway.usage().size / 2).max(1)));
    let shared = web::Data::new(Shared { api, waiters, part_writers, last_look: overview::LastLook::default() });
    gauges::start(common.clone());
    serve(common, listener, HTTP_THREADS, move |app| {
        app.app_data(shared.clone());
        routes::serve(app, |_| true);
    })
}

/// Only what an operator's machines ask, on `listener`: `/healthz`, `/readyz` and `/metrics`.
///
/// # Errors
/// When the listener can't be used.
pub fn probe_server(common: web::Data<Common>, listener: TcpListener) -> std::io::Result<Server> {
    serve(common, listener, 1, |app| routes::serve(app, |route| route.is_probe))
}

fn serve(
    common: web::Data<Common>,
    listener: TcpListener,
    threads: usize,
    routes: impl Fn(&mut web::ServiceConfig) + Clone + Send + 'static,
) -> std::io::Result<Server> {
    let grace = common.settings.grace.as_secs();
    let server = HttpServer::new(move || {
        App::new()
            .app_data(common.clone())
            .app_data(web::PayloadConfig::new(MAX_BODY_BYTES))
            .wrap(from_fn(guard::guard))
            .wrap(from_fn(problem::as_documents))
            .configure(routes.clone())
            .default_service(web::to(problem::no_route))
    })
    .workers(threads)
    .keep_alive(KeepAlive::Timeout(Duration::from_secs(75)))
    .client_request_timeout(HEAD_TIMEOUT)
    .shutdown_timeout(grace)
    .disable_signals()
    .listen(listener)?;
    Ok(server.run())
}
