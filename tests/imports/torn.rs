//! One error that takes many rows with it: what can't be told from a file that was cut off ends the job, whatever it
//! may refuse, and what is lost counts as so many rows.

use std::io::Write;

use serde_json::{Value, json};

use super::{CSV, NDJSON, app_with, counts, error, job_of, rejects, upload_as};
use crate::support::app::TestApp;

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

fn coded(encoding: &str, text: &[u8]) -> Vec<u8> {
    match encoding {
        "gzip" => gzip(text),
        "zstd" => zstd::encode_all(text, 1).unwrap(),
        _ => text.to_vec(),
    }
}

fn run_coded(app: &TestApp, kind: &str, encoding: &str, body: &[u8], args: &Value) -> Value {
    app.ended(&job_of(app, &upload_as(app, kind, encoding, body), kind, args))
}

fn run(app: &TestApp, kind: &str, body: &str, args: &Value) -> Value {
    run_coded(app, kind, "identity", body.as_bytes(), args)
}

fn rows(numbers: std::ops::RangeInclusive<u32>) -> String {
    numbers.map(|n| format!("{n},row{n}\n")).collect()
}

/// Failed by this code on this line, with nothing stored.
#[track_caller]
fn failed(app: &TestApp, job: &Value, code: &str, begin: &str) {
    assert!(error(job).0 == code && error(job).2.starts_with(begin), "expected {code}, {begin}: {job}");
    assert_eq!(app.target.count("SELECT count(*) FROM t"), 0, "{job}");
}

#[test]
fn a_quote_that_is_never_closed_ends_the_job_whatever_it_may_refuse() {
    let app = app_with("CREATE TABLE public.t (id int, name text)");
    let body = format!("id,name\nx,bad\n2,\"never closed\n{}", rows(3..=5_000));
    for encoding in ["identity", "gzip", "zstd"] {
        for limit in [10, 10_000] {
            let args = json!({"table": "t", "reject_limit": limit});
            let job = run_coded(&app, CSV, encoding, &coded(encoding, body.as_bytes()), &args);
            failed(
                &app,
                &job,
                "incomplete_file",
                "line 3: unterminated CSV quoted field: the quote that opens on line 3 ",
            );
            assert!(error(&job).2.contains("line 5001"), "{job}");
            assert!(job["error"]["hint"].as_str().unwrap().contains("cut off"), "{job}");
            // What was refused before is told all the same.
            assert_eq!(rejects(&app, &job)[0], (2, "22P02".to_owned(), "x,bad".to_owned()));
        }
    }
    // An error before it comes first where none may be refused.
    failed(&app, &run(&app, CSV, &body, &json!({"table": "t"})), "sql_error", "line 2: invalid input syntax");
    let job = run(&app, CSV, "id,name\n1,a\n2,b\n3,5\" pipe\n4,d\n", &json!({"table": "t"}));
    failed(&app, &job, "incomplete_file", "line 4: unterminated CSV quoted field: the quote that opens on line 4 ");
    assert_eq!(error(&job).1, "22P04");
    // The row begins where its first line is.
    let job = run(&app, CSV, "id,name\n1,\"a\nb\",\"c\n2,d\n", &json!({"table": "t", "reject_limit": 5}));
    failed(&app, &job, "incomplete_file", "line 2: unterminated CSV quoted field: the quote that opens on line 3 ");
    for body in ["id,name\r1,a\r2,\"b\r3,c\r", "id,name\r\n1,a\r\n2,\"b\r\n3,c\r\n"] {
        let job = run(&app, CSV, body, &json!({"table": "t", "reject_limit": 5}));
        failed(&app, &job, "incomplete_file", "line 3: unterminated");
    }
    // In the header too.
    for args in [json!({"table": "t"}), json!({"table": "t", "columns": ["id", "name"]})] {
        let job = run(&app, CSV, "id,\"name\n1,a\n", &args);
        failed(&app, &job, "incomplete_file", "line 1: unterminated CSV quoted field");
        let job = run(&app, CSV, "id,name\" x\n1,a\n2,b\" y\n3,c\n", &args);
        failed(&app, &job, "invalid_row", "line 1: quotes within values make one row of the lines 1 to 3");
    }
    // A row that is too long to be one.
    let long = coded("zstd", format!("id,name\n1,\"{}", "x\n".repeat(40 << 20)).as_bytes());
    let job = run_coded(&app, CSV, "zstd", &long, &json!({"table": "t", "reject_limit": 10}));
    failed(&app, &job, "row_too_large", "line 2:");
    assert!(job["error"]["hint"].as_str().unwrap().contains("a quote opens on line 2"), "{job}");
}

