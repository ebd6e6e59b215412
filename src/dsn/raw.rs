//! Text to pairs, by the rules of libpq's `conninfo_uri_parse` and `conninfo_parse` (PostgreSQL,
//! src/interfaces/libpq/fe-connect.c), and stricter where libpq would guess. What the pairs mean isn't known here.

use crate::dsn::place::{self, Place};
use crate::dsn::refusal::{Code, DsnError};
use crate::dsn::tidy;

/// Whether a name is known of any driver. A name that isn't may be a piece of a password, and is in no message.
pub(super) type Known<'k> = &'k dyn Fn(&str) -> bool;

/// A string taken apart.
#[derive(Debug, Default)]
pub(super) struct Raw {
    /// From the userinfo, the hosts and the path of a URL; at most one of each keyword.
    pub parts: Vec<(&'static str, String)>,
    /// The parameters: those of a URL's query, or all of `keyword=value`.
    pub parameters: Vec<(String, String)>,
    /// What was read with a grain of salt.
    pub oddities: Vec<Oddity>,
}

/// Something that libpq would take otherwise, and that can be understood without doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Oddity {
    /// A blank that isn't written as %20.
    RawBlank,
    /// A `+` in `options` that stands for a blank.
    PlusInOptions,
    /// A second `=`, which libpq refuses.
    RawEquals,
    /// The folder of a socket in the place of the database.
    SocketInPath,
    /// A raw `@` behind the `?`: the host before it may be a piece of a password that has both.
    AtInQuery,
}

/// Reads what follows `postgresql://`. With `plus_is_a_blank`, the query is read as a form.
pub(super) fn url(rest: &str, plus_is_a_blank: bool, known: Known<'_>) -> Result<Raw, DsnError> {
    let mut raw = Raw::default();
    // As libpq: the first `@` before any `/` ends the user and the password.
    let rest = match rest.find(['@', '/']).and_then(|at| Some((rest.get(..at)?, rest.get(at..)?.strip_prefix('@')?))) {
        Some((userinfo, rest)) => {
            let (user, password) = userinfo.split_once(':').map_or((userinfo, None), |(u, p)| (u, Some(p)));
            let mut oddities = Vec::new();
            raw.part("user", decode(user, &mut oddities)?);
            raw.part("password", decode(password.unwrap_or_default(), &mut oddities)?);
            raw.oddities = oddities;
            rest
        }
        None => rest,
    };
    check_unescaped(rest)?;
    let rest = hosts(rest, &mut raw)?;
    let (path, query) = rest.split_once('?').map_or((rest, None), |(path, query)| (path, Some(query)));
    let path = path.strip_prefix('/').unwrap_or_default();
    if path.contains(char::is_whitespace) {
        return Err(DsnError::malformed("a blank in a URL is written %20"));
    }
    match place::of_path(path, raw.parts.iter().any(|(part, _)| *part == "host"))? {
        Place::Database(name) => raw.part("dbname", decode(name, &mut Vec::new())?),
        Place::Socket { folder, database } => {
            raw.oddities.push(Oddity::SocketInPath);
            raw.part("host", format!("/{}", decode(folder.trim_start_matches('/'), &mut Vec::new())?));
            raw.part("dbname", decode(database, &mut Vec::new())?);
        }
    }
    if query.is_some_and(|query| query.contains('@')) {
        raw.oddities.push(Oddity::AtInQuery);
    }
    for pair in query.into_iter().flat_map(|query| query.split('&')).filter(|pair| !pair.is_empty()) {
        let (keyword, value) = pair.split_once('=').ok_or_else(|| match known(pair) {
            true => DsnError::malformed(format!("{pair} behind the `?` has no value")),
            false => DsnError::malformed("a parameter behind the `?` has no value"),
        })?;
        if value.contains(char::is_whitespace) || keyword.contains(char::is_whitespace) {
            return Err(DsnError::malformed(match known(keyword) {
                true => format!("the value of {keyword} has a blank, which is written %20 in a URL"),
                false => "a blank in a URL is written %20".to_owned(),
            }));
        }
        if value.contains('=') {
            raw.oddities.push(Oddity::RawEquals);
        }
        let keyword = decode(keyword, &mut Vec::new())?;
        let in_options = keyword == "options" && value.contains('+');
        if in_options {
            raw.oddities.push(Oddity::PlusInOptions);
        }
        let value = if plus_is_a_blank || in_options { value.replace('+', "%20") } else { value.to_owned() };
        raw.parameters.push((keyword, decode(&value, &mut Vec::new())?));
    }
    Ok(raw)
}

impl Raw {
    fn part(&mut self, keyword: &'static str, value: String) {
        if !value.is_empty() {
            self.parts.push((keyword, value));
        }
    }
}

/// A raw `@` behind the userinfo, before the query or in the name of a parameter, belongs to a password that was cut in
/// two.
fn check_unescaped(rest: &str) -> Result<(), DsnError> {
    let (before_query, query) = rest.split_once('?').unwrap_or((rest, ""));
    let keywords = || query.split('&').map(|pair| pair.split('=').next().unwrap_or_default());
    if before_query.contains('@') || keywords().any(|keyword| keyword.contains(['@', '/', '?'])) {
        return Err(DsnError::new(
            Code::UnescapedPassword,
            "a `@`, `/` or `?` in the password ends it early: write %40 for `@`, %2F for `/`, and %3F for `?`",
        ));
    }
    Ok(())
}

