//! Strings as Npgsql takes them: `Host=…;Username=…`, by the rules of ADO.NET's `DbConnectionStringBuilder`, and what
//! each of Npgsql's keywords means to libpq. Keywords have no case; each has its blanks or hasn't.

use crate::dsn::foreign::{Foreign, How, of};
use crate::dsn::raw::Raw;
use crate::dsn::refusal::{Code, DsnError};
use crate::dsn::tidy;

const CLIENT: How = How::Dropped("it is about how that driver hands rows over");
const SOCKET: How = How::Dropped("slowlane watches its sockets itself; a job has timeout_ms");
const LOGGING: How = How::Dropped("it is about what that driver tells and logs");
const LOGIN: How = How::Dropped("libpq logs in as the server asks it to");
const FRAMEWORK: How = How::Dropped("it is about what a framework does beside its connections");

/// Every keyword of Npgsql's, by the name that its documentation has first, and what becomes of it.
pub const TABLE: &[Foreign] = &[
    of("Host", None, How::Hosts),
    of("Port", None, How::Same("port")),
    of("Database", None, How::Same("dbname")),
    of("Username", None, How::Same("user")),
    of("Password", None, How::Same("password")),
    of("Passfile", None, How::Renamed("passfile")),
    of("SSL Mode", None, How::Tls),
    of("Trust Server Certificate", None, How::Tls),
    of("SSL Negotiation", None, How::Word("sslnegotiation")),
    of("SSL Certificate", None, How::Renamed("sslcert")),
    of("SSL Key", None, How::Renamed("sslkey")),
    of("SSL Password", None, How::Renamed("sslpassword")),
    of("Root Certificate", None, How::Renamed("sslrootcert")),
    of("Check Certificate Revocation", None, How::RefusedIf("libpq looks at a list that is a file: give it as sslcrl")),
    of("Channel Binding", None, How::Word("channel_binding")),
    of("GSS Encryption Mode", None, How::GssEncryption),
    of("Require Auth", None, How::Login),
    of("Kerberos Service Name", None, How::Renamed("krbsrvname")),
    of("Integrated Security", None, LOGIN),
    of("Include Realm", None, LOGIN),
    of("Persist Security Info", None, LOGGING),
    of("Include Error Detail", None, LOGGING),
    of("Include Failed Batched Command", None, LOGGING),
    of("Log Parameters", None, LOGGING),
    of("Use Perf Counters", None, LOGGING),
    of("Pooling", None, How::Pool),
    of("Minimum Pool Size", None, How::Pool),
    of("Maximum Pool Size", None, How::Pool),
    of("Connection Idle Lifetime", None, How::Pool),
    of("Connection Pruning Interval", None, How::Pool),
    of("Connection Lifetime", None, How::Pool),
    of("Multiplexing", None, How::Pool),
    of("Write Coalescing Buffer Threshold Bytes", None, How::Pool),
    of("No Reset On Close", None, How::Pool),
    of("Host Recheck Seconds", None, How::Pool),
    of("Timeout", None, How::Seconds("connect_timeout")),
    of("Command Timeout", None, How::SettingSeconds("statement_timeout")),
    of("Internal Command Timeout", None, SOCKET),
    of("Cancellation Timeout", None, SOCKET),
    of("Keepalive", None, SOCKET),
    of("Tcp Keepalive", None, How::Flag("keepalives")),
    of("Tcp Keepalive Time", None, How::Milliseconds("keepalives_idle")),
    of("Tcp Keepalive Interval", None, How::Milliseconds("keepalives_interval")),
    of("Read Buffer Size", None, SOCKET),
    of("Write Buffer Size", None, SOCKET),
    of("Socket Receive Buffer Size", None, SOCKET),
    of("Socket Send Buffer Size", None, SOCKET),
    of("Max Auto Prepare", None, How::Prepared),
    of("Auto Prepare Min Usages", None, How::Prepared),
    of("Target Session Attributes", None, How::SessionAttributes),
    of("Load Balance Hosts", None, How::LoadBalance),
    of("Options", None, How::Same("options")),
    of("Application Name", None, How::Renamed("application_name")),
    of("Search Path", None, How::Setting("search_path")),
    of("Client Encoding", None, How::Renamed("client_encoding")),
    of("Encoding", None, CLIENT),
    of("Timezone", None, How::Setting("TimeZone")),
    of("Enlist", None, FRAMEWORK),
    of("EF Template Database", None, FRAMEWORK),
    of("EF Admin Database", None, FRAMEWORK),
    of("Load Table Composites", None, CLIENT),
    of("Array Nullability Mode", None, CLIENT),
    of("Convert Infinity DateTime", None, CLIENT),
    of("Server Compatibility Mode", None, How::Compatibility),
    of("Use SSL Stream", None, CLIENT),
];

