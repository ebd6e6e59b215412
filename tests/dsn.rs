//! Connection strings as people paste them: read rightly or refused, and never repeated.

use serde_json::Value;
use slowlane::dsn::Dsn;
use slowlane::pq::{self, Session};

use crate::support::postgres::Postgres;

fn cases() -> Vec<Value> {
    let file: Value = serde_json::from_str(include_str!("data/dsn_cases.json")).unwrap();
    file["cases"].as_array().unwrap().clone()
}

#[test]
fn only_what_is_understood_is_accepted() {
    let cases = cases();
    assert!(cases.len() > 100);
    let mut wrong = Vec::new();
    for case in &cases {
        let text = case["dsn"].as_str().unwrap();
        let outcome = Dsn::parse(text, pq::parameters());
        if case["id"].as_str().unwrap().starts_with("misc:service") {
            // What a service stands for isn't looked up yet.
            assert_eq!(outcome.unwrap_err().code, "unknown_parameter");
            continue;
        }
        if outcome.is_ok() != (case["outcome"] == "accept") {
            wrong.push(format!("{}: {} {outcome:?}", case["id"], case["outcome"]));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_message_repeats_a_secret() {
    for case in cases() {
        let text = case["dsn"].as_str().unwrap();
        let secret = case["secret"].as_str().unwrap_or("S3cr3t@pw");
        let shown = match Dsn::parse(text, pq::parameters()) {
            Ok(dsn) => format!("{dsn} {dsn:?} {:?} {}", dsn.conninfo(), dsn.to_url()),
            Err(error) => format!("{error} {error:?}"),
        };
        for form in [secret.to_owned(), secret.replace('@', "%40")] {
            assert!(form.is_empty() || !shown.contains(&form), "{}: {shown}", case["id"]);
        }
    }
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
