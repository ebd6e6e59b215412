//! The queue's database: schema, roles, tables, days of history, and whether anybody serves.

use crate::doctor::connect;
use crate::doctor::look::{Look, span};
use crate::doctor::report::{Finding, FindingCode, Report, Severity, Subject};
use crate::doctor::server::{self, Connections};
use crate::dsn::Dsn;
use crate::queue::fleet::workers::DEAD_AFTER;
use crate::queue::record::partitions;

mod access;
mod storage;

/// Days of history that should be ready beyond today: fewer are worth a word.
const DAYS_AHEAD: i64 = 3;
/// How long a transaction may wait for its fate to be found out, in seconds.
const IN_DOUBT: i64 = 600;
/// Groups of jobs and the like that are named.
const NAMED: usize = 5;

/// What the settings say of the queue.
#[derive(Clone, Copy, Debug)]
pub struct QueueSettings {
    /// Connections that one process may open.
    pub connections: Connections,
    /// The most bytes of results and uploads.
    pub store_bytes: i64,
}

/// Looks at the queue.
pub fn examine(dsn: &Dsn, settings: QueueSettings) -> Report {
    let mut report = Report::new(Subject::Queue, None);
    connect::explain(&mut report, dsn);
    if let Some(mut session) = connect::connect(&mut report, dsn, connect::NAME, &|| true) {
        let mut look = Look::new(&mut session, &mut report, &|| true);
        let has_schema = access::schema(&mut look);
        let processes = if has_schema { workers(&mut look) } else { 0 };
        server::look(&mut look, settings.connections, processes);
        server::setting(&mut look, "temp_file_limit");
        language(&mut look);
        if has_schema {
            access::role(&mut look);
            storage::tables(&mut look, settings.store_bytes);
            storage::indexes(&mut look);
            days(&mut look);
            jobs(&mut look);
        }
    }
    report.sort();
    report
}

fn language(look: &mut Look<'_>) {
    let sql = "SELECT current_setting('lc_messages'),
                      current_setting('lc_messages') ~* '^(c|posix|en)([._-]|$)' OR current_setting('lc_messages') = ''";
    let Some(answer) = look.ask("lc_messages", sql, &[]) else { return };
    look.fact("lc_messages", answer.text(0, 0));
    if !answer.is(0, 1) {
        let detail = format!(
            "the server writes its messages in {}: lost connections and timeouts are told by their words, and are taken for refusals",
            answer.text(0, 0)
        );
        let finding = Finding::new(FindingCode::LcMessages, Severity::Warning, detail, "set lc_messages to C");
        look.report.find(finding.sql("ALTER SYSTEM SET lc_messages = 'C'").sql("SELECT pg_reload_conf()"));
    }
}

fn days(look: &mut Look<'_>) {
    let tables = partitions::TABLES.map(|table| format!("'{table}'")).join(", ");
    let sql = format!(
        "WITH t AS (SELECT unnest(ARRAY[{tables}]) AS name),
         d AS (SELECT generate_series(0, 7) AS ahead),
         missing AS (
             SELECT d.ahead, t.name FROM d, t
              WHERE NOT EXISTS (SELECT FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                                 WHERE i.inhparent = to_regclass('slowlane.' || t.name) AND NOT i.inhdetachpending
                                   AND c.relname = t.name || '_' || to_char((clock_timestamp() AT TIME ZONE 'UTC')::date + d.ahead, 'YYYYMMDD')))
         SELECT coalesce(min(ahead), 8), string_agg(DISTINCT name, ', ') FROM missing"
    );
    let Some(answer) = look.ask("the days of history", &sql, &[]) else { return };
    let ahead = answer.number(0, 0).unwrap_or(0) - 1;
    look.fact("days_ahead", ahead);
    if ahead < DAYS_AHEAD {
        let severity = if ahead < 0 { Severity::Error } else { Severity::Warning };
        let detail = format!(
            "days of history are ready for {} beyond today (missing of: {}): an end that meets a missing day has to make it first",
            ahead.max(0),
            answer.text(0, 1)
        );
        let fix = "a process that runs jobs makes them every half minute, where its role may act as the owner; or run `slowlane migrate up`";
        look.find(FindingCode::PartitionsMissing, severity, detail, fix);
    }
    let sql = format!(
        "SELECT c.relname, i.inhdetachpending IS NOT NULL, left(c.relname, -9),
                slowlane.first_id_of(to_date(right(c.relname, 8), 'YYYYMMDD')), slowlane.first_id_of(to_date(right(c.relname, 8), 'YYYYMMDD') + 1)
           FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
          WHERE c.relnamespace = 'slowlane'::regnamespace AND c.relkind = 'r' AND left(c.relname, -9) IN ({tables})
            AND c.relname ~ '_[0-9]{{8}}$' AND i.inhdetachpending IS NOT FALSE ORDER BY 1 LIMIT 20"
    );
    let Some(answer) = look.ask("days that are on their way out", &sql, &[]) else { return };
    for row in (0..answer.len()).take(NAMED) {
        let (name, table) = (answer.text(row, 0), answer.text(row, 2));
        let detail = format!(
            "the day slowlane.{name} was taken out of {table} and is still there: what is in it isn't seen any more"
        );
        let fix = "past its retention, a process that runs jobs drops it; one of these days is taken back by it. To have it back by hand, as the owner:";
        let mut finding = Finding::new(FindingCode::PartitionsLeft, Severity::Info, detail, fix);
        if answer.is(row, 1) {
            finding = finding.sql(format!("ALTER TABLE slowlane.{table} DETACH PARTITION slowlane.{name} FINALIZE"));
        }
        look.report.find(finding.sql(format!(
            "ALTER TABLE slowlane.{table} ATTACH PARTITION slowlane.{name} FOR VALUES FROM ('{}') TO ('{}')",
            answer.text(row, 3),
            answer.text(row, 4)
        )));
    }
}