/// Other names of the same keywords.
const SYNONYMS: [(&str, &str); 17] = [
    ("server", "Host"),
    ("db", "Database"),
    ("username", "Username"),
    ("userid", "Username"),
    ("uid", "Username"),
    ("pwd", "Password"),
    ("psw", "Password"),
    ("clientcertificate", "SSL Certificate"),
    ("sslcertificate", "SSL Certificate"),
    ("clientcertificatekey", "SSL Key"),
    ("includeerrordetails", "Include Error Detail"),
    ("minpoolsize", "Minimum Pool Size"),
    ("maxpoolsize", "Maximum Pool Size"),
    ("loadbalancetimeout", "Connection Lifetime"),
    ("connectiontimeout", "Timeout"),
    ("connecttimeout", "Timeout"),
    ("kerberosservice", "Kerberos Service Name"),
];

fn plain(name: &str) -> String {
    name.chars().filter(|c| !c.is_whitespace()).flat_map(char::to_lowercase).collect()
}

/// The entry of a keyword, however it is written.
pub fn find(name: &str) -> Option<&'static Foreign> {
    let name = plain(name);
    let first = SYNONYMS.iter().find(|(synonym, _)| *synonym == name).map(|(_, first)| plain(first));
    let name = first.unwrap_or(name);
    TABLE.iter().find(|known| plain(known.name) == name)
}

/// Takes `keyword=value;…` apart: a value with `;`, or with a blank or a quote at one of its ends, stands in quotes, in
/// which the same quote is written twice.
pub(super) fn pairs(text: &str) -> Result<Raw, DsnError> {
    let mut raw = Raw::default();
    let mut rest = skip(text);
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=').ok_or_else(|| {
            DsnError::malformed("a pair has no `=`: a value that holds a `;` stands in quotes, as in Password=\"a;b\"")
        })?;
        if name.contains(';') {
            return Err(DsnError::malformed(
                "a pair has no `=`: a value that holds a `;` stands in quotes, as in Password=\"a;b\"",
            ));
        }
        let name = name.trim();
        let (value, after) = value(after.trim_start()).map_err(|error| match find(name) {
            Some(known) => error.about(known.name),
            None => error,
        })?;
        raw.parameters.push((name.to_owned(), value));
        rest = skip(after);
    }
    Ok(raw)
}

fn skip(text: &str) -> &str {
    text.trim_start_matches(|c: char| c.is_whitespace() || c == ';')
}

/// One value, and what follows it.
fn value(text: &str) -> Result<(String, &str), DsnError> {
    match text.chars().next() {
        Some(quote @ ('"' | '\'')) => quoted(text, quote),
        // ADO.NET takes it for a part of the keyword.
        Some('=') => Err(DsnError::malformed("a value that begins with `=` stands in quotes")),
        _ => {
            let (value, rest) = text.split_at(text.find(';').unwrap_or(text.len()));
            let value = value.trim_end();
            if value.ends_with(['"', '\'']) { Err(tidy::unbalanced()) } else { Ok((value.to_owned(), rest)) }
        }
    }
}

