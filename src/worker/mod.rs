//! The worker: threads that claim jobs, run them, and end them under their lease.
//!
//! | file | thread | what it does |
//! | --- | --- | --- |
//! | [`fetcher`] | `slowlane-fetch` | claims as many jobs as threads are free |
//! | [`executor`] | `slowlane-work-N` | runs an attempt and says how it ended |
//! | [`completer`] | `slowlane-finish` | writes the ends, many at a time |
//! | [`heartbeat`] | `slowlane-beat` | beats, says how targets are ([`health`]), brings cancel requests back, writes progress |
//! | [`watchdog`] | `slowlane-watch` | deadlines; presses what is to stop until it stops |
//! | [`listener`] | `slowlane-listen`, `slowlane-notify` | hints between processes; also where no jobs run |
//! | [`promoter`] | `slowlane-due` | scheduled jobs become claimable |
//! | [`sampler`] | `slowlane-sample` | asks one target's server how its sessions are; one for each target |
//! | [`janitor`] | `slowlane-janitor` | rescues what the dead left, keeps days and results |
//! | [`cleaner`] | `slowlane-clean` | sees to what ended jobs left on their targets |
//!
//! Knows the queue, the kinds and the targets; knows no HTTP. Nothing here is the truth: every thread may be killed
//! at any point, and another process goes on from the rows.

mod cleaner;
pub mod completer;
mod ended;
pub mod executor;
mod explain;
pub mod fetcher;
mod health;
pub mod heartbeat;
pub mod janitor;
pub mod listener;
pub mod promoter;
pub mod running;
mod sampler;
mod settle;
pub mod slots;
pub mod threads;
pub mod watchdog;

use std::collections::BTreeMap;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::db::Source;
use crate::db::pool::{Manager, Pool, Purpose};
use crate::metrics::Metrics;
use crate::queue::RetryPolicy;
use crate::queue::fleet::health::Health;
use crate::queue::fleet::signals::Signals;
use crate::queue::fleet::workers::Identity;
use crate::queue::lifecycle::claim::Scope;
use crate::target::Targets;
use crate::work::control::CLEAN_UP_WITHIN;
use crate::work::{Registry, Services, StopReason};
use crate::worker::ended::Ended;
use crate::worker::health::Healths;
use crate::worker::running::Running;
use crate::worker::slots::Slots;
use crate::worker::threads::{Stop, Threads};

/// How long a stopped attempt may take to let go before the process gives up on it.
const LET_GO: Duration = Duration::from_secs(10);
const _: () = assert!(CLEAN_UP_WITHIN.as_millis() < LET_GO.as_millis(), "who cleans up isn't stuck");

