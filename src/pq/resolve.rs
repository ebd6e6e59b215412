//! Host names looked up in bounded time.
//!
//! libpq looks names up by a call of the C library that no `connect_timeout` bounds: a name server that stays silent
//! holds it for half a minute. So that is done before, by threads that nobody has to wait for, and libpq is given each
//! address beside its name, which it still checks certificates against.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use crate::dsn::Dsn;
use crate::pq::failure::ConnectFailure;

/// Where `connect_timeout` is switched off.
const LONGEST: Duration = Duration::from_secs(60);

/// A name's addresses; none when it has none.
type Addresses = BTreeMap<String, Vec<String>>;

/// The same string with the addresses of its host names, and what is left of its `connect_timeout` when looking them
/// up took seconds. Names without an address are left out.
///
/// # Errors
/// When no host is left: none of the names has an address, or none was learned within `connect_timeout`.
pub fn with_addresses(dsn: &Dsn) -> Result<Dsn, ConnectFailure> {
    resolved(dsn, addresses_of)
}

fn addresses_of(name: &str) -> Vec<String> {
    let found = (name, 0).to_socket_addrs().map(Iterator::collect::<Vec<_>>).unwrap_or_default();
    found.iter().map(written).collect()
}

/// As `getaddrinfo` reads it back: a link-local address needs its interface.
fn written(address: &SocketAddr) -> String {
    match address {
        SocketAddr::V6(v6) if v6.scope_id() != 0 => format!("{}%{}", v6.ip(), v6.scope_id()),
        _ => address.ip().to_string(),
    }
}

fn resolved(dsn: &Dsn, look_up: fn(&str) -> Vec<String>) -> Result<Dsn, ConnectFailure> {
    let given = |keyword: &str| dsn.get(keyword).filter(|value| !value.is_empty());
    let (None, Some(hosts)) = (given("hostaddr"), given("host")) else { return Ok(dsn.clone()) };
    let hosts: Vec<&str> = hosts.split(',').collect();
    let ports: Vec<&str> = given("port").unwrap_or_default().split(',').collect();
    // Counts that don't fit are for libpq to complain of.
    if !hosts.iter().any(|host| is_a_name(host)) || (ports.len() > 1 && ports.len() != hosts.len()) {
        return Ok(dsn.clone());
    }
    let timeout = dsn.get("connect_timeout").and_then(|text| text.trim().parse().ok()).filter(|seconds| *seconds > 0);
    let began = Instant::now();
    let names = hosts.iter().copied().filter(|host| is_a_name(host));
    let known = addresses(names, timeout.map_or(LONGEST, Duration::from_secs), look_up);
    let spent = began.elapsed();
    let mut entries: Vec<[&str; 3]> = Vec::new();
    for (n, host) in hosts.iter().enumerate() {
        let port = ports.get(n).or(ports.first()).copied().unwrap_or_default();
        match known.get(*host) {
            Some(addresses) => entries.extend(addresses.iter().map(|address| [*host, address.as_str(), port])),
            None if is_a_name(host) => {}
            None => entries.push([host, "", port]),
        }
    }
    if entries.is_empty() {
        let all_known = hosts.iter().all(|host| known.contains_key(*host));
        return Err(if all_known { ConnectFailure::HostNotResolved } else { ConnectFailure::TimedOut });
    }
    let list = |n: usize| entries.iter().filter_map(|entry| entry.get(n).copied()).collect::<Vec<_>>().join(",");
    let mut dsn = dsn.clone().with("host", &list(0)).with("hostaddr", &list(1));
    if ports.len() > 1 {
        dsn = dsn.with("port", &list(2));
    }
    if let Some(timeout) = timeout {
        dsn = dsn.with("connect_timeout", &timeout.saturating_sub(spent.as_secs()).max(1).to_string());
    }
    Ok(dsn)
}

