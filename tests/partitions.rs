//! Days of history: made when they are missing, dropped when they are over, never in anybody's way.

use chrono::{NaiveDate, TimeDelta, Utc};
use serde_json::json;
use slowlane::queue::record::partitions;

use crate::support::app::TestApp;
use crate::support::postgres::{Database, Postgres};

fn days(queue: &Database) -> String {
    queue.text("SELECT string_agg(right(relname, 8), ' ' ORDER BY relname) FROM pg_class WHERE relname ~ '^finished_jobs_[0-9]{8}$'")
}

/// Makes the day 40 days ago, with one finished job in it.
fn old_day(queue: &Database) -> String {
    let day = (Utc::now() - TimeDelta::days(40)).date_naive();
    partitions::ensure_day(&mut queue.service(), day).unwrap();
    queue.run(&format!(
        "INSERT INTO finished_jobs (id, kind, queue, target, priority, state, args, labels, created_at, run_at, timeout_ms, max_attempts, attempt, interruptions, lease, version, finished_at, result_ttl_ms)
         SELECT (left(first_id_of('{day}')::text, 23) || '-000000000001')::uuid, 'query', 'default', 'default', 5, 'succeeded', '{{}}', '{{}}', '{day}', '{day}', 1, 1, 1, 0, 1, 1, '{day}', 1"
    ));
    day.format("%Y%m%d").to_string()
}

fn from_yesterday_to_a_week_ahead(today: NaiveDate) -> Vec<String> {
    (-1..=7).map(|n| (today + TimeDelta::days(n)).format("%Y%m%d").to_string()).collect()
}

#[test]
fn days_are_kept_from_yesterday_to_a_week_ahead() {
    let queue = Postgres::shared().queue();
    let listed = days(&queue);
    // The schema was made when the tests began: that may have been before midnight.
    let yesterday = NaiveDate::parse_from_str(listed.split(' ').next().unwrap(), "%Y%m%d").unwrap();
    let made = yesterday + TimeDelta::days(1);
    let today = Utc::now().date_naive();
    assert!(made == today || made + TimeDelta::days(1) == today, "{listed}");
    assert_eq!(listed, from_yesterday_to_a_week_ahead(made).join(" "));
    partitions::ensure(&mut queue.service()).unwrap();
    let kept = days(&queue);
    for day in from_yesterday_to_a_week_ahead(today) {
        assert!(kept.contains(&day), "{day} in {kept}");
    }
}

#[test]
fn an_end_on_a_missing_day_makes_the_day() {
    let app = TestApp::start();
    let today = Utc::now().format("%Y%m%d").to_string();
    for table in partitions::TABLES {
        app.queue.run(&format!("DROP TABLE {table}_{today}"));
    }
    let job = app.query("SELECT 1", &json!([]));
    assert_eq!((&job["state"], &job["result"]["rows"]), (&json!("succeeded"), &json!(1)));
    assert!(days(&app.queue).contains(&today));
    // The same for a job that is cancelled while it waits.
    let id = app.submit(&json!({"kind": "query", "args": {"sql": "SELECT 1"}, "run_at": "2999-01-01T00:00:00Z"}));
    for table in partitions::TABLES {
        app.queue.run(&format!("DROP TABLE {table}_{today}"));
    }
    assert_eq!(app.post(&format!("/v1/jobs/{id}/cancel"), &json!({})).status, 202);
    assert_eq!(app.job(&id)["state"], "cancelled");
}

#[test]
fn a_day_goes_when_nobody_reads_it_and_holds_nobody_up_until_then() {
    // Its own janitor keeps everything: this test drops days itself.
    let app = TestApp::with(|config| config.retention = std::time::Duration::from_secs(1_000 * 86_400));
    let old = old_day(&app.queue);
    let keep_from = Utc::now() - TimeDelta::days(30);
    let mut reader = app.queue.session();
    reader.execute_batch("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM finished_jobs").unwrap();
    let mut service = app.queue.service();
    std::thread::scope(|scope| {
        let retiring = scope.spawn(|| {
            for _ in 0..5 {
                assert_eq!(partitions::retire(&mut service, keep_from).unwrap(), 0);
            }
        });
        // Ends and reads go on while somebody tries to drop a day under a held snapshot.
        for _ in 0..10 {
            let job = app.query("SELECT 1", &json!([]));
            assert_eq!(job["state"], "succeeded");
            assert_eq!(app.get("/v1/jobs?limit=5").status, 200);
        }
        retiring.join().unwrap();
    });
    assert!(days(&app.queue).contains(&old));
    reader.execute_batch("COMMIT").unwrap();
    let mut service = app.queue.service();
    assert_eq!(partitions::retire(&mut service, keep_from).unwrap(), 1);
    assert!(!days(&app.queue).contains(&old));
    assert_eq!(app.queue.count("SELECT count(*) FROM finished_jobs"), 10);
    assert_eq!(partitions::retire(&mut service, keep_from).unwrap(), 0);
}

#[test]
fn a_day_is_kept_while_one_of_its_jobs_has_yet_to_end() {
    let queue = Postgres::shared().queue();
    let old = old_day(&queue);
    queue.run("INSERT INTO jobs (id, kind, queue, target, priority, state, args, labels, created_at, run_at, timeout_ms, max_attempts, result_ttl_ms)
               SELECT (left(id::text, 23) || '-000000000002')::uuid, kind, queue, target, priority, 'scheduled', args, labels, created_at, now(), 1, 1, 1 FROM finished_jobs");
    let keep_from = Utc::now() - TimeDelta::days(30);
    assert_eq!(partitions::retire(&mut queue.service(), keep_from).unwrap(), 0);
    queue.run("DELETE FROM jobs");
    assert_eq!(partitions::retire(&mut queue.service(), keep_from).unwrap(), 1);
    assert!(!days(&queue).contains(&old));
}

#[test]
fn a_day_with_a_late_end_is_kept() {
    let queue = Postgres::shared().queue();
    let old = old_day(&queue);
    queue.run("UPDATE finished_jobs SET finished_at = now()");
    assert_eq!(partitions::retire(&mut queue.service(), Utc::now() - TimeDelta::days(30)).unwrap(), 0);
    assert!(days(&queue).contains(&old));
}
