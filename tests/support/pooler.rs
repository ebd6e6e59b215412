//! A small pooler before a Postgres: clients share its sessions, each for a transaction or for as long as it stays.
//!
//! Speaks as much of the protocol as slowlane needs to get in, without a password: the server must trust it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use slowlane::dsn::Dsn;

/// When a session of the server is given back, and which one is taken next.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// After each transaction; the one that was given back last.
    Transactions,
    /// After each transaction; the one that was given back first.
    RoundRobin,
    /// When the client goes.
    Sessions,
}

/// See the module.
pub struct Pooler {
    address: SocketAddr,
}

struct Pool {
    pooling: Pooling,
    server: String,
    idle: Mutex<Vec<Session>>,
}

/// A session of the server, and what it said of itself at the start.
struct Session {
    stream: TcpStream,
    parameters: Vec<u8>,
}

const SSL_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;
const CANCEL_REQUEST: u32 = 80_877_102;

impl Pooler {
    /// In front of the server of `dsn`.
    pub fn before(dsn: &Dsn, pooling: Pooling) -> Pooler {
        let server = format!("{}:{}", dsn.get("host").unwrap(), dsn.get("port").unwrap());
        let pool = Arc::new(Pool { pooling, server, idle: Mutex::default() });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let pool = Arc::clone(&pool);
                std::thread::spawn(move || pool.serve(client));
            }
        });
        Pooler { address }
    }

    /// The same database, through the pooler.
    pub fn dsn(&self, dsn: &Dsn) -> Dsn {
        dsn.clone().with("port", &self.address.port().to_string())
    }
}

impl Pool {
    /// Until either side goes.
    fn serve(&self, mut client: TcpStream) -> Option<()> {
        let startup = read_startup(&mut client)?;
        let session = self.take(&startup)?;
        let mut greeting = message(b'R', &0_u32.to_be_bytes());
        greeting.extend_from_slice(&session.parameters);
        greeting.extend(message(b'K', &rand::random::<[u8; 8]>()));
        greeting.extend(message(b'Z', b"I"));
        client.write_all(&greeting).ok()?;
        let mut held = self.keep_or_give_back(session);
        loop {
            let frame = read_message(&mut client)?;
            if frame[0] == b'X' {
                return None;
            }
            let mut session = match held.take() {
                Some(session) => session,
                None => self.take(&startup)?,
            };
            session.stream.write_all(&frame).ok()?;
            if !matches!(frame[0], b'Q' | b'S') {
                held = Some(session);
                continue;
            }
            let status = loop {
                let answer = read_message(&mut session.stream)?;
                client.write_all(&answer).ok()?;
                if answer[0] == b'Z' {
                    break answer[5];
                }
            };
            held = if status == b'I' { self.keep_or_give_back(session) } else { Some(session) };
        }
    }

    fn keep_or_give_back(&self, session: Session) -> Option<Session> {
        if self.pooling == Pooling::Sessions {
            return Some(session);
        }
        self.idle.lock().unwrap().push(session);
        None
    }

    fn take(&self, startup: &[u8]) -> Option<Session> {
        let mut idle = self.idle.lock().unwrap();
        match self.pooling {
            Pooling::RoundRobin if !idle.is_empty() => return Some(idle.remove(0)),
            Pooling::Transactions if !idle.is_empty() => return idle.pop(),
            _ => {}
        }
        drop(idle);
        let mut stream = TcpStream::connect(&self.server).ok()?;
        stream.write_all(startup).ok()?;
        let mut parameters = Vec::new();
        loop {
            let answer = read_message(&mut stream)?;
            match answer[0] {
                b'S' => parameters.extend(answer),
                b'Z' => return Some(Session { stream, parameters }),
                b'E' => return None,
                _ => {}
            }
        }
    }
}

/// A message as a server writes it.
pub fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[kind][..], &length.to_be_bytes(), body].concat()
}

/// The first message of a client that asks for no TLS; `None` for a cancel, or when it goes.
pub fn read_startup(client: &mut TcpStream) -> Option<Vec<u8>> {
    loop {
        let mut head = [0; 8];
        client.read_exact(&mut head).ok()?;
        let number = |n: usize| u32::from_be_bytes(head[n..n + 4].try_into().unwrap());
        match number(4) {
            SSL_REQUEST | GSS_REQUEST => client.write_all(b"N").ok()?,
            CANCEL_REQUEST => return None,
            _ => {
                let mut startup = head.to_vec();
                startup.resize(usize::try_from(number(0)).unwrap(), 0);
                client.read_exact(&mut startup[8..]).ok()?;
                return Some(startup);
            }
        }
    }
}

fn read_message(from: &mut TcpStream) -> Option<Vec<u8>> {
    let mut frame = vec![0; 5];
    from.read_exact(&mut frame).ok()?;
    let length = u32::from_be_bytes(frame[1..5].try_into().unwrap());
    frame.resize(usize::try_from(length).unwrap() + 1, 0);
    from.read_exact(&mut frame[5..]).ok()?;
    Some(frame)
}
