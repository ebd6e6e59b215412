//! Files and names that are nearly what was expected: what is wrong with them is said, and what to do.

use serde_json::{Value, json};

use super::{CSV, NDJSON, app_with, counts, error, import, imports, job_of, upload_as};
use crate::support::app::TestApp;

fn run(app: &TestApp, kind: &str, encoding: &str, body: &[u8]) -> Value {
    app.ended(&job_of(app, &upload_as(app, kind, encoding, body), kind, &json!({"table": "t"})))
}

/// Failed by this code, with these words in its message and its hint.
#[track_caller]
fn told(job: &Value, code: &str, message: &str, hint: &str) {
    let found = job["error"]["hint"].as_str().unwrap_or_default();
    assert!(
        error(job).0 == code && error(job).2.contains(message) && found.contains(hint),
        "expected {message}, {hint}: {job}"
    );
}

fn utf16(text: &str, big: bool) -> Vec<u8> {
    let bytes = |unit: u16| if big { unit.to_be_bytes() } else { unit.to_le_bytes() };
    text.encode_utf16().flat_map(bytes).collect()
}

#[test]
fn a_file_of_which_no_line_can_be_read_says_what_it_looks_like() {
    let app = app_with("CREATE TABLE public.t (id serial, n float8, note text)");
    for (body, message, hint) in [
        ("{\"n\":NaN}\n", "NaN and Infinity are no JSON", "write null"),
        ("{\n  \"n\": 1\n}\n", "the object goes on on the next line", "jq -c . "),
        ("{'n': 1}\n", "double quotes", "json.dumps"),
        ("{n: 1}\n", "a key of JSON stands in double quotes", "JSON.stringify"),
        ("{\"n\": None}\n", "true, false and null", "json.dumps"),
        ("[{\"n\":1}]\n", "a JSON array begins there", "jq -c '.[]'"),
        ("[{\"n\":1},{\"n\":2}]", "a JSON array begins there", "jq -c '.[]'"),
        ("id,n\n1,2\n", "the line looks like CSV", "format to csv"),
        ("\u{feff}\u{feff}{\"n\":1}\n", "a byte order mark stands there", "further ones"),
        ("\u{1e}{\"n\":1}\n\u{1e}{\"n\":2}\n", "RFC 7464", "tr -d"),
        ("{\"n\":1}{\"n\":2}\n", "several objects", "a line of its own"),
        ("1\n2\n", "expected an object at its character 1", ""),
    ] {
        for args in [json!({"table": "t"}), json!({"table": "t", "columns": ["n"]})] {
            let job = import(&app, NDJSON, body, &args);
            told(&job, "invalid_row", message, hint);
            assert!(error(&job).2.starts_with("line 1: the line is no JSON object: "), "{job}");
            // However many rows may be refused.
            let mut args = args;
            args["reject_limit"] = json!(10_000);
            told(&import(&app, NDJSON, body, &args), "invalid_row", message, hint);
        }
    }
    // Where other lines can be read, the first that can't is told, or refused.
    let body = "{\"n\":1}\n{\"n\":NaN}\n";
    let job = import(&app, NDJSON, body, &json!({"table": "t"}));
    told(&job, "invalid_row", "line 2: the line is no JSON object: ", "write null");
    assert_eq!(imports(&app, NDJSON, body, &json!({"table": "t", "reject_limit": 1})), counts(2, 1, 0, 0, 1));
    let job = import(&app, NDJSON, "{\"x\":1}\nnothing\n", &json!({"table": "t"}));
    told(&job, "unknown_columns", "no key of any row", "it has: id, n, note");
    // What comes out of a query without rows goes in again; one byte order mark is skipped.
    assert_eq!(imports(&app, NDJSON, "", &json!({"table": "t"})), counts(0, 0, 0, 0, 0));
    assert_eq!(imports(&app, NDJSON, "\u{feff}{\"n\":1}\n", &json!({"table": "t"})), counts(1, 1, 0, 0, 0));
}

#[test]
fn a_file_that_is_no_text_is_told_for_what_it_is() {
    let app = app_with("CREATE TABLE public.t (id int, n text)");
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::read::GzEncoder::new(bytes, flate2::Compression::fast());
        let mut out = Vec::new();
        std::io::Read::read_to_end(&mut encoder, &mut out).unwrap();
        out
    };
    for (kind, text) in [(CSV, "id,n\n1,a\n"), (NDJSON, "{\"id\":1}\n")] {
        for (mark, big) in [("\u{feff}", false), ("\u{feff}", true), ("", false), ("", true)] {
            let name = if big { "UTF-16BE" } else { "UTF-16LE" };
            let job = run(&app, kind, "identity", &utf16(&format!("{mark}{text}"), big));
            told(&job, "format_mismatch", name, &format!("iconv -f {name} -t UTF-8"));
        }
        let zstd = zstd::encode_all(text.as_bytes(), 1).unwrap();
        let gzip = gzip(text.as_bytes());
        told(&run(&app, kind, "identity", &gzip), "format_mismatch", "gzip data", "Content-Encoding: gzip");
        told(&run(&app, kind, "identity", &zstd), "format_mismatch", "zstd data", "Content-Encoding: zstd");
        let twice = zstd::encode_all(&gzip[..], 1).unwrap();
        told(&run(&app, kind, "zstd", &twice), "format_mismatch", "gzip data again", "compressed twice");
        let workbook = b"PK\x03\x04\x14\0\x06\0\x08\0\0\0!\0[Content_Types].xml";
        told(&run(&app, kind, "identity", workbook), "format_mismatch", "Excel workbook", "CSV UTF-8");
        let parquet = b"PAR1\x15\x04\x15\x20\x15\x24\x4c\x15\x04\x15\0\0\xff\xfe";
        told(&run(&app, kind, "identity", parquet), "format_mismatch", "Parquet", "as CSV or NDJSON");
    }
    let job = run(&app, CSV, "identity", b"id,Gr\xf6\xdfe\n1,a\n");
    told(&job, "format_mismatch", "byte 6 is 0xf6, ö in Latin-1", "iconv -f WINDOWS-1252 -t UTF-8");
    let job = run(&app, NDJSON, "identity", b"{\"n\":\"Gr\xf6\xdfe\"}\n");
    told(&job, "invalid_row", "isn't UTF-8 from its byte 9 on", "iconv -f WINDOWS-1252 -t UTF-8");
}

