//! A server or workers, ready to be run: to their end on the calling thread, or beside the program on a thread of their
//! own.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::app::AppError;
use crate::app::process::{self, Addresses, Parts, StopRequests};

/// HTTP and workers in one process: what `slowlane serve` is, with kinds of your own.
///
/// ```no_run
/// use slowlane::{DatabaseUrl, Server, Work, WorkContext, WorkError};
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// #[serde(deny_unknown_fields)]
/// struct Greet { name: String }
///
/// impl Work for Greet {
///     const KIND: &'static str = "greet";
///     const REPEATABLE: bool = true;
///     type Output = String;
///     fn run(&self, _ctx: &mut WorkContext<'_>) -> Result<String, WorkError> {
///         Ok(format!("hello {}", self.name))
///     }
/// }
///
/// Server::builder()
///     .queue(DatabaseUrl::env("SLOWLANE_DATABASE_URL"))
///     .target("default", DatabaseUrl::env("REPORTS_URL"))
///     .kind::<Greet>()
///     .listen(([127, 0, 0, 1], 8080))
///     .run()?;
/// # Ok::<(), slowlane::AppError>(())
/// ```
pub struct Server(Assembly);

/// Workers without HTTP: jobs come from servers of other processes, or by SQL.
///
/// ```no_run
/// use slowlane::{DatabaseUrl, Workers};
///
/// Workers::builder()
///     .queue(DatabaseUrl::env("SLOWLANE_DATABASE_URL"))
///     .target("default", DatabaseUrl::env("REPORTS_URL"))
///     .queues(["default", "nightly"])
///     .workers(4)
///     .run()?;
/// # Ok::<(), slowlane::AppError>(())
/// ```
pub struct Workers(Assembly);

/// Checked, listening, and not started.
struct Assembly {
    parts: Parts,
    addresses: Addresses,
}

impl Assembly {
    fn of(parts: Parts) -> Result<Assembly, AppError> {
        Ok(Assembly { addresses: parts.listeners.addresses()?, parts })
    }

    fn run(self) -> Result<(), AppError> {
        let parts = self.parts;
        process::run(parts.registry.statements().is_some(), move || Ok(parts), |addresses| say_where(&addresses))
    }

    fn run_until(self, stop: impl Future<Output = ()> + 'static) -> Result<(), AppError> {
        let parts = self.parts;
        let stop = OnceDone(Some(Box::pin(stop)));
        process::run_until(move || Ok(stop), move || Ok(parts), |addresses| say_where(&addresses))
    }

    fn start(self) -> Result<Running, AppError> {
        let (parts, addresses) = (self.parts, self.addresses);
        let (stop, asked) = unbounded_channel();
        let (tell, serving) = channel();
        let serve = move || {
            let ready = move |addresses: Addresses| {
                say_where(&addresses);
                // Whoever started it has gone: then it is being stopped.
                let _ = tell.send(());
            };
            process::run_until(move || Ok(Asked(asked)), move || Ok(parts), ready)
        };
        let thread = std::thread::Builder::new().name("slowlane-app".to_owned()).spawn(serve)?;
        let mut running = Running { addresses, stop, thread: Some(thread) };
        match serving.recv() {
            Ok(()) => Ok(running),
            // It ended before it served, and says why.
            Err(_) => Err(running.join().err().unwrap_or(AppError::died())),
        }
    }
}

/// Says where requests are answered.
fn say_where(addresses: &Addresses) {
    match addresses.api {
        Some(address) => log::info!("serving on http://{address}"),
        None => log::info!("running jobs"),
    }
    if let Some(address) = addresses.probes {
        log::info!("probes are answered on http://{address}");
    }
}

/// Both are run in the same ways.
macro_rules! runs {
    () => {
        pub(super) fn of(parts: Parts) -> Result<Self, AppError> {
            Assembly::of(parts).map(Self)
        }

        /// The address of probes, where they have one of their own.
        pub fn probe_address(&self) -> Option<SocketAddr> {
            self.0.addresses.probes
        }

        /// Runs until SIGTERM, SIGINT or a hang-up. Running jobs may then end within the grace; a second signal cancels
        /// them on their servers and hands them back at once.
        ///
        /// # Errors
        /// When the databases can't be used as they are, or a thread can't be started.
        pub fn run(self) -> Result<(), AppError> {
            self.0.run()
        }

        /// As `run`, until `stop` is done instead of a signal.
        ///
        /// # Errors
        /// As `run`.
        pub fn run_until(self, stop: impl Future<Output = ()> + 'static) -> Result<(), AppError> {
            self.0.run_until(stop)
        }

        /// Runs it on a thread of its own, beside the program. Returns when it serves. The calling thread waits
        /// meanwhile: in an async program, call it by the runtime's `spawn_blocking`.
        ///
        /// # Errors
        /// As `run`, as far as it concerns the start.
        pub fn start(self) -> Result<Running, AppError> {
            self.0.start()
        }
    };
}

impl Server {
    runs!();

    /// Where HTTP is served: it is listened on already, and answered when the server runs.
    pub fn address(&self) -> Option<SocketAddr> {
        self.0.addresses.api
    }
}

impl Workers {
    runs!();
}

/// A server, or workers, beside the program. Dropping it stops what runs at once, and waits until it has stopped.
pub struct Running {
    addresses: Addresses,
    stop: UnboundedSender<()>,
    thread: Option<JoinHandle<Result<(), AppError>>>,
}

impl Running {
    /// Where HTTP is served.
    pub fn address(&self) -> Option<SocketAddr> {
        self.addresses.api
    }

    /// Where probes are answered, if they have an address of their own.
    pub fn probe_address(&self) -> Option<SocketAddr> {
        self.addresses.probes
    }

    /// Asks it to stop, and waits for nothing: running jobs may end within the grace. Asked again, it cancels them on
    /// their servers and hands them back.
    pub fn ask_to_stop(&self) {
        // It has ended already.
        let _ = self.stop.send(());
    }

    /// Waits until it has ended, whoever asks it to.
    ///
    /// # Errors
    /// What it ended with.
    pub fn wait(mut self) -> Result<(), AppError> {
        self.join()
    }

    /// Asks it to stop, and waits until it has.
    ///
    /// # Errors
    /// What it ended with.
    pub fn stop(self) -> Result<(), AppError> {
        self.ask_to_stop();
        self.wait()
    }

    fn join(&mut self) -> Result<(), AppError> {
        self.thread.take().map_or(Ok(()), |thread| thread.join().unwrap_or(Err(AppError::died())))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.ask_to_stop();
            self.ask_to_stop();
            if let Err(error) = self.join() {
                log::error!("slowlane ended with an error: {error}");
            }
        }
    }
}

/// Stops by messages.
struct Asked(UnboundedReceiver<()>);

impl StopRequests for Asked {
    async fn next(&mut self) {
        if self.0.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

/// Stops once, when its future is done.
struct OnceDone<F>(Option<Pin<Box<F>>>);

impl<F: Future<Output = ()> + 'static> StopRequests for OnceDone<F> {
    async fn next(&mut self) {
        match &mut self.0 {
            Some(future) => future.as_mut().await,
            None => std::future::pending().await,
        }
        self.0 = None;
    }
}
