//! The routes of jobs, as the contract has them.

use serde_json::{Value, json};

use crate::support::app::TestApp;
use crate::support::kinds::{Gate, Step};

const FIELDS: [&str; 35] = [
    "id",
    "kind",
    "state",
    "version",
    "attempt",
    "max_attempts",
    "interruptions",
    "target",
    "queue",
    "priority",
    "labels",
    "args",
    "created_at",
    "run_at",
    "started_at",
    "finished_at",
    "deadline_at",
    "timeout_ms",
    "result_ttl_ms",
    "time_zone",
    "lock_timeout_ms",
    "queue_position",
    "timings",
    "progress",
    "statistics",
    "result",
    "backend",
    "cancel_requested_at",
    "error",
    "retry_of",
    "output",
    "links",
    "id",
    "kind",
    "state",
];

fn gated(gate: &str) -> Value {
    json!({"kind": "gated", "args": {"gate": gate}})
}

#[test]
fn a_job_goes_in_and_its_result_comes_out() {
    let app = TestApp::start();
    app.target.run(
        "CREATE TABLE t AS SELECT g AS id, 'n' || g AS name FROM generate_series(1, 3) g; GRANT SELECT ON t TO PUBLIC",
    );
    let job = json!({"kind": "query", "args": {"sql": "SELECT id, name FROM public.t ORDER BY id"}, "labels": {"team": "x"},
                     "priority": 2, "timeout_ms": 60000, "max_attempts": 1, "result_ttl_ms": 5000});
    let answer = app.post("/v1/jobs", &job);
    assert_eq!(answer.status, 202);
    assert!(answer.header("retry-after").unwrap().parse::<u32>().is_ok());
    let accepted = answer.json();
    let path = format!("/v1/jobs/{}", accepted["id"].as_str().unwrap());
    assert_eq!(answer.header("location"), Some(path.as_str()));
    for field in FIELDS {
        assert!(accepted.get(field).is_some(), "{field} is missing");
    }
    let done = app.ended(accepted["id"].as_str().unwrap());
    assert_eq!(done["state"], "succeeded", "{done}");
    for field in
        ["args", "labels", "priority", "timeout_ms", "max_attempts", "created_at", "target", "queue", "id", "kind"]
    {
        assert_eq!(done[field], accepted[field], "{field}");
    }
    assert_eq!(done["attempt"], 1);
    assert_eq!(done["statistics"]["rows_returned"], 3);
    assert_eq!(done["result"]["state"], "available");
    assert_eq!(done["result"]["rows"], 3);
    assert!(done["timings"]["running_ms"].as_i64().unwrap() >= 0);
    let manifest = app.get(&format!("{path}/result")).json();
    assert_eq!(manifest["columns"][0], json!({"name": "id", "type": "integer", "type_oid": 23}));
    let data = app.get(&format!("{path}/result/data"));
    assert_eq!(data.text(), "id,name\n1,n1\n2,n2\n3,n3\n");
    assert_eq!(data.header("content-length"), Some("23"));
    assert_eq!(app.send("DELETE", &format!("{path}/result"), &[], b"").status, 204);
    assert_eq!(app.send("DELETE", &format!("{path}/result"), &[], b"").status, 204);
    assert_eq!(app.get(&format!("{path}/result/data")).problem().1, "result_deleted");
    assert_eq!(app.job(accepted["id"].as_str().unwrap())["result"]["state"], "deleted");
}

#[test]
fn a_post_may_wait_for_the_end() {
    let app = TestApp::start();
    let quick =
        app.post_with("/v1/jobs", &[("prefer", "wait=20")], &json!({"kind": "query", "args": {"sql": "SELECT 1"}}));
    assert_eq!((quick.status, quick.header("preference-applied")), (200, Some("wait=20")));
    assert_eq!(quick.json()["state"], "succeeded");
    let gate = Gate::new("post_waits");
    let slow = app.post_with("/v1/jobs", &[("prefer", "wait=1")], &gated("post_waits"));
    assert_eq!(slow.status, 202);
    gate.arrived();
    gate.go(Step::Succeed);
    let done = app.ended(slow.json()["id"].as_str().unwrap());
    assert_eq!((&done["state"], &done["output"]), (&json!("succeeded"), &json!(1)));
}

