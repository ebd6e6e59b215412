//! Reads what the queue keeps of jobs, and checks that it tells one story: every accepted job ended in exactly one way.

use super::postgres::Database;

/// What is wrong with jobs, as one statement for each rule: it returns a text for every job that breaks it. `$ids` is
/// replaced by the accepted ids.
const RULES: [(&str, &str); 7] = [
    (
        "an accepted job has exactly one record",
        "SELECT a.id || ' has ' || (SELECT count(*) FROM finished_jobs f WHERE f.id = a.id) || ' ends and '
                || (SELECT count(*) FROM jobs j WHERE j.id = a.id) || ' rows that wait or run'
           FROM unnest('$ids'::uuid[]) a(id)
          WHERE (SELECT count(*) FROM finished_jobs f WHERE f.id = a.id) <> 1
             OR EXISTS (SELECT FROM jobs j WHERE j.id = a.id)",
    ),
    (
        "nothing ended that nobody was told of",
        "SELECT f.id || ' ended as ' || f.state FROM finished_jobs f WHERE f.id <> ALL('$ids'::uuid[])",
    ),
    (
        "the last attempt ended as the job did",
        "SELECT f.id || ' ended as ' || f.state || ', its last attempt as ' || coalesce(l.outcome, 'nothing')
           FROM finished_jobs f LEFT JOIN LATERAL (
                SELECT * FROM all_attempts a WHERE a.job_id = f.id ORDER BY a.lease DESC LIMIT 1) l ON true
          WHERE f.id = ANY('$ids'::uuid[]) AND f.lease > 0
            AND (l.outcome IS DISTINCT FROM f.state OR l.lease IS DISTINCT FROM f.lease)",
    ),
    (
        "every lease has its attempt",
        "SELECT f.id || ' had ' || f.lease || ' leases and ' || count(a.lease) || ' attempts'
           FROM finished_jobs f LEFT JOIN all_attempts a ON a.job_id = f.id
          WHERE f.id = ANY('$ids'::uuid[]) GROUP BY f.id, f.lease HAVING count(a.lease) <> f.lease",
    ),
    (
        "attempts are charged as the job says",
        "SELECT f.id || ' was charged ' || f.attempt || ' attempts and interrupted ' || f.interruptions || ' times: '
                || string_agg(a.outcome, ' ' ORDER BY a.lease)
           FROM finished_jobs f JOIN all_attempts a ON a.job_id = f.id WHERE f.id = ANY('$ids'::uuid[])
          GROUP BY f.id, f.attempt, f.interruptions
         HAVING f.attempt <> count(*) FILTER (WHERE a.outcome NOT IN ('snoozed', 'interrupted', 'paused'))
             OR f.interruptions < count(*) FILTER (WHERE a.outcome = 'interrupted')",
    ),
    (
        "attempts of a job follow each other",
        "SELECT a.job_id || ' ran twice at a time' FROM all_attempts a JOIN all_attempts b
             ON b.job_id = a.job_id AND b.lease = a.lease + 1
          WHERE a.job_id = ANY('$ids'::uuid[]) AND b.started_at < a.finished_at",
    ),
    (
        "a result is there when the query succeeded, and only then",
        "SELECT f.id || ' ended as ' || f.state || ' with ' || count(r.job_id) || ' results'
           FROM finished_jobs f LEFT JOIN results r ON r.job_id = f.id AND r.lease = f.lease
          WHERE f.id = ANY('$ids'::uuid[]) AND f.kind = 'query' GROUP BY f.id, f.state
         HAVING count(r.job_id) <> (f.state = 'succeeded')::int",
    ),
];

/// Fails the test unless each of these jobs has ended in exactly one way, everything kept of it says the same, and no
/// other has ended. An answer that was lost has to be asked for again, by its Idempotency-Key, as [`super::load`] does.
#[track_caller]
pub fn check(queue: &Database, accepted: &[String]) {
    assert!(!accepted.is_empty(), "nothing was accepted");
    let ids = format!("{{{}}}", accepted.join(","));
    let mut session = queue.session();
    for (rule, sql) in RULES {
        let rows = session.query(&sql.replace("$ids", &ids), &[]).unwrap_or_else(|e| panic!("{rule}: {e}"));
        let broken: Vec<&str> = (0..rows.len()).filter_map(|row| rows.get(row, 0)).collect();
        assert!(broken.is_empty(), "{rule}, but: {}", broken.join("; "));
    }
}
