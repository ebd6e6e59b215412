//! Text to parameters, by the rules of libpq's `conninfo_uri_parse` and `conninfo_parse` (PostgreSQL,
//! src/interfaces/libpq/fe-connect.c), and stricter where libpq would guess.

use std::collections::BTreeMap;

use crate::dsn::{DsnError, Parameter};

type Parameters = BTreeMap<String, String>;

const SSL_MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];
const SCHEMES: [&str; 2] = ["postgresql://", "postgres://"];

fn unsupported_scheme() -> DsnError {
    DsnError::new(
        "unsupported_scheme",
        "expected postgres://, postgresql:// or key=value; write the scheme without a driver's name",
    )
}

fn malformed(message: &'static str) -> DsnError {
    DsnError::new("malformed", message)
}

pub(super) fn parameters(text: &str, table: &[Parameter]) -> Result<Parameters, DsnError> {
    if text.trim().is_empty() {
        return Err(DsnError::new("empty", "the connection string is empty"));
    }
    if text.contains("${") || text.contains("$(") {
        return Err(DsnError::new("unexpanded_variable", "a variable in the connection string was not expanded"));
    }
    if text != text.trim() || text.starts_with(['\'', '"']) || text.contains(|c: char| c.is_control()) {
        return Err(malformed("it begins or ends with blanks or quotes, or holds a control character"));
    }
    let parameters = match SCHEMES.iter().find_map(|scheme| text.strip_prefix(scheme)) {
        Some(rest) => url(rest)?,
        None if looks_like_key_value(text) => key_value(text)?,
        None => return Err(unsupported_scheme()),
    };
    check(&parameters, table)?;
    Ok(parameters)
}

/// Anything with a scheme would be read by libpq as a parameter of a strange name.
fn looks_like_key_value(text: &str) -> bool {
    let keyword = text.split(['=', ' ']).next().unwrap_or_default();
    text.contains('=') && !keyword.is_empty() && keyword.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn check(parameters: &Parameters, table: &[Parameter]) -> Result<(), DsnError> {
    if parameters.is_empty() {
        return Err(DsnError::new("empty", "the connection string names nothing to connect to"));
    }
    if parameters.contains_key("service") || parameters.contains_key("servicefile") {
        return Err(DsnError::new(
            "unknown_parameter",
            "service= isn't supported: write out what the service stands for",
        ));
    }
    if parameters.contains_key("sslkeylogfile") {
        return Err(DsnError::new("unknown_parameter", "sslkeylogfile would write the session's keys to a file"));
    }
    if parameters.keys().any(|keyword| !table.iter().any(|known| known.keyword == *keyword)) {
        return Err(DsnError::new(
            "unknown_parameter",
            "it has a parameter that libpq doesn't know; parameters of other drivers are not translated",
        ));
    }
    if parameters.get("sslmode").is_some_and(|mode| !SSL_MODES.contains(&mode.as_str())) {
        return Err(malformed("sslmode is one of disable, allow, prefer, require, verify-ca and verify-full"));
    }
    if parameters.get("password").is_some_and(|password| !password.is_empty() && password.chars().all(|c| c == '*')) {
        return Err(DsnError::new("redacted_password", "its password was masked by whatever printed it"));
    }
    if parameters.values().any(|value| value.ends_with(['"', '\''])) && !parameters.contains_key("options") {
        return Err(malformed("a value ends with a quote"));
    }
    parameters.get("port").map_or(Ok(()), |ports| ports.split(',').try_for_each(check_port))
}

/// An empty port means the default, 5432.
fn check_port(port: &str) -> Result<(), DsnError> {
    let valid = port.is_empty() || (port.bytes().all(|b| b.is_ascii_digit()) && matches!(port.parse::<u16>(), Ok(1..)));
    if valid { Ok(()) } else { Err(DsnError::new("invalid_port", "a port is a number from 1 to 65535")) }
}

fn url(rest: &str) -> Result<Parameters, DsnError> {
    let mut parameters = Parameters::new();
    // As libpq: the first `@` before any `/` ends the user and the password.
    let rest = match rest.find(['@', '/']).and_then(|at| Some((rest.get(..at)?, rest.get(at..)?.strip_prefix('@')?))) {
        Some((userinfo, rest)) => {
            let (user, password) = userinfo.split_once(':').map_or((userinfo, None), |(u, p)| (u, Some(p)));
            set_unless_empty(&mut parameters, "user", decode(user)?);
            set_unless_empty(&mut parameters, "password", decode(password.unwrap_or_default())?);
            rest
        }
        None => rest,
    };
    let rest = hosts(rest, &mut parameters)?;
    let (path, query) = rest.split_once('?').map_or((rest, None), |(path, query)| (path, Some(query)));
    set_unless_empty(&mut parameters, "dbname", decode(path.strip_prefix('/').unwrap_or_default())?);
    for pair in query.into_iter().flat_map(|query| query.split('&')).filter(|pair| !pair.is_empty()) {
        query_parameter(pair, &mut parameters)?;
    }
    Ok(parameters)
}

/// `host:port,host:port`, up to the path or the query. Gives the rest.
fn hosts<'t>(text: &'t str, parameters: &mut Parameters) -> Result<&'t str, DsnError> {
    let (mut hosts, mut ports) = (Vec::new(), Vec::new());
    let mut rest = text;
    loop {
        let (host, after) = host(rest)?;
        hosts.push(decode(host)?);
        rest = after;
        let mut port = String::new();
        if let Some(after) = rest.strip_prefix(':') {
            let end = after.find([',', '/', '?']).unwrap_or(after.len());
            let (text, after) = after.split_at(end);
            port = decode(text)?;
            check_port(&port)?;
            rest = after;
        }
        ports.push(port);
        match rest.strip_prefix(',') {
            Some(after) => rest = after,
            None => break,
        }
    }
    if text.split(['/', '?']).next().is_some_and(|authority| authority.contains('@')) {
        return Err(DsnError::new(
            "unescaped_password",
            "a second `@` stands before the host: write %40 for one in the password",
        ));
    }
    if hosts.iter().any(|host| host.contains(|c: char| c.is_whitespace() || c == '"' || c == '\'')) {
        return Err(DsnError::new("invalid_host", "a host name holds a blank or a quote"));
    }
    set_unless_empty(parameters, "host", if hosts.len() == 1 { hosts.concat() } else { hosts.join(",") });
    if ports.iter().any(|port| !port.is_empty()) {
        parameters.insert("port".to_owned(), ports.join(","));
    }
    Ok(rest)
}