#[test]
fn quotes_of_two_rows_make_no_row_and_count_as_the_lines_between_them() {
    let app = app_with("CREATE TABLE public.t (id int, name text)");
    // Lines 3 and 900 have a quote; what it makes has as many values as columns, more of them, or fewer.
    for (first, last) in [
        ("2,5\" pipe", "899,6\" pipe"),
        ("2,\"never closed", "899,6\" pipe"),
        ("2,\"never closed", "899,\"b\",c\""),
        ("2,b,\"x", "899,c\""),
        ("\"2", "899\""),
    ] {
        let body = format!("id,name\n1,a\n{first}\n{}{last}\n{}", rows(3..=898), rows(900..=999));
        let args = |limit| json!({"table": "t", "reject_limit": limit});
        let job = run(&app, CSV, &body, &args(897));
        failed(&app, &job, "too_many_rejects", "more than 897 rows");
        assert!(error(&job).2.contains("line 3: ") && error(&job).2.contains("898 lines"), "{job}");
        let job = run(&app, CSV, &body, &args(898));
        assert_eq!(job["output"], counts(999, 101, 0, 0, 898), "{job}");
        assert_eq!(rejects(&app, &job).iter().map(|(line, ..)| *line).collect::<Vec<_>>(), [3]);
        app.target.run("TRUNCATE public.t");
    }
    let job = run(&app, CSV, "id,name\n2,5\" pipe\n3,c\n4,6\" pipe\n", &json!({"table": "t"}));
    failed(&app, &job, "invalid_row", "line 2: quotes within values make one row of the lines 2 to 4");
    assert!(job["error"]["hint"].as_str().unwrap().contains("`quote`"), "{job}");
    // Values of several lines are values; a row that has one and is refused counts as its lines.
    let body = "id,name\n1,\"a\nb\"\nx,\"c\nd\ne\"\n2, \"f\ng\" \n3,5\" x 3\"\n";
    let job = run(&app, CSV, body, &json!({"table": "t", "reject_limit": 3}));
    assert_eq!(job["output"], counts(6, 3, 0, 0, 3), "{job}");
    assert_eq!(app.target.text("SELECT string_agg(name, '|' ORDER BY id) FROM t"), "a\nb| f\ng |5 x 3");
}

#[test]
fn carriage_returns_that_end_no_lines_count_as_lines() {
    let app = app_with("CREATE TABLE public.t (id int, name text)");
    let body = "id,name\n1,a\n2,b\r3,c\r4,d\r5,e\n6,f\n";
    let job = run(&app, CSV, body, &json!({"table": "t", "reject_limit": 3}));
    failed(&app, &job, "too_many_rejects", "more than 3 rows");
    let job = run(&app, CSV, body, &json!({"table": "t", "reject_limit": 4}));
    assert_eq!(job["output"], counts(6, 2, 0, 0, 4), "{job}");
}

