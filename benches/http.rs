//! Single requests, and bodies of any size, over plain sockets.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use serde_json::Value;

/// A keep-alive connection.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    pub fn open(address: SocketAddr) -> Connection {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        Connection { stream, buffer: Vec::new() }
    }

    /// Sends a request, and gives the answer's status and body.
    pub fn send(&mut self, request: &[u8]) -> (u16, &[u8]) {
        self.stream.write_all(request).unwrap();
        self.buffer.clear();
        let mut chunk = [0; 16 * 1024];
        loop {
            let n = self.stream.read(&mut chunk).unwrap();
            assert!(n > 0, "the server closed the connection");
            self.buffer.extend_from_slice(&chunk[..n]);
            if let Some(answer) = Head::of(&self.buffer)
                && self.buffer.len() >= answer.head + answer.length
            {
                return (answer.status, &self.buffer[answer.head..answer.head + answer.length]);
            }
        }
    }
}

/// What the head of an answer says.
pub struct Head {
    pub status: u16,
    /// Its own length.
    pub head: usize,
    /// The body's length.
    pub length: usize,
}

impl Head {
    /// `None` while it isn't whole.
    pub fn of(bytes: &[u8]) -> Option<Head> {
        let head = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
        let status = std::str::from_utf8(&bytes[9..12]).ok()?.parse().ok()?;
        let length = bytes[..head].split(|b| *b == b'\n').find_map(|line| {
            let (name, value) = line.split_at_checked(15)?;
            name.eq_ignore_ascii_case(b"content-length:").then_some(value)
        });
        let length = length.map_or(0, |value| std::str::from_utf8(value).unwrap().trim().parse().unwrap());
        Some(Head { status, head, length })
    }
}

/// The bytes of a POST of JSON.
pub fn post_request(path: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// The bytes of a GET.
pub fn get_request(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").into_bytes()
}

/// The bytes of a GET that waits for a change.
pub fn waiting_request(path: &str, seconds: u32) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nPrefer: wait={seconds}\r\n\r\n").into_bytes()
}

/// Cancels a job.
pub fn cancel(address: SocketAddr, id: &str) {
    let (status, _) = Connection::open(address).send(&post_request(&format!("/v1/jobs/{id}/cancel"), "{}"));
    assert!(status == 202 || status == 200, "{status}");
}

/// One GET on a connection of its own.
pub fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut connection = Connection::open(address);
    let (status, body) = connection.send(&get_request(path));
    (status, String::from_utf8_lossy(body).into_owned())
}

/// Submits a job; its id.
pub fn submit(address: SocketAddr, job: &Value) -> String {
    let mut connection = Connection::open(address);
    let (status, body) = connection.send(&post_request("/v1/jobs", &job.to_string()));
    assert_eq!(status, 202, "{}", String::from_utf8_lossy(body));
    let job: Value = serde_json::from_slice(body).unwrap();
    job["id"].as_str().unwrap().to_owned()
}

/// Uploads a file of this media type; the upload's id.
pub fn upload(address: SocketAddr, media_type: &str, file: &Path) -> String {
    let mut from = File::open(file).unwrap();
    let length = from.metadata().unwrap().len();
    let mut connection = Connection::open(address);
    let head = format!(
        "POST /v1/uploads HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media_type}\r\nContent-Length: {length}\r\n\r\n"
    );
    connection.stream.write_all(head.as_bytes()).unwrap();
    std::io::copy(&mut from, &mut connection.stream).unwrap();
    let (status, body) = connection.send(&[]);
    assert_eq!(status, 201, "{}", String::from_utf8_lossy(body));
    let upload: Value = serde_json::from_slice(body).unwrap();
    upload["id"].as_str().unwrap().to_owned()
}

/// Waits until a job has ended.
pub fn ended(address: SocketAddr, id: &str) -> Value {
    let mut connection = Connection::open(address);
    let request = format!("GET /v1/jobs/{id} HTTP/1.1\r\nHost: localhost\r\nPrefer: wait=30\r\n\r\n");
    loop {
        let (status, body) = connection.send(request.as_bytes());
        assert_eq!(status, 200);
        let job: Value = serde_json::from_slice(body).unwrap();
        if ["succeeded", "failed", "cancelled"].iter().any(|state| job["state"] == *state) {
            return job;
        }
    }
}

/// Fetches a body of any size into `out`; its length.
pub fn fetch(address: SocketAddr, path: &str, out: &mut impl Write) -> u64 {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(&get_request(path)).unwrap();
    let mut buffer = vec![0; 256 * 1024];
    let mut filled = 0;
    let head = loop {
        let n = stream.read(&mut buffer[filled..]).unwrap();
        assert!(n > 0, "the server closed the connection");
        filled += n;
        if let Some(head) = Head::of(&buffer[..filled]) {
            break head;
        }
    };
    assert_eq!(head.status, 200);
    out.write_all(&buffer[head.head..filled]).unwrap();
    let mut left = head.length - (filled - head.head);
    while left > 0 {
        let n = stream.read(&mut buffer).unwrap();
        assert!(n > 0, "the body broke off {left} bytes before its end");
        out.write_all(&buffer[..n]).unwrap();
        left -= n;
    }
    head.length as u64
}
