//! What is counted and measured, in OpenMetrics' terms. Imports nothing of ours, so that every room may count.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindOutcome {
    kind: String,
    outcome: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueState {
    queue: String,
    state: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueName {
    queue: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolName {
    pool: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    method: String,
    status: u16,
}

/// How a pool is used at the moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct PoolUse {
    /// Connections that it may hold.
    pub size: i64,
    /// Connections on loan.
    pub in_use: i64,
    /// Requests that wait for one.
    pub waiting: i64,
}

/// The counters and gauges of a process.
pub struct Metrics {
    registry: Registry,
    accepted: Family<Kind, Counter>,
    finished: Family<KindOutcome, Counter>,
    requests: Family<Request, Counter>,
    threads_replaced: Counter,
    depth: Family<QueueState, Gauge>,
    oldest_age: Family<QueueState, Gauge<f64, AtomicU64>>,
    paused: Family<QueueName, Gauge>,
    pool_size: Family<PoolName, Gauge>,
    pool_in_use: Family<PoolName, Gauge>,
    pool_waiting: Family<PoolName, Gauge>,
    pool_checkouts: Family<PoolName, Counter>,
    pool_timeouts: Family<PoolName, Counter>,
    pool_wait_seconds: Family<PoolName, Counter<f64, AtomicU64>>,
    result_store_bytes: Gauge,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Metrics {
            registry: Registry::with_prefix("slowlane"),
            accepted: Family::default(),
            finished: Family::default(),
            requests: Family::default(),
            threads_replaced: Counter::default(),
            depth: Family::default(),
            oldest_age: Family::default(),
            paused: Family::default(),
            pool_size: Family::default(),
            pool_in_use: Family::default(),
            pool_waiting: Family::default(),
            pool_checkouts: Family::default(),
            pool_timeouts: Family::default(),
            pool_wait_seconds: Family::default(),
            result_store_bytes: Gauge::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let r = &mut self.registry;
        r.register("jobs_accepted", "Jobs that this process accepted", self.accepted.clone());
        r.register("attempts_finished", "Attempts that ended in this process, by outcome", self.finished.clone());
        r.register("http_requests", "Requests that this process answered", self.requests.clone());
        r.register(
            "work_threads_replaced",
            "Threads that died or were stuck in their work",
            self.threads_replaced.clone(),
        );
        r.register("queue_depth", "Unfinished jobs, by queue and state", self.depth.clone());
        r.register(
            "queue_oldest_age_seconds",
            "Age of the oldest unfinished job since its run_at",
            self.oldest_age.clone(),
        );
        r.register("queue_paused", "1 while nothing of a queue is claimed", self.paused.clone());
        r.register("pool_size", "Connections that a pool may hold", self.pool_size.clone());
        r.register("pool_in_use", "Connections on loan", self.pool_in_use.clone());
        r.register("pool_waiting", "Requests that wait for a connection", self.pool_waiting.clone());
        r.register("pool_checkouts", "Connections that were lent", self.pool_checkouts.clone());
        r.register("pool_timeouts", "Requests for a connection that gave up waiting", self.pool_timeouts.clone());
        r.register("pool_wait_seconds", "Time that was spent waiting for connections", self.pool_wait_seconds.clone());
        r.register("result_store_bytes", "Bytes of stored results and uploads", self.result_store_bytes.clone());
    }

    /// A job was accepted.
    pub fn accepted(&self, kind: &str) {
        self.accepted.get_or_create(&Kind { kind: kind.to_owned() }).inc();
    }

    /// An attempt ended.
    pub fn finished(&self, kind: &str, outcome: &str) {
        self.finished.get_or_create(&KindOutcome { kind: kind.to_owned(), outcome: outcome.to_owned() }).inc();
    }

    /// A request was answered.
    pub fn answered(&self, method: &str, status: u16) {
        // Callers can make methods up: only known ones become labels.
        let known =
            ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"].into_iter().find(|known| *known == method);
        self.requests.get_or_create(&Request { method: known.unwrap_or("other").to_owned(), status }).inc();
    }

    /// A thread that runs jobs died or was given up.
    pub fn thread_replaced(&self) {
        self.threads_replaced.inc();
    }

    /// The depth of the queues, all of them at once: what isn't named is empty.
    pub fn set_depths(&self, depths: impl Iterator<Item = (String, String, i64, f64)>) {
        self.depth.clear();
        self.oldest_age.clear();
        for (queue, state, count, age) in depths {
            let labels = QueueState { queue, state };
            self.depth.get_or_create(&labels).set(count);
            self.oldest_age.get_or_create(&labels).set(age);
        }
    }

    /// Which queues are paused, all of them at once.
    pub fn set_paused(&self, queues: impl Iterator<Item = (String, bool)>) {
        self.paused.clear();
        for (queue, paused) in queues {
            self.paused.get_or_create(&QueueName { queue }).set(i64::from(paused));
        }
    }

    /// How a pool is used.
    pub fn set_pool(&self, pool: &str, usage: PoolUse) {
        let labels = PoolName { pool: pool.to_owned() };
        self.pool_size.get_or_create(&labels).set(usage.size);
        self.pool_in_use.get_or_create(&labels).set(usage.in_use);
        self.pool_waiting.get_or_create(&labels).set(usage.waiting);
    }

    /// A connection of a pool was waited for, and came, or didn't in time.
    pub fn waited(&self, pool: &str, time: Duration, in_vain: bool) {
        let labels = PoolName { pool: pool.to_owned() };
        let outcome = if in_vain { &self.pool_timeouts } else { &self.pool_checkouts };
        outcome.get_or_create(&labels).inc();
        self.pool_wait_seconds.get_or_create(&labels).inc_by(time.as_secs_f64());
    }

    /// How much the stored results take.
    pub fn set_result_store_bytes(&self, bytes: i64) {
        self.result_store_bytes.set(bytes);
    }

    /// How much the stored results took when that was last looked at.
    pub fn result_store_bytes(&self) -> i64 {
        self.result_store_bytes.get()
    }

    /// Everything, as OpenMetrics text.
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing to a String can't fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
