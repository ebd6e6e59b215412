//! What parameters of other drivers mean to libpq. The names and meanings are those of the drivers' own documentation:
//! asyncpg (`connect`), psycopg (`Connection.connect`), pg8000 (`connect`), SQLAlchemy's dialects and engines,
//! node-postgres (pg-connection-string), Prisma (connection URLs), pgjdbc (`PGProperty`).
//!
//! TLS never becomes weaker than what the source asked its own driver for.

use crate::dsn::Driver;
use crate::dsn::driver::Dialect;
use crate::dsn::refusal::{Code, DsnError};

/// What becomes of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// libpq has it under this name.
    Renamed(&'static str),
    /// libpq has it under this name, in whole seconds; fractions are rounded up.
    Seconds(&'static str),
    /// As [`How::Seconds`], from milliseconds.
    Milliseconds(&'static str),
    /// libpq has it under this name as 1 or 0.
    Flag(&'static str),
    /// A setting of the server's of this name, through `options`.
    Setting(&'static str),
    /// As [`How::Setting`], from seconds to milliseconds.
    SettingSeconds(&'static str),
    /// A schema's name as it is written, as the server's search_path.
    Schema,
    /// Whether transactions only read.
    ReadOnly,
    /// Settings of the server's, as JSON or `name=value,…`.
    Settings,
    /// A size or a time of a pool: slowlane has settings of its own.
    Pool,
    /// What is kept prepared: slowlane decides that itself.
    Prepared,
    /// Nothing that slowlane could do.
    Dropped(&'static str),
    /// It can't be translated without losing what it is for.
    Refused(&'static str),
    /// Whether and how to use TLS.
    Tls,
    /// How GSSAPI encrypts.
    GssEncryption,
    /// Which of several servers is wanted.
    ServerType,
    /// `true` is `random`.
    LoadBalance,
    /// A socket's path.
    Socket,
}

/// For the table of them: what becomes of it, in a few words.
impl std::fmt::Display for How {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            How::Renamed(keyword) => write!(f, "`{keyword}`"),
            How::Seconds(keyword) => write!(f, "`{keyword}`, in whole seconds"),
            How::Milliseconds(keyword) => write!(f, "`{keyword}`, from milliseconds to whole seconds"),
            How::Flag(keyword) => write!(f, "`{keyword}`, 1 or 0"),
            How::Setting(setting) => write!(f, "`options=-c {setting}=…`"),
            How::SettingSeconds(setting) => write!(f, "`options=-c {setting}=…`, from seconds to milliseconds"),
            How::Schema => f.write_str("`options=-c search_path=…`, quoted where it must be"),
            How::ReadOnly => f.write_str("`options=-c default_transaction_read_only=on`"),
            How::GssEncryption => f.write_str("`gssencmode`"),
            How::Settings => f.write_str("`options=-c name=value …`"),
            How::Pool => f.write_str("dropped: slowlane's pools have settings of their own"),
            How::Prepared => f.write_str("dropped: slowlane decides itself what is kept prepared"),
            How::Dropped(why) => write!(f, "dropped: {why}"),
            How::Refused(why) => write!(f, "refused: {why}"),
            How::Tls => f.write_str("`sslmode`, never weaker than it was meant"),
            How::ServerType => f.write_str("`target_session_attrs`"),
            How::LoadBalance => f.write_str("`load_balance_hosts`, random or disable"),
            How::Socket => f.write_str("`host` and `port`"),
        }
    }
}

/// A parameter of another driver.
#[derive(Clone, Copy, Debug)]
pub struct Foreign {
    /// Its name there.
    pub name: &'static str,
    /// Whom it shows that the string was written for, where one alone has it.
    pub shows: Option<Driver>,
    /// What becomes of it.
    pub how: How,
}

const fn of(name: &'static str, shows: Option<Driver>, how: How) -> Foreign {
    Foreign { name, shows, how }
}

const ANY: Option<Driver> = None;
const ASYNCPG: Option<Driver> = Some(Driver::Asyncpg);
const ALCHEMY: Option<Driver> = Some(Driver::SqlAlchemy(Dialect::Asyncpg));
const PSYCOPG: Option<Driver> = Some(Driver::Psycopg);
const PG8000: Option<Driver> = Some(Driver::Pg8000);
const PRISMA: Option<Driver> = Some(Driver::Prisma);
const NODE: Option<Driver> = Some(Driver::NodePostgres);
const JDBC: Option<Driver> = Some(Driver::Jdbc);
const DJANGO: Option<Driver> = Some(Driver::Django);

const CLIENT: How = How::Dropped("it is about how that driver hands rows over");
const SOCKET: How = How::Dropped("slowlane watches its sockets itself; a job has timeout_ms");
const LOGGING: How = How::Dropped("it is about that driver's own log");
const OBJECT: How = How::Dropped("it names code of that driver's");

/// Every parameter that is known of other drivers and that libpq doesn't have.
pub const TABLE: &[Foreign] = &[
    of("ssl", ANY, How::Tls),
    of("sslaccept", PRISMA, How::Tls),
    of("uselibpqcompat", NODE, How::Tls),
    of("direct_tls", ASYNCPG, How::Tls),
    of("sslfactory", JDBC, How::Tls),
    of("database", ANY, How::Renamed("dbname")),
    of("timeout", ANY, How::Seconds("connect_timeout")),
    of("command_timeout", ASYNCPG, How::SettingSeconds("statement_timeout")),
    of("server_settings", ASYNCPG, How::Settings),
    of("statement_cache_size", ANY, How::Prepared),
    of("max_cached_statement_lifetime", ASYNCPG, How::Prepared),
    of("max_cacheable_statement_size", ASYNCPG, How::Prepared),
    of("prepared_statement_cache_size", ALCHEMY, How::Prepared),
    of("prepared_statement_name_func", ALCHEMY, How::Dropped("it names code of that driver's")),
    of("async_fallback", ALCHEMY, How::Dropped("there is no event loop that it could fall back to")),
    of("prepare_threshold", PSYCOPG, How::Prepared),
    of("autocommit", PSYCOPG, CLIENT),
    of("row_factory", PSYCOPG, CLIENT),
    of("cursor_factory", ANY, CLIENT),
    of("connection_factory", ANY, CLIENT),
    of("unix_sock", PG8000, How::Socket),
    of("tcp_keepalive", PG8000, How::Flag("keepalives")),
    of(
        "ssl_context",
        PG8000,
        How::Refused("ssl_context is an object of Python's: say it with sslmode and sslrootcert"),
    ),
    of("source_address", PG8000, How::Refused("a source address can't be chosen")),
    of("pool_size", ANY, How::Pool),
    of("max_overflow", ANY, How::Pool),
    of("pool_timeout", ANY, How::Pool),
    of("pool_recycle", ANY, How::Pool),
    of("pool_pre_ping", ANY, How::Pool),
    of("connection_limit", PRISMA, How::Pool),
    of("conn_max_age", DJANGO, How::Pool),
    of("conn_health_checks", DJANGO, How::Pool),
    of("max_connection_lifetime", PRISMA, How::Pool),
    of("max_idle_connection_lifetime", PRISMA, How::Pool),
    of("max", NODE, How::Pool),
    of("min", NODE, How::Pool),
    of("idleTimeoutMillis", NODE, How::Pool),
    of("allowExitOnIdle", NODE, How::Pool),
    of("single_use_connections", PRISMA, How::Pool),
    of("schema", PRISMA, How::Schema),
    of("pgbouncer", PRISMA, How::Prepared),
    of("socket_timeout", PRISMA, SOCKET),
    of("sslidentity", PRISMA, How::Refused("libpq reads no PKCS#12: give sslcert and sslkey in PEM")),
    of("encoding", NODE, How::Renamed("client_encoding")),
    of("query_timeout", NODE, SOCKET),
    of("connectionTimeoutMillis", NODE, How::Milliseconds("connect_timeout")),
    of("keepAlive", NODE, How::Flag("keepalives")),
    of("keepAliveInitialDelayMillis", NODE, How::Milliseconds("keepalives_idle")),
    of("binary", NODE, CLIENT),
    of("currentSchema", JDBC, How::Setting("search_path")),
    of("ApplicationName", JDBC, How::Renamed("application_name")),
    of("connectTimeout", JDBC, How::Seconds("connect_timeout")),
    of("loginTimeout", JDBC, How::Dropped("connect_timeout bounds connecting")),
    of("socketTimeout", JDBC, SOCKET),
    of("cancelSignalTimeout", JDBC, SOCKET),
    of("sslResponseTimeout", JDBC, SOCKET),
    of("tcpKeepAlive", JDBC, How::Flag("keepalives")),
    of("tcpNoDelay", JDBC, SOCKET),
    of("sendBufferSize", JDBC, SOCKET),
    of("receiveBufferSize", JDBC, SOCKET),
    of("socketFactory", JDBC, OBJECT),
    of("socketFactoryArg", JDBC, OBJECT),
    of("localSocketAddress", JDBC, How::Refused("a source address can't be chosen")),
    of("targetServerType", JDBC, How::ServerType),
    of("loadBalanceHosts", JDBC, How::LoadBalance),
    of("hostRecheckSeconds", JDBC, How::Pool),
    of("readOnly", JDBC, How::ReadOnly),
    of("readOnlyMode", JDBC, CLIENT),
    of("kerberosServerName", JDBC, How::Renamed("krbsrvname")),
    of("gssEncMode", JDBC, How::GssEncryption),
    of("gssLib", JDBC, How::Renamed("gsslib")),
    of("channelBinding", JDBC, How::Renamed("channel_binding")),
    of("sslNegotiation", JDBC, How::Renamed("sslnegotiation")),
    of("requireAuth", JDBC, How::Renamed("require_auth")),
    of("sslfactoryarg", JDBC, OBJECT),
    of("sslhostnameverifier", JDBC, OBJECT),
    of("sslpasswordcallback", JDBC, OBJECT),
    of("xmlFactoryFactory", JDBC, OBJECT),
    of("authenticationPluginClassName", JDBC, How::Refused("its class would give the password: give it itself")),
    of("jaasLogin", JDBC, OBJECT),
    of("jaasApplicationName", JDBC, OBJECT),
    of("sspiServiceClass", JDBC, OBJECT),
    of("useSpnego", JDBC, OBJECT),
    of("prepareThreshold", JDBC, How::Prepared),
    of("preparedStatementCacheQueries", JDBC, How::Prepared),
    of("preparedStatementCacheSizeMiB", JDBC, How::Prepared),
    of("preferQueryMode", JDBC, How::Prepared),
    of("reWriteBatchedInserts", JDBC, CLIENT),
    of("defaultRowFetchSize", JDBC, CLIENT),
    of("binaryTransfer", JDBC, CLIENT),
    of("binaryTransferEnable", JDBC, CLIENT),
    of("binaryTransferDisable", JDBC, CLIENT),
    of("stringtype", JDBC, CLIENT),
    of("autosave", JDBC, CLIENT),
    of("cleanupSavepoints", JDBC, CLIENT),
    of("escapeSyntaxCallMode", JDBC, CLIENT),
    of("disableColumnSanitiser", JDBC, CLIENT),
    of("quoteReturningIdentifiers", JDBC, CLIENT),
    of("databaseMetadataCacheFields", JDBC, CLIENT),
    of("databaseMetadataCacheFieldsMiB", JDBC, CLIENT),
    of("maxResultBuffer", JDBC, CLIENT),
    of("adaptiveFetch", JDBC, CLIENT),
    of("adaptiveFetchMinimum", JDBC, CLIENT),
    of("adaptiveFetchMaximum", JDBC, CLIENT),
    of("unknownLength", JDBC, CLIENT),
    of("allowEncodingChanges", JDBC, CLIENT),
    of("assumeMinServerVersion", JDBC, CLIENT),
    of("groupStartupParameters", JDBC, CLIENT),
    of("hideUnprivilegedObjects", JDBC, CLIENT),
    of("protocolVersion", JDBC, CLIENT),
    of("logUnclosedConnections", JDBC, LOGGING),
    of("logServerErrorDetail", JDBC, LOGGING),
    of("loggerLevel", JDBC, LOGGING),
    of("loggerFile", JDBC, LOGGING),
    of("echo", ANY, LOGGING),
];

/// Settings of the server's that stand in connection strings as parameters: asyncpg sends whatever it doesn't know.
pub const SETTINGS: &[&str] = &[
    "search_path",
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "transaction_timeout",
    "timezone",
    "TimeZone",
    "datestyle",
    "DateStyle",
    "intervalstyle",
    "IntervalStyle",
    "work_mem",
    "maintenance_work_mem",
    "temp_buffers",
    "jit",
    "role",
    "row_security",
    "synchronous_commit",
    "default_transaction_isolation",
    "default_transaction_read_only",
    "default_transaction_deferrable",
    "client_min_messages",
    "extra_float_digits",
    "bytea_output",
    "standard_conforming_strings",
    "max_parallel_workers_per_gather",
    "plan_cache_mode",
    "random_page_cost",
    "seq_page_cost",
    "cursor_tuple_fraction",
    "default_statistics_target",
    "geqo",
    "enable_seqscan",
    "enable_hashjoin",
    "enable_mergejoin",
    "enable_nestloop",
    "enable_partitionwise_join",
    "enable_partitionwise_aggregate",
    "from_collapse_limit",
    "join_collapse_limit",
    "hash_mem_multiplier",
    "max_parallel_workers",
    "max_parallel_maintenance_workers",
    "parallel_setup_cost",
    "parallel_tuple_cost",
    "constraint_exclusion",
    "default_tablespace",
    "temp_tablespaces",
    "default_text_search_config",
    "default_toast_compression",
    "gin_fuzzy_search_limit",
    "log_statement",
    "log_min_duration_statement",
    "session_replication_role",
    "temp_file_limit",
    "xmloption",
    "lc_messages",
    "lc_monetary",
    "lc_numeric",
    "lc_time",
    "deadlock_timeout",
    "commit_delay",
    "tcp_keepalives_idle",
    "tcp_keepalives_interval",
    "tcp_keepalives_count",
    "effective_cache_size",
];

/// The entry of a parameter.
pub fn find(name: &str) -> Option<&'static Foreign> {
    TABLE.iter().find(|foreign| foreign.name == name)
}

/// sslmode's words, from the weakest to the strongest.
pub const SSL_MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];

/// How strong a mode is; `None` for what is none.
pub fn strength(mode: &str) -> Option<usize> {
    SSL_MODES.iter().position(|known| *known == mode)
}

/// What a string asks for where TLS is concerned, in its own driver's words.
#[derive(Debug, Default)]
pub(super) struct Tls {
    /// `sslmode`.
    pub mode: Option<String>,
    /// `ssl`.
    pub flag: Option<String>,
    /// Prisma's `sslaccept`.
    pub accept: Option<String>,
    /// node-postgres' `uselibpqcompat`.
    pub libpq_words: Option<String>,
    /// asyncpg's `direct_tls`.
    pub direct: bool,
    /// It names a certificate, a key, or whom to trust.
    pub files: bool,
    /// pgjdbc's `sslfactory` is one that checks nothing.
    pub unchecked: bool,
}

fn flag(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "1" | "on" | "yes" | "t" => Some(true),
        "false" | "0" | "off" | "no" | "f" => Some(false),
        _ => None,
    }
}

/// A flag of another driver's.
pub(super) fn flag_of(value: &str) -> Result<bool, DsnError> {
    flag(value).ok_or_else(|| DsnError::malformed("a parameter that is true or false is neither"))
}

impl Tls {
    /// libpq's sslmode for it, and whether the server's certificate is to be checked by the system's roots when no file
    /// is named. `None` when the string says nothing.
    ///
    /// pgjdbc verifies with `ssl=true` alone; node-postgres verifies with every word but `disable` and `no-verify`.
    pub fn resolve(&self, driver: Driver) -> Result<Option<(&'static str, bool)>, DsnError> {
        let mut wanted: Option<(&'static str, bool)> = None;
        let mut raise = |mode: &'static str, by_system: bool| {
            let stronger = wanted.is_none_or(|(known, _)| strength(mode) > strength(known));
            if stronger {
                wanted = Some((mode, by_system));
            }
        };
        let libpq_words = self.libpq_words.as_deref().map(flag_of).transpose()?.unwrap_or(false);
        let verifies = driver.verifies_by_default() && !libpq_words;
        for (name, word) in [("sslmode", &self.mode), ("ssl", &self.flag)] {
            let Some(word) = word else { continue };
            // pgjdbc looks at ssl only where there is no sslmode.
            if name == "ssl" && driver == Driver::Jdbc && self.mode.is_some() {
                continue;
            }
            match (word.as_str(), flag(word)) {
                ("no-verify", _) => raise("require", false),
                ("prefer" | "require" | "verify-ca" | "verify-full", _) if verifies => raise("verify-full", true),
                (word, _) if strength(word).is_some() => {
                    raise(SSL_MODES.iter().find(|mode| **mode == word).copied().unwrap_or("verify-full"), false);
                }
                (_, Some(true)) if name == "ssl" && verifies => raise("verify-full", true),
                (_, Some(true)) if name == "ssl" && driver == Driver::Jdbc && !self.unchecked => {
                    raise("verify-full", false);
                }
                (_, Some(true)) if name == "ssl" => raise("require", false),
                (_, Some(false)) if name == "ssl" => raise("disable", false),
                _ => {
                    return Err(DsnError::malformed(
                        "sslmode is one of disable, allow, prefer, require, verify-ca and verify-full",
                    ));
                }
            }
        }
        if self.direct {
            raise("require", false);
        }
        // node-postgres turns TLS on as soon as it is given a file for it.
        if verifies && self.files && self.mode.is_none() && self.flag.is_none() {
            raise("verify-full", true);
        }
        match self.accept.as_deref() {
            Some("strict") => raise("verify-full", true),
            Some("accept_invalid_certs") | None => {}
            Some(_) => return Err(DsnError::malformed("sslaccept is strict or accept_invalid_certs")),
        }
        Ok(wanted)
    }
}

/// Whole seconds from a number that may have a fraction; rounded up, so that a short wait isn't none.
pub(super) fn seconds(value: &str, milliseconds: bool) -> Result<String, DsnError> {
    let wrong = || DsnError::malformed("a time is a number, in the unit of the driver that has the parameter");
    let number: f64 = value.trim_end_matches('s').parse().map_err(|_| wrong())?;
    let seconds = if milliseconds { number / 1_000.0 } else { number };
    if !(0.0..=1e6).contains(&seconds) {
        return Err(wrong());
    }
    Ok(format!("{:.0}", seconds.abs().ceil()))
}

/// Milliseconds from seconds.
pub(super) fn milliseconds(value: &str) -> Result<String, DsnError> {
    let wrong = || DsnError::malformed("a time is a number of seconds");
    let seconds: f64 = value.parse().map_err(|_| wrong())?;
    if !(0.0..=1e6).contains(&seconds) {
        return Err(wrong());
    }
    Ok(format!("{:.0}", (seconds * 1_000.0).ceil()))
}

/// `{"name": "value"}`, or `name=value,name=value`.
pub(super) fn settings(value: &str) -> Result<Vec<(String, String)>, DsnError> {
    let wrong = || DsnError::malformed("server_settings is a JSON object of texts, or name=value with commas between");
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
    let known = |name: &str| SETTINGS.contains(&name) || name == "application_name";
    if pairs.iter().all(|(name, _)| known(name)) {
        return Ok(pairs);
    }
    Err(DsnError::new(
        Code::UnknownParameter,
        "server_settings has a setting that isn't known here: give it as options",
    ))
}

/// One more setting in `options`, as the server splits them: a blank and a backslash need a backslash.
pub(super) fn add_setting(options: &mut String, name: &str, value: &str) {
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
pub(super) fn identifier(name: &str) -> String {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let simple = name.chars().all(plain) && !name.starts_with(|c: char| c.is_ascii_digit());
    if simple { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

/// pgjdbc's gssEncMode, but for its default.
pub(super) fn gss_encryption(value: &str) -> Result<&'static str, DsnError> {
    let modes = ["disable", "prefer", "require"];
    let known = modes.into_iter().find(|mode| *mode == value);
    known.ok_or_else(|| DsnError::malformed("gssEncMode is disable, allow, prefer or require"))
}

/// pgjdbc's targetServerType, as target_session_attrs.
pub(super) fn server_type(value: &str) -> Result<&'static str, DsnError> {
    match value {
        "any" => Ok("any"),
        "primary" | "master" => Ok("primary"),
        "secondary" | "slave" => Ok("standby"),
        "preferSecondary" | "preferSlave" => Ok("prefer-standby"),
        // libpq has no such preference: every server will do, as it will for pgjdbc.
        "preferPrimary" => Ok("any"),
        _ => Err(DsnError::malformed("targetServerType is any, primary, secondary or preferSecondary")),
    }
}

/// The folder and the port of `/folder/.s.PGSQL.5432`.
pub(super) fn socket(path: &str) -> Result<(String, String), DsnError> {
    let wrong = || DsnError::new(Code::InvalidHost, "unix_sock is a path that ends with /.s.PGSQL. and the port");
    let (folder, port) = path.split_once("/.s.PGSQL.").ok_or_else(wrong)?;
    if !folder.starts_with('/') {
        return Err(wrong());
    }
    Ok((folder.to_owned(), port.to_owned()))
}
