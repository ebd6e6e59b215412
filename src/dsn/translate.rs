//! Pairs to libpq's parameters: each foreign one is renamed, converted, dropped by name, or refused.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::dsn::foreign::{self, How, Tls};
use crate::dsn::raw::{self, Oddity, Raw};
use crate::dsn::refusal::{Code, DsnError};
use crate::dsn::{Change, Driver, Dsn, Parameter, tidy};

pub(super) type Parameters = BTreeMap<String, String>;

/// What a pool or a statement cache of another driver's is replaced by.
const POOL: &str = "slowlane has a pool of its own: workers, api_connections, control_connections, result_connections";
const PREPARED: &str = "slowlane decides itself what is kept prepared, and refuses a pooler that breaks sessions";

/// Numbers of libpq's that it would repeat, whatever stands there, when they are none.
const NUMBERS: [&str; 6] =
    ["connect_timeout", "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"];

/// Words that a parameter may be.
const WORDS: [(&str, &[&str]); 9] = [
    ("sslmode", &foreign::SSL_MODES),
    ("sslnegotiation", &["postgres", "direct"]),
    ("sslcertmode", &["disable", "allow", "require"]),
    ("channel_binding", &["disable", "prefer", "require"]),
    ("gssencmode", &["disable", "prefer", "require"]),
    ("load_balance_hosts", &["disable", "random"]),
    ("target_session_attrs", &["any", "read-write", "read-only", "primary", "standby", "prefer-standby"]),
    ("ssl_min_protocol_version", &["TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"]),
    ("ssl_max_protocol_version", &["TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"]),
];

/// What a string came to.
pub(super) struct Translated {
    pub dsn: Dsn,
    pub driver: Driver,
}

/// Translates what was taken apart. `driver` is what the scheme shows; parameters may show more.
pub(super) fn translate(
    raw: Raw,
    driver: Driver,
    table: &[Parameter],
    changes: &mut Vec<Change>,
) -> Result<Translated, DsnError> {
    let mut translation = Translation {
        parameters: Parameters::new(),
        tls: Tls::default(),
        options: String::new(),
        given_options: None,
        refused: None,
        driver,
        table,
        changes,
    };
    translation.note(&raw.oddities);
    let in_doubt = raw.oddities.contains(&Oddity::AtInQuery);
    translation.all(raw).map_err(|error| error.written_for(driver))?;
    let Translation { parameters, refused, .. } = translation;
    let checked = check(&parameters).map_err(|error| error.written_for(driver));
    let dsn = Dsn::of(parameters, table);
    match (refused, checked) {
        // The rest of it would be right.
        (Some(error), Ok(())) if !in_doubt => Err(error.written_for(driver).with_right(dsn.masked())),
        (Some(error), _) => Err(error.written_for(driver)),
        (None, Err(error)) => Err(error),
        (None, Ok(())) => Ok(Translated { dsn, driver }),
    }
}

/// A plain URL is somebody's when it has a parameter that only theirs have.
pub(super) fn shown_by(raw: &Raw, driver: Driver) -> Driver {
    if driver != Driver::Libpq {
        return driver;
    }
    let node = raw.parameters.iter().any(|(name, value)| name == "sslmode" && value == "no-verify");
    let shown = raw.parameters.iter().find_map(|(name, _)| foreign::find(name)?.shows);
    shown.or(node.then_some(Driver::NodePostgres)).unwrap_or(driver)
}

/// `name`, `name:port`, an IPv6 address, or one in brackets with a port; a socket's folder is whole.
fn host_and_port(text: &str) -> (&str, Option<&str>) {
    if let Some((address, rest)) = text.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
        return (address, rest.strip_prefix(':'));
    }
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    match text.rsplit_once(':') {
        Some((name, port)) if is_port(port) && !name.contains([':', '/']) => (name, Some(port)),
        _ => (text, None),
    }
}

struct Translation<'t> {
    parameters: Parameters,
    tls: Tls,
    /// Settings of the server's.
    options: String,
    /// The string's own `options`, to which they are added.
    given_options: Option<String>,
    /// The first parameter that can't stay: the others are read all the same, to say what would be right.
    refused: Option<DsnError>,
    driver: Driver,
    table: &'t [Parameter],
    changes: &'t mut Vec<Change>,
}

