//! One process, put together: pools, doorway, writer, workers, HTTP; and the order in which they stop.
//!
//! The main thread belongs to the HTTP side's event loop. Whatever waits for a database has a thread of its own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use actix_web::dev::Server;
use actix_web::web;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::app::listeners::http_settings;
pub use crate::app::listeners::{Addresses, Listeners};
use crate::app::queue::{CONTROL_STATEMENT_TIMEOUT, manager};
pub use crate::app::signals::{StopRequests, StopSignals};
use crate::app::{AppError, databases};
use crate::config::{Config, RefusedTarget};
use crate::db::doorway::DoorwayThreads;
use crate::db::pool::{self, Pool};
use crate::db::{Doorway, Source};
use crate::dsn::Dsn;
use crate::http::{self, Api, ApiTarget, Common, DepthClock, TargetFacts, Usability};
use crate::metrics::Metrics;
use crate::queue::RetryPolicy;
use crate::queue::fleet::health::Health;
use crate::queue::fleet::queues::CLAIMERS;
use crate::queue::fleet::signals::{Message, Signals};
use crate::queue::intake::writer::Writer;
use crate::statements::{self, Reloader};
use crate::target::{Target, TargetSettings, Targets};
use crate::work::Registry;
use crate::worker::listener::{Hints, HintsConfig};
use crate::worker::threads::Stop;
use crate::worker::{Workers, WorkersConfig};

/// How long a claim or an end waits for a connection.
const CONTROL_WAIT: Duration = Duration::from_secs(5);
/// How long a part of a result waits for a connection.
const RESULTS_WAIT: Duration = Duration::from_secs(5);
/// The longest statement that stores a part of a result.
const RESULTS_STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest statement of the writer.
const WRITER_STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);

/// What a process is made of.
pub struct Parts {
    /// Settings.
    pub config: Config,
    /// The queue.
    pub queue: Dsn,
    /// The names of the targets, each with whether it runs saved statements only: jobs on others are refused.
    pub target_names: BTreeMap<String, bool>,
    /// The databases that work runs on; none where no workers run.
    pub targets: BTreeMap<String, TargetSettings>,
    /// Those of which isn't known where they are: their jobs wait.
    pub refused: RefusedTargets,
    /// The kinds that it knows.
    pub registry: Registry,
    /// Where requests arrive.
    pub listeners: Listeners,
}

/// Targets that can't be used as they are set, by name.
pub type RefusedTargets = BTreeMap<String, RefusedTarget>;

/// Prepares, serves until a signal says to stop, and stops in order. `prepare` may wait, and has a thread of its own;
/// a signal meanwhile takes effect when it is done. `ready` is called when requests are answered. `reloads`: a hang-up has
/// the saved statements read again.
///
/// # Errors
/// When preparing fails, the databases can't be used as they are, or a thread can't be started.
pub fn run(
    reloads: bool,
    prepare: impl FnOnce() -> Result<Parts, AppError> + Send + 'static,
    ready: impl FnOnce(Addresses) + 'static,
) -> Result<(), AppError> {
    run_until(move || StopSignals::new(reloads), prepare, ready)
}

