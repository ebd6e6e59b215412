//! Types with modifiers: what a value of one becomes is what the server's own explicit cast of the same text makes of
//! it, in every kind that takes values, or the value is refused by its place.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use slowlane::config::Config;
use slowlane::pq::Session;

use crate::support::app::TestApp;
use crate::support::postgres::{Database, Postgres};

/// A type of which no extension has to be there: a base type with a modifier, as `geometry(Point,4326)` is one.
fn base_type(name: &str, typmod_out: &str, cast: bool) -> String {
    let cast = if cast {
        format!(
            "CREATE FUNCTION public.{name}(public.{name}, int4, bool) RETURNS public.{name} LANGUAGE internal IMMUTABLE STRICT AS 'varchar';
             CREATE CAST (public.{name} AS public.{name}) WITH FUNCTION public.{name}(public.{name}, int4, bool);"
        )
    } else {
        String::new()
    };
    format!(
        "CREATE TYPE public.{name};
         CREATE FUNCTION public.{name}_in(cstring, oid, int4) RETURNS public.{name} LANGUAGE internal IMMUTABLE STRICT AS 'varcharin';
         CREATE FUNCTION public.{name}_out(public.{name}) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'varcharout';
         CREATE TYPE public.{name} (INPUT = public.{name}_in, OUTPUT = public.{name}_out, TYPMOD_IN = varchartypmodin{typmod_out}, LIKE = varchar);
         {cast}"
    )
}

fn types(target: &Database) {
    let out = ", TYPMOD_OUT = varchartypmodout";
    target.run(&base_type("code", out, true));
    target.run(&base_type("mute", "", true));
    target.run(&base_type("loose", out, false));
    target.run(
        "CREATE SCHEMA \"Odd Schema\"; GRANT USAGE ON SCHEMA \"Odd Schema\" TO PUBLIC;
         CREATE DOMAIN public.two AS varchar(2); CREATE DOMAIN public.still_two AS public.two;
         CREATE DOMAIN \"Odd Schema\".\"Two \"\"x\"\" (2)\" AS char(2);
         CREATE DOMAIN public.price AS numeric(6,2) CHECK (value < 5000); CREATE DOMAIN public.years AS interval year;
         CREATE DOMAIN public.codes AS varchar(2)[]; CREATE DOMAIN public.plain AS text; CREATE DOMAIN public.bits AS bit(4);
         CREATE TYPE public.pair AS (a varchar(2), b numeric(3,1));
         CREATE TABLE public.kept (given text, cast_there text); ALTER TABLE public.kept OWNER TO slowlane_demo",
    );
}

/// Every setting that has a say in how values are written or read.
fn set_otherwise(target: &Database) {
    for setting in [
        "DateStyle = 'SQL, DMY'",
        "IntervalStyle = 'sql_standard'",
        "TimeZone = 'Asia/Kolkata'",
        "extra_float_digits = -10",
        "bytea_output = 'escape'",
    ] {
        target.run(&format!("ALTER DATABASE {} SET {setting}", target.name()));
    }
}

