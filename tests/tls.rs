//! TLS against a server with a certificate of the tests' own: what each mode takes, and what it refuses.

use std::path::PathBuf;
use std::sync::OnceLock;

use diesel::prelude::*;
use slowlane::db::Source;
use slowlane::db::pool::Manager;
use slowlane::dsn::Dsn;
use slowlane::pq::Session;

use crate::support::PATIENCE;
use crate::support::child::program;
use crate::support::postgres::{Database, Postgres};
use crate::support::tls::Authority;

struct Secured {
    queue: Database,
    /// Who signed the server's certificate, and somebody else.
    authority: Authority,
    other: Authority,
    folder: PathBuf,
}

fn secured() -> &'static Secured {
    static SECURED: OnceLock<(Postgres, Secured)> = OnceLock::new();
    let (_, secured) = SECURED.get_or_init(|| {
        let postgres = Postgres::start();
        // It goes with the cluster.
        let folder = postgres.cluster.lock().unwrap().folder().to_owned();
        let authority = Authority::new(&folder, "authority");
        authority.secure(&postgres);
        let queue = postgres.queue();
        let other = Authority::new(&folder, "other");
        (postgres, Secured { queue, authority, other, folder })
    });
    secured
}

const IS_SECURE: &str = "SELECT ssl::text AS secure FROM pg_stat_ssl WHERE pid = pg_backend_pid()";

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = diesel::sql_types::Text)]
    secure: String,
}

fn by_libpq(dsn: &Dsn) -> Result<String, String> {
    let mut session = Session::connect(dsn).map_err(|error| error.to_string())?;
    Ok(session.query(IS_SECURE, &[]).unwrap().get(0, 0).unwrap().to_owned())
}

/// By a source that was looked at already, so that nothing but Diesel's own connection is made.
fn by_diesel(known: &Source, parameters: &[(&str, &str)]) -> Result<String, String> {
    let source = parameters.iter().fold(known.clone(), |source, (keyword, value)| source.with(keyword, value));
    let opened = Manager::work(source, "SELECT 1").open_within(PATIENCE);
    let row = diesel::sql_query(IS_SECURE).get_result::<Row>(&mut opened.map_err(|error| error.to_string())?);
    Ok(row.unwrap().secure)
}

/// Parameters, and whether the connection has TLS, or the class of its failure.
type Case<'c> = (&'c [(&'c str, &'c str)], Result<&'c str, &'c str>);

#[test]
fn each_mode_takes_what_it_should_and_refuses_the_rest() {
    let secured = secured();
    let (own, other) = (secured.authority.file(), secured.other.file());
    let nowhere = secured.folder.join("nowhere.crt");
    let known = Source::from(&secured.queue.dsn);
    drop(Manager::work(&known, "SELECT 1").open().unwrap());
    let cases: [Case; 10] = [
        (&[("sslmode", "disable")], Ok("false")),
        (&[("sslmode", "require")], Ok("true")),
        (&[("sslmode", "verify-ca"), ("sslrootcert", own)], Ok("true")),
        (&[("sslmode", "verify-ca"), ("sslrootcert", own), ("host", "db.test"), ("hostaddr", "127.0.0.1")], Ok("true")),
        (&[("sslmode", "verify-ca"), ("sslrootcert", other)], Err("certificate_not_trusted")),
        (&[("sslmode", "verify-full"), ("sslrootcert", own), ("host", "localhost")], Ok("true")),
        (&[("sslmode", "verify-full"), ("sslrootcert", own)], Ok("true")),
        (
            &[("sslmode", "verify-full"), ("sslrootcert", own), ("host", "db.test"), ("hostaddr", "127.0.0.1")],
            Err("certificate_wrong_host"),
        ),
        (&[("sslmode", "verify-full"), ("sslrootcert", other)], Err("certificate_not_trusted")),
        (&[("sslmode", "verify-full"), ("sslrootcert", nowhere.to_str().unwrap())], Err("tls_file_unusable")),
    ];
    for (parameters, expected) in cases {
        let dsn = parameters.iter().fold(secured.queue.dsn.clone(), |dsn, (keyword, value)| dsn.with(keyword, value));
        for outcome in [by_libpq(&dsn), by_diesel(&known, parameters)] {
            match (&outcome, expected) {
                (Ok(secure), Ok(expected)) => assert_eq!(secure, expected, "{parameters:?}"),
                (Err(text), Err(word)) => {
                    assert!(text.contains(&format!("({word})")), "{parameters:?}: {text}");
                    assert!(!text.contains("s3cret"), "{text}");
                }
                _ => panic!("{parameters:?}: {outcome:?}"),
            }
        }
    }
}

#[test]
fn a_server_without_tls_is_refused_where_tls_is_wanted() {
    let database = Postgres::shared().work();
    let known = Source::from(&database.dsn);
    drop(Manager::work(&known, "SELECT 1").open().unwrap());
    for outcome in
        [by_libpq(&database.dsn.clone().with("sslmode", "require")), by_diesel(&known, &[("sslmode", "require")])]
    {
        let text = outcome.unwrap_err();
        assert!(text.contains("(tls_refused)") && !text.contains("s3cret"), "{text}");
    }
}

#[test]
fn the_system_is_asked_whom_to_trust() {
    let secured = secured();
    let dsn = secured.queue.dsn.clone().with("host", "localhost");
    let dsn = dsn.with("sslmode", "verify-full").with("sslrootcert", "system");
    let status = |trusted: Option<&str>| {
        let mut status = program();
        status.args(["migrate", "status"]).env("SLOWLANE_DATABASE_URL", dsn.to_url().expose());
        status.env_remove("SSL_CERT_FILE").env_remove("SSL_CERT_DIR");
        trusted.map(|file| status.env("SSL_CERT_FILE", file));
        let output = status.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        assert!(!text.contains("s3cret"), "{text}");
        (output.status.success(), text)
    };
    let (well, text) = status(Some(secured.authority.file()));
    assert!(well && text.contains("up to date"), "{text}");
    for trusted in [None, Some(secured.other.file())] {
        let (well, text) = status(trusted);
        assert!(!well && text.contains("(certificate_not_trusted)"), "{trusted:?}: {text}");
    }
}
