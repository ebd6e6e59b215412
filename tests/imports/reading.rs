//! How files are read: codings, CSV as COPY has it, and the lines that errors name.

use std::io::Write;

use serde_json::json;
use slowlane::queue::model::MAX_ERROR_BYTES;

use super::{CSV, NDJSON, app_with, counts, error, import, imports, job_of, make, upload_as};

#[test]
fn every_coding_is_read_and_what_is_damaged_is_said() {
    let app = app_with("CREATE TABLE public.t (a int, b text)");
    let gzip = |text: &str| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let zstd = |text: &str| zstd::encode_all(text.as_bytes(), 1).unwrap();
    let run = |encoding: &str, body: &[u8]| {
        let upload = upload_as(&app, CSV, encoding, body);
        app.ended(&job_of(&app, &upload, CSV, &json!({"table": "t"})))
    };
    // Several members and frames, one of them empty, cut in the middle of a row.
    for (encoding, parts) in [
        ("gzip", [gzip("a,b\n1,x\n2"), gzip(""), gzip(",y\n")]),
        ("zstd", [zstd("a,b\n3,x\n4"), zstd(""), zstd(",y\n")]),
        ("identity", [b"\xef\xbb\xbfa,b\r\n5".to_vec(), b",x\r\n6,y".to_vec(), Vec::new()]),
    ] {
        let job = run(encoding, &parts.concat());
        assert_eq!(job["output"], counts(2, 2, 0, 0, 0), "{encoding}: {job}");
    }
    assert_eq!(app.target.text("SELECT string_agg(a || b, ' ' ORDER BY a) FROM t"), "1x 2y 3x 4y 5x 6y");
    let text: String = (0..100_000).map(|n| format!("{},{n}\n", n % 7919)).collect();
    for (encoding, whole) in [("gzip", gzip(&text)), ("zstd", zstd(&text))] {
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 0x55;
        for broken in [&whole[..whole.len() - 9], &flipped, b"a,b\n1,x\n"] {
            let job = run(encoding, broken);
            assert!(
                ["upload_unreadable", "sql_error", "unknown_columns", "format_mismatch", "incomplete_file"]
                    .contains(&error(&job).0),
                "{encoding}: {job}"
            );
            assert_eq!(job["state"], "failed");
        }
        assert_eq!(error(&run(encoding, b"a,b\n1,x\n")).0, "upload_unreadable");
    }
    // A window that would need more memory than others are given.
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.window_log(27).unwrap();
    encoder.write_all(b"a,b\n").unwrap();
    for n in 0..1_000_000 {
        encoder.write_all(format!("{n},x\n").as_bytes()).unwrap();
    }
    let job = run("zstd", &encoder.finish().unwrap());
    assert_eq!(error(&job).0, "upload_unreadable", "{job}");
    assert_eq!(app.target.count("SELECT count(*) FROM t"), 6);
}

