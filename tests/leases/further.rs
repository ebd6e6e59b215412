//! What counts as progress between two deaths of a job's workers, and what doesn't.

use serde_json::json;
use slowlane::db::fate::{ServerLife, TransactionMark};
use slowlane::queue::RawJson;
use slowlane::queue::lifecycle::checkpoint::{self, Checkpoint, Effect, Says};
use slowlane::queue::model::JobStatistics;

use super::{insert, lose};
use crate::support::postgres::Postgres;

#[test]
fn work_that_gets_further_between_deaths_is_never_poison() {
    let queue = Postgres::shared().queue();
    let mut connection = queue.service();
    insert(&queue, 2);
    let checkpoint_at = |place: u32, rows: i64| Checkpoint {
        cursor: RawJson::of(&json!({"place": place})).unwrap(),
        statistics: JobStatistics { rows_affected: rows, ..JobStatistics::default() },
    };
    // A cursor that is kept.
    for place in 0..5 {
        lose(&mut connection, |connection, job| {
            assert!(checkpoint::save(connection, &job.lease, &checkpoint_at(place, 0), None, Says::Further).unwrap());
        });
    }
    // The same one again is no progress, whatever was counted.
    for rows in 1..=2 {
        assert_eq!(queue.count("SELECT count(*) FROM finished_jobs"), 0);
        lose(&mut connection, |connection, job| {
            assert!(checkpoint::save(connection, &job.lease, &checkpoint_at(4, rows), None, Says::Further).unwrap());
        });
    }
    assert_eq!(queue.text("SELECT error->>'code' || ' ' || interruptions FROM finished_jobs"), "poison 7");
    // A batch that was recorded is progress once it is known to be committed.
    let server = ServerLife { system: "s".into(), timeline: "1".into() };
    let mark = |xid: u32| TransactionMark { xid: xid.to_string(), server: server.clone() };
    for n in 0..5 {
        lose(&mut connection, |connection, job| {
            let batch = |place| Effect::Batch(checkpoint_at(place, 0));
            let first = (2 * n + 100).to_string();
            assert!(checkpoint::record(connection, &job.lease, 1, &mark(2 * n + 100), &batch(n), None).unwrap());
            if n % 2 == 0 {
                checkpoint::advance(connection, job.lease.job_id, job.lease.number, &first).unwrap();
            } else {
                let second = mark(2 * n + 101);
                assert!(checkpoint::record(connection, &job.lease, 2, &second, &batch(n), Some(&first)).unwrap());
                let recorded = checkpoint::recorded(connection, job.lease.job_id).unwrap().unwrap();
                checkpoint::forget(connection, job.lease.job_id, &recorded).unwrap();
            }
        });
    }
    assert_eq!(queue.text("SELECT state || ' ' || interruptions || ' ' || lost_in_a_row FROM jobs"), "queued 5 1");
    // One that was rolled back is none.
    for n in 200..202 {
        lose(&mut connection, |connection, job| {
            let effect = Effect::Batch(checkpoint_at(n, 0));
            assert!(checkpoint::record(connection, &job.lease, 1, &mark(n), &effect, None).unwrap());
            let recorded = checkpoint::recorded(connection, job.lease.job_id).unwrap().unwrap();
            checkpoint::forget(connection, job.lease.job_id, &recorded).unwrap();
        });
    }
    assert_eq!(
        queue.text("SELECT string_agg(error->>'code' || ' ' || interruptions, ', ' ORDER BY id) FROM finished_jobs"),
        "poison 7, poison 7"
    );
}

/// The ends of the jobs that ended, in the order of their ids.
const ENDS: &str = "SELECT string_agg(error->>'code' || ' ' || interruptions, ', ' ORDER BY id) FROM finished_jobs";

fn cursor(place: &str) -> Checkpoint {
    let cursor = RawJson::of(&json!({"place": place})).unwrap();
    Checkpoint { cursor, statistics: JobStatistics::default() }
}

#[test]
fn a_checkpoint_that_was_taken_back_is_no_progress() {
    let queue = Postgres::shared().queue();
    let mut connection = queue.service();
    let mut loses = |places: &[(&str, Says)]| {
        lose(&mut connection, |connection, job| {
            for (place, says) in places {
                assert!(checkpoint::save(connection, &job.lease, &cursor(place), None, *says).unwrap());
            }
        });
    };
    let ahead_and_back = [("ahead", Says::Further), ("start", Says::Further)];
    // Within an attempt.
    insert(&queue, 1);
    loses(&[("start", Says::Further)]);
    (0..2).for_each(|_| loses(&ahead_and_back));
    assert_eq!(queue.text(ENDS), "poison 3");
    // By the next one: the way there was progress, once.
    insert(&queue, 1);
    loses(&ahead_and_back[1..]);
    loses(&ahead_and_back[..1]);
    assert_eq!(queue.count("SELECT lost_in_a_row FROM jobs"), 1);
    loses(&ahead_and_back[1..]);
    assert_eq!(queue.count("SELECT lost_in_a_row FROM jobs"), 2);
    loses(&ahead_and_back[..1]);
    assert_eq!(queue.text(ENDS), "poison 3, poison 4");
    // Nor is what may be left on a target, and going on behind it from where the work was.
    insert(&queue, 1);
    loses(&ahead_and_back[1..]);
    (0..2).for_each(|_| loses(&[("made", Says::MayLeave), ("start", Says::Further)]));
    assert_eq!(queue.text(ENDS), "poison 3, poison 4, poison 3");
    insert(&queue, 1);
    (0..3).for_each(|_| loses(&[("made", Says::MayLeave)]));
    assert_eq!(queue.text(ENDS), "poison 3, poison 4, poison 3, poison 3");
    // What is new is progress, wherever it was before.
    insert(&queue, 1);
    for place in ["start", "ahead", "start", "further"] {
        loses(&[(place, Says::Further)]);
    }
    assert_eq!(queue.text("SELECT interruptions || ' ' || lost_in_a_row FROM jobs"), "4 1");
}

#[test]
fn a_committed_batch_is_progress_whatever_its_cursor() {
    let queue = Postgres::shared().queue();
    let mut connection = queue.service();
    insert(&queue, 1);
    let server = ServerLife { system: "s".into(), timeline: "1".into() };
    for n in 100..105 {
        lose(&mut connection, |connection, job| {
            let mark = TransactionMark { xid: n.to_string(), server: server.clone() };
            let again = Effect::Batch(cursor("always the same"));
            assert!(checkpoint::record(connection, &job.lease, 1, &mark, &again, None).unwrap());
            // It is known by the checkpoint behind it, or is noted by itself.
            if n % 2 == 0 {
                checkpoint::advance(connection, job.lease.job_id, job.lease.number, &mark.xid).unwrap();
            } else {
                let at = cursor("always the same");
                let saved = checkpoint::save(connection, &job.lease, &at, Some(&mark.xid), Says::Further);
                assert!(saved.unwrap());
            }
        });
    }
    assert_eq!(queue.text("SELECT interruptions || ' ' || lost_in_a_row FROM jobs"), "5 1");
}