/// As [`run`], stopped by whoever `stop` listens to.
///
/// # Errors
/// As [`run`].
pub fn run_until<S: StopRequests>(
    stop: impl FnOnce() -> std::io::Result<S> + 'static,
    prepare: impl FnOnce() -> Result<Parts, AppError> + Send + 'static,
    ready: impl FnOnce(Addresses) + 'static,
) -> Result<(), AppError> {
    if Handle::try_current().is_ok() {
        return Err(AppError::WithinRuntime);
    }
    let doorway_threads = actix_rt::System::new().block_on(async move {
        // Signals are listened to before there is anything to stop.
        let mut stop = stop()?;
        let stopping = Arc::<Stop>::default();
        let asked = Arc::clone(&stopping);
        let start = move || assemble(prepare()?, &asked);
        let starting = on_a_thread("slowlane-start", "starting failed; the log says why", start);
        let Some(assembled) = unless_stopped(starting, &mut stop, &stopping).await? else { return Ok(None) };
        let Assembled { listeners, addresses, common, api, hints, workers, doorway_threads, reloader, grace } =
            assembled;
        if let Some(reloader) = reloader {
            stop.reload_with(reloader);
        }
        let health = Arc::clone(&common.health);
        let mut servers = Vec::new();
        if let (Some(api), Some(listener)) = (api, listeners.api) {
            servers.push(http::server(api, listener)?);
        }
        if let Some(listener) = listeners.probes {
            servers.push(http::probe_server(common, listener)?);
        }
        let hints = hints.map(Hints::start).transpose()?;
        let workers = workers.map(Workers::start).transpose()?;
        let handles: Vec<_> = servers.iter().map(Server::handle).collect();
        let servers: Vec<_> = servers.into_iter().map(actix_rt::spawn).collect();
        ready(addresses);
        let drain = actix_rt::spawn(async move {
            let hurried = wait_and_drain(stop, workers, hints, &health, grace).await;
            // Who still waits for a job is answered as things are.
            health.close();
            for handle in handles {
                handle.stop(!hurried).await;
            }
        });
        for server in servers {
            server.await.map_err(|_| AppError::died())??;
        }
        drain.await.map_err(|_| AppError::died())?;
        Ok::<_, AppError>(Some(doorway_threads))
    })?;
    drop(doorway_threads);
    log::info!("stopped");
    Ok(())
}

/// Waits for the start to be done. `None` when it was asked to stop meanwhile: what had begun is then finished first,
/// unless it is asked again. What the start only waits for isn't waited for any more: `stopping` is set.
async fn unless_stopped<T>(
    starting: impl Future<Output = Result<T, AppError>>,
    stop: &mut impl StopRequests,
    stopping: &Stop,
) -> Result<Option<T>, AppError> {
    tokio::pin!(starting);
    tokio::select! {
        started = &mut starting => return started.map(Some),
        () = stop.next() => log::info!("stopping as soon as what was begun is done; a second signal stops at once"),
    }
    stopping.set();
    tokio::select! {
        started = &mut starting => match started {
            Ok(_) | Err(AppError::Stopped) => Ok(None),
            Err(error) => Err(error),
        },
        () = stop.next() => Ok(None),
    }
}