/// A type, a value in JSON, and the text that the value is.
const CASES: &[(&str, &str, &str)] = &[
    ("numeric(10,2)", "1.239", "1.239"),
    ("numeric(10,2)", "-0.005", "-0.005"),
    ("numeric(10,2)", "99999999.994", "99999999.994"),
    ("numeric(10,2)", "1e3", "1e3"),
    ("numeric(10,2)", "99999999999.239", "99999999999.239"),
    ("numeric(10,2)", "99999999.995", "99999999.995"),
    ("numeric(3)", "1.5", "1.5"),
    ("numeric(3)", "1000", "1000"),
    ("decimal(4, 1)", "12.34", "12.34"),
    ("dec(2,2)", "0.999", "0.999"),
    ("pg_catalog.numeric(4,1)", "12345678901234567890123", "12345678901234567890123"),
    ("numeric(40,20)", "12345678901234567.89101112131415161718", "12345678901234567.89101112131415161718"),
    ("numeric(10,2)[]", "[1.239, null, -7]", "{1.239,NULL,-7}"),
    ("numeric(10,2)[]", "[1, 99999999.999]", "{1,99999999.999}"),
    ("varchar(2)", "\"abcdef\"", "abcdef"),
    ("varchar(2)", "\"a\"", "a"),
    ("varchar(2)", "\"\\u00e9\\ud83d\\ude00x\"", "\u{e9}\u{1f600}x"),
    ("varchar(3)", "\"'\\\\\\\"\"", "'\\\""),
    ("character varying(2)", "\"a  b\"", "a  b"),
    ("national character varying(2)", "\"abc\"", "abc"),
    ("varchar(2)[]", "[\"abc\", \"a,\\\"\\\\\", null, \"\"]", "{abc,\"a,\\\"\\\\\",NULL,\"\"}"),
    ("char(3)", "\"a\"", "a"),
    ("char(3)", "\"abcdef\"", "abcdef"),
    ("character(3)[]", "[\"a\", \"abcd\"]", "{a,abcd}"),
    ("char", "\"abc\"", "abc"),
    ("nchar(2)", "\"abc\"", "abc"),
    ("bpchar", "\"abc  \"", "abc  "),
    ("\"char\"", "\"abc\"", "abc"),
    ("timestamp(0)", "\"2024-02-29 12:00:00.5\"", "2024-02-29 12:00:00.5"),
    ("timestamp(0)", "\"2024-12-31 23:59:59.999\"", "2024-12-31 23:59:59.999"),
    ("timestamp(2)", "\"0044-03-15 00:00:00.126 BC\"", "0044-03-15 00:00:00.126 BC"),
    ("timestamp (1) without time zone", "\"01/02/2024 10:00:00.26\"", "01/02/2024 10:00:00.26"),
    ("timestamp(3)", "\"infinity\"", "infinity"),
    ("timestamptz(3)", "\"2024-02-29 12:00:00.123456+02\"", "2024-02-29 12:00:00.123456+02"),
    ("timestamptz(0)", "\"1900-01-01 00:00:00.7\"", "1900-01-01 00:00:00.7"),
    (
        "timestamp(3) with time zone",
        "\"2024-07-01 12:00:00.0005 Europe/Paris\"",
        "2024-07-01 12:00:00.0005 Europe/Paris",
    ),
    ("timestamptz(0)[]", "[\"2024-02-29 12:00:00.5+02\", null]", "{\"2024-02-29 12:00:00.5+02\",NULL}"),
    ("time(1)", "\"23:59:59.96\"", "23:59:59.96"),
    ("time(0) with time zone", "\"12:00:00.5+02\"", "12:00:00.5+02"),
    ("timetz(2)", "\"12:00:00.126-03:30\"", "12:00:00.126-03:30"),
    ("interval day to second(2)", "\"1 day 02:03:04.567\"", "1 day 02:03:04.567"),
    ("interval day to second(2)", "\"-1 1:00:00.129\"", "-1 1:00:00.129"),
    ("interval year", "\"10\"", "10"),
    ("interval year", "\"3 years 7 months\"", "3 years 7 months"),
    ("interval month", "\"10\"", "10"),
    ("interval year to month", "\"1-2\"", "1-2"),
    ("interval minute", "\"90\"", "90"),
    ("interval second(1)", "\"1.26\"", "1.26"),
    ("interval(1)", "\"-1 year 2 days -03:04:05.67\"", "-1 year 2 days -03:04:05.67"),
    ("interval hour to minute", "\"nonsense\"", "nonsense"),
    ("interval", "\"10\"", "10"),
    ("interval year[]", "[\"10\", \"2 years 5 months\"]", "{10,\"2 years 5 months\"}"),
    ("bit(4)", "\"10\"", "10"),
    ("bit(4)", "\"101010\"", "101010"),
    ("bit(4)", "\"x1f\"", "x1f"),
    ("bit(4)", "\"12\"", "12"),
    ("bit", "\"011\"", "011"),
    ("varbit(5)", "\"1010101\"", "1010101"),
    ("bit varying(5)", "\"1\"", "1"),
    ("bit(2)[]", "[\"1\", \"1111\"]", "{1,1111}"),
    ("float(8)", "0.1", "0.1"),
    ("float(53)", "0.1", "0.1"),
    ("two", "\"abcdef\"", "abcdef"),
    ("public.still_two", "\"abcdef\"", "abcdef"),
    ("\"Odd Schema\".\"Two \"\"x\"\" (2)\"", "\"a\"", "a"),
    ("\"Odd Schema\".\"Two \"\"x\"\" (2)\"", "\"abc\"", "abc"),
    ("price", "\"12.345\"", "12.345"),
    ("price", "\"4999.996\"", "4999.996"),
    ("price", "\"99999\"", "99999"),
    ("years", "\"10\"", "10"),
    ("codes", "[\"abcdef\", null]", "{abcdef,NULL}"),
    ("bits", "\"1\"", "1"),
    ("plain", "\"abcdef\"", "abcdef"),
    ("two[]", "[\"a\"]", "{a}"),
    ("two[]", "[\"abcdef\"]", "{abcdef}"),
    ("pair", "\"(abcdef,1.26)\"", "(abcdef,1.26)"),
    ("pair", "\"(ab,1.26)\"", "(ab,1.26)"),
    ("code(2)", "\"abcdef\"", "abcdef"),
    ("public.code(2)", "\"abcdef\"", "abcdef"),
    ("\"public\".\"code\"(3)[]", "[\"abcdef\"]", "{abcdef}"),
    ("loose(2)", "\"abcdef\"", "abcdef"),
    ("numeric (10, 2) -- a note", "1.239", "1.239"),
    ("VarChar ( 2 ) /* a note */", "\"abcdef\"", "abcdef"),
];

