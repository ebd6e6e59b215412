//! Parameters to text: for libpq, for other programs, for people.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::dsn::check::is_ipv6;

/// `key='value' …`, with `\` and `'` escaped.
pub(super) fn conninfo(parameters: &BTreeMap<String, String>) -> String {
    let quoted = |value: &str| value.replace('\\', "\\\\").replace('\'', "\\'");
    parameters.iter().map(|(keyword, value)| format!("{keyword}='{}'", quoted(value))).collect::<Vec<_>>().join(" ")
}

/// A URL whose values pass through `show` first.
pub(super) fn url(parameters: &BTreeMap<String, String>, show: impl Fn(&str, &str) -> String) -> String {
    let shown = parameters.iter().map(|(keyword, value)| (keyword.clone(), show(keyword, value))).collect();
    let query = parameters.keys().filter(|keyword| match keyword.as_str() {
        "host" | "port" | "dbname" | "user" => false,
        "password" => !parameters.contains_key("user"),
        _ => true,
    });
    let query: Vec<(&str, &str)> = query.filter_map(|keyword| pair(&shown, keyword)).collect();
    url_of("postgresql://", &shown, &query)
}

fn pair<'p>(parameters: &'p BTreeMap<String, String>, keyword: &str) -> Option<(&'p str, &'p str)> {
    parameters.get_key_value(keyword).map(|(keyword, value)| (keyword.as_str(), value.as_str()))
}

/// A URL with user, password, hosts and database from `parameters`, and this query.
pub(super) fn url_of(scheme: &str, parameters: &BTreeMap<String, String>, query: &[(&str, &str)]) -> String {
    let get = |keyword: &str| parameters.get(keyword).map(|value| encode(value));
    let mut url = String::from(scheme);
    if let Some(user) = get("user") {
        url += &user;
        if let Some(password) = get("password") {
            url += ":";
            url += &password;
        }
        url += "@";
    }
    url += &hosts(parameters);
    if let Some(database) = get("dbname") {
        url += "/";
        url += &database;
    }
    if !query.is_empty() {
        url += if parameters.contains_key("dbname") { "?" } else { "/?" };
        let pairs = query.iter().map(|(keyword, value)| format!("{keyword}={}", encode(value)));
        url += &pairs.collect::<Vec<_>>().join("&");
    }
    url
}

/// Each host with its port: libpq has one port for all hosts, or one for each.
pub(super) fn hosts_and_ports(parameters: &BTreeMap<String, String>) -> Vec<(String, String)> {
    let hosts = parameters.get("host").map(String::as_str).unwrap_or_default();
    let mut ports = parameters.get("port").map(String::as_str).unwrap_or_default().split(',');
    let mut last = "";
    hosts
        .split(',')
        .map(|host| {
            last = ports.next().unwrap_or(last);
            (host.to_owned(), last.to_owned())
        })
        .collect()
}

fn hosts(parameters: &BTreeMap<String, String>) -> String {
    let rendered = hosts_and_ports(parameters).into_iter().map(|(host, port)| {
        let host = if is_ipv6(&host) { format!("[{}]", encode(&host).replace("%3A", ":")) } else { encode(&host) };
        if port.is_empty() { host } else { format!("{host}:{port}") }
    });
    rendered.collect::<Vec<_>>().join(",")
}

pub(super) fn encode(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut encoded, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'*' => {
                encoded.push(char::from(byte))
            }
            // Writing to a String can't fail.
            _ => drop(write!(encoded, "%{byte:02X}")),
        }
        encoded
    })
}