#[test]
fn csv_is_read_as_copy_reads_it() {
    let app = app_with(
        "CREATE TABLE public.t (id serial PRIMARY KEY, a text, b text DEFAULT 'd', twice text GENERATED ALWAYS AS (a || a) STORED);
         CREATE SCHEMA \"Odd\"; CREATE TABLE \"Odd\".\"a \"\"b\" (\"x,\"\"y\" text)",
    );
    // A value that would end a COPY before PostgreSQL 18, in quotes and not, at the end of lines and not.
    let output = imports(&app, CSV, "a\n\\.\nx\n\"\\.\"\n\"l\n\\.\nm\"\n\\.", &json!({"table": "public.t"}));
    assert_eq!(output, counts(5, 5, 0, 0, 0));
    assert_eq!(app.target.text("SELECT string_agg(a, '|' ORDER BY id) FROM t"), "\\.|x|\\.|l\n\\.\nm|\\.");
    assert_eq!(app.target.count("SELECT count(*) FROM t WHERE b = 'd' AND twice = a || a"), 5);
    make(&app.target, "TRUNCATE t");
    // Also with options that have a part of it.
    for text in ["\\", ".", "\\.."] {
        let args = json!({"table": "t", "null": text, "delimiter": ";"});
        assert_eq!(imports(&app, CSV, "a\n\\.\n\"\\.\"\n", &args), counts(2, 2, 0, 0, 0));
    }
    assert_eq!(app.target.count("SELECT count(*) FROM t WHERE a = '\\.'"), 6);
    make(&app.target, "TRUNCATE t");
    // NULL, the empty text, other delimiters, no header.
    imports(&app, CSV, "b,a\n,\"\"\n-,\\N\n", &json!({"table": "t"}));
    imports(
        &app,
        CSV,
        "1;-\n2;\"-\"\n",
        &json!({"table": "t", "header": false, "delimiter": ";", "null": "-", "columns": ["a", "b"]}),
    );
    imports(
        &app,
        CSV,
        "x\ty'\\\nz\t\\\n",
        &json!({"table": "t", "delimiter": "\t", "null": "\\", "columns": ["b", "a"]}),
    );
    assert_eq!(
        app.target.text(
            "SELECT string_agg(format('%s/%s', coalesce(a, 'NULL'), coalesce(b, 'NULL')), ' ' ORDER BY id) FROM t"
        ),
        "/NULL \\N/- 1/NULL 2/- NULL/z"
    );
    imports(&app, CSV, "\"x,\"\"y\"\n1\n", &json!({"table": "\"Odd\".\"a \"\"b\""}));
    assert_eq!(app.target.count("SELECT count(*) FROM \"Odd\".\"a \"\"b\""), 1);
    // Without a header all columns are meant that can be written.
    imports(&app, CSV, "77,a,b\n", &json!({"table": "t", "header": false}));
    assert_eq!(app.target.text("SELECT twice FROM t WHERE id = 77"), "aa");
    // Carriage returns end lines where the first line ends with one.
    assert_eq!(imports(&app, CSV, "id,a\r81,x\r82,\"y\rz\"\r83,w", &json!({"table": "t"})), counts(3, 3, 0, 0, 0));
    assert_eq!(app.target.text("SELECT string_agg(a, '|' ORDER BY id) FROM t WHERE id > 80"), "x|y\rz|w");
    assert_eq!(imports(&app, CSV, "a\n", &json!({"table": "t"})), counts(0, 0, 0, 0, 0));
    for (body, args, code, words) in [
        ("a,x,y\n", json!({"table": "t"}), "unknown_columns", "x, y"),
        ("x,".repeat(20).as_str(), json!({"table": "t"}), "unknown_columns", "x, x, and 11 more"),
        ("x,".repeat(1_600).as_str(), json!({"table": "t"}), "too_many_columns", "more than 1600"),
        ("a,a\n", json!({"table": "t"}), "duplicate_columns", "a twice"),
        ("twice\n", json!({"table": "t"}), "generated_column", "twice"),
        ("a\n", json!({"table": "t", "columns": ["c"]}), "unknown_columns", "c"),
        ("", json!({"table": "t"}), "no_header", "empty"),
        ("a\n", json!({"table": "nowhere.t"}), "table_not_found", "nowhere.t"),
        ("a\n", json!({"table": "pg_catalog.pg_views"}), "table_not_found", "pg_views"),
        ("a,b\n1\n", json!({"table": "t"}), "sql_error", "line 2: missing data for column"),
        ("a\n1,2\n", json!({"table": "t"}), "sql_error", "line 2: extra data after last expected column"),
        ("a\n\"1\n", json!({"table": "t"}), "incomplete_file", "line 2: unterminated CSV quoted field"),
        ("a\nx\ry\n", json!({"table": "t"}), "sql_error", "line 2: unquoted carriage return"),
    ] {
        let job = import(&app, CSV, body, &args);
        let (found, _, message) = error(&job);
        assert!(found == code && message.contains(words), "{body:?}: {job}");
    }
    assert_eq!(
        error(&import(&app, CSV, "a\n1\n", &json!({"table": "pg_class", "columns": ["relname"]}))).0,
        "permission_denied"
    );
}