/// `host:port,host:port`, up to the path or the query. Gives the rest.
fn hosts<'t>(text: &'t str, raw: &mut Raw) -> Result<&'t str, DsnError> {
    let (mut hosts, mut ports) = (Vec::new(), Vec::new());
    let mut rest = text;
    loop {
        let (name, after) = host(rest)?;
        hosts.push(decode(name, &mut Vec::new())?);
        rest = after;
        let mut port = String::new();
        if let Some(after) = rest.strip_prefix(':') {
            let end = after.find([',', '/', '?']).unwrap_or(after.len());
            let (text, after) = after.split_at(end);
            port = text.to_owned();
            check_port(&port)?;
            rest = after;
        }
        ports.push(port);
        match rest.strip_prefix(',') {
            Some(after) => rest = after,
            None => break,
        }
    }
    raw.part("host", if hosts.len() == 1 { hosts.concat() } else { hosts.join(",") });
    if ports.iter().any(|port| !port.is_empty()) {
        raw.part("port", ports.join(","));
    }
    Ok(rest)
}

/// One host; an IPv6 address stands in brackets.
fn host(text: &str) -> Result<(&str, &str), DsnError> {
    let invalid = || DsnError::new(Code::InvalidHost, "an IPv6 address must stand in brackets, closed ones");
    if let Some(inner) = text.strip_prefix('[') {
        let (address, rest) = inner.split_once(']').ok_or_else(invalid)?;
        let ends_well = rest.is_empty() || rest.starts_with([':', ',', '/', '?']);
        return if address.is_empty() || !ends_well { Err(invalid()) } else { Ok((address, rest)) };
    }
    let (name, rest) = text.split_at(text.find([':', ',', '/', '?']).unwrap_or(text.len()));
    if name.contains(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '\\')) {
        return Err(DsnError::new(Code::InvalidHost, "a host name holds a blank, a quote or a backslash"));
    }
    Ok((name, rest))
}

/// Ports as libpq takes them: one for all hosts, or one for each. An empty one means 5432.
pub(super) fn check_ports(ports: &str) -> Result<(), DsnError> {
    ports.split(',').try_for_each(check_port)
}

fn check_port(port: &str) -> Result<(), DsnError> {
    let valid = port.is_empty() || (port.bytes().all(|b| b.is_ascii_digit()) && matches!(port.parse::<u16>(), Ok(1..)));
    if valid { Ok(()) } else { Err(DsnError::new(Code::InvalidPort, "a port is a number from 1 to 65535")) }
}

/// Percent-decoding. A raw blank is taken for what it is, and noted.
fn decode(text: &str, oddities: &mut Vec<Oddity>) -> Result<String, DsnError> {
    let invalid = || {
        DsnError::new(
            Code::InvalidPercentEncoding,
            "a `%` is not followed by two hexadecimal digits, or stands for NUL; write %25 for `%`",
        )
    };
    if text.contains(char::is_whitespace) {
        oddities.push(Oddity::RawBlank);
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
    String::from_utf8(bytes)
        .map_err(|_| DsnError::new(Code::InvalidPercentEncoding, "the bytes behind `%` are no UTF-8"))
}

/// Anything with a scheme would be read by libpq as a parameter of a strange name.
pub(super) fn looks_like_key_value(text: &str) -> bool {
    let keyword = text.split(['=', ' ']).next().unwrap_or_default();
    text.contains('=') && !keyword.is_empty() && keyword.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Reads `keyword=value …`.
pub(super) fn key_value(text: &str, known: Known<'_>) -> Result<Raw, DsnError> {
    let mut raw = Raw::default();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let end = rest.find(|c: char| c == '=' || c.is_whitespace()).unwrap_or(rest.len());
        let (keyword, after) = rest.split_at(end);
        let after = after.trim_start().strip_prefix('=').ok_or_else(|| {
            let before = raw.parameters.last().filter(|(name, _)| known(name));
            let before = before.map_or_else(String::new, |(name, _)| format!(" behind the value of {name}"));
            DsnError::malformed(format!(
                "a word{before} is not followed by `=`; a value with blanks stands in single quotes"
            ))
        })?;
        let about = |error: DsnError| if known(keyword) { error.about(keyword) } else { error };
        let (value, after) = value(after.trim_start()).map_err(about)?;
        raw.parameters.push((keyword.to_owned(), value));
        if !(after.is_empty() || after.starts_with(char::is_whitespace)) {
            return Err(about(DsnError::malformed(
                "a quoted value is not followed by a blank; write \\' for a quote in it",
            )));
        }
        rest = after.trim_start();
    }
    Ok(raw)
}

/// One value, quoted or up to a blank, with `\` before a character that stands for itself. Gives the rest.
fn value(text: &str) -> Result<(String, &str), DsnError> {
    let quoted = text.starts_with('\'');
    let mut chars = text.strip_prefix('\'').unwrap_or(text).chars();
    let mut value = String::new();
    let rest = loop {
        let before = chars.as_str();
        match chars.next() {
            Some('\\') => value.extend(chars.next()),
            Some('\'') if quoted => return Ok((value, chars.as_str())),
            Some(c) if !quoted && c.is_whitespace() => break before,
            Some(c) => value.push(c),
            None if quoted => return Err(tidy::unbalanced()),
            None => break "",
        }
    };
    // libpq knows single quotes only, and would keep this one.
    if value.starts_with('"') || value.ends_with(['"', '\'']) {
        return Err(tidy::unbalanced());
    }
    Ok((value, rest))
}
