//! What libpq's parameters may be: checked before libpq sees them, because it repeats what it doesn't like.

use std::collections::BTreeMap;

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::dsn::refusal::{Code, DsnError};
use crate::dsn::{foreign, raw, tidy};

/// Parameters by libpq's names.
pub(super) type Parameters = BTreeMap<String, String>;

/// Numbers of libpq's that it would repeat, whatever stands there, when they are none.
const NUMBERS: [&str; 6] =
    ["connect_timeout", "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"];

/// Words that a parameter may be.
const WORDS: [(&str, &[&str]); 10] = [
    ("sslmode", &foreign::SSL_MODES),
    ("sslnegotiation", &["postgres", "direct"]),
    ("sslcertmode", &["disable", "allow", "require"]),
    ("channel_binding", &["disable", "prefer", "require"]),
    ("gssencmode", &["disable", "prefer", "require"]),
    ("load_balance_hosts", &["disable", "random"]),
    ("target_session_attrs", &["any", "read-write", "read-only", "primary", "standby", "prefer-standby"]),
    ("gssdelegation", &["0", "1"]),
    ("sslsni", &["0", "1"]),
    ("sslcompression", &["0", "1"]),
];

/// Versions of TLS, from the oldest to the newest. libpq takes them in any case.
const TLS_VERSIONS: [&str; 4] = ["TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"];

/// Ways to log in.
const LOGINS: [&str; 7] = ["password", "md5", "gss", "sspi", "scram-sha-256", "oauth", "none"];

fn check_versions(parameters: &Parameters) -> Result<(), DsnError> {
    let version = |keyword: &str| match parameters.get(keyword) {
        None => Ok(None),
        Some(value) => match TLS_VERSIONS.iter().position(|known| known.eq_ignore_ascii_case(value)) {
            Some(at) => Ok(Some(at)),
            None => Err(DsnError::malformed(format!("{keyword} is one of {}", TLS_VERSIONS.join(", ")))),
        },
    };
    match (version("ssl_min_protocol_version")?, version("ssl_max_protocol_version")?) {
        (Some(least), Some(most)) if least > most => {
            Err(DsnError::malformed("ssl_min_protocol_version is newer than ssl_max_protocol_version"))
        }
        _ => Ok(()),
    }
}

/// A list of ways to log in, all of which are taken, or with `!` before each of them, none.
fn check_logins(list: &str) -> Result<(), DsnError> {
    let names: Vec<(bool, &str)> =
        list.split(',').map(str::trim).map(|w| (w.starts_with('!'), w.trim_start_matches('!'))).collect();
    let known = names.iter().all(|(_, name)| LOGINS.contains(name));
    let alike = names.windows(2).all(|two| matches!(two, [one, other] if one.0 == other.0));
    let once = names.iter().enumerate().all(|(n, name)| names.iter().skip(n + 1).all(|other| other != name));
    if known && alike && once {
        return Ok(());
    }
    Err(DsnError::malformed(format!(
        "require_auth is a list of {}, each once, and either all of them with `!` before them or none",
        LOGINS.join(", ")
    )))
}

