//! The one way by which an async thread meets the database: a closure goes to a thread that may wait, and its
//! answer comes back as a future.
//!
//! Knows no HTTP and no job. The threads are as many as the pool has connections, so one that runs never waits for
//! another's; what waits here is bounded, and gives up in time.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use diesel::pg::PgConnection;
use diesel::r2d2::R2D2Connection;
use tokio::sync::oneshot;

use crate::db::error::DbError;
use crate::db::line;
use crate::db::pool::Pool;

/// Requests that may wait for a connection; one more is refused at once.
pub const MAX_WAITING: usize = 1_000;

/// How long closing waits for what runs.
const CLOSING: Duration = Duration::from_secs(5);

type Task = Box<dyn FnOnce(&Pool) + Send>;

/// A handle to the threads that hold the `api` connections. Cloning it is cheap.
#[derive(Clone)]
pub struct Doorway {
    shared: Arc<Shared>,
    patience: Duration,
}

struct Shared {
    tasks: Mutex<Tasks>,
    arrived: Condvar,
    pool: Pool,
    size: usize,
    busy: AtomicUsize,
}

#[derive(Default)]
struct Tasks {
    waiting: VecDeque<Task>,
    closed: bool,
}

/// How a doorway is used at the moment, for metrics.
#[derive(Clone, Copy, Debug)]
pub struct DoorwayUse {
    /// Threads, each with a connection.
    pub size: usize,
    /// Threads that run a closure.
    pub busy: usize,
    /// Closures that wait for a thread.
    pub waiting: usize,
}

/// Joins the doorway's threads when it goes.
pub struct DoorwayThreads {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Doorway {
    /// Starts as many threads as `pool` may hold connections. A caller waits for its answer no longer than
    /// `patience` in all.
    ///
    /// # Errors
    /// When a thread can't be started.
    pub fn start(pool: Pool, patience: Duration) -> std::io::Result<(Doorway, DoorwayThreads)> {
        let size = usize::try_from(pool.max_size()).unwrap_or(1);
        let shared = Arc::new(Shared {
            tasks: Mutex::default(),
            arrived: Condvar::new(),
            pool,
            size,
            busy: AtomicUsize::new(0),
        });
        let mut threads = Vec::with_capacity(size);
        for n in 0..size {
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new().name(format!("slowlane-api-{n}")).spawn(move || shared.serve())?;
            threads.push(thread);
        }
        Ok((Doorway { shared: Arc::clone(&shared), patience }, DoorwayThreads { shared, threads }))
    }

    /// Runs `work` with a connection on a thread of the doorway. When the connection turns out to be dead, as those in
    /// the pool are after a restart of the server, `work` is run again with the next one: it must bear that.
    ///
    /// # Errors
    /// [`DbError::Busy`] when there is no thread or no answer in time (the closure then may still run, or never);
    /// otherwise what `work` or connecting failed with.
    pub async fn run<T, F>(&self, work: F) -> Result<T, DbError>
    where
        T: Send + 'static,
        F: Fn(&mut PgConnection) -> Result<T, DbError> + Send + 'static,
    {
        self.run_within(self.patience, work).await
    }

    /// As [`Doorway::run`], for work that may take longer than others.
    ///
    /// # Errors
    /// As [`Doorway::run`].
    pub async fn run_within<T, F>(&self, patience: Duration, work: F) -> Result<T, DbError>
    where
        T: Send + 'static,
        F: Fn(&mut PgConnection) -> Result<T, DbError> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let asked = Instant::now();
        self.enqueue(Box::new(move |pool| {
            if answer.is_closed() || asked.elapsed() >= patience {
                return;
            }
            let result = with_a_live_connection(pool, &work, || asked.elapsed() < patience);
            // The caller may have given up: then nobody needs the answer.
            let _ = answer.send(result);
        }))?;
        match tokio::time::timeout(patience, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) if asked.elapsed() < patience => Err(DbError::Busy("the statement was dropped")),
            Ok(Err(_)) | Err(_) => Err(DbError::Busy("no connection became free in time")),
        }
    }

    /// How the doorway is used at the moment.
    pub fn usage(&self) -> DoorwayUse {
        DoorwayUse {
            size: self.shared.size,
            busy: self.shared.busy.load(Ordering::Relaxed),
            waiting: self.shared.lock().waiting.len(),
        }
    }

    fn enqueue(&self, task: Task) -> Result<(), DbError> {
        let mut tasks = self.shared.lock();
        if tasks.closed {
            return Err(DbError::Busy("this process is stopping"));
        }
        if tasks.waiting.len() >= MAX_WAITING {
            return Err(DbError::Busy("too many requests wait for a connection"));
        }
        tasks.waiting.push_back(task);
        drop(tasks);
        self.shared.arrived.notify_one();
        Ok(())
    }
}

/// Every idle connection may have died, and each is found out by its use alone.
fn with_a_live_connection<T>(
    pool: &Pool,
    work: &impl Fn(&mut PgConnection) -> Result<T, DbError>,
    in_time: impl Fn() -> bool,
) -> Result<T, DbError> {
    let mut spare = pool.max_size();
    loop {
        let mut connection = pool.get()?;
        match work(&mut connection) {
            Err(DbError::Unavailable(_)) if spare > 0 && is_gone(&mut connection) && in_time() => spare -= 1,
            outcome => return outcome,
        }
    }
}

fn is_gone(connection: &mut PgConnection) -> bool {
    connection.is_broken() || line::is_lost(connection)
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Tasks> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        while let Some(task) = self.next() {
            self.busy.fetch_add(1, Ordering::Relaxed);
            if catch_unwind(AssertUnwindSafe(|| task(&self.pool))).is_err() {
                log::error!("a closure panicked on a thread of the doorway; its caller is told the database failed");
            }
            self.busy.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn next(&self) -> Option<Task> {
        let mut tasks = self.lock();
        loop {
            if let Some(task) = tasks.waiting.pop_front() {
                return Some(task);
            }
            if tasks.closed {
                return None;
            }
            tasks = self.arrived.wait_timeout(tasks, Duration::from_secs(60)).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for DoorwayThreads {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.arrived.notify_all();
        join_within(CLOSING, self.threads.drain(..));
    }
}

/// Waits for threads that were told to end, no longer than `patience` in all. Says which ones haven't.
pub fn join_within(patience: Duration, threads: impl Iterator<Item = JoinHandle<()>>) {
    let until = Instant::now() + patience;
    for thread in threads {
        while !thread.is_finished() && Instant::now() < until {
            std::thread::park_timeout(Duration::from_millis(5));
        }
        if thread.is_finished() {
            // A panic was logged when it happened.
            let _ = thread.join();
        } else {
            log::warn!(thread = thread.thread().name().unwrap_or("?"); "a thread did not end in time");
        }
    }
}
