//! Values of other drivers, converted for libpq and for the server.

use crate::dsn::foreign::{SETTINGS, SSL_MODES, is_dotted};
use crate::dsn::refusal::{Code, DsnError};

pub(super) fn flag(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "1" | "on" | "yes" | "t" => Some(true),
        "false" | "0" | "off" | "no" | "f" => Some(false),
        _ => None,
    }
}

/// A flag of another driver's.
pub(in crate::dsn) fn flag_of(value: &str) -> Result<bool, DsnError> {
    flag(value).ok_or_else(|| DsnError::malformed("expected true or false"))
}

/// Whole seconds from a number that may have a fraction; rounded up, so that a short wait isn't none.
pub(in crate::dsn) fn seconds(value: &str, milliseconds: bool) -> Result<String, DsnError> {
    let wrong = || DsnError::malformed("expected a time as a number, in the unit of the driver that has the parameter");
    let number: f64 = value.trim_end_matches('s').parse().map_err(|_| wrong())?;
    let seconds = if milliseconds { number / 1_000.0 } else { number };
    if !(0.0..=1e6).contains(&seconds) {
        return Err(wrong());
    }
    Ok(format!("{:.0}", seconds.abs().ceil()))
}

/// The most seconds that a plain `timeout` is taken for. Some drivers have milliseconds under that name.
pub(in crate::dsn) const MOST_SECONDS: u32 = 600;

/// As [`seconds`], but not so many that milliseconds may be meant.
pub(in crate::dsn) fn short_seconds(value: &str) -> Result<String, DsnError> {
    let seconds = seconds(value, false)?;
    match seconds.parse::<u32>() {
        Ok(number) if number <= MOST_SECONDS => Ok(seconds),
        _ => Err(DsnError::malformed(format!(
            "timeout: expected at most {MOST_SECONDS} seconds; a larger number may be meant in milliseconds: give connect_timeout in seconds"
        ))),
    }
}

/// Whole seconds from a time as Go writes it, such as `5s`, `1m30s` or `500ms`.
pub(in crate::dsn) fn duration(value: &str) -> Result<String, DsnError> {
    let time = humantime::parse_duration(value);
    let time = time.map_err(|_| DsnError::malformed("expected a time with its unit, such as 5s or 500ms"))?;
    seconds(&time.as_secs_f64().to_string(), false)
}

/// SQLAlchemy's isolation_level as the server's setting; `None` where each statement is a transaction.
pub(in crate::dsn) fn isolation(value: &str) -> Result<Option<&'static str>, DsnError> {
    match value.to_ascii_lowercase().replace(['_', '-'], " ").as_str() {
        "autocommit" => Ok(None),
        "read uncommitted" => Ok(Some("read uncommitted")),
        "read committed" => Ok(Some("read committed")),
        "repeatable read" => Ok(Some("repeatable read")),
        "serializable" => Ok(Some("serializable")),
        _ => Err(DsnError::malformed("expected AUTOCOMMIT, READ COMMITTED, REPEATABLE READ or SERIALIZABLE")),
    }
}

/// Npgsql's and pgjdbc's words for ways to log in, as libpq's; what is none stays, and is refused with libpq's own.
pub(in crate::dsn) fn login_methods(value: &str) -> String {
    let method = |word: &str| {
        let lower = word.trim().to_ascii_lowercase();
        let (not, name) = lower.strip_prefix('!').map_or(("", lower.as_str()), |name| ("!", name.trim()));
        let name = if matches!(name, "scramsha256" | "scram_sha_256") { "scram-sha-256" } else { name };
        format!("{not}{name}")
    };
    value.split(',').map(method).collect::<Vec<_>>().join(",")
}

/// Milliseconds from seconds.
pub(in crate::dsn) fn milliseconds(value: &str) -> Result<String, DsnError> {
    let wrong = || DsnError::malformed("expected a number of seconds");
    let seconds: f64 = value.parse().map_err(|_| wrong())?;
    if !(0.0..=1e6).contains(&seconds) {
        return Err(wrong());
    }
    Ok(format!("{:.0}", (seconds * 1_000.0).ceil()))
}

