//! An HTTP client that shows every answer as it is.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use serde_json::Value;

use super::PATIENCE;

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The status, and the problem document's `code` and pointers.
    #[track_caller]
    pub fn problem(&self) -> (u16, String, Vec<String>) {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?} {}", self.text());
        let document = self.json();
        for member in [
            "type",
            "title",
            "status",
            "detail",
            "instance",
            "code",
            "retryable",
            "sqlstate",
            "hint",
            "position",
            "errors",
        ] {
            assert!(document.get(member).is_some(), "{member} is missing: {document}");
        }
        assert_eq!(document["status"], self.status);
        let pointers = document["errors"].as_array().unwrap().iter().map(|e| e["pointer"].as_str().unwrap().to_owned());
        (self.status, document["code"].as_str().unwrap().to_owned(), pointers.collect())
    }
}

/// Talks to one server.
#[derive(Clone)]
pub struct Client {
    pub address: SocketAddr,
    agent: ureq::Agent,
}

impl Client {
    pub fn new(address: SocketAddr) -> Client {
        let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(PATIENCE)).build();
        Client { address, agent: config.into() }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Any request with a body, as it is.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.try_send(method, path, headers, body).unwrap_or_else(|e| panic!("{method} {path}: {e}"))
    }

    pub fn try_send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer, ureq::Error> {
        let mut request = ureq::http::Request::builder().method(method).uri(self.url(path));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let agent = &self.agent;
        let response = if body.is_empty() && method != "POST" {
            agent.run(request.body(()).unwrap())?
        } else {
            agent.run(request.body(body).unwrap())?
        };
        let status = response.status().as_u16();
        let headers = response.headers().iter().map(|(n, v)| (n.to_string(), v.to_str().unwrap().to_owned())).collect();
        let mut read = Vec::new();
        response.into_body().into_with_config().limit(u64::MAX).reader().read_to_end(&mut read)?;
        Ok(Answer { status, headers, body: read })
    }

    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], b"")
    }

    pub fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.send("GET", path, headers, b"")
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_with(path, &[], body)
    }

    pub fn post_with(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
        let mut all = vec![("content-type", "application/json")];
        all.extend_from_slice(headers);
        self.send("POST", path, &all, body.to_string().as_bytes())
    }

    /// Submits a job that is accepted; its id.
    #[track_caller]
    pub fn submit(&self, job: &Value) -> String {
        let answer = self.post("/v1/jobs", job);
        assert_eq!(answer.status, 202, "{}", answer.text());
        answer.json()["id"].as_str().unwrap().to_owned()
    }

    /// Submits a query; its job when it has ended.
    #[track_caller]
    pub fn query(&self, sql: &str, params: &Value) -> Value {
        let id = self.submit(&serde_json::json!({"kind": "query", "args": {"sql": sql, "params": params}}));
        self.ended(&id)
    }

    pub fn job(&self, id: &str) -> Value {
        self.get(&format!("/v1/jobs/{id}")).json()
    }

    /// The job, once it has ended.
    #[track_caller]
    pub fn ended(&self, id: &str) -> Value {
        let until = Instant::now() + PATIENCE;
        loop {
            let answer = self.get_with(&format!("/v1/jobs/{id}"), &[("prefer", "wait=5")]);
            assert_eq!(answer.status, 200, "{}", answer.text());
            let job = answer.json();
            if ["succeeded", "failed", "cancelled"].contains(&job["state"].as_str().unwrap()) {
                return job;
            }
            assert!(Instant::now() < until, "not in time: {job}");
        }
    }

    /// The bytes of a request, written as they are; all that comes back.
    pub fn raw(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }
}