/// Runs what may wait on a thread of its own.
///
/// # Errors
/// The work's own; or when it panicked, with this text.
pub async fn on_a_thread<T: Send + 'static, E: From<AppError> + Send + 'static>(
    name: &str,
    panicked: &'static str,
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    let (done, outcome) = oneshot::channel();
    let run = move || {
        // Whoever waited has gone: the process is ending.
        let _ = done.send(work());
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(run).map_err(AppError::from)?;
    outcome.await.unwrap_or_else(|_| Err(AppError::Died(panicked).into()))
}

/// Everything that is needed to serve, and nothing of it started but the doorway and the writer.
struct Assembled {
    listeners: Listeners,
    addresses: Addresses,
    common: web::Data<Common>,
    api: Option<Api>,
    hints: Option<HintsConfig>,
    workers: Option<WorkersConfig>,
    doorway_threads: DoorwayThreads,
    /// Has the saved statements read again, where there are any.
    reloader: Option<Reloader>,
    grace: Duration,
}

fn assemble(parts: Parts, stopping: &Stop) -> Result<Assembled, AppError> {
    let Parts { config, queue, target_names, targets, refused, registry, listeners } = parts;
    let settings = http_settings(&config)?;
    // What one connection finds out about the queue, the others needn't find out again.
    let queue = Source::from(&queue);
    let metrics = Arc::<Metrics>::default();
    let api_targets = api_targets(target_names, &targets);
    let targets = databases::open_all(&queue, targets, &config, &metrics, stopping)?;
    let registry = Arc::new(registry);
    let (signals, health) = (Arc::<Signals>::default(), Arc::<Health>::default());
    let reloader = start_reloading(&registry, &signals)?;
    let pools = Pools::new(&config, &queue, &metrics);
    let (doorway, doorway_threads) = Doorway::start(pools.api, config.api_statement_timeout)?;
    let common = web::Data::new(Common {
        doorway,
        queues: config.queues.clone(),
        health: Arc::clone(&health),
        metrics: Arc::clone(&metrics),
        targets: Box::new(usability(targets.clone(), refused.clone())),
        pools: Box::new(measure(pools.control.clone(), pools.results.clone(), targets.clone())),
        depths: DepthClock::default(),
        settings,
    });
    let api = match config.roles.http {
        false => None,
        true => Some(Api {
            common: common.clone(),
            writer: Writer::start(manager(&queue, "writer", WRITER_STATEMENT_TIMEOUT), Arc::clone(&signals))?,
            registry: Arc::clone(&registry),
            targets: api_targets,
            signals: Arc::clone(&signals),
            reloader: reloader.clone(),
        }),
    };
    let hints = config.notify.then(|| HintsConfig {
        queue: queue.clone(),
        control: pools.control.clone(),
        signals: Arc::clone(&signals),
    });
    let threads = usize::try_from(config.workers).unwrap_or(usize::MAX);
    let workers = config.roles.workers.then(|| WorkersConfig {
        queue,
        control: pools.control,
        results: pools.results,
        targets,
        refused: refused.into_iter().map(|(name, refused)| (name, refused.to_string())).collect(),
        registry,
        queues: config.queues,
        threads,
        retention: config.retention,
        poll: config.poll,
        retry: RetryPolicy::default(),
        signals,
        health,
        metrics,
    });
    let (addresses, grace) = (listeners.addresses()?, config.shutdown_grace);
    Ok(Assembled { listeners, addresses, common, api, hints, workers, doorway_threads, reloader, grace })
}

/// Says what was read of saved statements, and reads them again when other processes say so.
fn start_reloading(registry: &Registry, signals: &Signals) -> Result<Option<Reloader>, AppError> {
    let Some(statements) = registry.statements() else { return Ok(None) };
    statements::reload::say(&statements.loaded());
    let reloader = Reloader::start(Arc::clone(statements))?;
    let asked = reloader.clone();
    signals.on_hint(move |message| {
        if *message == Message::Statements {
            asked.hint();
        }
    });
    Ok(Some(reloader))
}

/// What the HTTP side is told of targets: nothing that is secret.
fn api_targets(
    names: BTreeMap<String, bool>,
    targets: &BTreeMap<String, TargetSettings>,
) -> BTreeMap<String, ApiTarget> {
    let facts = |target: &TargetSettings| {
        let said = |keyword: &str| target.dsn.get(keyword).filter(|value| !value.is_empty()).map(str::to_owned);
        TargetFacts {
            host: said("host").or_else(|| said("hostaddr")),
            port: said("port"),
            database: said("dbname"),
            user: said("user"),
            spec: target.spec.shown(),
        }
    };
    let target = |(name, statements_only): (String, bool)| {
        let facts = targets.get(&name).map(facts);
        (name, ApiTarget { statements_only, facts })
    };
    names.into_iter().map(target).collect()
}

/// Threads that run jobs of these kinds in one queue, for as long as what is returned isn't told to shut down, and what
/// wakes them. For a process that doesn't serve yet.
///
/// # Errors
/// When the databases can't be used as they are, or a thread can't be started.
pub fn workers_before_serving(
    queue: &Dsn,
    name: &str,
    targets: BTreeMap<String, TargetSettings>,
    registry: Registry,
) -> Result<(Workers, Arc<Signals>), AppError> {
    let config = Config { workers: 1, ..Config::default() };
    let queue = Source::from(queue);
    databases::check_queue(&queue)?;
    let metrics = Arc::<Metrics>::default();
    let pools = Pools::new(&config, &queue, &metrics);
    let signals = Arc::<Signals>::default();
    let workers = Workers::start(WorkersConfig {
        queue,
        control: pools.control,
        results: pools.results,
        targets: databases::open_targets(targets, config.workers, false, &metrics)?,
        refused: BTreeMap::new(),
        registry: Arc::new(registry),
        queues: vec![name.to_owned()],
        threads: 1,
        retention: config.retention,
        poll: config.poll,
        retry: RetryPolicy::default(),
        signals: Arc::clone(&signals),
        health: Arc::default(),
        metrics,
    })?;
    Ok((workers, signals))
}

struct Pools {
    api: Pool,
    control: Pool,
    results: Pool,
}

impl Pools {
    fn new(config: &Config, queue: &Source, metrics: &Arc<Metrics>) -> Pools {
        let api = manager(queue, "api", config.api_statement_timeout);
        let control = manager(queue, CLAIMERS, CONTROL_STATEMENT_TIMEOUT);
        let results = manager(queue, "results", RESULTS_STATEMENT_TIMEOUT);
        Pools {
            api: pool::build(api, config.api_connections, "api", config.api_statement_timeout, metrics),
            control: pool::build(control, config.control_connections, "control", CONTROL_WAIT, metrics),
            results: pool::build(results, config.result_connections, "results", RESULTS_WAIT, metrics),
        }
    }
}

fn measure(control: Pool, results: Pool, targets: Targets) -> impl Fn(&Metrics) + Send + Sync {
    move |metrics| {
        metrics.set_pool("control", pool::usage(&control));
        metrics.set_pool("results", pool::usage(&results));
        for (name, usage) in targets.values().flat_map(|target| target.usage()) {
            metrics.set_pool(&name, usage);
        }
    }
}

/// Whether the targets of this process can be used.
fn usability(targets: Targets, refused: RefusedTargets) -> impl Fn() -> BTreeMap<String, Usability> + Send + Sync {
    let refused: BTreeMap<String, Usability> =
        refused.into_iter().map(|(name, refused)| (name, Usability::Refused(refused.code))).collect();
    move || {
        let now = |(name, target): (&String, &Arc<Target>)| {
            let usability = if target.trouble().is_none() { Usability::Usable } else { Usability::Unavailable };
            (name.clone(), usability)
        };
        targets.iter().map(now).chain(refused.clone()).collect()
    }
}

/// Waits for a request to stop, then for the workers: they end what runs, within the grace or until a second request.
/// Requests over HTTP are answered meanwhile, so that whoever polls sees the end. `true` when there was a second one.
async fn wait_and_drain(
    mut stop: impl StopRequests,
    workers: Option<Workers>,
    hints: Option<Hints>,
    health: &Health,
    grace: Duration,
) -> bool {
    stop.next().await;
    health.stop();
    let running = workers.as_ref().map_or(0, Workers::running);
    log::info!(running = running; "stopping: nothing new is accepted or claimed");
    let hurry = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&hurry);
    let (done, mut drained) = oneshot::channel();
    let drain = move || {
        if let Some(workers) = workers {
            workers.shut_down(grace, || asked.load(Ordering::Relaxed));
        }
        if let Some(hints) = hints {
            hints.stop();
        }
        // Whoever waited has gone: the process is ending anyway.
        let _ = done.send(());
    };
    if let Err(error) = std::thread::Builder::new().name("slowlane-drain".to_owned()).spawn(drain) {
        log::error!("the workers could not be drained: {error}");
        return true;
    }
    loop {
        tokio::select! {
            _ = &mut drained => return hurry.load(Ordering::Relaxed),
            () = stop.next() => {
                log::info!("a second request to stop: running work is stopped now, and handed back");
                hurry.store(true, Ordering::Relaxed);
            }
        }
    }
}
