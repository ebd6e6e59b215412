//! The same database in the words of each driver: what `slowlane dsn` shows. What a driver has no words for is named.

use std::collections::BTreeMap;

use crate::dsn::{Dsn, adonet, render};

/// A connection string for one driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendering {
    /// Whose words it is in.
    pub name: &'static str,
    /// The string; `None` when that driver can't reach such a place at all.
    pub text: Option<String>,
    /// Parameters that the driver has no words for.
    pub lost: Vec<String>,
}

/// What a driver calls libpq's parameters.
enum Word {
    /// The same.
    Same,
    /// Another name for the same value.
    As(&'static str),
    /// Another name and another value.
    Is(&'static str, &'static str),
    /// Nothing.
    Lost,
}

/// The string in each dialect; passwords as `***` unless they are asked for.
pub fn all(dsn: &Dsn, with_password: bool) -> Vec<Rendering> {
    let shown: BTreeMap<String, String> = dsn
        .parameters
        .iter()
        .map(|(keyword, value)| {
            (keyword.clone(), if with_password { value.clone() } else { dsn.shown(keyword, value) })
        })
        .collect();
    let whole = |name, text| Rendering { name, text: Some(text), lost: Vec::new() };
    vec![
        whole("libpq URL", render::url(&shown, |_, value| value.to_owned())),
        whole("libpq keyword=value", render::conninfo(&shown)),
        alchemy("SQLAlchemy, synchronous", "postgresql+psycopg2://", &shown, |_, _| Word::Same),
        alchemy("SQLAlchemy, asynchronous", "postgresql+asyncpg://", &shown, |keyword, _| match keyword {
            "sslmode" => Word::As("ssl"),
            "passfile" | "sslnegotiation" => Word::Lost,
            "target_session_attrs" | "krbsrvname" | "gsslib" => Word::Same,
            _ => Word::Lost,
        }),
        asyncpg(&shown),
        jdbc(&shown),
        node(&shown),
        pgx(&shown),
        sqlx(&shown),
        npgsql(&shown),
    ]
    .into_iter()
    .map(|rendering| rendering.unless_all_is_lost(dsn))
    .collect()
}

impl Rendering {
    /// A service, for one, is libpq's alone: without it nothing is left to connect to.
    fn unless_all_is_lost(self, dsn: &Dsn) -> Rendering {
        let kept = dsn.parameters.keys().any(|keyword| !self.lost.contains(keyword));
        Rendering { text: self.text.filter(|_| kept), ..self }
    }
}

fn apart(keyword: &str) -> bool {
    matches!(keyword, "host" | "port" | "user" | "password" | "dbname")
}

/// The query in a driver's words, and what it has none for.
fn query(
    parameters: &BTreeMap<String, String>,
    word: impl Fn(&str, &str) -> Word,
) -> (Vec<(String, String)>, Vec<String>) {
    let (mut pairs, mut lost) = (Vec::new(), Vec::new());
    for (keyword, value) in parameters.iter().filter(|(keyword, _)| !apart(keyword)) {
        match word(keyword, value) {
            Word::Same => pairs.push((keyword.clone(), value.clone())),
            Word::As(name) => pairs.push((name.to_owned(), value.clone())),
            Word::Is(name, value) => pairs.push((name.to_owned(), value.to_owned())),
            Word::Lost => lost.push(keyword.clone()),
        }
    }
    (pairs, lost)
}

fn join(scheme: &str, parameters: &BTreeMap<String, String>, pairs: &[(String, String)]) -> String {
    let mut pairs: Vec<(&str, &str)> = pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    if !parameters.contains_key("user")
        && let Some(password) = parameters.get("password")
    {
        pairs.push(("password", password));
    }
    render::url_of(scheme, parameters, &pairs)
}

/// SQLAlchemy has several hosts as parameters.
fn alchemy(
    name: &'static str,
    scheme: &str,
    parameters: &BTreeMap<String, String>,
    word: impl Fn(&str, &str) -> Word,
) -> Rendering {
    let (mut pairs, lost) = query(parameters, word);
    let hosts = render::hosts_and_ports(parameters);
    let mut parameters = parameters.clone();
    if hosts.len() > 1 {
        parameters.remove("host");
        parameters.remove("port");
        for (host, port) in hosts {
            let host = if host.contains(':') { format!("[{host}]") } else { host };
            let host = if port.is_empty() { host } else { format!("{host}:{port}") };
            pairs.push(("host".to_owned(), host));
        }
    }
    Rendering { name, text: Some(join(scheme, &parameters, &pairs)), lost }
}

/// asyncpg takes settings of the server's as parameters, and has no `options`.
fn asyncpg(parameters: &BTreeMap<String, String>) -> Rendering {
    let (mut pairs, mut lost) = query(parameters, |keyword, value| match keyword {
        "sslmode"
        | "sslcert"
        | "sslkey"
        | "sslrootcert"
        | "sslcrl"
        | "sslpassword"
        | "passfile"
        | "ssl_min_protocol_version"
        | "ssl_max_protocol_version"
        | "target_session_attrs"
        | "krbsrvname"
        | "gsslib"
        | "application_name" => {
            if keyword == "sslrootcert" && value == "system" {
                Word::Lost
            } else {
                Word::Same
            }
        }
        _ => Word::Lost,
    });
    if let Some(options) = parameters.get("options")
        && let Some(settings) = settings(options)
    {
        lost.retain(|keyword| keyword != "options");
        pairs.extend(settings);
    }
    Rendering { name: "asyncpg", text: Some(join("postgresql://", parameters, &pairs)), lost }
}

/// `-c name=value -c name=value`, where every name is one that stands in connection strings.
fn settings(options: &str) -> Option<Vec<(String, String)>> {
    let mut settings = Vec::new();
    let mut words = words(options).into_iter();
    while let Some(word) = words.next() {
        let pair = match word.strip_prefix("-c") {
            Some("") => words.next()?,
            Some(pair) => pair.to_owned(),
            None => return None,
        };
        let (name, value) = pair.split_once('=')?;
        crate::dsn::foreign::SETTINGS.contains(&name).then_some(())?;
        settings.push((name.to_owned(), value.to_owned()));
    }
    Some(settings)
}

/// The words of `options`, as the server splits them.
fn words(options: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut chars = options.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => word.extend(chars.next()),
            c if c.is_whitespace() => words.push(std::mem::take(&mut word)),
            c => word.push(c),
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    words
}

fn jdbc(parameters: &BTreeMap<String, String>) -> Rendering {
    let (mut pairs, lost) = query(parameters, |keyword, value| match keyword {
        "sslmode" | "sslcert" | "sslkey" | "sslpassword" | "options" => Word::Same,
        "sslrootcert" if value != "system" => Word::Same,
        "application_name" => Word::As("ApplicationName"),
        "connect_timeout" => Word::As("connectTimeout"),
        "channel_binding" => Word::As("channelBinding"),
        "gssencmode" => Word::As("gssEncMode"),
        "krbsrvname" => Word::As("kerberosServerName"),
        "sslnegotiation" => Word::As("sslNegotiation"),
        "require_auth" => Word::As("requireAuth"),
        "keepalives" => Word::Is("tcpKeepAlive", if value == "0" { "false" } else { "true" }),
        "load_balance_hosts" => Word::Is("loadBalanceHosts", if value == "random" { "true" } else { "false" }),
        "target_session_attrs" => match value {
            "any" => Word::Is("targetServerType", "any"),
            "primary" => Word::Is("targetServerType", "primary"),
            "standby" => Word::Is("targetServerType", "secondary"),
            "prefer-standby" => Word::Is("targetServerType", "preferSecondary"),
            _ => Word::Lost,
        },
        _ => Word::Lost,
    });
    let hosts = render::hosts_and_ports(parameters);
    // Java has no Unix sockets of libpq's kind.
    let reachable = hosts.iter().all(|(host, _)| !host.is_empty() && !host.starts_with('/'));
    let mut place = parameters.clone();
    for keyword in ["user", "password"] {
        if let Some(value) = place.remove(keyword) {
            pairs.push((keyword.to_owned(), value));
        }
    }
    let text = reachable.then(|| join("jdbc:postgresql://", &place, &pairs));
    Rendering { name: "JDBC", text, lost }
}

/// node-postgres verifies with `sslmode=require`, unless it is told to mean what libpq means.
fn node(parameters: &BTreeMap<String, String>) -> Rendering {
    let (mut pairs, lost) = query(parameters, |keyword, value| match keyword {
        "sslmode" | "sslcert" | "sslkey" | "application_name" | "fallback_application_name" | "options" => Word::Same,
        "sslrootcert" if value != "system" => Word::Same,
        _ => Word::Lost,
    });
    let by_system = parameters.get("sslrootcert").is_some_and(|cert| cert == "system");
    if parameters.contains_key("sslmode") && !by_system {
        pairs.push(("uselibpqcompat".to_owned(), "true".to_owned()));
    }
    let one = render::hosts_and_ports(parameters).len() == 1;
    Rendering { name: "node-postgres", text: one.then(|| join("postgresql://", parameters, &pairs)), lost }
}

/// pgx has libpq's words for what it has; where no file is named, it trusts the system's authorities.
fn pgx(parameters: &BTreeMap<String, String>) -> Rendering {
    let (pairs, lost) = query(parameters, |keyword, value| match keyword {
        "sslmode"
        | "sslcert"
        | "sslkey"
        | "sslpassword"
        | "sslsni"
        | "sslnegotiation"
        | "target_session_attrs"
        | "passfile"
        | "connect_timeout"
        | "application_name"
        | "options"
        | "service"
        | "krbsrvname" => Word::Same,
        "sslrootcert" if value != "system" => Word::Same,
        _ => Word::Lost,
    });
    Rendering { name: "pgx", text: Some(join("postgresql://", parameters, &pairs)), lost }
}

/// sqlx connects to one server.
fn sqlx(parameters: &BTreeMap<String, String>) -> Rendering {
    let (pairs, lost) = query(parameters, |keyword, value| match keyword {
        "sslmode" | "sslcert" | "sslkey" | "application_name" | "options" => Word::Same,
        "sslrootcert" if value != "system" => Word::Same,
        _ => Word::Lost,
    });
    let one = render::hosts_and_ports(parameters).len() == 1;
    Rendering { name: "sqlx", text: one.then(|| join("postgresql://", parameters, &pairs)), lost }
}

/// Npgsql's pairs. It needs a host, and verifies by the system's authorities where no file is named.
fn npgsql(parameters: &BTreeMap<String, String>) -> Rendering {
    let hosts = render::hosts_and_ports(parameters);
    let several = hosts.len() > 1;
    let place = |(host, port): &(String, String)| match host.contains(':') {
        _ if port.is_empty() || !several => host.clone(),
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    };
    let host = hosts.iter().map(place).collect::<Vec<_>>().join(",");
    let mut pairs: Vec<(&str, &str)> = vec![("Host", host.as_str())];
    let mut lost = Vec::new();
    for (keyword, value) in parameters {
        let value = value.as_str();
        let pair = match keyword.as_str() {
            "host" => continue,
            "port" if several => continue,
            "port" => ("Port", value),
            "user" => ("Username", value),
            "password" => ("Password", value),
            "dbname" => ("Database", value),
            "sslmode" => ("SSL Mode", npgsql_mode(value)),
            "sslcert" => ("SSL Certificate", value),
            "sslkey" => ("SSL Key", value),
            "sslpassword" => ("SSL Password", value),
            "sslrootcert" if value != "system" => ("Root Certificate", value),
            "sslnegotiation" => ("SSL Negotiation", value),
            "channel_binding" => ("Channel Binding", value),
            "gssencmode" => ("GSS Encryption Mode", value),
            "require_auth" => ("Require Auth", value),
            "krbsrvname" => ("Kerberos Service Name", value),
            "passfile" => ("Passfile", value),
            "application_name" => ("Application Name", value),
            "connect_timeout" => ("Timeout", value),
            "keepalives" => ("Tcp Keepalive", if value == "0" { "false" } else { "true" }),
            "target_session_attrs" => ("Target Session Attributes", value),
            "load_balance_hosts" => ("Load Balance Hosts", if value == "random" { "true" } else { "false" }),
            "options" => ("Options", value),
            _ => {
                lost.push(keyword.clone());
                continue;
            }
        };
        pairs.push(pair);
    }
    // libpq's default for whom to trust is a file of the user's.
    let verifies = parameters.get("sslmode").is_some_and(|mode| mode.starts_with("verify"));
    if verifies && !parameters.contains_key("sslrootcert") {
        lost.push("sslrootcert".to_owned());
    }
    if parameters.get("sslmode").is_some_and(|mode| mode == "verify-ca") && !parameters.contains_key("sslrootcert") {
        lost.push("sslmode".to_owned());
    }
    let reachable = hosts.iter().all(|(host, _)| !host.is_empty());
    Rendering { name: "Npgsql", text: reachable.then(|| adonet::render(&pairs)), lost }
}

fn npgsql_mode(mode: &str) -> &str {
    match mode {
        "disable" => "Disable",
        "allow" => "Allow",
        "prefer" => "Prefer",
        "require" => "Require",
        "verify-ca" => "VerifyCA",
        "verify-full" => "VerifyFull",
        other => other,
    }
}