fn quoted(text: &str) -> String {
    slowlane::pq::quote::literal(text)
}

/// Both values as the server writes them, each blank told apart; where it refuses the cast, that of the parameter
/// alone.
fn both(session: &mut Session, type_name: &str, text: &str) -> String {
    if refused(session, type_name, text).is_some() {
        return "format('%L', $1) AS given, NULL AS cast_there".to_owned();
    }
    format!("format('%L', $1) AS given, format('%L', CAST({} AS {type_name}\n)) AS cast_there", quoted(text))
}

/// The SQLSTATE with which the server refuses the cast, if it does.
fn refused(session: &mut Session, type_name: &str, text: &str) -> Option<String> {
    let sql = format!("SELECT CAST({} AS {type_name}\n)", quoted(text));
    session.query(&sql, &[]).err().map(|error| error.sqlstate.unwrap())
}

fn param(type_name: &str, value: &str) -> Value {
    json!({"type": type_name, "value": serde_json::from_str::<&serde_json::value::RawValue>(value).unwrap()})
}

/// A job with a value whose digits stay as they are.
fn submit(app: &TestApp, kind: &str, args: &str) -> Value {
    let body = format!("{{\"kind\":\"{kind}\",\"max_attempts\":1,\"args\":{args}}}");
    let answer = app.send("POST", "/v1/jobs", &[("content-type", "application/json")], body.as_bytes());
    assert_eq!(answer.status, 202, "{body}: {}", answer.text());
    app.ended(answer.json()["id"].as_str().unwrap())
}

fn typed(type_name: &str, value: &str) -> String {
    format!("[{{\"type\":{},\"value\":{value}}}]", json!(type_name))
}

/// It gave the same twice, or was refused as the server refuses the cast.
#[track_caller]
fn compare(app: &TestApp, what: &str, job: &Value, refused: Option<&str>) {
    let error = &job["error"];
    if let Some(sqlstate) = refused {
        let of = if what.starts_with("statement") { "/params/p: " } else { "/params/0: " };
        let place = error["message"].as_str().unwrap_or_default().contains(of);
        // An element of an array, and a field, are the input's to judge: the server refuses the parameter itself.
        assert_eq!((&job["state"], error["sqlstate"].as_str()), (&json!("failed"), Some(sqlstate)), "{what}: {job}");
        assert!(place || ["two[]", "pair"].iter().any(|name| what.contains(name)), "{what}: {job}");
        return;
    }
    assert_eq!(job["state"], "succeeded", "{what}: {job}");
    if job["result"]["state"] == "available" {
        let data = app.get(&format!("/v1/jobs/{}/result/data?format=json", job["id"].as_str().unwrap())).json();
        let row = if data.is_array() { &data[0] } else { &data["rows"][0] };
        assert!(row["given"].is_string() && row["given"] == row["cast_there"], "{what}: {data}");
    }
}

