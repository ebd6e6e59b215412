//! Why a connection could not be opened: a few stable classes, each with one fixed text that says what to do next.
//!
//! libpq's own text is looked at and never repeated: it holds hosts, users and files, and of a string that it read
//! otherwise than it was meant, perhaps a password. Where several hosts failed, the class that tells most counts: a
//! wrong password says more than another host that refused.

use crate::dsn::Dsn;

/// A class of failed connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectFailure {
    /// The password is wrong, or the role doesn't exist, which no server tells apart.
    PasswordWrong,
    /// A password is asked for, and there is none.
    PasswordMissing,
    /// Another way to log in failed.
    LoginRefused,
    /// No line of `pg_hba.conf` fits.
    NoPgHbaEntry,
    /// The role isn't there, or may not log in.
    NoSuchRole,
    /// The database isn't there, or may not be used.
    NoSuchDatabase,
    /// The server's certificate is for another name.
    CertificateWrongHost,
    /// The server's certificate is signed by nobody who is trusted.
    CertificateNotTrusted,
    /// A file of ours that TLS needs can't be used.
    TlsFileUnusable,
    /// No TLS came about, and it is wanted.
    TlsRefused,
    /// No slot is free.
    TooManyConnections,
    /// The server is stopping.
    ShuttingDown,
    /// The server isn't ready yet.
    StartingUp,
    /// Servers answer, and none is of the kind that is wanted.
    NoSuitableServer,
    /// The server is older than those that are supported.
    ServerTooOld,
    /// Something in between gives each transaction another session.
    Pooler,
    /// Something else listens there.
    NotAPostgres,
    /// The connection was closed without a word.
    Closed,
    /// Nothing was heard in time.
    TimedOut,
    /// The name stands for no address.
    HostNotResolved,
    /// Nobody listens, or no way leads there.
    Refused,
    /// Anything else.
    Other,
}

use ConnectFailure as F;

/// The words of libpq and of the server, those first that tell most.
const WORDS: [(ConnectFailure, &[&str]); 19] = [
    (
        F::PasswordWrong,
        &[
            "password authentication failed",
            "LDAP authentication failed",
            "PAM authentication failed",
            "RADIUS authentication failed",
        ],
    ),
    (F::PasswordMissing, &["no password supplied", "empty password returned"]),
    (
        F::LoginRefused,
        &["authentication failed", "authentication method", "channel binding", "SCRAM", "SASL", "requirepeer"],
    ),
    (F::NoPgHbaEntry, &["no pg_hba.conf entry", "pg_hba.conf rejects"]),
    (F::NoSuchRole, &["FATAL:  role \"", "FATAL: role \"", "is not permitted to log in", "no such user"]),
    (
        F::NoSuchDatabase,
        &["FATAL:  database \"", "FATAL: database \"", "permission denied for database", "no such database"],
    ),
    (F::CertificateWrongHost, &["does not match host name"]),
    (F::CertificateNotTrusted, &["certificate verify failed"]),
    (F::TlsFileUnusable, &["root certificate", "certificate file", "private key file", "certificate revocation list"]),
    (F::TooManyConnections, &["too many clients", "too many connections", "connection slots", "no more connections"]),
    (F::ShuttingDown, &["is shutting down", "terminating connection"]),
    (F::StartingUp, &["is starting up", "in recovery mode", "not accepting connections", "not yet accepting"]),
    (F::NoSuitableServer, &["session is read-only", "session is not read-only", "in hot standby mode"]),
    (
        F::TlsRefused,
        &["server does not support SSL", "SSL error", "SSL SYSCALL", "SSL connection", "during SSL exchange"],
    ),
    (
        F::NotAPostgres,
        &["invalid response to", "expected authentication request", "received invalid", "unexpected message"],
    ),
    (F::Closed, &["server closed the connection", "Connection reset", "Broken pipe"]),
    (F::TimedOut, &["timeout expired", "Connection timed out", "no answer came"]),
    (F::HostNotResolved, &["could not translate host name", "could not parse network address"]),
    (
        F::Refused,
        &[
            "Connection refused",
            // Of a family of addresses that this machine doesn't have.
            "could not create socket",
            "No such file or directory",
            "No route to host",
            "unreachable",
            "Is the server running",
        ],
    ),
];