fn quoted(text: &str, quote: char) -> Result<(String, &str), DsnError> {
    let mut value = String::new();
    let mut chars = text.strip_prefix(quote).unwrap_or(text).chars();
    loop {
        match chars.next() {
            None => return Err(tidy::unbalanced()),
            Some(c) if c != quote => value.push(c),
            Some(_) if chars.as_str().starts_with(quote) => value.extend(chars.next()),
            Some(_) => break,
        }
    }
    let rest = chars.as_str().trim_start();
    match rest.is_empty() || rest.starts_with(';') {
        true => Ok((value, rest)),
        false => Err(DsnError::malformed("a quoted value is not followed by `;`: a quote in it is written twice")),
    }
}

/// The pairs, quoted where they have to be.
pub(super) fn render(pairs: &[(&str, &str)]) -> String {
    let quoted = |value: &str| {
        let bare = !value.is_empty()
            && !value.contains([';', '"', '\'', '='])
            && value.trim() == value
            && !value.contains(char::is_control);
        if bare { value.to_owned() } else { format!("\"{}\"", value.replace('"', "\"\"")) }
    };
    pairs.iter().map(|(name, value)| format!("{name}={}", quoted(value))).collect::<Vec<_>>().join(";")
}

/// Whether pairs set apart by `;` are Npgsql's: all that is known of them is, and enough of them is known.
pub(super) fn is_npgsql<'n>(names: impl Iterator<Item = &'n str> + Clone) -> bool {
    // SQL Server's and PDO's, which Npgsql refuses.
    const OTHERS: [&str; 4] = ["datasource", "initialcatalog", "dbname", "user"];
    let place =
        |name: &str| find(name).is_some_and(|known| ["Host", "Username", "Password", "Database"].contains(&known.name));
    names.clone().filter(|name| place(name)).count() >= 2
        && !names.clone().any(|name| OTHERS.contains(&plain(name).as_str()))
}

/// A keyword that Npgsql doesn't have may be a piece of a password with a `;` in it: it isn't shown.
pub(super) fn unknown(place: usize) -> DsnError {
    DsnError::new(
        Code::UnknownParameter,
        format!(
            "the {} of its pairs has a keyword that Npgsql doesn't have; a value that holds a `;` stands in quotes",
            super::translate::ordinal(place)
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<(String, String)> {
        pairs(text).unwrap().parameters
    }

    #[test]
    fn pairs_are_read_by_the_rules_of_ado_net() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(read("Host=h; User Id = u ;"), [pair("Host", "h"), pair("User Id", "u")]);
        assert_eq!(read(";;Password=\"a;b\"\"c'd\" ;Port=1"), [pair("Password", "a;b\"c'd"), pair("Port", "1")]);
        assert_eq!(read("Password='it''s';Host="), [pair("Password", "it's"), pair("Host", "")]);
        assert_eq!(read("Password=a=b"), [pair("Password", "a=b")]);
        for broken in ["Host", "Host=h;x", "Password=\"a", "Password='a'b", "Password=a\"", "Password==a", "x;Host=h"] {
            assert!(pairs(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn a_keyword_is_found_however_it_is_written() {
        for name in ["SSL Mode", "SslMode", "sslmode", "SSL mode"] {
            assert_eq!(find(name).unwrap().name, "SSL Mode");
        }
        assert_eq!(find("User Id").unwrap().name, "Username");
        assert!(find("Initial Catalog").is_none());
        let mut names: Vec<String> = TABLE.iter().map(|known| plain(known.name)).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), TABLE.len());
        assert!(SYNONYMS.iter().all(|(_, first)| TABLE.iter().any(|known| known.name == *first)));
    }

    #[test]
    fn what_is_written_is_read_again() {
        for value in ["plain", "a;b", "it's", "say \"x\"", " blank ", "a=b", ""] {
            assert_eq!(read(&render(&[("Password", value)])), [("Password".to_owned(), value.to_owned())]);
        }
    }
}