fn of_every_kind(app: &TestApp, folder: &Path) {
    let mut session = Session::connect(&app.target.dsn).unwrap();
    for (n, (type_name, _, text)) in CASES.iter().enumerate() {
        let name = type_name.replace('\\', "\\\\").replace('"', "\\\"");
        let header = format!("-- [[params]]\n-- name = 'p'\n-- type = \"{name}\"\n");
        let select = both(&mut session, type_name, text);
        // Notes and such aren't names of types there.
        if !type_name.contains("note") {
            fs::write(folder.join(format!("q{n}.sql")), format!("-- kind = 'query'\n{header}SELECT {select}")).unwrap();
        }
    }
    assert_eq!(app.post("/v1/statements/reload", &json!({})).json()["broken"], json!([]));
    for (n, (type_name, value, text)) in CASES.iter().enumerate() {
        let what = format!("{type_name} {value}");
        let refused = refused(&mut session, type_name, text);
        let (select, params) = (both(&mut session, type_name, text), typed(type_name, value));
        let sql = json!(format!("SELECT {select}"));
        let job = submit(app, "query", &format!("{{\"sql\":{sql},\"params\":{params}}}"));
        compare(app, &format!("query {what}"), &job, refused.as_deref());
        let sql = json!(format!("INSERT INTO public.kept SELECT {select}"));
        let job = submit(app, "execute", &format!("{{\"statements\":[{{\"sql\":{sql},\"params\":{params}}}]}}"));
        compare(app, &format!("execute {what}"), &job, refused.as_deref());
        // Nor is null an element there.
        if type_name.contains("note") || value.contains("null") {
            continue;
        }
        let body = format!("{{\"kind\":\"statement\",\"args\":{{\"name\":\"q{n}\",\"params\":{{\"p\":{value}}}}}}}");
        let answer = app.send("POST", "/v1/jobs", &[("content-type", "application/json")], body.as_bytes());
        // What is certain is said before there is a job.
        if answer.status == 422 {
            assert!(refused.as_deref() == Some("22003") && type_name.contains('('), "{what}: {}", answer.text());
            let pointer = &answer.problem().2[0];
            assert!(pointer.starts_with("/args/params/p"), "{what}: {pointer}");
        } else {
            let job = app.ended(answer.json()["id"].as_str().unwrap());
            compare(app, &format!("statement {what}"), &job, refused.as_deref());
        }
    }
    let different = "SELECT count(*) FROM public.kept WHERE given IS DISTINCT FROM cast_there";
    assert_eq!((app.target.count(different), app.target.count("SELECT count(*) FROM public.kept") > 50), (0, true));
}

fn app(folder: &Path) -> TestApp {
    let target = Postgres::shared().work();
    types(&target);
    TestApp::on(Postgres::shared().queue(), target, |config: &mut Config| config.statements = Some(folder.to_owned()))
}

#[test]
fn a_value_is_what_the_servers_own_cast_gives() {
    let folder = tempfile::tempdir().unwrap();
    of_every_kind(&app(folder.path()), folder.path());
}

#[test]
fn so_it_is_whatever_the_role_is_set_to() {
    let folder = tempfile::tempdir().unwrap();
    let target = Postgres::shared().work();
    types(&target);
    set_otherwise(&target);
    let app =
        TestApp::on(Postgres::shared().queue(), target, |config| config.statements = Some(folder.path().to_owned()));
    of_every_kind(&app, folder.path());
}

#[test]
fn the_session_is_afterwards_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let app = app(folder.path());
    let settings =
        "current_setting('DateStyle') || current_setting('extra_float_digits') || current_setting('IntervalStyle')";
    let set = "SET LOCAL DateStyle = 'German'; ";
    let before = app.query(&format!("SELECT {settings} AS s"), &json!([]));
    let after = app.query(&format!("SELECT {settings} AS s, $1 AS v"), &json!([param("varchar(2)", "\"abc\"")]));
    let first = |job: &Value| {
        let data = app.get(&format!("/v1/jobs/{}/result/data?format=csv", job["id"].as_str().unwrap())).text();
        data.lines().nth(1).unwrap().to_owned()
    };
    assert_eq!(format!("{},ab", first(&before)), first(&after));
    // In a transaction of several statements, too.
    let job = app.ended(&app.submit(&json!({"kind": "execute", "args": {"statements": [
        {"sql": set.trim_end_matches("; ")},
        {"sql": "INSERT INTO public.kept SELECT $1::text, date '2024-02-29'::text", "params": [param("timestamptz(0)", "\"2024-02-29 00:00:00+00\"")]},
    ]}})));
    assert_eq!(job["state"], "succeeded", "{job}");
    assert_eq!(app.target.text("SELECT cast_there FROM public.kept"), "29.02.2024");
}