#[test]
fn a_get_tells_changes_by_its_tag_and_waits_for_them() {
    let app = TestApp::start();
    let gate = Gate::new("get_waits");
    let id = app.submit(&gated("get_waits"));
    gate.arrived();
    let path = format!("/v1/jobs/{id}");
    let running = app.get(&path);
    assert_eq!(running.json()["state"], "running");
    assert!(running.header("retry-after").is_some());
    let tag = running.header("etag").unwrap().to_owned();
    assert_eq!(app.get_with(&path, &[("if-none-match", &tag)]).status, 304);
    // Held until the job ends, which it only does while somebody waits.
    let (client, waiting, held) = (app.client.clone(), path.clone(), tag.clone());
    let waiter =
        std::thread::spawn(move || client.get_with(&waiting, &[("if-none-match", &held), ("prefer", "wait=30")]));
    gate.go(Step::Succeed);
    let ended = waiter.join().unwrap();
    assert_eq!((ended.status, ended.header("preference-applied")), (200, Some("wait=30")));
    assert_eq!(ended.json()["state"], "succeeded");
    assert_ne!(ended.header("etag"), Some(tag.as_str()));
    assert_eq!(ended.header("retry-after"), None);
}

#[test]
fn the_same_key_makes_one_job() {
    let app = TestApp::start();
    let body = json!({"kind": "query", "args": {"sql": "SELECT 1"}});
    let first = app.post_with("/v1/jobs", &[("idempotency-key", "\"k-1\"")], &body);
    let again = app.post_with("/v1/jobs", &[("idempotency-key", "k-1")], &body);
    assert_eq!((first.status, again.status), (202, 202));
    assert_eq!(first.header("idempotency-replayed"), None);
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!(first.json()["id"], again.json()["id"]);
    let other = json!({"kind": "query", "args": {"sql": "SELECT 2"}});
    let (status, code, _) = app.post_with("/v1/jobs", &[("idempotency-key", "k-1")], &other).problem();
    assert_eq!((status, code.as_str()), (422, "idempotency_key_reused"));
    for key in ["", "\"\"", &"x".repeat(256)] {
        assert_eq!(app.post_with("/v1/jobs", &[("idempotency-key", key)], &body).status, 400, "{key}");
    }
    // Many at once still make one.
    let ids: Vec<Value> = std::thread::scope(|scope| {
        let posts: Vec<_> = (0..16)
            .map(|_| {
                scope.spawn(|| app.post_with("/v1/jobs", &[("idempotency-key", "k-2")], &body).json()["id"].clone())
            })
            .collect();
        posts.into_iter().map(|post| post.join().unwrap()).collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

#[test]
fn a_key_is_forgotten_after_a_day() {
    let app = TestApp::start();
    let body = json!({"kind": "query", "args": {"sql": "SELECT 1"}});
    let post = || app.post_with("/v1/jobs", &[("idempotency-key", "daily")], &body).json()["id"].clone();
    let first = post();
    app.queue.run("UPDATE idempotency_keys SET created_at = now() - interval '23 hours'");
    slowlane::queue::intake::insert::forget_old_keys(&mut app.queue.service(), chrono::Utc::now()).unwrap();
    assert_eq!(post(), first);
    app.queue.run("UPDATE idempotency_keys SET created_at = now() - interval '25 hours'");
    slowlane::queue::intake::insert::forget_old_keys(&mut app.queue.service(), chrono::Utc::now()).unwrap();
    assert_ne!(post(), first);
}

/// Waits in one process for a job that another one runs.
fn waits_across_processes(notify: bool) {
    let waits = TestApp::with(|config| {
        config.workers = 1;
        config.notify = notify;
    });
    let (busy, gate) = (format!("busy_{notify}"), format!("elsewhere_{notify}"));
    let (holder, decides) = (Gate::new(&busy), Gate::new(&gate));
    waits.submit(&gated(&busy));
    holder.arrived();
    let other = TestApp::on(waits.queue.clone(), waits.target.clone(), |config| config.notify = notify);
    let client = waits.client.clone();
    let job = gated(&gate);
    let post = std::thread::spawn(move || client.post_with("/v1/jobs", &[("prefer", "wait=30")], &job));
    decides.arrived();
    decides.go(Step::Succeed);
    let answer = post.join().unwrap();
    assert_eq!((answer.status, &answer.json()["state"]), (200, &json!("succeeded")), "{}", answer.text());
    drop(other);
    holder.go(Step::Succeed);
}

#[test]
fn a_waiter_hears_of_other_processes_by_notify() {
    waits_across_processes(true);
}

#[test]
fn a_waiter_hears_of_other_processes_without_notify() {
    waits_across_processes(false);
}

#[test]
fn lists_are_filtered_and_paged() {
    let app = TestApp::start();
    let mut ids = Vec::new();
    for n in 0..7 {
        let job = json!({"kind": "query", "args": {"sql": "SELECT 1"}, "labels": {"n": n.to_string(), "all": "yes"},
                         "run_at": if n == 0 { Value::from("2999-01-01T00:00:00Z") } else { Value::Null }});
        ids.push(app.submit(&job));
    }
    ids.iter().skip(1).for_each(|id| assert_eq!(app.ended(id)["state"], "succeeded"));
    ids.reverse();
    let of = |answer: &Value| -> Vec<String> {
        answer["jobs"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect()
    };
    let mut found = Vec::new();
    let mut path = "/v1/jobs?label.all=yes&limit=3".to_owned();
    for page in 0..3 {
        let answer = app.get(&path);
        let body = answer.json();
        found.extend(of(&body));
        match body["next_cursor"].as_str() {
            Some(cursor) => {
                assert!(page < 2);
                assert!(answer.header("link").unwrap().ends_with("rel=\"next\""));
                path = format!("/v1/jobs?label.all=yes&limit=3&cursor={cursor}");
            }
            None => assert_eq!((page, answer.header("link")), (2, None)),
        }
    }
    assert_eq!(found, ids);
    assert_eq!(of(&app.get("/v1/jobs?state=scheduled").json()), [ids[6].clone()]);
    assert_eq!(of(&app.get("/v1/jobs?state=succeeded&label.n=3").json()), [ids[3].clone()]);
    assert_eq!(of(&app.get("/v1/jobs?kind=gated").json()).len(), 0);
    assert_eq!(of(&app.get("/v1/jobs?queue=default&target=default").json()).len(), 7);
    assert_eq!(of(&app.get("/v1/jobs?created_before=2001-01-01T00:00:00Z").json()).len(), 0);
    assert_eq!(of(&app.get("/v1/jobs?created_after=2001-01-01T00:00:00%2B00:00").json()).len(), 7);
}

#[test]
fn probes_and_metrics_answer() {
    let app = TestApp::start();
    assert_eq!(app.get("/healthz").json(), json!({"status": "ok"}));
    assert_eq!(app.get("/readyz").json()["status"], "ready");
    let head = app.send("HEAD", "/healthz", &[], b"");
    assert_eq!((head.status, head.body.len(), head.header("content-length")), (200, 0, Some("15")));
    app.query("SELECT 1", &json!([]));
    app.query("SELECT 1/0", &json!([]));
    let metrics = app.get("/metrics");
    assert!(metrics.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    let text = metrics.text();
    for line in [
        "slowlane_jobs_accepted_total{kind=\"query\"} 2",
        "slowlane_attempts_finished_total{kind=\"query\",outcome=\"succeeded\"} 1",
        "slowlane_attempts_finished_total{kind=\"query\",outcome=\"failed\"} 1",
        "slowlane_pool_size{pool=\"api\"} 4",
        "slowlane_pool_size{pool=\"default libpq\"} 4",
        "slowlane_pool_checkouts_total{pool=\"control\"}",
        "slowlane_queue_depth",
        "slowlane_queue_oldest_age_seconds",
    ] {
        assert!(text.contains(line), "{line} is missing:\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn retries_panics_and_snoozes_have_their_consequences() {
    let app = TestApp::start();
    let gate = Gate::new("outcomes");
    let due = |id: &str| app.queue.run(&format!("UPDATE jobs SET run_at = now() WHERE id = '{id}'"));
    let waits = |id: &str| crate::support::eventually("it waits", || app.job(id)["state"] == "scheduled");
    let id = app.submit(&gated("outcomes"));
    assert_eq!(gate.arrived(), 1);
    gate.go(Step::Retry);
    waits(&id);
    let job = app.job(&id);
    assert_eq!((&job["attempt"], &job["error"]["code"]), (&json!(1), &json!("again")));
    due(&id);
    assert_eq!(gate.arrived(), 2);
    // A panic fails the attempt and nothing else: the same thread pool goes on.
    gate.go(Step::Panic);
    waits(&id);
    due(&id);
    assert_eq!(gate.arrived(), 3);
    gate.go(Step::Snooze);
    waits(&id);
    due(&id);
    // Snoozing was not charged.
    assert_eq!(gate.arrived(), 3);
    gate.go(Step::Retry);
    let job = app.ended(&id);
    assert_eq!((&job["state"], &job["error"]["code"], &job["attempt"]), (&json!("failed"), &json!("again"), &json!(3)));
    let outcomes = format!("SELECT string_agg(outcome, ' ' ORDER BY lease) FROM all_attempts WHERE job_id = '{id}'");
    assert_eq!(app.queue.text(&outcomes), "retried retried snoozed failed");
    let id = app.submit(&gated("outcomes"));
    gate.arrived();
    gate.go(Step::Fail);
    let job = app.ended(&id);
    assert_eq!(
        (&job["error"]["code"], &job["error"]["retryable"], &job["attempt"]),
        (&json!("no"), &json!(false), &json!(1))
    );
}

#[test]
fn the_guard_lets_nobody_else_in() {
    use slowlane::dsn::Secret;
    let app = TestApp::with(|config| {
        config.api_token = Some(Secret::new("right-token"));
        config.allowed_hosts = vec!["lane.example".to_owned()];
    });
    let auth = ("authorization", "Bearer right-token");
    for (headers, expected) in [
        (vec![], 401),
        (vec![("authorization", "Bearer wrong-token")], 401),
        (vec![("authorization", "Basic right-token")], 401),
        (vec![auth], 200),
        (vec![("authorization", "bearer right-token")], 200),
        (vec![auth, ("host", "lane.example")], 200),
        (vec![auth, ("host", "localhost:1")], 200),
        (vec![auth, ("host", "evil.example")], 421),
        (vec![auth, ("origin", "https://evil.example")], 403),
        (vec![auth, ("host", "lane.example"), ("origin", "https://lane.example")], 200),
        (vec![auth, ("origin", "null")], 403),
    ] {
        let answer = app.get_with("/v1/jobs", &headers);
        assert_eq!(answer.status, expected, "{headers:?}");
        if expected != 200 {
            answer.problem();
        }
    }
    assert_eq!(app.get("/v1/jobs").header("www-authenticate"), Some("Bearer realm=\"slowlane\""));
    assert_eq!(app.get("/metrics").status, 401);
    assert_eq!(app.get("/healthz").status, 200);
    assert_eq!(app.get("/readyz").status, 200);
    assert!(app.raw("GET /healthz HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 421"));
}