impl ConnectFailure {
    /// Every class.
    pub const ALL: [ConnectFailure; 22] = [
        F::HostNotResolved,
        F::Refused,
        F::TimedOut,
        F::Closed,
        F::NotAPostgres,
        F::TlsRefused,
        F::TlsFileUnusable,
        F::CertificateNotTrusted,
        F::CertificateWrongHost,
        F::NoPgHbaEntry,
        F::PasswordWrong,
        F::PasswordMissing,
        F::LoginRefused,
        F::NoSuchRole,
        F::NoSuchDatabase,
        F::StartingUp,
        F::ShuttingDown,
        F::TooManyConnections,
        F::NoSuitableServer,
        F::ServerTooOld,
        F::Pooler,
        F::Other,
    ];

    /// The class of libpq's or a server's text, where its words are known: the server's are where it speaks English.
    pub fn of(raw: &str) -> ConnectFailure {
        let known = WORDS.iter().find(|(_, words)| words.iter().any(|word| raw.contains(word)));
        known.map_or(ConnectFailure::Other, |(class, _)| *class)
    }

    /// The class of the SQLSTATE with which a server refuses, whatever language it speaks.
    pub(super) fn of_sqlstate(state: &str) -> ConnectFailure {
        match state {
            "28P01" => F::PasswordWrong,
            "28000" => F::LoginRefused,
            "3D000" | "42501" | "55000" => F::NoSuchDatabase,
            "53300" => F::TooManyConnections,
            "57P01" | "57P02" => F::ShuttingDown,
            "57P03" => F::StartingUp,
            _ => F::Other,
        }
    }

    /// A stable word.
    pub fn word(self) -> &'static str {
        match self {
            F::PasswordWrong => "password_wrong",
            F::PasswordMissing => "password_missing",
            F::LoginRefused => "login_refused",
            F::NoPgHbaEntry => "no_pg_hba_entry",
            F::NoSuchRole => "no_such_role",
            F::NoSuchDatabase => "no_such_database",
            F::CertificateWrongHost => "certificate_wrong_host",
            F::CertificateNotTrusted => "certificate_not_trusted",
            F::TlsFileUnusable => "tls_file_unusable",
            F::TlsRefused => "tls_refused",
            F::TooManyConnections => "too_many_connections",
            F::ShuttingDown => "shutting_down",
            F::StartingUp => "starting_up",
            F::NoSuitableServer => "no_suitable_server",
            F::ServerTooOld => "server_too_old",
            F::Pooler => "pooler",
            F::NotAPostgres => "not_a_postgres",
            F::Closed => "closed",
            F::TimedOut => "timed_out",
            F::HostNotResolved => "host_not_resolved",
            F::Refused => "refused",
            F::Other => "other",
        }
    }

    /// It may pass without anybody's change of a setting or a right: the server is away, starts, stops or is full.
    pub fn passes(self) -> bool {
        match self {
            F::TooManyConnections
            | F::ShuttingDown
            | F::StartingUp
            | F::NoSuitableServer
            | F::Closed
            | F::TimedOut
            | F::HostNotResolved
            | F::Refused => true,
            F::PasswordWrong
            | F::PasswordMissing
            | F::LoginRefused
            | F::NoPgHbaEntry
            | F::NoSuchRole
            | F::NoSuchDatabase
            | F::CertificateWrongHost
            | F::CertificateNotTrusted
            | F::TlsFileUnusable
            | F::TlsRefused
            | F::ServerTooOld
            | F::Pooler
            | F::NotAPostgres
            | F::Other => false,
        }
    }

    /// What happened, and what to do about it.
    pub fn text(self) -> &'static str {
        match self {
            F::PasswordWrong => "the server refused the password, or has no such role: check both",
            F::PasswordMissing => {
                "the server asks for a password, and there is none: put it into the connection string"
            }
            F::LoginRefused => {
                "the server refused the login by the method that its pg_hba.conf asks for: its log says why"
            }
            F::NoPgHbaEntry => {
                "the server's pg_hba.conf has no entry that lets this role into this database from here: add one; \
                 where the entries are hostssl, say sslmode=require"
            }
            F::NoSuchRole => "the server has no such role, or it may not log in: create it, or give it LOGIN",
            F::NoSuchDatabase => {
                "the server has no such database, or the role may not connect to it: create it, or grant CONNECT"
            }
            F::CertificateWrongHost => {
                "the server's certificate is for another host name: use the name that stands in it as host"
            }
            F::CertificateNotTrusted => {
                "the server's certificate is not trusted: name the file with the certificate of who signed it as \
                 sslrootcert, or sslrootcert=system for those that this machine trusts"
            }
            F::TlsFileUnusable => {
                "a file that TLS needs is missing or can't be used: check sslrootcert, sslcert, sslkey and who may \
                 read them"
            }
            F::TlsRefused => {
                "no TLS could be agreed on with the server, and sslmode asks for it: turn ssl on there, and check \
                 which versions and client certificates it wants"
            }
            F::TooManyConnections => {
                "the server, the database or the role has no free connection slot: raise the limit there, or lower \
                 the numbers of slowlane's connections"
            }
            F::ShuttingDown => "the server is shutting down: start it again",
            F::StartingUp => {
                "the server is starting up or in recovery, and takes no connections yet: try again shortly"
            }
            F::NoSuitableServer => "no server of the list is what target_session_attrs asks for",
            F::ServerTooOld => "the server is too old: slowlane needs Postgres 14 or newer",
            F::Pooler => {
                "a pooler in between gives each transaction another session, and slowlane needs sessions that stay: \
                 connect to the server itself, or set the pooler to session mode"
            }
            F::NotAPostgres => "what listens there doesn't speak as a Postgres server does: check host and port",
            F::Closed => {
                "the connection was closed without a word: the server may be stopping, or what listens there is a \
                 proxy without a server behind it"
            }
            F::TimedOut => "no answer came within connect_timeout: check host and port, and firewalls on the way",
            F::HostNotResolved => {
                "the host name can't be resolved: check its spelling, and the name servers of this machine"
            }
            F::Refused => {
                "nobody listens there, the connection was refused: check host and port, that the server runs, and \
                 its listen_addresses"
            }
            F::Other => "connecting failed: the server's log may say why",
        }
    }

    /// One message for people: where to, the class, and what to do. Shows no secret.
    pub fn explain(self, dsn: &Dsn) -> String {
        format!("could not connect to {} ({}): {}", place(dsn), self.word(), self.text())
    }
}