/// What the workers of a process are given.
pub struct WorkersConfig {
    /// The queue.
    pub queue: Source,
    /// For claims, ends and rescues.
    pub control: Pool,
    /// For parts of results.
    pub results: Pool,
    /// The databases that work runs on.
    pub targets: Targets,
    /// Targets that can't be used as they are set, each with why: their jobs wait for another process.
    pub refused: BTreeMap<String, String>,
    /// The kinds that this process knows.
    pub registry: Arc<Registry>,
    /// The queues that it serves.
    pub queues: Vec<String>,
    /// Threads that run jobs.
    pub threads: usize,
    /// How long records of finished jobs are kept.
    pub retention: Duration,
    /// How long a fetcher goes without looking when nothing wakes it: the truth behind every hint.
    pub poll: Duration,
    /// When failed attempts are repeated.
    pub retry: RetryPolicy,
    /// Hints within this process.
    pub signals: Arc<Signals>,
    /// How this process does.
    pub health: Arc<Health>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

impl WorkersConfig {
    /// An attempt of this kind that ended unknown may be repeated.
    fn repeatable(&self, kind: &str) -> bool {
        self.registry.repeatable(kind).unwrap_or(false)
    }
}

/// What every thread of the workers shares.
pub(crate) struct Shared {
    config: WorkersConfig,
    services: Services,
    worker_id: RwLock<Uuid>,
    hostname: String,
    slots: Slots,
    running: Running,
    endings: Sender<Ended>,
    stop: Arc<Stop>,
}

impl Shared {
    /// The id under which this process claims at the moment.
    fn worker_id(&self) -> Uuid {
        *self.worker_id.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on this process claims under another id.
    fn set_worker_id(&self, id: Uuid) {
        *self.worker_id.write().unwrap_or_else(PoisonError::into_inner) = id;
    }

    fn identity(&self, id: Uuid) -> Identity {
        Identity {
            id,
            hostname: self.hostname.clone(),
            threads: i32::try_from(self.config.threads).unwrap_or(i32::MAX),
            kinds: self.kinds(),
            queues: self.config.queues.clone(),
            targets: self.healths().all().to_vec(),
        }
    }

    /// How the targets are, since when.
    fn healths(&self) -> Healths {
        Healths::of(&self.config.targets, &self.config.refused)
    }

    fn kinds(&self) -> Vec<String> {
        self.config.registry.names().into_iter().map(str::to_owned).collect()
    }

    fn target_names(&self) -> Vec<String> {
        self.config.targets.keys().cloned().collect()
    }

    fn scope(&self) -> Scope {
        Scope {
            worker_id: self.worker_id(),
            kinds: self.kinds(),
            targets: self.target_names(),
            queues: self.config.queues.clone(),
        }
    }

    /// A connection that is lost is noticed long before this process is declared dead.
    fn heartbeat_manager(&self) -> Manager {
        let queue = self.config.queue.clone().with("tcp_user_timeout", "5000");
        Manager::queue(queue, &Purpose { name: "heartbeat", statement_timeout: Duration::from_secs(3) })
    }

    fn manager(&self, name: &'static str) -> Manager {
        let statement_timeout = Duration::from_secs(10);
        Manager::queue(&self.config.queue, &Purpose { name, statement_timeout })
    }
}

/// The workers of a process. Stop them with [`Workers::shut_down`].
pub struct Workers {
    shared: Arc<Shared>,
    threads: Threads,
}

impl Workers {
    /// Starts every thread. The first job may be claimed before this returns.
    ///
    /// # Errors
    /// When a thread can't be started.
    pub fn start(config: WorkersConfig) -> std::io::Result<Workers> {
        let (endings, ended) = channel();
        let services = Services {
            control: config.control.clone(),
            results: config.results.clone(),
            states: Arc::new(config.registry.states().clone()),
            looks: Arc::default(),
        };
        let stop = Arc::new(Stop::default());
        let shared = Arc::new(Shared {
            services,
            worker_id: RwLock::new(Uuid::now_v7()),
            hostname: nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            slots: Slots::default(),
            running: Running::default(),
            endings,
            stop: Arc::clone(&stop),
            config,
        });
        shared.config.health.expect_workers();
        let mut threads = Threads::new(stop);
        completer::start(&shared, ended, &mut threads)?;
        heartbeat::start(&shared, &mut threads)?;
        watchdog::start(&shared, &mut threads)?;
        promoter::start(&shared, &mut threads)?;
        janitor::start(&shared, &mut threads)?;
        cleaner::start(&shared, &mut threads)?;
        sampler::start(&shared, &mut threads)?;
        executor::start(&shared)?;
        fetcher::start(&shared, &mut threads)?;
        Ok(Workers { shared, threads })
    }

    /// Attempts that run at the moment.
    pub fn running(&self) -> usize {
        self.shared.running.len()
    }

    /// Claims nothing more, lets running attempts end within `grace`, then cancels them on the server and hands
    /// them back. `hurry` ends the grace early: it is asked several times a second.
    pub fn shut_down(self, grace: Duration, hurry: impl Fn() -> bool) {
        let Workers { shared, threads } = self;
        shared.config.health.stop();
        shared.slots.close();
        // Longer than any attempt may take.
        let until = Instant::now() + grace.min(Duration::from_secs(7 * 86_400));
        let moment = Duration::from_millis(100);
        let patient = || Instant::now() < until && !hurry();
        // What is being claimed at this moment has to be seen before it can be said that nothing runs.
        let claimed_until = Instant::now() + LET_GO;
        while !shared.slots.wait_for_fetcher(moment) && Instant::now() < claimed_until && !hurry() {}
        while !shared.running.wait_until_empty(moment) && patient() {}
        if !shared.running.is_empty() {
            log::info!(jobs = shared.running.len(); "stopping what still runs, and handing it back");
            shared.running.stop_all(StopReason::Shutdown);
            // A little longer than it takes until one that is stuck is given up.
            if !shared.running.wait_until_empty(LET_GO + Duration::from_secs(5)) {
                log::warn!("not everything stopped in time; what is left will be rescued");
            }
        }
        if !shared.running.wait_until_written(0, LET_GO) {
            log::warn!("not every end could be written before stopping; those jobs will be rescued");
        }
        shared.stop.set();
        shared.services.looks.hurry();
        threads.stop_and_join(LET_GO);
        heartbeat::say_goodbye(&shared);
    }
}
