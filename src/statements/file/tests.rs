//! Tests of reading the file of a saved statement.

use super::*;

const LATE: &str = "-- name = \"late\"
-- kind = \"query\"
-- description = \"Late ones\"   # and a comment
-- timeout = \"30s\"
-- row_limit = 10
--
-- [[params]]
-- name = \"month\"
-- type = \"integer\"

-- not in the header
SELECT * FROM flights
 WHERE month = $1
";

fn error(text: &str) -> (usize, String) {
    let error = Statement::read("x.sql", text).unwrap_err();
    (error.line, error.message)
}

#[test]
fn a_file_becomes_the_arguments_of_its_kind() {
    let late = Statement::read("anything.sql", LATE).unwrap();
    assert_eq!((&late.time_zone, late.lock_timeout_ms), (&None, None));
    let zoned = Statement::read(
        "z.sql",
        "-- kind = 'query'\n-- time_zone = 'Europe/Berlin'\n-- lock_timeout = '10s'\nSELECT 1",
    );
    let zoned = zoned.unwrap();
    assert_eq!((zoned.time_zone.as_deref(), zoned.lock_timeout_ms), (Some("Europe/Berlin"), Some(10_000)));
    assert_eq!((late.name.as_str(), late.kind, late.timeout_ms), ("late", InnerKind::Query, 30_000));
    assert_eq!((late.target.as_str(), late.queue.as_str(), late.version.len()), ("default", "default", 12));
    assert_eq!((late.sql[0].line, late.line_of("/sql"), late.line_of("/row_limit")), (11, 11, 5));
    let given = BTreeMap::from([("month".to_owned(), RawValue::from_string("7".to_owned()).unwrap())]);
    let args: Value = serde_json::from_str(late.arguments(&given).unwrap().get()).unwrap();
    assert_eq!(
        args,
        serde_json::json!({
            "sql": "-- not in the header\nSELECT * FROM flights\n WHERE month = $1",
            "params": [{"type": "integer", "value": 7}], "row_limit": 10,
        })
    );
    let other = Statement::read("anything.sql", &LATE.replace("$1", "$1 ")).unwrap();
    assert_ne!(other.version, late.version);
}

#[test]
fn every_value_goes_to_every_statement_of_an_execute() {
    let text =
        "-- kind = 'execute'\n-- [[params]]\n-- name = 'a'\n-- type = 'int'\nUPDATE t SET a = $1;\n\nDELETE FROM u;\n";
    let statement = Statement::read("clean_up.sql", text).unwrap();
    assert_eq!((statement.name.as_str(), statement.sql.len()), ("clean_up", 2));
    assert_eq!((statement.sql[0].line, statement.sql[1].line, statement.line_of("/statements/1/sql")), (5, 7, 7));
    let args: Value = serde_json::from_str(statement.arguments_without_values().get()).unwrap();
    assert_eq!(args["statements"][0]["params"], serde_json::json!([{"type": "int", "value": null}]));
    assert_eq!(args["statements"][1]["params"], serde_json::json!([]), "it names none");
    let many =
        format!("-- kind = 'execute'\n-- [[params]]\n-- name = 'a'\n-- type = 'text'\n{}", "SELECT $1;".repeat(900));
    let statement = Statement::read("many.sql", &many).unwrap();
    let long = RawValue::from_string(format!("\"{}\"", "x".repeat(20_000))).unwrap();
    let refused = statement.arguments(&BTreeMap::from([("a".to_owned(), long)])).unwrap_err();
    assert!(refused[0].detail.contains("at most 18641 bytes"), "{refused:?}");
}

#[test]
fn what_is_wrong_is_said_with_its_line() {
    for (text, line, words) in [
        ("SELECT 1", 1, "expected a header"),
        ("-- SELECT 1\nSELECT 1", 1, ""),
        ("-- kind = \"query\"\n-- knid = 1\nSELECT 1", 2, "unknown field `knid`"),
        ("-- kind = \"vacuum\"\nSELECT 1", 1, "unknown variant `vacuum`"),
        ("-- description = 'x'\nSELECT 1", 1, "missing field `kind`"),
        ("-- kind = 'query'\n-- name = 'a b'\nSELECT 1", 2, "name: expected letters"),
        ("-- kind = 'query'\n-- timeout = 'soon'\nSELECT 1", 2, "timeout: expected a duration"),
        ("-- kind = 'query'\n-- timeout = '25h'\nSELECT 1", 2, "1ms to 24h"),
        ("-- kind = 'query'\n-- lock_timeout = 'soon'\nSELECT 1", 2, "lock_timeout: expected a duration"),
        ("-- kind = 'query'\n-- lock_timeout = '61m'\nSELECT 1", 2, "1ms to 1h"),
        ("-- kind = 'query'\n-- time_zone = 'UTC+2'\nSELECT 1", 2, "time_zone: expected the name"),
        ("-- kind = 'execute'\n-- row_limit = 1\nSELECT 1", 2, "doesn't go with the kind execute"),
        ("-- kind = 'refresh'\nSELECT 1", 2, "expected no SQL"),
        ("-- kind = 'refresh'\n", 1, "expected [args]"),
        ("-- kind = 'query'\n-- [args]\n-- x = 1\nSELECT 1", 2, "doesn't go with the kind query"),
        (
            "-- kind = 'refresh'\n-- [args]\n-- view = 'v'\n-- [[params]]\n-- name = 'a'\n-- type = 'int'\n",
            4,
            "no place",
        ),
        (
            "-- kind = 'query'\n-- [[params]]\n-- name = 'a'\n-- type = 'int'\n-- [[params]]\n-- name = 'a'\n-- type = 'int'\nSELECT 1",
            5,
            "once",
        ),
        (
            "-- kind = 'query'\n-- [[params]]\n-- name = 'a'\n-- type = 'int'\n-- mininum = 3\nSELECT 1",
            5,
            "unknown field",
        ),
    ] {
        let (at, message) = error(text);
        assert_eq!(at, line, "{text}: {message}");
        assert!(message.contains(words), "{text}: {message}");
    }
}
