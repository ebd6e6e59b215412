//! A proxy between slowlane and its Postgres, or its callers, that can lose answers and connections.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use slowlane::dsn::Dsn;

/// What the proxy does with bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    /// Passes them on.
    Pass = 0,
    /// Passes what the client says, and drops what the server says.
    Mute = 1,
    /// Passes nothing.
    Blackhole = 2,
    /// Takes no new connection.
    Refuse = 3,
}

struct Inner {
    mode: AtomicU8,
    accepted: AtomicUsize,
    swallowed: AtomicUsize,
    streams: Mutex<Vec<TcpStream>>,
}

/// See the module.
pub struct Proxy {
    pub address: SocketAddr,
    inner: Arc<Inner>,
}

impl Proxy {
    /// In front of the server of `dsn`.
    pub fn before(dsn: &Dsn) -> Proxy {
        Proxy::to(format!("{}:{}", dsn.get("host").unwrap(), dsn.get("port").unwrap()))
    }

    /// In front of the server at a host and port.
    pub fn to(server: String) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let inner = Arc::new(Inner {
            mode: AtomicU8::new(0),
            accepted: AtomicUsize::new(0),
            swallowed: AtomicUsize::new(0),
            streams: Mutex::default(),
        });
        let accepting = Arc::clone(&inner);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                accepting.accepted.fetch_add(1, Ordering::SeqCst);
                if accepting.mode.load(Ordering::SeqCst) == Mode::Refuse as u8 {
                    continue;
                }
                let Ok(server) = TcpStream::connect(&server) else { continue };
                let (from_client, from_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                accepting.streams.lock().unwrap().extend([client.try_clone().unwrap(), server.try_clone().unwrap()]);
                let (up, down) = (Arc::clone(&accepting), Arc::clone(&accepting));
                std::thread::spawn(move || pump(&up, from_client, server, &[Mode::Pass, Mode::Mute]));
                std::thread::spawn(move || pump(&down, from_server, client, &[Mode::Pass]));
            }
        });
        Proxy { address, inner }
    }

    /// The same database, through the proxy.
    pub fn dsn(&self, dsn: &Dsn) -> Dsn {
        dsn.clone().with("port", &self.address.port().to_string())
    }

    pub fn set(&self, mode: Mode) {
        self.inner.mode.store(mode as u8, Ordering::SeqCst);
    }

    /// Connections that were begun so far, refused ones among them.
    pub fn accepted(&self) -> usize {
        self.inner.accepted.load(Ordering::SeqCst)
    }

    /// Bytes that were said and not passed on so far.
    pub fn swallowed(&self) -> usize {
        self.inner.swallowed.load(Ordering::SeqCst)
    }

    /// Breaks every connection.
    pub fn cut(&self) {
        for stream in self.inner.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn pump(inner: &Inner, mut from: TcpStream, mut to: TcpStream, passing: &[Mode]) {
    let mut buffer = vec![0; 65_536];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        let mode = inner.mode.load(Ordering::SeqCst);
        if !passing.iter().any(|m| *m as u8 == mode) {
            inner.swallowed.fetch_add(read, Ordering::SeqCst);
        } else if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
