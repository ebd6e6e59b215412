//! Pairs to libpq's parameters: each foreign one is renamed, converted, dropped by name, or refused.

use std::collections::BTreeMap;

use crate::dsn::check::check;
use crate::dsn::foreign::{self, How, Tls};
use crate::dsn::raw::{Oddity, Raw};
use crate::dsn::refusal::{Code, DsnError};
use crate::dsn::{Change, Driver, Dsn, Parameter};

pub(super) type Parameters = BTreeMap<String, String>;

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
                    "replaced",
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
            "host" if value.contains("/.s.PGSQL.") => return self.socket("a socket's file", &value),
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

    fn foreign(&mut self, name: &'static str, how: How, value: &str) -> Result<(), DsnError> {
        match how {
            How::Renamed(keyword) => {
                self.change("renamed", format!("{name} is {keyword} to libpq"));
                self.put(keyword, value.to_owned())
            }
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
            How::Refused(why) => Err(DsnError::new(Code::UnknownParameter, why)),
            How::Tls => self.tls_word(name, value),
            How::GssEncryption if value == "allow" => self.dropped(name, "libpq asks for it where it can"),
            How::GssEncryption => self.renamed(name, "gssencmode", foreign::gss_encryption(value)?),
            How::ServerType => self.renamed(name, "target_session_attrs", foreign::server_type(value)?),
            How::LoadBalance => {
                let wanted = if foreign::flag_of(value)? { "random" } else { "disable" };
                self.renamed(name, "load_balance_hosts", wanted)
            }
            How::Socket => self.socket(name, value),
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
                    self.dropped(name, "it says nothing that isn't so anyway")?;
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
        let Some(encoding) = self.parameters.get_mut("client_encoding") else { return };
        let given = std::mem::replace(encoding, "UTF8".to_owned());
        if !["utf8", "utf-8", "unicode"].contains(&given.to_ascii_lowercase().as_str()) {
            self.change("dropped", "client_encoding is UTF8 here, whatever the database has");
        }
    }
}