/// It is neither a folder of sockets nor an address.
fn is_a_name(host: &str) -> bool {
    let is_address = host.split('%').next().is_some_and(|address| address.parse::<IpAddr>().is_ok());
    !host.is_empty() && !host.starts_with(['/', '@']) && !is_address
}

/// Looks all names up at once. A name that isn't in the answer wasn't learned of in time.
fn addresses<'n>(
    names: impl Iterator<Item = &'n str>,
    within: Duration,
    look_up: fn(&str) -> Vec<String>,
) -> Addresses {
    let until = Instant::now() + within;
    let (sender, answers) = channel();
    let mut asked = 0;
    for name in names {
        let (name, sender) = (name.to_owned(), sender.clone());
        let ask = move || {
            let found = look_up(&name);
            // Nobody waits any more for one that comes late.
            let _ = sender.send((name, found));
        };
        match std::thread::Builder::new().name("slowlane-resolve".to_owned()).spawn(ask) {
            Ok(_) => asked += 1,
            Err(error) => log::warn!("a host name can't be looked up: {error}"),
        }
    }
    let mut known = Addresses::new();
    for _ in 0..asked {
        let Ok((name, found)) = answers.recv_timeout(until.saturating_duration_since(Instant::now())) else { break };
        known.insert(name, found);
    }
    known
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name server of which one name is silent.
    fn look_up(name: &str) -> Vec<String> {
        match name {
            "two.test" => vec!["10.0.0.1".to_owned(), "::1".to_owned()],
            "one.test" => vec!["10.0.0.2".to_owned()],
            "silent.test" => {
                std::thread::sleep(Duration::from_secs(60));
                vec!["10.0.0.3".to_owned()]
            }
            _ => Vec::new(),
        }
    }

    fn lists(text: &str) -> Result<[Option<String>; 4], ConnectFailure> {
        let dsn = Dsn::parse(text, crate::pq::parameters()).unwrap();
        let dsn = resolved(&dsn, look_up)?;
        Ok(["host", "hostaddr", "port", "connect_timeout"].map(|keyword| dsn.get(keyword).map(str::to_owned)))
    }

    fn some(texts: [&str; 4]) -> Result<[Option<String>; 4], ConnectFailure> {
        Ok(texts.map(|text| (!text.is_empty()).then(|| text.to_owned())))
    }

    #[test]
    fn names_get_their_addresses_and_everything_else_stays() {
        assert_eq!(lists("host=two.test port=7"), some(["two.test,two.test", "10.0.0.1,::1", "7", ""]));
        assert_eq!(
            lists("host=two.test,/tmp,none.test,10.9.9.9,one.test port=1,2,3,4,5 connect_timeout=5"),
            some(["two.test,two.test,/tmp,10.9.9.9,one.test", "10.0.0.1,::1,,,10.0.0.2", "1,1,2,4,5", "5"])
        );
        assert_eq!(lists("host=/tmp port=7"), some(["/tmp", "", "7", ""]));
        assert_eq!(lists("host=::1"), some(["::1", "", "", ""]));
        assert_eq!(lists("host=two.test hostaddr=10.1.1.1"), some(["two.test", "10.1.1.1", "", ""]));
        assert_eq!(lists("host=none.test"), Err(ConnectFailure::HostNotResolved));
    }

    #[test]
    fn a_name_server_that_stays_silent_is_waited_for_no_longer_than_for_a_server() {
        let began = Instant::now();
        assert_eq!(lists("host=silent.test connect_timeout=1"), Err(ConnectFailure::TimedOut));
        // The other host still has its turn.
        assert_eq!(lists("host=silent.test,one.test connect_timeout=1"), some(["one.test", "10.0.0.2", "", "1"]));
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    }

    #[test]
    fn a_link_local_address_keeps_its_interface() {
        let address = SocketAddr::V6(std::net::SocketAddrV6::new("fe80::1".parse().unwrap(), 0, 0, 3));
        assert_eq!(written(&address), "fe80::1%3");
    }
}