/// One host; an IPv6 address stands in brackets.
fn host(text: &str) -> Result<(&str, &str), DsnError> {
    let invalid = || DsnError::new("invalid_host", "an IPv6 address must stand in brackets, closed ones");
    if let Some(inner) = text.strip_prefix('[') {
        let (address, rest) = inner.split_once(']').ok_or_else(invalid)?;
        let ends_well = rest.is_empty() || rest.starts_with([':', ',', '/', '?']);
        return if address.is_empty() || !ends_well { Err(invalid()) } else { Ok((address, rest)) };
    }
    Ok(text.split_at(text.find([':', ',', '/', '?']).unwrap_or(text.len())))
}

fn query_parameter(pair: &str, parameters: &mut Parameters) -> Result<(), DsnError> {
    let (keyword, value) = pair.split_once('=').ok_or_else(|| malformed("a parameter behind the `?` has no value"))?;
    if value.contains('+') && keyword == "options" {
        return Err(malformed("a blank in `options` is written %20: libpq takes `+` as it is"));
    }
    insert_once(parameters, decode(keyword)?, decode(value)?)
}

fn insert_once(parameters: &mut Parameters, keyword: String, value: String) -> Result<(), DsnError> {
    if parameters.contains_key(&keyword) {
        return Err(DsnError::new("duplicate_parameter", "a parameter is given twice"));
    }
    parameters.insert(keyword, value);
    Ok(())
}

fn set_unless_empty(parameters: &mut Parameters, keyword: &str, value: String) {
    if !value.is_empty() {
        parameters.insert(keyword.to_owned(), value);
    }
}

fn decode(text: &str) -> Result<String, DsnError> {
    let invalid = || {
        DsnError::new(
            "invalid_percent_encoding",
            "a `%` is not followed by two hexadecimal digits, or stands for NUL; write %25 for `%`",
        )
    };
    if text.contains(char::is_whitespace) {
        return Err(malformed("a blank in a URL is written %20"));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|b| char::from(b).to_digit(16)).ok_or_else(invalid);
        let value = digit()? * 16 + digit()?;
        bytes.push(u8::try_from(value).ok().filter(|value| *value != 0).ok_or_else(invalid)?);
    }
    String::from_utf8(bytes).map_err(|_| invalid())
}

fn key_value(text: &str) -> Result<Parameters, DsnError> {
    let mut parameters = Parameters::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let end = rest.find(|c: char| c == '=' || c.is_whitespace()).unwrap_or(rest.len());
        let (keyword, after) = rest.split_at(end);
        let after = after
            .trim_start()
            .strip_prefix('=')
            .ok_or_else(|| malformed("a word is not followed by `=`; a value with blanks stands in single quotes"))?;
        let (value, after) = value(after.trim_start())?;
        insert_once(&mut parameters, keyword.to_owned(), value)?;
        rest = after.trim_start();
    }
    Ok(parameters)
}

/// One value, quoted or up to a blank, with `\` before a character that stands for itself. Gives the rest.
fn value(text: &str) -> Result<(String, &str), DsnError> {
    let quoted = text.starts_with('\'');
    let mut chars = text.strip_prefix('\'').unwrap_or(text).chars();
    let mut value = String::new();
    loop {
        let before = chars.as_str();
        match chars.next() {
            Some('\\') => value.extend(chars.next()),
            Some('\'') if quoted => return Ok((value, chars.as_str())),
            Some(c) if !quoted && c.is_whitespace() => return Ok((value, before)),
            Some(c) => value.push(c),
            None if quoted => return Err(malformed("a quoted value doesn't end")),
            None => return Ok((value, "")),
        }
    }
}