#[test]
fn an_error_names_its_line_whatever_stands_before_it() {
    let app = app_with("CREATE TABLE public.t (a int, b text)");
    for (body, line) in [
        ("a,b\n1,\"x\ny\nz\"\n2,q\nbad,r\n", 6),
        ("a,b\r\n1,\"x\r\ny\nz\"\r\n2,q\r\nbad,r\r\n", 6),
        ("a,\"b\"\n1,x\n2,\"\n\n\"\nbad,\"\n\n\n\"\n3,x\n", 6),
        ("a,b\r1,\"x\ry\n\"\r2,q\rbad,r\r", 6),
        // Line ends of both kinds.
        ("a,b\n1,x\r\n2,\"\"\"\n\"\nbad,", 5),
    ] {
        let job = import(&app, CSV, body, &json!({"table": "t"}));
        let (code, sqlstate, message) = error(&job);
        assert_eq!((code, sqlstate), ("sql_error", "22P02"), "{job}");
        assert!(message.starts_with(&format!("line {line}: invalid input syntax")), "{body:?}: {message}");
    }
    let job = import(&app, NDJSON, "{\"a\":1}\n\n \n{\"a\":2}\r\n\n{\"a\":\"x\"}\n", &json!({"table": "t"}));
    assert!(error(&job).2.starts_with("line 6: invalid input syntax"), "{job}");
    // The line is there too where the server's message has the whole of a long value, and counts for its length.
    let job = import(&app, CSV, &format!("a,b\n{},x\n", "é".repeat(20_000)), &json!({"table": "t"}));
    let message = error(&job).2;
    assert!(message.starts_with("line 2: invalid input syntax") && message.ends_with("é…"), "{message}");
    assert!(message.len() <= MAX_ERROR_BYTES, "{} bytes", message.len());
    // Beyond the first of several COPYs.
    let filler = "x".repeat(1000);
    let body: String = (0..80_000)
        .map(|n| format!("{},\"{filler}\n\"\n", if n == 70_000 { "bad".to_owned() } else { n.to_string() }))
        .collect();
    let upload = upload_as(&app, CSV, "zstd", &zstd::encode_all(body.as_bytes(), 1).unwrap());
    let job = app.ended(&job_of(&app, &upload, CSV, &json!({"table": "t", "header": false})));
    assert!(error(&job).2.starts_with("line 140001: invalid input syntax"), "{job}");
    assert_eq!(app.target.count("SELECT count(*) FROM t"), 0);
}

#[test]
fn an_upload_says_whether_it_has_a_header_unless_the_job_does() {
    let app = app_with("CREATE TABLE public.t (a text, b text)");
    let upload = |kind: &str| upload_as(&app, kind, "identity", b"b,a\n1,2\n");
    let (absent, present) = (upload("text/csv; header=absent"), upload("text/csv; header=present"));
    for (upload, args, rows) in [
        (&absent, json!({"table": "t"}), "ba 12"),
        (&absent, json!({"table": "t", "header": true}), "21"),
        (&absent, json!({"table": "t", "columns": ["b", "a"]}), "ab 21"),
        (&present, json!({"table": "t"}), "21"),
        (&present, json!({"table": "t", "header": false}), "ba 12"),
    ] {
        let job = app.ended(&job_of(&app, upload, CSV, &args));
        assert_eq!(job["state"], "succeeded", "{job}");
        assert_eq!(app.target.text("SELECT string_agg(a || b, ' ' ORDER BY a DESC, b) FROM t"), rows, "{args}");
        app.target.run("TRUNCATE public.t");
    }
}
