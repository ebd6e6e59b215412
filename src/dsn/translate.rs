//! Pairs to libpq's parameters: each foreign one is renamed, converted, dropped by name, or refused.

mod tls;

use std::collections::BTreeMap;

use crate::dsn::check::{Parameters, check};
use crate::dsn::foreign::{self, Foreign, How, Tls};
use crate::dsn::raw::{Oddity, Raw};
use crate::dsn::refusal::{Code, DsnError};
use crate::dsn::{Change, Driver, Dsn, Parameter, adonet};

/// What a pool or a statement cache of another driver's is replaced by.
const POOL: &str = "slowlane has a pool of its own: workers, api_connections, control_connections, result_connections";
const PREPARED: &str = "slowlane decides itself what is kept prepared, and refuses a pooler that breaks sessions";

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
        ports: None,
        refused: None,
        torn: false,
        written_as: BTreeMap::new(),
        driver,
        table,
        changes,
    };
    translation.note(&raw.oddities);
    let in_doubt = raw.oddities.contains(&Oddity::AtInQuery);
    translation.all(raw).map_err(|error| error.written_for(driver))?;
    let Translation { parameters, refused, torn, written_as, .. } = translation;
    let in_doubt = in_doubt || torn;
    let checked = check(&parameters).map_err(|error| {
        // Told by the name that it was written by.
        let name = written_as.iter().find(|(keyword, _)| error.message.contains(*keyword)).map(|(_, name)| *name);
        name.map_or(error.clone(), |name| error.about(name)).written_for(driver)
    });
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
    // Many have Django's names for the scheme too.
    if !matches!(driver, Driver::Libpq | Driver::Django) {
        return driver;
    }
    let node = raw.parameters.iter().any(|(name, value)| name == "sslmode" && value == "no-verify");
    let shows = |name: &str| match foreign::bracketed(name) {
        Some(_) if name.starts_with("variables") => Some(Driver::Rails),
        Some(_) => Some(Driver::Sqlx),
        None => foreign::find(name, Driver::Libpq)?.shows,
    };
    let shown = |shared: bool| {
        raw.parameters.iter().filter(|(name, _)| (name == "encoding") == shared).find_map(|(name, _)| shows(name))
    };
    // Rails has an `encoding` too: it counts where nothing else shows anybody.
    let shown = shown(false).or_else(|| shown(true));
    shown.or(node.then_some(Driver::NodePostgres)).unwrap_or(driver)
}

/// The name is one of libpq's, of another driver's or of the server's, and can be shown.
pub(super) fn is_known(name: &str, table: &[Parameter]) -> bool {
    table.iter().any(|known| known.keyword == name)
        || foreign::find(name, Driver::Libpq).is_some()
        || foreign::SETTINGS.contains(&name)
}