/// Refuses a parameter that can't be one, and a value that seems to hide a password.
pub(super) fn check(parameters: &Parameters) -> Result<(), DsnError> {
    if parameters.get("password").is_some_and(|password| tidy::is_redacted(password)) {
        return Err(DsnError::new(
            Code::RedactedPassword,
            "its password was masked by whatever printed it, or was never filled in",
        ));
    }
    for (keyword, words) in WORDS {
        if parameters.get(keyword).is_some_and(|value| !words.contains(&value.as_str())) {
            return Err(DsnError::malformed(format!("{keyword} is one of {}", words.join(", "))));
        }
    }
    check_versions(parameters)?;
    parameters.get("require_auth").map_or(Ok(()), |list| check_logins(list))?;
    for keyword in NUMBERS {
        if parameters.get(keyword).is_some_and(|value| value.parse::<i32>().is_err()) {
            return Err(DsnError::malformed(format!("{keyword} is a whole number")));
        }
    }
    let weak = |mode: &str| foreign::strength(mode) < foreign::strength("verify-full");
    if parameters.get("sslrootcert").is_some_and(|cert| cert == "system")
        && parameters.get("sslmode").is_some_and(|mode| weak(mode))
    {
        return Err(DsnError::malformed(
            "sslrootcert=system needs sslmode=verify-full: anybody may have a certificate",
        ));
    }
    let tls = |mode: &String| foreign::strength(mode) >= foreign::strength("require");
    if parameters.get("sslnegotiation").is_some_and(|way| way == "direct")
        && !parameters.get("sslmode").is_some_and(tls)
    {
        return Err(DsnError::malformed("sslnegotiation=direct needs sslmode=require or a stronger one"));
    }
    parameters.get("port").map_or(Ok(()), |ports| raw::check_ports(ports))?;
    check_number_of_ports(parameters)?;
    let mut shown = parameters.iter().filter(|(keyword, _)| *keyword != "password" && *keyword != "sslpassword");
    shown.try_for_each(|(keyword, value)| check_shown(keyword, value))
}

fn check_number_of_ports(parameters: &Parameters) -> Result<(), DsnError> {
    let count = |keyword: &str| parameters.get(keyword).map_or(1, |list| list.split(',').count());
    let ports = count("port");
    if ports > 1 && ports != count("host").max(count("hostaddr")) {
        return Err(DsnError::new(Code::InvalidPort, "there is one port for all hosts, or one for each"));
    }
    Ok(())
}

/// A value that people are shown must not have a password within it, which some separator was meant to set apart.
fn check_shown(keyword: &str, value: &str) -> Result<(), DsnError> {
    let lower = value.to_ascii_lowercase();
    let hides = ["password", "passwd", "pwd", "pass", "passphrase", "passwort", "passcode"].iter().any(|word| {
        lower.match_indices(word).any(|(at, _)| {
            let rest = lower.get(at + word.len()..).unwrap_or_default().trim_start();
            rest.starts_with(['=', ':'])
        })
    });
    // oauth_issuer is a URL of its own.
    if hides || value.contains("://") && (keyword != "oauth_issuer" || value.contains('@')) {
        return Err(DsnError::malformed(format!(
            "the value of {keyword} holds another parameter or another connection string: parameters of a URL are set apart by `&`"
        )));
    }
    if keyword == "dbname" && value.starts_with('/') {
        return Err(DsnError::malformed(
            "dbname begins with `/`: the folder of a socket is host, as in postgresql:///DATABASE?host=/FOLDER",
        ));
    }
    if keyword == "hostaddr" && !value.split(',').all(|a| a.is_empty() || a.parse::<Ipv4Addr>().is_ok() || is_ipv6(a)) {
        return Err(DsnError::new(Code::InvalidHost, "hostaddr holds addresses, such as 10.0.0.1 or ::1"));
    }
    let places: Vec<&str> = if keyword == "host" { value.split(',').collect() } else { Vec::new() };
    for place in places {
        // A socket's folder may have nearly any name; one that begins with `@` is in Linux' abstract namespace.
        let name = place.strip_prefix(['/', '@']);
        let is_socket = name.is_some_and(|name| {
            !name.starts_with('/') && !name.contains(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | ';' | '@'))
        });
        let is_name = place.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
        if !(is_name || is_socket || is_ipv6(place)) {
            return Err(DsnError::new(
                Code::InvalidHost,
                "a host name has letters, digits, `.`, `_` and `-`; other scripts are written in Punycode",
            ));
        }
    }
    Ok(())
}

/// An address, with or without a zone behind a `%`.
pub(super) fn is_ipv6(text: &str) -> bool {
    let (address, zone) = text.split_once('%').unwrap_or((text, "0"));
    address.parse::<Ipv6Addr>().is_ok()
        && zone.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}