#[test]
fn a_backfill_has_the_same_values() {
    let folder = tempfile::tempdir().unwrap();
    let app = app(folder.path());
    app.target.run(
        "CREATE TABLE public.rows (id int PRIMARY KEY, code text, price numeric); ALTER TABLE public.rows OWNER TO slowlane_demo;
         INSERT INTO public.rows SELECT g FROM generate_series(1, 10) g",
    );
    let args = |code: &str, price: &str| {
        json!({"table": "rows", "batch_rows": 3, "set": {"code": "$1", "price": "$2"}, "where": "id < $3",
               "params": [param("char(3)", code), param("numeric(4,1)", price), 9]})
    };
    let job = app.ended(&app.submit(&json!({"kind": "backfill", "args": args("\"abcdef\"", "1.26")})));
    assert_eq!((&job["state"], &job["output"]["rows_affected"]), (&json!("succeeded"), &json!(8)), "{job}");
    assert_eq!(app.target.count("SELECT count(*) FROM public.rows WHERE code = 'abc' AND price = 1.3"), 8);
    let job = app.ended(&app.submit(&json!({"kind": "backfill", "args": args("\"a\"", "1e4")})));
    assert_eq!((&job["state"], &job["error"]["sqlstate"]), (&json!("failed"), &json!("22003")), "{job}");
    assert!(job["error"]["message"].as_str().unwrap().starts_with("/params/1: "), "{job}");
    let report = app.post("/v1/jobs/validate", &json!({"kind": "backfill", "args": args("\"a\"", "1e4")})).json();
    assert_eq!(report["problems"][0]["pointer"], "/args/params/1", "{report}");
}

#[test]
fn what_is_no_type_is_refused_by_its_place_and_is_never_run() {
    let folder = tempfile::tempdir().unwrap();
    let app = app(folder.path());
    for (type_name, code) in [
        ("numeric(2000,1)", "invalid_parameter"),
        ("varchar(0)", "invalid_parameter"),
        ("timestamp(3, 4)", "invalid_parameter"),
        ("text(3)", "invalid_parameter"),
        ("nosuch(3)", "invalid_parameter"),
        ("nowhere.two", "invalid_parameter"),
        ("numeric(10,2", "invalid_parameter"),
        ("numeric(10,2)) , (SELECT 1", "invalid_parameter"),
        ("numeric(10,2)); DROP TABLE public.kept; --", "invalid_parameter"),
        ("numeric((SELECT 1))", "invalid_parameter"),
        ("numeric($1)", "invalid_parameter"),
        ("SETOF varchar(2)", "invalid_parameter"),
        ("varchar(2) /* open", "invalid_parameter"),
        ("", "invalid_parameter"),
        // It doesn't write its modifier as it reads it.
        ("mute(2)", "invalid_parameter"),
    ] {
        let params = json!([7, param(type_name, "\"1\"")]);
        let job = app.query("SELECT $1::int, $2", &params);
        let message = job["error"]["message"].as_str().unwrap();
        assert_eq!((&job["state"], &job["error"]["code"]), (&json!("failed"), &json!(code)), "{type_name}: {job}");
        assert!(message.starts_with("/params/1/type: "), "{type_name}: {message}");
        let report = app.post(
            "/v1/jobs/validate",
            &json!({"kind": "query", "args": {"sql": "SELECT $1::int, $2", "params": params}}),
        );
        assert_eq!(report.json()["problems"][0]["error"]["code"], code, "{type_name}: {}", report.text());
    }
    assert_eq!(app.target.count("SELECT count(*) FROM public.kept"), 0);
}

#[test]
fn validate_shows_the_types_with_their_modifiers_and_what_the_values_are() {
    let folder = tempfile::tempdir().unwrap();
    let app = app(folder.path());
    let sql = "SELECT 1 WHERE $1 = 'ab' AND $2 > 0 AND $3 IS NOT NULL AND $4 = 3";
    let params =
        json!([param("varchar(2)", "\"abcdef\""), param("numeric(10,2)", "1.239"), param("two", "\"xyz\""), 3]);
    let validate = |params: &Value| {
        app.post("/v1/jobs/validate", &json!({"kind": "query", "args": {"sql": sql, "params": params}})).json()
    };
    let report = validate(&params);
    assert_eq!(report["valid"], true, "{report}");
    let statement = &report["statements"][0];
    assert_eq!(statement["parameters"], json!(["character varying(2)", "numeric(10,2)", "two", "integer"]));
    assert!(!statement["plan"].to_string().contains("One-Time Filter"), "the cast value makes it true: {statement}");
    let mut wrong = params;
    wrong[1] = param("numeric(10,2)", "1e9");
    let problem = &validate(&wrong)["problems"][0]["error"];
    assert_eq!((&problem["code"], &problem["sqlstate"]), (&json!("sql_error"), &json!("22003")));
    // NULL is NULL of every type, and nothing is cast.
    let job = app.query("SELECT $1 IS NULL AS n", &json!([param("numeric(10,2)", "null")]));
    assert_eq!(job["state"], "succeeded", "{job}");
}