impl Translation<'_> {
    fn note(&mut self, oddities: &[Oddity]) {
        if oddities.contains(&Oddity::RawBlank) {
            self.change("encoded", "a blank is written %20");
        }
        if oddities.contains(&Oddity::RawEquals) {
            self.change("encoded", "a `=` in a value is written %3D");
        }
        if oddities.contains(&Oddity::PlusInOptions) {
            self.change("encoded", "a blank in options is written %20: libpq takes `+` as it is");
        }
    }

    fn change(&mut self, name: &'static str, text: impl Into<String>) {
        self.changes.push(Change::new(name, text));
    }

    fn all(&mut self, raw: Raw) -> Result<(), DsnError> {
        let Raw { parts, mut parameters, .. } = raw;
        let mut parts: Vec<(&str, String)> = parts;
        if matches!(self.driver, Driver::SqlAlchemy(_)) {
            self.several_hosts(&mut parts, &mut parameters)?;
        }
        for keyword in ["host", "port", "user", "password", "dbname"] {
            let again = parameters.iter().any(|(name, value)| name == keyword && !value.is_empty());
            let before = parts.len();
            parts.retain(|(part, _)| !(again && *part == keyword));
            if parts.len() < before {
                self.change(
                    "host",
                    format!("{keyword} behind the `?` takes the place of the one before it, as in libpq"),
                );
            }
        }
        for (keyword, value) in parts {
            self.put(keyword, value)?;
        }
        for (name, value) in parameters {
            match self.parameter(&name, value) {
                Err(error) if matches!(error.code, Code::UnknownParameter | Code::DuplicateParameter) => {
                    self.refused.get_or_insert(error);
                }
                outcome => outcome?,
            }
        }
        self.decide_tls()?;
        let given = self.given_options.take().into_iter();
        let options = given.chain([std::mem::take(&mut self.options)]).filter(|options| !options.is_empty());
        let options = options.collect::<Vec<_>>().join(" ");
        self.put("options", options)?;
        if self.driver == Driver::Jdbc
            && !["host", "hostaddr", "service"].iter().any(|k| self.parameters.contains_key(*k))
        {
            self.change("host", "the host is localhost, which pgjdbc takes where none is named");
            self.put("host", "localhost".to_owned())?;
        }
        self.own_encoding();
        if self.parameters.is_empty() && self.refused.is_none() {
            return Err(DsnError::new(Code::Empty, "the connection string names nothing to connect to"));
        }
        Ok(())
    }

    /// SQLAlchemy's `?host=a:1&host=b:2` takes the place of the host before the path.
    fn several_hosts(
        &mut self,
        parts: &mut Vec<(&str, String)>,
        parameters: &mut Vec<(String, String)>,
    ) -> Result<(), DsnError> {
        let given: Vec<String> = parameters.iter().filter(|(n, _)| n == "host").map(|(_, v)| v.clone()).collect();
        if given.len() < 2 && !given.iter().any(|host| host_and_port(host).1.is_some()) {
            return Ok(());
        }
        let (mut hosts, mut ports) = (Vec::new(), Vec::new());
        for host in &given {
            let (host, port) = host_and_port(host);
            hosts.push(host.to_owned());
            ports.push(port.unwrap_or_default().to_owned());
        }
        parts.retain(|(keyword, _)| *keyword != "host" && *keyword != "port");
        parameters.retain(|(name, _)| name != "host");
        self.change("renamed", "several host parameters become one list of hosts and ports");
        self.put("host", hosts.join(","))?;
        if ports.iter().any(|port| !port.is_empty()) {
            self.put("port", ports.join(","))?;
        }
        Ok(())
    }

    fn put(&mut self, keyword: &str, value: String) -> Result<(), DsnError> {
        if value.is_empty() && keyword != "sslmode" {
            return Ok(());
        }
        if self.parameters.contains_key(keyword) {
            return Err(DsnError::new(Code::DuplicateParameter, "a parameter is given twice: keep one of them"));
        }
        self.parameters.insert(keyword.to_owned(), value);
        Ok(())
    }

    fn parameter(&mut self, name: &str, value: String) -> Result<(), DsnError> {
        match name {
            "sslmode" if self.tls.mode.is_some() => {
                let stronger = self.tls.mode.as_deref().and_then(foreign::strength) < foreign::strength(&value);
                if stronger {
                    self.tls.mode = Some(value);
                }
                return Err(DsnError::new(
                    Code::DuplicateParameter,
                    "sslmode is given twice: keep the one that is meant",
                ));
            }
            "sslmode" => {
                self.tls.mode = Some(value);
                return Ok(());
            }
            "options" if self.given_options.is_none() => {
                self.given_options = Some(value);
                return Ok(());
            }
            "replication" if !["false", "off", "no", "0"].contains(&value.as_str()) => {
                return Err(DsnError::new(
                    Code::UnknownParameter,
                    "a replication connection runs no queries of slowlane's: leave replication out",
                ));
            }
            "host" if value.contains("/.s.PGSQL.") => {
                self.change("renamed", "the socket's file becomes host, its folder, and port");
                let (folder, port) = foreign::socket(&value)?;
                self.parameters.remove("host");
                self.parameters.remove("port");
                self.put("host", folder)?;
                return self.put("port", port);
            }
            "sslkeylogfile" => {
                return Err(DsnError::new(
                    Code::UnknownParameter,
                    "sslkeylogfile would write the keys of every session to a file: leave it out",
                ));
            }
            // Prisma's sslcert is the certificate of whoever signed the server's.
            "sslcert" if self.driver == Driver::Prisma => {
                self.change("renamed", "sslcert is sslrootcert to libpq: Prisma's names the certificate to trust");
                return self.put("sslrootcert", value);
            }
            _ => {}
        }
        if self.table.iter().any(|known| known.keyword == name) {
            return self.put(name, value);
        }
        match foreign::find(name) {
            Some(foreign) => self.foreign(foreign.name, foreign.how, &value),
            None if foreign::SETTINGS.contains(&name) => {
                self.change("renamed", format!("{name} is a setting of the server's: it goes into options"));
                foreign::add_setting(&mut self.options, name, &value);
                Ok(())
            }
            None => Err(self.unknown(name)),
        }
    }

    /// Never repeats the name, which may be a piece of a password; a name that is nearly right is known from the tables.
    fn unknown(&self, name: &str) -> DsnError {
        let keywords = self.table.iter().map(|known| known.keyword.as_str());
        let others = foreign::TABLE.iter().map(|foreign| foreign.name).chain(foreign::SETTINGS.iter().copied());
        let plain = |name: &str| name.to_ascii_lowercase().replace(['-', '_'], "");
        let near = keywords.chain(others).find(|known| plain(known) == plain(name.trim_start_matches("amp;")));
        let hint = match near {
            Some(_) if name.starts_with("amp;") => "; `&amp;` is written `&`".to_owned(),
            Some(known) => format!("; the name is {known}"),
            None => String::new(),
        };
        DsnError::new(
            Code::UnknownParameter,
            format!("it has a parameter that neither libpq nor a driver that is known here has{hint}"),
        )
    }

    fn foreign(&mut self, name: &'static str, how: How, value: &str) -> Result<(), DsnError> {
        match how {
            // pgjdbc's own default: libpq's is to ask for it where it can.
            How::Renamed("gssencmode") if value == "allow" => {
                self.change("dropped", format!("{name}=allow is left out: libpq asks for it where it can"));
                Ok(())
            }
            How::Renamed(keyword) => {
                self.change("renamed", format!("{name} is {keyword} to libpq"));
                self.put(keyword, value.to_owned())
            }
            How::Seconds(keyword) | How::Milliseconds(keyword) => {
                let seconds = foreign::seconds(value, matches!(how, How::Milliseconds(_)))?;
                self.change("renamed", format!("{name} is {keyword}={seconds} to libpq, in whole seconds"));
                self.put(keyword, seconds)
            }
            How::Flag(keyword) => {
                let value = if foreign::flag_of(value)? { "1" } else { "0" };
                self.change("renamed", format!("{name} is {keyword}={value} to libpq"));
                self.put(keyword, value.to_owned())
            }
            How::Setting("default_transaction_read_only") if !foreign::flag_of(value)? => {
                self.change("dropped", format!("{name} says nothing that isn't so anyway"));
                Ok(())
            }
            How::Setting(setting) => {
                let quoted = format!("\"{}\"", value.replace('"', "\"\""));
                let simple = value.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
                    && value.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
                // Prisma means the name as it is written.
                let value = if name == "schema" && !simple { quoted.as_str() } else { value };
                let value = if setting == "default_transaction_read_only" { "on" } else { value };
                self.change("renamed", format!("{name} is the server's setting {setting}: it goes into options"));
                foreign::add_setting(&mut self.options, setting, value);
                Ok(())
            }
            How::SettingSeconds(setting) => {
                let value = foreign::milliseconds(value)?;
                self.change(
                    "renamed",
                    format!("{name} is the server's setting {setting}, in milliseconds: it goes into options. The server ends the statement with SQLSTATE 57014"),
                );
                foreign::add_setting(&mut self.options, setting, &value);
                Ok(())
            }
            How::Settings => {
                self.change("renamed", format!("{name} are settings of the server's: they go into options"));
                for (setting, value) in foreign::settings(value)? {
                    if setting == "application_name" {
                        self.put("application_name", value)?;
                    } else {
                        foreign::add_setting(&mut self.options, &setting, &value);
                    }
                }
                Ok(())
            }
            How::Pool => {
                self.change("dropped", format!("{name} has no effect here: {POOL}"));
                Ok(())
            }
            How::Prepared => {
                self.change("dropped", format!("{name} has no effect here: {PREPARED}"));
                Ok(())
            }
            How::Dropped(why) => {
                self.change("dropped", format!("{name} has no effect here: {why}"));
                Ok(())
            }
            How::Refused(why) => Err(DsnError::new(Code::UnknownParameter, why)),
            How::Tls => self.tls_word(name, value),
            How::ServerType => {
                let wanted = foreign::server_type(value)?;
                self.change("renamed", format!("{name} is target_session_attrs={wanted} to libpq"));
                self.put("target_session_attrs", wanted.to_owned())
            }
            How::LoadBalance => {
                let wanted = if foreign::flag_of(value)? { "random" } else { "disable" };
                self.change("renamed", format!("{name} is load_balance_hosts={wanted} to libpq"));
                self.put("load_balance_hosts", wanted.to_owned())
            }
            How::Socket => {
                let (folder, port) = foreign::socket(value)?;
                self.change("renamed", format!("{name} is host, its folder, and port to libpq"));
                self.parameters.remove("host");
                self.parameters.remove("port");
                self.put("host", folder)?;
                self.put("port", port)
            }
        }
    }

    fn tls_word(&mut self, name: &'static str, value: &str) -> Result<(), DsnError> {
        let place = match name {
            "ssl" => &mut self.tls.flag,
            "sslaccept" => &mut self.tls.accept,
            "uselibpqcompat" => &mut self.tls.libpq_words,
            "direct_tls" => {
                if foreign::flag_of(value)? {
                    self.change("renamed", "direct_tls is sslnegotiation=direct to libpq");
                    self.put("sslnegotiation", "direct".to_owned())?;
                    self.tls.direct = true;
                } else {
                    self.change("dropped", "direct_tls says nothing that isn't so anyway");
                }
                return Ok(());
            }
            _ => {
                self.tls.unchecked = value.ends_with("NonValidatingFactory");
                self.change("dropped", format!("{name} names code of that driver's: sslmode says what is checked"));
                return Ok(());
            }
        };
        if name != "ssl" {
            self.changes.push(Change::new("tls", format!("{name} decides what sslmode means")));
        }
        if place.replace(value.to_owned()).is_some() {
            return Err(DsnError::new(Code::DuplicateParameter, "a parameter is given twice: keep one of them"));
        }
        Ok(())
    }

    fn decide_tls(&mut self) -> Result<(), DsnError> {
        self.tls.files = ["sslcert", "sslkey", "sslrootcert"].iter().any(|file| self.parameters.contains_key(*file));
        let Some((mode, by_system)) = self.tls.resolve(self.driver)? else { return Ok(()) };
        let said = self.tls.mode.as_deref() == Some(mode) && self.tls.flag.is_none() && self.tls.accept.is_none();
        if !said {
            let why = match self.driver {
                Driver::NodePostgres if mode == "verify-full" => {
                    ": node-postgres verifies the server's certificate with that word, and libpq wouldn't"
                }
                Driver::Jdbc if mode == "verify-full" && self.tls.mode.is_none() => ": pgjdbc verifies with ssl=true",
                _ if mode == "require" && self.tls.flag.as_deref().is_some_and(|word| word != "require") => {
                    ": the certificate isn't checked; write sslmode=verify-full if it is to be"
                }
                _ => "",
            };
            self.change("tls", format!("TLS is asked for as sslmode={mode}{why}"));
        }
        if by_system && !self.parameters.contains_key("sslrootcert") {
            self.change("tls", "sslrootcert=system is added: that driver trusts the well-known authorities");
            self.put("sslrootcert", "system".to_owned())?;
        }
        self.put("sslmode", mode.to_owned())
    }

    /// Texts go in and out as UTF-8.
    fn own_encoding(&mut self) {
        let utf8 = |value: &str| ["utf8", "utf-8", "unicode"].contains(&value.to_ascii_lowercase().as_str());
        let Some(encoding) = self.parameters.get("client_encoding").map(|value| (utf8(value), value == "UTF8")) else {
            return;
        };
        if let (false, _) = encoding {
            self.change("dropped", "client_encoding is UTF8 here, whatever the database has");
        }
        if let (_, false) = encoding {
            self.parameters.insert("client_encoding".to_owned(), "UTF8".to_owned());
        }
    }
}

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
    if hides || value.contains("://") {
        return Err(DsnError::malformed(
            "a value holds another parameter or another connection string: parameters of a URL are set apart by `&`",
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