#[test]
fn names_that_look_alike_are_told_apart() {
    let app = app_with("CREATE TABLE public.t (id int, \"First Name\" text, \"Größe\" int)");
    for (header, message, hint) in [
        (
            "\u{feff}\u{feff}id,First Name",
            "\"\\ufeffid\" (it has a byte order mark; the column is id)",
            "no more than one",
        ),
        (
            "id,First\u{a0}Name",
            "\"First\\u00a0Name\" (it has a no-break space, U+00A0; the column is First Name)",
            "plain space",
        ),
        ("id\u{200b},First Name", "\"id\\u200b\" (it has a character that can't be seen, U+200B", "remove it"),
        ("Id,First Name", "Id (capital and small letters differ; the column is id)", "the table has"),
        ("id, First Name ", "\" First Name \" (it has blanks around it; the column is First Name)", "blanks"),
        ("id,Gro\u{308}ße", "\"Gro\\u0308ße\" (it has decomposed letters (NFD)", "NFC"),
        ("\"\",\"id\",\"First Name\"", "\"\" (column 1 has no name: row names of R", "row.names = FALSE"),
        ("id,First Name,", "\"\" (column 3 has no name: the line ends with a delimiter)", "remove the delimiter"),
        ("id;First Name", "id;First Name (; stands between names)", "set delimiter to \";\""),
        ("id,x,y", ": x, y", "it has: id, First Name, Größe"),
    ] {
        let job = import(&app, CSV, &format!("{header}\n1,a\n"), &json!({"table": "t"}));
        told(&job, "unknown_columns", message, hint);
        told(&job, "unknown_columns", "the header names columns", "it has: id, First Name, Größe");
    }
    let job = import(&app, CSV, "{\"id\":1}\n", &json!({"table": "t"}));
    told(&job, "unknown_columns", "the file looks like JSON", "format to ndjson");
    let twice = import(&app, CSV, "id,First Name,id\n1,a,2\n", &json!({"table": "t"}));
    told(&twice, "duplicate_columns", "the column id twice: names 1 and 3 are the same", "leave it out of the file");
    let args = json!({"table": "t", "columns": ["ID"]});
    told(&import(&app, CSV, "x\n1\n", &args), "unknown_columns", "ID (capital and small letters differ", "");
}

/// Before a job is accepted; at its run, when it came in by SQL.
#[test]
fn a_format_that_its_upload_was_not_sent_as_is_refused() {
    let app = app_with("CREATE TABLE public.t (a int)");
    let later = "2999-01-01T00:00:00Z";
    let refused = || (422, "format_mismatch".to_owned(), vec!["/args/format".to_owned()]);
    for (sent, is_csv) in [
        (CSV, true),
        ("application/csv; charset=utf-8", true),
        ("text/csv; header=absent", true),
        (NDJSON, false),
        ("application/jsonl", false),
    ] {
        let upload = upload_as(&app, sent, "identity", b"");
        for (format, fits) in [("csv", is_csv), ("ndjson", !is_csv)] {
            let args = json!({"upload": upload, "table": "t", "format": format});
            let job = json!({"kind": "import", "args": args, "run_at": later});
            let headers = [("idempotency-key", format!("{sent} {format}"))];
            let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
            // However often it is tried, with a key or without.
            for headers in [&[][..], &headers, &headers] {
                let answer = app.post_with("/v1/jobs", headers, &job);
                match fits {
                    true => assert_eq!(answer.status, 202, "{}", answer.text()),
                    false => assert_eq!(answer.problem(), refused(), "{sent} {format}"),
                }
            }
            if !fits {
                assert_eq!(app.post("/v1/jobs/validate", &job).problem(), refused());
            }
        }
    }
    assert_eq!(app.queue.count("SELECT count(*) FROM jobs"), 10);
    assert_eq!(app.queue.count("SELECT count(*) FROM idempotency_keys"), 5);
    let upload = upload_as(&app, NDJSON, "identity", b"{\"a\":1}");
    let args = json!({"upload": upload, "table": "t", "format": "csv"});
    let id = app.queue.text(&format!("SELECT slowlane.enqueue('import', '{args}', upload => '{upload}')"));
    told(&app.ended(&id), "format_mismatch", "was sent as application/x-ndjson", "Content-Type");
    assert_eq!(app.post(&format!("/v1/jobs/{id}/retry"), &json!({})).problem(), refused());
    // One that isn't there is of no type.
    let args = json!({"upload": id, "table": "t", "format": "csv"});
    let answer = app.post("/v1/jobs", &json!({"kind": "import", "args": args}));
    assert_eq!(answer.problem(), (422, "unknown_upload".to_owned(), vec!["/args/upload".to_owned()]));
}