/// `1st`, `2nd`, `3rd`, `4th`.
pub(super) fn ordinal(n: usize) -> String {
    let ending = match (n % 10, n % 100) {
        (_, 11..=13) => "th",
        (1, _) => "st",
        (2, _) => "nd",
        (3, _) => "rd",
        _ => "th",
    };
    format!("{n}{ending}")
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
    /// The ports of Npgsql's hosts, empty for those without one of their own.
    ports: Option<Vec<String>>,
    /// The first parameter that can't stay: the others are read all the same, to say what would be right.
    refused: Option<DsnError>,
    /// A value may have been torn at a mark in it: what the rest means isn't certain either.
    torn: bool,
    /// libpq's keywords that stood under other names, and these.
    written_as: BTreeMap<&'static str, &'static str>,
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
        if oddities.contains(&Oddity::SocketInPath) {
            self.change(
                "host",
                "the folder of a socket stands in the place of the database: it is host, and what follows it is the database",
            );
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
        let order: Vec<String> = parameters.iter().map(|(name, _)| name.clone()).collect();
        if matches!(self.driver, Driver::SqlAlchemy(_)) {
            self.several_hosts(&mut parts, &mut parameters)?;
        }
        for keyword in ["host", "port", "user", "password", "dbname"] {
            let again = parameters.iter().any(|(name, value)| name == keyword && !value.is_empty());
            let before = parts.len();
            parts.retain(|(part, _)| !(again && *part == keyword));
            if parts.len() < before {
                self.change(
                    "replaced",
                    format!("{keyword} behind the `?` takes the place of the one before it, as in libpq"),
                );
            }
        }
        for (keyword, value) in parts {
            self.put(keyword, value)?;
        }
        for (name, value) in parameters {
            let place = order.iter().position(|known| *known == name).map_or(0, |at| at + 1);
            match self.parameter(&name, value, place) {
                Err(error) if matches!(error.code, Code::UnknownParameter | Code::DuplicateParameter) => {
                    self.refused.get_or_insert(error);
                }
                outcome => outcome?,
            }
        }
        self.ports_of_hosts()?;
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
            let message = format!("{keyword} is given twice: keep the one that is meant");
            return Err(DsnError::new(Code::DuplicateParameter, message));
        }
        self.parameters.insert(keyword.to_owned(), value);
        Ok(())
    }

    fn parameter(&mut self, name: &str, value: String, place: usize) -> Result<(), DsnError> {
        if self.driver == Driver::AdoNet {
            return match adonet::find(name) {
                Some(known) => self.foreign(known, &value),
                None => {
                    self.torn = true;
                    Err(adonet::unknown(place))
                }
            };
        }
        match (name, self.driver) {
            ("sslmode", _) => return self.ssl_mode(value),
            ("options", _) => return self.given_options(value),
            ("replication", _) if !["false", "off", "no", "0"].contains(&value.as_str()) => {
                return Err(DsnError::new(
                    Code::UnknownParameter,
                    "a replication connection runs no queries of slowlane's: leave replication out",
                ));
            }
            ("host", _) if value.contains("/.s.PGSQL.") => return self.socket("a socket's file", &value),
            ("sslkeylogfile", _) => {
                return Err(DsnError::new(
                    Code::UnknownParameter,
                    "sslkeylogfile would write the keys of every session to a file: leave it out",
                ));
            }
            // Prisma's sslcert is the certificate of whoever signed the server's.
            ("sslcert", Driver::Prisma) => {
                self.change("renamed", "sslcert is sslrootcert to libpq: Prisma's names the certificate to trust");
                return self.put("sslrootcert", value);
            }
            ("connect_timeout", Driver::Ecto) => {
                let value = foreign::seconds(&value, true).map_err(|error| error.about(name))?;
                return self.renamed(name, "connect_timeout", &value);
            }
            ("tcp_user_timeout", Driver::TokioPostgres) => {
                let value = foreign::milliseconds(&value).map_err(|error| error.about(name))?;
                return self.renamed(name, "tcp_user_timeout", &value);
            }
            _ => {}
        }
        if self.table.iter().any(|known| known.keyword == name) {
            return self.put(name, value);
        }
        let setting = foreign::bracketed(name).or_else(|| foreign::SETTINGS.contains(&name).then_some(name));
        match (foreign::find(name, self.driver), setting) {
            (Some(known), _) => self.foreign(known, &value),
            (None, Some(setting)) => {
                let name = if setting.contains('.') { "a name with a dot" } else { name };
                self.change("renamed", format!("{name} is a setting of the server's: it goes into options"));
                foreign::add_setting(&mut self.options, setting, &value);
                Ok(())
            }
            (None, None) => Err(self.unknown(name, place)),
        }
    }

    fn given_options(&mut self, value: String) -> Result<(), DsnError> {
        match self.given_options.replace(value) {
            None => Ok(()),
            Some(_) => Err(DsnError::new(Code::DuplicateParameter, "options is given twice: put both into one")),
        }
    }

    /// Never repeats the name, which may be a piece of a password; a name that is nearly right is known from the
    /// tables.
    fn unknown(&self, name: &str, place: usize) -> DsnError {
        let keywords = self.table.iter().map(|known| known.keyword.as_str());
        let others = foreign::TABLE.iter().map(|foreign| foreign.name).chain(foreign::SETTINGS.iter().copied());
        let plain = |name: &str| name.to_ascii_lowercase().replace(['-', '_'], "");
        let near = keywords.chain(others).find(|known| plain(known) == plain(name.trim_start_matches("amp;")));
        let hint = match near {
            Some(_) if name.starts_with("amp;") => "; `&amp;` is written `&`".to_owned(),
            Some(known) => format!("; the name is {known}"),
            None => String::new(),
        };
        let which = ordinal(place);
        DsnError::new(
            Code::UnknownParameter,
            format!(
                "the {which} of its parameters is one that neither libpq nor a driver that is known here has{hint}"
            ),
        )
    }

    /// A socket's file takes the place of whatever host and port there were.
    fn socket(&mut self, name: &str, path: &str) -> Result<(), DsnError> {
        let (folder, port) = foreign::socket(path)?;
        self.change("renamed", format!("{name} is host, its folder, and port to libpq"));
        self.parameters.remove("host");
        self.parameters.remove("port");
        self.put("host", folder)?;
        self.put("port", port)
    }

    /// libpq has it under another name, and as another value.
    fn renamed(&mut self, name: &str, keyword: &str, value: &str) -> Result<(), DsnError> {
        self.change("renamed", format!("{name} is {keyword}={value} to libpq"));
        self.put(keyword, value.to_owned())
    }

    fn setting(&mut self, name: &str, setting: &str, value: &str) -> Result<(), DsnError> {
        self.change("renamed", format!("{name} is the server's setting {setting}: it goes into options"));
        foreign::add_setting(&mut self.options, setting, value);
        Ok(())
    }

    fn dropped(&mut self, name: &str, why: &str) -> Result<(), DsnError> {
        self.change("dropped", format!("{name} has no effect here: {why}"));
        Ok(())
    }

    /// A parameter of a table, by what becomes of it; what is wrong with its value is told by its name.
    fn foreign(&mut self, known: &'static Foreign, value: &str) -> Result<(), DsnError> {
        self.becomes(known.name, known.how, value).map_err(|error| error.about(known.name))
    }

    fn becomes(&mut self, name: &'static str, how: How, value: &str) -> Result<(), DsnError> {
        if let How::Renamed(keyword) | How::Same(keyword) | How::Word(keyword) = how {
            self.written_as.insert(keyword, name);
        }
        match how {
            How::Same("options") => self.given_options(value.to_owned()),
            How::Same(keyword) => self.put(keyword, value.to_owned()),
            How::Renamed(keyword) => {
                self.change("renamed", format!("{name} is {keyword} to libpq"));
                self.put(keyword, value.to_owned())
            }
            How::Word(keyword) => {
                self.change("renamed", format!("{name} is {keyword} to libpq"));
                self.put(keyword, value.to_ascii_lowercase())
            }
            How::Login => {
                self.written_as.insert("require_auth", name);
                self.change("renamed", format!("{name} is require_auth to libpq"));
                self.put("require_auth", foreign::login_methods(value))
            }
            How::Instead(keyword) => self.instead(name, keyword, value),
            How::ShortSeconds(keyword) => self.renamed(name, keyword, &foreign::short_seconds(value)?),
            How::Duration(keyword) => self.renamed(name, keyword, &foreign::duration(value)?),
            How::Isolation => match foreign::isolation(value)? {
                Some(level) => self.setting(name, "default_transaction_isolation", level),
                None => self.dropped(name, "slowlane begins and ends its transactions itself"),
            },
            How::Seconds(keyword) => self.renamed(name, keyword, &foreign::seconds(value, false)?),
            How::Milliseconds(keyword) => self.renamed(name, keyword, &foreign::seconds(value, true)?),
            How::Flag(keyword) => self.renamed(name, keyword, if foreign::flag_of(value)? { "1" } else { "0" }),
            How::Setting(setting) => self.setting(name, setting, value),
            How::SettingSeconds(setting) => self.setting(name, setting, &foreign::milliseconds(value)?),
            How::Schema => self.setting(name, "search_path", &foreign::identifier(value)),
            How::ReadOnly if foreign::flag_of(value)? => self.setting(name, "default_transaction_read_only", "on"),
            How::ReadOnly => self.dropped(name, "it says nothing that isn't so anyway"),
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
            How::Pool => self.dropped(name, POOL),
            How::Prepared => self.dropped(name, PREPARED),
            How::Dropped(why) => self.dropped(name, why),
            How::Refused(why) => {
                // A PEM in the place of a file's name: what is right is none of it.
                self.torn |= name == "sslinline";
                Err(DsnError::new(Code::UnknownParameter, format!("{name} can't be used here: {why}")))
            }
            How::RefusedIf(why) if foreign::flag_of(value)? => self.becomes(name, How::Refused(why), value),
            How::RefusedIf(_) => self.dropped(name, "it says nothing that isn't so anyway"),
            How::Hosts => self.hosts(value),
            How::SessionAttributes => self.renamed(name, "target_session_attrs", foreign::session_attributes(value)?),
            How::Compatibility if value.eq_ignore_ascii_case("redshift") => {
                self.becomes(name, How::Refused("Redshift is another database: slowlane works on Postgres"), value)
            }
            How::Compatibility => self.dropped(name, "it is about how that driver hands rows over"),
            How::Tls => self.tls_word(name, value),
            How::GssEncryption if value.eq_ignore_ascii_case("allow") => {
                self.dropped(name, "libpq asks for it where it can")
            }
            How::GssEncryption => {
                self.renamed(name, "gssencmode", foreign::gss_encryption(&value.to_ascii_lowercase())?)
            }
            How::ServerType => self.renamed(name, "target_session_attrs", foreign::server_type(value)?),
            How::LoadBalance => {
                let wanted = if foreign::flag_of(value)? { "random" } else { "disable" };
                self.renamed(name, "load_balance_hosts", wanted)
            }
            How::Socket => self.socket(name, value),
        }
    }

    /// It takes the place of what stands before the path; a socket's folder goes before the name of a host.
    fn instead(&mut self, name: &'static str, keyword: &'static str, value: &str) -> Result<(), DsnError> {
        if name == "hostname" && self.parameters.get("host").is_some_and(|host| host.starts_with('/')) {
            return self.dropped(name, "the folder of a socket goes before it");
        }
        self.written_as.insert(keyword, name);
        let text = match self.parameters.remove(keyword) {
            Some(_) => format!("{name} is {keyword} to libpq, and takes the place of the one before the path"),
            None => format!("{name} is {keyword} to libpq"),
        };
        self.change("renamed", text);
        self.put(keyword, value.to_owned())
    }

    /// Npgsql's Port is that of each host that has none of its own.
    fn ports_of_hosts(&mut self) -> Result<(), DsnError> {
        let Some(ports) = self.ports.take() else { return Ok(()) };
        let others = self.parameters.remove("port").unwrap_or_default();
        let ports = ports.into_iter().map(|port| if port.is_empty() { others.clone() } else { port });
        self.put("port", ports.collect::<Vec<_>>().join(","))
    }

    /// Npgsql's list of hosts, each perhaps with its port.
    fn hosts(&mut self, value: &str) -> Result<(), DsnError> {
        let places: Vec<(&str, Option<&str>)> = value.split(',').map(|place| host_and_port(place.trim())).collect();
        let hosts: Vec<&str> = places.iter().map(|(host, _)| *host).collect();
        let ports: Vec<&str> = places.iter().map(|(_, port)| port.unwrap_or_default()).collect();
        if ports.iter().any(|port| !port.is_empty()) {
            self.ports = Some(ports.into_iter().map(str::to_owned).collect());
        }
        self.put("host", hosts.join(","))
    }

    /// Texts go in and out as UTF-8.
    fn own_encoding(&mut self) {
        let Some(encoding) = self.parameters.get_mut("client_encoding") else { return };
        let given = std::mem::replace(encoding, "UTF8".to_owned());
        if !["utf8", "utf-8", "unicode"].contains(&given.to_ascii_lowercase().as_str()) {
            self.change("dropped", "client_encoding is UTF8 here, whatever the database has");
        }
    }
}
