//! The whole server within the tests' process, put together as the program does it.

use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::Duration;

use slowlane::cli::process::{self, Addresses, Listeners, Parts, StopRequests};
use slowlane::config::{Config, File, Settings, TargetConfig};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::client::Client;
use super::postgres::{Database, Postgres};
use super::{PATIENCE, kinds};

/// A running server. Stopped when it is dropped.
pub struct TestApp {
    pub client: Client,
    pub queue: Database,
    pub target: Database,
    stop: UnboundedSender<()>,
    thread: Option<JoinHandle<()>>,
}

struct Channel(UnboundedReceiver<()>);

impl StopRequests for Channel {
    async fn next(&mut self) {
        if self.0.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

impl TestApp {
    /// On databases of its own.
    pub fn start() -> TestApp {
        TestApp::with(|_| {})
    }

    /// On databases of its own, with other settings.
    pub fn with(change: impl FnOnce(&mut Config)) -> TestApp {
        let postgres = Postgres::shared();
        TestApp::on(postgres.queue(), postgres.work(), change)
    }

    /// With all flights as its target.
    pub fn with_flights() -> TestApp {
        let postgres = Postgres::shared();
        TestApp::on(postgres.queue(), postgres.demo(), |_| {})
    }

    pub fn on(queue: Database, target: Database, change: impl FnOnce(&mut Config)) -> TestApp {
        let mut config = Settings::default().resolve(&File::default()).unwrap();
        config.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        config.workers = 4;
        config.shutdown_grace = Duration::ZERO;
        change(&mut config);
        let listeners = Listeners::open(&config).unwrap();
        let targets = [("default".to_owned(), TargetConfig::at(target.dsn.clone()))].into();
        let dsn = queue.dsn.clone();
        let target_names = vec!["default".to_owned()];
        let parts =
            move || Ok(Parts { config, queue: dsn, target_names, targets, registry: kinds::registry(), listeners });
        let (stop, stopped) = unbounded_channel();
        let (ready, address) = channel();
        let serve = move || {
            let tell = move |addresses: Addresses| ready.send(addresses.api.unwrap()).unwrap();
            process::run_until(move || Ok(Channel(stopped)), parts, tell).unwrap();
        };
        let thread = std::thread::Builder::new().name("app".to_owned()).spawn(serve).unwrap();
        let client = Client::new(address.recv_timeout(PATIENCE).expect("the server did not start"));
        super::eventually("the server is ready", || client.get("/readyz").status == 200);
        TestApp { client, queue, target, stop, thread: Some(thread) }
    }

    /// Asks it to stop; a second time, to hurry.
    pub fn ask_to_stop(&self) {
        self.stop.send(()).unwrap();
    }

    /// Waits until it has stopped.
    pub fn join(&mut self) {
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Deref for TestApp {
    type Target = Client;
    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Drop for TestApp {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = self.stop.send(());
            let _ = self.stop.send(());
            let _ = thread.join();
        }
    }
}
