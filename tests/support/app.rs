//! The whole server within the tests' process, put together as any program that embeds it does.

use std::net::SocketAddr;
use std::ops::Deref;
use std::time::Duration;

use slowlane::config::Config;
use slowlane::{Running, Server};

use super::client::Client;
use super::kinds;
use super::postgres::{Database, Postgres};

/// A running server. Stopped when it is dropped.
pub struct TestApp {
    pub client: Client,
    pub queue: Database,
    pub target: Database,
    running: Option<Running>,
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
        let mut config = Config {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            workers: 4,
            shutdown_grace: Duration::ZERO,
            ..Config::default()
        };
        change(&mut config);
        let server = Server::builder().config(config).queue(&queue.dsn).target("default", &target.dsn);
        let running = server.registry(kinds::registry()).build().unwrap().start().unwrap();
        let client = Client::new(running.address().unwrap());
        super::eventually("the server is ready", || client.get("/readyz").status == 200);
        TestApp { client, queue, target, running: Some(running) }
    }

    /// Asks it to stop; a second time, to hurry.
    pub fn ask_to_stop(&self) {
        self.running.as_ref().unwrap().ask_to_stop();
    }

    /// Waits until it has stopped.
    pub fn join(&mut self) {
        self.running.take().unwrap().wait().unwrap();
    }
}

impl Deref for TestApp {
    type Target = Client;
    fn deref(&self) -> &Client {
        &self.client
    }
}
