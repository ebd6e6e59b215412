//! `slowlane probe`: asks a running slowlane how it is, for health checks of containers, which have no curl.
//!
//! A client of the HTTP side like any other: it reads no settings but the address, and opens no database.

use std::io::Read;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ureq::http::uri::Authority;

use crate::cli::Failure;
use crate::config::{self, DEFAULT_LISTEN};

/// How long the answer may take.
const TIMEOUT: Duration = Duration::from_secs(3);
/// As much of an answer as is shown, in bytes.
const SHOWN: u64 = 500;
/// Where the server of the same environment listens: the first of them that is set.
const VARIABLES: [&str; 2] = ["SLOWLANE_PROBE_LISTEN", "SLOWLANE_LISTEN"];

/// The arguments of `slowlane probe`.
#[derive(clap::Args)]
pub struct Probe {
    /// Whom to ask [default: SLOWLANE_PROBE_LISTEN, else SLOWLANE_LISTEN, else 127.0.0.1:8080]
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
    /// What to ask: whether it can do its work, or only whether the process answers
    #[arg(long, value_name = "PATH", default_value = "/readyz", value_parser = ["/readyz", "/healthz"])]
    path: String,
}

impl Probe {
    /// Asks once.
    ///
    /// # Errors
    /// When there is no answer within 3 s, or another one than 200.
    pub fn run(self) -> Result<(), Failure> {
        let address = address(self.address, config::variable)?;
        ask(&format!("http://{address}{}", self.path))
    }
}

fn ask(url: &str) -> Result<(), Failure> {
    // The environment's proxy is for the way out, and a redirect is no answer of ours.
    let settings = ureq::Agent::config_builder()
        .timeout_global(Some(TIMEOUT))
        .http_status_as_error(false)
        .max_redirects(0)
        .proxy(None)
        .build();
    let response =
        ureq::Agent::from(settings).get(url).call().map_err(|error| format!("{url} gives no answer: {error}"))?;
    let status = response.status().as_u16();
    if status == 200 {
        return Ok(());
    }
    let mut body = Vec::new();
    // What can't be read isn't shown; the status says enough.
    let _ = response.into_body().into_reader().take(SHOWN).read_to_end(&mut body);
    Err(format!("{url} answers {status}: {}", in_one_line(&body)).into())
}

fn in_one_line(body: &[u8]) -> String {
    String::from_utf8_lossy(body).chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn address(given: Option<String>, variable: impl Fn(&str) -> Option<String>) -> Result<String, Failure> {
    let address = given
        .or_else(|| VARIABLES.iter().find_map(|name| variable(name)))
        .map_or_else(|| DEFAULT_LISTEN.to_owned(), |address| reachable(&address));
    // It is shown when there is no answer: nothing but a host and a port may stand there.
    let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']' | '%');
    let is_address =
        address.chars().all(is_host) && address.parse::<Authority>().is_ok_and(|parts| parts.port().is_some());
    if is_address { Ok(address) } else { Err(format!("expected HOST:PORT, such as {DEFAULT_LISTEN}").into()) }
}

/// A server that listens on every address is asked on loopback.
fn reachable(address: &str) -> String {
    match address.parse::<SocketAddr>() {
        Ok(SocketAddr::V4(listen)) if listen.ip().is_unspecified() => {
            format!("{}:{}", Ipv4Addr::LOCALHOST, listen.port())
        }
        Ok(SocketAddr::V6(listen)) if listen.ip().is_unspecified() => {
            format!("[{}]:{}", Ipv6Addr::LOCALHOST, listen.port())
        }
        _ => address.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_the_flags_then_the_probes_then_the_listeners() {
        let both = |name: &str| match name {
            "SLOWLANE_PROBE_LISTEN" => Some("127.0.0.1:1".to_owned()),
            "SLOWLANE_LISTEN" => Some("127.0.0.1:2".to_owned()),
            _ => None,
        };
        let listen = |name: &str| both(name).filter(|_| name == "SLOWLANE_LISTEN");
        assert_eq!(address(Some("127.0.0.1:3".to_owned()), both).unwrap(), "127.0.0.1:3");
        assert_eq!(address(None, both).unwrap(), "127.0.0.1:1");
        assert_eq!(address(None, listen).unwrap(), "127.0.0.1:2");
        assert_eq!(address(None, |_| None).unwrap(), "127.0.0.1:8080");
    }

    #[test]
    fn every_address_is_asked_on_loopback_and_what_is_none_is_refused() {
        let asked = |text: &str| address(Some(text.to_owned()), |_| None);
        for (listen, expected) in [
            ("0.0.0.0:81", "127.0.0.1:81"),
            ("[::]:81", "[::1]:81"),
            ("[::1]:81", "[::1]:81"),
            ("10.0.0.7:81", "10.0.0.7:81"),
            ("worker:81", "worker:81"),
        ] {
            assert_eq!(asked(listen).unwrap(), expected);
        }
        for wrong in ["", "worker", "8080", "http://worker:81", "user@worker:81", "worker:81/readyz", "::1", "a b:1"] {
            assert!(asked(wrong).unwrap_err().to_string().contains("HOST:PORT"), "{wrong}");
        }
    }
}