/// Where a string leads to, without the rest of its parameters.
fn place(dsn: &Dsn) -> String {
    let masked = dsn.masked();
    let whole = dsn.get("host").is_none();
    match masked.split_once('?') {
        Some((place, _)) if !whole => place.trim_end_matches('/').to_owned(),
        _ => masked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_hosts_the_one_that_tells_most_counts() {
        let refused = "connection to server at \"a\" (10.0.0.1), port 5432 failed: Connection refused\n\tIs the server \
                       running on that host and accepting TCP/IP connections?";
        let password = "connection to server at \"b\" (10.0.0.2), port 5432 failed: FATAL:  password authentication \
                        failed for user \"u\"";
        let timeout = "connection to server at \"c\" (10.0.0.3), port 5432 failed: timeout expired";
        assert_eq!(ConnectFailure::of(refused), F::Refused);
        for text in [format!("{refused}\n{password}"), format!("{password}\n{timeout}\n{refused}")] {
            assert_eq!(ConnectFailure::of(&text), F::PasswordWrong);
        }
        assert_eq!(ConnectFailure::of(&format!("{refused}\n{timeout}")), F::TimedOut);
        assert_eq!(ConnectFailure::of("FATAL:  Passwort-Authentifizierung für Benutzer »u« fehlgeschlagen"), F::Other);
    }

    #[test]
    fn servers_words_have_their_classes() {
        for (text, class) in [
            ("FATAL:  Peer authentication failed for user \"u\"", F::LoginRefused),
            (
                "FATAL:  no pg_hba.conf entry for host \"1.2.3.4\", user \"u\", database \"d\", no encryption",
                F::NoPgHbaEntry,
            ),
            ("FATAL:  role \"u\" does not exist", F::NoSuchRole),
            ("FATAL:  database \"d\" is not currently accepting connections", F::NoSuchDatabase),
            ("FATAL:  the database system is not yet accepting connections", F::StartingUp),
            ("FATAL:  the database system is shutting down", F::ShuttingDown),
            (
                "FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute",
                F::TooManyConnections,
            ),
            ("FATAL:  too many connections for role \"u\"", F::TooManyConnections),
            ("server certificate for \"a\" does not match host name \"b\"", F::CertificateWrongHost),
            ("SSL error: certificate verify failed", F::CertificateNotTrusted),
            ("root certificate file \"/x\" does not exist", F::TlsFileUnusable),
            ("private key file \"/x\" has group or world access", F::TlsFileUnusable),
            ("SSL error: tlsv1 alert protocol version", F::TlsRefused),
            ("session is read-only", F::NoSuitableServer),
            ("connection to server on socket \"/tmp/.s.PGSQL.5432\" failed: No such file or directory", F::Refused),
        ] {
            assert_eq!(ConnectFailure::of(text), class, "{text}");
        }
    }
}
