//! Connection strings as people paste them: read rightly or refused, and never repeated.

use serde_json::{Value, json};
use slowlane::dsn::{self, Code, Dsn, DsnError, Reading, Secret, Surroundings, dialects};
use slowlane::pq::{self, Session};

use crate::support::child::program;
use crate::support::postgres::Postgres;

fn cases() -> Vec<Value> {
    let file: Value = serde_json::from_str(include_str!("data/dsn_cases.json")).unwrap();
    file["cases"].as_array().unwrap().clone()
}

pub fn word(outcome: &Result<Reading, DsnError>) -> &'static str {
    match outcome {
        Ok(reading) if reading.changes.is_empty() => "accept",
        Ok(_) => "translate",
        Err(_) => "refuse",
    }
}

#[test]
fn every_string_that_people_paste_has_its_outcome() {
    let cases = cases();
    assert!(cases.len() > 100);
    let mut wrong = Vec::new();
    for case in &cases {
        let outcome = dsn::read(case["dsn"].as_str().unwrap(), pq::parameters());
        let code = outcome.as_ref().err().map(|error| error.code.as_str());
        if case["outcome"] != word(&outcome) || case["code"].as_str() != code {
            wrong.push(format!("{}: {} {}, but {outcome:?}", case["id"], case["outcome"], case["code"]));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_was_understood_is_understood_again() {
    for case in cases() {
        let Ok(reading) = dsn::read(case["dsn"].as_str().unwrap(), pq::parameters()) else { continue };
        for text in [reading.dsn.to_url(), reading.dsn.conninfo()] {
            let again = dsn::read(text.expose(), pq::parameters()).unwrap_or_else(|e| panic!("{}: {e}", case["id"]));
            assert_eq!(again.dsn, reading.dsn, "{}", case["id"]);
            assert_eq!(again.changes, [], "{}", case["id"]);
        }
    }
}

#[test]
fn every_dialect_means_the_same_database() {
    let rich = [
        "postgresql://u:p%40%2B%25@h:1/d?sslmode=require&application_name=a%20b&connect_timeout=7",
        "postgresql://u:p@h1:1,h2:2/d?target_session_attrs=primary&load_balance_hosts=random",
        "postgresql://u:p@h/d?options=-c%20search_path%3Da%2Cb%20-c%20statement_timeout%3D5000",
        "postgresql://u:p@h/d?sslmode=verify-full&sslrootcert=%2Fetc%2Fca.pem&channel_binding=require&keepalives=1",
        "postgresql://u:p@h/d?sslmode=verify-full&sslrootcert=system",
        "postgresql://u:p@%2Frun%2Fpostgresql/d",
        "postgresql://u@[::1]:5433/d?gssencmode=require",
        "postgresql://u@[::1],[::2]/d",
        "postgresql://u@[fe80::1%25eth0]/d",
        "postgresql://u@%2Fcloudsql%2Fp%3Ar%3Ai/d",
        "dbname=d user=u password='p w' host=h sslmode=disable",
    ];
    let cases = cases();
    let texts = cases.iter().map(|case| case["dsn"].as_str().unwrap()).chain(rich);
    for text in texts {
        let Ok(reading) = dsn::read(text, pq::parameters()) else { continue };
        for rendering in dialects::all(&reading.dsn, true) {
            let Some(rendered) = &rendering.text else { continue };
            let again = dsn::read(rendered, pq::parameters()).unwrap_or_else(|e| panic!("{}: {e}", rendering.name));
            let kept = |dsn: &Dsn, keyword: &str| dsn.get(keyword).map(str::to_owned);
            for parameter in pq::parameters() {
                let keyword = parameter.keyword.as_str();
                // pgjdbc's own default is written out, and a driver may not have the word at all.
                if rendering.lost.iter().any(|lost| lost == keyword) || (rendering.name == "JDBC" && keyword == "host")
                {
                    continue;
                }
                // The server takes a blank behind -c, or none.
                let plain = |value: Option<String>| value.map(|value| value.replace("-c ", "-c"));
                let (again, before) = (plain(kept(&again.dsn, keyword)), plain(kept(&reading.dsn, keyword)));
                assert_eq!(again, before, "{keyword} in {}: {rendered}", rendering.name);
            }
        }
    }
}

#[test]
fn tls_is_never_weaker_than_what_was_asked_for() {
    for (text, mode, roots) in [
        ("jdbc:postgresql://h/d?ssl=true", Some("verify-full"), None),
        ("jdbc:postgresql://h/d?ssl=true&sslmode=require", Some("require"), None),
        ("jdbc:postgresql://h/d?sslmode=REQUIRE", None, None),
        ("postgresql://h/d?sslrootcert=/ca.pem&connectionTimeoutMillis=1000", Some("verify-full"), Some("/ca.pem")),
        ("postgresql+asyncpg://h/d?direct_tls=true", Some("require"), None),
        ("jdbc:postgresql://h/d?ssl=true&sslfactory=org.postgresql.ssl.NonValidatingFactory", Some("require"), None),
        ("postgresql://h/d?ssl=true", Some("require"), None),
        ("postgresql+asyncpg://h/d?ssl=verify-full", Some("verify-full"), None),
        ("postgresql://h/d?ssl=true&connectionTimeoutMillis=1", Some("verify-full"), Some("system")),
        ("postgresql://h/d?sslmode=require&connectionTimeoutMillis=1", Some("verify-full"), Some("system")),
        ("postgresql://h/d?sslmode=require&uselibpqcompat=true", Some("require"), None),
        ("postgresql://h/d?sslmode=no-verify", Some("require"), None),
        ("postgresql://h/d?sslaccept=strict", Some("verify-full"), Some("system")),
        ("postgresql://h/d?sslaccept=strict&sslcert=/ca.pem", Some("verify-full"), Some("/ca.pem")),
        ("postgresql://h/d?sslmode=disable&ssl=require", Some("require"), None),
        ("postgresql://h/d?sslmode=require", Some("require"), None),
    ] {
        let Ok(Reading { dsn, .. }) = dsn::read(text, pq::parameters()) else {
            assert_eq!(mode, None, "{text} is refused");
            continue;
        };
        assert_eq!((dsn.get("sslmode"), dsn.get("sslrootcert")), (mode, roots), "{text}");
    }
    assert!(dsn::read("postgresql://h/d?sslmode=require&sslrootcert=system", pq::parameters()).is_err());
}

#[test]
fn parameters_of_other_drivers_find_their_place() {
    for (text, keyword, value) in [
        ("postgresql+asyncpg://h/d?command_timeout=2.5", "options", "-c statement_timeout=2500"),
        ("postgresql://h/d?server_settings=%7B%22jit%22%3A%22off%22%7D", "options", "-c jit=off"),
        ("postgresql+asyncpg://h/d?work_mem=64MB&search_path=a b", "options", ""),
        ("postgresql+asyncpg://h/d?work_mem=64MB&search_path=a+b", "options", "-c work_mem=64MB -c search_path=a\\ b"),
        ("postgresql+pg8000://h/d?timeout=1.2", "connect_timeout", "2"),
        ("postgresql+pg8000://h/d?unix_sock=/run/pg/.s.PGSQL.5433", "host", "/run/pg"),
        ("postgresql+psycopg2://u@/d?host=a:1&host=b:2", "port", "1,2"),
        (
            "jdbc:postgresql://h/d?currentSchema=x&readOnly=true",
            "options",
            "-c search_path=x -c default_transaction_read_only=on",
        ),
        ("jdbc:postgresql://a,b/d?targetServerType=preferSecondary", "target_session_attrs", "prefer-standby"),
        ("jdbc:postgresql:d", "host", "localhost"),
        ("jdbc:postgresql:/", "host", "localhost"),
        ("postgresql+psycopg2://u@/d?host=::1&host=fe80::1", "host", "::1,fe80::1"),
        ("postgresql+asyncpg://u:p@/d?host=/cloudsql/p:r:i/.s.PGSQL.5432", "host", "/cloudsql/p:r:i"),
        ("postgresql://u:p@localhost/d?host=/var/run/postgresql&schema=s", "host", "/var/run/postgresql"),
        ("postgresql://h/d?schema=Sales", "options", "-c search_path=\"Sales\""),
        ("postgresql://h/d?statement_timeout=5&options=-c%20jit%3Doff", "options", "-c jit=off -c statement_timeout=5"),
        ("postgresql://u@h/d?password=a+b&command_timeout=5", "password", "a b"),
        ("postgresql://h/d?options=-c%20search_path=x", "options", "-c search_path=x"),
        ("host=h\nuser=u\tdbname=d", "user", "u"),
        ("jdbc:postgresql://h/d?ApplicationName=my+app", "application_name", "my app"),
        ("postgresql://h/d?application_name=my+app", "application_name", "my+app"),
        ("postgresql://h/d?connectionTimeoutMillis=1500", "connect_timeout", "2"),
        ("postgresql://h/d?client_encoding=latin1", "client_encoding", "UTF8"),
        ("\u{feff}\u{201c}postgresql://h/d\u{201d}\u{200b}\r\n", "dbname", "d"),
        ("PGSQL://h/d", "dbname", "d"),
        ("postgis://h/d", "dbname", "d"),
    ] {
        match dsn::read(text, pq::parameters()) {
            Ok(reading) => {
                assert_eq!(reading.dsn.get(keyword), Some(value), "{text}");
                let own = text.contains("application_name") || text.starts_with("host=");
                assert!(!reading.changes.is_empty() || own, "{text}");
            }
            Err(error) => assert!(value.is_empty() && error.code == Code::Malformed, "{text}: {error}"),
        }
    }
}

#[test]
fn refusals_say_for_whom_it_was_written_and_what_would_be_right() {
    for (text, code, words) in [
        ("asyncpg://u:hunter2@h/d", "unsupported_scheme", "asyncpg, which is asynchronous"),
        ("PostgreSQL+AsyncPG://u:hunter2@h/d", "unsupported_scheme", "right would be postgresql://u:***@h/d"),
        (
            "asyncpg://u:hunter2@h/d?ssl=require",
            "unsupported_scheme",
            "right would be postgresql://u:***@h/d?sslmode=require",
        ),
        (
            "postgresql+asyncpg://u:hunter2@h/d?sslmod=require",
            "unknown_parameter",
            "SQLAlchemy with asyncpg, which is asynchronous",
        ),
        ("postgresql://u:hunter2@h/d?SSLMode=require&application_name=a", "unknown_parameter", "the name is sslmode"),
        (
            "postgresql://u:hunter2@h/d?nope=1&application_name=a",
            "unknown_parameter",
            "right would be postgresql://u:***@h/d?application_name=a",
        ),
        (
            "postgresql://h/d?sslmode=disable&sslmode=require",
            "duplicate_parameter",
            "right would be postgresql://h/d?sslmode=require",
        ),
        ("cockroachdb://u:hunter2@h/d", "unsupported_scheme", "CockroachDB"),
        (
            "Data Source=h;User ID=u;Password=hunter2;Initial Catalog=d",
            "foreign_syntax",
            "right would be postgresql://u:***@h/d",
        ),
        ("pgsql:host=h;dbname=d;password=hunter2", "foreign_syntax", "PDO"),
        (
            "export DATABASE_URL='postgresql://u:hunter2@h/d'",
            "pasted_assignment",
            "right would be postgresql://u:***@h/d",
        ),
        ("url: postgres://u:hunter2@h/d", "pasted_assignment", "the value alone"),
        ("psql postgresql://u:hunter2@h/d", "pasted_command", "without the command"),
        ("postgresql://u:hun/ter2@h/d", "unescaped_password", "%2F"),
        ("postgresql://u:$DB_PASSWORD@h/d", "unexpanded_variable", "variable"),
        ("postgresql://u:{{ password }}@h/d", "unexpanded_variable", "variable"),
        ("postgresql://u:[YOUR-PASSWORD]@h/d", "redacted_password", "masked"),
        ("localhost:5432/d", "missing_scheme", "postgresql://"),
        ("postgresql://h/d?sslkeylogfile=/tmp/x", "unknown_parameter", "keys of every session"),
        ("dbname=postgresql://u:hunter2@h/d", "malformed", "another connection string"),
        ("postgresql://u@h/d;password=hunter2", "malformed", "another parameter"),
    ] {
        let error = dsn::read(text, pq::parameters()).unwrap_err();
        let shown = error.to_string();
        assert_eq!(error.code.as_str(), code, "{text}: {shown}");
        assert!(shown.contains(words) && shown.contains("right would be"), "{text}: {shown}");
        assert!(!shown.contains("hunter2"), "{text}: {shown}");
    }
}

#[test]
fn services_and_variables_are_expanded_and_none_weakens_tls() {
    let around = |variables: &[(&str, &str)], file: &str| Surroundings {
        variables: variables.iter().map(|(name, value)| ((*name).to_owned(), Secret::new(*value))).collect(),
        service_files: vec![Secret::new(file)],
    };
    let within = |text: &str, around: &Surroundings| {
        let mut changes = Vec::new();
        let dsn = dsn::read(text, pq::parameters()).unwrap().dsn;
        dsn.within(around, pq::parameters(), &mut changes).map(|dsn| (dsn, changes))
    };
    let file =
        "# comment\n[other]\nhost=no\n[app]\nhost=h1\nuser = u\npassword=p w'x\nsslmode=require\n\n[last]\nhost=no\n";
    let (dsn, changes) =
        within("service=app dbname=d host=h2", &around(&[("PGUSER", "x"), ("PGPORT", "7")], file)).unwrap();
    assert_eq!(dsn.conninfo().expose(), "dbname='d' host='h2' password='p w\\'x' port='7' sslmode='require' user='u'");
    let names: Vec<&str> = changes.iter().map(|change| change.name).collect();
    assert_eq!(names, ["service", "variable"]);
    assert!(within("service=nope", &around(&[], file)).is_err());
    let (dsn, _) = within("postgresql:///d", &around(&[("PGSERVICE", "app")], file)).unwrap();
    assert_eq!(dsn.get("host"), Some("h1"));
    for (text, variable, value, keyword, expected) in [
        ("postgresql://h/d", "PGSSLMODE", "disable", "sslmode", None),
        ("postgresql://h/d", "PGSSLMODE", "verify-full", "sslmode", Some("verify-full")),
        ("postgresql://h/d?sslmode=require", "PGSSLMODE", "disable", "sslmode", Some("require")),
        ("postgresql://h/d?sslrootcert=system", "PGSSLMODE", "require", "sslmode", None),
        ("postgresql://h/d", "PGCHANNELBINDING", "disable", "channel_binding", None),
        ("postgresql://h/d", "PGSSLMINPROTOCOLVERSION", "TLSv1", "ssl_min_protocol_version", None),
        ("postgresql://h/d", "PGHOSTADDR", "10.0.0.1", "hostaddr", None),
        ("postgresql:///d", "PGHOST", "h3", "host", Some("h3")),
        ("postgresql://h/d", "PGPASSWORD", "hunter2", "password", Some("hunter2")),
    ] {
        let (dsn, changes) = within(text, &around(&[(variable, value)], "")).unwrap();
        assert_eq!(dsn.get(keyword), expected, "{variable}={value} and {text}");
        let named = changes.iter().any(|change| change.text.contains(variable));
        assert!(named || text.contains("sslmode"), "{variable}: {changes:?}");
        assert!(!format!("{changes:?}").contains("hunter2"));
    }
}

fn explain(arguments: &[&str], text: &str) -> (i32, String) {
    let output = program().arg("dsn").args(arguments).env("SOME_URL", text).output().unwrap();
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn a_person_and_a_program_are_told() {
    let text = "postgresql+asyncpg://app:hunter2@db.example/app?ssl=require";
    let (status, told) = explain(&["--env", "SOME_URL"], text);
    assert_eq!(status, 3, "{told}");
    for words in [
        "outcome: translate",
        "SQLAlchemy with asyncpg, which is asynchronous",
        "postgresql+psycopg2://app:***@db.example/app?sslmode=require",
        "jdbc:postgresql://db.example/app?sslmode=require&user=app&password=***",
        "uselibpqcompat=true",
        "Host=db.example;Database=app;Password=***;SSL Mode=Require;Username=app",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
    assert!(!told.contains("hunter2") && !told.contains('\u{1b}'), "{told}");
    assert!(explain(&["--env", "SOME_URL", "--show-password"], text).1.contains("hunter2"));
    let (status, told) = explain(&["--env", "SOME_URL", "--json"], text);
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((status, &told["outcome"], &told["code"]), (3, &json!("translate"), &Value::Null));
    assert_eq!(
        (&told["family"], &told["driver"], &told["asynchronous"]),
        (&json!("SQLAlchemy"), &json!("asyncpg"), &json!(true))
    );
    assert_eq!(told["conninfo"], "dbname='app' host='db.example' password='***' sslmode='require' user='app'");
    assert_eq!(told["changes"].as_array().unwrap().len(), 2);
    assert_eq!(explain(&["--env", "SOME_URL"], "postgresql://h/d").0, 0);
    let (status, told) = explain(&["--env", "SOME_URL", "--json"], "mysql://u:hunter2@h/d");
    assert_eq!(status, 4);
    assert!(
        told.contains(r#""code":"unsupported_scheme""#) && told.contains("MySQL") && !told.contains("hunter2"),
        "{told}"
    );
    let (status, told) = explain(&["--env", "NO_SUCH_VARIABLE"], "");
    assert!(status == 1 && told.contains("is not set"), "{told}");
}

/// `slowlane dsn - < file`: its status, and what it says.
fn explain_file(text: &str) -> (i32, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dsn");
    std::fs::write(&file, text).unwrap();
    let output = program().args(["dsn", "--json", "-"]).stdin(std::fs::File::open(file).unwrap()).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn the_end_of_a_files_line_is_no_change() {
    for (text, status) in [
        ("postgresql://u:p@h/d", 0),
        ("postgresql://u:p@h/d\n", 0),
        ("postgresql://u:p@h/d\r\n", 0),
        ("postgresql://u:p@h/d\n\n", 3),
        ("postgresql://u:p@h/d \n", 3),
        ("host=h\nuser=u\n", 0),
        ("\n", 4),
    ] {
        let (got, told) = explain_file(text);
        assert_eq!(got, status, "{text:?}: {told}");
    }
}

#[test]
fn a_translation_is_logged_once_by_its_setting_and_refused_when_that_is_wanted() {
    let database = Postgres::shared().work();
    let asynchronous = database.dsn.to_url().expose().replace("postgresql://", "postgresql+asyncpg://");
    let start = |strict: &str| {
        let mut serve = program();
        serve.args(["serve", "--print-config", "--target", "default=T"]).env("T", database.dsn.to_url().expose());
        serve.env("SLOWLANE_DATABASE_URL", &asynchronous).env("SLOWLANE_DSN_STRICT", strict);
        let output = serve.output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let (started, log) = start("false");
    assert!(started, "{log}");
    assert_eq!(log.matches("SLOWLANE_DATABASE_URL was written for SQLAlchemy with asyncpg").count(), 1, "{log}");
    let (started, log) = start("true");
    assert!(!started && log.contains("SLOWLANE_DATABASE_URL") && log.contains("dsn_strict"), "{log}");
}

#[test]
fn a_rebuilt_string_connects_to_the_same_place() {
    let database = Postgres::shared().work();
    let odd = "pass'w\\ord @:/?#%&= é";
    database.run("CREATE ROLE \"odd user\" LOGIN PASSWORD 'pass''w\\ord @:/?#%&= é'");
    let dsn = database.dsn.clone().with("user", "odd user").with("password", odd);
    let texts = [dsn.to_url().expose().to_owned(), dsn.conninfo().expose().to_owned()];
    for text in texts {
        let again = Dsn::parse(&text, pq::parameters()).unwrap();
        assert_eq!(again, dsn);
        let mut session = Session::connect(&again).unwrap();
        assert_eq!(
            session.query("SELECT current_user::text || current_database()", &[]).unwrap().get(0, 0),
            Some(format!("odd user{}", database.name()).as_str())
        );
    }
}

#[test]
fn a_failed_connection_names_the_cause_and_no_secret() {
    let database = Postgres::shared().work();
    for (dsn, word) in [
        (database.dsn.clone().with("password", "hunter2-wrong"), "password"),
        (database.dsn.clone().with("dbname", "no_such_database"), "database"),
        (database.dsn.clone().with("port", "1"), "refused"),
        (database.dsn.clone().with("host", "no-such-host.invalid"), "resolved"),
        (database.dsn.clone().with("sslmode", "require"), "TLS"),
    ] {
        let error = Session::connect(&dsn).err().unwrap().to_string();
        assert!(error.contains(word), "{error}");
        assert!(!error.contains("hunter2") && !error.contains("s3cret"), "{error}");
    }
}

#[test]
fn a_string_without_a_host_means_the_socket_of_this_machine() {
    let read = |text: &str| dsn::read(text, pq::parameters()).unwrap().dsn.for_connecting();
    assert_eq!(read("postgresql:///d").get("host"), Some("/var/run/postgresql,/tmp"));
    assert_eq!(read("hostaddr=10.0.0.1 dbname=d").get("host"), None);
    assert_eq!(read("postgresql://h/d").get("connect_timeout"), Some("5"));
    assert_eq!(read("postgresql://h/d?connect_timeout=30").get("connect_timeout"), Some("30"));
}