/// `{"name": "value"}`, or `name=value,name=value`.
pub(in crate::dsn) fn settings(value: &str) -> Result<Vec<(String, String)>, DsnError> {
    let wrong = || DsnError::malformed("expected a JSON object of texts, or name=value with commas between");
    let text = value.trim();
    let pairs: Vec<(String, String)> = if text.starts_with('{') {
        let object: std::collections::BTreeMap<String, serde_json::Value> =
            serde_json::from_str(text).map_err(|_| wrong())?;
        let pairs = object.into_iter().map(|(name, value)| match value {
            serde_json::Value::String(text) => Ok((name, text)),
            serde_json::Value::Number(number) => Ok((name, number.to_string())),
            serde_json::Value::Bool(flag) => Ok((name, if flag { "on" } else { "off" }.to_owned())),
            _ => Err(wrong()),
        });
        pairs.collect::<Result<_, _>>()?
    } else {
        let pairs = text.split(',').map(|pair| {
            let (name, value) = pair.split_once(['=', ':']).ok_or_else(wrong)?;
            Ok((name.trim().to_owned(), value.trim().to_owned()))
        });
        pairs.collect::<Result<_, DsnError>>()?
    };
    let known = |name: &str| SETTINGS.contains(&name) || is_dotted(name) || name == "application_name";
    if pairs.iter().all(|(name, _)| known(name)) {
        return Ok(pairs);
    }
    Err(DsnError::new(Code::UnknownParameter, "it has a setting that isn't known here: give it as options"))
}

/// One more setting in `options`, as the server splits them: a blank and a backslash need a backslash.
pub(in crate::dsn) fn add_setting(options: &mut String, name: &str, value: &str) {
    if !options.is_empty() {
        options.push(' ');
    }
    options.push_str("-c ");
    options.push_str(name);
    options.push('=');
    for c in value.chars() {
        if c.is_whitespace() || c == '\\' {
            options.push('\\');
        }
        options.push(c);
    }
}

/// An SQL identifier that means `name` as it is written.
pub(in crate::dsn) fn identifier(name: &str) -> String {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let simple = name.chars().all(plain) && !name.starts_with(|c: char| c.is_ascii_digit());
    if simple { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

/// pgjdbc's gssEncMode, but for its default.
pub(in crate::dsn) fn gss_encryption(value: &str) -> Result<&'static str, DsnError> {
    let modes = ["disable", "prefer", "require"];
    let known = modes.into_iter().find(|mode| *mode == value);
    known.ok_or_else(|| DsnError::malformed("expected disable, allow, prefer or require"))
}

/// pgjdbc's targetServerType, as target_session_attrs.
pub(in crate::dsn) fn server_type(value: &str) -> Result<&'static str, DsnError> {
    match value {
        "any" => Ok("any"),
        "primary" | "master" => Ok("primary"),
        "secondary" | "slave" => Ok("standby"),
        "preferSecondary" | "preferSlave" => Ok("prefer-standby"),
        // libpq has no such preference: every server will do, as it will for pgjdbc.
        "preferPrimary" => Ok("any"),
        _ => Err(DsnError::malformed("expected any, primary, secondary or preferSecondary")),
    }
}

/// The folder and the port of `/folder/.s.PGSQL.5432`.
pub(in crate::dsn) fn socket(path: &str) -> Result<(String, String), DsnError> {
    let wrong = || DsnError::new(Code::InvalidHost, "expected a path that ends with /.s.PGSQL. and the port");
    let (folder, port) = path.split_once("/.s.PGSQL.").ok_or_else(wrong)?;
    if !folder.starts_with('/') {
        return Err(wrong());
    }
    Ok((folder.to_owned(), port.to_owned()))
}

/// Npgsql's SSL Mode, as sslmode.
pub(in crate::dsn) fn ssl_mode(value: &str) -> Result<&'static str, DsnError> {
    let plain = |word: &str| word.to_ascii_lowercase().replace(['-', '_', ' '], "");
    let known = SSL_MODES.into_iter().find(|mode| plain(mode) == plain(value));
    known.ok_or_else(|| DsnError::malformed("expected Disable, Allow, Prefer, Require, VerifyCA or VerifyFull"))
}

/// Npgsql's Target Session Attributes, as target_session_attrs.
pub(in crate::dsn) fn session_attributes(value: &str) -> Result<&'static str, DsnError> {
    match value.to_ascii_lowercase().replace(['-', '_', ' '], "").as_str() {
        "any" => Ok("any"),
        "primary" => Ok("primary"),
        "standby" => Ok("standby"),
        "preferstandby" => Ok("prefer-standby"),
        "readwrite" => Ok("read-write"),
        "readonly" => Ok("read-only"),
        // libpq has no such preference: every server will do, as it will for Npgsql.
        "preferprimary" => Ok("any"),
        _ => Err(DsnError::malformed(
            "expected any, primary, standby, prefer-primary, prefer-standby, read-write or read-only",
        )),
    }
}
