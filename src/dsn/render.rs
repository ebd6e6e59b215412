//! Parameters to text: for libpq, for other programs, for people.

use std::collections::BTreeMap;
use std::fmt::Write;

/// `key='value' …`, with `\` and `'` escaped.
pub(super) fn conninfo(parameters: &BTreeMap<String, String>) -> String {
    let quoted = |value: &str| value.replace('\\', "\\\\").replace('\'', "\\'");
    parameters.iter().map(|(keyword, value)| format!("{keyword}='{}'", quoted(value))).collect::<Vec<_>>().join(" ")
}

/// A URL whose values pass through `show` first.
pub(super) fn url(parameters: &BTreeMap<String, String>, show: impl Fn(&str, &str) -> String) -> String {
    let get = |keyword: &str| parameters.get(keyword).map(|value| encode(&show(keyword, value)));
    let mut url = String::from("postgresql://");
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
    let in_query = |keyword: &str| match keyword {
        "host" | "port" | "dbname" | "user" => false,
        "password" => !parameters.contains_key("user"),
        _ => true,
    };
    let query: Vec<String> = parameters
        .iter()
        .filter(|(keyword, _)| in_query(keyword))
        .map(|(keyword, value)| format!("{keyword}={}", encode(&show(keyword, value))))
        .collect();
    if !query.is_empty() {
        url += if parameters.contains_key("dbname") { "?" } else { "/?" };
        url += &query.join("&");
    }
    url
}

fn hosts(parameters: &BTreeMap<String, String>) -> String {
    let hosts = parameters.get("host").map(String::as_str).unwrap_or_default();
    let mut ports = parameters.get("port").map(String::as_str).unwrap_or_default().split(',');
    let mut last = "";
    let mut rendered = Vec::new();
    for host in hosts.split(',') {
        // libpq: one port for all hosts, or one for each.
        last = ports.next().unwrap_or(last);
        let host = if host.contains(':') { format!("[{host}]") } else { encode(host) };
        rendered.push(if last.is_empty() { host } else { format!("{host}:{last}") });
    }
    rendered.join(",")
}

fn encode(text: &str) -> String {
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