/// How many processes run jobs, as far as they say. The dead with jobs are a finding.
fn workers(look: &mut Look<'_>) -> usize {
    let sql = "SELECT w.id, w.hostname, w.pid, abs(extract(epoch FROM clock_timestamp() - w.beat_at)) < $1::int,
                      abs(extract(epoch FROM clock_timestamp() - w.beat_at))::bigint,
                      (SELECT count(*) FROM slowlane.jobs j WHERE j.worker_id = w.id AND j.state = 'running') AS running
                 FROM slowlane.workers w ORDER BY running DESC, w.started_at LIMIT 1000";
    let dead_after = DEAD_AFTER.as_secs().to_string();
    let Some(answer) = look.ask("the workers", sql, &[Some(&dead_after)]) else { return 0 };
    let alive = (0..answer.len()).filter(|row| answer.is(*row, 3)).count();
    look.fact("workers_alive", i64::try_from(alive).unwrap_or(0));
    let holds = |row: &usize| !answer.is(*row, 3) && answer.number(*row, 5).unwrap_or(0) > 0;
    for row in (0..answer.len()).filter(holds).take(NAMED) {
        let running = answer.number(row, 5).unwrap_or(0);
        let detail = format!(
            "the process {} on {} hasn't beaten for {} and holds {running} jobs: nobody has taken them over",
            answer.text(row, 2),
            answer.text(row, 1),
            span(answer.number(row, 4).unwrap_or(0))
        );
        let fix =
            "another process with the same kinds and targets takes them over within 30 s: start one, and see its log";
        look.find(FindingCode::WorkerDead, Severity::Warning, detail, fix);
    }
    if alive == 0 {
        let detail = "no process runs jobs: what is accepted waits, and days of history aren't made";
        look.find(FindingCode::NoWorkers, Severity::Warning, detail, "start `slowlane serve` with workers");
    }
    alive
}

fn jobs(look: &mut Look<'_>) {
    let sql = "WITH waiting AS (SELECT queue, kind, target, count(*) AS n FROM slowlane.jobs WHERE state = 'queued' GROUP BY 1, 2, 3)
               SELECT g.queue, g.kind, g.target, g.n FROM waiting g
                WHERE NOT EXISTS (SELECT FROM slowlane.workers w
                    WHERE abs(extract(epoch FROM clock_timestamp() - w.beat_at)) < $1::int AND g.queue = ANY(w.queues) AND g.kind = ANY(w.kinds)
                      AND EXISTS (SELECT FROM json_array_elements(w.targets) t WHERE t->>'name' = g.target))
                ORDER BY 4 DESC LIMIT 50";
    let dead_after = DEAD_AFTER.as_secs().to_string();
    if let Some(answer) = look.ask("jobs that nobody serves", sql, &[Some(&dead_after)]) {
        for row in (0..answer.len()).take(NAMED) {
            let detail = format!(
                "{} jobs of kind {} wait in the queue {} for the target {}, and no living process serves all three",
                answer.text(row, 3),
                answer.text(row, 1),
                answer.text(row, 0),
                answer.text(row, 2)
            );
            let fix = "start a process with that queue, kind and target, or cancel the jobs";
            look.find(FindingCode::JobsUnserved, Severity::Warning, detail, fix);
        }
    }
    let sql = "SELECT name, paused_at::text, coalesce(paused_reason, 'no reason given') FROM slowlane.queues
                WHERE paused_at IS NOT NULL ORDER BY paused_at LIMIT 20";
    if let Some(answer) = look.ask("paused queues", sql, &[]) {
        for row in 0..answer.len() {
            let name = answer.text(row, 0);
            let detail = format!("the queue {name} is paused since {}: {}", answer.text(row, 1), answer.text(row, 2));
            let fix = format!("resume it when its time has come: POST /v1/queues/{name}/resume");
            look.find(FindingCode::QueuePaused, Severity::Info, detail, fix);
        }
    }
    let sql = "SELECT count(*), min(c.job_id::text), extract(epoch FROM clock_timestamp() - min(c.updated_at))::bigint
                 FROM slowlane.job_checkpoints c
                WHERE c.xid IS NOT NULL AND c.updated_at < clock_timestamp() - $1::int * interval '1 second'
                  AND NOT EXISTS (SELECT FROM slowlane.jobs j WHERE j.id = c.job_id AND j.state = 'running')";
    let patience = IN_DOUBT.to_string();
    let Some(answer) = look.ask("transactions in doubt", sql, &[Some(&patience)]) else { return };
    if let Some(count) = answer.number(0, 0).filter(|count| *count > 0) {
        let detail = format!(
            "of {count} jobs isn't known whether their last transaction took effect, for up to {} (one is {}): their target can't be asked",
            span(answer.number(0, 2).unwrap_or(0)),
            answer.text(0, 1)
        );
        let fix =
            "bring the target back: they are settled at their next attempt; GET /v1/jobs/{id} says what they wait for";
        look.find(FindingCode::InDoubt, Severity::Warning, detail, fix);
    }
}
