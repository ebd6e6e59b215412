//! Uploads: complete and as they were sent, or not there.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::app::TestApp;
use crate::support::child::Server;
use crate::support::client::Client;
use crate::support::kinds::{Gate, Step};
use crate::support::postgres::Postgres;
use crate::support::{PATIENCE, eventually};

const MIB: usize = 1024 * 1024;

/// Bytes that don't repeat within a part, and can't be told from text.
fn bytes(length: usize) -> Vec<u8> {
    (0_u64..).flat_map(|n| format!("{}\n", n * n).into_bytes()).take(length).collect()
}

fn digest(body: &[u8]) -> String {
    format!("sha-256=:{}:", STANDARD.encode(Sha256::digest(body)))
}

fn hex(body: &[u8]) -> String {
    Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn csv(client: &Client, body: &[u8]) -> Value {
    let answer = client.send("POST", "/v1/uploads", &[("content-type", "text/csv")], body);
    assert_eq!(answer.status, 201, "{}", answer.text());
    answer.json()
}

fn stored(app: &TestApp, id: &str) -> Vec<u8> {
    let sql =
        format!("SELECT encode(string_agg(data, '' ORDER BY n), 'base64') FROM upload_parts WHERE upload_id = '{id}'");
    STANDARD.decode(app.queue.text(&sql).replace('\n', "")).unwrap()
}

/// Nothing is kept of what didn't become an upload.
#[track_caller]
fn nothing_is_left(app: &TestApp) {
    let left = "SELECT (SELECT count(*) FROM uploads) + (SELECT count(*) FROM upload_parts)";
    eventually("nothing is left", || app.queue.count(left) == 0);
}

/// A request whose body doesn't come whole, or not at once.
fn begin(app: &TestApp, headers: &str, body: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(app.client.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = format!(
        "POST /v1/uploads HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: text/csv\r\n{headers}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    stream
}

fn rest(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    // A server that answers early may close the connection hard.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn what_is_sent_is_what_is_kept() {
    let app = TestApp::start();
    for length in [0, 1, MIB - 1, MIB, MIB + 1, 5 * MIB + 77] {
        let body = bytes(length);
        let headers = [("content-type", "Text/CSV; charset=UTF-8; header=present"), ("content-digest", &digest(&body))];
        let answer = app.send("POST", "/v1/uploads", &headers, &body);
        assert_eq!(answer.status, 201, "{}", answer.text());
        let upload = answer.json();
        let id = upload["id"].as_str().unwrap();
        assert_eq!(answer.header("location"), Some(format!("/v1/uploads/{id}").as_str()));
        assert_eq!((&upload["state"], &upload["bytes"]), (&json!("ready"), &json!(length)));
        assert_eq!((&upload["sha256"], &upload["used_by"]), (&json!(hex(&body)), &json!([])));
        assert_eq!((&upload["content_type"], &upload["content_encoding"]), (&json!("text/csv"), &json!("identity")));
        assert!(upload["created_at"].is_string() && upload["expires_at"].as_str() > upload["created_at"].as_str());
        assert!(stored(&app, id) == body, "{length} bytes came otherwise");
        assert_eq!(app.get(&format!("/v1/uploads/{id}")).json(), upload);
        assert!(app.queue.count("SELECT coalesce(max(length(data)), 0) FROM upload_parts") <= MIB as i64);
    }
    // The newest first, page by page.
    let page = app.get("/v1/uploads?limit=4").json();
    assert_eq!(page["uploads"].as_array().unwrap().len(), 4);
    assert_eq!(page["uploads"][0]["bytes"], 5 * MIB + 77);
    let next = app.get(&format!("/v1/uploads?limit=4&cursor={}", page["next_cursor"].as_str().unwrap())).json();
    assert_eq!((next["uploads"].as_array().unwrap().len(), &next["next_cursor"]), (2, &Value::Null));
    assert_eq!(app.get("/v1/uploads?state=ready").problem().1, "invalid_parameter");
    // Deleted once, and once more.
    for upload in page["uploads"].as_array().unwrap().iter().chain(next["uploads"].as_array().unwrap()) {
        let path = format!("/v1/uploads/{}", upload["id"].as_str().unwrap());
        assert_eq!(app.send("DELETE", &path, &[], b"").status, 204);
        assert_eq!(app.send("DELETE", &path, &[], b"").status, 204);
        assert_eq!(app.get(&path).problem(), (404, "upload_not_found".to_owned(), vec!["id".to_owned()]));
    }
    nothing_is_left(&app);
    assert_eq!(app.get("/v1/uploads/x").problem().1, "invalid_id");
}

#[test]
fn a_body_without_a_length_is_taken_too() {
    let app = TestApp::start();
    let body = bytes(3 * MIB + 5);
    let mut stream = begin(&app, "transfer-encoding: chunked", b"");
    for chunk in body.chunks(100_003) {
        stream.write_all(format!("{:x}\r\n", chunk.len()).as_bytes()).unwrap();
        stream.write_all(chunk).unwrap();
        stream.write_all(b"\r\n").unwrap();
    }
    stream.write_all(b"0\r\n\r\n").unwrap();
    let answer = rest(stream);
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    let id = app.queue.text("SELECT id FROM uploads");
    assert!(answer.contains(&id) && stored(&app, &id) == body);
}

#[test]
fn what_is_not_taken_is_said_before_it_is_sent() {
    let app = TestApp::start();
    let refused = |headers: &[(&str, &str)]| app.send("POST", "/v1/uploads", headers, b"a\n1\n");
    for content_type in ["application/json", "text/plain", "", "text/csv; charset=latin1"] {
        let answer = refused(&[("content-type", content_type)]);
        assert_eq!(answer.problem(), (415, "unsupported_media_type".to_owned(), vec!["Content-Type".to_owned()]));
        assert_eq!(answer.header("accept-post"), Some("text/csv, application/x-ndjson"));
    }
    for content_type in ["text/csv; charset=utf-16", "application/jsonl; charset=\"windows-1252\""] {
        let answer = refused(&[("content-type", content_type)]);
        assert!(answer.text().contains("charset=utf-8") && answer.text().contains("iconv"), "{}", answer.text());
    }
    let answer = refused(&[("content-type", "text/csv; header=maybe")]);
    assert_eq!(answer.problem().0, 415);
    assert!(answer.text().contains("header=present or header=absent"), "{}", answer.text());
    let answer = refused(&[("content-type", "text/csv"), ("content-encoding", "br")]);
    assert_eq!(answer.problem(), (415, "unsupported_media_type".to_owned(), vec!["Content-Encoding".to_owned()]));
    assert!(
        answer.text().contains("coded as br,") && answer.text().contains("identity, gzip, zstd"),
        "{}",
        answer.text()
    );
    assert_eq!(answer.header("accept-encoding"), Some("identity, gzip, zstd"));
    assert_eq!(refused(&[("content-type", "text/csv"), ("content-encoding", "gzip, zstd")]).status, 415);
    for digest in ["sha-256=x", "sha-256=:AAAA:", "sha-512=:AAAA:", "nonsense"] {
        let answer = refused(&[("content-type", "text/csv"), ("content-digest", digest)]);
        assert_eq!(answer.problem(), (400, "invalid_header".to_owned(), vec!["Content-Digest".to_owned()]), "{digest}");
    }
    let ndjson = refused(&[("content-type", "application/ndjson"), ("content-encoding", "X-GZIP")]).json();
    assert_eq!(
        (&ndjson["content_type"], &ndjson["content_encoding"]),
        (&json!("application/x-ndjson"), &json!("gzip"))
    );
    // The rules for every request hold here too.
    for (name, value, status) in [("host", "evil.example", 421), ("origin", "http://evil.example", 403)] {
        let answer = refused(&[("content-type", "text/csv"), (name, value)]);
        assert_eq!(answer.problem().0, status);
    }
    assert_eq!(app.queue.count("SELECT count(*) FROM uploads"), 1);
}

#[test]
fn every_name_of_a_media_type_is_taken() {
    let app = TestApp::start();
    for (given, kept) in [
        ("application/jsonl", "application/x-ndjson"),
        ("application/x-jsonlines; charset=utf-8", "application/x-ndjson"),
        ("Application/NDJSON", "application/x-ndjson"),
        ("application/csv;charset=\"UTF-8\"", "text/csv"),
        ("text/csv; header=present", "text/csv"),
        ("text/csv; charset=utf-8; Header=Absent", "text/csv; header=absent"),
    ] {
        let upload = app.send("POST", "/v1/uploads", &[("content-type", given)], b"1\n").json();
        assert_eq!(upload["content_type"], kept, "{given}: {upload}");
        let path = format!("/v1/uploads/{}", upload["id"].as_str().unwrap());
        assert_eq!(app.get(&path).json()["content_type"], kept);
    }
}

#[test]
fn another_body_than_the_digests_leaves_nothing() {
    let app = TestApp::start();
    let body = bytes(2 * MIB + 9);
    let headers = [("content-type", "text/csv"), ("content-digest", &digest(b"another"))];
    let answer = app.send("POST", "/v1/uploads", &headers, &body);
    assert_eq!(answer.problem(), (422, "digest_mismatch".to_owned(), vec!["Content-Digest".to_owned()]));
    nothing_is_left(&app);
    let several = format!("sha-512=:AAAA:, {}", digest(&body));
    let answer = app.send("POST", "/v1/uploads", &[("content-type", "text/csv"), ("content-digest", &several)], &body);
    assert_eq!(answer.status, 201, "{}", answer.text());
}

#[test]
fn a_body_that_breaks_off_leaves_nothing() {
    let app = TestApp::start();
    let parts = || app.queue.count("SELECT count(*) FROM upload_parts");
    for headers in [&format!("content-length: {}", 10 * MIB), "transfer-encoding: chunked"] {
        let chunked = headers.starts_with("transfer");
        let mut stream = begin(&app, headers, b"");
        if chunked {
            stream.write_all(format!("{:x}\r\n", 10 * MIB).as_bytes()).unwrap();
        }
        stream.write_all(&bytes(3 * MIB + 7)).unwrap();
        eventually("the first parts are stored", || parts() >= 2);
        // What is being received can't be seen, and not be deleted.
        let id = app.queue.text("SELECT id FROM uploads");
        assert_eq!(app.get(&format!("/v1/uploads/{id}")).problem().0, 404);
        assert_eq!(app.send("DELETE", &format!("/v1/uploads/{id}"), &[], b"").status, 204);
        assert_eq!(app.get("/v1/uploads").json()["uploads"], json!([]));
        assert!(parts() >= 2);
        drop(stream);
        nothing_is_left(&app);
    }
}

#[test]
fn what_a_dead_server_left_goes_when_its_time_has_passed() {
    let app = TestApp::start();
    let stream = begin(&app, &format!("content-length: {}", 30 * MIB), &bytes(20 * MIB));
    eventually("parts are stored", || app.queue.count("SELECT count(*) FROM upload_parts") >= 19);
    // The time of whoever lives is moved on with each part.
    assert_eq!(app.queue.count("SELECT count(*) FROM uploads WHERE expires_at > now() + interval '1 minute'"), 1);
    app.queue.run("UPDATE uploads SET expires_at = now()");
    let mut janitor = app.queue.service();
    slowlane::uploads::store::sweep(&mut janitor, chrono::Utc::now(), PATIENCE).unwrap();
    nothing_is_left(&app);
    // Whoever still sends is told that it was for nothing.
    let mut stream = stream;
    stream.write_all(&bytes(10 * MIB)).unwrap();
    let answer = rest(stream);
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("lost a part"), "{answer}");
    nothing_is_left(&app);
}

#[test]
fn what_a_killed_server_was_receiving_is_never_seen() {
    let postgres = Postgres::shared();
    let queue = postgres.queue();
    let (mut doomed, other) = (Server::api(&queue, &[]), Server::api(&queue, &[]));
    let mut stream = TcpStream::connect(doomed.client.address).unwrap();
    stream.write_all(b"POST /v1/uploads HTTP/1.1\r\nhost: localhost\r\ncontent-type: text/csv\r\ncontent-length: 9000000\r\n\r\n").unwrap();
    stream.write_all(&bytes(3 * MIB)).unwrap();
    eventually("parts are stored", || queue.count("SELECT count(*) FROM upload_parts") >= 2);
    doomed.signal(Signal::SIGKILL);
    doomed.wait();
    let id = queue.text("SELECT id FROM uploads");
    assert_eq!(other.client.get(&format!("/v1/uploads/{id}")).problem().1, "upload_not_found");
    let args = json!({"upload": id, "table": "t", "format": "csv"});
    let refused = other.client.post("/v1/jobs", &json!({"kind": "import", "args": args}));
    assert_eq!(refused.problem().1, "unknown_upload");
    let mut janitor = queue.service();
    slowlane::uploads::store::sweep(&mut janitor, chrono::Utc::now(), PATIENCE).unwrap();
    assert!(queue.count("SELECT count(*) FROM upload_parts") >= 2, "its time has not passed");
    queue.run("UPDATE uploads SET expires_at = now()");
    slowlane::uploads::store::sweep(&mut janitor, chrono::Utc::now(), PATIENCE).unwrap();
    assert_eq!(queue.count("SELECT (SELECT count(*) FROM uploads) + (SELECT count(*) FROM upload_parts)"), 0);
}

#[test]
fn a_part_that_the_database_lost_is_noticed() {
    let app = TestApp::start();
    let body = bytes(3 * MIB);
    let mut stream = begin(&app, &format!("content-length: {}", body.len()), &body[..2 * MIB + 5]);
    eventually("parts are stored", || app.queue.count("SELECT count(*) FROM upload_parts") == 2);
    app.queue.run("DELETE FROM upload_parts WHERE n = 0");
    stream.write_all(&body[2 * MIB + 5..]).unwrap();
    let answer = rest(stream);
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("lost a part"), "{answer}");
    nothing_is_left(&app);
}

#[test]
fn what_is_too_large_is_refused_at_once_or_when_it_shows() {
    let app = TestApp::with(|config| config.upload_limit_bytes = 2 * MIB as i64 + 10);
    let status = |mut stream: TcpStream| {
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        String::from_utf8(answer.to_vec()).unwrap()
    };
    assert_eq!(status(begin(&app, &format!("content-length: {}", 2 * MIB + 11), b"")), "HTTP/1.1 413");
    let mut stream = begin(&app, "transfer-encoding: chunked", format!("{:x}\r\n", 9 * MIB).as_bytes());
    stream.write_all(&bytes(2 * MIB + 11)).unwrap();
    assert_eq!(status(stream), "HTTP/1.1 413");
    nothing_is_left(&app);
    assert_eq!(csv(&app, &bytes(2 * MIB + 10))["bytes"], 2 * MIB + 10);
}

#[test]
fn who_is_silent_or_slow_is_told_and_leaves_nothing() {
    let app = TestApp::with(|config| config.upload_idle_timeout = Duration::from_millis(300));
    let mut silent = begin(&app, &format!("content-length: {}", 9 * MIB), &bytes(2 * MIB));
    let mut answer = [0; 12];
    silent.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 408");
    nothing_is_left(&app);
    // A byte now and then is not enough.
    let slow = begin(&app, &format!("content-length: {}", 9 * MIB), b"a");
    let mut sender = slow.try_clone().unwrap();
    let sends = std::thread::spawn(move || {
        while sender.write_all(b"a").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let mut slow = slow;
    slow.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 408");
    slow.shutdown(std::net::Shutdown::Both).unwrap();
    sends.join().unwrap();
    nothing_is_left(&app);
}

#[test]
fn a_full_store_takes_no_more() {
    let limit = 4 * MIB;
    let app = TestApp::with(|config| config.result_store_bytes = limit as i64);
    let headers = [("content-type", "text/csv")];
    let refused = app.send("POST", "/v1/uploads", &headers, &bytes(limit + 1)).problem();
    assert_eq!((refused.0, refused.1.as_str()), (503, "result_store_full"));
    let upload = csv(&app, &bytes(MIB));
    app.queue.run(&format!("UPDATE uploads SET bytes = {limit}"));
    // What is stored is looked at every few seconds.
    eventually("it is full", || app.send("POST", "/v1/uploads", &headers, b"a").status == 503);
    let query = json!({"kind": "query", "args": {"sql": "SELECT 1"}});
    assert_eq!(app.post("/v1/jobs", &query).problem().1, "result_store_full");
    assert_eq!(app.send("DELETE", &format!("/v1/uploads/{}", upload["id"].as_str().unwrap()), &[], b"").status, 204);
    eventually("there is room", || app.send("POST", "/v1/uploads", &headers, b"a").status == 201);
}

#[test]
fn an_upload_stays_while_a_job_uses_it() {
    let app = TestApp::start();
    let upload = csv(&app, b"a\n1\n");
    let id = upload["id"].as_str().unwrap();
    let path = format!("/v1/uploads/{id}");
    let gate = Gate::new("an_upload_stays");
    let reads = |upload: &str| json!({"kind": "gated", "args": {"gate": "an_upload_stays", "upload": upload}});
    let job = app.submit(&reads(id));
    assert_eq!(app.get(&path).json()["used_by"], json!([job]));
    let refused = app.send("DELETE", &path, &[], b"");
    assert_eq!(refused.problem(), (409, "upload_in_use".to_owned(), vec!["id".to_owned()]));
    assert!(refused.text().contains(&format!("/v1/jobs/{job}")));
    // Its time passes: it is kept for the job.
    let mut janitor = app.queue.service();
    let mut pass = || {
        app.queue.run("UPDATE uploads SET expires_at = now()");
        slowlane::uploads::store::sweep(&mut janitor, chrono::Utc::now(), PATIENCE).unwrap();
    };
    pass();
    assert!(app.get(&path).json()["expires_at"].as_str() > upload["created_at"].as_str());
    gate.arrived();
    gate.go(Step::Fail);
    assert_eq!(app.ended(&job)["state"], "failed");
    // The retry reads it again, and holds it again.
    let retry = app.post(&format!("/v1/jobs/{job}/retry"), &json!({})).json();
    let retry = retry["id"].as_str().unwrap();
    pass();
    assert_eq!(app.get(&path).json()["used_by"], json!([retry]));
    gate.arrived();
    gate.go(Step::Succeed);
    app.ended(retry);
    pass();
    assert_eq!(app.get(&path).problem().0, 404);
    nothing_is_left(&app);
    // A job isn't accepted for what isn't there, whatever its key.
    for key in [None, Some("one"), Some("one")] {
        let headers: Vec<(&str, &str)> = key.map(|key| ("idempotency-key", key)).into_iter().collect();
        let answer = app.post_with("/v1/jobs", &headers, &reads(id));
        assert_eq!(answer.problem(), (422, "unknown_upload".to_owned(), vec!["/args/upload".to_owned()]));
    }
    assert_eq!(app.queue.count("SELECT (SELECT count(*) FROM idempotency_keys) + (SELECT count(*) FROM jobs)"), 0);
    let missing = app.post(&format!("/v1/jobs/{job}/retry"), &json!({}));
    assert_eq!(missing.problem().1, "unknown_upload");
}

#[test]
fn whoever_deletes_and_whoever_accepts_take_turns() {
    let app = TestApp::start();
    let upload = csv(&app, b"a\n1\n");
    let id = upload["id"].as_str().unwrap();
    let _gate = Gate::new("take_turns");
    let job = json!({"kind": "gated", "args": {"gate": "take_turns", "upload": id}, "run_at": "2999-01-01T00:00:00Z"});
    // Somebody deletes it, and hasn't committed yet: the job waits for that, and is refused.
    let mut deleter = app.queue.session();
    deleter.execute_batch(&format!("BEGIN; UPDATE uploads SET state = 'deleted' WHERE id = '{id}'")).unwrap();
    let client = app.client.clone();
    let asked = std::thread::spawn(move || client.post("/v1/jobs", &job).problem());
    let waits =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'slowlane writer' AND wait_event_type = 'Lock'
                    AND datname = current_database()";
    eventually("it waits", || app.queue.count(waits) == 1);
    deleter.execute_batch("COMMIT").unwrap();
    assert_eq!(asked.join().unwrap().1, "unknown_upload");
}
