//! Web servers that run heavy work where it hurts: on the event loop, or on the threads and connections that their
//! other requests need. For `slowlane demo blocking`, as child processes.
//!
//! This file breaks the house's first rule on purpose, and is the only one that may. Nothing but the hidden subcommand
//! refers to it; it ends when whoever started it goes.

use std::io::Read;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use actix_web::rt::{System, task};
use actix_web::{App, HttpResponse, HttpServer, web};
use diesel::RunQueryDsl;
use serde::Deserialize;
use serde_json::json;

use crate::cli::{Failure, plain_dsn_reader};
use crate::config::{self, File};
use crate::db::pool::{self, Manager, Pool};
use crate::metrics::Metrics;

/// As many event loops as slowlane has.
const EVENT_LOOPS: usize = 2;
/// About as many connections as a process of slowlane has in all.
const CONNECTIONS: u32 = 20;
/// How long a request waits for a connection: longer than any run takes.
const PATIENCE: Duration = Duration::from_secs(300);

/// The arguments of the hidden subcommand.
#[derive(clap::Args)]
pub struct Wrong {
    /// Where the work runs
    #[arg(value_enum)]
    mode: Mode,
    /// The heavy statement
    #[arg(long)]
    sql: String,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Mode {
    /// In the handler, on the event loop.
    Inline,
    /// On a thread of the pool, while the handler answers.
    ThreadPool,
}

struct State {
    mode: Mode,
    sql: String,
    pool: Pool,
}

#[derive(Deserialize)]
struct Trigger {
    id: String,
}

impl Wrong {
    /// Serves until its standard input ends.
    ///
    /// # Errors
    /// When it can't listen, or the database isn't named.
    pub fn run(self) -> Result<(), Failure> {
        let target = config::demo_database(None, plain_dsn_reader(&File::default())?)?;
        let manager = Manager::work(&target.with("application_name", "slowlane demo blocking"), "SELECT 1");
        let pool = pool::build(manager, CONNECTIONS, "demo", PATIENCE, &Arc::<Metrics>::default());
        let state = web::Data::new(State { mode: self.mode, sql: self.sql, pool });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let url = format!("http://{}", listener.local_addr()?);
        std::thread::Builder::new().name("slowlane-stdin".to_owned()).spawn(end_with_stdin)?;
        System::new().block_on(async move {
            let server = HttpServer::new(move || {
                App::new()
                    .app_data(state.clone())
                    .route("/trigger", web::post().to(trigger))
                    .route("/healthz", web::get().to(healthz))
                    .route("/database", web::get().to(database))
            })
            .workers(EVENT_LOOPS)
            // A blocked loop finds its own timers overdue: refusals and closed connections would hide how late it is.
            .client_request_timeout(Duration::ZERO)
            .keep_alive(PATIENCE)
            .listen(listener)?
            .run();
            println!("{}", json!({"event": "listening", "url": url}));
            server.await
        })?;
        Ok(())
    }
}

fn end_with_stdin() {
    let mut rest = [0; 64];
    while std::io::stdin().read(&mut rest).is_ok_and(|read| read > 0) {}
    std::process::exit(0);
}

fn say(event: &str, id: &str) {
    println!("{}", json!({"event": event, "id": id, "thread": nix::unistd::gettid().as_raw()}));
}

async fn trigger(state: web::Data<State>, query: web::Query<Trigger>) -> HttpResponse {
    let id = query.into_inner().id;
    say("handled", &id);
    match state.mode {
        Mode::Inline => {
            work(&state, &id);
            HttpResponse::Ok().json(json!({"id": id}))
        }
        Mode::ThreadPool => {
            let answer = HttpResponse::Accepted().json(json!({"id": id}));
            task::spawn_blocking(move || work(&state, &id));
            answer
        }
    }
}

fn work(state: &State, id: &str) {
    say("working", id);
    match run(state, &state.sql) {
        Ok(()) => say("done", id),
        Err(error) => {
            eprintln!("the work failed: {error}");
            say("failed", id);
        }
    }
}

fn run(state: &State, sql: &str) -> Result<(), Failure> {
    diesel::sql_query(sql).execute(&mut *state.pool.get()?)?;
    Ok(())
}

async fn healthz() -> &'static str {
    "ok"
}

async fn database(state: web::Data<State>) -> HttpResponse {
    let answered = match state.mode {
        Mode::Inline => run(&state, "SELECT 1").is_ok(),
        Mode::ThreadPool => web::block(move || run(&state, "SELECT 1").is_ok()).await.unwrap_or(false),
    };
    if answered { HttpResponse::Ok().body("ok") } else { HttpResponse::ServiceUnavailable().finish() }
}
