//! Memory is bounded whatever a file is.

use std::fs;
use std::io::{Read, Write};

use serde_json::{Value, json};

use super::{CSV, NDJSON, error, job_of, make, upload_as};
use crate::support::child::Server;
use crate::support::eventually;
use crate::support::postgres::Postgres;

/// The most memory that a process had, in MiB.
fn peak(server: &Server) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
}

#[test]
fn a_bomb_takes_no_memory() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    make(&target, "CREATE TABLE public.t (a text); CREATE TABLE public.arrays (a int[])");
    let server = Server::serve(&queue, &target, &[]);
    let before = peak(&server);
    // 600 MiB of rows, and a row of 4 GiB, each as a small upload.
    let rows = std::io::repeat(b'x').take(1_000).chain(&b"\n"[..]);
    let mut row = Vec::new();
    { rows }.read_to_end(&mut row).unwrap();
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    for _ in 0..600_000 {
        encoder.write_all(&row).unwrap();
    }
    let many = upload_as(&server.client, CSV, "zstd", &encoder.finish().unwrap());
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::copy(&mut std::io::repeat(b'x').take(1 << 28), &mut encoder).unwrap();
    let member = encoder.finish().unwrap();
    let one = upload_as(&server.client, CSV, "gzip", &member.repeat(16));
    let args = json!({"table": "t", "header": false});
    let job = server.client.ended(&job_of(&server.client, &many, CSV, &args));
    assert_eq!(job["output"]["inserted"], 600_000, "{job}");
    let grown = peak(&server) - before;
    assert!(grown < 48, "rows of 600 MiB took {grown} MiB");
    // NDJSON whose rows are refused, by one that may refuse none and by one that may; and rows whose text is long.
    let first = "{\"a\":1}\n";
    let long = "k".repeat(1 << 20);
    for (rows, row, limit, code, rejected) in [
        (2_000_000, format!("{{\"x\":\"{}\"}}\n", &long[..300]), 0, "invalid_row", Value::Null),
        (500, format!("{{\"{long}\":1}}\n"), 1_000, "", json!(500)),
        (500, format!("{{\"a\":1{}}}\n", " ".repeat(1 << 20)), 1_000, "", json!(0)),
    ] {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.write_all(first.as_bytes()).unwrap();
        (0..rows).for_each(|_| encoder.write_all(row.as_bytes()).unwrap());
        let upload = upload_as(&server.client, NDJSON, "zstd", &encoder.finish().unwrap());
        let args = json!({"table": "t", "reject_limit": limit});
        let job = server.client.ended(&job_of(&server.client, &upload, NDJSON, &args));
        assert_eq!((error(&job).0, &job["output"]["rejected"]), (code, &rejected), "{job}");
        let grown = peak(&server) - before;
        assert!(grown < 80, "{rows} rows of {} bytes took {grown} MiB", row.len());
    }
    // A header of 60 MiB: of commas alone, and of one name.
    for (byte, code) in [(",", "too_many_columns"), ("x", "unknown_columns")] {
        let header = zstd::encode_all(byte.repeat(60 << 20).as_bytes(), 1).unwrap();
        let upload = upload_as(&server.client, CSV, "zstd", &header);
        let job = server.client.ended(&job_of(&server.client, &upload, CSV, &json!({"table": "t"})));
        assert_eq!(error(&job).0, code);
        let grown = peak(&server) - before;
        assert!(grown < 200, "a header of 60 MiB took {grown} MiB");
        // Names that are given count.
        let named = json!({"table": "t", "columns": ["a"]});
        assert_eq!(server.client.ended(&job_of(&server.client, &upload, CSV, &named))["output"]["rows_read"], 0);
    }
    let job = server.client.ended(&job_of(&server.client, &one, CSV, &args));
    assert_eq!(error(&job).0, "row_too_large", "{job}");
    assert!(error(&job).2.starts_with("line 1:"), "{job}");
    let grown = peak(&server) - before;
    assert!(grown < 200, "a row of 4 GiB took {grown} MiB");
    // 30 million elements.
    let array = format!("{{\"a\":[{}1]}}", "1,".repeat(30 << 20));
    let upload = upload_as(&server.client, NDJSON, "zstd", &zstd::encode_all(array.as_bytes(), 1).unwrap());
    let job = server.client.ended(&job_of(&server.client, &upload, NDJSON, &json!({"table": "arrays"})));
    assert!(error(&job).0 == "invalid_row" && error(&job).2.contains("longer than 64 MiB"), "{job}");
    let grown = peak(&server) - before;
    assert!(grown < 320, "an array of 30 million elements took {grown} MiB");
}

/// Rows that aren't even sent take no more memory than those that are, and hold up no cancel.
#[test]
fn a_bomb_of_refused_rows_takes_no_memory() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    make(&target, "CREATE TABLE public.t (a text, b text[])");
    let server = Server::serve(&queue, &target, &[]);
    let zipped = |line: &[u8], times: usize| {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        (0..times).for_each(|_| encoder.write_all(line).unwrap());
        encoder.finish().unwrap()
    };
    let run = |body: &[u8], args: &Value| {
        let upload = upload_as(&server.client, NDJSON, "zstd", body);
        server.client.ended(&job_of(&server.client, &upload, NDJSON, args))
    };
    let before = peak(&server);
    // Half a million rows with keys that are no columns.
    let unknown = format!("{{\"{}\":1}}\n", "k".repeat(300));
    let unknown = zipped(unknown.as_bytes(), 500_000);
    let job = run(&unknown, &json!({"table": "t", "columns": ["a"]}));
    assert_eq!(error(&job).0, "invalid_row", "{job}");
    assert!(job["error"]["message"].as_str().unwrap().len() < 300, "{job}");
    // Rows of 8 MiB each: 5,000 of them are no block.
    let large = zipped(format!("{{\"x\":\"{}\"}}\n", "k".repeat(8 << 20)).as_bytes(), 40);
    let job = run(&large, &json!({"table": "t", "columns": ["a"], "reject_limit": 10_000}));
    assert_eq!(job["output"]["rejected"], 40, "{job}");
    // An array of 18 million items, and a header of as many names.
    let array = zipped(format!("{{\"b\":[{}1]}}\n", "1,".repeat(18_000_000)).as_bytes(), 1);
    assert_eq!(error(&run(&array, &json!({"table": "t"}))).0, "invalid_row");
    let header = upload_as(&server.client, CSV, "zstd", &zipped(&b",".repeat(20_000_000), 1));
    let job = server.client.ended(&job_of(&server.client, &header, CSV, &json!({"table": "t"})));
    assert_eq!(error(&job).0, "too_many_columns", "{job}");
    let grown = peak(&server) - before;
    assert!(grown < 300, "bombs took {grown} MiB");
    // Nothing but blank lines, for minutes: a cancel ends it.
    let blank = zipped(&b"\n".repeat(1 << 20), 30_000);
    let upload = upload_as(&server.client, NDJSON, "zstd", &blank);
    let id = job_of(&server.client, &upload, NDJSON, &json!({"table": "t", "columns": ["a"]}));
    eventually("it reads them", || server.client.job(&id)["progress"]["done"].as_u64() > Some(0));
    server.client.post(&format!("/v1/jobs/{id}/cancel"), &json!({}));
    let job = server.client.ended(&id);
    assert_eq!(job["state"], "cancelled", "{job}");
    assert!(job["progress"]["done"].as_u64() < job["progress"]["total"].as_u64(), "{job}");
    // The work itself has ended: a thread that doesn't hear is given up, and is told of.
    assert!(!server.log().contains("a thread is stuck"), "{}", server.log());
}
