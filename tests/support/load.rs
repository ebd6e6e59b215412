//! Callers that go on as the contract tells them to: a 503 and a broken connection are tried again with the same
//! Idempotency-Key, at whichever server answers.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::PATIENCE;
use super::client::Client;

/// The servers that callers know at the moment, as a load balancer would.
#[derive(Clone, Default)]
pub struct Servers(Arc<Mutex<Vec<SocketAddr>>>);

impl Servers {
    pub fn new(addresses: &[SocketAddr]) -> Servers {
        Servers(Arc::new(Mutex::new(addresses.to_vec())))
    }

    pub fn replace(&self, old: SocketAddr, new: SocketAddr) {
        self.0.lock().unwrap().iter_mut().filter(|address| **address == old).for_each(|address| *address = new);
    }

    fn pick(&self, n: usize) -> SocketAddr {
        let addresses = self.0.lock().unwrap();
        addresses[n % addresses.len()]
    }

    /// Submits a job, as often as it takes; its id. Anything but an acceptance, a 503 and a broken connection fails.
    pub fn submit(&self, key: &str, job: &Value) -> String {
        let until = Instant::now() + PATIENCE;
        let headers = [("content-type", "application/json"), ("idempotency-key", key)];
        let body = job.to_string();
        for n in 0.. {
            let client = Client::new(self.pick(n));
            match client.try_send("POST", "/v1/jobs", &headers, body.as_bytes()) {
                Ok(answer) if answer.status == 202 => return answer.json()["id"].as_str().unwrap().to_owned(),
                Ok(answer) if answer.status == 503 => assert!(answer.header("retry-after").is_some()),
                Ok(answer) => panic!("{} {}", answer.status, answer.text()),
                Err(_) => {}
            }
            assert!(Instant::now() < until, "not accepted in time");
            // As long as a caller that minds Retry-After would at least wait.
            std::thread::sleep(Duration::from_millis(50));
        }
        unreachable!()
    }
}

/// Callers that submit jobs one after the other until they are told to stop.
pub struct Load {
    stop: Arc<AtomicBool>,
    accepted: Arc<AtomicUsize>,
    callers: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    pub fn start(servers: &Servers, callers: usize, job: &Value) -> Load {
        let (stop, accepted) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let callers = (0..callers)
            .map(|caller| {
                let (servers, job) = (servers.clone(), job.clone());
                let (stop, accepted) = (Arc::clone(&stop), Arc::clone(&accepted));
                std::thread::spawn(move || {
                    let mut ids = Vec::new();
                    // Bounded, should nobody say stop.
                    while !stop.load(Ordering::SeqCst) && ids.len() < 2_000 {
                        ids.push(servers.submit(&format!("{caller}-{}", ids.len()), &job));
                        accepted.fetch_add(1, Ordering::SeqCst);
                    }
                    ids
                })
            })
            .collect();
        Load { stop, accepted, callers }
    }

    /// Waits until `more` further jobs were accepted.
    #[track_caller]
    pub fn wait_for(&self, more: usize) {
        let wanted = self.accepted.load(Ordering::SeqCst) + more;
        super::eventually("jobs are accepted", || self.accepted.load(Ordering::SeqCst) >= wanted);
    }

    /// Stops; the ids of all jobs that were accepted.
    pub fn stop(self) -> Vec<String> {
        self.stop.store(true, Ordering::SeqCst);
        self.callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect()
    }
}