#[test]
fn a_last_row_that_may_have_been_cut_off_ends_the_job() {
    let app = app_with("CREATE TABLE public.t (id int, name text, at date NOT NULL)");
    let args = json!({"table": "t", "reject_limit": 10});
    let begin = "id,name,at\n1,a,2024-01-01\n";
    for last in ["2", "2,b", "2,b,2024-0", "2,b,", "2,b,2024-01-01,3,\"x"] {
        let job = run(&app, CSV, &format!("{begin}{last}"), &args);
        failed(&app, &job, "incomplete_file", "line 3: ");
    }
    // What stands before the last value was whole, and so is what has too many of them.
    for last in ["x,b,2024-01-02", "2,b,2024-01-02,x", "2,b\n", "2,b,2024-0\n"] {
        let job = run(&app, CSV, &format!("{begin}{last}"), &args);
        assert_eq!(job["output"], counts(2, 1, 0, 0, 1), "{last:?}: {job}");
        app.target.run("TRUNCATE public.t");
    }
    let begin = "{\"id\":1,\"name\":\"a\",\"at\":\"2024-01-01\"}\n";
    for last in ["{\"id\":2", "{\"id\":2,\"name\":\"b\",\"at\":\"2024-01-02\"", "{\"id\":2,\"name\":{\"x\":1}"] {
        let job = run(&app, NDJSON, &format!("{begin}{last}"), &args);
        failed(&app, &job, "incomplete_file", "line 2: the file ends in the middle of a row");
        let job = run(&app, NDJSON, &format!("{begin}{last}"), &json!({"table": "t"}));
        failed(&app, &job, "incomplete_file", "line 2: ");
    }
    let torn = [begin.as_bytes(), "{\"name\":\"é".as_bytes().split_last().unwrap().1].concat();
    let job = run_coded(&app, NDJSON, "gzip", &gzip(&torn), &args);
    failed(&app, &job, "incomplete_file", "line 2: the file ends in the middle of a row");
    for last in ["{\"id\":2,\"x\":1}", "{\"id\":NaN}", "{\"id\":2\n"] {
        let job = run(&app, NDJSON, &format!("{begin}{last}"), &args);
        assert_eq!(job["output"], counts(2, 1, 0, 0, 1), "{last:?}: {job}");
        app.target.run("TRUNCATE public.t");
    }
}

#[test]
fn objects_of_one_line_count_as_so_many_rows() {
    let app = app_with("CREATE TABLE public.t (n int)");
    let object = |n: u32| format!("{{\"n\":{n}}}");
    for separator in ["", " ", "\r", "\u{1e}"] {
        let line = (1..=50).map(object).collect::<Vec<_>>().join(separator);
        let body = format!("{}\n{line}\n{}\n", object(0), object(51));
        let job = run(&app, NDJSON, &body, &json!({"table": "t", "reject_limit": 49}));
        failed(&app, &job, "too_many_rejects", "more than 49 rows");
        assert!(error(&job).2.contains("50 objects"), "{job}");
        let job = run(&app, NDJSON, &body, &json!({"table": "t", "reject_limit": 50}));
        assert_eq!(job["output"], counts(52, 2, 0, 0, 50), "{job}");
        app.target.run("TRUNCATE public.t");
    }
    let array = format!("[{}]", (1..=50).map(object).collect::<Vec<_>>().join(","));
    let job = run(&app, NDJSON, &format!("{}\n{array}\n", object(0)), &json!({"table": "t", "reject_limit": 49}));
    failed(&app, &job, "too_many_rejects", "more than 49 rows");
}

#[test]
fn what_is_cut_off_while_it_is_coded_ends_the_job() {
    let app = app_with("CREATE TABLE public.t (id int, name text)");
    let text = format!("id,name\n{}", rows(1..=20_000));
    for encoding in ["gzip", "zstd"] {
        let whole = coded(encoding, text.as_bytes());
        for length in [0, 1, 3, 10, whole.len() / 2, whole.len() - 1] {
            let args = json!({"table": "t", "reject_limit": 10_000});
            let job = run_coded(&app, CSV, encoding, &whole[..length], &args);
            failed(&app, &job, "upload_unreadable", "the upload can't be decoded");
            assert!(error(&job).2.contains("cut off"), "{job}");
        }
        let job = run_coded(&app, CSV, encoding, &[&whole[..], b"trailing words"].concat(), &json!({"table": "t"}));
        failed(&app, &job, "upload_unreadable", "the upload can't be decoded");
        assert!(job["error"]["hint"].as_str().unwrap().starts_with("cut them off"), "{job}");
    }
    // Zeros behind gzip are padding; frames that are to be skipped are skipped.
    let padded = [gzip(b"id\n1\n"), vec![0; 512]].concat();
    let skippable = [b"\x50\x2a\x4d\x18\x03\0\0\0abc".to_vec(), coded("zstd", b"id\n2\n")].concat();
    for (encoding, body) in [("gzip", padded), ("zstd", skippable)] {
        let job = run_coded(&app, CSV, encoding, &body, &json!({"table": "t"}));
        assert_eq!(job["output"], counts(1, 1, 0, 0, 0), "{job}");
    }
}

#[test]
fn a_byte_that_is_no_text_costs_its_row_alone() {
    let app = app_with("CREATE TABLE public.t (id int, name text)");
    let args = json!({"table": "t", "reject_limit": 2});
    let body = b"id,name\n1,a\n2,b\0c\n3,caf\xe9\n4,d\n";
    let job = run_coded(&app, CSV, "identity", body, &args);
    assert_eq!(job["output"], counts(4, 2, 0, 0, 2), "{job}");
    let found: Vec<_> = rejects(&app, &job).into_iter().map(|(line, sqlstate, _)| (line, sqlstate)).collect();
    assert_eq!(found, [(3, "22021".to_owned()), (4, "22021".to_owned())]);
    let body = b"{\"id\":5}\n{\"id\":6,\"name\":\"b\0\"}\n{\"name\":\"caf\xe9\"}\n{\"id\":7}\n";
    let job = run_coded(&app, NDJSON, "identity", body, &args);
    assert_eq!(job["output"], counts(4, 2, 0, 0, 2), "{job}");
    for (body, hint) in [(&b"id,name\n1,caf\xe9\n"[..], "iconv -f WINDOWS-1252"), (b"id,name\n1,\0\n", "tr -d")] {
        let job = run_coded(&app, CSV, "identity", body, &json!({"table": "t"}));
        assert!(
            error(&job).2.starts_with("line 2: ") && job["error"]["hint"].as_str().unwrap().contains(hint),
            "{job}"
        );
    }
    // A line that would end psql's COPY, and with it the file, is a row.
    let job = run(&app, CSV, "id,name\n8,a\n\\.\n9,b\n", &args);
    assert_eq!(job["output"], counts(3, 2, 0, 0, 1), "{job}");
}

#[test]
fn what_is_refused_at_the_end_of_a_file_has_its_column() {
    let app = app_with("CREATE TABLE public.t (a int UNIQUE, \"on: a\" date)");
    for (body, code, sqlstate, column) in [
        // The value that may be cut off, one that is lacking, and one that can't be because another follows.
        ("1,2024-01-01\n2,2024-01-0x", "incomplete_file", "22007", "on: a"),
        ("1,2024-01-01\n2", "incomplete_file", "22P04", "on: a"),
        ("1,2024-01-01\nx,2024-01-01", "too_many_rejects", "22P02", "a"),
        ("1,2024-01-01\n2,2024-01-0x\n", "too_many_rejects", "22007", "on: a"),
    ] {
        // The first row is refused too, so that one more is one too many.
        let body = format!("a,on: a\nbad,2024-01-01\n{body}");
        for conflict in ["error", "skip"] {
            let mut args = json!({"table": "t", "reject_limit": 1, "on_conflict": conflict});
            if conflict == "skip" {
                args["conflict_columns"] = json!(["a"]);
            }
            let job = run(&app, CSV, &body, &args);
            assert_eq!(error(&job).0, code, "{job}");
            let rows = app.get(&format!("/v1/jobs/{}/result/data?format=json", job["id"].as_str().unwrap())).json();
            let last = rows.as_array().unwrap().last().unwrap();
            assert_eq!((&last["sqlstate"], &last["column"]), (&json!(sqlstate), &json!(column)), "{rows}");
            if code == "incomplete_file" {
                assert_eq!((error(&job).1, &job["error"]["column"]), (sqlstate, &json!(column)), "{job}");
            }
        }
    }
}
